"""The vocabulary in which a family is described. All of it is data; nothing here computes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


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


Bias = Literal["qkv_bias", "output_bias", "ffn_bias"]  # the field of Config that says whether it is there


@dataclass(frozen=True)
class Slot:
    """One matrix or vector of a family: its address, its name in the file, its axes as [out, in].

    In `address` and `name`, `{layer}` stands for the layer's number and `{prefix}` for the prefix
    that the file uses; the file's name goes on with `.weight`, or `.bias` for the bias.
    """

    address: str
    name: str
    role: Role
    axes: tuple[str, ...]
    bias: Bias | Literal["always", "never"] = "never"
    transposed: bool = False  # stored as [in, out]
    fused: tuple[str, ...] = ()  # the out axes of the matrices that share the tensor, in its order
    part: int = 0  # which of them this is
    optional: bool = False  # the vocab projection: in the file or, when tied, not


@dataclass(frozen=True)
class Architecture:
    """One family: what its weights are called and how its block computes.

    Numbers (sizes, eps, scales, windows) are in Config; what is here is the same for every model of
    the family.
    """

    model_type: str
    slots: tuple[Slot, ...]
    prefixes: tuple[str, ...]  # that names below the head may have, the first being the usual one
    norm: Literal["rms", "layer"]
    positions: Literal["rope", "learned"]
    gated: bool  # FFN is down(act(gate(x)) * up(x)), else down(act(up(x)))
    qk_norm: bool = False  # q and k of each head are normed before they are rotated
    ignored: tuple[str, ...] = ()  # patterns of names of buffers that are not parameters
