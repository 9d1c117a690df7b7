"""Save: a new checkpoint beside the old one, whole or not at all.

Everything is written into a temporary folder next to the destination, synced, and renamed into place.
Shards that no edit touches are hardlinked (copied where links cannot be made); of a changed shard a
copy is made and the changed ranges rewritten in it. The source is only read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from weightkit.checkpoint import Checkpoint
from weightkit.errors import SaveError
from weightkit.formats import safetensors
from weightkit.formats.shard import ShardFile
from weightkit.registry import Registry
from weightkit.surgery.convert import convert
from weightkit.surgery.overlay import Edited, overlays
from weightkit.surgery.place import beside, companions, put, require_free, sync
from weightkit.tensor import BLOCK, Derived, Source, Tensor
from weightkit.words import count, words_of

FORMAT, SUFFIX = "safetensors", ".safetensors"  # the one whose files can be changed in place


@dataclass(frozen=True)
class TensorPlan:
    """What edits select in one tensor of the files."""

    name: str
    addresses: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    elements: int  # selected, by all edits; those selected twice count twice
    shard: str


@dataclass(frozen=True)
class Plan:
    """What saving an edited model would do."""

    tensors: list[TensorPlan]
    rewritten: dict[str, int]  # shards to copy and change, with their bytes
    linked: dict[str, int]  # shards to hardlink
    converted: bool = False  # all is written anew, as safetensors: files of this format cannot be changed in place

    @property
    def elements(self) -> int:
        """Elements that the edits select."""
        return sum(tensor.elements for tensor in self.tensors)


def plan(checkpoint: Checkpoint, registry: Registry) -> Plan:
    """What the edits of a registry touch. Reads no weights."""
    changed = overlays(registry)
    home = {name: shard for shard in checkpoint.shards for name in shard.tensors}
    tensors = [
        TensorPlan(
            name,
            overlay.addresses,
            overlay.dtype.name,
            overlay.shape,
            overlay.elements,
            home[name].name,
        )
        for name, overlay in changed.items()
    ]
    converted = bool(changed) and checkpoint.format != FORMAT
    touched = {shard.name for shard in checkpoint.shards if converted or shard.anew}
    touched |= {home[name].name for name in changed}
    sizes = {shard.name: shard.path.stat().st_size for shard in checkpoint.shards}
    return Plan(
        tensors,
        {name: size for name, size in sizes.items() if name in touched},
        {name: size for name, size in sizes.items() if name not in touched},
        converted,
    )


def save(
    checkpoint: Checkpoint,
    registry: Registry,
    out: str | Path,
    *,
    force: bool = False,
    check: Callable[[Path], None] | None = None,
) -> Path:
    """Write an edited model to `out` and return its path.

    `out` is a folder, or a file where it ends in .safetensors and the model is one file. A model in
    another format is written as safetensors. `check` is given what is written before it is put in its place.
    Raises SaveError where it exists (unless `force`), where it lies in the source, or where writing fails; the
    destination is then as it was.
    """
    out = Path(out)
    require_free(checkpoint, out, force=force, as_file=out.suffix == SUFFIX)
    if out.suffix == SUFFIX and len(checkpoint.shards) > 1:
        raise SaveError(f"{out}: the model has {len(checkpoint.shards)} files; name a folder to save it in")
    changed = overlays(registry)
    if checkpoint.format != FORMAT:
        return convert(checkpoint, registry, out, force=force)
    with beside(out) as scratch:
        if out.suffix == SUFFIX:
            new = scratch / out.name
            write_shard(checkpoint.shards[0], changed, new)
        else:
            new = scratch / "new"
            new.mkdir()
            _write_folder(checkpoint, changed, new, in_place=out.resolve() == checkpoint.folder.resolve())
        if check is not None:
            check(new)
        put(new, out, scratch)
    return out


def _write_folder(checkpoint: Checkpoint, changed: dict[str, Edited], new: Path, *, in_place: bool) -> None:
    for shard in checkpoint.shards:
        target = new / shard.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if shard.anew or changed.keys() & shard.tensors.keys():
            write_shard(shard, changed, target)
        else:
            _link(shard.path, target)
    if in_place:
        _keep(checkpoint.folder, new)
    else:
        for name, path in companions(checkpoint):
            shutil.copy2(path, new / name)
            sync(new / name)
    for name, text in {**_index(checkpoint), **checkpoint.texts}.items():
        (new / name).unlink(missing_ok=True)  # a link to the one of the source
        if text is not None:
            (new / name).write_bytes(text)
            sync(new / name)
    sync(new)


def _index(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The index file of shards that are written anew: what is where has changed."""
    if checkpoint.index is None or checkpoint.index_path is None or not any(s.anew for s in checkpoint.shards):
        return {}
    where = {name: shard.name for shard in checkpoint.shards for name in shard.tensors}
    metadata = checkpoint.index.get("metadata")
    total = {"total_size": sum(tensor.nbytes for shard in checkpoint.shards for tensor in shard.tensors.values())}
    index = checkpoint.index | {
        "metadata": (metadata if isinstance(metadata, dict) else {}) | total,
        "weight_map": where,
    }
    return {checkpoint.index_path.name: (json.dumps(index, indent=2) + "\n").encode()}


def _keep(folder: Path, new: Path) -> None:
    """Bring everything of a folder that is replaced along, but what has been written anew."""
    for path in folder.iterdir():
        target = new / path.name
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, target, symlinks=True, copy_function=_link_as_it_is, dirs_exist_ok=True)
        elif not target.exists():
            _link_as_it_is(path, target)


def _link_as_it_is(source: str | Path, target: str | Path) -> None:
    if os.path.lexists(target):
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def write_shard(shard: ShardFile, changed: Mapping[str, Edited], target: Path) -> None:
    """Copy a shard and rewrite in the copy the ranges that edits touch; or write all of one that is made anew."""
    if shard.anew:
        _write_anew(shard, target)
        return
    shutil.copyfile(shard.path, target)
    shutil.copymode(shard.path, target)
    os.chmod(target, target.stat().st_mode | 0o200)
    with open(target, "r+b") as file:
        for name in changed.keys() & shard.tensors.keys():
            overlay = changed[name]
            tensor = _in_file(overlay)
            for start, stop in overlay.changed_tiles():
                file.seek(tensor.offset + tensor.dtype.nbytes(start))
                file.write(overlay.raw(start, stop).data)
        file.flush()
        os.fsync(file.fileno())


def _write_anew(shard: ShardFile, target: Path) -> None:
    """Write all tensors of a shard as safetensors, in blocks of bounded size."""
    with open(target, "wb") as file:
        file.write(safetensors.header(list(shard.tensors.items()), shard.metadata))
        for tensor in shard.tensors.values():
            words, size = words_of(tensor), count(tensor.dtype, tensor.shape)
            for start in range(0, size, BLOCK):
                file.write(words.words(start, min(start + BLOCK, size)).data)
        file.flush()
        os.fsync(file.fileno())


def _in_file(source: Source) -> Tensor:
    """The tensor of the file that an edited one is made of."""
    while isinstance(source, Derived):
        source = source.base
    assert isinstance(source, Tensor)
    return source


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
        sync(target)
