"""The tokenizer of a GGUF file as a Hugging Face tokenizer.json.

Sources: llama-vocab.cpp of llama.cpp, for what the values mean and how texts are cut before they are merged;
convert_slow_tokenizer.py of transformers, for how a tokenizer.json of SentencePiece looks.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from weightkit.formats.gguf_header import Items, Value

Json = dict[str, Any]
_KEY = "tokenizer.ggml."
_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6  # token_type
_LONGEST = 256  # characters of a piece that is looked at for merges; SentencePiece allows 16
SPACE = "▁"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a file, and what it says of them."""

    values: Mapping[str, Value]
    ids: dict[str, int]  # the first of each token
    kinds: list[int]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `tokenizer.ggml.{key}`."""
        return self.values.get(_KEY + key, default)

    def token(self, key: str) -> tuple[str, int] | None:
        """The token that a key names by its id."""
        wanted = self.get(key)
        return next(((token, i) for token, i in self.ids.items() if i == wanted), None)


def maker(values: Mapping[str, Value]) -> Callable[[], bytes] | None:
    """A function that makes the tokenizer.json; None where the file has no tokenizer of a kind known here."""
    tokens = values.get(_KEY + "tokens")
    model = values.get(_KEY + "model")
    if model not in _MODELS or not isinstance(tokens, Items) or not tokens.count:
        return None
    kept = {key: value for key, value in values.items() if key.startswith(_KEY)}
    return functools.partial(tokenizer_json, kept)


def tokenizer_json(values: Mapping[str, Value]) -> bytes:
    """The tokenizer.json of a file with these values."""
    tokens = _items(values, "tokens").strings()
    kinds = _items(values, "token_type").numbers()[: len(tokens)]
    kinds += [_NORMAL] * (len(tokens) - len(kinds))
    ids: dict[str, int] = {}
    for number, token in enumerate(tokens):
        ids.setdefault(token, number)
    vocabulary = Vocabulary(values, ids, kinds)
    return json.dumps(_MODELS[str(values[_KEY + "model"])](vocabulary), ensure_ascii=False).encode()


def config(values: Mapping[str, Value]) -> Json:
    """The tokenizer_config.json of a file with these values: its chat template, and which token is which."""
    named: Json = {"chat_template": values.get("tokenizer.chat_template")}
    tokens = _items(values, "tokens").strings()
    for here, there in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad"), ("mask", "mask")):
        number = values.get(f"{_KEY}{here}_token_id")
        if type(number) is int and 0 <= number < len(tokens):
            named[f"{there}_token"] = tokens[number]
    return named


def _items(values: Mapping[str, Value], key: str) -> Items:
    found = values.get(_KEY + key)
    return found if isinstance(found, Items) else Items(0, 0, b"", "<")


# ── SentencePiece ──────────────────────────────────────────────────────────────────────────────────


def _sentencepiece(vocabulary: Vocabulary) -> Json:
    """BPE of characters in which the piece of the highest score is merged first."""
    prefix = vocabulary.get("add_space_prefix", True) is not False
    before = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    after = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    unknown = vocabulary.token("unknown_token_id") or next(
        ((token, i) for token, i in vocabulary.ids.items() if vocabulary.kinds[i] == _UNKNOWN), None
    )
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    return {
        **_frame(vocabulary, bos=True),
        "normalizer": {"type": "Sequence", "normalizers": [*before, spaces]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *after]},
        "model": {
            **_BPE,
            "unk_token": unknown[0] if unknown else None,
            "fuse_unk": True,
            "byte_fallback": all(f"<0x{byte:02X}>" in vocabulary.ids for byte in range(256)),
            "vocab": vocabulary.ids,
            "merges": _by_score(vocabulary),
        },
    }


def _by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The merges that give each piece, best score first, as transformers derives them (`generate_merges`)."""
    scores = _items(vocabulary.values, "scores").numbers()
    pieces = {
        token: number
        for token, number in vocabulary.ids.items()
        if vocabulary.kinds[number] in (_NORMAL, _USER) and number < len(scores) and len(token) <= _LONGEST
    }
    merges: list[tuple[float, int, int, str, str]] = []
    for piece, number in pieces.items():
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        whole = [(left, right) for left, right in pairs if left in pieces and right in pieces]
        whole.sort(key=lambda pair: (pieces[pair[0]], pieces[pair[1]]))
        merges += [(float(scores[number]), len(left), len(right), left, right) for left, right in whole]
    merges.sort(key=lambda merge: merge[:3], reverse=True)
    return [merge[3:] for merge in merges]


# ── bytes ──────────────────────────────────────────────────────────────────────────────────────────

