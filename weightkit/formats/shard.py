"""ShardFile: what every format reads of one weights file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightkit import files
from weightkit.tensor import Source

MOST_DIMENSIONS = 64  # numpy's limit
MOST_ELEMENTS = 1 << 60
MOST_EMPTY = 1 << 40  # of the other sizes of a tensor without elements
VERIFIED_BYTES = 32 << 20  # a file of up to this size is checked against its own checksums when it is opened
UNPACKED_BYTES = 4 * VERIFIED_BYTES  # what is unpacked for that: deflate makes a thousand bytes of one


def is_sensible(shape: Sequence[int]) -> bool:
    """Whether an array may have these sizes; a size of 0 does not allow the others everything."""
    if len(shape) > MOST_DIMENSIONS:
        return False
    return math.prod(max(n, 1) for n in shape) <= (MOST_EMPTY if 0 in shape else MOST_ELEMENTS)


def is_verified(path: Path, unpacked: int = 0) -> bool:
    """Whether a file is checked against its own checksums when it is opened: small ones, here.

    `unpacked` are the bytes that this would unpack, where they are known.
    """
    return unpacked <= UNPACKED_BYTES and files.size(path) <= VERIFIED_BYTES and not files.is_elsewhere(path)


@dataclass(frozen=True)
class ShardFile:
    """One weights file: its tensors in the order of its header, and what it says of itself."""

    path: Path  # of the file itself, links followed
    name: str  # in the folder that was opened; in the Hugging Face cache the file is called by its hash
    tensors: Mapping[str, Source]
    metadata: dict[str, str] = field(default_factory=dict)
    aside: frozenset[str] = frozenset()  # names of tensors that are no part of the model: optimizer state
    config: dict[str, Any] | None = None  # the model's config in the keys of a config.json, if the file has one
    tokenizer: Callable[[], bytes] | None = None  # makes a tokenizer.json, if the file has a tokenizer
    tokenizer_config: Callable[[], dict[str, Any]] | None = None  # makes a tokenizer_config.json, likewise
    part: tuple[int, int] | None = None  # (index, of how many), where the file says that it is one of several
    anew: bool = False  # its tensors are no longer those of the file: saving writes all of it
