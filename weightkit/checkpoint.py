"""Checkpoint: where the bytes of a model live, and the small files beside them.

A path is opened the way people have models: one file of weights, a folder, an index of shards, a
folder of the Hugging Face cache, a config.json alone. Nothing outside the checkpoint's own folder is
read, except the blobs of the cache that the folder is part of.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from weightkit import strictjson
from weightkit.errors import FormatError, one_line
from weightkit.formats import FORMATS, WEIGHTS, format_of, join, open_file
from weightkit.formats.shard import ShardFile
from weightkit.remote import is_url, mirror
from weightkit.tensor import Source

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
GENERATION = "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
ADAPTER = "adapter_config.json"
INDEX_SUFFIX = ".index.json"
_NUMBERED = re.compile(r"(.*)-(\d{1,6})-of-(\d{1,6})(\.[a-z0-9]+)")

# The weights that a folder may hold, the first that is there being taken, as transformers does: one whole
# file before shards, safetensors before PyTorch.
_SINGLE = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "adapter_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Checkpoint:
    """The files of one model. `tensors` maps the names in the files to lazy tensors, in file order."""

    path: Path  # what was opened
    folder: Path  # where its files are
    shards: tuple[ShardFile, ...] = ()
    config: dict[str, Any] | None = None  # the config.json, as it is, or what a GGUF file says in its place
    index: dict[str, Any] | None = None  # the index file, as it is
    index_path: Path | None = None
    whole: bool = True  # False: one file was named, which may be a part of the model in its folder
    tensors: dict[str, Source] = field(default_factory=dict)
    listed: tuple[str, ...] = ()  # names that an index lists, where none of its shards is here
    notes: tuple[str, ...] = ()
    adapter: dict[str, Any] | None = None  # the adapter_config.json of a LoRA adapter
    texts: dict[str, bytes | None] = field(default_factory=dict)  # small files that a patch changes; None: takes away

    @property
    def names(self) -> Collection[str]:
        """The names of all tensors, as far as they are known."""
        return self.listed or self.tensors

    @property
    def format(self) -> str:
        """The format of the files; empty without files."""
        return format_of(self.shards[0].path, self.shards[0].name).name if self.shards else ""

    @property
    def metadata(self) -> dict[str, str]:
        """What the first file says of itself."""
        return self.shards[0].metadata if self.shards else {}

    @functools.cached_property
    def aside(self) -> frozenset[str]:
        """Names of tensors that are no part of the model, such as optimizer state."""
        return frozenset().union(*(shard.aside for shard in self.shards))

    @functools.cached_property
    def packing(self) -> dict[str, Any]:
        """The settings by which the weights are packed, as the config gives them."""
        config = self.config or {}
        inner = config.get("text_config")
        for values in (config, inner if isinstance(inner, dict) else {}):
            for key in ("quantization_config", "quantization", "compression_config"):
                if isinstance(values.get(key), dict):
                    return dict(values[key])
        return {}

    @property
    def tokenizer_path(self) -> Path | None:
        """The tokenizer.json beside the weights, if there is one."""
        path = self.folder / TOKENIZER
        if TOKENIZER in self.texts and self.texts[TOKENIZER] is None:
            return None
        return inside(self.folder, path) if path.exists() or path.is_symlink() else None

    def tokenizer(self) -> bytes | None:
        """The tokenizer.json, from the file beside the weights or made of what they say; None without one."""
        if self.texts.get(TOKENIZER) is not None:
            return self.texts[TOKENIZER]
        path = self.tokenizer_path
        if path is not None:
            return strictjson.read_bytes(path)
        makers = (shard.tokenizer for shard in self.shards if shard.tokenizer is not None)
        make = next(makers, None)
        return make() if make is not None else None

    def tokenizer_settings(self) -> dict[str, Any]:
        """What tokenizer_config.json says, special_tokens_map.json where that says nothing, or else the weights."""
        made = (shard.tokenizer_config() for shard in self.shards if shard.tokenizer_config is not None)
        if self.tokenizer_path is None and (settings := next(made, None)) is not None:
            return settings
        return (self.beside("special_tokens_map.json") or {}) | (self.beside("tokenizer_config.json") or {})

    def chat_template(self) -> Any:
        """The chat template: the text of chat_template.jinja, or else as tokenizer_config.json has it; None without."""
        path = self.folder / CHAT_TEMPLATE
        if (text := self.texts.get(CHAT_TEMPLATE)) is not None:
            return text.decode("utf-8", "replace")
        if CHAT_TEMPLATE in self.texts or (not path.exists() and not path.is_symlink()):
            return self.tokenizer_settings().get("chat_template")
        try:
            return strictjson.read_bytes(inside(self.folder, path)).decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"{path}: is not text in UTF-8") from None

    def beside(self, name: str) -> dict[str, Any] | None:
        """The JSON object in a small file beside the weights; None where there is no such file."""
        if name in self.texts:
            text = self.texts[name]
            value = None if text is None else strictjson.parse(text, name)
            return value if isinstance(value, dict) else None
        return _read_beside(self.folder, name)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in the files."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a file, a folder, an index or a config.json; only headers are read.

    Raises FormatError where there is nothing to open, or where what is there is broken.
    """
    if is_url(str(path)):
        return _open_remote(str(path))
    path = Path(path)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        raise FormatError(f"{str(path)!r} is not a path: {error}") from None
    if is_folder:
        return _open_folder(_cache_snapshot(path))
    if not exists:
        raise FormatError(f"{path}: no such file or folder")
    if path.suffix == ".json":
        values = strictjson.read_object(path)
        if "weight_map" in values or path.name.endswith(INDEX_SUFFIX):
            return _open_index(path, path.parent, whole=False)
        return Checkpoint(path, path.parent, config=values)
    return _collect(path, path.parent, _with_siblings(open_file(path), path), whole=False)


