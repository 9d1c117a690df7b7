"""Explain: every count taken apart into matrices and their sizes, and held against the config."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from weightkit.registry import Registry
from weightkit.weight import Axis, Weight


@dataclass(frozen=True)
class Term:
    """All weights of one kind: `layers.*.ffn.up`, of one shape."""

    role: str
    address: str  # with * for the numbers
    times: int
    shape: tuple[int, ...]
    axes: str  # what each size of the shape is
    parameters: int
    note: str = ""


@dataclass(frozen=True)
class Mismatch:
    """A count that the config and the files do not agree on."""

    address: str
    files: int
    config: int


@dataclass(frozen=True)
class Explanation:
    """A total as the sum of its terms."""

    terms: list[Term]
    files: int | None  # parameters that the files hold; None where there are none
    config: int | None  # parameters that the config describes; None where there is no config
    mismatches: list[Mismatch]

    @property
    def total(self) -> int:
        """The sum of the terms."""
        return sum(term.parameters for term in self.terms)


def explain(registry: Registry, described: Registry | None) -> Explanation:
    """The terms of a model's count; `described` is what its config alone describes."""
    terms = [_term(pattern, group) for pattern, group in _kinds(registry.values())]
    files = sum(weight.parameters() for weight in registry.values()) if _has_files(registry) else None
    if described is None:
        return Explanation(terms, files, None, [])
    mine, theirs = ({p: sum(w.parameters() for w in g) for p, g in _kinds(r.values())} for r in (registry, described))
    differ = [
        Mismatch(pattern, mine.get(pattern, 0), theirs.get(pattern, 0))
        for pattern in dict.fromkeys((*mine, *theirs))
        if mine.get(pattern, 0) != theirs.get(pattern, 0)
    ]
    return Explanation(terms, files, sum(theirs.values()), differ)


def _has_files(registry: Registry) -> bool:
    return any(weight.source is not None for weight in registry.by_name.values())


def _kinds(weights: Iterable[Weight]) -> list[tuple[str, list[Weight]]]:
    """Weights of one kind and shape together, in forward order."""
    groups: dict[tuple[str, tuple[int, ...]], list[Weight]] = {}
    for weight in weights:
        groups.setdefault((pattern_of(weight.address), weight.shape), []).append(weight)
    return [(pattern, group) for (pattern, _), group in groups.items()]


def pattern_of(address: str) -> str:
    """An address with * in the place of numbers."""
    return address if address.startswith("name:") else re.sub(r"(?<=\.)\d+(?=\.|$)", "*", address)


def _term(pattern: str, group: list[Weight]) -> Term:
    first = group[0]
    note = f"= {first.tied_to}" if first.tied_to else "no parameters" if first.buffer else ""
    return Term(
        role=str(first.role),
        address=pattern,
        times=len(group),
        shape=first.shape,
        axes=" × ".join(map(_axis, first.axes)),
        parameters=sum(weight.parameters() for weight in group),
        note=note,
    )


def _axis(axis: Axis) -> str:
    name = axis.name or "size"
    return f"{axis.count:,} {name}s of {axis.width:,}" if axis.width > 1 else name
