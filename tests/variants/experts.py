"""Variants of the families with mixtures of experts."""

from __future__ import annotations

from typing import Any

from tests import families
from tests.families import SHARED
from tests.variants.kinds import ABSENT, LONGROPE, VOCAB, Variant, Variants, alternating, rope

_LLAMA: dict[str, Any] = {**families.LLAMA, **VOCAB}
_MLA: dict[str, Any] = {**families.MLA, **VOCAB}
_QWEN2_MOE: dict[str, Any] = {**_LLAMA, **SHARED, "shared_expert_intermediate_size": 40}
_FOUR: dict[str, Any] = {"num_hidden_layers": 4}
_ROUTED: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
_PHI_ROPE: dict[str, Any] = {**LONGROPE, "short_mscale": 1.1, "long_mscale": 1.3}
_MSCALE: dict[str, Any] = {
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 0.7,
    "mscale_all_dim": 0.9,
    "beta_fast": 8,
    "beta_slow": 1,
}
_OSS_ROPE: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 8.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 64,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", **_LLAMA, **_ROUTED},
    "qwen2_moe": {"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", **_QWEN2_MOE, **_FOUR},
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        **_LLAMA,
        **SHARED,
        "head_dim": 16,
    },
    "phimoe": {"architectures": ["PhimoeForCausalLM"], "model_type": "phimoe", **_LLAMA, **_ROUTED},
    "olmoe": {
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        **_LLAMA,
        "intermediate_size": 32,
        "num_experts": 6,
        "num_experts_per_tok": 2,
    },
    "granitemoe": {
        "architectures": ["GraniteMoeForCausalLM"],
        "model_type": "granitemoe",
        **_LLAMA,
        **_ROUTED,
        "embedding_multiplier": 5.0,
        "attention_multiplier": 0.1,
        "residual_multiplier": 0.4,
        "logits_scaling": 3.0,
    },
    "deepseek_v2": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        **_MLA,
        "topk_method": "greedy",
        "moe_layer_freq": 1,
        "scoring_func": "softmax",
    },
    "deepseek_v3": {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **_MLA,
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
        "scoring_func": "sigmoid",
    },
    "gpt_oss": {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        **_LLAMA,
        **_ROUTED,
        "intermediate_size": 40,
        "head_dim": 16,
        "sliding_window": 6,
        "rope_scaling": _OSS_ROPE,
        "rope_theta": 150000,
    },
}

