"""Profile: what is strange in one weight by itself, and what has to be held against the same role elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from weightkit.analysis.finding import Finding, finding, strongest
from weightkit.analysis.lines import Lines
from weightkit.analysis.statistics import Statistics, statistics
from weightkit.architectures.parts import Role
from weightkit.weight import Selection, Weight

MASSIVE = 4.0  # a row's norm over the median
FAR = 6.0  # and in robust standard deviations of the logarithms of the norms
DEAD = 0.01  # a row's norm over the median
CLIPPED = 0.001  # share of the numbers that are the largest magnitude
INITIAL = 10.0  # the strength of a matrix that is still as training begins: nothing measures it
MOST = 3  # of one kind in one weight


@dataclass(frozen=True)
class Profile:
    """One weight in a few numbers, and what is strange in it alone."""

    role: Role
    layer: int | None
    peak_address: str  # of the largest magnitude
    peak: float
    peak_z: float  # that, over the root mean square of all others
    spread: float  # between the quartiles
    found: list[Finding]


def profile(weight: Weight, laws: Mapping[str, float]) -> Profile:
    """Read one weight, in blocks. `laws`: the standard deviations that it may have begun with, by name."""
    whole = Selection.of(weight)
    row = statistics(whole)
    seen = Lines.of(whole, row.abs_max) if len(weight.shape) == 2 and weight.size else None
    found = [*_not_finite(weight, row, seen), *_constant(weight, row), *_initial(weight, row, laws)]
    found += _clipped(whole, row)
    peak, at, z = 0.0, "", 0.0
    if seen is not None and row.std > 0:
        found += [*_far_lines(weight, 0, seen), *_far_lines(weight, 1, seen)]
        size = abs(seen.peak) / seen.scale
        rest = (float(seen.squares[0].sum()) - size**2) / max(1, row.count - 1)
        peak, at = seen.peak, f"{weight.address}[{', '.join(map(str, seen.at))}]"
        z = size / math.sqrt(rest) if rest > 0 else 0.0
    spread = row.quantiles["0.75"] - row.quantiles["0.25"]
    return Profile(weight.role, weight.layer, at, peak, z, spread, found)


def _not_finite(weight: Weight, row: Statistics, seen: Lines | None) -> Iterator[Finding]:
    bad = row.nan + row.inf
    if bad:
        at = f"[{', '.join(map(str, seen.first_bad))}]" if seen else ""
        where = ", the first is here" if at and bad > 1 else ""
        why = f"{row.nan:,} NaN and {row.inf:,} Inf{where}: whatever is computed with them is lost"
        yield finding("NaN or Inf", weight.address + at, math.nan, math.inf, why)


def _constant(weight: Weight, row: Statistics) -> Iterator[Finding]:
    if len(weight.shape) > 1 and row.count > 1 and row.min == row.max:
        yield finding("constant", weight.address, row.min, math.inf, "every number is the same")


def _far_lines(weight: Weight, axis: int, seen: Lines) -> list[Finding]:
    """Rows (axis 0) or columns (axis 1) whose norm is far from that of the others."""
    norms = seen.norms(axis)
    alive = norms > 0
    if alive.sum() < 3:
        return []
    middle = float(np.median(norms[alive]))
    logs = np.log(norms[alive])
    deviation = 1.4826 * float(np.median(np.abs(logs - np.median(logs)))) or 1e-9
    others = np.maximum(seen.squares[axis] - seen.largest[axis], 0.0)  # one large number alone makes no massive row
    without = seen.scale * np.sqrt(others)
    massive = (without >= MASSIVE * middle) & (without >= middle * math.exp(min(FAR * deviation, 50.0)))
    line = ("row", "column")[axis]
    found = [
        finding(
            f"massive {line}",
            _line_address(weight, axis, int(i)),
            float(norms[i]),
            without[i] / middle / MASSIVE,
            f"its norm is {norms[i] / middle:.3g} times the median of the {line}s",
        )
        for i in np.flatnonzero(massive)
    ]
    found = strongest(found, MOST, f"{line}s of {weight.address}")
    if axis == 0 and weight.role in (Role.EMBEDDING, Role.HEAD):
        return found  # whether tokens are trained is asked elsewhere
    neuron = weight.axes[axis].name == "neuron"
    dead = [
        finding(
            "dead neuron" if neuron else f"dead {line}",
            _line_address(weight, axis, int(i)),
            float(norms[i]),
            DEAD * middle / norms[i] if norms[i] else math.inf,
            f"the norm of its {line} in {weight.role} is {norms[i] / middle:.2g} of the median: it adds nothing",
        )
        for i in np.flatnonzero(norms <= DEAD * middle)
    ]
    return found + strongest(dead, MOST, f"{line}s of {weight.address}")


def _line_address(weight: Weight, axis: int, at: int) -> str:
    name, parent = weight.axes[axis], weight.address.rpartition(".")[0]
    if name.name == "neuron" and parent:
        return f"{parent}[neuron={at}]"
    if name.name in ("token", "position"):
        return f"{weight.address}[{name.name}={at}]"
    return f"{weight.address}[{at}, :]" if axis == 0 else f"{weight.address}[:, {at}]"


def _clipped(whole: Selection, row: Statistics) -> Iterator[Finding]:
    """Many numbers exactly at the largest magnitude, and few just below it."""
    at_end = row.quantiles["0.999"] == row.max or row.quantiles["0.001"] == row.min
    if whole.dtype.kind != "float" or whole.dtype.bits < 16 or not row.std > 0 or not at_end or row.count < 1000:
        return
    at = near = 0
    for _, stored in whole.blocks():
        sizes = np.abs(whole.dtype.decode(stored, np.float64))
        at += int((sizes == row.abs_max).sum())
        near += int(((sizes > 0.99 * row.abs_max) & (sizes < row.abs_max)).sum())
    share = at / row.count
    if share >= CLIPPED and at >= 5 * near and share <= 0.25:  # with more, as of -1, 0 and 1, it is meant to be so
        why = f"{100 * share:.2g} % of its numbers are exactly ± the largest, and {near:,} just below it"
        yield finding("clipped", whole.address, row.abs_max, share / CLIPPED, why)


def _initial(weight: Weight, row: Statistics, laws: Mapping[str, float]) -> Iterator[Finding]:
    """A matrix that has the distribution that it was initialised with; a norm that is nothing but ones."""
    if weight.role is Role.NORM and row.count > 1 and row.min == row.max in (0.0, 1.0):
        yield finding("initial", weight.address, row.min, INITIAL, f"every number is {row.min:g}, as before training")
        return
    if len(weight.shape) != 2 or row.count < 1000 or not row.std > 0 or row.nan + row.inf:
        return
    for law, std in {**laws, "uniform": 1 / math.sqrt(3 * weight.shape[1])}.items():
        if _follows(row, std, uniform=law == "uniform"):
            bound = (
                f"±{std * math.sqrt(3):.3g}, as torch.nn.Linear begins" if law == "uniform" else f"{std:.3g} ({law})"
            )
            kind = "uniform within" if law == "uniform" else "normal with standard deviation"
            why = f"still distributed as before training: {kind} {bound}"
            yield finding("initial", weight.address, row.std, INITIAL, why)
            return


def _follows(row: Statistics, std: float, *, uniform: bool) -> bool:
    """Whether moments and quantiles are those of a law with mean 0, within four standard errors and some rounding."""
    n, rounding = row.count, 0.002  # of bf16
    law = NormalDist(0.0, std)
    bound = std * math.sqrt(3)
    moments = (
        (row.mean, 0.0, std / math.sqrt(n)),
        (row.std, std, std / math.sqrt(2 * n)),
        (row.skewness * std, 0.0, std * math.sqrt(6 / n)),
        (row.kurtosis * std, -1.2 * std if uniform else 0.0, std * math.sqrt(24 / n)),
    )
    if any(abs(found - want) > 4 * error + rounding * std for found, want, error in moments):
        return False
    for p in (0.05, 0.25, 0.5, 0.75, 0.95):
        want = bound * (2 * p - 1) if uniform else law.inv_cdf(p)
        density = 1 / (2 * bound) if uniform else law.pdf(want)
        error = math.sqrt(p * (1 - p) / n) / density
        if abs(row.quantiles[f"{p:g}"] - want) > 4 * error + rounding * std:
            return False
    return not uniform or row.abs_max <= bound * (1 + rounding)
