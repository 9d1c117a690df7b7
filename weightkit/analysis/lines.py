"""Lines: the rows and columns of a matrix in one pass over its blocks: their norms, and the largest number of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from weightkit.dtypes import Array
from weightkit.weight import Selection


@dataclass
class Lines:
    """Rows and columns of a matrix, or of a part of one. NaN and Inf count as zeros.

    Squares are those of numbers over `scale`, so that none is beyond float64.
    """

    squares: tuple[Array, Array]  # Σ x² of each row, of each column
    largest: tuple[Array, Array]  # the largest x² of each
    scale: float = 1.0
    peak: float = 0.0  # the number of the largest magnitude
    at: tuple[int, ...] = ()  # where it is, in the whole weight
    first_bad: tuple[int, ...] = ()  # where the first NaN or Inf is

    @classmethod
    def of(cls, selection: Selection, abs_max: float) -> Lines:
        """Read a selection of two axes whose largest magnitude is known; NaN where it has no finite number."""
        rows, columns = selection.shape
        found = cls((np.zeros(rows), np.zeros(columns)), (np.zeros(rows), np.zeros(columns)))
        if abs_max > 0 and not 1e-100 < abs_max < 1e100:
            found.scale = abs_max
        for region, stored in selection.blocks():
            found._add(selection, region, selection.dtype.decode(stored, np.float64))
        return found

    def norms(self, axis: int) -> Array:
        """The L2 norm of each row (axis 0) or column (axis 1)."""
        return self.scale * np.sqrt(self.squares[axis])

    def _add(self, selection: Selection, region: tuple[slice, ...], values: Array) -> None:
        finite = np.isfinite(values)
        if not finite.all():
            self.first_bad = self.first_bad or _place(region, np.argwhere(~finite)[0])
            values = np.where(finite, values, 0.0)
        squares = np.square(values / self.scale)
        for axis, (wanted, part) in enumerate(zip(selection.region, region, strict=True)):
            first = (part.start - wanted.start) // wanted.step
            here = slice(first, first + squares.shape[axis])
            self.squares[axis][here] += squares.sum(axis=1 - axis)
            self.largest[axis][here] = np.maximum(self.largest[axis][here], squares.max(axis=1 - axis))
        i, j = divmod(int(squares.argmax()), squares.shape[1])
        if abs(values[i, j]) > abs(self.peak):
            self.peak, self.at = float(values[i, j]), _place(region, (i, j))


def _place(region: tuple[slice, ...], index: Array | tuple[int, int]) -> tuple[int, ...]:
    """Where in the whole weight a number of a block is."""
    return tuple(s.start + int(i) * s.step for s, i in zip(region, index, strict=True))
