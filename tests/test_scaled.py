"""Analysis of FP8 weights with scales: of the numbers they stand for, against float64 numpy."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import weightkit as wk
from tests import tiny

BLOCK = 16
Numbers = dict[str, NDArray[np.float64]]


@pytest.fixture
def scaled(tmp_path: Path) -> tuple[wk.Model, Numbers]:
    """A model whose projections are FP8 with a scale for every block, and the numbers that they stand for by name."""
    random = np.random.default_rng(1)
    stored: dict[str, tuple[str, NDArray[np.generic]]] = {}
    numbers: Numbers = {}
    for name, array in tiny.weights(tiny.CONFIGS["llama"]).items():
        if "proj" not in name:
            stored[name], numbers[name] = ("F32", array.astype(np.float32)), array.astype(np.float64)
            continue
        q = (20 * array).astype(ml_dtypes.float8_e4m3fn)
        scale = random.uniform(0.5, 2, [-(-size // BLOCK) for size in array.shape]).astype(np.float32)
        spread = np.kron(scale, np.ones((BLOCK, BLOCK)))[: array.shape[0], : array.shape[1]]
        numbers[name] = (q.astype(np.float32) * spread.astype(np.float32)).astype(np.float64)
        stored |= {name: ("F8_E4M3", q.view(np.uint8)), f"{name}_scale_inv": ("F32", scale)}
    settings = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    folder = tiny.write(tmp_path / "m", quantization_config=settings)
    header, end = {}, 0
    for name, (dtype, array) in stored.items():
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    raw = json.dumps(header).encode()
    body = b"".join(array.tobytes() for _, array in stored.values())
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + body)
    return wk.open(folder), numbers


def test_statistics(scaled: tuple[wk.Model, Numbers]) -> None:
    model, numbers = scaled
    rows = list(model.statistics())
    assert {row.name for row in rows} == set(numbers)
    for row in rows:
        x = numbers[row.name]
        assert (row.count, row.min, row.max, row.zeros) == (x.size, x.min(), x.max(), (x == 0).sum())
        assert (row.mean, row.std) == pytest.approx((x.mean(), x.std()), rel=1e-10, abs=1e-13)


def test_spectra(scaled: tuple[wk.Model, Numbers]) -> None:
    model, numbers = scaled
    for row in model.spectrum().rows:
        values = np.linalg.svd(numbers[row.name], compute_uv=False)
        assert (row.sigma_max, row.sigma_min) == pytest.approx((values[0], values[-1]), rel=1e-9)