VARIANTS: dict[str, Variants] = {
    "mixtral": {
        "plain": Variant(),
        "window": Variant({"sliding_window": 6, "rms_norm_eps": 0.1}),
        "head-dim": Variant({"head_dim": 16, "num_experts_per_tok": 1}),
        "three": Variant({"num_local_experts": 5, "num_experts_per_tok": 3, "rope_theta": 100.0}, seed=1),
        "saved": Variant({"rope_theta": 200.0, "tie_word_embeddings": True}, saved=True),
    },
    "qwen2_moe": {
        "plain": Variant(),
        "norm": Variant({"norm_topk_prob": True, "rms_norm_eps": 0.1}, seed=1),
        "dense-layers": Variant({"mlp_only_layers": [1, 2]}, seed=1),
        "sparse-step": Variant({"decoder_sparse_step": 2, "qkv_bias": False}),
        "windows": Variant({"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3}),
        "window-unused": Variant({"sliding_window": 5, "max_window_layers": 3}),
        "layer-types": Variant({"use_sliding_window": True, "sliding_window": 5, "layer_types": alternating(4)}),
        "saved": Variant({"rope_theta": 300.0, "use_sliding_window": True, "sliding_window": 5}, saved=True),
    },
    "qwen3_moe": {
        "plain": Variant(),
        "norm": Variant({"norm_topk_prob": True, "rms_norm_eps": 0.1}),
        "dense-layers": Variant({"mlp_only_layers": [1], "attention_bias": True}),
        "sparse-step": Variant({"decoder_sparse_step": 2, "rope_theta": 100.0}),
        "windows": Variant({"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
        "saved": Variant({"rope_theta": 300.0, "norm_topk_prob": True}, saved=True),
    },
    "phimoe": {
        "plain": Variant(),
        "bias": Variant({"attention_bias": True, "lm_head_bias": True, "rms_norm_eps": 0.1}),
        "theta": Variant({"rope_theta": 100.0}),
        "jitter": Variant({"router_jitter_noise": 0.2}),
        "window": Variant({"sliding_window": 6}),
        "longrope-short": Variant({"rope_theta": 300.0}, rope("longrope", key="rope_scaling", **_PHI_ROPE), tokens=12),
        "longrope-long": Variant({"rope_theta": 300.0}, rope("longrope", key="rope_scaling", **_PHI_ROPE), tokens=30),
        "saved": Variant({"rope_theta": 300.0, "rope_scaling": {"type": "longrope", **_PHI_ROPE}}, saved=True),
    },
    "olmoe": {
        "plain": Variant(),
        "norm": Variant({"norm_topk_prob": True, "rms_norm_eps": 0.1}),
        "clip": Variant({"clip_qkv": 0.7, "num_key_value_heads": 4}),
        "bias": Variant({"attention_bias": True, "rope_theta": 100.0}),
        "saved": Variant({"rope_theta": 300.0, "tie_word_embeddings": True}, saved=True),
    },
    "granitemoe": {
        "plain": Variant(),
        "bias": Variant({"attention_bias": True, "rms_norm_eps": 0.1}),
        "multipliers-absent": Variant(
            {"num_hidden_layers": 1},  # of scores that nothing divides, more layers make too much of rounding
            dict.fromkeys(
                ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"), ABSENT
            ),
        ),
        "one": Variant({"num_experts_per_tok": 1, "tie_word_embeddings": True, "rope_theta": 100.0}),
        "saved": Variant({"rope_theta": 300.0}, saved=True),
    },
    "deepseek_v2": {
        "plain": Variant(),
        "lite": Variant({"q_lora_rank": None, "n_shared_experts": 2, "first_k_dense_replace": 2, "rms_norm_eps": 0.1}),
        "groups": Variant({"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}),
        "scaled": Variant({"routed_scaling_factor": 2.5, "norm_topk_prob": True, "first_k_dense_replace": 0}),
        "bias": Variant({"attention_bias": True, "rope_theta": 200.0}),
        "yarn": Variant({"rope_theta": 500.0}, rope("yarn", key="rope_scaling", **_MSCALE)),
        "yarn-one-mscale": Variant(written=rope("yarn", **_MSCALE | {"mscale": 0.9})),
        "saved": Variant(
            {"rope_scaling": {"type": "yarn", **_MSCALE}, "topk_method": "group_limited_greedy"}, saved=True
        ),
    },
    "deepseek_v3": {
        "plain": Variant(),
        "halves": Variant({"rope_interleave": False}),
        "groups": Variant({"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "norm_topk_prob": False}),
        "scaled": Variant({"routed_scaling_factor": 1.2, "first_k_dense_replace": 2, "n_shared_experts": 2}),
        "lite": Variant({"q_lora_rank": None, "rms_norm_eps": 0.1}),
        "bias": Variant({"attention_bias": True, "rope_theta": 200.0}),
        "yarn": Variant({"rope_theta": 500.0}, rope("yarn", key="rope_scaling", **_MSCALE)),
        "saved": Variant({"rope_scaling": {"type": "yarn", **_MSCALE}}, saved=True),
    },
    "gpt_oss": {
        "plain": Variant(),
        "rope-absent": Variant(written={"rope_scaling": ABSENT, "rope_theta": ABSENT}),
        "truncated": Variant(written={"rope_scaling": _OSS_ROPE | {"truncate": True}, "rope_theta": 500.0}),
        "no-yarn": Variant(written={**rope("default"), "rope_scaling": ABSENT}),
        "limit": Variant({"swiglu_limit": 0.5, "rms_norm_eps": 0.1}),
        "no-bias": Variant({"attention_bias": False, "sliding_window": 3}),
        "layer-types": Variant({"layer_types": alternating(3), "num_experts_per_tok": 1}),
        "saved": Variant({"rope_theta": 700.0}, saved=True),
    },
}
