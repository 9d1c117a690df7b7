"""The overlay: a tensor as edits make it, without writing anything.

Reading through it reads the original bytes and changes only what an edit selects, in the tensor's own
type, so what is read is to the bit what saving would write.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from weightkit.dtypes import Array
from weightkit.errors import EditError
from weightkit.kernels import Moments
from weightkit.layout import clip
from weightkit.registry import Registry, TokenId
from weightkit.surgery.edits import Edit, gaussian
from weightkit.tensor import BLOCK, Derived, Region, Source, tiles
from weightkit.weight import Selection


@dataclass(frozen=True)
class Change:
    """One edit of one rectangle of one weight."""

    edit: Edit
    selection: Selection

    @functools.cached_property
    def noise_std(self) -> float:
        """The standard deviation of the noise, which may be relative to that of the whole weight."""
        if not self.edit.relative:
            return self.edit.value
        weight = self.selection.weight
        blocks = (weight.dtype.decode(weight.read(tile), np.float64) for tile in weight.tiles())
        return self.edit.value * sum(map(Moments.of, blocks), Moments()).std

    def touches(self, first: int, last: int) -> bool:
        """Whether any of the rows `first` to `last` of the stored tensor changes."""
        return any(_rows(place, first, last) for _, place in self._pieces())

    def write(self, block: Array, first: int) -> None:
        """Make the change in rows of the stored tensor, `block`, the first being row `first`."""
        layout = self.selection.weight.layout
        transposed = layout.transposed
        for region, place in self._pieces():
            rows = _rows(place, first, first + len(block))
            if not rows:
                continue
            if layout.index is not None:  # a row of the stored tensor is a whole matrix
                part = block[rows.start - first][place[1:]]
                part[...] = self._apply(part, region, transposed)
                continue
            axis = len(region) - 1 if transposed else 0  # the axis of the matrix that these rows are
            skipped = (rows.start - place[0].start) // rows.step
            region = (*region[:axis], _part(region[axis], skipped, len(rows)), *region[axis + 1 :])
            local = (slice(rows.start - first, rows.stop - first, rows.step), *place[1:])
            block[local] = self._apply(block[local], region, transposed)

    def _pieces(self) -> Iterable[tuple[Region, Region]]:
        region = self.selection.region or (slice(0, 1, 1),)  # a single number is a row of one
        return self.selection.weight.layout.pieces(region)

    def _apply(self, stored: Array, region: Region, transposed: bool) -> Array:
        dtype, edit, weight = self.selection.dtype, self.edit, self.selection.weight
        before = dtype.decode(stored, np.float64)
        with np.errstate(over="ignore"):  # refused below, by name
            match edit.op:
                case "zero":
                    values = np.zeros_like(before)
                case "set":
                    values = np.full_like(before, edit.value)
                case "scale":
                    values = before * edit.value
                case "noise":
                    drawn = gaussian(edit.seed, weight.address, weight.shape or (1,), region)
                    values = before + self.noise_std * (drawn.T if transposed else drawn)
        if not np.isfinite(values[np.isfinite(before)]).all():
            raise EditError(f"{edit}: in {weight.address}, numbers become larger than {dtype.name} can hold")
        try:
            written = dtype.encode(values)
        except EditError as error:
            raise EditError(f"{edit}: in {weight.address}, {error}") from None
        if edit.op == "zero" and np.any(dtype.decode(written) != 0):
            raise EditError(f"{edit}: {dtype.name} has no zero")
        return written


def _rows(place: Region, first: int, last: int) -> range:
    rows = clip(place[0], first, last)
    return range(rows.start, rows.stop, rows.step)


def _part(whole_slice: slice, skip: int, count: int) -> slice:
    start = whole_slice.start + skip * whole_slice.step
    return slice(start, start + (count - 1) * whole_slice.step + 1, whole_slice.step)


@dataclass(frozen=True)
class Edited(Derived):
    """A tensor with some of its numbers changed; its type and shape are those in the file."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """What is changed."""
        raise NotImplementedError

    @property
    def elements(self) -> int:
        """How many elements are selected; those selected twice count twice."""
        raise NotImplementedError

    def changed_tiles(self) -> Iterable[tuple[int, int]]:
        """Flat ranges of elements that cover every change, in blocks of bounded size."""
        raise NotImplementedError

    def raw(self, start: int, stop: int) -> Array:
        """The bytes in the file of elements `start` to `stop`."""
        return self.read(start, stop)


@dataclass(frozen=True)
class Overlay(Edited):
    """A tensor with edits on it. Reads like a tensor."""

    changes: tuple[Change, ...]

    @property
    def addresses(self) -> tuple[str, ...]:
        """What the edits select."""
        return tuple(dict.fromkeys(change.selection.address for change in self.changes))

    @property
    def elements(self) -> int:
        """How many elements the edits select."""
        return sum(change.selection.size for change in self.changes)

    def read(self, start: int, stop: int) -> Array:
        """Stored elements `start` to `stop` of the flattened array, as edited."""
        shape = self.shape or (1,)
        row = math.prod(shape[1:])
        result = np.empty(stop - start, self.dtype.stored)
        if not result.size:
            return result
        step = max(1, BLOCK // row)
        for first in range(start // row, -(-stop // row), step):
            last = min(first + step, -(-stop // row))
            block = self.base.read(first * row, last * row).reshape(last - first, *shape[1:])
            for change in self.changes:
                change.write(block, first)
            low, high = max(start, first * row), min(stop, last * row)
            result[low - start : high - start] = block.reshape(-1)[low - first * row : high - first * row]
        return result

    def changed_tiles(self) -> Iterable[tuple[int, int]]:
        """Flat ranges of elements that cover every change, in blocks of bounded size."""
        if isinstance(self.base, Edited):
            yield from self.base.changed_tiles()
        shape = self.shape or (1,)
        row = math.prod(shape[1:])
        for tile in tiles((shape[0], row)):
            first, last = tile[0].start, tile[0].stop
            if any(change.touches(first, last) for change in self.changes):
                yield first * row + tile[1].start, (last - 1) * row + tile[1].stop


def apply(registry: Registry, edits: Iterable[Edit], token_id: TokenId | None = None) -> Registry:
    """A registry that shows the edits, in order; the one given is not touched and shares every tensor.

    Raises AddressError where an edit selects nothing, EditError where it cannot be made.
    """
    for edit in edits:
        if not isinstance(edit, Edit):
            raise EditError(f"{edit}: weights are edited by zero, set, scale and noise; an activation by model.trace")
        if registry.packed_as is not None:
            raise EditError(f"{edit}: the weights are packed as {registry.packed_as}, which cannot be edited")
        changed: dict[str, Source] = {}
        for selection in registry.select(edit.address, token_id):
            source = changed.get(selection.name) or selection.weight.stored
            _require_possible(edit, selection)
            base, before = (source.base, source.changes) if isinstance(source, Overlay) else (source, ())
            changed[selection.name] = Overlay(base, (*before, Change(edit, selection)))
        registry = registry.with_sources(changed)
    return registry


def overlays(registry: Registry) -> dict[str, Edited]:
    """The tensors of a registry that edits have changed, by name in the file."""
    sources = ((name, weight.source) for name, weight in registry.by_name.items())
    return {name: source for name, source in sources if isinstance(source, Edited)}


def _require_possible(edit: Edit, selection: Selection) -> None:
    dtype = selection.dtype
    if dtype.packed or dtype.kind == "complex":
        raise EditError(f"{edit}: {selection.weight.address} is {dtype.name}, which cannot be edited")
    if dtype.kind != "float" and edit.op in ("scale", "noise"):
        raise EditError(f"{edit}: {selection.weight.address} is {dtype.name}; whole numbers can only be zeroed or set")
