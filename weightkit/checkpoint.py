"""Checkpoint: where the bytes of a model live, and the small files beside them.

A path is opened the way people have models: one safetensors file, a folder, an index of shards, a
folder of the Hugging Face cache, a config.json alone. Nothing outside the checkpoint's own folder is
read, except the blobs of the cache that the folder is part of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from weightkit import strictjson
from weightkit.errors import FormatError, one_line
from weightkit.formats import WEIGHTS, open_file
from weightkit.formats.safetensors import SUFFIX
from weightkit.formats.shard import ShardFile
from weightkit.tensor import Source

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
SINGLE = "model.safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
INDEX = "model" + INDEX_SUFFIX
_NUMBERED = re.compile(r"(.*)-(\d{1,6})-of-(\d{1,6})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """The files of one model. `tensors` maps the names in the files to lazy tensors, in file order."""

    path: Path  # what was opened
    folder: Path  # where its files are
    shards: tuple[ShardFile, ...] = ()
    config: dict[str, Any] | None = None  # the config.json, as it is
    index: dict[str, Any] | None = None  # the index file, as it is
    index_path: Path | None = None
    whole: bool = True  # False: one file was named, which may be a part of the model in its folder
    tensors: dict[str, Source] = field(default_factory=dict)

    @property
    def tokenizer_path(self) -> Path | None:
        """The tokenizer.json beside the weights, if there is one."""
        path = self.folder / TOKENIZER
        return inside(self.folder, path) if path.exists() or path.is_symlink() else None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in the files."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a file, a folder, an index or a config.json; only headers are read.

    Raises FormatError where there is nothing to open, or where what is there is broken.
    """
    path = Path(path)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        raise FormatError(f"{str(path)!r} is not a path: {error}") from None
    if is_folder:
        return _open_folder(_cache_snapshot(path))
    if not exists:
        raise FormatError(f"{path}: no such file or folder")
    if path.name.endswith(INDEX_SUFFIX):
        return _open_index(path, path.parent, whole=False)
    if path.suffix == ".json":
        config = strictjson.read_object(path)
        if "weight_map" in config:
            return _open_index(path, path.parent, whole=False)
        return Checkpoint(path, path.parent, config=config)
    return _collect(path, path.parent, [open_file(path)], whole=False)


