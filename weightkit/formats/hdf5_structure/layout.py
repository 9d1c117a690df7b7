"""Where the elements of an array lie (section IV.A.2.i): in one piece, or in chunks found by an index."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from weightkit.formats.hdf5_structure.arrays import extensible_array, fixed_array
from weightkit.formats.hdf5_structure.header import LAYOUT, Header
from weightkit.formats.hdf5_structure.image import UNDEFINED, Image
from weightkit.formats.hdf5_structure.trees import records, tree1

_COMPACT, _CONTIGUOUS, _CHUNKED = 0, 1, 2
_TREE1, _SINGLE, _IMPLICIT, _FIXED, _EXTENSIBLE, _TREE2 = 0, 1, 2, 3, 4, 5
_PARAMETERS = {_IMPLICIT: 0, _FIXED: 1, _EXTENSIBLE: 5, _TREE2: 6}  # bytes of what an index is made with
_PLAIN_RECORD, _FILTERED_RECORD = 10, 11
_EDGES_UNFILTERED, _SINGLE_FILTERED = 1, 2  # flags

_MOST_UNLISTED = 1 << 20  # chunks that take no byte of an index


class Layout(NamedTuple):
    """Where an array lies. Without `chunk` it is one piece of `nbytes`; else `address` is that of an index."""

    address: int
    nbytes: int = 0
    chunk: tuple[int, ...] = ()
    width: int = 0  # bytes of an element, as the layout says
    index_kind: int = 0
    parameters: bytes = b""
    edges_unfiltered: bool = False
    mask: int = 0  # of the single chunk


class Stored(NamedTuple):
    """One chunk in the file, at `place` in the grid of chunks. Filter i was left out where bit i of `mask` is set."""

    place: tuple[int, ...]
    address: int
    nbytes: int
    mask: int


def layout_of(image: Image, header: Header) -> Layout:
    """The layout message of an array. Raises FormatError for arrays that lie in other arrays or files."""
    body, start = header.one[LAYOUT]
    version, kind = body[0], body[1]
    if version not in (3, 4, 5) or kind > _CHUNKED:
        if kind == 3:
            raise image.fail("holds a virtual dataset, made of others; rewrite it with h5repack")
        raise image.fail(f"an array layout of version {version} and kind {kind} is not one that is known")
    if kind == _COMPACT:
        return Layout(start + 4, *Struct("<H").unpack_from(body, 2))
    if kind == _CONTIGUOUS:
        return Layout(*Struct("<QQ").unpack_from(body, 2))
    if version == 3:
        rank = body[2]
        (address,) = Struct("<Q").unpack_from(body, 3)
        *chunk, width = Struct(f"<{rank}L").unpack_from(body, 11)
        return Layout(address, 0, tuple(chunk), width)
    return _newest(image, body)


def _newest(image: Image, body: bytes) -> Layout:
    flags, rank, encoded = body[2], body[3], body[4]
    at = 5
    sizes = [int.from_bytes(body[i : i + encoded], "little") for i in range(at, at + rank * encoded, encoded or 1)]
    at += rank * encoded
    *chunk, width = sizes
    index = body[at]
    at += 1
    nbytes = mask = 0
    parameters = b""
    if index == _SINGLE:
        if flags & _SINGLE_FILTERED:
            nbytes, mask = Struct("<QL").unpack_from(body, at)
            at += 12
    elif index in _PARAMETERS:
        parameters = body[at : at + _PARAMETERS[index]]
        at += _PARAMETERS[index]
    else:
        raise image.fail(f"a chunk index of type {index} is not one that is known")
    (address,) = Struct("<Q").unpack_from(body, at)
    return Layout(address, nbytes, tuple(chunk), width, index, parameters, bool(flags & _EDGES_UNFILTERED), mask)


def stored_chunks(
    image: Image, layout: Layout, shape: tuple[int, ...], most: tuple[int, ...], *, filtered: bool
) -> Iterator[Stored]:
    """All chunks of an array that are in the file. `most` is its greatest shape, UNDEFINED where it has none."""
    if layout.address == UNDEFINED:
        return iter(())
    size = math.prod(layout.chunk) * layout.width
    if layout.index_kind == _TREE1:
        return _by_tree1(image, layout)
    if layout.index_kind == _TREE2:
        return _by_tree2(image, layout, filtered, size)
    if layout.index_kind == _SINGLE:
        return iter([Stored((0,) * len(shape), layout.address, layout.nbytes or size, layout.mask)])
    return _by_number(image, layout, shape, most, filtered, size)


def _by_tree1(image: Image, layout: Layout) -> Iterator[Stored]:
    rank = len(layout.chunk)
    key = Struct(f"<LL{rank + 1}Q")
    last: list[int] = []
    for leaf in tree1(image, layout.address, 1, rank, image.chunk_entries):
        nbytes, mask, *offsets, _ = key.unpack(leaf.key)
        if offsets <= last or any(offset % step for offset, step in zip(offsets, layout.chunk, strict=True)):
            raise image.fail("a damaged HDF5 file: the chunks of an array are not in order, or lie across others")
        last = offsets
        place = tuple(offset // step for offset, step in zip(offsets, layout.chunk, strict=True))
        yield Stored(place, leaf.child, nbytes, mask)


def _by_tree2(image: Image, layout: Layout, filtered: bool, size: int) -> Iterator[Stored]:
    rank = len(layout.chunk)
    for record in records(image, layout.address, _FILTERED_RECORD if filtered else _PLAIN_RECORD):
        at = len(record) - 8 * rank
        place = Struct(f"<{rank}Q").unpack_from(record, at)
        yield Stored(place, *_element(record[:at], filtered, size))


def _by_number(
    image: Image, layout: Layout, shape: tuple[int, ...], most: tuple[int, ...], filtered: bool, size: int
) -> Iterator[Stored]:
    """Chunks by their number in the greatest shape, the axis without an end counted first."""
    axes = sorted(range(len(shape)), key=lambda axis: most[axis] != UNDEFINED)
    if sum(n == UNDEFINED for n in most) != (layout.index_kind == _EXTENSIBLE):
        raise image.fail("a damaged HDF5 file: an index of chunks that does not fit the array's greatest shape")
    grid = [-(-n // step) for n, step in zip(shape, layout.chunk, strict=True)]
    counts = [-(-n // step) for n, step in zip(most, layout.chunk, strict=True)]
    steps = {axis: math.prod(counts[other] for other in axes[i + 1 :]) for i, axis in enumerate(axes)}
    if layout.index_kind == _IMPLICIT:
        if math.prod(grid) > _MOST_UNLISTED:
            raise image.fail(f"{math.prod(grid):,} chunks; rewrite it with larger ones (h5repack -l CHUNK=…)")
        image.charge(32 * math.prod(grid))
        for place in itertools.product(*map(range, grid)):
            yield Stored(place, layout.address + size * sum(place[a] * steps[a] for a in axes), size, 0)
        return
    wanted = sum((grid[axis] - 1) * steps[axis] for axis in axes) + 1 if all(grid) else 0
    array = fixed_array if layout.index_kind == _FIXED else extensible_array
    for number, element in array(image, layout.address, filtered, wanted):
        address, nbytes, mask = _element(element, filtered, size)
        if address != UNDEFINED and number < wanted:
            at = [0] * len(shape)
            for axis in axes:
                at[axis], number = divmod(number, steps[axis])
            if all(i < n for i, n in zip(at, grid, strict=True)):
                yield Stored(tuple(at), address, nbytes, mask)


def _element(raw: bytes, filtered: bool, size: int) -> tuple[int, int, int]:
    """Address, bytes and filter mask of a chunk, as arrays and B-trees of version 2 hold them."""
    address = int.from_bytes(raw[:8], "little")
    if not filtered:
        return address, size, 0
    return address, int.from_bytes(raw[8:-4], "little"), int.from_bytes(raw[-4:], "little")
