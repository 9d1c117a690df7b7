"""The KV cache: keys and values of the tokens already seen, in arrays that grow by doubling."""

from __future__ import annotations

import numpy as np

from weightkit.engine.functions import F32


class Cache:
    """Keys and values of each layer, [batch, kv_heads, tokens, head_dim], and the ids behind them."""

    def __init__(self) -> None:
        self.ids = np.empty((1, 0), np.int64)  # [batch, tokens]
        self.frequencies = 0.0  # what the rotation of the cached keys depended on
        self._layers: dict[int, tuple[F32, F32]] = {}

    def __len__(self) -> int:
        return self.ids.shape[1]

    def extend(self, layer: int, k: F32, v: F32) -> tuple[F32, F32]:
        """Append new keys and values to a layer's, whose length is `len(self)`; returns all of them."""
        n = len(self)
        end = n + k.shape[2]
        kept = self._layers.get(layer)
        if kept is None or kept[0].shape[2] < end:
            shape = (*k.shape[:2], max(2 * n, end), k.shape[3])
            grown = np.empty(shape, np.float32), np.empty(shape, np.float32)
            if kept is not None:
                for old, new in zip(kept, grown, strict=True):
                    new[:, :, :n] = old[:, :, :n]
            kept = self._layers[layer] = grown
        for old, new in zip(kept, (k, v), strict=True):
            old[:, :, n:end] = new
        return kept[0][:, :, :end], kept[1][:, :, :end]
