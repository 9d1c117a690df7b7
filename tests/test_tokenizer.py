"""Text to ids and back, tokens as they read, and tokenizer files that are broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

import weightkit as wk
from tests import tiny
from weightkit.engine import tokenizer as room
from weightkit.engine.tokenizer import Tokenizer
from weightkit.errors import EngineError, FormatError, WeightkitError

TEXT = "The capital of France is Paris, and the capital of Italy is Rome. A café has no ☃."


@pytest.fixture(scope="module")
def bytes_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level BPE, as GPT-2 and Llama 3 have it; words of the text, with their space, are tokens."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|end|>"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator([TEXT] * 20, trainer)
    path = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    made.save(str(path))
    return path


def opened(path: Path) -> Tokenizer:
    return Tokenizer(path.read_bytes(), path)


@pytest.fixture(scope="module")
def by_bytes(bytes_file: Path) -> Tokenizer:
    return opened(bytes_file)


@pytest.fixture(scope="module")
def by_words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A word list, which has one id for every word that is not in it."""
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<unk>": 0, "the": 1, "cat": 2, "sat": 3, "of": 7}, unk_token="<unk>")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    made.save(str(path))
    return opened(path)


@pytest.fixture(scope="module")
def stories(shared: Path) -> Tokenizer:
    """SentencePiece as transformers saves it: a space before every text, bytes as <0x0A>, <s> put first."""
    return opened(shared / "models" / "stories260K" / "tokenizer.json")


# ── there and back ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", [TEXT, " a leading space", "two  spaces\nand a line", "<|end|>", "", "naïve 漢字 🙂"])
def test_bytes_come_back_as_they_were(by_bytes: Tokenizer, text: str) -> None:
    assert by_bytes.decode(by_bytes.encode(text)) == text.replace("<|end|>", "")


def test_tokens_read_as_they_do_in_the_text(by_bytes: Tokenizer) -> None:
    tokens = [by_bytes.token(i) for i in by_bytes.encode(TEXT)]
    assert "".join(tokens) == TEXT
    assert {" capital", " France", " is"} <= set(tokens)
    assert by_bytes.token(by_bytes.encode("<|end|>")[0]) == "<|end|>"


def test_a_token_that_is_part_of_a_letter_shows_its_piece(by_bytes: Tokenizer) -> None:
    pieces = by_bytes.encode("漢")
    assert len(pieces) == 3
    assert all("\ufffd" not in by_bytes.token(i) and by_bytes.token(i) for i in pieces)


def test_stories(stories: Tokenizer) -> None:
    ids = stories.encode("Once upon a time, there was a girl.\n")
    assert ids[:4] == [1, 403, 407, 261]
    assert [stories.token(i) for i in ids[:5]] == ["<s>", " Once", " upon", " a", " time"]
    assert stories.decode(ids) == "Once upon a time, there was a girl.\n"
    assert stories.last_id == 511


def test_every_token_of_stories_can_be_shown(stories: Tokenizer) -> None:
    assert all(stories.token(i) for i in range(512))
    assert [stories.token(i) for i in (0, 1, 2, 512, 10**9)] == ["<unk>", "<s>", "</s>", "<512>", f"<{10**9}>"]


def test_words(by_words: Tokenizer) -> None:
    ids = by_words.encode("the cat sat")
    assert ids == [1, 2, 3]
    assert by_words.decode(ids) == "the cat sat"
    assert [by_words.token(i).strip() for i in (0, 2, 7)] == ["<unk>", "cat", "of"]
    assert by_words.token(5) == "<5>"
    assert by_words.last_id == 7


def test_tokens_by_what_they_are_for(bytes_file: Path) -> None:
    settings = {"eos_token": {"content": "<|end|>"}, "bos_token": "no token", "pad_token": None, "model_max_length": 1}
    tokenizer = Tokenizer(bytes_file.read_bytes(), bytes_file, settings)
    assert tokenizer.named == {"eos_token": "<|end|>", "bos_token": "no token"}
    assert [tokenizer.id_named(name) for name in ("eos_token", "bos_token", "pad_token")] == [0, None, None]
    with pytest.raises(FormatError, match="its eos_token is not a token"):
        Tokenizer(bytes_file.read_bytes(), bytes_file, {"eos_token": [2]})


