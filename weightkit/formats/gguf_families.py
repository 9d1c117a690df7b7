"""The families that GGUF files are of: what each says in keys of its own, as a config.json of Hugging Face says it.

Sources: the classes of the converter in llama.cpp, which write the values, and src/models/*.cpp, which read
them: what a file leaves out is what those assume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from weightkit.formats.gguf_header import Items
from weightkit.tensor import Source

Fields = dict[str, Any]
Tensors = Mapping[str, Source]


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

    def named(self, keys: Mapping[str, str]) -> Fields:
        """The values of some keys that are there, by the names that a config.json has for them."""
        return {name: value for key, name in keys.items() if (value := self.get(key)) is not None}

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


def _llama(_: Said, fields: Fields) -> Fields:
    """Mistral and Mixtral are written as Llama too."""
    if fields.get("num_local_experts"):
        return {"model_type": "mixtral"}
    return {"model_type": "mistral"} if fields.get("sliding_window") else {}


def _gemma2(_: Said, fields: Fields) -> Fields:
    return {"query_pre_attn_scalar": _scalar(fields, 46)}


def _gemma3(said: Said, fields: Fields) -> Fields:
    theta = said.get("rope.freq_base_swa")
    found: Fields = {"query_pre_attn_scalar": _scalar(fields, 62)}
    return found | ({} if theta is None else {"rope_local_base_freq": theta})


def _scalar(fields: Fields, largest: int) -> Any:
    """What scores are scaled by: no key says it; the model of 27B, known by its layers, takes another head size."""
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    if fields["num_hidden_layers"] == largest and type(width) is int and type(heads) is int and heads > 0:
        return width / heads
    return fields.get("head_dim", 256)


def _olmo(said: Said, _: Fields) -> Fields:
    return {"clip_qkv": said.get("attention.clamp_kqv")}


def _olmo2(_: Said, fields: Fields) -> Fields:
    return {"model_type": "olmo3"} if fields.get("sliding_window") else {}


def _granite(said: Said, _: Fields) -> Fields:
    keys = {
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    }
    return said.named(keys)


def _cohere(said: Said, _: Fields) -> Fields:
    scale = said.get("logit_scale")
    return {"use_qk_norm": said.has("blk.0.attn_q_norm.weight")} | ({} if scale is None else {"logit_scale": scale})


def _qwen2_moe(said: Said, _: Fields) -> Fields:
    experts, shared = said.tensors.get("blk.0.ffn_up_exps.weight"), said.rows("blk.0.ffn_up_shexp.weight")
    stacked = experts is not None and len(experts.shape) == 3
    found: Fields = {"moe_intermediate_size": experts.shape[1]} if experts is not None and stacked else {}
    return found | {"shared_expert_intermediate_size": shared or said.get("expert_shared_feed_forward_length") or 0}


def _qwen3_moe(said: Said, _: Fields) -> Fields:
    norm = said.get("expert_weights_norm")
    return {"norm_topk_prob": True if norm is None else norm}


def _phimoe(said: Said, _: Fields) -> Fields:
    return {"lm_head_bias": said.has("output.bias")}


def _gpt_oss(_: Said, fields: Fields) -> Fields:
    scaling = fields.get("rope_scaling")
    return {"rope_scaling": scaling | {"truncate": False}} if scaling else {}


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
        "norm_topk_prob": bool(said.get("expert_weights_norm")),
    }
    found |= _groups(said, fields) | _temperature(said, fields)
    return {name: value for name, value in found.items() if value is not None or name == "q_lora_rank"}


def _groups(said: Said, fields: Fields) -> Fields:
    """Groups of experts. Older files leave them out: then there is one, but in DeepSeek-V3 itself."""
    groups = said.get("expert_group_count")
    if groups is None and fields.get("n_routed_experts") == 256:
        return {}
    method = "group_limited_greedy" if groups and groups != 1 else "greedy"
    return {"n_group": groups or 1, "topk_group": said.get("expert_group_used_count") or 1, "topk_method": method}


def _temperature(said: Said, fields: Fields) -> Fields:
    """A tenth of mscale_all_dim, which sharpens the scores of a context made longer."""
    scaling, tenth = fields.get("rope_scaling"), said.get("rope.scaling.yarn_log_multiplier")
    if not scaling or not isinstance(tenth, int | float):
        return {}
    scale = round(10 * tenth, 6)  # as it was before it went through float32
    return {"rope_scaling": scaling | {"mscale": scale, "mscale_all_dim": scale}}


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


def _gptj(said: Said, _: Fields) -> Fields:
    rotated = said.get("rope.dimension_count")
    return {} if rotated is None else {"rotary_dim": rotated}


def _neox(said: Said, _: Fields) -> Fields:
    parallel = said.get("use_parallel_residual")
    return {} if parallel is None else {"use_parallel_residual": parallel}


def _chatglm(said: Said, fields: Fields) -> Fields:
    if said.has("blk.0.attn_q.weight"):  # GLM as transformers has it
        found: Fields = {"model_type": "glm", "attention_bias": fields["add_qkv_bias"]}
        return found | {"rms_norm_eps": fields.get("layernorm_epsilon")}
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
    # Falcon Mamba has norms besides, which have no weights: nothing else in its files tells.
    kind: Fields = {"model_type": "falcon_mamba"} if said.get("ssm.dt_b_c_rms") else {}
    return kind | said.named(keys)


def _bert(said: Said, _: Fields) -> Fields:
    types = said.values.get("tokenizer.ggml.token_type_count") or said.rows("token_types.weight")
    # They are made for embeddings: what predicts a token from them is left out, and the embedding is not it.
    return {"tie_word_embeddings": False} | ({} if types is None else {"type_vocab_size": types})


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
    "qwen3moe": Family("qwen3_moe", experts="num_experts", biases=_BIAS, extra=_qwen3_moe),
    "gemma": Family("gemma"),
    "gemma2": Family("gemma2", extra=_gemma2),
    "gemma3": Family("gemma3_text", extra=_gemma3),
    "phi2": Family("phi", _NORM_EPS, partial=True),
    "phi3": Family("phi3", partial=True),
    "phimoe": Family("phimoe", biases=_BIAS, extra=_phimoe),
    "gpt2": Family("gpt2", _GPT_EPS),
    "gptj": Family("gptj", _GPT_EPS, extra=_gptj),
    "gptneox": Family("gpt_neox", _NORM_EPS, biases=_BIAS, partial=True, extra=_neox),
    "falcon": Family("falcon", _GPT_EPS, biases=("bias",), extra=_falcon),
    "bloom": Family("bloom", _GPT_EPS),
    "mpt": Family("mpt", _GPT_EPS, extra=_mpt),
    "starcoder": Family("gpt_bigcode", _GPT_EPS, extra=lambda _, f: {"multi_query": f["num_key_value_heads"] == 1}),
    "starcoder2": Family("starcoder2", "norm_epsilon", biases=("use_bias",)),
    "stablelm": Family("stablelm", _NORM_EPS, biases=("use_qkv_bias",), partial=True, extra=_stablelm),
    "olmo": Family("olmo", _NORM_EPS, biases=_BIAS, extra=_olmo),
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
    "gpt-oss": Family("gpt_oss", biases=_BIAS, extra=_gpt_oss),
    "mamba": Family("mamba", _GPT_EPS, extra=_mamba),
    "bert": Family("bert", _NORM_EPS, extra=_bert),
    "t5": Family("t5", _GPT_EPS, extra=_t5),
}
