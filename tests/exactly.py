"""Statistics as numpy and math.fsum have them, and arrays to ask for them of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightkit as wk
from tests.by_hand import NUMPY, Array, write_file
from weightkit.analysis.statistics import QUANTILES, Statistics

REAL = [name for name in NUMPY if name != "C64"]
FLOATS = [name for name in REAL if name[0] in "FB" and name != "BOOL"]


def opened(folder: Path, array: Array) -> wk.Model:
    return wk.open(write_file(folder / "x.safetensors", {"x": array}))


def row(folder: Path, array: Array) -> Statistics:
    (found,) = opened(folder, array).statistics("name:x")
    return found


def expected(array: Array) -> dict[str, float]:
    """The fields of a row from exact sums (math.fsum rounds once), of the finite values."""
    values = array.astype(np.float64).ravel()
    finite = values[np.isfinite(values)]
    result: dict[str, float] = {
        "count": values.size,
        "nan": int(np.isnan(values).sum()),
        "inf": int(np.isinf(values).sum()),
        "zeros": int((values == 0).sum()),
    }
    n = finite.size
    if not n:
        none = ("mean", "std", "min", "max", "abs_max", "l2", "skewness", "kurtosis")
        return result | dict.fromkeys(none, math.nan)
    mean = math.fsum(finite) / n
    m2, m3, m4 = (math.fsum((finite - mean) ** k) / n for k in (2, 3, 4))
    result |= {"mean": mean, "std": math.sqrt(m2), "min": finite.min(), "max": finite.max()}
    result |= {"abs_max": np.abs(finite).max(), "l2": math.sqrt(math.fsum(finite**2))}
    flat = finite.min() == finite.max()
    result |= {"subnormals": int(((np.abs(finite) < smallest_normal(array.dtype)) & (finite != 0)).sum())}
    return result | {"skewness": math.nan if flat else m3 / m2**1.5, "kurtosis": math.nan if flat else m4 / m2**2 - 3}


def smallest_normal(kind: Any) -> float:
    """The smallest normal number of a type; 0 of one of whole numbers."""
    return float(ml_dtypes.finfo(kind).smallest_normal) if ml_dtypes_float(kind) else 0.0


def ml_dtypes_float(kind: Any) -> bool:
    return np.dtype(kind).kind in "fV"  # V: the types of ml_dtypes


def same(found: Statistics, array: Array) -> None:
    want = expected(array)
    got = {name: getattr(found, name) for name in want}
    sums = ("mean", "std", "l2", "skewness", "kurtosis")
    assert {k: v for k, v in got.items() if k not in sums} == pytest.approx(
        {k: v for k, v in want.items() if k not in sums}, rel=0, abs=0, nan_ok=True
    )
    assert {k: got[k] for k in sums} == pytest.approx({k: want[k] for k in sums}, rel=1e-10, abs=1e-12, nan_ok=True)


def lower_quantiles(array: Array) -> list[float]:
    values = array.astype(np.float64).ravel()
    finite = values[np.isfinite(values)]
    if not finite.size:
        return [math.nan] * len(QUANTILES)
    return [float(np.quantile(finite, q, method="lower")) for q in QUANTILES]


def random(dtype: str, size: int = 5000, seed: int = 0) -> Array:
    """Random numbers that suit a type."""
    generator = np.random.default_rng(seed)
    kind = NUMPY[dtype]
    if dtype == "F8_E8M0":  # powers of two only
        return generator.integers(0, 255, size).astype(np.uint8).view(kind)
    if dtype == "BOOL":
        return generator.random(size) < 0.3
    if dtype[0] in "IU":
        info = np.iinfo(kind)
        return generator.integers(max(info.min, -(2**30)), min(info.max, 2**30), size).astype(kind)
    return (generator.standard_normal(size) * 0.7 + 0.1).astype(kind)
