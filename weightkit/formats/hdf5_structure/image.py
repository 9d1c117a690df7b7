"""An HDF5 file as bytes at addresses, with its superblock read and its checksums collected."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO

import numpy as np

from weightkit.errors import FormatError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
UNDEFINED = (1 << 64) - 1  # the address of what is not there

_MOST_AT_ONCE = 64 << 20  # bytes of one structure: a group of a million names
_MOST_READ = 8  # bytes read, per byte of the file: structures that refer to one another in circles reach it
_MOST_READ_IN_ALL = 1 << 30  # bytes read of a file that is mostly holes
_BATCH = 4096  # checksums verified at a time
_VECTOR = 12  # blocks of one length from which numpy is faster than Python numbers
_MASK = 0xFFFFFFFF

_SUPER0 = Struct(
    "<8x8B2HL"
)  # version, free-space version, root version, 0, 0, address bytes, length bytes, 0, ks, flags
_SUPER2 = Struct("<8x4B4QL")  # version, address bytes, length bytes, flags, base, extension, end, root, checksum


class Image:
    """The bytes of one HDF5 file. Addresses count from `base`, as they do in the file."""

    def __init__(self, file: BinaryIO, path: Path, size: int, start: int = 0, *, sums: float = 0) -> None:
        """Read the superblock of the `size` bytes of `file` from `start`: all of it, or a file inside another.

        The checksums of what is read are compared by `settle`: none, or all, or as many as take the time
        that `sums` bytes in one block take.
        Raises FormatError where there is no superblock, or where the file is cut short.
        """
        self.file, self.path, self.size, self.start, self._sums = file, path, size, start, sums
        self.base, self.end = 0, size
        self.leaf_entries, self.group_entries, self.chunk_entries = 8, 32, 64  # most in a node: twice the format's K
        self._left = min(_MOST_READ * size, _MOST_READ_IN_ALL) + (1 << 20)
        self._unclaimed = size
        self._pending: defaultdict[int, list[bytes]] = defaultdict(list)
        self.root, self.extension = self._superblock()

    def fail(self, message: str) -> FormatError:
        """An error that names the file."""
        return FormatError(f"{self.path}: {message}")

    def offset(self, address: int) -> int:
        """Where in `file` the byte at `address` is."""
        return self.start + self.base + address

    def at(self, address: int, count: int) -> bytes:
        """`count` bytes at `address`; raises FormatError where the file has not as many."""
        if count > _MOST_AT_ONCE:
            raise self.fail(f"a damaged HDF5 file: a structure of {count:,} bytes at {address:,}")
        raw = self.peek(address, count) if count <= self.end else b""
        self.charge(len(raw))
        if len(raw) != count:
            raise self.fail(f"a damaged HDF5 file: {count:,} bytes are expected at {address:,} of {self.end:,}")
        return raw

    def peek(self, address: int, count: int) -> bytes:
        """Up to `count` bytes at `address`: fewer at the end of the file."""
        if not 0 <= address < self.end or count < 0:
            raise self.fail(f"a damaged HDF5 file: something should lie at {address:,} of its {self.end:,} bytes")
        self.file.seek(self.offset(address))
        return self.file.read(min(count, self.end - address))

    def charge(self, count: int) -> None:
        """Count what is read or made. Raises FormatError when that is more than such a file can call for."""
        self._left -= count
        if self._left < 0:
            raise self.fail("a damaged HDF5 file: its structures refer to one another again and again")

    def claim(self, count: int) -> None:
        """Count the bytes that arrays are stored in. Raises FormatError when arrays have more than there are."""
        self._unclaimed -= count
        if self._unclaimed < 0:
            raise self.fail("a damaged HDF5 file: its arrays together take more bytes than it has")

    def block(self, address: int, count: int, signature: bytes, version: int = 0) -> bytes:
        """A structure that begins with four letters and a version."""
        raw = self.at(address, count)
        if raw[:4] != signature or raw[4] != version:
            raise self.fail(f"a damaged HDF5 file: no {signature.decode()} of version {version} at {address:,}")
        return raw

    def summed(self, address: int, count: int, signature: bytes) -> bytes:
        """As `block`, of a structure whose last four bytes are its checksum; they are left out."""
        raw = self.block(address, count, signature)
        self.check(raw)
        return raw[:-4]

    def check(self, raw: bytes) -> None:
        """See to it that the last four bytes of `raw` are the checksum of the others."""
        if self._sums > 0:
            pending = self._pending[len(raw)]
            pending.append(raw)
            if len(pending) == _BATCH:
                self._verify(self._pending.pop(len(raw)))

    def settle(self) -> None:
        """Raise FormatError if a checksum of something that was read is wrong."""
        for pending in self._pending.values():
            self._verify(pending)
        self._pending.clear()

    def _verify(self, blocks: list[bytes]) -> None:
        self._sums -= len(blocks[0]) * min(len(blocks), _VECTOR)
        if self._sums < 0:
            return
        if not sums_match(blocks):
            raise self.fail("a damaged HDF5 file: a checksum of its structures does not match")

    def _superblock(self) -> tuple[int, int]:
        """The addresses of the root group and of the superblock's extension."""
        while self.base < self.size:  # section II.A: at 0, 512, 1024, 2048, … after a block of the user's own
            raw = self.peek(0, 128)
            if raw.startswith(SIGNATURE):
                break
            self.base, self.end = self.base * 2 or 512, self.size - (self.base * 2 or 512)
        else:
            raise FormatError(f"{self.path}: not an HDF5 file, or cut short: no signature")
        version = raw[8] if len(raw) > 8 else 255
        if version > 3 or len(raw) < 48:
            raise self.fail(f"HDF5 superblock version {version} is not one that is known, or the file is cut short")
        base, extension, end, root = self._newer(raw) if version > 1 else self._older(raw, version)
        if base not in (0, self.base):
            raise self.fail(f"a damaged HDF5 file: its addresses count from {base:,}, where nothing begins")
        stop = end - base  # the end counts from the file's first byte, unlike all other addresses
        if not 0 < stop <= self.end:
            raise self.fail(f"cut short, or damaged: its superblock says {end:,} bytes, the file has {self.size:,}")
        self.end = stop
        return root, extension

    def _older(self, raw: bytes, version: int) -> tuple[int, int, int, int]:
        _, _, _, _, _, *widths, _, leaf, group, _ = _SUPER0.unpack_from(raw)
        self._require_wide(widths)
        self.leaf_entries, self.group_entries = 2 * leaf, 2 * group
        start = _SUPER0.size
        if version == 1:
            self.chunk_entries = 2 * int.from_bytes(raw[start : start + 2], "little")
            start += 4
        base, _, end, driver, _, root = Struct("<6Q").unpack_from(raw, start)
        if driver != UNDEFINED:
            raise self.fail("one HDF5 file in several (a driver of its own); join it with h5repart or h5repack")
        return base, UNDEFINED, end, root

    def _newer(self, raw: bytes) -> tuple[int, int, int, int]:
        _, *widths, _, base, extension, end, root, _ = _SUPER2.unpack_from(raw)
        self._require_wide(widths)
        self.check(raw[: _SUPER2.size])
        return base, extension, end, root

    def _require_wide(self, widths: list[int]) -> None:
        if widths != [8, 8]:
            raise self.fail(f"HDF5 with addresses of {widths[0]} bytes cannot be read; rewrite it with h5repack")


