"""Untrained tokens, by the rows of the embedding and the vocab projection alone.

Source: Land and Bartolo, "Fishing for Magikarp", arXiv:2405.05417: tokens that training has not seen have small rows,
or rows that point where those of tokens known to be unused do, once the mean of all rows is taken away.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Collection
from statistics import NormalDist

import numpy as np

from weightkit.analysis.finding import Finding, finding, strongest
from weightkit.analysis.isolated import LEVEL
from weightkit.analysis.lines import Lines
from weightkit.analysis.rows import cosines, rows, spans
from weightkit.dtypes import Array
from weightkit.parallel import Work
from weightkit.weight import Weight

UNUSED = re.compile(r"unused|reserved|<extra_id|<pad_?\d|dummy", re.IGNORECASE)  # how such tokens are called
SMALL = 0.5  # a row's norm over the median
FAR = 6.0  # and in robust standard deviations of the logarithms of the norms
ALIKE = 0.8  # the cosine to the unused ones
LEAST = 32  # numbers of a row, and rows: of fewer, chance makes some small or alike
MOST = 10  # told of one table


def untrained(table: Weight, lines: Lines, unused: Collection[int], tests: int, work: Work) -> list[Finding]:
    """Tokens whose rows are small, or like those of the `unused` ones; these are not told for being alike."""
    count, width = table.shape
    if min(count, width) < LEAST:
        return []
    chance = -NormalDist().inv_cdf(LEVEL / (tests * count))  # standard deviations that no token is at by chance
    found = _small(table, lines.norms(0), max(FAR, chance))
    known = [i for i in unused if 0 <= i < count]
    alike = max(ALIKE, chance / math.sqrt(width))  # the cosine of independent rows has a std of 1 / √width
    if known and len(known) < count and alike < 1:
        mean = lines.sums / count
        direction = np.mean([_finite(table, slice(i, i + 1, 1))[0] for i in known], axis=0) - mean
        blocks = spans(table)
        sizes = [table.dtype.nbytes((span.stop - span.start) * width) for span in blocks]
        cosines_of = functools.partial(cosines, table, direction, middle=mean)
        found += _like_unused(table, np.concatenate(list(work.map(cosines_of, blocks, sizes))), known, alike)
    return strongest(found, MOST, f"tokens of {table.address}")


def _small(table: Weight, norms: Array, far: float) -> list[Finding]:
    alive = norms[norms > 0]
    if len(alive) < LEAST:
        return []
    middle, logs = float(np.median(alive)), np.log(alive)
    deviation = 1.4826 * float(np.median(np.abs(logs - np.median(logs))))
    limit = middle * min(SMALL, math.exp(-far * deviation))
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


def _like_unused(table: Weight, cosines: Array, known: Collection[int], alike: float) -> list[Finding]:
    others = np.setdiff1d(np.flatnonzero(cosines >= alike), list(known))
    return [
        finding(
            "untrained token",
            f"{table.address}[token={i}]",
            float(cosines[i]),
            (1 - alike) / (1 - cosines[i]) if cosines[i] < 1 else math.inf,
            f"its row points where those of {len(known):,} unused tokens do, with a cosine of {cosines[i]:.3f}",
        )
        for i in others
    ]


def _finite(table: Weight, span: slice) -> Array:  # [n, width]
    block = rows(table, span)
    return np.where(np.isfinite(block), block, 0.0)
