"""A config.json, of any era of the hub, in one normal form.

Config files name one thing in several ways and leave out what their class has as a default. Here
each concept has one name; the engine, the registry and the counts read nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightkit.config.defaults import Defaults
from weightkit.config.families import ALIASES, DEFAULTS
from weightkit.config.normal import Config, Experts, Latent, Rope, Routing, StateSpace, Vision
from weightkit.config.positions import rope, window_rope, windows
from weightkit.config.reader import ACTIVATIONS, DTYPE_NAMES, MOST_LAYERS, QUANTIZATIONS, Reader, short
from weightkit.errors import ConfigError, one_line

__all__ = [
    "Config",
    "Experts",
    "Latent",
    "Rope",
    "Routing",
    "StateSpace",
    "Vision",
    "family",
    "model_type",
    "normalise",
    "quantization",
]

# One concept, by the names it has had, the usual one first.
_WIDTH = ("hidden_size", "n_embd", "n_embed", "d_model", "dim")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_FFN = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "hidden_dim")
_VOCAB = ("vocab_size", "padded_vocab_size")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def model_type(values: Mapping[str, Any], where: str) -> str:
    """The family that a config.json names. Raises ConfigError when it names none, or not by a name."""
    kind = values.get("model_type")
    if kind is None:
        raise ConfigError(
            f"{where}: no model_type, so its tensors cannot be given roles; "
            "to work with them by name, open the weights file itself"
        )
    if not isinstance(kind, str) or not kind.replace("-", "_").replace(".", "_").isidentifier():
        raise ConfigError(f"{where}: model_type is {short(kind)}, which is not a name")
    return kind


def family(kind: str) -> str | None:
    """The name that the family of a model_type goes by here; None where it is not known."""
    kind = ALIASES.get(kind, kind)
    return kind if kind in DEFAULTS else None


def normalise(values: Mapping[str, Any], where: str) -> Config:
    """The normal form of a config.json whose family is known.

    `where` names the file in errors. Raises ConfigError for values that no model can have.
    """
    kind = family(model_type(values, where))
    if kind is None:
        raise ConfigError(f"{where}: model_type {values['model_type']!r} is not known; known are {one_line(DEFAULTS)}")
    inner = values.get("text_config")  # of a model that also sees: what its words go through is in there
    outer = Reader({**values, **inner} if isinstance(inner, dict) else values, where)
    found = _fields(outer, kind, DEFAULTS[kind])
    for extra in DEFAULTS[kind].extra:
        found |= extra(outer, found)
    return Config(**found)


def _fields(read: Reader, kind: str, defaults: Defaults) -> dict[str, Any]:
    """What every family has."""
    values = read.values
    width = read.size(*_WIDTH, default=768 if kind in ("bert", "roberta", "distilbert") else None)
    layers = read.size(*_LAYERS, most=MOST_LAYERS)
    heads = 1 if kind == "mamba" else read.size(*_HEADS, default=defaults.heads)
    explicit_null = "num_key_value_heads" in values
    usual = heads if explicit_null else defaults.kv_heads or heads
    kv_heads = read.size("num_key_value_heads", default=usual) if defaults.grouped else heads
    head_dim = read.size("head_dim", "d_kv", default=defaults.head_dim or max(1, width // heads))
    given = read.get("head_dim", "d_kv")[1] is not None or defaults.head_dim is not None or kind in _OWN_HEADS
    if head_dim * heads != width and not given:
        raise read.fail(f"hidden_size {width} is not a multiple of num_attention_heads {heads}")
    if heads % kv_heads:
        raise read.fail(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    positions = read.size(*_POSITIONS, default=defaults.positions)
    full = rope(read, positions, head_dim, defaults)
    neurons = defaults.ffn_ratio * width if defaults.ffn_ratio else None
    neurons = read.size("expansion_ratio", default=4) * width if kind == "mpt" else neurons
    return {
        "model_type": kind,
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "ffn": read.size(defaults.ffn_key, *_FFN, default=2 * width if kind == "mamba" else neurons),
        "vocab": read.size(*_VOCAB, default=defaults.vocab),
        "positions": positions,
        "activation": read.word(defaults.activation_key, "hidden_act", known=ACTIVATIONS) or defaults.activation,
        "eps": read.number(defaults.eps_key, default=defaults.eps) or 0.0,
        "tied": read.flag("tie_word_embeddings", default=defaults.tied),
        "position_kind": defaults.position_kind,
        "rope": full,
        "window_rope": window_rope(read, full, positions, head_dim, defaults),
        "windows": windows(read, layers, defaults),
        "qkv_bias": read.rule(defaults.qkv_bias),
        "output_bias": read.rule(defaults.output_bias),
        "ffn_bias": read.rule(defaults.ffn_bias),
        "parts": frozenset(part for part, rule in defaults.parts.items() if read.rule(rule)),
        "norms": defaults.norms,
        "parallel": read.rule(defaults.parallel),
        "attention_scale": head_dim**-0.5,
        "cross_attention": read.flag("add_cross_attention", default=False),
        "dtype": read.word("dtype", "torch_dtype", known=DTYPE_NAMES),
        "quantization": quantization(values, read.where),
    }


_OWN_HEADS = ("qwen", "chatglm", "deepseek_v2", "deepseek_v3", "mamba")  # head sizes by other keys


def quantization(values: Mapping[str, Any], where: str) -> str | None:
    """The method by which a checkpoint's weights are packed, or None. ConfigError if it is unknown."""
    read = Reader(values, where)
    key, block = read.get("quantization_config", "quantization", "compression_config")
    if block is None:
        return None
    if not isinstance(block, dict):
        raise read.fail(f"{key} is {short(block)}, expected an object")
    inner = Reader(block, f"{where}: {key}")
    if "quant_method" not in block and "bits" in block:
        return "mlx"
    return inner.word("quant_method", known=QUANTIZATIONS, default="unnamed")
