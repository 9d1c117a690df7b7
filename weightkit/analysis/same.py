"""Whether two weights are the same: the same bytes of one file, or the same numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from weightkit.dtypes import Array
from weightkit.tensor import Source, give_back, place_of, rows_on_map
from weightkit.weight import Weight, same_in

CHUNK = 1 << 21  # bytes that are compared at a time; what is found of them stays in the processor's cache
KEPT = 1 << 25  # bytes after which the map forgets what was read


def same_sample(a: Weight, b: Weight) -> bool:
    """Whether a few rows of two weights are the same to the bit, and say something: they are not all one number."""
    if not all(same_in(a, b, region) for region in a.spots()):
        return False
    return any((x != x.flat[0]).any() for x in map(a.read, a.spots()))


def same_numbers(a: Weight, b: Weight) -> bool:
    """Whether two weights have the same numbers: to the bit or, across types, in their values."""
    if a.shape != b.shape:
        return False
    if same_place(a, b):
        return True
    pair = _as_bytes(a, b)
    if pair is None:
        return all(same_in(a, b, tile) for tile in a.tiles())
    return all(np.array_equal(x, y) for x, y in _chunks(a, b, *pair))


def same_place(a: Weight, b: Weight) -> bool:
    """Whether both are the same bytes of the same file, so that there is nothing to read."""
    x, y = a.source, b.source
    if x is None or y is None or a.layout != b.layout:
        return False
    where, there = place_of(x), place_of(y)
    if where is None or there is None:
        return x is y
    return where == there and x.shape == y.shape and (x.path == y.path or _same_file(x, y))


def _same_file(x: Source, y: Source) -> bool:
    try:
        return x.path.samefile(y.path)
    except OSError:
        return False


def _as_bytes(a: Weight, b: Weight) -> tuple[Array, Array] | None:
    """Both on the memory map, as flat bytes; None where they do not lie there in one piece and in the same way."""
    if a.dtype != b.dtype or a.layout != b.layout or a.layout.block or a.stored.shape != b.stored.shape:
        return None
    found = []
    for weight in (a, b):
        array = rows_on_map(weight.stored)
        if array is None:
            return None
        array = array if weight.layout.index is None else array[weight.layout.index]
        if not array.flags.c_contiguous:
            return None
        found.append(array.reshape(-1).view(np.uint8))
    return found[0], found[1]


def _chunks(a: Weight, b: Weight, x: Array, y: Array) -> Iterator[tuple[Array, Array]]:
    for start in range(0, x.size, KEPT):
        for at in range(start, min(start + KEPT, x.size), CHUNK):
            yield _words(x[at : at + CHUNK]), _words(y[at : at + CHUNK])
        for weight, array in ((a, x), (b, y)):
            give_back(weight.stored, array[start : start + KEPT])


def _words(part: Array) -> Array:
    return part.view(np.uint64) if part.size % 8 == 0 else part
