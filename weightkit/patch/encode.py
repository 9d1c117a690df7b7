"""Encode: the steps that lead from one tensor to another, written in the fewest bytes that are found.

Every way is written and measured; what is cheap to rule out is not tried.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from weightkit.dtypes import Array
from weightkit.parallel import in_order
from weightkit.patch import find
from weightkit.patch.coded import pack_in
from weightkit.patch.coding import MOST_PLACES, chunk_words, number, pack_bits, pack_indices, pack_words, squeeze
from weightkit.patch.evidence import Evidence
from weightkit.patch.layers import Permuted, Shaped, words_in
from weightkit.patch.positions import Block, bits_for, row_of
from weightkit.patch.predict import BITS, Cast, LowRank, Prediction, Scale
from weightkit.tensor import BLOCK
from weightkit.words import Words, elementwise, width

IN_MEMORY = 16 << 20  # bytes of an encoding that are not put in a temporary file yet
SMALLEST = 256  # bytes of a change that is short enough as it is
DENSE = 0.2  # of words changed, from where a rule for all of them may be shorter
SHORT = 16  # a rule that takes less than this part of the tensor's bytes is not bettered by looking on


@dataclass
class Draft:
    """A step as it is written: facts for the JSON, and bytes."""

    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    file: IO[bytes] = field(default_factory=functools.partial(tempfile.SpooledTemporaryFile, IN_MEMORY))
    size: int = 0

    def add(self, raw: bytes) -> None:
        """Put a part at the end."""
        self.facts.setdefault("sizes", []).append(self._write(raw))

    def add_chunks(self, pack: Callable[[int], bytes], count: int, width: int, executor: Executor | None) -> None:
        """Put words at the end, coded chunk by chunk, and the table of the chunks' sizes."""
        chunks = range(-(-count // chunk_words(width)))
        packed: Iterable[bytes] = map(pack, chunks) if len(chunks) < 2 else in_order(pack, chunks, executor=executor)
        sizes = [self._write(raw) for raw in packed]
        self.facts.setdefault("sizes", []).append(sum(sizes))
        self.add(b"".join(map(number, sizes)))

    def _write(self, raw: bytes) -> int:
        self.file.write(raw)
        self.size += len(raw)
        return len(raw)


Drafts = list[Draft]


def total_size(drafts: Drafts) -> int:
    """Bytes of some steps."""
    return sum(draft.size for draft in drafts)


# ── XOR ────────────────────────────────────────────────────────────────────────────────────────────


def xored(a: Words, b: Words, evidence: Evidence, executor: Executor | None = None) -> Draft:
    """XOR of what differs: of rows by columns, of single words, or of everything, whichever is shortest."""
    total, size, changed = words_in(a), width(a.dtype), evidence.changed
    rows, columns = evidence.rows, evidence.columns
    drafts = []
    if rows is not None and columns is not None and max(len(rows), len(columns)) <= MOST_PLACES:
        inside = len(rows) * len(columns)
        if inside <= total // 2 and changed >= inside // 8:
            drafts.append(_block(a, b, Block(rows, columns, row_of(a.shape, total)), executor))
    if changed <= min(MOST_PLACES, total // 8):
        drafts.append(_sparse(a, b, executor))
    if not drafts or changed > total // 64:
        draft = Draft("dense")
        draft.add_chunks(functools.partial(_xor_chunk, a, b), total, size, executor)
        drafts.append(draft)
    return min(drafts, key=lambda draft: draft.size)


def _xor_chunk(a: Words, b: Words, place: int) -> bytes:
    low, high = _span(a, place)
    return pack_words(a.words(low, high) ^ b.words(low, high))


def _span(words: Words, place: int) -> tuple[int, int]:
    """The words of a chunk."""
    size = chunk_words(width(words.dtype))
    return place * size, min((place + 1) * size, words_in(words))


def _sparse(a: Words, b: Words, executor: Executor | None) -> Draft:
    total, parts = words_in(a), []
    for start in range(0, total, BLOCK):
        stop = min(start + BLOCK, total)
        change = a.words(start, stop) ^ b.words(start, stop)
        places = np.flatnonzero(change)
        parts.append((places + start, change[places]))
    indices, change = (np.concatenate(some) for some in zip(*parts, strict=True))
    draft = Draft("sparse", {"count": len(indices)})
    draft.add(pack_indices(indices))
    draft.add_chunks(functools.partial(_slice, change), len(change), width(a.dtype), executor)
    return draft


def _slice(change: Array, place: int) -> bytes:
    size = chunk_words(change.dtype.itemsize)
    return pack_words(change[place * size : (place + 1) * size])


def _block(a: Words, b: Words, where: Block, executor: Executor | None) -> Draft:
    draft = Draft("block", {"rows": len(where.rows), "columns": len(where.columns)})
    draft.add(pack_indices(where.rows))
    draft.add(pack_indices(where.columns))
    draft.add_chunks(functools.partial(_block_chunk, a, b, where), where.count, width(a.dtype), executor)
    return draft


def _block_chunk(a: Words, b: Words, where: Block, place: int) -> bytes:
    size, wide = chunk_words(width(a.dtype)), len(where.columns)
    low, high = place * size, min((place + 1) * size, where.count)
    rows = where.rows[low // wide : -(-high // wide)]
    per_read = max(1, BLOCK // where.row)
    parts = []
    for start in range(0, len(rows), per_read):
        some = rows[start : start + per_read]
        parts.append((a.rows(some) ^ b.rows(some))[:, where.columns].reshape(-1))
    first = low // wide * wide
    return pack_words(np.concatenate(parts)[low - first : high - first])


# ── rules for everything ───────────────────────────────────────────────────────────────────────────


def same_shape(a: Words, b: Words, evidence: Evidence, executor: Executor | None = None) -> Drafts:
    """The steps from one tensor to another of the same type and shape."""
    total = words_in(a)
    plain = [xored(a, b, evidence, executor)]
    if evidence.changed < DENSE * total or not elementwise(a.dtype) or total_size(plain) < SMALLEST:
        return plain
    best, short = plain, total * width(a.dtype) // SHORT
    for way in _rules(a, b, executor):
        best = min(best, way, key=total_size)
        if total_size(best) < short:
            break
    return best


def _rules(a: Words, b: Words, executor: Executor | None) -> Iterator[Drafts]:
    """What rules there are for everything, the quickest to find first."""
    for axis, order in find.orders(a, b):
        yield _permuted(a, b, axis, order, executor)
    if a.dtype.kind == "float":
        for factor in find.factors(a, b):
            yield [_predicted("scaled", Scale(a.dtype, factor), a, b, executor)]
        for rule in find.low_rank(a, b):
            yield [_predicted("low_rank", rule, a, b, executor)]


def _permuted(a: Words, b: Words, axis: int, order: Array, executor: Executor | None) -> Drafts:
    moved = np.flatnonzero(order != np.arange(len(order)))
    draft = Draft("permuted", {"axis": axis, "count": len(moved)})
    draft.add(pack_indices(moved))
    draft.add(squeeze(pack_bits(np.searchsorted(moved, order[moved]), bits_for(len(moved)))))
    return [draft, *_rest(Permuted(a, axis, order), b, executor)]


def _rest(a: Words, b: Words, executor: Executor | None) -> Drafts:
    """What is left to XOR after a step that makes most of the change; often nothing."""
    left = compare_words(a, b)
    return [xored(a, b, left, executor)] if left.changed else []


def compare_words(a: Words, b: Words) -> Evidence:
    """How much differs between words that are not hashed."""
    total, changed = words_in(a), 0
    for start in range(0, total, BLOCK):
        stop = min(start + BLOCK, total)
        changed += int(np.count_nonzero(a.words(start, stop) != b.words(start, stop)))
    return Evidence((b"", b""), changed)


def _predicted(kind: str, rule: Prediction, a: Words, b: Words, executor: Executor | None) -> Draft:
    draft = Draft(kind)
    if isinstance(rule, Scale):
        draft.facts["factor"] = float(rule.factor)
    elif isinstance(rule, Cast):
        draft.facts["dtypes"] = [dtype.name for dtype in rule.ends]
    elif isinstance(rule, LowRank):
        draft.facts |= {"rank": rule.left.shape[1], "bits": rule.bits, "exponent": rule.exponent}
        for factor in (rule.left, rule.right):
            coded = np.dtype("<i2" if rule.bits <= BITS[0] else "<i4")
            planes = factor.astype(coded).reshape(-1, 1).view(np.uint8).T
            draft.add(squeeze(planes.tobytes()))
    for back, (before, after) in enumerate(((a, b), (b, a))):
        pack = functools.partial(_remainder, rule, before, after, bool(back))
        draft.add_chunks(pack, words_in(after), width(after.dtype), executor)
    return draft


def _remainder(rule: Prediction, before: Words, after: Words, back: bool, place: int) -> bytes:
    low, high = _span(after, place)
    found, context = rule.predict(before.words(low, high), low, back=back)
    return pack_in(found ^ after.words(low, high), context)


# ── structure ──────────────────────────────────────────────────────────────────────────────────────


def new(b: Words, executor: Executor | None = None, *, back: bool = False) -> Draft:
    """A tensor that the other side does not have."""
    draft = Draft("new", {"dtype": b.dtype.name, "shape": list(b.shape)})
    _add_words(draft, b, 0, executor)
    if back:
        draft.facts["back"] = True
    return draft


def _add_words(draft: Draft, words: Words, start: int, executor: Executor | None) -> None:
    total = words_in(words) - start
    draft.add_chunks(functools.partial(_own_chunk, words, start), total, width(words.dtype), executor)


def _own_chunk(words: Words, start: int, place: int) -> bytes:
    size = chunk_words(width(words.dtype))
    return pack_words(words.words(start + place * size, min(start + (place + 1) * size, words_in(words))))


def structural(a: Words, b: Words, executor: Executor | None = None) -> Drafts:
    """The steps from one tensor to another of another type or shape."""
    if a.dtype == b.dtype and words_in(a) == words_in(b):
        draft = Draft("reshaped", {"before": list(a.shape), "after": list(b.shape), "sizes": []})
        return [draft, *_rest(Shaped(a, b.shape), b, executor)]
    if a.shape == b.shape and all(w.dtype.kind == "float" and not w.dtype.packed for w in (a, b)):
        return [_predicted("cast", Cast(a.dtype, b.dtype), a, b, executor)]
    if a.dtype == b.dtype and elementwise(a.dtype) and a.shape and b.shape and a.shape[1:] == b.shape[1:]:
        return _more_rows(a, b, executor) if b.shape[0] > a.shape[0] else _fewer_rows(a, b, executor)
    return [new(a, executor, back=True), new(b, executor)]


def _more_rows(a: Words, b: Words, executor: Executor | None) -> Drafts:
    """Rows appended, after what changes in the others."""
    drafts = _rest(a, Shaped(b, a.shape), executor)
    return [*drafts, _rows(b, a, executor)]


def _fewer_rows(a: Words, b: Words, executor: Executor | None) -> Drafts:
    draft = _rows(a, b, executor)
    draft.facts["back"] = True
    return [draft, *_rest(Shaped(a, b.shape), b, executor)]


def _rows(larger: Words, smaller: Words, executor: Executor | None) -> Draft:
    draft = Draft("rows_added", {"rows": larger.shape[0] - smaller.shape[0]})
    _add_words(draft, larger, words_in(smaller), executor)
    return draft
