"""Registry: architecture × checkpoint → the named weights of a model, in forward order."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from weightkit.address import AXES, Address, Index, axis_names, parse, path_matches, resolve_ends, split_path
from weightkit.architectures import ARCHITECTURES
from weightkit.architectures.parts import Architecture, Role, Slot
from weightkit.checkpoint import CONFIG, Checkpoint
from weightkit.config import Config, model_type, normalise, quantization
from weightkit.errors import AddressError, ConfigError, nearest
from weightkit.layout import PLAIN, Layout
from weightkit.tensor import Region, Source, whole
from weightkit.weight import Axis, Selection, Weight

TokenId = Callable[[str], int]


class Registry(Mapping[str, Weight]):
    """The weights of a model by canonical address, in forward order.

    Tensors that no address claims follow under `name:…`; known buffers (masks, inverse frequencies)
    are in `ignored`, since they are not parameters.
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
    ) -> None:
        self._weights = weights
        self.by_name = by_name  # every tensor in the files, as it is stored
        self.architecture = architecture
        self.config = config
        self.ignored = ignored
        self.model_type = model_type  # as the config names it, known or not
        self.notes = notes  # what is not available for this model, and why
        claimed = {weight.name for weight in weights.values()}
        self.unclaimed = tuple(name for name in by_name if name not in claimed and name not in ignored)
        self._all = weights | {by_name[name].address: by_name[name] for name in self.unclaimed}
        self._paths = {address: split_path(address) for address in weights}
        self._plain = {w.name: w for w in weights.values() if w.layout == PLAIN and not w.alias}

    def __getitem__(self, address: str) -> Weight:
        return self._all[address]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def tied(self) -> list[list[str]]:
        """Groups of addresses that share their numbers."""
        groups: dict[str, list[str]] = {}
        for weight in self._weights.values():
            if weight.tied_to:
                groups.setdefault(weight.tied_to, [weight.tied_to]).append(weight.address)
        return list(groups.values())

    def unique(self) -> list[Weight]:
        """Every weight once: without those that only repeat another's tensor."""
        return [weight for weight in self.values() if not weight.alias]

    def with_sources(self, sources: Mapping[str, Source]) -> Registry:
        """The same registry with the tensors of these names read from elsewhere."""

        def moved(weights: Mapping[str, Weight]) -> dict[str, Weight]:
            return {k: replace(w, source=sources[w.name]) if w.name in sources else w for k, w in weights.items()}

        return Registry(
            moved(self._weights),
            moved(self.by_name),
            architecture=self.architecture,
            config=self.config,
            ignored=self.ignored,
            notes=self.notes,
            model_type=self.model_type,
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
        path = resolve_ends(address.path, self.config.layers if self.config else 0)
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


def axes_of(config: Config) -> dict[str, Axis]:
    """The axes of a model of this configuration, by name."""
    own_keys = "head" if config.kv_heads == config.heads else ""
    return {
        "token": Axis("token", config.vocab),
        "position": Axis("position", config.positions),
        "residual": Axis("residual", config.width),
        "head": Axis("head", config.heads, config.head_dim),
        "kv_head": Axis("kv_head", config.kv_heads, config.head_dim, also=own_keys),
        "neuron": Axis("neuron", config.ffn),
        "head_dim": Axis("head_dim", config.head_dim),
    }


def unnamed(tensors: Mapping[str, Source]) -> dict[str, Weight]:
    """Every tensor of the files as a weight without a role, addressed by `name:`."""
    return {
        name: Weight(f"name:{name}", name, Role.OTHER, tuple(map(_unnamed_axis, tensor.shape)), None, tensor)
        for name, tensor in tensors.items()
    }


@functools.lru_cache(maxsize=1024)
def _unnamed_axis(size: int) -> Axis:
    return Axis("", size)


def open_registry(checkpoint: Checkpoint) -> Registry:
    """The registry of any checkpoint: with roles where its family is known, else by names alone.

    Raises ConfigError where the config.json is broken, or contradicts the weights of its folder.
    """
    try:
        return _with_roles(checkpoint)
    except ConfigError as error:
        if checkpoint.whole or not checkpoint.tensors:
            raise
        return _by_names(checkpoint, f"the config.json beside it does not describe this file ({error})")


def _by_names(checkpoint: Checkpoint, why: str) -> Registry:
    note = f"{why}: tensors have names only; roles and the engine are not available"
    kind = (checkpoint.config or {}).get("model_type")
    return Registry({}, unnamed(checkpoint.tensors), notes=(note,), model_type=kind if isinstance(kind, str) else None)


def _with_roles(checkpoint: Checkpoint) -> Registry:
    where = str(checkpoint.folder / CONFIG)
    if checkpoint.config is None:
        return _by_names(checkpoint, "there is no config.json")
    kind = model_type(checkpoint.config, where)
    method = quantization(checkpoint.config, where)
    if kind not in ARCHITECTURES:
        why = f"model_type {kind!r} is not known (known: {', '.join(ARCHITECTURES)})"
        if not checkpoint.tensors:
            raise ConfigError(f"{where}: {why}, and there are no weights beside it")
        return _by_names(checkpoint, why)
    config = normalise(checkpoint.config, where)
    if method and checkpoint.tensors:
        return _by_names(checkpoint, f"the weights are packed ({method})")
    return build(checkpoint, ARCHITECTURES[kind], config)


def build(checkpoint: Checkpoint, architecture: Architecture, config: Config) -> Registry:
    """The registry of a checkpoint of a known family; without weights, of what its config describes.

    Raises ConfigError where the config and the files contradict each other.
    """
    weights: dict[str, Weight] = {}
    axes = axes_of(config)
    prefix = _prefix(checkpoint, architecture)
    for slot, layer in _expand(architecture, config):
        for kind in ("weight", "bias") if _has_bias(slot, config) else ("weight",):
            weight = _weight(slot, kind, layer, prefix, axes)
            if checkpoint.tensors:
                _add_stored(weights, weight, slot, checkpoint, axes)
            elif not (slot.optional and config.tied):
                weights[weight.address] = weight
    if config.tied and "lm_head" in weights:  # the file has its own all the same, and it is what counts
        weights["lm_head"] = replace(weights["lm_head"], tied_to="embed")
    elif config.tied:
        weights["lm_head"] = replace(weights["embed"], address="lm_head", role=Role.HEAD, tied_to="embed", alias=True)
    patterns = [re.compile(pattern) for pattern in architecture.ignored]
    ignored = tuple(name for name in checkpoint.tensors if any(p.search(name) for p in patterns))
    return Registry(
        weights,
        unnamed(checkpoint.tensors),
        architecture=architecture,
        config=config,
        ignored=ignored,
        model_type=architecture.model_type,
    )


def _expand(architecture: Architecture, config: Config) -> Iterator[tuple[Slot, int | None]]:
    """Every slot of a model in forward order, the layers' slots once for each layer."""
    in_layer = [slot for slot in architecture.slots if "{layer}" in slot.address]
    first = architecture.slots.index(in_layer[0])
    for slot in architecture.slots[:first]:
        yield slot, None
    for layer in range(config.layers):
        for slot in in_layer:
            yield slot, layer
    for slot in architecture.slots[first + len(in_layer) :]:
        yield slot, None


def _prefix(checkpoint: Checkpoint, architecture: Architecture) -> str:
    name = architecture.slots[0].name + ".weight"
    found = (p for p in architecture.prefixes if name.format(prefix=p) in checkpoint.tensors)
    return next(found, architecture.prefixes[0])


def _has_bias(slot: Slot, config: Config) -> bool:
    return slot.bias == "always" or (slot.bias != "never" and bool(getattr(config, slot.bias)))


def _weight(slot: Slot, kind: str, layer: int | None, prefix: str, axes: dict[str, Axis]) -> Weight:
    layout = Layout(transposed=slot.transposed)
    if slot.fused:
        sizes = [axes[name].size for name in slot.fused]
        layout = replace(layout, start=sum(sizes[: slot.part]), block=sizes[slot.part])
    named = {"prefix": prefix, "layer": layer}
    return Weight(
        address=slot.address.format(**named) + (".bias" if kind == "bias" else ""),
        name=f"{slot.name.format(**named)}.{kind}",
        role=Role.BIAS if kind == "bias" else slot.role,
        axes=tuple(axes[name] for name in slot.axes[: 1 if kind == "bias" else None]),
        layer=layer,
        source=None,
        layout=layout,
    )


def _add_stored(
    weights: dict[str, Weight], weight: Weight, slot: Slot, checkpoint: Checkpoint, axes: dict[str, Axis]
) -> None:
    """Add the weight with its tensor, checked against the shape that the config implies."""
    where = checkpoint.folder / CONFIG
    tensor = checkpoint.tensors.get(weight.name)
    if tensor is None:
        if slot.optional:
            return
        raise ConfigError(
            f"{where}: describes {weight.address} ({weight.name}), which is not in the files: "
            "they belong to another model, or a part is missing"
        )
    out = sum(axes[name].size for name in slot.fused) if slot.fused else weight.shape[0]
    expected = (out, *weight.shape[1:])
    expected = expected[::-1] if slot.transposed else expected
    if tensor.shape != expected:
        raise ConfigError(
            f"{where}: implies that {weight.address} ({weight.name}) is {_shape(expected)}, "
            f"but in {tensor.path.name} it is {_shape(tensor.shape)}"
        )
    weights[weight.address] = replace(weight, source=tensor)


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "a single number"
