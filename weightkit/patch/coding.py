"""Coding: whole numbers in few bytes, and back again without trusting the bytes.

Differences of weights are XORs: words of a few bytes of which the high ones are mostly 0 and the low ones mostly
noise. So bytes of one place are put together (byte shuffle) and each plane is coded by itself, with Huffman codes
or runs. Sorted indices are coded by their gaps in Golomb-Rice codes, which for places chosen at random are within
a few hundredths of a bit of what such places say.

Golomb-Rice: Rice and Plaunt, "Adaptive variable-length coding for efficient compression of spacecraft television
data", 1971.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np

from weightkit.dtypes import Array
from weightkit.errors import PatchError

CHUNK = 1 << 18  # bytes of words that are coded by themselves: what is unpacked at a time
SMALL = 1 << 16  # bytes up to which every way of packing is tried
MOST_PLACES = 1 << 20  # single places of one tensor; more are found chunk by chunk


@dataclass
class Reader:
    """Bytes of a patch, taken from the front. PatchError where they end too soon."""

    raw: memoryview
    at: int = 0

    def take(self, size: int) -> memoryview:
        """The next `size` bytes."""
        if size > len(self.raw) - self.at:
            raise PatchError("a part of it is cut short")
        self.at += size
        return self.raw[self.at - size : self.at]

    def number(self) -> int:
        """The next whole number, as `number` writes it."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise PatchError("a number in it is too large")

    def done(self) -> None:
        """PatchError where bytes are left."""
        if self.at != len(self.raw):
            raise PatchError("a part of it is longer than it should be")


def number(value: int) -> bytes:
    """A whole number in as few bytes as it needs (LEB128)."""
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    return bytes([*result, value])


# ── bytes ──────────────────────────────────────────────────────────────────────────────────────────

_ZEROS, _RAW, _DEFLATED = range(3)


def squeeze(raw: bytes) -> bytes:
    """Bytes in fewer bytes, with how they are packed in front."""
    if not raw.strip(b"\0"):
        return bytes([_ZEROS])
    ways = [(1, zlib.Z_HUFFMAN_ONLY), (1, zlib.Z_RLE)]
    if len(raw) <= SMALL:
        ways.append((9, zlib.Z_DEFAULT_STRATEGY))
    packed = min((_deflate(raw, *way) for way in ways), key=len)
    return bytes([_DEFLATED]) + packed if len(packed) < len(raw) else bytes([_RAW]) + raw


def _deflate(raw: bytes, level: int, strategy: int) -> bytes:
    made = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
    return made.compress(raw) + made.flush()


def unsqueeze(packed: memoryview, size: int) -> bytes:
    """The `size` bytes that were packed; never makes more of them."""
    if not len(packed):
        raise PatchError("a part of it is cut short")
    kind, rest = packed[0], packed[1:]
    if kind == _ZEROS and not rest:
        return bytes(size)
    if kind == _RAW and len(rest) == size:
        return bytes(rest)
    if kind == _DEFLATED:
        made = zlib.decompressobj(-15)
        try:
            raw = made.decompress(rest, size + 1)
        except zlib.error:
            raise PatchError("a part of it cannot be unpacked") from None
        if len(raw) == size and made.eof and not made.unused_data:
            return raw
    raise PatchError("a part of it does not unpack to the size that it should have")


def _sized(packed: bytes) -> bytes:
    return number(len(packed)) + packed


# ── sorted indices ─────────────────────────────────────────────────────────────────────────────────


def pack_indices(indices: Array) -> bytes:
    """Strictly increasing indices, int64 [n], by the gaps between them."""
    if not indices.size:
        return b""
    gaps = np.diff(indices, prepend=-1) - 1
    shift = _best_shift(gaps)
    high, low = gaps >> shift, gaps & ((1 << shift) - 1)
    unary = np.zeros(int(high.sum()) + len(gaps), np.uint8)
    unary[np.cumsum(high + 1) - 1] = 1
    stream = np.packbits(unary).tobytes()
    return bytes([shift]) + number(len(unary)) + _sized(squeeze(stream)) + squeeze(pack_bits(low, shift))