# ── the id of a text ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", [" capital", " of", ".", "<|end|>", " ", "Q"])
def test_the_id_of_a_token_is_that_of_its_text(by_bytes: Tokenizer, text: str) -> None:
    assert by_bytes.token(by_bytes.id_of(text)) == text


def test_the_name_in_the_file_works_too(by_bytes: Tokenizer, stories: Tokenizer) -> None:
    assert by_bytes.id_of("Ġcapital") == by_bytes.id_of(" capital")
    assert stories.id_of("▁a") == stories.id_of(" a") == 261
    assert stories.id_of("a") == 412
    assert stories.id_of("Once") == stories.id_of(" Once") == 403


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zebra", r"'zebra' is 5 tokens, not one: 'z' 'e' 'b' 'r' 'a'; name one"),
        (" capital of", r"is 2 tokens, not one: ' capital' ' of'"),
        ("", r"'' is 0 tokens, not one"),
    ],
)
def test_a_text_that_is_not_one_token(by_bytes: Tokenizer, text: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        by_bytes.id_of(text)


def test_a_word_that_is_not_known_is_not_the_unknown_token(by_words: Tokenizer) -> None:
    """Else an edit of embed[token="dog"] would change <unk> and say nothing."""
    assert by_words.id_of("cat") == 2
    assert by_words.id_of("<unk>") == 0
    with pytest.raises(EngineError, match="dog"):
        by_words.id_of("dog")


def test_a_token_names_a_row_of_the_embedding(bytes_file: Path, tmp_path: Path) -> None:
    folder = tiny.write(tmp_path, vocab_size=330)
    (folder / "tokenizer.json").write_bytes(bytes_file.read_bytes())
    model = wk.open(folder)
    row = model.token_id(" France")
    zeroed = model.apply(wk.zero('embed[token=" France"]'))["embed"].array()
    assert [i for i, values in enumerate(zeroed) if not values.any()] == [row]
    assert isinstance(model.generate("The capital", 3), str)


# ── broken files ─────────────────────────────────────────────────────────────────────────────────────


def with_model(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda file: file["model"].update(values)


def with_vocab(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda file: file["model"]["vocab"].update(values)


def with_parts(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda file: file.update(values)


BAD_REGEX = {"Regex": "(["}
RAW = {
    "empty": b"",
    "not-json": b"{vocab}",
    "not-utf-8": b'{"model": {"vocab": {"\xe9": 1}}}',
    "nul-bytes": b"\0" * 50,
    "a-list": b"[]",
    "null": b"null",
    "no-model": b"{}",
    "a-key-twice": b'{"version": "1.0", "model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "a": 0}}}',
    "utf-16": '{"version": "1.0", "model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0}}}'.encode(
        "utf-16"
    ),
    "model-null": b'{"model": null}',
    "too-deep": b'{"model":' * 50_000 + b"1" + b"}" * 50_000,
    "no-unigram-pieces": b'{"version": "1.0", "model": {"type": "Unigram", "unk_id": 0, "vocab": []}}',
    "nan": b'{"version": "1.0", "model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", NaN]]}}',
}
CHANGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "id-twice": with_vocab(zzz=5),
    "id-negative": with_vocab(zzz=-1),
    "id-too-large": with_vocab(zzz=2**32),
    "id-huge": with_vocab(zzz=10**400),
    "id-fraction": with_vocab(zzz=1.5),
    "id-text": with_vocab(zzz="7"),
    "id-true": with_vocab(zzz=True),
    "lone-surrogate": with_vocab(**{"\ud800": 400}),
    "vocab-list": with_model(vocab=[1, 2]),
    "vocab-null": with_model(vocab=None),
    "merge-unknown": with_model(merges=[["qqq", "zzz"]]),
    "merge-of-three": with_model(merges=[["a", "b", "c"]]),
    "merges-number": with_model(merges=3),
    "model-unknown": with_model(type="Nope"),
    "dropout": with_model(dropout=7),
    "split-regex": with_parts(
        pre_tokenizer={"type": "Split", "pattern": BAD_REGEX, "behavior": "Isolated", "invert": False}
    ),
    "replace-regex": with_parts(normalizer={"type": "Replace", "pattern": BAD_REGEX, "content": "x"}),
    "charsmap": with_parts(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "added-id-negative": lambda file: file["added_tokens"][0].update(id=-1),
    "added-id-too-large": lambda file: file["added_tokens"][0].update(id=2**32),
}


def broken(case: str, good: Path) -> bytes:
    if case in RAW:
        return RAW[case]
    file = json.loads(good.read_bytes())
    CHANGED[case](file)
    return json.dumps(file).encode()


@pytest.mark.parametrize("case", [*RAW, *CHANGED, "truncated"])
def test_a_broken_file_is_said_in_one_line_and_nowhere_else(
    case: str, bytes_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(bytes_file.read_bytes()[:500] if case == "truncated" else broken(case, bytes_file))
    with pytest.raises(FormatError) as raised:
        opened(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 400
    assert capfd.readouterr() == ("", "")


WORDPIECE = {"type": "WordPiece", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
LATE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "template-token-unknown": with_parts(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<nope>", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    ),
    "unknown-token-absent": with_parts(model={**WORDPIECE, "unk_token": "[UNK]", "vocab": {"a": 0}}),
}


@pytest.mark.parametrize("case", LATE)
def test_what_breaks_only_when_used_is_said_too(
    case: str, bytes_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = json.loads(bytes_file.read_bytes())
    LATE[case](file)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(file))
    with pytest.raises(WeightkitError, match=r"tokenizer\.json"):
        opened(path).encode("the cat")
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_with_an_empty_vocabulary_has_no_last_id(bytes_file: Path, tmp_path: Path) -> None:
    file = json.loads(bytes_file.read_bytes()) | {"added_tokens": []}
    file["model"] |= {"vocab": {}, "merges": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    assert opened(tmp_path / "tokenizer.json").last_id == -1


# ── long texts, and what a tokenizer was saved with ──────────────────────────────────────────────────

LONG = (TEXT + "\n\n  Où est  l'été ?\t日本語のテキスト。 " + "unbroken" * 40 + " ") * 6


def _bytes_bpe(_: Path) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _trained(made, tokenizers.pre_tokenizers.ByteLevel.alphabet())


def _spaces_as_letters(_: Path) -> tokenizers.Tokenizer:
    """As Llama 2: spaces are letters, one goes before every text, and nothing is split before it is merged."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    return _trained(made, [])


def _word_pieces(_: Path) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    made.train_from_iterator([LONG], trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return made


def _trained(made: tokenizers.Tokenizer, alphabet: list[str]) -> tokenizers.Tokenizer:
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(LONG.split(), trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


@pytest.mark.parametrize("make", [_bytes_bpe, _spaces_as_letters, _word_pieces])
@pytest.mark.parametrize("piece", [97, 512, 1000])
def test_a_long_text_in_pieces_is_the_same_text(
    make: Callable[[Path], tokenizers.Tokenizer], piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path)
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = opened(tmp_path / "tokenizer.json")
    whole = made.encode(LONG).ids
    monkeypatch.setattr(room, "PIECE", piece)
    monkeypatch.setattr(room, "MARGIN", 400)
    monkeypatch.delattr(Tokenizer, "_encode")  # which would read all of it at once
    assert tokenizer.encode(LONG) == whole


def test_a_tokenizer_that_drops_characters_reads_a_long_text_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    made.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(room, "PIECE", 10)
    monkeypatch.setattr(room, "MARGIN", 5)
    text = "a?b??ab?" * 20
    assert opened(tmp_path / "tokenizer.json").encode(text) == made.encode(text).ids


def test_texts_are_neither_cut_nor_filled_up(bytes_file: Path, tmp_path: Path) -> None:
    made = tokenizers.Tokenizer.from_file(str(bytes_file))
    whole = made.encode(TEXT).ids
    made.enable_truncation(4)
    made.enable_padding(length=200)
    made.save(str(tmp_path / "tokenizer.json"))
    assert opened(tmp_path / "tokenizer.json").encode(TEXT) == whole
