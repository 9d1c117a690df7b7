"""Variants of Gemma, whose norms are 1 + w."""

from __future__ import annotations

from typing import Any

from tests.families import LLAMA
from tests.variants.kinds import VOCAB, Variant, Variants, alternating

_GEMMA: dict[str, Any] = {**LLAMA, **VOCAB, "head_dim": 16}
_FOUR: dict[str, Any] = {**_GEMMA, "num_hidden_layers": 4, "sliding_window": 6}
_TEXT: dict[str, Any] = {**_FOUR, "query_pre_attn_scalar": 20, "sliding_window_pattern": 2}
_VISION: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma": {"architectures": ["GemmaForCausalLM"], "model_type": "gemma", **_GEMMA},
    "gemma2": {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", **_FOUR, "query_pre_attn_scalar": 20},
    "gemma3_text": {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", **_TEXT},
    "gemma3": {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": {"model_type": "gemma3_text", **_TEXT},
        "vision_config": _VISION,
        "mm_tokens_per_image": 4,
        "image_token_index": 60,
        "boi_token_index": 59,
        "eoi_token_index": 58,
    },
}


def _nested(**changes: Any) -> dict[str, Any]:
    return {"text_config": {"model_type": "gemma3_text", **_TEXT, **changes}}


_TWO_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
VARIANTS: dict[str, Variants] = {
    "gemma": {
        "plain": Variant(),
        "hub": Variant(
            {"num_key_value_heads": 1, "rope_theta": 500.0}, {"hidden_act": "gelu", "hidden_activation": None}
        ),
        "silu": Variant({"hidden_act": "silu", "rms_norm_eps": 0.1}),
        "bias": Variant({"attention_bias": True}),
        "untied": Variant({"tie_word_embeddings": False}),
        "saved": Variant({"rope_theta": 200.0}, saved=True),
    },
    "gemma2": {
        "plain": Variant(),
        "soft-caps": Variant({"attn_logit_softcapping": 1.5, "final_logit_softcapping": 4.0}),
        "soft-caps-null": Variant({"attn_logit_softcapping": None, "final_logit_softcapping": None}),
        "hub": Variant(
            {"rms_norm_eps": 0.1, "rope_theta": 500.0},
            {
                "hidden_act": "gelu_pytorch_tanh",
                "hidden_activation": "gelu_pytorch_tanh",
                "cache_implementation": "hybrid",
            },
        ),
        "gelu": Variant({"hidden_activation": "gelu"}),
        "layer-types": Variant({"layer_types": alternating(4, 3), "attention_bias": True}),
        "saved": Variant({"rope_theta": 200.0, "query_pre_attn_scalar": 30}, saved=True),
    },
    "gemma3_text": {
        "plain": Variant(),
        "six": Variant({"num_hidden_layers": 7}, {"sliding_window_pattern": 6}),
        "thetas": Variant({"rope_theta": 1000.0, "rope_local_base_freq": 30.0, "rms_norm_eps": 0.1}),
        "linear": Variant(
            {"rope_theta": 300.0, "rope_local_base_freq": 100.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
        ),
        "ropes-by-type": Variant(written={"rope_parameters": _TWO_ROPES}),
        "soft-caps": Variant({"attn_logit_softcapping": 1.5, "final_logit_softcapping": 4.0}),
        "layer-types": Variant({"layer_types": alternating(4, 3), "attention_bias": True}),
        "untied": Variant({"tie_word_embeddings": False, "hidden_activation": "gelu"}),
        "saved": Variant({"rope_theta": 1000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, saved=True),
    },
    "gemma3": {
        "plain": Variant(),
        "linear": Variant(
            _nested(
                rope_theta=1000.0,
                rope_local_base_freq=30.0,
                rope_scaling={"rope_type": "linear", "factor": 8.0},
                query_pre_attn_scalar=30,
            )
        ),
        "saved": Variant(_nested(rope_theta=300.0, layer_types=alternating(4, 3)), saved=True),
    },
}
