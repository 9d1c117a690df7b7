"""B-trees, versions 1 and 2 (sections III.A.1 and III.A.2): their leaves, in order."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from weightkit.formats.hdf5_structure.image import Image

_NODE1 = Struct("<4sBBHQQ")  # signature, kind, level, entries, siblings
_TREE2 = Struct("<4sBBLHHBBQHQ")  # signature, version, kind, node, record, depth, split, merge, root, records, all
_MOST_LEVELS = 64
_FRAME2 = 10  # bytes of a node of version 2 that are not its records: signature, version, kind, checksum


class Leaf(NamedTuple):
    """A child of the lowest level of a B-tree of version 1, with the key before it."""

    key: bytes
    child: int


def tree1(image: Image, root: int, kind: int, rank: int, most: int) -> Iterator[Leaf]:
    """The leaves of a B-tree of version 1: of a group (kind 0), or of chunks of `rank` dimensions (kind 1)."""
    key = 8 + 8 * (rank + 1) if kind else 8
    waiting: list[tuple[int, int | None]] = [(root, None)]
    while waiting:
        address, expected = waiting.pop()
        head = image.at(address, _NODE1.size)
        signature, found, level, count, _, _ = _NODE1.unpack(head)
        if signature != b"TREE" or found != kind or level != (level if expected is None else expected):
            raise image.fail(f"a damaged HDF5 file: no node of the expected B-tree at {address:,}")
        if count > most or level > _MOST_LEVELS or address + _NODE1.size + most * (key + 8) + key > image.end:
            raise image.fail(f"a damaged HDF5 file: a B-tree node with {count:,} entries on level {level}")
        raw = image.at(address + _NODE1.size, count * (key + 8) + key)
        step = key + 8
        leaves = [
            Leaf(raw[i : i + key], int.from_bytes(raw[i + key : i + step], "little"))
            for i in range(0, count * step, step)
        ]
        if level:
            waiting.extend((leaf.child, level - 1) for leaf in reversed(leaves))
        else:
            yield from leaves


def records(image: Image, address: int, kind: int) -> Iterator[bytes]:
    """The records of a B-tree of version 2 of one kind. Those of a node come before those of its children."""
    raw = image.summed(address, _TREE2.size + 4, b"BTHD")
    _, _, found, node, size, depth, _, _, root, count, total = _TREE2.unpack(raw)
    if found != kind or not size or not _FRAME2 + size <= node <= 1 << 20 or depth > _MOST_LEVELS:
        raise image.fail(f"a damaged HDF5 file: no B-tree of kind {kind} at {address:,}")
    pointers = _pointer_sizes(node, size, depth)
    waiting = [(root, depth, count)] if count else []
    seen = 0
    while waiting:
        place, level, count = waiting.pop()
        pointer = sum(pointers[level])
        length = _FRAME2 + count * size + (count + 1) * pointer * bool(level)
        if length > node:
            raise image.fail(f"a damaged HDF5 file: a B-tree node with {count:,} entries")
        raw = image.summed(place, length, b"BTIN" if level else b"BTLF")
        if raw[5] != kind:
            raise image.fail(f"a damaged HDF5 file: no node of the expected B-tree at {place:,}")
        stop = 6 + count * size
        yield from (raw[i : i + size] for i in range(6, stop, size))
        seen += count
        if level:
            for i in range(stop, len(raw), pointer):
                entries = int.from_bytes(raw[i + 8 : i + 8 + pointers[level][1]], "little")
                waiting.append((int.from_bytes(raw[i : i + 8], "little"), level - 1, entries))
    if seen != total:
        raise image.fail(f"a damaged HDF5 file: a B-tree of {seen:,} entries that should have {total:,}")


def _pointer_sizes(node: int, size: int, depth: int) -> list[tuple[int, int, int]]:
    """Per level, the bytes of a child's address, its number of records, and the number of all below it."""
    most = (node - _FRAME2) // size
    width = width_of(most)
    below, sizes, total = most, [(0, 0, 0)], 0
    for _ in range(depth):
        sizes.append((8, width, total))
        most = max(0, (node - _FRAME2 - sum(sizes[-1])) // (size + sum(sizes[-1])))
        below = (most + 1) * below + most
        total = width_of(below)
    return sizes


def width_of(limit: int) -> int:
    """Bytes that hold the numbers up to `limit`."""
    return max(1, -(-limit.bit_length() // 8))
