"""A config.json, of any era of the hub, in one normal form.

Config files name one thing in several ways and leave out what their class has as a default. Here
each concept has one name; the engine, the registry and the counts read nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from weightkit.errors import ConfigError, nearest, one_line

RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]

# transformers' ACT2FN; the engine says which of them it computes.
ACTIVATIONS = frozenset(
    """
    gelu gelu_10 gelu_fast gelu_new gelu_python gelu_pytorch_tanh gelu_python_tanh gelu_accurate
    hardswish laplace leaky_relu linear mish quick_gelu relu relu2 relu6 sigmoid silu sqrtsoftplus
    swish tanh prelu xielu
    """.split()
)
DTYPE_NAMES = frozenset(
    """
    auto float64 float32 float16 bfloat16 half double float float8_e4m3fn float8_e5m2
    float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu int8 uint8
    """.split()
)
QUANTIZATIONS = frozenset(
    """
    aqlm auto-round auto_round autoround awq bitnet bitsandbytes bitsandbytes_4bit bitsandbytes_8bit
    compressed-tensors eetq exl2 exl3 fbgemm_fp8 finegrained_fp8 fouroversix fp8 fp_quant gptq
    gptq_marlin higgs hqq humming intel_auto_round marlin metal mlx modelopt mxfp4 quanto quark sinq
    spqr torchao vptq
    """.split()
)

MOST_LAYERS = 10_000
MOST_WIDE = 1 << 28  # of any one dimension


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: its base, and how long contexts rescale its frequencies."""

    type: RopeType = "default"
    theta: float = 10_000.0
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
    scale_attention: bool = True  # by head_dim^-0.5
    scale_by_layer: bool = False  # and by 1 / (layer + 1)
    cross_attention: bool = False
    dtype: str | None = None
    quantization: str | None = None

    def differences(self, other: Config) -> dict[str, tuple[Any, Any]]:
        """The fields in which two models would compute differently: {field: (mine, theirs)}."""
        names = (name for name in self.__dataclass_fields__ if name not in ("dtype", "quantization"))
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@dataclass(frozen=True)
class Defaults:
    """What transformers' config class reads, and what it assumes for a key that is left out."""

    activation_key: str = "hidden_act"
    activation: str = "silu"
    eps_key: str = "rms_norm_eps"
    eps: float = 1e-6
    positions: int = 2048
    kv_heads: int | None = None  # None: as many as heads
    head_dim: int | None = None  # None: width / heads
    tied: bool = False
    windows: Literal["never", "all layers", "by layer"] = "never"  # which layers can have one
    sliding_window: int | None = None
    ffn_ratio: int | None = None  # FFN neurons per width, where no key gives their number
    # Whether there are biases: always, never, or as the config key of this name says.
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    ffn_bias: bool | str = False


DEFAULTS: dict[str, Defaults] = {
    "llama": Defaults(qkv_bias="attention_bias", output_bias="attention_bias", ffn_bias="mlp_bias"),
    "mistral": Defaults(positions=131_072, kv_heads=8, windows="all layers", sliding_window=4096),
    "qwen2": Defaults(positions=32_768, kv_heads=32, windows="by layer", sliding_window=4096, qkv_bias=True),
    "qwen3": Defaults(
        positions=32_768,
        kv_heads=32,
        head_dim=128,
        windows="by layer",
        sliding_window=4096,
        qkv_bias="attention_bias",
        output_bias="attention_bias",
    ),
    "gpt2": Defaults(
        activation_key="activation_function",
        activation="gelu_new",
        eps_key="layer_norm_epsilon",
        eps=1e-5,
        positions=1024,
        tied=True,
        ffn_ratio=4,
        qkv_bias=True,
        output_bias=True,
        ffn_bias=True,
    ),
}


