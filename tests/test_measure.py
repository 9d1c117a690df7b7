"""The effect of an edit in numbers: each against its definition, and exactly nothing for no edit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import weightkit as wk
from tests import tiny
from weightkit.effect import measure as room
from weightkit.effect.measure import Effect
from weightkit.errors import EngineError

F64 = NDArray[np.float64]
IDS = np.random.RandomState(5).randint(0, 90, (2, 24)).tolist()  # tokens 90 to 96 do not come up


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> wk.Model:
    return wk.open(tiny.write(tmp_path_factory.mktemp("llama")))


def log_probabilities(model: wk.Model, ids: Sequence[int]) -> F64:  # -> [tokens - 1, vocab]
    x = model.logits(ids)[:-1].astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def by_definition(a: wk.Model, b: wk.Model, windows: Sequence[Sequence[int]]) -> dict[str, float]:
    """The fields of an effect, position by position."""
    nll_a, nll_b, kl, agree = [], [], [], []
    for ids in windows:
        for p, q, target in zip(log_probabilities(a, ids), log_probabilities(b, ids), ids[1:], strict=True):
            nll_a.append(-p[target])
            nll_b.append(-q[target])
            kl.append(math.fsum(np.exp(p) * (p - q)))
            agree.append(p.argmax() == q.argmax())
    return {
        "tokens": len(kl),
        "nll_a": math.fsum(nll_a) / len(kl),
        "nll_b": math.fsum(nll_b) / len(kl),
        "kl_mean": math.fsum(kl) / len(kl),
        "kl_max": max(kl),
        "top1_agreement": sum(agree) / len(kl),
    }


def require(effect: Effect, want: dict[str, float]) -> None:
    got = {key: getattr(effect, key) for key in want}
    assert got == pytest.approx(want, rel=1e-9, abs=1e-12)
    assert effect.perplexity_a == pytest.approx(math.exp(want["nll_a"]))
    assert effect.perplexity_b == pytest.approx(math.exp(want["nll_b"]))


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────

EDITS = [
    wk.zero("layers.1.attn[head=2]"),
    wk.noise("layers.*.ffn.up", relative_std=0.01, seed=7),
    wk.noise("layers.2", relative_std=2.0),
    wk.scale("norm", 3.0),
    wk.zero("lm_head"),
]


@pytest.mark.parametrize("edit", EDITS, ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_the_fields_follow_their_definitions(family: str, edit: wk.Edit, tmp_path: Path) -> None:
    model = wk.open(tiny.write(tmp_path, family))
    edited = model.apply(edit)
    effect = wk.measure(model, edited, ids=IDS)
    require(effect, by_definition(model, edited, IDS))
    assert effect.kl_max >= effect.kl_mean > 0


def test_two_models_of_other_sizes_and_families(tmp_path: Path) -> None:
    a = wk.open(tiny.write(tmp_path / "a", hidden_size=24, head_dim=12))
    b = wk.open(tiny.write(tmp_path / "b", "gpt2"))
    require(wk.measure(a, b, ids=IDS), by_definition(a, b, IDS))
    assert wk.measure(a, b, ids=IDS).first_drift == 0


def test_perplexity_that_is_too_large_is_infinite() -> None:
    effect = Effect(1, 800.0, 1.0, 0.0, 0.0, 1.0, None)
    assert effect.perplexity_a == math.inf
    assert effect.perplexity_b == math.e


# ── nothing ──────────────────────────────────────────────────────────────────────────────────────────

NOTHING: dict[str, list[wk.Edit]] = {
    "no-edit": [],
    "no-noise": [wk.noise("layers.*.attn.q", std=0.0), wk.noise("embed", relative_std=0.0)],
    "times-one": [wk.scale("layers.*.ffn.down", 1.0), wk.scale("norm", 1.0)],
    "token-that-does-not-come-up": [wk.zero("embed[token=95]")],
    "there-and-back": [wk.scale("layers.0.attn.v", 2.0), wk.scale("layers.0.attn.v", 0.5)],
}


@pytest.mark.parametrize("case", NOTHING)
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_no_change_has_an_effect_of_exactly_nothing(case: str, dtype: str, tmp_path: Path) -> None:
    model = wk.open(tiny.write(tmp_path, dtype=dtype))
    effect = wk.measure(model, model.apply(*NOTHING[case]), ids=IDS)
    assert effect.nll_a == effect.nll_b
    assert (effect.kl_mean, effect.kl_max, effect.top1_agreement, effect.first_drift) == (0.0, 0.0, 1.0, None)
    assert effect == wk.measure(model, model, ids=IDS)


def test_measuring_does_not_change_the_models(model: wk.Model) -> None:
    before = model.logits(IDS)
    edited = model.apply(EDITS[0])
    assert wk.measure(model, edited, ids=IDS) == wk.measure(model, edited, ids=IDS)
    assert np.array_equal(model.logits(IDS), before)


def test_a_model_with_nan_does_not_drift_from_itself(tmp_path: Path) -> None:
    tensors = tiny.weights(tiny.CONFIGS["llama"])
    tensors["model.layers.1.mlp.up_proj.weight"][3] = np.nan
    model = wk.open(tiny.write(tmp_path, tensors=tensors))
    effect = wk.measure(model, model, ids=IDS)
    assert math.isnan(effect.nll_a)
    assert effect.first_drift is None


# ── the first layer that drifts ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("address", "layer"),
    [
        ("embed", 0),
        ("layers.0.attn.norm", 0),
        ("layers.0.ffn.down", 0),
        ("layers.1.attn.k", 1),
        ("layers.1.ffn.norm", 1),
        ("layers.2.attn.o", 2),
        ("layers.2.ffn.gate", 2),
        ("layers.1:3.attn.v", 1),
        ("norm", None),
        ("lm_head", None),
        ("lm_head[token=95]", None),
    ],
)
def test_the_first_layer_that_drifts(model: wk.Model, address: str, layer: int | None) -> None:
    effect = wk.measure(model, model.apply(wk.scale(address, 1.25)), ids=IDS)
    assert effect.first_drift == layer
    assert effect.kl_mean > 0


@pytest.mark.parametrize(
    ("address", "layer"), [("embed.position", 0), ("layers.1.attn.v.bias", 1), ("norm.bias", None)]
)
def test_the_first_layer_of_gpt2(address: str, layer: int | None, tmp_path: Path) -> None:
    model = wk.open(tiny.write(tmp_path, "gpt2"))
    assert wk.measure(model, model.apply(wk.scale(address, 1.25)), ids=IDS).first_drift == layer


def test_a_tied_embedding_drifts_from_the_start(tmp_path: Path) -> None:
    model = wk.open(tiny.write(tmp_path, tie_word_embeddings=True))
    assert wk.measure(model, model.apply(wk.scale("embed", 1.25)), ids=IDS).first_drift == 0


def test_drift_in_one_text_of_several_is_seen(model: wk.Model) -> None:
    """Token 3 comes up in the second text only, and there before the others change anything."""
    edited = model.apply(wk.scale("embed[token=3]", 2.0))
    assert wk.measure(model, edited, ids=[[1, 2]]).first_drift is None
    assert wk.measure(model, edited, ids=[[1, 2], [1, 3]]).first_drift == 0


def test_a_layer_that_only_one_has_is_where_they_part(tmp_path: Path) -> None:
    a = wk.open(tiny.write(tmp_path / "a"))
    b = wk.open(tiny.write(tmp_path / "b", num_hidden_layers=4))  # its first three are those of a
    assert wk.measure(a, b, ids=IDS).first_drift == 3
    assert wk.measure(b, a, ids=IDS).first_drift == 3


# ── long texts ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("length", [2, 9, 10, 11, 19, 20, 28, 29, 50])
def test_windows_predict_every_token_once(length: int, model: wk.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "WINDOW", 10)
    ids = (np.arange(length) * 7 % 97).tolist()
    windows = [ids[start : start + 10] for start in range(0, length - 1, 9)]
    assert [token for window in windows for token in window[1:]] == ids[1:]
    edited = model.apply(EDITS[1])
    require(wk.measure(model, edited, ids=[ids]), by_definition(model, edited, windows))


def test_a_text_longer_than_the_learned_positions(tmp_path: Path) -> None:
    model = wk.open(tiny.write(tmp_path, "gpt2", n_positions=16))
    ids = (np.arange(40) * 7 % 97).tolist()
    edited = model.apply(EDITS[1])
    windows = [ids[0:16], ids[15:31], ids[30:40]]
    require(wk.measure(model, edited, ids=[ids]), by_definition(model, edited, windows))


def test_windows_are_of_512(model: wk.Model) -> None:
    ids = (np.arange(1100) * 31 % 97).tolist()
    windows = [ids[0:512], ids[511:1023], ids[1022:1100]]
    edited = model.apply(EDITS[1])
    require(wk.measure(model, edited, ids=[ids]), by_definition(model, edited, windows))


def test_texts_do_not_run_into_one_another(model: wk.Model) -> None:
    edited = model.apply(EDITS[0])
    apart = [wk.measure(model, edited, ids=[ids]) for ids in IDS]
    both = wk.measure(model, edited, ids=[*IDS, [7]])  # nothing follows a single token
    assert both.tokens == sum(effect.tokens for effect in apart) == 46
    assert both.nll_b == pytest.approx(sum(effect.nll_b for effect in apart) / 2)
    assert both.kl_max == max(effect.kl_max for effect in apart)


def test_progress_is_told_of_every_window(model: wk.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "WINDOW", 10)
    told: list[tuple[int, int]] = []
    wk.measure(model, model, ids=IDS, progress=lambda done, of: told.append((done, of)))
    assert told == [(n, 6) for n in range(1, 7)]


# ── what cannot be measured ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ids", [[], [[]], [[5]], [[5], [6], []]])
def test_too_short(model: wk.Model, ids: list[list[int]]) -> None:
    with pytest.raises(EngineError, match="nothing to measure"):
        wk.measure(model, model, ids=ids)


def test_one_position_is_too_few(tmp_path: Path) -> None:
    model = wk.open(tiny.write(tmp_path, "gpt2", n_positions=1))
    with pytest.raises(EngineError):
        wk.measure(model, model, ids=[[1, 2, 3]])


@pytest.mark.parametrize(
    ("ids", "message"), [([[1, 97]], "id 97"), ([[1, -1]], "id -1"), ([[1.5, 2]], "whole numbers")]
)
def test_ids_that_are_not(model: wk.Model, ids: Any, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        wk.measure(model, model, ids=ids)


def test_other_vocabularies(model: wk.Model, tmp_path: Path) -> None:
    other = wk.open(tiny.write(tmp_path, vocab_size=96))
    with pytest.raises(EngineError, match="vocabularies of 97 and 96"):
        wk.measure(model, other, ids=IDS)


def test_text_needs_a_tokenizer(model: wk.Model) -> None:
    with pytest.raises(EngineError, match=r"no tokenizer\.json"):
        wk.measure(model, model, texts=["a text"])


def test_a_text_is_its_tokens(shared: Path) -> None:
    model = wk.open(shared / "models" / "stories260K")
    edited, text = model.apply(wk.zero("layers.2.attn[head=1]")), "Once upon a time, there was a little girl."
    effect = wk.measure(model, edited, texts=[text])
    assert effect == wk.measure(model, edited, ids=[model.ids(text)])
    assert effect.tokens == len(model.ids(text)) - 1
    assert dataclasses.asdict(effect).keys() >= {"tokens", "nll_a", "nll_b", "kl_mean", "kl_max", "first_drift"}
