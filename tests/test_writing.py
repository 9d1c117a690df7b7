"""Text given out as its ids come: the same as all at once, linear work, and never a part of a stop string."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from weightkit.engine.tokenizer import Tokenizer
from weightkit.engine.writing import MOST_WAITING, Writing

PIECES = ["The cat", "  two spaces", " ", "\n\n", "漢字", "🙂🙂", "é", "</s>", " sat", "</s> was", "▁", "a"]


def by_bytes() -> tokenizers.Tokenizer:
    """As GPT-2 and Llama 3 have it; some tokens end within a character."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["The cat sat", "🙂🙂🙂🙂🙂", "漢漢漢漢"] * 9, trainer)
    return made


def sentencepiece() -> tokenizers.Tokenizer:
    """As Llama 2 has it: a space before every text, which is dropped again; bytes as <0x0A>."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *"▁acehnostwTé", "▁s", "▁sa", "th"]
    made = tokenizers.Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            [("▁", "s"), ("▁s", "a"), ("t", "h")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<s>", "</s>"])
    return made


def metaspace() -> tokenizers.Tokenizer:
    """As T5 has it."""
    scores = [
        ("<unk>", 0.0),
        ("</s>", 0.0),
        ("▁", -1.0),
        ("▁The", -2.0),
        ("▁cat", -2.0),
        *((c, -3.0) for c in "ateoswé"),
    ]
    made = tokenizers.Tokenizer(models.Unigram(scores, 0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(["</s>"])
    return made


@pytest.fixture(scope="module", params=[by_bytes, sentencepiece, metaspace], ids=lambda make: make.__name__)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    make: Callable[[], tokenizers.Tokenizer] = request.param
    return Tokenizer(make().to_str().encode(), tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.mark.parametrize("seed", range(40))
def test_the_parts_are_the_whole(tokenizer: Tokenizer, seed: int) -> None:
    draw = random.Random(seed)
    ids = tokenizer.encode("".join(draw.choices(PIECES, k=draw.randrange(1, 25))))
    cut = draw.randrange(len(ids) + 1)  # the prompt may end within a character
    assert Writing(ids[cut:], tokenizer.decode, context=ids[:cut]).whole() == tokenizer.decode(ids)
    parts = list(Writing(ids, tokenizer.decode))
    assert not any("\ufffd" in part for part in parts)
    assert all(parts)


def test_text_comes_as_soon_as_it_is_whole(tmp_path: Path) -> None:
    tokenizer = Tokenizer(by_bytes().to_str().encode(), tmp_path)
    ids = tokenizer.encode("The cat 字")
    coming = iter(ids)
    left = [(part, len(list(copy(coming)))) for part in Writing(coming, tokenizer.decode)]
    assert left[-1] == ("字", 0)
    assert [n for _, n in left[:-1]] == list(range(len(ids) - 1, 2, -1))  # its three bytes are one part


CALLS: dict[str, Callable[[Tokenizer], list[int]]] = {
    "words": lambda t: t.encode("The cat sat " * 200),
    "special tokens": lambda t: [t.encode("</s>")[-1]] * 1000,
    "a half": lambda t: t.encode("字")[-3:-2] * 1000,
    "ids without a token": lambda t: [100_000] * 1000,
}


@pytest.mark.parametrize("kind", CALLS)
def test_the_work_is_linear(tokenizer: Tokenizer, kind: str) -> None:
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return tokenizer.decode(ids)

    ids = CALLS[kind](tokenizer)
    assert Writing(ids, decode).whole() == tokenizer.decode(ids)
    assert longest <= 2 * MOST_WAITING + 2


def test_bytes_that_are_no_character_come_too(tmp_path: Path) -> None:
    tokenizer = Tokenizer(by_bytes().to_str().encode(), tmp_path)
    half = tokenizer.encode("字")[0]
    assert Writing([half], tokenizer.decode).whole() == "\ufffd"
    assert Writing([half, *tokenizer.encode(" sat")], tokenizer.decode).whole() == "\ufffd sat"


def test_all_of_it_can_be_had_again() -> None:
    writing = Writing(map(ord, "abcd"), letters)
    assert next(iter(writing)) == "a"
    assert [writing.whole(), writing.whole(), "".join(writing)] == ["abcd", "abcd", ""]


# ── stop strings ─────────────────────────────────────────────────────────────────────────────────────


def letters(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


@pytest.mark.parametrize(
    ("text", "stop", "parts"),
    [
        ("abcdef", ["cd"], ["a", "b"]),
        ("abcdef", ["x"], list("abcdef")),
        ("ababac", ["abac"], ["ab"]),
        ("aab", ["ab"], ["a"]),
        ("abcab", ["abd"], ["abc", "ab"]),  # what only began is given at the end
        ("abcd", ["bcd", "c"], ["a", "b"]),
        ("abcd", ["a"], []),
        ("abcd", ["d", "bc"], ["a"]),
    ],
)
def test_a_stop_string_is_not_given_out_nor_what_may_begin_it(text: str, stop: list[str], parts: list[str]) -> None:
    coming = iter(map(ord, text))
    writing = Writing(coming, letters, stop=stop)
    assert list(writing) == parts
    assert letters(writing.ids) + letters(list(coming)) == text  # what comes after is not asked for


@pytest.mark.parametrize("seed", range(30))
def test_stops_are_found_wherever_the_parts_end(seed: int) -> None:
    draw = random.Random(seed)
    text = "".join(draw.choices("ab", k=30))
    stop = "".join(draw.choices("ab", k=draw.randrange(1, 6)))
    writing = Writing(map(ord, text), letters, stop=[stop])
    assert "".join(writing) == text.partition(stop)[0]
