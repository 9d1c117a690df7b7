"""Traces and changes: every activation of every family is what its name says, and is changed as it is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

import weightkit as wk
from tests import running, tiny
from tests.by_hand import tokenizer
from tests.running import IDS
from weightkit.effect import trace as room
from weightkit.effect.activations import activations
from weightkit.engine import block
from weightkit.engine.attention import attention as attend
from weightkit.errors import AddressError, EditError, EngineError

F32 = NDArray[np.float32]
LONG = (np.arange(60) * 31 % 97).tolist()
every_variant = pytest.mark.parametrize("variant", running.RUN)
ATTEND = [variant for variant in running.RUN if variant != "mamba"]
SUMMED = ["opt-350m", "bert", "roberta", "distilbert"]  # the stream is normed after every sum


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> wk.Model:
    return wk.open(tokenizer(tiny.write(tmp_path_factory.mktemp("llama"))))


def close(got: F32, want: F32, tolerance: float = 2e-6) -> bool:
    return bool(np.abs(got - want).max() <= tolerance * np.abs(want).max())


def weight(model: wk.Model, address: str) -> F32:
    return model[address].array()


# ── what is captured ─────────────────────────────────────────────────────────────────────────────────


@every_variant
def test_every_activation_comes_by_in_order_with_its_axes(variant: str, tmp_path: Path) -> None:
    model = running.opened(tmp_path, variant)
    known, traced = activations(model.engine), model.trace(IDS, ["*"])
    assert list(traced) == list(known)
    assert traced.axes == known
    decoder = 1 if model.engine.has_encoder else len(IDS)
    for address, x in traced.items():
        tokens = len(IDS) if address.startswith("encoder.") else decoder
        sizes = dict(zip(traced.axes[address], x.shape, strict=True))
        assert len(sizes) == x.ndim
        assert sizes["position"] == tokens
        assert sizes.get("key", tokens) == tokens
        assert sizes.get("source", len(IDS)) == len(IDS)
        assert sizes.get("residual", 48) == 48
        assert sizes.get("head", 4) == 4


@every_variant
def test_capturing_changes_nothing(variant: str, tmp_path: Path) -> None:
    model = running.opened(tmp_path, variant)
    traced = model.trace(IDS, ["*"])
    assert close(traced.logits, model.logits(IDS))
    assert np.array_equal(model.trace(IDS).logits, model.logits(IDS))
    assert list(model.trace(IDS)) == ["logits"]


@pytest.mark.parametrize("variant", [v for v in ATTEND if v not in SUMMED])
def test_the_stream_is_the_sum_of_what_the_halves_add(variant: str, tmp_path: Path) -> None:
    traced = running.opened(tmp_path, variant, **running.SCALED.get(variant, {})).trace(IDS, ["*"])
    ins = [address.removesuffix(".in") for address in traced if address.endswith(".in")]
    for at in ins:
        added = [traced[f"{at}.{half}.out"] for half in ("attn", "cross", "ffn") if f"{at}.{half}.out" in traced]
        assert close(sum(added, traced[f"{at}.in"]), traced[f"{at}.out"])
        if f"{at}.mid" in traced:  # not where both halves read the same
            assert close(traced[f"{at}.mid"] + traced[f"{at}.ffn.out"], traced[f"{at}.out"])


@pytest.mark.parametrize("variant", ATTEND)
def test_patterns_weigh_values(variant: str, tmp_path: Path) -> None:
    model = running.opened(tmp_path, variant)
    traced = model.trace(IDS, ["*"])
    for address in (name for name in traced if name.endswith("attn.pattern")):
        at = address.removesuffix(".pattern")
        pattern, v = traced[address], traced[f"{at}.v"]
        assert close(pattern @ np.repeat(v, 4 // len(v), axis=0), traced[f"{at}.heads"])
        if variant != "gpt_oss":  # whose sinks take a part
            assert np.allclose(pattern.sum(axis=-1), 1, atol=1e-6)
        if model.engine.continues and not at.startswith("encoder."):
            assert not np.triu(pattern, 1).any()


@pytest.mark.parametrize("variant", ["llama-bias", "gpt2", "phi", "deepseek_v3", "mpt", "t5-v1_1"])
def test_heads_and_neurons_become_what_is_added(variant: str, tmp_path: Path) -> None:
    model = running.opened(tmp_path, variant)
    at = "decoder.layers.0" if variant.startswith("t5") else "layers.0"
    traced = model.trace(IDS, ["*"])

    def linear(x: F32, address: str) -> F32:
        y = x @ weight(model, address).T
        return y + weight(model, f"{address}.bias") if f"{address}.bias" in model else y

    heads = traced[f"{at}.attn.heads"]
    assert close(linear(heads.swapaxes(0, 1).reshape(heads.shape[1], -1), f"{at}.attn.o"), traced[f"{at}.attn.out"])
    assert close(linear(traced[f"{at}.ffn.post"], f"{at}.ffn.down"), traced[f"{at}.ffn.out"])


def test_queries_keys_and_the_gate_of_llama_by_hand(model: wk.Model) -> None:
    traced = model.trace(IDS, ["*"])

    def normed(x: F32, address: str) -> F32:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-5) * weight(model, address)

    def heads(address: str, count: int) -> F32:
        x = normed(traced["layers.1.in"], "layers.1.attn.norm")
        return (x @ weight(model, address).T).reshape(len(IDS), count, 12).swapaxes(0, 1)

    def rotated(x: F32) -> F32:
        angles = np.arange(len(IDS))[:, None] / 10000.0 ** (np.arange(6) / 6)
        low, high = x[..., :6], x[..., 6:]
        turned = (low * np.cos(angles) - high * np.sin(angles), high * np.cos(angles) + low * np.sin(angles))
        return np.concatenate(turned, axis=-1)

    assert close(traced["layers.1.attn.q"], rotated(heads("layers.1.attn.q", 4)))
    assert close(traced["layers.1.attn.k"], rotated(heads("layers.1.attn.k", 2)))
    assert close(traced["layers.1.attn.v"], heads("layers.1.attn.v", 2))
    x = normed(traced["layers.1.in"] + traced["layers.1.attn.out"], "layers.1.ffn.norm")
    gate, up = (x @ weight(model, f"layers.1.ffn.{name}").T for name in ("gate", "up"))
    assert close(traced["layers.1.ffn.pre"], gate)
    assert close(traced["layers.1.ffn.post"], gate / (1 + np.exp(-gate)) * up)
    assert np.array_equal(traced["embed"], weight(model, "embed")[IDS])
    assert close(traced["norm"], normed(traced["layers.2.out"], "norm"))
    assert close(traced.logits, traced["norm"] @ weight(model, "lm_head").T)


@pytest.mark.parametrize(("variant", "count"), [("mixtral", 2), ("qwen2_moe", 2), ("granitemoe", 2), ("gpt_oss", 2)])
def test_experts_are_the_best_of_the_router(variant: str, count: int, tmp_path: Path) -> None:
    traced = running.opened(tmp_path, variant, num_experts_per_tok=count).trace(IDS, ["*"])
    scores, chosen = traced["layers.0.ffn.router"], traced["layers.0.ffn.experts"]
    assert np.array_equal(chosen, np.argsort(-scores, axis=-1)[:, :count])


def test_a_trace_is_a_mapping_with_its_text(model: wk.Model) -> None:
    traced = model.trace("w5 w17", ["layers.1:.attn.pattern", "layers.-1.out", "blocks.0.self_attn.query"])
    names = ["layers.0.attn.q", "layers.1.attn.pattern", "layers.2.attn.pattern", "layers.2.out", "logits"]
    assert list(traced) == names
    assert (len(traced), traced.ids) == (5, [5, 17])
    assert isinstance(traced, wk.Trace)
    assert np.array_equal(traced.logits, model.logits([5, 17]))
    assert traced.axes["layers.0.attn.q"] == ("head", "position", "dim")
    traced = model.trace("w5 w17", ["layers.0.out", "layers.1.in"])
    assert not np.shares_memory(traced["layers.0.out"], traced["layers.1.in"])


def test_what_is_given_as_one_is_one_of_a_list(model: wk.Model) -> None:
    change = wk.zero("layers.0.out")
    for ask in (model.trace, model.activations):
        one, several = ask(IDS, "layers.*.out", change), ask(IDS, ["layers.*.out"], [change])
        assert str(one) == str(several)
    assert np.array_equal(model.lens(IDS, change)["layers.0.out"], model.lens(IDS, [change])["layers.0.out"])
    for tokens in (5, "w5"):
        got = model.contributions(IDS, tokens)
        assert all(np.array_equal(x, got[address]) for address, x in model.contributions(IDS, [5]).items())


def test_what_a_trace_looks_like(model: wk.Model) -> None:
    assert repr(model.trace(IDS, "norm")) == "<Trace of 9 tokens: norm, logits>"
    assert repr(model.lens(IDS)) == "<Lens at embed, layers.0.out, layers.1.out, layers.2.out>"
    assert model.trace(IDS).get("norm") is None


def test_a_decoder_beside_an_encoder(tmp_path: Path) -> None:
    model = running.opened(tmp_path, "t5-v1_1")
    traced = model.trace(IDS, ["*"], decoder_ids=[0, 7, 8])
    assert close(traced.logits, model.logits(IDS, decoder_ids=[0, 7, 8]))
    assert traced["decoder.layers.0.cross.pattern"].shape == (4, 3, len(IDS))
    assert traced["encoder.layers.0.attn.pattern"].shape == (4, len(IDS), len(IDS))
    assert np.array_equal(traced["encoder.embed"], traced["encoder.layers.0.in"])
    changes = [wk.zero("encoder.layers.1.out[position=8]"), wk.zero("decoder.layers.2.ffn.out[position=2]")]
    changed = model.trace(IDS, ["decoder.layers.-1:.ffn.out", "encoder.layers.-1.out"], changes, decoder_ids=[0, 7, 8])
    assert not changed["encoder.layers.1.out"][8].any()
    assert changed["encoder.layers.1.out"][:8].all()
    assert changed["decoder.layers.2.ffn.out"].any(axis=1).tolist() == [True, True, False]


# ── long texts run some tokens at a time ─────────────────────────────────────────────────────────────

CHANGES = [
    wk.zero("layers.0.attn.heads[head=1]"),
    wk.scale("layers.1.out[position=9:-3:7]", 2.0),
    wk.set("layers.1.attn.k[kv_head=-1, position=21]", 0.5),
    wk.zero("layers.2.attn.pattern[head=0, key=40]"),
    wk.scale("layers.1.attn.pattern[key=-3:]", 0.5),
]


@pytest.mark.parametrize("changes", [[], CHANGES], ids=["as it is", "changed"])
@pytest.mark.parametrize("variant", ["llama", "gpt2", "mistral", "gemma3_text", "mpt", "qwen2_moe", "mamba", "bert"])
def test_steps_are_the_whole(
    variant: str, changes: list[wk.Edit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if changes and variant not in ("llama", "mistral"):
        changes = [wk.scale("layers.1.out[position=9:-3:7, residual=0:5]", 2.0), wk.zero("embed[position=-1]")]
    model = running.opened(tmp_path, variant)
    monkeypatch.setattr(room, "STEP", 60)
    whole = model.trace(LONG, ["*"], changes)
    for step in (59, 16, 1):
        monkeypatch.setattr(room, "STEP", step)
        parts = model.trace(LONG, ["*"], changes)
        for address, x in whole.items():
            assert parts[address].shape == x.shape
            assert close(parts[address], x, 2e-4), address


def test_rotations_that_depend_on_the_length_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = wk.open(tiny.write(tmp_path, max_position_embeddings=16, rope_parameters=scaling))
    monkeypatch.setattr(room, "STEP", 8)
    assert np.array_equal(model.trace(LONG).logits, model.logits(LONG))


def test_few_tokens_run_at_a_time_where_patterns_are_wide(model: wk.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    text = room.text_of(model.engine, LONG)
    sink = lambda address, axes, x, start: steps.append(x.shape[axes.index("position")])  # noqa: E731
    monkeypatch.setattr(room, "MOST_PATTERN", 4 * 60 * 7)
    monkeypatch.setattr(room, "MOST_LOGITS", 97 * 17)
    room.record(model.engine, text, ["layers.0.attn.pattern"], sink)
    assert steps == [7] * 8 + [4]
    steps.clear()
    room.record(model.engine, text, ["layers.0.out"], sink, changes=[wk.scale("layers.2.attn.pattern", 2)])
    assert steps == [7] * 8 + [4]
    steps.clear()
    room.record(model.engine, text, ["layers.0.out"], sink)
    assert steps == [60]
    steps.clear()
    room.record(model.engine, text, ["logits"], sink)  # of 97 tokens
    assert steps == [17, 17, 17, 9]


def test_progress_is_told(model: wk.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "STEP", 25)
    told: list[tuple[int, int]] = []
    text = room.text_of(model.engine, LONG)
    room.record(model.engine, text, [], lambda *_: None, progress=lambda done, of: told.append((done, of)))
    assert told == [(25, 60), (50, 60), (60, 60)]


# ── what is not looked at ────────────────────────────────────────────────────────────────────────────


def test_what_is_not_captured_costs_nothing(model: wk.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is copied, patterns are not made whole, and no logits are made."""
    seen: dict[str, bool] = {}

    def attention(q: F32, k: F32, v: F32, how: Any) -> F32:
        seen[str(len(seen))] = how.seen is not None
        return attend(q, k, v, how)

    monkeypatch.setattr(block, "attention", attention)
    monkeypatch.setattr(type(model.engine), "_head", lambda *_: pytest.fail("logits are made"))
    text = room.text_of(model.engine, IDS)
    given: list[str] = []
    room.record(model.engine, text, ["layers.1.attn.pattern"], lambda address, *_: given.append(address))
    assert list(seen.values()) == [False, True, False]
    assert given == ["layers.1.attn.pattern"]
    recorder = room._Recorder(model.engine, text, ["layers.1.out"], [], lambda *_: None)
    x = np.zeros((1, 9, 48), np.float32)
    assert recorder("layers.0.out", x) is x


