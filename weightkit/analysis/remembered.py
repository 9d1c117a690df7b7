"""Summaries that were made before, by what they are of: a file of this size and time, and where in it.

They lie in the user's cache folder and are worth nothing: a folder that is full, broken or cannot be written
only means that the numbers are read again.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, Self, TypeVar

from weightkit import files
from weightkit.tensor import Tensor
from weightkit.weight import Selection

LEAST = 1 << 20  # bytes of a selection: fewer are read as fast
VERSION = 1  # of what is written
MOST = 1 << 30  # bytes that are kept, the oldest files go first


class Kept(Protocol):
    """What can be written as bytes and read again."""

    def to_bytes(self) -> bytes:
        """All of it."""
        ...

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """The same again. ValueError or KeyError for other bytes."""
        ...


T = TypeVar("T", bound=Kept)


def folder() -> Path:
    """Where summaries are kept: where the system has such things."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "weightkit"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home()) / "weightkit"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "weightkit"


def remembered(kind: type[T], selection: Selection, asked: object, make: Callable[[], T], *, cache: bool) -> T:
    """What `make` makes of a selection or, with `cache`, made of it before; `asked` is what else it depends on."""
    key = _key(selection, (kind.__name__, asked)) if cache else None
    if key is None:
        return make()
    path = folder() / key[:2] / key[2:]
    found = _read(kind, path)
    if found is None:
        found = make()
        if _key(selection, (kind.__name__, asked)) == key:  # the file is still the one that was read
            _write(path, found.to_bytes())
    return found


def _key(selection: Selection, asked: object) -> str | None:
    """The name of what is kept of a selection; None for what is not one tensor in a file here."""
    source, weight = selection.weight.source, selection.weight
    if not isinstance(source, Tensor) or files.is_elsewhere(source.path):
        return None
    if source.dtype.nbytes(selection.size) < LEAST:
        return None
    status = os.stat(source.path)
    file = (str(source.path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino)
    place = (source.offset, source.dtype.name, source.shape, source.big_endian)
    return hashlib.sha256(repr((VERSION, file, place, weight.layout, selection.region, asked)).encode()).hexdigest()


def _read(kind: type[T], path: Path) -> T | None:
    try:
        raw = path.read_bytes()
        digest, content = raw[:32], raw[32:]
        return kind.from_bytes(content) if hashlib.sha256(content).digest() == digest else None
    except (OSError, ValueError, KeyError):
        return None


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(hashlib.sha256(content).digest() + content)
        os.replace(part, path)
        _make_room(folder(), len(content))
    except OSError:
        try:
            part.unlink(missing_ok=True)
        except OSError:
            return


_written: dict[Path, int] = {}  # bytes by folder, since it was last gone through
_lock = threading.Lock()


def _make_room(kept: Path, size: int) -> None:
    """Delete the oldest files where more than MOST bytes are kept; looked at once in a process, then now and then."""
    with _lock:
        _written[kept] = _written.get(kept, MOST) + size
        if _written[kept] <= MOST // 8:
            return
        _written[kept] = 0
    files = []
    for entry in kept.glob("??/*"):
        try:
            status = entry.stat()
        except OSError:  # deleted meanwhile
            continue
        files.append((status.st_mtime_ns, entry, status.st_size))
    spare = sum(size for _, _, size in files) - MOST
    for _, entry, size in sorted(files):
        if spare <= 0:
            return
        entry.unlink(missing_ok=True)
        spare -= size
