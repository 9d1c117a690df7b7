"""The cache: what attention and mixers keep of the tokens already seen, in arrays that grow by a quarter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightkit.engine.functions import F32

Pair = tuple[F32, F32]
WORTH = 8  # tokens after which it pays to compile what more of them need

LEAST = 64  # tokens more that there is room for when the arrays grow


class Cache:
    """Keys and values of each layer, [batch, kv_heads, tokens, head_dim], and the ids behind them."""

    def __init__(self) -> None:
        self.ids = np.empty((1, 0), np.int64)  # [batch, tokens]
        self.frequencies: tuple[float, ...] = ()  # what the rotation of the cached keys depended on
        self._layers: dict[str, Pair] = {}
        self._fixed: dict[str, Pair] = {}
        self._states: dict[int, Any] = {}
        self._singles = 0  # tokens that came alone
        self._program: Any = None

    def __len__(self) -> int:
        return self.ids.shape[1]

    def extend(self, at: str, k: F32, v: F32) -> list[Pair]:
        """Append new keys and values to those at an address, which are `len(self)`; returns all of them, one pair."""
        keys, values = self.room(at, k, v)
        n, end = len(self), len(self) + k.shape[2]
        keys[:, :, n:end], values[:, :, n:end] = k, v
        return [(keys[:, :, :end], values[:, :, :end])]

    def room(self, at: str, k: F32, v: F32) -> Pair:
        """The keys and values at an address, with room for such new ones behind the `len(self)` that are there."""
        n = len(self)
        end = n + k.shape[2]
        held = self._layers.get(at)
        if held is None or held[0].shape[2] < end:
            room = end if held is None else end + max(LEAST, end // 4)
            grown = tuple(np.empty((*x.shape[:2], room, x.shape[3]), np.float32) for x in (k, v))
            if held is not None:
                for old, new in zip(held, grown, strict=True):
                    new[:, :, :n] = old[:, :, :n]
            held = self._layers[at] = (grown[0], grown[1])
        return held

    def fixed(self, at: str, make: Callable[[], Pair]) -> list[Pair]:
        """Keys and values that do not grow, those of an encoder's text; made when they are first asked for."""
        if at not in self._fixed:
            self._fixed[at] = make()
        return [self._fixed[at]]

    def states(self, layer: int, make: Callable[[], Any]) -> list[Any]:
        """The one state of a mixer, made when it is first asked for."""
        if layer not in self._states:
            self._states[layer] = make()
        return [self._states[layer]]

    def add(self, ids: NDArray[np.int64]) -> None:  # [batch, tokens]
        """The ids behind what the layers have added."""
        self.ids = np.concatenate((self.ids, ids), axis=1) if len(self) else ids

    def program(self, make: Callable[[], Any]) -> Any:
        """How the model does one more token of these sequences; None for the first few, for which it is not made."""
        self._singles += 1
        if self._singles == WORTH:
            self._program = make()
        return self._program

    def restart(self) -> None:
        """Forget the keys: they will be computed again, with other rotations."""
        self.ids = self.ids[:, :0]


class Together:
    """The caches of texts that go on together by a token each: what a `Cache` gives, of every one of them.

    They are of different lengths, so each keeps its own keys and values: rows of one text, a pair for each.
    """

    def __init__(self, caches: Sequence[Cache]) -> None:
        self._caches = caches

    def extend(self, at: str, k: F32, v: F32) -> list[Pair]:
        """Append the keys and values of each text, rows of k and v, to those that it has."""
        return [pair for i, own in enumerate(self._caches) for pair in own.extend(at, k[i : i + 1], v[i : i + 1])]

    def fixed(self, at: str, make: Callable[[], Pair]) -> list[Pair]:
        """Keys and values of the text that was encoded for each."""
        return [pair for own in self._caches for pair in own.fixed(at, make)]

    def states(self, layer: int, make: Callable[[], Any]) -> list[Any]:
        """The states of a mixer."""
        return [state for own in self._caches for state in own.states(layer, make)]
