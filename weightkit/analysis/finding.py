"""Finding: one strange thing in the weights: where, how much, and why it is strange."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

# What there is to find, in the order in which equally strong ones are told.
KINDS = (
    "NaN or Inf",
    "super weight",  # in W_down: arXiv:2411.07191
    "large weight",
    "massive row",
    "massive column",
    "odd scale",
    "constant",
    "duplicate layers",
    "duplicate heads",
    "duplicate key heads",
    "dead neuron",
    "dead row",
    "dead column",
    "clipped",
    "untrained token",
    "initial",
)
STRONGEST = 100.0


@dataclass(frozen=True)
class Finding:
    """One strange thing. `strength` is how many times it is over the limit of its kind, from 1 to 100."""

    kind: str
    address: str  # with coordinates
    value: float
    strength: float
    why: str


def finding(kind: str, address: str, value: float, strength: float, why: str) -> Finding:
    """A finding whose strength is cut at the strongest."""
    return Finding(kind, address, float(value), float(min(STRONGEST, strength)), why)


def strongest(found: Iterable[Finding], most: int, noun: str) -> list[Finding]:
    """The strongest of one kind in one place, which say how many they are of where they are not all."""
    ordered = ranked(found)
    if len(ordered) <= most:
        return ordered
    return [replace(f, why=f"{f.why}; one of {len(ordered):,} such {noun}") for f in ordered[:most]]


def ranked(found: Iterable[Finding]) -> list[Finding]:
    """The strongest first; of what is told twice, as the rows of one neuron, the stronger."""
    ordered = sorted(found, key=lambda f: (-f.strength, KINDS.index(f.kind)))
    return list({(f.kind, f.address): f for f in reversed(ordered)}.values())[::-1]
