"""What is one row of a table: the weights of a role, a layer, a head or an expert; one row or column of a matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from weightkit.analysis.statistics import Group
from weightkit.errors import AddressError
from weightkit.weight import Selection

Named = tuple[str, Selection]  # the address of the group, and what belongs to it


def grouped(selections: Iterable[Selection], by: str) -> list[Group]:
    """Selections by "role", "layer", "head", "expert", "row" or "column", in the order in which each comes first.

    What is of no layer is left as it is; what has no head or expert, or is no matrix, is left out. Raises AddressError
    where nothing has one, or for another word.
    """
    if by not in _BY:
        raise AddressError(f"{by!r}: cannot group by that; by one of {', '.join(_BY)}")
    groups: dict[str, list[Selection]] = {}
    for selection in selections:
        for name, part in _BY[by](selection):
            groups.setdefault(name, []).append(part)
    if not groups:
        raise AddressError(f"nothing that is selected has an axis or a part called {by}: group by role or layer")
    return [Group(name, tuple(parts)) for name, parts in groups.items()]


def _role(selection: Selection) -> Iterator[Named]:
    yield str(selection.role), selection


def _layer(selection: Selection) -> Iterator[Named]:
    path = selection.weight.address.split(".")
    if selection.weight.layer is None or "layers" not in path:
        yield selection.address, selection
    else:
        yield ".".join(path[: path.index("layers") + 2]), selection


def _head(selection: Selection) -> Iterator[Named]:
    """A head of q, k, v and o; keys and values only where the head owns them, as in `[head=3]`."""
    parent = selection.weight.address.removesuffix(".bias").rpartition(".")[0]
    for number, part in _along(selection, "head"):
        yield f"{parent}[head={number}]", part


def _expert(selection: Selection) -> Iterator[Named]:
    path = selection.weight.address.split(".")
    if "experts" in path[:-1]:
        yield ".".join(path[: path.index("experts") + 2]), selection
        return
    for number, part in _along(selection, "expert"):
        yield f"{selection.weight.address}[expert={number}]", part


def _along(selection: Selection, name: str) -> Iterator[tuple[int, Selection]]:
    """The parts of a selection along the axis of this name, one for each thing that is selected whole."""
    region = selection.region
    for place, axis in enumerate(selection.weight.axes):
        if not axis.answers_to(name):
            continue
        taken = region[place]
        for number in range(axis.count):
            first, last = number * axis.width, (number + 1) * axis.width
            inside = taken.start <= first and last <= taken.stop and (first - taken.start) % taken.step == 0
            if inside and (taken.step == 1 or axis.width == 1):
                yield number, selection.thing(place, number)
        return


def _lines(axis: int, selection: Selection) -> Iterator[Named]:
    """The rows of a matrix (axis 0), or its columns (axis 1), by their coordinate in the whole of it."""
    region = selection.region
    if len(region) != 2:
        return
    for i in range(region[axis].start, region[axis].stop, region[axis].step):
        line = slice(i, i + 1, 1)
        part = (line, region[1]) if axis == 0 else (region[0], line)
        yield f"{selection.weight.address}[{f'{i}, :' if axis == 0 else f':, {i}'}]", Selection(selection.weight, part)


_BY: dict[str, Callable[[Selection], Iterator[Named]]] = {
    "role": _role,
    "layer": _layer,
    "head": _head,
    "expert": _expert,
    "row": partial(_lines, 0),
    "column": partial(_lines, 1),
}
