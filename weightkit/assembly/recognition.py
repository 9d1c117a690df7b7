"""Recognition: the weights of a model without a config, by their names and shapes alone.

What the names do not tell is left open: how many heads there are, so heads have no axis, and q, k and v
of one tensor are taken apart only where they must be of equal size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from weightkit.architectures import ARCHITECTURES
from weightkit.architectures.parts import Architecture, Role, Slot
from weightkit.assembly.names import Names
from weightkit.assembly.slots import layers_of, over, stack_of
from weightkit.assembly.ties import share_ties, tie_copies
from weightkit.checkpoint import Checkpoint
from weightkit.config import Config
from weightkit.layout import Layout
from weightkit.registry import Registry, unnamed
from weightkit.tensor import Source
from weightkit.weight import Axis, Weight

_PLACE = re.compile(r"\\\{(\w+)\\\}")
_DIGITS = "[0-9]{1,9}"  # of a number in a name that could be one of a layer or an expert
_NUMBER = re.compile(rf"(?<![^.]){_DIGITS}(?![^.])")
_KNOWN_AXES = {  # those of a slot whose size is that of the tensor
    "token": "token",
    "position": "position",
    "residual": "residual",
    "neuron": "neuron",
    "expert_neuron": "neuron",
    "shared_neuron": "neuron",
    "expert": "expert",
    "each_head": "head",
}


@dataclass(frozen=True)
class _Place:
    """Where in the forward order a weight stands, and what numbers its address has."""

    order: tuple[int, ...]
    slot: Slot
    bias: bool
    numbers: dict[str, int]


def recognise(checkpoint: Checkpoint) -> Registry | None:
    """The registry of a checkpoint without a config, if its names are those of a known family."""
    stems = {kind: _embedding(architecture) for kind, architecture in ARCHITECTURES.items()}
    every = tuple({*stems.values(), *(stem.replace(".", "/") for stem in stems.values())})
    ends = {name.replace("/", ".") for name in checkpoint.names if name.endswith(every)}
    for kind, architecture in ARCHITECTURES.items():
        if not any(name.endswith(stems[kind]) for name in ends):
            continue  # without an embedding nothing is recognised
        places = Places(architecture)
        names = Names(checkpoint, architecture)
        found = places.of_all(names.actual)
        if found is None or not places.has_all_parts(found):
            continue
        weights = _all_weights(architecture, names, found)
        if _agree(weights):
            return _registry(checkpoint, architecture, weights)
    return None


class Places:
    """Where the tensors of a family belong, by the shape of their names."""

    def __init__(self, architecture: Architecture) -> None:
        self._by_skeleton: dict[str, list[tuple[tuple[int, int, int], Slot, bool]]] = {}
        self._needed: set[str] = set()
        self._prefixes = sorted(architecture.prefixes, key=len, reverse=True)
        self._buffers = re.compile("|".join(p.replace("{mtp}", "none") for p in architecture.ignored) or "(?!)")
        places = enumerate(architecture.slots)
        for group, (_, in_stack) in enumerate(groupby(places, key=lambda pair: stack_of(pair[1]))):
            for block, (_, slots) in enumerate(groupby(in_stack, key=lambda pair: over(pair[1]))):
                for place, slot in slots:
                    self._add(slot, (group, block, place))

    def _add(self, slot: Slot, order: tuple[int, int, int]) -> None:
        name = slot.name.replace("{prefix}", "\0")  # the prefix is not known before the names are
        name = _skeleton(re.sub(r"\{\w+\}", "0", name))
        for ending in ("",) if slot.raw else (".weight", ".bias") if slot.bias else (".weight",):
            self._by_skeleton.setdefault(name + ending, []).append((order, slot, ending == ".bias"))
        if not (slot.when or slot.optional or slot.form):
            self._needed.add(slot.address)

    def of_all(self, names: Iterable[str]) -> dict[str, list[_Place]] | None:
        """The places of all tensors but buffers; None where the family has none for one of them."""
        found = {}
        for name in names:
            if places := self.find(name):
                found[name] = places
            elif not self._buffers.search(name):
                return None
        return found or None

    def find(self, name: str) -> list[_Place]:
        """The places of the weights that a tensor of this name holds; none where the family has no such name."""
        for prefix in sorted(self._prefixes, key=len, reverse=True):
            if not name.startswith(prefix):
                continue
            found = self._by_skeleton.get(_skeleton("\0" + name[len(prefix) :])) or self._by_skeleton.get(
                _skeleton(name)
            )
            if found:
                return [place for entry in found if (place := self._place(name, prefix, *entry)) is not None]
        return []

    def _place(self, name: str, prefix: str, order: tuple[int, int, int], slot: Slot, bias: bool) -> _Place | None:
        pattern = re.escape(slot.name.replace("{prefix}", prefix))
        match = re.match(_PLACE.sub(rf"(?P<\1>{_DIGITS})", pattern), name)
        if match is None:
            return None
        numbers = {key: int(value) for key, value in match.groupdict().items()}
        if "next" in numbers:
            numbers["layer"] = numbers.pop("next") - 1
        group, block, place = order
        thing = numbers.get(over(slot).strip("{}"), 0)
        return _Place((group, numbers.get("layer", 0), block, thing, place, int(bias)), slot, bias, numbers)

    def address(self, module: str) -> tuple[str, int | None] | None:
        """The address of a module's matrix, and its layer; a fused one goes by its own name."""
        found = self.find(f"{module}.weight")
        if not found:
            return None
        place = found[0]
        address = place.slot.address if len(found) == 1 else _own_name(place.slot)
        return address.format_map(place.numbers), place.numbers.get("layer")

    def has_all_parts(self, found: Mapping[str, list[_Place]]) -> bool:
        """Whether every slot that no model of the family lacks is there."""
        return self._needed <= {place.slot.address for places in found.values() for place in places}


