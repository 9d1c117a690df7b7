"""Make: the patch that leads from one model to another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Protocol

import numpy as np

from weightkit.checkpoint import Checkpoint
from weightkit.dtypes import DTYPES, Array
from weightkit.errors import PatchError
from weightkit.layout import PLAIN
from weightkit.parallel import Progress, in_order
from weightkit.patch import encode, small_files
from weightkit.patch.coded import Bytes
from weightkit.patch.container import Entry, Patch, Workshop, in_order_of, kept, write
from weightkit.patch.encode import Drafts
from weightkit.patch.evidence import Evidence, examine
from weightkit.patch.steps import Step
from weightkit.patch.tree import Tree, content_of, leaf, mark
from weightkit.registry import Registry
from weightkit.surgery.place import one_file
from weightkit.tensor import Source
from weightkit.words import words_of

Pair = tuple[str | None, str | None]  # names of one tensor before and after


class Opened(Protocol):
    """A model: its files, and its named weights."""

    checkpoint: Checkpoint
    registry: Registry


def make(
    a: Opened,
    b: Opened,
    out: str | Path | None = None,
    *,
    force: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Patch:
    """The patch that makes model `b` of model `a`, and `a` of `b`, to the bit; written to `out`, if given.

    Tensors are matched by their names in the files, then by address, then by content. Config and tokenizer files are
    covered where both models are folders. `progress` is told tensors. Raises SaveError where `out` exists,
    PatchError for what cannot be in a patch.
    """
    mine, theirs = tensors_of(a), tensors_of(b)
    pairs = _pairs(a.registry, b.registry)
    compared = [pair for pair in pairs if None not in pair]
    tasks = [(mine[str(x)], theirs[str(y)]) for x, y in compared]
    found = dict(zip(compared, in_order(examine, tasks, executor=executor, progress=progress), strict=True))
    lone = [pair for pair in pairs if None in pair]
    sources = [mine[x] if x is not None else theirs[str(y)] for x, y in lone]
    contents = dict(zip(lone, in_order(content_of, sources, executor=executor), strict=True))
    _pair_by_content(contents, found)
    workshop = Workshop()
    patch = _patch(workshop, mine, theirs, found, contents, executor)
    if not (one_file(a.checkpoint) or one_file(b.checkpoint)):
        files = small_files.changes(small_files.texts(a.checkpoint), small_files.texts(b.checkpoint))
        patch = Patch(patch.path, patch.base, patch.target, patch.entries, tuple(files), patch.unchanged)
    with workshop.folder:
        if out is None:
            return kept(patch)
        from weightkit.patch.container import open_patch

        return open_patch(write(patch, Path(out), force=force))


def tensors_of(opened: Opened) -> dict[str, Source]:
    """The tensors of a model by their names in the files. PatchError where there are none."""
    weights = opened.registry.by_name
    if not weights or any(weight.source is None for weight in weights.values()):
        raise PatchError(f"{opened.checkpoint.path}: there are no weights here, only their description")
    return {name: weight.stored for name, weight in weights.items()}


def _pairs(a: Registry, b: Registry) -> list[Pair]:
    """Names that are one tensor in both models: the same name, or the same address."""
    pairs: list[Pair] = [(name, name) for name in a.by_name if name in b.by_name]
    left_a, left_b = ([n for n in r.by_name if n not in o.by_name] for r, o in ((a, b), (b, a)))
    there = {address: name for name, address in _addresses(b).items() if name in left_b}
    mine = _addresses(a)
    for name in left_a:
        other = there.pop(mine.get(name, ""), None)
        pairs.append((name, other))
    taken = {y for _, y in pairs}
    return pairs + [(None, name) for name in left_b if name not in taken]


def _addresses(registry: Registry) -> dict[str, str]:
    """The addresses of tensors that are one weight as it is stored."""
    whole = (w for w in registry.values() if w.layout == PLAIN and not w.alias)
    return {w.name: w.address for w in whole if not w.address.startswith("name:")}


def _pair_by_content(contents: dict[Pair, bytes], found: dict[Pair, Evidence]) -> None:
    """Take what is in both models under two names for one tensor, renamed."""
    gone: dict[bytes, Pair] = {content: pair for pair, content in contents.items() if pair[1] is None}
    for pair, content in list(contents.items()):
        if pair[0] is None and content in gone:
            before = gone.pop(content)
            del contents[pair], contents[before]
            found[before[0], pair[1]] = Evidence((content, content))


def _patch(
    workshop: Workshop,
    mine: Mapping[str, Source],
    theirs: Mapping[str, Source],
    found: Mapping[Pair, Evidence],
    contents: Mapping[Pair, bytes],
    executor: Executor | None,
) -> Patch:
    leaves: tuple[dict[str, bytes], dict[str, bytes]] = ({}, {})
    drafted: list[tuple[Pair, list[Step]]] = []
    spans: list[tuple[Step, int]] = []
    for pair in [*found, *contents]:
        hashes = found[pair].contents if pair in found else (contents[pair], contents[pair])
        for side, name in enumerate(pair):
            if name is not None:
                leaves[side][name] = leaf(name, hashes[side])
        if pair in found and found[pair].same and pair[0] == pair[1]:
            continue
        drafts = _drafts(pair, mine, theirs, found.get(pair), executor)
        drafted.append((pair, []))
        for draft in drafts:
            facts = {name: fact for name, fact in draft.facts.items() if name != "back"}
            start = workshop.take(draft.file, draft.size)
            draft.file.close()
            spans.append((Step(draft.kind, facts, _NOWHERE, draft.facts.get("back", False)), start))
            drafted[-1][1].append(spans[-1][0])
    blob = workshop.done()
    sizes = {id(step): (start, sum(step.facts["sizes"])) for step, start in spans}
    entries = []
    for pair, steps in drafted:
        marks = tuple(None if n is None else mark(leaves[side][n]) for side, n in enumerate(pair))
        placed = tuple(Step(s.kind, s.facts, Bytes(blob, *sizes[id(s)]), s.back) for s in steps)
        entries.append(Entry(*pair, (marks[0], marks[1]), placed))
    changed = {name for (name, _), _ in drafted}
    unchanged = _marks(found_leaf for name, found_leaf in leaves[0].items() if name not in changed)
    roots = [Tree(some).root for some in leaves]
    return Patch(workshop.path, roots[0], roots[1], in_order_of(entries), (), unchanged)


def _marks(leaves: Iterable[bytes]) -> Array:
    return np.unique(np.asarray([mark(found) for found in leaves], np.int64))


def _drafts(
    pair: Pair,
    mine: Mapping[str, Source],
    theirs: Mapping[str, Source],
    evidence: Evidence | None,
    executor: Executor | None,
) -> Drafts:
    before, after = pair
    a = words_of(mine[before]) if before is not None else None
    b = words_of(theirs[after]) if after is not None else None
    if a is not None and b is not None and evidence is not None:
        if evidence.same:
            return []
        if (a.dtype, a.shape) == (b.dtype, b.shape):
            return encode.same_shape(a, b, evidence, executor)
        drafts = encode.structural(a, b, executor)
    else:
        drafts = [encode.new(words, executor, back=b is None) for words in (a, b) if words is not None]
    for draft in drafts:
        if draft.kind == "new" and draft.facts["dtype"] not in DTYPES:
            name, dtype = after or before, draft.facts["dtype"]
            raise PatchError(f"tensor {name!r}: a patch cannot bring along tensors of {dtype}; convert the model first")
    return drafts


_NOWHERE = Bytes.__new__(Bytes)
