"""Text files of any size: their ids are those of the whole text, and only some of it is there at a time."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers

import weightkit as wk
from tests.conftest import Cli
from weightkit.engine import text_file, tokenizer
from weightkit.engine.text_file import TextFile
from weightkit.engine.tokenizer import Tokenizer
from weightkit.errors import EngineError

WORDS = ["The capital", " of France", " is Paris.", "\n", "\r\n", " é", " 漢字", " 🙂", "  ", "\t"]
SIZES = [0, 1, 90, 100, 110, 111, 199, 200, 201, 210, 211, 1000, 5000]


@pytest.fixture(scope="module")
def demo() -> wk.Model:
    return wk.open("demo")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 100 characters."""
    monkeypatch.setattr(tokenizer, "PIECE", 100)
    monkeypatch.setattr(tokenizer, "MARGIN", 10)
    monkeypatch.setattr(text_file, "PART", 7)


def text_of(size: int) -> str:
    draw = random.Random(size)
    return "".join(draw.choice(WORDS) for _ in range(size))[:size]


@pytest.mark.parametrize("size", SIZES)
def test_its_ids_are_those_of_the_whole(size: int, demo: wk.Model, small: None, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(text_of(size).encode())
    text = path.read_text("utf-8")
    whole = demo.tokenizer._encode(text, add_special_tokens=True)
    ids = demo.text_file(path)
    assert (len(ids), list(ids)) == (len(whole), whole)
    assert list(ids) == whole  # as often as one likes
    assert demo.tokenizer.encode(text) == whole


def most_held(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_large_file_takes_little_memory(demo: wk.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "PIECE", 4096)
    monkeypatch.setattr(text_file, "PART", 4096)
    path = tmp_path / "text.txt"
    path.write_text("The capital of France is Paris.\n" * 5_000)
    ids = demo.text_file(path)
    assert most_held(lambda: all(i >= 0 for i in ids)) < most_held(lambda: list(ids)) / 3


@pytest.mark.parametrize("window", [3, 30, 512])
def test_measuring_a_file_is_measuring_its_ids(window: int, demo: wk.Model, small: None, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text_of(150), newline="")
    early = wk.open("demo:early")
    ids = demo.ids(path.read_text("utf-8"))
    assert wk.measure(early, demo, [path], window=window) == wk.measure(early, demo, ids=[ids], window=window)


def test_the_place_in_a_file_is_shown(cli: Cli, small: None, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("The capital of France is Paris.\n" * 10 + "The capital of Paris is Paris.\n")
    by_file, by_text = (
        cli("measure", "demo:early", "demo", "--text", text) for text in (path, path.read_text("utf-8"))
    )
    assert by_file.out == by_text.out
    assert "after '…" in by_file.out


def losing(folder: Path) -> Tokenizer:
    made = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    made.save(str(folder / "tokenizer.json"))
    return Tokenizer((folder / "tokenizer.json").read_bytes(), folder / "tokenizer.json")


def test_where_a_tokenizer_drops_characters(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a?b??ab?" * 50)
    ids = TextFile(path, losing(tmp_path))
    assert (len(ids), list(ids)) == (100, [2] * 100)
    monkeypatch.setattr(text_file, "MOST_WHOLE", 399)
    with pytest.raises(EngineError, match=r"text\.txt: more than 0 MB of text; measure on a part of it: .*drops what"):
        len(TextFile(path, losing(tmp_path)))


def test_what_is_not_text_is_said_first(cli: Cli, small: None, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"The capital of France. " * 500 + b"\xff")
    done = cli("measure", "demo", "demo", "--text", path)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: {path}: not a text file in UTF-8\n"
