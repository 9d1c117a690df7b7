"""Tree: one hash for all tensors of a model, the same however they are cut into files and in whatever order.

A leaf is the SHA-256 of a tensor's name and of the SHA-256 of its type, shape and bytes. Leaves, in the order of
the names, are hashed two by two up to one root: a Merkle tree.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

from weightkit.dtypes import DType
from weightkit.parallel import Progress, in_order
from weightkit.tensor import BLOCK, Source
from weightkit.words import count, width, words_of

MARK = 4  # bytes of a leaf that a patch keeps, to tell which tensor differs


@dataclass(frozen=True)
class Tree:
    """The leaves of a model by the names of its tensors."""

    leaves: Mapping[str, bytes]

    @functools.cached_property
    def root(self) -> str:
        """The hash of all of them, as hexadecimal digits."""
        level = [self.leaves[name] for name in sorted(self.leaves)]
        while len(level) > 1:
            pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
            level = [hashlib.sha256(b"".join(pair)).digest() if len(pair) > 1 else pair[0] for pair in pairs]
        return (level[0] if level else hashlib.sha256().digest()).hex()


def content_hash(dtype: DType, shape: tuple[int, ...]) -> hashlib._Hash:
    """A hash that the bytes of a tensor of this type and shape are to be put in."""
    return hashlib.sha256(json.dumps([dtype.name, list(shape)]).encode() + b"\0")


def leaf(name: str, content: bytes) -> bytes:
    """The leaf of a tensor, of the hash of its content."""
    return hashlib.sha256(content + name.encode("utf-8", "surrogatepass")).digest()


def mark(found: bytes) -> int:
    """The first bytes of a leaf as a number."""
    return int.from_bytes(found[:MARK], "big")


def content_of(source: Source) -> bytes:
    """The hash of a tensor's type, shape and bytes, which are read in blocks."""
    words, made = words_of(source), content_hash(source.dtype, source.shape)
    step = BLOCK * 2 // width(source.dtype)
    total = count(source.dtype, source.shape)
    for start in range(0, total, step):
        made.update(words.words(start, min(start + step, total)).data)
    return made.digest()


def tree(tensors: Mapping[str, Source], *, executor: Executor | None = None, progress: Progress | None = None) -> Tree:
    """The tree of a model's tensors; reads all of them."""
    contents: Iterable[bytes] = in_order(content_of, list(tensors.values()), executor=executor, progress=progress)
    return Tree({name: leaf(name, content) for name, content in zip(tensors, contents, strict=True)})
