"""Convert: a model written anew in another format, in other types, in other shards.

Everything streams in blocks, so memory does not grow with the model. Names are those that Hugging Face
files have, whatever the source calls its tensors; packed weights are written as the numbers they stand for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightkit.checkpoint import CONFIG, TOKENIZER, Checkpoint
from weightkit.dtypes import DTYPES, DType
from weightkit.errors import SaveError, nearest
from weightkit.parallel import Progress
from weightkit.registry import Registry
from weightkit.surgery import shards
from weightkit.surgery.cast import Cast
from weightkit.surgery.hugging_face import assembled, relaid
from weightkit.surgery.place import beside, companions, put, require_free, sync
from weightkit.surgery.shards import Named
from weightkit.tensor import Source, Tensor
from weightkit.weight import Weight

if TYPE_CHECKING:
    from concurrent.futures import Executor

SHARD_BYTES = 5_000_000_000
FILES = (".safetensors", ".npz", ".h5", ".hdf5", ".gguf")  # what a destination may end in; else it is a folder
DTYPES_BY_TORCH = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def convert(
    checkpoint: Checkpoint,
    registry: Registry,
    out: str | Path,
    *,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    force: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a model to `out` and return its path.

    `out` is a file in the format that its name says (.safetensors, .npz, .h5, .gguf), else a folder of
    safetensors shards of at most `shard_bytes` with config and tokenizer. `dtype` is a type to cast all
    floating-point weights to; without one they keep theirs, and packed ones become F32. The executor writes
    safetensors, to the same bytes as threads do; its workers need to see `out` under the same path. `progress` is
    told bytes. Raises SaveError or EditError, and the destination is as it was.
    """
    if registry.packed_as is not None:
        raise SaveError(f"{checkpoint.path}: packed as {registry.packed_as}, which cannot be converted")
    out = Path(out)
    as_file = out.suffix in FILES
    require_free(checkpoint, out, force=force, as_file=as_file)
    if not as_file:
        _require_names(checkpoint, registry)
    if out.suffix == ".gguf":
        from weightkit.surgery.to_gguf import write_gguf

        with beside(out) as scratch:
            write_gguf(scratch / out.name, checkpoint, registry, logical(registry), dtype)
            put(scratch / out.name, out, scratch)
        return out
    tensors = [(name, _cast(source, dtype)) for name, source in logical(registry)]
    with beside(out) as scratch:
        if as_file:
            new = scratch / out.name
            _write_file(new, tensors, executor, progress)
        else:
            new = scratch / "new"
            new.mkdir()
            cut = _cut(tensors, shard_bytes)
            shards.write(_named(new, cut), executor=executor, progress=progress)
            _write_beside(new, checkpoint, registry, cut)
        put(new, out, scratch)
    return out


def _require_names(checkpoint: Checkpoint, registry: Registry) -> None:
    """Raise SaveError where a config would stand beside names that it does not go with."""
    if checkpoint.format == "gguf" and checkpoint.config is not None and registry.architecture is None:
        raise SaveError(
            f"{checkpoint.shards[0].path}: the names that Hugging Face files have for its tensors are not known "
            f"({registry.notes[-1]}); convert it to a single file, which keeps those it has"
        )


def logical(registry: Registry) -> Iterator[Named]:
    """The tensors that a model is made of, as Hugging Face has them: no scales, no optimizer state, no repeats."""
    packed = {w.name: w for w in registry.values() if w.source is not None and w.source is not _raw(registry, w.name)}
    tied = registry.config is not None and registry.config.tied  # else nothing would tell that they are one
    repeats = {w.name for w in registry.values() if tied and w.tied_to and _shares_bytes(registry, w)}
    anew, others = relaid(registry), assembled(registry)
    left_out = {*registry.bookkeeping, *registry.ignored, *repeats}
    for name, weight in registry.by_name.items():
        if name in left_out:
            continue
        if name in others:
            yield from others[name]
            continue
        said = registry.said.get(name, name)
        source = anew.get(name) or (packed[name].stored if name in packed else weight.stored)
        yield _unpacked_name(said) if name in packed else said, source


def _raw(registry: Registry, name: str) -> Source | None:
    return registry.by_name[name].source if name in registry.by_name else None


