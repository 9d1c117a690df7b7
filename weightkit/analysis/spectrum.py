"""Singular values of weights, and what they say: ranks, energy, a power law, what is random and what is not.

λ are the eigenvalues of the Gram matrix, σ² for singular values σ, not normalised.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from weightkit.analysis import gram
from weightkit.analysis.marchenko_pastur import MarchenkoPastur, marchenko_pastur
from weightkit.analysis.power_law import PowerLaw, power_law
from weightkit.dtypes import Array
from weightkit.errors import AddressError
from weightkit.parallel import Progress, in_order
from weightkit.threads import one_blas_thread
from weightkit.weight import Selection

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import pandas as pd

ENERGY = (0.5, 0.9, 0.99)
LARGEST_SIDE = 4096  # of a Gram matrix, unless all singular values are asked for
VECTOR = "a vector"
LARGEST_SHUFFLE = 1 << 27  # stored bytes


@dataclass(frozen=True)
class Shuffled:
    """The same numbers in another order, against the order that they have."""

    sigma_max: float
    above: int  # singular values of the matrix that are larger than that
    distance: float  # Jensen–Shannon, between the λ of both, in order, each over their sum


@dataclass(frozen=True)
class Spectrum:
    """One row: a matrix, or a part of one. A number that does not exist, or was not computed, is NaN or None."""

    address: str
    name: str
    role: str
    layer: int | None
    dtype: str
    shape: tuple[int, ...]
    singular_values: int  # computed: all of them, or the largest
    frobenius: float  # √Σσ²
    sigma_max: float
    sigma_min: float
    rank: int | None  # singular values that are not 0 to the precision of float64
    stable_rank: float  # Σσ² / σ_max²
    entropy: float  # of σ² / Σσ², over log(rank): 1 where all directions are equal
    condition: float  # σ_max / σ_min
    energy: dict[str, int | None]  # the fewest singular values whose squares are such a share of the sum
    power_law: PowerLaw | None
    marchenko_pastur: MarchenkoPastur | None
    shuffled: Shuffled | None

    def flat(self) -> dict[str, Any]:
        """The fields as one level: power_law.alpha, energy.0.9."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value, parts = getattr(self, field.name), _PARTS.get(field.name)
            if parts is None:
                found[field.name] = value
            else:
                get = value.get if isinstance(value, dict) else lambda name, value=value: getattr(value, name, None)
                found |= {f"{field.name}.{name}": get(name) for name in parts}
        return found


_PARTS: dict[str, list[str]] = {
    "energy": [f"{share:g}" for share in ENERGY],
    "power_law": list(PowerLaw.__dataclass_fields__),
    "marchenko_pastur": list(MarchenkoPastur.__dataclass_fields__),
    "shuffled": list(Shuffled.__dataclass_fields__),
}


@dataclass(frozen=True)
class Skipped:
    """What has no spectrum, and why."""

    address: str
    reason: str


@dataclass(frozen=True)
class Spectra:
    """The spectra of what was selected, and what has none."""

    rows: list[Spectrum]
    skipped: list[Skipped]

    def frame(self) -> pd.DataFrame:
        """One row per matrix."""
        import pandas as pd

        return pd.DataFrame([row.flat() for row in self.rows])


@dataclass(frozen=True)
class Wanted:
    """What is to be computed of a selection."""

    selection: Selection
    shuffle: int | None = None  # a seed
    full: bool = False  # all singular values, however much memory they take


def spectra(wanted: Sequence[Wanted], *, executor: Executor | None = None, progress: Progress | None = None) -> Spectra:
    """The spectra of selections, in their order.

    BLAS has one thread all the while, as matrices are shared out: what is computed does not depend on how many.
    """
    with one_blas_thread():
        found = list(in_order(spectrum, wanted, executor=executor, progress=progress))
    rows = [row for row in found if isinstance(row, Spectrum)]
    return Spectra(rows, [row for row in found if isinstance(row, Skipped)])


