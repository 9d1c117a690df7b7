"""Charts for a terminal."""

from __future__ import annotations

import math

from weightkit.analysis.closely import Histogram
from weightkit.report.tables import Line
from weightkit.report.units import count, real

_EIGHTHS = " ▏▎▍▌▋▊▉"


def bars(histogram: Histogram, width: int = 40) -> list[Line]:
    """A histogram as bars; their lengths are logarithmic, since tails are what one looks for."""
    top = max(histogram.counts, default=0)
    lines: list[Line] = []
    for low, number in zip(histogram.edges, histogram.counts, strict=False):
        length = width * math.log1p(number) / math.log1p(top) if top else 0.0
        lines.append([(f"{real(low, 3):>10} ", "dim"), (_bar(length).ljust(width), "cyan"), (f" {count(number)}", "")])
    return lines


def _bar(length: float) -> str:
    eighths = round(length * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
