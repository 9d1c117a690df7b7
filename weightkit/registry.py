"""Registry: the named weights of a model, in forward order."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from weightkit.address import AXES, Address, Index, axis_names, parse, path_matches, resolve_ends, split_path
from weightkit.architectures.parts import Architecture, Role
from weightkit.config import Config
from weightkit.errors import AddressError, nearest
from weightkit.layout import PLAIN
from weightkit.tensor import Region, Source, whole
from weightkit.weight import Axis, Selection, Weight

TokenId = Callable[[str], int]


class Registry(Mapping[str, Weight]):
    """The weights of a model by canonical address, in forward order.

    Tensors that no address claims follow under `name:…`. What is no parameter is not among the weights:
    known buffers (masks, inverse frequencies) and optimizer state are in `ignored`, the scales and zero
    points of packed weights in `bookkeeping`.
    """

    def __init__(
        self,
        weights: dict[str, Weight],
        by_name: dict[str, Weight],
        *,
        architecture: Architecture | None = None,
        config: Config | None = None,
        ignored: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
        model_type: str | None = None,
        bookkeeping: tuple[str, ...] = (),
        sized: bool = True,
        said: Mapping[str, str] | None = None,
        foreign: Mapping[str, str] | None = None,
        packed_as: str | None = None,
    ) -> None:
        self._weights = weights
        self.by_name = by_name  # every tensor in the files, as it is stored
        self.architecture = architecture
        self.config = config
        self.ignored = ignored
        self.model_type = model_type  # as the config names it, known or not
        self.notes = notes  # what is not available for this model, and why
        self.bookkeeping = bookkeeping  # names of scales, zero points and states of packed weights
        self.sized = sized  # False: not even shapes are known, only names
        self.said = said or {}  # what Hugging Face files call a tensor, where these files call it otherwise
        self.foreign = foreign or {}  # by address: what they call the tensor that a weight is in there
        self.packed_as = packed_as  # how the weights are packed, where they are not unpacked
        known = {weight.name for weight in weights.values()}.union(ignored, bookkeeping)
        self.unclaimed = tuple(name for name in by_name if name not in known)
        self._all = weights | {by_name[name].address: by_name[name] for name in self.unclaimed}

    @functools.cached_property
    def _paths(self) -> dict[str, tuple[str | int | slice, ...]]:
        return {address: split_path(address) for address in self._weights}

    @functools.cached_property
    def _plain(self) -> dict[str, Weight]:
        """The weights that are whole tensors as they are stored, by name."""
        whole_ones = (w for w in self._weights.values() if w.layout == PLAIN and not w.alias)
        return {w.name: w for w in whole_ones if w.source is self.by_name[w.name].source}

    @property
    def has_roles(self) -> bool:
        """Whether its weights have addresses, rather than names alone."""
        return bool(self._weights)

    def __getitem__(self, address: str) -> Weight:
        return self._all[address]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def tied(self) -> list[list[str]]:
        """Groups of addresses that share their numbers."""
        return tied_groups(self._all.values())

    def unique(self) -> list[Weight]:
        """Every weight once: without those that only repeat another's tensor."""
        return [weight for weight in self.values() if not weight.alias]

    def with_sources(self, sources: Mapping[str, Source]) -> Registry:
        """The same registry with the tensors of these names read from elsewhere."""

        def moves(weight: Weight) -> bool:  # a packed weight is made of several tensors, and is none of them
            return weight.name in sources and weight.dtype == sources[weight.name].dtype

        def moved(weights: Mapping[str, Weight]) -> dict[str, Weight]:
            return {k: replace(w, source=sources[w.name]) if moves(w) else w for k, w in weights.items()}

        return self._with(moved(self._weights), moved(self.by_name))

    def with_weights(self, weights: Mapping[str, Weight]) -> Registry:
        """The same registry with other weights at these addresses; the tensors of the files are as they were."""
        return self._with({k: weights.get(k, w) for k, w in self._weights.items()}, self.by_name)

    def _with(self, weights: dict[str, Weight], by_name: dict[str, Weight]) -> Registry:
        return Registry(
            weights,
            by_name,
            architecture=self.architecture,
            config=self.config,
            ignored=self.ignored,
            notes=self.notes,
            model_type=self.model_type,
            bookkeeping=self.bookkeeping,
            sized=self.sized,
            said=self.said,
            foreign=self.foreign,
            packed_as=self.packed_as,
        )

    def select(self, address: str | Address, token_id: TokenId | None = None) -> list[Selection]:
        """What an address names: whole weights, or the rectangles of those that have the axis.

        Weights that are tied to another selected one are left out, so nothing is counted or edited
        twice. `token_id` turns the text of a token into its id. Raises AddressError where nothing
        matches, with the nearest name that would.
        """
        parsed = parse(address) if isinstance(address, str) else address
        weights, index = self._match(parsed)
        chosen = {weight.address for weight in weights}
        weights = [weight for weight in weights if not (weight.alias and weight.tied_to in chosen)]
        names = axis_names(index)
        having = [w for w in weights if all(any(axis.answers_to(n) for axis in w.axes) for n in names)]
        if not having:
            axes = sorted({axis.name for weight in weights for axis in weight.axes if axis.name in AXES})
            raise AddressError(
                f"{parsed}: no weight here has the axis {', '.join(names)}"
                + (f"; its axes are {', '.join(axes)}" if axes else "; index it by position, as in [0, 3:7]")
            )
        return [Selection(w, _region(w, index, parsed, token_id), index) for w in having]

    def _match(self, address: Address) -> tuple[list[Weight], tuple[Index, ...]]:
        if address.name is not None:
            if address.text in self.by_name:  # brackets and stars can be part of a real name
                return [self._prefer_role(address.text)], ()
            pattern = re.compile(".*".join(map(re.escape, address.name.split("*"))), re.DOTALL)
            found = [self._prefer_role(name) for name in self.by_name if pattern.fullmatch(name)]
            if not found:
                near = _nearest_name(address.name, self.by_name)
                raise AddressError(f"name:{address.text}: no tensor in the files has this name{near}")
            return found, address.index
        path = resolve_ends(address.path, self.config.stack if self.config else lambda _: 0)
        found = [
            weight
            for key, weight in self._weights.items()
            if path_matches(path, self._paths[key], functools.partial(self._is_weight, key))
        ]
        if not found:
            raise AddressError(self._why_nothing(address))
        return found, address.index

    def _is_weight(self, key: str, segments: int) -> bool:
        return ".".join(key.split(".")[:segments]) in self._weights

    def _prefer_role(self, name: str) -> Weight:
        """The weight that is this whole tensor as stored, if it has an address; else the tensor."""
        return self._plain.get(name) or self.by_name[name]

    def _in_layers(self, address: Address) -> Address | None:
        """The address below every layer, where that names something: `W_Q` for `layers.*.attn.q`."""
        try:
            layered = parse(f"layers.*.{address.text}")
        except AddressError:
            return None
        found = any(path_matches(layered.path, path, lambda _: False) for path in self._paths.values())
        return layered if found else None

    def _why_nothing(self, address: Address) -> str:
        if not self._weights:
            return (
                f"{address.text}: this model's tensors have no roles, only names; write name:… with a name from "
                f"the file{_nearest_name(address.text, self.by_name)}"
            )
        layers = self.config.layers if self.config else 0
        if len(address.path) > 1 and address.path[0] == "layers":
            at = address.path[1]
            if isinstance(at, int) and not -layers <= at < layers:
                return f"{address}: there is no layer {at}; this model has layers 0 to {layers - 1}"
        if address.text in self.by_name:
            return f"{address.text}: is a name in the file, not an address; write name:{address.text}"
        if (layered := self._in_layers(address)) is not None:
            return f"{address}: nothing has this address by itself; in every layer it is {layered}"
        text = str(replace(address, index=()))
        candidates = {".".join(key.split(".")[:n]) for key in self._weights for n in range(1, key.count(".") + 2)}
        return f"{address}: nothing in this model has this address{nearest(text, sorted(candidates))}"


