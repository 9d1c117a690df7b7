"""NumPy's .npy, one array, and .npz, a ZIP archive of them.

Stored members are mapped where they lie in the archive; compressed ones are unpacked block by block.
Arrays of Python objects are pickles, which run code when they are loaded: they are refused by their type.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import BinaryIO, NamedTuple

import numpy as np

from weightkit import files
from weightkit.dtypes import DTYPES, Array, DType
from weightkit.errors import FormatError, SaveError, printable
from weightkit.formats import zipped
from weightkit.formats.shard import MOST_DIMENSIONS, MOST_ELEMENTS, ShardFile, is_verified
from weightkit.parallel import MOST_THREADS
from weightkit.tensor import BLOCK, Source, Strided, Tensor

SUFFIXES: tuple[str, ...] = (".npz", ".npy")

_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4, (3, 0): 4}  # by version of the format
_MOST_HEADER = 1 << 16  # bytes; it describes one shape and one type of numbers
_USUAL_HEADER = 128
_MOST_NAME = 60_000  # bytes that are written; ZIP has room for 65,535 with the suffix
_MOST_DENSE = 1032  # deflate packs no tighter

_CODES = {
    "f8": "F64", "f4": "F32", "f2": "F16", "c8": "C64", "b1": "BOOL",
    "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8", "u8": "U64", "u4": "U32", "u2": "U16", "u1": "U8",
    "V2": "BF16",  # how numpy saves the bfloat16 of ml_dtypes, which it does not know
}  # fmt: skip
_ORDERS = {"<": False, ">": True, "|": False}
_REFUSED = {
    "O": "Python objects, a pickle that would run code",
    "S": "text", "U": "text", "M": "dates", "m": "times", "T": "text",
    "V": "raw bytes, which may be any type of that size",
}  # fmt: skip

_KEYS = {"descr", "fortran_order", "shape"}
# One `'key': value,` of a header: text, a truth value, a tuple of natural numbers, or the start of a list.
_SIZE = r"\s*(?:0|[1-9][0-9]{0,18})L?\s*"  # L: Python 2
_ITEM = re.compile(
    r"\s*(?P<q>['\"])(?P<key>\w{1,20})(?P=q)\s*:\s*(?:(?P<list>\[)|"
    r"(?:(?P<t>['\"])(?P<text>[^'\"\\]{0,64})(?P=t)|(?P<truth>True|False)|"
    rf"(?P<shape>\((?:{_SIZE},)*(?:{_SIZE}|\s*)\)))"
    r"\s*(?:,|(?=\})))"
)


class _Header(NamedTuple):
    """What the header of an array says."""

    dtype: DType
    big_endian: bool
    fortran: bool
    shape: tuple[int, ...]
    length: int  # bytes before the data


def open_file(path: Path) -> ShardFile:
    """Read the headers of a .npz or .npy file; no array is touched.

    Raises FormatError where the archive or a header is not what the format asks for, for types that are
    not numbers, and, of a file that `is_verified`, where a checksum is wrong.
    """
    size = files.size(path)
    try:
        with files.open_bytes(path) as file:
            bare = file.read(len(_MAGIC)) == _MAGIC or path.suffix.lower() == ".npy"
            if bare:
                tensors = {path.stem: _bare(file, path, size)}
            else:
                found = zipped.members(path)
                tensors = _members(file, path, found)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None
    if not bare and is_verified(path, sum(member.size for member in found.values())):
        for fault in zipped.crc_faults(path, found):
            raise FormatError(f"{path}: {fault}")
    return ShardFile(path, path.name, tensors)


def faults(path: Path) -> Iterator[str]:
    """What a full read finds: members whose bytes do not match their checksum. A bare array has none."""
    with files.open_bytes(path) as file:
        bare = file.read(len(_MAGIC)) == _MAGIC
    if not bare:
        yield from zipped.crc_faults(path)


def _bare(file: BinaryIO, path: Path, size: int) -> Source:
    whole = zipped.Member(path.stem, 0, size, size, zipped.STORED, 0)
    return _array(file, path, path.stem, whole)


def _members(file: BinaryIO, path: Path, found: dict[str, zipped.Member]) -> dict[str, Source]:
    tensors: dict[str, Source] = {}
    for member in found.values():
        name = member.name.removesuffix(".npy")
        if name in tensors:
            raise FormatError(f"{path}: {name!r} and '{name}.npy' would be one name for two arrays")
        if member.method not in (zipped.STORED, zipped.DEFLATED):
            raise FormatError(f"{path}: member {member.name!r} is compressed, and not by deflate")
        tensors[name] = _array(file, path, name, member)
    if not tensors:
        raise FormatError(f"{path}: an archive without arrays")
    return tensors


def _array(file: BinaryIO, path: Path, name: str, member: zipped.Member) -> Source:
    """The array in a member of an archive."""

    def fail(message: str) -> FormatError:
        return FormatError(f"{path}: array {name!r}: {message}")

    try:
        header = _header(file, member)
    except ValueError as error:
        raise fail(printable(str(error))) from None
    count = math.prod(header.shape)
    nbytes, given = header.dtype.nbytes(count), member.size - header.length
    if nbytes != given:
        raise fail(f"{header.dtype.name} {list(header.shape)} takes {nbytes:,} bytes, it has {given:,}")
    if member.size > _MOST_DENSE * member.stored_size + 64:
        raise fail(f"{member.stored_size:,} compressed bytes cannot be {member.size:,}")
    flat = header.fortran and len(header.shape) > 1
    shape = (count,) if flat else header.shape
    base: Source
    if member.method == zipped.STORED:
        base = Tensor(name, header.dtype, shape, path, member.offset + header.length, header.big_endian)
    else:
        base = Deflated(name, header.dtype, shape, path, member, header.length, header.big_endian)
    if not flat:
        return base
    return Strided(name, base, header.shape, tuple(math.prod(shape) for shape in _heads(header.shape)))


def _heads(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The sizes before each axis, whose product is its stride in Fortran's order."""
    return (shape[:axis] for axis in range(len(shape)))


