"""Outputs that are not finite: where in the model the first NaN or Inf comes up."""

from __future__ import annotations

from typing import Any

import numpy as np

from weightkit.dtypes import Array
from weightkit.engine.forward import Engine
from weightkit.engine.functions import F32
from weightkit.errors import EngineError


def require_finite(logits: F32, engine: Engine, ids: Any, decoder_ids: Any = None) -> None:
    """Raise EngineError where logits hold NaN or Inf, which say nothing of the next token; it says where from."""
    if np.isfinite(logits).all():
        return
    watch = _Watch()
    if engine.has_encoder:
        start = [[engine.config.decoder_start]]
        engine.run(start if decoder_ids is None else decoder_ids, watch, source=engine.encode(ids, watch))
    else:
        engine.run(ids, watch)
    what = "large numbers"
    for address in _weights_of(engine, watch.first):
        numbers = engine.weights[address]
        if not np.isfinite(numbers).all():
            what = f"{'NaN' if np.isnan(numbers).any() else 'Inf'} in {address}"
            break
    raise EngineError(
        f"the model's output is not finite: the first {watch.kind} appears at {watch.first}, from {what}; "
        "weightkit check shows all there is"
    )


class _Watch:
    """A tap that remembers the first activation with NaN or Inf."""

    def __init__(self) -> None:
        self.first, self.kind = "logits", "NaN"
        self._is_open = True

    def __call__(self, address: str, x: Array) -> Array:
        if self._is_open and not np.isfinite(x).all():
            self.first, self.kind, self._is_open = address, "NaN" if np.isnan(x).any() else "Inf", False
        return x

    def wants(self, address: str) -> bool:  # noqa: ARG002
        return self._is_open


def _weights_of(engine: Engine, activation: str) -> list[str]:
    """The weights that an activation comes from: those of its part of the model."""
    part, _, what = activation.rpartition(".")
    if not part:
        part = {"logits": "lm_head"}.get(what, what)
    return [address for address in engine.weights.registry if address == part or address.startswith(part + ".")]
