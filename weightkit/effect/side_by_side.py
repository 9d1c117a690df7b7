"""Side by side: what two models make of one prompt."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from weightkit.engine.forward import Engine
from weightkit.engine.generate import generate


@dataclass(frozen=True)
class Continuations:
    """What follows a prompt according to each of two models, greedily: as ids, and as text."""

    ids: list[int]  # the prompt
    text: str
    ids_a: list[int]  # what follows it
    text_a: str
    ids_b: list[int]
    text_b: str
    same: int  # tokens before they part


def side_by_side(
    a: Engine,
    b: Engine,
    ids: Sequence[int],
    tokens: int,
    ends: Collection[int],
    text: Callable[[Sequence[int]], str],
) -> Continuations:
    """Continue a prompt by up to so many tokens, or to one of `ends`. `text` says how ids read.

    Raises EngineError for a model that does not continue texts.
    """
    before, after = text(ids), [[token for token, _ in generate(e, ids, tokens, ends=ends)] for e in (a, b)]
    texts = [text(found) if a.has_encoder else text([*ids, *found]).removeprefix(before) for found in after]
    same = next((n for n, (x, y) in enumerate(zip(*after, strict=False)) if x != y), min(map(len, after)))
    return Continuations(list(ids), before, after[0], texts[0], after[1], texts[1], same)
