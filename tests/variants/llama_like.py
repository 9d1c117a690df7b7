"""Variants of the dense families that took over Llama's tensor names."""

from __future__ import annotations

from typing import Any

from tests.families import LLAMA
from tests.variants.kinds import ABSENT, LONGROPE, VOCAB, Variant, Variants, alternating, rope

HALF_LONGROPE = LONGROPE | {"short_factor": [1.0, 1.2, 1.4], "long_factor": [1.5, 3.0, 6.0]}  # 3 pairs of a head of 12
_THETA = {"rope_type": "default", "rope_theta": 200.0}
FOUR: dict[str, Any] = {**LLAMA, "num_hidden_layers": 4}  # layers, for patterns of windows


def _config(kind: str, architecture: str, base: dict[str, Any] = LLAMA, **more: Any) -> dict[str, Any]:
    return {"architectures": [f"{architecture}ForCausalLM"], "model_type": kind, **base, **VOCAB, **more}


CONFIGS: dict[str, dict[str, Any]] = {
    "phi": _config("phi", "Phi", num_key_value_heads=4),
    "phi3": _config("phi3", "Phi3", pad_token_id=0, original_max_position_embeddings=64),
    "stablelm": _config("stablelm", "StableLm", hidden_size=64),  # a quarter of a head of 16
    "starcoder2": _config("starcoder2", "Starcoder2"),
    "olmo": _config("olmo", "Olmo"),
    "olmo2": _config("olmo2", "Olmo2"),
    "olmo3": _config("olmo3", "Olmo3", FOUR, sliding_window=6),
    "cohere": _config("cohere", "Cohere"),
    "cohere2": _config("cohere2", "Cohere2", FOUR, sliding_window=6),
    "granite": _config(
        "granite",
        "Granite",
        embedding_multiplier=5.0,
        attention_multiplier=0.1,
        residual_multiplier=0.4,
        logits_scaling=3.0,
    ),
    "smollm3": _config("smollm3", "SmolLM3", FOUR, pad_token_id=0),
    "glm": _config("glm", "Glm", head_dim=16, pad_token_id=0),
    "glm4": _config("glm4", "Glm4", head_dim=16, pad_token_id=0),
}

