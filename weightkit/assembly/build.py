"""Build: architecture × checkpoint → registry. Which tensor of the files is which weight of the family."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from weightkit import packing
from weightkit.architectures.parts import Architecture, Role
from weightkit.assembly.names import Names
from weightkit.assembly.recognition import layers_beyond
from weightkit.assembly.slots import Item, expand, items_of, over, said, usual_items
from weightkit.assembly.ties import share_ties, tie_copies
from weightkit.checkpoint import CONFIG, Checkpoint
from weightkit.config import Config
from weightkit.errors import ConfigError, one_line
from weightkit.formats import gguf_names
from weightkit.layout import Layout
from weightkit.registry import Registry, unnamed
from weightkit.tensor import Source
from weightkit.weight import Axis, Weight


def build(checkpoint: Checkpoint, architecture: Architecture, config: Config) -> Registry:
    """The registry of a checkpoint of a known family; without weights, of what its config describes.

    Raises ConfigError where the config and the files contradict each other.
    """
    names = Names(checkpoint, architecture)
    if names.actual and config.decoder_layers and not any(map(_DECODER.match, names.actual)):
        config = replace(config, decoder_layers=0)  # an encoder by itself
    items = items_of(architecture, config, gguf=checkpoint.format == "gguf")
    if checkpoint.format == "gguf":
        hf = [said(item, fill) for item, fill in expand(items, config, names.prefix)]
        names.adopt(gguf_names(checkpoint.metadata.get("general.architecture", ""), config.layers, hf, names.actual))
    items = _in_one_form(items, config, names)
    builder = _Builder(checkpoint, architecture, config, names)
    for item, fill in expand(items, config, names.prefix):
        builder.add(item, fill)
    builder.add_task_heads()
    weights = builder.weights
    tie_copies(weights, architecture.copies(config.tied))
    if config.tied and _ends_with_its_embedding(weights, architecture, config):
        weights["lm_head"] = replace(weights["embed"], address="lm_head", role=Role.HEAD, tied_to="embed", alias=True)
    ignored = _ignored(checkpoint, architecture, config, builder.claimed)
    leftover = [n for n in checkpoint.names if n not in builder.claimed and n not in ignored]
    more = layers_beyond((names.said().get(name, name) for name in leftover), architecture, config) if leftover else []
    scales = [name for name in leftover if config.quantization and packing.bookkeeping(name)]
    return Registry(
        share_ties(weights),
        unnamed(checkpoint.tensors) | _listed(checkpoint, weights),
        architecture=architecture,
        config=config,
        ignored=tuple(ignored),
        notes=(*checkpoint.notes, *([_not_run(more)] if more else [])),
        model_type=checkpoint.config["model_type"] if checkpoint.config else None,
        bookkeeping=tuple(name for name in (*builder.scales, *scales)),
        said=names.said(),
        foreign=builder.foreign,
    )


def _not_run(layers: list[int]) -> str:
    few = one_line(map(str, layers), most=4)
    return f"the files have layers that the config does not describe, and that are not run: {few}"


_DECODER = re.compile(r"(decoder|dec)\.")  # as Hugging Face and GGUF call it


def _ends_with_its_embedding(weights: Mapping[str, Weight], architecture: Architecture, config: Config) -> bool:
    """Whether the embedding is the vocab projection as well, where the config ties the two.

    Not in an encoder by itself, nor where the head of a task is in its place.
    """
    if "lm_head" in weights or not architecture.has_head or "{prefix}" not in architecture.slots[0].name:
        return False
    if not config.decoder_layers and any(slot.address.startswith("decoder.") for slot in architecture.slots):
        return False
    parts = {slot.address for slot in architecture.slots if slot.address.startswith("lm_head.")}
    if parts and parts.isdisjoint(weights):
        return False
    return not any(address.startswith("task.") and "multiple_choice" not in address for address in weights)


def _in_one_form(items: list[Item], config: Config, names: Names) -> list[Item]:
    """Where a family stores the same matrices in several ways, those of the way that these files have."""
    formed = [item for item in items if item.slot.form]
    chosen = {
        thing: _form_of([item for item in formed if over(item.slot) == thing], config, names)
        for thing in {over(item.slot) for item in formed}
    }
    return [item for item in items if item.slot.form in ("", chosen.get(over(item.slot)))]


def _form_of(items: list[Item], config: Config, names: Names) -> str:
    """The form of which most names are there; of none, or of equally many, the usual one."""
    there = dict.fromkeys((item.slot.form for item in items), 0)
    seen: set[int] = set()
    for item, fill in expand(items, config, names.prefix):
        if id(item) in seen:  # the first layer that has them tells, and the first expert
            break
        seen.add(id(item))
        name = said(item, fill)
        there[item.slot.form] += name in names.actual or bool(packing.parts(name.removesuffix(".weight"), names.actual))
    return max(there, key=there.__getitem__)


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


# Heads of classifiers and the like, as transformers calls them.
_TASK = re.compile(
    r"((?:score|classifier|pre_classifier|qa_outputs|classification_head|multiple_choice_head)"
    r"(?:\.dense|\.out_proj|\.summary)?)\.(weight|bias)"
)


class _Builder:
    """Collects the weights of one checkpoint, checking each against the shape that the config implies."""

    def __init__(self, checkpoint: Checkpoint, architecture: Architecture, config: Config, names: Names) -> None:
        self.checkpoint = checkpoint
        self.config = config
        self.actual, self.sources = names.actual, names.sources
        self.weights: dict[str, Weight] = {}
        self.claimed: set[str] = set()
        self.scales: list[str] = []
        self.usual = usual_items(architecture, config)
        self.foreign: dict[str, str] = {}
        self.settings = checkpoint.packing
        self.schemes = packing.schemes_of(names.actual) if config.quantization else ()
        self.where = checkpoint.folder / CONFIG

    def add(self, item: Item, fill: Mapping[str, str | int]) -> None:
        """Add one weight, with its tensor if there are files."""
        slot, layout = item.slot, item.layout
        if slot.stacked:
            layout = replace(layout, index=int(fill[over(slot).strip("{}")]))
        name_said, address = said(item, fill), item.address.format_map(fill)
        name, source = self.actual.get(name_said, name_said), None
        if not self.checkpoint.names:
            tied = slot.role is Role.HEAD and self.config.tied
            if slot.optional == "extra" or tied:
                return
        else:
            found = self._stored(item, name_said)
            if found is None and slot.optional:
                return
            if found is None:
                raise ConfigError(
                    f"{self.where}: describes {address} ({name}), which is not in the files: "
                    "they belong to another model, or a part is missing"
                )
            name, source = found
            if isinstance(source, packing.Packed) and slot.transposed and not slot.stacked:
                # GPT-2's own matrices are [in, out]; every packer turns them to [out, in] first.
                item, layout = replace(item, stored=item.stored[::-1]), replace(layout, transposed=False)
            if source is not None and source.shape != item.stored:
                layout = self._turned(item, source, layout, f"{address} ({name})")
            if slot.foreign:
                self.foreign[address] = said(self.usual[item.address], fill)
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

    def add_task_heads(self) -> None:
        """Add what a model has in the place of a vocab projection, or besides: no config tells its shape."""
        for name_said, name in self.actual.items():
            if name in self.claimed or not (match := _TASK.fullmatch(name_said)):
                continue
            source, bias = self.sources.get(name_said), match[2] == "bias"
            axes = tuple(Axis("", size) for size in (source.shape if source is not None else (0,)))
            address = f"task.{match[1]}" + (".bias" if bias else "")
            self.weights[address] = Weight(address, name, Role.BIAS if bias else Role.OTHER, axes, None, source)
            self.claimed.add(name)

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
