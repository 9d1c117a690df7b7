"""GPT-2 and the families that took over its tensor names: transformer.h.N.attn and so on."""

from __future__ import annotations

from typing import Any, Literal

from weightkit.architectures.parts import (
    BUFFERS,
    CROSS,
    Architecture,
    Role,
    Slot,
    embedding,
    fused_qkv,
    gated,
    head,
    norm,
    output,
    position,
    separate_qkv,
    up_down,
)

_BLOCK = "{prefix}h.{layer}."
_ATTN = _BLOCK + "attn."
_MLP = _BLOCK + "mlp."
_LN_1 = norm("layers.{layer}.attn.norm", _BLOCK + "ln_1", bias="always")
_LN_2 = norm("layers.{layer}.ffn.norm", _BLOCK + "ln_2", bias="always")
_LN_F = norm("norm", "{prefix}ln_f", bias="always")
_WTE = embedding("{prefix}wte")
_WPE = position("{prefix}wpe")


def _family(
    model_type: str,
    *slots: Slot,
    norm: Literal["rms", "layer"] = "layer",
) -> Architecture:
    return Architecture(
        model_type=model_type,
        slots=slots,
        prefixes=("transformer.", ""),
        norm=norm,
        ignored=BUFFERS,
    )


def _cross(name: str) -> tuple[Slot, ...]:
    """The attention of a decoder to its encoder, in the models that are made as one; keys and values are one tensor."""
    own: dict[str, Any] = {"bias": "qkv_bias", "transposed": True, "when": "cross_attention"}
    keys_and_values: dict[str, Any] = {"fused": ("kv_head", "kv_head"), **own}
    return (
        norm(f"{CROSS}.norm", _BLOCK + "ln_cross_attn", bias="always", when="cross_attention"),
        Slot(f"{CROSS}.q", name + "q_attn", Role.Q, ("head", "residual"), **own),
        Slot(f"{CROSS}.k", name + "c_attn", Role.K, ("kv_head", "residual"), part=0, **keys_and_values),
        Slot(f"{CROSS}.v", name + "c_attn", Role.V, ("kv_head", "residual"), part=1, **keys_and_values),
        output(name + "c_proj", at=CROSS, **(own | {"bias": "output_bias"})),
    )


_QWEN_LN_1, _QWEN_LN_2 = (norm(s.address, s.name) for s in (_LN_1, _LN_2))
_FALCON = {"up": _MLP + "dense_h_to_4h", "down": _MLP + "dense_4h_to_h"}

FAMILIES = (
    _family(  # its linear layers are Conv1D, stored [in, out]
        "gpt2",
        _WTE,
        _WPE,
        _LN_1,
        *fused_qkv(_ATTN + "c_attn", bias="qkv_bias", transposed=True),
        output(_ATTN + "c_proj", bias="output_bias", transposed=True),
        *_cross(_BLOCK + "crossattention."),
        _LN_2,
        *up_down(_MLP + "c_fc", _MLP + "c_proj", bias="ffn_bias", transposed=True),
        _LN_F,
        head(),
    ),
    _family(  # with one key head q, k, v follow one another; with as many as heads they come by turns
        "gpt_bigcode",
        _WTE,
        _WPE,
        _LN_1,
        *fused_qkv(_ATTN + "c_attn", bias="qkv_bias", every="kv_head"),
        output(_ATTN + "c_proj", bias="output_bias"),
        _LN_2,
        *up_down(_MLP + "c_fc", _MLP + "c_proj", bias="ffn_bias"),
        _LN_F,
        head(),
    ),
    _family(
        "gpt_neo",
        _WTE,
        _WPE,
        _LN_1,
        *separate_qkv(_ATTN + "attention."),
        output(_ATTN + "attention.out_proj", bias="output_bias"),
        _LN_2,
        *up_down(_MLP + "c_fc", _MLP + "c_proj", bias="ffn_bias"),
        _LN_F,
        head(),
    ),
    _family(
        "gptj",
        _WTE,
        _LN_1,
        *separate_qkv(_ATTN),
        output(_ATTN + "out_proj"),
        *up_down(_MLP + "fc_in", _MLP + "fc_out", bias="ffn_bias"),
        _LN_F,
        head(bias="always"),
    ),
    _family(
        "qwen",
        _WTE,
        _QWEN_LN_1,
        *fused_qkv(_ATTN + "c_attn", bias="qkv_bias"),
        output(_ATTN + "c_proj"),
        _QWEN_LN_2,
        *gated(_MLP + "w2", _MLP + "w1", _MLP + "c_proj"),
        norm("norm", "{prefix}ln_f"),
        head(),
        norm="rms",
    ),
    _family(
        "bloom",
        embedding("{prefix}word_embeddings"),
        norm("embed.norm", "{prefix}word_embeddings_layernorm", bias="always"),
        norm("layers.{layer}.attn.norm", _BLOCK + "input_layernorm", bias="always"),
        *fused_qkv(_BLOCK + "self_attention.query_key_value", bias="qkv_bias", every="kv_head"),
        output(_BLOCK + "self_attention.dense", bias="output_bias"),
        norm("layers.{layer}.ffn.norm", _BLOCK + "post_attention_layernorm", bias="always"),
        *up_down(_FALCON["up"], _FALCON["down"], bias="ffn_bias"),
        _LN_F,
        head(),
    ),
    _family(
        "falcon",
        embedding("{prefix}word_embeddings"),
        norm("layers.{layer}.attn.norm", _BLOCK + "input_layernorm", bias="always", when="one_norm"),
        norm("layers.{layer}.attn.norm", _BLOCK + "ln_attn", bias="always", when="two_norms"),
        *fused_qkv(_BLOCK + "self_attention.query_key_value", bias="qkv_bias", every="kv_head"),
        output(_BLOCK + "self_attention.dense", bias="output_bias"),
        norm("layers.{layer}.ffn.norm", _BLOCK + "ln_mlp", bias="always", when="two_norms"),
        norm("layers.{layer}.ffn.norm", _BLOCK + "post_attention_layernorm", bias="always", when="norm_before_ffn"),
        *up_down(_FALCON["up"], _FALCON["down"], bias="ffn_bias"),
        _LN_F,
        head(),
    ),
)
