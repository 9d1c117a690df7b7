"""The few inner loops over numbers that several rooms share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from weightkit.dtypes import Array


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and central moments of finite numbers; adds up over blocks.

    Source: Pébay, "Formulas for robust, one-pass parallel computation of covariances and
    arbitrary-order statistical moments", Sandia report SAND2008-6212, equations 2.1 and 3.1.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0  # sum of (x - mean)²
    m3: float = 0.0
    m4: float = 0.0

    @classmethod
    def of(cls, values: Array, weights: Array | None = None) -> Moments:
        """The moments of an array's finite values; `weights` counts how often each occurs."""
        finite = np.isfinite(values)
        if not finite.all():
            values, weights = values[finite], None if weights is None else weights[finite]
        exact = np.longdouble if weights is not None else np.float64  # few values, each many times
        x = values.astype(exact, copy=False).ravel()
        w: Array = np.ones(1, exact) if weights is None else weights.astype(exact)
        count = x.size if weights is None else int(weights.sum())
        if not count:
            return cls()
        if x.min() == x.max():  # exactly constant, which a rounded mean would hide
            return cls(count, float(x[0]))
        with np.errstate(over="ignore", invalid="ignore"):  # sums beyond float64 are inf
            mean = np.sum(w * x) / count
            d = x - mean
            d2 = d * d
            sums = [float(np.sum(w * power)) for power in (d2, d2 * d, d2 * d2)]
        return cls(count, float(mean), *sums)

    def __add__(self, other: Moments) -> Moments:
        n = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        a, b, d = self.count, other.count, other.mean - self.mean
        return Moments(
            n,
            self.mean + d * b / n,
            self.m2 + other.m2 + d * d * a * b / n,
            self.m3 + other.m3 + d * d * d * (a * b * (a - b) / n**2) + 3 * d * (a * other.m2 - b * self.m2) / n,
            self.m4
            + other.m4
            + d * d * d * d * (a * b * (a * a - a * b + b * b) / n**3)
            + 6 * d * d * (a * a * other.m2 + b * b * self.m2) / n**2
            + 4 * d * (a * other.m3 - b * self.m3) / n,
        )

    @property
    def std(self) -> float:
        """The population standard deviation; NaN of nothing."""
        return math.sqrt(self.m2 / self.count) if self.count else math.nan

    @property
    def skewness(self) -> float:
        """The third standardised moment; NaN where all numbers are equal."""
        return math.sqrt(self.count) * self.m3 / (self.m2 * math.sqrt(self.m2)) if self.m2 > 0 else math.nan

    @property
    def kurtosis(self) -> float:
        """The fourth standardised moment less 3 (excess); NaN where all numbers are equal."""
        return self.count * self.m4 / (self.m2 * self.m2) - 3 if self.m2 > 0 else math.nan
