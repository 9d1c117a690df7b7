"""Llama and the families that share its tensor names: mistral, qwen2, qwen3."""

from __future__ import annotations

from weightkit.architectures.parts import Architecture, Role, Slot

_ATTENTION = "{prefix}layers.{layer}.self_attn."
_MLP = "{prefix}layers.{layer}.mlp."

_EMBED = (Slot("embed", "{prefix}embed_tokens", Role.EMBEDDING, ("token", "residual")),)
_QKV = (
    Slot("layers.{layer}.attn.norm", "{prefix}layers.{layer}.input_layernorm", Role.NORM, ("residual",)),
    Slot("layers.{layer}.attn.q", _ATTENTION + "q_proj", Role.Q, ("head", "residual"), bias="qkv_bias"),
    Slot("layers.{layer}.attn.k", _ATTENTION + "k_proj", Role.K, ("kv_head", "residual"), bias="qkv_bias"),
    Slot("layers.{layer}.attn.v", _ATTENTION + "v_proj", Role.V, ("kv_head", "residual"), bias="qkv_bias"),
)
_QK_NORM = (
    Slot("layers.{layer}.attn.q.norm", _ATTENTION + "q_norm", Role.NORM, ("head_dim",)),
    Slot("layers.{layer}.attn.k.norm", _ATTENTION + "k_norm", Role.NORM, ("head_dim",)),
)
_REST = (
    Slot("layers.{layer}.attn.o", _ATTENTION + "o_proj", Role.O, ("residual", "head"), bias="output_bias"),
    Slot("layers.{layer}.ffn.norm", "{prefix}layers.{layer}.post_attention_layernorm", Role.NORM, ("residual",)),
    Slot("layers.{layer}.ffn.gate", _MLP + "gate_proj", Role.GATE, ("neuron", "residual"), bias="ffn_bias"),
    Slot("layers.{layer}.ffn.up", _MLP + "up_proj", Role.UP, ("neuron", "residual"), bias="ffn_bias"),
    Slot("layers.{layer}.ffn.down", _MLP + "down_proj", Role.DOWN, ("residual", "neuron"), bias="ffn_bias"),
    Slot("norm", "{prefix}norm", Role.NORM, ("residual",)),
    Slot("lm_head", "lm_head", Role.HEAD, ("token", "residual"), optional=True),
)


def _family(model_type: str, *, qk_norm: bool = False) -> Architecture:
    return Architecture(
        model_type=model_type,
        slots=_EMBED + _QKV + (_QK_NORM if qk_norm else ()) + _REST,
        prefixes=("model.", "", "language_model.model."),
        norm="rms",
        positions="rope",
        gated=True,
        qk_norm=qk_norm,
        ignored=(r"\.rotary_emb\.inv_freq$",),
    )


FAMILIES = (
    _family("llama"),
    _family("mistral"),
    _family("qwen2"),
    _family("qwen3", qk_norm=True),
)
