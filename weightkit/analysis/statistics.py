"""Statistics of weights, exact to the last bit but for one rounding: one row for each weight, or for a group.

The numbers are counted in parts, whose summaries add up (see summary.py). Numbers wider than 16 bits are read
a second time for their quantiles: the first time tells the upper halves of these, the second the lower ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from weightkit.analysis import reading, tally
from weightkit.analysis.remembered import remembered
from weightkit.analysis.summary import ExactMoments, Sum, Summary, Table
from weightkit.dtypes import Array
from weightkit.parallel import Progress, Work
from weightkit.weight import Selection

if TYPE_CHECKING:
    from concurrent.futures import Executor

Result = TypeVar("Result")

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)


AT_ONCE = 1024  # groups: what is counted of one may take 100 kB
BUNDLE, MOST_IN_BUNDLE = 1 << 20, 32  # bytes, and parts, that are handed out at once


@dataclass(frozen=True)
class Statistics:
    """One row: a weight, a part of one or a group of them, in numbers. A number that does not exist is NaN."""

    address: str
    name: str  # of the tensor; empty for a group
    role: str  # of all of a group, or empty
    layer: int | None
    dtype: str  # those of a group with + between
    shape: tuple[int, ...]  # of a group, none
    weights: int  # how many there are in the group
    count: int
    nan: int
    inf: int
    zeros: int
    subnormals: int
    distinct: int | None  # different finite values; None for types wider than 16 bits
    entropy: float | None  # of the finite values, in bits; None likewise
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
class Group:
    """Selections that are one row together."""

    address: str
    selections: tuple[Selection, ...]

    @classmethod
    def of(cls, selection: Selection) -> Group:
        """One selection by itself."""
        return cls(selection.address, (selection,))


def statistics(selection: Selection) -> Statistics:
    """Every statistic of a selection."""
    (row,) = table([Group.of(selection)])
    return row


def table(
    groups: Sequence[Group],
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
    cache: bool = False,
) -> list[Statistics]:
    """One row of statistics for each group. `progress` is told bytes.

    With `cache` what was counted before is taken from the user's cache folder, and put there.
    """
    options = executor, cache
    if len(groups) <= AT_ONCE:
        return _some(groups, progress, *options)
    total, done, rows = sum(map(_bytes_of, groups)), 0, list[Statistics]()
    for first in range(0, len(groups), AT_ONCE):
        some = groups[first : first + AT_ONCE]
        rows += _some(some, None, *options)
        done += sum(map(_bytes_of, some))
        if progress is not None:
            progress(done, total)
    return rows


def _some(
    groups: Sequence[Group], progress: Progress | None, executor: Executor | None, cache: bool
) -> list[Statistics]:
    """As `table`, of so many groups that what is counted of all of them has room in memory."""
    parts = ((i, part) for i, group in enumerate(groups) for s in group.selections for part in reading.parts(s))
    tasks = [_Task(i, part, cache) for i, part in parts]
    sums = [Sum(Summary()) for _ in groups]
    for task, summary in _done(_first, tasks, executor, progress):
        sums[task.group].add(summary)
    totals = [one.total() for one in sums]
    uppers = [_uppers(total) for total in totals]
    again = [replace(t, uppers=uppers[t.group]) for t in tasks if uppers[t.group] and not t.part.dtype.patterns]
    known = [Sum(total.values) for total in totals]
    for task, counts in _done(_second, again, executor, progress):
        known[task.group].add(counts)
    return [_row(g, total, tables.total()) for g, total, tables in zip(groups, totals, known, strict=True)]


@dataclass(frozen=True)
class _Task:
    group: int
    part: Selection
    cache: bool
    uppers: tuple[int, ...] = ()  # halves of keys whose lower halves are asked for


def _first(task: _Task) -> Summary:
    def make() -> Summary:
        return Summary.of(task.part.dtype, reading.stored(task.part))

    return remembered(Summary, task.part, (), make, cache=task.cache)


def _second(task: _Task) -> Table:
    return remembered(Table, task.part, task.uppers, lambda: _whole_keys(task), cache=task.cache)


def _whole_keys(task: _Task) -> Table:
    """The numbers whose upper halves are asked for, by their whole keys."""
    dtype, uppers = task.part.dtype, np.array(task.uppers)
    counts = np.zeros((len(uppers), tally.HALF), np.int64)
    for stored in reading.stored(task.part):
        numbers = stored if stored.dtype == np.float32 else dtype.decode(stored, np.float64)
        counts += tally.lower_halves(numbers, uppers)
    return sum((Table.of(row, upper << 16) for upper, row in zip(task.uppers, counts, strict=True)), Table())


def _done(
    function: Callable[[_Task], Result], tasks: list[_Task], executor: Executor | None, progress: Progress | None
) -> Iterator[tuple[_Task, Result]]:
    """Tasks with their results; `progress` is told how many bytes of all are done."""
    bundles = list(_bundles(tasks))
    sizes = [sum(_bytes(task.part) for task in bundle) for bundle in bundles]
    work = Work(executor, progress, sum(sizes))
    for bundle, results in zip(bundles, work.map(partial(_each, function), bundles, sizes), strict=True):
        yield from zip(bundle, results, strict=True)


def _each(function: Callable[[_Task], Result], bundle: list[_Task]) -> list[Result]:
    return [function(task) for task in bundle]


def _bundles(tasks: list[_Task]) -> Iterator[list[_Task]]:
    """Tasks that follow each other, so many that handing them out costs little."""
    bundle: list[_Task] = []
    size = 0
    for task in tasks:
        bundle.append(task)
        size += _bytes(task.part)
        if len(bundle) == MOST_IN_BUNDLE or size >= BUNDLE:
            yield bundle
            bundle, size = [], 0
    if bundle:
        yield bundle


def _bytes_of(group: Group) -> int:
    return sum(map(_bytes, group.selections))


def _bytes(part: Selection) -> int:
    return part.dtype.nbytes(part.size)


def _row(group: Group, total: Summary, known: Table) -> Statistics:
    moments = ExactMoments.of(total)
    any_finite = total.finite > 0
    quantiles = _at_ranks(total, known, _ranks(total.finite))
    first = group.selections[0]
    alone = len(group.selections) == 1
    roles, layers = {str(s.role) for s in group.selections}, {s.weight.layer for s in group.selections}
    return Statistics(
        address=group.address,
        name=first.name if alone else "",
        role=roles.pop() if len(roles) == 1 else "",
        layer=layers.pop() if len(layers) == 1 else None,
        dtype="+".join(dict.fromkeys(s.dtype.name for s in group.selections)),
        shape=first.shape if alone else (),
        weights=len(group.selections),
        count=sum(s.size for s in group.selections),
        nan=total.nan,
        inf=total.inf,
        zeros=total.zeros,
        subnormals=total.subnormals,
        distinct=total.distinct,
        entropy=total.entropy,
        mean=moments.mean,
        std=moments.std,
        min=total.low if any_finite else math.nan,
        max=total.high if any_finite else math.nan,
        abs_max=max(abs(total.low), abs(total.high)) if any_finite else math.nan,
        l2=moments.l2,
        skewness=moments.skewness,
        kurtosis=moments.kurtosis,
        quantiles={f"{q:g}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
        exact=total.single,
    )


# ── quantiles ──────────────────────────────────────────────────────────────────────────────────────────


def _ranks(count: int) -> Array:
    """The rank of each quantile among so many numbers; none where there are none."""
    return np.floor(np.array(QUANTILES) * (count - 1)).astype(np.int64) if count else np.empty(0, np.int64)


def _uppers(total: Summary) -> tuple[int, ...]:
    """The upper halves of the quantiles' keys, where only those are counted."""
    if not total.halves.keys.size:
        return ()
    halves = total.halves + total.values.halves()
    places = np.searchsorted(np.cumsum(halves.counts), _ranks(total.finite), side="right")
    return tuple(sorted({int(upper) for upper in halves.keys[places]}))


def _at_ranks(total: Summary, known: Table, ranks: Array) -> Array:
    """The numbers at some ranks, float64; NaN without any. Right to float32 where the numbers are wider.

    `known` are the whole keys of all numbers that share their upper half with one of the results.
    """
    if not ranks.size:
        return np.full(len(QUANTILES), np.nan)
    if not total.halves.keys.size:
        keys = known.keys[np.searchsorted(np.cumsum(known.counts), ranks, side="right")]
        return tally.unkey(keys).astype(np.float64)
    halves = total.halves + total.values.halves()
    ends = np.cumsum(halves.counts)
    places = np.searchsorted(ends, ranks, side="right")
    first = np.searchsorted(known.keys, halves.keys[places].astype(np.int64) << 16)  # with this upper half
    before = np.concatenate([[0], np.cumsum(known.counts)])
    within = ranks - (ends[places] - halves.counts[places])
    keys = known.keys[np.searchsorted(before[1:], before[first] + within, side="right")]
    return tally.unkey(keys).astype(np.float64)
