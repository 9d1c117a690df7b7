"""Rotary positions and attention windows, from the config files of every era."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from weightkit.config.defaults import Defaults
from weightkit.config.normal import Rope
from weightkit.config.reader import MOST_LAYERS, Reader, short

SLIDING, FULL = "sliding_attention", "full_attention"
_KINDS: frozenset[str] = frozenset(("default", "linear", "dynamic", "llama3", "yarn", "longrope", "su"))
_THETA = ("rope_theta", "rotary_emb_base")
_PARTIAL = ("partial_rotary_factor", "rotary_pct")


def rope(read: Reader, positions: int, head_dim: int, defaults: Defaults) -> Rope:
    """transformers' rope_parameters (v5) or rope_scaling + rope_theta (before, and first), in one form."""
    key, block = _blocks(read, defaults)
    return _rope(read, Reader(block.get(FULL, block), f"{read.where}: {key}"), positions, head_dim, defaults)


def window_rope(read: Reader, full: Rope, positions: int, head_dim: int, defaults: Defaults) -> Rope | None:
    """The rope of layers with a sliding window, where it is not that of the others."""
    if defaults.window_rope == "same":
        return None
    key, block = _blocks(read, defaults)
    if SLIDING in block:
        found = _rope(read, Reader(block[SLIDING], f"{read.where}: {key}"), positions, head_dim, defaults)
        given = "rope_theta" in block[SLIDING]
    else:
        unscaled = Rope(theta=full.theta, dims=full.dims, interleaved=full.interleaved, original_positions=positions)
        found, given = unscaled, False
    if defaults.window_rope == "own theta" and not given:
        return replace(found, theta=read.positive("rope_local_base_freq", default=10_000.0))
    return found


def _blocks(read: Reader, defaults: Defaults) -> tuple[str, dict[str, Any]]:
    """The object that says how positions are rotated, or one for each type of layer, and its key."""
    key, block = read.get("rope_scaling", "rope_parameters")
    if block is None:
        return key, dict(defaults.rope)
    if not isinstance(block, dict):
        raise read.fail(f"{key} is {short(block)}, expected an object")
    if block and all(isinstance(value, dict) for value in block.values()):
        return key, block if FULL in block or SLIDING in block else {FULL: next(iter(block.values()))}
    return key, {name: value for name, value in block.items() if name not in (FULL, SLIDING)}


def _rope(read: Reader, inner: Reader, positions: int, head_dim: int, defaults: Defaults) -> Rope:
    kind: Any = inner.word("rope_type", "type", known=_KINDS, default="default")
    kind = "longrope" if kind == "su" or (kind == "yarn" and "short_factor" in inner.values) else kind
    outer = Reader({**read.values, **inner.values}, inner.where)
    share = 1.0 if defaults.partial_rotary is None else outer.positive(*_PARTIAL, default=defaults.partial_rotary)
    result = Rope(
        type=kind,
        theta=outer.positive(*_THETA, default=defaults.theta),
        dims=int(head_dim * min(share, 1.0)),
        interleaved=read.rule(defaults.interleaved),
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
        short_mscale=inner.number("short_mscale"),
        long_mscale=inner.number("long_mscale"),
    )
    if kind in ("linear", "dynamic", "llama3") and not result.factor:
        raise inner.fail(f"a rope of type {kind!r} needs a factor")
    if kind == "longrope" and not (result.short_factor and result.long_factor):
        raise inner.fail("a rope of type 'longrope' needs short_factor and long_factor")
    return result


def windows(read: Reader, layers: int, defaults: Defaults) -> tuple[int | None, ...]:
    """The sliding window of every layer. An absent key is the class default; a null one is no window."""
    absent = "sliding_window" not in read.values
    if defaults.windows == "never" or (not absent and read.values["sliding_window"] is None):
        return (None,) * layers
    if defaults.windows == "asked for" and not read.flag("use_sliding_window", default=False):
        return (None,) * layers
    window = defaults.sliding_window if absent else read.size("sliding_window", most=1 << 40)
    if defaults.windows == "all layers":
        return (window,) * layers
    types = read.values.get("layer_types")
    if types is None:
        return tuple(window if slides else None for slides in _pattern(read, layers, defaults))
    if not isinstance(types, list) or len(types) != layers or not set(types) <= {SLIDING, FULL}:
        raise read.fail(f"layer_types does not say {SLIDING} or {FULL} for each of {layers} layers")
    return tuple(window if kind == SLIDING else None for kind in types)


def _pattern(read: Reader, layers: int, defaults: Defaults) -> list[bool]:
    """Which layers slide where no layer_types says so."""
    if defaults.windows == "all but every nth":
        key = defaults.full_every_key
        every = read.size(key, f"_{key}", default=defaults.full_every) if key else defaults.full_every
        return [(layer + 1) % every != 0 for layer in range(layers)]
    first = int(read.number("max_window_layers", default=28) or 0)
    if defaults.asked == "even below":
        return [layer < first and layer % 2 == 0 for layer in range(layers)]
    return [layer >= first or defaults.asked == "all" for layer in range(layers)]


def attention_types(read: Reader, layers: int) -> tuple[int | None, ...]:
    """GPT-Neo's attention_types, [[["global", "local"], 12]], as a window for every layer."""
    value = read.values.get("attention_types") or [[["global", "local"], -(-layers // 2)]]
    kinds: list[Any] = []
    try:
        for pattern, times in value:
            kinds += list(pattern) * min(int(times), MOST_LAYERS)
            if len(kinds) > MOST_LAYERS:
                break
    except (TypeError, ValueError):
        raise read.fail("attention_types is not a list of [kinds, times]") from None
    if len(kinds) < layers or not set(map(str, kinds)) <= {"global", "local"}:
        raise read.fail(f"attention_types does not say global or local for each of {layers} layers")
    window = read.size("window_size", default=256)
    return tuple(window if kind == "local" else None for kind in kinds[:layers])
