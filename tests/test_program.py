"""The program of a model against its blocks: the same logits and the same keys, token by token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightkit as wk
from tests import make_golden as golden
from tests import running, test_gguf_families, tiny
from tests.test_engine import CAUSAL, TOLERANCE
from weightkit.engine import cache as cache_room
from weightkit.engine import forward
from weightkit.engine.cache import Cache
from weightkit.engine.forward import Engine
from weightkit.engine.program import Program, program
from weightkit.threads import crew

# Families whose blocks do nothing that a job does not; their variants of tests/running.py have programs.
WITH = """
    gpt2 gpt_bigcode gpt_bigcode-mha gpt_neo gptj llama llama-bias llama-tied mistral qwen2 qwen3 gemma gemma3_text phi
    phi-qknorm phi3 stablelm starcoder2 olmo2 olmo3 cohere cohere2 granite glm glm4 smollm3
""".split()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program is made for the first token that comes alone."""
    monkeypatch.setattr(cache_room, "WORTH", 1)


def by_token(engine: Engine, ids: Any, source: Any = None) -> tuple[Any, Cache]:
    """Logits of a text of which all but the first three tokens come alone, and what is kept of it."""
    ids, cache = np.atleast_2d(ids), Cache()
    found = [engine.logits(ids[:, :3], cache, source=source)]
    found += [engine.logits(ids[:, i : i + 1], cache, source=source) for i in range(3, ids.shape[1])]
    return np.concatenate(found, axis=1), cache


def has_program(engine: Engine, cache: Cache) -> bool:
    return isinstance(cache.program(lambda: None), Program)


def assert_same(engine: Engine, ids: Any, monkeypatch: pytest.MonkeyPatch, source: Any = None) -> bool:
    """Whether there is a program; it gives what the blocks give."""
    got, cache = by_token(engine, ids, source)
    with monkeypatch.context() as without:
        without.setattr(forward, "program", lambda *_: None)
        want, plain = by_token(engine, ids, source)
    assert np.abs(got - want).max() / want.std() < TOLERANCE
    assert np.array_equal(cache.ids, plain.ids)
    for at, (keys, values) in cache._layers.items():
        for mine, other in zip((keys, values), plain._layers[at], strict=True):
            n = len(cache)
            np.testing.assert_allclose(mine[:, :, :n], other[:, :, :n], rtol=2e-4, atol=2e-5)
    return has_program(engine, cache)


@pytest.mark.parametrize(("family", "name"), CAUSAL, ids=str)
def test_a_token_is_what_the_blocks_make_of_it(
    family: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, kept = wk.open(golden.write(tmp_path, family, name)).engine, golden.read(family, name)
    ids = kept.ids if kept.decoder_ids is None else kept.decoder_ids
    assert_same(engine, ids, monkeypatch, None if kept.decoder_ids is None else engine.encode(kept.ids))


@pytest.mark.parametrize("variant", running.RUN)
def test_which_families_have_a_program(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = running.opened(tmp_path, variant)
    if not model.engine.continues or model.engine.has_encoder:
        pytest.skip("it does not write, or reads first")
    assert assert_same(model.engine, [running.IDS, running.IDS[::-1]], monkeypatch) == (variant in WITH)


@pytest.mark.parametrize("case", ["llama", "llama-bias", "llama-yarn", "qwen3", "gpt2", "smollm3", "granite", "gemma"])
def test_heads_in_the_order_of_gguf(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = test_gguf_families.twins(tmp_path, case)
    has = assert_same(model.engine, running.IDS, monkeypatch)
    assert has == (case != "llama-bias")  # a bias is in another order


def test_keys_move_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = wk.open(tiny.write(tmp_path)).engine
    assert assert_same(engine, [5, 6, 7] * 40, monkeypatch)


def test_several_tokens_between_single_ones(tmp_path: Path) -> None:
    engine = wk.open(tiny.write(tmp_path)).engine
    ids, cache = np.arange(60)[None] % 90, Cache()
    for start, stop in ((0, 5), (5, 6), (6, 20), (20, 21), (21, 22), (22, 59), (59, 60)):
        got = engine.logits(ids[:, start:stop], cache)
    want = engine.logits(ids)[:, -1:]
    assert np.abs(got - want).max() / want.std() < TOLERANCE


def test_any_number_of_threads_gives_the_same_bits(tmp_path: Path) -> None:
    engine, size, found = wk.open(tiny.write(tmp_path)).engine, crew.size, []
    try:
        for count in (1, 2, 3):
            crew.resize(count)
            found.append(by_token(engine, [5, 6, 7] * 10)[0])
    finally:
        crew.resize(size)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_what_a_program_does_not_know_it_leaves_to_the_blocks(tmp_path: Path) -> None:
    engine = wk.open(tiny.write(tmp_path)).engine
    assert isinstance(program(engine.block, 1, (None, None)), Program)
    for changes in ({"score_cap": 5.0}, {"qkv_clip": 1.0}, {"residual_normed": True}, {"bare_norms": True}):
        engine.block.config = replace(engine.config, **changes)
        assert program(engine.block, 1, (None, None)) is None
    engine.block.config = engine.config
    engine.weights._addresses |= {"layers.1.attn.sinks"}
    assert program(engine.block, 1, (None, None)) is None


def test_an_edited_model_has_a_program_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wk.open(tiny.write(tmp_path))
    edited = model.apply(wk.scale("layers.*.ffn.down", 0.5))
    assert assert_same(edited.engine, [5, 6, 7, 8, 9], monkeypatch)
    assert not np.array_equal(by_token(edited.engine, [5, 6, 7, 8])[0], by_token(model.engine, [5, 6, 7, 8])[0])
