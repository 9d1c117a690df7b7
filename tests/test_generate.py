"""Generation: how the next token is chosen, and when it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import weightkit as wk
from tests import tiny
from weightkit.engine.generate import Sampling, choose
from weightkit.errors import EngineError

F32 = NDArray[np.float32]
PROMPT = [5, 17, 42]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> wk.Model:
    return wk.open(tiny.write(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> wk.Model:
    return wk.open(tiny.write(tmp_path_factory.mktemp("gpt2"), "gpt2", n_positions=10))


def draws(logits: list[float], sampling: Sampling, times: int) -> NDArray[np.int64]:
    random = np.random.default_rng(sampling.seed)
    return np.array([choose(np.array(logits, np.float32), sampling, random) for _ in range(times)])


# ── one token ────────────────────────────────────────────────────────────────────────────────────────


def test_temperature_zero_takes_the_likeliest_and_the_first_of_equals() -> None:
    assert set(draws([0.0, 3.0, 1.0], Sampling(), 20)) == {1}
    assert set(draws([2.0, 7.0, 7.0], Sampling(), 20)) == {1}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 5, 99])
def test_draws_have_the_distribution_of_the_logits(temperature: float, top_k: int | None) -> None:
    logits = np.array([1.0, -1.0, 2.0, 0.0, 1.5])
    p = np.exp(logits / temperature)
    if top_k is not None:
        p[np.argsort(-logits)[top_k:]] = 0
    p /= p.sum()
    times = 3000
    seen = np.bincount(draws(list(logits), Sampling(temperature, top_k, seed=3), times), minlength=5) / times
    assert np.abs(seen - p).max() < 4 * np.sqrt(0.25 / times)  # four standard deviations of a share
    assert not seen[p == 0].any()


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-40, 1e-300])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    assert set(draws([0.0, 3.0, 2.9, -4.0], Sampling(temperature), 20)) == {1}


@pytest.mark.parametrize("temperature", [1e30, 1e300])
def test_a_very_high_temperature_is_even(temperature: float) -> None:
    seen = np.bincount(draws([0.0, 3.0, 20.0, -4.0], Sampling(temperature), 4000), minlength=4) / 4000
    assert np.abs(seen - 0.25).max() < 0.03


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(bad: float, temperature: float) -> None:
    with pytest.raises(EngineError, match="not finite"):
        draws([0.0, bad], Sampling(temperature), 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": 0}, "top_k is at least 1"),
        ({"top_k": -3}, "top_k is at least 1"),
        ({"temperature": 1.0, "seed": -1}, "seed"),
    ],
)
def test_settings_that_are_none(model: wk.Model, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        model.generate(PROMPT, 2, **arguments)


# ── many tokens ──────────────────────────────────────────────────────────────────────────────────────


def greedy_by_hand(model: wk.Model, ids: list[int], tokens: int) -> list[int]:
    for _ in range(tokens):
        ids = [*ids, int(np.argmax(model.logits(ids)[-1]))]
    return ids


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_is_the_argmax_of_the_whole_text_each_time(family: str, tmp_path: Path) -> None:
    model = wk.open(tiny.write(tmp_path, family))
    assert model.generate(PROMPT, 20) == greedy_by_hand(model, PROMPT, 20)


@pytest.mark.parametrize("tokens", [0, 1, 7, 80])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_number_of_tokens_is_the_one_asked_for(model: wk.Model, tokens: int, temperature: float) -> None:
    got = model.generate(PROMPT, tokens, temperature=temperature)
    assert got[:3] == PROMPT
    assert len(got) == 3 + tokens


def test_the_same_seed_draws_the_same_and_another_does_not(model: wk.Model) -> None:
    texts = [model.generate(PROMPT, 30, temperature=1.0, seed=seed) for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len({tuple(text) for text in texts}) == 3
    assert texts[0] != model.generate(PROMPT, 30)


def test_top_k_of_one_is_greedy(model: wk.Model) -> None:
    assert model.generate(PROMPT, 20, temperature=2.0, top_k=1, seed=9) == model.generate(PROMPT, 20)


def test_each_token_comes_with_the_logits_it_was_chosen_from(model: wk.Model) -> None:
    ids = list(PROMPT)
    for token, logits in model.stream(PROMPT, 10, Sampling(1.0, 5, seed=4)):
        np.testing.assert_allclose(logits, model.logits(ids)[-1], atol=1e-4)
        assert token in np.argsort(-logits)[:5]
        ids.append(token)


def test_the_prompt_is_not_changed(model: wk.Model) -> None:
    prompt = list(PROMPT)
    model.generate(prompt, 5)
    assert prompt == PROMPT


@pytest.mark.parametrize("length", [1, 9, 10])
def test_it_stops_after_the_last_learned_position(gpt2: wk.Model, length: int) -> None:
    """The last position predicts one more token, which nothing can be predicted from."""
    got = gpt2.generate(list(range(length)), 30)
    assert len(got) == 11
    assert got == greedy_by_hand(gpt2, list(range(length)), 11 - length)


def test_a_prompt_longer_than_the_positions_is_refused(gpt2: wk.Model) -> None:
    with pytest.raises(EngineError, match="11 tokens are more than the 10 positions"):
        gpt2.generate(list(range(11)), 1)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "prompt is empty"), ([97], "id 97"), ("a text", "no tokenizer.json"), ([[1, 2], [3, 4]], "one sequence|ids")],
)
def test_prompts_that_are_none(model: wk.Model, prompt: Any, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        model.generate(prompt, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_said(value: float, tmp_path: Path) -> None:
    tensors = tiny.weights(tiny.CONFIGS["llama"])
    tensors["model.layers.1.mlp.up_proj.weight"][3] = value
    with pytest.raises(EngineError, match=r"not finite.*check"):
        wk.open(tiny.write(tmp_path, tensors=tensors)).generate(PROMPT, 3)


def test_very_large_weights_run_as_in_transformers(tmp_path: Path) -> None:
    """The square in the norm overflows, so the norm is 0: no reason for numpy to write to stderr."""
    tensors = tiny.weights(tiny.CONFIGS["llama"])
    tensors["model.layers.1.mlp.up_proj.weight"][3] = 1e30
    assert not wk.open(tiny.write(tmp_path, tensors=tensors)).logits(PROMPT).any()


def test_what_is_not_read_need_not_be_finite(tmp_path: Path) -> None:
    tensors = tiny.weights(tiny.CONFIGS["llama"])
    tensors["model.embed_tokens.weight"][3] = np.nan
    assert len(wk.open(tiny.write(tmp_path, tensors=tensors)).generate(PROMPT, 1)) == 4


def test_next_tokens_are_the_likeliest_first(model: wk.Model) -> None:
    table, logits = model.next_tokens(PROMPT, 5), model.logits(PROMPT)[-1].astype(np.float64)
    p = np.exp(logits - logits.max())
    assert [row.id for row in table] == np.argsort(-logits)[:5].tolist()
    assert [row.logit for row in table] == [logits[row.id] for row in table]
    np.testing.assert_allclose([row.probability for row in table], [(p / p.sum())[row.id] for row in table], rtol=1e-5)
    assert [row.token for row in table] == [f"<{row.id}>" for row in table]
    assert len(model.next_tokens(PROMPT, 500)) == 97


def test_no_table_of_what_is_not_finite(tmp_path: Path) -> None:
    tensors = tiny.weights(tiny.CONFIGS["llama"])
    tensors["model.norm.weight"][0] = np.nan
    model = wk.open(tiny.write(tmp_path, tensors=tensors))
    with pytest.raises(EngineError, match="not finite"):
        model.next_tokens([1, 2])
