"""Causes that change everything: replaced, noise, trained."""

from __future__ import annotations

import numpy as np

from weightkit.analysis.causes.evidence import Evidence, Found
from weightkit.analysis.causes.sparse import density
from weightkit.dtypes import Array

UNRELATED = 0.1  # correlation: of b's variance a explains less than a hundredth
BY_CHANCE = 4.0  # standard deviations of the correlation of unrelated numbers, 1/√n
DRAWS, BEYOND = 12, 8.0  # of random signs, and standard deviations, as so few tell them, that are no chance
UNEVEN, ROUNDING = 3.0, 0.15  # times what chance makes of rows and columns; and what rounding adds to it
MOSTLY = 0.9  # of a change is seen: less, and rounding makes it uneven
SIDE, LONG = 128, 512  # of the part whose largest singular value is compared with that of random signs
TELLS = 32  # the shorter side of a matrix whose spectrum says anything
TELLING = 64  # numbers whose correlation says anything: by chance it is below a half
FEW = 4096  # numbers; what is said of fewer may be chance, and the matrices around it know better


def replaced(evidence: Evidence) -> Found | None:
    """Unrelated numbers: what b has is not to be told from what a has."""
    sample = evidence.sample
    finite = np.isfinite(sample.x) & np.isfinite(sample.y)
    x, y = sample.x[finite], sample.y[finite]
    if x.size < TELLING:
        return None
    x, y = x - x.mean(), y - y.mean()
    norms = float(np.sqrt((x @ x) * (y @ y)))
    if not norms:
        return None
    correlation = float(x @ y) / norms
    if abs(correlation) >= max(UNRELATED, BY_CHANCE / x.size**0.5):
        return None
    return {"kind": "replaced", "correlation": correlation} | _open(evidence, "trained", "noise")


def noise_or_trained(evidence: Evidence) -> Found:
    """A dense change: noise where it is the same everywhere and its signs are as random ones, else trained."""
    sample, sums = evidence.sample, evidence.sums
    before = sums.total("aa")
    relative = float(np.sqrt(sums.total("dd") / before)) if before else None
    d = sample.d
    if min(d.shape) < TELLS:
        others = ("noise",) if evidence.size >= TELLING else ("noise", "replaced")
        return {"kind": "trained", "relative": relative, "could_be": others}
    seen = density(sample)
    if seen > MOSTLY and uneven(d):
        return {"kind": "trained", "relative": relative}
    if signs(d[:SIDE, :LONG]) >= BEYOND:
        return {"kind": "trained", "relative": relative}
    fine = sample.half < np.abs(d).max() / 8  # where rounding does not hide it
    std = float(d[fine].std()) if seen > 0.5 and fine.any() else float(d.std())
    return {"kind": "noise", "std": std, "relative": relative} | _open(evidence, "trained")


def _open(evidence: Evidence, *others: str) -> Found:
    """What else it could be, where there are too few numbers to tell."""
    return {"could_be": others} if evidence.size < FEW else {}


def uneven(d: Array) -> bool:
    """Whether some rows or columns of a change are larger than others, by more than chance and rounding make them.

    The mean square of n normal numbers has a relative deviation of √(2/n).
    """
    for axis in (0, 1):
        size = np.square(d).mean(axis=axis)
        spread = float(size.std() / size.mean())
        if spread > UNEVEN * (2 / d.shape[axis]) ** 0.5 + ROUNDING:
            return True
    return False


def signs(d: Array) -> float:
    """By how many standard deviations a change is larger in one direction than with its signs drawn at random.

    The draws have every magnitude in its place, so rows and columns that changed more than others are no structure.
    """
    d = d if d.shape[0] <= d.shape[1] else d.T
    generator = np.random.Generator(np.random.Philox(2))
    drawn = np.array([_largest(d * generator.choice((-1.0, 1.0), d.shape)) for _ in range(DRAWS)])
    deviation = float(drawn.std()) or np.finfo(np.float64).tiny
    return float((_largest(d) - drawn.mean()) / deviation)


def _largest(d: Array) -> float:
    """The largest singular value."""
    return float(np.sqrt(max(0.0, np.linalg.eigvalsh(d @ d.T)[-1])))
