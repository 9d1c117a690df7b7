"""Check: is a checkpoint sound? What could not be looked at is said, not passed over."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from weightkit import files, formats
from weightkit.analysis import costs
from weightkit.analysis.same import same_numbers
from weightkit.checkpoint import Checkpoint
from weightkit.errors import FormatError, MissingError
from weightkit.parallel import Progress, in_order
from weightkit.registry import Registry
from weightkit.weight import Selection, Weight

if TYPE_CHECKING:
    from concurrent.futures import Executor


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, and where."""

    kind: str  # values, index, config, tensors, checksum, tokenizer
    where: str  # an address, or a file
    message: str


@dataclass(frozen=True)
class Soundness:
    """The outcome of a check."""

    faults: list[Fault]
    not_checked: list[str] = field(default_factory=list)
    tensors: int = 0
    bytes: int = 0

    @property
    def sound(self) -> bool:
        """Whether no fault was found."""
        return not self.faults


def check(
    checkpoint: Checkpoint,
    registry: Registry,
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Soundness:
    """Look for faults that opening does not refuse: in the values, the index, the config, the ties.

    That a checkpoint opens at all has shown that headers, sizes, offsets, shards and shapes agree.
    """
    faults = [*_index(checkpoint), *_roles(checkpoint, registry), *_checksums(checkpoint), *_reference(checkpoint)]
    weights = [weight for weight in registry.by_name.values() if weight.source is not None]
    codes = _codes(registry)
    numbers = [weight for weight in weights if weight.name not in codes]
    not_checked = list(_not_checked(checkpoint, registry))
    for found in in_order(_values, numbers, executor=executor, progress=progress):
        if isinstance(found, Fault):
            faults.append(found)
        elif found is not None:
            not_checked.append(found)
    return Soundness(faults, not_checked, len(weights), checkpoint.nbytes)


def _codes(registry: Registry) -> set[str]:
    """Names of tensors whose elements are codes of a packed matrix: bitsandbytes keeps them in any type.

    Their shape tells; where an element is a number of the matrix, as in FP8, the two have the same.
    """
    stored = ((weight, registry.by_name.get(weight.name)) for weight in registry.values() if weight.source is not None)
    return {weight.name for weight, raw in stored if raw is not None and raw.shape != weight.stored.shape}


def _not_checked(checkpoint: Checkpoint, registry: Registry) -> Iterator[str]:
    if not checkpoint.tensors:
        yield f"values: there is only {'an index' if checkpoint.listed else 'a config.json'}"
    if checkpoint.config is None:
        yield "config against shapes: there is no config.json"
    elif registry.config is None and (registry.packed_as is not None or not checkpoint.whole):
        yield f"config against shapes: {registry.notes[-1]}"
    if checkpoint.listed:
        yield "shapes, sizes and offsets: none of the files that the index names is here"
    elif checkpoint.index is None and len(checkpoint.shards) > 1:
        yield "index against shards: there is no index"


def _values(weight: Weight) -> Fault | str | None:
    """NaN and Inf, in any type that has them; a string says why that could not be looked at."""
    if weight.dtype.kind not in ("float", "complex"):
        return None
    nan = inf = 0
    first = None
    where = weight.address.removeprefix("name:")
    try:
        for region, stored in Selection.of(weight).blocks():
            values = weight.dtype.decode(stored)
            bad = ~np.isfinite(values)
            if bad.any():
                nan += int(np.isnan(values).sum())
                inf += int(np.isinf(values).sum())
                if first is None:
                    place = np.unravel_index(int(bad.argmax()), bad.shape)
                    first = [s.start + int(i) for s, i in zip(region, place, strict=True)]
    except MissingError:
        raise  # nothing is wrong with numbers that nobody has seen
    except FormatError as error:
        return f"values of {where}: {error}"
    if first is None:
        return None
    found = " and ".join(f"{n:,} {what}" for n, what in ((nan, "NaN"), (inf, "Inf")) if n)
    return Fault("values", where, f"{found}, the first at {first}")


def _encoder(registry: Registry) -> bool:
    """Whether the family is one whose models are used without a vocab projection as well."""
    return registry.config is not None and costs.is_encoder(registry.config)


def _checksums(checkpoint: Checkpoint) -> Iterator[Fault]:
    """What the files' own checksums say: PyTorch never looks at those of its ZIP archives."""
    for shard in checkpoint.shards:
        for message in formats.faults(shard):
            yield Fault("checksum", shard.name, message)


def _index(checkpoint: Checkpoint) -> Iterator[Fault]:
    index = checkpoint.index
    if index is None:
        return
    where = checkpoint.index_path.name if checkpoint.index_path else "index"
    metadata = index.get("metadata")
    declared = metadata.get("total_size") if isinstance(metadata, dict) else None
    if checkpoint.listed:
        return
    if declared is not None and declared != checkpoint.nbytes:
        yield Fault("index", where, f"total_size is {declared!r}, the tensors take {checkpoint.nbytes:,} bytes")
    for name in checkpoint.tensors:
        if name not in index["weight_map"]:
            yield Fault("index", where, f"does not list tensor {name!r}, which a shard holds")


def _roles(checkpoint: Checkpoint, registry: Registry) -> Iterator[Fault]:
    if registry.config is None:
        # A config that nothing was checked against is not a sound one.
        if checkpoint.config is not None and checkpoint.whole and registry.packed_as is None:
            yield Fault("config", "config.json", f"cannot be checked against the weights: {registry.notes[-1]}")
        return
    method = registry.config.quantization
    if method and checkpoint.tensors and not registry.bookkeeping:
        yield Fault("config", "config.json", f"says that the weights are packed ({method}), but none are")
    for name in registry.unclaimed:
        yield Fault("tensors", name, f"is not part of a {registry.config.model_type} model of this config")
    if _lacks_its_head(registry):
        yield Fault("tensors", "lm_head", "is not in the files, and the config does not tie it to the embedding")
    yield from _ties(registry)


def _lacks_its_head(registry: Registry) -> bool:
    if "lm_head" in registry or any(address.startswith("task.") for address in registry):
        return False
    return registry.architecture is not None and registry.architecture.has_head and not _encoder(registry)


def _ties(registry: Registry) -> Iterator[Fault]:
    """What the config says is one weight, and the files say is two."""
    if registry.architecture is None or registry.config is None or not registry.config.tied:
        return
    for address, of in registry.architecture.copies(tied=True).items():
        weight, other = registry.get(address), registry.get(of)
        if weight is None or other is None or weight.alias or weight.source is None or other.source is None:
            continue
        with contextlib.suppress(FormatError):  # of a type that cannot be read, which `_values` says
            if same_numbers(other, weight):
                continue
            yield Fault(
                "config",
                address,
                f"tied to {of} by the config, but different in the files: counted as a weight of its own, as "
                "transformers 5 loads it; programs that trust the config leave it out",
            )


def _reference(checkpoint: Checkpoint) -> Iterator[Fault]:
    """What the safetensors package, which most programs load with, says of the same files."""
    from safetensors import SafetensorError, safe_open

    if checkpoint.format != "safetensors":
        return
    for shard in checkpoint.shards:
        if files.is_elsewhere(shard.path):
            continue  # there is only an empty stand-in, which that package would refuse
        try:
            with safe_open(shard.path, "numpy"):
                pass
        except SafetensorError as error:
            yield Fault("tensors", shard.name, f"the safetensors package refuses it: {error}")
