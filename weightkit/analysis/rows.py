"""The rows of a table of tokens, a block at a time, as float64."""

from __future__ import annotations

import numpy as np

from weightkit.dtypes import Array
from weightkit.tensor import BLOCK
from weightkit.weight import Selection, Weight


def spans(table: Weight) -> list[slice]:
    """The rows of a table in blocks."""
    step = max(1, BLOCK // max(1, table.shape[1]))
    return [slice(at, min(at + step, table.shape[0]), 1) for at in range(0, table.shape[0], step)]


def rows(table: Weight, span: slice) -> Array:  # [n, width]
    """The rows of a block."""
    return Selection(table, (span, slice(0, table.shape[1], 1))).array(np.float64)


def cosines(table: Weight, direction: Array, span: slice, middle: Array | float = 0.0) -> Array:  # [n]
    """The cosine of each row of a block, less `middle`, to a direction; NaN of a row that has none."""
    with np.errstate(all="ignore"):
        block = rows(table, span) - middle
        return (block @ direction) / (np.linalg.norm(block, axis=1) * np.linalg.norm(direction))
