"""Summary: what is known of some numbers. It adds up: any split, in any order, gives the same to the last bit."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np

from weightkit.analysis import tally
from weightkit.analysis.tally import NO_POWERS, Powers
from weightkit.dtypes import DTYPES, Array, DType


@dataclass(frozen=True, eq=False)
class Table:
    """How often each of some ordered keys occurs: keys uint32 [k], rising, and counts int64 [k]."""

    keys: Array = field(default_factory=lambda: np.empty(0, np.uint32))
    counts: Array = field(default_factory=lambda: np.empty(0, np.int64))

    @classmethod
    def of(cls, counts: Array, first: int = 0) -> Table:
        """A table from the counts of consecutive keys, those that occur."""
        found = np.flatnonzero(counts)
        return cls((found + first).astype(np.uint32), counts[found].astype(np.int64))

    @classmethod
    def together(cls, tables: Sequence[Table]) -> Table:
        """The table of what is in some tables."""
        some = [table for table in tables if table.keys.size]
        if len(some) < 2:
            return some[0] if some else cls()
        if all(np.array_equal(some[0].keys, table.keys) for table in some[1:]):
            return cls(some[0].keys, np.sum([table.counts for table in some], axis=0))
        keys = np.concatenate([table.keys for table in some])
        order = np.argsort(keys, kind="stable")  # which joins runs that are in order
        keys = keys[order]
        first = np.flatnonzero(np.diff(keys, prepend=~keys[0]))
        return cls(keys[first], np.add.reduceat(np.concatenate([table.counts for table in some])[order], first))

    def __add__(self, other: Table) -> Table:
        return Table.together([self, other])

    def halves(self) -> Table:
        """The table of the upper halves of the keys."""
        uppers, first = np.unique(self.keys >> np.uint32(16), return_index=True)
        return Table(uppers, np.add.reduceat(self.counts, first) if uppers.size else self.counts)

    def to_bytes(self) -> bytes:
        """The keys, then the counts."""
        return self.keys.astype("<u4").tobytes() + self.counts.astype("<i8").tobytes()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Table:
        """The table that `to_bytes` wrote. Raises ValueError for other bytes."""
        size, rest = divmod(len(raw), 12)
        if rest:
            raise ValueError("no table has so many bytes")
        return cls(np.frombuffer(raw, "<u4", size), np.frombuffer(raw, "<i8", size, 4 * size))

    @property
    def places(self) -> int:
        """How many keys occur."""
        return len(self.keys)

    @property
    def total(self) -> int:
        """All counts together."""
        return int(self.counts.sum())


@dataclass(frozen=True, eq=False)
class Summary:
    """What is known of some numbers; `a + b` is what is known of both together, exactly.

    Numbers of 8- and 16-bit types are counted value by value. Of others the upper halves of their float32 are
    counted, and their powers are summed as whole numbers.
    """

    values: Table = Table()  # of small types: ordered float32 keys, see tally.key; finite, as all but nan and inf
    halves: Table = Table()  # of the other types: upper halves of such keys
    powers: Powers = NO_POWERS  # of the other types
    nan: int = 0
    inf: int = 0
    zeros: int = 0
    subnormals: int = 0
    low: float = math.inf
    high: float = -math.inf
    single: bool = True  # every finite number is one that float32 has

    @classmethod
    def of(cls, dtype: DType, blocks: Iterable[Array]) -> Summary:
        """The summary of blocks of stored elements of a type, of any shape."""
        if dtype.patterns:
            patterns = tally.Patterns(np.dtype(dtype.stored).itemsize)
            for stored in blocks:
                patterns.add(stored)
            return _of_patterns(dtype, *patterns.found())
        found, single = tally.Singles(), True
        for stored in blocks:
            if stored.dtype == np.float32:
                found.add(stored)
            else:
                values = dtype.decode(stored, np.float64).reshape(-1)
                single &= found.add_values(values, _tiny(dtype))
        return cls(
            halves=Table.of(found.halves),
            powers=found.powers,
            nan=found.nan,
            inf=found.inf,
            zeros=found.zeros,
            subnormals=found.subnormals,
            low=found.low,
            high=found.high,
            single=single,
        )

    @classmethod
    def together(cls, summaries: Sequence[Summary]) -> Summary:
        """What is known of all numbers of some summaries."""
        return cls(
            Table.together([s.values for s in summaries]),
            Table.together([s.halves for s in summaries]),
            functools.reduce(tally.add_powers, (s.powers for s in summaries), NO_POWERS),
            sum(s.nan for s in summaries),
            sum(s.inf for s in summaries),
            sum(s.zeros for s in summaries),
            sum(s.subnormals for s in summaries),
            min((s.low for s in summaries), default=math.inf),
            max((s.high for s in summaries), default=-math.inf),
            all(s.single for s in summaries),
        )

    def __add__(self, other: Summary) -> Summary:
        return Summary.together([self, other])

    @property
    def places(self) -> int:
        """How many keys occur in its tables."""
        return self.values.places + self.halves.places

    @property
    def finite(self) -> int:
        """How many numbers are finite."""
        return self.values.total + self.halves.total

    @property
    def distinct(self) -> int | None:
        """How many different finite values there are, ±0 being one; None where types wider than 16 bits take part."""
        return None if self.halves.keys.size else len(self.values.keys)

    @property
    def entropy(self) -> float | None:
        """Shannon entropy of the finite values in bits: −Σ p log₂ p; None where they are not counted, or none is."""
        if not self.distinct:
            return None
        share = self.values.counts / self.values.total
        return float(-np.sum(share * np.log2(share))) + 0.0  # a single value has 0, not -0

    def sums(self) -> Powers:
        """Σx, Σx², Σx³, Σx⁴ of all finite numbers, in units of 2^(-power · tally.UNIT)."""
        return tally.add_powers(self.powers, tally.table_powers(self.values.keys, self.values.counts))

    def to_bytes(self) -> bytes:
        """All of it as bytes; equal summaries have equal bytes."""
        facts = {name: getattr(self, name) for name in _FACTS}
        facts |= {"powers": [hex(n) for n in self.powers], "low": self.low.hex(), "high": self.high.hex()}
        tables = [table.to_bytes() for table in (self.values, self.halves)]
        return json.dumps({**facts, "sizes": [len(table) for table in tables]}).encode() + b"\n" + b"".join(tables)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Summary:
        """The summary that `to_bytes` wrote. Raises ValueError or KeyError for other bytes."""
        head, _, rest = raw.partition(b"\n")
        facts = json.loads(head)
        first, second = facts["sizes"]
        tables = [Table.from_bytes(rest[:first]), Table.from_bytes(rest[first : first + second])]
        a, b, c, d = (int(n, 16) for n in facts["powers"])
        low, high = (float.fromhex(facts[name]) for name in ("low", "high"))
        nan, inf, zeros, subnormals, single = (facts[name] for name in _FACTS)
        return cls(tables[0], tables[1], (a, b, c, d), nan, inf, zeros, subnormals, low, high, single)


_FACTS = ("nan", "inf", "zeros", "subnormals", "single")


Part = TypeVar("Part", Table, Summary)


class Sum(Generic[Part]):
    """The sum of many tables or summaries: adding a small one costs little, however large the sum is."""

    def __init__(self, start: Part) -> None:
        self._sum: Part = start
        self._waiting: list[Part] = []
        self._places = 0  # of what is waiting

    def add(self, part: Part) -> None:
        """Add one."""
        self._waiting.append(part)
        self._places += part.places
        if len(self._waiting) == _AT_A_TIME or self._places > self._sum.places:
            self.total()

    def total(self) -> Part:
        """The sum so far."""
        if self._waiting:
            self._waiting.append(self._sum)
            self._sum = self._sum.together(self._waiting)
            self._waiting, self._places = [], 0
        return self._sum


_AT_A_TIME = 64


def _of_patterns(dtype: DType, patterns: Array, counts: Array) -> Summary:
    """The summary of numbers of a small type from the bit patterns that occur, and how often each does."""
    known = _known(dtype.name)
    kinds = known.kinds[patterns]
    finite = kinds < _INF
    keys = known.keys[patterns[finite]]
    order = np.argsort(keys, kind="stable")
    keys, in_order = keys[order], counts[finite][order]
    first = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))  # ±0 have one key
    values = Table(keys[first], np.add.reduceat(in_order, first)) if keys.size else Table()
    ends = tally.unkey(keys[[0, -1]]) if keys.size else (math.inf, -math.inf)
    nan, inf, zeros, subnormals = (int(counts[kinds == kind].sum()) for kind in (_NAN, _INF, _ZERO, _SUBNORMAL))
    return Summary(
        values=values, nan=nan, inf=inf, zeros=zeros, subnormals=subnormals, low=float(ends[0]), high=float(ends[1])
    )


_NORMAL, _ZERO, _SUBNORMAL, _INF, _NAN = range(5)  # kinds of numbers


@dataclass(frozen=True)
class _Known:
    """All bit patterns of a small type."""

    kinds: Array  # uint8 [patterns]
    keys: Array  # uint32 [patterns], of the finite numbers


@functools.cache
def _known(dtype: str) -> _Known:
    kind = DTYPES[dtype]
    patterns = np.arange(kind.patterns or 0, dtype=np.uint32).astype(f"u{np.dtype(kind.stored).itemsize}")
    numbers = kind.decode(patterns.view(kind.stored), np.float64)
    kinds = np.full(len(numbers), _NORMAL, np.uint8)
    kinds[np.abs(numbers) < _smallest_normal(kind)] = _SUBNORMAL
    kinds[numbers == 0], kinds[np.isinf(numbers)], kinds[np.isnan(numbers)] = _ZERO, _INF, _NAN
    return _Known(kinds, tally.key(np.where(kinds < _INF, numbers, 0).astype(np.float32)))


def _tiny(dtype: DType) -> float:
    """The smallest normal number of a wide type; of a complex one, of its parts."""
    wide = dtype.bits > (64 if dtype.kind == "complex" else 32)
    return float(np.finfo(np.float64 if wide else np.float32).tiny)


def _smallest_normal(kind: DType) -> float:
    """The smallest normal number of a small type; 0 where none is subnormal."""
    if kind.kind != "float":
        return 0.0
    if kind.table or kind.name == "BF16":
        import ml_dtypes

        return float(ml_dtypes.finfo(getattr(ml_dtypes, kind.table or "bfloat16")).smallest_normal)
    return float(np.finfo(kind.stored).smallest_normal)


@dataclass(frozen=True)
class ExactMoments:
    """What the exact sums say, each rounded once or twice; a number that does not exist is NaN."""

    mean: float = math.nan
    std: float = math.nan  # of the population
    l2: float = math.nan
    skewness: float = math.nan  # NaN where all numbers are equal
    kurtosis: float = math.nan  # excess, likewise

    @classmethod
    def of(cls, summary: Summary) -> ExactMoments:
        """The moments of the finite numbers.

        With n² m₂ = n Σx² − (Σx)², and so on, in whole numbers: nothing cancels.
        """
        n = summary.finite
        if not n:
            return cls()
        s1, s2, s3, s4 = summary.sums()
        unit = 1 << tally.UNIT
        m2 = n * s2 - s1 * s1  # the central moments, times n², n³, n⁴
        m3 = n * n * s3 - 3 * n * s1 * s2 + 2 * s1**3
        m4 = n**3 * s4 - 4 * n * n * s1 * s3 + 6 * n * s1 * s1 * s2 - 3 * s1**4
        found = cls(mean=s1 / (n * unit), std=_root(m2, n * unit), l2=_root(s2, unit))
        if not m2:
            return found
        root = math.isqrt(m2 << _BITS)
        return replace(found, skewness=(m3 << _BITS // 2) / (m2 * root), kurtosis=(m4 - 3 * m2 * m2) / (m2 * m2))


_BITS = 256  # more of a root than float64 has


def _root(square: int, divisor: int) -> float:
    """√square / divisor."""
    try:
        return math.isqrt(square << _BITS) / (divisor << _BITS // 2)
    except OverflowError:  # no float64 is as large
        return math.inf
