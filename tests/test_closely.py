"""One weight closely: its histogram, the numbers farthest from the mean, the norms of its lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.by_hand import f32, shrink_blocks
from tests.exactly import opened, random


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F8_E4M3", "I8", "BOOL"])
@pytest.mark.parametrize("bins", [1, 10, 32])
def test_histogram(tmp_path: Path, dtype: str, bins: int) -> None:
    array = random(dtype)
    histogram = opened(tmp_path, array).look("name:x", bins).histogram
    values = array.astype(np.float64)
    assert histogram.edges == np.linspace(values.min(), values.max(), bins + 1).tolist()
    assert histogram.counts == np.histogram(values, histogram.edges)[0].tolist()
    assert sum(histogram.counts) == array.size


def test_histogram_of_odd_things(tmp_path: Path) -> None:
    nothing = opened(tmp_path, np.full(3, np.nan, np.float32)).look("name:x")
    assert (nothing.histogram.counts, nothing.outliers) == ([], [])
    constant = opened(tmp_path, np.full(9, 2.5, np.float32)).look("name:x")
    assert (sum(constant.histogram.counts), constant.outliers) == (9, [])
    mixed = opened(tmp_path, f32(1, np.nan, 2, -np.inf, 5)).look("name:x")
    assert sum(mixed.histogram.counts) == 3


@pytest.mark.parametrize("value", [1e300, 1e17])
def test_histogram_of_large_equal_numbers(tmp_path: Path, value: float) -> None:
    assert sum(opened(tmp_path, np.full(4, value)).look("name:x").histogram.counts) == 4


@pytest.mark.parametrize("index", ["", "[1:40:3, 2:]"])
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16"])
def test_outliers(tmp_path: Path, dtype: str, index: str) -> None:
    array = random(dtype, 2000).reshape(50, 40)
    array[3, 7], array[31, 20], array[0, 0] = np.nan, 40, -60
    found = opened(tmp_path, array).look("name:x" + index).outliers
    values = array.astype(np.float64)
    part = values[1:40:3, 2:] if index else values
    mean, std = np.nanmean(part), np.nanstd(part)
    distance = np.full(values.shape, -1.0)
    region = np.s_[1:40:3, 2:] if index else np.s_[:]
    distance[region] = np.nan_to_num(np.abs(part - mean), nan=-1)
    top = [np.unravel_index(i, values.shape) for i in np.argsort(-distance, axis=None, kind="stable")[:5]]
    assert [o.coordinate for o in found] == [(int(i), int(j)) for i, j in top]
    assert [o.value for o in found] == [values[place] for place in top]
    assert [o.z for o in found] == pytest.approx([(values[place] - mean) / std for place in top], rel=1e-9)


@pytest.mark.parametrize("index", ["", "[1:40:3, 2:]"])
@pytest.mark.parametrize("dtype", ["F64", "BF16", "I8"])
def test_norms_of_rows_and_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, index: str) -> None:
    array = random(dtype, 2000).reshape(50, 40)
    shrink_blocks(monkeypatch, 64)
    look = opened(tmp_path, array).look("name:x" + index)
    part = array.astype(np.float64)[1:40:3, 2:] if index else array.astype(np.float64)
    for found, axis, start, step in ((look.rows, 1, 1, 3), (look.columns, 0, 2, 1)):
        want = np.sqrt((part**2).sum(axis=axis))
        assert found is not None
        assert (found.min, found.median, found.max) == pytest.approx((want.min(), np.median(want), want.max()))
        top = np.argsort(-want, kind="stable")[:5]
        assert [norm for _, norm in found.largest] == pytest.approx(want[top])
        if dtype != "I8":  # where norms are equal
            assert [i for i, _ in found.largest] == [start * bool(index) + int(i) * (step if index else 1) for i in top]


def test_norms_of_huge_and_tiny_numbers_and_of_vectors(tmp_path: Path) -> None:
    look = opened(tmp_path, np.array([[1e300, 1e300], [1.0, np.nan]])).look("name:x")
    assert look.rows is not None
    assert look.rows.max == pytest.approx(2**0.5 * 1e300)
    tiny = opened(tmp_path, np.full((3, 4), 1e-200)).look("name:x")
    assert tiny.rows is not None
    assert tiny.rows.median == pytest.approx(2e-200)
    vector = opened(tmp_path, f32(1, 2)).look("name:x")
    assert (vector.rows, vector.columns) == (None, None)
