"""Words: the bits of a tensor as unsigned whole numbers, whatever its type; what patches work on.

A word is a stored element of up to 8 bytes, half of a complex number of 16, or, where elements are packed
into bytes or blocks, one byte of the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from weightkit.dtypes import DTYPES, Array, DType
from weightkit.errors import FormatError
from weightkit.tensor import Source, Strided, Tensor

WIDEST = 8  # bytes of a word


class Words(Protocol):
    """The bits of one array."""

    @property
    def dtype(self) -> DType:
        """The element type."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in elements."""
        ...

    def words(self, start: int, stop: int) -> Array:
        """Words `start` to `stop`, unsigned, as an array that may be changed."""
        ...

    def rows(self, chosen: Array) -> Array:
        """The words of some rows (indices of the first axis), unsigned [rows, row]; where words are elements."""
        ...


def width(dtype: DType) -> int:
    """Bytes of a word of this type."""
    return 1 if dtype.packed else min(dtype.bits // 8, WIDEST)


def count(dtype: DType, shape: tuple[int, ...]) -> int:
    """How many words an array has."""
    return dtype.nbytes(math.prod(shape)) // width(dtype)


def elementwise(dtype: DType) -> bool:
    """Whether a word is an element."""
    return not dtype.packed and dtype.bits <= 8 * WIDEST


@dataclass(frozen=True)
class Stored:
    """The words of a tensor of a file, or of one that is made of such."""

    source: Source

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in elements."""
        return self.source.shape

    def words(self, start: int, stop: int) -> Array:
        """Words `start` to `stop`. FormatError where a packed tensor does not simply lie in a file."""
        source = self.source
        if source.dtype.packed:
            if not isinstance(source, Tensor):
                raise FormatError(f"{source.path}: {source.name!r}: the bytes of {source.dtype.name} are not at hand")
            return Tensor(source.name, DTYPES["U8"], (source.nbytes,), source.path, source.offset).read(start, stop)
        parts = source.dtype.bits // 8 // width(source.dtype)  # words of an element
        stored = source.read(start // parts, -(-stop // parts))
        found = np.ascontiguousarray(stored).view(f"u{width(source.dtype)}")
        return found[start % parts : start % parts + stop - start]

    def rows(self, chosen: Array) -> Array:
        """The words of some rows, read where they lie on the memory map, or run by run."""
        source = self.source
        if isinstance(source, Tensor | Strided) and not source.dtype.packed:
            stored = source.mapped()
            return np.ascontiguousarray(stored.reshape(len(stored), -1)[chosen]).view(f"<u{width(self.dtype)}")
        return run_by_run(self, chosen)


def run_by_run(words: Words, chosen: Array) -> Array:
    """The words of some rows, each run of rows that follow one another read at once."""
    row = count(words.dtype, words.shape) // max(1, words.shape[0])
    runs = np.split(chosen, np.flatnonzero(np.diff(chosen) != 1) + 1)
    found = [words.words(int(run[0]) * row, (int(run[-1]) + 1) * row).reshape(-1, row) for run in runs if run.size]
    return np.concatenate(found) if found else np.empty((0, row), f"<u{width(words.dtype)}")


def words_of(source: Source) -> Words:
    """The words of a tensor."""
    made: Words | None = getattr(source, "made_of", None)
    return Stored(source) if made is None else made
