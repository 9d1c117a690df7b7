"""The few inner loops over numbers that several rooms share: standard deviations, and the loops of the engine."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightkit.dtypes import Array
from weightkit.threads import Job, crew, desk


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and squared distance from it of finite numbers; adds up over blocks.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
    Stanford report STAN-CS-79-773, 1979.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0  # sum of (x - mean)²

    @classmethod
    def of(cls, values: Array) -> Moments:
        """The moments of the finite values of a float64 array."""
        finite = np.isfinite(values)
        x = values.ravel() if finite.all() else values[finite]
        if not x.size:
            return cls()
        if x.min() == x.max():  # exactly constant, which a rounded mean would hide
            return cls(x.size, float(x[0]))
        with np.errstate(over="ignore", invalid="ignore"):  # sums beyond float64 are inf
            mean = np.sum(x) / x.size
            return cls(x.size, float(mean), float(np.sum(np.square(x - mean))))

    def __add__(self, other: Moments) -> Moments:
        n = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        d = other.mean - self.mean
        m2 = self.m2 + other.m2 + d * d * self.count * other.count / n
        return Moments(n, self.mean + d * other.count / n, m2)

    @property
    def std(self) -> float:
        """The population standard deviation; NaN of nothing."""
        return math.sqrt(self.m2 / self.count) if self.count else math.nan


# ── compiled loops over stored weights ─────────────────────────────────────────────────────────────────

PART_BYTES = 1 << 15  # of weights that a thread takes at a time
SCRATCH_BYTES = 16 << 20  # that a thread keeps
FEW = 24  # rows of x with which stored weights are multiplied as they are; for more it pays to widen them first


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
def tiled() -> bool:
    """Whether the compiled loops multiply many vectors sooner than BLAS does: with the registers of AVX and FMA.

    A kernel has more on its stack than Windows gives without being asked.
    """
    if not available() or sys.platform == "win32":
        return False
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return bool(features.get("avx2") and features.get("fma"))


@functools.cache
def _kernel(form: str, kind: str) -> int:
    from weightkit.compiled import kernel

    return kernel(form, kind)


def job(form: str, kind: str, total: int, step: int, *arguments: int) -> Job:
    """A job whose parts are `step` of the total each."""
    return Job(-(-total // step), [[_kernel(form, kind), step, total, *arguments]])


def address_of(array: Array) -> int:
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
        self._address = address_of(stored)
        self._kernel = kernel("columns" if transposed else "dots", kind)
        self._kind = kind
        self._widen = direct("wide", kind)
        out = self.shape[0]
        self._step = max(64, -(-out // 1024) * 64) if transposed else max(1, PART_BYTES // (row * stored.itemsize))
        self.parts = -(-out // self._step)

    def product(self, x_at: tuple[int, int, int, int], y: Array) -> list[Any]:
        """The arguments of x Wᵀ into y; x is an address, bytes from row to row, rows and numbers of a row."""
        return self._arguments(self._kernel, self._step, x_at, y)

    def tiles(self, x_at: tuple[int, int, int, int], y: Array) -> list[Any]:
        """The same of an x in panels."""
        from weightkit.compiled.tiles import PART

        return self._arguments(_kernel("tiles of columns" if self.transposed else "tiles", self._kind), PART, x_at, y)

    def _arguments(self, kernel: int, step: int, x_at: tuple[int, int, int, int], y: Array) -> list[Any]:
        out = self.shape[0]
        return [kernel, step, out, *x_at, self._address, *self._rows, address_of(y), 4 * out]

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
        arguments = (0, 0, 0, 0, 0, 0, y.shape[1], address, *self._rows, address_of(y) - start * step, step)
        self._widen((ctypes.c_int64 * len(arguments))(*arguments), start, stop)
        return y.T if self.transposed else y


def multiply(x: Array, matrices: Sequence[Matrix]) -> list[Array]:  # [r, in] -> [r, out] each
    """x Wᵀ for rows of float32 and up to three matrices, as one job. For more than FEW rows, only where `tiled`.

    What becomes of a row depends on no other but for their number, nor on the number of threads.
    """
    if x.dtype != np.float32 or not x.flags.c_contiguous:
        x = np.ascontiguousarray(x, np.float32)
    if len(x) > FEW:
        return _multiply_many(x, matrices)
    found = [matrix.new(len(x)) for matrix in matrices]
    crew.run(product(x, matrices, found))
    return found


class _Scratch(threading.local):
    """Room of a thread for numbers that are needed for a moment: fresh memory costs more than what it is used for."""

    kept: Array = np.empty(0, np.float32)

    def numbers(self, count: int) -> Array:
        """So many numbers, whatever they are; kept for the next time unless they are very many."""
        if count > self.kept.size:
            made = np.empty(count, np.float32)
            if made.nbytes > SCRATCH_BYTES:
                return made
            self.kept = made
        return self.kept


_scratch = _Scratch()


def _multiply_many(x: Array, matrices: Sequence[Matrix]) -> list[Array]:  # [r, in] -> [r, out] each
    from weightkit.compiled.tiles import PANEL, PART

    rows, width = x.shape
    count = -(-rows // PANEL)
    panels = _scratch.numbers(count * width * PANEL)
    crew.run(job("pack", "F32", count, 1, address_of(x), 4 * width, rows, width, address_of(panels)))
    found = [np.empty((rows, matrix.shape[0]), np.float32) for matrix in matrices]
    x_at = (address_of(panels), 0, rows, width)
    products = [matrix.tiles(x_at, y) for matrix, y in zip(matrices, found, strict=True)]
    crew.run(Job(sum(-(-matrix.shape[0] // PART) for matrix in matrices), products))
    return found


def product(x: Array, matrices: Sequence[Matrix], ys: Sequence[Array]) -> Job:  # [r, in] -> [r, out] each
    """The job that makes x Wᵀ of float32 side by side, and adds it to what is in y where W is transposed."""
    rows, width = x.shape
    x_at = (address_of(x), 4 * width, rows, width)
    products = [matrix.product(x_at, y) for matrix, y in zip(matrices, ys, strict=True)]
    return Job(sum(matrix.parts for matrix in matrices), products)
