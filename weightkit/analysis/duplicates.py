"""Duplicates: layers and heads whose weights point the same way, by the cosine of all their numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from weightkit.analysis.finding import Finding, finding, strongest
from weightkit.analysis.heads import Head
from weightkit.dtypes import Array
from weightkit.parallel import Work
from weightkit.weight import Selection, Weight

ALIKE = 0.95
LEAST = 100  # numbers of a unit: of fewer, chance makes some alike
MOST = 10  # told of one kind
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


def duplicates(weights: Sequence[Weight], heads: Iterable[Head], work: Work) -> list[Finding]:
    """Pairs of layers, and of heads in layers that are not pairs themselves, whose cosine is at least 0.95."""
    found = list(_alike(_layers(weights), "duplicate layers", set(), work))
    known = {_pair(f) for f in found}
    free = [h for h in heads if not any(part.weight.tied_to for part in h.parts.values())]
    found += _alike([_unit(h.address, h, "qo") for h in free], "duplicate heads", known, work)
    known |= {_pair(f) for f in found}  # where each head has keys of its own, it is told once
    return found + list(_alike(_key_heads(free), "duplicate key heads", known, work))


def _pair(found: Finding) -> tuple[str, ...]:
    return tuple(found.address.split(" = "))


def _unit(address: str, head: Head, parts: str) -> Unit:
    return Unit(address, head.attention.rpartition(".")[0], tuple(head.parts[part] for part in parts))


def _key_heads(heads: Iterable[Head]) -> list[Unit]:
    """The K and V that some heads share, or that each has: once."""
    units: dict[str, Unit] = {}
    for head in heads:
        axis = head.parts["k"].index[0]
        own = head.parts["k"].weight.axes[0].count == head.parts["q"].weight.axes[0].count
        address = head.address if own else f"{head.attention}[kv_head={axis.at}]"
        units.setdefault(address, _unit(address, head, "kv"))
    return list(units.values())


def _layers(weights: Sequence[Weight]) -> list[Unit]:
    layers: dict[str, list[Selection]] = {}
    for weight in weights:
        if weight.layer is not None and len(weight.shape) == 2 and not weight.tied_to:
            stack = weight.address.partition("layers.")[0]
            layers.setdefault(f"{stack}layers.{weight.layer}", []).append(Selection.of(weight))
    return [Unit(address, address, tuple(parts)) for address, parts in layers.items()]


def _alike(units: Sequence[Unit], kind: str, known: set[tuple[str, ...]], work: Work) -> Iterator[Finding]:
    forms: dict[tuple[tuple[int, ...], ...], list[Unit]] = {}
    for unit in units:
        if sum(part.size for part in unit.parts) >= LEAST:
            forms.setdefault(unit.form, []).append(unit)
    found = []
    for same in forms.values():
        samples = np.stack(list(work.map(_sample, same, [0] * len(same))))
        pairs = [(same[i], same[j]) for i, j in _candidates(samples)]
        pairs = [(a, b) for a, b in pairs if not {(a.layer, b.layer), (a.address, b.address)} & known]
        sizes = [2 * sum(part.dtype.nbytes(part.size) for part in a.parts) for a, _ in pairs]
        work.known += sum(sizes)
        for (a, b), cosine in zip(pairs, work.map(_cosine, pairs, sizes), strict=True):
            if cosine >= ALIKE:
                said = "are the same numbers" if cosine > 1 - 1e-12 else f"have a cosine of {cosine:.4f}"
                why = f"all their matrices together {said}: one may be a copy of the other"
                strength = (1 - ALIKE) / (1 - cosine) if cosine < 1 else math.inf
                found.append(finding(kind, f"{a.address} = {b.address}", cosine, strength, why))
    yield from strongest(found, MOST, "pairs")


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
