"""Causes that leave what a had where it was, line by line: zeroed, permuted, scaled."""

from __future__ import annotations

import numpy as np

from weightkit.analysis.causes.evidence import Evidence, Found, Sample, short
from weightkit.dtypes import Array

PATTERNS = ((2, 4), (1, 2), (4, 8))  # zeros of each so many numbers that hardware can leave out
FEW = 0.01  # of the numbers: fewer zeros here and there are coordinates, which `sparse` names


def zeroed(evidence: Evidence) -> Found | None:
    """Zeros where a had numbers: lines along either axis, heads and neurons by name, a pattern, or the smallest.

    Where b is 0 or a, Σab and Σb² add the same numbers in the same order, and are the same to the bit.
    """
    sums = evidence.sums
    if not np.array_equal(sums.ab, sums.bb) or sums.total("bad") or not (sums.bb < sums.aa).any():
        return None
    gone = np.flatnonzero((sums.bb == 0) & (sums.aa > 0))
    if gone.size == evidence.active.size:
        if gone.size == len(sums.aa):
            return {"kind": "zeroed", "axis": "all"}
        return {"kind": "zeroed", **evidence.named(sums.axis, gone)}
    across = evidence.across
    empty = np.flatnonzero(~across.y.any(axis=0) & across.x.any(axis=0))
    had = (across.x[:, empty] != 0).mean() if empty.size else 0.0
    if empty.size and sums.total("differ") <= empty.size * len(sums.aa) and _near(evidence, empty, had):
        return {"kind": "zeroed", **evidence.named(1 - sums.axis, empty)}
    share = sums.total("differ") / evidence.size
    if share < FEW:
        return None
    return {"kind": "zeroed", "axis": "element", "share": share, "pattern": _pattern(evidence.sample)}


def _near(evidence: Evidence, empty: Array, had: float) -> bool:
    """Whether zeros in these lines, of which a share was none before, are all that changed."""
    expected = empty.size * (evidence.sums.aa > 0).sum() * had
    return evidence.sums.total("differ") >= 0.98 * expected and bool(
        evidence.across.changed.sum() == evidence.across.changed[:, empty].sum()
    )


