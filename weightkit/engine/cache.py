"""The cache: what attention and mixers keep of the tokens already seen, in arrays that grow by doubling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from weightkit.engine.functions import F32

Pair = tuple[F32, F32]
WORTH = 8  # tokens after which it pays to compile what more of them need


class Cache:
    """Keys and values of each layer, [batch, kv_heads, tokens, head_dim], and the ids behind them."""

    def __init__(self) -> None:
        self.ids = np.empty((1, 0), np.int64)  # [batch, tokens]
        self.frequencies: tuple[float, ...] = ()  # what the rotation of the cached keys depended on
        self._layers: dict[str, Pair] = {}
        self._kept: dict[str, Pair] = {}
        self._states: dict[int, Any] = {}
        self._singles = 0  # tokens that came alone
        self._program: Any = None

    def __len__(self) -> int:
        return self.ids.shape[1]

    def extend(self, at: str, k: F32, v: F32) -> Pair:
        """Append new keys and values to those at an address, which are `len(self)`; returns all of them."""
        keys, values = self.room(at, k, v)
        n, end = len(self), len(self) + k.shape[2]
        keys[:, :, n:end], values[:, :, n:end] = k, v
        return keys[:, :, :end], values[:, :, :end]

    def room(self, at: str, k: F32, v: F32) -> Pair:
        """The keys and values at an address, with room for such new ones behind the `len(self)` that are there."""
        n = len(self)
        end = n + k.shape[2]
        held = self._layers.get(at)
        if held is None or held[0].shape[2] < end:
            grown = tuple(np.empty((*x.shape[:2], max(2 * n, end), x.shape[3]), np.float32) for x in (k, v))
            if held is not None:
                for old, new in zip(held, grown, strict=True):
                    new[:, :, :n] = old[:, :, :n]
            held = self._layers[at] = (grown[0], grown[1])
        return held

    def kept(self, at: str) -> Pair | None:
        """Keys and values that do not grow, if they are there."""
        return self._kept.get(at)

    def keep(self, at: str, k: F32, v: F32) -> Pair:
        """Keys and values that do not grow: those of an encoder's text."""
        self._kept[at] = (k, v)
        return k, v

    def state(self, layer: int, make: Callable[[], Any]) -> Any:
        """The state of a mixer, made when it is first asked for."""
        if layer not in self._states:
            self._states[layer] = make()
        return self._states[layer]

    def program(self, make: Callable[[], Any]) -> Any:
        """How the model does one more token of these sequences; None for the first few, for which it is not made."""
        self._singles += 1
        if self._singles == WORTH:
            self._program = make()
        return self._program

    def restart(self) -> None:
        """Forget the keys: they will be computed again, with other rotations."""
        self.ids = self.ids[:, :0]
