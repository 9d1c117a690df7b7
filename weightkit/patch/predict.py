"""Predictions: a tensor as a rule makes it of another one, to the bit the same on every machine.

What a rule has wrong is XORed onto it, so a rule has only to be right mostly. It must come out the same
everywhere, whatever order a library adds in: products of factors are sums of whole numbers below 2^53, which
are exact in float64, and everything else is one operation of IEEE 754 per number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from weightkit.dtypes import Array, DType
from weightkit.words import width

NEAR = 0.4  # of a step between two numbers: what is farther from its rounded value may round the other way
HALF = 15  # bits of one part of a factor: 29 and 15 bits, and 2^7 products of them, stay below 2^53
BITS = (16, 28, 30)  # of the whole numbers that factors are stored as
MOST_RANK = 128


class Prediction(Protocol):
    """A rule from one tensor to another, and back."""

    @property
    def ends(self) -> tuple[DType, DType]:
        """The type before and after."""
        ...

    def predict(self, words: Array, start: int, *, back: bool) -> tuple[Array, Array | None]:
        """The words at `start` as the rule has them, and where it is in doubt (bool, or None: everywhere)."""
        ...


def numbers(words: Array, dtype: DType) -> Array:
    """Words of a type of floats as float64."""
    return dtype.decode(words.view(dtype.stored), np.float64)


def rounded(values: Array, dtype: DType) -> Array:
    """Float64 as words of a type of floats, to nearest even."""
    return np.ascontiguousarray(dtype.rounded(values)).view(f"<u{width(dtype)}")


def step(words: Array, dtype: DType) -> Array:
    """How far each number is from the next larger one, float64."""
    size = words & np.asarray((1 << (dtype.bits - 1)) - 1, words.dtype)
    with np.errstate(invalid="ignore"):
        return numbers(size + np.asarray(1, words.dtype), dtype) - numbers(size, dtype)


def in_doubt(values: Array, found: Array, before: Array, dtype: DType) -> Array:
    """Where rounding `values` to `found` may have gone the other way, or lost what `before` does not say. Bool."""
    with np.errstate(invalid="ignore"):
        own = step(found, dtype)
        far: Array = np.abs(values - numbers(found, dtype)) > NEAR * own
        return far | (own < step(before, dtype))


@dataclass(frozen=True)
class Scale:
    """Every number times a factor."""

    dtype: DType
    factor: float

    @property
    def ends(self) -> tuple[DType, DType]:
        """The type, which stays."""
        return self.dtype, self.dtype

    def predict(self, words: Array, start: int, *, back: bool) -> tuple[Array, Array | None]:
        """Multiplied, or divided."""
        del start
        with np.errstate(all="ignore"):
            before = numbers(words, self.dtype)
            values = before / self.factor if back else before * self.factor
            found = rounded(values, self.dtype)
        return found, in_doubt(values, found, words, self.dtype)


@dataclass(frozen=True)
class Cast:
    """Every number rounded to another type."""

    before: DType
    after: DType

    @property
    def ends(self) -> tuple[DType, DType]:
        """The two types."""
        return self.before, self.after

    def predict(self, words: Array, start: int, *, back: bool) -> tuple[Array, Array | None]:
        """Rounded; on the way back widened, where what was cut off is all in the remainder."""
        del start
        source, to = self.ends[::-1] if back else self.ends
        with np.errstate(all="ignore"):
            return rounded(numbers(words, source), to), None


@dataclass(frozen=True, eq=False)
class LowRank:
    """A product of two factors added: [rows, row] + left [rows, r] · right [r, row] · 2^exponent.

    The factors are whole numbers, int64, of `bits` bits with their sign.
    """

    dtype: DType
    left: Array
    right: Array
    exponent: int
    bits: int

    @property
    def ends(self) -> tuple[DType, DType]:
        """The type, which stays."""
        return self.dtype, self.dtype

    def change(self, first: int, last: int) -> Array:
        """The product for some rows, float64 [rows, row]: exact, but for one rounding of its two halves' sum."""
        left = self.left[first:last].astype(np.float64)
        if self.bits <= BITS[0]:
            total = left @ self.right.astype(np.float64)
        else:
            high = self.right >> HALF
            low = self.right - (high << HALF)
            total = (left @ high.astype(np.float64)) * (1 << HALF) + left @ low.astype(np.float64)
        return np.ldexp(total, self.exponent)

    def predict(self, words: Array, start: int, *, back: bool) -> tuple[Array, Array | None]:
        """The change added, or taken away."""
        row = self.right.shape[1]
        first, last = start // row, -(-(start + len(words)) // row)
        change = self.change(first, last).reshape(-1)[start - first * row :][: len(words)]
        with np.errstate(all="ignore"):
            before = numbers(words, self.dtype)
            values = before - change if back else before + change
            found = rounded(values, self.dtype)
        return found, in_doubt(values, found, words, self.dtype)


def whole_factors(left: Array, right: Array, bits: int) -> tuple[Array, Array, int]:
    """Float64 factors as whole numbers of so many bits, and the exponent of their product."""
    parts, exponent = [], 0
    for factor in (left, right):
        largest = float(np.abs(factor).max(initial=0.0))
        power = bits - 1 - math.frexp(largest)[1]  # the largest is just under 2^(bits - 1)
        parts.append(np.rint(np.ldexp(factor, power)).astype(np.int64))
        exponent -= power
    limit = (1 << (bits - 1)) - 1
    return np.clip(parts[0], -limit, limit), np.clip(parts[1], -limit, limit), exponent
