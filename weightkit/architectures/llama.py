"""Llama and the families that took over its tensor names: model.layers.N.self_attn.q_proj and so on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from weightkit.architectures.parts import (
    BUFFERS,
    Architecture,
    Role,
    Slot,
    embedding,
    fused_gate_up,
    fused_qkv,
    gated,
    head,
    norm,
    output,
    separate_qkv,
    up_down,
)

LAYER = "{prefix}layers.{layer}."
ATTENTION = LAYER + "self_attn."
MLP = LAYER + "mlp."

Slots = tuple[Slot, ...]

EMBED = embedding("{prefix}embed_tokens")
QKV = separate_qkv(ATTENTION, bias="qkv_bias")
O = output(ATTENTION + "o_proj", bias="output_bias")
FFN = gated(MLP + "gate_proj", MLP + "up_proj", MLP + "down_proj", bias="ffn_bias", when="dense")


def norms(
    attn: str = "input_layernorm", ffn: str = "post_attention_layernorm", bias: str = ""
) -> tuple[Slot, Slot, Slot]:
    """The two norms of a block, each before its half, and the last norm."""
    return (
        norm("layers.{layer}.attn.norm", LAYER + attn, bias=bias),
        norm("layers.{layer}.ffn.norm", LAYER + ffn, bias=bias),
        norm("norm", "{prefix}norm", bias=bias),
    )


def qk_norms(
    axis_q: str, axis_k: str, *, names: tuple[str, str] = ("q_norm", "k_norm"), when: str = "", bias: str = ""
) -> Slots:
    """Norms of the queries and the keys."""
    return (
        norm("layers.{layer}.attn.q.norm", ATTENTION + names[0], axis=axis_q, when=when, bias=bias),
        norm("layers.{layer}.attn.k.norm", ATTENTION + names[1], axis=axis_k, when=when, bias=bias),
    )


PER_HEAD = qk_norms("head_dim", "head_dim")  # one for all heads
FLAT = qk_norms("head", "kv_head")  # over all heads together


def block(
    *,
    qkv: Slots = QKV,
    qk_norm: Slots = (),
    o: Slot = O,
    ffn: Slots = FFN,
    own_norms: tuple[Slot, Slot, Slot] | None = None,
    after_attention: Slots = (),
    after_ffn: Slots = (),
    lm_head: Slot | None = None,
) -> Slots:
    """A whole model: embedding, blocks with a norm before each half, the last norm, the vocab projection."""
    before_attention, before_ffn, last = own_norms or norms()
    return (
        EMBED,
        before_attention,
        *qkv,
        *qk_norm,
        o,
        *after_attention,
        before_ffn,
        *ffn,
        *after_ffn,
        last,
        lm_head or head(),
    )


def architecture(
    model_type: str,
    slots: Slots | None = None,
    *,
    norm: Literal["rms", "rms + 1", "layer"] = "rms",
    renamed: tuple[tuple[str, str], ...] = (),
) -> Architecture:
    """A family whose names begin as Llama's do."""
    return Architecture(
        model_type=model_type,
        slots=slots or block(),
        prefixes=("model.", "", "model.language_model."),
        norm=norm,
        ignored=BUFFERS,
        renamed=renamed,
    )


def without(slots: Slots, *addresses: str) -> Slots:
    """The slots but those of some addresses."""
    return tuple(slot for slot in slots if slot.address not in addresses)


_POST_ONLY = without(  # OLMo 2 and 3: no norm before, one after each half
    block(
        qk_norm=FLAT,
        after_attention=(norm("layers.{layer}.attn.post_norm", LAYER + "post_attention_layernorm"),),
        after_ffn=(norm("layers.{layer}.ffn.post_norm", LAYER + "post_feedforward_layernorm"),),
    ),
    "layers.{layer}.attn.norm",
    "layers.{layer}.ffn.norm",
)
_GLM4: dict[str, Any] = {
    "after_attention": (norm("layers.{layer}.attn.post_norm", LAYER + "post_self_attn_layernorm"),),
    "after_ffn": (norm("layers.{layer}.ffn.post_norm", LAYER + "post_mlp_layernorm"),),
}
_PHI_QKV = (
    *(replace(slot, form="apart") for slot in QKV),
    *(replace(slot, form="together", foreign=True) for slot in fused_qkv(ATTENTION + "qkv_proj", bias="qkv_bias")),
)


