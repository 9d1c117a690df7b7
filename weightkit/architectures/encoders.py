"""Encoders, BERT and its kin, and T5, which has an encoder and a decoder."""

from __future__ import annotations

from typing import Any

from weightkit.architectures.parts import (
    BUFFERS,
    CROSS,
    Architecture,
    Role,
    Slot,
    copy,
    embedding,
    head,
    norm,
    output,
    position,
    separate_qkv,
    up_down,
)

_BERT = "{prefix}encoder.layer.{layer}."
_DISTIL = "{prefix}transformer.layer.{layer}."
_OLD_NORMS = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))


def _head_dense(name: str) -> Slot:
    """The matrix before the vocab projection of a masked language model."""
    return Slot("lm_head.dense", name, Role.OTHER, ("residual", "residual"), bias="always", optional="head")


def _head_bias(name: str) -> Slot:
    return Slot("lm_head.bias", name, Role.BIAS, ("token",), raw=True, optional="head")


def _head_copy(name: str) -> Slot:
    """The bias as the vocab projection itself has it; an untied model has learned both."""
    return copy("lm_head.decoder.bias", name, "lm_head.bias", Role.BIAS, "token")


def _head_norm(name: str) -> Slot:
    return Slot("lm_head.norm", name, Role.NORM, ("residual",), bias="always", optional="head")


def _bert_cross(name: str) -> tuple[Slot, ...]:
    """The attention of a decoder to its encoder, in the models that are made as one."""
    own: dict[str, Any] = {"at": CROSS, "when": "cross_attention"}
    return (
        *separate_qkv(name + "self.", bias="qkv_bias", names=("query", "key", "value"), **own),
        output(name + "output.dense", bias="output_bias", **own),
        norm(f"{CROSS}.post_norm", name + "output.LayerNorm", bias="always", when="cross_attention"),
    )


_BERT_BLOCK = (
    embedding("{prefix}embeddings.word_embeddings"),
    position("{prefix}embeddings.position_embeddings"),
    Slot("embed.type", "{prefix}embeddings.token_type_embeddings", Role.EMBEDDING, ("token_type", "residual")),
    norm("embed.norm", "{prefix}embeddings.LayerNorm", bias="always"),
    *separate_qkv(_BERT + "attention.self.", bias="qkv_bias", names=("query", "key", "value")),
    output(_BERT + "attention.output.dense", bias="output_bias"),
    norm("layers.{layer}.attn.post_norm", _BERT + "attention.output.LayerNorm", bias="always"),
    *_bert_cross(_BERT + "crossattention."),
    *up_down(_BERT + "intermediate.dense", _BERT + "output.dense", bias="ffn_bias"),
    norm("layers.{layer}.ffn.post_norm", _BERT + "output.LayerNorm", bias="always"),
    Slot("pooler", "{prefix}pooler.dense", Role.OTHER, ("residual", "residual"), bias="always", optional="extra"),
)


def _t5_attention(at: str, name: str) -> tuple[Slot, ...]:
    return (
        *separate_qkv(name, names=("q", "k", "v"), at=at),
        Slot(f"{at}.o", name + "o", Role.O, ("residual", "head")),
    )


def _t5_ffn(at: str, name: str) -> tuple[Slot, ...]:
    return (
        Slot(f"{at}.up", name + "wi", Role.UP, ("neuron", "residual"), when="plain_ffn"),
        Slot(f"{at}.gate", name + "wi_0", Role.GATE, ("neuron", "residual"), when="gated"),
        Slot(f"{at}.up", name + "wi_1", Role.UP, ("neuron", "residual"), when="gated"),
        Slot(f"{at}.down", name + "wo", Role.DOWN, ("residual", "neuron")),
    )


def _t5_embedding(stack: str) -> Slot:
    return copy(f"{stack}.embed", f"{stack}.embed_tokens.weight", "embed", Role.EMBEDDING, "token", "residual")


def _t5_positions(stack: str) -> Slot:
    """How much nearness counts, a table that all layers of a stack share; it is stored in the first."""
    name = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
    return Slot(f"{stack}.position", name, Role.POSITION, ("bucket", "each_head"))


