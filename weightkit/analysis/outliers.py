"""Outliers: what is strange in the weights of a model, ranked; against the others, and against how training begins."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from weightkit.analysis.duplicates import duplicates
from weightkit.analysis.finding import Finding, finding, ranked
from weightkit.analysis.heads import heads
from weightkit.analysis.profile import Profile, profile
from weightkit.analysis.untrained import untrained
from weightkit.architectures.parts import Role
from weightkit.dtypes import Array
from weightkit.errors import AddressError
from weightkit.parallel import Progress, in_order
from weightkit.registry import Registry
from weightkit.weight import Selection, Weight

if TYPE_CHECKING:
    from concurrent.futures import Executor

LARGE_Z = 12.0  # the largest number over the root mean square of the others
OVER_PEERS = 2.0  # and over the same of the same role in other layers
ODD_SCALE = 4.0  # spread over that of the same role in other layers, or the reverse


def find_outliers(
    registry: Registry,
    chosen: Sequence[Selection],
    *,
    initial_std: float | None = None,
    unused: Collection[int] = (),
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> list[Finding]:
    """Everything strange in the chosen weights, the strongest first.

    `initial_std` is the standard deviation that the matrices began with, `unused` the ids of tokens that no text has.
    Raises AddressError where parts of weights are chosen: what is strange is so among its like.
    """
    part = next((s for s in chosen if not s.is_whole), None)
    if part is not None:
        raise AddressError(f"{part.address}: outliers are looked for in whole weights; leave out what is in brackets")
    weights = [s.weight for s in chosen]
    tasks = [(weight, _laws(weight, registry, initial_std)) for weight in weights]
    profiles = list(in_order(_profile, tasks, executor=executor, progress=progress))
    found = [f for p in profiles for f in p.found]
    found += _against_peers(weights, profiles)
    addresses = {weight.address for weight in weights}
    whole_heads = (h for h in heads(registry) if {p.weight.address for p in h.parts.values()} <= addresses)
    found += duplicates(weights, whole_heads, executor)
    tables = (w for w in weights if w.role in (Role.EMBEDDING, Role.HEAD) and w.axes[0].name == "token" and not w.alias)
    for table in tables:
        if len(table.shape) == 2:
            found += untrained(table, unused, executor)
    return ranked(found)


def _profile(task: tuple[Weight, dict[str, float]]) -> Profile:
    return profile(*task)


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
        if found.peak_address:
            groups.setdefault(_group(weight), []).append((weight, found))
    for group in groups.values():
        peaks, spreads = (np.array([getattr(p, name) for _, p in group]) for name in ("peak_z", "spread"))
        for place, (weight, own) in enumerate(group):
            yield from _large(own, np.delete(peaks, place))
            yield from _odd(weight, own, np.delete(spreads, place))


def _group(weight: Weight) -> tuple[object, ...]:
    """What its like have in common: the role in a layer, or nothing."""
    return (weight.role, weight.shape) if weight.layer is not None else (weight.address,)


def _large(own: Profile, peers: Array) -> Iterator[Finding]:
    usual = float(np.median(peers)) if len(peers) else 0.0
    strength = min(own.peak_z / LARGE_Z, own.peak_z / (OVER_PEERS * usual) if usual else math.inf)
    if strength >= 1:
        against = f"; in other layers the largest is {usual:.3g} times" if usual else ""
        kind = "super weight" if own.role is Role.DOWN else "large weight"
        why = f"{own.peak_z:.3g} times the root mean square of the other numbers{against}"
        yield finding(kind, own.peak_address, own.peak, strength, why)


def _odd(weight: Weight, own: Profile, peers: Array) -> Iterator[Finding]:
    usual = float(np.median(peers)) if len(peers) > 1 else 0.0
    if not usual or not own.spread > 0:
        return
    ratio = own.spread / usual
    strength = max(ratio, 1 / ratio) / ODD_SCALE
    if strength >= 1:
        why = f"its numbers are {ratio:.3g} times as far apart as those of {own.role} in other layers"
        yield finding("odd scale", weight.address, own.spread, strength, why)
