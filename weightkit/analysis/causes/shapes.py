"""Causes that change a shape: rows or columns that were appended, removed, or both with others changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from weightkit.analysis.causes.evidence import Found
from weightkit.dtypes import Array
from weightkit.weight import Weight

AT_ONCE = 1 << 20  # numbers that are read
RELATED = 0.1  # correlation of what both have: below, it is another matrix


def shapes(a: Weight, b: Weight) -> Found:
    """What became of a in b, which has another shape."""
    axis = next((i for i, (m, n) in enumerate(zip(a.shape, b.shape, strict=False)) if m != n), 0)
    others = [tuple(n for i, n in enumerate(w.shape) if i != axis) for w in (a, b)]
    if len(a.shape) != len(b.shape) or others[0] != others[1] or len(a.shape) > 2:
        return {"kind": "replaced", "correlation": None}
    name = a.axes[axis].name
    before, after = (list(_digests(w, axis)) for w in (a, b))
    common = min(len(before), len(after))
    same = [x == y for x, y in zip(before, after, strict=False)]
    found: Found = {"kind": "rows", "axis": name, "appended": max(0, len(after) - common)}
    found |= {"removed": max(0, len(before) - common), "of": len(before)}
    if all(same):
        return found
    kept = _within(after, before)
    if kept is not None:
        gone = sorted(set(range(len(before))).difference(kept))
        return found | {"items": gone}
    if sum(same) >= common / 2 or _related(a, b, axis, common):
        return found | {"changed": common - sum(same)}
    return {"kind": "replaced", "correlation": None}


def _digests(weight: Weight, axis: int) -> Iterator[bytes]:
    """Of each line along an axis, what tells it from others: its numbers, whatever type they are stored in."""
    for part in _parts(weight, axis, weight.shape[axis]):
        yield from (hashlib.blake2b(line.tobytes(), digest_size=16).digest() for line in part)


def _parts(weight: Weight, axis: int, count: int) -> Iterator[Array]:
    """The first lines along an axis as rows of float32, some at a time."""
    step = max(1, AT_ONCE * weight.shape[axis] // max(1, weight.size))
    whole = tuple(slice(0, n, 1) for n in weight.shape)
    for first in range(0, count, step):
        region = (*whole[:axis], slice(first, min(first + step, count), 1), *whole[axis + 1 :])
        block = weight.dtype.decode(weight.read(region))
        yield np.ascontiguousarray(block.T if axis else block).reshape(region[axis].stop - first, -1)


def _within(fewer: list[bytes], more: list[bytes]) -> set[int] | None:
    """Which of the lines those are that are left, in their order; None where there are others."""
    places, at = set(), 0
    for line in fewer:
        while at < len(more) and more[at] != line:
            at += 1
        if at == len(more):
            return None
        places.add(at)
        at += 1
    return places


def _related(a: Weight, b: Weight, axis: int, common: int) -> bool:
    x, y = (next(_parts(w, axis, common)).astype(np.float64) for w in (a, b))
    count = min(len(x), len(y))
    x, y = (m[:count].ravel() - m[:count].mean() for m in (x, y))
    norms = float(np.sqrt((x @ x) * (y @ y)))
    return norms > 0 and abs(float(x @ y)) >= RELATED * norms
