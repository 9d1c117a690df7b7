"""Slots: a family's table and a config together give the weights of one model, in forward order."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from weightkit.architectures.parts import QKV_AXES, Architecture, Slot
from weightkit.config import Config
from weightkit.layout import Layout
from weightkit.weight import Axis


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


_STACKS = {"{expert}": "expert", "{head}": "each_head", "{kv_head}": "each_kv_head"}  # of what there are stacks


def _item(slot: Slot, axes: Mapping[str, Axis], bias: bool, gguf: bool) -> Item:
    own = tuple(axes[name] for name in slot.axes[: 1 if bias else None])
    transposed = slot.transposed and not gguf  # GGUF has every matrix as [out, in]
    layout = Layout(transposed=transposed)
    out = own[0].size if own else 1
    if slot.fused:
        together = gguf and slot.fused == QKV_AXES  # q, k and v, but not what else is in one tensor
        repeats = axes[slot.every].count if slot.every and not together else 1
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
        stored = (axes[_STACKS[over(slot)]].count, *stored)
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


def layers_of(stack: str, config: Config) -> int:
    """How many layers a stack has."""
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
        for layer in range(layers_of(stack, config)) if stack is not None else (None,):
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


def items_of(architecture: Architecture, config: Config, *, gguf: bool) -> list[Item]:
    """The items of a model of this configuration; `gguf`: as GGUF files have them."""
    axes = axes_of(config)
    items = []
    for slot in architecture.slots:
        if slot.address.startswith("decoder.") and not config.decoder_layers:
            continue
        if gguf and slot.copies:  # it has nothing twice
            continue
        if slot.when not in ("", "dense", "experts", "shared_expert") and not config.has(slot.when):
            continue
        if slot.when in ("experts", "shared_expert") and config.experts is None:
            continue
        items.append(_item(slot, axes, False, gguf))
        if slot.bias == "always" or (slot.bias and config.has(slot.bias)):
            items.append(_item(slot, axes, True, gguf))
    return items


def usual_items(architecture: Architecture, config: Config) -> dict[str, Item]:
    """The items as Hugging Face files have them, by address; of several forms, the usual ones."""
    found: dict[str, Item] = {}
    for item in items_of(architecture, config, gguf=False):
        found.setdefault(item.address, item)
    return found


def said(item: Item, fill: Mapping[str, str | int]) -> str:
    """What the slot calls the tensor."""
    return item.slot.name.format_map(fill) + item.ending
