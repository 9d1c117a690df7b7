"""The tokenizer of a GGUF file as a tokenizer.json, which the tokenizers package reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from weightkit.errors import FormatError

_KEY = "tokenizer.ggml."
_CONTROL, _UNKNOWN, _USER = 3, 2, 4  # token types
# Splits before merging, by tokenizer.ggml.pre: the patterns of llama.cpp's llama-vocab.cpp.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_LLAMA3 = _WORDS + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS = {"llama-bpe": _LLAMA3, "llama3": _LLAMA3, "smaug-bpe": _LLAMA3, "qwen2": _QWEN2, "stablelm2": _QWEN2}
MOST_TOKENS = 4_000_000


def maker(path: Path, values: Mapping[str, Any], read: Callable[[Any], list[Any]]) -> Callable[[], bytes] | None:
    """A function that makes the tokenizer.json; None where the file has no tokenizer of a known kind."""
    make = {"llama": _sentencepiece, "gpt2": _bytes}.get(str(values.get(_KEY + "model")))
    if make is None or not hasattr(values.get(_KEY + "tokens"), "count"):
        return None

    def made() -> bytes:
        lists = {}
        for name in ("tokens", "scores", "token_type", "merges"):
            found = values.get(_KEY + name)
            if hasattr(found, "count"):
                if found.count > MOST_TOKENS:  # type: ignore[union-attr]
                    raise FormatError(f"{path}: a vocabulary of {found.count:,} is too large")  # type: ignore[union-attr]
                lists[name] = read(found)
        tokens = [_text(token) for token in lists["tokens"]]
        if len(set(tokens)) != len(tokens):
            raise FormatError(f"{path}: its vocabulary has a token twice")
        vocab = {token: number for number, token in enumerate(tokens)}
        return json.dumps(make(values, lists, vocab), ensure_ascii=False).encode("utf-8", "replace")

    return made


def _text(raw: Any) -> str:
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)


def _sentencepiece(values: Mapping[str, Any], lists: dict[str, list[Any]], vocab: dict[str, int]) -> dict[str, Any]:
    """SentencePiece BPE: which pieces merge first is told by their scores."""
    scores = lists.get("scores") or [0.0] * len(vocab)
    types = lists.get("token_type") or [1] * len(vocab)
    merges: list[tuple[float, int, int, str, str]] = []
    for token, number in vocab.items():
        if number >= len(scores) or number >= len(types) or types[number] not in (1, _USER):
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                merges.append((-scores[number], vocab[left], vocab[right], left, right))
    merges.sort(key=lambda merge: merge[:3])
    unknown = _token(values, vocab, "unknown_token_id", 0)
    prefix = values.get(_KEY + "add_space_prefix", True)
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        **_frame(values, types, vocab, begins=True),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                *([{"type": "Prepend", "prepend": "▁"}] if prefix else []),
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [[left, right] for *_, left, right in merges],
        },
    }


def _bytes(values: Mapping[str, Any], lists: dict[str, list[Any]], vocab: dict[str, int]) -> dict[str, Any]:
    """Byte-level BPE, as GPT-2 and most models since have it."""
    split = _SPLITS.get(str(values.get(_KEY + "pre")))
    merges = [_text(merge).split(" ", 1) for merge in lists.get("merges", [])]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": split is None}
    before = {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
    return {
        **_frame(values, lists.get("token_type") or [1] * len(vocab), vocab, begins=False),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [before, level]} if split else level,
        "decoder": level,
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": [merge for merge in merges if len(merge) == 2 and merge[0] in vocab and merge[1] in vocab],
        },
    }


def _frame(values: Mapping[str, Any], types: list[Any], vocab: dict[str, int], *, begins: bool) -> dict[str, Any]:
    """What every tokenizer.json has: special tokens, and those put before a text."""
    added = [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": types[number] != _USER,
        }
        for token, number in vocab.items()
        if number < len(types) and types[number] in (_CONTROL, _UNKNOWN, _USER) and token
    ]
    start = _token(values, vocab, "bos_token_id", None)
    frame: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    frame["post_processor"] = None
    if start is not None and values.get(_KEY + "add_bos_token", begins):
        special = {"SpecialToken": {"id": start, "type_id": 0}}
        first, second = ({"Sequence": {"id": which, "type_id": 0}} for which in "AB")
        frame["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [special, first],
            "pair": [special, first, special, second],
            "special_tokens": {start: {"id": start, "ids": [vocab[start]], "tokens": [start]}},
        }
    return frame


def _token(values: Mapping[str, Any], vocab: dict[str, int], key: str, default: int | None) -> str | None:
    number = values.get(_KEY + key, default)
    tokens = list(vocab)
    return tokens[number] if type(number) is int and 0 <= number < len(tokens) else None
