"""The config of a GGUF file in the keys of a Hugging Face config.json.

Sources: the specification of GGUF; convert_hf_to_gguf.py in llama.cpp, which writes the values; the config
classes of transformers, which read them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightkit.formats.gguf_header import Items
from weightkit.formats.gguf_mapping import hf_names
from weightkit.tensor import Source

__all__ = ["FAMILIES", "config", "hf_names"]

Fields = dict[str, Any]
Tensors = Mapping[str, Source]
_NO_MODEL = ("adapter", "mmproj", "projector", "imatrix")  # general.type of files without a model of text
_MOST_FACTORS = 4096  # of a rope: one for two dimensions of a head


@dataclass(frozen=True)
class Said:
    """What a file says: its values below the name of its architecture, and its tensors."""

    values: Mapping[str, Any]
    architecture: str
    tensors: Tensors

    def get(self, key: str) -> Any:
        """The value of `{architecture}.{key}`; of an array, the one that its layers have, or the largest."""
        value = self.values.get(f"{self.architecture}.{key}")
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if not isinstance(value, Items):
            return value
        numbers = [n for n in value.numbers()[:10_000] if type(n) is int]
        return max(numbers, default=None)

    def has(self, *names: str) -> bool:
        """Whether one of these tensors is in the file."""
        return any(name in self.tensors for name in names)

    def rows(self, name: str) -> int | None:
        """The rows of a matrix of the file."""
        tensor = self.tensors.get(name)
        return tensor.shape[0] if tensor is not None and len(tensor.shape) == 2 else None


@dataclass(frozen=True)
class Family:
    """How one architecture is written as a config.json."""

    model_type: str
    eps: str = "rms_norm_eps"
    experts: str = "num_local_experts"
    biases: tuple[str, ...] = ()  # keys that say whether q, k and v have one
    ffn_bias: str = ""
    partial: bool = False  # whether only a part of a head may be rotated
    extra: Callable[[Said, Fields], Fields] | None = None  # what only this family has


_KEYS = {  # below the name of the architecture: in a config.json
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "attention.sliding_window": "sliding_window",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}


def config(values: Mapping[str, Any], tensors: Tensors) -> Fields | None:
    """What a GGUF file says of its model, in the keys of a config.json; None where it has no known model.

    A file that is one of several does not know of the tensors of the others: where it has no output.weight
    itself, tie_word_embeddings is left out.
    """
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or values.get("general.type") in _NO_MODEL:
        return None
    said = Said(values, architecture, tensors)
    family = FAMILIES.get(architecture)
    if family is None:
        return None
    fields = _fields(said, family)
    needed = {"hidden_size", "num_hidden_layers", "vocab_size"}
    if not needed <= fields.keys() or ("num_attention_heads" not in fields and architecture != "mamba"):
        return None
    return fields | (family.extra(said, fields) if family.extra else {})


def _fields(said: Said, family: Family) -> Fields:
    """What most families have."""
    fields: Fields = {"model_type": family.model_type}
    fields |= {name: value for key, name in _KEYS.items() if (value := said.get(key)) is not None}
    heads, width = fields.get("num_attention_heads"), fields.get("hidden_size")
    if heads is not None:
        fields.setdefault("num_key_value_heads", heads)
    if type(heads) is int and type(width) is int and heads > 0 and width % heads == 0:
        fields.setdefault("head_dim", width // heads)
    if not fields.get("sliding_window"):
        fields.pop("sliding_window", None)
    fields |= _counts(said, family)
    eps = said.get("attention.layer_norm_rms_epsilon")
    eps = said.get("attention.layer_norm_epsilon") if eps is None else eps
    fields |= {} if eps is None else {family.eps: eps}
    fields |= dict.fromkeys(family.biases, said.has("blk.0.attn_q.bias", "blk.0.attn_qkv.bias"))
    fields |= {family.ffn_bias: said.has("blk.0.ffn_up.bias")} if family.ffn_bias else {}
    fields |= _rope(said, fields, family)
    if said.has("output.weight") or not said.values.get("split.count"):
        fields["tie_word_embeddings"] = not said.has("output.weight")
    return fields


def _counts(said: Said, family: Family) -> Fields:
    """The vocabulary and the experts."""
    tokens = said.values.get("tokenizer.ggml.tokens")
    vocab = said.rows("token_embd.weight") or said.get("vocab_size")
    vocab = vocab or (tokens.count if isinstance(tokens, Items) else None)
    experts = said.get("expert_count")
    return ({"vocab_size": vocab} if vocab else {}) | ({family.experts: experts} if experts else {})


# ── rotary positions ───────────────────────────────────────────────────────────────────────────────


def _rope(said: Said, fields: Fields, family: Family) -> Fields:
    found: Fields = {}
    rotated, head = said.get("rope.dimension_count"), fields.get("head_dim")
    if family.partial and type(rotated) is int and type(head) is int and 0 < rotated <= head:
        found["partial_rotary_factor"] = rotated / head
    scaling = _scaling(said, fields)
    return found | ({"rope_scaling": scaling} if scaling else {})


def _scaling(said: Said, fields: Fields) -> Fields | None:
    """rope_scaling: some of it is in the values, some in tensors of factors."""
    long, short = (_factors(said, f"rope_factors_{which}.weight") for which in ("long", "short"))
    original = said.get("rope.scaling.original_context_length")
    common: Fields = {} if original is None else {"original_max_position_embeddings": original}
    factor = said.get("rope.scaling.factor")
    attention = said.get("rope.scaling.attn_factor")
    if long and short:
        return {"rope_type": "longrope", "long_factor": long, "short_factor": short, **common} | (
            {} if attention is None else {"attention_factor": attention}
        )
    if factors := _factors(said, "rope_freqs.weight"):
        return _llama3(factors, fields)
    kind = said.get("rope.scaling.type")
    if kind not in ("linear", "yarn") or not isinstance(factor, int | float) or factor in (0, 1):
        return None
    return {"rope_type": kind, "factor": factor, **common} | (_yarn(said) if kind == "yarn" else {})


def _yarn(said: Said) -> Fields:
    keys = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow", "yarn_attn_factor": "attention_factor"}
    found = {name: said.get(f"rope.scaling.{key}") for key, name in keys.items()}
    return {name: value for name, value in found.items() if value is not None}


def _factors(said: Said, name: str) -> list[float]:
    """The numbers of a small tensor that belongs to the config; nothing where it is not there, or is odd."""
    tensor = said.tensors.get(name)
    size = math.prod(tensor.shape) if tensor is not None else 0
    if tensor is None or len(tensor.shape) != 1 or tensor.dtype.name != "F32" or not 0 < size <= _MOST_FACTORS:
        return []
    factors = tensor.read(0, size)
    return [float(str(n)) for n in factors] if np.isfinite(factors).all() and (factors > 0).all() else []


def _llama3(factors: list[float], fields: Fields) -> Fields | None:
    """Llama 3's rope_scaling from the factors that GGUF keeps in its place; any others as they are."""
    factor, theta, size = max(factors), fields.get("rope_theta", 10_000.0), len(factors)
    if factor == 1.0 == min(factors):
        return None
    given = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if isinstance(theta, int | float) and theta > 0:
        lengths = 2 * math.pi * float(theta) ** (np.arange(size) / size)
        for original in (8192, fields.get("max_position_embeddings")):
            if type(original) is not int or not 0 < original < 1 << 40:
                continue
            with np.errstate(all="ignore"):
                smooth = np.clip((original / lengths - 1) / 3, 0, 1)
            if np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
                return {"rope_type": "llama3", **given, "original_max_position_embeddings": original}
    return {"rope_type": "longrope", "long_factor": factors, "short_factor": factors, "attention_factor": 1.0}


