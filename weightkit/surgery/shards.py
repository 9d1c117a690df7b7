"""Shards: new safetensors files, written in pieces that any executor may take, in any order, to the same bytes.

Where a piece is written twice, as its first worker died or seemed to, the bytes are the same.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weightkit.formats.safetensors import header
from weightkit.parallel import Progress, Work
from weightkit.surgery.place import sync
from weightkit.tensor import BLOCK, Derived, Source, Tensor

if TYPE_CHECKING:
    from concurrent.futures import Executor

PIECE = 1 << 25  # numbers of one task
METADATA = {"format": "pt"}

Named = tuple[str, Source]


@dataclass(frozen=True)
class _Piece:
    """Some elements of a tensor, and where in a file their bytes go."""

    path: Path
    at: int
    source: Source
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.source.dtype.nbytes(self.stop - self.start)


def write(
    files: Sequence[tuple[Path, Sequence[Named]]],
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> None:
    """Write tensors under the given names into new files. `progress` is told bytes.

    Workers of an executor write into the same files, so they need to see them under the same paths.
    """
    pieces = [piece for path, tensors in files for piece in _begun(path, tensors)]
    sizes = [piece.nbytes for piece in pieces]
    for _ in Work(executor, progress, sum(sizes)).map(_write, pieces, sizes):
        pass
    for path, _ in files:
        sync(path)


def _begun(path: Path, tensors: Sequence[Named]) -> Iterator[_Piece]:
    """Make a file of the size that it will have, with its header; what is left to write."""
    beginning = header(tensors, METADATA)
    at = len(beginning)
    with open(path, "wb") as file:
        file.write(beginning)
        file.truncate(at + sum(source.nbytes for _, source in tensors))
    for _, source in tensors:
        size = math.prod(source.shape)
        step = PIECE if _read_anywhere(source) else max(1, size)
        for start in range(0, size, step):
            piece = _Piece(path, at, source, start, min(start + step, size))
            yield piece
            at += piece.nbytes


def _read_anywhere(source: Source) -> bool:
    """Whether its middle is read as fast as its beginning: what is compressed is best read by one worker."""
    while isinstance(source, Derived):
        source = source.base
    return isinstance(source, Tensor)


def _write(piece: _Piece) -> None:
    with open(piece.path, "wb", opener=_existing) as file:
        file.seek(piece.at)
        for start in range(piece.start, piece.stop, BLOCK):
            file.write(piece.source.read(start, min(start + BLOCK, piece.stop)).data)


def _existing(path: str, _flags: int) -> int:
    """Open a file that is there, to write in it: one that is gone must not come back, half empty."""
    return os.open(path, os.O_WRONLY | getattr(os, "O_BINARY", 0))
