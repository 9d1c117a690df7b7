"""Heads and norms as the weights alone show them: linear maps between the residual stream and itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from weightkit.architectures.parts import Role
from weightkit.dtypes import Array
from weightkit.registry import Registry
from weightkit.weight import Selection, Weight


@dataclass(frozen=True, slots=True)
class Norm:
    """The linear part of a norm: w ∘ x, or w ∘ (x - mean x). What it divides by depends on the text."""

    weight: Weight | None = None
    plus_one: bool = False  # what is stored is how far the scale is from one
    centred: bool = False

    def apply(self, x: Array) -> Array:  # [n, d] -> [n, d]
        """What becomes of vectors that are written to the stream and read through this norm."""
        return self._scaled(x - x.mean(axis=-1, keepdims=True) if self.centred else x)

    def fold(self, rows: Array) -> Array:  # [n, d] -> [n, d]
        """The transpose of `apply`: rows that read the normed stream, as rows that read the stream itself."""
        scaled = self._scaled(rows)
        return scaled - scaled.mean(axis=-1, keepdims=True) if self.centred else scaled

    def _scaled(self, x: Array) -> Array:
        return x if self.weight is None else x * (Selection.of(self.weight).array(np.float64) + float(self.plus_one))


def norm_at(registry: Registry, address: str) -> Norm:
    """The norm at an address; where the model has none there, nothing is done."""
    config, family = registry.config, registry.architecture
    if config is None or family is None:
        return Norm()
    weight = registry.get(address)
    if config.bare_norms:
        return Norm(centred=True)
    return Norm() if weight is None else Norm(weight, family.norm == "rms + 1", family.norm == "layer")


def read_norm(registry: Registry, at: str) -> Norm:
    """The norm that half a block, as `layers.3.attn`, reads the stream through."""
    before = registry.config is not None and registry.config.norms in ("before", "both")
    return norm_at(registry, f"{at}.norm") if before else Norm()


def written_norm(registry: Registry, at: str) -> Norm:
    """The norm of what half a block adds to the stream."""
    after = registry.config is not None and registry.config.norms in ("after", "both")
    return norm_at(registry, f"{at}.post_norm") if after else Norm()


@dataclass(frozen=True, slots=True)
class Head:
    """One attention head; heads that share a key head share its K and V."""

    attention: str  # as in layers.3.attn
    layer: int
    index: int
    parts: dict[str, Selection]  # q, k, v, o
    before: Norm
    after: Norm

    @property
    def address(self) -> str:
        """The canonical address."""
        return f"{self.attention}[head={self.index}]"

    @property
    def stack(self) -> str:
        """What stands before the layer: nothing, or as in `decoder.`."""
        return self.attention.rpartition("layers.")[0]

    def reader(self, part: str) -> Array:
        """Rows of q, k or v with the norm before them folded in, float64. [head, d]"""
        return self.rows(part, self.parts[part])

    def writer(self) -> Array:
        """Columns of o as rows, with the norm after them applied, float64. [head, d]"""
        return self.rows("o", self.parts["o"])

    def rows(self, part: str, selection: Selection) -> Array:
        """The rows of q, k or v, or columns of o, of this head and of others beside it, likewise. [n, d]"""
        array = selection.array(np.float64)
        return self.after.apply(array.T) if part == "o" else self.before.fold(array)


def heads(registry: Registry) -> Iterator[Head]:
    """Every head of self-attention that has Q, K, V and O as matrices on the residual stream, in forward order."""
    for q in registry.values():
        attention, _, last = q.address.rpartition(".")
        if q.role is not Role.Q or last != "q" or not attention.endswith(".attn") or q.layer is None:
            continue
        of = {part: registry.get(f"{attention}.{part}") for part in "qkvo"}
        weights = {part: weight for part, weight in of.items() if weight is not None}
        if len(weights) < 4 or not _fit(weights):
            continue
        before, after = read_norm(registry, attention), written_norm(registry, attention)
        for index in range(q.axes[0].count):
            parts = {part: _of_head(weights[part], index, q.axes[0].count) for part in weights}
            yield Head(attention, q.layer, index, parts, before, after)


def _fit(weights: dict[str, Weight]) -> bool:
    """Whether four matrices make heads: latent attention and gates among the queries do not."""
    q, k, v, o = (weights[part] for part in "qkvo")
    on_stream = all(w.reads_residual for w in (q, k, v)) and o.writes_residual
    heads, width = q.axes[0], q.axes[0].width
    return (
        on_stream
        and heads.name == "head"
        and k.axes[0].width == width
        and k.axes[0].count == v.axes[0].count
        and heads.count % k.axes[0].count == 0
        and (o.axes[1].count, o.axes[1].width) == (heads.count, v.axes[0].width)
    )


def _of_head(weight: Weight, index: int, count: int) -> Selection:
    """The rows of a head in Q, those of the key head that it uses in K and V, or its columns in O."""
    place = weight.head_axis
    assert place is not None  # it fits
    return Selection.of(weight).thing(place, index * weight.axes[place].count // count)
