"""Generation: one token after another, with a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from weightkit.engine.cache import Cache
from weightkit.engine.forward import Engine
from weightkit.engine.functions import F32
from weightkit.errors import EngineError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: greedily at temperature 0, else drawn, seeded."""

    temperature: float = 0.0
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise EngineError(f"the temperature is a number from 0, got {self.temperature:g}")
        if self.top_k is not None and self.top_k < 1:
            raise EngineError(f"top_k is at least 1, got {self.top_k}")
        if self.seed < 0:
            raise EngineError(f"a seed is not negative, got {self.seed}")


def generate(
    engine: Engine, ids: Sequence[int], tokens: int, sampling: Sampling | None = None
) -> Iterator[tuple[int, F32]]:
    """The next `tokens` ids after a prompt, each with the logits [vocab] that it was chosen from.

    Ends early where the model has no more positions. Raises EngineError for ids outside the
    vocabulary.
    """
    sampling = sampling or Sampling()
    random = np.random.default_rng(sampling.seed)
    cache = Cache()
    following = engine.ids(ids)
    if len(following) != 1:
        raise EngineError(f"generation continues one sequence of ids, not {len(following)}")
    if not engine.continues:
        raise EngineError("this model says what masked tokens are; it does not continue a text")
    source = None
    if engine.has_encoder:  # which reads the prompt; the decoder starts from nothing
        source, following = engine.encode(following), np.array([[engine.config.decoder_start]], np.int64)
    for _ in range(tokens):
        if engine.most_tokens is not None and len(cache) + following.shape[1] > engine.most_tokens and len(cache):
            return
        logits = engine.logits(following, cache, source=source)[0, -1]
        chosen = choose(logits, sampling, random)
        yield chosen, logits
        following = np.array([[chosen]], np.int64)


def choose(logits: F32, sampling: Sampling, random: np.random.Generator) -> int:
    """One token id from logits [vocab]."""
    require_finite(logits)
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    order = np.argsort(-logits, kind="stable")[: sampling.top_k]
    below = (logits[order] - logits[order[0]]).astype(np.float64)  # 0 and less, so that nothing overflows
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        p = np.where(below == 0, 1.0, np.exp(below / sampling.temperature))
    return int(order[np.searchsorted(np.cumsum(p) / p.sum(), random.random(), side="right").clip(max=len(order) - 1)])


def require_finite(logits: F32) -> None:
    """Raise EngineError where a model's output holds NaN or Inf, which says nothing of the next token."""
    if not np.isfinite(logits).all():
        raise EngineError(
            "the model's output is not finite: its weights hold NaN, Inf or very large numbers; see weightkit check"
        )
