"""Weight: one named matrix of a model, a view on the tensor that stores it; Selection: a part of one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from weightkit.address import Index, index_text
from weightkit.architectures.parts import Role
from weightkit.dtypes import Array, DType
from weightkit.errors import FormatError
from weightkit.layout import PLAIN, Layout, clip
from weightkit.tensor import Region, Source, region_shape, region_size, whole


@dataclass(frozen=True, slots=True)
class Axis:
    """A named axis of a weight: `count` things, each `width` consecutive indices."""

    name: str
    count: int
    width: int = 1
    also: str = ""  # a second name: a key head that only one query head uses is that head's own

    @property
    def size(self) -> int:
        """Length of the axis."""
        return self.count * self.width

    def answers_to(self, name: str) -> bool:
        """Whether an index by this axis name applies."""
        return name in (self.name, self.also)


_TABLES = (Role.EMBEDDING, Role.POSITION)  # a row of theirs is looked up, not multiplied with


@dataclass(frozen=True, slots=True)
class Weight:
    """One named weight of a model, as a matrix in [out, in] orientation. Reads nothing until asked."""

    address: str
    name: str  # of the tensor in the file that stores it
    role: Role
    axes: tuple[Axis, ...]
    layer: int | None
    source: Source | None  # None: only a config.json or an index was opened
    layout: Layout = PLAIN
    tied_to: str | None = None  # the address of the weight that has the same numbers
    alias: bool = False  # tied, and without a tensor of its own
    buffer: bool = False  # stored and used, but no parameter

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in], or the tensor's own shape where it has no role."""
        return tuple([axis.count * axis.width for axis in self.axes])

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> DType:
        """The element type in the file."""
        return self.stored.dtype

    @property
    def stored(self) -> Source:
        """The tensor that holds the numbers. FormatError where there are no weights, only their description."""
        if self.source is None:
            raise FormatError(
                f"{self.address}: its numbers are not here: only a config.json or an index was opened; open the weights"
            )
        return self.source

    @property
    def reads_residual(self) -> bool:
        """Whether its input is the residual stream."""
        return len(self.axes) == 2 and self.axes[1].name == "residual" and self.role not in _TABLES

    @property
    def writes_residual(self) -> bool:
        """Whether its output is added to the residual stream."""
        return self.role in _TABLES or (len(self.axes) == 2 and self.axes[0].name == "residual")

    @property
    def head_axis(self) -> int | None:
        """Which axis heads, or key heads, lie along; None where there are none."""
        return next((i for i, axis in enumerate(self.axes) if axis.name in ("head", "kv_head")), None)

    def array(self) -> Array:
        """The numbers as float32, [out, in]; on the memory map itself where the file has float32."""
        return self.dtype.decode(self.layout.view(self.stored.mapped()))

    def read(self, region: Region) -> Array:
        """Stored elements of a region of the matrix, read from the file as a new array."""
        return self.layout.read(self.stored, region)

    def tiles(self) -> Iterator[Region]:
        """Regions that cover the matrix in blocks of bounded size, in the order of the file."""
        return self.layout.tiles(self.stored.shape)

    def spots(self) -> Iterator[Region]:
        """A few regions, spread over the matrix: enough to see that two differ, unless they do so here and there."""
        return Selection.of(self).spots()

    def parameters(self) -> int:
        """Parameters that this weight adds to the model: none if it is tied to another, or a buffer."""
        return 0 if self.tied_to or self.buffer else self.size


@dataclass(frozen=True, slots=True)
class Selection:
    """A rectangle of one weight: what an address with an index names."""

    weight: Weight
    region: Region
    index: tuple[Index, ...] = ()

    @classmethod
    def of(cls, weight: Weight) -> Selection:
        """All of a weight."""
        return cls(weight, whole(weight.shape))

    @property
    def address(self) -> str:
        """The canonical address, with its index."""
        return self.weight.address + index_text(self.index)

    @property
    def name(self) -> str:
        """The name of the tensor in the file."""
        return self.weight.name

    @property
    def role(self) -> Role:
        """The role of the weight."""
        return self.weight.role

    @property
    def dtype(self) -> DType:
        """The element type in the file."""
        return self.weight.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what is selected."""
        return region_shape(self.region)

    @property
    def size(self) -> int:
        """Number of elements selected."""
        return region_size(self.region)

    @property
    def is_whole(self) -> bool:
        """Whether all of the weight is selected."""
        return self.region == whole(self.weight.shape)

    def heads(self) -> list[Selection]:
        """The heads of a whole weight that has some, one by one; else the selection itself."""
        place = self.weight.head_axis
        if place is None or not self.is_whole:
            return [self]
        return [self.thing(place, i) for i in range(self.weight.axes[place].count)]

    def thing(self, place: int, number: int) -> Selection:
        """One thing along an axis of the weight, as its head 3, and along the others what is selected."""
        axis = self.weight.axes[place]
        span = slice(number * axis.width, (number + 1) * axis.width, 1)
        region = (*self.region[:place], span, *self.region[place + 1 :])
        return Selection(self.weight, region, (Index(axis.name, number),))

    def array(self, dtype: DTypeLike = np.float32) -> Array:
        """The selected numbers as float32, or as another type."""
        return self.weight.dtype.decode(self.weight.read(self.region), dtype)

    def spots(self) -> Iterator[Region]:
        """A few regions of the weight, spread over what is selected."""
        if not self.size or not self.region:
            return
        first, *rest = self.region
        rows = range(first.start, first.stop, first.step)
        across = [slice(s.start, min(s.stop, s.start + 256 * s.step), s.step) for s in rest]
        for row in sorted({0, len(rows) // 3, len(rows) // 2, len(rows) - 1}):
            some = rows[row : row + 1 if rest else row + 256]
            yield (slice(some[0], some[-1] + 1, some.step), *across)

    def blocks(self) -> Iterator[tuple[Region, Array]]:
        """The selection in blocks of bounded size: (region of the weight, its stored elements)."""
        for tile in self.weight.tiles():
            pairs = zip(self.region, tile, strict=True)
            part = tuple(clip(wanted, t.start, t.stop) for wanted, t in pairs)
            if all(s.start < s.stop for s in part):
                yield part, self.weight.read(part)


def same_in(a: Weight, b: Weight, region: Region) -> bool:
    """Whether two weights of one shape are the same in a region: to the bit or, across types, in their values."""
    x, y = a.read(region), b.read(region)
    if a.dtype == b.dtype:
        return x.tobytes() == y.tobytes()
    return np.array_equal(a.dtype.decode(x), b.dtype.decode(y), equal_nan=True)