VARIANTS: dict[str, Variants] = {
    "phi": {
        "plain": Variant(),
        "qk-norm": Variant({"qk_layernorm": True, "layer_norm_eps": 0.1}),
        "grouped": Variant({"num_key_value_heads": 2, "hidden_act": "gelu"}),
        "partial": Variant({"partial_rotary_factor": 1.0 / 3.0, "rope_theta": 500.0}),
        "linear-old-key": Variant(written=rope("linear", key="rope_scaling", factor=2.5)),
        "saved": Variant({"partial_rotary_factor": 1.0, "rope_theta": 700.0}, saved=True),
    },
    "phi3": {
        "plain": Variant(),
        "window": Variant({"sliding_window": 6, "rms_norm_eps": 0.1}),
        "partial": Variant({"partial_rotary_factor": 0.5, "rope_theta": 300.0}),
        "tied": Variant({"tie_word_embeddings": True, "num_key_value_heads": 1}),
        "longrope-short": Variant(written=rope("longrope", **LONGROPE | {"original_max_position_embeddings": 64})),
        "longrope-long": Variant(
            {"original_max_position_embeddings": 16}, rope("longrope", key="rope_scaling", **LONGROPE), tokens=40
        ),
        "longrope-as-su": Variant(
            {"original_max_position_embeddings": 16}, rope("su", key="rope_scaling", **LONGROPE), tokens=20
        ),
        "longrope-as-yarn": Variant(
            {"original_max_position_embeddings": 16}, rope("yarn", key="rope_scaling", **LONGROPE), tokens=20
        ),
        "longrope-partial": Variant(
            {"partial_rotary_factor": 0.5, "original_max_position_embeddings": 16},
            rope("longrope", key="rope_scaling", **HALF_LONGROPE),
            tokens=30,
        ),
        "saved": Variant(
            {
                "partial_rotary_factor": 0.5,
                "original_max_position_embeddings": 16,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.2, 1.4], "long_factor": [1.5, 3.0, 6.0]},
            },
            saved=True,
        ),
    },
    "stablelm": {
        "plain": Variant(),
        "qkv-bias": Variant({"use_qkv_bias": True, "partial_rotary_factor": 0.5}),
        "qk-norm": Variant({"qk_layernorm": True, "layer_norm_eps": 0.1}),
        "parallel": Variant({"use_parallel_residual": True, "rope_theta": 200.0}),
        "12b": Variant({"use_parallel_residual": True, "qk_layernorm": True, "tie_word_embeddings": True}),
        "saved": Variant({"partial_rotary_factor": 0.75, "rope_theta": 300.0}, saved=True),
    },
    "starcoder2": {
        "plain": Variant(),
        "window": Variant({"sliding_window": 6, "norm_epsilon": 0.1}),
        "no-bias": Variant({"use_bias": False, "hidden_act": "gelu"}),
        "untied": Variant({"tie_word_embeddings": False, "rope_theta": 999.0}),
        "saved": Variant({"sliding_window": 5, "rope_theta": 500.0}, saved=True),
    },
    "olmo": {
        "plain": Variant(),
        "clip": Variant({"clip_qkv": 0.7}),
        "bias": Variant({"attention_bias": True, "tie_word_embeddings": True}),
        "eps-unread": Variant(written={"layer_norm_eps": 0.5, "rms_norm_eps": 0.5}),
        "saved": Variant({"clip_qkv": 1.0, "rope_theta": 300.0}, saved=True),
    },
    "olmo2": {
        "plain": Variant(),
        "bias": Variant({"attention_bias": True, "rms_norm_eps": 0.1}),
        "mha-tied": Variant({"num_key_value_heads": 4, "tie_word_embeddings": True}),
        "theta": Variant({"rope_theta": 100.0}),
        "saved": Variant({"rope_theta": 300.0}, saved=True),
    },
    "olmo3": {
        "plain": Variant(),
        "five-layers": Variant({"num_hidden_layers": 5, "rms_norm_eps": 0.1, "attention_bias": True}),
        "theta": Variant(written={"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), _THETA)}),
        "layer-types": Variant({"layer_types": alternating(4)}),
        "yarn": Variant(
            {
                "layer_types": alternating(4),
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 8.0,
                    "attention_factor": 1.2,
                    "beta_fast": 8.0,
                    "beta_slow": 0.5,
                    "original_max_position_embeddings": 16,
                },
            }
        ),
        "ropes-by-type": Variant(
            written={
                "rope_parameters": {
                    "full_attention": {
                        "rope_type": "yarn",
                        "rope_theta": 300.0,
                        "factor": 4.0,
                        "original_max_position_embeddings": 16,
                    },
                    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                },
            }
        ),
        "saved": Variant(
            {
                "layer_types": alternating(4),
                "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16},
            },
            saved=True,
        ),
    },
    "cohere": {
        "plain": Variant(),
        "logit-scale": Variant({"logit_scale": 0.3, "layer_norm_eps": 0.1}),
        "qk-norm": Variant({"use_qk_norm": True, "layer_norm_eps": 0.2}),
        "bias": Variant({"attention_bias": True, "rope_theta": 300.0}),
        "untied": Variant({"tie_word_embeddings": False}),
        "saved": Variant({"rope_theta": 200.0, "use_qk_norm": True}, saved=True),
    },
    "cohere2": {
        "plain": Variant(),
        "pattern": Variant({"sliding_window_pattern": 2, "logit_scale": 0.25, "rope_theta": 100.0}),
        "hub": Variant(
            {"layer_norm_eps": 0.1},
            {
                "layer_switch": 4,
                "order_of_interleaved_layers": "local_attn_first",
                "position_embedding_type": "rope_gptj",
                "rotary_pct": 1.0,
                "rope_theta": 500.0,
                "rope_scaling": None,
                "use_embedding_sharing": True,
                "use_gated_activation": True,
                "use_parallel_block": True,
                "use_parallel_embedding": True,
            },
        ),
        "layer-types": Variant({"layer_types": alternating(4), "attention_bias": True}),
        "saved": Variant({"sliding_window_pattern": 3, "rope_theta": 200.0}, saved=True),
    },
    "granite": {
        "plain": Variant(),
        "multipliers-absent": Variant(
            written=dict.fromkeys(
                ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"), ABSENT
            )
        ),
        "bias": Variant({"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 0.1}),
        "tied": Variant({"tie_word_embeddings": True, "rope_theta": 300.0}),
        "saved": Variant({"rope_theta": 200.0}, saved=True),
    },
    "smollm3": {
        "plain": Variant(),
        "interval": Variant({"no_rope_layer_interval": 2, "rope_theta": 300.0}),
        "no-rope-layers": Variant({"no_rope_layers": [0, 1, 1, 0], "rms_norm_eps": 0.1}),
        "bias": Variant({"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
        "windows": Variant({"use_sliding_window": True, "sliding_window": 5, "no_rope_layer_interval": 2}),
        "window-unused": Variant({"sliding_window": 5}),
        "saved": Variant({"rope_theta": 200.0, "no_rope_layers": [1, 0, 1, 1]}, saved=True),
    },
    "glm": {
        "plain": Variant(),
        "no-bias": Variant({"attention_bias": False, "rms_norm_eps": 0.1}),
        "partial": Variant({"partial_rotary_factor": 0.25, "rope_theta": 200.0}),
        "mha-tied": Variant({"num_key_value_heads": 4, "head_dim": 12, "tie_word_embeddings": True}),
        "saved": Variant({"rope_theta": 300.0}, saved=True),
    },
    "glm4": {
        "plain": Variant(),
        "no-bias": Variant({"attention_bias": False, "rms_norm_eps": 0.1}),
        "partial": Variant({"partial_rotary_factor": 1.0, "rope_theta": 200.0}),
        "saved": Variant({"rope_theta": 300.0, "partial_rotary_factor": 0.25}, saved=True),
    },
}
