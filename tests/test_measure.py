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
from tests import running, tiny
from weightkit.effect import measure as room
from weightkit.effect.measure import Effect
from weightkit.effect.windows import Masks
from weightkit.engine import forward
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
    assert got == pytest.approx(want, rel=1e-5, abs=1e-8)  # of float32 logits, in another order
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


def by_windows(
    model: wk.Model, edited: wk.Model, ids: list[int], spans: list[tuple[int, int, int]]
) -> dict[str, float]:
    """The fields of an effect; each window is [start, stop) of the text and predicts what is from `first` on."""
    nll: tuple[list[float], list[float]] = ([], [])
    kl: list[float] = []
    for start, stop, first in spans:
        p, q = (log_probabilities(m, ids[start:stop])[first - start - 1 :] for m in (model, edited))
        kl += (np.exp(p) * (p - q)).sum(axis=-1).tolist()
        for rows, found in zip((p, q), nll, strict=True):
            found += [-row[target] for row, target in zip(rows, ids[first:stop], strict=True)]
    return {
        "tokens": len(kl),
        "nll_a": math.fsum(nll[0]) / len(kl),
        "nll_b": math.fsum(nll[1]) / len(kl),
        "kl_mean": math.fsum(kl) / len(kl),
        "kl_max": max(kl),
    }


@pytest.mark.parametrize("overlap", [1, 3, 5, 9, None])
@pytest.mark.parametrize("length", [2, 9, 10, 11, 19, 20, 28, 29, 50])
def test_windows_predict_every_token_once(length: int, overlap: int | None, model: wk.Model) -> None:
    ids = (np.arange(length) * 7 % 97).tolist()
    spans, before = [(0, min(10, length), 1)], overlap or 5
    while spans[-1][1] < length:
        start = spans[-1][1] - before
        spans.append((start, min(start + 10, length), spans[-1][1]))
    edited = model.apply(EDITS[1])
    effect = wk.measure(model, edited, ids=[ids], window=10, overlap=overlap)
    require(effect, by_windows(model, edited, ids, spans))
    assert effect.tokens == length - 1


def test_a_text_longer_than_the_learned_positions(tmp_path: Path) -> None:
    model = wk.open(tiny.write(tmp_path, "gpt2", n_positions=16))
    ids = (np.arange(40) * 7 % 97).tolist()
    edited = model.apply(EDITS[1])
    spans = [(0, 16, 1), (8, 24, 16), (16, 32, 24), (24, 40, 32)]
    require(wk.measure(model, edited, ids=[ids]), by_windows(model, edited, ids, spans))
    with pytest.raises(EngineError, match="a window of 17 tokens is more than the 16 positions"):
        wk.measure(model, edited, ids=[ids], window=17)


def test_windows_are_of_512(tmp_path: Path) -> None:
    model = wk.open(tiny.write(tmp_path, max_position_embeddings=1024))
    ids = (np.arange(1100) * 31 % 97).tolist()
    edited = model.apply(EDITS[1])
    spans = [(0, 512, 1), (256, 768, 512), (512, 1024, 768), (768, 1100, 1024)]
    require(wk.measure(model, edited, ids=[ids]), by_windows(model, edited, ids, spans))


