"""Variants of families that transformers does not have: models that came with code of their own.

Each computes what a family of transformers computes; its config is told in that family's keys, and its
tensors, some of which are several of that family's one after another, in that family's names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tests import oracle
from tests.families import D, I
from tests.variants.kinds import ABSENT, VOCAB, Variant, Variants

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Told:
    """A family in the words of one that transformers has."""

    config: Callable[[Config], dict[str, Any]]
    names: Mapping[str, tuple[str, ...]]  # {N} is the number of a layer, {N+1} of its module

    def sources(self, layers: int) -> dict[str, list[str]]:
        """{name in the file: names of transformers, whose tensors follow one another in it}."""
        found: dict[str, list[str]] = {}
        for name, parts in self.names.items():
            for layer in range(layers if "{N" in name else 1):
                found[_numbered(name, layer, layers)] = [_numbered(part, layer, layers) for part in parts]
        return found

    def shapes(self, layers: int, theirs: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the file, from those that transformers saves."""
        found = {}
        for name, parts in self.sources(layers).items():
            if parts[0] in theirs:
                rows = sum(theirs[part][0] for part in parts)
                found[name] = (rows, *theirs[parts[0]][1:])
        assert sum(map(len, (self.sources(layers)[name] for name in found))) == len(theirs)
        return found

    def tensors(
        self, layers: int, own: Mapping[str, NDArray[Any]], theirs: Mapping[str, tuple[int, ...]]
    ) -> dict[str, NDArray[Any]]:
        """The tensors of a file, as transformers would have saved them."""
        found: dict[str, NDArray[Any]] = {}
        for name, parts in self.sources(layers).items():
            if name in own:
                ends = np.cumsum([theirs[part][0] for part in parts])[:-1]
                found |= {part: piece.copy() for part, piece in zip(parts, np.split(own[name], ends), strict=True)}
        return found


def _numbered(name: str, layer: int, layers: int) -> str:
    name = name.replace("{N}", str(layer)).replace("{N+1}", str(layer + 1))
    return name.replace("{LAST}", str(layers + 1))


