"""Odd tensors through every verb that analyses: a clear result or one clear line, and never a warning."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.by_hand import Array, write_file
from tests.conftest import Cli
from tests.tiny import CONFIGS, weights, write

TYPES = [
    np.float32, np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2,
    np.int8, np.uint8, np.int64, np.bool_,
]  # fmt: skip
ODD: dict[str, Array] = {
    "random": np.random.default_rng(0).uniform(0, 100, (30, 40)),
    "zero": np.zeros((30, 40)),
    "constant": np.ones((30, 40)),
    "one": np.ones((1, 1)),
    "row": np.ones((1, 40)),
    "scalar": np.ones(()),
    "empty": np.zeros((0, 40)),
    "narrow": np.zeros((40, 0)),
    "vector": np.arange(5.0),
    "three": np.ones((2, 3, 4)),
}
NOT_FINITE = {
    "nan": np.full((30, 40), np.nan),
    "inf": np.full((30, 40), -np.inf),
    "mixed": np.diag([np.nan, 1, np.inf]),
}
VERBS = [
    ("stats",), ("stats", "--by", "layer"), ("spectrum",), ("spectrum", "--shuffle", "1"), ("outliers",),
]  # fmt: skip
MODEL_VERBS = [
    *VERBS, ("spectrum", "--heads"), ("circuits",),
    ("vocabulary", "embed[token=3]"), ("vocabulary", "layers.0.ffn[neuron=1]"), ("vocabulary", "layers.0.attn[head=1]"),
]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.__name__)
def test_files_of_odd_tensors(cli: Cli, tmp_path: Path, dtype: type, verb: tuple[str, ...]) -> None:
    whole = np.dtype(dtype).kind in "iub"
    tensors: dict[str, Array] = {name: x.astype(dtype) for name, x in (ODD if whole else ODD | NOT_FINITE).items()}
    path = write_file(tmp_path / "x.safetensors", tensors)
    done = cli(verb[0], path, *verb[1:], "--json")
    assert done.code == 0
    assert done.json["rows"]
    assert cli(verb[0], path, *verb[1:]).code == 0


@pytest.mark.parametrize("verb", MODEL_VERBS, ids=" ".join)
@pytest.mark.parametrize("number", [0.0, 1.0, np.nan, np.inf], ids=str)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_models_of_one_number(cli: Cli, tmp_path: Path, number: float, dtype: str, verb: tuple[str, ...]) -> None:
    tensors = weights(CONFIGS["llama"])
    for x in tensors.values():
        x[:] = number
    path = write(tmp_path / "m", tensors=tensors, dtype=dtype)
    done = cli(verb[0], path, *verb[1:], "--json")
    assert done.code == 0
    assert done.json["schema"] == f"weightkit.{verb[0]}/1"
    assert cli(verb[0], path, *verb[1:]).code == 0