# ── families ───────────────────────────────────────────────────────────────────────────────────────


def _llama(_: Said, fields: Fields) -> Fields:
    """Mistral and Mixtral are written as Llama too."""
    if fields.get("num_local_experts"):
        return {"model_type": "mixtral"}
    return {"model_type": "mistral"} if fields.get("sliding_window") else {}


def _olmo2(_: Said, fields: Fields) -> Fields:
    return {"model_type": "olmo3"} if fields.get("sliding_window") else {}


def _granite(said: Said, _: Fields) -> Fields:
    keys = {
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    }
    return {name: value for key, name in keys.items() if (value := said.get(key)) is not None}


def _cohere(said: Said, _: Fields) -> Fields:
    scale = said.get("logit_scale")
    return {"use_qk_norm": said.has("blk.0.attn_q_norm.weight")} | ({} if scale is None else {"logit_scale": scale})


def _qwen2_moe(said: Said, _: Fields) -> Fields:
    experts, shared = said.tensors.get("blk.0.ffn_up_exps.weight"), said.rows("blk.0.ffn_up_shexp.weight")
    stacked = experts is not None and len(experts.shape) == 3
    found: Fields = {"moe_intermediate_size": experts.shape[1]} if experts is not None and stacked else {}
    return found | {"shared_expert_intermediate_size": shared or said.get("expert_shared_feed_forward_length") or 0}


