"""The causes of a whole diff: what single weights cannot tell, and weights of one cause together, in a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from weightkit.analysis.causes.evidence import Found
from weightkit.analysis.causes.sentence import sentence
from weightkit.weight import Weight

SHARED = 0.8  # cosine of directions that are one


class Row(Protocol):
    """What is known of one weight that differs."""

    @property
    def address(self) -> str:
        """Its address."""
        ...

    @property
    def role(self) -> str:
        """Its role."""
        ...

    @property
    def layer(self) -> int | None:
        """Its layer."""
        ...

    @property
    def cause(self) -> Found | None:
        """What was found."""
        ...

    @property
    def l2(self) -> float:
        """The norm of what changed."""
        ...

    @property
    def relative_l2(self) -> float:
        """That, over the norm of what was."""
        ...

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of both."""
        ...


def settle(causes: Sequence[Found | None], sizes: Sequence[int]) -> list[Found | None]:
    """Causes that are not certain become the one that most of the numbers have, of those that they could be.

    A vector of 64 numbers that was trained may look unrelated, or as if noise had been added; the matrices tell.
    """
    votes = Counter[str]()
    for found, size in zip(causes, sizes, strict=True):
        if found is not None and "could_be" not in found:
            votes[found["kind"]] += size
    return [None if found is None else _settled(found, votes) for found in causes]


def _settled(found: Found, votes: Mapping[str, int]) -> Found:
    kept = {name: value for name, value in found.items() if name not in ("could_be", "vector")}
    most = max((kept["kind"], *found.get("could_be", ())), key=lambda kind: votes.get(kind, 0))
    if most == kept["kind"]:
        return kept
    return {"kind": most} | {name: value for name, value in kept.items() if name == "relative"}


def share(causes: Sequence[Found | None]) -> None:
    """Say of each direction how many matrices share it, and note it as `shared_by`."""
    ones = [found for found in causes if found is not None and found["kind"] == "direction"]
    for one in ones:
        one["shared_by"] = sum(_one(one["vector"], other["vector"]) for other in ones)


def _one(u: Any, v: Any) -> bool:
    return u.shape == v.shape and abs(float(np.dot(u, v))) >= SHARED


@dataclass(frozen=True)
class Group:
    """Weights that changed in one way: the cause, where, and how much that is."""

    cause: Found
    roles: list[str]
    layers: list[int]
    addresses: list[str]
    parameters: int


def grouped(rows: Iterable[Row]) -> list[Group]:
    """Rows by cause, those of most numbers first; causes are one where what they say of weights is the same."""
    by_key: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row.cause is not None:
            by_key.setdefault(_key(row.cause), []).append(row)
    groups = [_group(found) for found in by_key.values()]
    return sorted(groups, key=lambda group: -group.parameters)


def _key(cause: Found) -> tuple[Any, ...]:
    names = {
        "low_rank": ("rank",),
        "cast": ("to",),
        "quantised": ("grid", "group"),
        "scaled": ("axis", "factor"),
        "zeroed": ("axis", "items", "pattern"),
        "permuted": ("axis",),
        "rows": ("axis", "items", "appended", "removed"),
    }
    values = (cause.get(name) for name in names.get(cause["kind"], ()))
    return (cause["kind"], *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values))


def _group(rows: Sequence[Row]) -> Group:
    first = rows[0].cause or {}
    merged = {name: value for name, value in first.items() if all((r.cause or {}).get(name) == value for r in rows)}
    for name in ("explained", "std", "factor"):
        values = [r.cause[name] for r in rows if r.cause and r.cause.get(name) is not None]
        if values:
            merged[name] = float(np.median(values))
    relative = [(r.l2, r.relative_l2) for r in rows if r.relative_l2 > 0]
    if "relative" in first and relative:  # of all of them together
        before = sum((l2 / share) ** 2 for l2, share in relative)
        merged["relative"] = float((sum(l2**2 for l2, _ in relative) / before) ** 0.5)
    if first["kind"] == "sparse":
        merged["count"] = sum(r.cause["count"] for r in rows if r.cause)
    return Group(
        cause=merged,
        roles=list(dict.fromkeys(r.role for r in rows)),
        layers=sorted({r.layer for r in rows if r.layer is not None}),
        addresses=[r.address for r in rows],
        parameters=sum(int(np.prod(r.shapes[1])) for r in rows),
    )


def told(groups: Sequence[Group], moved: Mapping[str, Found], weights: Mapping[str, Weight]) -> str:
    """The sentence on top: what happened to the model."""
    layers = len({w.layer for w in weights.values() if w.layer is not None})
    unique = sum(not weight.alias for weight in weights.values())
    return sentence(groups, moved, layers, unique)
