"""Mixtures of experts with the names of Llama: Mixtral, Qwen, Phi, OLMo, Granite, DeepSeek, gpt-oss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from weightkit.architectures.llama import (
    ATTENTION,
    FFN,
    FLAT,
    LAYER,
    LAYER_NORMS,
    MLP,
    PER_HEAD,
    O,
    Slots,
    architecture,
    block,
)
from weightkit.architectures.parts import (
    BUFFERS,
    PARTS,
    Architecture,
    Role,
    Slot,
    experts,
    head,
    norm,
    router,
    shared_expert,
    stacked_apart,
    stacked_experts,
)

MOE = LAYER + "block_sparse_moe."
# What transformers calls it in memory, and so in a state_dict.
_IN_MEMORY = ((".mlp.router.", ".block_sparse_moe.gate."), (".mlp.", ".block_sparse_moe."))
W123 = ("{expert}.w1", "{expert}.w3", "{expert}.w2")  # gate, up, down


def _latent() -> tuple[Slots, Slots]:
    """DeepSeek's attention: queries, keys and values by way of vectors of low rank."""
    kv_a = ("kv_rank", "key_rope")
    kv_b = ("key_nope", "value")
    at = "layers.{layer}.attn"
    queries = (
        Slot(f"{at}.q", ATTENTION + "q_proj", Role.Q, ("query", "residual"), when="q_straight"),
        Slot(f"{at}.q_a", ATTENTION + "q_a_proj", Role.Q, ("q_rank", "residual"), bias="qkv_bias", when="q_latent"),
        norm(f"{at}.q_a.norm", ATTENTION + "q_a_layernorm", axis="q_rank", when="q_latent"),
        Slot(f"{at}.q_b", ATTENTION + "q_b_proj", Role.Q, ("query", "q_rank"), when="q_latent"),
    )
    kv = ATTENTION + "kv_a_proj_with_mqa"
    both: dict[str, Any] = {"fused": kv_b, "every": "head", "form": "together"}
    apart: dict[str, Any] = {"form": "apart", "foreign": True}  # as newer GGUF files have them
    keys = (
        Slot(f"{at}.kv_a", kv, Role.K, ("kv_rank", "residual"), bias="qkv_bias", fused=kv_a, part=0),
        Slot(f"{at}.k_rope", kv, Role.K, ("key_rope", "residual"), bias="qkv_bias", fused=kv_a, part=1),
        norm(f"{at}.kv_a.norm", ATTENTION + "kv_a_layernorm", axis="kv_rank"),
        Slot(f"{at}.k_b", ATTENTION + "kv_b_proj", Role.K, ("key_nope", "kv_rank"), part=0, **both),
        Slot(f"{at}.v_b", ATTENTION + "kv_b_proj", Role.V, ("value", "kv_rank"), part=1, **both),
        Slot(f"{at}.k_b", ATTENTION + "k_b_proj", Role.K, ("key_nope", "kv_rank"), **apart),
        Slot(f"{at}.v_b", ATTENTION + "v_b_proj", Role.V, ("value", "kv_rank"), **apart),
    )
    return queries, keys


def _deepseek(model_type: str, correction: Slots) -> Architecture:
    queries, keys = _latent()
    slots = block(
        qkv=queries + keys,
        o=Slot("layers.{layer}.attn.o", ATTENTION + "o_proj", Role.O, ("residual", "value"), bias="output_bias"),
        ffn=(
            *FFN,
            router(MLP + "gate"),
            *correction,
            *experts(MLP + "experts."),
            *shared_expert(MLP + "shared_experts.", bias="ffn_bias"),
        ),
    )
    family = architecture(model_type, slots)
    return replace(family, ignored=(*BUFFERS, r"(^|\.)layers\.{mtp}\."))


_CORRECTION = Slot(  # steers the choice of experts, set during training by counting rather than by gradients
    "layers.{layer}.ffn.router.correction",
    MLP + "gate.e_score_correction_bias",
    Role.BIAS,
    ("expert",),
    when="experts",
    raw=True,
    buffer=True,
)


