"""GGUF twins of Hugging Face models, written by the gguf package as llama.cpp's converter writes them.

Source: the classes of conversion/*.py in llama.cpp (`set_gguf_parameters`, `modify_tensors`), which each
function here follows for one family.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Config = Mapping[str, Any]
Named = tuple[str, Array]

ARCHITECTURES = {  # general.architecture by model_type
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen2_moe": "qwen2moe",
    "qwen3": "qwen3", "qwen3_moe": "qwen3moe", "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3",
    "phi": "phi2", "phi3": "phi3", "phimoe": "phimoe", "gpt2": "gpt2", "gpt_neox": "gptneox", "falcon": "falcon",
    "bloom": "bloom", "mpt": "mpt", "gpt_bigcode": "starcoder", "starcoder2": "starcoder2", "stablelm": "stablelm",
    "olmo": "olmo", "olmo2": "olmo2", "olmo3": "olmo2", "olmoe": "olmoe", "cohere": "command-r",
    "cohere2": "cohere2", "granite": "granite", "granitemoe": "granitemoe", "smollm3": "smollm3",
    "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2", "glm": "chatglm", "glm4": "glm4",
    "gpt_oss": "gpt-oss", "mamba": "mamba", "t5": "t5", "bert": "bert",
}  # fmt: skip


def first(config: Config, *keys: str, default: Any = None) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), default)


def heads_of(config: Config) -> tuple[int, int, int]:
    """Heads, key heads, and the size of a head."""
    heads = first(config, "num_attention_heads", "n_head", "num_heads", "n_heads", default=1)
    kv = first(config, "num_key_value_heads", "num_kv_heads", default=heads)
    if config["model_type"] in ("falcon", "gpt_bigcode") and not config.get("new_decoder_architecture"):
        kv = 1 if config.get("multi_query") else heads
    width = first(config, "hidden_size", "n_embd", "d_model")
    return heads, kv, first(config, "head_dim", "d_kv", default=width // heads)


EPS = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "layernorm_epsilon")

# ── metadata ─────────────────────────────────────────────────────────────────────────────────────────


def metadata(config: Config) -> dict[str, Any]:
    """What most converters write, and what those of one family do."""
    heads, kv, head_dim = heads_of(config)
    width = first(config, "hidden_size", "n_embd", "d_model")
    found: dict[str, Any] = {
        "context_length": first(config, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
        "embedding_length": width,
        "block_count": first(config, "num_hidden_layers", "n_layer", "num_layers", "n_layers"),
        "feed_forward_length": first(
            config, "intermediate_size", "n_inner", "ffn_hidden_size", "d_ff", default=4 * width
        ),
        "attention.head_count": heads,
        "attention.head_count_kv": kv,
        "attention.layer_norm_rms_epsilon": first(config, "rms_norm_eps"),
        "attention.layer_norm_epsilon": first(config, *EPS),
        "expert_count": first(config, "num_local_experts", "num_experts", "n_routed_experts"),
        "expert_used_count": config.get("num_experts_per_tok"),
        "vocab_size": config["vocab_size"],
    }
    if config.get("head_dim") or config.get("d_kv"):
        found |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    found |= rope(config, head_dim)
    own = OWN_METADATA.get(config["model_type"])
    found |= own(config) if own else {}
    return {key: value for key, value in found.items() if value is not None}


def rope(config: Config, head_dim: int) -> dict[str, Any]:
    said = config.get("rope_parameters") or {}
    said = said.get("full_attention", said)
    if not said:
        return {}
    found: dict[str, Any] = {
        "rope.freq_base": float(said["rope_theta"]),
        "rope.dimension_count": int(head_dim * said.get("partial_rotary_factor", 1.0)),
    }
    if said["rope_type"] in ("linear", "yarn"):
        found |= {"rope.scaling.type": said["rope_type"], "rope.scaling.factor": float(said["factor"])}
    if said["rope_type"] == "yarn":
        found["rope.scaling.original_context_length"] = said["original_max_position_embeddings"]
        keys = {"yarn_attn_factor": "attention_factor", "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
        found |= {f"rope.scaling.{key}": said[name] for key, name in keys.items() if said.get(name) is not None}
    return found


def _window(config: Config) -> dict[str, Any]:
    return {"attention.sliding_window": config["sliding_window"]}


def _gemma2(config: Config) -> dict[str, Any]:
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    return _window(config) | {key: config[key] for key in caps}


def _granite(config: Config) -> dict[str, Any]:
    return {
        "attention.scale": config["attention_multiplier"],
        "embedding_scale": config["embedding_multiplier"],
        "residual_scale": config["residual_multiplier"],
        "logit_scale": config["logits_scaling"],
    }


def _deepseek(config: Config) -> dict[str, Any]:
    third = config["model_type"] == "deepseek_v3"
    rope_dim, rank = config["qk_rope_head_dim"], config["kv_lora_rank"]
    log = (config["rope_parameters"] or {}).get("mscale_all_dim")
    return {
        "attention.head_count_kv": 1,
        "leading_dense_block_count": config["first_k_dense_replace"],
        "attention.q_lora_rank": config["q_lora_rank"],
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rope_dim,
        "attention.value_length": rank,
        "attention.key_length_mla": config["qk_nope_head_dim"] + rope_dim,
        "attention.value_length_mla": config["v_head_dim"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_weights_scale": config["routed_scaling_factor"],
        "expert_weights_norm": True if config.get("norm_topk_prob") else None,
        "expert_gating_func": 2 if third else 1,
        "expert_group_count": config["n_group"],
        "expert_group_used_count": config["topk_group"],
        "rope.dimension_count": rope_dim,
        "rope.scaling.yarn_log_multiplier": None if log is None else 0.1 * log,
    }


def _mamba(config: Config) -> dict[str, Any]:
    return {
        "context_length": 1 << 20,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.head_count_kv": None,
        "attention.layer_norm_epsilon": None,
        "attention.layer_norm_rms_epsilon": config["layer_norm_epsilon"],
        "ssm.conv_kernel": config["conv_kernel"],
        "ssm.inner_size": config["intermediate_size"],
        "ssm.state_size": config["state_size"],
        "ssm.time_step_rank": config["time_step_rank"],
        "ssm.dt_b_c_rms": False,
    }


def _t5(config: Config) -> dict[str, Any]:
    return {
        "context_length": 512,
        "decoder_block_count": config["num_decoder_layers"],
        "attention.relative_buckets_count": config["relative_attention_num_buckets"],
        "attention.layer_norm_rms_epsilon": config["layer_norm_epsilon"],
        "decoder_start_token_id": 0,
    }


def _phi3(config: Config) -> dict[str, Any]:
    said = config["rope_parameters"]
    found = {} if config["sliding_window"] is None else _window(config)
    found["rope.scaling.original_context_length"] = first(
        config, "original_max_position_embeddings", default=config["max_position_embeddings"]
    )
    if said["rope_type"] == "longrope":
        scale = config["max_position_embeddings"] / said["original_max_position_embeddings"]
        factor = (
            1.0 if scale <= 1 else math.sqrt(1 + math.log(scale) / math.log(said["original_max_position_embeddings"]))
        )
        found["rope.scaling.attn_factor"] = factor
        found["rope.scaling.original_context_length"] = said["original_max_position_embeddings"]
    return found


def _experts(config: Config) -> dict[str, Any]:
    return {
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_feed_forward_length": config.get("shared_expert_intermediate_size"),
    }


OWN_METADATA: dict[str, Callable[[Config], dict[str, Any]]] = {
    "qwen2_moe": _experts,
    "qwen3_moe": _experts,
    "gemma2": _gemma2,
    "gemma3_text": _window,
    "phi3": _phi3,
    "phimoe": _phi3,
    "gpt_neox": lambda c: {"use_parallel_residual": c["use_parallel_residual"]},
    "stablelm": lambda c: {"use_parallel_residual": c["use_parallel_residual"]},
    "gptj": lambda c: {"rope.dimension_count": c["rotary_dim"]},
    "mpt": lambda c: {"attention.layer_norm_epsilon": 1e-5, "attention.max_alibi_bias": 8.0},
    "olmo": lambda c: {"attention.layer_norm_epsilon": 1e-5, "attention.clamp_kqv": c.get("clip_qkv")},
    "olmo3": _window,
    "cohere": lambda c: {"logit_scale": c["logit_scale"]},
    "cohere2": lambda c: {"logit_scale": c["logit_scale"], "rope.scaling.type": "none", **_window(c)},
    "granite": _granite,
    "granitemoe": _granite,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "gpt_oss": lambda c: {**_window(c), "expert_feed_forward_length": c["intermediate_size"]},
    "mamba": _mamba,
    "t5": _t5,
}


# ── tensors ──────────────────────────────────────────────────────────────────────────────────────────


def permute(rows: Array, heads: int) -> Array:
    """`LlamaModel.permute`."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def unchanged(name: str, array: Array, _: Config) -> Iterator[Named]:
    yield name, array