def _header(file: BinaryIO, member: zipped.Member) -> _Header:
    """The header of an array. Raises ValueError where it is not one."""
    head = _head(file, member, _USUAL_HEADER)
    if head[: len(_MAGIC)] != _MAGIC or len(head) < 12:
        raise ValueError("not a NumPy array: it does not begin with the letters that mark one")
    version = (head[6], head[7])
    if version not in _LENGTH_BYTES:
        raise ValueError(f"version {head[6]}.{head[7]} of the format is not one that is known")
    start = 8 + _LENGTH_BYTES[version]
    length = start + int.from_bytes(head[8:start], "little")
    if length > min(member.size, _MOST_HEADER):
        raise ValueError(f"its header would take {length:,} of {member.size:,} bytes")
    if length > len(head):
        head = _head(file, member, length)
    text = head[start:length].decode("utf-8" if version == (3, 0) else "latin-1")  # UnicodeDecodeError: ValueError
    if len(head) < length:
        raise ValueError("cut short in its header")
    dtype, big_endian, fortran, shape = _parsed(text)
    return _Header(dtype, big_endian, fortran, shape, length)


def _head(file: BinaryIO, member: zipped.Member, count: int) -> bytes:
    """The first `count` bytes of a member, or all if it has fewer."""
    file.seek(member.offset)
    if member.method == zipped.STORED:
        return file.read(min(count, member.stored_size))
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(min(member.stored_size, _MOST_HEADER)), count)
    except zlib.error:
        raise ValueError("not valid deflate data") from None


