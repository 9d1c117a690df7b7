"""Trajectory: how weights moved over snapshots of one training, summed in one pass over all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from weightkit.dtypes import Array
from weightkit.errors import FormatError
from weightkit.parallel import Progress, in_order
from weightkit.registry import Registry
from weightkit.threads import one_blas_thread
from weightkit.weight import Weight

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import pandas as pd

NUMBERS = 1 << 20  # float64 of all snapshots that are held at a time


@dataclass(frozen=True)
class Movement:
    """How some weights moved together. A number that does not exist (they did not move) is NaN."""

    parameters: int
    path: float  # the sum of the lengths of the steps
    net: float  # from the first snapshot to the last
    straightness: float  # net / path: 1 is a straight line
    norms: list[float]  # L2 at each snapshot
    steps: list[float]  # L2 of each step
    cosines: list[float]  # of the angle between each step and the next
    shares: list[float]  # of all that moved in each step (squared), what moved in these weights
    left_out: int  # numbers that are NaN or infinite in a snapshot, which no other number is of


@dataclass(frozen=True)
class _Named:
    address: str
    name: str
    role: str
    layer: int | None


@dataclass(frozen=True)
class Moved(Movement, _Named):
    """How one weight moved."""


@dataclass(frozen=True)
class Trajectory:
    """How a model moved over snapshots."""

    snapshots: list[str]
    total: Movement
    by_role: dict[str, Movement]
    by_layer: dict[str, Movement]
    rows: list[Moved]

    def frame(self) -> pd.DataFrame:
        """One row for each weight; numbers of snapshots and steps in columns as `norm_0` and `step_1`."""
        import pandas as pd

        names, rows = self.table()
        return pd.DataFrame(rows, columns=names)

    def table(self) -> tuple[list[str], list[list[object]]]:
        """Names of columns, and one row for each weight. Steps are numbered by the snapshot that they lead to."""
        count = len(self.snapshots)
        ends = {"norm": range(count), "step": range(1, count), "cosine": range(2, count), "share": range(1, count)}
        plain = ["address", "name", "role", "layer", "parameters", "path", "net", "straightness", "left_out"]
        names = [*plain, *(f"{what}_{i}" for what, places in ends.items() for i in places)]
        lists = ("norms", "steps", "cosines", "shares")
        rows = [[getattr(row, n) for n in plain] + [x for n in lists for x in getattr(row, n)] for row in self.rows]
        return names, rows


def trajectory(
    registries: Sequence[Registry],
    names: Sequence[str],
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Trajectory:
    """How weights moved over two snapshots or more, by address; sums are in float64.

    Tied weights count once, buffers do not. `names` are those of the snapshots. Raises FormatError unless all have
    the same weights of the same shapes.
    """
    if len(registries) < 2:
        raise FormatError(f"a trajectory needs two snapshots or more, not {len(registries)}")
    weights = _together(registries, names)
    with one_blas_thread():
        sums = list(in_order(sums_of, weights, executor=executor, progress=progress))
    firsts = [some[0] for some in weights]
    count = len(names)
    parameters, all_of = _added(range(len(sums)), firsts, sums) if sums else (0, np.zeros(3 * len(names) - 1))

    def grouped(name: Callable[[Weight], str]) -> dict[str, Movement]:
        groups: dict[str, list[int]] = {}
        for i, weight in enumerate(firsts):
            groups.setdefault(name(weight), []).append(i)
        return {name: _movement(*_added(some, firsts, sums), all_of, count) for name, some in groups.items()}

    return Trajectory(
        snapshots=list(names),
        total=_movement(parameters, all_of, all_of, count),
        by_role=grouped(lambda weight: str(weight.role)),
        by_layer=grouped(lambda weight: "outside layers" if weight.layer is None else str(weight.layer)),
        rows=[_moved(w, _movement(w.size, own, all_of, count)) for w, own in zip(firsts, sums, strict=True)],
    )


def _together(registries: Sequence[Registry], names: Sequence[str]) -> list[tuple[Weight, ...]]:
    """The snapshots of each weight. FormatError where one has not what another has."""
    by_address = all(registry.has_roles for registry in registries)
    found = [dict(r) if by_address else r.by_name for r in registries]
    kept = [{k: w for k, w in some.items() if not (w.alias or w.buffer)} for some in found]
    for name, other in zip(names[1:], kept[1:], strict=True):
        for here, there, one, two in ((names[0], name, kept[0], other), (name, names[0], other, kept[0])):
            lost = next((weight.address for key, weight in one.items() if key not in two), None)
            if lost is not None:
                raise FormatError(f"{there}: has no {lost}, which {here} has; snapshots have the same weights")
        for key, weight in kept[0].items():
            if weight.shape != other[key].shape:
                shapes = f"is {list(other[key].shape)}, and {list(weight.shape)} in {names[0]}"
                raise FormatError(f"{name}: {weight.address} {shapes}; snapshots have the same shapes")
    return [tuple(some[key] for some in kept) for key in kept[0]]


# ── sums ───────────────────────────────────────────────────────────────────────────────────────────


def sums_of(weights: tuple[Weight, ...]) -> Array:
    """Sums over the numbers of one weight in n snapshots, float64 [3 n - 1]: what adds up over weights.

    They are n squares of norms, n - 1 of steps, n - 2 products of a step and the next, the square from first to last,
    and how many numbers were left out.
    """
    total = np.zeros(3 * len(weights) - 1)
    first = weights[0]
    for region in first.layout.tiles(first.stored.shape, max(1, NUMBERS // len(weights))):
        numbers = np.stack([w.dtype.decode(w.read(region), np.float64).reshape(-1) for w in weights])  # [n, k]
        finite = np.isfinite(numbers).all(axis=0)
        if not finite.all():
            numbers = numbers[:, finite]
        steps = np.diff(numbers, axis=0)
        pairs = (numbers, numbers), (steps, steps), (steps[1:], steps[:-1])
        squares = [np.einsum("ij,ij->i", x, y) for x, y in pairs]
        net = numbers[-1] - numbers[0]
        total += np.concatenate([*squares, [net @ net, np.count_nonzero(~finite)]])
    return total


def _added(some: Iterable[int], weights: Sequence[Weight], sums: Sequence[Array]) -> tuple[int, Array]:
    places = list(some)
    return sum(weights[i].size for i in places), np.sum([sums[i] for i in places], axis=0)


def _movement(parameters: int, sums: Array, all_of: Array, n: int) -> Movement:
    """What sums say, of which `all_of` are those of the whole model."""
    own, whole = sums[n : 2 * n - 1], all_of[n : 2 * n - 1]
    steps, products = np.sqrt(own), sums[2 * n - 1 : 3 * n - 3]
    path, net = float(steps.sum()), math.sqrt(sums[-2])
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.clip(products / (steps[1:] * steps[:-1]), -1, 1)
        shares = own / whole
    return Movement(
        parameters=parameters,
        path=path,
        net=net,
        straightness=net / path if path else math.nan,
        norms=np.sqrt(sums[:n]).tolist(),
        steps=steps.tolist(),
        cosines=cosines.tolist(),
        shares=shares.tolist(),
        left_out=int(sums[-1]),
    )


def _moved(weight: Weight, found: Movement) -> Moved:
    return Moved(address=weight.address, name=weight.name, role=str(weight.role), layer=weight.layer, **vars(found))