def permuted(name: str, array: Array, config: Config) -> Iterator[Named]:
    heads, kv, _ = heads_of(config)
    if ".q_proj." in name:
        array = permute(array, heads)
    elif ".k_proj." in name:
        array = permute(array, kv)
    yield name, array


def plus_one(name: str, array: Array, _: Config) -> Iterator[Named]:
    yield name, array + 1 if name.endswith("norm.weight") else array


def transposed(name: str, array: Array, _: Config) -> Iterator[Named]:
    yield name, array.T if re.search(r"\.(c_attn|c_proj|c_fc)\.weight$", name) else array


def taken_apart(name: str, array: Array, config: Config) -> Iterator[Named]:
    """Q, K and V by turns for every key head, one after another."""
    name = name.removeprefix("transformer.") if config["model_type"] == "bloom" else name
    if ".query_key_value." not in name:
        yield name, array
        return
    heads, kv, size = heads_of(config)
    turns = array.reshape(kv, heads // kv + 2, size, *array.shape[1:])
    parts = (turns[:, :-2], turns[:, -2], turns[:, -1])
    yield name, np.concatenate([part.reshape(-1, *array.shape[1:]) for part in parts])


def mamba(name: str, array: Array, _: Config) -> Iterator[Named]:
    if name.endswith(".A_log"):
        array = -np.exp(array)
    yield name, array[:, 0] if ".conv1d.weight" in name else array


def deepseek(name: str, array: Array, config: Config) -> Iterator[Named]:
    if ".kv_b_proj." not in name:
        yield name.replace("e_score_correction_bias", "e_score_correction.bias"), array
        return
    both = array.reshape(config["num_attention_heads"], -1, array.shape[-1])
    nope = config["qk_nope_head_dim"]
    yield name.replace("kv_b_proj", "k_b_proj"), both[:, :nope].swapaxes(1, 2)
    yield name.replace("kv_b_proj", "v_b_proj"), both[:, nope:]


def granite(name: str, array: Array, config: Config) -> Iterator[Named]:
    if name.endswith(".input_linear.weight"):
        half = array.shape[1] // 2
        yield name.replace("input_linear", "experts.w1"), array[:, :half]
        yield name.replace("input_linear", "experts.w3"), array[:, half:]
    else:
        yield from permuted(name, array, config)


def chatglm(name: str, array: Array, _: Config) -> Iterator[Named]:
    yield name.removeprefix("transformer."), array


def bert(name: str, array: Array, _: Config) -> Iterator[Named]:
    if not name.startswith(("bert.pooler.", "cls.")):
        yield name.removeprefix("bert."), array


def gpt_oss(name: str, array: Array, _: Config) -> Iterator[Named]:
    if ".experts." not in name:
        yield name + ".weight" if name.endswith("sinks") else name, array
        return
    bias = name.endswith("_bias")
    name, ending = name.removesuffix("_bias"), ".bias" if bias else ".weight"
    array = array if bias else array.swapaxes(1, 2)
    if name.endswith("down_proj"):
        yield name + ending, array
    else:
        yield name.replace("gate_up", "gate") + ending, array[:, ::2]
        yield name.replace("gate_up", "up") + ending, array[:, 1::2]


Change = Callable[[str, Array, Config], Iterator[Named]]
CHANGES: dict[str, Change] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "olmo", "granite", "smollm3"), permuted),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), plus_one),
    **dict.fromkeys(("gpt_neox", "bloom", "falcon"), taken_apart),
    "gpt2": transposed,
    "mamba": mamba,
    "deepseek_v2": deepseek,
    "deepseek_v3": deepseek,
    "granitemoe": granite,
    "gpt_oss": gpt_oss,
    "bert": bert,
    "chatglm": chatglm,
}
_EXPERT = re.compile(r"(.*experts)\.(\d+)\.(.*)")
_HEAD = re.compile(r"(.*_layernorm)\.norms\.(\d+)\.weight")