class _Reader:
    """Typed look-ups in a config.json; each error names the key and what it holds."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def fail(self, message: str) -> ConfigError:
        return ConfigError(f"{self.where}: {message}")

    def get(self, *keys: str) -> tuple[str, Any]:
        """The first of `keys` that is there and not null, with its value; else the first, and None."""
        return next(((k, self.values[k]) for k in keys if self.values.get(k) is not None), (keys[0], None))

    def size(self, *keys: str, default: int | None = None, most: int = MOST_WIDE) -> int:
        key, value = self.get(*keys)
        if value is None:
            if default is None:
                raise self.fail(f"no {key}")
            return default
        if type(value) is not int or not 1 <= value <= most:
            raise self.fail(f"{key} is {_short(value)}, expected a whole number from 1 to {most:,}")
        return value

    def number(self, *keys: str, default: float | None = None) -> float | None:
        key, value = self.get(*keys)
        if value is None:
            return default
        if type(value) not in (int, float) or not 0 <= value < 1e30:
            raise self.fail(f"{key} is {_short(value)}, expected a number that is not negative")
        return float(value)

    def positive(self, key: str, *, default: float) -> float:
        value = self.number(key, default=default)
        if not value:
            raise self.fail(f"{key} is 0, expected a positive number")
        return value

    def bias(self, rule: bool | str) -> bool:
        return self.flag(rule, default=False) if isinstance(rule, str) else rule

    def flag(self, *keys: str, default: bool) -> bool:
        key, value = self.get(*keys)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.fail(f"{key} is {_short(value)}, expected true or false")
        return value

    def word(self, *keys: str, known: frozenset[str], default: str | None = None) -> str | None:
        key, value = self.get(*keys)
        if value is None:
            return default
        if not isinstance(value, str) or value not in known:
            raise self.fail(f"{key} is {_short(value)}, which is not known{nearest(str(value), known)}")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        value = self.values.get(key) or []
        if not isinstance(value, list) or not all(type(n) in (int, float) for n in value):
            raise self.fail(f"{key} is not a list of numbers")
        return tuple(map(float, value))


def _short(value: Any) -> str:
    text = ascii(value) if type(value) is not int or abs(value) < 10**20 else "a very large number"
    return text if len(text) <= 40 else text[:37] + "…"


def model_type(values: Mapping[str, Any], where: str) -> str:
    """The family that a config.json names. Raises ConfigError when it names none, or not by a name."""
    kind = values.get("model_type")
    if kind is None:
        raise ConfigError(
            f"{where}: no model_type, so its tensors cannot be given roles; "
            "to work with them by name, open the weights file itself"
        )
    if not isinstance(kind, str) or not kind.replace("-", "_").replace(".", "_").isidentifier():
        raise ConfigError(f"{where}: model_type is {_short(kind)}, which is not a name")
    return kind


def normalise(values: Mapping[str, Any], where: str) -> Config:
    """The normal form of a config.json whose model_type is one of DEFAULTS.

    `where` names the file in errors. Raises ConfigError for values that no model can have.
    """
    kind, read = model_type(values, where), _Reader(values, where)
    if kind not in DEFAULTS:
        raise ConfigError(f"{where}: model_type {kind!r} is not known; known are {one_line(DEFAULTS)}")
    defaults = DEFAULTS[kind]
    width = read.size("hidden_size", "n_embd")
    layers = read.size("num_hidden_layers", "n_layer", most=MOST_LAYERS)
    heads = read.size("num_attention_heads", "n_head")
    explicit_null = "num_key_value_heads" in values
    kv_heads = read.size("num_key_value_heads", default=heads if explicit_null else defaults.kv_heads or heads)
    head_dim = read.size("head_dim", default=defaults.head_dim or width // heads)
    if head_dim * heads != width and values.get("head_dim") is None and defaults.head_dim is None:
        raise read.fail(f"hidden_size {width} is not a multiple of num_attention_heads {heads}")
    if heads % kv_heads:
        raise read.fail(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    positions = read.size("max_position_embeddings", "n_positions", default=defaults.positions)
    neurons = defaults.ffn_ratio * width if defaults.ffn_ratio else None
    return Config(
        model_type=kind,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=read.size("intermediate_size", "n_inner", default=neurons),
        vocab=read.size("vocab_size"),
        positions=positions,
        activation=read.word(defaults.activation_key, known=ACTIVATIONS) or defaults.activation,
        eps=read.number(defaults.eps_key, default=defaults.eps) or 0.0,
        tied=read.flag("tie_word_embeddings", default=defaults.tied),
        rope=_rope(read, positions),
        windows=_windows(read, layers, defaults),
        qkv_bias=read.bias(defaults.qkv_bias),
        output_bias=read.bias(defaults.output_bias),
        ffn_bias=read.bias(defaults.ffn_bias),
        scale_attention=read.flag("scale_attn_weights", default=True),
        scale_by_layer=read.flag("scale_attn_by_inverse_layer_idx", default=False),
        cross_attention=read.flag("add_cross_attention", default=False),
        dtype=read.word("dtype", "torch_dtype", known=DTYPE_NAMES),
        quantization=quantization(values, where),
    )


def quantization(values: Mapping[str, Any], where: str) -> str | None:
    """The method by which a checkpoint's weights are packed, or None. ConfigError if it is unknown."""
    read = _Reader(values, where)
    key, block = read.get("quantization_config", "quantization")
    if block is None:
        return None
    if not isinstance(block, dict):
        raise read.fail(f"{key} is {_short(block)}, expected an object")
    inner = _Reader(block, f"{where}: {key}")
    if "quant_method" not in block and "bits" in block:
        return "mlx"
    return inner.word("quant_method", known=QUANTIZATIONS, default="unnamed")


