"""Singular values of a matrix that is read in pieces: all of them from its Gram matrix, or the largest ones.

Gram matrices are float64 and of the smaller side. What they square they cannot tell from 0 below the square
root of float64's precision: such singular values are 0 here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from weightkit.dtypes import Array, DType
from weightkit.tensor import Region
from weightkit.threads import crew
from weightkit.weight import Selection

PIECE = 1 << 24  # stored elements that are read at a time
CHUNK = 1 << 22  # elements that are float64 at a time
STRIP = 512  # rows of a Gram matrix that are summed at a time
MEMORY = 1 << 28  # bytes that the matrices that are worked on at one time may take

Read = Callable[[], Iterator[Array]]  # gives the chunks of a matrix, float64 [c, n], from the beginning


def chunks(selection: Selection) -> Iterator[Array]:
    """A matrix in chunks across its longer side: float64 [c, n] with n the smaller side."""
    weight, (rows, columns) = selection.weight, selection.region
    tall = selection.shape[0] >= selection.shape[1]
    for part in _parts(rows if tall else columns, max(1, PIECE // min(selection.shape))):
        region: Region = (part, columns) if tall else (rows, part)
        yield from split(weight.read(region), selection.dtype, tall)


def split(stored: Array, dtype: DType, tall: bool) -> Iterator[Array]:
    """Stored elements [out, in] in chunks across their longer side, which is `out` where they are tall."""
    turned = stored if tall else stored.T
    step = max(1, CHUNK // turned.shape[1])
    for start in range(0, len(turned), step):
        yield dtype.decode(turned[start : start + step], np.float64)


def _parts(part: slice, most: int) -> Iterator[slice]:
    taken = range(part.start, part.stop, part.step)
    for start in range(0, len(taken), most):
        some = taken[start : start + most]
        yield slice(some[0], some[-1] + 1, part.step)


def gram(pieces: Iterator[Array], side: int) -> Array:
    """The lower half of the sum of xᵀ x over chunks x [c, side]; the upper half is not to be read. [side, side]

    Strips of rows are summed each by one thread, so the sum does not depend on how many there are.
    """
    total = np.zeros((side, side))
    for x in pieces:

        def add(first: int, x: Array = x) -> None:
            last = min(first + STRIP, side)
            total[first:last, :last] += x[:, first:last].T @ x[:, :last]

        crew.map(add, range(0, side, STRIP)[::-1], work=len(x) * side * side // 2)  # the longest first
        if not np.isfinite(total.diagonal()).all():
            break  # it stays so
    return total


def eigenvalues(total: Array, shape: tuple[int, ...]) -> Array:
    """Those of a Gram matrix, largest first; 0 where they are not to be told from it."""
    found = np.linalg.eigvalsh(total)[::-1]
    found[found <= found[0] * max(shape) * np.finfo(np.float64).eps] = 0
    return found


BASIS = 32  # vectors that a step adds to the basis
STEPS = 8  # each reads the matrix once


@dataclass(frozen=True)
class Largest:
    """The largest eigenvalues of a Gram matrix."""

    eigenvalues: Array  # largest first; 16 at most
    trace: float  # the sum of all: Σ x²


def largest(read: Read, side: int) -> Largest:
    """The largest eigenvalues of the Gram matrix of chunks [c, side], which is not made.

    Block Lanczos from random vectors, the same every time. Source: Musco and Musco, "Randomized block Krylov
    methods for stronger and faster approximate singular value decomposition", 2015, algorithm 2.
    """
    block = np.random.Generator(np.random.Philox(0)).standard_normal((side, min(BASIS, side)))
    basis, images = np.empty((side, 0)), np.empty((side, 0))
    trace = 0.0
    for _ in range(min(STEPS, -(-side // BASIS))):
        block = _orthogonal(block, basis)
        image, trace = np.zeros(block.shape), 0.0
        for x in read():
            image += x.T @ (x @ block)
            trace += float(np.vdot(x, x))
        if not np.isfinite(trace) or not trace:
            return Largest(np.empty(0), trace)
        basis, images, block = np.hstack([basis, block]), np.hstack([images, image]), image
    found = np.linalg.eigvalsh(basis.T @ images)[::-1][: BASIS // 2]
    return Largest(np.maximum(found, 0), trace)


def _orthogonal(block: Array, basis: Array) -> Array:
    """Directions of a block that a basis does not have: [side, b], or what is left of the space."""
    for _ in range(2):  # once leaves rounding behind, which is all that there is where the rank is low
        block = np.linalg.qr(block - basis @ (basis.T @ block))[0]
    return block[:, : len(block) - basis.shape[1]]


# ── memory ─────────────────────────────────────────────────────────────────────────────────────────────


class Room:
    """Memory that threads share: what does not fit beside the others waits, and what fits nowhere has all of it."""

    def __init__(self, size: int) -> None:
        self._size = self._left = size
        self._changed = threading.Condition()

    @contextmanager
    def take(self, wanted: int) -> Iterator[None]:
        """So many bytes for the time being."""
        wanted = min(wanted, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= wanted)
            self._left -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._left += wanted
                self._changed.notify_all()


room = Room(MEMORY)


def memory(shape: tuple[int, ...], itemsize: int) -> int:
    """Bytes that the eigenvalues of a matrix take: the Gram matrix and a copy, or a piece and a chunk beside it."""
    small, size = min(shape), shape[0] * shape[1]
    return 8 * small * small + max(8 * small * small, min(size, PIECE) * itemsize + 16 * min(size, CHUNK))
