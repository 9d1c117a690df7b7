"""Initial: matrices that are still distributed as before training, and norms that nothing has moved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from weightkit.analysis.finding import Finding, finding
from weightkit.analysis.lines import Lines
from weightkit.analysis.scan import Scan
from weightkit.architectures.parts import Role
from weightkit.dtypes import Array
from weightkit.weight import Weight

UNTOUCHED = 10.0  # the strength of a norm of ones: nothing measures it
LEAST = 5000  # numbers, of which the std is known to a hundredth: of fewer, a trained one can be like it by chance
FAR = 3.0  # standard errors of the std
LARGEST_KS = 1.95  # √n · D: larger by chance once in a thousand
UNEVEN = 4.0  # standard errors of how much the norms of rows, or of columns, differ


@dataclass(frozen=True)
class Law:
    """A distribution around 0 that a matrix may begin with."""

    std: float
    why: str
    uniform: bool = False

    @property
    def kurtosis(self) -> float:
        """E x⁴ / std⁴."""
        return 1.8 if self.uniform else 3.0

    @property
    def bound(self) -> float:
        """The largest number that it has."""
        return self.std * math.sqrt(3) if self.uniform else math.inf

    def below(self, points: Array) -> Array:
        """The share of numbers below each point."""
        if self.uniform:
            return np.clip((points / self.bound + 1) / 2, 0.0, 1.0)
        return np.array([0.5 * math.erfc(-x) for x in (points / self.std / math.sqrt(2)).tolist()])


def initial(weight: Weight, seen: Scan, laws: Mapping[str, float]) -> Iterator[Finding]:
    """A matrix that follows one of some normal laws, by what is said of their std, or the uniform one of PyTorch."""
    numbers, lines = seen.summary, seen.lines
    if weight.role is Role.NORM and numbers.finite > 1 and numbers.low == numbers.high in (0.0, 1.0):
        why = f"every number is {numbers.low:g}, as before training"
        yield finding("initial", weight.address, numbers.low, UNTOUCHED, why)
        return
    if lines is None or numbers.finite < LEAST or numbers.nan + numbers.inf:
        return
    candidates = [Law(std, f"normal with standard deviation {std:.3g} ({why})") for why, std in laws.items()]
    bound = 1 / math.sqrt(weight.shape[1])
    candidates.append(
        Law(bound / math.sqrt(3), f"uniform within ±{bound:.3g}, as torch.nn.Linear begins", uniform=True)
    )
    law = next((law for law in candidates if _follows(seen, lines, law)), None)
    if law is not None:
        why = f"still distributed as before training: {law.why}"
        strength = math.sqrt(numbers.finite / LEAST)  # how well the std is known
        yield finding("initial", weight.address, seen.moments.std, strength, why)


def _follows(seen: Scan, lines: Lines, law: Law) -> bool:
    """Whether std, distribution, and norms of rows and columns are those of independent numbers of a law."""
    n = seen.summary.finite
    if abs(seen.moments.std / law.std - 1) > FAR * math.sqrt((law.kurtosis - 1) / (4 * n)) + ROUNDING:
        return False
    if seen.abs_max > law.bound * (1 + 2**-8):
        return False
    points, below = seen.cells()
    distance = np.abs(below[:-1] / n - law.below(points[:-1])).max(initial=0.0)
    return distance * math.sqrt(n) <= LARGEST_KS and all(_even(lines.squares[axis], n, law) for axis in (0, 1))


ROUNDING = 2.0**-12  # of the std, when numbers are rounded to bf16


def _even(squares: Array, count: int, law: Law) -> bool:
    """Whether the norms of rows differ as little as chance has it; training makes some of them larger."""
    if len(squares) < 2:
        return True
    usual = count / len(squares) * (law.kurtosis - 1) * law.std**4  # the variance of Σx² over a row
    return float(squares.var(ddof=1)) <= usual * (1 + UNEVEN * math.sqrt(2 / (len(squares) - 1)))
