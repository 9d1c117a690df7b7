"""Causal attention with grouped keys, in blocks of queries."""

from __future__ import annotations

import numpy as np

from weightkit.engine.functions import F32, softmax

MOST_SCORES = 1 << 24  # numbers held at a time: 64 MB


def attention(q: F32, k: F32, v: F32, scale: float, window: int | None) -> F32:
    """softmax(q kᵀ · scale + mask) v, for the last queries of a sequence.

    q [batch, heads, t, d], k and v [batch, kv_heads, n, d] -> [batch, heads, t, d]. The queries are
    positions n - t to n; each sees the keys up to its own, the last `window` of them if there is one.
    Query head h uses key head h // (heads / kv_heads).
    """
    batch, heads, t, d = q.shape
    kv_heads, n = k.shape[1:3]
    q = q.reshape(batch, kv_heads, heads // kv_heads, t, d) * np.float32(scale)
    k, v = k[:, :, None], v[:, :, None]  # [batch, kv_heads, 1, n, d]
    out = np.empty_like(q)
    step = max(1, MOST_SCORES // (batch * heads * n))
    for first in range(0, t, step):
        part = q[..., first : first + step, :]
        low, high = n - t + first, n - t + first + part.shape[-2]  # positions of these queries
        start = max(0, low - window + 1) if window else 0
        scores = part @ k[..., start:high, :].swapaxes(-1, -2)
        scores += mask(low, high, start, window)
        out[..., first : first + step, :] = softmax(scores) @ v[..., start:high, :]
    return out.reshape(batch, heads, t, d)


def mask(low: int, high: int, start: int, window: int | None) -> F32:  # -> [high - low, high - start]
    """0 where query i of `low` to `high` sees key j of `start` to `high`, -inf where not."""
    i, j = np.arange(low, high)[:, None], np.arange(start, high)
    seen = (j <= i) & (j > i - window) if window else j <= i
    return np.where(seen, np.float32(0), np.float32(-np.inf))
