"""Lens: what the residual stream would say at each layer, and what each block adds to the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from weightkit.effect.changes import Change
from weightkit.effect.trace import Text, held, trace
from weightkit.engine.forward import Engine
from weightkit.engine.functions import F32
from weightkit.errors import EngineError, one_line

BIAS = "bias"  # what is in the logits whatever the text: the biases of the final norm and the vocab projection


@dataclass(frozen=True, repr=False)
class Lens(Mapping[str, F32]):
    """The logits, [tokens, vocab], that the model would end with if it ended after each layer.

    By the address of the residual stream that is read: `embed`, `layers.0.out`, ... Logits are made when they are
    asked for. Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
    """

    engine: Engine
    streams: dict[str, F32]  # [tokens, width]

    def __repr__(self) -> str:
        return f"<Lens at {one_line(self.streams, most=4)}>"

    def __getitem__(self, address: str) -> F32:
        return self.engine.read_out(held(self.streams, address))

    def __iter__(self) -> Iterator[str]:
        return iter(self.streams)

    def __len__(self) -> int:
        return len(self.streams)


def lens(engine: Engine, text: Text, changes: Sequence[Change] = ()) -> Lens:
    """Read the residual stream of one text after every layer through the final norm and the vocab projection."""
    stack = engine.stack
    found = trace(engine, text, [f"{stack}embed", f"{stack}layers.*.out"], changes)
    return Lens(engine, {address: x for address, x in found.items() if address != "logits"})


def contributions(engine: Engine, text: Text, tokens: Sequence[int] | None = None) -> dict[str, F32]:
    """What the embedding and each half of each block add to the logits, [positions, tokens], by address.

    The last stream is the sum of what was added to it, and with its scale kept as it is the final norm is linear; so
    these add up to the logits, before a cap where the model has one. `tokens` are those whose logits are wanted: all
    of a large vocabulary fill the memory. Source: Elhage et al., "A Mathematical Framework for Transformer Circuits"
    (2021), direct logit attribution.

    Raises EngineError for models whose stream is normed after every sum.
    """
    config, stack = engine.config, engine.stack
    if config.norms == "sum" or config.residual_normed:
        raise EngineError(
            "the blocks of this model do not add up: its residual stream is normed on the way; the lens can be used"
        )
    wanted = None if tokens is None else engine.ids(tokens)[0]
    found = trace(engine, text, [f"{stack}embed", f"{stack}layers.*.*.out", f"{stack}layers.-1.out"])
    last = found[f"{stack}layers.{engine.layers - 1}.out"]
    normed = _frozen_norm(engine, last, f"{stack}norm")
    bias = engine.weights.get(f"{stack}norm.bias")
    nothing = np.zeros_like(last[:1])
    constant = engine.unembed(nothing, wanted)
    parts = {
        address: engine.unembed(normed(x), wanted) - constant
        for address, x in found.items()
        if address != "logits" and x is not last
    }
    return parts | {BIAS: engine.unembed(nothing if bias is None else nothing + bias, wanted).repeat(len(last), axis=0)}


def _frozen_norm(engine: Engine, x: F32, address: str) -> Callable[[F32], F32]:
    """The norm at an address with its scale kept as it is for `x`, and without its bias: a linear function."""
    config, kind = engine.config, engine.block.norm_kind
    if not config.bare_norms and address not in engine.weights:
        return lambda part: part
    w = np.float32(1) if config.bare_norms else engine.weights[address] + np.float32(kind == "rms + 1")

    def centred(part: F32) -> F32:
        return part - part.mean(axis=-1, keepdims=True) if kind == "layer" or config.bare_norms else part

    scale = w / np.sqrt(np.mean(np.square(centred(x)), axis=-1, keepdims=True) + np.float32(config.eps))
    return lambda part: centred(part) * scale
