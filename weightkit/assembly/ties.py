"""Ties: weights that are the very same bytes of a file are one."""

from __future__ import annotations

from dataclasses import replace

from weightkit.tensor import Tensor
from weightkit.weight import Weight


def share_ties(weights: dict[str, Weight]) -> dict[str, Weight]:
    """Weights that are the very same bytes of a file are one: PyTorch and HDF5 keep ties in this way."""
    first: dict[tuple[object, ...], str] = {}
    for address, weight in weights.items():
        source = weight.source
        if not isinstance(source, Tensor) or weight.tied_to or not source.shape:
            continue
        place = (source.path, source.offset, source.shape, weight.layout)
        if first.setdefault(place, address) != address:
            weights[address] = replace(weight, tied_to=first[place])
    return weights
