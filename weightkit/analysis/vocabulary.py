"""Vocabulary: what rows, neurons and heads mean in tokens, from the weights alone; nothing is run.

Source: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021); Geva et al., "Transformer
Feed-Forward Layers Build Predictions by Promoting Concepts in the Vocabulary Space", arXiv:2203.14680.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from weightkit.analysis.heads import Head, heads, norm_at, written_norm
from weightkit.analysis.rows import cosines, rows, spans
from weightkit.architectures.parts import Role
from weightkit.dtypes import Array
from weightkit.errors import AddressError, EngineError
from weightkit.parallel import Progress, in_order
from weightkit.registry import Registry
from weightkit.weight import Selection, Weight

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import pandas as pd

Scores = Callable[[slice], Array]  # of the tokens of a span, [n] or [n, k]


@dataclass(frozen=True)
class Scored:
    """One token and its score."""

    token: str
    id: int
    score: float


@dataclass(frozen=True)
class Reading:
    """What something means in tokens. `measure` says what a score is: "cosine", "logit" or "z"."""

    address: str
    kind: str  # "neighbours", "writes" or "copies"
    measure: str
    highest: list[Scored]  # first the highest
    lowest: list[Scored]  # first the lowest

    def frame(self) -> pd.DataFrame:
        """One row per token: the highest, then the lowest."""
        import pandas as pd

        names, values = self.rows()
        return pd.DataFrame(values, columns=names)

    def rows(self) -> tuple[list[str], list[tuple[str, str, int, float]]]:
        """The same as columns and rows."""
        ends = {"highest": self.highest, "lowest": self.lowest}
        return ["end", "token", "id", self.measure], [
            (end, s.token, s.id, s.score) for end, scored in ends.items() for s in scored
        ]


def read(
    registry: Registry,
    address: str,
    chosen: Sequence[Selection],
    token_text: Callable[[int], str],
    most: int = 10,
    *,
    token: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Reading:
    """What `chosen`, the selections of an address, mean in tokens.

    A token of the embedding or the vocab projection: its neighbours there, by the cosine of their rows. A neuron: the
    tokens whose logits it raises and lowers. A head: the tokens that it copies; with `token`, what it writes where it
    attends to that one. Raises AddressError for anything else, EngineError where nothing can be said.
    """
    kind, table, scores, measure = _question(registry, address, chosen, token)
    found = np.concatenate(list(in_order(scores, spans(table), executor=executor, progress=progress)))
    if kind == "neighbours":
        found[chosen[0].region[0].start] = np.nan  # itself

    def named(order: Array) -> list[Scored]:
        return [Scored(token_text(int(i)), int(i), float(found[i])) for i in order]

    known = np.flatnonzero(np.isfinite(found))
    order = known[np.argsort(-found[known], kind="stable")]
    return Reading(address, kind, measure, named(order[:most]), named(order[::-1][:most]))


def _question(
    registry: Registry, address: str, chosen: Sequence[Selection], token: int | None
) -> tuple[str, Weight, Scores, str]:
    """What is asked: its kind, the table whose rows are scored, how, and what a score is."""
    first = chosen[0]
    if len(chosen) == 1 and first.role in (Role.EMBEDDING, Role.HEAD) and first.shape[0] == 1 and token is None:
        return (
            "neighbours",
            first.weight,
            functools.partial(cosines, first.weight, first.array(np.float64)[0]),
            "cosine",
        )
    columns = [s for s in chosen if s.role is Role.DOWN and s.shape[1] == 1]
    if len(columns) == 1 and token is None:
        at = columns[0].weight.address.partition(".ffn")[0] + ".ffn"
        written = written_norm(registry, at).apply(columns[0].array(np.float64).T)
        table, written = _unembedding(registry, at, written)
        return "writes", table, functools.partial(_logits, table, written[0]), "logit"
    head = _head(registry, chosen)
    if head is None:
        raise AddressError(
            f"{address}: names neither one token, one neuron nor one head; write embed[token=42], "
            "layers.0.ffn[neuron=17] or layers.0.attn[head=3]"
            + (", this one with a token" if token is not None else "")
        )
    table, written = _unembedding(registry, head.attention, head.writer())
    embedding = _embedding(registry, head, table)
    if token is None:
        middle = _moments(table, written)
        return "copies", table, functools.partial(_copies, embedding, table, head.reader("v"), written, *middle), "z"
    if not 0 <= token < embedding.shape[0]:
        raise AddressError(f"token {token}: the embedding has rows from 0 to {embedding.shape[0] - 1}")
    value = head.reader("v") @ rows(embedding, slice(token, token + 1, 1))[0]
    return "writes", table, functools.partial(_logits, table, value @ written), "logit"


def _head(registry: Registry, chosen: Sequence[Selection]) -> Head | None:
    """The one head whose O is chosen, and no other one's."""
    regions = [(s.weight.address, s.region) for s in chosen if s.role is Role.O]
    found = (h for h in heads(registry) if (h.parts["o"].weight.address, h.parts["o"].region) == regions[0])
    return next(found, None) if len(regions) == 1 else None


