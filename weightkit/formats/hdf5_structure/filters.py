"""The filters that chunks went through, undone: deflate, shuffle, fletcher32, lzf.

They are undone here, and not by libhdf5, because what a chunk unpacks to has to be bounded.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from weightkit.formats.hdf5_structure.header import Filter

DEFLATE, SHUFFLE, FLETCHER32, LZF = 1, 2, 3, 32000
NAMES = {DEFLATE: "gzip", SHUFFLE: "shuffle", FLETCHER32: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset",
         LZF: "lzf"}  # fmt: skip
KNOWN = {DEFLATE, SHUFFLE, FLETCHER32, LZF}
_SUM_BYTES = 4
_LZF_WORK = 128  # for one byte: it is undone by a loop
_SPAN = 1 << 16  # 16-bit words summed at a time: in 64 bits, the sum of sums, and little memory


def undo(raw: bytes, filters: Sequence[Filter], mask: int, nbytes: int) -> bytes:
    """The `nbytes` bytes of a chunk from what is stored of it. Raises ValueError where it is not that."""
    for number in reversed(range(len(filters))):
        if not mask >> number & 1:
            before = filters[:number]  # what the chunk had become when it went through this filter
            room = nbytes + _SUM_BYTES * sum(f.id == FLETCHER32 for f in before)
            raw = _undo_one(filters[number], raw, room)
    if len(raw) != nbytes:
        raise ValueError(f"a chunk unpacks to {len(raw):,} bytes instead of {nbytes:,}")
    return raw


def work(filters: Sequence[Filter], stored: int, nbytes: int) -> int:
    """How much `undo` has to do for a chunk of `nbytes` bytes of which `stored` are in the file.

    It is counted in bytes of deflate that are made.
    """
    total, given = 0, stored
    for filter in reversed(filters):
        made = max(nbytes, stored) if filter.id in (LZF, DEFLATE) else given
        total += given * _LZF_WORK if filter.id == LZF else made
        given = made
    return total


def _undo_one(filter: Filter, raw: bytes, room: int) -> bytes:
    if filter.id == DEFLATE:
        return _inflated(raw, room)
    if filter.id == SHUFFLE:
        return _unshuffled(raw, filter.parameters[0] if filter.parameters else 1)
    if filter.id == FLETCHER32:
        return _summed(raw)
    return _unlzf(raw, room)


def _inflated(raw: bytes, room: int) -> bytes:
    engine = zlib.decompressobj()
    try:
        result = engine.decompress(raw, room + 1)
    except zlib.error:
        raise ValueError("a chunk is not valid gzip data") from None
    if len(result) > room or not engine.eof or engine.unused_data:
        raise ValueError("a chunk's gzip data does not end where it should")
    return result


def _unshuffled(raw: bytes, width: int) -> bytes:
    """Bytes that were sorted by their place in an element, put back."""
    count = len(raw) // width if width else 0
    table = np.frombuffer(raw, np.uint8, count * width).reshape(width, count)
    return table.T.tobytes() + raw[count * width :]


def _summed(raw: bytes) -> bytes:
    """The bytes without the checksum behind them."""
    data, stored = raw[:-_SUM_BYTES], raw[-_SUM_BYTES:]
    expected = fletcher32(data)
    turned = (expected & 0x00FF00FF) << 8 | expected >> 8 & 0x00FF00FF  # as HDF5 1.6.2 and older wrote it
    if int.from_bytes(stored, "little") not in (expected, turned):
        raise ValueError("a chunk does not match its checksum (fletcher32)")
    return data


def fletcher32(data: bytes) -> int:
    """Fletcher's checksum of big-endian 16-bit words, as H5_checksum_fletcher32 of libhdf5 computes it."""
    words = np.frombuffer(data + bytes(1) if len(data) % 2 else data, ">u2")
    first = second = 0
    for start in range(0, len(words), _SPAN):
        part = words[start : start + _SPAN].astype(np.uint64)
        second += len(part) * first + int((part * np.arange(len(part), 0, -1, dtype=np.uint64)).sum())
        first += int(part.sum())
    return _folded(second) << 16 | _folded(first)


def _folded(total: int) -> int:
    """Modulo 65,535, but never 0 for what was not 0."""
    return (total - 1) % 0xFFFF + 1 if total else 0


def _unlzf(raw: bytes, room: int) -> bytes:
    """LZF: runs of bytes, and copies of earlier ones. Source: liblzf 3.6, lzf_d.c."""
    result, at = bytearray(), 0
    try:
        while at < len(raw) and len(result) <= room:
            control = raw[at]
            at += 1
            if control < 32:
                if at + control + 1 > len(raw):
                    raise ValueError("a chunk's lzf data is cut short")
                result += raw[at : at + control + 1]
                at += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += raw[at]
                at += 1
            start = len(result) - ((control & 31) << 8) - raw[at] - 1
            at += 1
            length += 2
            if start < 0:
                raise ValueError("a chunk's lzf data refers to what is before its beginning")
            piece = result[start : start + length]
            result += (piece * (length // len(piece) + 1))[:length]
    except IndexError:
        raise ValueError("a chunk's lzf data is cut short") from None
    if len(result) > room:
        raise ValueError("a chunk's lzf data does not end where it should")
    return bytes(result)
