"""Gemma: the names of Llama, norms on both sides of each half since the second, and eyes since the third."""

from __future__ import annotations

from typing import Any

from weightkit.architectures.llama import LAYER, PER_HEAD, Slots, architecture, block, norms
from weightkit.architectures.parts import Role, Slot, norm

_SANDWICH: dict[str, Any] = {  # Gemma 2 and 3: a norm before and after each half, post_attention_layernorm being after
    "own_norms": norms(ffn="pre_feedforward_layernorm"),
    "after_attention": (norm("layers.{layer}.attn.post_norm", LAYER + "post_attention_layernorm"),),
    "after_ffn": (norm("layers.{layer}.ffn.post_norm", LAYER + "post_feedforward_layernorm"),),
}

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


_OTHER_NAMES = (  # what transformers writes since version 5, and what it calls things in memory
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    *((f"vision_tower.{part}.", f"{_VISION}{part}.") for part in ("embeddings", "encoder", "post_layernorm")),
)

_TEXT = block(qk_norm=PER_HEAD, **_SANDWICH)

FAMILIES = (
    architecture("gemma", norm="rms + 1"),
    architecture("gemma2", block(**_SANDWICH), norm="rms + 1"),
    architecture("gemma3_text", _TEXT, norm="rms + 1"),
    architecture("gemma3", (_TEXT[0], *_vision(), *_TEXT[1:]), norm="rms + 1", renamed=_OTHER_NAMES),
)
