"""The two arrays that index chunks (sections VIII.C and VIII.D): fixed, and extensible."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

import numpy as np

from weightkit.formats.hdf5_structure.image import UNDEFINED, Image

_FIXED = Struct("<4sBBBBQQ")  # signature, version, client, element, page bits, elements, block
_EXTENSIBLE = Struct("<4sBBBBBBBB6QQ")  # …, element, bits, in index, in block, pointers, page bits, statistics, block
_HEAD = 14  # bytes of a block before its content: signature, version, client, address of the header

Numbered = tuple[int, bytes]  # an element of an array, and its number


def fixed_array(image: Image, address: int, filtered: bool, wanted: int) -> Iterator[Numbered]:
    """The elements of a fixed array of which at least `wanted` should be there."""
    raw = image.summed(address, _FIXED.size + 4, b"FAHD")
    _, _, client, size, bits, count, block = _FIXED.unpack(raw)
    if client != filtered or size < 8 or count < wanted or bits > 32:
        raise image.fail(f"a damaged HDF5 file: the index of chunks at {address:,} is of another array")
    if block == UNDEFINED:
        return
    page, head = 1 << bits, _HEAD
    if count <= page:
        raw = image.summed(block, head + count * size + 4, b"FADB")
        yield from _elements(raw[head:], size, 0)
        return
    pages = -(-count // page)
    raw = image.summed(block, head + -(-pages // 8) + 4, b"FADB")
    yield from _paged(image, block + len(raw) + 4, size, count, page, 0, raw[head:])


def _bits(raw: bytes, start: int, count: int) -> bytes:
    """Bits `start` to `start + count` of `raw`, highest first, moved to the front."""
    stop = start + count
    number = int.from_bytes(raw[start // 8 : -(-stop // 8)], "big") >> -stop % 8
    return ((number & ((1 << count) - 1)) << -count % 8).to_bytes(-(-count // 8), "big")


def _paged(
    image: Image, address: int, size: int, count: int, page: int, first: int, there: bytes
) -> Iterator[Numbered]:
    """The elements of a block that lie in pages, each with a checksum of its own."""
    for at in np.flatnonzero(np.frombuffer(there, np.uint8)).tolist():  # of trillions of pages few may be there
        for index in (8 * at + bit for bit in range(8) if there[at] >> (7 - bit) & 1):
            start = index * page
            here = min(page, count - start)
            if here <= 0:
                return
            raw = image.at(address + index * (page * size + 4), here * size + 4)
            image.check(raw)
            yield from _elements(raw[:-4], size, first + start)


def _elements(raw: bytes, size: int, first: int) -> Iterator[Numbered]:
    return ((first + i // size, raw[i : i + size]) for i in range(0, len(raw) - size + 1, size))


class _Extensible(NamedTuple):
    """An extensible array: elements in its index, then in blocks that grow, then in blocks of blocks."""

    image: Image
    size: int  # bytes of an element
    bits: int  # of the number of an element
    inside: int  # elements in the index itself
    least: int  # elements in the smallest block
    pointers: int  # blocks in the smallest block of blocks
    page: int  # elements in a page
    index_block: int  # address

    @property
    def head(self) -> int:
        """Bytes before the content of a block: its frame, and the number of its first element."""
        return _HEAD + -(-self.bits // 8)

    def elements(self, wanted: int) -> Iterator[Numbered]:
        """The elements that are in the file, as far as the first `wanted`."""
        direct, rows = 2 * (self.pointers - 1), 1 + self.bits - (self.least.bit_length() - 1)
        direct_rows = 2 * (self.pointers.bit_length() - 1)
        start = _HEAD + self.inside * self.size
        raw = self.image.summed(self.index_block, start + 8 * (direct + rows - direct_rows) + 4, b"EAIB")
        yield from _elements(raw[_HEAD:start], self.size, 0)
        addresses = [address for (address,) in Struct("<Q").iter_unpack(raw[start:])]
        first, used = self.inside, 0
        for row in range(rows):
            blocks, count = 1 << row // 2, (1 << (row + 1) // 2) * self.least
            if first >= wanted:
                return
            if row < direct_rows:
                children = [(address, b"") for address in addresses[used : used + blocks]]
                used += blocks
            else:
                children = self.children(addresses[direct + row - direct_rows], blocks, count)
            for number, (address, there) in enumerate(children):
                if address != UNDEFINED and first + number * count < wanted:
                    yield from self.block(address, count, first + number * count, there)
            first += blocks * count

    def children(self, address: int, blocks: int, count: int) -> list[tuple[int, bytes]]:
        """The blocks of a block of blocks: (address, which of its pages are there)."""
        if address == UNDEFINED:
            return []
        pages = count // self.page if count > self.page else 0
        start = self.head + blocks * (-(-pages // 8))
        raw = self.image.summed(address, start + 8 * blocks + 4, b"EASB")
        there = raw[self.head : start]  # pages of the second block follow those of the first, bit by bit
        return [
            (int.from_bytes(raw[start + 8 * i :][:8], "little"), _bits(there, i * pages, pages)) for i in range(blocks)
        ]

    def block(self, address: int, count: int, first: int, there: bytes) -> Iterator[Numbered]:
        """The elements of a block, whole or in pages."""
        if count <= self.page:
            raw = self.image.summed(address, self.head + count * self.size + 4, b"EADB")
            return _elements(raw[self.head :], self.size, first)
        self.image.summed(address, self.head + 4, b"EADB")
        return _paged(self.image, address + self.head + 4, self.size, count, self.page, first, there)


def extensible_array(image: Image, address: int, filtered: bool, wanted: int) -> Iterator[Numbered]:
    """The elements of an extensible array, as far as the first `wanted`."""
    raw = image.summed(address, _EXTENSIBLE.size + 4, b"EAHD")
    _, _, client, size, bits, inside, least, pointers, page_bits, *_, index = _EXTENSIBLE.unpack(raw)
    powers = all(n and n & n - 1 == 0 for n in (least, pointers))
    if client != filtered or size < 8 or not powers or page_bits > 32 or bits > 64:
        raise image.fail(f"a damaged HDF5 file: the index of chunks at {address:,} is of another array")
    if index != UNDEFINED:
        yield from _Extensible(image, size, bits, inside, least, pointers, 1 << page_bits, index).elements(wanted)
