"""Container: a patch as one safetensors file, the same bytes for the same patch.

Its metadata hold one JSON object: the roots of the trees of base and target, and for every tensor that changes
its names, its marks and its steps. The bytes of a tensor's steps, one after another, are a tensor of U8 whose name is
the place in that list; `files` holds packed small files, `marks` tells the tensors that do not change.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from weightkit import strictjson
from weightkit.dtypes import DTYPES, Array
from weightkit.errors import FormatError, PatchError, SaveError, WeightkitError
from weightkit.formats import safetensors
from weightkit.patch import small_files, steps
from weightkit.patch.coded import Bytes
from weightkit.patch.coding import pack_indices, unpack_indices
from weightkit.patch.small_files import FileChange
from weightkit.patch.steps import Step
from weightkit.surgery.place import beside, put
from weightkit.tensor import Tensor
from weightkit.words import Words

VERSION = "1"
SUFFIX = ".wkpatch"
MOST_MARKS = 1 << 22
_COPIED = 1 << 20


@dataclass(frozen=True)
class Entry:
    """What a patch does to one tensor."""

    before: str | None  # its name in the base; None where it is added
    after: str | None  # its name in the target; None where it is removed
    marks: tuple[int | None, int | None]
    steps: tuple[Step, ...]

    @property
    def name(self) -> str:
        """Its name, after the patch where it has one then."""
        return self.after or self.before or ""

    @property
    def size(self) -> int:
        """Its bytes in the patch."""
        return sum(step.size for step in self.steps)

    @property
    def inverse(self) -> Entry:
        """What undoes it."""
        turned = tuple(step.inverse for step in reversed(self.steps))
        return Entry(self.after, self.before, self.marks[::-1], turned)

    def on(self, base: Words | None) -> Words | None:
        """The tensor after the patch. PatchError where the patch does not fit it."""
        for step in self.steps:
            base = step.on(base)
        if (base is None) != (self.after is None):
            raise PatchError("its steps do not lead to what it says")
        return base


@dataclass(frozen=True)
class Patch:
    """What leads from one model to another, to the bit, and back."""

    path: Path
    base: str  # the root of the tree of the model that it is for
    target: str  # and of what it makes of that
    entries: tuple[Entry, ...]
    files: tuple[FileChange, ...] = ()
    unchanged: Array = field(default_factory=lambda: np.empty(0, np.int64))  # marks, increasing
    folder: tempfile.TemporaryDirectory[str] | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"patch of {len(self.entries):,} tensors"

    @functools.cached_property
    def by_before(self) -> dict[str, Entry]:
        """Entries by the names of the base's tensors."""
        return {entry.before: entry for entry in self.entries if entry.before is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    @property
    def inverse(self) -> Patch:
        """The patch that undoes this one; it reads the same file."""
        entries = tuple(entry.inverse for entry in self.entries)
        files = tuple(change.inverse for change in self.files)
        return replace(self, base=self.target, target=self.base, entries=entries, files=files)

    def save(self, out: str | Path, *, force: bool = False) -> Path:
        """Write the patch to `out`. Raises SaveError where it exists, unless `force`; it is then as it was."""
        return write(self, Path(out), force=force)


# ── writing ────────────────────────────────────────────────────────────────────────────────────────


def write(patch: Patch, out: Path, *, force: bool = False) -> Path:
    """Write a patch, whose steps may lie in several files, whole or not at all."""
    if out.is_dir() or (out.exists() and not force):
        hint = "is a folder; name a file" if out.is_dir() else "exists already; choose another place, or --force"
        raise SaveError(f"{out}: {hint}")
    with beside(out) as scratch:
        new = scratch / out.name
        write_new(patch, new)
        put(new, out, scratch)
    return out


def write_new(patch: Patch, path: Path) -> None:
    """Write a patch to a place where nothing is."""
    marks = pack_indices(patch.unchanged)
    packed = b"".join(text for change in patch.files for text in change.packed)
    blobs = [*(entry.size for entry in patch.entries), len(packed), len(marks)]
    names = [*(str(i) for i in range(len(patch.entries))), "files", "marks"]
    text = json.dumps(_described(patch), ensure_ascii=True, separators=(",", ":"))
    with open(path, "w+b") as file:
        placeholder = "0" * 64
        at = _write_header(file, names, blobs, text, placeholder)
        total = hashlib.sha256(text.encode())
        for entry in patch.entries:
            for step in entry.steps:
                _copy(step.data, file, total)
        for raw in (packed, marks):
            file.write(raw)
            total.update(raw)
        file.seek(at)
        file.write(total.hexdigest().encode())
        file.flush()
    _sync(path)


def _sync(path: Path) -> None:
    from weightkit.surgery.place import sync

    sync(path)


def _described(patch: Patch) -> dict[str, Any]:
    return {
        "base": patch.base,
        "target": patch.target,
        "unchanged": len(patch.unchanged),
        "tensors": [_entry(entry) for entry in patch.entries],
        "files": [change.to_json() for change in patch.files],
    }


def _entry(entry: Entry) -> dict[str, Any]:
    names = {"name": entry.before} if entry.before == entry.after else {"before": entry.before, "after": entry.after}
    return {**names, "marks": list(entry.marks), "steps": [step.to_json() for step in entry.steps]}


def _write_header(file: IO[bytes], names: list[str], sizes: list[int], text: str, placeholder: str) -> int:
    """Write a safetensors header; where in the file the placeholder is."""
    header: dict[str, Any] = {"__metadata__": {"weightkit.patch": VERSION, "sha256": placeholder, "patch": text}}
    end = 0
    for name, size in zip(names, sizes, strict=True):
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end := end + size]}
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    file.write(len(raw).to_bytes(8, "little") + raw)
    return 8 + raw.index(placeholder.encode())