def layers_beyond(names: Iterable[str], architecture: Architecture, config: Config) -> list[int]:
    """The layers that tensors of these names belong to, and that the config does not describe."""
    places = Places(architecture)
    found = {
        place.numbers["layer"]
        for name in names
        for place in places.find(name)
        if "layer" in place.numbers and place.numbers["layer"] >= layers_of(stack_of(place.slot) or "", config)
    }
    return sorted(found)


def _embedding(architecture: Architecture) -> str:
    """How the name of the token embedding ends."""
    return architecture.slots[0].name.replace("{prefix}", "") + ".weight"


def _skeleton(name: str) -> str:
    return _NUMBER.sub("#", name)


def _all_weights(architecture: Architecture, names: Names, found: Mapping[str, list[_Place]]) -> dict[str, Weight]:
    """The weights in forward order."""
    width = next((s.shape[-1] for n, s in names.sources.items() if s.shape and found[n][0].slot.address == "embed"), 0)
    entries = [entry for said, places in found.items() for place in places for entry in _each(place, said, names)]
    weights: dict[str, Weight] = {}
    for place, said in sorted(entries, key=lambda entry: entry[0].order):
        weight = _weight(place, names.actual[said], names.sources.get(said), width)
        if weight is not None:
            weights.setdefault(weight.address, weight)
    tie_copies(weights, architecture.copies())
    if "lm_head" not in weights and architecture.has_head and "embed" in weights:
        weights["lm_head"] = replace(weights["embed"], address="lm_head", role=Role.HEAD, tied_to="embed", alias=True)
    return weights


def _agree(weights: Mapping[str, Weight]) -> bool:
    """Whether all weights have a residual stream of one width: families that share names differ in orientation."""
    sizes = {axis.size for weight in weights.values() for axis in weight.axes if axis.name == "residual"}
    return len(sizes) <= 1


def _registry(checkpoint: Checkpoint, architecture: Architecture, weights: dict[str, Weight]) -> Registry:
    note = (
        f"there is no config.json: its weights have the names of {architecture.model_type} models; "
        "heads are not known and the engine is not available"
    )
    listed = {name: Weight(f"name:{name}", name, Role.OTHER, (Axis("", 0),), None, None) for name in checkpoint.listed}
    claimed = {weight.name for weight in weights.values()}
    return Registry(
        share_ties(weights),
        unnamed(checkpoint.tensors) | listed,
        architecture=architecture,
        ignored=tuple(name for name in checkpoint.names if name not in claimed),
        notes=(*checkpoint.notes, note),
        sized=not checkpoint.listed,
        said={name: name.replace("/", ".") for name in checkpoint.names if "/" in name},
    )


def _each(place: _Place, said: str, names: Names) -> Iterator[tuple[_Place, str]]:
    """The places in a tensor: one or, in a stack of experts, one for each of them."""
    source = names.sources.get(said)
    if not place.slot.stacked or source is None or not source.shape:
        yield place, said
        return
    group, layer, block, _, *rest = place.order
    for expert in range(source.shape[0]):
        numbers = place.numbers | {"expert": expert}
        yield replace(place, order=(group, layer, block, expert, *rest), numbers=numbers), said


def _weight(place: _Place, name: str, source: Source | None, width: int) -> Weight | None:
    numbers, slot = place.numbers, place.slot
    stored = source.shape if source is not None else (0,) * len(slot.axes)
    index = numbers.get("expert") if slot.stacked and source is not None else None
    stored = stored if index is None else stored[1:]
    shape = stored[::-1] if slot.transposed else stored
    axes = [Axis(_KNOWN_AXES.get(axis, ""), size) for axis, size in zip(slot.axes, shape, strict=False)]
    axes += [Axis("", size) for size in shape[len(axes) :]]
    layout = Layout(transposed=slot.transposed, index=index)
    address, role = slot.address, slot.role
    if slot.fused and source is not None:
        split = _split(slot, shape, layout, width)
        if split is None and slot.part:
            return None
        if split is None:  # what is in it is not told apart, so it goes by its own name
            address, role = _own_name(slot), Role.OTHER
        else:
            layout = split
            axes[0] = Axis(axes[0].name, layout.block * layout.repeats)
    return Weight(
        address=address.format_map(numbers) + (".bias" if place.bias else ""),
        name=name,
        role=Role.BIAS if place.bias else role,
        axes=tuple(axes),
        layer=numbers.get("layer"),
        source=source,
        layout=layout,
        buffer=slot.buffer,
    )


def _own_name(slot: Slot) -> str:
    """The address of a tensor that several slots share, by what the file calls it."""
    return f"{slot.address.rpartition('.')[0]}.{slot.name.rpartition('.')[2]}"


def _split(slot: Slot, shape: tuple[int, ...], layout: Layout, width: int) -> Layout | None:
    """Which rows of a fused tensor are the slot's, where that follows from its shape; shape is [out, in]."""
    parts = len(slot.fused)
    block, rest = divmod(shape[0], parts)
    if rest:
        return None
    if len(set(slot.fused)) == 1:  # gate and up
        if slot.every:
            return replace(layout, start=slot.part, block=1, period=parts, repeats=block)
    elif slot.every or block != width:  # q, k and v, which need not be of one size
        return None
    return replace(layout, start=slot.part * block, block=block)
