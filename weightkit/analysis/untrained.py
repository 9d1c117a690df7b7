"""Untrained tokens, by the rows of the embedding and the vocab projection alone.

Source: Land and Bartolo, "Fishing for Magikarp", arXiv:2405.05417: tokens that training has not seen have small rows,
or rows that point where those of tokens known to be unused do, once the mean of all rows is taken away.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from weightkit.analysis.finding import Finding, finding, strongest
from weightkit.analysis.rows import cosines, rows, spans
from weightkit.dtypes import Array
from weightkit.parallel import in_order
from weightkit.weight import Weight

if TYPE_CHECKING:
    from concurrent.futures import Executor

UNUSED = re.compile(r"unused|reserved|<extra_id|<pad_?\d|dummy", re.IGNORECASE)  # how such tokens are called
SMALL = 0.5  # a row's norm over the median
FAR = 6.0  # and in robust standard deviations of the logarithms of the norms
ALIKE = 0.8  # the cosine to the unused ones
MOST = 10  # of one table


def untrained(table: Weight, unused: Collection[int] = (), executor: Executor | None = None) -> list[Finding]:
    """Tokens whose rows are small, or like those of the `unused` ones; these are not told for being alike."""
    count, blocks = table.shape[0], spans(table)
    parts = list(in_order(functools.partial(_sums, table), blocks, executor=executor))
    norms = np.sqrt(np.concatenate([squares for squares, _ in parts])) if parts else np.zeros(0)
    found = _small(table, norms)
    known = [i for i in unused if 0 <= i < count]
    if known and len(known) < count:
        mean = np.sum([total for _, total in parts], axis=0) / count
        direction = np.mean([_finite(table, slice(i, i + 1, 1))[0] for i in known], axis=0) - mean
        alike = in_order(functools.partial(cosines, table, direction, middle=mean), blocks, executor=executor)
        found += _like_unused(table, np.concatenate(list(alike)), known)
    return strongest(found, MOST, f"tokens of {table.address}")


def _small(table: Weight, norms: Array) -> list[Finding]:
    alive = norms[norms > 0]
    if len(alive) < 3:
        return []
    middle, logs = float(np.median(alive)), np.log(alive)
    deviation = 1.4826 * float(np.median(np.abs(logs - np.median(logs))))
    limit = middle * min(SMALL, math.exp(-FAR * deviation))
    return [
        finding(
            "untrained token",
            f"{table.address}[token={i}]",
            float(norms[i]),
            limit / norms[i] if norms[i] else math.inf,
            f"the norm of its row is {norms[i] / middle:.2g} of the median: training has hardly seen it",
        )
        for i in np.flatnonzero(norms <= limit)
    ]


def _like_unused(table: Weight, cosines: Array, known: Collection[int]) -> list[Finding]:
    others = np.setdiff1d(np.flatnonzero(cosines >= ALIKE), list(known))
    return [
        finding(
            "untrained token",
            f"{table.address}[token={i}]",
            float(cosines[i]),
            (1 - ALIKE) / (1 - cosines[i]) if cosines[i] < 1 else math.inf,
            f"its row points where those of {len(known):,} unused tokens do, with a cosine of {cosines[i]:.3f}",
        )
        for i in others
    ]


def _finite(table: Weight, span: slice) -> Array:  # [n, width]
    block = rows(table, span)
    return np.where(np.isfinite(block), block, 0.0)


def _sums(table: Weight, span: slice) -> tuple[Array, Array]:  # [n], [width]
    block = _finite(table, span)
    with np.errstate(over="ignore"):
        return np.square(block).sum(axis=1), block.sum(axis=0)
