"""Dataset: a lazy array that lies in chunks, or in a compressed archive."""

from __future__ import annotations

import io
import itertools
import math
import os
import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import BinaryIO, NamedTuple

import numpy as np

from weightkit import files
from weightkit.dtypes import Array, DType
from weightkit.errors import FormatError, printable
from weightkit.formats import zipped
from weightkit.formats.hdf5_structure.dataset import MOST_CHUNK, Described, Place, chunk_table, describe
from weightkit.formats.hdf5_structure.filters import undo, work
from weightkit.formats.hdf5_structure.header import read_header
from weightkit.formats.hdf5_structure.image import UNDEFINED, Image
from weightkit.formats.hdf5_structure.layout import Stored
from weightkit.formats.shard import VERIFIED_BYTES

_MOST_CACHED = 64 << 20  # bytes of unpacked chunks that are kept
_MOST_AT_ONCE = 16 << 20  # bytes of a chunk that costs no more memory than opening a file should
_CHUNK_WORK = 1 << 10  # bytes that are read in the time that a chunk takes beside its bytes


@dataclass(frozen=True, slots=True)
class Dataset:
    """An array of an HDF5 file. It pickles as (file, address) and reopens where it lands."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    path: Path
    address: int  # of its object header, in the HDF5 file
    member: str = ""  # the HDF5 file in the archive at `path`
    big_endian: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers, unpacked."""
        return self.dtype.nbytes(math.prod(self.shape))

    def read(self, start: int, stop: int) -> Array:
        """Stored elements `start` to `stop` of the flattened array, unpacked chunk by chunk."""
        return self._filled((stop - start,), boxes(self.shape, start, stop))

    def mapped(self) -> Array:
        """All stored elements, unpacked into memory."""
        return self._filled(self.shape, [((0,) * len(self.shape), self.shape)])

    def faults(self) -> Iterator[str]:
        """The first chunk that does not unpack to what it should, or does not match its checksum."""
        with guarded(self.path, self.name):
            loaded = _loaded(self.path, self.member, self.address, files.version(self.path))
            with opened(self.path, self.member) as (file, _, _):
                for stored in loaded.table.values():
                    try:
                        loaded.unpacked(file, stored)
                    except ValueError as error:
                        yield f"dataset {self.name!r}: {error}"
                        return

    def work(self) -> int:
        """What `faults` has to do, as the number of bytes that would be read in that time."""
        with guarded(self.path, self.name):
            return _loaded(self.path, self.member, self.address, files.version(self.path)).work()

    def _filled(self, shape: tuple[int, ...], parts: Iterable[tuple[Place, tuple[int, ...]]]) -> Array:
        """A new array of all elements in `parts`, which are (first index, shape), one after another."""
        with guarded(self.path, self.name):
            result = np.empty(shape, self.dtype.stored)
            key = (self.path, self.member, self.address, files.version(self.path))
            loaded = _loaded(*key)
            if (loaded.array.shape, loaded.array.element.name) != (self.shape, self.dtype.name):
                raise FormatError(f"{self.path}: the file changed after it was opened")
            done, flat = 0, result.reshape(-1)
            with opened(self.path, self.member) as (file, _, _):
                for low, size in parts:
                    count = math.prod(size)
                    loaded.fill(file, flat[done : done + count].reshape(size), low, key)
                    done += count
        return result.byteswap(inplace=True) if self.big_endian else result


