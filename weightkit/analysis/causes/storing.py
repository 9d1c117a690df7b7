"""Causes that are ways of storing the same numbers: cast, quantised."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from weightkit.analysis.causes.evidence import MANTISSA, MOST, Evidence, Found, Sample, rounded, storage
from weightkit.dtypes import Array
from weightkit.packing.packed import Packed

GROUPS = (0, 1024, 512, 256, 128, 64, 32, 16)  # numbers that share a scale; 0 for a whole row; the largest that fits
BITS = (2, 3, 4, 5, 6, 8)  # the fewest that fit: more bits have the levels of fewer among theirs
NF4 = (
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip
FEW = 4  # numbers that changed: fewer may be rounded by chance
ROWS, FIRST = 32, 2  # that are held against a grid; and before these, so that most grids cost little


def packed(evidence: Evidence) -> Found | None:
    """A type that is packed says itself what was done."""
    b = evidence.b
    if isinstance(b.stored, Packed) and not isinstance(evidence.a.stored, Packed):
        return {"kind": "quantised", "grid": type(b.stored).__name__.lower(), "type": b.stored.dtype.name}
    if b.dtype.block > 1 and evidence.a.dtype != b.dtype:
        return {"kind": "quantised", "grid": b.dtype.name, "group": b.dtype.block}
    return None


def cast(evidence: Evidence) -> Found | None:
    """Rounded to a type: the one that b is stored in, or a coarser one and back; exact where it has all of a."""
    sums, sample = evidence.sums, evidence.sample
    if not sums.total("differ"):
        return {"kind": "cast", "to": evidence.b.dtype.name, "exact": True}
    if sample.changed.sum() < FEW:
        return None
    before = storage(evidence.a.dtype, sample.x)
    if sample.storage.name not in MANTISSA or MANTISSA[sample.storage.name] >= MANTISSA.get(before.name, 99):
        return None
    expected = rounded(sample.x, sample.storage)
    if not np.array_equal(expected, sample.y, equal_nan=True):
        return None
    return {"kind": "cast", "to": sample.storage.name, "exact": False}


def quantised(evidence: Evidence) -> Found | None:
    """Numbers of b that lie on a grid, each group of a row with a scale of its own, nearest to those of a."""
    sample = evidence.sample
    if not np.array_equal(sample.columns, np.arange(sample.columns.size)) or len(evidence.a.shape) != 2:
        return None
    x, y = sample.x[:ROWS], sample.y[:ROWS]
    if not np.isfinite(y).all() or sample.columns.size < min(g for g in GROUPS if g):
        return None
    for grid, levels, zero_point in _grids():
        for group in GROUPS:
            size = group or y.shape[1]
            if size > y.shape[1] or (group == 0 and y.shape[1] != evidence.matrix[1]):
                continue
            few = _fits(x[:FIRST], y[:FIRST], sample, levels, zero_point, size)
            if few and _fits(x, y, sample, levels, zero_point, size):
                named = {"group": size} if group and size != evidence.matrix[1] else {"group": "row"}
                return {"kind": "quantised", "grid": grid, **_shared(named, y)}
    return None


def _shared(named: Found, y: Array) -> Found:
    """Whether one scale serves all rows."""
    if named["group"] != "row" or len(y) < 2:
        return named
    largest = np.abs(y).max(axis=1)
    return {"group": "tensor"} if (largest == largest[0]).all() else named


def _grids() -> Iterator[tuple[str, Array, bool]]:
    """Names and levels of grids over what is largest in a group; those with a zero point begin at its smallest."""
    for bits in BITS:
        top = (1 << bits - 1) - 1
        yield f"int{bits}", np.arange(-top, top + 1) / top, False
        yield f"int{bits}, from the largest", np.arange(-top - 1, top + 1) / (top + 1), False
        yield f"int{bits} with zero point", np.arange(1 << bits) / ((1 << bits) - 1), True
        if bits == 4:
            yield "nf4", np.array(NF4), False


def _fits(x: Array, y: Array, sample: Sample, levels: Array, zero_point: bool, size: int) -> bool:
    """Whether numbers are levels of a grid to their rounding, and such as those of a are nearest to.

    The levels near 0 alone are held against it: with few mantissa bits, rounding blurs those far from it.
    """
    cut = y.shape[1] // size * size
    groups, before = (m[:, :cut].reshape(-1, size) for m in (y, x))
    half = sample.half[: len(y), :cut].reshape(-1, size)
    low, scale = _scale(groups, levels, zero_point)
    good = scale[:, 0] != 0
    if not good.any():
        return False
    groups, before, half, low, scale = groups[good], before[good], half[good], low[good], scale[good]
    wanted = (groups - low) / scale
    step = np.diff(levels).max()
    places = np.searchsorted((levels[1:] + levels[:-1]) / 2, wanted)
    nearest = levels[places]
    size_of = np.abs(scale)
    blur = (2 * half + np.abs(groups) * 2.0**-22) / size_of + np.abs(nearest) * _blur(sample)
    clear = blur < np.diff(levels).min() / 4
    if clear.mean() < 0.1 or np.unique(places).size < 3:
        return False
    fits = np.abs(wanted - nearest) <= blur
    far = np.abs(before - groups) <= step * size_of * 1.01 + half
    return bool(fits[clear].mean() >= MOST and far.mean() >= MOST)


def _blur(sample: Sample) -> float:
    """The relative error of a scale that is itself read from a rounded number."""
    return 2.0 ** -(MANTISSA.get(sample.storage.name, 23) + 1)


def _scale(groups: Array, levels: Array, zero_point: bool) -> tuple[Array, Array]:
    """Where the grid of each group begins, and its scale. [groups, 1] both"""
    if zero_point:
        low = groups.min(axis=1, keepdims=True)
        return low, groups.max(axis=1, keepdims=True) - low
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)
    if levels[0] == -levels[-1]:
        return np.zeros_like(largest), np.abs(largest)
    return np.zeros_like(largest), -largest  # the lowest level is the largest number, of either sign
