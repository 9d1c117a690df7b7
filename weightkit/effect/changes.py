"""Changes: what is done to activations while a model runs. The edits of weights, and replacement by an array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from weightkit.address import Address
from weightkit.dtypes import Array
from weightkit.effect.activations import CHOICES, Axes
from weightkit.errors import AddressError, EditError
from weightkit.surgery.edits import Edit

GROWING = ("position", "key", "source")  # axes as long as the text


@dataclass(frozen=True, eq=False)
class Replacement:
    """An array that takes the place of an activation, or of the part of it that the address names."""

    address: str
    array: Array

    def __str__(self) -> str:
        return f"replace {self.address}"


Change = Edit | Replacement


def replace(address: str, array: Any) -> Replacement:
    """Put an array in the place of an activation. It has the shape of what it replaces, or is broadcast to it.

    Raises EditError for what is not an array of numbers.
    """
    try:
        return Replacement(address, np.array(array, np.float32))
    except (TypeError, ValueError):
        raise EditError(f"replace {address}: give an array of numbers") from None


@dataclass(frozen=True)
class Applied:
    """A change on one activation of one text."""

    change: Change
    index: tuple[slice, ...]  # of the whole activation, one for each axis
    axes: Axes
    tokens: int  # of the text

    def __call__(self, x: Array, start: int) -> Array:
        """The activation of the tokens from `start` on, changed; `x` has the axes of the activation, no batch."""
        here = self._here(start, x.shape)
        if here is None:
            return x
        x = x.copy()
        match self.change:
            case Replacement(array=array):
                _put(x, here, array, self.change.address)
            case Edit(op="scale", value=factor):
                x[here] *= np.float32(factor)
            case Edit(value=number):  # 0 for zero
                x[here] = number
        return x

    def _here(self, start: int, shape: tuple[int, ...]) -> tuple[slice, ...] | None:
        """The index within tokens from `start` on; None where it takes none of them."""
        here = list(self.index)
        for place, (axis, size) in enumerate(zip(self.axes, shape, strict=True)):
            taken = range(self.tokens if axis in GROWING else size)[here[place]]
            if not taken:
                raise AddressError(
                    f"{self.change.address}: takes nothing along {axis}, which goes from 0 to {size - 1}"
                )
            if axis == "position":
                first = max(0, -((taken.start - start) // taken.step))  # rounded up
                taken = taken[first : max(0, -((taken.start - start - size) // taken.step))]
                if not taken:
                    return None
                here[place] = slice(taken.start - start, taken.stop - start, taken.step)
        return tuple(here)


def applied(change: Change, address: Address, axes: Axes, tokens: int) -> Applied:
    """A change made ready for an activation with these axes; `address` is that of the change, parsed.

    Raises AddressError for an index that does not fit, EditError for a change that activations do not have.
    """
    if axes == CHOICES:
        raise AddressError(f"{change.address}: experts that were chosen can be seen, not changed; change the router")
    if isinstance(change, Edit) and change.op == "noise":
        raise EditError(f"{change}: activations can be zeroed, set, scaled or replaced")
    made = Applied(change, _slices(address, axes, tokens), axes, tokens)
    for axis, part in zip(axes, made.index, strict=True):
        if axis in GROWING and not range(tokens)[part]:
            raise AddressError(f"{change.address}: takes nothing of a text of {tokens} tokens along {axis}")
    return made


def _put(x: Array, here: tuple[slice, ...], array: Array, address: str) -> None:
    try:
        x[here] = array
    except ValueError:
        shapes = f"an array of {list(array.shape)} cannot replace one of {list(x[here].shape)}"
        raise EditError(f"{address}: {shapes}") from None


def _slices(address: Address, axes: Axes, tokens: int) -> tuple[slice, ...]:
    """What an index takes of an activation, one slice for each axis."""
    result = [slice(None)] * len(axes)
    for place, item in enumerate(address.index):
        axis = axes[place] if item.axis is None and place < len(axes) else item.axis
        if axis not in axes:
            what = f"no axis {axis}" if axis else f"only {len(axes)} axes"
            raise AddressError(f"{address}: this activation has {what}; its axes are {', '.join(axes)}")
        at = item.at
        if isinstance(at, str):
            raise AddressError(f"{address}: an index is a number or a range such as 2:5")
        if isinstance(at, int):
            at = at + tokens if at < 0 and axis in GROWING else at
            at = slice(at, at + 1 or None)
        elif axis in GROWING:  # from the end of the text, not of the tokens that run at a time
            at = slice(*at.indices(tokens))
        result[axes.index(axis)] = at
    return tuple(result)