_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = r"[^\r\n\p{L}\p{N}]?"
_TAIL_SLASH = _TAIL.replace(r"[\r\n]*", r"[\r\n/]*")
_TEKKEN = rf"{_CASED}{_UPPER}*{_LOWER}+|{_CASED}{_UPPER}+{_LOWER}*|\p{{N}}|{_TAIL_SLASH}"
_GPT4O = (
    rf"{_CASED}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_CASED}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_TAIL_SLASH}"
)
_HAN = "[一-龥぀-ゟ゠-ヿ]+"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Pre:
    """How a text is cut into words before anything is merged, and what goes with that."""

    patterns: tuple[str, ...]  # each cuts the pieces of the one before
    whole_words: bool = False  # a word that is a token is not merged from its bytes
    bos: bool = False  # a text begins with it, unless add_bos_token says otherwise


_DEFAULT = Pre((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
PRE: dict[str, Pre] = {
    **dict.fromkeys("gpt-2 phi-2 jina-es jina-de mpt olmo jais roberta-bpe gigachat trillion".split(), Pre((_GPT2,))),
    **dict.fromkeys("llama-bpe llama3 llama-v3 falcon3 pixtral midm-2.0 lfm2".split(), Pre((_LLAMA3,), True, True)),
    **dict.fromkeys("dbrx smaug-bpe glm4 chatglm-bpe".split(), Pre((_LLAMA3,))),
    **dict.fromkeys("qwen2 deepseek-r1-qwen stablelm2 megrez hunyuan".split(), Pre((_QWEN2,))),
    **dict.fromkeys("starcoder refact command-r smollm codeshell exaone minerva-7b".split(), Pre((r"\p{N}", _GPT2))),
    "qwen35": Pre((_QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"\s\p{L}\p{N}", r"\s\p{L}\p{M}\p{N}"),)),
    "falcon": Pre((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "tekken": Pre((_TEKKEN,), True, True),
    "gpt-4o": Pre((_GPT4O,)),
    "deepseek-v3": Pre((r"\p{N}{1,3}", _HAN, _DEEPSEEK3)),
    "deepseek-coder": Pre(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    **dict.fromkeys("poro-chat bloom gpt3-finnish".split(), Pre((r" ?[^(\s|.,!?…。，、।۔،)]+",))),
    "viking": Pre((r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}")),
}


def _bytes(vocabulary: Vocabulary) -> Json:
    """BPE of bytes, which GPT-2 began; merges are given."""
    pre = PRE.get(str(vocabulary.get("pre")), _DEFAULT)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    cuts = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in pre.patterns
    ]
    return {
        **_frame(vocabulary, bos=pre.bos),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, level]},
        "decoder": level,
        "model": {
            **_BPE,
            "ignore_merges": pre.whole_words,
            "vocab": vocabulary.ids,
            "merges": _given(vocabulary),
        },
    }


def _given(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The merges of the file, without those of tokens that it does not have, at which others would stop."""
    ids = vocabulary.ids
    split = (merge.partition(" ") for merge in _items(vocabulary.values, "merges").strings())
    return [(left, right) for left, _, right in split if left in ids and right in ids and left + right in ids]


# ── both ───────────────────────────────────────────────────────────────────────────────────────────

_BPE: Json = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
_MODELS: dict[object, Callable[[Vocabulary], Json]] = {"llama": _sentencepiece, "gpt2": _bytes}


def _frame(vocabulary: Vocabulary, *, bos: bool) -> Json:
    """What is not of the model: tokens that are found before all else, and what a text begins and ends with."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    named = {vocabulary.get(f"{key}_token_id") for key in ("bos", "eos", "unknown", "padding")}
    added = [
        {"id": number, "content": token, **flags, "special": vocabulary.kinds[number] != _USER}
        for token, number in vocabulary.ids.items()
        if token and (vocabulary.kinds[number] in (_UNKNOWN, _CONTROL, _USER) or number in named)
    ]
    ends = {
        which: vocabulary.token(f"{which}_token_id")
        for which, default in (("bos", bos), ("eos", False))
        if vocabulary.get(f"add_{which}_token", default) is True
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": _template(ends.get("bos"), ends.get("eos")),
    }


def _template(bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> Json | None:
    if bos is None and eos is None:
        return None

    def around(name: str, kind: int) -> list[Json]:
        start, end = ([{"SpecialToken": {"id": t[0], "type_id": kind}}] if t else [] for t in (bos, eos))
        return [*start, {"Sequence": {"id": name, "type_id": kind}}, *end]

    tokens = {token: {"id": token, "ids": [number], "tokens": [token]} for token, number in filter(None, (bos, eos))}
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": tokens,
    }