@lru_cache(maxsize=128)  # a model has many arrays of few shapes
def _parsed(text: str) -> tuple[DType, bool, bool, tuple[int, ...]]:
    """(type, whether big-endian, whether in Fortran's order, shape) of a header: a Python dict of three keys."""
    text = text.strip()
    found: dict[str, re.Match[str]] = {}
    at = 1
    while text[:1] == "{" and text[at:].strip() != "}":
        item = _ITEM.match(text, at)
        if item is None or item["key"] in found or item["key"] not in _KEYS:
            break
        if item["list"]:
            raise ValueError("an array of records, not of numbers")
        found[item["key"]] = item
        at = item.end()
    else:
        if found.keys() == _KEYS and text[:1] == "{":
            kind, order, shape = found["descr"]["text"], found["fortran_order"]["truth"], found["shape"]["shape"]
            if kind is not None and order is not None and shape is not None:
                return *_type(kind), order == "True", _shape(shape)
    raise ValueError("its header is not a dict of descr, fortran_order and shape")


def _type(code: str) -> tuple[DType, bool]:
    order, name = code[:1], _CODES.get(code[1:])
    if name is None or order not in _ORDERS:
        kind = code.lstrip("<>|=")[:1]
        raise ValueError(f"its type is {code!r}" + (f": {_REFUSED[kind]}" if kind in _REFUSED else ", not one known"))
    dtype = DTYPES[name]
    if dtype.bits > 8 and code not in ("|V2", "<V2") and (order == "|" or code == ">V2"):
        raise ValueError(f"its type is {code!r}: in which order the bytes are, it does not say")
    return dtype, _ORDERS[order] and dtype.bits > 8


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.strip("()").replace("L", "").split(",")
    if len(sizes) == 1 and sizes[0].strip():
        raise ValueError("its shape is a number, not a tuple")
    shape = tuple(int(size) for size in sizes if size.strip())
    if len(shape) > MOST_DIMENSIONS or math.prod(shape) > MOST_ELEMENTS:
        raise ValueError(f"a shape of {len(shape)} dimensions or of that size cannot be real")
    return shape


@dataclass(frozen=True, slots=True)
class Deflated:
    """An array in a compressed member of an archive. It is unpacked from its start, so best read in order."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    path: Path
    member: zipped.Member
    skip: int  # bytes of the member before the first element
    big_endian: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers, unpacked."""
        return self.dtype.nbytes(math.prod(self.shape))

    def read(self, start: int, stop: int) -> Array:
        """Stored elements `start` to `stop` of the flattened array, unpacked."""
        result = np.empty(stop - start, self.dtype.stored)
        if result.size:
            _take(self.path, self.member, self.skip + self.dtype.nbytes(start), result.view(np.uint8).data)
        return result.byteswap(inplace=True) if self.big_endian else result

    def mapped(self) -> Array:
        """All stored elements, unpacked into memory."""
        try:
            return self.read(0, math.prod(self.shape)).reshape(self.shape)
        except MemoryError:
            raise FormatError(f"{self.path}: array {self.name!r} is larger than the memory that is left") from None


class _Stream:
    """How far a member has been unpacked, with the last bytes that came out of it. It keeps no file open."""

    def __init__(self, member: zipped.Member) -> None:
        self.member = member
        self.engine = zlib.decompressobj(-zlib.MAX_WBITS)
        self.taken = 0  # bytes of what is stored that went into the engine
        self.kept: deque[tuple[int, bytes]] = deque()  # (position in the member, bytes)
        self.end = 0

    @property
    def start(self) -> int:
        """The position of the first byte that can still be had."""
        return self.kept[0][0] if self.kept else self.end

    def take(self, file: BinaryIO, at: int, out: memoryview) -> None:
        """Fill `out` with the bytes from position `at`, which must not lie before `start`.

        Raises ValueError or zlib.error where the member ends before, or is damaged.
        """
        for position, piece in self.kept:
            _copy(position, piece, at, out)
        file.seek(self.member.offset + self.taken)
        while self.end < at + len(out):
            packed = self.engine.unconsumed_tail
            if not packed:
                packed = file.read(min(zipped.CHUNK, self.member.stored_size - self.taken))
                self.taken += len(packed)
            piece = self.engine.decompress(packed, zipped.CHUNK)
            if not piece and not packed:
                raise ValueError("ends early")
            _copy(self.end, piece, at, out)
            self.kept.append((self.end, piece))
            self.end += len(piece)
            while self.end - self.kept[0][0] > _MOST_KEPT:
                self.kept.popleft()


