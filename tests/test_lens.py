"""The lens ends with the logits, and what blocks add to the logits adds up to them, in every family that it can."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import weightkit as wk
from tests import running, tiny
from tests.by_hand import tokenizer
from tests.running import IDS
from tests.test_trace import SUMMED
from weightkit.effect.lens import BIAS
from weightkit.errors import EngineError

F32 = NDArray[np.float32]
ADDS_UP = [variant for variant in running.RUN if variant not in SUMMED]


def relative(got: F32, want: F32) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> wk.Model:
    return wk.open(tokenizer(tiny.write(tmp_path_factory.mktemp("llama"))))


@pytest.mark.parametrize("variant", running.RUN)
def test_the_lens_of_the_last_layer_is_the_logits(variant: str, tmp_path: Path) -> None:
    model = running.opened(tmp_path, variant, **running.SCALED.get(variant, {}))
    found = model.lens(IDS)
    assert np.array_equal(found[list(found)[-1]], model.logits(IDS))
    stack = "decoder." if variant.startswith("t5") else ""
    layers = 4 if variant == "gpt_neo" else 3
    assert list(found) == [f"{stack}embed", *(f"{stack}layers.{i}.out" for i in range(layers))]
    assert len(found) == layers + 1


@pytest.mark.parametrize("variant", ["llama", "gpt2", "mixtral", "cohere"])
def test_the_lens_is_the_model_without_its_later_layers(variant: str, tmp_path: Path) -> None:
    model = running.opened(tmp_path, variant)
    found = model.lens(IDS)
    for layers in (1, 2):
        silent = model.apply(*(wk.zero(f"layers.{i}") for i in range(layers, 3)))
        assert relative(found[f"layers.{layers - 1}.out"], silent.logits(IDS)) < 1e-6


@pytest.mark.parametrize("variant", ADDS_UP)
def test_contributions_add_up_to_the_logits(variant: str, tmp_path: Path) -> None:
    model = running.opened(tmp_path, variant, **running.SCALED.get(variant, {}))
    cap = model.engine.config.logit_cap
    for ids in (IDS, [7]):
        parts = model.contributions(ids)
        total = np.sum(list(parts.values()), axis=0)
        total = total if cap is None else np.tanh(total / cap) * cap
        assert relative(total, model.logits(ids)) < 1e-5


def test_contributions_are_named_by_what_adds_them(model: wk.Model, tmp_path: Path) -> None:
    halves = [f"layers.{i}.{half}.out" for i in range(3) for half in ("attn", "ffn")]
    assert list(model.contributions(IDS)) == ["embed", *halves, BIAS]
    decoder = running.opened(tmp_path, "t5").contributions(IDS, decoder_ids=[0, 5])
    assert list(decoder)[1:4] == [f"decoder.layers.0.{half}.out" for half in ("attn", "cross", "ffn")]


@pytest.mark.parametrize("variant", ["llama", "gpt2", "phimoe-bias", "gemma2"])
def test_some_tokens_are_those_of_all(variant: str, tmp_path: Path) -> None:
    model = running.opened(tmp_path, variant)
    whole = model.contributions(IDS)
    for address, part in model.contributions(IDS, [5, 96, 5]).items():
        assert part.shape == (len(IDS), 3)
        assert np.allclose(part, whole[address][:, [5, 96, 5]], atol=1e-6)


def test_tokens_by_their_text(model: wk.Model) -> None:
    by_text, by_id = model.contributions("w5 w17", ["w3"]), model.contributions([5, 17], [3])
    assert all(np.array_equal(by_text[address], by_id[address]) for address in by_id)


def test_a_silent_half_contributes_nothing(model: wk.Model) -> None:
    parts = model.apply(wk.zero("layers.1.attn.o")).contributions(IDS)
    assert not parts["layers.1.attn.out"].any()
    assert not parts[BIAS].any()  # llama has none
    assert parts["layers.1.ffn.out"].all()


def test_a_bias_alone(tmp_path: Path) -> None:
    """With a stream that the final norm turns into its bias alone, nothing else is left."""
    model = running.opened(tmp_path, "gpt2")
    silent = model.apply(wk.zero("norm"))
    parts = silent.contributions(IDS)
    assert not any(part.any() for address, part in parts.items() if address != BIAS)
    assert relative(parts[BIAS], silent.logits(IDS)) < 1e-6


def test_changes_are_seen_through_the_lens(model: wk.Model) -> None:
    found = model.lens(IDS, [wk.replace("layers.1.out", model.trace(IDS, ["layers.2.out"])["layers.2.out"])])
    assert np.array_equal(found["layers.1.out"], model.logits(IDS))


@pytest.mark.parametrize("variant", SUMMED)
def test_streams_that_are_normed_do_not_add_up(variant: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="do not add up"):
        running.opened(tmp_path, variant).contributions(IDS)


def test_bloom_may_add_to_what_is_normed(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="do not add up"):
        running.opened(tmp_path, "bloom", apply_residual_connection_post_layernorm=True).contributions(IDS)


def test_tokens_that_are_not(model: wk.Model) -> None:
    with pytest.raises(EngineError, match="id 97"):
        model.contributions(IDS, [97])
