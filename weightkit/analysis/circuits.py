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
from weightkit.parallel import Progress, in_order
from weightkit.registry import Registry
from weightkit.tensor import BLOCK
from weightkit.weight import Selection

if TYPE_CHECKING:
    from concurrent.futures import Executor

Pair = tuple[tuple[Head, ...], tuple[Head, ...]]  # of one layer, and of a later one


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
    tasks = list(_pairs(everyone, {head.address for head in named}))
    found = itertools.chain.from_iterable(in_order(_compositions, tasks, executor=executor, progress=progress))
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


def _pairs(everyone: Sequence[Head], named: set[str]) -> Iterator[Pair]:
    """Writers and readers of every two layers, few enough writers that what they write is one block."""
    layers = [tuple(group) for _, group in itertools.groupby(everyone, key=lambda head: head.attention)]
    for writers, readers in itertools.combinations(layers, 2):
        if writers[0].stack != readers[0].stack:
            continue
        width, value = writers[0].parts["o"].shape
        some = max(1, BLOCK // (width * value))
        asked = [head for head in writers if head.address in named], readers
        asking = (
            [head for head in writers if head.address not in named],
            tuple(head for head in readers if head.address in named),
        )
        for group, others in (asked, asking):
            for at in range(0, len(group) if others else 0, some):
                yield tuple(group[at : at + some]), others


def _compositions(pair: Pair) -> list[Composition]:
    """The scores of some heads of one layer with some of a later one; none with a head that is all zeros or has NaN.

    A product through the matrices of low rank needs only the triangles of their QR: ‖AᵀB‖ = ‖R B‖ with A = (QR)ᵀ.
    """
    writers, readers = pair
    with np.errstate(all="ignore"):
        written = np.concatenate([head.writer().T @ _triangle(head.reader("v")).T for head in writers], axis=1)
        norms = _norms(written, len(writers))  # of each W_OV
        found = []
        for reader in readers:
            for kind, rows in _reads(reader):
                scores = _norms(rows @ written, len(writers)) / (norms * np.linalg.norm(rows))
                pairs = zip(writers, scores, strict=True)
                found += [Composition(kind, w.address, reader.address, float(s)) for w, s in pairs if np.isfinite(s)]
    return found


def _reads(head: Head) -> Iterator[tuple[str, Array]]:
    """Rows through which a head reads the stream, as long as what they read counts. [head, d] each"""
    q, k = head.reader("q"), head.reader("k")
    yield "Q", _triangle(k) @ q
    yield "K", _triangle(q) @ k
    yield "V", _triangle(head.writer()) @ head.reader("v")


def _triangle(rows: Array) -> Array:  # [head, d] -> [min(head, d), head]
    """The R of rowsᵀ = Q R: ‖rowsᵀ x‖ = ‖R x‖ for every x."""
    return np.asarray(np.linalg.qr(rows.T, mode="r"))


def _norms(columns: Array, count: int) -> Array:  # [n, count · w] -> [count]
    """The Frobenius norm of each of `count` equal groups of columns."""
    return np.sqrt(np.square(columns).reshape(len(columns), count, -1).sum(axis=(0, 2)))