# ── changes ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("variant", ATTEND)
def test_a_head_zeroed_is_its_columns_of_o_zeroed(variant: str, tmp_path: Path) -> None:
    model = running.opened(tmp_path, variant)
    stack = "decoder.layers" if variant.startswith("t5") else "layers"
    run = {"decoder_ids": [0, 5, 9]} if variant.startswith("t5") else {}
    changed = model.trace(IDS, (), [wk.zero(f"{stack}.1.attn.heads[head=2]")], **run).logits
    edited = model.apply(wk.zero(f"{stack}.1.attn.o[head=2]"))
    assert close(changed, edited.logits(IDS, **run))
    assert not close(changed, model.logits(IDS, **run), 1e-3)


@pytest.mark.parametrize(
    ("change", "edit"),
    [
        (wk.zero("layers.1.ffn.post[neuron=3:9]"), wk.zero("layers.1.ffn.down[neuron=3:9]")),
        (wk.scale("layers.*.attn.heads", 0.5), wk.scale("layers.*.attn.o", 0.5)),
        (wk.scale("layers.0.attn.v[kv_head=1]", -2.0), wk.scale("layers.0.attn.v[kv_head=1]", -2.0)),
        (wk.zero("layers.2.ffn.out"), wk.zero("layers.2.ffn.down")),
        (wk.scale("norm", 3.0), wk.scale("lm_head", 3.0)),
        (wk.zero("embed[residual=7]"), wk.zero("embed[residual=7]")),
        (wk.scale("logits[token=5]", 0.0), wk.zero("lm_head[token=5]")),
    ],
    ids=str,
)
def test_changes_that_edits_make_too(model: wk.Model, change: wk.Edit, edit: wk.Edit) -> None:
    changed = model.trace(IDS, (), [change]).logits
    assert close(changed, model.apply(edit).logits(IDS))
    assert not close(changed, model.logits(IDS), 1e-3)


