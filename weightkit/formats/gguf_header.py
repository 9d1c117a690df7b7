"""The header of a GGUF file: typed values by key, then the name, shape, type and place of every tensor.

It is read here rather than by the gguf package, which takes seconds for a large vocabulary and trusts the
file. What a header may hold is bounded by the size of the file before anything is allocated.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from weightkit import files
from weightkit.errors import FormatError, printable

MOST_BYTES = 100 << 20  # of a header; those of real models are below 20 MB
MOST_ITEMS = 1 << 20  # strings in all arrays together: four times the largest vocabulary
MOST_NAME = (1 << 16) - 1  # bytes of a key, as the format says
MOST_DIMENSIONS = 4
MOST_DEPTH = 4  # of arrays in arrays, which no real file has
VERSIONS = (2, 3)

UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 6, 7, 8, 9, 10
CODES = {0: "B", 1: "b", 2: "H", 3: "h", UINT32: "I", 5: "i", FLOAT32: "f", BOOL: "B", UINT64: "Q", 11: "q", 12: "d"}
_VALUE_BYTES, _TENSOR_BYTES = 8 + 1 + 4 + 1, 8 + 1 + 4 + 4 + 8  # the least that one takes
_NESTED_COST = 16  # an array in an array, in the time of strings


@dataclass(frozen=True)
class Items:
    """An array of a header, still as bytes: a vocabulary is decoded only where it is wanted."""

    kind: int
    count: int
    raw: bytes
    order: str  # "<" or ">"

    def numbers(self) -> list[Any]:
        """The numbers of an array; nothing where it holds no numbers."""
        if self.kind not in CODES:
            return []
        found = np.frombuffer(self.raw, self.order + CODES[self.kind])
        return [bool(n) for n in found] if self.kind == BOOL else found.tolist()

    def strings(self) -> list[str]:
        """The strings of an array; nothing where it holds no strings. What is not UTF-8 becomes U+FFFD."""
        if self.kind != STRING:
            return []
        length, at, found = struct.Struct(self.order + "Q"), 0, []
        for _ in range(self.count):
            start = at + 8
            at = start + length.unpack_from(self.raw, at)[0]
            found.append(self.raw[start:at].decode("utf-8", "replace"))
        return found


Value = int | float | bool | str | Items


class Info(NamedTuple):
    """A tensor as the header has it."""

    name: str
    sizes: tuple[int, ...]  # the fastest first
    kind: int  # the number of its type in GGML
    offset: int  # in the data


class Header(NamedTuple):
    """All of a header, and where it ends."""

    values: dict[str, Value]
    infos: list[Info]
    end: int
    alignment: int
    big_endian: bool


class _Cursor:
    """Reads a header from its front, in blocks, never past the end of the file."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.size = path, size
        self.raw, self.at, self.order = b"", 0, "<"
        self.left = MOST_ITEMS
        self._file = file

    def fail(self, message: str) -> FormatError:
        return FormatError(f"{self.path}: {printable(message)}")

    def need(self, count: int, what: str) -> int:
        """Where in `raw` the next `count` bytes are. FormatError where the file has not as many."""
        start, end = self.at, self.at + count
        if end > len(self.raw):
            self._grow(end, what)
        self.at = end
        return start

    def _grow(self, end: int, what: str) -> None:
        if end > self.size:
            raise self.fail(f"cut short, or not a GGUF file: {what} would end at byte {end:,} of {self.size:,}")
        if end > MOST_BYTES:
            raise self.fail(f"a header of more than {MOST_BYTES >> 20} MB: {what} would end at byte {end:,}")
        wanted = min(self.size, max(end, min(2 * len(self.raw), MOST_BYTES), 1 << 16))
        self.raw += self._file.read(wanted - len(self.raw))
        if len(self.raw) < end:
            raise self.fail("the file became shorter while it was read")

    def unpack(self, code: str, what: str) -> tuple[Any, ...]:
        layout = _layout(self.order + code)
        start = self.need(layout.size, what)
        return layout.unpack_from(self.raw, start)

    def text(self, what: str, most: int | None = None) -> bytes:
        (length,) = self.unpack("Q", what)
        if most is not None and length > most:  # said before as much is read
            raise self.fail(f"{what} is {length:,} bytes long; GGUF allows {most:,}")
        start = self.need(length, what)
        return self.raw[start : self.at]

    def name(self, what: str) -> str:
        """A key or the name of a tensor: not empty, UTF-8, not endless."""
        raw = self.text(what, MOST_NAME)
        if not raw:
            raise self.fail(f"{what} is empty")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8: {raw[:40]!r}") from None

    def skip_strings(self, count: int, what: str) -> None:
        """Pass over `count` strings. There can be hundreds of thousands, so the inner loop checks nothing."""
        unpack, at, done = _layout(self.order + "Q").unpack_from, self.at, 0
        while done < count:
            self.at = at
            self.need(8, what)  # reads on where the next length was not read so far, or says that there is none
            raw = self.raw
            try:
                while done < count:
                    at += 8 + unpack(raw, at)[0]
                    done += 1
            except (struct.error, OverflowError):
                continue
        self.at = at
        self.need(0, what)


