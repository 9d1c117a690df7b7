"""Isolated: the largest of many sizes that stand apart from all others, however heavy the tail of these is.

Of numbers with a tail x^-a the k-th largest is above the next one by a factor whose logarithm, times k, is
exponential with mean 1/a, independently for every k (Rényi 1953; Hill 1975). So a gap is held against the gaps below
it: gap / mean of m gaps exceeds t with probability (1 + t/m)^-m. Tails that fall faster, as those of normal, Laplace
and Student-t numbers near their middle, have smaller gaps at their end than below it: for them it is less.
"""

from __future__ import annotations

import numpy as np

from weightkit.dtypes import Array

LEVEL = 0.01  # the probability that a model in which nothing is isolated is said to have something
MOST = 10  # that stand apart together
BELOW = 100  # gaps that tell what is usual
LEAST = 10  # fewer say nothing


def isolated(sizes: Array, count: int, tests: float) -> int:
    """How many of the largest of `count` sizes stand apart.

    `sizes` are the largest of them, falling, [n] with n ≥ MOST + BELOW + 1 or all that there are. `tests` is how many
    such questions are asked of a model: the probability is one for all of them, for every number that may stand apart.
    """
    below = min(BELOW, count // 2)
    most = min(MOST, count // 10)
    if below < LEAST or len(sizes) <= most + below or not sizes[most + below] > 0:
        return 0
    logs = np.log(sizes[: most + below + 1])
    gaps = np.arange(1, len(logs)) * (logs[:-1] - logs[1:])
    for k in range(most, 0, -1):
        usual = gaps[k : k + below].sum()  # below times their mean
        chance = tests * most * (1 + gaps[k - 1] / usual) ** -float(below) if usual > 0 else float(gaps[k - 1] <= 0)
        if chance <= LEVEL:
            return k
    return 0
