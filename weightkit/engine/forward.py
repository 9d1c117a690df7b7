"""The forward pass: one decoder block, driven by the parts that the architecture names."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from weightkit.architectures.parts import Architecture
from weightkit.config import Config
from weightkit.dtypes import Array
from weightkit.engine.attention import attention
from weightkit.engine.cache import Cache
from weightkit.engine.functions import ACTIVATIONS, F32, layer_norm, linear, rms_norm
from weightkit.engine.positions import depends_on_length, rotate, rotation
from weightkit.errors import EngineError
from weightkit.registry import Registry

Ids = NDArray[np.int64]
KEPT_BYTES = 1 << 30  # of widened weights
ONE_THREAD_WIDTH = 512


class Weights:
    """The float32 arrays of a registry, widened from the file's type; kept while they fit in a budget."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._kept: dict[str, F32] = {}
        self._bytes = 0

    def __getitem__(self, address: str) -> F32:
        kept = self._kept.get(address)
        if kept is None:
            kept = self._registry[address].array()
            if self._bytes + kept.nbytes <= KEPT_BYTES:
                self._kept[address] = kept
                self._bytes += kept.nbytes
        return kept

    def get(self, address: str) -> F32 | None:
        """The array, or None where the model has no such weight."""
        return self[address] if address in self._registry else None


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


