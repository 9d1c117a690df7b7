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
    experts,
    fused_gate_up,
    fused_qkv,
    gated,
    head,
    norm,
    output,
    router,
    separate_qkv,
    shared_expert,
    stacked_experts,
    up_down,
)

_LAYER = "{prefix}layers.{layer}."
_ATTENTION = _LAYER + "self_attn."
_MLP = _LAYER + "mlp."
_MOE = _LAYER + "block_sparse_moe."

Slots = tuple[Slot, ...]

EMBED = embedding("{prefix}embed_tokens")
QKV = separate_qkv(_ATTENTION, bias="qkv_bias")
O = output(_ATTENTION + "o_proj", bias="output_bias")
FFN = gated(_MLP + "gate_proj", _MLP + "up_proj", _MLP + "down_proj", bias="ffn_bias", when="dense")
W123 = ("{expert}.w1", "{expert}.w3", "{expert}.w2")  # gate, up, down


def _norms(
    attn: str = "input_layernorm", ffn: str = "post_attention_layernorm", bias: str = ""
) -> tuple[Slot, Slot, Slot]:
    """The two norms of a block, each before its half, and the last norm."""
    return (
        norm("layers.{layer}.attn.norm", _LAYER + attn, bias=bias),
        norm("layers.{layer}.ffn.norm", _LAYER + ffn, bias=bias),
        norm("norm", "{prefix}norm", bias=bias),
    )


def _qk_norm(
    axis_q: str, axis_k: str, *, names: tuple[str, str] = ("q_norm", "k_norm"), when: str = "", bias: str = ""
) -> Slots:
    return (
        norm("layers.{layer}.attn.q.norm", _ATTENTION + names[0], axis=axis_q, when=when, bias=bias),
        norm("layers.{layer}.attn.k.norm", _ATTENTION + names[1], axis=axis_k, when=when, bias=bias),
    )


PER_HEAD = _qk_norm("head_dim", "head_dim")  # one for all heads
FLAT = _qk_norm("head", "kv_head")  # over all heads together


def _block(
    *,
    qkv: Slots = QKV,
    qk_norm: Slots = (),
    o: Slot = O,
    ffn: Slots = FFN,
    norms: tuple[Slot, Slot, Slot] | None = None,
    after_attention: Slots = (),
    after_ffn: Slots = (),
    lm_head: Slot | None = None,
) -> Slots:
    """A whole model: embedding, blocks with a norm before each half, the last norm, the vocab projection."""
    before_attention, before_ffn, last = norms or _norms()
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


def _family(
    model_type: str,
    slots: Slots | None = None,
    *,
    norm: Literal["rms", "layer"] = "rms",
    gated: bool = True,
    qk_norm: bool = False,
    runs: bool = False,
) -> Architecture:
    return Architecture(
        model_type=model_type,
        slots=slots or _block(),
        prefixes=("model.", "", "model.language_model."),
        norm=norm,
        positions="rope",
        gated=gated,
        qk_norm=qk_norm,
        ignored=BUFFERS,
        runs=runs,
    )


def _without(slots: Slots, *addresses: str) -> Slots:
    return tuple(slot for slot in slots if slot.address not in addresses)


_SANDWICH: dict[str, Any] = {  # Gemma 2 and 3: a norm before and after each half, post_attention_layernorm being after
    "norms": _norms(ffn="pre_feedforward_layernorm"),
    "after_attention": (norm("layers.{layer}.attn.post_norm", _LAYER + "post_attention_layernorm"),),
    "after_ffn": (norm("layers.{layer}.ffn.post_norm", _LAYER + "post_feedforward_layernorm"),),
}
_POST_ONLY = _without(  # OLMo 2 and 3: no norm before, one after each half
    _block(
        qk_norm=FLAT,
        after_attention=(norm("layers.{layer}.attn.post_norm", _LAYER + "post_attention_layernorm"),),
        after_ffn=(norm("layers.{layer}.ffn.post_norm", _LAYER + "post_feedforward_layernorm"),),
    ),
    "layers.{layer}.attn.norm",
    "layers.{layer}.ffn.norm",
)
_VISION = "vision_tower.vision_model."
_VISION_LAYER = _VISION + "encoder.layers.{layer}."


