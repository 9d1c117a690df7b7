"""Duplicates: layers and heads whose weights point the same way, by the cosine of all their numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from weightkit.analysis.finding import Finding, finding
from weightkit.analysis.heads import Head
from weightkit.dtypes import Array
from weightkit.parallel import in_order
from weightkit.weight import Selection, Weight

if TYPE_CHECKING:
    from concurrent.futures import Executor

ALIKE = 0.95
SAMPLED_ALIKE = 0.8  # of a few of the numbers: enough to look at all
SAMPLED = 16  # weights of a layer

Parts = tuple[Selection, ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """A layer or a head: what it is called, and its matrices."""

    address: str
    layer: str
    parts: Parts

    @property
    def form(self) -> tuple[tuple[int, ...], ...]:
        """Only units of one form can be the same."""
        return tuple(part.shape for part in self.parts)


def duplicates(weights: Sequence[Weight], heads: Iterable[Head], executor: Executor | None = None) -> list[Finding]:
    """Pairs of layers, and of heads in layers that are not pairs themselves, whose cosine is at least 0.95."""
    found = list(_alike(_layers(weights), "duplicate layers", set(), executor))
    known = {tuple(f.address.split(" = ")) for f in found}
    units = [
        Unit(h.address, h.attention.rpartition(".")[0], (h.parts["q"], h.parts["o"]))
        for h in heads
        if not any(part.weight.tied_to for part in h.parts.values())
    ]
    return found + list(_alike(units, "duplicate heads", known, executor))


def _layers(weights: Sequence[Weight]) -> list[Unit]:
    layers: dict[str, list[Selection]] = {}
    for weight in weights:
        if weight.layer is not None and len(weight.shape) == 2 and not weight.tied_to:
            stack = weight.address.partition("layers.")[0]
            layers.setdefault(f"{stack}layers.{weight.layer}", []).append(Selection.of(weight))
    return [Unit(address, address, tuple(parts)) for address, parts in layers.items()]


def _alike(
    units: Sequence[Unit], kind: str, known: set[tuple[str, ...]], executor: Executor | None
) -> Iterator[Finding]:
    forms: dict[tuple[tuple[int, ...], ...], list[Unit]] = {}
    for unit in units:
        forms.setdefault(unit.form, []).append(unit)
    for same in forms.values():
        samples = np.stack(list(in_order(_sample, same, executor=executor)))
        pairs = [(same[i], same[j]) for i, j in _candidates(samples) if (same[i].layer, same[j].layer) not in known]
        cosines = in_order(_cosine, pairs, executor=executor)
        for (a, b), cosine in zip(pairs, cosines, strict=True):
            if cosine >= ALIKE:
                said = "are the same numbers" if cosine > 1 - 1e-12 else f"have a cosine of {cosine:.4f}"
                why = f"all their matrices together {said}: one may be a copy of the other"
                strength = (1 - ALIKE) / (1 - cosine) if cosine < 1 else math.inf
                yield finding(kind, f"{a.address} = {b.address}", cosine, strength, why)


def _sample(unit: Unit) -> Array:  # [n] float32, of length 1
    """A few numbers of a unit, at the same places in all of one form."""
    few = [Selection(part.weight, spot) for part in unit.parts[:SAMPLED] for spot in part.spots()]
    flat = np.concatenate([some.array(np.float64).ravel() for some in few])
    flat = np.where(np.isfinite(flat), flat, 0.0)
    return np.asarray(flat / (np.linalg.norm(flat) or 1.0), np.float32)


def _candidates(samples: Array) -> Iterator[tuple[int, int]]:
    for i in range(len(samples) - 1):
        for j in np.flatnonzero(samples[i + 1 :] @ samples[i] >= SAMPLED_ALIKE):
            yield i, i + 1 + int(j)


def _cosine(pair: tuple[Unit, Unit]) -> float:
    """The cosine of all numbers of two units; NaN where one is all zeros or has NaN."""
    ab = aa = bb = 0.0
    for a, b in zip(pair[0].parts, pair[1].parts, strict=True):
        for x, y in _blocks(a, b):
            with np.errstate(all="ignore"):
                ab, aa, bb = ab + float(x @ y), aa + float(x @ x), bb + float(y @ y)
    return ab / math.sqrt(aa) / math.sqrt(bb) if aa > 0 and bb > 0 else math.nan


def _blocks(a: Selection, b: Selection) -> Iterator[tuple[Array, Array]]:
    """The same numbers of two selections of one shape, flat, a block at a time."""
    if not a.is_whole:  # a head is small
        yield a.array(np.float64).ravel(), b.array(np.float64).ravel()
        return
    for region, stored in a.blocks():
        other = b.weight.read(region)
        yield a.dtype.decode(stored, np.float64).ravel(), b.dtype.decode(other, np.float64).ravel()