def _nearest_name(word: str, names: Iterable[str]) -> str:
    return nearest(word, names).replace("mean '", "mean 'name:")


def _region(weight: Weight, index: tuple[Index, ...], address: Address, token_id: TokenId | None) -> Region:
    region = list(whole(weight.shape))
    if len(index) > len(region):
        raise AddressError(f"{address}: {weight.address} has {len(region)} dimensions, not {len(index)}")
    for place, item in enumerate(index):
        axis = weight.axes[place]
        if item.axis is not None:
            place, axis = next((i, a) for i, a in enumerate(weight.axes) if a.answers_to(item.axis))
        else:
            axis = Axis("index", axis.size)
        region[place] = _span(axis, item, address, token_id)
    return tuple(region)


def _span(axis: Axis, item: Index, address: Address, token_id: TokenId | None) -> slice:
    """The indices of an axis that an index item takes: all `width` of each thing that it names."""
    at = item.at
    if isinstance(at, str):
        if item.axis != "token" or token_id is None:
            raise AddressError(f"{address}: {at!r} cannot be an index here; text names a token, as in [token={item}]")
        at = token_id(at)
    if isinstance(at, int):
        if not -axis.count <= at < axis.count:
            what = item.axis or "the index"
            raise AddressError(f"{address}: {what} goes from 0 to {axis.count - 1}, not to {at}")
        at = slice(at % axis.count, at % axis.count + 1)
    start, stop, step = at.indices(axis.count)
    if start >= stop:
        raise AddressError(f"{address}: {item} selects nothing of {axis.count}")
    if step == 1 or axis.width == 1:
        return slice(start * axis.width, stop * axis.width, step)
    raise AddressError(f"{address}: a step is not possible on the axis {axis.name}")


@functools.lru_cache(maxsize=1024)
def _unnamed_axis(size: int) -> Axis:
    return Axis("", size)


def tied_groups(weights: Iterable[Weight]) -> list[list[str]]:
    """The addresses of weights that are one, group by group."""
    groups: dict[str, list[str]] = {}
    for weight in weights:
        if weight.tied_to:
            groups.setdefault(weight.tied_to, [weight.tied_to]).append(weight.address)
    return list(groups.values())


def unnamed(tensors: Mapping[str, Source]) -> dict[str, Weight]:
    """Every tensor of the files as a weight without a role, addressed by `name:`."""
    return {
        name: Weight(f"name:{name}", name, Role.OTHER, tuple(map(_unnamed_axis, tensor.shape)), None, tensor)
        for name, tensor in tensors.items()
    }