def _norm_of_each(short: str, head: str) -> Slots:
    """A norm for each head, in a tensor of its own or, in GGUF, all in one."""
    at, name = f"layers.{{layer}}.attn.{short}.norm.{head}", f"{ATTENTION}{short}_layernorm"
    own = norm(at, f"{name}.norms.{head}", axis="head_dim", when="qk_norm")
    stack = replace(own, name=name, stacked=True, foreign=True, form="stacked")
    return replace(own, form="each"), stack


_GATE_UP = fused_gate_up(MLP + "gate_up_proj", MLP + "down_proj")
LAYER_NORMS = norms(bias="always")

FAMILIES = (
    architecture("llama"),
    architecture("mistral"),
    architecture("qwen2"),
    architecture("qwen3", block(qk_norm=PER_HEAD)),
    architecture("phi3", block(qkv=fused_qkv(ATTENTION + "qkv_proj"), ffn=_GATE_UP)),
    architecture(
        "phi",
        without(
            block(
                qkv=_PHI_QKV,
                qk_norm=qk_norms(
                    "head_dim", "head_dim", names=("q_layernorm", "k_layernorm"), when="qk_norm", bias="always"
                ),
                o=output(ATTENTION + "dense", bias="output_bias"),
                ffn=up_down(MLP + "fc1", MLP + "fc2", bias="ffn_bias"),
                own_norms=(
                    norm("layers.{layer}.attn.norm", LAYER + "input_layernorm", bias="always"),
                    norm("none", ""),
                    norm("norm", "{prefix}final_layernorm", bias="always"),
                ),
                lm_head=head(bias="always"),
            ),
            "none",
        ),
        norm="layer",
    ),
    architecture(
        "stablelm",
        block(
            qk_norm=(*_norm_of_each("q", "{head}"), *_norm_of_each("k", "{kv_head}")),
            own_norms=(
                LAYER_NORMS[0],
                replace(LAYER_NORMS[1], when="!parallel"),
                LAYER_NORMS[2],
            ),
        ),
        norm="layer",
    ),
    architecture(
        "starcoder2",
        block(own_norms=LAYER_NORMS, ffn=up_down(MLP + "c_fc", MLP + "c_proj", bias="ffn_bias")),
        norm="layer",
    ),
    architecture(
        "olmo",
        without(block(), "layers.{layer}.attn.norm", "layers.{layer}.ffn.norm", "norm"),  # norms without weights
        norm="layer",
    ),
    architecture("olmo2", _POST_ONLY),
    architecture("olmo3", _POST_ONLY),
    architecture(
        "cohere",
        without(
            block(
                qk_norm=(
                    Slot(
                        "layers.{layer}.attn.q.norm",
                        ATTENTION + "q_norm",
                        Role.NORM,
                        ("each_head", "head_dim"),
                        when="qk_norm",
                    ),
                    Slot(
                        "layers.{layer}.attn.k.norm",
                        ATTENTION + "k_norm",
                        Role.NORM,
                        ("each_kv_head", "head_dim"),
                        when="qk_norm",
                    ),
                )
            ),
            "layers.{layer}.ffn.norm",
        ),
        norm="layer",
    ),
    architecture("cohere2", without(block(), "layers.{layer}.ffn.norm"), norm="layer"),
    architecture("granite"),
    architecture("internlm"),
    architecture("smollm3"),
    architecture("glm", block(ffn=_GATE_UP)),
    architecture("glm4", block(ffn=_GATE_UP, **_GLM4)),
)
