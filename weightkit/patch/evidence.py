"""Evidence: what differs between two tensors, found in the one pass that also hashes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from weightkit.dtypes import Array
from weightkit.patch.positions import row_of
from weightkit.patch.tree import content_hash, content_of
from weightkit.tensor import BLOCK, Source, place_of
from weightkit.words import Words, count, words_of

MOST_ROW = BLOCK  # words of a row up to which columns are told apart
NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Evidence:
    """Two tensors: the hashes of their contents and, where type and shape are the same, what differs."""

    contents: tuple[bytes, bytes]
    changed: int = 0  # words
    rows: Array | None = None  # those with a change, int64; None: they were not told apart
    columns: Array | None = None

    @property
    def same(self) -> bool:
        """Whether they are the same to the bit."""
        return self.contents[0] == self.contents[1]


def examine(pair: tuple[Source, Source]) -> Evidence:
    """Compare two tensors, which are read in blocks."""
    a, b = pair
    if same_place(a, b):
        content = content_of(a)
        return Evidence((content, content))
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return Evidence((content_of(a), content_of(b)))
    return _compare(words_of(a), words_of(b))


def same_place(a: Source, b: Source) -> bool:
    """Whether two tensors are the same bytes of the same file."""
    if a is b:
        return True
    where = place_of(a)
    if where is None or where != place_of(b) or (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    try:
        return a.path == b.path or a.path.samefile(b.path)
    except OSError:
        return False


def _compare(a: Words, b: Words) -> Evidence:
    total = count(a.dtype, a.shape)
    row = row_of(a.shape, total)
    matrix = len(a.shape) > 1 and row <= MOST_ROW
    step = max(1, BLOCK // row) * row if matrix else BLOCK
    rows, columns = np.zeros(total // row if matrix else 0, bool), np.zeros(row if matrix else 0, bool)
    hashes = content_hash(a.dtype, a.shape), content_hash(b.dtype, b.shape)
    changed = 0
    for start in range(0, total, step):
        x, y = (words.words(start, min(start + step, total)) for words in (a, b))
        for made, found in zip(hashes, (x, y), strict=True):
            made.update(found.data)
        if np.array_equal(x, y):
            continue
        differ = x != y
        changed += int(np.count_nonzero(differ))
        if matrix:
            lines = differ.reshape(-1, row)
            rows[start // row : start // row + len(lines)] = lines.any(axis=1)
            columns |= lines.any(axis=0)
    contents = hashes[0].digest(), hashes[1].digest()
    if not matrix:
        return Evidence(contents, changed)
    return Evidence(contents, changed, np.flatnonzero(rows), np.flatnonzero(columns))