def _deepseek(said: Said, fields: Fields) -> Fields:
    """Multi-head latent attention. Newer files say key_length of the keys as they are cached, and _mla of a head."""
    rope = said.get("rope.dimension_count")
    key = said.get("attention.key_length_mla") or said.get("attention.key_length")
    value = said.get("attention.value_length_mla") or said.get("attention.value_length")
    third = said.get("expert_gating_func") == 2 or said.has("blk.3.exp_probs_b.bias", "blk.3.exp_probs_b")
    found: Fields = {
        "model_type": "deepseek_v3" if third else "deepseek_v2",
        "num_key_value_heads": fields["num_attention_heads"],
        "q_lora_rank": said.get("attention.q_lora_rank"),
        "kv_lora_rank": said.get("attention.kv_lora_rank"),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": key - rope if type(key) is int and type(rope) is int else None,
        "v_head_dim": value,
        "n_shared_experts": said.get("expert_shared_count"),
        "first_k_dense_replace": said.get("leading_dense_block_count"),
        "routed_scaling_factor": said.get("expert_weights_scale"),
        "norm_topk_prob": said.get("expert_weights_norm"),
    }
    return {name: value for name, value in found.items() if value is not None or name == "q_lora_rank"}


def _falcon(said: Said, fields: Fields) -> Fields:
    heads, kv = fields["num_attention_heads"], fields["num_key_value_heads"]
    new = kv != 1 and (kv != heads or said.has("blk.0.attn_norm_2.weight"))
    norms = 2 if said.has("blk.0.attn_norm_2.weight") else 1
    old: Fields = {"multi_query": kv == 1}
    return {"new_decoder_architecture": new} | ({"num_kv_heads": kv, "num_ln_in_parallel_attn": norms} if new else old)


def _stablelm(said: Said, _: Fields) -> Fields:
    parallel = said.get("use_parallel_residual")
    found: Fields = {"qk_layernorm": said.has("blk.0.attn_q_norm.weight")}
    return found | ({} if parallel is None else {"use_parallel_residual": parallel})


def _neox(said: Said, _: Fields) -> Fields:
    parallel = said.get("use_parallel_residual")
    return {} if parallel is None else {"use_parallel_residual": parallel}


def _chatglm(_: Said, fields: Fields) -> Fields:
    groups = fields["num_key_value_heads"]
    return {"multi_query_attention": True, "multi_query_group_num": groups, "kv_channels": fields.get("head_dim", 128)}


def _mpt(said: Said, fields: Fields) -> Fields:
    attention: Fields = {"kv_n_heads": fields["num_key_value_heads"], "alibi": not said.has("position_embd.weight")}
    clip = said.get("attention.clamp_kqv")
    return {"attn_config": attention | ({"clip_qkv": clip} if clip else {})}


def _mamba(said: Said, _: Fields) -> Fields:
    keys = {
        "ssm.conv_kernel": "conv_kernel",
        "ssm.inner_size": "intermediate_size",
        "ssm.state_size": "state_size",
        "ssm.time_step_rank": "time_step_rank",
    }
    return {name: value for key, name in keys.items() if (value := said.get(key)) is not None}