def _unembedding(registry: Registry, at: str, written: Array) -> tuple[Weight, Array]:
    """The vocab projection, and what is written to the stream as it arrives there, but for its scale. [n, width]"""
    stack, config = at.rpartition("layers.")[0], registry.config
    if config is not None and (config.norms == "sum" or config.residual_normed):
        raise EngineError("the residual stream of this model is normed on the way: what a part writes does not last")
    table = registry.get("lm_head")
    parts = [w for key, w in registry.items() if key.startswith("lm_head.") and w.role is not Role.BIAS]
    if table is None or parts or stack not in ("", "decoder.") or table.shape[1] != written.shape[1]:
        raise EngineError(f"{at}: no vocab projection reads what it writes, so tokens say nothing of it")
    return table, norm_at(registry, f"{stack}norm").apply(written)


def _embedding(registry: Registry, head: Head, table: Weight) -> Weight:
    """The embedding that a head would read from directly. Its scale and norm, of each token, change no order."""
    found = registry.get(f"{head.stack}embed") or registry.get("embed")
    if found is None or found.shape != table.shape:
        raise EngineError(f"{head.address}: the embedding and the vocab projection are not of one shape")
    return found


def _logits(table: Weight, direction: Array, span: slice) -> Array:  # [n]
    with np.errstate(all="ignore"):
        return rows(table, span) @ direction


def _moments(table: Weight, written: Array) -> tuple[Array, Array]:
    """Mean and covariance of the rows of the vocab projection, seen through what a head writes. [head], [head, head]"""
    count, total = 0, np.zeros(len(written))
    square = np.zeros((len(written), len(written)))
    for span in spans(table):
        with np.errstate(all="ignore"):
            seen = rows(table, span) @ written.T
        seen = seen[np.isfinite(seen).all(axis=1)]
        count, total, square = count + len(seen), total + seen.sum(axis=0), square + seen.T @ seen
    mean = total / max(1, count)
    return mean, square / max(1, count) - np.outer(mean, mean)


def _copies(
    embedding: Weight, table: Weight, reader: Array, written: Array, mean: Array, covariance: Array, span: slice
) -> Array:  # [n]
    """How far a token raises its own logit, in standard deviations of the logits that it leads to.

    The logits of a token are linear in what the head reads of it: so their mean and variance come from those of the
    vocab projection, and the [vocab, vocab] matrix is never formed.
    """
    with np.errstate(all="ignore"):
        values = rows(embedding, span) @ reader.T
        own = np.einsum("ij,ij->i", values, rows(table, span) @ written.T)
        return (own - values @ mean) / np.sqrt(np.einsum("ij,jk,ik->i", values, covariance, values, optimize=True))
