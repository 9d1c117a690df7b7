"""Apply: the model that a patch makes of another one, as an object or on the disk.

Base and result are held against the trees that the patch names: what is not the base is refused before anything
is written, and what would not be the target is not put in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

from weightkit import strictjson
from weightkit.assembly import open_registry
from weightkit.checkpoint import CONFIG, Checkpoint, open_checkpoint
from weightkit.dtypes import DTYPES
from weightkit.errors import FormatError, PatchError, SaveError
from weightkit.formats.shard import ShardFile
from weightkit.parallel import Progress
from weightkit.patch.container import Entry, Patch, named
from weightkit.patch.make import Opened, tensors_of
from weightkit.patch.patched import Brought, Patched
from weightkit.patch.tree import Tree, mark, tree
from weightkit.surgery.place import beside, one_file, put, require_free
from weightkit.surgery.save import FORMAT, save, write_shard
from weightkit.tensor import Source
from weightkit.words import words_of

GGUF = "gguf"


def apply(
    patch: Patch, base: Opened, *, executor: Executor | None = None, progress: Progress | None = None
) -> Checkpoint:
    """The checkpoint that a patch makes of a model. Nothing is written; tensors are patched as they are read.

    All of the base is read, to see that it is the one that the patch was made for. Raises PatchError where it is not.
    """
    return _patched(patch, base, require_base(patch, base, executor=executor, progress=progress))


def apply_to(
    patch: Patch,
    base: Opened,
    out: str | Path,
    *,
    force: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write what a patch makes of a model to `out`, and return its path.

    Files of safetensors, and one of GGUF, are changed where a tensor changes, and the others linked; a model in
    another format is written as safetensors. Raises PatchError or SaveError, and the destination is as it was.
    """
    out = Path(out)
    as_file = out.suffix in (".safetensors", ".gguf")
    require_free(base.checkpoint, out, force=force, as_file=as_file)
    before = require_base(patch, base, executor=executor, progress=progress)
    checkpoint = _patched(patch, base, before)

    def check(new: Path) -> None:
        _require_target(patch, new, before, executor)

    if checkpoint.format == GGUF:
        return _save_gguf(checkpoint, out, check)
    if checkpoint.format != FORMAT:
        raise SaveError(f"{out}: {checkpoint.path} is {checkpoint.format}, which is not written by a patch")
    registry = open_registry(checkpoint)
    return save(checkpoint, registry, out, force=force, check=check)


# ── base and target ────────────────────────────────────────────────────────────────────────────────


def require_base(
    patch: Patch, base: Opened, *, executor: Executor | None = None, progress: Progress | None = None
) -> Tree:
    """The tree of a model, where it is the one that a patch was made for. PatchError, which says what differs."""
    found = tree(tensors_of(base), executor=executor, progress=progress)
    if found.root != patch.base:
        raise PatchError(f"{base.checkpoint.path}: {_why_not(patch, found)}")
    return found


def _why_not(patch: Patch, found: Tree) -> str:
    """Why a model is not the base of a patch."""
    if found.root == patch.target:
        return f"is what {patch.path} leads to already; nothing is left to do"
    known = {int(n) for n in patch.unchanged}
    marks = {name: entry.marks[0] for name, entry in patch.by_before.items()}
    missing = [name for name in marks if name not in found.leaves]
    other = [n for n, leaf in found.leaves.items() if mark(leaf) != marks.get(n) and mark(leaf) not in known]
    here = f"is not the model that {patch.path} was made for"
    if missing:
        return f"{here}: it has no tensor {missing[0]!r}, which the patch changes{_more(missing)}"
    if other:
        return f"{here}: tensor {other[0]!r} differs first{_more(other)}"
    return f"{here}: it has {len(found.leaves):,} tensors where that has {len(known) + len(marks):,}"


def _more(names: list[str]) -> str:
    return f", and {len(names) - 1:,} more" if len(names) > 1 else ""


def _require_target(patch: Patch, new: Path, before: Tree, executor: Executor | None) -> None:
    """PatchError unless what was written is what the patch leads to. What was only linked is not read again."""
    written = open_checkpoint(new).tensors
    changed = {entry.after for entry in patch.entries}
    fresh = tree({n: t for n, t in written.items() if n in changed or n not in before.leaves}, executor=executor)
    after = Tree({name: fresh.leaves.get(name) or before.leaves[name] for name in written})
    if after.root != patch.target:
        raise PatchError(f"{patch.path}: does not lead to the model that it names: the patch is damaged")


# ── the new checkpoint ─────────────────────────────────────────────────────────────────────────────


