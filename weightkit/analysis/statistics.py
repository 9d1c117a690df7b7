"""Statistics of weights, in blocks. A `Summary` adds up, so any split gives the same answer.

Types of 8 and 16 bits have at most 65,536 values: counting how often each occurs gives every statistic
exactly. Wider types are summed up in float64 block by block; their quantiles come from the counts of
the upper 16 bits of the number, and a second pass over the lower ones.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from weightkit.dtypes import DTYPES, Array, DType
from weightkit.kernels import Moments
from weightkit.weight import Selection

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
PATTERNS = 1 << 16


@dataclass(frozen=True)
class Statistics:
    """One row: a weight, or a part of one, in numbers. A number that does not exist is NaN."""

    address: str
    name: str
    role: str
    layer: int | None
    dtype: str
    shape: tuple[int, ...]
    count: int
    nan: int
    inf: int
    zeros: int
    mean: float  # over finite values, as are all that follow
    std: float  # of the population
    min: float
    max: float
    abs_max: float
    l2: float
    skewness: float
    kurtosis: float  # excess
    quantiles: dict[str, float]  # the value at rank floor(q · (n - 1)), as numpy's method "lower"
    exact: bool  # whether the quantiles are


@dataclass(frozen=True)
class Summary:
    """What is known of some numbers of one type; `a + b` is what is known of both together."""

    dtype: DType
    counts: Array = field(repr=False)  # of each bit pattern, or of the upper 16 bits of `_key`
    moments: Moments = field(default_factory=Moments)  # of wide types
    nan: int = 0
    inf: int = 0
    zeros: int = 0
    low: float = math.inf
    high: float = -math.inf
    single: bool = True  # every finite number is one that float32 has

    @classmethod
    def of(cls, dtype: DType, stored: Array) -> Summary:
        """The summary of one block of stored elements."""
        if dtype.patterns:
            bits = stored.reshape(-1).view(np.uint8 if stored.dtype.itemsize == 1 else np.uint16)
            return cls(dtype, np.bincount(bits, minlength=PATTERNS))
        values = dtype.decode(stored, np.float64).reshape(-1)
        nan, inf = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        if nan or inf:
            values = values[np.isfinite(values)]
        with np.errstate(over="ignore"):
            single = values.astype(np.float32)
        return cls(
            dtype,
            np.bincount(_key(single) >> np.uint32(16), minlength=PATTERNS),
            Moments.of(values),
            nan,
            inf,
            int((values == 0).sum()),
            float(values.min(initial=math.inf)),
            float(values.max(initial=-math.inf)),
            bool((single == values).all()),
        )

    def __add__(self, other: Summary) -> Summary:
        return Summary(
            self.dtype,
            self.counts + other.counts,
            self.moments + other.moments,
            self.nan + other.nan,
            self.inf + other.inf,
            self.zeros + other.zeros,
            min(self.low, other.low),
            max(self.high, other.high),
            self.single and other.single,
        )


def statistics(selection: Selection) -> Statistics:
    """Every statistic of a selection, read in blocks (twice, for types wider than 16 bits)."""
    dtype = selection.dtype
    start = Summary(dtype, np.zeros(PATTERNS, np.int64))
    total = sum((Summary.of(dtype, stored) for _, stored in selection.blocks()), start)
    if dtype.patterns:
        total, quantiles = _from_patterns(total)
    else:
        quantiles = _wide_quantiles(total, lambda: (stored for _, stored in selection.blocks()))
    m = total.moments
    any_finite = m.count > 0
    return Statistics(
        address=selection.address,
        name=selection.name,
        role=str(selection.role),
        layer=selection.weight.layer,
        dtype=dtype.name,
        shape=selection.shape,
        count=selection.size,
        nan=total.nan,
        inf=total.inf,
        zeros=total.zeros,
        mean=m.mean if any_finite else math.nan,
        std=m.std,
        min=total.low + 0.0 if any_finite else math.nan,  # -0 is 0
        max=total.high + 0.0 if any_finite else math.nan,
        abs_max=max(abs(total.low), abs(total.high)) if any_finite else math.nan,
        l2=math.hypot(math.sqrt(m.m2), math.sqrt(m.count) * m.mean) if any_finite else math.nan,
        skewness=m.skewness,
        kurtosis=m.kurtosis,
        quantiles={f"{q:g}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
        exact=bool(dtype.patterns) or total.single,
    )


def _from_patterns(total: Summary) -> tuple[Summary, Array]:
    """A summary completed from the counts of bit patterns, and the quantiles."""
    order, values = _sorted_patterns(total.dtype.name)
    counts = total.counts[order]
    present = counts > 0
    values, counts = values[present], counts[present]
    finite = np.isfinite(values)
    kept, times = values[finite], counts[finite]
    complete = Summary(
        total.dtype,
        total.counts,
        Moments.of(kept, times),
        nan=int(counts[np.isnan(values)].sum()),
        inf=int(counts[np.isinf(values)].sum()),
        zeros=int(counts[values == 0].sum()),
        low=float(kept.min(initial=math.inf)),
        high=float(kept.max(initial=-math.inf)),
    )
    ranks = _ranks(int(times.sum()))
    if ranks is None:
        return complete, np.full(len(QUANTILES), np.nan)
    return complete, kept[np.searchsorted(np.cumsum(times), ranks, side="right")]


@functools.cache
def _sorted_patterns(dtype: str) -> tuple[Array, Array]:
    """All bit patterns of a small type in order of value, and the values, float64. [65536] or [256]"""
    kind = DTYPES[dtype]
    patterns = np.arange(kind.patterns or 0, dtype=np.uint32).astype(f"u{np.dtype(kind.stored).itemsize}")
    values = kind.decode(patterns.view(kind.stored), np.float64)
    order = np.argsort(values, kind="stable")
    return order, values[order]


def _wide_quantiles(total: Summary, blocks: Callable[[], Iterable[Array]]) -> Array:
    """Quantiles through float32: exact where every number is one, else right to its rounding."""
    ranks = _ranks(total.moments.count)
    if ranks is None:
        return np.full(len(QUANTILES), np.nan)
    ends = np.cumsum(total.counts)
    upper = np.searchsorted(ends, ranks, side="right")  # the upper half of each quantile's key
    lower = {int(u): np.zeros(PATTERNS, np.int64) for u in upper}
    for stored in blocks():
        with np.errstate(over="ignore"):
            values = total.dtype.decode(stored, np.float64).reshape(-1)
            keys = _key(values[np.isfinite(values)].astype(np.float32))
        halves = keys >> np.uint32(16)
        for u, counts in lower.items():
            counts += np.bincount(keys[halves == u] & np.uint32(0xFFFF), minlength=PATTERNS)
    found = [
        (int(u) << 16)
        | int(np.searchsorted(np.cumsum(lower[int(u)]), rank - (ends[u] - total.counts[u]), side="right"))
        for u, rank in zip(upper, ranks, strict=True)
    ]
    return _unkey(np.array(found, np.uint32)).astype(np.float64)


def _ranks(count: int) -> Array | None:
    return np.floor(np.array(QUANTILES) * (count - 1)).astype(np.int64) if count else None


def _key(values: Array) -> Array:
    """Float32 to uint32 in the same order: negative numbers by their complement."""
    bits = (values + np.float32(0)).view(np.uint32)  # -0 is 0
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _unkey(keys: Array) -> Array:
    return np.where(keys >> 31, keys & np.uint32((1 << 31) - 1), ~keys).astype(np.uint32).view(np.float32)


@dataclass(frozen=True)
class Histogram:
    """Counts in equal bins between the smallest and the largest finite number."""

    edges: list[float]
    counts: list[int]


def histogram(selection: Selection, row: Statistics, bins: int = 32) -> Histogram:
    """A histogram of a selection whose statistics are known; one more pass over its blocks."""
    if math.isnan(row.min):
        return Histogram([], [])
    low, high = row.min, row.max if row.max > row.min else row.min + 1.0
    edges = np.linspace(low, high, bins + 1)
    counts = np.zeros(bins, np.int64)
    for _, stored in selection.blocks():
        values = selection.dtype.decode(stored, np.float64)
        counts += np.histogram(values[np.isfinite(values)], bins=edges)[0]
    return Histogram(edges.tolist(), counts.tolist())


@dataclass(frozen=True)
class Outlier:
    """One number far from the others: where it is and how many standard deviations away."""

    coordinate: tuple[int, ...]
    value: float
    z: float


def outliers(selection: Selection, row: Statistics, most: int = 5) -> list[Outlier]:
    """The numbers farthest from the mean, farthest first. Coordinates are of the whole weight."""
    if not row.std > 0:
        return []
    found: list[tuple[float, tuple[int, ...], float]] = []
    for region, stored in selection.blocks():
        values = selection.dtype.decode(stored, np.float64)
        distance = np.where(np.isfinite(values), np.abs(values - row.mean), -1.0)
        top = _largest(distance.ravel(), most)
        for place in zip(*np.unravel_index(top, values.shape), strict=True):
            coordinate = tuple(s.start + int(i) * s.step for s, i in zip(region, place, strict=True))
            found.append((float(distance[place]), coordinate, float(values[place])))
        found = sorted(found, key=lambda item: (-item[0], item[1]))[:most]
    return [Outlier(c, v, (v - row.mean) / row.std) for d, c, v in found if d >= 0]


def _largest(values: Array, most: int) -> Array:
    """Indices of the largest values, the first of equal ones."""
    least = np.partition(values, -most)[-most] if values.size > most else values.min()
    found = np.flatnonzero(values >= least)
    return found[np.argsort(-values[found], kind="stable")[:most]]
