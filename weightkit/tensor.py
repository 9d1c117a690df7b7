"""Tensor: a lazy, read-only handle on one named array in a file, read in blocks."""

from __future__ import annotations

import functools
import itertools
import math
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from weightkit import files
from weightkit.dtypes import DTYPES, Array, DType
from weightkit.errors import FormatError

Region = tuple[slice, ...]  # one slice per dimension: start, stop and a positive step, all given

BLOCK = 1 << 20  # elements that are read, widened or counted at a time


class Source(Protocol):
    """What holds the stored elements of one array: bytes in a file, or those bytes edited."""

    @property
    def name(self) -> str:
        """The name in the file."""
        ...

    @property
    def dtype(self) -> DType:
        """The element type in the file."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the file."""
        ...

    @property
    def path(self) -> Path:
        """The file that holds it."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that its numbers take in the file, before any compression."""
        ...

    def read(self, start: int, stop: int) -> Array:
        """Stored elements `start` to `stop` of the flattened array, as a new array."""
        ...

    def mapped(self) -> Array:
        """All stored elements, in the array's shape, copied only where they have to be."""
        ...


@dataclass(frozen=True, slots=True)
class Tensor:
    """One array of a checkpoint file. Nothing is read until it is asked for.

    It pickles as what it is (file, offset, dtype, shape) and reopens where it lands.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    path: Path
    offset: int  # in the file, of the first byte
    big_endian: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.dtype.nbytes(self.size)

    def read(self, start: int, stop: int) -> Array:
        """Stored elements `start` to `stop` of the flattened array, read from the file."""
        group = self.dtype.group
        first, last = start // group * group, -(-stop // group) * group
        wanted = self.dtype.nbytes(last - first)
        raw = np.empty(wanted, np.uint8)
        with files.open_bytes(self.path, buffered=False) as file:
            file.seek(self.offset + self.dtype.nbytes(first))
            view, done = raw.data, 0
            while done < wanted:  # one read returns at most 2 GiB
                got = file.readinto(view[done:])  # type: ignore[attr-defined]
                if not got:
                    raise FormatError(f"{self.path}: the file became shorter while {self.name!r} was read")
                done += got
        return self._native(self.dtype.unpack(raw))[start - first : stop - first]

    def mapped(self) -> Array:
        """All stored elements on the memory map, read-only; unpacked if smaller than a byte."""
        if not self.size:
            return np.empty(self.shape, self.dtype.stored)
        if files.is_elsewhere(self.path):
            return self.read(0, self.size).reshape(self.shape)
        file = _map(self.path, _status(self).st_mtime_ns)
        raw = file[self.offset : self.offset + self.nbytes]
        if self.dtype.packed or self.big_endian:
            return self._native(self.dtype.unpack(raw)).reshape(self.shape)
        return np.ndarray(self.shape, self.dtype.stored, buffer=raw)

    def _native(self, stored: Array) -> Array:
        if not self.big_endian:
            return stored
        if self.dtype.block > 1:  # whose scales are swapped, and nothing else
            raise FormatError(f"{self.path}: {self.name!r}: {self.dtype.name} of a big-endian file cannot be read")
        return stored.byteswap()


@dataclass(frozen=True, slots=True)
class Strided:
    """A view on a flat tensor in steps of its own, as PyTorch saves a transposed matrix or a part of one.

    Element (i, j, …) is element `start + i·strides[0] + j·strides[1] + …` of `base`; whoever makes one
    has seen to it that none lies outside.
    """

    name: str
    base: Source
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    start: int = 0

    @property
    def dtype(self) -> DType:
        """The element type in the file."""
        return self.base.dtype

    @property
    def path(self) -> Path:
        """The file that holds it."""
        return self.base.path

    @property
    def nbytes(self) -> int:
        """Bytes that its numbers take when each is written once."""
        return self.dtype.nbytes(math.prod(self.shape))

    def read(self, start: int, stop: int) -> Array:
        """Stored elements `start` to `stop` in row-major order, as a new array."""
        return self.mapped().flat[start:stop]

    def mapped(self) -> Array:
        """The view itself, on the memory map."""
        flat = self.base.mapped().reshape(-1)[self.start :]
        steps = tuple(step * flat.itemsize for step in self.strides)
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)


@dataclass(frozen=True)
class Derived:
    """A source made of another one: the same array, but for what a subclass changes in it."""

    base: Source

    @property
    def name(self) -> str:
        """The name in the file."""
        return self.base.name

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self.base.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the file."""
        return self.base.shape

    @property
    def path(self) -> Path:
        """The file that holds the base."""
        return self.base.path

    @property
    def nbytes(self) -> int:
        """Bytes that the numbers take."""
        return self.dtype.nbytes(math.prod(self.shape))

    def read(self, start: int, stop: int) -> Array:
        """Stored elements `start` to `stop` of the flattened array, as a new array."""
        return self.base.read(start, stop)

    def mapped(self) -> Array:
        """The whole array, in memory."""
        return self.read(0, math.prod(self.shape)).reshape(self.shape)


