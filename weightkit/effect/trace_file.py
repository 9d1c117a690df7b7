"""Trace files: activations in HDF5, one dataset for each address, with the texts one after another along positions.

    layers.3.out                     [position, residual], with its axes as attribute and as labels of its dimensions
    ids, tokens, text                [position]: the token, how it reads, and the number of the text that it is in
    encoder.ids, encoder.tokens, …   the same of what an encoder reads

Patterns of shorter texts are filled with zeros. What is done to the file is done to a copy, put in place when whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from weightkit.dtypes import Array
from weightkit.effect.activations import Axes
from weightkit.effect.changes import GROWING, Change
from weightkit.effect.trace import Sink, Text, captured, record
from weightkit.engine.forward import Engine
from weightkit.errors import SaveError, one_line, printable
from weightkit.parallel import Progress
from weightkit.surgery.place import beside, put, sync

SCHEMA = "weightkit.trace/1"
CHUNK = {"position": 16, "key": 256, "source": 256, "head": 1, "kv_head": 1}  # by axis
MOST_CHUNK = 4096  # along any other


def save(
    engine: Engine,
    text: Text,
    out: Path,
    capture: Sequence[str],
    *,
    about: Mapping[str, str],
    token_text: Callable[[int], str],
    changes: Sequence[Change] = (),
    append: bool = False,
    force: bool = False,
    also: Sink | None = None,
    progress: Progress | None = None,
) -> None:
    """Run a model on one text and write what is captured to an HDF5 file, some tokens at a time.

    `about` becomes attributes of the file; what is appended must have the same. `also` is given all that is written.
    Raises SaveError where it cannot be written, and the destination is as it was.
    """
    names = captured(engine, capture)
    if not names:
        raise SaveError(f"{out}: nothing is captured, so there is nothing to write")
    continued = _require_place(out, append=append, force=force)
    with beside(out) as scratch:
        new = scratch / out.name
        if continued:
            shutil.copyfile(out, new)
        with _file(new, out) as file:
            with _said(out):
                _require_same(file, out, names, about) if continued else file.attrs.update(about, schema=SCHEMA)
                writer = _Writer(file, out, text, token_text)

            def sink(address: str, axes: Axes, x: Array, start: int) -> None:
                with _said(out):
                    writer.write(address, axes, x, start)
                if also is not None:
                    also(address, axes, x, start)

            record(engine, text, capture, sink, changes=changes, progress=progress)
        sync(new)
        put(new, out, scratch)


def _require_place(out: Path, *, append: bool, force: bool) -> bool:
    """Whether `out` is a trace to go on with; SaveError where a trace cannot be put there."""
    try:
        if not (out.exists() or out.is_symlink()):
            return False
    except (OSError, ValueError) as error:
        raise SaveError(f"{out}: cannot be written to: {error}") from None
    if not (append or force):
        raise SaveError(f"{out}: exists already; choose another place, --append to add to it, or --force to replace it")
    if not _is_trace(out):
        raise SaveError(f"{out}: exists, and is not a trace: it will not be touched; choose another place")
    return append


def _is_trace(path: Path) -> bool:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return bool(file.attrs.get("schema") == SCHEMA)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return False


def _require_same(file: Any, out: Path, names: Sequence[str], about: Mapping[str, str]) -> None:
    for key, value in about.items():
        there = file.attrs.get(key)
        if there != value:
            raise SaveError(f"{out}: {key} there: {there or 'none'}, now: {value or 'none'}; choose another file")
    held = {name for name in file if "axes" in file[name].attrs}
    if held != set(names):
        differ = one_line(sorted(held ^ set(names)), most=3)
        raise SaveError(f"{out}: holds other activations ({differ}); capture the same, or choose another file")


@contextmanager
def _file(new: Path, out: Path) -> Iterator[Any]:
    """The HDF5 file. Closing it writes, and can fail as writing can; a failure before that is not hidden by it."""
    import h5py

    with _said(out):
        file = h5py.File(new, "a", rdcc_nbytes=0)  # a cache for each of hundreds of datasets would add up
    try:
        yield file
    except BaseException:
        with suppress(Exception):
            file.close()
        raise
    with _said(out):
        file.close()


@contextmanager
def _said(out: Path) -> Iterator[None]:
    """What h5py raises, said in one line."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else printable(str(error))
        raise SaveError(f"{out}: not written: {reason}; the destination is as it was") from None


class _Writer:
    """Writes activations behind those of the texts that a file holds."""

    def __init__(self, file: Any, out: Path, text: Text, token_text: Callable[[int], str]) -> None:
        self._file = file
        self._out = out  # what it will be called, for errors
        self._starts: dict[str, int] = {}  # of this text, for what an encoder reads and for the rest
        self._begin("" if text.decoder_ids is None else "encoder.", text.ids, token_text)
        if text.decoder_ids is not None:
            self._begin("", text.decoder_ids, token_text)

    def _begin(self, prefix: str, ids: Sequence[int], token_text: Callable[[int], str]) -> None:
        import h5py

        held = self._file.get(f"{prefix}text")
        start = self._starts[prefix] = 0 if held is None else len(held)
        number = 0 if held is None else int(held[-1]) + 1
        words = [token_text(i).replace("\0", "\\0") for i in ids]  # where a string would end in HDF5
        columns: dict[str, tuple[Any, Any]] = {
            "ids": (ids, np.int64),
            "tokens": (words, h5py.string_dtype()),
            "text": ([number] * len(ids), np.int64),
        }
        for name, (values, kind) in columns.items():
            dataset = self._file.require_dataset(
                f"{prefix}{name}", (start,), kind, chunks=(1024,), maxshape=(None,), exact=False
            )
            dataset.resize((start + len(ids),))
            dataset[start:] = values

    def write(self, address: str, axes: Axes, x: Array, start: int) -> None:
        """Some tokens of an activation, the first of them at `start` of the text."""
        dataset = self._file.get(address)
        dataset = self._made(address, axes, x) if dataset is None else dataset
        at = start + self._starts["encoder." if address.startswith("encoder.") else ""]
        place = axes.index("position")
        needed = (*x.shape[:place], at + x.shape[place], *x.shape[place + 1 :])
        if any(dataset.shape[i] != n for i, n in enumerate(needed) if axes[i] not in GROWING):
            raise SaveError(f"{self._out}: {address} has other sizes there; choose another file")
        grown = tuple(np.maximum(dataset.shape, needed))
        if grown != dataset.shape:
            dataset.resize(grown)
        where = [slice(0, n) for n in x.shape]
        where[place] = slice(at, at + x.shape[place])
        dataset[tuple(where)] = x

    def _made(self, address: str, axes: Axes, x: Array) -> Any:
        chunks = tuple(CHUNK.get(axis, min(max(1, n), MOST_CHUNK)) for axis, n in zip(axes, x.shape, strict=True))
        shape = tuple(0 if axis in GROWING else n for axis, n in zip(axes, x.shape, strict=True))
        most = tuple(None if axis in GROWING else n for axis, n in zip(axes, x.shape, strict=True))
        dataset = self._file.create_dataset(address, shape, x.dtype, chunks=chunks, maxshape=most)
        dataset.attrs["axes"] = axes
        for dimension, axis in zip(dataset.dims, axes, strict=True):
            dimension.label = axis
        return dataset