@every_variant
def test_changes_that_change_nothing(variant: str, tmp_path: Path) -> None:
    model = running.opened(tmp_path, variant)
    traced = model.trace(IDS, ["*"])
    floats = [address for address, x in traced.items() if x.dtype == np.float32]
    for changes in (
        [wk.scale(address, 1.0) for address in floats],
        [wk.replace(address, traced[address]) for address in floats],
    ):
        again = model.trace(IDS, ["*"], changes)
        assert all(np.array_equal(again[address], x) for address, x in traced.items())


@pytest.mark.parametrize(
    ("address", "index"),
    [
        ("layers.1.attn.q[head=2]", np.s_[2]),
        ("layers.1.attn.q[head=-1, position=3]", np.s_[3, 3]),
        ("layers.1.attn.q[2, 1:4]", np.s_[2, 1:4]),
        ("layers.1.attn.q[:, -2]", np.s_[:, -2]),
        ("layers.1.attn.pattern[head=1:3, key=0]", np.s_[1:3, :, 0]),
        ("layers.1.out[position=-4:]", np.s_[-4:]),
        ("layers.1.ffn.pre[neuron=0:80:3]", np.s_[:, ::3]),
        ("logits[token=96]", np.s_[:, 96]),
    ],
)
def test_an_index_takes_what_numpy_takes(model: wk.Model, address: str, index: Any) -> None:
    name = address.partition("[")[0]
    before = model.trace(IDS, [name])[name]
    part = before[index]
    for change, want in (
        (wk.set(address, 0.25), 0.25),
        (wk.scale(address, 3.0), part * 3),
        (wk.zero(address), 0),
        (wk.replace(address, 7), 7),
    ):
        expected = before.copy()
        expected[index] = want
        assert np.array_equal(model.trace(IDS, [name], [change])[name], expected)