@functools.lru_cache(maxsize=256)
def _map(path: Path, _modified: int) -> np.memmap[tuple[int], np.dtype[np.uint8]]:
    return np.memmap(path, np.uint8, mode="r")


def rows_on_map(source: Source) -> Array | None:
    """All stored elements on the memory map, a type with blocks as the bytes of each row; None where they are not."""
    inner = source.base if isinstance(source, Strided) else source
    if not isinstance(inner, Tensor) or inner.big_endian or files.is_elsewhere(inner.path):
        return None
    if not inner.dtype.packed:
        return source.mapped()
    *lead, row = inner.shape or (1,)
    if inner is not source or inner.dtype.block == 1 or row % inner.dtype.block:
        return None
    raw = Tensor(inner.name, DTYPES["U8"], (*lead, inner.dtype.nbytes(row)), inner.path, inner.offset)
    return raw.mapped()


def give_back(source: Source, stored: Array) -> None:
    """Let the memory map forget what was read of `stored`, a part of it: the pages come back if they are touched.

    So what is resident of a large file stays small. Where the system has no such thing, nothing is forgotten.
    Raises FormatError where the file became shorter meanwhile: to touch what is gone would end the process.
    """
    inner = source.base if isinstance(source, Strided) else source
    if not stored.size or not isinstance(inner, Tensor):
        return
    status = _status(inner)
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    whole_map = _map(inner.path, status.st_mtime_ns)
    low, high = np.lib.array_utils.byte_bounds(stored)
    base = whole_map.ctypes.data
    if base <= low and high <= base + whole_map.nbytes:
        start = (low - base) // mmap.PAGESIZE * mmap.PAGESIZE
        whole_map._mmap.madvise(mmap.MADV_DONTNEED, start, high - base - start)  # type: ignore[attr-defined]


def _status(tensor: Tensor) -> os.stat_result:
    """What the system says of a file that still holds a tensor. Raises FormatError where it does not."""
    status = os.stat(tensor.path)
    if status.st_size < tensor.offset + tensor.nbytes:
        raise FormatError(f"{tensor.path}: the file became shorter after it was opened")
    return status


def place_of(source: Source) -> object:
    """Where in its file an array lies; None for one that is made of others."""
    return source.offset if isinstance(source, Tensor) else getattr(source, "address", None)


def whole(shape: tuple[int, ...]) -> Region:
    """The region that covers all of an array of this shape."""
    return tuple([slice(0, n, 1) for n in shape])


def region_shape(region: Region) -> tuple[int, ...]:
    """The shape of what a region selects."""
    return tuple([len(range(s.start, s.stop, s.step)) for s in region])


def region_size(region: Region) -> int:
    """The number of elements that a region selects."""
    return math.prod(region_shape(region))


def tiles(shape: tuple[int, ...], most: int = BLOCK) -> Iterator[Region]:
    """Regions that cover an array in storage order, each contiguous, each of at most `most` elements."""
    if 0 in shape:
        return
    axis = 0  # the first axis of which a tile can hold more than one index
    while axis < len(shape) - 1 and math.prod(shape[axis + 1 :]) > most:
        axis += 1
    step = max(1, most // max(1, math.prod(shape[axis + 1 :])))
    starts = range(0, shape[axis], step) if shape else range(1)
    for index in itertools.product(*map(range, shape[:axis])):
        for start in starts:
            yield (
                *(slice(i, i + 1, 1) for i in index),
                *(slice(start, min(start + step, n), 1) for n in shape[axis : axis + 1]),
                *(slice(0, n, 1) for n in shape[axis + 1 :]),
            )


def read_region(source: Source, region: Region) -> Array:
    """The stored elements of a rectangle of `source`, as a new array of the region's shape.

    What is read at a time is bounded: one contiguous run, or blocks of the rows (indices of the first
    axis) that the region touches, or of the columns where a row is itself larger than a block.
    """
    return _read_part(source, source.shape, 0, region)


def _read_part(source: Source, shape: tuple[int, ...], offset: int, region: Region) -> Array:
    """As `read_region`, of the part of `source` of a given shape that starts at element `offset`."""
    result_shape = region_shape(region)
    if 0 in result_shape:
        return np.empty(result_shape, source.dtype.stored)
    if not shape:
        return source.read(offset, offset + 1).reshape(())
    row = math.prod(shape[1:])
    rows = range(region[0].start, region[0].stop, region[0].step)
    if region[1:] == whole(shape[1:]) and (rows.step == 1 or len(rows) == 1):
        return source.read(offset + rows[0] * row, offset + (rows[-1] + 1) * row).reshape(result_shape)
    result = np.empty(result_shape, source.dtype.stored)
    if row > BLOCK or len(rows) == 1:
        for place, index in enumerate(rows):
            result[place] = _read_part(source, shape[1:], offset + index * row, region[1:])
        return result
    per_read = max(1, BLOCK // (row * rows.step))
    for done in range(0, len(rows), per_read):
        part = rows[done : done + per_read]
        block = source.read(offset + part[0] * row, offset + (part[-1] + 1) * row).reshape(-1, *shape[1:])
        result[done : done + len(part)] = block[(slice(None, None, rows.step), *region[1:])]
    return result