def _copy(data: Bytes, file: IO[bytes], total: hashlib._Hash) -> None:
    for start in range(0, data.size, _COPIED):
        raw = data.blob.read(data.start + start, data.start + min(start + _COPIED, data.size)).data
        file.write(raw)
        total.update(raw)


# ── reading ────────────────────────────────────────────────────────────────────────────────────────


def open_patch(path: str | Path) -> Patch:
    """Open a patch and check that it is whole. Raises PatchError, one clear line, where it is not."""
    path = Path(path)
    try:
        shard = safetensors.open_file(path)
        blobs = {name: tensor for name, tensor in shard.tensors.items() if isinstance(tensor, Tensor)}
        if shard.metadata.get("weightkit.patch") != VERSION:
            said = shard.metadata.get("weightkit.patch")
            raise PatchError(f"is not a patch{f' of a version that is known: {said!r}' if said else ''}")
        text = shard.metadata.get("patch", "")
        value = strictjson.parse(text.encode("utf-8"), "its description")
        _require_whole(blobs, text, shard.metadata.get("sha256"))
        return _parsed(path, value, blobs)
    except FormatError as error:
        raise PatchError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    except PatchError as error:
        raise PatchError(f"{path}: {error}") from None


def _require_whole(blobs: dict[str, Tensor], text: str, said: str | None) -> None:
    total = hashlib.sha256(text.encode())
    for blob in sorted(blobs.values(), key=lambda blob: (blob.offset, blob.size)):
        if blob.dtype.name != "U8" or len(blob.shape) != 1:
            raise PatchError("is not a patch: its parts are not bytes")
        for start in range(0, blob.size, _COPIED):
            total.update(blob.read(start, min(start + _COPIED, blob.size)).data)
    if total.hexdigest() != said:
        raise PatchError("is damaged: its contents do not have the checksum that it gives; get it anew")


