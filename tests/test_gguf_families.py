"""Every family as GGUF: the same weights, counts and logits as its Hugging Face twin."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

import weightkit as wk
from tests import ggufs, test_families
from tests import make_golden as golden
from weightkit.assembly.slots import expand, items_of, said
from weightkit.formats.gguf import open_file
from weightkit.model import Model

SAVED = test_families.SAVED
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
MULTIPLIERS = {
    "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0
}  # fmt: skip


def rope(variant: str, **said: Any) -> dict[str, Any]:
    return {"rope_parameters": SAVED[variant]["config"]["rope_parameters"] | said}


LINEAR = {
    "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
}
LONG = {"long_factor": [1.5, 2, 3, 4, 5, 6], "short_factor": [1, 1, 1.1, 1.2, 1.3, 1.4]}
CASES: dict[str, tuple[str, dict[str, Any]]] = {  # variant, and what its config says otherwise
    **{
        variant: (variant, {})
        for variant in """
            llama llama-bias llama-tied mistral mixtral qwen2 qwen3 gemma phi phi3 gpt2
            falcon-7b falcon-40b falcon-11b bloom mpt gpt_bigcode starcoder2 olmo olmo2 olmoe
            cohere cohere-qknorm smollm3 glm glm4 gpt_oss mamba t5 phimoe phimoe-bias
        """.split()
    },
    "qwen3_moe": ("qwen3_moe", {"norm_topk_prob": True}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 16, "sliding_window": 8}),
    "gemma3": ("gemma3_text", {"query_pre_attn_scalar": 16, "sliding_window": 8}),
    "gemma3-linear": ("gemma3_text", {"query_pre_attn_scalar": 16, "sliding_window": 8, "rope_parameters": LINEAR}),
    "olmo-clip": ("olmo", {"clip_qkv": 0.5}),
    "olmo3": ("olmo3", {"sliding_window": 8}),
    "cohere2": ("cohere2", {"sliding_window": 8}),
    "granite": ("granite", MULTIPLIERS),
    "granitemoe": ("granitemoe", MULTIPLIERS),
    "t5-v1_1": ("t5-v1_1", {"tie_word_embeddings": False}),
    "deepseek_v2-lite": ("deepseek_v2-lite", {"n_group": 1}),
    "deepseek_v2": ("deepseek_v2", {"n_group": 1, "routed_scaling_factor": 2.0}),
    "deepseek_v2-groups": ("deepseek_v2", {"topk_method": "group_limited_greedy"}),
    "deepseek_v2-yarn": ("deepseek_v2", {"n_group": 1, **rope("deepseek_v2", **YARN, mscale=0.7, mscale_all_dim=0.7)}),
    "deepseek_v3": ("deepseek_v3", {}),
    "gpt_oss-window": ("gpt_oss", {"sliding_window": 8}),
    "llama-linear": ("llama", rope("llama", rope_type="linear", factor=4.0)),
    "llama-yarn": ("llama", rope("llama", **YARN, beta_fast=16.0)),
    "llama3": ("llama", rope("llama", rope_type="llama3", factor=8.0, **LLAMA3)),
    "phi3-long": (
        "phi3",
        {
            "original_max_position_embeddings": 16,
            **rope("phi3", rope_type="longrope", original_max_position_embeddings=16, **LONG),
        },
    ),
    "phi3-window": ("phi3", {"sliding_window": 8}),
    **{
        variant: (variant, rope(variant, partial_rotary_factor=0.5))
        for variant in ("gpt_neox", "gpt_neox-nobias", "stablelm", "stablelm-12b")
    },
    "neox-serial": ("gpt_neox", {"use_parallel_residual": False, **rope("gpt_neox", partial_rotary_factor=0.5)}),
    "qwen2_moe": ("qwen2_moe", {"num_hidden_layers": 1, "layer_types": None}),  # those after have no experts
}


def small(variant: str) -> test_families.Tensors:
    """Random numbers of usual size: norms around one, or around none where one is added to them."""
    added = "gemma" in variant

    def scaled(name: str, array: Any) -> Any:
        is_norm = array.ndim == 1 and name.endswith("weight") and not added
        return array * np.float32(0.15) + np.float32(is_norm)

    return {name: scaled(name, array) for name, array in test_families.random(variant).items()}


def _layer(name: str) -> int:
    return int(next((part for part in name.split(".") if part.isdigit()), 0))


def twins(folder: Path, case: str, **options: Any) -> tuple[Model, Model]:
    variant, changes = CASES[case]
    tensors = small(variant)
    if changes.get("tie_word_embeddings") is False:  # transformers 5 leaves it out of its file, which the hub has not
        tensors["lm_head.weight"] = tensors["shared.weight"][::-1].copy()
    if layers := changes.get("num_hidden_layers"):
        tensors = {name: array for name, array in tensors.items() if _layer(name) < layers}
    model = wk.open(test_families.write(folder / "hf", variant, tensors, **changes))
    config = SAVED[variant]["config"] | changes
    return model, wk.open(ggufs.write(folder / "m.gguf", config, tensors, **options))


def same(model: Model, other: Model) -> None:
    """That two models agree in everything: addresses, counts, values, logits."""
    assert other.notes == ()
    assert other.counts().total == model.counts().total
    assert other.counts().unclaimed == []
    assert set(other) == set(model)
    for address in model:
        np.testing.assert_allclose(other[address].array(), model[address].array(), rtol=1e-6, atol=1e-6)
    assert error(other.logits(IDS), model.logits(IDS)) < 1e-5


def error(got: Any, want: Any) -> float:
    return float(np.abs(got - want).max() / want.std())


IDS = np.random.RandomState(0).randint(0, 97, 30)


@pytest.mark.parametrize("case", CASES)
def test_the_same_weights_and_logits(tmp_path: Path, case: str) -> None:
    same(*twins(tmp_path, case))


@pytest.mark.parametrize("case", CASES)
def test_converted_it_is_its_twin(tmp_path: Path, case: str) -> None:
    model, other = twins(tmp_path, case)
    again = wk.open(other.convert(tmp_path / "out"))
    same(model, again)
    assert set(again.checkpoint.names) == set(model.checkpoint.names)


@pytest.mark.oracle
@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("t5")])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_logits_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    pytest.importorskip("transformers")
    _, other = twins(tmp_path, case)
    assert error(other.logits(IDS), golden.reference(tmp_path / "hf", IDS[None])[0]) < 1e-5


# Families that transformers does not have, or whose files llama.cpp calls otherwise: (config, architecture).
SMALL = {"vocab_size": 97, "hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "qwen": ({**SMALL, "model_type": "qwen", "intermediate_size": 160, "kv_channels": 12, "seq_length": 64}, "qwen"),
    "chatglm": (
        {
            "model_type": "chatglm",
            "padded_vocab_size": 97,
            "vocab_size": 97,
            "hidden_size": 48,
            "num_attention_heads": 4,
            "num_layers": 2,
            "ffn_hidden_size": 80,
            "kv_channels": 12,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "num_key_value_heads": 2,
            "add_qkv_bias": True,
            "layernorm_epsilon": 1e-5,
            "seq_length": 64,
        },
        "chatglm",
    ),
    "internlm2": ({**SAVED["llama"]["config"]}, "internlm2"),
    "mistral3": ({**SAVED["mistral"]["config"], "sliding_window": None}, "mistral3"),
    "gptj": ({**SAVED["gptj"]["config"]}, "gptj"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_names_of_architectures(tmp_path: Path, case: str) -> None:
    config, architecture = OTHERS[case]
    (tmp_path / "config.json").write_text(json.dumps(config))
    described = wk.open(tmp_path / "config.json").registry
    assert described.architecture is not None
    assert described.config is not None
    items = items_of(described.architecture, described.config, gguf=False)
    places = expand(items, described.config, described.architecture.prefixes[0])
    shapes = {said(item, fill): item.stored for item, fill in places if item.slot.optional != "extra"}
    rng = np.random.default_rng(5)
    tensors = {name: rng.normal(size=shape).astype(np.float32) * np.float32(0.15) for name, shape in shapes.items()}
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    path = ggufs.write(tmp_path / "m.gguf", config, tensors, architecture=architecture)
    same(wk.open(tmp_path / "hf"), wk.open(path))


def wider(variant: str) -> tuple[dict[str, Any], test_families.Tensors]:
    """A variant whose rows are whole blocks of 32, and its config."""
    sizes = {24: 32, 48: 64, 80: 96, 160: 192}
    rng = np.random.default_rng(1)
    shapes = {name: [sizes.get(n, n) for n in shape] for name, shape in SAVED[variant]["tensors"].items()}
    tensors = {name: (rng.normal(size=shape) * 0.15).astype(np.float32) for name, shape in shapes.items()}
    return SAVED[variant]["config"] | {"hidden_size": 64, "intermediate_size": 96}, tensors


@pytest.mark.parametrize("kind", ["MXFP4", "Q8_0"])
def test_experts_of_gpt_oss_in_small_floats(tmp_path: Path, kind: str) -> None:
    config, tensors = wider("gpt_oss")
    number = gguf.GGMLQuantizationType[kind]
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        turned = np.ascontiguousarray(tensors[name].swapaxes(1, 2))  # in GGUF the rows are those of [out, in]
        tensors[name] = np.ascontiguousarray(gguf.dequantize(gguf.quantize(turned, number), number).swapaxes(1, 2))
    model = wk.open(test_families.write(tmp_path / "hf", "gpt_oss", tensors, **config))
    other = wk.open(ggufs.write(tmp_path / "m.gguf", config, tensors, types={"exps.weight": kind}))
    same(model, other)
    assert other.counts().by_dtype[kind] == 3 * 4 * 3 * 64 * 96
    same(model, wk.open(other.convert(tmp_path / "out")))


def test_one_tensor_of_matrices_of_several_types(tmp_path: Path) -> None:
    config, tensors = wider("granitemoe")
    path = ggufs.write(tmp_path / "m.gguf", config, tensors, types={"gate_exps": "F16", "up_exps": "Q8_0"})
    model = wk.open(path)
    assert {"Q8_0", "F16", "F32"} <= set(model.counts().by_dtype)
    same(model, wk.open(model.convert(tmp_path / "out")))


@pytest.mark.parametrize("case", ["gpt_oss", "qwen3_moe", "deepseek_v3"])
def test_gates_and_ups_of_experts_in_one_tensor(tmp_path: Path, case: str) -> None:
    """As newer files have them: the gates of an expert, then the ups."""
    variant, changes = CASES[case]
    config, tensors = SAVED[variant]["config"] | changes, small(variant)
    model = wk.open(test_families.write(tmp_path / "hf", variant, tensors, **changes))
    separate = ggufs.named(config, tensors)
    for name in [n for n in separate if "ffn_gate_exps" in n]:
        ups = separate.pop(name.replace("gate", "up"))
        separate[name.replace("gate", "gate_up")] = np.concatenate([separate.pop(name), ups], axis=1)
    other = wk.open(ggufs.write_named(tmp_path / "m.gguf", config, separate))
    same(model, other)
    same(model, wk.open(other.convert(tmp_path / "out")))


def test_latent_keys_and_values_in_one_tensor(tmp_path: Path) -> None:
    """As files of deepseek2 were at first."""
    config, tensors = SAVED["deepseek_v2"]["config"] | {"n_group": 1}, small("deepseek_v2")
    model = wk.open(test_families.write(tmp_path / "hf", "deepseek_v2", tensors, n_group=1))
    separate = {n: a for n, a in ggufs.named(config, tensors).items() if "attn_k_b" not in n and "attn_v_b" not in n}
    for layer in range(3):
        whole = tensors[f"model.layers.{layer}.self_attn.kv_b_proj.weight"]
        separate[f"blk.{layer}.attn_kv_b.weight"] = whole
    old = {"attention.key_length_mla": 0, "attention.key_length": 20, "attention.value_length": 10}
    same(model, wk.open(ggufs.write_named(tmp_path / "m.gguf", config, separate, more=old)))


def test_the_first_files_of_mixtral_have_a_tensor_for_each_expert(tmp_path: Path) -> None:
    config, tensors = SAVED["mixtral"]["config"], small("mixtral")
    model = wk.open(test_families.write(tmp_path / "hf", "mixtral", tensors))
    separate = ggufs.named(config, tensors)
    for name in [n for n in separate if "_exps." in n]:
        stack = separate.pop(name)
        separate |= {name.replace("_exps.", f".{number}."): matrix for number, matrix in enumerate(stack)}
    other = wk.open(ggufs.write_named(tmp_path / "m.gguf", config, separate))
    same(model, other)
    same(model, wk.open(other.convert(tmp_path / "out")))


def test_scores_of_the_largest_gemma_2_are_scaled_by_another_size(tmp_path: Path) -> None:
    """`n_layer == 46` in llama.cpp: the model of 27B."""
    more = {"block_count": 46, "attention.head_count": 8}
    scalars = [open_file(ggufs.write(tmp_path / "m.gguf", *gemma2(), more=m)).config for m in ({}, more)]
    assert [config and config["query_pre_attn_scalar"] for config in scalars] == [16, 6.0]


def gemma2() -> tuple[dict[str, Any], test_families.Tensors]:
    return SAVED["gemma2"]["config"], small("gemma2")


def test_turned_keys_read_in_any_part(tmp_path: Path) -> None:
    _, other = twins(tmp_path, "deepseek_v2")
    source = other.checkpoint.tensors["blk.1.attn_k_b.weight"]
    whole = source.mapped().ravel()
    assert source.shape == (4 * 12, 20)
    for start, stop in ((0, 1), (7, 500), (239, 241), (0, whole.size), (9, 9)):
        np.testing.assert_array_equal(source.read(start, stop), whole[start:stop])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).mapped().ravel(), whole)


def test_the_first_files_of_phi_2_have_q_k_v_in_one_tensor(tmp_path: Path) -> None:
    config, tensors = SAVED["phi"]["config"], small("phi")
    model = wk.open(test_families.write(tmp_path / "hf", "phi", tensors))
    separate = ggufs.named(config, tensors)
    for name in [n for n in separate if "attn_q." in n]:
        parts = [separate.pop(name.replace("attn_q", f"attn_{short}")) for short in "qkv"]
        separate[name.replace("attn_q", "attn_qkv")] = np.concatenate(parts)
    same(model, wk.open(ggufs.write_named(tmp_path / "m.gguf", config, separate)))


@pytest.mark.parametrize("case", ["gemma3", "gemma3-linear", "olmo3", "cohere2", "gpt_oss-window"])
def test_which_layers_have_a_window_where_a_file_says_it(tmp_path: Path, case: str) -> None:
    variant, changes = CASES[case]
    types = ["full_attention", "sliding_attention", "full_attention"]
    config, tensors = SAVED[variant]["config"] | changes | {"layer_types": types}, small(variant)
    model = wk.open(test_families.write(tmp_path / "hf", variant, tensors, **changes, layer_types=types))
    pattern = {"attention.sliding_window_pattern": [False, True, False]}
    same(model, wk.open(ggufs.write(tmp_path / "m.gguf", config, tensors, more=pattern)))


def test_mamba_with_more_norms_is_another_family(tmp_path: Path) -> None:
    _, other = twins(tmp_path, "mamba", more={"ssm.dt_b_c_rms": True})
    assert "'falcon_mamba' is not known" in other.notes[-1]


def test_an_encoder_has_the_same_weights(tmp_path: Path) -> None:
    """The converter leaves out what it has above its blocks."""
    config, tensors = SAVED["bert"]["config"], small("bert")
    model = wk.open(test_families.write(tmp_path / "hf", "bert", tensors))
    other = wk.open(ggufs.write(tmp_path / "m.gguf", config, tensors))
    assert (other.counts().unclaimed, other.notes) == ([], ())
    above = {address for address in model if address.startswith(("lm_head", "pooler", "next_sentence"))}
    assert set(other) == set(model) - above
    for address in other:
        np.testing.assert_array_equal(other[address].array(), model[address].array())
    with pytest.raises(wk.WeightkitError, match="lm_head is not in the files"):
        other.logits(IDS)