def _cache_snapshot(folder: Path) -> Path:
    """The snapshot that a `models--owner--name` folder of the Hugging Face cache points to."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir() or not (folder / "refs").is_dir():
        return folder
    ref = folder / "refs" / "main"
    if ref.is_file():
        name = strictjson.read_bytes(ref).decode("utf-8", "replace").strip()
        if re.fullmatch(r"[0-9A-Za-z._-]+", name) and name.strip(".") and (snapshots / name).is_dir():
            return snapshots / name
    found = sorted(child for child in snapshots.iterdir() if child.is_dir())
    if len(found) != 1:
        raise FormatError(f"{folder}: {len(found)} snapshots and no refs/main; name one of {snapshots}/…")
    return found[0]


def _open_folder(folder: Path) -> Checkpoint:
    try:
        names = sorted(child.name for child in folder.iterdir())
    except OSError as error:
        raise FormatError(f"{folder}: cannot be listed: {error.strerror}") from None
    weights = [name for name in names if name.endswith(SUFFIX)]
    indexes = [name for name in names if name.endswith(INDEX_SUFFIX)]
    if SINGLE in weights:  # as transformers does: one whole file goes before shards
        return _collect(folder, folder, [_open_part(folder, SINGLE)])
    if len(indexes) == 1 or INDEX in indexes:
        index = INDEX if INDEX in indexes else indexes[0]
        return _open_index(inside(folder, folder / index), folder, opened=folder)
    _require_all_shards(folder, weights)
    if len(weights) == 1 or _all_shards(weights):
        return _collect(folder, folder, [_open_part(folder, name) for name in weights])
    if weights:
        raise FormatError(f"{folder}: holds {one_line(weights)}: name the one to open")
    other = [name for name in names if name.endswith(WEIGHTS)]
    if other:
        open_file(folder / other[0])  # raises, with what to do about such a file
    if CONFIG in names:
        return Checkpoint(folder, folder, config=_config(folder))
    raise FormatError(f"{folder}: a folder without weights: no {SUFFIX} file, index or {CONFIG}")


def _require_all_shards(folder: Path, names: list[str]) -> None:
    """Refuse some shards of a model that has more, where no index says so."""
    numbered = [_NUMBERED.fullmatch(name) for name in names]
    if names and all(numbered) and not _all_shards(names):
        total = max(int(m[3]) for m in numbered if m)
        raise FormatError(f"{folder}: holds {one_line(names)} of {total} shards and no index; the rest is missing")


def _all_shards(names: list[str]) -> bool:
    """Whether these are all the files of a sharded checkpoint whose index is not there."""
    numbered = [_NUMBERED.fullmatch(name) for name in names]
    keys = {(m[1], int(m[3])) for m in numbered if m}
    return all(numbered) and len(keys) == 1 and len(names) == next(iter(keys))[1]


def _open_index(path: Path, folder: Path, *, opened: Path | None = None, whole: bool = True) -> Checkpoint:
    index = strictjson.read_object(path)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{path}: no weight_map from tensor names to shards")
    for name, shard in weight_map.items():
        _require_plain_name(shard, f"{path}: tensor {name!r}")
    shards = {name: _open_shard(path, folder, name) for name in dict.fromkeys(weight_map.values())}
    checkpoint = _collect(opened or path, folder, list(shards.values()), index=index, index_path=path, whole=whole)
    for name, shard in weight_map.items():
        tensor = checkpoint.tensors.get(name)
        if tensor is None:
            raise FormatError(f"{path}: lists tensor {name!r}, which {shard} does not hold")
        if name not in shards[shard].tensors:
            raise FormatError(f"{path}: says that {name!r} is in {shard}; it is in {tensor.path.name}")
    return checkpoint


def _require_plain_name(shard: Any, where: str) -> None:
    """A shard is named by a file name below the folder: no way up, out, or to another drive."""
    if not isinstance(shard, str) or not shard:
        raise FormatError(f"{where}: its shard is not a file name: {shard!r}")
    parts = PureWindowsPath(shard)  # understands / and \ and drives
    if "\0" in shard or "\\" in shard or parts.anchor or ".." in parts.parts:
        raise FormatError(f"{where}: its shard {shard!r} leads out of the folder")
    if not shard.endswith(SUFFIX):
        raise FormatError(f"{where}: its shard {shard!r} is not a {SUFFIX} file")


def _open_shard(index: Path, folder: Path, name: str) -> ShardFile:
    if not (folder / name).exists():
        raise FormatError(f"{index}: names the shard {name!r}, which is not there: the download is incomplete")
    return _open_part(folder, name)


def _open_part(folder: Path, name: str) -> ShardFile:
    """A weights file of a folder, known by its name there wherever a link leads."""
    return replace(open_file(inside(folder, folder / name)), name=name)


def inside(folder: Path, path: Path) -> Path:
    """`path` with its links followed. FormatError unless it stays in `folder`, or the blobs of its cache."""
    try:
        real, home = path.resolve(strict=True), folder.resolve()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "the link leads nowhere"
        raise FormatError(f"{path}: cannot be opened: {reason}") from None
    if real.is_relative_to(home) or any(real.is_relative_to(blobs) for blobs in _cache_blobs(home)):
        return real
    raise FormatError(f"{path}: is a link out of its folder, to {real}; copy the file there instead")


def _cache_blobs(folder: Path) -> Iterable[Path]:
    """The blobs folder of the Hugging Face cache whose snapshot `folder` is or lies in."""
    for parent in (folder, *folder.parents):
        if parent.parent.name == "snapshots" and parent.parent.parent.name.startswith("models--"):
            yield parent.parent.parent / "blobs"


def _config(folder: Path) -> dict[str, Any] | None:
    path = folder / CONFIG
    if not path.exists() and not path.is_symlink():
        return None
    return strictjson.read_object(inside(folder, path))


def _collect(
    path: Path,
    folder: Path,
    shards: list[ShardFile],
    *,
    index: dict[str, Any] | None = None,
    index_path: Path | None = None,
    whole: bool = True,
) -> Checkpoint:
    tensors: dict[str, Source] = {}
    for shard in shards:
        twice = next((name for name in shard.tensors if name in tensors), None)
        if twice is not None:
            raise FormatError(f"{shard.path}: tensor {twice!r} is also in {tensors[twice].path.name}")
        tensors.update(shard.tensors)
    return Checkpoint(path, folder, tuple(shards), _config(folder), index, index_path, whole, tensors)
