"""Edits: every operation against float64 numpy rounded once, and nothing else touched, to the bit."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightkit as wk
from tests.by_hand import NUMPY, Array, bits, f32, rounded, shrink_blocks, write_file
from tests.tiny import CONFIGS, weights, write
from weightkit.errors import AddressError, EditError
from weightkit.surgery.edits import Edit
from weightkit.tensor import Tensor

Part = Any  # what numpy indexes with


def stored(model: wk.Model) -> dict[str, Array]:
    """Every tensor of the files as the model shows it, as bits."""
    return {name: bits(weight.stored.mapped()) for name, weight in model.registry.by_name.items()}


def originals(family: str, dtype: str = "F32") -> dict[str, Array]:
    return {name: array.astype(NUMPY[dtype]) for name, array in weights(CONFIGS[family]).items()}


def require(model: wk.Model, want: dict[str, Array]) -> None:
    """That the model's tensors are these to the bit."""
    found = stored(model)
    assert found.keys() == want.keys()
    wrong = [name for name in want if not np.array_equal(found[name], bits(want[name]))]
    assert wrong == []


def changed(
    before: dict[str, Array], dtype: str, parts: dict[str, Part], op: Callable[[Array], Array]
) -> dict[str, Array]:
    """The tensors after `op` in float64 on some parts of some of them, rounded once."""
    after = {name: array.copy() for name, array in before.items()}
    for name, part in parts.items():
        after[name][part] = rounded(op(after[name][part].astype(np.float64)), dtype)
    return after


LLAMA = "model.layers.1."
GPT2 = "transformer.h.1."
WHERE: list[tuple[str, str, dict[str, Part]]] = [
    ("llama", "embed", {"model.embed_tokens.weight": np.s_[:]}),
    ("llama", "layers.1.attn.q", {LLAMA + "self_attn.q_proj.weight": np.s_[:]}),
    ("llama", "layers.1.attn.q[head=2]", {LLAMA + "self_attn.q_proj.weight": np.s_[24:36]}),
    (
        "llama",
        "layers.1.attn[head=-1]",  # rows of q, columns of o; k and v are shared with another head
        {LLAMA + "self_attn.q_proj.weight": np.s_[36:], LLAMA + "self_attn.o_proj.weight": np.s_[:, 36:]},
    ),
    (
        "llama",
        "layers.1.attn[kv_head=1]",
        {LLAMA + f"self_attn.{name}_proj.weight": np.s_[12:] for name in "kv"},
    ),
    (
        "llama",
        "layers.1.mlp[neuron=17]",
        {
            LLAMA + "mlp.gate_proj.weight": np.s_[17],
            LLAMA + "mlp.up_proj.weight": np.s_[17],
            LLAMA + "mlp.down_proj.weight": np.s_[:, 17],
        },
    ),
    ("llama", "layers.1.ffn.down[47, 3]", {LLAMA + "mlp.down_proj.weight": np.s_[47, 3]}),
    ("llama", "layers.1.ffn.down[3:40:5, ::7]", {LLAMA + "mlp.down_proj.weight": np.s_[3:40:5, ::7]}),
    ("llama", "layers.*.attn.q[:, 17]", {f"model.layers.{i}.self_attn.q_proj.weight": np.s_[:, 17] for i in range(3)}),
    ("llama", "layers.1:.ffn.norm[residual=5]",
     {f"model.layers.{i}.post_attention_layernorm.weight": 5 for i in (1, 2)}),
    ("llama", "lm_head[token=0:97:10]", {"lm_head.weight": np.s_[::10]}),
    ("llama", "name:model.layers.*.o_proj.weight[2:4]",
     {f"model.layers.{i}.self_attn.o_proj.weight": np.s_[2:4] for i in range(3)}),
    ("gpt2", "layers.1.attn.q", {GPT2 + "attn.c_attn.weight": np.s_[:, :48]}),
    ("gpt2", "layers.1.attn.k[kv_head=2]", {GPT2 + "attn.c_attn.weight": np.s_[:, 72:84]}),
    ("gpt2", "layers.1.attn.v[5:40:3, 2:]", {GPT2 + "attn.c_attn.weight": np.s_[2:, 101:136:3]}),
    ("gpt2", "layers.1.attn.v.bias[1:3]", {GPT2 + "attn.c_attn.bias": np.s_[97:99]}),
    ("gpt2", "name:transformer.h.1.attn.c_attn.weight[5]", {GPT2 + "attn.c_attn.weight": np.s_[5]}),
    (
        "gpt2",
        "layers.1.attn[head=3]",  # a head of gpt2 owns its keys and values
        {
            GPT2 + "attn.c_attn.weight": np.r_[tuple(slice(36 + i, 48 + i) for i in (0, 48, 96))],
            GPT2 + "attn.c_attn.bias": np.r_[36:48, 84:96, 132:144],
            GPT2 + "attn.c_proj.weight": np.s_[36:],
        },
    ),
    (
        "gpt2",
        "layers.1.ffn[neuron=190:]",
        {
            GPT2 + "mlp.c_fc.weight": np.s_[:, 190:],
            GPT2 + "mlp.c_fc.bias": np.s_[190:],
            GPT2 + "mlp.c_proj.weight": np.s_[190:],
        },
    ),
    ("gpt2", "embed.position[position=63]", {"transformer.wpe.weight": np.s_[63]}),
]  # fmt: skip
OPS: dict[str, tuple[Callable[[str], Edit], Callable[[Array], Array]]] = {
    "zero": (wk.zero, np.zeros_like),
    "set": (lambda a: wk.set(a, -0.3), lambda x: np.full_like(x, -0.3)),
    "scale": (lambda a: wk.scale(a, 0.1), lambda x: x * 0.1),
    "negate": (lambda a: wk.scale(a, -1), operator.neg),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], wk.Model]:
    """A model of a family in a type; each is written once, since a model never changes."""

    @functools.cache
    def opened(family: str, dtype: str) -> wk.Model:
        return wk.open(write(tmp_path_factory.mktemp("model"), family, dtype=dtype))

    return opened


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("family", "address", "parts"), WHERE, ids=[a for _, a, _ in WHERE])
def test_operation(
    models: Callable[[str, str], wk.Model], family: str, address: str, parts: dict[str, Part], op: str, dtype: str
) -> None:
    make, oracle = OPS[op]
    before = originals(family, dtype)
    if address == "layers.1.attn[head=3]":  # the three runs are columns of the stored matrix
        name = GPT2 + "attn.c_attn.weight"
        parts = parts | {name: (slice(None), parts[name])}
    model = models(family, dtype)
    require(model.apply(make(address)), changed(before, dtype, parts, oracle))
    require(model, before)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"])
