"""The Marchenko–Pastur law: what the eigenvalues of a matrix of independent random numbers look like."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from weightkit.dtypes import Array

BEYOND_CHANCE = 2.0234  # 99 % of the largest eigenvalues of random matrices are below: Tracy–Widom, β = 1


@dataclass(frozen=True)
class MarchenkoPastur:
    """The random matrix whose bulk of eigenvalues is that of a matrix, and what stands out of it."""

    sigma: float  # standard deviation of its numbers
    edge_min: float  # eigenvalues of the random matrix lie between these
    edge_max: float
    spikes: int  # eigenvalues above what chance explains, at 1 %
    soft_rank: float  # edge_max over the largest eigenvalue: 1 for a random matrix, small with large spikes
    distance: float  # the largest between the two distribution functions (Kolmogorov–Smirnov)


def marchenko_pastur(eigenvalues: Array, shape: tuple[int, ...]) -> MarchenkoPastur | None:
    """The law with the same median as the eigenvalues of a matrix of this shape; None where that is 0.

    The median, as spikes hardly move it. Sources: Gavish and Donoho, "The optimal hard threshold for
    singular values is 4/√3", 2014, for sigma; Johnstone, "On the distribution of the largest eigenvalue
    in principal components analysis", 2001, for chance.
    """
    small, large = sorted(shape)
    ratio = small / large
    variance = float(np.median(eigenvalues)) / (large * law_median(ratio))
    if not variance > 0:
        return None
    scale = variance * large
    top = float(eigenvalues.max())
    edge_min, edge_max = (scale * (1 + sign * math.sqrt(ratio)) ** 2 for sign in (-1, 1))
    width = math.sqrt(large - 1) + math.sqrt(small)
    chance = width**2 + BEYOND_CHANCE * width * (1 / math.sqrt(large - 1) + 1 / math.sqrt(small)) ** (1 / 3)
    law = law_cdf(np.sort(eigenvalues) / scale, ratio)
    below = np.arange(law.size + 1) / law.size
    distance = max(np.abs(law - below[1:]).max(), np.abs(law - below[:-1]).max())
    spikes = int((eigenvalues > variance * chance).sum())
    return MarchenkoPastur(math.sqrt(variance), edge_min, edge_max, spikes, edge_max / top, float(distance))


def law_cdf(x: Array, ratio: float) -> Array:
    """The distribution function for numbers of variance 1, eigenvalues over the larger side, `ratio` of sides ≤ 1."""
    root = math.sqrt(ratio)
    angle = np.arccos(np.clip((x - 1 - ratio) / (2 * root), -1, 1))
    return 1 - _above(angle, ratio)


def law_median(ratio: float) -> float:
    """The median of the law, by halving the angle's range."""
    low, high = 0.0, math.pi
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _above(np.float64(middle), ratio) > 0.5 else (middle, high)
    return 1 + ratio + 2 * math.sqrt(ratio) * math.cos(low)


def _above(angle: Array | np.float64, ratio: float) -> Array:
    """The share of eigenvalues above 1 + ratio + 2 √ratio cos(angle): the law's density, integrated by hand."""
    root = math.sqrt(ratio)
    bent = np.arctan((1 - root) / (1 + root) * np.tan(angle / 2))
    flat = ((1 + ratio) * angle - 2 * root * np.sin(angle)) / 2
    return (flat - (1 - ratio) * bent) / (math.pi * ratio)
