"""Edits: immutable values that say what to do to which weights. They hold no weights and read none."""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from weightkit.dtypes import Array
from weightkit.errors import EditError
from weightkit.tensor import Region, region_shape

Op = Literal["zero", "set", "scale", "noise"]


@dataclass(frozen=True)
class Edit:
    """One operation on everything that an address names."""

    op: Op
    address: str
    value: float = 0.0  # the factor, the number to set, or the noise's standard deviation
    relative: bool = False  # noise: `value` is in units of the weight's own standard deviation
    seed: int = 0

    def __str__(self) -> str:
        match self.op:
            case "zero":
                return f"zero {self.address}"
            case "noise":
                kind = "relative std" if self.relative else "std"
                return f"noise {self.address}: {kind} {self.value:g}, seed {self.seed}"
            case _:
                return f"{self.op} {self.address} = {self.value:g}"

    def to_json(self) -> dict[str, Any]:
        """The edit as a JSON object; `Edit(**object)` is the edit again."""
        return asdict(self)


def zero(address: str) -> Edit:
    """Set every number that the address names to zero."""
    return Edit("zero", address)


def set_to(address: str, value: float) -> Edit:
    """Set every number that the address names to `value`, rounded to the weight's own type."""
    return Edit("set", address, _number(value, "set", address))


def scale(address: str, factor: float) -> Edit:
    """Multiply every number that the address names by `factor`, rounded once to the weight's own type."""
    return Edit("scale", address, _number(factor, "scale", address))


def noise(address: str, *, relative_std: float | None = None, std: float | None = None, seed: int = 0) -> Edit:
    """Add Gaussian noise, of a given standard deviation or one relative to each weight's own.

    What is added to a number depends on the seed, the weight's address and the number's place in it,
    and on nothing else: not on the other edits, their order, or how the file is cut into shards.

    Raises EditError unless exactly one of `relative_std` and `std` is given.
    """
    if (relative_std is None) == (std is None):
        raise EditError(f"noise on {address}: give either relative_std or std")
    value = _number(relative_std if relative_std is not None else std, "noise", address)
    if value < 0:
        raise EditError(f"noise on {address}: a standard deviation is not negative, got {value:g}")
    return Edit("noise", address, value, relative=relative_std is not None, seed=int(seed))


def _number(value: Any, op: str, address: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise EditError(f"{op} {address}: {value!r} is not a number") from None
    if not math.isfinite(number):
        raise EditError(f"{op} {address}: {value!r} is not a finite number")
    return number


_GRID = 256  # noise is drawn in cells of up to the square of this many numbers, each from its own generator


def gaussian(seed: int, address: str, shape: tuple[int, ...], region: Region) -> Array:
    """Standard normal numbers for a region of a weight: the same whatever else is drawn, float64.

    A weight of `shape` is covered with a fixed grid; a cell's generator is keyed by seed, address and
    the cell's place, so that any region can be drawn by itself.
    """
    rows, columns = (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))
    height = min(rows, _GRID)
    width = min(columns, _GRID * _GRID // height)
    height = min(rows, _GRID * _GRID // width)
    if len(shape) > 2:  # cells hold whole trailing blocks; draw the rows, then pick
        full = (slice(region[0].start, region[0].stop, 1), slice(0, columns, 1))
        drawn = _cells(seed, address, full, height, width).reshape(-1, *shape[1:])
        return drawn[(slice(None, None, region[0].step), *region[1:])]
    flat = region if len(shape) == 2 else (slice(0, 1, 1), *(region or (slice(0, 1, 1),)))
    return _cells(seed, address, flat, height, width).reshape(region_shape(region))


def _cells(seed: int, address: str, region: Region, height: int, width: int) -> Array:
    rows, columns = region
    drawn = np.empty(region_shape((slice(rows.start, rows.stop, 1), slice(columns.start, columns.stop, 1))))
    places = itertools.product(
        range(rows.start // height, -(-rows.stop // height)),
        range(columns.start // width, -(-columns.stop // width)),
    )
    for i, j in places:
        key = hashlib.sha256(f"{seed}\0{address}\0{i}\0{j}".encode()).digest()
        cell = np.random.Generator(np.random.Philox(key=np.frombuffer(key[:16], "<u8"))).standard_normal(
            (height, width)
        )
        top, left = i * height - rows.start, j * width - columns.start
        target = drawn[max(top, 0) : top + height, max(left, 0) : left + width]
        target[...] = cell[max(-top, 0) :, max(-left, 0) :][: target.shape[0], : target.shape[1]]
    return drawn[:: rows.step, :: columns.step]
