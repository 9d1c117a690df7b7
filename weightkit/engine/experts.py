"""Mixture of experts: which experts each token goes through, and how much each counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from weightkit.config import Routing
from weightkit.engine.functions import F32, sigmoid, softmax

Choice = tuple[NDArray[np.int64], F32]  # [n, k] experts of each token, and their weights


def route(scores: F32, count: int, routing: Routing, correction: F32 | None = None) -> Choice:
    """Choose `count` experts for each token. scores [n, experts], correction [experts].

    The correction steers the choice and does not count in the weights. Sources: Mixtral, arXiv:2401.04088;
    DeepSeek-V2, arXiv:2405.04434 (groups); DeepSeek-V3, arXiv:2412.19437 (sigmoid, correction).
    """
    if routing.score == "sparsemixer":
        return _sparsemixer(scores, count, routing.jitter)
    if routing.score == "chosen softmax":
        chosen = _best(scores, count)
        return chosen, softmax(_of(scores, chosen)) * np.float32(routing.scale)
    shares = sigmoid(scores) if routing.score == "sigmoid" else softmax(scores)
    steered = shares if correction is None else shares + correction
    chosen = _best(_best_groups(steered, routing), count)
    weights = _of(shares, chosen)
    if routing.normalised:
        tiny = np.float32(1e-20) if routing.score == "sigmoid" else np.float32(0)
        weights = weights / (weights.sum(axis=-1, keepdims=True) + tiny)
    return chosen, weights * np.float32(routing.scale)


def mix(x: F32, choice: Choice, expert: Callable[[F32, int], F32]) -> F32:  # [n, width] -> [n, width]
    """The outputs of each token's experts, by their weights. Only chosen experts run, each on all its tokens."""
    chosen, weights = choice
    out = np.zeros_like(x)
    for number in np.unique(chosen):
        tokens, rank = np.nonzero(chosen == number)
        out[tokens] += expert(x[tokens], int(number)) * weights[tokens, rank][:, None]
    return out


def _best(scores: F32, count: int) -> NDArray[np.int64]:
    """The `count` largest of each row, the largest first; of equal ones the first."""
    return np.argsort(-scores, axis=-1, kind="stable")[:, :count]


def _of(scores: F32, chosen: NDArray[np.int64]) -> F32:
    return np.take_along_axis(scores, chosen, axis=-1)


def _best_groups(scores: F32, routing: Routing) -> F32:
    """Scores, with those outside of the best groups out of the running."""
    if routing.groups == 1:
        return scores
    grouped = scores.reshape(len(scores), routing.groups, -1)  # [n, groups, experts of one]
    merit = np.sort(grouped, axis=-1)[..., -routing.best_of_group :].sum(axis=-1)
    kept = np.zeros(merit.shape, bool)
    np.put_along_axis(kept, _best(merit, routing.groups_kept), True, axis=-1)
    return np.where(kept[:, :, None], grouped, np.float32(-np.inf)).reshape(scores.shape)


def _sparsemixer(scores: F32, count: int, jitter: float) -> Choice:
    """Experts one after another: the weight of each is its softmax among the scores close to it.

    Source: arXiv:2409.12136, and modeling_phimoe.py of transformers.
    """
    left = scores.copy()
    chosen, weights = [], []
    for _ in range(count):
        best = left.argmax(axis=-1)[:, None]
        top = np.take_along_axis(left, best, axis=-1)
        far = (top - scores) / np.maximum(np.abs(scores), top) > 2 * jitter
        shares = softmax(np.where(far, np.float32(-np.inf), left))
        chosen.append(best)
        weights.append(np.take_along_axis(shares, best, axis=-1))
        np.put_along_axis(left, best, np.float32(-np.inf), axis=-1)
    return np.concatenate(chosen, axis=-1), np.concatenate(weights, axis=-1)