def test_changes_are_made_in_order(model: wk.Model) -> None:
    changes = [wk.set("layers.0.out", 1), wk.scale("layers.0.out", 3), wk.zero("layers.0.out[residual=0]")]
    x = model.trace(IDS, ["layers.0.out"], changes)["layers.0.out"]
    assert (set(x[:, 0]), set(x[:, 1:].ravel())) == ({0.0}, {3.0})


def test_a_stream_of_another_text_makes_it_the_other(model: wk.Model) -> None:
    other = model.trace(IDS[::-1], ["layers.0.out"])
    patched = model.trace(IDS, (), [wk.replace("layers.0.out", other["layers.0.out"])])
    assert np.array_equal(patched.logits, model.logits(IDS[::-1]))
    one = model.trace(IDS, ["layers.0.out"], [wk.replace("layers.0.out[position=-1]", other["layers.0.out"][-1])])
    assert np.array_equal(one["layers.0.out"][-1], other["layers.0.out"][-1])
    assert np.array_equal(one.logits[:-1], model.logits(IDS)[:-1])


def test_a_router_that_is_changed_chooses_otherwise(tmp_path: Path) -> None:
    model = running.opened(tmp_path, "mixtral")
    chosen = model.trace(IDS, ["*"], [wk.set("layers.1.ffn.router[expert=3]", 99)])["layers.1.ffn.experts"]
    assert (chosen[:, 0] == 3).all()