def _pattern(sample: Sample) -> str:
    """How the numbers to be zeroed were chosen."""
    zeros = sample.y == 0
    for few, of in PATTERNS:
        whole = zeros[:, : zeros.shape[1] // of * of].reshape(-1, of).sum(axis=1)
        if whole.size and (whole >= few).all() and (whole == few).mean() > 0.9:
            return f"{few}:{of}"
    size = np.abs(sample.x)
    if size[sample.changed].max() <= size[~zeros].min():
        return "smallest"
    lowest = np.where(zeros, np.inf, size).min(axis=1)
    by_row = np.where(sample.changed, size, 0.0).max(axis=1) <= lowest
    return "smallest of each row" if by_row.all() else "other"


# ── permuted ───────────────────────────────────────────────────────────────────────────────────────────


def permuted(evidence: Evidence) -> Found | None:
    """Lines of a in another order, along the file's lines by their sums, along the other axis by their numbers.

    `permutation[i]` is which of a is the i-th of b.
    """
    sums = evidence.sums
    if evidence.a.dtype != evidence.b.dtype or sums.total("bad"):
        return None
    order = _order(sums.aa, sums.bb) if len(sums.aa) > 1 else None
    if order is not None and _is(evidence, order):
        return {"kind": "permuted", **evidence.moved(sums.axis, order)}
    if not np.allclose(sums.aa, sums.bb, rtol=1e-9, atol=0):  # the same numbers, added in another order
        return None
    across = evidence.across
    order = _order(*(_keys(m) for m in (across.x, across.y)))
    if order is None or not np.array_equal(across.x[:, order], across.y):
        return None
    return {"kind": "permuted", **evidence.moved(1 - sums.axis, order)}


def _keys(matrix: Array) -> Array:
    """A number for each column that is another one where the columns are: a sum with random weights."""
    weights = np.random.Generator(np.random.Philox(1)).standard_normal(len(matrix))
    return (matrix * weights[:, None]).sum(axis=0)


def _order(of_a: Array, of_b: Array) -> Array | None:
    """Where each of b is among a; None where they are not the same."""
    one, other = np.argsort(of_a, kind="stable"), np.argsort(of_b, kind="stable")
    if not np.array_equal(of_a[one], of_b[other]):
        return None
    order = np.empty(one.size, np.int64)
    order[other] = one
    return order


def _is(evidence: Evidence, order: Array) -> bool:
    """Whether some lines of b are to the bit those of a that they should be."""
    y = evidence.across
    x = evidence.read(evidence.a, order[y.rows])
    return np.array_equal(x, y.y)


# ── scaled ─────────────────────────────────────────────────────────────────────────────────────────────


def scaled(evidence: Evidence) -> Found | None:
    """A factor for all, for each row or for each column; those that keep theirs are left out."""
    sample = evidence.sample
    total = float((sample.x * sample.x).sum())
    if not total or not np.isfinite(total) or sample.changed.sum() < 4:
        return None
    factor = float((sample.x * sample.y).sum()) / total
    everywhere = evidence.active.size == (evidence.sums.aa > 0).sum()
    if everywhere and sample.explains(factor * sample.x) and _all_columns(evidence):
        return {"kind": "scaled", "axis": "all", "factor": short(factor, _error(sample, sample.changed.sum()))}
    aa = evidence.sums.aa
    lines = np.divide(evidence.sums.ab, aa, out=np.ones(aa.size), where=aa > 0)
    if len(lines) > 1:
        here = lines[sample.columns][None] if evidence.sums.axis else lines[sample.rows][:, None]
        if evidence.along >= 4 and sample.explains(here * sample.x):
            return _factors(evidence, evidence.sums.axis, lines, evidence.active, _error(sample, evidence.along))
    across = evidence.across
    if len(across.x) < 4:
        return None  # a factor for each of one or two numbers explains anything
    size = (across.x * across.x).sum(axis=0)
    columns = np.divide((across.x * across.y).sum(axis=0), size, out=np.ones(size.size), where=size > 0)
    if not across.explains(columns * across.x):
        return None
    moved = np.flatnonzero(across.changed.mean(axis=0) > 0)
    return _factors(evidence, 1 - evidence.sums.axis, columns, moved, _error(sample, len(across.x)))


def _all_columns(evidence: Evidence) -> bool:
    """Whether no line of the other axis was left as it was, but for zeros."""
    across = evidence.across
    return bool((across.changed.any(axis=0) | ~across.x.any(axis=0)).all()) or len(across.x) < 4


def _error(sample: Sample, count: float) -> float:
    """How far a factor that so many numbers tell may be off: by their rounding, four standard deviations."""
    size = np.abs(sample.x)
    relative = float((sample.half / np.where(size > 0, size, np.inf)).mean())
    return 4 * relative / max(1.0, float(count)) ** 0.5


def _factors(evidence: Evidence, axis: int, factors: Array, moved: Array, error: float) -> Found:
    found = evidence.named(axis, moved)
    here = factors[moved]
    each = here.reshape(len(found["items"]), -1).mean(axis=1)  # of a head whose rows have one factor
    spread = float(np.abs(here - np.median(here)).max())
    if spread <= 2 * error:
        return {"kind": "scaled", **found, "factor": short(float(np.median(here)), error / here.size**0.5)}
    if found["axis"] not in ("row", "column") and np.abs(here.reshape(len(each), -1) - each[:, None]).max() > 2 * error:
        found, each = {"axis": "row" if axis == 0 else "column", "items": moved.tolist()}, here
    return {"kind": "scaled", **found, "factors": [short(float(f), error) for f in each]}
