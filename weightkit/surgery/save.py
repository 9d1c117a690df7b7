"""Save: a new checkpoint beside the old one, whole or not at all.

Everything is written into a temporary folder next to the destination, synced, and renamed into place.
Shards that no edit touches are hardlinked (copied where links cannot be made); of a changed shard a
copy is made and the changed ranges rewritten in it. The source is only read.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from weightkit.checkpoint import CONFIG, Checkpoint, inside
from weightkit.errors import FormatError, SaveError
from weightkit.formats import WEIGHTS
from weightkit.formats.safetensors import SUFFIX
from weightkit.formats.shard import ShardFile
from weightkit.registry import Registry
from weightkit.surgery.overlay import Overlay, overlays
from weightkit.tensor import Tensor

OLD = "old"  # what the destination is called while it is set aside
MOST_COPIED = 256 << 20  # of one file beside the weights; what is larger is not part of a model


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
            tuple(dict.fromkeys(change.selection.address for change in overlay.changes)),
            overlay.dtype.name,
            overlay.shape,
            sum(change.selection.size for change in overlay.changes),
            home[name].name,
        )
        for name, overlay in changed.items()
    ]
    touched = {home[name].name for name in changed}
    sizes = {shard.name: shard.path.stat().st_size for shard in checkpoint.shards}
    return Plan(
        tensors,
        {name: size for name, size in sizes.items() if name in touched},
        {name: size for name, size in sizes.items() if name not in touched},
    )


def save(checkpoint: Checkpoint, registry: Registry, out: str | Path, *, force: bool = False) -> Path:
    """Write an edited model to `out` and return its path.

    `out` is a folder, or a file where it ends in .safetensors and the model is one file. Raises
    SaveError where it exists (unless `force`), where it lies in the source, or where writing fails;
    the destination is then as it was.
    """
    out = Path(out)
    _require_free(checkpoint, out, force)
    changed = overlays(registry)
    try:
        with _parents(out), _temporary(out) as scratch:
            if out.suffix == SUFFIX:
                new = scratch / out.name
                _write_shard(checkpoint.shards[0], changed, new)
            else:
                new = scratch / "new"
                new.mkdir()
                _write_folder(checkpoint, changed, new, in_place=out.resolve() == checkpoint.folder.resolve())
            _put(new, out, scratch)
    except OSError as error:
        raise SaveError(f"{out}: not written: {error.strerror or error}; the destination is as it was") from None
    return out


def _require_free(checkpoint: Checkpoint, out: Path, force: bool) -> None:
    if not checkpoint.shards:
        raise SaveError(f"{checkpoint.path}: only a config.json was opened; there are no weights to save")
    if out.suffix == SUFFIX and len(checkpoint.shards) > 1:
        raise SaveError(f"{out}: the model has {len(checkpoint.shards)} files; name a folder to save it in")
    try:
        exists = out.is_symlink() or out.exists()
        real, source = out.resolve(), checkpoint.folder.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise SaveError(f"{out}: cannot be written to: {error}") from None
    if exists and not force:
        raise SaveError(f"{out}: exists already; choose another place, or --force to replace it")
    if exists and out.is_dir() != (out.suffix != SUFFIX):
        raise SaveError(f"{out}: exists, and is not a {'folder' if out.is_file() else 'file'}; choose another place")
    if source in real.parents and out.suffix != SUFFIX and not _one_file(checkpoint):
        raise SaveError(f"{out}: lies inside the model that is edited; choose a place outside {checkpoint.folder}")
    if real in (source, *source.parents) and exists and real != source:
        raise SaveError(f"{out}: holds the model that is edited; choose another place")
    if exists and out.is_dir() and not _is_checkpoint(out):
        raise SaveError(f"{out}: exists, and is not a checkpoint: it will not be replaced; choose another place")
    if not real.parent.exists() and not os.access(_existing(real.parent), os.W_OK):
        raise SaveError(f"{out}: {_existing(real.parent)} cannot be written to")


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a model, or nothing: only such a folder is ever replaced."""
    names = [child.name for child in folder.iterdir()]
    return not names or any(name == CONFIG or name.endswith(WEIGHTS) for name in names)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


