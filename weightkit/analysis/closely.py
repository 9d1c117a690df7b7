"""One weight closely: its histogram, the numbers farthest from the mean, the norms of its rows and columns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from weightkit.analysis.lines import Lines
from weightkit.analysis.statistics import Statistics
from weightkit.dtypes import Array
from weightkit.weight import Selection


@dataclass(frozen=True)
class Histogram:
    """Counts in equal bins between the smallest and the largest finite number."""

    edges: list[float]
    counts: list[int]


def histogram(selection: Selection, row: Statistics, bins: int = 32) -> Histogram:
    """A histogram of a selection whose statistics are known; one more pass over its blocks."""
    if math.isnan(row.min):
        return Histogram([], [])
    low, high = row.min, row.max if row.max > row.min else row.min + 1.0
    edges = np.linspace(low, high, bins + 1)
    counts = np.zeros(bins, np.int64)
    for _, stored in selection.blocks():
        values = selection.dtype.decode(stored, np.float64)
        counts += np.histogram(values[np.isfinite(values)], bins=edges)[0]
    return Histogram(edges.tolist(), counts.tolist())


@dataclass(frozen=True)
class Outlier:
    """One number far from the others: where it is and how many standard deviations away."""

    coordinate: tuple[int, ...]
    value: float
    z: float


def outliers(selection: Selection, row: Statistics, most: int = 5) -> list[Outlier]:
    """The numbers farthest from the mean, farthest first. Coordinates are of the whole weight."""
    if not row.std > 0:
        return []
    found: list[tuple[float, tuple[int, ...], float]] = []
    for region, stored in selection.blocks():
        values = selection.dtype.decode(stored, np.float64)
        distance = np.where(np.isfinite(values), np.abs(values - row.mean), -1.0)
        top = _largest(distance.ravel(), most)
        for place in zip(*np.unravel_index(top, values.shape), strict=True):
            coordinate = tuple(s.start + int(i) * s.step for s, i in zip(region, place, strict=True))
            found.append((float(distance[place]), coordinate, float(values[place])))
        found = sorted(found, key=lambda item: (-item[0], item[1]))[:most]
    return [Outlier(c, v, (v - row.mean) / row.std) for d, c, v in found if d >= 0]


@dataclass(frozen=True)
class Norms:
    """The L2 norms of all rows, or of all columns, of a matrix, and the largest of them."""

    min: float
    median: float
    max: float
    largest: list[tuple[int, float]]  # (index in the whole weight, norm), the largest first


def norms(selection: Selection, row: Statistics, most: int = 5) -> tuple[Norms | None, Norms | None]:
    """The norms of rows and of columns, over finite values; None of what is no matrix. One more pass."""
    if len(selection.shape) != 2 or not selection.size:
        return None, None
    lines = Lines.of(selection, row.abs_max)
    rows, columns = (_norms(lines.norms(axis), wanted, most) for axis, wanted in enumerate(selection.region))
    return rows, columns


def _norms(found: Array, wanted: slice, most: int) -> Norms:
    top = [(wanted.start + int(i) * wanted.step, float(found[i])) for i in _largest(found, most)]
    return Norms(float(found.min()), float(np.median(found)), float(found.max()), top)


def _largest(values: Array, most: int) -> Array:
    """Indices of the largest values, the first of equal ones."""
    least = np.partition(values, -most)[-most] if values.size > most else values.min()
    found = np.flatnonzero(values >= least)
    return found[np.argsort(-values[found], kind="stable")[:most]]