class _Loaded(NamedTuple):
    """An array ready to be read: what it says, and where its chunks are."""

    array: Described
    chunk: tuple[int, ...]
    table: dict[Place, Stored]
    origin: int  # of the addresses, in the file

    def fill(self, file: BinaryIO, result: Array, low: Place, key: Key) -> None:
        """Fill `result` with what the array has there from index `low` on."""
        high = [start + n for start, n in zip(low, result.shape, strict=True)]
        grid = [range(a // c, -(-b // c)) for a, b, c in zip(low, high, self.chunk, strict=True)]
        for place in itertools.product(*grid) if result.size else ():
            corner = [i * c for i, c in zip(place, self.chunk, strict=True)]
            starts = [max(a, b) for a, b in zip(corner, low, strict=True)]
            stops = [min(a + c, b) for a, b, c in zip(corner, high, self.chunk, strict=True)]
            target = tuple(slice(a - b, z - b) for a, z, b in zip(starts, stops, low, strict=True))
            source = tuple(slice(a - b, z - b) for a, z, b in zip(starts, stops, corner, strict=True))
            if place in self.table:
                result[target] = self._chunk(file, self.table[place], result.dtype, key)[source]
            else:
                result[target] = np.frombuffer(self.array.fill or bytes(result.itemsize), result.dtype)[0]

    def _chunk(self, file: BinaryIO, stored: Stored, dtype: np.dtype[np.generic], key: Key) -> Array:
        raw = _kept.get((key, stored.place))
        if raw is None:
            raw = self.unpacked(file, stored)
            _kept.put((key, stored.place), raw)
        return np.frombuffer(raw, dtype).reshape(self.chunk)

    def unpacked(self, file: BinaryIO, stored: Stored) -> bytes:
        """The bytes of a chunk. Raises ValueError where they are damaged."""
        file.seek(self.origin + stored.address)
        raw = file.read(stored.nbytes)
        if len(raw) != stored.nbytes:
            raise ValueError("the file became shorter while it was read")
        ends = ((i + 1) * c > n for i, c, n in zip(stored.place, self.chunk, self.array.shape, strict=True))
        plain = self.array.layout.edges_unfiltered and any(ends)
        whole = self.array.chunk_bytes if self.array.layout.chunk else self.array.nbytes
        return undo(raw, () if plain else self.array.filters, stored.mask, whole)

    def work(self) -> int:
        """The bytes that go through filters when every chunk is unpacked, and some for each chunk."""
        array = self.array
        if array.chunk_bytes > _MOST_AT_ONCE:
            return MOST_CHUNK * len(self.table)
        return sum(_CHUNK_WORK + work(array.filters, s.nbytes, array.chunk_bytes) for s in self.table.values())


@lru_cache(maxsize=16)
def _loaded(path: Path, member: str, address: int, _version: int) -> _Loaded:
    with opened(path, member) as (file, start, size):
        image = Image(file, path, size, start)
        array = describe(image, read_header(image, address))
        if array is None:
            raise FormatError(f"{path}: the file changed after it was opened")
        if array.layout.chunk:
            return _Loaded(array, array.layout.chunk, chunk_table(image, array), image.offset(0))
        whole = Stored((0,) * len(array.shape), array.layout.address, array.nbytes, 0)
        table = {} if whole.address == UNDEFINED else {whole.place: whole}
        return _Loaded(array, array.shape, table, image.offset(0))


Key = tuple[Path, str, int, int]  # file, member, address of a dataset, when the file was changed


class Kept:
    """Unpacked chunks, oldest first. Blocks are read in order, and a chunk is often in several."""

    def __init__(self, most: int) -> None:
        self.most, self.total = most, 0  # bytes
        self.chunks: OrderedDict[tuple[Key, Place], bytes] = OrderedDict()
        self.lock = Lock()

    def get(self, key: tuple[Key, Place]) -> bytes | None:
        """The bytes of a chunk, if they are kept."""
        with self.lock:
            if key in self.chunks:
                self.chunks.move_to_end(key)
            return self.chunks.get(key)

    def put(self, key: tuple[Key, Place], raw: bytes) -> None:
        """Keep the bytes of a chunk, and forget the oldest ones for them."""
        with self.lock:
            self.total += len(raw) - len(self.chunks.pop(key, b""))
            self.chunks[key] = raw
            while self.total > self.most and self.chunks:
                self.total -= len(self.chunks.popitem(last=False)[1])


_kept = Kept(_MOST_CACHED)
if hasattr(os, "register_at_fork"):  # a process must not inherit a lock that a thread of its parent holds
    os.register_at_fork(
        before=_kept.lock.acquire, after_in_parent=_kept.lock.release, after_in_child=_kept.lock.release
    )


@contextmanager
def guarded(path: Path, name: str = "") -> Iterator[None]:
    """Make a FormatError of one line of whatever damaged bytes lead to."""
    where = f"{path}: dataset {name!r}" if name else f"{path}"
    try:
        yield
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None
    except MemoryError:
        raise FormatError(f"{where}: larger than the memory that is left") from None
    except (struct.error, IndexError, OverflowError):
        raise FormatError(f"{where}: a damaged HDF5 file: part of its structure is cut short") from None
    except ValueError as error:
        raise FormatError(f"{where}: a damaged HDF5 file: {printable(str(error))}") from None


@contextmanager
def opened(path: Path, member: str) -> Iterator[tuple[BinaryIO, int, int]]:
    """An HDF5 file as (open file, where it starts in that, its size); `member` names it in an archive.

    Raises FormatError where the archive has no such member, or has it compressed and large.
    """
    if not member:
        size = files.size(path)
        with files.open_bytes(path) as file:
            yield file, 0, size
        return
    found = zipped.members(path).get(member)
    if found is None:
        raise FormatError(f"{path}: an archive without {member}: it holds no weights")
    if found.method == zipped.STORED:
        with files.open_bytes(path) as file:
            yield file, found.offset, found.size
        return
    if found.size > VERIFIED_BYTES:
        raise FormatError(f"{path}: {member} is compressed; unpack the archive (it is a ZIP file) and open that file")
    yield io.BytesIO(_inflated(path, found, files.version(path))), 0, found.size


@lru_cache(maxsize=2)
def _inflated(path: Path, member: zipped.Member, _version: int) -> bytes:
    return zipped.read(path, member, VERIFIED_BYTES)


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[Place, tuple[int, ...]]]:
    """Rectangles (first index, shape) that make up elements `start` to `stop` in row-major order."""
    steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    while start < stop:
        fits = (axis for axis, step in enumerate(steps) if start % step == 0 and stop - start >= step)
        axis = next(fits, len(shape))  # the outermost of which whole indices can be taken
        index = tuple(start // step % n for step, n in zip(steps, shape, strict=True))
        if axis == len(shape):  # no dimensions
            yield (), ()
            return
        count = min((stop - start) // steps[axis], shape[axis] - index[axis])
        yield index, (1,) * axis + (count,) + shape[axis + 1 :]
        start += count * steps[axis]
