"""The vocabulary in which a family is described. All of it is data; nothing here computes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal


class Role(StrEnum):
    """What a weight is for. The value is how it is printed."""

    EMBEDDING = "embedding"
    POSITION = "position"
    Q = "Q"
    K = "K"
    V = "V"
    O = "O"
    GATE = "W_gate"
    UP = "W_up"
    DOWN = "W_down"
    ROUTER = "router"
    NORM = "norm"
    HEAD = "vocab projection"
    BIAS = "bias"
    OTHER = "other"


@dataclass(frozen=True)
class Slot:
    """One matrix or vector of a family: its address, its name in the file, its axes as [out, in].

    In `address` and `name`, `{layer}` stands for the layer's number, `{expert}`, `{head}` and `{kv_head}`
    for those of a thing that has a tensor of its own, `{next}` for the layer's number plus one, `{last}`
    for the number of layers plus one, and `{prefix}` for the prefix that the file uses. The file's name
    goes on with `.weight`, or `.bias` for the bias, unless it is `raw`.
    """

    address: str
    name: str
    role: Role
    axes: tuple[str, ...]
    bias: str = ""  # "always", or the part of the config that says whether there is one
    when: str = ""  # the part of the config that says whether the slot is there; "" always
    raw: bool = False  # the name in the file is the whole name
    transposed: bool = False  # stored as [in, out]
    either: bool = False  # stored as [out, in] or as [in, out]: the shape tells
    fused: tuple[str, ...] = ()  # the out axes of the matrices that share the tensor, in its order
    part: int = 0  # which of them this is
    every: str = ""  # the axis with each of whose items the parts come again; "" one after another
    stacked: bool = False  # the tensor holds those of all experts, one after another
    form: str = ""  # one of several ways of storing the same matrices; the first form in the table is the usual one
    foreign: bool = False  # a form that no Hugging Face file has
    optional: Literal["", "head", "extra"] = ""  # head: in the file or, when tied, not; extra: only in some files
    buffer: bool = False  # stored, and used, but not learned
    copies: str = ""  # the address of the weight that some files hold here once more


@dataclass(frozen=True)
class Architecture:
    """One family: what its weights are called and how its block computes.

    Numbers (sizes, eps, scales, windows) are in Config; what is here is the same for every model of
    the family.
    """

    model_type: str
    slots: tuple[Slot, ...]
    prefixes: tuple[str, ...]  # that names below the head may have, the first being the usual one
    norm: Literal["rms", "rms + 1", "layer"]  # "rms + 1": what is stored is how far the scale is from one
    causal: bool = True  # a token sees only those before it
    ignored: tuple[str, ...] = ()  # patterns of names of buffers that are not parameters
    renamed: tuple[tuple[str, str], ...] = ()  # (what a name may contain, what the slots say in its place)
    instead: tuple[tuple[str, str], ...] = ()  # (a name that can be missing, the one that then stands for it)

    @property
    def has_head(self) -> bool:
        """Whether models of the family have a vocab projection."""
        return any(slot.role is Role.HEAD for slot in self.slots)

    def copies(self, tied: bool = False) -> dict[str, str]:
        """{the address of what is said to be another weight once more: the address of that}."""
        said = {slot.address: slot.copies for slot in self.slots if slot.copies}
        return said | ({"lm_head": "embed"} if tied else {})


# Buffers that files of many families hold: masks, and the frequencies of rotary positions.
BUFFERS = (
    r"(^|\.)rotary_emb\.inv_freq$",
    r"(^|\.)rotary_pos_emb\.inv_freq$",
    r"(^|\.)(attn|(cross)?attention)\.(attention\.)?(masked_)?bias$",
    r"(^|\.)embeddings\.position_ids$",
    r"(^|\.)decoder\.version$",
    r"^rope_(freqs|factors_long|factors_short)\.weight$",
)


def norm(address: str, name: str, *, bias: str = "", when: str = "", axis: str = "residual") -> Slot:
    """A norm's scale, with the shift that some have."""
    return Slot(address, name, Role.NORM, (axis,), bias=bias, when=when)


def embedding(name: str, *, address: str = "embed", axis: str = "residual") -> Slot:
    """The token embedding."""
    return Slot(address, name, Role.EMBEDDING, ("token", axis))


def position(name: str, *, when: str = "") -> Slot:
    """The learned positions."""
    return Slot("embed.position", name, Role.POSITION, ("position", "residual"), when=when)


def head(name: str = "lm_head", *, bias: str = "", axis: str = "residual") -> Slot:
    """The vocab projection."""
    return Slot("lm_head", name, Role.HEAD, ("token", axis), bias=bias, optional="head")


def copy(address: str, name: str, of: str, role: Role, *axes: str) -> Slot:
    """What some files hold a second time, for a module of its own; with numbers of its own it is a weight."""
    return Slot(address, name, role, axes, raw=True, optional="extra", copies=of)


CROSS = "layers.{layer}.cross"  # attention to what an encoder made of another text, or of a picture
QKV_AXES = ("head", "kv_head", "kv_head")
_QKV = tuple(zip("qkv", (Role.Q, Role.K, Role.V), QKV_AXES, strict=True))


def separate_qkv(
    name: str,
    *,
    bias: str = "",
    names: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj"),
    at: str = "layers.{layer}.attn",
    when: str = "",
) -> tuple[Slot, ...]:
    """Q, K and V in tensors of their own; `name` is what their names begin with."""
    return tuple(
        Slot(f"{at}.{short}", name + own, role, (axis, "residual"), bias=bias, when=when)
        for (short, role, axis), own in zip(_QKV, names, strict=True)
    )


