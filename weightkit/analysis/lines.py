"""Lines: the rows and columns of a matrix in one pass over its blocks: their norms, sums and largest numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from weightkit.dtypes import Array
from weightkit.weight import Selection

TOP = 111  # of the largest numbers it is known where they are: all that isolated.py asks for


@dataclass(eq=False)
class Lines:
    """Rows and columns of a matrix, or of a part of one. NaN and Inf count as zeros.

    Squares are those of numbers over `scale`, so that none is beyond float64.
    """

    squares: tuple[Array, Array]  # Σ x² of each row, of each column
    largest: tuple[Array, Array]  # the largest x² of each
    sums: Array  # Σ x of each column
    scale: float = 1.0
    top: list[tuple[float, tuple[int, ...]]] = field(default_factory=list)  # of the largest magnitude: x, and where
    first_bad: tuple[int, ...] = ()  # where the first NaN or Inf is

    @classmethod
    def empty(cls, selection: Selection, abs_max: float = 1.0) -> Lines:
        """Those of a selection of two axes of which nothing is read; `abs_max` is its largest magnitude, if huge."""
        rows, columns = selection.shape
        zeros = [np.zeros(n) for n in (rows, columns, rows, columns, columns)]
        scale = abs_max if abs_max > 0 and not 1e-100 < abs_max < 1e100 else 1.0
        return cls((zeros[0], zeros[1]), (zeros[2], zeros[3]), zeros[4], scale)

    @classmethod
    def of(cls, selection: Selection, abs_max: float) -> Lines:
        """Read a selection of two axes whose largest magnitude is known; NaN where it has no finite number."""
        found = cls.empty(selection, abs_max)
        for _ in found.watch(selection):
            pass
        return found

    def watch(self, selection: Selection) -> Iterator[Array]:
        """The stored elements of the selection in blocks, each of them taken into account on the way."""
        for region, stored in selection.blocks():
            self._add(selection, region, selection.dtype.decode(stored, np.float64))
            yield stored

    def add(self, whole: Selection, part: Selection, other: Lines) -> None:
        """Take into account what is known of a part of a selection."""
        if not self.top:
            self.scale = other.scale  # of nothing but zeros
        elif other.scale > self.scale:
            self._rescale(other.scale)
        ratio = (other.scale / self.scale) ** 2
        for axis, spans in enumerate(zip(whole.region, part.region, strict=True)):
            here, largest = _span(*spans), self.largest[axis]
            self.squares[axis][here] += other.squares[axis] * ratio
            np.maximum(largest[here], other.largest[axis] * ratio, out=largest[here])
        self.sums[_span(whole.region[1], part.region[1])] += other.sums
        self.top = _largest(self.top + other.top)
        self.first_bad = self.first_bad or other.first_bad

    def _rescale(self, scale: float) -> None:
        for array in (*self.squares, *self.largest):
            array *= (self.scale / scale) ** 2
        self.scale = scale

    def norms(self, axis: int) -> Array:
        """The L2 norm of each row (axis 0) or column (axis 1)."""
        return self.scale * np.sqrt(self.squares[axis])

    def _add(self, whole: Selection, region: tuple[slice, ...], values: Array) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.square(values if self.scale == 1 else values / self.scale)
            rows = squares.sum(axis=1)
        if not np.isfinite(rows).all():
            bad = ~np.isfinite(values)
            self.first_bad = self.first_bad or _place(region, np.argwhere(bad)[0])
            values, squares = np.where(bad, 0.0, values), np.where(bad, 0.0, squares)
            rows = squares.sum(axis=1)
        (first, second), peaks = (
            (_span(*spans) for spans in zip(whole.region, region, strict=True)),
            squares.max(axis=1),
        )
        self.squares[0][first] += rows
        self.squares[1][second] += squares.sum(axis=0)
        self.sums[second] += values.sum(axis=0)
        np.maximum(self.largest[0][first], peaks, out=self.largest[0][first])
        np.maximum(self.largest[1][second], squares.max(axis=0), out=self.largest[1][second])
        self._add_top(region, values, peaks)

    def _add_top(self, region: tuple[slice, ...], values: Array, peaks: Array) -> None:
        """Keep the largest numbers; rows that have none of them are not looked at."""
        least = (self.top[-1][0] / self.scale) ** 2 if len(self.top) == TOP else 0.0
        rows = np.flatnonzero(peaks > least)
        if not len(rows):
            return
        rows = np.sort(rows[np.argsort(-peaks[rows], kind="stable")[:TOP]])  # no other row has one of the largest
        sizes = np.abs(values[rows]).ravel()
        some = np.sort(np.argpartition(-sizes, min(TOP, len(sizes) - 1))[:TOP])
        places = [divmod(int(i), values.shape[1]) for i in some if sizes[i] > 0]
        self.top += [(float(values[rows[i], j]), _place(region, (int(rows[i]), j))) for i, j in places]
        self.top = _largest(self.top)

    def to_bytes(self) -> bytes:
        """All of it as bytes."""
        file = io.BytesIO()
        at = np.array([place for _, place in self.top], np.int64).reshape(-1, 2)
        arrays = (*self.squares, *self.largest, self.sums, np.array([self.scale]), np.array([x for x, _ in self.top]))
        np.savez(file, *arrays, at, np.array(self.first_bad, np.int64))
        return file.getvalue()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Lines:
        """What `to_bytes` wrote. Raises ValueError or KeyError for other bytes."""
        with np.load(io.BytesIO(raw)) as file:
            a, b, c, d, sums, scale, top, at, bad = (file[f"arr_{i}"] for i in range(9))
        places = [tuple(map(int, place)) for place in at]
        numbers = list(zip(map(float, top), places, strict=True))
        return cls((a, b), (c, d), sums, float(scale[0]), numbers, tuple(map(int, bad)))


def _largest(numbers: list[tuple[float, tuple[int, ...]]]) -> list[tuple[float, tuple[int, ...]]]:
    return sorted(numbers, key=lambda item: (-abs(item[0]), item[1]))[:TOP]


def _span(wanted: slice, part: slice) -> slice:
    """Where in a selection the lines of a block are."""
    first = (part.start - wanted.start) // wanted.step
    return slice(first, first + len(range(part.start, part.stop, part.step)))


def _place(region: tuple[slice, ...], index: Array | tuple[int, int]) -> tuple[int, ...]:
    """Where in the whole weight a number of a block is."""
    return tuple(s.start + int(i) * s.step for s, i in zip(region, index, strict=True))