def _vision() -> Slots:
    """SigLIP, which gives Gemma 3 its eyes, and the projection into the language model."""
    at = "vision.layers.{layer}"
    d = "vision_width"

    def other(
        address: str, name: str, *axes: str, bias: str = "always", role: Role = Role.OTHER, raw: bool = False
    ) -> Slot:
        return Slot(address, name, role, axes, bias=bias, when="vision", raw=raw)

    return (
        other("vision.embed.patch", _VISION + "embeddings.patch_embedding", d, "channel", "pixel", "pixel"),
        other(
            "vision.embed.position", _VISION + "embeddings.position_embedding", "patch", d, bias="", role=Role.POSITION
        ),
        other(f"{at}.attn.norm", _VISION_LAYER + "layer_norm1", d, role=Role.NORM),
        other(f"{at}.attn.q", _VISION_LAYER + "self_attn.q_proj", d, d, role=Role.Q),
        other(f"{at}.attn.k", _VISION_LAYER + "self_attn.k_proj", d, d, role=Role.K),
        other(f"{at}.attn.v", _VISION_LAYER + "self_attn.v_proj", d, d, role=Role.V),
        other(f"{at}.attn.o", _VISION_LAYER + "self_attn.out_proj", d, d, role=Role.O),
        other(f"{at}.ffn.norm", _VISION_LAYER + "layer_norm2", d, role=Role.NORM),
        other(f"{at}.ffn.up", _VISION_LAYER + "mlp.fc1", "vision_neuron", d, role=Role.UP),
        other(f"{at}.ffn.down", _VISION_LAYER + "mlp.fc2", d, "vision_neuron", role=Role.DOWN),
        other("vision.norm", _VISION + "post_layernorm", d, role=Role.NORM),
        other("vision.project", "multi_modal_projector.mm_input_projection_weight", d, "residual", bias="", raw=True),
        other("vision.project.norm", "multi_modal_projector.mm_soft_emb_norm", d, bias="", role=Role.NORM),
    )


def _latent() -> tuple[Slots, Slots]:
    """DeepSeek's attention: queries, keys and values by way of vectors of low rank."""
    kv_a = ("kv_rank", "key_rope")
    kv_b = ("key_nope", "value")
    at = "layers.{layer}.attn"
    queries = (
        Slot(f"{at}.q", _ATTENTION + "q_proj", Role.Q, ("query", "residual"), when="q_straight"),
        Slot(f"{at}.q_a", _ATTENTION + "q_a_proj", Role.Q, ("q_rank", "residual"), bias="qkv_bias", when="q_latent"),
        norm(f"{at}.q_a.norm", _ATTENTION + "q_a_layernorm", axis="q_rank", when="q_latent"),
        Slot(f"{at}.q_b", _ATTENTION + "q_b_proj", Role.Q, ("query", "q_rank"), when="q_latent"),
    )
    kv = _ATTENTION + "kv_a_proj_with_mqa"
    keys = (
        Slot(f"{at}.kv_a", kv, Role.K, ("kv_rank", "residual"), bias="qkv_bias", fused=kv_a, part=0),
        Slot(f"{at}.k_rope", kv, Role.K, ("key_rope", "residual"), bias="qkv_bias", fused=kv_a, part=1),
        norm(f"{at}.kv_a.norm", _ATTENTION + "kv_a_layernorm", axis="kv_rank"),
        Slot(f"{at}.k_b", _ATTENTION + "kv_b_proj", Role.K, ("key_nope", "kv_rank"), fused=kv_b, part=0, every="head"),
        Slot(f"{at}.v_b", _ATTENTION + "kv_b_proj", Role.V, ("value", "kv_rank"), fused=kv_b, part=1, every="head"),
    )
    return queries, keys


def _deepseek(model_type: str, correction: Slots) -> Architecture:
    queries, keys = _latent()
    slots = _block(
        qkv=queries + keys,
        o=Slot("layers.{layer}.attn.o", _ATTENTION + "o_proj", Role.O, ("residual", "value"), bias="output_bias"),
        ffn=(
            *FFN,
            router(_MLP + "gate"),
            *correction,
            *experts(_MLP + "experts."),
            *shared_expert(_MLP + "shared_experts."),
        ),
    )
    family = _family(model_type, slots)
    return replace(family, ignored=(*BUFFERS, r"(^|\.)layers\.{mtp}\."))


_CORRECTION = Slot(  # steers the choice of experts, set during training by counting rather than by gradients
    "layers.{layer}.ffn.router.bias",
    _MLP + "gate.e_score_correction_bias",
    Role.BIAS,
    ("expert",),
    when="experts",
    raw=True,
    buffer=True,
)


def _gpt_oss() -> Slots:
    """Its experts are stacked and stored [in, out], gate and up by turns, and have biases."""
    both: dict[str, Any] = {"fused": ("expert_neuron", "expert_neuron"), "every": "expert_neuron"}
    kept: dict[str, Any] = {"when": "experts", "raw": True, "stacked": True}
    at = "layers.{layer}.ffn.experts.{expert}"
    name = _MLP + "experts."
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
    sinks = Slot("layers.{layer}.attn.sinks", _ATTENTION + "sinks", Role.OTHER, ("each_head",), raw=True)
    ffn = (router(_MLP + "router", bias="always"), *weights, *biases, *down)
    return _block(o=O, after_attention=(sinks,), ffn=ffn)


_GLM4: dict[str, Any] = {
    "after_attention": (norm("layers.{layer}.attn.post_norm", _LAYER + "post_self_attn_layernorm"),),
    "after_ffn": (norm("layers.{layer}.ffn.post_norm", _LAYER + "post_mlp_layernorm"),),
}
_GATE_UP = fused_gate_up(_MLP + "gate_up_proj", _MLP + "down_proj")
_LAYER_NORMS = _norms(bias="always")

