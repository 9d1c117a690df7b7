"""Decoders with tensor names of their own: GPT-NeoX, OPT, MPT, the first Phi, ChatGLM, Mamba."""

from __future__ import annotations

from weightkit.architectures.parts import (
    BUFFERS,
    Architecture,
    Role,
    Slot,
    embedding,
    fused_gate_up,
    fused_qkv,
    head,
    norm,
    output,
    position,
    separate_qkv,
    up_down,
)

_NEOX = "{prefix}layers.{layer}."
_OPT = "{prefix}layers.{layer}."
_MPT = "{prefix}blocks.{layer}."
_MIX = "layers.{next}."
_GLM = "{prefix}encoder.layers.{layer}."
_MAMBA = "{prefix}layers.{layer}.mixer."


def _ssm(address: str, name: str, *axes: str, bias: str = "", raw: bool = False) -> Slot:
    return Slot(f"layers.{{layer}}.ssm.{address}", _MAMBA + name, Role.OTHER, axes, bias=bias, raw=raw)


FAMILIES = (
    Architecture(
        model_type="gpt_neox",
        slots=(
            embedding("{prefix}embed_in"),
            norm("layers.{layer}.attn.norm", _NEOX + "input_layernorm", bias="always"),
            *fused_qkv(_NEOX + "attention.query_key_value", bias="qkv_bias", every="kv_head"),
            output(_NEOX + "attention.dense", bias="output_bias"),
            norm("layers.{layer}.ffn.norm", _NEOX + "post_attention_layernorm", bias="always"),
            *up_down(_NEOX + "mlp.dense_h_to_4h", _NEOX + "mlp.dense_4h_to_h", bias="ffn_bias"),
            norm("norm", "{prefix}final_layer_norm", bias="always"),
            head("embed_out"),
        ),
        prefixes=("gpt_neox.", ""),
        norm="layer",
        ignored=BUFFERS,
        renamed=(("lm_head.", "embed_out."),),  # as it is called in memory
    ),
    Architecture(
        model_type="opt",
        slots=(
            embedding("{prefix}embed_tokens", axis="embed"),
            position("{prefix}embed_positions"),
            Slot("embed.project", "{prefix}project_in", Role.OTHER, ("residual", "embed"), when="projected"),
            norm("layers.{layer}.attn.norm", _OPT + "self_attn_layer_norm", bias="always", when="norm_before"),
            *separate_qkv(_OPT + "self_attn.", bias="qkv_bias"),
            output(_OPT + "self_attn.out_proj", bias="output_bias"),
            norm("layers.{layer}.attn.post_norm", _OPT + "self_attn_layer_norm", bias="always", when="norm_after"),
            norm("layers.{layer}.ffn.norm", _OPT + "final_layer_norm", bias="always", when="norm_before"),
            *up_down(_OPT + "fc1", _OPT + "fc2", bias="ffn_bias"),
            norm("layers.{layer}.ffn.post_norm", _OPT + "final_layer_norm", bias="always", when="norm_after"),
            norm("norm", "{prefix}final_layer_norm", bias="always", when="final_norm"),
            Slot("project", "{prefix}project_out", Role.OTHER, ("embed", "residual"), when="projected"),
            head(axis="embed"),
        ),
        prefixes=("model.decoder.", "decoder."),
        norm="layer",
        ignored=BUFFERS,
    ),
    Architecture(
        model_type="mpt",
        slots=(
            embedding("{prefix}wte"),
            position("{prefix}wpe", when="positions"),
            norm("layers.{layer}.attn.norm", _MPT + "norm_1"),
            *fused_qkv(_MPT + "attn.Wqkv"),
            output(_MPT + "attn.out_proj"),
            norm("layers.{layer}.ffn.norm", _MPT + "norm_2"),
            *up_down(_MPT + "ffn.up_proj", _MPT + "ffn.down_proj"),
            norm("norm", "{prefix}norm_f"),
            head(),
        ),
        prefixes=("transformer.", ""),
        norm="layer",
        ignored=BUFFERS,
    ),
    Architecture(  # Phi-1, 1.5 and 2 as they were first published: a list of modules, numbered through
        model_type="mixformer-sequential",
        slots=(
            embedding("layers.0.wte"),
            norm("layers.{layer}.attn.norm", _MIX + "ln", bias="always"),
            *fused_qkv(_MIX + "mixer.Wqkv", bias="qkv_bias"),
            output(_MIX + "mixer.out_proj", bias="output_bias"),
            *up_down(_MIX + "mlp.fc1", _MIX + "mlp.fc2", bias="ffn_bias"),
            norm("norm", "layers.{last}.ln", bias="always"),
            head("layers.{last}.linear", bias="always"),
        ),
        prefixes=("",),
        norm="layer",
        ignored=BUFFERS,
    ),
    Architecture(
        model_type="chatglm",
        slots=(
            embedding("{prefix}embedding.word_embeddings"),
            norm("layers.{layer}.attn.norm", _GLM + "input_layernorm"),
            *fused_qkv(_GLM + "self_attention.query_key_value", bias="qkv_bias"),
            output(_GLM + "self_attention.dense"),
            norm("layers.{layer}.ffn.norm", _GLM + "post_attention_layernorm"),
            *fused_gate_up(_GLM + "mlp.dense_h_to_4h", _GLM + "mlp.dense_4h_to_h"),
            norm("norm", "{prefix}encoder.final_layernorm"),
            head("{prefix}output_layer"),
        ),
        prefixes=("transformer.", ""),
        norm="rms",
        ignored=BUFFERS,
    ),
    Architecture(
        model_type="mamba",
        slots=(
            embedding("{prefix}embeddings"),
            norm("layers.{layer}.norm", "{prefix}layers.{layer}.norm"),
            _ssm("in", "in_proj", "inner_and_gate", "residual", bias="ssm_bias"),
            _ssm("conv", "conv1d", "inner", "one", "kernel", bias="conv_bias"),
            _ssm("x", "x_proj", "rank_and_states", "inner"),
            _ssm("dt", "dt_proj", "inner", "rank", bias="always"),
            _ssm("A_log", "A_log", "inner", "state", raw=True),
            _ssm("D", "D", "inner", raw=True),
            _ssm("out", "out_proj", "residual", "inner", bias="ssm_bias"),
            norm("norm", "{prefix}norm_f"),
            head(),
        ),
        prefixes=("backbone.", ""),
        norm="rms",
        ignored=BUFFERS,
        renamed=(("backbone.embedding.", "backbone.embeddings."),),
    ),
)
