"""Assembly: architecture × checkpoint → registry. Which tensor of the files is which weight of the family."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from weightkit import packing
from weightkit.architectures import ARCHITECTURES
from weightkit.architectures.parts import Architecture, Role, Slot
from weightkit.checkpoint import CONFIG, Checkpoint
from weightkit.config import Config, family, model_type, normalise, quantization
from weightkit.errors import ConfigError, nearest, one_line
from weightkit.formats import gguf_names
from weightkit.layout import Layout
from weightkit.registry import Registry, unnamed
from weightkit.tensor import Source, Tensor
from weightkit.weight import Axis, Weight


def open_registry(checkpoint: Checkpoint) -> Registry:
    """The registry of any checkpoint: with roles where its family is known, else by names alone.

    Raises ConfigError where the config.json is broken, or contradicts the weights of its folder.
    """
    try:
        return _with_config(checkpoint)
    except ConfigError as error:
        if checkpoint.whole or not checkpoint.shards:
            raise
        return by_names(checkpoint, f"the config.json beside it does not describe this file ({error})")


def by_names(checkpoint: Checkpoint, why: str) -> Registry:
    """A registry without roles, and the reason."""
    note = f"{why}: tensors have names only; roles and the engine are not available"
    kind = (checkpoint.config or {}).get("model_type")
    tensors = {weight.address: weight for weight in unnamed(checkpoint.tensors).values()}
    return Registry(
        {},
        {weight.name: weight for weight in share_ties(tensors).values()},
        ignored=tuple(n for n, t in checkpoint.tensors.items() if n in checkpoint.aside or _is_mask(n, t)),
        notes=(*checkpoint.notes, note),
        model_type=kind if isinstance(kind, str) else None,
        sized=not checkpoint.listed,
    )


_MASK = re.compile(
    r"(^|[./])((attn|attention|self_attn)[./](masked_)?(bias|mask|tril)|rotary_emb[./]inv_freq|position_ids)$"
)


def _is_mask(name: str, tensor: Source) -> bool:
    """Whether a tensor is a causal mask or the like, in a model of any make: named so, and no vector."""
    return bool(_MASK.search(name)) and (len(tensor.shape) != 1 or "inv_freq" in name)


def _with_config(checkpoint: Checkpoint) -> Registry:
    where = str(checkpoint.folder / CONFIG)
    if checkpoint.adapter is not None or checkpoint.config is None:
        from weightkit.adapter import adapter_registry  # both stand on this room
        from weightkit.recognition import recognise

        found = adapter_registry(checkpoint) or (recognise(checkpoint) if checkpoint.config is None else None)
        if found is not None or checkpoint.config is None:
            return found or by_names(checkpoint, "there is no config.json")
    kind = model_type(checkpoint.config, where)
    quantization(checkpoint.config, where)  # a method that does not exist is refused whatever the family
    known = family(kind)
    if known is None:
        why = f"model_type {kind!r} is not known{nearest(kind, ARCHITECTURES)} (known: {one_line(ARCHITECTURES)})"
        if not checkpoint.names:
            raise ConfigError(f"{where}: {why}, and there are no weights beside it")
        return by_names(checkpoint, why)
    return build(checkpoint, ARCHITECTURES[known], normalise(checkpoint.config, where))


# ── names ──────────────────────────────────────────────────────────────────────────────────────────


class Names:
    """The tensors of a checkpoint by the names that its family's slots have for them."""

    def __init__(self, checkpoint: Checkpoint, architecture: Architecture) -> None:
        plain = {name: _plain(name, architecture) for name in checkpoint.names if name not in checkpoint.aside}
        root, self.prefix = _prefix(plain.values(), architecture)
        self.actual = {said.removeprefix(root): name for name, said in plain.items()}  # in the file, by what slots say
        self._tensors = checkpoint.tensors

    def adopt(self, renamed: Mapping[str, str]) -> None:
        """Add names by which a format calls the same tensors: {what slots say: in the file}."""
        self.actual.update(renamed)

    def said(self) -> dict[str, str]:
        """What Hugging Face files call the tensors that these files call otherwise."""
        return {name: said for said, name in self.actual.items() if said != name}

    @functools.cached_property
    def sources(self) -> dict[str, Source]:
        """The tensors themselves; empty where only their names are known."""
        return {said: self._tensors[name] for said, name in self.actual.items() if name in self._tensors}


def _plain(name: str, architecture: Architecture) -> str:
    name = name.replace("/", ".") if "/" in name else name
    for old, new in architecture.renamed:
        name = name.replace(old, new)
    return name


_WRAPPED = re.compile(r"(?:[\w-]+\.)*")