@functools.cache
def _layout(code: str) -> struct.Struct:
    return struct.Struct(code)


def read(path: Path) -> Header:
    """The header of the GGUF file at `path`.

    Raises FormatError on every departure from the format, and on counts that the file cannot hold.
    """
    size = files.size(path)
    with files.open_bytes(path) as file:
        cursor = _Cursor(path, file, size)
        tensors, count = _start(cursor)
        values = _values(cursor, count)
        infos = _infos(cursor, tensors)
    alignment = values.get("general.alignment", 32)
    return Header(values, infos, cursor.at, alignment if isinstance(alignment, int) else 32, cursor.order == ">")


def _start(cursor: _Cursor) -> tuple[int, int]:
    """Magic, version and counts. The version tells the byte order: its upper half is empty."""
    magic = cursor.need(4, "the magic")
    if cursor.raw[magic : magic + 4] != b"GGUF":
        raise cursor.fail("not a GGUF file: it does not begin with GGUF")
    (version,) = cursor.unpack("I", "the version")
    if version and not version & 0xFFFF:
        cursor.order, version = ">", int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in VERSIONS:
        raise cursor.fail(f"GGUF version {version:,} cannot be read, only 2 and 3; convert the model again")
    tensors, values = cursor.unpack("QQ", "the numbers of tensors and values")
    left = cursor.size - cursor.at
    if tensors * _TENSOR_BYTES > left or values * _VALUE_BYTES > left:
        raise cursor.fail(f"{tensors:,} tensors and {values:,} values do not fit into its {cursor.size:,} bytes")
    return tensors, values


def _values(cursor: _Cursor, count: int) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for _ in range(count):
        key = cursor.name("a key")
        if key in values:
            raise cursor.fail(f"the key {key!r} appears twice")
        (kind,) = cursor.unpack("I", key)
        value = values[key] = _value(cursor, kind, key)
        if key == "general.alignment" and not (kind == UINT32 and isinstance(value, int) and value and value % 8 == 0):
            raise cursor.fail(f"general.alignment must be an unsigned multiple of 8, not {str(value)[:40]}")
    return values


def _value(cursor: _Cursor, kind: int, key: str) -> Value:
    if kind == STRING:
        return cursor.text(key).decode("utf-8", "replace")
    if kind == ARRAY:
        return _array(cursor, key, 1)
    if kind not in CODES:
        raise cursor.fail(f"{key!r} is of type {kind}, which GGUF does not have")
    value: int | float = cursor.unpack(CODES[kind], key)[0]
    if kind == FLOAT32:
        return float(str(np.float32(value)))  # 1e-05 rather than 9.999999747378752e-06
    if kind != BOOL:
        return value
    if value > 1:
        raise cursor.fail(f"{key!r} is {value}, neither true (1) nor false (0)")
    return value == 1


def _array(cursor: _Cursor, key: str, depth: int) -> Items:
    if depth > MOST_DEPTH:
        raise cursor.fail(f"{key!r}: arrays nested too deeply to be real")
    kind, count = cursor.unpack("IQ", key)
    if kind not in CODES and kind not in (STRING, ARRAY):
        raise cursor.fail(f"{key!r} is an array of type {kind}, which GGUF does not have")
    start = cursor.at
    if kind in CODES:
        cursor.need(count * struct.calcsize("<" + CODES[kind]), key)
        return Items(kind, count, cursor.raw[start : cursor.at], cursor.order)
    least = 8 if kind == STRING else 12
    if count * least > cursor.size - start:
        raise cursor.fail(f"{key!r}: an array of {count:,} does not fit into the {cursor.size - start:,} bytes left")
    cursor.left -= count if kind == STRING else count * _NESTED_COST
    if cursor.left < 0:
        raise cursor.fail(f"{key!r}: arrays of more than {MOST_ITEMS:,} strings; no model has as many")
    if kind == STRING:
        cursor.skip_strings(count, key)
    else:
        for _ in range(count):
            _array(cursor, key, depth + 1)
    return Items(kind, count, cursor.raw[start : cursor.at] if depth == 1 else b"", cursor.order)


def _infos(cursor: _Cursor, count: int) -> list[Info]:
    found: dict[str, Info] = {}
    for _ in range(count):
        name = cursor.name("the name of a tensor")
        if name in found:
            raise cursor.fail(f"tensor {name!r} appears twice")
        (rank,) = cursor.unpack("I", name)
        if rank > MOST_DIMENSIONS:
            raise cursor.fail(f"tensor {name!r}: {rank:,} dimensions; GGUF allows {MOST_DIMENSIONS}")
        *sizes, kind, offset = cursor.unpack(f"{rank}QIQ", name)
        found[name] = Info(name, tuple(sizes), kind, offset)
    return list(found.values())
