"""Patched: a tensor as a patch makes it, read without writing anything."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from weightkit.dtypes import Array, DType
from weightkit.patch.layers import Xored, words_in
from weightkit.surgery.overlay import Edited
from weightkit.tensor import BLOCK
from weightkit.words import Stored, Words, count, width


def read_words(words: Words, start: int, stop: int) -> Array:
    """Stored elements `start` to `stop` of an array of words."""
    dtype = words.dtype
    if dtype.packed:
        group = dtype.group
        first, last = start // group * group, -(-stop // group) * group
        raw = words.words(dtype.nbytes(first), dtype.nbytes(last))
        return dtype.unpack(raw)[start - first : stop - first]
    parts = dtype.bits // 8 // width(dtype)
    return words.words(start * parts, stop * parts).view(dtype.stored)


@dataclass(frozen=True)
class Patched(Edited):
    """A tensor of the base with its bits changed; type and shape are as they were."""

    made_of: Words

    def read(self, start: int, stop: int) -> Array:
        """Stored elements `start` to `stop` of the flattened array, as patched."""
        return read_words(self.made_of, start, stop)

    @property
    def addresses(self) -> tuple[str, ...]:
        """What is changed: the tensor, by its name."""
        return (f"name:{self.name}",)

    @property
    def elements(self) -> int:
        """How many elements may change."""
        words = self.made_of
        total = words_in(words)
        some = words.where.count if isinstance(words, Xored) and isinstance(words.base, Stored) else total
        return some * width(self.dtype) * 8 // self.dtype.bits * self.dtype.block

    def changed_tiles(self) -> Iterable[tuple[int, int]]:
        """Flat ranges of elements that cover every change, in blocks of bounded size."""
        total = math.prod(self.shape)
        step = max(1, BLOCK // self.dtype.group) * self.dtype.group
        for start in range(0, total, step):
            stop = min(start + step, total)
            low, high = (self.dtype.nbytes(n) // width(self.dtype) for n in (start, stop))
            if _touched(self.made_of, low, high):
                yield start, stop

    def raw(self, start: int, stop: int) -> Array:
        """The bytes in the file of elements `start` to `stop`, as words."""
        low, high = (self.dtype.nbytes(n) // width(self.dtype) for n in (start, stop))
        return self.made_of.words(low, high)


def _touched(words: Words, start: int, stop: int) -> bool:
    """Whether words may differ from those in the file."""
    if isinstance(words, Stored):
        return isinstance(words.source, Edited)
    if isinstance(words, Xored):
        return words.touched(start, stop) or _touched(words.base, start, stop)
    return True


@dataclass(frozen=True)
class Brought:
    """A tensor that is not in the base as it is now: brought along, or of another type, shape or name."""

    name: str
    path: Path
    made_of: Words

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self.made_of.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return self.made_of.shape

    @property
    def nbytes(self) -> int:
        """Bytes that its numbers take."""
        return count(self.dtype, self.shape) * width(self.dtype)

    def read(self, start: int, stop: int) -> Array:
        """Stored elements `start` to `stop` of the flattened array."""
        return read_words(self.made_of, start, stop)

    def mapped(self) -> Array:
        """The whole array, in memory."""
        return self.read(0, math.prod(self.shape)).reshape(self.shape)