def _shares_bytes(registry: Registry, weight: Weight) -> bool:
    """Whether a tied weight has a name of its own for the very bytes of the other."""
    mine, theirs = weight.source, registry[weight.tied_to or weight.address].source
    if weight.alias or not isinstance(mine, Tensor) or not isinstance(theirs, Tensor):
        return False
    return (mine.path, mine.offset) == (theirs.path, theirs.offset)


def _unpacked_name(name: str) -> str:
    for ending in (".qweight", ".weight_packed"):
        if name.endswith(ending):
            return name.removesuffix(ending) + ".weight"
    return name.removesuffix("_blocks")


def _cast(source: Source, dtype: str | None) -> Source:
    if source.dtype.kind != "float":
        return source
    if dtype is None:
        return Cast(source, DTYPES["F32"]) if source.dtype.packed and source.dtype.block > 1 else source
    return source if source.dtype.name == dtype else Cast(source, dtype_named(dtype))


def dtype_named(name: str) -> DType:
    """A type by its name here or in PyTorch: BF16 or bfloat16. SaveError where numbers cannot be cast to it."""
    by_torch = {torch: ours for ours, torch in DTYPES_BY_TORCH.items()}
    found = DTYPES.get(by_torch.get(name.lower(), name.upper()))
    if found is None or found.kind != "float" or found.packed:
        known = [d.name for d in DTYPES.values() if d.kind == "float" and not d.packed]
        raise SaveError(
            f"--dtype {name}: is not a type to cast to{nearest(name.upper(), known)}; known are {', '.join(known)}"
        )
    return found


def _write_file(path: Path, tensors: list[Named], executor: Executor | None, progress: Progress | None) -> None:
    if path.suffix == ".npz":
        from weightkit.formats import npz

        npz.write(path, tensors)
    elif path.suffix in (".h5", ".hdf5"):
        from weightkit.formats import hdf5

        hdf5.write(path, tensors)
    else:
        shards.write([(path, tensors)], executor=executor, progress=progress)


def _named(folder: Path, cut: list[list[Named]]) -> list[tuple[Path, list[Named]]]:
    """Shards with the files that they go into."""
    if len(cut) == 1:
        return [(folder / "model.safetensors", cut[0])]
    names = (f"model-{number:05}-of-{len(cut):05}.safetensors" for number in range(1, len(cut) + 1))
    return [(folder / name, shard) for name, shard in zip(names, cut, strict=True)]


def _write_beside(folder: Path, checkpoint: Checkpoint, registry: Registry, cut: list[list[Named]]) -> None:
    """Write what lies beside the shards: their index, config, tokenizer, and the small files of the source."""
    tensors = [named for shard in cut for named in shard]
    if len(cut) > 1:
        weight_map = {key: path.name for path, shard in _named(folder, cut) for key, _ in shard}
        total = sum(source.nbytes for _, source in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    for name, path in companions(checkpoint):
        if name not in (CONFIG, TOKENIZER) and not name.endswith(".index.json"):
            shutil.copy2(path, folder / name)
    if config := _config(checkpoint, registry, tensors):
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    if (tokenizer := checkpoint.tokenizer()) is not None:
        (folder / TOKENIZER).write_bytes(tokenizer)
    sync(folder)


def _cut(tensors: list[Named], most: int) -> list[list[Named]]:
    """Tensors in shards of at most `most` bytes, in order; a larger tensor is a shard by itself."""
    shards: list[list[Named]] = [[]]
    size = 0
    for name, source in tensors:
        if shards[-1] and size + source.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append((name, source))
        size += source.nbytes
    return shards


def _config(checkpoint: Checkpoint, registry: Registry, tensors: list[Named]) -> dict[str, Any] | None:
    """The config, told of the new type, and that nothing is packed any more."""
    if checkpoint.config is None:
        return None
    config = dict(checkpoint.config)
    if registry.bookkeeping:
        for key in ("quantization_config", "quantization", "compression_config"):
            config.pop(key, None)
    largest = max((source for _, source in tensors), key=lambda source: source.nbytes, default=None)
    torch = DTYPES_BY_TORCH.get(largest.dtype.name) if largest is not None else None
    if torch:
        config["dtype" if "dtype" in config else "torch_dtype"] = torch
    return config
