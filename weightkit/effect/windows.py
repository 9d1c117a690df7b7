"""Windows: a long text, some tokens at a time; and what a model of each kind predicts in one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from weightkit.dtypes import Array
from weightkit.engine.forward import Engine
from weightkit.engine.functions import F32
from weightkit.engine.tap import Tap
from weightkit.errors import EngineError

WINDOW = 512  # tokens that a long text is cut into
MASKED = 7  # one token in so many is masked at a time, about as often as masked models learn with


@dataclass(frozen=True)
class Cut:
    """How texts are cut: windows of so many tokens, the first `overlap` of which the one before predicted."""

    window: int
    overlap: int

    def __post_init__(self) -> None:
        if self.window < 2:
            raise EngineError(f"a window is of at least 2 tokens, one to predict from another, not of {self.window}")
        if not 1 <= self.overlap < self.window:
            raise EngineError(
                f"windows of {self.window} tokens overlap by 1 to {self.window - 1}, not by {self.overlap}: "
                "something is predicted in each, from at least one token"
            )


@dataclass(frozen=True)
class Window:
    """Some tokens of a text. Those from `first` on are predicted; those before are there to predict from."""

    ids: list[int]
    first: int
    text: int  # which of the texts
    start: int  # position of the first token in the text


@dataclass(frozen=True)
class Masks:
    """What a masked language model is asked with: the id of its mask, and those that are never masked."""

    mask: int
    never: frozenset[int] = frozenset()


def windows(texts: Iterable[Iterable[int]], cut: Cut, *, encoder: bool = False) -> Iterator[Window]:
    """All windows of all texts: every token but the first of each text is predicted once.

    With an encoder, which reads what comes before, the first half of a text is only read. No more of a text is held
    than a window.
    """
    for text, ids in enumerate(texts):
        coming, start = iter(ids), 0
        part = list(islice(coming, cut.window))
        first = max(1, len(part) // 2) if encoder else 1
        while first < len(part):
            yield Window(part, first, text, start)
            start, first = start + len(part) - cut.overlap, cut.overlap
            part = part[-cut.overlap :] + list(islice(coming, cut.window - cut.overlap))


def predictions(engine: Engine, window: Window, masks: Masks | None, tap: Tap) -> Iterator[tuple[Array, F32]]:
    """The places of a window that a model predicts, some at a time, with its logits there. -> [n], [n, vocab]

    A decoder predicts each token from those before it; a model with an encoder reads what comes before
    `first` with that; a masked model predicts every seventh token from all the others, seven times.
    """
    ids, places = engine.ids(window.ids)[0], np.arange(window.first, len(window.ids))
    if engine.has_encoder:
        source = engine.encode(ids[: window.first], tap)
        answer = np.array([engine.config.decoder_start, *ids[window.first : -1]])
        yield from _some(engine, answer, places - window.first, places, tap, source)
    elif engine.continues:
        yield from _some(engine, ids, places - 1, places, tap)
    elif masks is None:
        raise EngineError(
            "this model says what masked tokens are; which token is its mask only a tokenizer.json could say"
        )
    else:
        places = places[~np.isin(ids[places], list(masks.never))]
        for turn in range(MASKED):
            hidden = places[places % MASKED == turn]
            if len(hidden):
                asked = ids.copy()
                asked[hidden] = masks.mask
                yield from _some(engine, asked, hidden, hidden, tap)


def _some(
    engine: Engine, ids: Array, at: Array, places: Array, tap: Tap, source: F32 | None = None
) -> Iterator[tuple[Array, F32]]:
    """Logits at some places of `ids`, said to be for `places` of the window."""
    done = 0
    for logits in engine.logits_at(ids, at, source=source, tap=tap):
        yield places[done : done + len(logits)], logits
        done += len(logits)