@pytest.mark.parametrize("op", OPS)
def test_eight_bits(tmp_path: Path, dtype: str, op: str) -> None:
    make, oracle = OPS[op]
    x = np.random.default_rng(0).standard_normal((20, 30)).astype(NUMPY[dtype])
    model = wk.open(write_file(tmp_path / "x.safetensors", {"x": x}))
    want = changed({"x": x}, dtype, {"x": np.s_[3:9, ::2]}, oracle)
    found = model.apply(make("name:x[3:9, ::2]"))
    values = [stored(found)["x"].view(NUMPY[dtype]), want["x"]]
    assert np.array_equal(*(v.astype(np.float32) for v in values))  # these types may have but one zero
    assert np.array_equal(stored(found)["x"][9:], bits(x)[9:])


@pytest.mark.parametrize("dtype", ["I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL"])
def test_whole_numbers(tmp_path: Path, dtype: str) -> None:
    x = np.ones((4, 5), NUMPY[dtype])
    model = wk.open(write_file(tmp_path / "x.safetensors", {"x": x}))
    require(model.apply(wk.zero("name:x[1]")), changed({"x": x}, dtype, {"x": np.s_[1]}, np.zeros_like))
    value = 1 if dtype == "BOOL" else 100
    want = changed({"x": x}, dtype, {"x": np.s_[:, 2]}, lambda v: np.full_like(v, value))
    require(model.apply(wk.set("name:x[:, 2]", value)), want)
    for edit in (wk.scale("name:x", 2), wk.noise("name:x", std=1)):
        with pytest.raises(EditError, match=f"{dtype}.*only be zeroed or set"):
            model.apply(edit)


def test_zero_is_positive_whatever_was_there(tmp_path: Path) -> None:
    x = f32(np.nan, np.inf, -1.0, -0.0)
    model = wk.open(write_file(tmp_path / "x.safetensors", {"x": x}))
    assert stored(model.apply(wk.zero("name:x")))["x"].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_scaling_keeps_what_is_not_finite(tmp_path: Path, dtype: str) -> None:
    x = f32(np.nan, np.inf, -np.inf, 3).astype(NUMPY[dtype])
    found = wk.open(write_file(tmp_path / "x.safetensors", {"x": x})).apply(wk.scale("name:x", 0.5))
    assert np.array_equal(found["name:x"].array(), [np.nan, np.inf, -np.inf, 1.5], equal_nan=True)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3, 4), (2, 1, 3, 2)])
