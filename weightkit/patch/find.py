"""Find: rules that make most of one tensor out of another: an order, a factor, a product of low rank.

What is found need not be right: a rule is written with what it has wrong, and taken where that is shorter.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from weightkit.dtypes import Array
from weightkit.patch.layers import words_in
from weightkit.patch.positions import row_of
from weightkit.patch.predict import BITS, MOST_RANK, LowRank, Scale, numbers, step, whole_factors
from weightkit.tensor import BLOCK
from weightkit.words import Words

MOST_LINES = 1 << 20  # rows or columns that an order is looked for in
SAMPLE = 1 << 16  # numbers that a factor is looked for in
RIGHT = 0.9  # of them that a factor must get right
SAMPLED_ROWS = 384  # that a rank is looked for in
# Rounds of refining factors, by the bits of a number: how much finer than most a small number counts in each.
ROUNDS = {16: (8.0, 64.0), 32: (4.0, 8.0, 16.0, 32.0, 64.0, 128.0)}
EDGE = 1.2  # singular values of rounding noise reach σ(√rows + √columns); it is not the same in every number


# ── order ──────────────────────────────────────────────────────────────────────────────────────────


def orders(a: Words, b: Words) -> Iterator[tuple[int, Array]]:
    """Orders of rows (axis 0) or columns (axis 1) in which most lines of `a` are found in `b`."""
    total = words_in(a)
    row = row_of(a.shape, total)
    if len(a.shape) < 2 or row > BLOCK or max(total // row, row) > MOST_LINES:
        return
    mine, theirs = _line_hashes(a, row), _line_hashes(b, row)
    for axis, (x, y) in enumerate(zip(mine, theirs, strict=True)):
        order = _match(x, y)
        if order is not None:
            yield axis, order


def _line_hashes(words: Words, row: int) -> tuple[Array, Array]:
    """A hash of every row and every column, uint64: sums of words times odd numbers, modulo 2^64."""
    total = words_in(words)
    random = np.random.default_rng(0)
    by_row, by_column = (
        random.integers(0, 1 << 63, n, np.uint64) * np.uint64(2) + np.uint64(1) for n in (row, total // row)
    )
    rows, columns = np.empty(total // row, np.uint64), np.zeros(row, np.uint64)
    step = max(1, BLOCK // 4 // row)
    for first in range(0, total // row, step):
        last = min(first + step, total // row)
        block = words.words(first * row, last * row).reshape(-1, row).astype(np.uint64)
        rows[first:last] = (block * by_row).sum(axis=1)
        columns += (block * by_column[first:last, None]).sum(axis=0)
    return rows, columns


def _match(x: Array, y: Array) -> Array | None:
    """Which of `x` each of `y` is; None where it is mostly none, or where it is where it was. int64."""
    stay = x == y
    mine, theirs = np.flatnonzero(~stay), np.flatnonzero(~stay)
    mine, theirs = mine[np.argsort(x[mine], kind="stable")], theirs[np.argsort(y[theirs], kind="stable")]
    found = np.searchsorted(x[mine], y[theirs])  # lines of one hash are taken in order
    found += np.arange(len(found)) - np.searchsorted(y[theirs], y[theirs])
    found = np.minimum(found, max(0, len(mine) - 1))
    right = x[mine][found] == y[theirs] if len(mine) else np.zeros(0, bool)
    if right.sum() <= len(mine) // 2 or not len(mine):
        return None
    order = np.arange(len(x))
    order[theirs[right]] = mine[found[right]]
    order[np.sort(theirs[~right])] = np.setdiff1d(mine, mine[found[right]])
    return order


# ── factor ─────────────────────────────────────────────────────────────────────────────────────────


def factors(a: Words, b: Words) -> Iterator[float]:
    """A factor that makes most numbers of `b` of those of `a`, as short as it can be written."""
    total = words_in(a)
    low = max(0, min(total // 2, total - SAMPLE))
    x, y = (words.words(low, min(low + SAMPLE, total)) for words in (a, b))
    interval = _interval(a, x, y)
    if interval is None:
        return
    factor = _shortest(*interval)
    if not np.isfinite(factor) or factor in (0.0, 1.0):
        return
    found, _ = Scale(a.dtype, factor).predict(x, low, back=False)
    if np.mean(found == y) >= RIGHT:
        yield factor


def _interval(a: Words, x: Array, y: Array) -> tuple[float, float] | None:
    """Between which factors all numbers x become y by rounding; about the likeliest one, where there is none."""
    before, after = numbers(x, a.dtype), numbers(y, a.dtype)
    with np.errstate(all="ignore"):
        ratio = after / before
        usable = np.isfinite(ratio) & (ratio != 0)
        if usable.sum() < max(2, len(x) // 8):
            return None
        half = step(y, a.dtype)[usable] / 2 / np.abs(before[usable])
    ratio = ratio[usable]
    low, high = float((ratio - half / 2).max()), float((ratio + half / 2).min())
    if low <= high:
        return low, high
    low, high = float((ratio - half).max()), float((ratio + half).min())
    if low <= high:
        return low, high
    middle = float(np.median(ratio))
    return middle, middle


def _shortest(low: float, high: float) -> float:
    middle = (low + high) / 2
    rounded = (float(f"{middle:.{digits}g}") for digits in range(1, 17))
    return next((f for f in rounded if low <= f <= high), middle)


# ── low rank ───────────────────────────────────────────────────────────────────────────────────────


def low_rank(a: Words, b: Words) -> Iterator[LowRank]:
    """Factors whose product is the change, as far as rounding lets it be seen."""
    total = words_in(a)
    row = row_of(a.shape, total)
    if len(a.shape) < 2 or a.dtype.name not in ("F32", "BF16", "F16") or min(row, total // row) < 16 or row > BLOCK:
        return
    change = _Change(a, b, row)
    right = change.right_factor()
    if right is None:
        return
    left = change.left_of(right)
    for change.finest in ROUNDS[a.dtype.bits]:
        right = change.right_of(left)
        left = change.left_of(right)
    factors = _balanced(left, right)
    for bits in BITS[1:] if a.dtype.bits > 16 else BITS[:1]:
        yield LowRank(a.dtype, *whole_factors(*factors, bits), bits)


def _balanced(left: Array, right: Array) -> tuple[Array, Array]:
    """Factors of the same product whose components are in order, and of the same size on both sides."""
    q, r = np.linalg.qr(left)
    u, s, v = np.linalg.svd(r @ right, full_matrices=False)
    return q @ u * np.sqrt(s), v * np.sqrt(s)[:, None]


class _Change:
    """The change of a matrix, read block by block as float64 [rows, row]."""

    def __init__(self, a: Words, b: Words, row: int) -> None:
        self.a, self.b, self.row = a, b, row
        self.rows = words_in(a) // row
        self.finest = 1.0
        self.typical = 0.0  # how far a number is from the next

    def block(self, chosen: Array | slice) -> tuple[Array, Array]:
        """The change of some rows, 0 where it is none, and how far a number of them is from the next."""
        if isinstance(chosen, slice):
            low, high = chosen.start * self.row, chosen.stop * self.row
            x, y = (words.words(low, high).reshape(-1, self.row) for words in (self.a, self.b))
        else:
            x, y = self.a.rows(chosen), self.b.rows(chosen)
        with np.errstate(all="ignore"):
            change = numbers(y, self.b.dtype) - numbers(x, self.a.dtype)
            steps = step(y, self.b.dtype)
        fine = np.isfinite(change) & np.isfinite(steps)
        return np.where(fine, change, 0.0), np.where(fine, steps, 0.0)

    def blocks(self) -> Iterator[slice]:
        """Rows in blocks of bounded size."""
        size = max(1, BLOCK // 4 // self.row)
        for first in range(0, self.rows, size):
            yield slice(first, min(first + size, self.rows))

    def right_factor(self) -> Array | None:
        """Directions of the rows' change that stand out of rounding noise, [rank, row]; None without, or with many."""
        some = np.unique(np.linspace(0, self.rows - 1, min(self.rows, SAMPLED_ROWS)).astype(np.int64))
        change, steps = self.block(some)
        noise = np.sqrt(np.mean(steps**2) / 12)
        values, vectors = np.linalg.eigh(change @ change.T)
        edge = EDGE * noise * (np.sqrt(len(some)) + np.sqrt(self.row))
        rank = int(np.sum(values > edge**2))
        if not 0 < rank <= min(MOST_RANK, len(some) // 2, self.row // 2):
            return None
        return np.asarray(vectors[:, ::-1][:, :rank].T @ change)

    def left_of(self, right: Array) -> Array:
        """The left factor that goes best with a right one, [rows, rank]."""
        pairs = _pairs(right.T)
        found = []
        for some in self.blocks():
            change, weights = self.weighted(some)
            found.append(_solved(weights @ pairs, (weights * change) @ right.T))
        return np.concatenate(found)

    def right_of(self, left: Array) -> Array:
        """The right factor that goes best with a left one, [rank, row]."""
        rank = left.shape[1]
        grams, sides = np.zeros((self.row, rank * (rank + 1) // 2)), np.zeros((self.row, rank))
        for some in self.blocks():
            change, weights = self.weighted(some)
            grams += weights.T @ _pairs(left[some])
            sides += (weights * change).T @ left[some]
        return _solved(grams, sides).T

    def weighted(self, some: slice) -> tuple[Array, Array]:
        """The change of some rows, and how much each number says: what is small is rounded less."""
        change, steps = self.block(some)
        self.typical = self.typical or float(np.median(steps)) or 1.0
        weights = (self.typical / np.maximum(steps, self.typical / self.finest)) ** 2
        return change, np.where(steps > 0, weights, 0.0)


def _pairs(vectors: Array) -> Array:
    """The products of every two numbers of each vector, [n, rank] -> [n, rank · (rank + 1) / 2]."""
    i, j = np.triu_indices(vectors.shape[1])
    return vectors[:, i] * vectors[:, j]


def _solved(grams: Array, sides: Array) -> Array:
    """Least squares, one after another: Gram matrices by their upper halves, right sides [n, rank] -> [n, rank]."""
    rank = sides.shape[1]
    i, j = np.triu_indices(rank)
    full = np.empty((len(sides), rank, rank))
    full[:, i, j] = full[:, j, i] = grams
    full += 1e-12 * np.trace(full, axis1=1, axis2=2)[:, None, None] * np.eye(rank) + 1e-300 * np.eye(rank)
    return np.linalg.solve(full, sides[:, :, None])[:, :, 0]
