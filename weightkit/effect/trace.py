"""Trace: activations of a run, by address; and changes made to them while it runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from weightkit.address import Address
from weightkit.dtypes import Array
from weightkit.effect.activations import CHOICES, Axes, activations, matching
from weightkit.engine.cache import Cache
from weightkit.engine.forward import Engine
from weightkit.engine.functions import F32
from weightkit.errors import AddressError, EngineError
from weightkit.parallel import Progress

STEP = 256  # tokens that run at a time

Sink = Callable[
    [str, Axes, Array, int], None
]  # address, axes, activation without the batch, position of its first token


@dataclass(frozen=True)
class Change:
    """What is done to an activation during the run: set to zero, scaled, or replaced.

    An address may have an index by axis, `layers.3.attn.heads[head=2]`; the rest stays as it is.
    """

    address: str
    how: Literal["zero", "scale", "replace"] = "zero"
    value: Any = 0.0  # the factor, or the array in its place, of the shape of what the address names

    def applied(self, x: Array, index: tuple[slice, ...]) -> Array:
        """The activation, changed where the index says."""
        x = x.copy()
        if 0 in x[index].shape and 0 not in x.shape:
            raise AddressError(f"{self.address}: selects nothing of an activation of {list(x.shape)}")
        try:
            x[index] = x[index] * np.float32(self.value) if self.how == "scale" else np.asarray(self.value, np.float32)
        except ValueError:
            shape = list(np.shape(self.value))
            raise EngineError(f"{self.address}: an array of {shape} cannot replace {list(x[index].shape)}") from None
        return x


@dataclass(frozen=True)
class Trace(Mapping[str, Array]):
    """The activations that were captured, each with the axes that `axes` names; and the ids of the text."""

    ids: list[int]
    axes: dict[str, Axes] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)

    @property
    def logits(self) -> F32:
        """The logits at every position, [tokens, vocab]."""
        return self["logits"]

    def __getitem__(self, address: str) -> Array:
        return self.arrays[address]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


def trace(engine: Engine, ids: Sequence[int], capture: Sequence[str] = (), changes: Sequence[Change] = ()) -> Trace:
    """Run a model on one text and keep the activations that patterns such as `layers.*.out` name.

    The logits are kept too. Raises AddressError for a pattern that names nothing.
    """
    parts: dict[str, list[Array]] = defaultdict(list)
    axes: dict[str, Axes] = {}

    def keep(address: str, names: Axes, x: Array, _start: int) -> None:
        parts[address].append(x)
        axes[address] = names

    record(engine, ids, [*capture, "logits"], changes, keep)
    arrays = {address: _joined(found, axes[address]) for address, found in parts.items()}
    return Trace(list(ids), axes, arrays)


def _joined(parts: list[Array], axes: Axes) -> Array:
    """The steps of a run, one after another; the patterns of earlier ones are wider by keys not yet there."""
    if len(parts) == 1:
        return parts[0]
    if "key" in axes:
        most = parts[-1].shape[-1]
        parts = [np.pad(part, [(0, 0), (0, 0), (0, most - part.shape[-1])]) for part in parts]
    return np.concatenate(parts, axis=axes.index("position"))


def record(
    engine: Engine,
    ids: Sequence[int],
    capture: Sequence[str],
    changes: Sequence[Change],
    sink: Sink,
    progress: Progress | None = None,
) -> None:
    """Run a model on one text, giving what is captured to `sink` as it passes by, some tokens at a time."""
    array = engine.ids(ids)
    if len(array) != 1:
        raise EngineError(f"a trace is of one text, not of {len(array)}")
    recorder = _Recorder(engine, capture, changes, array.shape[1], sink)
    if engine.has_encoder:
        source = engine.encode(array, recorder)
        recorder.tokens = 1
        engine.logits([[engine.config.decoder_start]], source=source, tap=recorder)
        return
    in_steps = engine.runs_in_steps(array.shape[1]) and not any(change.how == "replace" for change in changes)
    step = STEP if in_steps else array.shape[1]
    cache = Cache()
    for start in range(0, array.shape[1], step):
        recorder.start = start
        engine.logits(array[:, start : start + step], cache, tap=recorder)
        if progress is not None:
            progress(min(start + step, array.shape[1]), array.shape[1])


class _Recorder:
    """A tap that changes activations and passes on those that are captured."""

    def __init__(
        self, engine: Engine, capture: Sequence[str], changes: Sequence[Change], tokens: int, sink: Sink
    ) -> None:
        self.start = 0  # the position of the first token of this step
        self.tokens = tokens
        self._axes = activations(engine)
        self._captured: set[str] = set()
        self._changes: dict[str, list[tuple[Change, Address]]] = defaultdict(list)
        self._sink = sink
        for pattern in capture:
            found, address = matching(engine, pattern)
            if address.index:
                raise AddressError(f"{pattern}: all of an activation is captured; leave out the index")
            self._captured.update(found)
        for change in changes:
            found, address = matching(engine, change.address)
            for name in found:
                if self._axes[name] == CHOICES:
                    raise AddressError(f"{change.address}: {name} can be seen, not changed")
                _slices(address, self._axes[name], tokens)  # raises where the index does not fit
                self._changes[name].append((change, address))

    def wants(self, address: str) -> bool:
        return address in self._captured or address in self._changes

    def __call__(self, address: str, x: Array) -> Array:
        if not self.wants(address):
            return x
        axes = self._axes[address]
        inner = x[0] if x.ndim > len(axes) else x  # without the batch
        for change, name in self._changes.get(address, ()):
            index = _slices(name, axes, self.tokens)
            here = self._here(index, axes, inner.shape)
            if here is not None:
                inner = change.applied(inner, here)
        if address in self._captured:
            self._sink(address, axes, inner.copy(), self.start)
        return inner.reshape(x.shape)

    def _here(self, index: tuple[slice, ...], axes: Axes, shape: tuple[int, ...]) -> tuple[slice, ...] | None:
        """The index, its positions counted from the first token of this step; None where none of them is in it."""
        place = axes.index("position")
        first, last, step = index[place].indices(self.tokens)
        span = range(first, last, step)
        inside = [at - self.start for at in span if self.start <= at < self.start + shape[place]]
        if span and not inside:
            return None
        here = slice(inside[0], inside[-1] + 1, step) if inside else slice(0, 0)
        return (*index[:place], here, *index[place + 1 :])


def _slices(address: Address, axes: Axes, tokens: int) -> tuple[slice, ...]:
    """What an index by axis names takes of an activation. Raises AddressError for an axis that it has not."""
    result = [slice(None)] * len(axes)
    for place, item in enumerate(address.index):
        axis = axes[place] if item.axis is None and place < len(axes) else item.axis
        if axis not in axes:
            raise AddressError(f"{address}: this activation has no axis {axis}; its axes are {', '.join(axes)}")
        if isinstance(item.at, str):
            raise AddressError(f"{address}: an index is a number or a range such as 2:5")
        at = item.at
        if isinstance(at, int):
            at = at + tokens if at < 0 and axis == "position" else at
            at = slice(at, at + 1 or None)
        result[axes.index(axis)] = at
    return tuple(result)