_ENCODER, _DECODER = "encoder.block.{layer}.layer.", "decoder.block.{layer}.layer."
_ENCODER_AT, _DECODER_AT = "encoder.layers.{layer}", "decoder.layers.{layer}"

FAMILIES = (
    Architecture(
        model_type="bert",
        slots=(
            *_BERT_BLOCK,
            _head_dense("cls.predictions.transform.dense"),
            _head_norm("cls.predictions.transform.LayerNorm"),
            head("cls.predictions.decoder"),
            _head_bias("cls.predictions.bias"),
            _head_copy("cls.predictions.decoder.bias"),
            Slot(
                "next_sentence",
                "cls.seq_relationship",
                Role.OTHER,
                ("two", "residual"),
                bias="always",
                optional="extra",
            ),
        ),
        prefixes=("bert.", ""),
        norm="layer",
        causal=False,
        ignored=BUFFERS,
        renamed=_OLD_NORMS,
    ),
    Architecture(
        model_type="roberta",
        slots=(
            *_BERT_BLOCK,
            _head_dense("lm_head.dense"),
            _head_norm("lm_head.layer_norm"),
            head("lm_head.decoder"),
            _head_bias("lm_head.bias"),
            _head_copy("lm_head.decoder.bias"),
        ),
        prefixes=("roberta.", ""),
        norm="layer",
        causal=False,
        ignored=BUFFERS,
        renamed=_OLD_NORMS,
    ),
    Architecture(
        model_type="distilbert",
        slots=(
            embedding("{prefix}embeddings.word_embeddings"),
            position("{prefix}embeddings.position_embeddings"),
            norm("embed.norm", "{prefix}embeddings.LayerNorm", bias="always"),
            *separate_qkv(_DISTIL + "attention.", bias="qkv_bias", names=("q_lin", "k_lin", "v_lin")),
            output(_DISTIL + "attention.out_lin", bias="output_bias"),
            norm("layers.{layer}.attn.post_norm", _DISTIL + "sa_layer_norm", bias="always"),
            *up_down(_DISTIL + "ffn.lin1", _DISTIL + "ffn.lin2", bias="ffn_bias"),
            norm("layers.{layer}.ffn.post_norm", _DISTIL + "output_layer_norm", bias="always"),
            _head_dense("vocab_transform"),
            _head_norm("vocab_layer_norm"),
            head("vocab_projector"),
            _head_bias("vocab_projector.bias"),
        ),
        prefixes=("distilbert.", ""),
        norm="layer",
        causal=False,
        ignored=BUFFERS,
    ),
    Architecture(
        model_type="t5",
        slots=(
            embedding("{prefix}shared"),
            _t5_embedding("encoder"),
            _t5_positions("encoder"),
            norm(f"{_ENCODER_AT}.attn.norm", _ENCODER + "0.layer_norm"),
            *_t5_attention(f"{_ENCODER_AT}.attn", _ENCODER + "0.SelfAttention."),
            norm(f"{_ENCODER_AT}.ffn.norm", _ENCODER + "1.layer_norm"),
            *_t5_ffn(f"{_ENCODER_AT}.ffn", _ENCODER + "1.DenseReluDense."),
            norm("encoder.norm", "encoder.final_layer_norm"),
            _t5_embedding("decoder"),
            _t5_positions("decoder"),
            norm(f"{_DECODER_AT}.attn.norm", _DECODER + "0.layer_norm"),
            *_t5_attention(f"{_DECODER_AT}.attn", _DECODER + "0.SelfAttention."),
            norm(f"{_DECODER_AT}.cross.norm", _DECODER + "1.layer_norm"),
            *_t5_attention(f"{_DECODER_AT}.cross", _DECODER + "1.EncDecAttention."),
            norm(f"{_DECODER_AT}.ffn.norm", _DECODER + "2.layer_norm"),
            *_t5_ffn(f"{_DECODER_AT}.ffn", _DECODER + "2.DenseReluDense."),
            norm("decoder.norm", "decoder.final_layer_norm"),
            head(),
        ),
        prefixes=("",),
        norm="rms",
        ignored=(*BUFFERS, r"\.EncDecAttention\.relative_attention_bias\.weight$"),  # a table that nothing uses
        instead=tuple(("shared.weight", f"{stack}.embed_tokens.weight") for stack in ("decoder", "encoder")),
    ),
)