def _open_remote(url: str) -> Checkpoint:
    """Open what is at a URL through the folder that stands in for it."""
    found = mirror(url)
    try:
        checkpoint = open_checkpoint(found.opened)
    except FormatError as error:
        raise FormatError(found.said(str(error))) from None
    return replace(checkpoint, notes=tuple(found.said(note) for note in checkpoint.notes))


def _with_siblings(shard: ShardFile, path: Path) -> list[ShardFile]:
    """The file, or all of them where it says itself that it is one of several, as GGUF files do."""
    part = shard.part
    numbered = _NUMBERED.fullmatch(path.name)
    if part is None or part[1] < 2 or not numbered or int(numbered[3]) != part[1]:
        return [shard]
    width, present = len(numbered[2]), _names_in(path.parent)
    names: list[str] = []
    for n in range(1, part[1] + 1):  # a file may say that it is one of a million: stop at the first that is not there
        name = f"{numbered[1]}-{n:0{width}}-of-{numbered[3]}{numbered[4]}"
        if name not in present:
            raise FormatError(f"{path}: is one of {part[1]:,} files, of which {name} is not there")
        names.append(name)
    return [shard if name == path.name else _open_part(path.parent, name) for name in names]


def _cache_snapshot(folder: Path) -> Path:
    """The snapshot that a `models--owner--name` folder of the Hugging Face cache points to.

    Raises FormatError where there is none to choose, or where a link leads out of the folder.
    """
    snapshots, refs = folder / "snapshots", folder / "refs"
    if not snapshots.is_dir() or not refs.is_dir():
        return folder
    inside(folder, snapshots)
    name = _ref(inside(folder, refs) / "main")
    if name is None or not (snapshots / name).is_dir():
        found = sorted(child.name for child in snapshots.iterdir() if child.is_dir())
        if len(found) != 1:
            raise FormatError(f"{folder}: {len(found)} snapshots and no refs/main; name one of {snapshots}/…")
        name = found[0]
    inside(folder, snapshots / name)  # who names the folder means what is in it, not what a link in it leads to
    return snapshots / name


def _ref(path: Path) -> str | None:
    """The snapshot that a ref of the cache names; None where it is not there or names none."""
    if not path.is_file():
        return None
    name = strictjson.read_bytes(inside(path.parent, path)).decode("utf-8", "replace").strip()
    return name if re.fullmatch(r"[0-9A-Za-z._-]+", name) and name.strip(".") else None


def _names_in(folder: Path) -> set[str]:
    """The names in a folder, which are asked for at once: thousands may be looked up in them."""
    try:
        return set(os.listdir(folder))
    except OSError as error:
        raise FormatError(f"{folder}: cannot be listed: {error.strerror}") from None