def test_neither_array_nor_model_is_changed(model: wk.Model) -> None:
    array = np.ones((9, 48), np.float32)
    change = wk.replace("layers.0.out", array)
    array[:] = 5
    traced = model.trace(IDS, ["layers.0.out"], [change])
    assert (traced["layers.0.out"] == 1).all()
    traced["layers.0.out"][:] = 2
    assert (model.trace(IDS, ["layers.0.out"], [change])["layers.0.out"] == 1).all()
    assert np.array_equal(model.trace(IDS).logits, model.logits(IDS))


# ── what cannot be done ──────────────────────────────────────────────────────────────────────────────

REFUSED: list[tuple[Callable[[wk.Model], Any], type[Exception], str]] = [
    (lambda m: m.trace(IDS, ["layers.0.attn.patern"]), AddressError, "did you mean 'layers.0.attn.pattern'"),
    (lambda m: m.trace(IDS, ["layers.3.out"]), AddressError, "no activation of this model"),
    (lambda m: m.trace(IDS, ["name:*"]), AddressError, "no activation"),
    (lambda m: m.trace(IDS, ["layers.0.attn.q[head=1]"]), AddressError, "leave out the index"),
    (lambda m: m.trace(IDS, [], [wk.zero("layers.0.attn.gate")]), AddressError, "no activation"),
    (lambda m: m.trace(IDS, [], [wk.zero("layers.0.attn.k[head=1]")]), AddressError, "axes are kv_head, position, dim"),
    (lambda m: m.trace(IDS, [], [wk.zero("layers.0.attn.q[head=4]")]), AddressError, "head, which goes from 0 to 3"),
    (lambda m: m.trace(IDS, [], [wk.zero("layers.0.out[position=9]")]), AddressError, "of a text of 9 tokens"),
    (lambda m: m.trace(IDS, [], [wk.zero("layers.0.out[1, 2, 3]")]), AddressError, "only 2 axes"),
    (lambda m: m.trace(IDS, [], [wk.zero('logits[token="w1"]')]), AddressError, "a number or a range"),
    (lambda m: m.trace(IDS, [], [wk.noise("layers.0.out", std=1.0)]), EditError, "zeroed, set, scaled or replaced"),
    (lambda m: m.trace(IDS, [], [wk.replace("embed", np.ones((8, 48)))]), EditError, r"\[8, 48\] cannot replace"),
    (lambda m: wk.replace("embed", "x"), EditError, "array of numbers"),
    (lambda m: m.trace(IDS, [], cast(Any, ["norm"])), EditError, "'norm' is no change"),
    (lambda m: m.trace(cast(Any, [IDS, IDS])), EngineError, "one text, or its token ids"),
    (lambda m: m.contributions("w5", " w5 w6"), EngineError, "' w5 w6' is 2 tokens"),
    (lambda m: m.trace(IDS, ["norm"])["layers.*.out"], AddressError, r"\*\.out: was not captured; .* is norm, logits"),
    (lambda m: m.trace(IDS)["norm"], KeyError, "^norm: was not captured"),
    (lambda m: m.lens(IDS)["norm"], KeyError, r"what was is embed, layers\.0"),
    (lambda m: m.trace([97]), EngineError, "id 97"),
    (lambda m: m.trace(""), EngineError, "empty"),
    (lambda m: m.trace(IDS, decoder_ids=[0]), EngineError, "no encoder"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_cannot_be_done_is_said(model: wk.Model, case: int) -> None:
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message) as raised:
        call(model)
    assert "\n" not in str(raised.value)


def test_choices_can_be_seen_and_not_changed(tmp_path: Path) -> None:
    model = running.opened(tmp_path, "mixtral")
    with pytest.raises(AddressError, match="change the router"):
        model.trace(IDS, [], [wk.zero("layers.0.ffn.experts")])
