"""Ties: weights that are the very same bytes of a file are one, and so are those that are said to be copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from weightkit.layout import PLAIN
from weightkit.tensor import Tensor, place_of
from weightkit.weight import Weight, same_in


def share_ties(weights: dict[str, Weight]) -> dict[str, Weight]:
    """Weights that are the very same bytes of a file are one: PyTorch and HDF5 keep ties in this way."""
    first: dict[tuple[object, ...], str] = {}
    for address, weight in weights.items():
        source = weight.source
        if source is None or weight.tied_to or not source.shape:
            continue
        at = place_of(source)
        if at is None:
            continue
        layout = None if weight.layout is PLAIN else weight.layout
        place = (id(source.path), at, source.shape, layout)  # the tensors of a file share its path
        if first.setdefault(place, address) != address:
            weights[address] = replace(weight, tied_to=first[place])
    return weights


def tie_copies(weights: dict[str, Weight], copies: Mapping[str, str]) -> None:
    """Tie what is said to be another weight once more, {address: of which}, unless a few numbers show that it is not.

    The files are the truth of their values, whatever a config says of them.
    """
    for address, of in copies.items():
        if address in weights and of in weights and not _seen_to_differ(weights[address], weights[of]):
            weights[address] = replace(weights[address], tied_to=of)


def _seen_to_differ(a: Weight, b: Weight) -> bool:
    """Whether a glance tells two weights apart: no more is read when a model is opened.

    Of an array that is compressed or packed even a few numbers can cost the reading of all, so those are not looked at.
    """
    plain = all(isinstance(w.source, Tensor) and not w.dtype.packed for w in (a, b))
    return plain and a.shape == b.shape and not all(same_in(a, b, region) for region in a.spots())
