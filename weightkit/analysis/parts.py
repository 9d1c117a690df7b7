"""Parts: weights of a diff that are put from one model into the other together, to see what they do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from weightkit.errors import AddressError, nearest

MOST = 20  # that a reader takes in; what is smaller is one
KINDS = ("role", "layer", "weight")
OUTSIDE = "outside layers"
REST = "the rest"


class Row(Protocol):
    """One weight that differs."""

    @property
    def address(self) -> str:
        """Its address."""
        ...

    @property
    def role(self) -> str:
        """Its role."""
        ...

    @property
    def layer(self) -> int | None:
        """Its layer."""
        ...

    @property
    def l2(self) -> float:
        """The norm of what changed."""
        ...


@dataclass(frozen=True)
class Part:
    """Weights that differ, and how far they move what A predicts. Nats; NaN as long as no text was run."""

    part: str  # a role, a layer or an address; the rest; settings of the config, which have no weights
    addresses: list[str]
    l2: float  # the norm of their change
    kl_alone: float = math.nan  # mean KL(A ‖ A with these weights of B)
    kl_together: float = math.nan  # mean KL(A ‖ A with these and with those of all parts before)


def name_of(row: Row, by: str) -> str:
    """The part that a weight belongs to."""
    if by == "weight":
        return row.address
    if by == "role":
        return row.role
    return OUTSIDE if row.layer is None else f"layer {row.layer}"


def parts(rows: Iterable[Row], by: str) -> list[Part]:
    """Rows in parts by role, layer or weight, that of the largest change first; the smallest of many are one part.

    Raises AddressError for what parts are not made by.
    """
    if by not in KINDS:
        raise AddressError(f"{by!r}: parts are by one of {', '.join(KINDS)}{nearest(by, KINDS)}")
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(name_of(row, by), []).append(row)
    found = sorted((_part(name, group) for name, group in groups.items()), key=lambda part: -part.l2)
    if len(found) <= MOST:
        return found
    small = found[MOST - 1 :]
    rest = [address for part in small for address in part.addresses]
    return [*found[: MOST - 1], Part(REST, rest, math.sqrt(sum(part.l2**2 for part in small)))]


def _part(name: str, rows: Sequence[Row]) -> Part:
    squares = (row.l2**2 for row in rows if not math.isnan(row.l2))
    return Part(name, [row.address for row in rows], math.sqrt(sum(squares)))