def spectrum(wanted: Wanted) -> Spectrum | Skipped:
    """The spectrum of a selection, read in pieces."""
    selection = wanted.selection
    reason = _no_matrix(selection)
    if reason is None:
        small, few = min(selection.shape), min(selection.shape) > LARGEST_SIDE and not wanted.full
        need = 0 if few else gram.memory(selection.shape, selection.dtype.bits // 8)
        with gram.room.take(need), one_blas_thread(), np.errstate(over="ignore", under="ignore", invalid="ignore"):
            found = gram.largest(lambda: gram.chunks(selection), small) if few else _all(selection)
            reason = _no_numbers(found.trace)
            if reason is None:
                return _largest(selection, found) if few else _row(wanted, found.eigenvalues)
    return Skipped(selection.address, reason)


def singular_values(selection: Selection) -> Array:
    """All singular values of a matrix, largest first, float64 [smaller side].

    Raises AddressError where it has none.
    """
    reason = _no_matrix(selection)
    if reason is None:
        with one_blas_thread(), np.errstate(over="ignore", under="ignore", invalid="ignore"):
            found = _all(selection)
        reason = _no_numbers(found.trace)
        if reason is None:
            return np.sqrt(found.eigenvalues)
    raise AddressError(f"{selection.address}: has no singular values: {reason}")


def _no_matrix(selection: Selection) -> str | None:
    """Why a selection is none that has a spectrum."""
    if selection.weight.buffer:
        return "a buffer, which is no parameter"
    if selection.dtype.kind == "complex":
        return "complex numbers"
    if len(selection.shape) > 2:
        return f"{len(selection.shape)} axes: no matrix"
    if not selection.size:
        return "empty"
    return VECTOR if len(selection.shape) < 2 or min(selection.shape) == 1 else None


def _no_numbers(trace: float) -> str | None:
    """Why a matrix with such a sum of squares has no spectrum."""
    if not math.isfinite(trace):
        return "has NaN or Inf, or numbers too large to be squared"
    return None if trace else "all zeros, or numbers too small to be squared"


def _all(selection: Selection) -> gram.Largest:
    return _eigenvalues(gram.gram(gram.chunks(selection), min(selection.shape)), selection.shape)


def _eigenvalues(total: Array, shape: tuple[int, ...]) -> gram.Largest:
    trace = float(total.trace())
    return gram.Largest(gram.eigenvalues(total, shape) if trace and math.isfinite(trace) else np.empty(0), trace)


def _row(wanted: Wanted, values: Array) -> Spectrum:
    """The row of a matrix whose λ are all known, largest first."""
    selection = wanted.selection
    total = float(values.sum())
    share = values / total
    sums = np.cumsum(share)
    present = share[share > 0]
    rank, top, least = present.size, math.sqrt(values[0]), math.sqrt(values[-1])
    return Spectrum(
        **_named(selection),
        singular_values=values.size,
        frobenius=math.sqrt(total),
        sigma_max=top,
        sigma_min=least,
        rank=rank,
        stable_rank=total / float(values[0]),
        entropy=-float((present * np.log(present)).sum()) / math.log(rank) if rank > 1 else math.nan,
        condition=top / least if least else math.inf,
        energy={f"{part:g}": int(np.searchsorted(sums, part)) + 1 for part in ENERGY},
        power_law=power_law(values),
        marchenko_pastur=marchenko_pastur(values, selection.shape),
        shuffled=None if wanted.shuffle is None else _shuffled(selection, values, wanted.shuffle),
    )


def _largest(selection: Selection, found: gram.Largest) -> Spectrum:
    """The row of a matrix of which the largest λ are known."""
    values = found.eigenvalues
    sums = np.cumsum(values) / found.trace
    return Spectrum(
        **_named(selection),
        singular_values=values.size,
        frobenius=math.sqrt(found.trace),
        sigma_max=math.sqrt(values[0]),
        sigma_min=math.nan,
        rank=None,
        stable_rank=found.trace / float(values[0]),
        entropy=math.nan,
        condition=math.nan,
        energy={f"{part:g}": int(np.searchsorted(sums, part)) + 1 if sums[-1] >= part else None for part in ENERGY},
        power_law=None,
        marchenko_pastur=None,
        shuffled=None,
    )


def _named(selection: Selection) -> dict[str, Any]:
    return {
        "address": selection.address,
        "name": selection.name,
        "role": str(selection.role),
        "layer": selection.weight.layer,
        "dtype": selection.dtype.name,
        "shape": selection.shape,
    }


def _shuffled(selection: Selection, values: Array, seed: int) -> Shuffled | None:
    """The same numbers in an order that seed and address say; None where they are too many to hold."""
    if selection.size * selection.dtype.bits > 8 * LARGEST_SHUFFLE * selection.dtype.block:
        return None
    stored = selection.weight.read(selection.region).reshape(-1)
    key = hashlib.sha256(f"{seed}\0{selection.address}".encode()).digest()
    np.random.Generator(np.random.Philox(key=np.frombuffer(key[:16], "<u8"))).shuffle(stored)
    tall = selection.shape[0] >= selection.shape[1]
    total = gram.gram(gram.split(stored.reshape(selection.shape), selection.dtype, tall), min(selection.shape))
    del stored  # the eigenvalues need a copy of the Gram matrix
    others = gram.eigenvalues(total, selection.shape)
    above = int((values > others[0]).sum())
    return Shuffled(math.sqrt(others[0]), above, _jensen_shannon(values / values.sum(), others / others.sum()))


def _jensen_shannon(p: Array, q: Array) -> float:
    """The distance between two distributions, natural logarithms: √((KL(p ‖ m) + KL(q ‖ m)) / 2), m their mean."""
    mean = (p + q) / 2
    both = sum(float((x[x > 0] * np.log(x[x > 0] / mean[x > 0])).sum()) for x in (p, q))
    return math.sqrt(max(both, 0.0) / 2)
