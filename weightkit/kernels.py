"""The few inner loops over numbers that several rooms share: moments, and the compiled loops of the engine."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightkit.dtypes import Array
from weightkit.threads import crew, desk


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and central moments of finite numbers; adds up over blocks.

    Source: Pébay, "Formulas for robust, one-pass parallel computation of covariances and
    arbitrary-order statistical moments", Sandia report SAND2008-6212, equations 2.1 and 3.1.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0  # sum of (x - mean)²
    m3: float = 0.0
    m4: float = 0.0

    @classmethod
    def of(cls, values: Array, weights: Array | None = None) -> Moments:
        """The moments of an array's finite values; `weights` counts how often each occurs."""
        finite = np.isfinite(values)
        if not finite.all():
            values, weights = values[finite], None if weights is None else weights[finite]
        exact = np.longdouble if weights is not None else np.float64  # few values, each many times
        x = values.astype(exact, copy=False).ravel()
        w: Array = np.ones(1, exact) if weights is None else weights.astype(exact)
        count = x.size if weights is None else int(weights.sum())
        if not count:
            return cls()
        if x.min() == x.max():  # exactly constant, which a rounded mean would hide
            return cls(count, float(x[0]))
        with np.errstate(over="ignore", invalid="ignore"):  # sums beyond float64 are inf
            mean = np.sum(w * x) / count
            d = x - mean
            d2 = d * d
            sums = [float(np.sum(w * power)) for power in (d2, d2 * d, d2 * d2)]
        return cls(count, float(mean), *sums)

    def __add__(self, other: Moments) -> Moments:
        n = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        a, b, d = self.count, other.count, other.mean - self.mean
        return Moments(
            n,
            self.mean + d * b / n,
            self.m2 + other.m2 + d * d * a * b / n,
            self.m3 + other.m3 + d * d * d * (a * b * (a - b) / n**2) + 3 * d * (a * other.m2 - b * self.m2) / n,
            self.m4
            + other.m4
            + d * d * d * d * (a * b * (a * a - a * b + b * b) / n**3)
            + 6 * d * d * (a * a * other.m2 + b * b * self.m2) / n**2
            + 4 * d * (a * other.m3 - b * self.m3) / n,
        )

    @property
    def std(self) -> float:
        """The population standard deviation; NaN of nothing."""
        return math.sqrt(self.m2 / self.count) if self.count else math.nan

    @property
    def skewness(self) -> float:
        """The third standardised moment; NaN where all numbers are equal."""
        return math.sqrt(self.count) * self.m3 / (self.m2 * math.sqrt(self.m2)) if self.m2 > 0 else math.nan

    @property
    def kurtosis(self) -> float:
        """The fourth standardised moment less 3 (excess); NaN where all numbers are equal."""
        return self.count * self.m4 / (self.m2 * self.m2) - 3 if self.m2 > 0 else math.nan


# ── compiled loops over stored weights ─────────────────────────────────────────────────────────────────

PART_BYTES = 1 << 15  # of weights that a thread takes at a time


@functools.cache
def available() -> bool:
    """Whether there are compiled loops: not without llvmlite, nor where WEIGHTKIT_KERNELS is numpy."""
    if os.environ.get("WEIGHTKIT_KERNELS") == "numpy" or sys.byteorder != "little":
        return False
    try:
        desk()
    except (ImportError, OSError, RuntimeError):  # or on a machine that LLVM does not know
        return False
    return True


@functools.cache
def _kernel(form: str, kind: str) -> int:
    from weightkit.compiled import kernel

    return kernel(form, kind)


@functools.cache
def _bits(number: float) -> int:
    """A float32, as the arguments of a job have it."""
    return int(np.float32(number).view(np.int32))


