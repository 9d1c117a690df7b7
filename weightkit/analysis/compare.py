"""Diff: two models, weight by weight, by address where both have them and by name where not."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from weightkit.analysis.differences import Differences
from weightkit.analysis.same import same_numbers
from weightkit.parallel import Progress, in_order
from weightkit.registry import Registry
from weightkit.threads import one_blas_thread
from weightkit.weight import Weight

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import pandas as pd


@dataclass(frozen=True)
class Changed:
    """One weight that differs. A number that does not exist (shapes differ, a norm is 0) is NaN."""

    address: str
    name: str
    l2: float = math.nan  # norm of b - a
    relative_l2: float = math.nan  # that, over the norm of a
    max_abs: float = math.nan  # the largest |b - a|
    cosine: float = math.nan  # of the angle between a and b
    changed_fraction: float = math.nan  # of elements whose bits, or across types whose values, differ
    dtypes: tuple[str, str] = ("", "")
    shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    max_ulp: float = math.nan  # the largest distance of a and b, in numbers of their type that lie between
    mean_ulp: float = math.nan  # the mean of these distances
    left_out: int = 0  # pairs of which one is NaN or infinite, which no other number is of
    role: str = ""
    layer: int | None = None
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
    row = functools.partial(
        Changed,
        address=a.address,
        name=a.name,
        dtypes=(a.dtype.name, b.dtype.name),
        shapes=(a.shape, b.shape),
        role=str(a.role),
        layer=a.layer,
    )
    if a.shape != b.shape:
        return row()
    sums = Differences.of(a, b)
    norm_a, norm_b, l2 = (math.sqrt(sums.total(name)) for name in ("aa", "bb", "dd"))
    compared = a.size - sums.total("bad")
    return row(
        l2=l2,
        relative_l2=l2 / norm_a if norm_a else math.nan,
        max_abs=sums.total("largest"),
        cosine=max(-1.0, min(1.0, sums.total("ab") / norm_a / norm_b)) if norm_a and norm_b else math.nan,
        changed_fraction=sums.total("differ") / max(1, a.size),
        max_ulp=sums.total("steps") if same_type else math.nan,
        mean_ulp=sums.total("steps_sum") / compared if same_type and compared else math.nan,
        left_out=int(sums.total("bad")),
    )
