"""Charts for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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


_SHADES = " ·░▒▓█"
_STYLES = ("dim", "dim", "blue", "cyan", "yellow", "red")


def heat(values: Mapping[str, Mapping[int, float]], layers: Sequence[int], width: int = 80) -> list[Line]:
    """A map of shares, names × layers: one character for each layer, or for several where there is no room.

    Shades are powers of ten: · below 0.1 %, ░ to 1 %, ▒ to 10 %, ▓ to 100 %, █ above. Of several layers the largest
    counts.
    """
    indent = max(map(len, values), default=0) + 2
    per = max(1, -(-len(layers) // max(1, width - indent)))
    groups = [layers[i : i + per] for i in range(0, len(layers), per)]
    each = f", {per} layers each" if per > 1 else ""
    lines: list[Line] = [[(f"{'':{indent}}{layers[0]} … {layers[-1]}{each}", "dim")]]
    for name, row in values.items():
        shades = [max((_shade(row.get(layer, 0.0)) for layer in group), default=0) for group in groups]
        lines.append([(f"{name:<{indent}}", ""), *((_SHADES[shade], _STYLES[shade]) for shade in shades)])
    return lines


def _shade(share: float) -> int:
    if not share > 0:
        return 0
    return max(1, min(5, 5 + math.floor(math.log10(share))))