def _gpt_oss() -> Slots:
    """Its experts are stacked and stored [in, out], gate and up by turns, and have biases."""
    both: dict[str, Any] = {"fused": ("expert_neuron", "expert_neuron"), "every": "expert_neuron"}
    kept: dict[str, Any] = {"when": "experts", "raw": True, "stacked": True, "form": "together"}
    at = "layers.{layer}.ffn.experts.{expert}"
    name = MLP + "experts."
    weights = tuple(
        Slot(
            f"{at}.{short}",
            name + "gate_up_proj",
            role,
            ("expert_neuron", "residual"),
            transposed=True,
            part=part,
            **kept,
            **both,
        )
        for part, (short, role) in enumerate((("gate", Role.GATE), ("up", Role.UP)))
    )
    biases = tuple(
        Slot(f"{at}.{short}.bias", name + "gate_up_proj_bias", Role.BIAS, ("expert_neuron",), part=part, **kept, **both)
        for part, short in enumerate(("gate", "up"))
    )
    down = (
        Slot(f"{at}.down", name + "down_proj", Role.DOWN, ("residual", "expert_neuron"), transposed=True, **kept),
        Slot(f"{at}.down.bias", name + "down_proj_bias", Role.BIAS, ("residual",), **kept),
    )
    sinks = Slot("layers.{layer}.attn.sinks", ATTENTION + "sinks", Role.OTHER, ("each_head",), raw=True)
    apart = stacked_apart(
        tuple(name + part for part in PARTS), form="apart", bias="always"
    )  # as MLX and GGUF have them
    merged = stacked_experts(name + "gate_up_proj", name + "down_proj", form="merged", bias="always", foreign=True)
    ffn = (router(MLP + "router", bias="always"), *weights, *biases, *down, *apart, *merged)
    return block(o=O, after_attention=(sinks,), ffn=ffn)


FAMILIES = (
    architecture(
        "mixtral", block(ffn=(router(MOE + "gate"), *experts(MOE + "experts.", names=W123))), renamed=_IN_MEMORY
    ),
    architecture(
        "qwen2_moe",
        block(
            ffn=(
                *FFN,
                router(MLP + "gate"),
                *experts(MLP + "experts."),
                *shared_expert(MLP + "shared_expert."),
                Slot(
                    "layers.{layer}.ffn.shared.router",
                    MLP + "shared_expert_gate",
                    Role.ROUTER,
                    ("one", "residual"),
                    when="shared_expert",
                ),
            )
        ),
    ),
    architecture(
        "qwen3_moe",
        block(qk_norm=PER_HEAD, ffn=(*FFN, router(MLP + "gate"), *experts(MLP + "experts."))),
    ),
    architecture(
        "phimoe",
        block(
            own_norms=LAYER_NORMS,
            ffn=(router(MOE + "gate"), *experts(MOE + "experts.", names=W123)),
            lm_head=head(bias="head_bias"),
        ),
        norm="layer",
        renamed=_IN_MEMORY,
    ),
    architecture("olmoe", block(qk_norm=FLAT, ffn=(router(MLP + "gate"), *experts(MLP + "experts.")))),
    architecture(
        "granitemoe",
        block(
            ffn=(
                router(MOE + "router.layer"),
                *stacked_experts(MOE + "input_linear", MOE + "output_linear", form="stacked"),
                *stacked_apart(tuple(MOE + "switch_mlp." + part for part in PARTS), form="switched"),
                *stacked_apart(tuple(MOE + "experts." + part for part in ("w1", "w3", "w2")), form="apart"),
            )
        ),
        renamed=(
            ("block_sparse_moe.router.weight", "block_sparse_moe.router.layer.weight"),
            ("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.input_linear.weight"),
            ("block_sparse_moe.experts.down_proj", "block_sparse_moe.output_linear.weight"),
        ),
    ),
    _deepseek("deepseek_v2", ()),
    _deepseek("deepseek_v3", (_CORRECTION,)),
    architecture("gpt_oss", _gpt_oss()),
)
