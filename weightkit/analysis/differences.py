"""Differences: what two weights of one shape differ by, summed line by line in one pass over both."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from weightkit import kernels
from weightkit.dtypes import Array, DType
from weightkit.tensor import give_back, rows_on_map
from weightkit.weight import Selection, Weight

FEW = 1 << 18  # pairs that numpy compares sooner than a compiler is loaded
CHUNK = 1 << 24  # bytes of each side that are compared before their pages are given back
FIELDS = ("aa", "bb", "ab", "dd", "largest", "differ", "steps", "steps_sum", "bad")  # in the order of the compiled loop
LARGEST = (4, 6)  # of these the largest counts, of the others the sum


@dataclass(frozen=True)
class Differences:
    """Numbers of each line of two matrices a and b, over pairs that are both finite. [lines] each

    A line is a row of the matrix (`axis` 0), or a column where the file has columns one after another (`axis` 1).
    Vectors are one line; of arrays with more axes a line is all of one index of the first.
    """

    axis: int
    table: Array  # float64 [lines, 9]

    places: ClassVar[dict[str, int]] = {name: i for i, name in enumerate(FIELDS)}

    @property
    def aa(self) -> Array:
        """Σ a²."""
        return self.table[:, 0]

    @property
    def bb(self) -> Array:
        """Σ b²."""
        return self.table[:, 1]

    @property
    def ab(self) -> Array:
        """Σ a b."""
        return self.table[:, 2]

    @property
    def dd(self) -> Array:
        """Σ (b - a)²."""
        return self.table[:, 3]

    @property
    def differ(self) -> Array:
        """Pairs whose bits, or across types whose values, differ."""
        return self.table[:, 5]

    def total(self, name: str) -> float:
        """A field over all lines."""
        column = self.table[:, self.places[name]]
        return float(column.max(initial=0.0) if self.places[name] in LARGEST else column.sum())

    @classmethod
    def of(cls, a: Weight, b: Weight) -> Differences:
        """Compare two weights of one shape."""
        pair = _on_maps(a, b) if a.size >= FEW and kernels.available() else None
        return cls._compiled(a, b, *pair) if pair else cls._numpy(a, b)

    @classmethod
    def _compiled(cls, a: Weight, b: Weight, x: Array, y: Array) -> Differences:
        from weightkit.compiled.differences import KEPT

        kinds = f"{a.dtype.name},{b.dtype.name}"
        x, y = (m[None] if m.ndim == 2 else m for m in (x, y))  # [runs, rows, row]
        table = np.empty((x.shape[0] * x.shape[1], KEPT))
        step = max(1, CHUNK // (x.shape[2] * max(x.itemsize, y.itemsize)))
        for run in range(len(x)):
            for first in range(0, x.shape[1], step):
                u, v = x[run, first : first + step], y[run, first : first + step]
                start = run * x.shape[1] + first
                _lines(kinds, u, v, table[start : start + len(u)])
                give_back(a.stored, u)
                give_back(b.stored, v)
        return cls(int(a.layout.transposed), table)

    @classmethod
    def _numpy(cls, a: Weight, b: Weight) -> Differences:
        axis = int(a.layout.transposed and len(a.shape) == 2)
        flat = len(a.shape) < 2
        table = np.zeros((1 if flat else a.shape[axis], len(FIELDS)))
        for region, x in Selection.of(a).blocks():
            y = b.read(region)
            x, y = (_as_lines(block, axis, flat) for block in (x, y))
            here = slice(0, 1) if flat else slice(region[axis].start, region[axis].stop)
            found = lines(x, y, a.dtype, b.dtype)
            for k in range(len(FIELDS)):
                old = table[here, k]
                table[here, k] = np.maximum(old, found[:, k]) if k in LARGEST else old + found[:, k]
        return cls(axis, table)


def _on_maps(a: Weight, b: Weight) -> tuple[Array, Array] | None:
    """Both on the map as rows for the compiled loop, [rows, row] or [runs, rows, row]; None where they are not."""
    from weightkit.compiled.differences import TYPES

    same = a.layout.transposed == b.layout.transposed and len(a.shape) == 2
    if not same or a.dtype.name not in TYPES or b.dtype.name not in TYPES:
        return None
    found = []
    for weight in (a, b):
        array = rows_on_map(weight.stored)
        if array is None:
            return None
        rows = weight.layout.runs(array)
        if rows.strides[-1] != rows.itemsize or min(rows.strides) < 0:
            return None
        found.append(rows)
    return (found[0], found[1]) if found[0].shape == found[1].shape else None


def _lines(kinds: str, x: Array, y: Array, out: Array) -> None:
    """The compiled loop over the lines of two matrices [lines, n]."""
    from weightkit.compiled import direct

    numbers = (0, 0, 0, x.ctypes.data, x.strides[0], y.ctypes.data, y.strides[0], x.shape[1], out.ctypes.data)
    direct("differences", kinds)((ctypes.c_int64 * len(numbers))(*numbers), 0, len(x))


def _as_lines(block: Array, axis: int, flat: bool) -> Array:
    """A block as lines, [lines, n]."""
    turned = block.T if axis else block
    return np.ascontiguousarray(turned).reshape(1 if flat else len(turned), -1)


def lines(x: Array, y: Array, one: DType, other: DType) -> Array:  # [lines, n] of stored elements -> [lines, 9]
    """What the compiled loop finds of some lines, in numpy."""
    a, b = one.decode(x, np.float64), other.decode(y, np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if one == other:
        differ = bits(x) != bits(y)
        steps = np.where(finite, distance(x, y, one), 0).astype(np.float64)
    else:
        differ = (a != b) & ~(np.isnan(a) & np.isnan(b))
        steps = np.zeros(a.shape)
    if not finite.all():
        a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):  # sums beyond float64 are inf
        d = b - a
        sums = [np.einsum("ij,ij->i", u, v) for u, v in ((a, a), (b, b), (a, b), (d, d))]
    ends = [
        np.abs(d).max(axis=1, initial=0),
        differ.sum(1),
        steps.max(axis=1, initial=0),
        steps.sum(1),
        (~finite).sum(1),
    ]
    return np.stack([*sums, *ends], axis=1)


def bits(stored: Array) -> Array:
    """Stored elements as unsigned integers."""
    return np.ascontiguousarray(stored).view(f"u{stored.itemsize}") if stored.dtype.kind != "c" else stored


def distance(x: Array, y: Array, dtype: DType) -> Array:
    """How many numbers of a type lie from one to the other of pairs: 1 for neighbours. 0 and -0 are one number."""
    if dtype.kind != "float":
        with np.errstate(over="ignore"):
            return np.abs(dtype.decode(y, np.float64) - dtype.decode(x, np.float64))
    width = 8 * x.itemsize if dtype.bits >= 8 and dtype.block == 1 else 32 if dtype.block > 1 else dtype.bits
    keys = []
    for stored in (x, y):
        wide = bits(stored).astype(np.int64)
        sign = np.int64(1) << (width - 1) if width < 64 else np.int64(-(2**63))
        magnitude = wide & ~sign
        keys.append(np.where(wide & sign, -magnitude, magnitude).astype(np.float64))
    return np.abs(keys[1] - keys[0])
