"""Glance: the activations of a run in a few numbers each; the arrays themselves are not kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from weightkit.dtypes import Array
from weightkit.effect.activations import CHOICES, Axes

SOME = 1 << 20  # numbers that are widened at a time


@dataclass(frozen=True)
class Activation:
    """One activation of a run: where it is, its axes and shape, and how large its numbers are."""

    address: str
    axes: Axes
    shape: tuple[int, ...]
    rms: float | None  # root mean square over all of it; None of numbers that are names, as those of experts
    abs_max: float | None


@dataclass
class _Sums:
    axes: Axes
    shape: tuple[int, ...]
    squares: float = 0.0
    abs_max: float = 0.0

    def row(self, address: str) -> Activation:
        if self.axes == CHOICES:
            return Activation(address, self.axes, self.shape, None, None)
        rms = math.sqrt(self.squares / max(1, math.prod(self.shape)))
        return Activation(address, self.axes, self.shape, rms, self.abs_max)


class Glance:
    """A sink that adds up what passes by."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}

    def __call__(self, address: str, axes: Axes, x: Array, start: int) -> None:
        """Count some tokens of an activation, the first of them at `start`."""
        sums = self._sums.setdefault(address, _Sums(axes, x.shape))
        end = axes.index("position")
        sums.shape = (*x.shape[:end], start + x.shape[end], *x.shape[end + 1 :])
        flat = x.reshape(-1)
        for at in range(0, len(flat), SOME):
            wide = flat[at : at + SOME].astype(np.float64)
            sums.squares += float(wide @ wide)
            sums.abs_max = float(np.maximum(sums.abs_max, np.abs(wide).max()))  # NaN stays

    def rows(self) -> list[Activation]:
        """One row for each activation, in the order of the run."""
        return [sums.row(address) for address, sums in self._sums.items()]
