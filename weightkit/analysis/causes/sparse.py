"""Causes that touch few places: single coordinates, or some rows or columns."""

from __future__ import annotations

import math

import numpy as np

from weightkit.analysis.causes.evidence import Evidence, Found, Sample
from weightkit.dtypes import Array

DENSITY = 0.1  # of the places where a change would show: fewer are coordinates, as dense changes show in most
LISTED = 64  # coordinates that are told
CHANCE = 0.01  # that a dense change leaves any line out


def density(sample: Sample) -> float:
    """The share that changed of the places where a change of the usual size would show.

    A type of few bits hides a change that is smaller than half of its spacing, so a dense one may be seen in few
    places: those near 0. There it is seen in all.
    """
    size = np.abs(sample.d[sample.changed])
    if not size.size:
        return 0.0
    fine = sample.half < np.median(size) / 4
    return float(sample.changed[fine].mean()) if fine.any() else float(sample.changed.mean())


def sparse(evidence: Evidence) -> Found | None:
    """Single coordinates: k of them, here and there."""
    sums = evidence.sums
    count = int(sums.total("differ"))
    if count > DENSITY * evidence.size or evidence.size < 4:
        return None
    if density(evidence.sample) > DENSITY and not _apart(evidence, count):
        return None
    return {"kind": "sparse", "count": count, "coordinates": _coordinates(evidence)}


def _apart(evidence: Evidence, count: int) -> bool:
    """Whether a few changes are one to a line, so that the few lines say nothing of how dense they are."""
    return count <= 1 or (evidence.along >= 10 and count / evidence.active.size <= DENSITY * evidence.along)


def _coordinates(evidence: Evidence) -> list[list[int]]:
    sample = evidence.across
    found = np.argwhere(sample.changed)
    lines, places = sample.rows[found[:, 0]], sample.columns[found[:, 1]]
    pairs = [places, lines] if evidence.sums.axis else [lines, places]
    return np.stack(pairs if len(evidence.a.shape) > 1 else [places], axis=1)[:LISTED].tolist()


def rows(evidence: Evidence) -> Found | None:
    """Some lines that changed, of rows or columns, heads or tokens, where the others did not at all."""
    sums = evidence.sums
    lines = len(sums.differ)
    few = lines > 1 and _beyond_chance(evidence.active.size, lines, sums.total("differ"))
    if few and density(evidence.sample) > DENSITY:
        return {"kind": "rows", **evidence.named(sums.axis, evidence.active), "of": lines}
    across = evidence.across
    changed = across.changed.sum(axis=0)
    moved = np.flatnonzero(changed)
    if len(evidence.a.shape) < 2 or len(across.rows) < 4 or evidence.active.size < lines / 2:
        return None
    few = _beyond_chance(moved.size, changed.size, float(changed.sum()))
    if few and _only(evidence, moved, changed) and density(_columns(across, moved)) > DENSITY:
        return {"kind": "rows", **evidence.named(1 - sums.axis, moved), "of": int(changed.size)}
    return None


def _columns(sample: Sample, chosen: Array) -> Sample:
    return Sample(sample.x[:, chosen], sample.y[:, chosen], sample.rows, sample.columns[chosen], sample.storage)


def _beyond_chance(touched: int, lines: int, changes: float) -> bool:
    """Whether more lines are as they were than a change would leave out that falls on all alike."""
    if not touched or touched > 0.9 * lines:
        return False
    return lines * math.exp(-changes / touched) < CHANCE or changes / touched > 20


def _only(evidence: Evidence, moved: Array, changed: Array) -> bool:
    """Whether as many numbers changed in all lines as in those that were looked at from end to end."""
    expected = changed.sum() / len(evidence.across.rows) * evidence.active.size
    return abs(evidence.sums.total("differ") - expected) <= 0.1 * expected and moved.size > 0
