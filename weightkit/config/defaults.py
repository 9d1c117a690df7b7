"""Defaults: how the config of one family is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from weightkit.config.normal import Norms, PositionKind
from weightkit.config.reader import Reader, Rule

Fields = dict[str, Any]  # of Config
Extra = Callable[[Reader, Fields], Fields]


@dataclass(frozen=True)
class Defaults:
    """How the config of one family is read."""

    model_type: str
    activation_key: str = "hidden_act"
    activation: str = "silu"
    eps_key: str = "rms_norm_eps"  # "": the class has a fixed one
    eps: float = 1e-6
    positions: int = 2048
    heads: int | None = None  # None: a config without their number is not one
    kv_heads: int | None = None  # None: as many as heads
    grouped: bool = True  # whether there is a key for the number of key heads
    vocab: int | None = None
    head_dim: int | None = None  # None: width / heads
    tied: bool = False
    theta: float = 10_000.0
    rope: Mapping[str, Any] = field(default_factory=dict)  # where no key says how positions are rotated
    partial_rotary: float | None = None  # None: all of a head is rotated, whatever the config says
    interleaved: Rule = False  # neighbouring dimensions of a head turn together
    window_rope: Literal["same", "own theta", "unscaled"] = "same"  # of the layers with a window
    position_kind: PositionKind = "rope"
    norms: Norms = "before"
    parallel: Rule = False
    # Which layers have a sliding window. "asked for": those that use_sliding_window and layer_types say.
    windows: Literal["never", "all layers", "asked for", "all but every nth"] = "never"
    sliding_window: int | None = None
    full_every: int = 1  # the n of "all but every nth"
    full_every_key: str = ""  # the key that says otherwise
    # Of those asked for without layer_types: from max_window_layers on, the even ones below it, or all.
    asked: Literal["from", "even below", "all"] = "from"
    ffn_key: str = "intermediate_size"  # the number of FFN neurons; other families' keys count where it is absent
    ffn_ratio: int | None = None  # FFN neurons per width, where no key gives their number
    qkv_bias: Rule = False
    output_bias: Rule = False
    ffn_bias: Rule = False
    parts: Mapping[str, Rule] = field(default_factory=dict)  # other optional parts, as slots ask for them
    extra: tuple[Extra, ...] = ()  # fields that only this family has, each function seeing what those before found
