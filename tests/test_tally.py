"""Counting: each compiled loop against its twin in numpy, and both against plain counting and fractions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.by_hand import Array
from weightkit import kernels
from weightkit.analysis import tally

CUTS: dict[str, Callable[[Array], Array]] = {
    "whole": lambda x: x,
    "transposed": lambda x: x.T,
    "rows": lambda x: x[3:90:4],
    "columns": lambda x: x[:, 5:24],
    "every other column": lambda x: x[:, ::2],
    "stacked": lambda x: x.reshape(9, 11, 37)[1:5, 2:9, :31],
    "one": lambda x: x[4, 4],
    "none": lambda x: x[:0],
}


@pytest.fixture(params=["compiled", "numpy"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Which loops count."""
    if request.param == "numpy":
        monkeypatch.setenv("WEIGHTKIT_KERNELS", "numpy")
    monkeypatch.setattr(tally, "FEW", 0)
    kernels.available.cache_clear()
    yield request.param
    kernels.available.cache_clear()


def test_few_numbers_load_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda: pytest.fail("a compiler is loaded"))
    tally.Patterns(2).add(np.zeros(tally.FEW - 1, np.uint16))
    tally.Singles().add(np.zeros(99, np.float32))


def singles() -> Array:
    """Float32 of every kind, [99, 37]."""
    x = (np.random.default_rng(0).standard_normal((99, 37)) * 0.02).astype(np.float32)
    x[0, :8] = np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-41, 3e38
    x.view(np.uint32)[1, 0] = 0x7F80_0001  # a NaN with the upper half of infinity
    return x


def powers(values: Array) -> tuple[int, ...]:
    numbers = [Fraction(float(v)) for v in values.ravel()]
    return tuple(int(sum(x**k for x in numbers) * 2 ** (tally.UNIT * k)) for k in (1, 2, 3, 4))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", ["u1", "<u2"])
def test_patterns(loops: str, kind: str, cut: str) -> None:
    stored = CUTS[cut](np.random.default_rng(1).integers(0, np.iinfo(kind).max, (99, 37), kind, endpoint=True))
    found = tally.Patterns(stored.itemsize)
    found.add(stored)
    found.add(stored[:1] if stored.ndim else stored)
    both = [stored.ravel(), (stored[:1] if stored.ndim else stored).ravel()]
    want = np.unique(np.concatenate(both), return_counts=True)
    assert all(np.array_equal(*pair) for pair in zip(found.found(), want, strict=True))
    assert np.array_equal(found.counts(), np.bincount(np.concatenate(both), minlength=1 << 8 * stored.itemsize))
    assert all(np.array_equal(*pair) for pair in zip(found.found(), want, strict=True))


def test_many_patterns_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "FEW", 0)
    monkeypatch.setattr(tally, "MOST_COUNT", 100)
    found = tally.Patterns(2)
    for _ in range(5):
        found.add(np.zeros(60, np.uint16))
    assert found.counts()[0] == 300


@pytest.mark.parametrize("cut", CUTS)
def test_singles(loops: str, cut: str) -> None:
    x = CUTS[cut](singles())
    found = tally.Singles()
    found.add(x)
    finite = x[np.isfinite(x)].astype(np.float64)
    assert (found.nan, found.inf) == (int(np.isnan(x).sum()), int(np.isinf(x).sum()))
    assert found.zeros == int((finite == 0).sum())
    assert found.subnormals == int(((finite != 0) & (np.abs(finite) < 2.0**-126)).sum())
    assert (found.low, found.high) == (finite.min(initial=np.inf), finite.max(initial=-np.inf))
    keys = tally.key(finite.astype(np.float32))
    assert np.array_equal(found.halves, np.bincount(keys >> 16, minlength=tally.HALF))
    assert found.powers == powers(finite)


@pytest.mark.parametrize("cut", ["whole", "columns", "every other column"])
def test_lower_halves(loops: str, cut: str) -> None:
    x = CUTS[cut](singles())
    uppers = np.unique(tally.key(np.array([0.01, -0.01, 0.0, -1e-41, 3e38], np.float32)) >> 16)
    keys = tally.key(x[np.isfinite(x)])
    want = [np.bincount(keys[keys >> 16 == upper] & 0xFFFF, minlength=tally.HALF) for upper in uppers]
    assert np.array_equal(tally.lower_halves(x, uppers), want)


@pytest.mark.parametrize(
    "values",
    [[1e300, -5e-324, 1.7976931348623157e308, 3.0, -(2.0**-1022)], [2.0**62, -(2.0**63), 1.0], [0.0, -0.0]],
    ids=str,
)
def test_power_sums(values: list[float]) -> None:
    array = np.array(values)
    assert tally.power_sums(array) == powers(array)


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2])
def test_powers_of_a_table(kind: type) -> None:
    array: Array = np.arange(1 << 8 * np.dtype(kind).itemsize).astype(f"u{np.dtype(kind).itemsize}").view(kind)
    numbers = array.astype(np.float32)
    keys = np.unique(tally.key(numbers[np.isfinite(numbers)]))
    counts = np.random.default_rng(0).integers(1, 1 << 62, len(keys))
    counts[::2] = 1
    want = [0, 0, 0, 0]
    for x, count in zip(map(Fraction, tally.unkey(keys).tolist()), counts.tolist(), strict=True):
        want = [n + count * int(x ** (k + 1) * 2 ** (tally.UNIT * (k + 1))) for k, n in enumerate(want)]
    assert tally.table_powers(keys, counts) == tuple(want)
    assert tally.table_powers(keys[:0], counts[:0]) == tally.NO_POWERS


def test_power_sums_of_many() -> None:
    array = np.random.default_rng(2).standard_normal(6000)
    assert tally.power_sums(array) == powers(array)


def test_keys_are_in_order_and_come_back() -> None:
    x = np.sort(singles()[np.isfinite(singles())])
    keys: Any = tally.key(x)
    assert (np.diff(keys.astype(np.int64)) >= 0).all()
    assert np.array_equal(tally.unkey(keys), x)
