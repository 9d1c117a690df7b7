"""How a selection is read when the order of its numbers does not matter: in parts, straight from the memory map."""

from __future__ import annotations

from collections.abc import Iterator

from weightkit.analysis.tally import lines
from weightkit.dtypes import Array
from weightkit.tensor import give_back, region_size, rows_on_map
from weightkit.weight import Selection

PART = 1 << 25  # numbers of one task: some megabytes, many to a large tensor
CHUNK = 16 << 20  # bytes that are read before their pages are given back


def parts(selection: Selection) -> list[Selection]:
    """A selection cut along the file into selections of about PART numbers."""
    region = selection.region
    if selection.size <= PART:
        return [selection]
    axis = len(region) - 1 if selection.weight.layout.transposed else 0
    taken = range(region[axis].start, region[axis].stop, region[axis].step)
    step = max(1, PART // (selection.size // len(taken)))
    found = []
    for first in range(0, len(taken), step):
        part = taken[first : first + step]
        cut = slice(part[0], part[-1] + 1, part.step)
        found.append(Selection(selection.weight, (*region[:axis], cut, *region[axis + 1 :])))
    return found


def stored(selection: Selection) -> Iterator[Array]:
    """The stored elements of a selection in pieces of bounded size, in any order.

    They lie on the memory map where the file has them as they are, and are gone after the next piece is asked for.
    """
    weight = selection.weight
    array = None if weight.dtype.packed or not region_size(selection.region) else rows_on_map(weight.stored)
    if array is None:
        yield from (block for _, block in selection.blocks())
        return
    for _, place in weight.layout.pieces(selection.region):
        for rows in lines(array[place]):
            for chunk in _chunks(rows):
                yield chunk
                give_back(weight.stored, chunk)


def _chunks(rows: Array) -> Iterator[Array]:
    """A matrix [rows, n] in matrices of CHUNK bytes."""
    most = CHUNK // rows.itemsize
    for j in range(0, rows.shape[1], most):
        part = rows[:, j : j + most]
        step = max(1, most // part.shape[1])
        yield from (part[i : i + step] for i in range(0, len(part), step))