def _rope(read: _Reader, positions: int) -> Rope:
    """transformers' rope_parameters (v5) or rope_scaling + rope_theta (before, and first), in one form."""
    key, block = read.get("rope_scaling", "rope_parameters")
    if block is None:
        block = {}
    if not isinstance(block, dict):
        raise read.fail(f"{key} is {_short(block)}, expected an object")
    inner = _Reader(block, f"{read.where}: {key}")
    known: frozenset[str] = frozenset(("default", "linear", "dynamic", "llama3", "yarn", "longrope", "su"))
    kind: Any = inner.word("rope_type", "type", known=known, default="default")
    kind = "longrope" if kind == "su" else kind
    outer = _Reader({**read.values, **block}, inner.where)
    rope = Rope(
        type=kind,
        theta=outer.positive("rope_theta", default=10_000.0),
        factor=inner.number("factor"),
        original_positions=read.size(
            "original_max_position_embeddings",
            default=inner.size("original_max_position_embeddings", default=positions),
        ),
        low_freq_factor=inner.positive("low_freq_factor", default=1.0),
        high_freq_factor=inner.positive("high_freq_factor", default=4.0),
        beta_fast=inner.number("beta_fast") or 32.0,
        beta_slow=inner.number("beta_slow") or 1.0,
        attention_factor=inner.number("attention_factor"),
        mscale=inner.number("mscale"),
        mscale_all_dim=inner.number("mscale_all_dim"),
        truncate=inner.flag("truncate", default=True),
        short_factor=inner.numbers("short_factor"),
        long_factor=inner.numbers("long_factor"),
    )
    if kind in ("linear", "dynamic", "llama3") and not rope.factor:
        raise inner.fail(f"a rope of type {kind!r} needs a factor")
    if kind == "longrope" and not (rope.short_factor and rope.long_factor):
        raise inner.fail("a rope of type 'longrope' needs short_factor and long_factor")
    return rope


def _windows(read: _Reader, layers: int, defaults: Defaults) -> tuple[int | None, ...]:
    """The sliding window of every layer. An absent key is the class default; a null one is no window."""
    absent = "sliding_window" not in read.values
    no_window = not absent and read.values["sliding_window"] is None
    by_layer = defaults.windows == "by layer"
    if defaults.windows == "never" or no_window or (by_layer and not read.flag("use_sliding_window", default=False)):
        return (None,) * layers
    window = defaults.sliding_window if absent else read.size("sliding_window", most=1 << 40)
    if not by_layer:
        return (window,) * layers
    types = read.values.get("layer_types")
    if types is None:
        first = int(read.number("max_window_layers", default=28) or 0)
        return tuple(window if layer >= first else None for layer in range(layers))
    if not isinstance(types, list) or len(types) != layers or not set(types) <= {_SLIDING, _FULL}:
        raise read.fail(f"layer_types does not say {_SLIDING} or {_FULL} for each of {layers} layers")
    return tuple(window if kind == _SLIDING else None for kind in types)


_SLIDING, _FULL = "sliding_attention", "full_attention"