@pytest.mark.parametrize("most", [1 << 20, 1, 5])
def test_any_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], most: int) -> None:
    x = np.random.default_rng(0).standard_normal(shape)
    model = wk.open(write_file(tmp_path / "x.safetensors", {"x": x}))
    shrink_blocks(monkeypatch, most)
    assert np.array_equal(stored(model.apply(wk.scale("name:x", 3)))["x"], bits(x * 3))
    if len(shape) == 3:
        edited = x.copy()
        edited[1, ::2, 1:3] = 0
        assert np.array_equal(stored(model.apply(wk.zero("name:x[1, ::2, 1:3]")))["x"], bits(edited))


def test_edits_stack_in_order(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path, dtype="F16"))
    before = originals("llama", "F16")
    edits = [
        wk.set("layers.1.ffn.down[:, 3:9]", 0.7),
        wk.scale("layers.*.ffn.down[2:5]", 1.3),
        wk.zero("layers.1.ffn.down[neuron=4]"),
    ]
    name = LLAMA + "mlp.down_proj.weight"
    want = changed(before, "F16", {name: np.s_[:, 3:9]}, lambda x: np.full_like(x, 0.7))
    want = changed(
        want, "F16", {f"model.layers.{i}.mlp.down_proj.weight": np.s_[2:5] for i in range(3)}, lambda x: x * 1.3
    )
    want = changed(want, "F16", {name: np.s_[:, 4]}, np.zeros_like)
    at_once = model.apply(*edits)
    chained = model.apply(edits[0]).apply(edits[1]).apply(edits[2])
    require(at_once, want)
    require(chained, want)
    assert at_once.edits == chained.edits == tuple(edits)
    reverse = model.apply(*reversed(edits))
    assert not np.array_equal(stored(reverse)[name], stored(at_once)[name])


def test_the_base_is_not_touched(tmp_path: Path) -> None:
    path = write(tmp_path, "gpt2")
    model = wk.open(path)
    file = path / "model.safetensors"
    raw, before = file.read_bytes(), stored(model)
    edited = model.apply(wk.noise("layers.*.attn", relative_std=1.0), wk.zero("embed"))
    _ = stored(edited)
    assert file.read_bytes() == raw
    assert all(np.array_equal(before[name], array) for name, array in stored(model).items())
    assert model.edits == ()
    kept = [n for n, w in edited.registry.by_name.items() if w.source is model.registry.by_name[n].source]
    assert {n for n in before if "attn" not in n and "ln_1" not in n and "wte" not in n} == set(kept)
    assert all(isinstance(model.registry.by_name[n].source, Tensor) for n in before)


def test_no_edits_share_everything(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path))
    same = model.apply()
    assert all(w.source is model.registry[a].source for a, w in same.registry.items())


def test_tied_weights_are_edited_once(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path, tie_word_embeddings=True))
    before = originals("llama") | {}
    del before["lm_head.weight"]
    want = changed(before, "F32", {"model.embed_tokens.weight": np.s_[3]}, lambda x: x * 2)
    for address in ("embed[token=3]", "lm_head[token=3]", "*[token=3]"):
        require(model.apply(wk.scale(address, 2)), want)


@pytest.mark.parametrize("most", [1, 13, 100])
@pytest.mark.parametrize(("family", "address"), [(f, a) for f, a, _ in WHERE if "1.attn" in a or "::7" in a])
def test_small_blocks_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, address: str, most: int
) -> None:
    model = wk.open(write(tmp_path, family, num_hidden_layers=2, n_layer=2))
    edits = wk.scale(address, 0.3), wk.noise(address, std=0.1, seed=3)
    want = stored(model.apply(*edits))
    shrink_blocks(monkeypatch, most)
    found = model.apply(*edits)
    names = [n for n, w in found.registry.by_name.items() if not isinstance(w.source, Tensor)]
    assert names
    for name in names:
        assert np.array_equal(bits(found.registry.by_name[name].stored.mapped()), want[name])


