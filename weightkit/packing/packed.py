"""Packed: one logical matrix held by several stored tensors; and what the schemes share."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weightkit.dtypes import Array, DType
from weightkit.errors import FormatError, PackingError
from weightkit.tensor import BLOCK, Source

Parts = Mapping[str, Source]  # the tensors of a packed matrix by the ending of their names
Settings = Mapping[str, Any]  # the config's quantization_config
MOST_ROW = 1 << 22  # numbers in a row: one at a time is unpacked in memory
Made = tuple[tuple[int, ...], int, tuple[int, ...]] | None  # logical shape, bits, options; None: not of this scheme


@dataclass(frozen=True)
class Packed:
    """A matrix that several stored tensors hold together; its stored elements are the numbers, float32."""

    name: str  # of the tensor that holds the packed numbers
    dtype: DType
    shape: tuple[int, ...]
    stored: tuple[tuple[str, Source], ...]  # by the ending of their names
    rows: Callable[[Packed, int, int], Array]  # some rows, first to last, of the matrix or of a flattened stack
    options: tuple[int, ...] = ()  # what the scheme needs besides: bits, group sizes

    @property
    def parts(self) -> dict[str, Source]:
        """The tensors by the ending of their names."""
        return dict(self.stored)

    @property
    def path(self) -> Path:
        """The file of the packed numbers."""
        return self.stored[0][1].path

    @property
    def nbytes(self) -> int:
        """Bytes of all the tensors."""
        return sum(source.nbytes for _, source in self.stored)

    def read(self, start: int, stop: int) -> Array:
        """Numbers `start` to `stop` of the flattened matrix, as a new float32 array."""
        result = np.empty(stop - start, np.float32)
        row = self.shape[-1] if len(self.shape) > 1 else 1
        if row > MOST_ROW:
            raise fault(self.stored[0][1], f"a row of {row:,} numbers is too long to unpack")
        if stop <= start:
            return result
        step = max(1, BLOCK // row)
        for first in range(start // row, -(-stop // row), step):
            last = min(first + step, -(-stop // row))
            low, high = max(start, first * row), min(stop, last * row)
            with np.errstate(all="ignore"):  # scales of strangers can be NaN, or overflow
                rows = self.rows(self, first, last).reshape(-1)
            result[low - start : high - start] = rows[low - first * row : high - first * row]
        return result

    def mapped(self) -> Array:
        """The whole matrix, in memory."""
        return self.read(0, math.prod(self.shape)).reshape(self.shape)


@dataclass(frozen=True)
class Scheme:
    """One way of packing: which tensors it has, and how rows come out of them."""

    name: str
    main: str  # how the name of the packed numbers ends
    needs: tuple[str, ...]  # endings that must be there besides
    may: tuple[str, ...]  # and that may be
    make: Callable[[str, Parts, Settings], Made]
    rows: Callable[[Packed, int, int], Array]

    def is_there(self, base: str, names: Container[str]) -> bool:
        """Whether all tensors that it needs are there."""
        for ending in self.needs:
            if base + ending not in names:
                return False
        return base + self.main in names


def fault(source: Source, message: str) -> FormatError:
    """The error to raise about a stored tensor."""
    return FormatError(f"{source.path}: {source.name}: {message}")


def unknown(source: Source, packed_as: str) -> PackingError:
    """The error to raise about a stored tensor that is packed in a way that is not unpacked here."""
    return PackingError(f"{source.path}: {source.name}", packed_as)


def require(source: Source, shape: tuple[int, ...], *kinds: str) -> None:
    """Raise FormatError unless a tensor has this shape and one of these types."""
    if source.shape != shape or (kinds and source.dtype.name not in kinds):
        want = f"{' or '.join(kinds)} {list(shape)}".strip()
        raise fault(source, f"is {source.dtype.name} {list(source.shape)}, its packing needs {want}")


def number(settings: Mapping[str, Any], key: str, default: int, most: int = 1 << 20) -> int:
    """A whole number of the settings."""
    value = settings.get(key, default)
    if value is None:
        return default
    if type(value) is not int or not -1 <= value <= most:
        raise FormatError(f"quantization_config: {key} is {str(value)[:40]!r}, expected a whole number")
    return value


def require_numbers(source: Source, size: int, *kinds: str) -> None:
    """Raise FormatError unless a tensor holds this many numbers, of one of these types or else floats."""
    fits = source.dtype.name in kinds if kinds else source.dtype.kind == "float" and not source.dtype.packed
    if math.prod(source.shape) != size or not fits:
        want = " or ".join(kinds) or "floats"
        raise fault(source, f"is {source.dtype.name} {list(source.shape)}, its packing needs {size:,} {want}")


def rows_of(source: Source, first: int, last: int) -> Array:
    """Stored elements of some rows; those of a stack of matrices are counted through."""
    row = source.shape[-1]
    return source.read(first * row, last * row).reshape(last - first, row)


def columns_of(source: Source, first: int, last: int) -> Array:
    """Stored elements of some columns of a matrix: on the memory map, as each row has only a few of them."""
    return np.ascontiguousarray(source.mapped()[:, first:last])


def numbers(source: Source) -> Array:
    """All decoded numbers, float32."""
    return source.dtype.decode(source.read(0, math.prod(source.shape)).reshape(source.shape))


def unpack_columns(words: Array, bits: int, count: int) -> Array:
    """Small numbers from words that go on down the columns, lowest bits first: uint8 [count, columns]."""
    return unpack_bits(np.ascontiguousarray(words.T), bits)[:, :count].T


def unpack_bits(words: Array, bits: int) -> Array:
    """Small numbers from words that hold them one after another, lowest bits first, along the last axis: uint8."""
    raw = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return raw
    if bits == 4:
        return np.stack([raw & 15, raw >> 4], axis=-1).reshape(*raw.shape[:-1], -1)
    stream = np.unpackbits(raw, axis=-1, bitorder="little")
    count = stream.shape[-1] // bits
    grouped = stream[..., : count * bits].reshape(*raw.shape[:-1], count, bits)
    return (grouped << np.arange(bits, dtype=np.uint8)).sum(axis=-1, dtype=np.uint8)


def group_of(source: Source, settings: Settings, width: int, groups: int) -> int:
    """How many numbers of a row of `width` share one of its `groups` scales; the last may have fewer."""
    size = number(settings, "group_size", -1)
    if size > 0 and -(-width // size) == groups:
        return size
    if not groups or width % groups:
        raise fault(source, f"{groups:,} groups do not fit rows of {width:,} numbers")
    return max(1, width // groups)


def spread(scale: Array, group: int, width: int) -> Array:
    """Scales of groups [rows, groups], each for its numbers: [rows, width], or [rows, 1] where there is one a row."""
    if scale.shape[-1] == 1 or group == 1:
        return scale
    return np.repeat(scale, group, axis=-1)[:, :width]
