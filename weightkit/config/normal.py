"""Config: what a model computes, in one set of names for all families."""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal

RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
# "alibi": nearer keys count more, by head. "scaled alibi": the same before the scores are scaled, and in bf16.
PositionKind = Literal["rope", "learned", "alibi", "scaled alibi", "relative", "none"]
# Where the norms of half a block (attention, FFN) are. "before": x + f(n(x)). "after": x + n(f(x)).
# "both": x + n(f(n(x))). "sum": n(x + f(x)).
Norms = Literal["before", "after", "both", "sum"]


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: its base, and how long contexts rescale its frequencies."""

    type: RopeType = "default"
    theta: float = 10_000.0
    dims: int = 0  # how many of a head's dimensions are rotated, the first ones
    interleaved: bool = False  # dimensions 2i and 2i + 1 turn together, else i and i + dims / 2
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
    short_mscale: float | None = None  # on cosine and sine, for short sequences
    long_mscale: float | None = None


@dataclass(frozen=True)
class Routing:
    """How the router's scores choose experts, and how much each counts.

    "softmax": of all scores, the largest are chosen. "chosen softmax": of the chosen scores only.
    "sigmoid": of each score by itself. "sparsemixer": one after another, each with a softmax of the scores
    near the largest that is left, arXiv:2409.12136.
    """

    score: Literal["softmax", "chosen softmax", "sigmoid", "sparsemixer"] = "softmax"
    normalised: bool = False  # the weights of the chosen are made to add up to one
    scale: float = 1.0  # and multiplied by this
    groups: int = 1  # experts come in groups, of which the best are chosen first
    groups_kept: int = 1
    best_of_group: int = 1  # a group is as good as so many of its best experts together
    jitter: float = 0.01  # sparsemixer: scores further than twice this below the largest are left out


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in the place of one FFN."""

    count: int
    per_token: int
    ffn: int  # neurons of one expert
    shared_ffn: int = 0  # of the expert that every token uses besides
    dense: tuple[bool, ...] = ()  # per layer: it has one FFN and no experts
    routing: Routing = field(default_factory=Routing)


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
    position_kind: PositionKind = "rope"
    rope: Rope = field(default_factory=Rope)
    window_rope: Rope | None = None  # of the layers with a window, where they have another
    unrotated: frozenset[int] = frozenset()  # layers whose queries and keys are not rotated
    windows: tuple[int | None, ...] = ()  # per layer: the keys that a query sees, or None for all
    qkv_bias: bool = False
    output_bias: bool = False
    ffn_bias: bool = False
    parts: frozenset[str] = frozenset()  # what only some models of the family have, as its slots ask for it
    norms: Norms = "before"
    bare_norms: bool = False  # norms have no weights
    parallel: bool = False  # attention and FFN read the same x
    residual_normed: bool = False  # what is added to is the normed x
    attention_scale: float = 1.0  # on the scores
    scale_by_layer: bool = False  # and 1 / (layer + 1)
    score_cap: float | None = None  # scores are cap · tanh(score / cap)
    qkv_clip: float | None = None  # queries, keys and values stay within ± this
    gate_clamp: float | None = None  # the gate is min(g, clamp), the other factor within ± it, plus one
    gate_alpha: float = 1.702  # and the activation g · sigmoid(alpha · g)
    embed_scale: float = 1.0
    residual_scale: float = 1.0  # on what each half of a block adds
    logit_scale: float = 1.0
    logit_cap: float | None = None
    head_activation: str | None = None  # of a masked language model, where it is not that of the FFN
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
    farthest: int = 0  # relative position that has a bucket of its own
    pad_id: int | None = None  # a token that positions are not counted for
    decoder_start: int = 0  # the token that a decoder beside an encoder begins with
    mtp_layers: int = 0  # layers beyond the last that predict further tokens in training
    dtype: str | None = None
    quantization: str | None = None

    def differences(self, other: Config) -> dict[str, tuple[Any, Any]]:
        """The fields in which two models would compute differently: {field, or field.part: (mine, theirs)}."""
        found = _differences(self, other, "")
        return {name: pair for name, pair in found.items() if name not in ("dtype", "quantization")}

    def has(self, part: str) -> bool:
        """Whether this model has an optional part: a bias field, or one of `parts`; `!part` is its absence."""
        if part.startswith("!"):
            return not self.has(part[1:])
        return part in self.parts or getattr(self, part, False) is True

    def stack(self, name: str) -> int:
        """How many layers are in a stack: "" or "encoder", "decoder", "vision"."""
        others = {"decoder": self.decoder_layers, "vision": self.vision.layers if self.vision else 0}
        return others.get(name, self.layers)

    def window(self, layer: int) -> int | None:
        """The keys that a query of a layer sees, or None for all."""
        return self.windows[layer] if layer < len(self.windows) else None

    def is_dense(self, layer: int) -> bool:
        """Whether a layer has one FFN rather than experts."""
        return self.experts is None or bool(self.experts.dense and self.experts.dense[layer])


def _differences(a: Any, b: Any, at: str) -> dict[str, tuple[Any, Any]]:
    """{the place of a value: (of a, of b)}, for all that differ."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in a.__dataclass_fields__:
        pair = getattr(a, name), getattr(b, name)
        if pair[0] == pair[1]:
            continue
        same = is_dataclass(pair[0]) and type(pair[0]) is type(pair[1])
        found |= _differences(*pair, f"{at}{name}.") if same else {at + name: pair}
    return found
