"""Config: what a model computes, in one set of names for all families."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: its base, and how long contexts rescale its frequencies."""

    type: RopeType = "default"
    theta: float = 10_000.0
    partial: float = 1.0  # the share of a head's dimensions that is rotated
    factor: float | None = None
    original_positions: int = 0  # of pretraining, before the context was extended
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in the place of one FFN."""

    count: int
    per_token: int
    ffn: int  # neurons of one expert
    shared_ffn: int = 0  # of the expert that every token uses besides
    dense: tuple[bool, ...] = ()  # per layer: it has one FFN and no experts


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: queries, keys and values by way of vectors of low rank."""

    q_rank: int  # 0: queries come straight from the residual stream
    kv_rank: int
    nope: int  # dimensions of a head without positions
    rope: int  # and with; of keys, all heads share them
    value: int


@dataclass(frozen=True)
class StateSpace:
    """A Mamba mixer in the place of attention and FFN."""

    inner: int
    state: int
    kernel: int
    rank: int  # of the step size


@dataclass(frozen=True)
class Vision:
    """A vision transformer whose patches become tokens."""

    width: int
    layers: int
    ffn: int
    patches: int
    patch: int  # pixels on a side
    channels: int


@dataclass(frozen=True)
class Config:
    """What a model computes, apart from its weights, in one set of names."""

    model_type: str
    width: int  # of the residual stream
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int  # neurons of one FFN
    vocab: int
    positions: int  # the longest context that the model was made for
    activation: str
    eps: float  # of the norms
    tied: bool  # the vocab projection is the embedding, unless the file has one of its own
    rope: Rope = field(default_factory=Rope)
    windows: tuple[int | None, ...] = ()  # per layer: the keys that a query sees, or None for all
    qkv_bias: bool = False
    output_bias: bool = False
    ffn_bias: bool = False
    parts: frozenset[str] = frozenset()  # what only some models of the family have, as its slots ask for it
    scale_attention: bool = True  # by head_dim^-0.5
    scale_by_layer: bool = False  # and by 1 / (layer + 1)
    cross_attention: bool = False
    experts: Experts | None = None
    latent: Latent | None = None
    state_space: StateSpace | None = None
    vision: Vision | None = None
    decoder_layers: int = 0  # of a model that has an encoder too
    embed_width: int = 0  # of the token embedding, where it is not the residual stream's
    position_offset: int = 0  # rows of the position table before that of the first position
    token_types: int = 0
    buckets: int = 0  # of relative positions
    mtp_layers: int = 0  # layers beyond the last that predict further tokens in training
    dtype: str | None = None
    quantization: str | None = None

    def differences(self, other: Config) -> dict[str, tuple[Any, Any]]:
        """The fields in which two models would compute differently: {field: (mine, theirs)}."""
        names = (name for name in self.__dataclass_fields__ if name not in ("dtype", "quantization"))
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def has(self, part: str) -> bool:
        """Whether this model has an optional part: a bias field, or one of `parts`; `!part` is its absence."""
        if part.startswith("!"):
            return not self.has(part[1:])
        return part in self.parts or getattr(self, part, False) is True

    def is_dense(self, layer: int) -> bool:
        """Whether a layer has one FFN rather than experts."""
        return self.experts is None or bool(self.experts.dense and self.experts.dense[layer])