def _open_folder(folder: Path) -> Checkpoint:
    names = sorted(_names_in(folder))
    indexes = [name for name in names if name.endswith(INDEX_SUFFIX)]
    single = next((name for name in _SINGLE if name in names), None)
    if single and not (single.endswith(".bin") and _INDEXES[0] in names):
        return _collect(folder, folder, [_open_part(folder, single)])
    if indexes:
        return _open_one_index(folder, indexes)
    weights = [name for name in names if name.endswith(WEIGHTS)]
    for format in FORMATS:
        ours = [name for name in weights if Path(name).suffix in format.suffixes and name not in _BESIDE]
        if not ours:
            continue
        _require_all_shards(folder, ours)
        if len(ours) == 1 or _all_shards(ours):
            return _collect(folder, folder, [_open_part(folder, name) for name in ours])
        raise FormatError(f"{folder}: holds {one_line(ours)}: name the one to open")
    if weights and weights[0] not in _BESIDE:
        open_file(folder / weights[0])  # raises, with what to do about such a file
    if CONFIG in names:
        return Checkpoint(folder, folder, config=_read_beside(folder, CONFIG))
    raise FormatError(f"{folder}: a folder without weights: no weights file, index or {CONFIG}")


_BESIDE = ("training_args.bin", "optimizer.pt", "scheduler.pt", "optimizer.bin", "scheduler.bin")  # of a Trainer


def _open_one_index(folder: Path, indexes: list[str]) -> Checkpoint:
    """By the usual index of a folder, or by another one where that is broken: a merge gone wrong is common."""
    order = [name for name in _INDEXES if name in indexes] + [name for name in indexes if name not in _INDEXES]
    problems = []
    for name in order:
        try:
            checkpoint = _open_index(inside(folder, folder / name), folder, opened=folder)
        except FormatError as error:
            problems.append(error)
            continue
        notes = [f"{error}; opened by {name} instead" for error in problems]
        return replace(checkpoint, notes=(*checkpoint.notes, *notes))
    raise problems[0]


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
    first = {shard if isinstance(shard, str) else repr(shard): name for name, shard in reversed(weight_map.items())}
    for name in first.values():
        _require_plain_name(weight_map[name], f"{path}: tensor {name!r}")
    wanted = dict.fromkeys(weight_map.values())
    if not any((folder / name).exists() or (folder / name).is_symlink() for name in wanted):
        note = f"none of the {len(wanted)} files that {path.name} names is here: only names and the config are known"
        listed = tuple(weight_map)
        return Checkpoint(
            opened or path, folder, (), _read_beside(folder, CONFIG), index, path, whole, listed=listed, notes=(note,)
        )
    shards = {name: _open_shard(path, folder, name) for name in wanted}
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
    if not shard.endswith(WEIGHTS):
        raise FormatError(f"{where}: its shard {shard!r} is not a file of weights")


def _open_shard(index: Path, folder: Path, name: str) -> ShardFile:
    if not (folder / name).exists():
        raise FormatError(f"{index}: names the shard {name!r}, which is not there: the download is incomplete")
    return _open_part(folder, name)


def _open_part(folder: Path, name: str) -> ShardFile:
    """A weights file of a folder, known by its name there wherever a link leads."""
    return replace(open_file(inside(folder, folder / name), name), name=name)


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


def _read_beside(folder: Path, name: str) -> dict[str, Any] | None:
    """The JSON object in a small file of the folder; None where there is no such file."""
    path = folder / name
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
    shards = join(shards)
    tensors: dict[str, Source] = {}
    for shard in shards:
        twice = next((name for name in shard.tensors if name in tensors), None)
        if twice is not None:
            raise FormatError(f"{shard.path}: tensor {twice!r} is also in {tensors[twice].path.name}")
        tensors.update(shard.tensors)
    own = next((shard.config for shard in shards if shard.config), None)
    config = _read_beside(folder, CONFIG) if own is None else own  # what a file says of itself goes first
    adapter = _read_beside(folder, ADAPTER)
    return Checkpoint(path, folder, tuple(shards), config, index, index_path, whole, tensors, adapter=adapter)
