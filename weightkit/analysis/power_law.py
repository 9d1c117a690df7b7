"""The power law of a tail of eigenvalues, with the conventions of WeightWatcher 0.7.7.

Source: Clauset, Shalizi and Newman, "Power-law distributions in empirical data", 2009, equations 3.1 and 3.9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from weightkit.dtypes import Array

FLOOR = 1e-5  # eigenvalues below it are left out, as WeightWatcher does
FEWEST = 20  # eigenvalues that say anything of a law
EQUAL = 1e-9  # a tail of numbers that are nearer to each other, relatively, is one number


@dataclass(frozen=True)
class PowerLaw:
    """p(λ) ∝ λ^-alpha from xmin on."""

    alpha: float
    xmin: float  # where the tail begins: an eigenvalue
    distance: float  # the largest between the two distribution functions (Kolmogorov–Smirnov)
    error: float  # the standard error of alpha, (alpha - 1) / √tail
    tail: int  # eigenvalues in the tail


def power_law(eigenvalues: Array) -> PowerLaw | None:
    """The law of the tail that is nearest to one; None where eigenvalues are fewer than 20, or all equal.

    alpha is the most likely one of each tail that begins at an eigenvalue, xmin the beginning of the tail
    whose distance is the smallest.
    """
    x = np.sort(eigenvalues[eigenvalues > FLOOR])
    if x.size < FEWEST:
        return None
    logs = np.log(x)
    sizes = np.arange(x.size, 0, -1)
    excess = np.cumsum(logs[::-1])[::-1] - sizes * logs  # Σ log(λ / xmin) over each tail
    found = np.flatnonzero(excess[:-1] > EQUAL * sizes[:-1])
    if not found.size:
        return None
    alphas = 1 + sizes[found] / excess[found]
    distances = [_distance(logs[i:] - logs[i], alpha) for i, alpha in zip(found, alphas, strict=True)]
    best = int(np.argmin(distances))
    alpha, tail = float(alphas[best]), int(sizes[found[best]])
    return PowerLaw(alpha, float(x[found[best]]), float(distances[best]), (alpha - 1) / math.sqrt(tail), tail)


def _distance(logs: Array, alpha: float) -> float:
    """Between a tail, given as log(λ / xmin), and its law."""
    law = 1 - np.exp((1 - alpha) * logs)
    return float(np.abs(law - np.arange(logs.size) / logs.size).max())