def _bert(said: Said, _: Fields) -> Fields:
    types = said.values.get("tokenizer.ggml.token_type_count") or said.rows("token_types.weight")
    return {"tie_word_embeddings": True} | ({} if types is None else {"type_vocab_size": types})


def _t5(said: Said, fields: Fields) -> Fields:
    found = {
        "d_kv": fields.get("head_dim"),
        "num_decoder_layers": said.get("decoder_block_count") or fields["num_hidden_layers"],
        "relative_attention_num_buckets": said.get("attention.relative_buckets_count"),
        "feed_forward_proj": "gated-gelu" if said.has("enc.blk.0.ffn_gate.weight") else "relu",
    }
    return {name: value for name, value in found.items() if value is not None}


_GPT_EPS, _NORM_EPS = "layer_norm_epsilon", "layer_norm_eps"
_BIAS = ("attention_bias",)

FAMILIES: dict[str, Family] = {  # by general.architecture
    "llama": Family("llama", biases=_BIAS, ffn_bias="mlp_bias", extra=_llama),
    "internlm2": Family("llama", biases=_BIAS, ffn_bias="mlp_bias"),  # once its q, k and v are apart
    "mistral3": Family("mistral"),
    "qwen": Family("qwen", _GPT_EPS),
    "qwen2": Family("qwen2"),
    "qwen2moe": Family("qwen2_moe", experts="num_experts", extra=_qwen2_moe),
    "qwen3": Family("qwen3", biases=_BIAS),
    "qwen3moe": Family("qwen3_moe", experts="num_experts", biases=_BIAS),
    "gemma": Family("gemma"),
    "gemma2": Family("gemma2"),
    "gemma3": Family("gemma3_text"),
    "phi2": Family("phi", _NORM_EPS, partial=True),
    "phi3": Family("phi3", partial=True),
    "phimoe": Family("phimoe", biases=_BIAS),
    "gpt2": Family("gpt2", _GPT_EPS),
    "gptj": Family("gptj", _GPT_EPS),
    "gptneox": Family("gpt_neox", _NORM_EPS, biases=_BIAS, partial=True, extra=_neox),
    "falcon": Family("falcon", _GPT_EPS, biases=("bias",), extra=_falcon),
    "bloom": Family("bloom", _GPT_EPS),
    "mpt": Family("mpt", _GPT_EPS, extra=_mpt),
    "starcoder": Family("gpt_bigcode", _GPT_EPS, extra=lambda _, f: {"multi_query": f["num_key_value_heads"] == 1}),
    "starcoder2": Family("starcoder2", "norm_epsilon", biases=("use_bias",)),
    "stablelm": Family("stablelm", _NORM_EPS, biases=("use_qkv_bias",), partial=True, extra=_stablelm),
    "olmo": Family("olmo", _NORM_EPS, biases=_BIAS),
    "olmo2": Family("olmo2", biases=_BIAS, extra=_olmo2),
    "olmoe": Family("olmoe", experts="num_experts", biases=_BIAS),
    "command-r": Family("cohere", _NORM_EPS, biases=_BIAS, extra=_cohere),
    "cohere2": Family("cohere2", _NORM_EPS, biases=_BIAS, extra=_cohere),
    "granite": Family("granite", biases=_BIAS, ffn_bias="mlp_bias", extra=_granite),
    "granitemoe": Family("granitemoe", biases=_BIAS, extra=_granite),
    "smollm3": Family("smollm3", biases=_BIAS, ffn_bias="mlp_bias"),
    "deepseek2": Family("deepseek_v2", experts="n_routed_experts", extra=_deepseek),
    "glm4": Family("glm4", biases=_BIAS, partial=True),
    "chatglm": Family("chatglm", "layernorm_epsilon", biases=("add_qkv_bias",), extra=_chatglm),
    "gpt-oss": Family("gpt_oss", biases=_BIAS),
    "mamba": Family("mamba", _GPT_EPS, extra=_mamba),
    "bert": Family("bert", _NORM_EPS, extra=_bert),
    "t5": Family("t5", _GPT_EPS, extra=_t5),
}
