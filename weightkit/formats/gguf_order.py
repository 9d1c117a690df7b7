"""What the converters to GGUF change in the weights, undone when they are read and redone when they are written.

They reorder the rows of Q and K of some families for interleaved rotary positions, add 1 to Gemma's norms,
and write Mamba's A rather than its logarithm. Here a weight has the values that a Hugging Face file has, so
that a GGUF file and the model that it was made from agree.

Source: the classes of convert_hf_to_gguf.py in llama.cpp (`LlamaModel.permute`, `modify_tensors`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from weightkit.dtypes import DTYPES, Array, DType
from weightkit.tensor import BLOCK, Derived, Source

# LlamaModel and what derives from it, and those that call its `permute` themselves.
PERMUTED = frozenset(
    """
    llama llama-embed mistral3 granite granitemoe granitehybrid smollm3 arcee olmo internlm2 minicpm xverse
    baichuan deci deepseek bailingmoe arctic chameleon llada
    """.split()
)
NORMS_PLUS_ONE = frozenset("gemma gemma2 gemma3 gemma-embedding".split())
_Q_OR_K = re.compile(r"blk\.(\d{1,6})\.attn_([qk])\.(?:weight|bias)")


def in_hf_order(tensors: Mapping[str, Source], metadata: Mapping[str, str]) -> dict[str, Source]:
    """The tensors of a GGUF file with the values that a Hugging Face file has.

    `metadata` is that of the file, or of the first of a split model: the others do not repeat it.
    """
    architecture = metadata.get("general.architecture", "")
    if architecture in PERMUTED:
        q = _numbers(metadata.get(f"{architecture}.attention.head_count"))
        k = _numbers(metadata.get(f"{architecture}.attention.head_count_kv")) or q
        return {name: _unpermuted(name, tensor, q, k) for name, tensor in tensors.items()}
    if architecture in NORMS_PLUS_ONE:
        norms = {name: Changed(t, "minus one") for name, t in tensors.items() if name.endswith("norm.weight")}
        return {**tensors, **norms}
    if architecture == "deepseek2":
        return {name: _latent(tensor) for name, tensor in tensors.items()}
    if architecture == "mamba":
        return {name: _ssm(tensor) for name, tensor in tensors.items()}
    return dict(tensors)


def heads_of(name: str, heads: int, kv_heads: int) -> int:
    """How many heads a tensor of GGUF has rows of: Q `heads`, K `kv_heads`, every other 0."""
    found = _Q_OR_K.fullmatch(name)
    return 0 if found is None else heads if found[2] == "q" else kv_heads


def _unpermuted(name: str, tensor: Source, q: list[int], k: list[int]) -> Source:
    found = _Q_OR_K.fullmatch(name)
    if found is None:
        return tensor
    counts, layer = q if found[2] == "q" else k, int(found[1])
    heads = counts[min(layer, len(counts) - 1)] if counts else 0
    fits = heads and tensor.shape and 0 not in tensor.shape and tensor.shape[0] % (2 * heads) == 0
    return Unpermuted(tensor, heads) if fits else tensor


def _numbers(text: str | None) -> list[int]:
    """The number of heads, or those of every layer where they differ; none where it makes no sense."""
    try:
        value = json.loads(text or "0")
    except (ValueError, RecursionError):
        return []
    values = value if isinstance(value, list) else [value]
    return values if all(type(n) is int and 0 < n < 1 << 20 for n in values) else []


def permute_rows(rows: Array, heads: int) -> Array:
    """Q or K of Hugging Face in the order of GGUF: row j·d/2 + i of a head of d rows becomes row 2i + j.

    The first axis is the rows, heads · d; those after it stay as they are.
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def turn_rows(rows: Array, heads: int) -> Array:
    """The inverse of `permute_rows`."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def permuted(source: Source, heads: int) -> Source:
    """Q or K with its rows in the order of GGUF. What was read from a GGUF file is that file's tensor again."""
    if isinstance(source, Unpermuted) and source.heads == heads:
        return source.base
    return Permuted(source, heads)


