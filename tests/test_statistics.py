"""Statistics: every field against numpy and math.fsum, in every type."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.by_hand import NUMPY
from tests.exactly import FLOATS, REAL, lower_quantiles, random, row, same
from weightkit.analysis.statistics import QUANTILES

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.mark.parametrize("dtype", REAL)
def test_random_numbers(tmp_path: Path, dtype: str) -> None:
    array = random(dtype)
    found = row(tmp_path, array)
    same(found, array)
    assert (found.dtype, found.shape, found.name, found.role) == (dtype, (5000,), "x", "other")
    values = array.astype(np.float64)
    as_float32 = values.astype(np.float32)
    assert found.exact is (np.dtype(NUMPY[dtype]).itemsize <= 2 or bool((as_float32 == values).all()))
    want = lower_quantiles(array) if found.exact else lower_quantiles(as_float32)
    assert list(found.quantiles.values()) == want
    assert list(found.quantiles) == [f"{q:g}" for q in QUANTILES]


SPECIAL: dict[str, list[float]] = {
    "empty": [],
    "one": [-1.5],
    "constant": [0.1] * 1000,
    "zeros of both signs": [0.0, -0.0, -0.0],
    "only negative zero": [-0.0],
    "all NaN": [math.nan] * 7,
    "all Inf": [math.inf, -math.inf],
    "everything": [1.0, math.nan, -2.0, math.inf, -0.0, 0.0, -math.inf, math.nan, 0.25, 3.0],
    "two": [-1.0, 2.0],
}
ONLY_NAN = ("F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2FNUZ")  # infinities become NaN in these


@pytest.mark.parametrize("dtype", [d for d in FLOATS if d != "F8_E8M0"])
@pytest.mark.parametrize("case", SPECIAL)
def test_special_numbers(tmp_path: Path, dtype: str, case: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ml_dtypes warns of what is meant here
        array = np.array(SPECIAL[case], np.float64).astype(NUMPY[dtype])
    found = row(tmp_path, array)
    same(found, array)
    if found.exact:
        assert list(found.quantiles.values()) == pytest.approx(lower_quantiles(array), rel=0, abs=0, nan_ok=True)
    if case.startswith(("zeros", "only")):
        assert math.copysign(1, found.min) == math.copysign(1, found.max) == 1.0


@pytest.mark.parametrize("dtype", [d for d in REAL if d[0] in "IU" or d == "BOOL"])
@pytest.mark.parametrize("values", [[], [1], [1] * 9, [0, 1, 0, 0], None], ids=str)
def test_whole_numbers(tmp_path: Path, dtype: str, values: list[int] | None) -> None:
    kind = NUMPY[dtype]
    if values is None:  # the ends of the type
        values = [0, 1] if dtype == "BOOL" else [np.iinfo(kind).min, 0, np.iinfo(kind).max]
    array = np.array(values, kind)
    found = row(tmp_path, array)
    if dtype in ("I64", "U64") and len(values) == 3:  # float64 holds their ends to the rounding
        assert (found.min, found.max) == (float(values[0]), float(values[2]))
    else:
        same(found, array)


@pytest.mark.parametrize("dtype", REAL)
def test_distinct_values_and_their_entropy(tmp_path: Path, dtype: str) -> None:
    array = random(dtype, 3000)
    array[:2] = np.array([0.0, -0.0]).astype(NUMPY[dtype])
    found = row(tmp_path, array)
    values, counts = np.unique(array.astype(np.float64), return_counts=True)
    if NUMPY[dtype] is not np.bool_ and np.dtype(NUMPY[dtype]).itemsize > 2:
        assert (found.distinct, found.entropy) == (None, None)
        return
    counts = counts[np.isfinite(values)]
    share = counts / counts.sum()
    assert found.distinct == len(counts)
    assert found.entropy == pytest.approx(-math.fsum(share * np.log2(share)), rel=1e-12)


@pytest.mark.parametrize("value", [0.1, 1e-3, -7.77, 1e30, 3e-39])
def test_equal_numbers_have_no_spread(tmp_path: Path, value: float) -> None:
    found = row(tmp_path, np.full(30_001, value, np.float32))
    assert found.std <= 1e-7 * abs(value)
    assert math.isnan(found.skewness)
    assert math.isnan(found.kurtosis)


@pytest.mark.parametrize("dtype", ["F64", "F32"])
def test_huge_and_tiny_numbers(tmp_path: Path, dtype: str) -> None:
    top = float(np.finfo(NUMPY[dtype]).max)
    array = np.array([top, -top, top, np.finfo(NUMPY[dtype]).smallest_subnormal], NUMPY[dtype])
    with np.errstate(all="ignore"):
        want = np.mean(array / 4.0) * 4.0
    found = row(tmp_path, array)  # and no warning: those are errors here
    assert (found.min, found.max, found.abs_max, found.zeros) == (-top, top, top, 0)
    assert found.mean == pytest.approx(want)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 999, 1000, 1001, 2001])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_quantiles_at_any_length(tmp_path: Path, dtype: str, size: int) -> None:
    array = random(dtype, size, seed=size)
    assert list(row(tmp_path, array).quantiles.values()) == lower_quantiles(array)
