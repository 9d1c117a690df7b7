"""The config of a GGUF file, in the keys of a Hugging Face config.json, and the names of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

# general.architecture → model_type. A file with experts is of the second where there is one.
FAMILIES: dict[str, tuple[str, str]] = {
    "llama": ("llama", "mixtral"),
    "mistral3": ("mistral", "mistral"),
    "qwen": ("qwen", "qwen"),
    "qwen2": ("qwen2", "qwen2"),
    "qwen2moe": ("qwen2_moe", "qwen2_moe"),
    "qwen3": ("qwen3", "qwen3"),
    "qwen3moe": ("qwen3_moe", "qwen3_moe"),
    "gemma": ("gemma", "gemma"),
    "gemma2": ("gemma2", "gemma2"),
    "gemma3": ("gemma3_text", "gemma3_text"),
    "phi2": ("phi", "phi"),
    "phi3": ("phi3", "phi3"),
    "phimoe": ("phimoe", "phimoe"),
    "gpt2": ("gpt2", "gpt2"),
    "gptneox": ("gpt_neox", "gpt_neox"),
    "gptj": ("gptj", "gptj"),
    "falcon": ("falcon", "falcon"),
    "bloom": ("bloom", "bloom"),
    "mpt": ("mpt", "mpt"),
    "starcoder": ("gpt_bigcode", "gpt_bigcode"),
    "starcoder2": ("starcoder2", "starcoder2"),
    "stablelm": ("stablelm", "stablelm"),
    "olmo": ("olmo", "olmo"),
    "olmo2": ("olmo2", "olmo2"),
    "olmoe": ("olmoe", "olmoe"),
    "command-r": ("cohere", "cohere"),
    "cohere2": ("cohere2", "cohere2"),
    "granite": ("granite", "granite"),
    "granitemoe": ("granitemoe", "granitemoe"),
    "smollm3": ("smollm3", "smollm3"),
    "deepseek2": ("deepseek_v2", "deepseek_v2"),
    "glm4": ("glm4", "glm4"),
    "chatglm": ("chatglm", "chatglm"),
    "mamba": ("mamba", "mamba"),
    "gpt-oss": ("gpt_oss", "gpt_oss"),
    "bert": ("bert", "bert"),
    "t5": ("t5", "t5"),
}
# Key below the architecture's name → keys of a config.json.
_KEYS: dict[str, tuple[str, ...]] = {
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "context_length": ("max_position_embeddings",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    "rope.freq_base": ("rope_theta",),
    "attention.sliding_window": ("sliding_window",),
    "expert_count": ("num_local_experts",),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "attention.q_lora_rank": ("q_lora_rank",),
    "attention.kv_lora_rank": ("kv_lora_rank",),
    "leading_dense_block_count": ("first_k_dense_replace",),
    "expert_shared_count": ("n_shared_experts",),
    "ssm.conv_kernel": ("conv_kernel",),
    "ssm.inner_size": ("intermediate_size",),
    "ssm.state_size": ("state_size",),
    "ssm.time_step_rank": ("time_step_rank",),
    "vocab_size": ("vocab_size",),
}
_TOKENS = "tokenizer.ggml.tokens"
Shapes = Mapping[str, tuple[int, ...]]


def config(values: Mapping[str, Any], read: Callable[[Any], list[Any]], shapes: Shapes) -> dict[str, Any] | None:
    """What a GGUF file says of its model, as a config.json says it; None for an architecture that is not known.

    `read` gives the values of an array, `shapes` those of the tensors.
    """
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        return None
    plain, moe = FAMILIES[architecture]
    found: dict[str, Any] = {}
    for key, names in _KEYS.items():
        value = _one(values.get(f"{architecture}.{key}"), read)
        if value is not None:
            found |= dict.fromkeys(names, value)
    found["model_type"] = moe if found.get("num_local_experts") else plain
    if not found.get("num_local_experts"):
        found.pop("num_local_experts", None)
        found.pop("num_experts_per_tok", None)
    if "vocab_size" not in found:
        found["vocab_size"] = _vocabulary(values, shapes)
    found.setdefault("num_key_value_heads", found.get("num_attention_heads"))
    found["tie_word_embeddings"] = "output.weight" not in shapes
    if scaling := _rope_scaling(values, architecture):
        found["rope_scaling"] = scaling
    _by_tensors(found, shapes)
    return {key: value for key, value in found.items() if value is not None}


def _one(value: Any, read: Callable[[Any], list[Any]]) -> Any:
    """A value as JSON has it: numbers of 32 bits in their shortest form, an array of equal values as one."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if hasattr(value, "count") and hasattr(value, "offset"):
        each = read(value) if value.count <= 10_000 else []
        kept = {item for item in each if item}
        return max(kept) if kept and all(isinstance(item, int) for item in kept) else None
    return value


def _vocabulary(values: Mapping[str, Any], shapes: Shapes) -> int | None:
    tokens = values.get(_TOKENS)
    shape = shapes.get("token_embd.weight", ())
    return shape[0] if len(shape) == 2 else getattr(tokens, "count", None)


def _rope_scaling(values: Mapping[str, Any], architecture: str) -> dict[str, Any] | None:
    prefix = f"{architecture}.rope.scaling."
    kind, factor = values.get(prefix + "type"), values.get(prefix + "factor")
    if kind not in ("linear", "yarn") or not isinstance(factor, float):
        return None
    found: dict[str, Any] = {"rope_type": kind, "factor": float(f"{factor:.7g}")}
    original = values.get(prefix + "original_context_length")
    return found | ({"original_max_position_embeddings": original} if isinstance(original, int) else {})


def _by_tensors(found: dict[str, Any], shapes: Shapes) -> None:
    """What only the tensors tell: biases, norms of q and k."""
    found["attention_bias"] = "blk.0.attn_q.bias" in shapes
    found["use_qkv_bias"] = found["attention_bias"]
    if found["model_type"] == "stablelm":
        found["qk_layernorm"] = "blk.0.attn_q_norm.weight" in shapes


def hf_names(architecture: str, layers: int, names: Iterable[str]) -> dict[str, str]:
    """{a name as Hugging Face files have it: the name of the same tensor in GGUF}, by the gguf package's tables."""
    import gguf

    by_name = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in by_name:
        return {}
    table = gguf.get_tensor_name_map(by_name[architecture], layers)
    found = ((name, table.get_name(name, try_suffixes=(".weight", ".bias"))) for name in names)
    return {name: gguf_name for name, gguf_name in found if gguf_name is not None}
