"""Groups: the names in them, and the address of the object that each names.

Groups have three forms: a symbol table (a B-tree over a heap of names), links in the object header, and
links in a fractal heap, found by a B-tree of version 2.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from weightkit.formats.hdf5_structure.header import LINKS, TABLE, Header
from weightkit.formats.hdf5_structure.image import UNDEFINED, Image
from weightkit.formats.hdf5_structure.trees import records, tree1, width_of

_ENTRY = Struct("<QQL4x16x")  # name, object, kind of cache
_HARD, _SOFT = 0, 1
_NO_FREE_BLOCK = 1
_NAMES_RECORD = 5  # the kind of B-tree that finds links by the hash of their names
_HEAP = Struct("<4sBHHBL12QH2Q2HQH")


def links(image: Image, header: Header) -> Iterator[tuple[bytes, int]]:
    """(name, address of the object) for everything in a group.

    Raises FormatError for links that lead elsewhere than to an object of this file.
    """
    if TABLE in header.one:
        yield from _table(image, header.one[TABLE].body)
    for message in header.links:
        yield _link(image, message.body)
    if LINKS in header.one:
        yield from _dense(image, header.one[LINKS].body)


def _table(image: Image, body: bytes) -> Iterator[tuple[bytes, int]]:
    """Section III.A.1, III.B, III.C, III.D: a symbol table."""
    tree, heap = Struct("<QQ").unpack_from(body)
    names = _names(image, heap)
    last = b""
    for node in tree1(image, tree, 0, 0, image.group_entries):
        raw = image.block(node.child, 8, b"SNOD", 1)
        count = int.from_bytes(raw[6:8], "little")
        if count > image.leaf_entries or node.child + 8 + image.leaf_entries * _ENTRY.size > image.end:
            raise image.fail(f"a damaged HDF5 file: {count:,} names in a node for {image.leaf_entries}")
        for place, address, cache in _ENTRY.iter_unpack(image.at(node.child + 8, count * _ENTRY.size)):
            name = names[place : max(0, names.find(b"\0", place))]
            if name <= last or cache > 2:  # the names are in order, or most could not be found by their name
                raise image.fail("a damaged HDF5 file: the names in a group are empty, twice there or not in order")
            if cache == 2:
                raise _leads_away(image, name, "a soft")
            yield name, address
            last = name


def _names(image: Image, heap: int) -> bytes:
    """The bytes of a local heap (section III.D), in which names end with a NUL."""
    raw = image.block(heap, 32, b"HEAP")
    size, free, start = Struct("<3Q").unpack_from(raw, 8)
    names = image.at(start, size)
    for _ in range(size // 16):
        if free == _NO_FREE_BLOCK:
            break
        following, length = Struct("<2Q").unpack_from(names, free)  # struct.error where that is outside
        if length < 16 or free + length > size:
            break
        free = following
    if free != _NO_FREE_BLOCK:
        raise image.fail("a damaged HDF5 file: the free blocks of a heap of names do not lie in it")
    return names


def _link(image: Image, body: bytes) -> tuple[bytes, int]:
    """Section IV.A.2.g: a link message."""
    version, flags = body[0], body[1]
    if version != 1 or flags & 0xE0:
        raise image.fail(f"a link of version {version} with flags {flags:#x} is not one that is known")
    at = 2
    kind = body[at] if flags & 8 else _HARD
    at += bool(flags & 8) + 8 * bool(flags & 4) + bool(flags & 16)
    width = 1 << (flags & 3)
    length = int.from_bytes(body[at : at + width], "little")
    at += width
    name = body[at : at + length]
    if len(name) != length or not length:
        raise image.fail("a damaged HDF5 file: a name in a group is empty or does not end")
    if kind != _HARD:
        raise _leads_away(image, name, "a soft" if kind == _SOFT else "an external" if kind == 64 else "a foreign")
    return name, *Struct("<Q").unpack_from(body, at + length)


def _leads_away(image: Image, name: bytes, kind: str) -> Exception:
    return image.fail(
        f"{name.decode('utf-8', 'replace')!r} is {kind} link, which is not followed; "
        "rewrite the file with the data in its place"
    )


def _dense(image: Image, body: bytes) -> Iterator[tuple[bytes, int]]:
    """Section IV.A.2.c: links in a fractal heap."""
    version, flags = body[0], body[1]
    heap, tree = Struct("<QQ").unpack_from(body, 2 + 8 * (flags & 1))
    if version:
        raise image.fail(f"a group of version {version} is not one that is known")
    if heap == UNDEFINED:
        return
    objects = _heap(image, heap)
    yield from sorted(_link(image, objects.object(record[4:])) for record in records(image, tree, _NAMES_RECORD))


class _Heap(NamedTuple):
    """A fractal heap (section III.G) of objects of which each lies whole in one block."""

    image: Image
    blocks: dict[int, bytes]  # by offset in the heap
    starts: list[int]  # the offsets, in order
    offset_bytes: int
    length_bytes: int

    def object(self, id: bytes) -> bytes:
        """The object of a heap ID."""
        if id[0] & 0xF0:  # a huge or tiny object: no link that is real
            raise self.image.fail("a link of more than 4 kB, or one that is damaged")
        offset = int.from_bytes(id[1 : 1 + self.offset_bytes], "little")
        length = int.from_bytes(id[1 + self.offset_bytes :][: self.length_bytes], "little")
        place = bisect_right(self.starts, offset) - 1
        first = self.starts[place] if place >= 0 else 0
        found = self.blocks.get(first, b"")[offset - first : offset - first + length]
        if len(found) != length:
            raise self.image.fail("a damaged HDF5 file: a link lies outside of the blocks of its heap")
        return found


class _Table(NamedTuple):
    """How the blocks of a fractal heap grow: the doubling table."""

    width: int
    start: int  # bytes in a block of the first two rows
    most: int  # bytes in the largest direct block
    bits: int  # of an offset in the heap
    summed: bool

    def size(self, row: int) -> int:
        """Bytes of a block in a row."""
        return self.start << max(0, row - 1)

    @property
    def direct_rows(self) -> int:
        """Rows whose blocks hold objects; the others hold more rows."""
        return self.most.bit_length() - self.start.bit_length() + 2


def _heap(image: Image, address: int) -> _Heap:
    raw = image.summed(address, _HEAP.size + 4, b"FRHP")
    _, _, _, filtered, flags, managed, *_, width, start, most, bits, _, root, rows = _HEAP.unpack(raw)
    if filtered:
        raise image.fail("a group whose links are compressed cannot be read; rewrite it with h5repack")
    powers = all(n and n & n - 1 == 0 for n in (width, start, most))
    if not powers or width > 64 or not start <= most <= 1 << 31 or not 0 < bits <= 64:
        raise image.fail("a damaged HDF5 file: a heap of links whose blocks have no sensible sizes")
    table = _Table(width, start, most, bits, bool(flags & 2))
    blocks = {} if root == UNDEFINED else dict(_blocks(image, table, address, root, rows))
    length_bytes = min((most.bit_length() + 6) // 8, width_of(managed))
    return _Heap(image, blocks, sorted(blocks), -(-bits // 8), length_bytes)


def _blocks(image: Image, table: _Table, heap: int, root: int, rows: int) -> Iterator[tuple[int, bytes]]:
    """(offset in the heap, bytes) of all blocks that hold objects."""
    waiting = [(root, rows, table.start, 0)]  # address, rows or 0 for a direct block, size, offset
    offset_bytes = -(-table.bits // 8)
    while waiting:
        address, rows, size, offset = waiting.pop()
        start = 13 + offset_bytes
        if not rows:
            yield offset, _block(image, table, heap, address, size, offset)
            continue
        if rows > table.bits:
            raise image.fail("a damaged HDF5 file: a heap of links whose blocks have no sensible sizes")
        raw = image.summed(address, start + 8 * rows * table.width + 4, b"FHIB")
        for index, (child,) in enumerate(Struct("<Q").iter_unpack(raw[start:])):
            row = index // table.width
            size = table.size(row)
            if child != UNDEFINED:
                deeper = size.bit_length() - (table.start * table.width).bit_length() + 1
                waiting.append((child, deeper if row >= table.direct_rows else 0, size, offset))
            offset += size


def _block(image: Image, table: _Table, heap: int, address: int, size: int, offset: int) -> bytes:
    """A block that holds objects. Refuses one of another heap or place, and one whose checksum is wrong."""
    offset_bytes = -(-table.bits // 8)
    start = 13 + offset_bytes
    raw = image.block(address, size, b"FHDB")
    if raw[5:start] != heap.to_bytes(8, "little") + offset.to_bytes(offset_bytes, "little"):
        raise image.fail(f"a damaged HDF5 file: a block of another heap at {address:,}")
    if table.summed:  # the checksum is that of the block with its own field zeroed
        image.check(raw[:start] + bytes(4) + raw[start + 4 :] + raw[start : start + 4])
    return raw