def test_windows_are_no_longer_than_models_are_made_for(tmp_path: Path) -> None:
    model = wk.open(tiny.write(tmp_path, max_position_embeddings=16))
    ids = (np.arange(40) * 7 % 97).tolist()
    assert wk.measure(model, model, ids=[ids]) == wk.measure(model, model, ids=[ids], window=16, overlap=8)
    assert wk.measure(model, model, ids=[ids], window=32) != wk.measure(model, model, ids=[ids])


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ({"window": 1}, "at least 2 tokens, .* not of 1"),
        ({"window": 0}, "at least 2 tokens, .* not of 0"),
        ({"window": 8, "overlap": 0}, "overlap by 1 to 7, not by 0"),
        ({"window": 8, "overlap": 8}, "overlap by 1 to 7, not by 8"),
        ({"window": -3}, "a whole number from 0, not -3"),
        ({"window": 2.5}, r"a whole number from 0, not 2\.5"),
        ({"overlap": 600}, "overlap by 1 to 63, not by 600"),
    ],
)
def test_windows_that_cannot_be(model: wk.Model, cut: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        wk.measure(model, model, ids=IDS, **cut)


def test_a_large_vocabulary_is_compared_in_parts(model: wk.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows of logits are made at a time, and fewer compared; what comes out is the same."""
    edited = model.apply(EDITS[1])
    whole = wk.measure(model, edited, ids=IDS)
    monkeypatch.setattr(forward, "LOGITS_BYTES", 4 * 97 * 5)
    monkeypatch.setattr(room, "COMPARED_BYTES", 4 * 97 * 2)
    parts = wk.measure(model, edited, ids=IDS)
    assert parts.kl_max_at == whole.kl_max_at
    for field in ("tokens", "nll_a", "nll_b", "kl_mean", "kl_max", "top1_agreement"):
        assert getattr(parts, field) == pytest.approx(getattr(whole, field), rel=1e-5)


def test_the_largest_divergence_has_a_place(model: wk.Model) -> None:
    edited = model.apply(EDITS[1])
    effect = wk.measure(model, edited, ids=IDS, window=10, overlap=4)
    place = effect.kl_max_at
    assert place is not None
    assert place.id == IDS[place.text][place.position]
    until = IDS[place.text][: place.position + 1]
    assert wk.measure(model, edited, ids=[until], window=10, overlap=4).kl_max == pytest.approx(effect.kl_max, rel=1e-4)
    if place.position > 1:
        assert wk.measure(model, edited, ids=[until[:-1]], window=10, overlap=4).kl_max < effect.kl_max


def test_texts_do_not_run_into_one_another(model: wk.Model) -> None:
    edited = model.apply(EDITS[0])
    apart = [wk.measure(model, edited, ids=[ids]) for ids in IDS]
    both = wk.measure(model, edited, ids=[*IDS, [7]])  # nothing follows a single token
    assert both.tokens == sum(effect.tokens for effect in apart) == 46
    assert both.nll_b == pytest.approx(sum(effect.nll_b for effect in apart) / 2)
    assert both.kl_max == max(effect.kl_max for effect in apart)


def test_progress_is_told_in_tokens(model: wk.Model) -> None:
    told: list[tuple[int, int]] = []
    wk.measure(model, model, ids=IDS, window=10, overlap=1, progress=lambda done, of: told.append((done, of)))
    assert told == [(n, 46) for n in (9, 18, 23, 32, 41, 46)]


# ── other kinds of models ────────────────────────────────────────────────────────────────────────────


def divergences(p: NDArray[np.float32], q: NDArray[np.float32], targets: Sequence[int]) -> dict[str, float]:
    """The fields of an effect out of logits, [tokens, vocab] twice."""
    a, b = (x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in (p.astype(np.float64), q.astype(np.float64)))
    kl = (np.exp(a) * (a - b)).sum(axis=-1)
    at = np.arange(len(targets)), list(targets)
    return {"tokens": len(kl), "nll_a": -a[at].mean(), "nll_b": -b[at].mean(), "kl_mean": kl.mean(), "kl_max": kl.max()}


def test_a_masked_model_says_what_every_seventh_token_was(tmp_path: Path) -> None:
    model = running.opened(tmp_path, "bert")
    edited = model.apply(wk.noise("layers.*.attn.q", relative_std=0.5))
    ids, mask, never = IDS[0], 4, {IDS[0][-1]}
    want: tuple[list[Any], list[Any], list[int]] = ([], [], [])
    for turn in range(7):
        places = [at for at in range(1, len(ids)) if at % 7 == turn and ids[at] not in never]
        asked = [mask if at in places else token for at, token in enumerate(ids)]
        want[0].append(model.logits(asked)[places])
        want[1].append(edited.logits(asked)[places])
        want[2].extend(ids[at] for at in places)
    effect = room.measure(model.engine, edited.engine, [ids], masks=Masks(mask, frozenset(never)))
    require(effect, divergences(np.concatenate(want[0]), np.concatenate(want[1]), want[2]))
    assert effect.first_drift == 0
    assert room.measure(model.engine, model.engine, [ids], masks=Masks(mask)).first_drift is None
    with pytest.raises(EngineError, match="which token is its mask"):
        wk.measure(model, edited, ids=[ids])


def test_a_model_with_an_encoder_reads_half_of_a_text(tmp_path: Path) -> None:
    model = running.opened(tmp_path, "t5")
    edited = model.apply(wk.noise("encoder.layers.0.ffn.up", relative_std=0.5))
    ids, half = IDS[0], len(IDS[0]) // 2
    answer = [model.engine.config.decoder_start, *ids[half:-1]]
    p, q = (m.logits(ids[:half], decoder_ids=answer) for m in (model, edited))
    effect = wk.measure(model, edited, ids=[ids])
    require(effect, divergences(p, q, ids[half:]))
    assert effect.first_drift == 0


def test_a_decoder_is_not_compared_with_a_masked_model(model: wk.Model, tmp_path: Path) -> None:
    masked = running.opened(tmp_path, "bert", vocab_size=97)
    with pytest.raises(EngineError, match="one is a decoder, the other not"):
        wk.measure(model, masked, ids=IDS)


# ── side by side ─────────────────────────────────────────────────────────────────────────────────────


def test_what_two_models_make_of_a_prompt(model: wk.Model) -> None:
    edited = model.apply(wk.noise("layers.2.ffn.down", relative_std=0.5))
    both = wk.side_by_side(model, edited, IDS[0], 16)
    assert both.ids_a == model.generate(IDS[0], 16)[len(IDS[0]) :]
    assert both.ids_b == edited.generate(IDS[0], 16)[len(IDS[0]) :]
    assert both.ids_a[: both.same] == both.ids_b[: both.same]
    assert both.ids_a[both.same] != both.ids_b[both.same]
    assert wk.side_by_side(model, model, IDS[0], 16).same == 16


def test_side_by_side_in_words(shared: Path) -> None:
    model = wk.open(shared / "models" / "stories260K")
    both = wk.side_by_side(model, model.apply(wk.zero("layers.0")), "Once upon a time", 20)
    assert both.text == "Once upon a time"
    assert both.text + both.text_a == model.generate("Once upon a time", 20)
    assert both.text_b != both.text_a


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
