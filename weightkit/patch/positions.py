"""Positions: which words of a tensor a step changes, in the order of the tensor."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from weightkit.dtypes import Array

Found = tuple[Array | slice, int, int]  # places in a range of words, and which of all positions they are


class Positions(Protocol):
    """Some words of a tensor."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def within(self, start: int, stop: int) -> Found:
        """Those among words `start` to `stop`."""
        ...


@dataclass(frozen=True)
class All:
    """Every word."""

    count: int

    def within(self, start: int, stop: int) -> Found:
        """All of a range."""
        return slice(0, stop - start), start, stop


@dataclass(frozen=True)
class At:
    """Single words: `indices` are strictly increasing, int64 [n]."""

    indices: Array

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.indices)

    def within(self, start: int, stop: int) -> Found:
        """Those in a range."""
        first, last = (int(n) for n in np.searchsorted(self.indices, (start, stop)))
        return self.indices[first:last] - start, first, last


@dataclass(frozen=True)
class Block:
    """Where some rows cross some columns, both strictly increasing, int64; a row has `row` words."""

    rows: Array
    columns: Array
    row: int

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.rows) * len(self.columns)

    def within(self, start: int, stop: int) -> Found:
        """Those in a range."""
        before = self._before(start)
        last = self._before(stop)
        number = np.arange(before, last)
        width = max(1, len(self.columns))
        return self.rows[number // width] * self.row + self.columns[number % width] - start, before, last

    def _before(self, word: int) -> int:
        """How many there are before a word."""
        row, column = divmod(word, self.row)
        whole = int(np.searchsorted(self.rows, row))
        in_row = whole < len(self.rows) and self.rows[whole] == row
        return whole * len(self.columns) + (int(np.searchsorted(self.columns, column)) if in_row else 0)


def row_of(shape: tuple[int, ...], words: int) -> int:
    """The words of one index of the first axis."""
    return words // shape[0] if shape and shape[0] and words % shape[0] == 0 else max(1, words)


@functools.lru_cache(maxsize=8)
def bits_for(count: int) -> int:
    """Bits that say which of so many things."""
    return max(1, math.ceil(math.log2(count))) if count > 1 else 0