def _patched(patch: Patch, base: Opened, before: Tree) -> Checkpoint:
    del before  # that it was looked at is enough
    checkpoint = base.checkpoint
    sources = tensors_of(base)
    made = {entry.name: _made(patch, entry, sources) for entry in patch.entries}
    shards, left = [], {e.after: made[e.name] for e in patch.entries if e.before is None and e.after is not None}
    for shard in checkpoint.shards:
        new = dict(_of_shard(patch, shard, sources, made))
        if shard is checkpoint.shards[-1]:
            new |= {name: source for name, source in left.items() if source is not None}
        shards.append(replace(shard, tensors=new, anew=_is_new(shard, new)))
    if checkpoint.format not in (FORMAT, GGUF):
        return _as_safetensors(patch, checkpoint, shards)
    if checkpoint.format == GGUF and any(shard.anew for shard in shards):
        raise PatchError(f"{patch.path}: adds, takes away or reshapes tensors, which is not done in GGUF files")
    return _with_texts(patch, replace(checkpoint, shards=tuple(shards), tensors=_joined(shards)))


def _joined(shards: list[ShardFile]) -> dict[str, Source]:
    return {name: source for shard in shards for name, source in shard.tensors.items()}


def _made(patch: Patch, entry: Entry, sources: Mapping[str, Source]) -> Source | None:
    """The tensor that an entry leads to; None where it is taken away."""
    source = None if entry.before is None else sources.get(entry.before)
    try:
        words = entry.on(None if source is None else words_of(source))
    except (PatchError, FormatError) as error:
        raise named(error, patch, entry.name) from None
    if words is None or entry.after is None:
        return None
    if source is not None and (entry.before, source.dtype, source.shape) == (entry.after, words.dtype, words.shape):
        return Patched(source, words)
    return Brought(entry.after, patch.path if source is None else source.path, words)


def _of_shard(
    patch: Patch, shard: ShardFile, sources: Mapping[str, Source], made: Mapping[str, Source | None]
) -> list[tuple[str, Source]]:
    found = []
    for name in shard.tensors:
        entry = patch.by_before.get(name)
        source = sources[name] if entry is None else made[entry.name]
        if source is not None:
            found.append((name if entry is None or entry.after is None else entry.after, source))
    return found


def _is_new(shard: ShardFile, tensors: Mapping[str, Source]) -> bool:
    """Whether a shard cannot be made by changing ranges of its file."""
    before = [(name, t.dtype, t.shape) for name, t in shard.tensors.items()]
    return shard.anew or before != [(name, t.dtype, t.shape) for name, t in tensors.items()]


def _as_safetensors(patch: Patch, checkpoint: Checkpoint, shards: list[ShardFile]) -> Checkpoint:
    """A checkpoint of another format, to be written as one file of safetensors with the names that it has."""
    tensors = _joined(shards)
    for name, source in tensors.items():
        if source.dtype.name not in DTYPES or source.dtype.name == "C128":
            raise PatchError(f"{patch.path}: tensor {name!r}: {source.dtype.name} cannot be written as safetensors")
    first = shards[0]
    shard = ShardFile(first.path, "model.safetensors", tensors, {"format": "pt"}, first.aside, anew=True)
    texts = {checkpoint.index_path.name: None} if checkpoint.index_path is not None else {}
    fields: dict[str, Any] = {"index": None, "index_path": None, "texts": {**checkpoint.texts, **texts}}
    return _with_texts(patch, replace(checkpoint, shards=(shard,), tensors=tensors, **fields))


def _with_texts(patch: Patch, checkpoint: Checkpoint) -> Checkpoint:
    """With the small files that the patch changes; a single file has none."""
    if one_file(checkpoint) or not patch.files:
        return checkpoint
    from weightkit.patch.small_files import texts

    before = texts(checkpoint)
    after = {change.name: change.applied(before.get(change.name), str(checkpoint.path)) for change in patch.files}
    config = checkpoint.config
    if CONFIG in after:
        text = after[CONFIG]
        config = None if text is None else strictjson.parse(text, CONFIG)
    return replace(checkpoint, texts={**checkpoint.texts, **after}, config=config)


def _save_gguf(checkpoint: Checkpoint, out: Path, check: Any) -> Path:
    if out.suffix != ".gguf" or len(checkpoint.shards) != 1:
        raise SaveError(f"{out}: {checkpoint.path} is GGUF, and stays it: name a file that ends in .gguf")
    shard = checkpoint.shards[0]
    changed = {name: source for name, source in shard.tensors.items() if isinstance(source, Patched)}
    with beside(out) as scratch:
        new = scratch / out.name
        write_shard(shard, changed, new)
        check(new)
        put(new, out, scratch)
    return out