def _prefix(names: Iterable[str], architecture: Architecture) -> tuple[str, str]:
    """(what all names begin with, what names below the head have besides), from the name of the embedding.

    Wrappers leave a root (`module.`, `model.` of a training checkpoint, `language_model.`); the prefix is
    the family's own.
    """
    first = architecture.slots[0]
    stem = first.name.replace("{prefix}", "")
    stems = tuple(stem + ending for ending in (".weight", ".qweight", ".weight_packed"))
    best: tuple[int, int, str, str] | None = None
    for name in names:
        ending = next((s for s in stems if name.endswith(s)), None)
        if ending is None or not _WRAPPED.fullmatch(lead := name[: -len(ending)]):
            continue
        prefix = max((p for p in architecture.prefixes if lead.endswith(p)), key=len, default=None)
        if prefix is None:
            continue
        root = lead[: len(lead) - len(prefix)]
        found = (len(root), architecture.prefixes.index(prefix), root, prefix)
        best = found if best is None else min(best, found)
    return ("", architecture.prefixes[0]) if best is None else best[2:]


# ── slots ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Item:
    """What of a slot is the same for all layers and experts: worked out once."""

    slot: Slot
    axes: tuple[Axis, ...]
    layout: Layout
    stored: tuple[int, ...]  # the shape of the tensor that stores it
    bias: bool = False  # the slot's bias rather than its matrix

    @functools.cached_property
    def address(self) -> str:
        """The address, with its placeholders."""
        return self.slot.address + (".bias" if self.bias else "")

    @functools.cached_property
    def ending(self) -> str:
        """How the name in the file goes on."""
        return "" if self.slot.raw else ".bias" if self.bias else ".weight"


def axes_of(config: Config) -> dict[str, Axis]:
    """The axes of a model of this configuration, by the names that slots have for them."""
    own_keys = "head" if config.kv_heads == config.heads else ""
    axes = {
        "token": Axis("token", config.vocab),
        "position": Axis("position", config.positions + config.position_offset),
        "residual": Axis("residual", config.width),
        "embed": Axis("embed", config.embed_width or config.width),
        "head": Axis("head", config.heads, config.head_dim),
        "kv_head": Axis("kv_head", config.kv_heads, config.head_dim, also=own_keys),
        "each_head": Axis("head", config.heads),
        "each_kv_head": Axis("kv_head", config.kv_heads),
        "neuron": Axis("neuron", config.ffn),
        "head_dim": Axis("head_dim", config.head_dim),
        "token_type": Axis("token_type", config.token_types),
        "bucket": Axis("bucket", config.buckets),
        "one": Axis("", 1),
        "two": Axis("", 2),
    }
    if experts := config.experts:
        axes |= {
            "expert": Axis("expert", experts.count),
            "expert_neuron": Axis("neuron", experts.ffn),
            "shared_neuron": Axis("neuron", experts.shared_ffn),
        }
    if latent := config.latent:
        axes |= {
            "query": Axis("head", config.heads, latent.nope + latent.rope),
            "key_nope": Axis("head", config.heads, latent.nope),
            "value": Axis("head", config.heads, latent.value),
            "key_rope": Axis("", latent.rope),
            "q_rank": Axis("", latent.q_rank),
            "kv_rank": Axis("", latent.kv_rank),
        }
    if ssm := config.state_space:
        axes |= {
            "inner": Axis("neuron", ssm.inner),
            "inner_and_gate": Axis("", 2 * ssm.inner),
            "state": Axis("", ssm.state),
            "kernel": Axis("", ssm.kernel),
            "rank": Axis("", ssm.rank),
            "rank_and_states": Axis("", ssm.rank + 2 * ssm.state),
        }
    if vision := config.vision:
        axes |= {
            "vision_width": Axis("", vision.width),
            "vision_neuron": Axis("neuron", vision.ffn),
            "patch": Axis("", vision.patches),
            "pixel": Axis("", vision.patch),
            "channel": Axis("", vision.channels),
        }
    return axes