class Engine:
    """Runs one model. Weights are read when they are first needed."""

    def __init__(self, registry: Registry) -> None:
        if registry.architecture is None or registry.config is None:
            raise EngineError(f"this model cannot be run: {registry.notes[0]}")
        self.architecture: Architecture = registry.architecture
        self.config: Config = registry.config
        if not registry.architecture.runs:
            raise EngineError(
                f"this model cannot be run: the engine does not have {registry.architecture.model_type} yet"
            )
        if "lm_head" not in registry:
            raise EngineError(
                "this model cannot be run: lm_head is not in the files, and the config does not tie it to the embedding"
            )
        if self.config.activation not in ACTIVATIONS:
            raise EngineError(f"this model cannot be run: the engine has no activation {self.config.activation!r}")
        if self.config.cross_attention:
            raise EngineError("this model cannot be run: it attends to an encoder that is not here")
        self.activation = ACTIVATIONS[self.config.activation]
        self.weights = Weights(registry)

    def ids(self, ids: Sequence[int] | Sequence[Sequence[int]] | Array) -> Ids:
        """Token ids as [batch, tokens]. Raises EngineError for what is not in the vocabulary."""
        try:
            array = np.asarray(ids)
        except (ValueError, OverflowError):
            array = np.empty(0)
        beyond = [i for i in array.flat if type(i) is int] if array.dtype == object else []
        if beyond:  # larger than 64 bits
            raise EngineError(f"id {max(beyond)} is not in the vocabulary, which goes to {self.config.vocab - 1}")
        if array.ndim not in (1, 2) or not array.size or array.dtype.kind not in "iu":
            raise EngineError("ids are whole numbers, at least one, all sequences of one length")
        array = np.atleast_2d(array)
        wrong = array[(array < 0) | (array >= self.config.vocab)]
        if wrong.size:
            raise EngineError(f"id {wrong[0]} is not in the vocabulary, which goes from 0 to {self.config.vocab - 1}")
        return array.astype(np.int64)

    def logits(self, ids: Any, cache: Cache | None = None, residuals: list[F32] | None = None) -> F32:
        """Logits of the next token at every position. [b, t] -> [b, t, vocab]

        With a cache, `ids` continue what it holds. `residuals` is filled with the residual stream
        before the first block and after every block, [b, t, width] each.
        """
        # What NaN or huge weights do to the numbers is for the caller to see, not for numpy to warn of.
        with self._threads(), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            x, head = self.hidden(self.ids(ids), cache, residuals), self.weights["lm_head"]
            return linear(x, head, self.weights.get("lm_head.bias"))

    def _threads(self) -> AbstractContextManager[object]:
        """One BLAS thread for a small model: threads that wait for each other cost more than they bring."""
        if self.config.width > ONE_THREAD_WIDTH:
            return nullcontext()
        return _blas().limit(limits=1, user_api="blas")

    def hidden(self, ids: Ids, cache: Cache | None = None, residuals: list[F32] | None = None) -> F32:
        """The normed output of the last block, [b, t] -> [b, t, width]."""
        cache = Cache() if cache is None else cache
        if len(cache) and len(ids) != len(cache.ids):
            raise EngineError(f"the cache holds {len(cache.ids)} sequences, not {len(ids)}")
        new = ids.shape[1]
        length = len(cache) + new
        frequencies = depends_on_length(self.config.rope, self.config.positions, length)
        if len(cache) and frequencies != cache.frequencies:  # the rotation of all cached keys has changed
            ids = np.concatenate((cache.ids, ids), axis=1)
            cache.ids = cache.ids[:, :0]
        cache.frequencies = frequencies
        x = self._embed(ids, len(cache))
        turn = rotation(self.config, length, len(cache)) if self.architecture.positions == "rope" else None
        for layer in range(self.config.layers):
            if residuals is not None:
                residuals.append(x[:, -new:])
            x = self._block(x, layer, turn, cache)
        if residuals is not None:
            residuals.append(x[:, -new:])
        cache.ids = np.concatenate((cache.ids, ids), axis=1) if len(cache) else ids
        return self._norm(x[:, -new:], "norm")

    def _embed(self, ids: Ids, start: int) -> F32:  # [b, t] -> [b, t, width]
        x = self.weights["embed"][ids]
        if self.architecture.positions == "learned":
            end = start + ids.shape[1]
            if end > self.config.positions:
                raise EngineError(
                    f"{end} tokens are more than the {self.config.positions} positions that this model has"
                )
            x = x + self.weights["embed.position"][start:end]
        return x

    def _block(self, x: F32, layer: int, turn: tuple[F32, F32] | None, cache: Cache) -> F32:
        at = f"layers.{layer}"
        x = x + self._attend(self._norm(x, f"{at}.attn.norm"), layer, turn, cache)
        return x + self._feed_forward(self._norm(x, f"{at}.ffn.norm"), f"{at}.ffn")

    def _attend(self, x: F32, layer: int, turn: tuple[F32, F32] | None, cache: Cache) -> F32:
        at, config = f"layers.{layer}.attn", self.config
        q = self._heads(x, f"{at}.q", config.heads)  # [b, heads, t, d]
        k = self._heads(x, f"{at}.k", config.kv_heads)
        v = self._heads(x, f"{at}.v", config.kv_heads)
        if self.architecture.qk_norm:
            q, k = self._norm(q, f"{at}.q.norm"), self._norm(k, f"{at}.k.norm")
        if turn is not None:
            q, k = rotate(q, *turn), rotate(k, *turn)
        k, v = cache.extend(layer, k, v)
        scale = config.head_dim**-0.5 if config.scale_attention else 1.0
        scale = scale / (layer + 1) if config.scale_by_layer else scale
        out = attention(q, k, v, scale, config.windows[layer])  # [b, heads, t, d]
        merged = out.swapaxes(1, 2).reshape(*x.shape[:2], -1)  # [b, t, heads · d]
        return self._linear(merged, f"{at}.o")

    def _heads(self, x: F32, address: str, heads: int) -> F32:  # [b, t, width] -> [b, heads, t, d]
        return self._linear(x, address).reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

    def _feed_forward(self, x: F32, at: str) -> F32:  # [b, t, width] -> [b, t, width]
        up = self._linear(x, f"{at}.up")
        inner = self.activation(self._linear(x, f"{at}.gate")) * up if self.architecture.gated else self.activation(up)
        return self._linear(inner, f"{at}.down")

    def _linear(self, x: F32, address: str) -> F32:
        return linear(x, self.weights[address], self.weights.get(f"{address}.bias"))

    def _norm(self, x: F32, address: str) -> F32:
        w, eps = self.weights[address], self.config.eps
        if self.architecture.norm == "rms":
            return rms_norm(x, w, eps)
        return layer_norm(x, w, self.weights.get(f"{address}.bias"), eps)