@dataclass(frozen=True)
class Unpermuted(Derived):
    """Q or K of a GGUF file with its rows in the order of Hugging Face files."""

    heads: int

    def read(self, start: int, stop: int) -> Array:
        """Stored elements `start` to `stop` in row-major order, as a new array."""
        row = math.prod(self.shape[1:])
        first, last = start // row, -(-stop // row)
        result = np.empty((max(0, last - first), row), self.dtype.stored)
        for low, high, source in self._runs(first, last, row):
            span = self.base.read(source * row, (source + 2 * (high - low) - 1) * row)
            result[low - first : high - first] = span.reshape(-1, row)[::2]
        return result.reshape(-1)[start - first * row : stop - first * row]

    def _runs(self, first: int, last: int, row: int) -> Iterator[tuple[int, int, int]]:
        """(rows low to high here, the row of the file that the first is; the next are every second from there)."""
        half = self.shape[0] // self.heads // 2
        most = max(1, BLOCK // (2 * row))
        low = first
        while low < last:
            which, inside = divmod(low, half)
            high = min(last, low + half - inside, low + most)
            yield low, high, which // 2 * 2 * half + 2 * inside + which % 2
            low = high

    def mapped(self) -> Array:
        """All of it, in memory."""
        return turn_rows(self.base.mapped(), self.heads)


@dataclass(frozen=True)
class Permuted(Derived):
    """Q or K of a Hugging Face file with its rows in the order of GGUF: what a writer needs."""

    heads: int

    def read(self, start: int, stop: int) -> Array:
        """Stored elements `start` to `stop` in row-major order, as a new array."""
        row = math.prod(self.shape[1:])
        half = self.shape[0] // self.heads // 2
        first, last = start // row, -(-stop // row)
        result = np.empty((max(0, last - first), row), self.dtype.stored)
        for head in range(first // (2 * half), -(-last // (2 * half))):
            for j in range(2):
                top = 2 * half * head
                low = max(0, -(-(first - top - j) // 2))  # pairs of rows, of which this is the j-th
                high = min(half, -(-(last - top - j) // 2))
                if low < high:
                    source = top + j * half
                    part = self.base.read((source + low) * row, (source + high) * row).reshape(-1, row)
                    at = top + 2 * low + j - first
                    result[at : at + 2 * len(part) : 2] = part
        return result.reshape(-1)[start - first * row : stop - first * row]

    def mapped(self) -> Array:
        """All of it, in memory."""
        return permute_rows(self.base.mapped(), self.heads)


Change = Literal["plus one", "minus one", "log of minus", "minus exp", "as it is"]


@dataclass(frozen=True)
class Changed(Derived):
    """A small tensor with each number changed, or in another shape: a norm, a vector of a state space."""

    change: Change
    shaped: tuple[int, ...] | None = None

    @property
    def dtype(self) -> DType:
        """F32, unless nothing changes."""
        return self.base.dtype if self.change == "as it is" else DTYPES["F32"]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape as Hugging Face has it."""
        return self.base.shape if self.shaped is None else self.shaped

    def read(self, start: int, stop: int) -> Array:
        """Numbers `start` to `stop` in row-major order, as a new array."""
        return self._changed(self.base.read(start, stop))

    def mapped(self) -> Array:
        """All of it, in memory."""
        return self._changed(self.base.mapped()).reshape(self.shape)

    def _changed(self, stored: Array) -> Array:
        if self.change == "as it is":
            return stored
        numbers = self.base.dtype.decode(stored)
        with np.errstate(all="ignore"):
            if self.change == "log of minus":
                return np.log(-numbers)
            if self.change == "minus exp":
                return -np.exp(numbers)
            return numbers + np.float32(1 if self.change == "plus one" else -1)


def _ssm(tensor: Source) -> Source:
    """A_log of Mamba, and its convolution with the axis that GGUF leaves out."""
    if tensor.name.endswith(".ssm_a"):
        return Changed(tensor, "log of minus")
    if tensor.name.endswith(".ssm_conv1d.weight") and len(tensor.shape) == 2:
        return Changed(tensor, "as it is", (tensor.shape[0], 1, tensor.shape[1]))
    return tensor


@dataclass(frozen=True)
class Turned(Derived):
    """A stack of matrices, each transposed, one below another: [n, in, out] as [n · out, in]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape as Hugging Face has it."""
        count, height, width = self.base.shape
        return count * width, height

    def read(self, start: int, stop: int) -> Array:
        """Stored elements `start` to `stop` in row-major order, as a new array."""
        _, height, width = self.base.shape
        size = height * width
        result = np.empty(stop - start, self.dtype.stored)
        for number in range(start // size, -(-stop // size)):
            top = number * size
            low, high = max(start, top), min(stop, top + size)
            matrix = self.base.read(top, top + size).reshape(height, width)
            result[low - start : high - start] = matrix.T.reshape(-1)[low - top : high - top]
        return result


def _latent(tensor: Source) -> Source:
    """The keys and values of DeepSeek's latent attention, head by head in GGUF, the keys transposed."""
    if len(tensor.shape) != 3 or 0 in tensor.shape:
        return tensor
    if tensor.name.endswith(".attn_k_b.weight"):
        return Turned(tensor)
    if tensor.name.endswith(".attn_v_b.weight"):
        return Changed(tensor, "as it is", (tensor.shape[0] * tensor.shape[1], tensor.shape[2]))
    return tensor
