"""Layers: the words of a tensor after one step of a patch, made of those before it as they are asked for."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from weightkit.dtypes import Array, DType
from weightkit.patch.coded import Coded
from weightkit.patch.coding import chunk_words
from weightkit.patch.positions import Positions
from weightkit.patch.predict import Prediction
from weightkit.words import Words, count, run_by_run, width


@dataclass(frozen=True)
class Layer:
    """Words made of those of `base`; the same array, but for what a subclass changes."""

    base: Words

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self.base.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in elements."""
        return self.base.shape

    def words(self, start: int, stop: int) -> Array:
        """Words `start` to `stop`."""
        return self.base.words(start, stop)

    def rows(self, chosen: Array) -> Array:
        """The words of some rows."""
        return run_by_run(self, chosen)


@dataclass(frozen=True)
class Xored(Layer):
    """Some words XORed with others: done twice, it is undone."""

    where: Positions
    coded: Coded

    def words(self, start: int, stop: int) -> Array:
        """Words `start` to `stop`."""
        found = self.base.words(start, stop)
        places, first, last = self.where.within(start, stop)
        if first < last:
            found[places] ^= self.coded.words(first, last)
        return found

    def touched(self, start: int, stop: int) -> bool:
        """Whether any word of a range changes."""
        _, first, last = self.where.within(start, stop)
        return first < last


@dataclass(frozen=True)
class Permuted(Layer):
    """Rows or columns of a matrix in another order: index i is index `order[i]` of the base. int64."""

    axis: int
    order: Array

    def words(self, start: int, stop: int) -> Array:
        """Words `start` to `stop`."""
        row = count(self.dtype, self.shape) // self.shape[0]
        first, last = start // row, -(-stop // row)
        if self.axis == 0:
            found = self.base.rows(self.order[first:last])
        else:
            found = self.base.words(first * row, last * row).reshape(last - first, row)[:, self.order]
        return found.reshape(-1)[start - first * row : stop - first * row]


@dataclass(frozen=True)
class Predicted(Layer):
    """Words as a rule says, XORed with what it has wrong."""

    rule: Prediction
    back: bool
    coded: Coded

    @property
    def dtype(self) -> DType:
        """The element type that the rule leads to."""
        return self.rule.ends[0 if self.back else 1]

    def words(self, start: int, stop: int) -> Array:
        """Words `start` to `stop`, chunk by chunk as the remainder was coded."""
        if stop <= start:
            return np.empty(0, f"<u{width(self.dtype)}")
        size = chunk_words(width(self.dtype))
        total = count(self.dtype, self.shape)
        first, last = start // size, -(-stop // size)
        parts = []
        for place in range(first, last):
            low, high = place * size, min((place + 1) * size, total)
            found, context = self.rule.predict(self.base.words(low, high), low, back=self.back)
            parts.append(found ^ self.coded.chunk(place, context))
        return np.concatenate(parts)[start - first * size : stop - first * size]


@dataclass(frozen=True)
class Literal:
    """A tensor that the patch brings along."""

    dtype: DType
    shape: tuple[int, ...]
    coded: Coded

    def words(self, start: int, stop: int) -> Array:
        """Words `start` to `stop`."""
        return self.coded.words(start, stop).copy()

    def rows(self, chosen: Array) -> Array:
        """The words of some rows."""
        return run_by_run(self, chosen)


@dataclass(frozen=True)
class Shaped(Layer):
    """The same words as an array of another shape; or the first of them, where that is smaller."""

    to: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The new shape."""
        return self.to


@dataclass(frozen=True)
class Grown(Layer):
    """Rows appended."""

    tail: Literal

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape with the new rows."""
        return (self.base.shape[0] + self.tail.shape[0], *self.base.shape[1:])

    @functools.cached_property
    def _own(self) -> int:
        return count(self.base.dtype, self.base.shape)

    def words(self, start: int, stop: int) -> Array:
        """Words `start` to `stop`."""
        own = self._own
        parts = [
            self.base.words(min(start, own), min(stop, own)),
            self.tail.words(max(start, own) - own, max(stop, own) - own),
        ]
        return np.concatenate(parts)


def words_in(layer: Words) -> int:
    """How many words an array has."""
    return count(layer.dtype, layer.shape)


def elements_in(layer: Words) -> int:
    """How many elements an array has."""
    return math.prod(layer.shape)
