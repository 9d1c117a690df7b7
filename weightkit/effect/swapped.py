"""Swapped: what the weights that differ do to what a model predicts, as those of another take their place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from weightkit.analysis.parts import Part
from weightkit.errors import EngineError
from weightkit.parallel import Progress
from weightkit.registry import Registry

SETTINGS = "settings"
WHOLE = "; weightkit measure A B compares what they predict as a whole"


def require_swappable(a: Registry, b: Registry) -> None:
    """Raise EngineError, which says why, unless the weights of one model can take the places of the other's."""
    if a.architecture != b.architecture:
        raise EngineError(
            f"A is {a.model_type or 'of no known family'}, B {b.model_type or 'of none'}: "
            f"weights of one architecture cannot be put into another{WHOLE}"
        )
    for here, there, one, other in (("A", "B", a, b), ("B", "A", b, a)):
        only = next((k for k, w in one.items() if k not in other and not w.alias), None)
        if only is not None:
            raise EngineError(f"only {here} has {only}: the weights of {there} cannot be put in one by one{WHOLE}")
    for address, mine in a.items():
        theirs = b.get(address)
        if theirs is not None and mine.shape != theirs.shape:
            shapes = f"{list(mine.shape)} in A and {list(theirs.shape)} in B"
            raise EngineError(f"{address} is {shapes}: weights of other shapes cannot be put in{WHOLE}")


def swapped(a: Registry, b: Registry, addresses: Iterable[str]) -> Registry:
    """The model `a` with the weights of `b` at some addresses. They are read where they lie; nothing is copied.

    What both models tie to such a weight goes with it.
    """
    chosen = set(addresses)
    taken = {k: w for k, w in a.items() if k in chosen or (w.alias and w.tied_to in chosen and b[k].alias)}
    return a.with_weights({k: replace(w, source=b[k].source, layout=b[k].layout) for k, w in taken.items()})


def attribute(
    a: Registry,
    b: Registry,
    parts: Sequence[Part],
    kl: Callable[[Registry], float],
    *,
    settings: bool = False,
    progress: Progress | None = None,
) -> list[Part]:
    """Parts with the mean KL of each alone, and of each together with those before it; `kl` runs a model beside A.

    KL does not add up, so neither is a share of the whole. With `settings`, which models differ in besides their
    weights, those come last: then all of A is as B.
    """
    found: list[Part] = []
    chosen: list[str] = []
    all_ = 2 * len(parts) - (not settings)
    for part in parts:
        chosen += part.addresses
        alone = kl(swapped(a, b, part.addresses))
        together = kl(swapped(a, b, chosen)) if found else alone
        found.append(replace(part, kl_alone=alone, kl_together=together))
        if progress is not None:
            progress(min(all_, 2 * len(found) - 1), all_)
    if settings:
        found.append(Part(SETTINGS, [], math.nan, kl_together=kl(b)))
    return found
