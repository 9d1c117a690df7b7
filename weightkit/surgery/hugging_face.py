"""Tensors laid out as Hugging Face files have them, where other files lay the same matrices out otherwise.

GGUF has every matrix as [out, in], with q, k and v one after another; packers turn the matrices that GPT-2
has as [in, out]; what is one stack here can be a tensor for each expert there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from weightkit.assembly.slots import Item, items_of, usual_items
from weightkit.dtypes import DTYPES, Array
from weightkit.layout import Layout
from weightkit.registry import Registry
from weightkit.surgery.cast import Cast
from weightkit.tensor import Derived, Source
from weightkit.weight import Weight


@dataclass(frozen=True)
class Relaid(Derived):
    """A tensor, or a stack of them, put together anew from matrices: each where a layout says."""

    stored: tuple[int, ...]
    parts: tuple[tuple[Layout, Weight], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the new tensor."""
        return self.stored

    def read(self, start: int, stop: int) -> Array:
        """Stored elements `start` to `stop` of the new tensor, as a new array."""
        stacked = self.parts[0][0].index is not None
        height, row = (*self.stored[stacked:], 1)[:2]
        if stop <= start:
            return np.empty(0, self.dtype.stored)
        first, last = start // row, -(-stop // row)
        result = np.empty((last - first, row), self.dtype.stored)
        for number in range(first // height, -(-last // height)):  # of the matrix in a stack
            top = number * height
            low, high = max(first, top), min(last, top + height)
            for layout, weight in self.parts:
                if (layout.index or 0) == number:
                    _fill(result[low - first : high - first], low - top, layout, weight)
        return result.reshape(-1)[start - first * row : stop - first * row]


def _fill(rows: Array, low: int, layout: Layout, weight: Weight) -> None:
    """Put what a weight has of some rows of its tensor in them; the first of them is row `low`."""
    high = low + len(rows)
    out = weight.shape[0]
    if layout.transposed and len(weight.shape) == 2:
        rows[:, _places(layout, rows.shape[1])] = weight.read((slice(0, out, 1), slice(low, high, 1))).T
        return
    places = _places(layout, high)
    a, b = (int(n) for n in np.searchsorted(places, (low, high)))
    if a < b:
        region = (slice(a, b, 1), *(slice(0, n, 1) for n in weight.shape[1:]))
        rows[places[a:b] - low] = weight.read(region).reshape(b - a, -1)


def _places(layout: Layout, size: int) -> Array:
    """Which rows of a tensor of [out, in] each row of the matrix is, in order."""
    size = max(size, layout.start + layout.period * (layout.repeats - 1) + layout.block)
    return replace(layout, transposed=False, index=None).view(np.arange(size))


def relaid(registry: Registry) -> dict[str, Source]:
    """The tensors that Hugging Face files lay out otherwise, by their names in these files."""
    if registry.architecture is None or registry.config is None:
        return {}
    usual = items_of(registry.architecture, registry.config, gguf=False)
    items = {_PLACE.sub("*", item.address): item for item in usual if not (item.slot.form or item.slot.either)}
    tensors: dict[str, list[tuple[Item, Weight]]] = defaultdict(list)
    for weight in registry.values():
        item = items.get(_NUMBER.sub("*", weight.address))
        if item is not None and weight.source is not None and not weight.alias:
            tensors[weight.name].append((item, weight))
    return {name: _relaid(parts) for name, parts in tensors.items() if any(_differs(*part) for part in parts)}


def assembled(registry: Registry) -> dict[str, list[tuple[str, Source]]]:
    """What Hugging Face files have in the place of tensors that they have none such of.

    By the name of each such tensor here: the names and tensors that it is the first to be needed for.
    """
    if registry.architecture is None or registry.config is None or not registry.foreign:
        return {}
    usual = {_PLACE.sub("*", a): item for a, item in usual_items(registry.architecture, registry.config).items()}
    parts: dict[str, list[tuple[Item, Weight]]] = defaultdict(list)
    for address, said in registry.foreign.items():
        parts[said].append((usual[_NUMBER.sub("*", address)], registry[address]))
    found: dict[str, list[tuple[str, Source]]] = {registry[address].name: [] for address in registry.foreign}
    for said, of_one in parts.items():
        found[of_one[0][1].name].append((said, _assembled(of_one)))
    return found


def _assembled(parts: list[tuple[Item, Weight]]) -> Relaid:
    """One tensor of matrices that lie in others, which can be of several types."""
    item, first = parts[0]
    if any(weight.dtype != first.dtype for _, weight in parts):
        parts = [(p, replace(weight, source=Cast(weight.stored, DTYPES["F32"]))) for p, weight in parts]
    places = (weight.layout.index if part.slot.stacked else None for part, weight in parts)
    placed = tuple((replace(p.layout, index=place), w) for (p, w), place in zip(parts, places, strict=True))
    return Relaid(parts[0][1].stored, item.stored, placed)


_PLACE = re.compile(r"\{\w+\}")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def _differs(item: Item, weight: Weight) -> bool:
    turned = len(item.axes) == 2 and item.layout.transposed != weight.layout.transposed
    same = replace(item.layout, transposed=False, index=None) == replace(weight.layout, transposed=False, index=None)
    return turned or not same


def _relaid(parts: list[tuple[Item, Weight]]) -> Relaid:
    item, first = parts[0]
    placed = tuple((replace(part.layout, index=weight.layout.index), weight) for part, weight in parts)
    return Relaid(first.stored, item.stored, placed)
