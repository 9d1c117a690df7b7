"""Adapter: the low-rank pairs of a LoRA checkpoint, each under the address of the weight that it changes.

`layers.3.attn.q.lora_A` [rank, in] and `layers.3.attn.q.lora_B` [out, rank] add scale · B @ A to
`layers.3.attn.q`. Source: the PEFT checkpoint format, names `base_model.model.<module>.lora_A.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from weightkit.architectures import ARCHITECTURES
from weightkit.architectures.parts import Role
from weightkit.assembly.recognition import Places
from weightkit.checkpoint import Checkpoint
from weightkit.registry import Registry, unnamed
from weightkit.weight import Axis, Weight

_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\.(?P<part>lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))"
    r"(?:\.\w+)??(?:\.(?P<ending>weight|bias))?"
)


def adapter_registry(checkpoint: Checkpoint) -> Registry | None:
    """The registry of an adapter; None where the checkpoint is none."""
    found = {name: match for name in checkpoint.tensors if (match := _NAME.fullmatch(name))}
    if not found:
        return None
    addresses = _addresses({match["module"] for match in found.values()})
    weights: dict[str, Weight] = {}
    for name, match in found.items():
        base, source = addresses.get(match["module"]), checkpoint.tensors[name]
        if base is not None:
            address, layer = base
            axes = tuple(Axis("", size) for size in source.shape)
            ending = ".bias" if match["ending"] == "bias" else ""
            address = f"{address}.{match['part']}{ending}"
            weights[address] = Weight(address, name, Role.OTHER, axes, layer, source)
    settings = checkpoint.adapter or {}
    base_model = settings.get("base_model_name_or_path")
    note = (
        f"a LoRA adapter{f' for {base_model}' if isinstance(base_model, str) else ''}: its weights change those of "
        "another model, so it cannot be run by itself"
    )
    return Registry(weights, unnamed(checkpoint.tensors), notes=(*checkpoint.notes, note))


def _addresses(modules: set[str]) -> Mapping[str, tuple[str, int | None]]:
    """{module: (address, layer)} by the first family that has all of the modules, or else most of them."""
    best: dict[str, tuple[str, int | None]] = {}
    for architecture in ARCHITECTURES.values():
        places = Places(architecture)
        found = {module: where for module in modules if (where := places.address(module)) is not None}
        if len(found) > len(best):
            best = found
        if len(best) == len(modules):
            break
    return best