@contextmanager
def _parents(out: Path) -> Iterator[None]:
    """The folders above the destination; those made for it are taken away again if it comes to nothing."""
    made = [parent for parent in out.parents if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise


@contextmanager
def _temporary(out: Path) -> Iterator[Path]:
    """A scratch folder on the destination's file system, gone afterwards.

    Unless it holds the old destination, which could not be put back: that is never thrown away.
    """
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        yield scratch
    finally:
        if out.exists() or not (scratch / OLD).exists():
            shutil.rmtree(scratch, ignore_errors=True)


def _write_folder(checkpoint: Checkpoint, changed: dict[str, Overlay], new: Path, *, in_place: bool) -> None:
    for shard in checkpoint.shards:
        target = new / shard.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if changed.keys() & shard.tensors.keys():
            _write_shard(shard, changed, target)
        else:
            _link(shard.path, target)
    if in_place:
        _keep(checkpoint.folder, new)
    else:
        for name, path in _companions(checkpoint):
            shutil.copy2(path, new / name)
            _sync(new / name)
    _sync(new)


def _companions(checkpoint: Checkpoint) -> Iterator[tuple[str, Path]]:
    """The files beside the weights that belong to the model: config, tokenizer, index, licence, …

    What a link leads to outside the folder is not among them: the copy may be published.
    """
    if _one_file(checkpoint) and checkpoint.config is None:
        return  # a file in some folder, which is not a model's
    ours = {shard.name for shard in checkpoint.shards}
    for path in sorted(checkpoint.folder.iterdir()):
        weights = path.name in ours or path.name.endswith(WEIGHTS)
        if weights or path.name.startswith(".") or not path.is_file() or path.stat().st_size > MOST_COPIED:
            continue
        if _one_file(checkpoint) and path.name.endswith(".index.json"):
            continue  # one shard was opened by itself; its index tells of others
        with suppress(FormatError):
            yield path.name, inside(checkpoint.folder, path)


def _one_file(checkpoint: Checkpoint) -> bool:
    return not checkpoint.whole and checkpoint.index is None


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


def _write_shard(shard: ShardFile, changed: dict[str, Overlay], target: Path) -> None:
    """Copy a shard and rewrite in the copy the ranges that edits touch."""
    shutil.copyfile(shard.path, target)
    shutil.copymode(shard.path, target)
    os.chmod(target, target.stat().st_mode | 0o200)
    with open(target, "r+b") as file:
        for name in changed.keys() & shard.tensors.keys():
            overlay, tensor = changed[name], shard.tensors[name]
            assert isinstance(tensor, Tensor)
            for start, stop in overlay.changed_tiles():
                file.seek(tensor.offset + tensor.dtype.nbytes(start))
                file.write(overlay.read(start, stop).data)
        file.flush()
        os.fsync(file.fileno())


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
        _sync(target)


def _put(new: Path, out: Path, scratch: Path) -> None:
    """Rename into place. A folder that was there trades places with the new one in one step.

    Where the system has no such step it is set aside first, and put back if that fails.
    """
    if out.is_dir() and not out.is_symlink():
        if _exchange(new, out):
            _sync_name(out)
            return
        aside = scratch / OLD
        os.rename(out, aside)
        try:
            os.rename(new, out)
        except BaseException:
            _put_back(aside, out)
            raise
    else:
        os.replace(new, out)
    _sync_name(out)


def _sync_name(path: Path) -> None:
    with suppress(OSError):  # what it names is in its place and synced; only the name could still be lost
        _sync(path.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two paths atomically; False where that cannot be done."""
    if os.name != "posix":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):  # Linux: paths relative to the working folder, RENAME_EXCHANGE
        return bool(libc.renameat2(-100, os.fsencode(a), -100, os.fsencode(b), 2) == 0)
    if hasattr(libc, "renamex_np"):  # macOS: RENAME_SWAP
        return bool(libc.renamex_np(os.fsencode(a), os.fsencode(b), 2) == 0)
    return False


def _put_back(aside: Path, out: Path) -> None:
    try:
        os.rename(aside, out)
    except OSError as error:
        raise SaveError(f"{out}: not written: {error.strerror}; what was there is now {aside}, whole") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