FAMILIES = (
    _family("llama", runs=True),
    _family("mistral", runs=True),
    _family("mixtral", _block(ffn=(router(_MOE + "gate"), *experts(_MOE + "experts.", names=W123)))),
    _family("qwen2", runs=True),
    _family("qwen3", _block(qk_norm=PER_HEAD), qk_norm=True, runs=True),
    _family(
        "qwen2_moe",
        _block(
            ffn=(
                *FFN,
                router(_MLP + "gate"),
                *experts(_MLP + "experts."),
                *shared_expert(_MLP + "shared_expert."),
                Slot(
                    "layers.{layer}.ffn.shared.router",
                    _MLP + "shared_expert_gate",
                    Role.ROUTER,
                    ("one", "residual"),
                    when="shared_expert",
                ),
            )
        ),
    ),
    _family(
        "qwen3_moe",
        _block(qk_norm=PER_HEAD, ffn=(*FFN, router(_MLP + "gate"), *experts(_MLP + "experts."))),
        qk_norm=True,
    ),
    _family("gemma"),
    _family("gemma2", _block(**_SANDWICH)),
    _family("gemma3_text", _block(qk_norm=PER_HEAD, **_SANDWICH), qk_norm=True),
    _family("gemma3", (*_block(qk_norm=PER_HEAD, **_SANDWICH), *_vision()), qk_norm=True),
    _family("phi3", _block(qkv=fused_qkv(_ATTENTION + "qkv_proj"), ffn=_GATE_UP)),
    _family(
        "phimoe",
        _block(
            norms=_LAYER_NORMS,
            ffn=(router(_MOE + "gate"), *experts(_MOE + "experts.", names=W123)),
            lm_head=head(bias="head_bias"),
        ),
        norm="layer",
    ),
    _family(
        "phi",
        _without(
            _block(
                qk_norm=_qk_norm(
                    "head_dim", "head_dim", names=("q_layernorm", "k_layernorm"), when="qk_norm", bias="always"
                ),
                o=output(_ATTENTION + "dense", bias="output_bias"),
                ffn=up_down(_MLP + "fc1", _MLP + "fc2", bias="ffn_bias"),
                norms=(
                    norm("layers.{layer}.attn.norm", _LAYER + "input_layernorm", bias="always"),
                    norm("none", ""),
                    norm("norm", "{prefix}final_layernorm", bias="always"),
                ),
                lm_head=head(bias="always"),
            ),
            "none",
        ),
        norm="layer",
        gated=False,
    ),
    _family(
        "stablelm",
        _block(
            qk_norm=(
                norm(
                    "layers.{layer}.attn.q.norm.{head}",
                    _ATTENTION + "q_layernorm.norms.{head}",
                    axis="head_dim",
                    when="qk_norm",
                ),
                norm(
                    "layers.{layer}.attn.k.norm.{kv_head}",
                    _ATTENTION + "k_layernorm.norms.{kv_head}",
                    axis="head_dim",
                    when="qk_norm",
                ),
            ),
            norms=(
                _LAYER_NORMS[0],
                replace(_LAYER_NORMS[1], when="!parallel"),
                _LAYER_NORMS[2],
            ),
        ),
        norm="layer",
    ),
    _family(
        "starcoder2",
        _block(norms=_LAYER_NORMS, ffn=up_down(_MLP + "c_fc", _MLP + "c_proj", bias="ffn_bias")),
        norm="layer",
        gated=False,
    ),
    _family(
        "olmo",
        _without(_block(), "layers.{layer}.attn.norm", "layers.{layer}.ffn.norm", "norm"),  # norms without weights
        norm="layer",
    ),
    _family("olmo2", _POST_ONLY),
    _family("olmo3", _POST_ONLY),
    _family("olmoe", _block(qk_norm=FLAT, ffn=(router(_MLP + "gate"), *experts(_MLP + "experts.")))),
    _family(
        "cohere",
        _without(
            _block(
                qk_norm=(
                    Slot(
                        "layers.{layer}.attn.q.norm",
                        _ATTENTION + "q_norm",
                        Role.NORM,
                        ("each_head", "head_dim"),
                        when="qk_norm",
                    ),
                    Slot(
                        "layers.{layer}.attn.k.norm",
                        _ATTENTION + "k_norm",
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
    _family("cohere2", _without(_block(), "layers.{layer}.ffn.norm"), norm="layer"),
    _family("granite"),
    _family(
        "granitemoe",
        _block(
            ffn=(
                router(_MOE + "router.layer"),
                *stacked_experts(_MOE + "input_linear", _MOE + "output_linear"),
            )
        ),
    ),
    _family("internlm"),
    _family("smollm3"),
    _family("glm", _block(ffn=_GATE_UP)),
    _family("glm4", _block(ffn=_GATE_UP, **_GLM4)),
    _deepseek("deepseek_v2", ()),
    _deepseek("deepseek_v3", (_CORRECTION,)),
    _family("gpt_oss", _gpt_oss()),
)