def _do(form: str, kind: str, total: int, step: int, *arguments: int) -> None:
    """A job whose parts are `step` of the total each."""
    crew.run([[_kernel(form, kind), step, total, *arguments]], -(-total // step))


def _address(array: Array) -> int:
    """Where the numbers of an array are; for one that can be written the short way, a third of the long one."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]  # it is a buffer
    except (TypeError, ValueError):  # not writeable, in steps, or empty
        return int(array.ctypes.data)


class Matrix:
    """Rows of stored weights where they lie in memory, for the compiled loops.

    `stored` is [rows, row], a row being stored elements, or bytes for a type with blocks; or [runs, rows of a
    run, row], for the runs of rows of a fused tensor. Transposed, a row goes along `out`.

    Raises ValueError where no loop can read it.
    """

    def __init__(self, kind: str, stored: Array, *, transposed: bool = False) -> None:
        from weightkit.compiled import direct, kernel
        from weightkit.compiled.numbers import BLOCKS

        runs, rows, row = (1, *stored.shape) if stored.ndim == 2 else stored.shape
        if kind not in BLOCKS or not stored.size or stored.strides[-1] != stored.itemsize or min(stored.strides) < 0:
            raise ValueError(f"rows of {kind} in steps of {stored.strides} bytes are not for the compiled loops")
        self._numbers, self._bytes = BLOCKS[kind]
        if transposed and (runs > 1 or self._numbers > 1):
            raise ValueError("a transposed matrix is one run of rows of single numbers")
        self._stored = stored  # which keeps the memory
        self._is_view = stored.ndim == 2 and stored.dtype == np.dtype("<f4") and stored.flags.aligned
        self._row = row * stored.itemsize // self._bytes * self._numbers
        self.transposed = transposed
        self.shape = (self._row, rows) if transposed else (runs * rows, self._row)  # [out, in]
        self._rows = (stored.strides[-2], rows, stored.strides[0])
        self._address = _address(stored)
        self._kernel = kernel("columns" if transposed else "dots", kind)
        self._widen = direct("wide", kind)
        out = self.shape[0]
        self._step = max(64, -(-out // 1024) * 64) if transposed else max(1, PART_BYTES // (row * stored.itemsize))
        self.parts = -(-out // self._step)

    def linear(self, x: Array) -> Array:  # [r, in] -> [r, out]
        """x Wᵀ for few rows of float32."""
        return multiply(x, [self])[0]

    def product(self, x_at: tuple[int, int, int, int], y: Array) -> list[Any]:
        """The arguments of x Wᵀ into y; x is an address, bytes from row to row, rows and numbers of a row."""
        out = self.shape[0]
        return [self._kernel, self._step, out, *x_at, self._address, *self._rows, _address(y), 4 * out]

    def new(self, rows: int) -> Array:
        """Where a product of so many rows goes, [rows, out]."""
        return (np.zeros if self.transposed else np.empty)((rows, self.shape[0]), np.float32)

    def widened(self, first: int, last: int) -> Array:  # -> [last - first, in]
        """Some rows of W as float32, by this thread alone; a view where they are float32."""
        if self._is_view:
            return self._stored[:, first:last].T if self.transposed else self._stored[first:last]
        if self.transposed:
            y = np.empty((self.shape[1], last - first), np.float32)
            address, start, stop = self._address + first * self._bytes, 0, len(y)
        else:
            y = np.empty((last - first, self._row), np.float32)
            address, start, stop = self._address, first, last
        step = 4 * y.shape[1]
        job = (0, 0, 0, 0, 0, 0, y.shape[1], address, *self._rows, _address(y) - start * step, step)
        self._widen((ctypes.c_int64 * len(job))(*job), start, stop)
        return y.T if self.transposed else y


def multiply(x: Array, matrices: Sequence[Matrix]) -> list[Array]:  # [r, in] -> [r, out] each
    """x Wᵀ for few rows of float32 and up to three matrices, as one job.

    What becomes of a row depends on no other, nor on the number of threads.
    """
    if x.dtype != np.float32 or not x.flags.c_contiguous:
        x = np.ascontiguousarray(x, np.float32)
    rows, width = x.shape
    x_at = (_address(x), 4 * width, rows, width)
    found = [matrix.new(rows) for matrix in matrices]
    products = [matrix.product(x_at, y) for matrix, y in zip(matrices, found, strict=True)]
    crew.run(products, sum(matrix.parts for matrix in matrices))
    return found


# ── what a block does between its matrices ─────────────────────────────────────────────────────────────

PART_NUMBERS = 1 << 14  # that a thread takes at a time


def _plain(x: Array) -> Array:
    """The array itself, or a copy whose numbers lie side by side."""
    return x if x.flags.c_contiguous else np.ascontiguousarray(x)


def norm(x: Array, w: Array, b: Array | None, eps: float) -> Array:  # [..., d], [d], [d] -> [..., d]
    """x / √(mean x² + eps) · w; with b, of x less its mean, and plus b. All are float32."""
    x, w = _plain(x), _plain(w)
    y, width = np.empty_like(x), x.shape[-1]
    shift = 0 if b is None else _address(b := _plain(b))
    step = max(1, PART_NUMBERS // width)
    to = (_address(x), width, _address(w), shift, _bits(eps), _address(y))
    _do("norm", "rms" if b is None else "layer", x.size // width, step, *to)
    return y


def activate(kind: str, x: Array, up: Array | None = None) -> Array:  # [...] -> [...]
    """An activation that is x · sigmoid of something ("silu", "gelu_tanh", "quick_gelu") of float32, times `up`."""
    x = _plain(x)
    y = np.empty_like(x)
    if up is None:
        _do("activate", kind, x.size, PART_NUMBERS, _address(x), 0, _address(y))
    else:
        up = _plain(up)
        _do("gate", kind, x.size, PART_NUMBERS, _address(x), _address(up), _address(y))
    return y


def softmax(x: Array) -> None:  # [..., n]
    """The softmax over the last axis of float32 that lie side by side, where they are; by this thread alone."""
    from weightkit.compiled import direct

    n = x.shape[-1]
    direct("softmax", "F32")((ctypes.c_int64 * 5)(0, 0, 0, _address(x), n), 0, x.size // n)


def turn(x: Array, cos: Array, sin: Array, *, interleaved: bool) -> Array:  # [b, heads, t, d], [t, half] twice
    """Pairs of the first dimensions of each head turned, as positions.rotate does; those of a head lie together."""
    y = np.empty(x.shape, np.float32)
    batch, heads, tokens, d = x.shape
    strides, half = x.strides[:3], cos.shape[1]
    to = (_address(x), heads, *strides, tokens, d, _address(cos), _address(sin), half, _address(y))
    _do("turn", "pairs" if interleaved else "halves", batch * heads, max(1, PART_NUMBERS // (tokens * d)), *to)
    return y


@dataclass(frozen=True, slots=True)
class Place:
    """Where a token is among those before it: it sees from `start` to itself, and turns by these angles, [1, half]."""

    at: int
    start: int
    turn: tuple[Array, Array] | None = None
    interleaved: bool = False


def attend(new: Sequence[Array], kept: tuple[Array, Array], scale: float, place: Place) -> Array:  # -> [b, heads · e]
    """Attention of one token in each of b sequences, whose key and value join those that are kept.

    `new` are queries [b, heads, 1, d], keys [b, kv_heads, 1, d] and values [b, kv_heads, 1, e], not turned yet;
    `kept` have room for them, [b, kv_heads, room, d] and [b, kv_heads, room, e]. All are float32.
    """
    q, k, v = map(_plain, new)
    keys, values = kept
    (batch, heads, _, d), (kv_heads, room, e) = q.shape, values.shape[1:]
    turn = (0, 0, 0) if place.turn is None else (*map(_address, place.turn), place.turn[0].shape[1])
    scratch = np.empty((batch * kv_heads, d + place.at + 1 - place.start), np.float32)
    y = np.empty((batch, heads * e), np.float32)
    to = (
        *map(_address, (q, k, v)), *turn, _address(keys), 4 * room * d, _address(values), 4 * room * e, d, e,
        heads // kv_heads, place.start, place.at, _bits(scale), _address(scratch), scratch.strides[0], _address(y),
    )  # fmt: skip
    _do("attend", "pairs" if place.interleaved else "halves", batch * kv_heads, 1, *to)
    return y