def _parsed(path: Path, value: Any, blobs: dict[str, Tensor]) -> Patch:
    if not isinstance(value, dict) or not all(isinstance(value.get(name), list) for name in ("tensors", "files")):
        raise PatchError("is not a patch: its description has no tensors or no files")
    roots = value.get("base"), value.get("target")
    if not all(isinstance(root, str) and len(root) == 64 for root in roots):
        raise PatchError("is not a patch: it does not say which model it is for")
    if set(blobs) != {*(str(i) for i in range(len(value["tensors"]))), "files", "marks"}:
        raise PatchError("its parts are not those of the tensors that it lists")
    entries = tuple(_parsed_entry(entry, blobs[str(i)]) for i, entry in enumerate(value["tensors"]))
    for names in ([e.before for e in entries], [e.after for e in entries]):
        given = [name for name in names if name is not None]
        if len(set(given)) != len(given):
            raise PatchError("it changes a tensor twice")
    some = value.get("unchanged")
    if type(some) is not int or not 0 <= some <= MOST_MARKS:
        raise PatchError("it does not say how many tensors stay as they are")
    marks = unpack_indices(Bytes(blobs["marks"], 0, blobs["marks"].size).view(), some, 1 << 32)
    files = _parsed_files(value["files"], blobs["files"])
    return Patch(path, str(roots[0]), str(roots[1]), entries, files, marks)


def _parsed_entry(value: Any, blob: Tensor) -> Entry:
    if not isinstance(value, dict) or not isinstance(value.get("steps"), list):
        raise PatchError("an entry of it has no steps")
    before, after = (value.get("name", value.get(side)) for side in ("before", "after"))
    marks = value.get("marks")
    sound = all(name is None or isinstance(name, str) for name in (before, after)) and (before or after)
    if not sound or not isinstance(marks, list) or len(marks) != 2:
        raise PatchError("an entry of it does not say which tensor it is for")
    try:
        return Entry(before, after, (marks[0], marks[1]), tuple(_parsed_steps(value["steps"], blob)))
    except PatchError as error:
        raise PatchError(f"tensor {before or after!r}: {error}") from None


def _parsed_steps(values: list[Any], blob: Tensor) -> list[Step]:
    sizes = [value.get("sizes", []) if isinstance(value, dict) else [] for value in values]
    if not all(isinstance(some, list) and all(type(n) is int and n >= 0 for n in some) for some in sizes):
        raise PatchError("the sizes of its parts are not whole numbers")
    parts = Bytes(blob, 0, blob.size).cut(*map(sum, sizes))
    return [steps.parse(value, part) for value, part in zip(values, parts, strict=True)]


def _parsed_files(values: list[Any], blob: Tensor) -> tuple[FileChange, ...]:
    at, found = 0, []
    for value in values:
        sizes = value.get("sizes") if isinstance(value, dict) else None
        sound = isinstance(sizes, list) and all(type(n) is int and n >= 0 for n in sizes)
        size = min(sum(sizes), blob.size - at) if sound and isinstance(sizes, list) else 0
        found.append(small_files.parse(value, blob.read(at, at + size).tobytes()))
        at += size
    if at != blob.size or len({change.name for change in found}) != len(found):
        raise PatchError("its small files do not add up")
    return tuple(found)


# ── drafts ─────────────────────────────────────────────────────────────────────────────────────────


class Workshop:
    """A temporary file in which the steps of a patch are put together before their sizes are known."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="weightkit-patch-", ignore_cleanup_errors=True)
        self.path = Path(self.folder.name) / "steps"
        self._spans: list[tuple[int, int]] = []
        self._file = open(self.path, "wb")  # noqa: SIM115 - until `done`
        self._end = 0

    def take(self, file: IO[bytes], size: int) -> int:
        """Put bytes of a file at the end; where they begin."""
        file.seek(0)
        shutil.copyfileobj(file, self._file, _COPIED)
        self._end += size
        return self._end - size

    def done(self) -> Tensor:
        """All that was put in it, as one tensor of bytes."""
        self._file.close()
        return Tensor("steps", DTYPES["U8"], (self._end,), self.path, 0)


def kept(patch: Patch) -> Patch:
    """A patch put together in memory, in a temporary file that lives as long as the patch does."""
    folder = tempfile.TemporaryDirectory(prefix="weightkit-patch-", ignore_cleanup_errors=True)
    path = Path(folder.name) / f"patch{SUFFIX}"
    write_new(patch, path)
    return replace(open_patch(path), folder=folder)


def named(error: WeightkitError, patch: Patch, name: str) -> PatchError:
    """An error about one tensor of a patch."""
    return PatchError(f"{patch.path}: tensor {name!r}: {error}")


def in_order_of(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Entries in the order of their names, which does not depend on files."""
    return tuple(sorted(entries, key=lambda entry: (entry.name, entry.before or "")))
