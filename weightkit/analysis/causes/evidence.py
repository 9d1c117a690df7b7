"""Evidence: what the tests of causes look at: sums line by line, and a sample of the two matrices."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightkit.address import AXES
from weightkit.analysis.differences import Differences
from weightkit.dtypes import DTYPES, Array, DType
from weightkit.errors import EditError
from weightkit.tensor import rows_on_map
from weightkit.weight import Weight

ROWS, COLUMNS = 512, 2048  # of a sample: 8 MB as float64, and ranks up to 256 can be told
ACROSS = 1 << 20  # numbers of the lines that are looked at from end to end
MANTISSA = {"F64": 52, "F32": 23, "F16": 10, "BF16": 7, "F8_E4M3": 3, "F8_E5M2": 2}
SMALLEST = {"F64": -1022, "F32": -126, "F16": -14, "BF16": -126, "F8_E4M3": -6, "F8_E5M2": -14}  # normal: 2 to this
COARSER = ("F8_E5M2", "F8_E4M3", "BF16", "F16", "F32")  # types that numbers may have been rounded to, coarsest first
MOST = 0.99  # of changed numbers that a cause must explain: what is left is a tie that was rounded the other way

Found = dict[str, Any]  # a cause: its kind, and the evidence


@dataclass
class Evidence:
    """Two weights of one shape that differ, and what has been read of them."""

    a: Weight
    b: Weight
    sums: Differences

    @property
    def size(self) -> int:
        """Numbers of each."""
        return self.a.size

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns; a vector is one row, an array of more axes has all but the first in a row."""
        shape = self.a.shape
        return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))

    @functools.cached_property
    def active(self) -> Array:
        """The lines in which something differs."""
        return np.flatnonzero(self.sums.differ)

    @property
    def along(self) -> int:
        """Numbers in a line."""
        rows, columns = self.matrix
        return rows if self.sums.axis else columns

    @functools.cached_property
    def sample(self) -> Sample:
        """Rows and columns spread over the lines that differ."""
        rows, columns = self.matrix
        lines = _spread(self.active, COLUMNS if self.sums.axis else ROWS)
        if self.sums.axis:
            places = _spread(np.arange(rows), ROWS), lines
        else:
            places = lines, np.arange(min(columns, COLUMNS))
        x, y = (_read(weight, *places) for weight in (self.a, self.b))
        return Sample(x, y, *places, storage(self.b.dtype, y))

    @functools.cached_property
    def across(self) -> Sample:
        """A few lines that differ, from end to end, as rows."""
        lines = _spread(self.active, max(4, min(64, ACROSS // max(1, self.along))))
        x, y = (self.read(weight, lines) for weight in (self.a, self.b))
        return Sample(x, y, lines, np.arange(self.along), storage(self.b.dtype, y))

    def read(self, weight: Weight, lines: Array) -> Array:  # -> float64 [lines, along]
        """Some lines of a weight from end to end, as rows."""
        everything = np.arange(self.along)
        return _read(weight, everything, lines).T if self.sums.axis else _read(weight, lines, everything)

    def named(self, axis: int, items: Array) -> Found:
        """Indices along an axis of the matrix as the things that they are: heads, neurons, tokens, or rows, columns."""
        axes = self.a.axes
        place = axis if len(axes) > 1 else 0
        known = axes[place] if place < len(axes) and len(axes) < 3 else None
        plain = "row" if axis == 0 else "column"
        if known is None:
            return {"axis": plain, "items": items.tolist()}
        wide = np.unique(items // known.width)
        if known.width > 1 and wide.size * known.width == items.size:
            return {"axis": known.name, "items": wide.tolist()}
        named = known.name if known.width == 1 and known.name in AXES else plain
        return {"axis": named, "items": items.tolist()}

    def moved(self, axis: int, order: Array) -> Found:
        """A permutation along an axis, of heads where these move as a whole."""
        found = self.named(axis, np.arange(order.size))
        width = order.size // max(1, len(found["items"]))
        blocks = order.reshape(-1, width)
        if (blocks == blocks[:, :1] + np.arange(width)).all() and not (blocks[:, 0] % width).any():
            return {"axis": found["axis"], "permutation": (blocks[:, 0] // width).tolist()}
        return {"axis": "row" if axis == 0 else "column", "permutation": order.tolist()}


@dataclass
class Sample:
    """A part of two matrices as float64: [rows, columns]."""

    x: Array
    y: Array
    rows: Array  # which rows these are
    columns: Array
    storage: DType  # the type that the numbers of b were rounded to, which may be stored in a wider one

    @functools.cached_property
    def d(self) -> Array:
        """y - x; NaN and Inf count as no change."""
        with np.errstate(invalid="ignore"):
            d = self.y - self.x
        return np.where(np.isfinite(d), d, 0.0)

    @functools.cached_property
    def changed(self) -> Array:
        """Where the two differ."""
        return self.d != 0

    @functools.cached_property
    def half(self) -> Array:
        """How far rounding to the type of b may have moved each number of b."""
        return spacing(self.y, self.storage.name) / 2

    @functools.cached_property
    def sound(self) -> Sample:
        """The rows that are finite in both; a hole of one number would be a dimension of its own."""
        good = np.isfinite(self.x).all(axis=1) & np.isfinite(self.y).all(axis=1)
        if good.all():
            return self
        return Sample(self.x[good], self.y[good], self.rows[good], self.columns, self.storage)

    def explains(self, expected: Array, slack: float = 1.5) -> bool:
        """Whether b is what was expected, rounded: nearly all that changed, and all that did not.

        The slack is for factors that are estimated, and for a float32 between; chance would need one more
        spacing, twice a half, to be wrong.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            near = np.abs(self.y - expected) <= slack * self.half + 2.0**-22 * np.abs(expected)
        near |= ~np.isfinite(self.y)
        return bool(self.changed.any() and near[self.changed].mean() >= MOST and near.mean() >= MOST)


def spacing(values: Array, name: str) -> Array:
    """The distance of neighbours in a type at some values."""
    mantissa, smallest = MANTISSA.get(name, 23), SMALLEST.get(name, -126)
    exponent = np.frexp(np.where(np.isfinite(values), values, 1.0))[1] - 1
    return np.ldexp(1.0, np.maximum(exponent, smallest) - mantissa)


def storage(dtype: DType, y: Array) -> DType:
    """The coarsest type that has all of some numbers: theirs, or the one they had before they were widened."""
    few = y[: 1 + (1 << 14) // max(1, y.shape[1])]
    for name in COARSER:
        kind = DTYPES[name]
        if MANTISSA[name] >= MANTISSA.get(dtype.name, 99):
            continue
        if np.array_equal(rounded(few, kind), few, equal_nan=True) and np.array_equal(
            rounded(y, kind), y, equal_nan=True
        ):
            return kind
    return dtype


def rounded(values: Array, dtype: DType) -> Array:
    """Numbers as a type has them; NaN where it has none so large."""
    try:
        return dtype.decode(dtype.encode(values), np.float64)
    except EditError:
        return np.full(values.shape, np.nan)


def _spread(items: Array, most: int) -> Array:
    """Some of many, evenly spread; without a step that a period of the matrix could share, as it is no whole number."""
    if items.size <= most:
        return items
    return items[np.linspace(0, items.size - 1, most).astype(np.int64)]


def _read(weight: Weight, rows: Array, columns: Array) -> Array:  # -> float64 [rows, columns]
    """Some rows and columns of a weight, from the map where it is on one."""
    layout = weight.layout
    if len(weight.shape) != 2:
        stored = _whole(weight).reshape(1 if len(weight.shape) < 2 else weight.shape[0], -1)
    elif layout.repeats > 1 or rows_on_map(weight.stored) is None or weight.dtype.packed:
        return _read_rows(weight, rows, columns)
    else:
        stored = layout.view(weight.stored.mapped())
    return weight.dtype.decode(np.ascontiguousarray(stored[np.ix_(rows, columns)]), np.float64)


def _whole(weight: Weight) -> Array:
    region = tuple(slice(0, n, 1) for n in weight.shape)
    return weight.read(region)


def _read_rows(weight: Weight, rows: Array, columns: Array) -> Array:
    """The same where the numbers have to be unpacked: block by block, keeping what is wanted."""
    found = np.empty((rows.size, columns.size))
    for region in weight.tiles():
        across, along = (
            np.flatnonzero((wanted >= part.start) & (wanted < part.stop))
            for wanted, part in zip((rows, columns), region, strict=True)
        )
        if across.size and along.size:
            block = weight.read(region)[np.ix_(rows[across] - region[0].start, columns[along] - region[1].start)]
            found[np.ix_(across, along)] = weight.dtype.decode(block, np.float64)
    return found


def short(value: float, error: float) -> float:
    """The number with the fewest digits that is as near as an estimate can tell."""
    for digits in range(1, 12):
        near = float(f"{value:.{digits}g}")
        if abs(near - value) <= error:
            return near
    return value
