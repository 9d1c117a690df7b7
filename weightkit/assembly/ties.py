"""Ties: weights that are the very same bytes of a file are one."""

from __future__ import annotations

from dataclasses import replace

from weightkit.layout import PLAIN
from weightkit.tensor import Source, Tensor
from weightkit.weight import Weight


def share_ties(weights: dict[str, Weight]) -> dict[str, Weight]:
    """Weights that are the very same bytes of a file are one: PyTorch and HDF5 keep ties in this way."""
    first: dict[tuple[object, ...], str] = {}
    for address, weight in weights.items():
        source = weight.source
        if source is None or weight.tied_to or not source.shape:
            continue
        at = _place(source)
        if at is None:
            continue
        layout = None if weight.layout is PLAIN else weight.layout
        place = (id(source.path), at, source.shape, layout)  # the tensors of a file share its path
        if first.setdefault(place, address) != address:
            weights[address] = replace(weight, tied_to=first[place])
    return weights


def _place(source: Source) -> object:
    """Where in its file an array lies; None for one that is made of others."""
    return source.offset if isinstance(source, Tensor) else getattr(source, "address", None)
