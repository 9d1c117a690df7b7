"""Coded: words in a patch file, chunk by chunk, unpacked when they are asked for."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from weightkit.dtypes import Array
from weightkit.errors import PatchError
from weightkit.patch.coding import Reader, chunk_words, number, pack_words, unpack_words
from weightkit.tensor import Tensor


@dataclass(frozen=True)
class Bytes:
    """A run of bytes in a patch file."""

    blob: Tensor  # U8 [n]
    start: int
    size: int

    def view(self) -> memoryview:
        """The bytes, on the memory map."""
        return self.blob.mapped()[self.start : self.start + self.size].data

    def cut(self, *sizes: int) -> list[Bytes]:
        """Parts of these sizes, one after another. PatchError unless they make up the whole."""
        if any(size < 0 for size in sizes) or sum(sizes) != self.size:
            raise PatchError("the sizes of its parts do not add up")
        starts = [self.start + sum(sizes[:i]) for i in range(len(sizes))]
        return [Bytes(self.blob, start, size) for start, size in zip(starts, sizes, strict=True)]


@dataclass(frozen=True)
class Coded:
    """`count` words of `width` bytes: chunks, and after them a table of their sizes."""

    chunks: Bytes
    table: Bytes
    count: int
    width: int

    @functools.cached_property
    def _ends(self) -> list[int]:
        reader, end = Reader(self.table.view()), 0
        ends = [0]
        for _ in range(-(-self.count // chunk_words(self.width))):
            end += reader.number()
            ends.append(end)
        reader.done()
        if end != self.chunks.size:
            raise PatchError("the sizes of its parts do not add up")
        return ends

    def check(self) -> None:
        """PatchError unless the table and the chunks fit one another."""
        _ = self._ends

    def chunk(self, place: int, context: Array | None = None) -> Array:
        """The words of one chunk; with a `context`, those where it is true were coded by themselves."""
        size = chunk_words(self.width)
        length = min(size, self.count - place * size)
        raw = self.chunks.view()[self._ends[place] : self._ends[place + 1]]
        if context is None:
            return unpack_words(raw, length, self.width)
        reader = Reader(raw)
        inner, result = int(context.sum()), np.empty(length, f"<u{self.width}")
        result[context] = unpack_words(reader.take(reader.number()), inner, self.width)
        result[~context] = unpack_words(reader.raw[reader.at :], length - inner, self.width)
        return result

    def words(self, start: int, stop: int) -> Array:
        """Words `start` to `stop`."""
        if stop <= start:
            return np.empty(0, f"<u{self.width}")
        size = chunk_words(self.width)
        first, last = start // size, -(-stop // size)
        parts = [self._kept(place) for place in range(first, last)]
        return np.concatenate(parts)[start - first * size : stop - first * size]

    @functools.cached_property
    def _last(self) -> dict[int, Array]:
        return {}

    def _kept(self, place: int) -> Array:
        """A chunk; the last one is kept, for who reads a tensor row by row."""
        found = self._last.get(place)
        if found is None:
            found = self.chunk(place)
            self._last.clear()
            self._last[place] = found
        return found


def pack_in(words: Array, context: Array | None) -> bytes:
    """A chunk of words as `Coded.chunk` reads it."""
    if context is None:
        return pack_words(words)
    inner = pack_words(words[context])
    return number(len(inner)) + inner + pack_words(words[~context])
