"""GPT-2: its linear layers are Conv1D, stored [in, out], and q, k, v are fused in one tensor."""

from __future__ import annotations

from weightkit.architectures.parts import Architecture, Role, Slot

_BLOCK = "{prefix}h.{layer}."


def _qkv(part: int, name: str, role: Role, axis: str) -> Slot:
    return Slot(
        f"layers.{{layer}}.attn.{name}",
        _BLOCK + "attn.c_attn",
        role,
        (axis, "residual"),
        bias="qkv_bias",
        transposed=True,
        fused=("head", "kv_head", "kv_head"),
        part=part,
    )


def _norm(address: str, name: str) -> Slot:
    return Slot(address, name, Role.NORM, ("residual",), bias="always")


FAMILIES = (
    Architecture(
        model_type="gpt2",
        slots=(
            Slot("embed", "{prefix}wte", Role.EMBEDDING, ("token", "residual")),
            Slot("embed.position", "{prefix}wpe", Role.POSITION, ("position", "residual")),
            _norm("layers.{layer}.attn.norm", _BLOCK + "ln_1"),
            _qkv(0, "q", Role.Q, "head"),
            _qkv(1, "k", Role.K, "kv_head"),
            _qkv(2, "v", Role.V, "kv_head"),
            Slot(
                "layers.{layer}.attn.o",
                _BLOCK + "attn.c_proj",
                Role.O,
                ("residual", "head"),
                bias="output_bias",
                transposed=True,
            ),
            _norm("layers.{layer}.ffn.norm", _BLOCK + "ln_2"),
            Slot(
                "layers.{layer}.ffn.up",
                _BLOCK + "mlp.c_fc",
                Role.UP,
                ("neuron", "residual"),
                bias="ffn_bias",
                transposed=True,
            ),
            Slot(
                "layers.{layer}.ffn.down",
                _BLOCK + "mlp.c_proj",
                Role.DOWN,
                ("residual", "neuron"),
                bias="ffn_bias",
                transposed=True,
            ),
            _norm("norm", "{prefix}ln_f"),
            Slot("lm_head", "lm_head", Role.HEAD, ("token", "residual"), optional=True),
        ),
        prefixes=("transformer.", ""),
        norm="layer",
        positions="learned",
        gated=False,
        ignored=(r"(^|\.)h\.\d+\.attn\.(masked_)?bias$",),  # causal masks, saved as if they were weights
    ),
)