def changed(config: Config, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors as the converter leaves them, by the names that it looks up; stacks of experts and of norms made."""
    change = CHANGES.get(config["model_type"], unchanged)
    found: dict[str, Array] = {}
    stacks: dict[str, dict[int, Array]] = {}
    for given, given_array in tensors.items():
        for name, array in change(given, given_array, config):
            if match := _EXPERT.fullmatch(name):
                stacks.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = array
            elif match := _HEAD.fullmatch(name):
                stacks.setdefault(f"{match[1]}.weight", {})[int(match[2])] = array
            else:
                found[name] = array
    return found | {name: np.stack([parts[i] for i in range(len(parts))]) for name, parts in stacks.items()}


def named(config: Config, tensors: Mapping[str, Array], architecture: str | None = None) -> dict[str, Array]:
    """The tensors by their names in GGUF."""
    architecture = architecture or ARCHITECTURES[config["model_type"]]
    kind = next(k for k, n in gguf.MODEL_ARCH_NAMES.items() if n == architecture)
    layers = first(config, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    table = gguf.get_tensor_name_map(kind, max(layers, config.get("num_decoder_layers") or 0))
    found: dict[str, Array] = {}
    for name, array in changed(config, tensors).items():
        said = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert said is not None, name
        found[said] = array
    return found | rope_factors(config)


def rope_factors(config: Config) -> dict[str, Array]:
    """The tensors that some kinds of rotary positions are kept in."""
    said = config.get("rope_parameters") or {}
    if said.get("rope_type") == "longrope":
        which = {"long": said["long_factor"], "short": said["short_factor"]}
        return {f"rope_factors_{name}.weight": np.array(factors, np.float32) for name, factors in which.items()}
    if said.get("rope_type") != "llama3":
        return {}
    size = heads_of(config)[2] // 2
    length = 2 * math.pi * said["rope_theta"] ** (np.arange(size) / size)
    low, high, original = said["low_freq_factor"], said["high_freq_factor"], said["original_max_position_embeddings"]
    smooth = np.clip((original / length - low) / (high - low), 0, 1)
    return {"rope_freqs.weight": (1 / ((1 - smooth) / said["factor"] + smooth)).astype(np.float32)}


def write(path: Path, config: Config, tensors: Mapping[str, Array], **options: Any) -> Path:
    """The GGUF file of a model; the options are those of `write_named`."""
    return write_named(path, config, named(config, tensors, options.get("architecture")), **options)


def write_named(
    path: Path,
    config: Config,
    tensors: Mapping[str, Array],
    *,
    types: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
    architecture: str | None = None,
) -> Path:
    """A GGUF file of tensors that have their names in GGUF.

    `types` says what tensors are quantised to, by a part of their names, `more` what is in the metadata besides.
    """
    architecture = architecture or ARCHITECTURES[config["model_type"]]
    writer: Any = gguf.GGUFWriter(path, architecture)
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in {**metadata(config), **(more or {})}.items():
        adder: Any = adders.get(type(value), writer.add_array)
        adder(f"{architecture}.{key}", value)
    for name, array in tensors.items():
        kind = next((kind for part, kind in (types or {}).items() if part in name), None)
        array = np.ascontiguousarray(array)
        if kind is None:
            writer.add_tensor(name, array)
        else:
            number = gguf.GGMLQuantizationType[kind]
            quantised = gguf.quantize(array, number)
            writer.add_tensor(name, quantised, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
