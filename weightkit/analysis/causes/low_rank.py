"""Causes of low rank: a merged LoRA, a rank-one edit, a direction that was projected out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from weightkit.analysis.causes.evidence import Evidence, Found, Sample, spacing
from weightkit.dtypes import Array
from weightkit.tensor import Region
from weightkit.weight import Selection

MOST_RANK = 0.5  # of the shorter side: above, a rank is not low
CLEAR = 100.0  # times the energy that rounding makes: the change is seen as it is
EDGE = 1.2  # times the largest singular value that rounding is expected to make
REST = 2.0  # times the energy of rounding that may be left: its estimate is good to far less than this
NEGLIGIBLE = 1e-5  # of the energy, which is what a product rounded to bf16 before it was added leaves
STEPS, HIDDEN_STEPS = 8, 60  # of filling in what rounding hides
MISSED = 0.01  # of the energy that a rank may leave unexplained where much is hidden
PART = (256, 512)  # of the sample that is filled in
ALONG = 0.9  # cosine of what changed and what a has of a direction
TELLS = 8  # the shorter side of a matrix that has a rank to speak of


def low_rank(evidence: Evidence) -> Found | None:
    """A change of low rank, with the share of its energy that the rank explains; or a direction taken out."""
    sample = evidence.sample.sound
    if min(evidence.matrix) < TELLS or min(sample.d.shape) < TELLS:
        return None
    found = _clear(sample) or _hidden(sample)
    if found is None:
        return None
    cause: Found = {"kind": "low_rank", "rank": found.rank, "explained": found.explained}
    if found.rank == 1 and len(evidence.a.shape) == 2:
        return _direction(evidence) or cause
    return cause


@dataclass(frozen=True)
class _Rank:
    rank: int
    explained: float


def _squares(d: Array) -> Array:
    """The squares of the singular values of a matrix, largest first."""
    d = d if d.shape[0] <= d.shape[1] else d.T
    return np.maximum(np.linalg.eigvalsh(d @ d.T)[::-1], 0.0)


def _variance(sample: Sample) -> Array:
    """What rounding b, and rounding the change before it was added, does to each number: spacing² / 12."""
    return np.square(sample.half) / 3 + np.square(spacing(sample.d, sample.storage.name)) / 12 * sample.changed


def _clear(sample: Sample) -> _Rank | None:
    """The rank of a change that is far larger than rounding: singular values above those that rounding makes.

    Source of the edge: Bandeira and van Handel, "Sharp nonasymptotic bounds on the norm of random matrices with
    independent entries", 2016: the largest norm of a row plus that of a column.
    """
    variance = _variance(sample)
    rounding, total = float(variance.sum()), float(np.square(sample.d).sum())
    if total < CLEAR * rounding:
        return None
    squares = _squares(sample.d)
    edge = EDGE * (np.sqrt(variance.sum(axis=1).max()) + np.sqrt(variance.sum(axis=0).max()))
    floor = max(edge**2, total * np.finfo(np.float64).eps * len(squares))
    rank = int((squares > floor).sum())
    rest = float(squares[rank:].sum())
    if not 0 < rank <= MOST_RANK * len(squares):
        rank = int(np.searchsorted(-squares, -total * NEGLIGIBLE / len(squares)))
        rest = float(squares[rank:].sum())
    if not 0 < rank <= MOST_RANK * len(squares) or rest > max(REST * rounding, NEGLIGIBLE * total):
        return None
    return _Rank(rank, 1 - rest / total)


def _hidden(sample: Sample) -> _Rank | None:
    """The rank of a change of which rounding hides a part: the smallest that agrees with all that is seen.

    Each number of b says between which bounds the change lies; the change is filled in within these until it has the
    rank. A rank that can be filled in explains what is seen; noise and training do not fit in few dimensions.
    """
    d, half = (m[: PART[0], : PART[1]] for m in (sample.d, sample.half))
    total = float(np.square(d).sum())
    if not total or sample.changed.mean() < 0.02 or total > CLEAR * float(np.square(half).sum()):
        return None
    most = int(min(d.shape) // 4)
    low, high = 1, most
    if not _agrees(d, half, most, total):
        return None
    while low < high:
        middle = (low + high) // 2
        if _agrees(d, half, middle, total):
            high = middle
        else:
            low = middle + 1
    return _Rank(low, 1 - _missed(d, half, low, total, HIDDEN_STEPS))


def _agrees(d: Array, half: Array, rank: int, total: float) -> bool:
    if _missed(d, half, rank, total, STEPS) > 0.3:
        return False
    return _missed(d, half, rank, total, HIDDEN_STEPS) <= MISSED


def _missed(d: Array, half: Array, rank: int, total: float, steps: int) -> float:
    """The share of the energy that lies outside of the bounds after so many steps of filling in."""
    flip = d.shape[0] > d.shape[1]
    d, half = (d.T, half.T) if flip else (d, half)
    filled = d
    missed = 1.0
    for _ in range(steps):
        _, vectors = np.linalg.eigh(filled @ filled.T)
        basis = vectors[:, -rank:]
        guess = basis @ (basis.T @ filled)
        filled = np.clip(guess, d - half, d + half)
        missed = float(np.square(filled - guess).sum()) / total
        if missed <= MISSED / 10:
            break
    return missed


# ── a direction that was projected out ─────────────────────────────────────────────────────────────────


def _direction(evidence: Evidence) -> Found | None:
    """Whether a change of rank one takes away what a had along a direction: of its outputs, or of its inputs."""
    inward = _first(evidence)
    outward, seen = _products(evidence, inward)
    size = float(np.linalg.norm(outward))
    if not size:
        return None
    if _cosine(outward, seen) <= -ALONG:
        strength = -float(outward @ seen) / float(seen @ seen)
        return {"kind": "direction", "side": "in", "strength": strength, "vector": inward}
    outward /= size
    had, changed = _sums(evidence, outward)
    if _cosine(changed, had) <= -ALONG:
        strength = -float(changed @ had) / float(had @ had)
        return {"kind": "direction", "side": "out", "strength": strength, "vector": outward}
    return None


def _cosine(x: Array, y: Array) -> float:
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size else 0.0


def _first(evidence: Evidence) -> Array:
    """The input direction of a change of rank one, from rows of it. [in]"""
    part = evidence.across.d
    if evidence.sums.axis:  # some columns: the outer direction, through which the inner one is a product
        left = np.linalg.svd(part, full_matrices=False)[2][0]
        inner = np.zeros(evidence.matrix[1])
        for region, x, y in _blocks(evidence):
            inner[region[1]] += left[region[0]] @ (y - x)
        return inner / (np.linalg.norm(inner) or 1.0)
    return np.linalg.svd(part, full_matrices=False)[2][0]


def _blocks(evidence: Evidence) -> Iterator[tuple[Region, Array, Array]]:
    for region, stored in Selection.of(evidence.a).blocks():
        x = evidence.a.dtype.decode(stored, np.float64)
        yield region, x, evidence.b.dtype.decode(evidence.b.read(region), np.float64)


def _products(evidence: Evidence, inward: Array) -> tuple[Array, Array]:
    """The change, and a, times a direction of inputs. [out] each"""
    change, before = np.zeros(evidence.matrix[0]), np.zeros(evidence.matrix[0])
    for region, x, y in _blocks(evidence):
        change[region[0]] += (y - x) @ inward[region[1]]
        before[region[0]] += x @ inward[region[1]]
    return change, before


def _sums(evidence: Evidence, outward: Array) -> tuple[Array, Array]:
    """A direction of outputs times a, and times the change. [in] each"""
    before, change = np.zeros(evidence.matrix[1]), np.zeros(evidence.matrix[1])
    for region, x, y in _blocks(evidence):
        before[region[1]] += outward[region[0]] @ x
        change[region[1]] += outward[region[0]] @ (y - x)
    return before, change