def sums_match(blocks: list[bytes]) -> bool:
    """Whether the last four bytes of each block, all of one length, are the lookup3 of the others."""
    if len(blocks) < _VECTOR:
        return all(_lookup3(_words(raw[:-4]), len(raw) - 4) == int.from_bytes(raw[-4:], "little") for raw in blocks)
    table = np.frombuffer(b"".join(blocks), np.uint8).reshape(len(blocks), -1)
    length = table.shape[1] - 4
    padded = np.zeros((-(-length // 12) * 12, len(blocks)), np.uint8)
    padded[:length] = table[:, :-4].T
    words = [
        sum(padded[4 * i + k].astype(np.uint32) << np.uint32(8 * k) for k in range(4)) for i in range(len(padded) // 4)
    ]
    stored = np.ascontiguousarray(table[:, -4:]).view("<u4")[:, 0]
    return bool(np.all(_lookup3(words, length) == stored))


def _words(raw: bytes) -> list[int]:
    padded = raw + bytes(-len(raw) % 12)
    return list(Struct(f"<{len(padded) // 4}L").unpack(padded))


def _lookup3(words: list[Any], length: int) -> Any:
    """Bob Jenkins' lookup3 of 32-bit words: Python numbers, or arrays of uint32 for many blocks at once.

    Source: http://burtleburtle.net/bob/c/lookup3.c, hashlittle with the initial value 0.
    """
    a: Any = words[0] * 0 + ((0xDEADBEEF + length) & _MASK)
    b: Any = a
    c: Any = a
    for i in range(0, len(words) - 3, 3):
        a, b, c = (a + words[i]) & _MASK, (b + words[i + 1]) & _MASK, (c + words[i + 2]) & _MASK
        a, c = ((a - c) & _MASK) ^ _turn(c, 4), (c + b) & _MASK
        b, a = ((b - a) & _MASK) ^ _turn(a, 6), (a + c) & _MASK
        c, b = ((c - b) & _MASK) ^ _turn(b, 8), (b + a) & _MASK
        a, c = ((a - c) & _MASK) ^ _turn(c, 16), (c + b) & _MASK
        b, a = ((b - a) & _MASK) ^ _turn(a, 19), (a + c) & _MASK
        c, b = ((c - b) & _MASK) ^ _turn(b, 4), (b + a) & _MASK
    a, b, c = (a + words[-3]) & _MASK, (b + words[-2]) & _MASK, (c + words[-1]) & _MASK
    c = ((c ^ b) - _turn(b, 14)) & _MASK
    a = ((a ^ c) - _turn(c, 11)) & _MASK
    b = ((b ^ a) - _turn(a, 25)) & _MASK
    c = ((c ^ b) - _turn(b, 16)) & _MASK
    a = ((a ^ c) - _turn(c, 4)) & _MASK
    b = ((b ^ a) - _turn(a, 14)) & _MASK
    return ((c ^ b) - _turn(b, 24)) & _MASK


def _turn(x: Any, by: int) -> Any:
    return (x << by | x >> (32 - by)) & _MASK
