"""Weights of a running model: they stay in the file's type on the memory map, and are widened block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from weightkit.engine.functions import F32, linear
from weightkit.errors import EngineError
from weightkit.registry import Registry
from weightkit.weight import Weight

KEPT_BYTES = 256 << 20  # of widened weights; those on the memory map cost nothing
BLOCK_BYTES = 4 << 20  # of float32, widened at a time


class Weights:
    """The weights of a registry by address, as float32 where they are needed."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._kept: dict[str, F32] = {}
        self._bytes = 0

    def __contains__(self, address: str) -> bool:
        return address in self.registry

    def __getitem__(self, address: str) -> F32:
        """All of a weight, kept if it is small."""
        kept = self._kept.get(address)
        return self._widen(self._weight(address)) if kept is None else kept

    def get(self, address: str) -> F32 | None:
        """The array, or None where the model has no such weight."""
        return self[address] if address in self.registry else None

    def rows(self, address: str, ids: NDArray[np.int64]) -> F32:  # [...] -> [..., width]
        """Rows of a table; the others are not read."""
        weight = self._weight(address)
        if address in self._kept or self._fits(weight):
            return self[address][ids]
        wanted, places = np.unique(ids, return_inverse=True)
        across = slice(0, weight.shape[1], 1)
        found = np.concatenate([weight.read((slice(int(i), int(i) + 1, 1), across)) for i in wanted])
        return np.asarray(weight.dtype.decode(found)[places.reshape(ids.shape)])

    def linear(self, x: F32, address: str, bias_address: str = "") -> F32:  # [..., in] -> [..., out]
        """x Wᵀ + b, b being there or not; it is the matrix's own unless its address says otherwise."""
        weight, bias = self._weight(address), self.get(bias_address or f"{address}.bias")
        if address in self._kept or self._fits(weight):
            return linear(x, self[address], bias)
        y = np.empty((math.prod(x.shape[:-1]), weight.shape[0]), np.float32)
        rows = x.reshape(-1, x.shape[-1])
        for span in _spans(weight):
            block = weight.dtype.decode(weight.read((span, slice(0, weight.shape[1], 1))))
            np.matmul(rows, block.T, out=y[:, span])
        y = y.reshape(*x.shape[:-1], -1)
        return y if bias is None else y + bias

    def _weight(self, address: str) -> Weight:
        weight = self.registry.get(address)
        if weight is None:
            raise EngineError(f"this model cannot be run: it has no {address}")
        return weight

    def _fits(self, weight: Weight) -> bool:
        return weight.dtype.name == "F32" or self._bytes + 4 * weight.size <= KEPT_BYTES

    def _widen(self, weight: Weight) -> F32:
        array = weight.array()
        if self._fits(weight):
            self._kept[weight.address] = array
            self._bytes += array.nbytes if array.flags.owndata or not _on_map(array) else 0
        return array


def _on_map(array: F32) -> bool:
    base = array.base
    while base is not None and not isinstance(base, np.memmap):
        base = getattr(base, "base", None)
    return base is not None


def _spans(weight: Weight) -> Iterator[slice]:
    """The rows of a matrix, some at a time."""
    step = max(1, BLOCK_BYTES // (4 * max(1, weight.shape[1])))
    return (slice(at, min(at + step, weight.shape[0]), 1) for at in range(0, weight.shape[0], step))
