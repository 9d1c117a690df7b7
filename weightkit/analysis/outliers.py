"""Outliers: what is strange in the weights of a model, ranked; against the others, and against how training begins."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from weightkit.analysis import reading
from weightkit.analysis.duplicates import duplicates
from weightkit.analysis.finding import Finding, finding, ranked, strongest
from weightkit.analysis.heads import heads
from weightkit.analysis.profile import TOLD, Profile, profile
from weightkit.analysis.scan import scan, together
from weightkit.analysis.untrained import untrained
from weightkit.architectures.parts import Role
from weightkit.dtypes import Array
from weightkit.errors import AddressError
from weightkit.parallel import Progress, Work
from weightkit.registry import Registry
from weightkit.weight import Selection, Weight

if TYPE_CHECKING:
    from concurrent.futures import Executor

LARGE_Z = 12.0  # a number over the root mean square of the others
OVER_PEERS = 2.0  # and over the largest of the same role in other layers, likewise
ODD_SCALE = 4.0  # spread over that of the same role in other layers, or the reverse
FAR = 6.0  # and in robust standard deviations of its logarithm over these layers
SPREAD_OF = 100  # numbers: the quartiles of fewer are not well known


def find_outliers(
    registry: Registry,
    chosen: Sequence[Selection],
    *,
    initial_std: float | None = None,
    unused: Collection[int] = (),
    cache: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> list[Finding]:
    """Everything strange in the chosen weights, the strongest first.

    `initial_std` is the standard deviation that the matrices began with, `unused` the ids of tokens that no text has.
    With `cache` what was read before is taken from the user's cache folder, and put there. `progress` is told bytes.
    Raises AddressError where parts of weights are chosen: what is strange is so among its like.
    """
    part = next((s for s in chosen if not s.is_whole), None)
    if part is not None:
        raise AddressError(f"{part.address}: outliers are looked for in whole weights; leave out what is in brackets")
    weights = [s.weight for s in chosen]
    tests = QUESTIONS * len(weights)
    parts = [reading.parts(s) for s in chosen]
    tasks = [part for some in parts for part in some]
    sizes = [part.dtype.nbytes(part.size) for part in tasks]
    work = Work(executor, progress, sum(sizes))
    scans = work.map(functools.partial(scan, cache=cache), tasks, sizes)
    profiles = [
        profile(weight, together(weight, some, list(itertools.islice(scans, len(some)))), laws, tests)
        for weight, some in zip(weights, parts, strict=True)
        for laws in (_laws(weight, registry, initial_std),)
    ]
    found = [f for p in profiles for f in p.found]
    found += _against_peers(weights, profiles)
    addresses = {weight.address for weight in weights}
    whole_heads = [h for h in heads(registry) if {p.weight.address for p in h.parts.values()} <= addresses]
    found += duplicates(weights, whole_heads, work)
    for weight, own in zip(weights, profiles, strict=True):
        if own.table is not None:
            found += untrained(weight, own.table, unused, tests, work)
    return ranked(found)


QUESTIONS = 4  # of chance, asked of each weight: of its numbers, its rows, its columns, its tokens


def _laws(weight: Weight, registry: Registry, std: float | None) -> dict[str, float]:
    """The standard deviations that a matrix may have begun with, by what is said of them."""
    if std is None:
        return {}
    laws = {"initializer_range of the config": std}
    if weight.role in (Role.O, Role.DOWN) and registry.config and registry.config.layers:
        laws["initializer_range / √(2 layers), as GPT-2 begins"] = std / math.sqrt(2 * registry.config.layers)
    return laws


def _against_peers(weights: Sequence[Weight], profiles: Sequence[Profile]) -> Iterator[Finding]:
    """What is strange against the same role in other layers."""
    groups: dict[tuple[object, ...], list[tuple[Weight, Profile]]] = {}
    for weight, found in zip(weights, profiles, strict=True):
        if found.rest > 0:
            groups.setdefault(_group(weight), []).append((weight, found))
    for group in groups.values():
        largest, spreads = (np.array([getattr(p, name) for _, p in group]) for name in ("peak_z", "spread"))
        for place, (weight, own) in enumerate(group):
            yield from _large(own, np.delete(largest, place))
            yield from _odd(weight, own, np.delete(spreads, place))


def _group(weight: Weight) -> tuple[object, ...]:
    """What its like have in common: the role in a layer, or nothing."""
    return (weight.role, weight.shape) if weight.layer is not None else (weight.address,)


def _large(own: Profile, peers: Array) -> list[Finding]:
    """The numbers that stand apart from all others of their matrix, and from the largest of other layers."""
    usual = float(np.median(peers)) if len(peers) else 0.0
    against = f"; in other layers the largest is {usual:.3g} times" if usual else ""
    kind = "super weight" if own.role is Role.DOWN else "large weight"
    found = []
    for address, value in own.peaks:
        z = abs(value) / own.rest
        strength = min(z / LARGE_Z, z / (OVER_PEERS * usual) if usual else math.inf)
        if strength >= 1:
            why = f"{z:.3g} times the root mean square of the other numbers{against}"
            found.append(finding(kind, address, value, strength, why))
    return strongest(found, TOLD, "numbers")


def _odd(weight: Weight, own: Profile, peers: Array) -> Iterator[Finding]:
    usual = float(np.median(peers)) if len(peers) > 1 else 0.0
    if not usual or not own.spread > 0 or own.count < SPREAD_OF:
        return
    ratio = own.spread / usual
    logs = np.log(peers[peers > 0] / usual)
    differing = math.exp(min(50.0, FAR * 1.4826 * float(np.median(np.abs(logs)))))  # as they differ among themselves
    strength = max(ratio, 1 / ratio) / max(ODD_SCALE, differing)
    if strength >= 1:
        why = f"its numbers are {ratio:.3g} times as far apart as those of {own.role} in other layers"
        yield finding("odd scale", weight.address, own.spread, strength, why)
