"""Circuits: how much of what one attention head writes another one reads, from the weights alone.

Source: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from weightkit.analysis.heads import Head, heads
from weightkit.dtypes import Array
from weightkit.errors import AddressError
from weightkit.parallel import Progress, Work
from weightkit.registry import Registry
from weightkit.tensor import BLOCK
from weightkit.threads import one_blas_thread
from weightkit.weight import Selection

if TYPE_CHECKING:
    from concurrent.futures import Executor

READS = {"Q": ("q", "k"), "K": ("k", "q"), "V": ("v", "o")}  # what a head reads with, and what that meets in it


@dataclass(frozen=True, eq=False)
class Layer:
    """The heads of one attention, and the R of rowsᵀ = Q R of each: ‖rowsᵀ x‖ = ‖R x‖ for every x."""

    heads: tuple[Head, ...]
    triangles: dict[str, Array]  # of q, k, v and o: [different ones, min(head, width), head]

    def slot(self, part: str, head: int) -> int:
        """Which of the different rows are those of a head: several share their keys and values."""
        return head * len(self.triangles[part]) // len(self.heads)

    def triangle(self, part: str, head: int) -> Array:
        """The R of the rows of one head."""
        return np.asarray(self.triangles[part][self.slot(part, head)])

    def norm(self, one: str, other: str, head: int) -> float:
        """‖oneᵀ other‖ of the rows of one head: of its W_QK, or its W_OV."""
        return float(np.linalg.norm(self.triangle(one, head) @ self.triangle(other, head).T))


Pair = tuple[Layer, range, Layer, range]  # heads of one layer, and of a later one


@dataclass(frozen=True)
class Composition:
    """How much of what `writer` adds to the residual stream `reader` reads as its Q, K or V."""

    kind: str  # "Q", "K" or "V"
    writer: str
    reader: str
    score: float  # ‖M1 M2‖ / (‖M1‖ ‖M2‖) in Frobenius norms, from 0 to 1


def circuits(
    registry: Registry,
    chosen: Sequence[Selection] | None = None,
    most: int | None = None,
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> list[Composition]:
    """Composition scores between heads of different layers, largest first; the `most` largest only, if given.

    With `chosen`, those that a chosen head takes part in. With W_QK = W_Qᵀ W_K and W_OV = W_O W_V, the score of Q is
    that of W_QKᵀ W_OV, of K that of W_QK W_OV, of V that of W_OV W_OV, the writer's on the right. Norms before Q, K
    and V and after O are folded in; rotation of Q and K is not. Raises AddressError where there are no such heads.
    """
    everyone = list(heads(registry))
    if not everyone:
        raise AddressError("this model has no attention heads whose Q, K, V and O are matrices on the residual stream")
    named = everyone if chosen is None else _chosen(everyone, chosen)
    if not named:
        raise AddressError("no attention head is named; name some as in 'layers.3.attn[head=2]', or whole layers")
    together = [tuple(group) for _, group in itertools.groupby(everyone, key=lambda head: head.attention)]
    pairs = list(_pairs(together, {head.address for head in named}))
    work = Work(executor, progress, len(together) + len(pairs))
    layers = list(work.map(_layer, together))
    tasks = [(layers[early], writers, layers[late], readers) for early, writers, late, readers in pairs]
    found = itertools.chain.from_iterable(work.map(_compositions, tasks))
    return sorted(found, key=_order) if most is None else heapq.nsmallest(most, found, key=_order)


def expected(registry: Registry) -> float:
    """The score of heads that have nothing to do with each other, random matrices: 1 / √width."""
    return 1 / math.sqrt(registry.config.width) if registry.config else math.nan


def _order(row: Composition) -> tuple[float, str, str, str]:
    return -row.score, row.writer, row.reader, row.kind


def _chosen(everyone: Sequence[Head], chosen: Sequence[Selection]) -> list[Head]:
    """The heads that have a part of theirs among what is chosen."""
    regions: dict[str, list[Selection]] = {}
    for selection in chosen:
        regions.setdefault(selection.weight.address, []).append(selection)
    return [head for head in everyone if any(map(_meets, itertools.repeat(regions), head.parts.values()))]


def _meets(regions: dict[str, list[Selection]], part: Selection) -> bool:
    found = regions.get(part.weight.address, ())
    return any(
        all(a.start < b.stop and b.start < a.stop for a, b in zip(part.region, other.region, strict=True))
        for other in found
    )


def _layer(heads: tuple[Head, ...]) -> Layer:
    """The heads of one layer with their triangles."""
    with one_blas_thread(), np.errstate(all="ignore"):
        return Layer(heads, {part: _triangles([head.parts[part] for head in heads], heads[0], part) for part in "qkvo"})


def _triangles(parts: Sequence[Selection], head: Head, part: str) -> Array:  # [different ones, min(head, d), head]
    different = {selection.index: selection for selection in parts}.values()
    return np.stack([np.linalg.qr(head.rows(part, selection).T, mode="r") for selection in different])


def _pairs(layers: Sequence[tuple[Head, ...]], named: set[str]) -> Iterator[tuple[int, range, int, range]]:
    """Writers of one layer, few enough that what they write is one block, with readers of a later one."""
    inside = [[i for i, head in enumerate(heads) if head.address in named] for heads in layers]
    for early, late in itertools.combinations(range(len(layers)), 2):
        if layers[early][0].stack != layers[late][0].stack:
            continue
        others = sorted(set(range(len(layers[early]))) - set(inside[early]))
        for writers, readers in ((inside[early], range(len(layers[late]))), (others, inside[late])):
            runs = _runs(writers, _at_once(layers[early])), _runs(readers, len(layers[late]))
            yield from ((early, some, late, seen) for some, seen in itertools.product(*runs))


def _runs(indices: Sequence[int], most: int) -> Iterator[range]:
    """Heads that lie side by side, so that they are read at once; at most so many."""
    start = 0
    for i in range(1, len(indices) + 1):
        if i == len(indices) or indices[i] != indices[i - 1] + 1 or i - start == most:
            yield range(indices[start], indices[i - 1] + 1)
            start = i


def _at_once(heads: Sequence[Head]) -> int:
    """How many heads have rows that are one block together."""
    return max(1, BLOCK // max(1, *(part.size for part in heads[0].parts.values())))


def _rows(layer: Layer, part: str, heads: range) -> Array:  # [different ones, head, d]
    """The rows of heads that lie side by side; those that they share only once."""
    first, last = (layer.heads[i].parts[part] for i in (heads[0], heads[-1]))
    region = tuple(slice(a.start, b.stop, 1) for a, b in zip(first.region, last.region, strict=True))
    rows = layer.heads[0].rows(part, Selection(first.weight, region))
    return rows.reshape(-1, layer.triangles[part].shape[-1], rows.shape[1])


def _compositions(pair: Pair) -> list[Composition]:
    """The scores of some heads of one layer with some of a later one; none with a head that is all zeros or has NaN.

    Matrices of low rank are held as what they read and write: ‖A W_O W_V‖ = ‖A W_O Rᵀ‖, with the R of W_Vᵀ = Q R, and
    A = Cᵀ B is as long as R B. So no product has more than head numbers on two of its three sides.
    """
    early, writers, late, readers = pair
    found: list[Composition] = []
    with one_blas_thread(), np.errstate(all="ignore"):
        triangles = np.stack([early.triangle("v", i) for i in writers])
        written = (triangles @ _rows(early, "o", writers)).reshape(-1, early.heads[0].parts["o"].shape[0]).T
        norms = np.array([early.norm("o", "v", i) for i in writers])
        for some in _runs(readers, _at_once(late.heads)):
            for kind, (part, meets) in READS.items():
                rows = _rows(late, part, some)
                seen = (rows.reshape(-1, rows.shape[-1]) @ written).reshape(*rows.shape[:2], -1)
                for i in some:
                    met = late.triangle(meets, i) @ seen[late.slot(part, i) - late.slot(part, some[0])]
                    scores = _norms(met, len(writers)) / (norms * late.norm(meets, part, i))
                    pairs = zip(writers, scores.tolist(), strict=True)
                    reader = late.heads[i].address
                    found += [
                        Composition(kind, early.heads[w].address, reader, s) for w, s in pairs if math.isfinite(s)
                    ]
    return found


def _norms(columns: Array, count: int) -> Array:  # [n, count · w] -> [count]
    """The Frobenius norm of each of `count` equal groups of columns."""
    return np.sqrt(np.square(columns).reshape(len(columns), count, -1).sum(axis=(0, 2)))