def _item(slot: Slot, axes: Mapping[str, Axis], bias: bool, gguf: bool) -> Item:
    own = tuple(axes[name] for name in slot.axes[: 1 if bias else None])
    transposed = slot.transposed and not gguf  # GGUF has every matrix as [out, in], and q, k, v one after another
    layout = Layout(transposed=transposed)
    out = own[0].size if own else 1
    if slot.fused:
        repeats = axes[slot.every].count if slot.every and not gguf else 1
        blocks = [axes[name].size // repeats for name in slot.fused]
        out = sum(blocks) * repeats
        layout = replace(
            layout,
            start=sum(blocks[: slot.part]),
            block=blocks[slot.part],
            period=sum(blocks),
            repeats=repeats,
        )
        if repeats == 1:
            layout = replace(layout, period=0)
    stored = (out, *(axis.size for axis in own[1:])) if own else ()
    stored = stored[::-1] if transposed else stored
    if slot.stacked:
        stored = (axes["expert"].count, *stored)
        layout = replace(layout, index=0)
    return Item(slot, own, layout, stored, bias)


def _applies(slot: Slot, config: Config, layer: int | None) -> bool:
    """Whether a layer has a slot."""
    if slot.when == "dense":
        return config.is_dense(layer or 0)
    if slot.when == "experts":
        return not config.is_dense(layer or 0)
    if slot.when == "shared_expert":
        return bool(config.experts and config.experts.shared_ffn) and not config.is_dense(layer or 0)
    return not slot.when or config.has(slot.when)


def _layers(stack: str, config: Config) -> int:
    if stack.startswith("decoder"):
        return config.decoder_layers
    if stack.startswith("vision"):
        return config.vision.layers if config.vision else 0
    return config.layers


def expand(items: list[Item], config: Config, prefix: str) -> Iterator[tuple[Item, dict[str, str | int]]]:
    """Every weight of a model in forward order: its item, and what its placeholders stand for."""
    counts = {
        "": 1,
        "{head}": config.heads,
        "{kv_head}": config.kv_heads,
        "{expert}": config.experts.count if config.experts else 0,
    }
    for stack, group in groupby(items, key=lambda item: stack_of(item.slot)):
        blocks = [(thing, list(same)) for thing, same in groupby(group, key=lambda item: over(item.slot))]
        for layer in range(_layers(stack, config)) if stack is not None else (None,):
            for thing, block in blocks:
                present = [item for item in block if _applies(item.slot, config, layer)]
                for number in range(counts[thing]) if present else ():
                    fill: dict[str, str | int] = {"prefix": prefix, "last": config.layers + 1}
                    if layer is not None:
                        fill |= {"layer": layer, "next": layer + 1}
                    if thing:
                        fill[thing.strip("{}")] = number
                    for item in present:
                        yield item, fill


def stack_of(slot: Slot) -> str | None:
    """What stands before the layer's number, if the slot is in a layer."""
    before, layer, _ = slot.address.partition("{layer}")
    return before if layer else None


def over(slot: Slot) -> str:
    """The placeholder, besides the layer's, that the slot is repeated over."""
    return next((over for over in ("{expert}", "{head}", "{kv_head}") if over in slot.address), "")


# ── weights ────────────────────────────────────────────────────────────────────────────────────────


def build(checkpoint: Checkpoint, architecture: Architecture, config: Config) -> Registry:
    """The registry of a checkpoint of a known family; without weights, of what its config describes.

    Raises ConfigError where the config and the files contradict each other.
    """
    names = Names(checkpoint, architecture)
    items = _items(architecture, config, gguf=checkpoint.format == "gguf")
    if checkpoint.format == "gguf":
        said = [_said(item, fill) for item, fill in expand(items, config, names.prefix)]
        names.adopt(gguf_names(checkpoint.metadata.get("general.architecture", ""), config.layers, said, names.actual))
    items = _in_one_form(items, config, names)
    builder = _Builder(checkpoint, config, names)
    for item, fill in expand(items, config, names.prefix):
        builder.add(item, fill)
    weights = builder.weights
    if config.tied and "lm_head" in weights:  # the file has its own all the same, and it is what counts
        weights["lm_head"] = replace(weights["lm_head"], tied_to="embed")
    elif config.tied and "{prefix}" in architecture.slots[0].name and architecture.has_head:
        weights["lm_head"] = replace(weights["embed"], address="lm_head", role=Role.HEAD, tied_to="embed", alias=True)
    ignored = _ignored(checkpoint, architecture, config, builder.claimed)
    leftover = [n for n in checkpoint.names if n not in builder.claimed and n not in ignored]
    scales = [name for name in leftover if config.quantization and packing.bookkeeping(name)]
    return Registry(
        share_ties(weights),
        unnamed(checkpoint.tensors) | _listed(checkpoint, weights),
        architecture=architecture,
        config=config,
        ignored=tuple(ignored),
        notes=checkpoint.notes,
        model_type=checkpoint.config["model_type"] if checkpoint.config else None,
        bookkeeping=tuple(name for name in (*builder.scales, *scales)),
        said=names.said(),
    )


def _items(architecture: Architecture, config: Config, *, gguf: bool) -> list[Item]:
    axes = axes_of(config)
    items = []
    for slot in architecture.slots:
        if slot.when not in ("", "dense", "experts", "shared_expert") and not config.has(slot.when):
            continue
        if slot.when in ("experts", "shared_expert") and config.experts is None:
            continue
        items.append(_item(slot, axes, False, gguf))
        if slot.bias == "always" or (slot.bias and config.has(slot.bias)):
            items.append(_item(slot, axes, True, gguf))
    return items


def _said(item: Item, fill: Mapping[str, str | int]) -> str:
    """What the slot calls the tensor."""
    return item.slot.name.format_map(fill) + item.ending


def _in_one_form(items: list[Item], config: Config, names: Names) -> list[Item]:
    """Where a family stores the same matrices in several ways, those of the way that these files have."""
    forms = list(dict.fromkeys(item.slot.form for item in items if item.slot.form))
    if not forms:
        return items
    seen: set[str] = set()
    for item, fill in expand([item for item in items if item.slot.form], config, names.prefix):
        said = _said(item, fill)
        if said in names.actual or packing.parts(said.removesuffix(".weight"), names.actual):
            seen.add(item.slot.form)
            break
    form = next((form for form in forms if form in seen), forms[0])
    return [item for item in items if item.slot.form in ("", form)]


def _ignored(checkpoint: Checkpoint, architecture: Architecture, config: Config, claimed: set[str]) -> dict[str, None]:
    """Names of what is no parameter: known buffers, layers of multi-token prediction, optimizer state."""
    extra = "|".join(str(config.layers + n) for n in range(config.mtp_layers)) or "none"
    patterns = re.compile("|".join(p.replace("{mtp}", f"({extra})") for p in architecture.ignored) or "(?!)")
    return {
        name: None
        for name in checkpoint.names
        if name in checkpoint.aside or (name not in claimed and patterns.search(name.replace("/", ".")))
    }


def _listed(checkpoint: Checkpoint, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """The names of an index whose shards are not here, each with what claims it or without a size."""
    if not checkpoint.listed:
        return {}
    claims = {weight.name: weight for weight in weights.values()}
    empty = (Axis("", 0),)
    return {
        name: replace(claims[name], address=f"name:{name}", tied_to=None, alias=False)
        if name in claims
        else Weight(f"name:{name}", name, Role.OTHER, empty, None, None)
        for name in checkpoint.listed
    }


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


class _Builder:
    """Collects the weights of one checkpoint, checking each against the shape that the config implies."""

    def __init__(self, checkpoint: Checkpoint, config: Config, names: Names) -> None:
        self.checkpoint = checkpoint
        self.config = config
        self.actual, self.sources = names.actual, names.sources
        self.weights: dict[str, Weight] = {}
        self.claimed: set[str] = set()
        self.scales: list[str] = []
        self.settings = checkpoint.packing
        self.schemes = packing.schemes_of(names.actual) if config.quantization else ()
        self.where = checkpoint.folder / CONFIG

    def add(self, item: Item, fill: Mapping[str, str | int]) -> None:
        """Add one weight, with its tensor if there are files."""
        slot, layout = item.slot, item.layout
        if slot.stacked:
            layout = replace(layout, index=int(fill["expert"]))
        said, address = _said(item, fill), item.address.format_map(fill)
        name, source = self.actual.get(said, said), None
        if not self.checkpoint.names:
            tied = slot.role is Role.HEAD and self.config.tied
            if slot.optional == "extra" or tied:
                return
        else:
            found = self._stored(item, said)
            if found is None and slot.optional:
                return
            if found is None:
                raise ConfigError(
                    f"{self.where}: describes {address} ({name}), which is not in the files: "
                    "they belong to another model, or a part is missing"
                )
            name, source = found
            if source is not None and source.shape != item.stored:
                layout = self._turned(item, source, layout, f"{address} ({name})")
        layer = fill.get("layer")
        self.weights[address] = Weight(
            address,
            name,
            Role.BIAS if item.bias else slot.role,
            item.axes,
            layer if isinstance(layer, int) else None,
            source,
            layout,
            buffer=slot.buffer,
        )

    def _stored(self, item: Item, said: str) -> tuple[str, Source | None] | None:
        """The name in the files and the tensor, or what several tensors hold; None where there is none."""
        base = said.removesuffix(".weight")
        if self.schemes and not item.bias:
            packed = packing.unpack(base, self.sources, self.settings, self.schemes) if self.sources else None
            if packed is not None or not self.sources:
                parts = [self.actual[part] for part in packing.parts(base, self.actual, self.schemes)]
                if parts:
                    self.claimed.update(parts)
                    self.scales += parts[1:]
                    return parts[0], packed
        name = self.actual.get(said)
        if name is None:
            return None
        self.claimed.add(name)
        return name, self.sources.get(said)

    def _turned(self, item: Item, source: Source, layout: Layout, what: str) -> Layout:
        """The layout of a tensor that lies the other way round, where that can be; ConfigError for other shapes."""
        turned = (*item.stored[:-2], *item.stored[-2:][::-1])
        if source.shape == turned and (item.slot.either or isinstance(source, packing.Packed)):
            return replace(layout, transposed=not layout.transposed)
        raise ConfigError(
            f"{self.where}: implies that {what} is {_shape(item.stored)}, "
            f"but in {source.path.name} it is {_shape(source.shape)}"
        )


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "a single number"
