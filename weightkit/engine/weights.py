"""Weights of a running model: they stay in the file's type on the memory map, and are widened block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from weightkit.engine.functions import F32
from weightkit.errors import EngineError
from weightkit.formats.gguf_order import Unpermuted, turn_rows
from weightkit.kernels import FEW, Matrix, available, multiply, tiled
from weightkit.layout import PLAIN
from weightkit.registry import Registry
from weightkit.tensor import rows_on_map
from weightkit.threads import crew
from weightkit.weight import Weight

KEPT_BYTES = 256 << 20  # of weights that are not on the memory map, which costs nothing
BLOCK_BYTES = 1 << 20  # of float32, widened at a time


@dataclass(frozen=True, slots=True)
class Rows:
    """A matrix for the compiled loops, and how many heads of GGUF its rows are in the order of, or 0."""

    matrix: Matrix
    heads: int = 0

    def in_order(self, y: F32) -> F32:  # [r, out] -> [r, out]
        """A product with the matrix, in the order of the weight's rows."""
        return turn_rows(y.T, self.heads).T if self.heads else y


class Weights:
    """The weights of a registry by address, as float32 where they are needed."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._kept: dict[str, F32] = {}
        self._addresses = frozenset(registry)
        self._rows: dict[str, Rows | None] = {}
        self._bytes = 0

    def __contains__(self, address: str) -> bool:
        return address in self._addresses

    def __getitem__(self, address: str) -> F32:
        """All of a weight, kept if it is small."""
        kept = self._kept.get(address)
        return self._widen(self._weight(address)) if kept is None else kept

    def get(self, address: str) -> F32 | None:
        """The array, or None where the model has no such weight."""
        return self[address] if address in self._addresses else None

    def rows(self, address: str, ids: NDArray[np.int64]) -> F32:  # [...] -> [..., width]
        """Rows of a table; the others are not read."""
        weight = self._weight(address)
        if address in self._kept:
            return self[address][ids]
        wanted, places = np.unique(ids, return_inverse=True)
        rows = self.compiled(address)
        if rows is not None and not rows.heads:
            return np.concatenate([rows.matrix.widened(int(i), int(i) + 1) for i in wanted])[places.reshape(ids.shape)]
        across = slice(0, weight.shape[1], 1)
        found = np.concatenate([weight.read((slice(int(i), int(i) + 1, 1), across)) for i in wanted])
        return np.asarray(weight.dtype.decode(found)[places.reshape(ids.shape)])

    def linear(self, x: F32, address: str, bias_address: str = "") -> F32:  # [..., in] -> [..., out]
        """x Wᵀ + b, b being there or not; it is the matrix's own unless its address says otherwise."""
        y = self._products(x.reshape(-1, x.shape[-1]), [address])[0].reshape(*x.shape[:-1], -1)
        bias = self.get(bias_address or f"{address}.bias")
        return y if bias is None else y + bias

    def linears(self, x: F32, *addresses: str) -> list[F32]:
        """`linear` with each of a few matrices, their work being shared out as one."""
        biases = [self.get(f"{address}.bias") for address in addresses]
        found = self._products(x.reshape(-1, x.shape[-1]), addresses)
        shaped = [y.reshape(*x.shape[:-1], -1) for y in found]
        return [y if bias is None else y + bias for y, bias in zip(shaped, biases, strict=True)]

    def _products(self, x: F32, addresses: Sequence[str]) -> list[F32]:  # [r, in] -> [r, out] each
        """x Wᵀ, with the stored weights themselves where there are loops for it, else with blocks of them widened.

        Blocks are the same whatever the number of threads, and each is one thread's, so results are too.
        """
        rows = [self.compiled(address) for address in addresses]
        stored = [found for found in rows if found is not None]
        if len(stored) == len(rows) and (len(x) <= FEW or tiled()):
            return [found.in_order(y) for found, y in zip(stored, multiply(x, [r.matrix for r in stored]), strict=True)]
        made = [self._blocks(x, address) for address in addresses]
        work = sum(x.size * y.shape[1] for y, _ in made)
        crew.map(lambda task: task(), [task for _, tasks in made for task in tasks], work)
        return [y if found is None else found.in_order(y) for found, (y, _) in zip(rows, made, strict=True)]

    def _blocks(self, x: F32, address: str) -> tuple[F32, list[Callable[[], None]]]:
        """Where x Wᵀ goes, and what is to do for it: blocks of rows are widened, and multiplied by BLAS."""
        rows, weight = self.compiled(address), self._weight(address)
        whole = self[address] if rows is None and self._fits(weight) else None
        y = np.empty((len(x), weight.shape[0]), np.float32)

        def multiply_block(span: slice) -> None:
            if rows is not None:
                block = rows.matrix.widened(span.start, span.stop)
            elif whole is not None:
                block = whole[span]
            else:
                block = weight.dtype.decode(weight.read((span, slice(0, weight.shape[1], 1))))
            np.matmul(x, block.T, out=y[:, span])

        return y, [partial(multiply_block, span) for span in _spans(weight)]

    def under(self, at: str) -> set[str]:
        """The addresses of all weights of a layer or another part."""
        return {address for address in self._addresses if address.startswith(f"{at}.")}

    def compiled(self, address: str) -> Rows | None:
        """A matrix as the compiled loops read it; None where they cannot."""
        if address not in self._rows:
            self._rows[address] = self._find_rows(self._weight(address)) if available() else None
        return self._rows[address]

    def _find_rows(self, weight: Weight) -> Rows | None:
        source, kind, heads = weight.stored, weight.dtype.name, 0
        if isinstance(source, Unpermuted) and weight.layout == PLAIN:
            heads, source = source.heads, source.base
        stored = rows_on_map(source)
        try:
            if stored is not None:
                return Rows(Matrix(kind, weight.layout.runs(stored), transposed=weight.layout.transposed), heads)
        except ValueError:  # of another type, or strided
            pass
        return self._held_rows(weight)

    def _held_rows(self, weight: Weight) -> Rows | None:
        """A matrix that is made in memory: an edited one, in the file's type; a packed one, as float32."""
        plain = weight.dtype.name in ("F16", "BF16")
        taken = weight.size * (2 if plain else 4)
        if self._bytes + taken > KEPT_BYTES:
            return None
        self._bytes += taken
        array = weight.layout.view(weight.stored.mapped()) if plain else weight.array()
        turned = weight.layout.transposed  # it stays as it lies in the file, so that sums are formed in the same order
        kind = weight.dtype.name if plain else "F32"
        return Rows(Matrix(kind, np.ascontiguousarray(array.T if turned else array), transposed=turned))

    def _weight(self, address: str) -> Weight:
        weight = self.registry.get(address)
        if weight is None:
            raise EngineError(f"this model cannot be run: it has no {address}")
        return weight

    def _fits(self, weight: Weight) -> bool:
        if weight.address in self._kept or weight.dtype.name == "F32":
            return True
        return self._bytes + 4 * weight.size <= KEPT_BYTES

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
