"""Which activations a model has, by address, and what their axes are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from weightkit.address import Address, parse, path_matches, resolve_ends, split_path
from weightkit.engine.forward import Engine
from weightkit.errors import AddressError, nearest

Axes = tuple[str, ...]

STREAM: Axes = ("position", "residual")
NEURONS: Axes = ("position", "neuron")
CHOICES: Axes = ("position", "choice")  # numbers of experts: they can be seen, not changed


def activations(engine: Engine) -> dict[str, Axes]:
    """Every activation that one text has on its way through a model, in the order of the run."""
    return dict(_all(engine))


def matching(engine: Engine, pattern: str) -> tuple[list[str], Address]:
    """The activations that a pattern such as `layers.*.attn.pattern` names, and the pattern, parsed.

    Raises AddressError where it names none, with the nearest that there is.
    """
    known, address = activations(engine), parse(pattern)
    path = resolve_ends(address.path, engine.config.stack)
    found = [name for name in known if path_matches(path, split_path(name), lambda _: False)] if path else []
    if not found or address.name is not None:
        close = nearest(str(replace(address, index=())), sorted(known))
        raise AddressError(f"{pattern}: no activation of this model has this address{close}")
    return found, address


def _all(engine: Engine) -> Iterator[tuple[str, Axes]]:
    config = engine.config
    if engine.has_encoder:
        yield "encoder.embed", STREAM
        for layer in range(config.layers):
            yield from _layer(engine, f"encoder.layers.{layer}", layer)
        yield "encoder.norm", STREAM
    stack = engine.stack
    yield f"{stack}embed", STREAM
    for layer in range(engine.layers):
        yield from _layer(engine, f"{stack}layers.{layer}", layer)
    yield f"{stack}norm", STREAM
    yield "logits", ("position", "token")


def _layer(engine: Engine, at: str, layer: int) -> Iterator[tuple[str, Axes]]:
    config = engine.config
    yield f"{at}.in", STREAM
    if config.state_space:
        yield f"{at}.ssm.out", STREAM
    else:
        yield from _attention(f"{at}.attn", "head" if config.latent else "kv_head")
        if at.startswith("decoder."):
            yield from ((f"{at}.cross.{what}", axes) for what, axes in _mixing("source"))
        if not config.parallel:
            yield f"{at}.mid", STREAM
        if config.is_dense(layer):
            yield from ((f"{at}.ffn.{what}", NEURONS) for what in ("pre", "post"))
        else:
            yield f"{at}.ffn.router", ("position", "expert")
            yield f"{at}.ffn.experts", CHOICES
            if config.experts is not None and config.experts.shared_ffn:
                yield from ((f"{at}.ffn.shared.{what}", NEURONS) for what in ("pre", "post"))
        yield f"{at}.ffn.out", STREAM
    yield f"{at}.out", STREAM


def _attention(at: str, key_head: str) -> Iterator[tuple[str, Axes]]:
    yield f"{at}.q", ("head", "position", "dim")
    yield f"{at}.k", (key_head, "position", "dim")
    yield f"{at}.v", (key_head, "position", "dim")
    yield from ((f"{at}.{what}", axes) for what, axes in _mixing("key") if what != "q")


def _mixing(keys: str) -> Sequence[tuple[str, Axes]]:
    heads: Axes = ("head", "position", "dim")
    return (("q", heads), ("pattern", ("head", "position", keys)), ("heads", heads), ("out", STREAM))
