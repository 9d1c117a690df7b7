"""Trace: activations of a run, by address; and changes made to them while it runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from weightkit.dtypes import Array
from weightkit.effect.activations import Axes, activations, matching
from weightkit.effect.changes import Applied, Change, Replacement, applied
from weightkit.engine.cache import Cache
from weightkit.engine.forward import Engine
from weightkit.engine.functions import F32
from weightkit.errors import AddressError, EditError, EngineError, NotCapturedError, one_line
from weightkit.parallel import Progress

STEP = 256  # tokens that run at a time
MOST_PATTERN = 1 << 22  # numbers of a pattern that is seen, 16 MB, of which there are a few copies
MOST_LOGITS = 1 << 24

# Takes an address, its axes, the activation of some tokens, without a batch, and the position of the first of them.
Sink = Callable[[str, Axes, Array, int], None]


@dataclass(frozen=True)
class Text:
    """What runs through a model: token ids, and those of its decoder where it has an encoder to read the first."""

    ids: list[int]
    decoder_ids: list[int] | None = None


@dataclass(frozen=True, repr=False)
class Trace(Mapping[str, Array]):
    """The activations that were captured, by address, each with the axes that `axes` names; and the text."""

    text: Text
    axes: dict[str, Axes] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)

    @property
    def ids(self) -> list[int]:
        """The token ids of the text."""
        return self.text.ids

    @property
    def logits(self) -> F32:
        """The logits at every position, [tokens, vocab]."""
        return self["logits"]

    def __repr__(self) -> str:
        return f"<Trace of {len(self.ids):,} tokens: {one_line(self.arrays, most=4)}>"

    def __getitem__(self, address: str) -> Array:
        return held(self.arrays, address)

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


def held(arrays: Mapping[str, Array], address: str) -> Array:
    """The array at an address; NotCapturedError, which says what is there, where there is none."""
    try:
        return arrays[address]
    except KeyError:
        raise NotCapturedError(f"{address}: was not captured; what was is {one_line(arrays)}") from None


def text_of(engine: Engine, ids: Sequence[int], decoder_ids: Sequence[int] | None = None) -> Text:
    """A text for a model; the decoder beside an encoder has its first token, unless there are ids for it.

    Raises EngineError for ids that are not in the vocabulary, for several texts, and for ids of a decoder beside none.
    """
    if decoder_ids is not None and not engine.has_encoder:
        raise EngineError("this model has no encoder: its only ids are those of the text")
    if engine.has_encoder and decoder_ids is None:
        decoder_ids = [engine.config.decoder_start]
    return Text(_one(engine, ids), None if decoder_ids is None else _one(engine, decoder_ids))


def _one(engine: Engine, ids: Sequence[int]) -> list[int]:
    array = engine.ids(ids)
    if len(array) != 1:
        raise EngineError(f"a trace is of one text, not of {len(array)}")
    return [int(i) for i in array[0]]


def trace(engine: Engine, text: Text, capture: Sequence[str] = (), changes: Sequence[Change] = ()) -> Trace:
    """Run a model on one text and keep the activations that patterns such as `layers.*.out` name, and the logits.

    Raises AddressError for a pattern that names nothing.
    """
    parts: dict[str, list[Array]] = defaultdict(list)
    axes: dict[str, Axes] = {}

    def keep(address: str, names: Axes, x: Array, _start: int) -> None:
        parts[address].append(x.copy())
        axes[address] = names

    record(engine, text, [*capture, "logits"], keep, changes=changes)
    arrays = {address: _joined(found, axes[address]) for address, found in parts.items()}
    return Trace(text, axes, arrays)


def _joined(parts: list[Array], axes: Axes) -> Array:
    """The steps of a run, one after another; the patterns of earlier ones lack the keys that were yet to come."""
    if len(parts) == 1:
        return parts[0]
    if "key" in axes:
        most = parts[-1].shape[-1]
        parts = [np.pad(part, [(0, 0), (0, 0), (0, most - part.shape[-1])]) for part in parts]
    return np.concatenate(parts, axis=axes.index("position"))


def record(
    engine: Engine,
    text: Text,
    capture: Sequence[str],
    sink: Sink,
    *,
    changes: Sequence[Change] = (),
    progress: Progress | None = None,
) -> None:
    """Run a model on one text, some tokens at a time, and give what is captured to `sink` as it passes by.

    What `sink` is given is only lent: it copies what it keeps.
    """
    recorder = _Recorder(engine, text, capture, changes, sink)
    if text.decoder_ids is not None:
        source = engine.encode(text.ids, recorder)
        engine.run(text.decoder_ids, recorder, source=source)
        return
    total = len(text.ids)
    # An array that replaces an activation is that of the whole text.
    at_once = not engine.runs_in_steps(total) or any(isinstance(change, Replacement) for change in changes)
    step = total if at_once else recorder.step(engine.config.heads, engine.config.vocab)
    cache = Cache()
    for start in range(0, total, step):
        recorder.start = start
        engine.run(text.ids[start : start + step], recorder, cache)
        if progress is not None:
            progress(min(start + step, total), total)


def captured(engine: Engine, capture: Sequence[str]) -> list[str]:
    """The addresses of the activations that patterns name, each once. AddressError for one that names none."""
    names: dict[str, None] = {}
    for pattern in capture:
        found, address = matching(engine, pattern)
        if address.index:
            raise AddressError(f"{pattern}: all of an activation is captured; leave out the index")
        names |= dict.fromkeys(found)
    return list(names)


class _Recorder:
    """A tap that changes activations and passes on those that are captured."""

    def __init__(
        self, engine: Engine, text: Text, capture: Sequence[str], changes: Sequence[Change], sink: Sink
    ) -> None:
        self.start = 0  # the position of the first token of this step
        self._text = text
        self._axes = activations(engine)
        self._sink = sink
        self._captured = set(captured(engine, capture))
        self._changes: dict[str, list[Applied]] = defaultdict(list)
        for change in changes:
            if not isinstance(change, Change):
                raise EditError(f"{change!r} is no change: make one with wk.zero, wk.set, wk.scale or wk.replace")
            found, address = matching(engine, change.address)
            for name in found:
                self._changes[name].append(applied(change, address, self._axes[name], self._tokens(name)))

    def _tokens(self, name: str) -> int:
        decoder = self._text.decoder_ids
        return len(self._text.ids if decoder is None or name.startswith("encoder.") else decoder)

    def step(self, heads: int, vocab: int) -> int:
        """Tokens that can run at a time: all their scores, and their logits, are there at once where they are seen."""
        most = STEP
        if any(self.wants(name) for name, axes in self._axes.items() if "key" in axes):
            most = min(most, MOST_PATTERN // (heads * len(self._text.ids)))
        if self.wants("logits"):
            most = min(most, MOST_LOGITS // vocab)
        return max(1, most)

    def wants(self, address: str) -> bool:
        return address in self._captured or address in self._changes

    def __call__(self, address: str, x: Array) -> Array:
        if not self.wants(address):
            return x
        axes = self._axes[address]
        inner = x[0] if x.ndim > len(axes) else x  # without the batch
        for change in self._changes.get(address, ()):
            inner = change(inner, self.start)
        if address in self._captured:
            self._sink(address, axes, inner, self.start)
        return inner.reshape(x.shape)
