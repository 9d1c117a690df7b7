"""Variants of the families whose configs and shapes are in tests/tiny.py: Llama, Mistral, Qwen 2 and 3, GPT-2."""

from __future__ import annotations

from tests.variants.kinds import ABSENT, LLAMA3, LONGROPE, YARN, Variant, Variants, rope

VARIANTS: dict[str, Variants] = {
    "llama": {
        "plain": Variant(),
        "mha": Variant({"num_key_value_heads": 4}),
        "mqa": Variant({"num_key_value_heads": 1}),
        "kv-heads-null": Variant({"num_key_value_heads": 4}, {"num_key_value_heads": None}),
        "kv-heads-absent": Variant({"num_key_value_heads": 4}, {"num_key_value_heads": ABSENT}),
        "bias": Variant({"attention_bias": True, "mlp_bias": True}),
        "attention-bias": Variant({"attention_bias": True}),
        "tied": Variant({"tie_word_embeddings": True}),
        "tied-with-own-head": Variant(written={"tie_word_embeddings": True}),
        "head-dim": Variant({"head_dim": 20}),
        "eps": Variant({"rms_norm_eps": 0.1}),
        "eps-absent": Variant(written={"rms_norm_eps": ABSENT, "hidden_act": ABSENT}),
        "gelu": Variant({"hidden_act": "gelu"}),
        "gelu-tanh": Variant({"hidden_act": "gelu_pytorch_tanh"}),
        "relu": Variant({"hidden_act": "relu"}),
        "theta": Variant({"rope_theta": 500.0}),
        "theta-new-key": Variant(written={**rope("default"), "rope_parameters": {"rope_theta": 700.0}}),
        "linear": Variant(written=rope("linear", factor=3.0)),
        "linear-old-key": Variant(written=rope("linear", key="rope_scaling", factor=2.5)),
        "dynamic-short": Variant(written=rope("dynamic", factor=2.0)),
        "dynamic-long": Variant({"max_position_embeddings": 16}, rope("dynamic", factor=2.0), tokens=40),
        "dynamic-old-key": Variant(
            {"max_position_embeddings": 16}, rope("dynamic", key="rope_scaling", factor=3.0), tokens=30
        ),
        "llama3": Variant(written=rope("llama3", **LLAMA3)),
        "llama3-old-key": Variant({"rope_theta": 300.0}, rope("llama3", key="rope_scaling", **LLAMA3)),
        "llama3-long": Variant(
            {"max_position_embeddings": 32}, rope("llama3", **LLAMA3 | {"original_max_position_embeddings": 16}), 40
        ),
        "llama3-range": Variant(
            written=rope("llama3", **LLAMA3 | {"low_freq_factor": 1.5, "high_freq_factor": 6.0}),
        ),
        "yarn": Variant(written=rope("yarn", **YARN)),
        "yarn-long": Variant(
            {"max_position_embeddings": 32}, rope("yarn", **YARN | {"original_max_position_embeddings": 8}), 40
        ),
        "yarn-attention-factor": Variant(written=rope("yarn", **YARN, attention_factor=1.3), seed=1),
        "yarn-mscale": Variant(written=rope("yarn", **YARN, mscale=0.7, mscale_all_dim=1.6)),
        "yarn-exact-range": Variant(written=rope("yarn", **YARN, beta_fast=4.0, beta_slow=0.5, truncate=False)),
        "yarn-factor-null": Variant(written=rope("yarn", factor=None, original_max_position_embeddings=16)),
        "yarn-old-key": Variant({"rope_theta": 200.0}, rope("yarn", key="rope_scaling", **YARN)),
        "longrope-short": Variant(written=rope("longrope", **LONGROPE), tokens=12),
        "longrope-at-original": Variant(written=rope("longrope", **LONGROPE), tokens=16),
        "longrope-long": Variant(written=rope("longrope", **LONGROPE), tokens=40),
        "longrope-factor": Variant(written=rope("longrope", **LONGROPE, factor=8.0)),
        "longrope-attention-factor": Variant(written=rope("longrope", **LONGROPE, attention_factor=1.25)),
        "longrope-original-outside": Variant(
            written={**rope("longrope", **LONGROPE), "original_max_position_embeddings": 20}
        ),
    },
    "mistral": {
        "window": Variant(),
        "window-of-one": Variant({"sliding_window": 1}),
        "window-wider": Variant({"sliding_window": 30}),
        "window-null": Variant({"sliding_window": None}),
        "head-dim-absent": Variant({"head_dim": 12}, {"head_dim": ABSENT}),
        "tied": Variant({"tie_word_embeddings": True, "rope_theta": 1e6}),
    },
    "qwen2": {
        "window-unused": Variant({"sliding_window": 5, "use_sliding_window": False}),
        "windows": Variant({"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1}),
        "layer-types": Variant(
            {
                "sliding_window": 6,
                "use_sliding_window": True,
                "max_window_layers": 3,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            }
        ),
        "tied": Variant({"tie_word_embeddings": True, "rms_norm_eps": 0.05}),
        "yarn": Variant(written=rope("yarn", **YARN)),
    },
    "qwen3": {
        "plain": Variant(),
        "bias": Variant({"attention_bias": True}),
        "head-dim": Variant({"head_dim": 20, "num_key_value_heads": 1}),
        "windows": Variant({"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 2}),
        "tied": Variant({"tie_word_embeddings": True, "rms_norm_eps": 0.2}),
    },
    "gpt2": {
        "plain": Variant(),
        "scale-by-layer": Variant({"scale_attn_by_inverse_layer_idx": True}),
        "unscaled": Variant({"scale_attn_weights": False}),
        "unscaled-by-layer": Variant({"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}),
        "n-inner": Variant({"n_inner": 80}),
        "gelu": Variant({"activation_function": "gelu"}),
        "eps": Variant({"layer_norm_epsilon": 0.1}),
        "defaults": Variant(written=dict.fromkeys(("n_inner", "activation_function", "layer_norm_epsilon"), ABSENT)),
        "full-length": Variant({"n_positions": 24}),
    },
}