def _with_biases(names: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Names of modules as names of their weights and biases."""
    ends = (".weight", ".bias")
    return {name + end: tuple(part + end for part in parts) for name, parts in names.items() for end in ends}


_AT, _TO = "transformer.h.{N}.", "model.layers.{N}."
_QKV = tuple(f"{_TO}self_attn.{x}_proj" for x in "qkv")
_QWEN = {
    "transformer.wte": ("model.embed_tokens",),
    f"{_AT}ln_1": (f"{_TO}input_layernorm",),
    f"{_AT}attn.c_attn": _QKV,
    f"{_AT}attn.c_proj": (f"{_TO}self_attn.o_proj",),
    f"{_AT}ln_2": (f"{_TO}post_attention_layernorm",),
    f"{_AT}mlp.w2": (f"{_TO}mlp.gate_proj",),
    f"{_AT}mlp.w1": (f"{_TO}mlp.up_proj",),
    f"{_AT}mlp.c_proj": (f"{_TO}mlp.down_proj",),
    "transformer.ln_f": ("model.norm",),
    "lm_head": ("lm_head",),
}
_GLM = "transformer.encoder.layers.{N}."
_CHATGLM = {
    "transformer.embedding.word_embeddings": ("model.embed_tokens",),
    f"{_GLM}input_layernorm": (f"{_TO}input_layernorm",),
    f"{_GLM}self_attention.query_key_value": _QKV,
    f"{_GLM}self_attention.dense": (f"{_TO}self_attn.o_proj",),
    f"{_GLM}post_attention_layernorm": (f"{_TO}post_attention_layernorm",),
    f"{_GLM}mlp.dense_h_to_4h": (f"{_TO}mlp.gate_up_proj",),
    f"{_GLM}mlp.dense_4h_to_h": (f"{_TO}mlp.down_proj",),
    "transformer.encoder.final_layernorm": ("model.norm",),
    "transformer.output_layer": ("lm_head",),
}
_PHI = {
    "layers.0.wte": ("model.embed_tokens",),
    "layers.{N+1}.ln": (f"{_TO}input_layernorm",),
    "layers.{N+1}.mixer.Wqkv": _QKV,
    "layers.{N+1}.mixer.out_proj": (f"{_TO}self_attn.dense",),
    "layers.{N+1}.mlp.fc1": (f"{_TO}mlp.fc1",),
    "layers.{N+1}.mlp.fc2": (f"{_TO}mlp.fc2",),
    "layers.{LAST}.ln": ("model.final_layernorm",),
    "layers.{LAST}.linear": ("lm_head",),
}
_SAME = {
    "model.embed_tokens": ("model.embed_tokens",),
    "model.norm": ("model.norm",),
    "lm_head": ("lm_head",),
    **{
        f"{_TO}{name}": (f"{_TO}{name}",)
        for name in (
            "input_layernorm",
            "post_attention_layernorm",
            *(f"self_attn.{x}_proj" for x in "qkvo"),
            *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
        )
    },
}


def _qwen2(config: Config) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"] // 2,  # it counts gate and up together
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_attention_heads"],
        "vocab_size": config["vocab_size"],
        "rms_norm_eps": config.get("layer_norm_epsilon", 1e-6),
        "rope_theta": config.get("rotary_emb_base", 10000),
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
    }


def _glm(config: Config) -> dict[str, Any]:
    return {
        "model_type": "glm",
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["ffn_hidden_size"],
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["multi_query_group_num"],
        "head_dim": config["kv_channels"],
        "vocab_size": config["padded_vocab_size"],
        "rms_norm_eps": config.get("layernorm_epsilon", 1e-5),
        "attention_bias": config.get("add_qkv_bias", False),
        "rope_theta": 10000.0 * config.get("rope_ratio", 1),
        "pad_token_id": 0,
    }


def _llama(config: Config) -> dict[str, Any]:
    theirs = {key: value for key, value in config.items() if key not in ("bias", "rotary", "architectures")}
    rotary = config.get("rotary") or {}
    theirs |= {"attention_bias": config.get("bias", False), "rope_theta": rotary.get("base", 10000)}
    if rotary.get("type") == "dynamic":
        theirs["rope_scaling"] = {"rope_type": "dynamic", "factor": rotary.get("scaling_factor", 1.0)}
    return {**theirs, "model_type": "llama"}


def _phi(config: Config) -> dict[str, Any]:
    return {
        "model_type": "phi",
        "hidden_size": config["n_embd"],
        "intermediate_size": config.get("n_inner") or 4 * config["n_embd"],
        "num_hidden_layers": config["n_layer"],
        "num_attention_heads": config["n_head"],
        "vocab_size": config["vocab_size"],
        "hidden_act": config.get("activation_function", "gelu_new"),
        "layer_norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "partial_rotary_factor": config.get("rotary_dim", 32) / (config["n_embd"] // config["n_head"]),
    }


def _falcon(config: Config) -> dict[str, Any]:
    theirs = {"n_head": "num_attention_heads", "n_layer": "num_hidden_layers", "n_head_kv": "num_kv_heads"}
    new = {"new_decoder_architecture": True} if config["model_type"] == "RefinedWeb" else {}
    return {**{theirs.get(key, key): value for key, value in config.items()}, **new, "model_type": "falcon"}


TOLD = {
    "qwen": Told(_qwen2, _with_biases(_QWEN)),
    "chatglm": Told(_glm, _with_biases(_CHATGLM)),
    "internlm": Told(_llama, _with_biases(_SAME)),
    "mixformer-sequential": Told(_phi, _with_biases(_PHI)),
}
RENAMED = {"RefinedWebModel": _falcon, "RefinedWeb": _falcon}  # only their configs are other than transformers'


def described(config: Config) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The config.json that transformers saves, and names and shapes of the file, in the family's own words."""
    kind = config["model_type"]
    if kind not in TOLD:
        return oracle.described(config)
    _, theirs = oracle.described(TOLD[kind].config(config))
    return dict(config), TOLD[kind].shapes(_layers(config), theirs)


def told(folder: Path) -> Path:
    """A checkpoint folder as transformers reads it, made beside one that it does not read."""
    config = json.loads((folder / "config.json").read_text())
    kind = config["model_type"]
    if kind not in TOLD and kind not in RENAMED:
        return folder
    theirs = folder / "told"
    theirs.mkdir(exist_ok=True)
    config_of = RENAMED.get(kind) or TOLD[kind].config
    (theirs / "config.json").write_text(json.dumps(config_of(config)))
    tensors = load_file(folder / "model.safetensors")
    if kind in TOLD:
        tensors = TOLD[kind].tensors(_layers(config), tensors, oracle.described(config_of(config))[1])
    save_file(tensors, theirs / "model.safetensors", metadata={"format": "pt"})
    return theirs


def _layers(config: Config) -> int:
    return next(int(config[key]) for key in ("num_hidden_layers", "num_layers", "n_layer") if key in config)


CONFIGS: dict[str, dict[str, Any]] = {
    "qwen": {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "hidden_size": D,
        "intermediate_size": 2 * I,
        "kv_channels": 12,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        **VOCAB,
        "max_position_embeddings": 64,
        "seq_length": 64,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "no_bias": True,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "scale_attn_weights": True,
        "tie_word_embeddings": False,
    },
    "chatglm": {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "hidden_size": D,
        "ffn_hidden_size": I,
        "kv_channels": 16,
        "num_layers": 3,
        "num_attention_heads": 4,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "padded_vocab_size": VOCAB["vocab_size"],
        "seq_length": 64,
        "layernorm_epsilon": 1e-5,
        "rmsnorm": True,
        "add_qkv_bias": True,
        "add_bias_linear": False,
        "post_layer_norm": True,
        "apply_residual_connection_post_layernorm": False,
        "original_rope": True,
        "tie_word_embeddings": False,
    },
    "internlm": {
        "architectures": ["InternLMForCausalLM"],
        "model_type": "internlm",
        "hidden_size": D,
        "intermediate_size": I,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        **VOCAB,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "bias": True,
        "tie_word_embeddings": False,
    },
    "mixformer-sequential": {
        "architectures": ["MixFormerSequentialForCausalLM"],
        "model_type": "mixformer-sequential",
        "n_embd": D,
        "n_layer": 3,
        "n_head": 4,
        "n_inner": None,
        "n_positions": 64,
        "rotary_dim": 8,
        **VOCAB,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": False,
    },
}

VARIANTS: dict[str, Variants] = {
    "qwen": {
        "plain": Variant(),
        "theta": Variant({"rotary_emb_base": 300, "layer_norm_epsilon": 0.1}),
        "defaults": Variant(written=dict.fromkeys(("rotary_emb_base", "layer_norm_epsilon", "rotary_pct"), ABSENT)),
    },
    "chatglm": {
        "plain": Variant(),
        "ratio": Variant({"rope_ratio": 500, "layernorm_epsilon": 0.1}),
        "no-bias": Variant({"add_qkv_bias": False, "multi_query_group_num": 1}),
    },
    "internlm": {
        "plain": Variant(),
        "no-bias": Variant({"bias": False, "rms_norm_eps": 0.1}),
        "rotary": Variant({"rotary": {"base": 300, "type": "origin"}}),
        "dynamic": Variant({"rotary": {"base": 10000, "type": "dynamic"}, "max_position_embeddings": 16}),
    },
    "mixformer-sequential": {
        "plain": Variant(),
        "rotary-dim": Variant({"rotary_dim": 4, "n_inner": 80}),
        "eps": Variant({"layer_norm_epsilon": 0.1, "activation_function": "gelu"}),
    },
}
