"""Variants of the decoders with names of their own: GPT's cousins, OPT, BLOOM, MPT, Falcon, Mamba."""

from __future__ import annotations

from typing import Any

from tests import families
from tests.families import D
from tests.variants.kinds import ABSENT, VOCAB, Variant, Variants, rope

_NEW: dict[str, Any] = {"new_decoder_architecture": True, "num_kv_heads": 2}
_RW: dict[str, Any] = {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}


def _config(architecture: str, variant: str, **changes: Any) -> dict[str, Any]:
    kind, base = families.VARIANTS[variant]
    return {"architectures": [architecture], "model_type": kind, **base, **VOCAB, **changes}


CONFIGS: dict[str, dict[str, Any]] = {
    "gpt_bigcode": _config("GPTBigCodeForCausalLM", "gpt_bigcode"),
    "gpt_neo": _config("GPTNeoForCausalLM", "gpt_neo"),
    "gpt_neox": _config("GPTNeoXForCausalLM", "gpt_neox", num_attention_heads=3),  # a quarter of a head of 16
    "gptj": _config("GPTJForCausalLM", "gptj"),
    "opt": _config("OPTForCausalLM", "opt"),
    "bloom": _config("BloomForCausalLM", "bloom"),
    "mpt": _config("MptForCausalLM", "mpt"),
    "falcon": _config("FalconForCausalLM", "falcon-7b"),
    "mamba": _config("MambaForCausalLM", "mamba"),
}

VARIANTS: dict[str, Variants] = {
    "gpt_bigcode": {
        "plain": Variant(),
        "mha": Variant({"multi_query": False}),
        "unscaled": Variant({"scale_attn_weights": False, "n_inner": 80}),
        "gelu": Variant({"activation_function": "gelu", "layer_norm_epsilon": 0.1}),
        "mha-untied": Variant({"multi_query": False, "tie_word_embeddings": False}),
    },
    "gpt_neo": {
        "plain": Variant(),
        "global": Variant({"attention_types": [[["global"], 4]], "activation_function": "gelu"}),
        "mixed": Variant({"attention_types": [[["global"], 1], [["local"], 3]], "window_size": 5}),
        "defaults": Variant(
            {
                "intermediate_size": None,
                "num_layers": 24,
                "hidden_size": 16,
                "attention_types": [[["global", "local"], 12]],
                "window_size": 3,
                "layer_norm_epsilon": 0.1,
            },
            {"attention_types": ABSENT},
        ),
    },
    "gpt_neox": {
        "plain": Variant(),
        "serial": Variant({"use_parallel_residual": False, "layer_norm_eps": 0.1}),
        "old-keys": Variant({"rotary_pct": 0.5, "rotary_emb_base": 500, "hidden_act": "gelu_fast"}),
        "whole": Variant({"rotary_pct": 1.0, "tie_word_embeddings": True}),
        "linear-old-key": Variant({"rotary_pct": 0.5}, rope("linear", key="rope_scaling", factor=2.5)),
        "no-bias": Variant({"attention_bias": False, "hidden_act": "relu"}),
        "saved": Variant({"rotary_pct": 0.75, "rotary_emb_base": 300}, saved=True),
    },
    "gptj": {
        "plain": Variant(),
        "whole": Variant({"rotary_dim": 12, "n_inner": 80}),
        "gelu": Variant({"activation_function": "gelu", "layer_norm_epsilon": 0.1, "rotary_dim": 8}),
    },
    "opt": {
        "plain": Variant(),
        "350m": Variant({"word_embed_proj_dim": 24, "do_layer_norm_before": False}),
        "no-final-norm": Variant({"_remove_final_layer_norm": True, "activation_function": "gelu"}),
        "no-bias": Variant({"enable_bias": False}),
        "not-affine": Variant({"layer_norm_elementwise_affine": False}),
        "projected": Variant({"word_embed_proj_dim": 24}),
        "eps-unread": Variant(
            written={"layer_norm_eps": 0.5, "layer_norm_epsilon": 0.5, "word_embed_proj_dim": ABSENT}
        ),
        "padded": Variant(pad=1),
        "untied": Variant({"tie_word_embeddings": False}),
    },
    "bloom": {
        "plain": Variant(),
        "post-norm-residual": Variant({"apply_residual_connection_post_layernorm": True}),
        "six-heads": Variant({"n_head": 6, "layer_norm_epsilon": 0.1}),
        "old-keys": Variant(
            {"n_head": 3},
            {"hidden_size": ABSENT, "n_embed": D, "n_head": ABSENT, "num_attention_heads": 3, "offset_alibi": 100},
        ),
        "untied": Variant({"tie_word_embeddings": False}),
    },
    "mpt": {
        "plain": Variant(),
        "six-heads": Variant({"n_heads": 6}),
        "bias-max": Variant({"attn_config": {"alibi": True, "alibi_bias_max": 3}}),
        "clip": Variant({"attn_config": {"alibi": True, "clip_qkv": 0.7}}),
        "scale": Variant({"attn_config": {"alibi": True, "softmax_scale": 0.1}, "layer_norm_epsilon": 0.1}),
        "hub": Variant(
            written={
                "attn_config": {
                    "alibi": True,
                    "alibi_bias_max": 8,
                    "attn_impl": "torch",
                    "attn_pdrop": 0,
                    "attn_type": "multihead_attention",
                    "attn_uses_sequence_id": False,
                    "clip_qkv": None,
                    "prefix_lm": False,
                    "qk_ln": False,
                    "softmax_scale": None,
                },
                "logit_scale": None,
                "no_bias": True,
                "learned_pos_emb": True,
                "norm_type": "low_precision_layernorm",
            }
        ),
    },
    "falcon": {
        "7b": Variant(),
        "7b-alibi": Variant({"alibi": True}),
        "40b": Variant(_NEW),
        "40b-one-head-each": Variant(_NEW | {"num_kv_heads": 4, "bias": True}),
        "11b": Variant(_NEW | {"num_ln_in_parallel_attn": 1, "rope_theta": 500.0}),
        "rw": Variant(_RW),
        "rw-six-heads": Variant(_RW | {"num_attention_heads": 6, "layer_norm_epsilon": 0.1}),
        "mha-parallel": Variant({"multi_query": False, "bias": True}),
        "ffn": Variant({"ffn_hidden_size": 80, "activation": "gelu_pytorch_tanh", "tie_word_embeddings": False}),
        "linear-old-key": Variant(written=rope("linear", key="rope_scaling", factor=2.5)),
        "refined-web": Variant(
            {"num_attention_heads": 4},
            {
                "model_type": "RefinedWebModel",
                "n_head": 4,
                "n_layer": 3,
                "num_attention_heads": ABSENT,
                "num_hidden_layers": ABSENT,
                "multi_query": True,
                "alibi": False,
                "bias": False,
                "parallel_attn": True,
            },
        ),
        "saved": Variant(_NEW | {"rope_theta": 300.0}, saved=True),
    },
    "mamba": {
        "plain": Variant(),
        "no-conv-bias": Variant({"use_conv_bias": False, "layer_norm_epsilon": 0.1}),
        "bias": Variant({"use_bias": True, "conv_kernel": 3}),
        "sizes": Variant({"expand": 1, "state_size": 5, "time_step_rank": 7}),
        "untied": Variant({"tie_word_embeddings": False}),
        "saved": Variant(saved=True),
    },
}
