"""Algebra: patches put one after another, and what two of them both change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from weightkit.dtypes import Array
from weightkit.errors import PatchError
from weightkit.patch.coding import unpack_indices
from weightkit.patch.container import Entry, Patch, in_order_of
from weightkit.patch.small_files import FileChange, joined
from weightkit.patch.steps import Step


@dataclass(frozen=True)
class Conflict:
    """What two patches of one base both change: a tensor, or a small file."""

    name: str
    first: list[str]  # what each does: the kinds of its steps, or paths in a file
    second: list[str]
    words: int | None  # places that both change, where both say which they are


def compose(first: Patch, second: Patch) -> Patch:
    """The patch that does what two do, one after the other; its steps stay in their files until it is saved.

    Raises PatchError where the second was not made for what the first leads to.
    """
    if first.target != second.base:
        raise PatchError(f"{second.path}: was not made for the model that {first.path} leads to")
    found, later = [], dict(second.by_before)
    for entry in first.entries:
        then = later.pop(entry.after, None) if entry.after is not None else None
        joined = entry if then is None else _joined(entry, then)
        if joined is not None:
            found.append(joined)
    found += later.values()
    found += [entry for entry in second.entries if entry.before is None]
    changed = np.asarray([e.marks[0] for e in later.values() if e.marks[0] is not None], np.int64)
    unchanged = np.setdiff1d(first.unchanged, changed)
    files = tuple(_files(first.files, second.files))
    return replace(first, target=second.target, entries=in_order_of(found), files=files, unchanged=unchanged)


def _joined(entry: Entry, then: Entry) -> Entry | None:
    """Two changes of one tensor as one; None where it was added and taken away again."""
    if entry.before is None and then.after is None:
        return None
    return Entry(entry.before, then.after, (entry.marks[0], then.marks[1]), (*entry.steps, *then.steps))


def _files(first: tuple[FileChange, ...], second: tuple[FileChange, ...]) -> Iterator[FileChange]:
    later = {change.name: change for change in second}
    for earlier in first:
        then = later.pop(earlier.name, None)
        found = earlier if then is None else joined(earlier, then)
        if found is not None:
            yield found
    yield from later.values()


def conflicts(first: Patch, second: Patch) -> list[Conflict]:
    """The tensors and small files that two patches of one base both change, so that their order would matter.

    Places are told apart where both patches say which words or rows of a tensor they change; then tensors in which
    they meet nowhere are no conflict. Raises PatchError where the patches are for different models.
    """
    if first.base != second.base:
        raise PatchError(
            f"{first.path} and {second.path} are not for the same model: they cannot be held against another"
        )
    found = []
    for name, entry in first.by_before.items():
        other = second.by_before.get(name)
        if other is None:
            continue
        shared = _shared(entry, other)
        if shared != 0:
            found.append(Conflict(name, _kinds(entry), _kinds(other), shared))
    added = {e.after: e for e in second.entries if e.before is None}
    both = [entry for entry in first.entries if entry.before is None and entry.after in added]
    found += [Conflict(entry.name, _kinds(entry), _kinds(added[entry.after]), None) for entry in both]
    return [*found, *_file_conflicts(first, second)]


def _kinds(entry: Entry) -> list[str]:
    kinds = [step.kind for step in entry.steps]
    return kinds or ["renamed"]


def _file_conflicts(first: Patch, second: Patch) -> Iterator[Conflict]:
    theirs = {change.name: change for change in second.files}
    for mine in first.files:
        other = theirs.get(mine.name)
        if other is None:
            continue
        paths = [[str(op["path"]) for op in c.ops] if c.ops is not None else ["the whole file"] for c in (mine, other)]
        meet = mine.ops is None or other.ops is None or any(_meet(x, y) for x in paths[0] for y in paths[1])
        if meet:
            yield Conflict(mine.name, paths[0], paths[1], None)


def _meet(x: str, y: str) -> bool:
    """Whether one path is the other, or lies below it."""
    return x == y or x.startswith(f"{y}/") or y.startswith(f"{x}/")


def _shared(first: Entry, second: Entry) -> int | None:
    """How many places both change; None where that is not known."""
    places = [_places(entry) for entry in (first, second)]
    x, y = places
    if x is None or y is None:
        return None
    if isinstance(x, tuple) and isinstance(y, tuple):
        return len(np.intersect1d(x[0], y[0])) * len(np.intersect1d(x[1], y[1]))
    return None if isinstance(x, tuple) or isinstance(y, tuple) else len(np.intersect1d(x, y))


def _places(entry: Entry) -> Array | tuple[Array, Array] | None:
    """The words that an entry changes, or rows and columns; None where it may be all."""
    if len(entry.steps) != 1:
        return None
    step = entry.steps[0]
    if step.kind == "sparse":
        return _indices(step, 0, "count")
    if step.kind == "block":
        return _indices(step, 0, "rows"), _indices(step, 1, "columns")
    return None


def _indices(step: Step, part: int, fact: str) -> Array:
    parts = step.parts(3 if step.kind == "sparse" else 4)
    return unpack_indices(parts[part].view(), step.natural(fact), 1 << 60)
