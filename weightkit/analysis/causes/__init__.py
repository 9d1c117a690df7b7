"""Causes: what kind of change made b of a, with the evidence.

Every test is a function of the evidence that gives a cause or None. They are asked in this order, and the first answer
counts: what is exact before what is estimated, what needs sums before what needs a sample, and spectra last.

1. `shapes`: the shapes differ, so rows or columns came or went.
2. `quantised`: b is stored in a packed type, which says so itself.
3. `zeroed`: b is a with zeros, as Σab and Σb² are the same to the bit in every line.
4. `permuted`: the lines of b are those of a in another order, as their Σx² are.
5. `cast`: b is a rounded to another type.
6. `scaled`: every row, every column, or all is a times a factor, to the rounding.
7. `rows`: some lines changed and the others did not, more of them than chance leaves out.
8. `sparse`: of the places where a change as large as these would show, few changed.
9. `replaced`: b says less than a hundredth about a.
10. `quantised` again: the numbers of b lie on a grid in groups.
11. `low_rank`, and `direction` where that rank is one and is what a had in it.
12. `noise`, as signs drawn at random give a change as large in no direction; else `trained`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from weightkit.analysis.causes import dense, lines, low_rank, sparse, storing
from weightkit.analysis.causes.evidence import Evidence, Found
from weightkit.threads import one_blas_thread

Test = Callable[[Evidence], Found | None]

ORDER: tuple[Test, ...] = (
    storing.packed,
    lines.zeroed,
    lines.permuted,
    storing.cast,
    lines.scaled,
    sparse.rows,
    sparse.sparse,
    dense.replaced,
    storing.quantised,
    low_rank.low_rank,
    dense.noise_or_trained,
)


def cause(evidence: Evidence) -> Found | None:
    """The cause of a difference of two weights of one shape; None where nothing can be said of it."""
    if not evidence.size or evidence.a.dtype.kind != "float" or evidence.b.dtype.kind != "float":
        return None
    with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):  # of NaN and Inf some tests say nothing
        return next((found for found in (test(evidence) for test in ORDER) if found is not None), None)
