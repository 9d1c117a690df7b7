"""Tiny random models of every family, written without weightkit: names and shapes from the papers' side.

Weights depend on (seed, name) only, so a golden file needs to keep no weights.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]

LLAMA_LIKE = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **LLAMA_LIKE},
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        **LLAMA_LIKE,
        "head_dim": 16,
        "sliding_window": 7,
    },
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **LLAMA_LIKE},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **LLAMA_LIKE, "head_dim": 16},
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": 48,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
        "n_inner": None,
        "vocab_size": 97,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "torch_dtype": "float32",
    },
}
FAMILIES = tuple(CONFIGS)


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes as transformers saves them."""
    return _gpt2(config) if config["model_type"] == "gpt2" else _llama(config)


def _llama(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    d, f, v = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    h, kv = c["num_attention_heads"], c["num_key_value_heads"]
    hd = c.get("head_dim") or d // h
    kind = c["model_type"]
    qkv_bias = kind == "qwen2" or (kind in ("llama", "qwen3") and c.get("attention_bias", False))
    o_bias = kind in ("llama", "qwen3") and c.get("attention_bias", False)
    mlp_bias = kind == "llama" and c.get("mlp_bias", False)
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, d)}
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        out[at + "input_layernorm.weight"] = (d,)
        for name, rows in (("q", h * hd), ("k", kv * hd), ("v", kv * hd)):
            out[at + f"self_attn.{name}_proj.weight"] = (rows, d)
            if qkv_bias:
                out[at + f"self_attn.{name}_proj.bias"] = (rows,)
        out[at + "self_attn.o_proj.weight"] = (d, h * hd)
        if o_bias:
            out[at + "self_attn.o_proj.bias"] = (d,)
        if kind == "qwen3":
            out[at + "self_attn.q_norm.weight"] = out[at + "self_attn.k_norm.weight"] = (hd,)
        out[at + "post_attention_layernorm.weight"] = (d,)
        for name, shape in (("gate", (f, d)), ("up", (f, d)), ("down", (d, f))):
            out[at + f"mlp.{name}_proj.weight"] = shape
            if mlp_bias:
                out[at + f"mlp.{name}_proj.bias"] = shape[:1]
    out["model.norm.weight"] = (d,)
    if not c.get("tie_word_embeddings"):
        out["lm_head.weight"] = (v, d)
    return out


def _gpt2(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    d, v = c["n_embd"], c["vocab_size"]
    f = c.get("n_inner") or 4 * d
    out: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (v, d),
        "transformer.wpe.weight": (c["n_positions"], d),
    }
    for i in range(c["n_layer"]):
        at = f"transformer.h.{i}."
        for name, shape in (
            ("ln_1", (d,)),
            ("attn.c_attn", (d, 3 * d)),
            ("attn.c_proj", (d, d)),
            ("ln_2", (d,)),
            ("mlp.c_fc", (d, f)),
            ("mlp.c_proj", (f, d)),
        ):
            out[at + name + ".weight"] = shape
            out[at + name + ".bias"] = shape[-1:]
    out["transformer.ln_f.weight"] = out["transformer.ln_f.bias"] = (d,)
    return out


# Tensors that are not as the others are, by their names: mean and deviation of their numbers. Choices of experts
# are clear, scores that nothing divides stay soft, and a state is neither forgotten nor grown without end.
SPECIAL = {
    r"(mlp\.gate|mlp\.router|block_sparse_moe\.gate|block_sparse_moe\.router\.layer)\.weight$": (0.0, 0.3),
    r"e_score_correction_bias$": (0.0, 0.2),
    r"(SelfAttention|EncDecAttention)\.q\.weight$": (0.0, 0.06),
    r"attn\.attention\.q_proj\.weight$": (0.0, 0.06),
    r"relative_attention_bias\.weight$": (0.0, 1.0),
    r"\.sinks$": (0.0, 1.0),
    r"mixer\.A_log$": (0.5, 0.5),
    r"mixer\.D$": (1.0, 0.3),
    r"mixer\.dt_proj\.bias$": (-2.0, 0.5),
    r"mixer\.conv1d\.weight$": (0.0, 0.4),
}
NORM = re.compile(r"(norm|ln_|\.ln\.).*weight$", re.IGNORECASE)


def weights(config: Mapping[str, Any], seed: int = 0) -> Tensors:
    """Float32 weights, every one random, norms around 1."""
    return of_shapes(shapes(config), seed)


def of_shapes(shapes: Mapping[str, tuple[int, ...]], seed: int = 0, *, norm: float = 1.0) -> Tensors:
    """Float32 weights of names and shapes, every one random, norms around `norm`."""
    return {name: _random(name, shape, seed, norm) for name, shape in shapes.items()}


def _random(name: str, shape: tuple[int, ...], seed: int, norm: float) -> NDArray[np.float32]:
    random = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)  # frozen by numpy for good
    mean, deviation = _range(name, shape, norm)
    return (random.standard_normal(shape) * deviation + mean).astype(np.float32)


def _range(name: str, shape: tuple[int, ...], norm: float) -> tuple[float, float]:
    special = next((range for pattern, range in SPECIAL.items() if re.search(pattern, name)), None)
    return special or (norm if NORM.search(name) else 0.0, 0.2 if len(shape) > 1 else 0.1)


NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}


def write(
    folder: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: str = "F32",
    shards: int = 1,
    tensors: Tensors | None = None,
    **changes: Any,
) -> Path:
    """A checkpoint folder of a tiny random model; `changes` go into its config."""
    from safetensors.numpy import save_file

    config = {**CONFIGS[family], **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    kept = weights(config, seed) if tensors is None else tensors
    kept = {name: array.astype(NUMPY[dtype]) for name, array in kept.items()} if tensors is None else kept
    if shards == 1:
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = list(kept)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        save_file({name: kept[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(array.nbytes for array in kept.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return folder
