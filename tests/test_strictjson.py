"""JSON of strangers: what is refused, what it may cost, what must be read all the same."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from typing import Any

import pytest

from weightkit import strictjson
from weightkit.errors import FormatError

MB = 1 << 20


def refused(raw: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        strictjson.parse(raw, "it")


# What a text is full of, so that its values take 20 to 30 times its memory.
COSTLY = {"arrays": "[]", "objects": "{}", "arrays of one": "[0]", "objects of one": '{"a":0}', "short strings": '"ā"'}


def full_of(piece: str) -> bytes:
    return f"[{','.join([piece] * (10 * MB // len(piece)))}]".encode()


def full_of_keys() -> bytes:
    return b"{" + b",".join(b'"%05x":0' % n for n in range(MB)) + b"}"


@pytest.mark.parametrize("kind", [*COSTLY, "short keys"])
def test_millions_of_tiny_values_are_refused_before_they_take_memory(kind: str) -> None:
    raw = full_of(COSTLY[kind]) if kind in COSTLY else full_of_keys()
    tracemalloc.start()
    try:
        refused(raw, "too many values")
        assert tracemalloc.get_traced_memory()[1] < 5 * len(raw)
    finally:
        tracemalloc.stop()


def test_as_many_values_as_real_files_have_are_read() -> None:
    entry = {"dtype": "BF16", "shape": [4096, 14336], "data_offsets": [10**11, 10**11 + 117_440_512]}
    header = {f"layers.{n}.w": entry for n in range(100_000)}
    vocabulary = {f"t{n}": n for n in range(260_000)}
    merges = [["t1", f"{n}"] for n in range(300_000)]
    for value in (header, {"model": {"vocab": vocabulary, "merges": merges}}, list(range(10**6))):
        raw = json.dumps(value, separators=(",", ":")).encode()
        assert strictjson.parse(raw, "it") == value


BACKSLASH, HIGH, LOW = "\\\\", "\\ud83d", "\\uDE00"
PIECES = {BACKSLASH: "\\", HIGH: "\ud83d", LOW: "\ude00", "\\n": "\n", "\\u0041": "A", "ud83d": "ud83d"}


def test_a_surrogate_is_one_of_a_pair() -> None:
    for pieces in itertools.product(PIECES, repeat=3):
        expected = "".join(map(PIECES.__getitem__, pieces)).replace("\ud83d\ude00", "😀")
        raw = f'["{"".join(pieces)}"]'.encode()
        if any("\ud800" <= c <= "\udfff" for c in expected):
            refused(raw, "lone surrogate")
        else:
            assert strictjson.parse(raw, "it") == [expected]


@pytest.mark.parametrize(
    ("text", "key"), [('{"a":1,"b":2,"a":3}', "a"), ('[{"x":{"c":[],"b":{},"b":0}}]', "b"), ('{"":0,"":0}', "")]
)
def test_the_key_that_appears_twice_is_named(text: str, key: str) -> None:
    refused(text.encode(), f"the key '{key}' appears twice")


@pytest.mark.parametrize("value", [None, True, [1.5, "é"], {"a": {"b": []}}])
def test_what_it_reads_is_what_json_reads(value: Any) -> None:
    assert strictjson.parse(json.dumps(value, indent=1).encode(), "it") == value
