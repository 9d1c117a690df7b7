"""How a matrix lies in the tensor that stores it: transposed, and some of its rows.

Every fused layout in use (q, k, v one after another; per head; grouped; gate and up interleaved) is
one regular pattern of rows of the stored tensor, in [out, in] orientation. So a layout is a pure,
invertible index: an edit of "head 3 of K" is a write into a rectangle of the fused tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from weightkit.dtypes import Array
from weightkit.tensor import BLOCK, Region, Source, read_region, tiles, whole


@dataclass(frozen=True)
class Layout:
    """Which rows of a stored tensor, in [out, in] orientation, form a matrix.

    The matrix is `repeats` runs of `block` rows, the first at `start`, each `period` after the last.
    With `block` 0 it is the whole tensor. With an `index` it lies in that one of a stack of tensors.
    """

    transposed: bool = False  # the file has [in, out]
    start: int = 0
    block: int = 0
    period: int = 0
    repeats: int = 1
    index: int | None = None

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the matrix, given the shape of the tensor that stores it."""
        stored = stored if self.index is None else stored[1:]
        shape = stored[::-1] if self.transposed else stored
        return (self.block * self.repeats, *shape[1:]) if self.block else shape

    def view(self, stored: Array) -> Array:
        """The matrix in a stored array: a view where it is one run of rows, else a copy."""
        array = stored if self.index is None else stored[self.index]
        array = array.T if self.transposed else array
        if not self.block:
            return array
        if self.repeats == 1:
            return array[self.start : self.start + self.block]
        starts = self.start + self.period * np.arange(self.repeats)
        return array[(starts[:, None] + np.arange(self.block)).ravel()]

    def runs(self, stored: Array) -> Array:
        """The matrix as it lies in a stored array, a view: [rows, row], or its runs of rows, [runs, rows, row].

        Where the layout is transposed the rows are those of the stored array, [in, out].
        """
        array = stored if self.index is None else stored[self.index]
        if not self.block:
            return array
        array = array.swapaxes(0, -1) if self.transposed else array
        shape = (self.repeats, self.block, *array.shape[1:])
        steps = (self.period * array.strides[0], *array.strides)
        runs = np.lib.stride_tricks.as_strided(array[self.start :], shape, steps, writeable=False)
        runs = runs[0] if self.repeats == 1 else runs
        return runs.swapaxes(0, -1) if self.transposed else runs

    def pieces(self, region: Region) -> Iterator[tuple[Region, Region]]:
        """The rectangles of the stored tensor that a region of the matrix covers.

        Yields (region of the matrix, region of the stored tensor): the same elements in the same
        order, axes exchanged when the layout is transposed, one axis of length 1 first in a stack.
        """
        stack = () if self.index is None else (slice(self.index, self.index + 1, 1),)
        if not region:
            yield region, stack
            return
        for rows, stored_rows in self._runs(region[0]):
            if self.transposed:
                yield (rows, *region[1:]), (*stack, *region[1:][::-1], stored_rows)
            else:
                yield (rows, *region[1:]), (*stack, stored_rows, *region[1:])

    def _runs(self, rows: slice) -> Iterator[tuple[slice, slice]]:
        if not self.block:
            yield rows, rows
            return
        if self.block == 1 and self.repeats > 1:  # single rows at equal distances are one slice
            taken = range(rows.start, rows.stop, rows.step)
            if not taken:
                return
            first, last = (self.start + self.period * row for row in (taken[0], taken[-1]))
            yield rows, slice(first, last + 1, self.period * rows.step)
            return
        for repeat in range(rows.start // self.block, self.repeats):
            first = repeat * self.block
            if first >= rows.stop:
                return
            part = clip(rows, first, first + self.block)
            if part.start < part.stop:
                shift = self.start + repeat * self.period - first
                yield part, slice(part.start + shift, part.stop + shift, part.step)

    def read(self, source: Source, region: Region) -> Array:
        """The stored elements of a region of the matrix, [out, in], as a new array."""
        blocks = [read_region(source, part) for _, part in self.pieces(region)]
        blocks = blocks if self.index is None else [block[0] for block in blocks]
        turned = [block.T for block in blocks] if self.transposed else blocks
        return turned[0] if len(turned) == 1 else np.concatenate(turned)

    def tiles(self, stored: tuple[int, ...], most: int = BLOCK) -> Iterator[Region]:
        """Regions that cover the matrix, each read without passing over the file more than needed."""
        shape = self.shape(stored)
        if self.transposed and len(shape) == 2:
            yield from ((columns[1], columns[0]) for columns in tiles(shape[::-1], most))
        else:
            yield from tiles(shape, most)


PLAIN = Layout()
TRANSPOSED = Layout(transposed=True)


def clip(part: slice, low: int, high: int) -> slice:
    """What of a slice lies in [low, high); its start and stop may cross where nothing does."""
    start = part.start
    if start < low:
        start += -(-(low - start) // part.step) * part.step
    return slice(start, min(part.stop, high), part.step)


def join(layouts: list[Layout], matrices: list[Array], stored: tuple[int, ...]) -> Array:
    """The stored array whose views under `layouts` are `matrices`: the inverse of `view`."""
    result = np.empty(stored, matrices[0].dtype)
    for layout, matrix in zip(layouts, matrices, strict=True):
        for region, place in layout.pieces(whole(matrix.shape)):
            result[place] = matrix[region].T if layout.transposed else matrix[region]  # broadcast over a stack's axis
    return result
