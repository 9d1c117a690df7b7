"""Measure: two models on the same text, in step, position by position; nothing of a whole text is kept."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from weightkit.dtypes import Array
from weightkit.effect.windows import WINDOW, Cut, Masks, Window, predictions, windows
from weightkit.engine.forward import Engine
from weightkit.engine.functions import F32, log_softmax
from weightkit.errors import EngineError, whole_number
from weightkit.parallel import Progress

COMPARED_BYTES = 8 << 20  # of logits, which are widened to float64


class Ids(Protocol):
    """The token ids of a text, which need not all be there at once."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[int]: ...


@dataclass(frozen=True)
class Place:
    """A token that was predicted: of which text, at which position in it, and its id."""

    text: int
    position: int
    id: int


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
    kl_max_at: Place | None = None  # the prediction that differs most

    @property
    def perplexity_a(self) -> float:
        """exp(nll_a)."""
        return _exp(self.nll_a)

    @property
    def perplexity_b(self) -> float:
        """exp(nll_b)."""
        return _exp(self.nll_b)


def _exp(nll: float) -> float:
    return math.inf if nll >= 700 else math.exp(nll)


def measure(
    a: Engine,
    b: Engine,
    texts: Iterable[Ids],
    *,
    window: int | None = None,
    overlap: int | None = None,
    masks: Masks | None = None,
    progress: Progress | None = None,
) -> Effect:
    """Run both engines over texts of token ids and compare what they predict.

    Long texts are cut into windows of `window` tokens (512, or as many as the models were made for), each of
    which begins with the last `overlap` tokens of the one before (half a window). Raises EngineError where
    there is nothing to predict, or where the models cannot be compared.
    """
    require_comparable(a, b)
    cut = _cut(a, b, window, overlap)
    texts = list(texts)
    all_ = sum(max(0, len(text) - 1) for text in texts)
    if not all_:
        raise EngineError("nothing to measure: a text needs at least two tokens")
    total = _Total()
    drift: int | None = None
    done = 0
    for part in windows(texts, cut, encoder=a.has_encoder):
        taps = _Digests(a, drift), _Digests(b, drift)
        pairs = zip(predictions(a, part, masks, taps[0]), predictions(b, part, masks, taps[1]), strict=True)
        for (places, x), (_, y) in pairs:
            total.add(part, places, x, y)
        drift = _first(taps[0].kept, taps[1].kept, drift)
        done += len(part.ids) - part.first
        if progress is not None:
            progress(done, all_)
    return total.effect(drift)


def require_comparable(a: Engine, b: Engine) -> None:
    """Raise EngineError unless what two models predict can be compared."""
    if a.config.vocab != b.config.vocab:
        raise EngineError(
            f"the models have vocabularies of {a.config.vocab} and {b.config.vocab} tokens; "
            "their outputs cannot be compared"
        )
    if (a.continues, a.has_encoder) != (b.continues, b.has_encoder):
        raise EngineError("the models do not predict the same: one is a decoder, the other not")


def _cut(a: Engine, b: Engine, window: int | None, overlap: int | None) -> Cut:
    window = None if window is None else whole_number(window, "a window")
    most = min((e.most_tokens for e in (a, b) if e.most_tokens is not None), default=None)
    if window is None:
        window = min([WINDOW, *(e.made_for for e in (a, b) if e.made_for is not None)])
    elif most is not None and window > most:
        raise EngineError(f"a window of {window} tokens is more than the {most} positions that these models have")
    return Cut(window, window // 2 if overlap is None else whole_number(overlap, "an overlap"))


@dataclass
class _Total:
    """Sums over the tokens that were predicted so far."""

    tokens: int = 0
    nll_a: float = 0.0
    nll_b: float = 0.0
    kl: float = 0.0
    kl_max: float = 0.0
    kl_max_at: Place | None = None
    agree: int = 0

    def add(self, window: Window, places: Array, a: F32, b: F32) -> None:  # [t], [t, vocab] twice
        """What both models say of the tokens at some places of a window, some rows at a time."""
        step = max(1, COMPARED_BYTES // a[:1].nbytes)
        for at in range(0, len(a), step):
            self._add(window, places[at : at + step], a[at : at + step], b[at : at + step])

    def _add(self, window: Window, places: Array, a: F32, b: F32) -> None:
        p, q = log_softmax(a), log_softmax(b)
        at = np.arange(len(places)), np.array(window.ids)[places]
        # Where the outputs are equal the divergence is exactly 0; elsewhere rounding must not make it negative.
        kl = np.where((a == b).all(axis=-1), 0.0, np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0))
        self.tokens += len(places)
        self.nll_a -= float(p[at].sum())
        self.nll_b -= float(q[at].sum())
        self.kl += float(kl.sum())
        self.agree += int((a.argmax(axis=-1) == b.argmax(axis=-1)).sum())
        most = int(kl.argmax())  # the first NaN, if there is one
        if not kl[most] <= self.kl_max and not math.isnan(self.kl_max):
            place = int(places[most])
            self.kl_max, self.kl_max_at = (
                float(kl[most]),
                Place(window.text, window.start + place, int(window.ids[place])),
            )

    def effect(self, drift: int | None) -> Effect:
        """The sums as means. Raises EngineError where nothing was predicted."""
        n = self.tokens
        if not n:
            raise EngineError("nothing to measure: there are special tokens only")
        return Effect(
            n, self.nll_a / n, self.nll_b / n, self.kl / n, self.kl_max, self.agree / n, drift, self.kl_max_at
        )


class _Digests:
    """A tap that remembers the residual stream after each layer by a digest: the streams themselves are large.

    Once two runs were seen to part after some layer, only the layers before it are still of interest.
    """

    def __init__(self, engine: Engine, before: int | None) -> None:
        self.kept: dict[int, list[bytes]] = defaultdict(list)  # by layer
        stack, layers = engine.stack, range(engine.layers if before is None else before)
        self._wanted = {f"{stack}layers.{layer}.out": layer for layer in layers}
        if layers:
            self._wanted[f"{stack}embed"] = 0  # what goes into the first layer counts as its

    def __call__(self, address: str, x: F32) -> F32:
        if self.wants(address):
            bits = np.where(np.isnan(x), np.float32(np.nan), x) + np.float32(0)  # one NaN, and one zero
            digest = hashlib.blake2b(np.ascontiguousarray(bits).data, digest_size=16)
            self.kept[self._wanted[address]].append(digest.digest() + bytes(str(x.shape), "ascii"))
        return x

    def wants(self, address: str) -> bool:
        return address in self._wanted


def _first(a: dict[int, list[bytes]], b: dict[int, list[bytes]], before: int | None) -> int | None:
    """The first layer after which the streams differ, or that only one of the models has."""
    return min((layer for layer in a.keys() | b.keys() if a.get(layer) != b.get(layer)), default=before)