def _copy(position: int, piece: bytes, at: int, out: memoryview) -> None:
    """Copy what `piece`, at `position`, has of the range that `out`, at `at`, is to hold."""
    first, last = max(position, at), min(position + len(piece), at + len(out))
    if first < last:
        out[first - at : last - at] = piece[first - position : last - position]


_MOST_KEPT = 9 << 20  # bytes: threads may ask for a block a little late
_MOST_STREAMS = MOST_THREADS  # one for each thread that reads, or they would begin anew again and again
_Key = tuple[Path, int, str]  # file, when it was changed, member
_streams: list[tuple[_Key, _Stream]] = []  # those that no one is reading, the last one used at the end
_lock = Lock()
if hasattr(os, "register_at_fork"):  # a process must not inherit a lock that a thread of its parent holds
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def _take(path: Path, member: zipped.Member, at: int, out: memoryview) -> None:
    """Fill `out` with the bytes of a member from position `at`, going on with a stream where one has got so far."""
    try:
        with files.open_bytes(path) as file:
            key = (path, files.version(path), member.name)
            stream = _checked_out(key, at) or _Stream(member)
            stream.take(file, at, out)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, zlib.error):
        raise FormatError(f"{path}: member {member.name!r} is damaged, or changed after it was opened") from None
    with _lock:
        _streams.append((key, stream))
        del _streams[:-_MOST_STREAMS]


def _checked_out(key: _Key, at: int) -> _Stream | None:
    """The stream that has come closest to `at`, taken out of the list so that no one else uses it."""
    with _lock:
        usable = [place for place, (other, stream) in enumerate(_streams) if other == key and stream.start <= at]
        if not usable:
            return None
        return _streams.pop(max(usable, key=lambda place: min(_streams[place][1].end, at)))[1]


def write(path: Path, tensors: Iterable[tuple[str, Source]]) -> None:
    """Write arrays as an uncompressed .npz, BLOCK elements at a time. BF16 becomes '|V2', as numpy has it.

    Raises SaveError for types that NumPy's format does not have, and for names that cannot be.
    """
    names: set[str] = set()
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, source in tensors:
                if name in names or not 0 < len(name.encode()) <= _MOST_NAME or "\0" in name:
                    problem = "given twice" if name in names else "not a name that a ZIP archive can have"
                    raise SaveError(f"{path}: {name[:99]!r} is {problem}")
                names.add(name)
                info = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, so that equal arrays make equal files
                header = _npy_header(path, source)
                wide = len(header) + source.nbytes >= 1 << 31
                with archive.open(info, "w", force_zip64=wide) as member:
                    member.write(header)
                    for start in range(0, math.prod(source.shape), BLOCK):
                        stop = min(start + BLOCK, math.prod(source.shape))
                        member.write(np.ascontiguousarray(source.read(start, stop), source.dtype.stored).data)
    except OSError as error:
        raise SaveError(f"{path}: cannot be written: {error.strerror}") from None
    except (ValueError, zlib.error, zipfile.LargeZipFile) as error:
        raise SaveError(f"{path}: cannot be written: {printable(str(error))}") from None


def _npy_header(path: Path, source: Source) -> bytes:
    """The header of an array in version 1.0, padded to 64 bytes as numpy does, so that data is aligned."""
    codes = {name: code for code, name in _CODES.items()}
    code = codes.get(source.dtype.name)
    if code is None:
        raise SaveError(
            f"{path}: {source.name!r} is {source.dtype.name}, a type that NumPy's format does not have; "
            "cast it to BF16 first, or save it as safetensors"
        )
    order = "|" if source.dtype.bits == 8 or code == "V2" else "<"
    text = f"{{'descr': '{order}{code}', 'fortran_order': False, 'shape': {source.shape}, }}"
    length = -(-(10 + len(text) + 1) // 64) * 64 - 10
    return _MAGIC + b"\1\0" + length.to_bytes(2, "little") + text.ljust(length - 1).encode() + b"\n"