# ── what cannot be done ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("dtype", "edit"),
    [
        ("F16", wk.scale("name:x", 1e6)),
        ("F16", wk.set("name:x", 65520)),
        ("BF16", wk.scale("name:x", 1e39)),
        ("F32", wk.set("name:x", -1e39)),
        ("F64", wk.scale("name:x", 1e308)),
        ("F8_E4M3", wk.set("name:x", 480)),
        ("F8_E5M2", wk.scale("name:x", 1e6)),
        ("F8_E8M0", wk.zero("name:x")),
        ("F8_E8M0", wk.set("name:x", -1)),
        ("I8", wk.set("name:x", 128)),
        ("U8", wk.set("name:x", -1)),
        ("I32", wk.set("name:x", 0.5)),
        ("U64", wk.set("name:x", 1e20)),
        ("BOOL", wk.set("name:x", 2)),
        ("F16", wk.noise("name:x", std=1e6)),
    ],
    ids=lambda value: str(value).replace("name:", ""),
)
def test_a_number_that_does_not_fit_is_refused(tmp_path: Path, dtype: str, edit: Edit) -> None:
    x = np.ones((3, 100), np.float32) * 16 if dtype != "BOOL" else np.ones((3, 100))
    model = wk.open(write_file(tmp_path / "x.safetensors", {"x": x.astype(NUMPY[dtype])}))
    with pytest.raises(EditError, match=dtype) as raised:
        stored(model.apply(edit))
    assert str(raised.value).startswith(str(edit).split(":")[0])
    assert "\n" not in str(raised.value)


def test_the_largest_numbers_that_fit(tmp_path: Path) -> None:
    model = wk.open(write_file(tmp_path / "x.safetensors", {"x": np.ones(3, np.float16)}))
    assert model.apply(wk.set("name:x", 65519.9))["name:x"].array().tolist() == [65504] * 3
    assert model.apply(wk.set("name:x", 1e-30))["name:x"].array().tolist() == [0] * 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, "many", None])
@pytest.mark.parametrize(
    "make",
    [wk.set, wk.scale, lambda a, v: wk.noise(a, std=v), lambda a, v: wk.noise(a, relative_std=v)],
    ids=["set", "scale", "noise", "relative noise"],
)
def test_only_finite_numbers(make: Callable[[str, Any], Edit], value: Any) -> None:
    with pytest.raises(EditError, match="embed"):
        make("embed", value)


def test_noise_needs_one_deviation_that_is_not_negative() -> None:
    for std, relative_std in ((None, None), (1.0, 1.0), (-1.0, None), (None, -0.1)):
        with pytest.raises(EditError, match="noise on embed"):
            wk.noise("embed", std=std, relative_std=relative_std)


@pytest.mark.parametrize(
    "address",
    ["layers.9", "layers.0.attn.z", "embed[token=97]", "layers.0.attn.q[head=1:1]", "layers.0.attn.q[head=7:9]",
     "layers.0.attn.q[neuron=1]", "layers.5:.attn.q", "name:nope", "name:*.nope", "embed[0, 0, 0]", "norm[tail=1]", "",
     "embed[", "layers..q"],
)  # fmt: skip
def test_an_edit_that_selects_nothing_is_refused(tmp_path: Path, address: str) -> None:
    model = wk.open(write(tmp_path))
    with pytest.raises(AddressError) as raised:
        model.apply(wk.zero("embed"), wk.zero(address))
    assert "\n" not in str(raised.value)


def test_only_a_config_cannot_be_edited(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path) / "config.json")
    with pytest.raises(wk.WeightkitError, match=r"only a config\.json"):
        model.apply(wk.zero("embed"))


# ── edits as values ────────────────────────────────────────────────────────────────────────────────

EDITS = [
    wk.zero("layers.0.attn[head=3]"),
    wk.set("embed[token=5]", -2),
    wk.scale("layers.*.ffn.down", 1.5),
    wk.noise("norm", std=0.1, seed=9),
    wk.noise('embed[token="Paris"]', relative_std=0.01, seed=2**70),
]


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_json_round_trip(edit: Edit) -> None:
    again = Edit(**json.loads(json.dumps(edit.to_json(), allow_nan=False)))
    assert again == edit
    assert hash(again) == hash(edit)
    assert edit.address in str(edit)


def test_edits_are_immutable() -> None:
    with pytest.raises(AttributeError):
        functools.partial(setattr, EDITS[0], "address", "norm")()


def test_an_array_replaces_activations_only(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path))
    with pytest.raises(EditError, match=r"an activation by model\.trace"):
        model.apply(wk.replace("layers.0.attn.q", 0))  # type: ignore[arg-type]