def fused_qkv(name: str, *, bias: str = "", transposed: bool = False, every: str = "") -> tuple[Slot, ...]:
    """Q, K and V in one tensor: one after another, or by turns for every key head."""
    return tuple(
        Slot(
            f"layers.{{layer}}.attn.{short}",
            name,
            role,
            (axis, "residual"),
            bias=bias,
            transposed=transposed,
            fused=QKV_AXES,
            part=part,
            every=every,
        )
        for part, (short, role, axis) in enumerate(_QKV)
    )


def output(
    name: str, *, bias: str = "", transposed: bool = False, at: str = "layers.{layer}.attn", when: str = ""
) -> Slot:
    """The output projection of attention."""
    return Slot(f"{at}.o", name, Role.O, ("residual", "head"), bias=bias, transposed=transposed, when=when)


def up_down(up: str, down: str, *, bias: str = "", transposed: bool = False) -> tuple[Slot, ...]:
    """An FFN without a gate."""
    return (
        Slot("layers.{layer}.ffn.up", up, Role.UP, ("neuron", "residual"), bias=bias, transposed=transposed),
        Slot("layers.{layer}.ffn.down", down, Role.DOWN, ("residual", "neuron"), bias=bias, transposed=transposed),
    )


def gated(
    gate: str,
    up: str,
    down: str,
    *,
    bias: str = "",
    when: str = "",
    at: str = "layers.{layer}.ffn",
    axis: str = "neuron",
    form: str = "",
) -> tuple[Slot, ...]:
    """A gated FFN, or an expert, in three tensors."""
    return (
        Slot(f"{at}.gate", gate, Role.GATE, (axis, "residual"), bias=bias, when=when, form=form),
        Slot(f"{at}.up", up, Role.UP, (axis, "residual"), bias=bias, when=when, form=form),
        Slot(f"{at}.down", down, Role.DOWN, ("residual", axis), bias=bias, when=when, form=form),
    )


def fused_gate_up(gate_up: str, down: str, *, bias: str = "") -> tuple[Slot, ...]:
    """A gated FFN whose gate and up are one tensor, gate first."""
    both = ("neuron", "neuron")
    return (
        Slot("layers.{layer}.ffn.gate", gate_up, Role.GATE, ("neuron", "residual"), bias=bias, fused=both, part=0),
        Slot("layers.{layer}.ffn.up", gate_up, Role.UP, ("neuron", "residual"), bias=bias, fused=both, part=1),
        Slot("layers.{layer}.ffn.down", down, Role.DOWN, ("residual", "neuron"), bias=bias),
    )


EXPERT = "layers.{layer}.ffn.experts.{expert}"


def router(name: str, *, bias: str = "") -> Slot:
    """The matrix that scores the experts."""
    return Slot("layers.{layer}.ffn.router", name, Role.ROUTER, ("expert", "residual"), bias=bias, when="experts")


PARTS = ("gate_proj", "up_proj", "down_proj")


def experts(
    name: str,
    *,
    names: tuple[str, str, str] = ("{expert}.gate_proj", "{expert}.up_proj", "{expert}.down_proj"),
) -> tuple[Slot, ...]:
    """Experts in tensors of their own or, in newer files, all in one; `name` is what their names begin with."""
    own = tuple(name + part for part in names)
    in_gguf = tuple(part.replace("{expert}.", "") for part in own)
    in_mlx = tuple(name.removesuffix("experts.") + "switch_mlp." + part for part in PARTS)
    return (
        *gated(own[0], own[1], own[2], when="experts", at=EXPERT, axis="expert_neuron", form="each"),
        *stacked_experts(name + "gate_up_proj", name + "down_proj", raw=True, form="stacked"),
        *stacked_apart(in_gguf, form="apart"),
        *stacked_apart(in_mlx, form="switched"),
        *stacked_experts(name + "gate_up_proj", name + "down_proj", form="together", foreign=True),  # in newer GGUF
    )


def stacked_apart(names: tuple[str, ...], *, form: str, bias: str = "") -> tuple[Slot, ...]:
    """The experts of a layer in three tensors, as GGUF and MLX have them."""
    gate, up, down = names
    slots = gated(gate, up, down, when="experts", at=EXPERT, axis="expert_neuron", form=form, bias=bias)
    return tuple(replace(slot, stacked=True, foreign=True) for slot in slots)


def stacked_experts(
    gate_up: str, down: str, *, raw: bool = False, form: str = "", bias: str = "", foreign: bool = False
) -> tuple[Slot, ...]:
    """The experts of a layer in two tensors: [expert, gate and up, residual] and [expert, residual, neuron]."""
    both = ("expert_neuron", "expert_neuron")
    matrix = ("expert_neuron", "residual")
    kept: dict[str, Any] = {"when": "experts", "raw": raw, "stacked": True, "either": True, "form": form}
    kept |= {"bias": bias, "foreign": foreign}
    return (
        Slot(EXPERT + ".gate", gate_up, Role.GATE, matrix, fused=both, part=0, **kept),
        Slot(EXPERT + ".up", gate_up, Role.UP, matrix, fused=both, part=1, **kept),
        Slot(EXPERT + ".down", down, Role.DOWN, ("residual", "expert_neuron"), **kept),
    )


def shared_expert(name: str, *, bias: str = "") -> tuple[Slot, ...]:
    """The expert that every token uses."""
    gate, up, down = (name + part for part in PARTS)
    return gated(gate, up, down, bias=bias, when="shared_expert", at="layers.{layer}.ffn.shared", axis="shared_neuron")
