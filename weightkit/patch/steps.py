"""Steps: what a patch does to one tensor, one thing after another, forward or back.

A step is an object of the patch's JSON with the parts that its bytes are cut into. It is checked when it is put
on a tensor, whose type and shape it has to fit: nothing that a patch says of sizes is believed before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from weightkit.dtypes import DTYPES, Array, DType
from weightkit.errors import PatchError
from weightkit.formats.shard import is_sensible
from weightkit.patch.coded import Bytes, Coded
from weightkit.patch.coding import MOST_PLACES, unpack_bits, unpack_indices, unsqueeze
from weightkit.patch.layers import Grown, Literal, Permuted, Predicted, Shaped, Xored, words_in
from weightkit.patch.positions import All, At, Block, Positions, bits_for, row_of
from weightkit.patch.predict import BITS, MOST_RANK, Cast, LowRank, Prediction, Scale
from weightkit.words import Words, count, elementwise, width

XORS = ("sparse", "dense", "block")
PREDICTIONS = ("scaled", "low_rank", "cast")


@dataclass(frozen=True)
class Step:
    """One thing that is done to a tensor."""

    kind: str
    facts: dict[str, Any]  # what JSON says of it
    data: Bytes
    back: bool = False  # it is the undoing that is done

    @property
    def inverse(self) -> Step:
        """What undoes it."""
        return replace(self, back=not self.back)

    @property
    def size(self) -> int:
        """Its bytes in the patch."""
        return self.data.size

    def to_json(self) -> dict[str, Any]:
        """The step as the patch has it."""
        return {"kind": self.kind, **self.facts, **({"back": True} if self.back else {})}

    def on(self, base: Words | None, *, back: bool = False) -> Words | None:
        """A tensor, or none, after the step, or before it. PatchError where it does not fit."""
        build = _BUILDERS.get(self.kind)
        if build is None:
            raise PatchError(f"it has a step {self.kind!r}, which is not known")
        return build(self, base, self.back != back)

    def parts(self, number: int) -> list[Bytes]:
        """The parts that its bytes are cut into."""
        sizes = self.facts.get("sizes")
        if type(sizes) is not list or len(sizes) != number or not all(type(n) is int for n in sizes):
            raise PatchError(f"the sizes of its parts are not {number} whole numbers")
        return self.data.cut(*sizes)

    def natural(self, name: str, most: int = 1 << 60) -> int:
        """A fact that is a whole number from 0 to `most`."""
        value = self.facts.get(name)
        if type(value) is not int or not 0 <= value <= most:
            raise PatchError(f"its {name} is {value!r}, not a whole number up to {most:,}")
        return value

    def shape(self, name: str = "shape") -> tuple[int, ...]:
        """A fact that is a shape."""
        value = self.facts.get(name)
        if type(value) is not list or not all(type(n) is int and n >= 0 for n in value) or not is_sensible(value):
            raise PatchError(f"its {name} is not a list of sensible sizes")
        return tuple(value)


def dtype_named(value: Any) -> DType:
    """An element type by its name: of those that files have, or of a block type of GGUF. PatchError otherwise."""
    if isinstance(value, str) and value in DTYPES:
        return DTYPES[value]
    raise PatchError(f"it has a type {value!r}, which is not known")


def parse(value: Any, data: Bytes) -> Step:
    """A step of JSON with its bytes. PatchError where it is none."""
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise PatchError("a step of it is not an object with a kind")
    back = value.get("back", False)
    if not isinstance(back, bool):
        raise PatchError("a step of it has a direction that is neither true nor false")
    facts = {name: fact for name, fact in value.items() if name not in ("kind", "back")}
    return Step(value["kind"], facts, data, back)


def needed(base: Words | None) -> Words:
    """The tensor that a step is put on. PatchError where there is none."""
    if base is None:
        raise PatchError("it changes a tensor that is not there")
    return base


def _coded(parts: list[Bytes], shape: tuple[int, ...], dtype: DType) -> Coded:
    coded = Coded(parts[0], parts[1], count(dtype, shape), width(dtype))
    coded.check()
    return coded


# ── XOR ────────────────────────────────────────────────────────────────────────────────────────────


def positions(step: Step, base: Words) -> tuple[Positions, Bytes, Bytes]:
    """Where a step of XOR changes a tensor, and its chunks and their table."""
    total = words_in(base)
    if step.kind == "dense":
        chunks, table = step.parts(2)
        return All(total), chunks, table
    if step.kind == "sparse":
        places, chunks, table = step.parts(3)
        some = step.natural("count", min(total, MOST_PLACES))
        return At(unpack_indices(places.view(), some, total)), chunks, table
    row = row_of(base.shape, total)
    high, wide, chunks, table = step.parts(4)
    rows = unpack_indices(high.view(), step.natural("rows", min(total // row, MOST_PLACES)), total // row)
    columns = unpack_indices(wide.view(), step.natural("columns", min(row, MOST_PLACES)), row)
    return Block(rows, columns, row), chunks, table


def _xored(step: Step, base: Words | None, back: bool) -> Words:
    del back  # it is its own inverse
    base = needed(base)
    where, chunks, table = positions(step, base)
    coded = Coded(chunks, table, where.count, width(base.dtype))
    coded.check()
    return Xored(base, where, coded)


# ── order ──────────────────────────────────────────────────────────────────────────────────────────


def _permuted(step: Step, base: Words | None, back: bool) -> Words:
    base = needed(base)
    order = order_of(step, base)
    return Permuted(base, step.natural("axis", 1), np.argsort(order) if back else order)


def order_of(step: Step, base: Words) -> Array:
    """The order of a permutation, int64: index i of the result is index `order[i]` of the base."""
    total = words_in(base)
    row = row_of(base.shape, total)
    axis = step.natural("axis", 1)
    size = (total // row, row)[axis]
    if len(base.shape) < 2 or not elementwise(base.dtype) or size > MOST_PLACES:
        raise PatchError("it permutes what is no matrix")
    moved, where = step.parts(2)
    some = step.natural("count", size)
    places = unpack_indices(moved.view(), some, size)
    bits = bits_for(some)
    among = unpack_bits(unsqueeze(where.view(), -(-some * bits // 8)), some, bits)
    if some and not np.array_equal(np.sort(among), np.arange(some)):
        raise PatchError("its permutation names a row twice")
    order = np.arange(size)
    order[places] = places[among]
    return order


# ── predictions ────────────────────────────────────────────────────────────────────────────────────


def _floats(dtype: DType) -> DType:
    if dtype.kind != "float" or dtype.packed:
        raise PatchError(f"it calculates with {dtype.name}")
    return dtype


def _predicted(step: Step, base: Words, back: bool, rule: Prediction, parts: list[Bytes]) -> Words:
    if base.dtype != rule.ends[1 if back else 0]:
        raise PatchError(f"a {step.kind} step is for {rule.ends[1 if back else 0].name}, not for {base.dtype.name}")
    return Predicted(
        base, rule, back, _coded(parts[2:] if back else parts[:2], base.shape, rule.ends[0 if back else 1])
    )


def _scaled(step: Step, base: Words | None, back: bool) -> Words:
    base = needed(base)
    factor = step.facts.get("factor")
    if not isinstance(factor, float) or not math.isfinite(factor) or factor == 0:
        raise PatchError("its factor is not a number other than 0")
    return _predicted(step, base, back, Scale(_floats(base.dtype), factor), step.parts(4))


def _cast(step: Step, base: Words | None, back: bool) -> Words:
    dtypes = step.facts.get("dtypes")
    if type(dtypes) is not list or len(dtypes) != 2:
        raise PatchError("a cast of it does not name two types")
    before, after = (_floats(dtype_named(name)) for name in dtypes)
    return _predicted(step, needed(base), back, Cast(before, after), step.parts(4))


def _low_rank(step: Step, base: Words | None, back: bool) -> Words:
    base = needed(base)
    total = words_in(base)
    row = row_of(base.shape, total)
    rank, bits = step.natural("rank", MOST_RANK), step.natural("bits", BITS[-1])
    exponent = step.facts.get("exponent")
    if len(base.shape) < 2 or bits not in BITS or type(exponent) is not int or abs(exponent) > 4000:
        raise PatchError("its factors do not fit a matrix")
    left, right, *parts = step.parts(6)
    factors = factor(left, (total // row, rank), bits), factor(right, (rank, row), bits)
    return _predicted(step, base, back, LowRank(_floats(base.dtype), *factors, exponent, bits), parts)


def factor(part: Bytes, shape: tuple[int, int], bits: int) -> Array:
    """A factor of whole numbers, int64 of `shape`."""
    coded = np.dtype(f"<i{2 if bits <= 16 else 4}")
    size = math.prod(shape) * coded.itemsize
    if size > 8 * part.size + (1 << 20):  # numbers of a factor do not get so much shorter
        raise PatchError("its factors are cut short")
    raw = unsqueeze(part.view(), size)
    found = np.frombuffer(raw, np.uint8).reshape(coded.itemsize, -1).T.copy().view(coded).astype(np.int64)
    if found.size and np.abs(found).max() >= 1 << (bits - 1):
        raise PatchError("a number of its factors is too large")
    return found.reshape(shape)


# ── structure ──────────────────────────────────────────────────────────────────────────────────────


def _new(step: Step, base: Words | None, back: bool) -> Words | None:
    if back:
        brought = _literal(step)
        if base is None or (base.dtype, base.shape) != (brought.dtype, brought.shape):
            raise PatchError("it takes away a tensor that is not there")
        return None
    if base is not None:
        raise PatchError("it adds a tensor that is there")
    return _literal(step)


def _literal(step: Step) -> Literal:
    dtype, shape = dtype_named(step.facts.get("dtype")), step.shape()
    if math.prod(shape) % dtype.group:
        raise PatchError(f"its tensor of {dtype.name} does not end on a byte")
    return Literal(dtype, shape, _coded(step.parts(2), shape, dtype))


def _grown(step: Step, base: Words | None, back: bool) -> Words:
    base = needed(base)
    if not base.shape or not elementwise(base.dtype):
        raise PatchError("it appends rows to what has none")
    rows = step.natural("rows", base.shape[0] if back else 1 << 40)
    rest = base.shape[1:]
    if back:
        return Shaped(base, (base.shape[0] - rows, *rest))
    shape = (rows, *rest)
    if not is_sensible((base.shape[0] + rows, *rest)):
        raise PatchError("it appends too many rows")
    return Grown(base, Literal(base.dtype, shape, _coded(step.parts(2), shape, base.dtype)))


def _reshaped(step: Step, base: Words | None, back: bool) -> Words:
    base = needed(base)
    step.parts(0)
    before, after = step.shape("before"), step.shape("after")
    if base.shape != (after if back else before) or math.prod(before) != math.prod(after):
        raise PatchError("its new shape does not hold what the old one does")
    return Shaped(base, before if back else after)


_BUILDERS: dict[str, Callable[[Step, Words | None, bool], Words | None]] = {
    "sparse": _xored,
    "dense": _xored,
    "block": _xored,
    "permuted": _permuted,
    "scaled": _scaled,
    "low_rank": _low_rank,
    "cast": _cast,
    "new": _new,
    "rows_added": _grown,
    "reshaped": _reshaped,
}
