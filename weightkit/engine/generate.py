"""Generation: one token after another, with a cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from weightkit.engine.cache import Cache
from weightkit.engine.finite import require_finite
from weightkit.engine.forward import Engine
from weightkit.engine.functions import F32
from weightkit.errors import EngineError, whole_number
from weightkit.kernels import FEW


class Choice(TypedDict, total=False):
    """How the next token is chosen, as callers say it: the keywords of Sampling."""

    temperature: float
    top_k: int | None
    top_p: float
    seed: int


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: greedily at temperature 0, else drawn, seeded."""

    temperature: float = 0.0
    top_k: int | None = None  # of the likeliest tokens only so many
    top_p: float = 1.0  # of those, the fewest likeliest that have this probability together
    seed: int = 0

    def __post_init__(self) -> None:
        if not _within(self.temperature, lambda t: 0 <= t < float("inf")):
            raise EngineError(f"the temperature is a number from 0, not {self.temperature!r}")
        if self.top_k is not None:
            whole_number(self.top_k, "top_k", least=1)
        if not _within(self.top_p, lambda p: 0 < p <= 1):
            raise EngineError(f"top_p is a probability above 0 and at most 1, not {self.top_p!r}")
        whole_number(self.seed, "a seed")


def _within(value: Any, bounds: Callable[[float], bool]) -> bool:
    return isinstance(value, Real) and bounds(float(value))


def generate(
    engine: Engine,
    ids: Sequence[int],
    tokens: int,
    sampling: Sampling | None = None,
    ends: Collection[int] = (),
    steps: Steps | None = None,
) -> Iterator[tuple[int, F32]]:
    """The next `tokens` ids after a prompt, each with the logits [vocab] that it was chosen from.

    Ends early after an id of `ends`, and where the model has no more positions. `steps` are shared with the texts
    that are generated beside this one: take a token of each in turn. Raises EngineError for ids outside the vocabulary.
    """
    sampling, steps = sampling or Sampling(), steps or Steps(engine)
    random = np.random.default_rng(sampling.seed)
    cache = Cache()
    prompt = engine.ids(ids)
    if len(prompt) != 1:
        raise EngineError(f"generation continues one sequence of ids, not {len(prompt)}")
    engine.require_continues()
    for left in reversed(range(tokens)):
        logits = steps.take(cache) if len(cache) else _begin(engine, prompt, cache)
        require_finite(logits, engine, prompt if engine.has_encoder else cache.ids, cache.ids)
        chosen = choose(logits, sampling, random)
        is_last = not left or chosen in ends or len(cache) == engine.most_tokens
        if not is_last:
            steps.wait(cache, chosen)
        yield chosen, logits
        if is_last:
            return


def _begin(engine: Engine, prompt: NDArray[np.int64], cache: Cache) -> F32:  # [1, t] -> [vocab]
    """Logits after a prompt. An encoder reads it, where there is one; the decoder then starts from nothing."""
    if not engine.has_encoder:
        return engine.logits(prompt, cache, last=True)[0, -1]
    return engine.logits([[engine.config.decoder_start]], cache, source=engine.encode(prompt), last=True)[0, -1]


class Steps:
    """Texts that go on by a token each: all that wait are computed when one of them is asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: dict[Cache, int] = {}  # the id that goes into each next
        self._logits: dict[Cache, F32] = {}  # computed and not yet taken

    def wait(self, cache: Cache, chosen: int) -> None:
        """A text goes on with an id."""
        self._waiting[cache] = chosen

    def take(self, cache: Cache) -> F32:  # -> [vocab]
        """The logits after the id that a text went on with."""
        if cache in self._waiting:
            self._compute()
        return self._logits.pop(cache)

    def _compute(self) -> None:
        engine, waiting, self._waiting = self._engine, self._waiting, {}
        together = [] if len(waiting) == 1 else [cache for cache in waiting if not engine.turns_anew(cache)]
        for cache in (cache for cache in waiting if cache not in together):
            self._logits[cache] = engine.logits([[waiting[cache]]], cache, last=True)[0, -1]
        for at in range(0, len(together), FEW):
            some = together[at : at + FEW]
            found = engine.logits_together([waiting[cache] for cache in some], some)
            self._logits.update(zip(some, found, strict=True))


def choose(logits: F32, sampling: Sampling, random: np.random.Generator) -> int:
    """One token id from finite logits [vocab]."""
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    ids, p = candidates(logits, sampling)
    return int(ids[np.searchsorted(np.cumsum(p) / p.sum(), random.random(), side="right").clip(max=len(ids) - 1)])


def candidates(logits: F32, sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The ids that may be drawn, likeliest first, and their probabilities: temperature, then top_k, then top_p.

    The order is that of transformers. top_p is nucleus sampling (Holtzman et al., 2019).
    """
    ids = np.argsort(-logits, kind="stable")[: sampling.top_k]
    below = (logits[ids] - logits[ids[0]]).astype(np.float64)  # 0 and less, so that nothing overflows
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        p = np.where(below == 0, 1.0, np.exp(below / sampling.temperature))
    p /= p.sum()
    likelier = np.cumsum(p) - p  # what the tokens before each have together
    kept = len(ids) if sampling.top_p == 1 else int(np.searchsorted(likelier, sampling.top_p))
    return ids[:kept], p[:kept] / p[:kept].sum()
