"""Profile: what is strange in one weight by itself, and what has to be held against the same role elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from weightkit.analysis.finding import Finding, finding, strongest
from weightkit.analysis.initial import initial
from weightkit.analysis.isolated import BELOW, MOST, isolated
from weightkit.analysis.lines import Lines
from weightkit.analysis.scan import Scan
from weightkit.architectures.parts import Role
from weightkit.dtypes import Array
from weightkit.weight import Selection, Weight

MASSIVE = 4.0  # a row's norm over the median
DEAD = 0.01  # a row's norm over the median
LONG = 8  # numbers of a row: the norm of fewer can be small by chance
CLIPPED = 0.001  # share of the numbers that are the largest magnitude
CLIPS = 20  # and how many they are at least
TOLD = 3  # of one kind in one weight


@dataclass(frozen=True)
class Profile:
    """One weight in a few numbers, and what is strange in it alone."""

    role: Role
    layer: int | None
    count: int
    peaks: list[tuple[str, float]]  # the largest magnitudes that stand apart: where, and the number
    peak_z: float  # the largest magnitude over the root mean square of the numbers that do not stand apart
    rest: float  # that
    spread: float  # between the quartiles
    found: list[Finding]
    table: Lines | None  # of a weight whose rows are tokens


def profile(weight: Weight, seen: Scan, laws: Mapping[str, float], tests: int) -> Profile:
    """What one weight says. `laws`: the standard deviations that it may have begun with, by name.

    `tests` is how many questions of chance are asked of the model.
    """
    numbers, lines = seen.summary, seen.lines
    found = [*_not_finite(weight, seen), *_constant(weight, seen), *initial(weight, seen, laws)]
    found += _clipped(Selection.of(weight), seen)
    peaks: list[tuple[str, float]] = []
    z = rest = 0.0
    if lines is not None and numbers.high > numbers.low:
        found += [*_far_lines(weight, 0, lines, tests), *_far_lines(weight, 1, lines, tests)]
        apart = isolated(np.abs([x for x, _ in lines.top]), numbers.finite, tests)
        peaks = [(f"{weight.address}[{', '.join(map(str, at))}]", x) for x, at in lines.top[:apart]]
        sizes = np.square([x / lines.scale for x, _ in lines.top[: max(1, apart)]])
        others = max(0.0, float(lines.squares[0].sum()) - float(sizes.sum()))
        rest = lines.scale * math.sqrt(others / max(1, numbers.finite - len(sizes)))
        z = seen.abs_max / rest if rest > 0 else 0.0
    spread = 0.0 if lines is None or lines.scale != 1 else seen.quantile(0.75) - seen.quantile(0.25)
    tokens = weight.role in (Role.EMBEDDING, Role.HEAD) and weight.axes[0].name == "token" and not weight.alias
    table = lines if tokens else None
    return Profile(weight.role, weight.layer, numbers.finite, peaks, z, rest, spread, found, table)


def _not_finite(weight: Weight, seen: Scan) -> Iterator[Finding]:
    nan, inf = seen.summary.nan, seen.summary.inf
    if nan + inf:
        at = f"[{', '.join(map(str, seen.lines.first_bad))}]" if seen.lines else ""
        where = ", the first is here" if at and nan + inf > 1 else ""
        counted = " and ".join(f"{count:,} {name}" for count, name in ((nan, "NaN"), (inf, "Inf")) if count)
        why = f"{counted}{where}: whatever is computed with them is lost"
        yield finding("NaN or Inf", weight.address + at, math.nan, math.inf, why)


def _constant(weight: Weight, seen: Scan) -> Iterator[Finding]:
    if len(weight.shape) > 1 and seen.summary.finite > 1 and seen.summary.low == seen.summary.high:
        yield finding("constant", weight.address, seen.summary.low, math.inf, "every number is the same")


def _far_lines(weight: Weight, axis: int, seen: Lines, tests: int) -> list[Finding]:
    """Rows (axis 0) or columns (axis 1) whose norm is far from that of the others."""
    norms = seen.norms(axis)
    alive = norms > 0
    if alive.sum() < 3:
        return []
    middle, line = float(np.median(norms[alive])), ("row", "column")[axis]
    found = [
        finding(
            f"massive {line}",
            _line_address(weight, axis, int(i)),
            float(norms[i]),
            size / middle / MASSIVE,
            f"its norm is {norms[i] / middle:.3g} times the median of the {line}s",
        )
        for i, size in _massive(seen, axis, tests)
        if size >= MASSIVE * middle
    ]
    found = strongest(found, TOLD, f"{line}s of {weight.address}")
    if weight.shape[1 - axis] < LONG or (axis == 0 and weight.role in (Role.EMBEDDING, Role.HEAD)):
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
    return found + strongest(dead, TOLD, f"{line}s of {weight.address}")


def _massive(seen: Lines, axis: int, tests: int) -> list[tuple[int, float]]:
    """The lines whose norms stand apart, and these norms without the largest number: one alone makes none massive."""
    sizes: Array = seen.scale * np.sqrt(np.maximum(seen.squares[axis] - seen.largest[axis], 0.0))
    order = np.argsort(-sizes, kind="stable")[: MOST + BELOW + 1]
    apart = isolated(sizes[order], len(sizes), tests)
    return [(int(i), float(sizes[i])) for i in order[:apart]]


def _line_address(weight: Weight, axis: int, at: int) -> str:
    name, parent = weight.axes[axis], weight.address.rpartition(".")[0]
    if name.name == "neuron" and parent:
        return f"{parent}[neuron={at}]"
    if name.name in ("token", "position"):
        return f"{weight.address}[{name.name}={at}]"
    return f"{weight.address}[{at}, :]" if axis == 0 else f"{weight.address}[:, {at}]"


def _clipped(whole: Selection, seen: Scan) -> Iterator[Finding]:
    """Many numbers exactly at the largest magnitude, and few just below it."""
    count, size = seen.summary.finite, seen.abs_max
    if whole.dtype.kind != "float" or whole.dtype.bits < 16 or seen.summary.low == seen.summary.high or count < 1000:
        return
    cells = np.diff(seen.cells()[1], prepend=0)
    if len(cells) < 4:
        return
    ends = cells[[0, 1, -2, -1]]
    if ends[0] + ends[-1] < CLIPPED * count or max(ends[0], ends[-1]) < 2 * max(ends[1], ends[-2]):
        return
    at = near = 0
    for _, stored in whole.blocks():
        sizes = np.abs(whole.dtype.decode(stored, np.float64))
        at += int((sizes == size).sum())
        near += int(((sizes > 0.99 * size) & (sizes < size)).sum())
    share = at / count
    if (
        share >= CLIPPED and at >= max(CLIPS, 5 * near) and share <= 0.25
    ):  # with more, as of -1, 0 and 1, it is meant so
        why = f"{100 * share:.2g} % of its numbers are exactly ± the largest, and {near:,} just below it"
        yield finding("clipped", whole.address, size, share / CLIPPED, why)
