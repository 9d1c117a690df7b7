"""The registry: every tensor of every family gets its address, and an address selects the right numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import tiny
from weightkit.assembly import open_registry
from weightkit.checkpoint import open_checkpoint
from weightkit.errors import AddressError, ConfigError, FormatError
from weightkit.registry import Registry
from weightkit.tensor import whole
from weightkit.weight import Weight

Array = NDArray[Any]
Row = tuple[str, str, tuple[str, ...], Array]  # address, role, axes, numbers as [out, in]

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in tiny.FAMILIES},
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama MHA": ("llama", {"num_key_value_heads": 4}),
    "llama with wide heads": ("llama", {"head_dim": 20}),
    "qwen3 with biases": ("qwen3", {"attention_bias": True}),
    "qwen2 tied, one key head": ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "gpt2 with a narrow FFN": ("gpt2", {"n_inner": 70}),
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def opened(folder: Path, variant: str, **write: Any) -> tuple[Registry, tiny.Tensors, dict[str, Any]]:
    family, changes = VARIANTS[variant]
    config = {**tiny.CONFIGS[family], **changes}
    tiny.write(folder, family, **write, **changes)
    return open_registry(open_checkpoint(folder)), tiny.weights(config), config


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Registry, tiny.Tensors, dict[str, Any]]]:
    return {variant: opened(tmp_path_factory.mktemp("model"), variant) for variant in VARIANTS}


Models = dict[str, tuple[Registry, tiny.Tensors, dict[str, Any]]]


def expected(tensors: tiny.Tensors, config: dict[str, Any]) -> list[Row]:
    """What a model should hold, in forward order."""
    rows = _gpt2(tensors, config) if config["model_type"] == "gpt2" else _llama(tensors, config)
    tied = config.get("tie_word_embeddings", config["model_type"] == "gpt2")
    head = rows[0][3] if tied else tensors["lm_head.weight"]
    return [*rows, ("lm_head", "vocab projection", ("token", "residual"), head)]


def _llama(t: tiny.Tensors, config: dict[str, Any]) -> list[Row]:
    def pair(address: str, role: str, axes: tuple[str, ...], name: str) -> Iterator[Row]:
        yield address, role, axes, t[f"{name}.weight"]
        if f"{name}.bias" in t:
            yield f"{address}.bias", "bias", axes[:1], t[f"{name}.bias"]

    rows = [*pair("embed", "embedding", ("token", "residual"), "model.embed_tokens")]
    for i in range(config["num_hidden_layers"]):
        at, file = f"layers.{i}.", f"model.layers.{i}."
        rows += pair(at + "attn.norm", "norm", ("residual",), file + "input_layernorm")
        for part, axis in (("q", "head"), ("k", "kv_head"), ("v", "kv_head")):
            rows += pair(at + f"attn.{part}", part.upper(), (axis, "residual"), file + f"self_attn.{part}_proj")
        if config["model_type"] == "qwen3":
            for part in "qk":
                rows += pair(at + f"attn.{part}.norm", "norm", ("head_dim",), file + f"self_attn.{part}_norm")
        rows += pair(at + "attn.o", "O", ("residual", "head"), file + "self_attn.o_proj")
        rows += pair(at + "ffn.norm", "norm", ("residual",), file + "post_attention_layernorm")
        for part in ("gate", "up"):
            rows += pair(at + f"ffn.{part}", f"W_{part}", ("neuron", "residual"), file + f"mlp.{part}_proj")
        rows += pair(at + "ffn.down", "W_down", ("residual", "neuron"), file + "mlp.down_proj")
    return [*rows, *pair("norm", "norm", ("residual",), "model.norm")]


def _gpt2(t: tiny.Tensors, config: dict[str, Any]) -> list[Row]:
    def pair(address: str, role: str, axes: tuple[str, ...], weight: Array, bias: Array) -> list[Row]:
        return [(address, role, axes, weight.T), (f"{address}.bias", "bias", axes[:1], bias)]

    def both(name: str) -> tuple[Array, Array]:
        return t[f"transformer.{name}.weight"], t[f"transformer.{name}.bias"]

    rows: list[Row] = [
        ("embed", "embedding", ("token", "residual"), t["transformer.wte.weight"]),
        ("embed.position", "position", ("position", "residual"), t["transformer.wpe.weight"]),
    ]
    for i in range(config["n_layer"]):
        at, file = f"layers.{i}.", f"h.{i}."
        rows += pair(at + "attn.norm", "norm", ("residual",), *both(file + "ln_1"))
        qkv = (np.split(array, 3, axis=-1) for array in both(file + "attn.c_attn"))
        for part, weight, bias in zip("qkv", *qkv, strict=True):
            rows += pair(
                at + f"attn.{part}", part.upper(), ("head" if part == "q" else "kv_head", "residual"), weight, bias
            )
        rows += pair(at + "attn.o", "O", ("residual", "head"), *both(file + "attn.c_proj"))
        rows += pair(at + "ffn.norm", "norm", ("residual",), *both(file + "ln_2"))
        rows += pair(at + "ffn.up", "W_up", ("neuron", "residual"), *both(file + "mlp.c_fc"))
        rows += pair(at + "ffn.down", "W_down", ("residual", "neuron"), *both(file + "mlp.c_proj"))
    return [*rows, *pair("norm", "norm", ("residual",), *both("ln_f"))]


# ── every tensor has its place ──────────────────────────────────────────────────────────────────────


@every_variant
def test_every_weight_in_forward_order_with_its_role_axes_and_numbers(models: Models, variant: str) -> None:
    registry, tensors, config = models[variant]
    rows = expected(tensors, config)
    assert list(registry) == [address for address, *_ in rows]
    for address, role, axes, numbers in rows:
        weight = registry[address]
        layer = int(address.split(".")[1]) if address.startswith("layers") else None
        assert (weight.address, str(weight.role), weight.layer) == (address, role, layer)
        assert tuple(axis.name for axis in weight.axes) == axes
        assert weight.shape == numbers.shape
        assert np.array_equal(weight.array(), numbers)
        assert np.array_equal(weight.dtype.decode(weight.read(whole(weight.shape))), numbers)


@every_variant
def test_every_tensor_is_claimed(models: Models, variant: str) -> None:
    registry, tensors, _ = models[variant]
    assert (registry.unclaimed, registry.ignored, registry.notes) == ((), (), ())
    assert {weight.name for weight in registry.values()} == set(tensors) == set(registry.by_name)


@every_variant
def test_a_config_alone_describes_the_same_weights(models: Models, tmp_path: Path, variant: str) -> None:
    registry, _, config = models[variant]
    (tmp_path / "config.json").write_text(json.dumps(config))
    described = open_registry(open_checkpoint(tmp_path / "config.json"))

    def facts(weight: Weight) -> tuple[Any, ...]:
        return (
            weight.name,
            weight.shape,
            weight.role,
            weight.axes,
            weight.layer,
            weight.layout,
            weight.tied_to,
            weight.alias,
        )

    assert {a: facts(w) for a, w in described.items()} == {a: facts(w) for a, w in registry.items()}
    assert list(described) == list(registry)
    with pytest.raises(FormatError, match="only a config"):
        described["embed"].array()


@pytest.mark.parametrize("variant", ["llama", "qwen3", "gpt2", "llama tied"])
def test_names_without_the_prefix(models: Models, tmp_path: Path, variant: str) -> None:
    registry, tensors, config = models[variant]
    bare = {name.removeprefix("model.").removeprefix("transformer."): array for name, array in tensors.items()}
    family, changes = VARIANTS[variant]
    found = open_registry(open_checkpoint(tiny.write(tmp_path, family, tensors=bare, **changes)))
    assert list(found) == list(registry)
    assert all(np.array_equal(found[a].array(), numbers) for a, _, _, numbers in expected(tensors, config))


@pytest.mark.parametrize(
    ("family", "buffers"),
    [
        ("gpt2", {"transformer.h.0.attn.bias": (1, 1, 64, 64), "transformer.h.2.attn.masked_bias": ()}),
        ("llama", {"model.layers.1.self_attn.rotary_emb.inv_freq": (6,)}),
    ],
)
def test_buffers_are_ignored_and_strangers_listed(
    models: Models, tmp_path: Path, family: str, buffers: dict[str, tuple[int, ...]]
) -> None:
    extra = {name: np.zeros(shape, np.float32) for name, shape in {**buffers, "stranger": (2,)}.items()}
    folder = tiny.write(tmp_path, family, tensors=tiny.weights(tiny.CONFIGS[family]) | extra)
    registry = open_registry(open_checkpoint(folder))
    assert set(registry.ignored) == set(buffers)
    assert registry.unclaimed == ("stranger",)
    assert list(registry) == [*models[family][0], "name:stranger"]
    assert [s.name for s in registry.select("name:stranger")] == ["stranger"]


@pytest.mark.parametrize(("family", "key"), [("llama", "num_hidden_layers"), ("gpt2", "n_layer")])
def test_layers_that_the_config_does_not_describe_are_noted(tmp_path: Path, family: str, key: str) -> None:
    changes: dict[str, Any] = {key: 1}
    folder = tiny.write(tmp_path, family, tensors=tiny.weights(tiny.CONFIGS[family]), **changes)
    registry = open_registry(open_checkpoint(folder))
    (note,) = registry.notes
    assert note.endswith("layers that the config does not describe, and that are not run: 1, 2")


def test_sharded_bf16(tmp_path: Path) -> None:
    registry, tensors, _ = opened(tmp_path, "qwen2", dtype="BF16", shards=3)
    for name, array in tensors.items():
        assert np.array_equal(registry.by_name[name].array(), array.astype(tiny.NUMPY["BF16"]).astype(np.float32))


def test_float32_is_not_copied(models: Models) -> None:
    registry = models["gpt2"][0]
    for address in ("embed", "layers.0.ffn.up", "layers.1.attn.k", "layers.1.attn.k.bias"):
        assert np.shares_memory(registry[address].array(), registry[address].stored.mapped())


def test_what_reads_and_writes_the_residual_stream(models: Models) -> None:
    for model in ("llama", "gpt2"):
        weights = {a.removeprefix("layers.0."): w for a, w in models[model][0].items() if w.layer in (None, 0)}
        reads = {a for a, w in weights.items() if w.reads_residual}
        writes = {a for a, w in weights.items() if w.writes_residual}
        gate, position = ({"ffn.gate"}, set()) if model == "llama" else (set(), {"embed.position"})
        assert reads == {"attn.q", "attn.k", "attn.v", "ffn.up", "lm_head"} | gate
        assert writes == {"embed", "attn.o", "ffn.down"} | position


# ── what an index selects ───────────────────────────────────────────────────────────────────────────

# Heads of the tiny llama and gpt2 are 12 wide, of qwen3 16.


@pytest.mark.parametrize(
    ("variant", "address", "parts"),
    [
        ("llama", "layers.1.attn[head=3]", {"attn.q": np.s_[36:48], "attn.o": np.s_[:, 36:48]}),
        ("llama", "layers.1.attn[head=-1]", {"attn.q": np.s_[36:48], "attn.o": np.s_[:, 36:48]}),
        ("llama", "layers.1[head=1:3]", {"attn.q": np.s_[12:36], "attn.o": np.s_[:, 12:36]}),
        ("llama", "layers.1.attn[kv_head=1]", {"attn.k": np.s_[12:24], "attn.v": np.s_[12:24]}),
        ("llama", "layers.1.attn.q[head=3, residual=2:5]", {"attn.q": np.s_[36:48, 2:5]}),
        (
            "llama MHA",
            "layers.1.attn[head=2]",
            {**{f"attn.{part}": np.s_[24:36] for part in "qkv"}, "attn.o": np.s_[:, 24:36]},
        ),
        ("llama MHA", "layers.1.attn[kv_head=2]", {"attn.k": np.s_[24:36], "attn.v": np.s_[24:36]}),
        (
            "qwen2",
            "layers.1.attn[head=3]",
            {"attn.q": np.s_[36:48], "attn.q.bias": np.s_[36:48], "attn.o": np.s_[:, 36:48]},
        ),
        ("qwen2", "layers.1[kv_head=0]", {f"attn.{part}": np.s_[:12] for part in ("k", "k.bias", "v", "v.bias")}),
        ("qwen3", "layers.1.attn[head=0]", {"attn.q": np.s_[:16], "attn.o": np.s_[:, :16]}),
        (
            "gpt2",
            "layers.1.attn[head=3]",
            {**{f"attn.{p}{b}": np.s_[36:48] for p in "qkv" for b in ("", ".bias")}, "attn.o": np.s_[:, 36:48]},
        ),
        (
            "llama",
            "layers.1.ffn[neuron=17]",
            {"ffn.gate": np.s_[17:18], "ffn.up": np.s_[17:18], "ffn.down": np.s_[:, 17:18]},
        ),
        (
            "llama with biases",
            "layers.1[neuron=-1]",
            {
                **{f"ffn.{p}{b}": np.s_[79:80] for p in ("gate", "up") for b in ("", ".bias")},
                "ffn.down": np.s_[:, 79:80],
            },
        ),
        (
            "gpt2",
            "layers.1.mlp[neuron=::64]",
            {"ffn.up": np.s_[::64], "ffn.up.bias": np.s_[::64], "ffn.down": np.s_[:, ::64]},
        ),
        ("gpt2", "layers.1.attn.v[5, 7]", {"attn.v": np.s_[5:6, 7:8]}),
        ("gpt2", "layers.1.attn.k[:, 17]", {"attn.k": np.s_[:, 17:18]}),
        ("gpt2", "layers.1.attn.k[40::3, -9:-2:2]", {"attn.k": np.s_[40::3, -9:-2:2]}),
        ("gpt2", "layers.1.ffn.down[-1]", {"ffn.down": np.s_[47:48]}),
        ("llama", "layers.1.ffn.down[3, 70]", {"ffn.down": np.s_[3:4, 70:71]}),
        ("llama", "layers.1.attn.norm[2:99]", {"attn.norm": np.s_[2:]}),
        ("llama", "layers.1.attn.q[residual=5]", {"attn.q": np.s_[:, 5:6]}),
    ],
)
def test_an_index_selects_these_rows_and_columns(
    models: Models, variant: str, address: str, parts: dict[str, Any]
) -> None:
    registry, tensors, config = models[variant]
    numbers = {a: array for a, _, _, array in expected(tensors, config)}
    found = {selection.weight.address.removeprefix("layers.1."): selection for selection in registry.select(address)}
    assert list(found) == sorted(parts, key=lambda a: list(numbers).index(f"layers.1.{a}"))
    for part, selection in found.items():
        wanted = numbers[f"layers.1.{part}"][parts[part]]
        assert np.array_equal(selection.array(), wanted)
        assert (selection.shape, selection.size) == (wanted.shape, wanted.size)
        assert selection.address == f"layers.1.{part}[{address.split('[')[1]}"


@pytest.mark.parametrize(
    "address", ["embed[token=42]", 'embed[token="Paris"]', "embed[token=-55]", "wte[42]", "embed[42, :]"]
)
def test_a_token_by_id_and_by_text(models: Models, address: str) -> None:
    registry, tensors, _ = models["llama"]
    (row,) = registry.select(address, {"Paris": 42}.__getitem__)
    assert np.array_equal(row.array(), tensors["model.embed_tokens.weight"][42:43])


@pytest.mark.parametrize("address", ["embed[token=97]", "layers.0.attn.q[token=1]", 'layers.0.attn.q[head="x"]'])
def test_what_no_token_can_select(models: Models, address: str) -> None:
    with pytest.raises(AddressError):
        models["llama"][0].select(address, lambda _: 1)


def test_a_step_over_heads_is_refused(models: Models) -> None:
    with pytest.raises(AddressError, match="a step is not possible on the axis head"):
        models["llama"][0].select("layers.0.attn.q[head=::2]")


def test_a_position(models: Models) -> None:
    registry, tensors, _ = models["gpt2"]
    (row,) = registry.select("*[position=3]")
    assert np.array_equal(row.array(), tensors["transformer.wpe.weight"][3:4])


# ── tied heads ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("variant", ["llama tied", "gpt2"])
def test_a_tied_head_is_the_embedding_and_is_selected_once(models: Models, variant: str) -> None:
    registry = models[variant][0]
    assert registry.tied == [["embed", "lm_head"]]
    assert registry["lm_head"].parameters() == 0
    assert np.shares_memory(registry["lm_head"].array(), registry["embed"].array())
    assert [w.address for w in registry.unique()] == [s.address for s in registry.select("*")] == list(registry)[:-1]
    assert [s.weight.address for s in registry.select("*[token=3]")] == ["embed"]
    assert [s.weight.address for s in registry.select("lm_head[token=3]")] == ["lm_head"]
    assert [s.address for s in registry.select(f"name:{registry['embed'].name}")] == ["embed"]


def test_a_tied_head_with_numbers_of_its_own_counts_by_itself(tmp_path: Path) -> None:
    tensors = tiny.weights(tiny.CONFIGS["llama"])
    registry = open_registry(open_checkpoint(tiny.write(tmp_path, tensors=tensors, tie_word_embeddings=True)))
    assert np.array_equal(registry["lm_head"].array(), tensors["lm_head.weight"])
    assert registry["lm_head"].tied_to is None
    assert registry["lm_head"].parameters() == 97 * 48
    assert [s.address for s in registry.select("*")][-1] == "lm_head"


# ── what has no roles ───────────────────────────────────────────────────────────────────────────────

ALL = ("llama", "mistral", "more")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "rwkv"}, ("'rwkv' is not known", *ALL)),
    ],
)
def test_an_unknown_family_opens_by_names_and_says_so(
    tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    registry = open_registry(open_checkpoint(tiny.write(tmp_path, **changes)))
    (note,) = registry.notes
    assert all(word in note for word in (*words, "roles and the engine are not available"))
    assert list(registry) == [f"name:{name}" for name in open_checkpoint(tmp_path).tensors]
    assert {str(weight.role) for weight in registry.values()} == {"other"}
    (row,) = registry.select("name:lm_head.weight[3]")
    assert np.array_equal(row.array(), tiny.weights(tiny.CONFIGS["llama"])["lm_head.weight"][3:4])


def test_weights_of_no_family_and_without_a_config_open_by_names(tmp_path: Path) -> None:
    (tiny.write(tmp_path, tensors={"w": np.ones((2, 3), np.float32)}) / "config.json").unlink()
    registry = open_registry(open_checkpoint(tmp_path))
    assert list(registry) == ["name:w"]
    assert "no config.json" in registry.notes[0]


@pytest.mark.parametrize("layer", ["9" * 5000, "1" * 10, "٣"])
def test_a_number_that_no_layer_has_is_a_part_of_a_name(tmp_path: Path, layer: str) -> None:
    tensors = tiny.weights({**tiny.CONFIGS["llama"], "num_hidden_layers": 1})
    tensors = {name.replace(".0.", f".{layer}."): array for name, array in tensors.items()}
    (tiny.write(tmp_path, tensors=tensors) / "config.json").unlink()
    registry = open_registry(open_checkpoint(tmp_path))
    assert set(registry) == {f"name:{name}" for name in tensors}


@pytest.mark.parametrize(("text", "layered"), [("W_Q", "layers.*.attn.q"), ("mlp.up_proj", "layers.*.ffn.up"),
                                               ("attn[head=1]", "layers.*.attn[head=1]")])  # fmt: skip
def test_an_address_that_belongs_in_a_layer_is_shown_there(tmp_path: Path, text: str, layered: str) -> None:
    registry = open_registry(open_checkpoint(tiny.write(tmp_path)))
    with pytest.raises(AddressError, match=re.escape(f"in every layer it is {layered}")):
        registry.select(text)


def test_a_config_of_an_unknown_family_alone_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "rwkv"}')
    with pytest.raises(ConfigError, match=r"'rwkv'.*no weights"):
        open_registry(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"hidden_size": 64, "head_dim": 12},
            "embed (model.embed_tokens.weight) is 97 × 64, but in model.safetensors it is 97 × 48",
        ),
        ({"vocab_size": 98}, "embed"),
        ({"intermediate_size": 81}, "layers.0.ffn.gate"),
        ({"num_key_value_heads": 1}, "layers.0.attn.k"),
        (
            {"num_hidden_layers": 4},
            "layers.3.attn.norm (model.layers.3.input_layernorm.weight), which is not in the files",
        ),
        ({"attention_bias": True}, "layers.0.attn.q.bias"),
        ({"hidden_size": "48"}, "hidden_size is '48'"),
        ({"model_type": None}, "no model_type"),
    ],
)
def test_a_config_that_contradicts_the_weights(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    folder = tiny.write(tmp_path, tensors=tiny.weights(tiny.CONFIGS["llama"]), **changes)
    with pytest.raises(ConfigError) as error:
        open_registry(open_checkpoint(folder))
    assert words in str(error.value)
    assert str(folder / "config.json") in str(error.value)
    alone = open_registry(open_checkpoint(folder / "model.safetensors"))  # which may be of another model
    assert words in alone.notes[0]
    assert all(address.startswith("name:") for address in alone)


def test_layers_of_any_stack_count_from_the_end(tmp_path: Path) -> None:
    """The encoder of this T5 has 2 layers, its decoder 3."""
    from tests.test_families import write

    registry = open_registry(open_checkpoint(write(tmp_path, "t5")))
    for pattern, layers in (("encoder.layers.-1", "1"), ("decoder.layers.-1", "2"), ("decoder.layers.1:", "12")):
        found = registry.select(f"{pattern}.attn.q")
        assert [s.weight.address for s in found] == [f"{pattern.partition('.')[0]}.layers.{i}.attn.q" for i in layers]
