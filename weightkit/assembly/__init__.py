"""Assembly: the registry of a checkpoint, by its config, by its names, or without roles."""

from __future__ import annotations

import re

from weightkit.architectures import ARCHITECTURES
from weightkit.assembly.adapter import adapter_registry
from weightkit.assembly.build import build
from weightkit.assembly.recognition import recognise
from weightkit.assembly.ties import share_ties
from weightkit.checkpoint import CONFIG, Checkpoint
from weightkit.config import family, model_type, normalise, quantization
from weightkit.errors import ConfigError, PackingError, nearest, one_line
from weightkit.registry import Registry, unnamed
from weightkit.tensor import Source

__all__ = ["build", "open_registry"]


def open_registry(checkpoint: Checkpoint) -> Registry:
    """The registry of any checkpoint: with roles where its family is known, else by names alone.

    Raises ConfigError where the config.json is broken, or contradicts the weights of its folder.
    """
    try:
        return _with_config(checkpoint)
    except PackingError as error:
        why = f"packed as {error.packed_as}, which is not unpacked: counted as stored"
        return by_names(checkpoint, why, packed_as=error.packed_as)
    except ConfigError as error:
        if checkpoint.whole or not checkpoint.shards:
            raise
        return by_names(checkpoint, f"the config.json beside it does not describe this file ({error})")


def by_names(checkpoint: Checkpoint, why: str, packed_as: str | None = None) -> Registry:
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
        packed_as=packed_as,
    )


_MASK = re.compile(
    r"(^|[./])((attn|(cross)?attention|self_attn)[./](masked_)?(bias|mask|tril)|rotary_emb[./]inv_freq|position_ids)$"
)


_ENDINGS = ("bias", "mask", "tril", "inv_freq", "position_ids")  # a look at these saves most searches


def _is_mask(name: str, tensor: Source) -> bool:
    """Whether a tensor is a causal mask or the like, in a model of any make: named so, and no vector."""
    return name.endswith(_ENDINGS) and bool(_MASK.search(name)) and (len(tensor.shape) != 1 or "inv_freq" in name)


def _with_config(checkpoint: Checkpoint) -> Registry:
    where = str(checkpoint.folder / CONFIG)
    if checkpoint.adapter is not None or checkpoint.config is None:
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
