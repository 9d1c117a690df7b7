"""Diff: two models, weight by weight, by address where both have them and by name where not."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from weightkit.dtypes import Array
from weightkit.parallel import Progress, in_order
from weightkit.registry import Registry
from weightkit.tensor import Source, place_of
from weightkit.threads import one_blas_thread
from weightkit.weight import Selection, Weight, same_in

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import pandas as pd


@dataclass(frozen=True)
class Changed:
    """One weight that differs. A number that does not exist (shapes differ, a norm is 0) is NaN."""

    address: str
    name: str
    l2: float  # norm of b - a
    relative_l2: float  # that, over the norm of a
    max_abs: float  # the largest |b - a|
    cosine: float  # of the angle between a and b
    changed_fraction: float  # of elements whose bits, or across types whose values, differ
    dtypes: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    cause: dict[str, Any] | None = None


@dataclass(frozen=True)
class Diff:
    """What differs between two models."""

    changed: list[Changed]
    only_a: list[str]
    only_b: list[str]
    unchanged: int
    config: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # {field: (a, b)}

    @property
    def identical(self) -> bool:
        """Whether the models have the same weights and compute the same with them."""
        return not (self.changed or self.only_a or self.only_b or self.config)

    def frame(self) -> pd.DataFrame:
        """One row per changed weight."""
        import pandas as pd

        return pd.DataFrame(self.changed, columns=list(Changed.__dataclass_fields__))


def diff(a: Registry, b: Registry, *, executor: Executor | None = None, progress: Progress | None = None) -> Diff:
    """Compare two models. Numbers are over pairs of finite values; sums are in float64.

    BLAS has one thread all the while: what is computed does not depend on how many there are.
    """
    by_address = a.has_roles and b.has_roles
    mine, theirs = (dict(r) if by_address else r.by_name for r in (a, b))
    both = [k for k, w in mine.items() if k in theirs and not (w.alias and theirs[k].alias)]
    pairs = [(mine[k], theirs[k]) for k in both]
    with one_blas_thread():
        rows = list(in_order(_compare_pair, pairs, executor=executor, progress=progress))
    changed = [row for row in rows if row is not None]
    return Diff(
        changed=changed,
        only_a=[w.address for k, w in mine.items() if k not in theirs and not w.alias],
        only_b=[w.address for k, w in theirs.items() if k not in mine and not w.alias],
        unchanged=len(rows) - len(changed),
        config=a.config.differences(b.config) if a.config and b.config else {},
    )


def _compare_pair(pair: tuple[Weight, Weight]) -> Changed | None:
    return compare(*pair)


def compare(a: Weight, b: Weight) -> Changed | None:
    """The difference of two weights, or None where they are the same to the bit."""
    same_type = a.dtype == b.dtype
    if same_type and same_numbers(a, b):
        return None
    row = functools.partial(Changed, a.address, a.name, dtypes=(a.dtype.name, b.dtype.name), shapes=(a.shape, b.shape))
    if a.shape != b.shape:
        return row(l2=math.nan, relative_l2=math.nan, max_abs=math.nan, cosine=math.nan, changed_fraction=math.nan)
    sums = _Sums()
    for region, x in Selection.of(a).blocks():
        y = b.read(region)
        differ = _bits_differ(x, y) if same_type else None
        sums.add(a.dtype.decode(x, np.float64), b.dtype.decode(y, np.float64), differ)
    norm_a, norm_b, l2 = math.sqrt(sums.aa), math.sqrt(sums.bb), math.sqrt(sums.dd)
    return row(
        l2=l2,
        relative_l2=l2 / norm_a if norm_a else math.nan,
        max_abs=sums.largest,
        cosine=max(-1.0, min(1.0, sums.ab / norm_a / norm_b)) if norm_a and norm_b else math.nan,
        changed_fraction=sums.differ / max(1, a.size),
    )


def same_sample(a: Weight, b: Weight) -> bool:
    """Whether a few rows of two weights are the same to the bit, and say something: they are not all one number."""
    if not all(same_in(a, b, region) for region in a.spots()):
        return False
    return any((x != x.flat[0]).any() for x in map(a.read, a.spots()))


def same_numbers(a: Weight, b: Weight) -> bool:
    """Whether two weights have the same numbers: to the bit or, across types, in their values."""
    return a.shape == b.shape and (_same_place(a, b) or all(same_in(a, b, tile) for tile in a.tiles()))


def _same_place(a: Weight, b: Weight) -> bool:
    """Whether both are the same bytes of the same file."""
    x, y = a.source, b.source
    if x is None or y is None or a.layout != b.layout:
        return False
    where, there = place_of(x), place_of(y)
    if where is None or there is None:
        return x is y
    return where == there and x.shape == y.shape and (x.path == y.path or _same_file(x, y))


def _same_file(x: Source, y: Source) -> bool:
    try:
        return x.path.samefile(y.path)
    except OSError:
        return False


def _bits_differ(x: Array, y: Array) -> Array:
    bits = f"u{x.dtype.itemsize}"
    return np.asarray(np.ascontiguousarray(x).view(bits) != np.ascontiguousarray(y).view(bits))


@dataclass
class _Sums:
    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0
    dd: float = 0.0
    largest: float = 0.0
    differ: int = 0

    def add(self, x: Array, y: Array, differ: Array | None) -> None:
        if differ is None:
            differ = (x != y) & ~(np.isnan(x) & np.isnan(y))
        self.differ += int(differ.sum())
        finite = np.isfinite(x) & np.isfinite(y)
        if not finite.all():
            x, y = x[finite], y[finite]
        x, y = x.ravel(), y.ravel()
        with np.errstate(over="ignore", invalid="ignore"):  # sums beyond float64 are inf
            d = y - x
            self.aa += float(x @ x)
            self.bb += float(y @ y)
            self.ab += float(x @ y)
            self.dd += float(d @ d)
            self.largest = max(self.largest, float(np.abs(d).max(initial=0.0)))
