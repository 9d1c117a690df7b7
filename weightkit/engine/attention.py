"""Attention with grouped keys, in blocks of queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from weightkit import kernels, steps
from weightkit.engine.functions import F32, softmax
from weightkit.threads import crew

MOST_SCORES = 1 << 20  # numbers that a thread makes at a time, 4 MB, of which there are a few copies
# Queries at a time, so that they see few keys that come after them; from so many on, heads share the threads.
MANY = 128
WORTH = 1 << 12  # scores of a head from which on compiled loops are used

# What is added to scores: (first and last query, first and last key) -> [heads, queries, keys], or broadcast to it.
Bias = Callable[[int, int, int, int], F32]


@dataclass(frozen=True)
class Scores:
    """What becomes of the products of queries and keys before they weigh the values."""

    scale: float
    window: int | None = None  # a query sees so many keys, its own the last
    causal: bool = True
    cap: float | None = None  # scores are cap · tanh(score / cap)
    bias: Bias | None = None
    sinks: F32 | None = None  # [heads]: a score more in each row, whose weight goes to no value
    seen: Callable[[F32], F32] | None = None  # is given the weights, [batch, heads, t, n], and may change them

    @property
    def plain(self) -> bool:
        """Whether the weights are no more than a softmax of the scaled products that a query sees."""
        return self.cap is None and self.bias is None and self.sinks is None


def attention(q: F32, k: F32, v: F32, how: Scores) -> F32:
    """softmax(q kᵀ · scale + bias) v, for the last queries of a sequence.

    q [batch, heads, t, d], k [batch, kv_heads, n, d], v [batch, kv_heads, n, e] -> [batch, heads, t, e]. The
    queries are positions n - t to n; query head h uses key head h // (heads / kv_heads).
    """
    (batch, heads, t, _), kv_heads = q.shape, k.shape[1]
    out = np.empty((batch, heads, t, v.shape[-1]), np.float32)
    if how.seen or how.bias or t < MANY:
        _attend(q, k, v, how, out)
        return out
    group = heads // kv_heads

    def attend(head: int) -> None:
        own = slice(head * group, (head + 1) * group)
        part = how if how.sinks is None else replace(how, sinks=how.sinks[own])
        _attend(q[:, own], k[:, head : head + 1], v[:, head : head + 1], part, out[:, own])

    crew.map(attend, range(kv_heads), work=2 * q.size * k.shape[2])
    return out


def _attend(q: F32, k: F32, v: F32, how: Scores, out: F32) -> None:
    """`attention` of some heads, into `out`."""
    batch, heads, t, d = q.shape
    kv_heads, n = k.shape[1:3]
    q = q.reshape(batch, kv_heads, heads // kv_heads, t, d) * np.float32(how.scale)
    step = t if how.seen else max(1, min(MANY, MOST_SCORES // (batch * heads * n)))
    for first in range(0, t, step):
        part = q[..., first : first + step, :]
        low, high = n - t + first, n - t + first + part.shape[-2]  # positions of these queries
        start = max(0, low - how.window + 1) if how.window and not how.seen else 0
        stop = high if how.causal else n
        scores = (part @ k[:, :, None, start:stop].swapaxes(-1, -2)).reshape(batch, heads, high - low, stop - start)
        weights = _weights(scores, how, (low, high, start, stop))
        weights = weights if how.seen is None else how.seen(weights)
        grouped = weights.reshape(batch, kv_heads, heads // kv_heads, high - low, stop - start)
        mixed = grouped @ v[:, :, None, start:stop]
        out[:, :, first : first + step] = mixed.reshape(batch, heads, high - low, -1)


def _weights(scores: F32, how: Scores, span: tuple[int, int, int, int]) -> F32:  # [b, heads, t, n] -> the same
    """The weights of the values, from the products of queries and keys; `span` as a Bias takes it."""
    low, high, start, stop = span
    if how.plain and scores[0, 0].size >= WORTH and kernels.available():
        steps.soften(scores, low - start + 1 if how.causal else None, how.window)
        return scores
    if how.cap is not None:
        cap = np.float32(how.cap)
        scores = np.tanh(scores / cap) * cap
    if how.bias is not None:
        scores = scores + how.bias(*span)
    if how.causal and (how.window or scores.shape[-2] > 1):  # a single query sees all that was before it
        first = start if how.window else low  # all queries see the keys before the first of them
        scores[..., first - start :] += mask(low, high, first, how.window, stop)
    if how.sinks is None:
        return softmax(scores)
    sinks = np.broadcast_to(how.sinks[:, None, None], (*scores.shape[:3], 1))
    return softmax(np.concatenate((scores, sinks), axis=-1))[..., :-1]


def mask(low: int, high: int, start: int, window: int | None, stop: int | None = None) -> F32:
    """0 where query i of `low` to `high` sees key j of `start` to `stop` (or `high`), -inf where not."""
    i, j = np.arange(low, high)[:, None], np.arange(start, high if stop is None else stop)
    seen = (j <= i) & (j > i - window) if window else j <= i
    return np.where(seen, np.float32(0), np.float32(-np.inf))
