"""Measure: two models on the same text, position by position, in step."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from weightkit.engine.forward import Engine
from weightkit.engine.functions import F32, log_softmax
from weightkit.errors import EngineError
from weightkit.parallel import Progress

WINDOW = 512  # tokens that a long text is cut into


@dataclass(frozen=True)
class Effect:
    """What differs between the outputs of two models on some text. Nats; 0 and None for no effect."""

    tokens: int  # predicted, each from all tokens before it in its window
    nll_a: float  # mean negative log-likelihood
    nll_b: float
    kl_mean: float  # of KL(a ‖ b) over the positions
    kl_max: float
    top1_agreement: float  # share of positions at which both put the same token first
    first_drift: int | None  # the first layer after which the residual streams differ

    @property
    def perplexity_a(self) -> float:
        """exp(nll_a)."""
        return _exp(self.nll_a)

    @property
    def perplexity_b(self) -> float:
        """exp(nll_b)."""
        return _exp(self.nll_b)


def _exp(nll: float) -> float:
    return math.exp(nll) if nll < 700 else math.inf


def measure(a: Engine, b: Engine, sequences: Iterable[Sequence[int]], progress: Progress | None = None) -> Effect:
    """Run both engines over sequences of token ids and compare what they predict.

    Long sequences are cut into windows. Raises EngineError where there is nothing to predict, or
    where the models do not have one vocabulary.
    """
    if a.config.vocab != b.config.vocab:
        raise EngineError(
            f"the models have vocabularies of {a.config.vocab} and {b.config.vocab} tokens; "
            "their outputs cannot be compared"
        )
    most = min([WINDOW, *(e.most_tokens for e in (a, b) if e.most_tokens is not None)])
    if most < 2:
        raise EngineError(f"nothing to measure: a model of {most} position cannot predict a token from another")
    windows = [window for ids in sequences for window in _windows(ids, most)]
    if not windows:
        raise EngineError("nothing to measure: a text needs at least two tokens")
    per_token: list[tuple[np.ndarray, ...]] = []
    drift: list[int] = []
    for done, ids in enumerate(windows, start=1):
        streams = _Streams(), _Streams()
        logits_a, logits_b = (engine.logits(ids, tap=tap)[0, :-1] for engine, tap in zip((a, b), streams, strict=True))
        per_token.append(_compare(logits_a, logits_b, np.asarray(ids[1:])))
        drift.extend(_drift(*(tap.kept for tap in streams)))
        if progress is not None:
            progress(done, len(windows))
    nll_a, nll_b, kl, agree = (np.concatenate(parts) for parts in zip(*per_token, strict=True))
    return Effect(
        tokens=len(kl),
        nll_a=float(nll_a.mean()),
        nll_b=float(nll_b.mean()),
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        top1_agreement=float(agree.mean()),
        first_drift=min(drift, default=None),
    )


class _Streams:
    """A tap that keeps the residual stream: before the first block, and after every block."""

    def __init__(self) -> None:
        self.kept: list[F32] = []

    def __call__(self, address: str, x: F32) -> F32:
        if self.wants(address):
            self.kept.append(x)
        return x

    def wants(self, address: str) -> bool:
        return re.fullmatch(r"(decoder\.)?(embed|layers\.\d+\.out)", address) is not None


def _windows(ids: Sequence[int], most: int) -> Iterator[Sequence[int]]:
    """Windows of at most `most` tokens; each starts with the last of the one before, to predict from."""
    for start in range(0, len(ids) - 1, most - 1):
        yield ids[start : start + most]


def _compare(a: F32, b: F32, targets: np.ndarray) -> tuple[np.ndarray, ...]:  # [t, vocab] twice, [t]
    """Per position: both negative log-likelihoods, KL(a ‖ b), and whether the first choice agrees."""
    p, q = log_softmax(a), log_softmax(b)
    at = np.arange(len(targets)), targets
    # Where the outputs are equal the divergence is exactly 0; elsewhere rounding must not make it negative.
    kl = np.where((a == b).all(axis=-1), 0.0, np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0))
    return -p[at], -q[at], kl, a.argmax(axis=-1) == b.argmax(axis=-1)


def _drift(a: list[F32], b: list[F32]) -> Iterator[int]:
    """Layers after which the residual streams differ. Entry 0 of a list is before the first block."""
    for entry, (x, y) in enumerate(zip(a, b, strict=False)):
        if x.shape != y.shape or not np.array_equal(x, y, equal_nan=True):
            yield max(0, entry - 1)
    if len(a) != len(b):
        yield min(len(a), len(b)) - 1  # the first layer that only one of them has
