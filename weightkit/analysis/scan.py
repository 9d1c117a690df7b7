"""Scan: all that outliers ask of one weight, in one pass: a summary of its numbers, its rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weightkit.analysis import reading, tally
from weightkit.analysis.lines import Lines
from weightkit.analysis.remembered import remembered
from weightkit.analysis.summary import ExactMoments, Summary
from weightkit.dtypes import Array
from weightkit.weight import Selection, Weight


@dataclass(frozen=True, eq=False)
class Scan:
    """One weight in a few numbers."""

    summary: Summary
    lines: Lines | None  # of a matrix that has numbers

    @property
    def moments(self) -> ExactMoments:
        """Mean, std and so on, of the finite numbers."""
        return ExactMoments.of(self.summary)

    @property
    def abs_max(self) -> float:
        """The largest magnitude; 0 where no number is finite."""
        return max(abs(self.summary.low), abs(self.summary.high)) if self.summary.finite else 0.0

    def cells(self) -> tuple[Array, Array]:
        """Points between the numbers, rising, and how many numbers are below each, exactly. [n], [n]"""
        table = self.summary.halves if self.summary.halves.keys.size else self.summary.values
        if table is self.summary.halves:  # of which the upper halves of the keys are counted
            points = _unkey_upper(table.keys.astype(np.int64) + 1)
        else:
            values = tally.unkey(table.keys).astype(np.float64)
            points = np.append((values[:-1] + values[1:]) / 2, values[-1:])
        return points, np.cumsum(table.counts)

    def quantile(self, q: float) -> float:
        """A number that has this share of the others below it; as it is, or within its cell; NaN without any."""
        points, below = self.cells()
        if not len(points):
            return float("nan")
        if not self.summary.halves.keys.size:
            at = np.searchsorted(below, int(q * (self.summary.finite - 1)), side="right")
            return float(tally.unkey(self.summary.values.keys)[at])
        first = _unkey_upper(self.summary.halves.keys[:1])
        return float(np.interp(q * self.summary.finite, np.append(0, below), np.append(first, points)))


def _unkey_upper(halves: Array) -> Array:
    """The numbers whose ordered keys have these upper halves, and zeros as lower ones; float32's largest at most."""
    most = np.finfo(np.float32).max
    ends = tally.key(np.array([-most, most], np.float32)).astype(np.int64)
    return tally.unkey(np.clip(halves.astype(np.int64) << 16, *ends).astype(np.uint32)).astype(np.float64)


def scan(part: Selection, *, cache: bool = False) -> Scan:
    """Read a part of a weight once; numbers of 64 bits, which may be huge, twice. With `cache`, take what is known."""
    fresh: list[Summary] = []

    def count() -> Summary:
        return fresh[0] if fresh else Summary.of(part.dtype, reading.stored(part))

    def summary() -> Summary:
        return remembered(Summary, part, (), count, cache=cache)

    def read() -> Lines:
        lines = Lines.empty(part)
        fresh.append(Summary.of(part.dtype, lines.watch(part)))
        return lines

    if len(part.shape) != 2 or not part.size:
        return Scan(summary(), None)
    if part.dtype.bits > 32 and part.dtype.kind in ("float", "complex"):
        first = Scan(summary(), None)
        return Scan(first.summary, Lines.of(part, first.abs_max))
    lines = remembered(Lines, part, (), read, cache=cache)
    return Scan(summary(), lines)


def together(weight: Weight, parts: Sequence[Selection], scans: Sequence[Scan]) -> Scan:
    """What is known of a weight by its parts."""
    if len(parts) == 1:
        return scans[0]
    whole = Selection.of(weight)
    lines = Lines.empty(whole) if scans[0].lines is not None else None
    for part, found in zip(parts, scans, strict=True):
        if lines is not None and found.lines is not None:
            lines.add(whole, part, found.lines)
    return Scan(sum((found.summary for found in scans), Summary()), lines)
