"""Diff: two models, weight by weight, by address where both have them and by name where not."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from weightkit.analysis.causes import cause
from weightkit.analysis.causes.evidence import Evidence
from weightkit.analysis.causes.layers import moved as moved_layers
from weightkit.analysis.causes.layers import stacks
from weightkit.analysis.causes.shapes import shapes
from weightkit.analysis.causes.whole import Group, grouped, settle, share, told
from weightkit.analysis.differences import Differences
from weightkit.analysis.parts import Part
from weightkit.analysis.same import same_numbers
from weightkit.errors import PatchError
from weightkit.parallel import Progress, in_order
from weightkit.registry import Registry
from weightkit.threads import one_blas_thread
from weightkit.weight import Weight

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import pandas as pd

    from weightkit.analysis.structure import Tokens
    from weightkit.patch import Patch


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
    causes: list[Group] = field(default_factory=list)  # weights that changed in one way, the most numbers first
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)  # by stack, where layers are not where they were
    sentence: str = ""  # what happened, in words
    tokens: Tokens | None = None  # how the tokenizers differ
    metadata: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)  # of the files; not what they are
    parts: list[Part] = field(default_factory=list)  # what the differences do on a text, where there was one
    make_patch: Callable[[], Patch] | None = field(default=None, repr=False, compare=False)  # given by `wk.diff`

    @property
    def identical(self) -> bool:
        """Whether the models have the same weights and compute the same with them."""
        return not (self.changed or self.only_a or self.only_b or self.config or self.tokens)

    def patch(self) -> Patch:
        """The patch that makes the second model of the first, and the first of the second, to the bit.

        Raises PatchError for what cannot be in a patch.
        """
        if self.make_patch is None:
            raise PatchError("this diff does not know its models: ask the one that wk.diff(a, b) gives")
        return self.make_patch()

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
        changed, moved = _together([row for row in rows if row is not None], mine, theirs)
    groups = grouped(changed)
    return Diff(
        changed=changed,
        only_a=[w.address for k, w in mine.items() if k not in theirs and not w.alias],
        only_b=[w.address for k, w in theirs.items() if k not in mine and not w.alias],
        unchanged=len(rows) - len(changed),
        config=a.config.differences(b.config) if a.config and b.config else {},
        causes=groups,
        layers=moved,
        sentence=told(groups, moved, theirs),
    )


def _together(
    rows: list[Changed], mine: Mapping[str, Weight], theirs: Mapping[str, Weight]
) -> tuple[list[Changed], dict[str, dict[str, Any]]]:
    """Rows with what only all of them tell of their causes; and the layers that are not where they were."""
    share([row.cause for row in rows])
    causes = settle([row.cause for row in rows], [math.prod(row.shapes[1]) for row in rows])
    moved = _moved(causes, mine, theirs)
    return [_with_cause(row, found, moved) for row, found in zip(rows, causes, strict=True)], moved


def _moved(
    causes: list[dict[str, Any] | None], mine: Mapping[str, Weight], theirs: Mapping[str, Weight]
) -> dict[str, dict[str, Any]]:
    """Layers are looked for elsewhere where there are more or fewer, or where some have become unrelated."""
    unrelated = any(found is not None and found["kind"] == "replaced" for found in causes)
    lengths = [{stack: len(found) for stack, found in stacks(weights).items()} for weights in (mine, theirs)]
    return moved_layers(mine, theirs) if unrelated or lengths[0] != lengths[1] else {}


def _with_cause(row: Changed, found: dict[str, Any] | None, moved: Mapping[str, dict[str, Any]]) -> Changed:
    stack, layered, rest = row.address.partition("layers.")
    origin = moved[stack + layered]["origin"] if layered and stack + layered in moved else []
    number = int(rest.partition(".")[0]) if origin else 0
    if number < len(origin) and origin[number] not in (None, number):
        found = {"kind": "layers", "from": origin[number]}
    return replace(row, cause=found)


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
        return row(cause=shapes(a, b))
    sums = Differences.of(a, b)
    norm_a, norm_b, l2 = (math.sqrt(sums.total(name)) for name in ("aa", "bb", "dd"))
    compared = a.size - sums.total("bad")
    return row(
        cause=cause(Evidence(a, b, sums)),
        l2=l2,
        relative_l2=l2 / norm_a if norm_a else math.nan,
        max_abs=sums.total("largest"),
        cosine=max(-1.0, min(1.0, sums.total("ab") / norm_a / norm_b)) if norm_a and norm_b else math.nan,
        changed_fraction=sums.total("differ") / max(1, a.size),
        max_ulp=sums.total("steps") if same_type else math.nan,
        mean_ulp=sums.total("steps_sum") / compared if same_type and compared else math.nan,
        left_out=int(sums.total("bad")),
    )
