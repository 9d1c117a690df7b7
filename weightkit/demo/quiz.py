"""Quiz: ask a model facts, and count which it knows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weightkit.demo.facts import Fact, prompts
from weightkit.model import Model


@dataclass(frozen=True)
class Answer:
    """What a model said when it was asked a fact."""

    fact: Fact
    prompt: str
    said: str

    @property
    def right(self) -> bool:
        """Whether it is the fact."""
        return self.said == self.fact.answer


def ask(model: Model, facts: Sequence[Fact], phrasing: int = 0) -> list[Answer]:
    """Ask each fact in one of its held-out phrasings; the likeliest next token is the answer.

    Prompts of one length run as one batch.
    """
    texts = [prompts(fact)[phrasing % len(prompts(fact))] for fact in facts]
    by_length: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
    for place, text in enumerate(texts):
        ids = model.ids(text)
        by_length[len(ids)].append((place, ids))
    said = [""] * len(facts)
    for group in by_length.values():
        logits = model.logits(np.array([ids for _, ids in group]))[:, -1]  # [b, vocab]
        for (place, _), token in zip(group, logits.argmax(axis=-1), strict=True):
            said[place] = model.tokenizer.decode([int(token)]).strip()
    return [Answer(*row) for row in zip(facts, texts, said, strict=True)]


@dataclass(frozen=True)
class Lost:
    """The facts that an edited model no longer knows."""

    address: str
    facts: list[Fact]

    def by_relation(self) -> Counter[str]:
        """How many of each kind."""
        return Counter(fact.relation for fact in self.facts)

    def by_answer(self) -> Counter[str]:
        """How many of each answer."""
        return Counter(fact.answer for fact in self.facts)

    def focus(self) -> float:
        """The share of what was lost that is of one kind: 1.0 where it is nothing else."""
        return max(self.by_relation().values(), default=0) / max(1, len(self.facts))


def lost(known: Sequence[Answer], edited: Model, address: str) -> Lost:
    """What of the facts that a model knew an edited one does not."""
    facts = [answer.fact for answer in known if answer.right]
    return Lost(address, [answer.fact for answer in ask(edited, facts) if not answer.right])
