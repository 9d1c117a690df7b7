"""Rows of a diff rolled up: what all weights of a role, or of a layer, differ by together."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from weightkit.analysis.compare import Changed


@dataclass(frozen=True)
class Rolled:
    """Weights that differ, together."""

    role: str  # or the layer
    weights: int
    changed_fraction: float  # of the numbers of these weights
    l2: float
    relative_l2: float  # over the norm of those whose norm is not 0
    max_abs: float
    causes: list[str]  # the kinds, the most frequent first


def by_role(rows: Iterable[Changed]) -> list[Rolled]:
    """One row for each role, in the order of the model."""
    return _rolled(rows, lambda row: row.role)


def by_layer(rows: Iterable[Changed]) -> list[Rolled]:
    """One row for each layer, and one for what is outside of layers."""
    return _rolled(rows, lambda row: "outside layers" if row.layer is None else str(row.layer))


def _rolled(rows: Iterable[Changed], name: Callable[[Changed], str]) -> list[Rolled]:
    groups: dict[Hashable, list[Changed]] = {}
    for row in rows:
        groups.setdefault(name(row), []).append(row)
    return [_together(str(key), group) for key, group in groups.items()]


def _together(name: str, rows: list[Changed]) -> Rolled:
    compared = [row for row in rows if not math.isnan(row.l2)]
    kinds = [row.cause["kind"] for row in rows if row.cause]
    l2 = math.sqrt(sum(row.l2**2 for row in compared))
    before = sum((row.l2 / row.relative_l2) ** 2 for row in compared if row.relative_l2 > 0)
    sizes = [math.prod(row.shapes[0]) for row in compared]
    changed = sum(row.changed_fraction * size for row, size in zip(compared, sizes, strict=True))
    return Rolled(
        name,
        len(rows),
        changed / sum(sizes) if sum(sizes) else math.nan,
        l2,
        l2 / math.sqrt(before) if before else math.nan,
        max((row.max_abs for row in compared), default=math.nan),
        sorted(set(kinds), key=lambda kind: -kinds.count(kind)),
    )
