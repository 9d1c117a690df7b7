"""What two checkpoints differ in besides their numbers: metadata, and the tokens of their tokenizers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weightkit.checkpoint import Checkpoint


@dataclass(frozen=True)
class Tokens:
    """How the vocabularies of two tokenizers differ."""

    a: int  # tokens
    b: int
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    moved: int = 0  # tokens that have another id


def tokens(a: Checkpoint, b: Checkpoint) -> Tokens | None:
    """How two tokenizers differ; None where their tokens have the same ids, or where one has no tokenizer.json."""
    one, other = a.tokenizer_path, b.tokenizer_path
    if one is None or other is None:
        return None
    first, second = one.read_bytes(), other.read_bytes()
    if first == second:
        return None
    mine, theirs = (_vocabulary(raw) for raw in (first, second))
    if mine is None or theirs is None or mine == theirs:
        return None
    return Tokens(
        len(mine),
        len(theirs),
        added=[token for token in theirs if token not in mine],
        removed=[token for token in mine if token not in theirs],
        moved=sum(token in mine and mine[token] != number for token, number in theirs.items()),
    )


def _vocabulary(raw: bytes) -> dict[str, Any] | None:
    """The ids of the tokens of a tokenizer.json; None where it is none, which running the model would say."""
    try:
        value = json.loads(raw)
        vocabulary = value["model"]["vocab"]
        if not isinstance(vocabulary, dict):  # of Unigram: tokens and their scores, in order
            vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
        return vocabulary | {token["content"]: token["id"] for token in value.get("added_tokens") or []}
    except (ValueError, KeyError, TypeError):
        return None


def metadata(a: Mapping[str, str], b: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """Keys whose values differ, of two files of one format: {key: (of a, of b)}."""
    return {key: (a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key)}
