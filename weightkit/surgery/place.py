"""Place: a new file or folder put where it belongs, whole or not at all.

What is written goes into a scratch folder beside the destination, is synced, and is renamed into place.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from weightkit.checkpoint import CONFIG, Checkpoint, inside
from weightkit.errors import FormatError, SaveError
from weightkit.formats import WEIGHTS

MOST_COPIED = 256 << 20  # of one file beside the weights; what is larger is not part of a model
OLD = "old"  # what the destination is called while it is set aside


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A scratch folder beside the destination, whose parents are made; a failure leaves nothing behind.

    Raises SaveError for what the system says no to.
    """
    try:
        with _parents(out), _temporary(out) as scratch:
            yield scratch
    except OSError as error:
        raise SaveError(f"{out}: not written: {error.strerror or error}; the destination is as it was") from None


def require_free(checkpoint: Checkpoint, out: Path, *, force: bool, as_file: bool) -> None:
    """Raise SaveError unless a model made of `checkpoint` can be put at `out` without losing anything."""
    if not checkpoint.shards:
        raise SaveError(f"{checkpoint.path}: only a config.json or an index was opened; there are no weights to save")
    try:
        exists = out.is_symlink() or out.exists()
        real, source = out.resolve(), checkpoint.folder.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise SaveError(f"{out}: cannot be written to: {error}") from None
    if exists and not force:
        raise SaveError(f"{out}: exists already; choose another place, or --force to replace it")
    if exists and out.is_dir() == as_file:
        raise SaveError(f"{out}: exists, and is not a {'folder' if out.is_file() else 'file'}; choose another place")
    if source in real.parents and not as_file and not one_file(checkpoint):
        raise SaveError(f"{out}: lies inside the model that is edited; choose a place outside {checkpoint.folder}")
    if real in (source, *source.parents) and exists and real != source:
        raise SaveError(f"{out}: holds the model that is edited; choose another place")
    if exists and out.is_dir() and not _is_checkpoint(out):
        raise SaveError(f"{out}: exists, and is not a checkpoint: it will not be replaced; choose another place")
    if not real.parent.exists() and not os.access(existing(real.parent), os.W_OK):
        raise SaveError(f"{out}: {existing(real.parent)} cannot be written to")


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a model, or nothing: only such a folder is ever replaced."""
    names = [child.name for child in folder.iterdir()]
    return not names or any(name == CONFIG or name.endswith(WEIGHTS) for name in names)


def companions(checkpoint: Checkpoint) -> Iterator[tuple[str, Path]]:
    """The files beside the weights that belong to the model: config, tokenizer, index, licence, …

    What a link leads to outside the folder is not among them: the copy may be published.
    """
    if one_file(checkpoint) and checkpoint.config is None:
        return  # a file in some folder, which is not a model's
    ours = {shard.name for shard in checkpoint.shards}
    for path in sorted(checkpoint.folder.iterdir()):
        weights = path.name in ours or path.name.endswith(WEIGHTS)
        if weights or path.name.startswith(".") or not path.is_file() or path.stat().st_size > MOST_COPIED:
            continue
        if one_file(checkpoint) and path.name.endswith(".index.json"):
            continue  # one shard was opened by itself; its index tells of others
        with suppress(FormatError):
            yield path.name, inside(checkpoint.folder, path)


def one_file(checkpoint: Checkpoint) -> bool:
    """Whether a single file was opened, which may have nothing to do with what lies beside it."""
    return not checkpoint.whole and checkpoint.index is None


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return path if path.exists() else existing(path.parent)


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


def put(new: Path, out: Path, scratch: Path) -> None:
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
        sync(path.parent)


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


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