def _best_shift(gaps: Array) -> int:
    guess = max(0, int(math.log2(max(1.0, float(gaps.mean()) * math.log(2)))))
    sizes = {shift: int((gaps >> shift).sum()) + shift * len(gaps) for shift in (max(0, guess - 1), guess, guess + 1)}
    return min(sizes, key=lambda shift: sizes[shift])


def unpack_indices(packed: memoryview, count: int, below: int) -> Array:
    """`count` strictly increasing indices under `below`, int64. PatchError where they are none such."""
    if not 0 <= count <= below:
        raise PatchError(f"it changes {count:,} places of {below:,}")
    if not count:
        Reader(packed).done()
        return np.empty(0, np.int64)
    reader = Reader(packed)
    shift, length = reader.take(1)[0], reader.number()
    if shift > 62 or length > count + (below >> shift):
        raise PatchError("its places are not in order")
    stream = unsqueeze(reader.take(reader.number()), -(-length // 8))
    ends = np.flatnonzero(np.unpackbits(np.frombuffer(stream, np.uint8), count=length))
    if len(ends) != count or ends[-1] != length - 1:
        raise PatchError(f"it has {len(ends):,} places where it says {count:,}")
    low = unpack_bits(unsqueeze(reader.raw[reader.at :], -(-count * shift // 8)), count, shift)
    gaps = ((np.diff(ends, prepend=-1) - 1) << shift) | low
    indices = np.cumsum(gaps + 1) - 1
    if indices[-1] >= below or indices[-1] < 0 or gaps.max() >= below:
        raise PatchError("one of its places lies outside the tensor")
    return indices


def pack_bits(values: Array, bits: int) -> bytes:
    """Whole numbers of so many bits, side by side."""
    if not bits:
        return b""
    columns = np.empty((len(values), bits), np.uint8)
    for place in range(bits):
        columns[:, place] = values >> (bits - 1 - place) & 1
    return np.packbits(columns).tobytes()


def unpack_bits(raw: bytes, count: int, bits: int) -> Array:
    """`count` whole numbers of so many bits, int64."""
    if not bits:
        return np.zeros(count, np.int64)
    found = np.unpackbits(np.frombuffer(raw, np.uint8), count=count * bits).reshape(count, bits)
    result = np.zeros(count, np.int64)
    for column in found.T:
        result = (result << 1) | column
    return result


# ── words ──────────────────────────────────────────────────────────────────────────────────────────

_NOTHING, _PLANES, _PLACES = range(3)


def pack_words(words: Array) -> bytes:
    """A chunk of words, unsigned [n]: plane by plane, or those that are not 0 and their places."""
    places = np.flatnonzero(words)
    if not places.size:
        return bytes([_NOTHING])
    ways = [bytes([_PLANES]) + _pack_planes(words)]
    if places.size < words.size // 4:
        found = _sized(pack_indices(places))
        ways.append(bytes([_PLACES]) + number(places.size) + found + _pack_planes(words[places]))
    return min(ways, key=len)


def unpack_words(packed: memoryview, count: int, width: int) -> Array:
    """A chunk of `count` words of so many bytes."""
    reader = Reader(packed)
    kind = reader.take(1)[0]
    if kind == _NOTHING:
        reader.done()
        return np.zeros(count, f"<u{width}")
    if kind == _PLANES:
        return _unpack_planes(reader, count, width)
    if kind != _PLACES:
        raise PatchError("a part of it is coded in a way that is not known")
    some = reader.number()
    places = unpack_indices(reader.take(reader.number()), some, count)
    result = np.zeros(count, f"<u{width}")
    result[places] = _unpack_planes(reader, some, width)
    return result


def _pack_planes(words: Array) -> bytes:
    width = words.dtype.itemsize
    planes = np.ascontiguousarray(words).view(np.uint8).reshape(-1, width).T
    return b"".join(_sized(squeeze(plane.tobytes())) for plane in planes)


def _unpack_planes(reader: Reader, count: int, width: int) -> Array:
    planes = np.empty((count, width), np.uint8)
    for place in range(width):
        planes[:, place] = np.frombuffer(unsqueeze(reader.take(reader.number()), count), np.uint8)
    reader.done()
    return planes.reshape(-1).view(f"<u{width}")


def chunk_words(width: int) -> int:
    """Words of a chunk."""
    return CHUNK // width
