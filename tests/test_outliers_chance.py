"""Outliers and chance: random matrices of any tail have none, and what is far beyond the tail is found in each."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightkit as wk
from tests.by_hand import Array, write_file
from tests.tiny import CONFIGS, FAMILIES, weights, write
from weightkit.analysis.isolated import BELOW, LEVEL, MOST, isolated

Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]
LAWS: dict[str, Draw] = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "laplace": lambda random, shape: random.laplace(size=shape),
    "student 3": lambda random, shape: random.standard_t(3, shape),
    "student 4": lambda random, shape: random.standard_t(4, shape),
    "student 5": lambda random, shape: random.standard_t(5, shape),
    "log-normal": lambda random, shape: random.lognormal(size=shape),
}
SHAPES = [(20, 20), (64, 64), (33, 1500), (1500, 33), (256, 100), (600, 700)]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["F32", "BF16"])
@pytest.mark.parametrize("law", LAWS)
def test_random_matrices_have_nothing_strange(tmp_path: Path, law: str, dtype: type) -> None:
    random = np.random.default_rng(7)
    shapes = [shape for shape in SHAPES for _ in range(8)]
    tensors: dict[str, Array] = {f"x{i}": LAWS[law](random, shape).astype(dtype) for i, shape in enumerate(shapes)}
    assert wk.open(write_file(tmp_path / "x.safetensors", tensors)).outliers() == []


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_random_models_have_nothing_strange(tmp_path: Path, family: str, law: str) -> None:
    random = np.random.default_rng(11)
    tensors = weights(CONFIGS[family])
    for array in tensors.values():
        if array.ndim > 1:
            array[:] = 0.2 * LAWS[law](random, array.shape)
    assert wk.open(write(tmp_path / "m", family, tensors=tensors)).outliers() == []


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["F32", "BF16"])
@pytest.mark.parametrize("law", ["normal", "laplace", "student 4", "student 5"])
def test_a_few_numbers_far_beyond_the_tail_are_found(tmp_path: Path, law: str, dtype: type) -> None:
    x = LAWS[law](np.random.default_rng(3), (300, 400))
    largest = np.abs(x).max()
    x[5, 6], x[250, 3] = 20 * largest, -18 * largest
    found = wk.open(write_file(tmp_path / "x.safetensors", {"x": x.astype(dtype)})).outliers()
    assert [(f.kind, f.address) for f in found] == [
        ("large weight", "name:x[5, 6]"),
        ("large weight", "name:x[250, 3]"),
    ]


def test_gaps_are_as_likely_as_is_said() -> None:
    """With a tail that is a power law, for which the test is exact: too often, and too rarely, would both show."""
    random = np.random.default_rng(5)
    count, trials, asked = 2000, 4000, 0.002  # tests that make the level of each question 1 in 20
    said = 0
    for _ in range(trials):
        sizes = np.sort(random.pareto(3.0, count) + 1)[::-1][: MOST + BELOW + 1]
        said += isolated(sizes, count, asked) > 0
    level = LEVEL / asked / MOST  # of each number that may stand apart
    expected = 1 - (1 - level) ** MOST
    assert said / trials == pytest.approx(expected, abs=4 * math.sqrt(expected / trials))


@pytest.mark.parametrize("sizes", [[1.0] * 200, [3.0] + [2.0] * 40 + [1.0] * 160, [0.0] * 200, [5.0] * 4, []])
def test_sizes_that_repeat_do_not_stand_apart(sizes: list[float]) -> None:
    assert isolated(np.array(sizes), 10 * len(sizes), 1) == 0


def test_small_rows_of_small_matrices_are_no_dead_neurons(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((40_000, 2)).astype(np.float32)
    assert wk.open(write_file(tmp_path / "x.safetensors", {"x": x, "y": x.T.copy()})).outliers() == []


def test_trained_matrices_that_only_look_initial_are_told_apart(tmp_path: Path) -> None:
    """One of the std and the distribution that training begins with, but for rows that differ more than by chance."""
    random = np.random.default_rng(0)
    x = random.standard_normal((120, 100))
    scaled = x * (1 + 0.15 * random.standard_normal((120, 1)))
    for name, array, kinds in (("plain", x, ["initial"]), ("trained", scaled, [])):
        changes: dict[str, Any] = {"hidden_size": 100, "intermediate_size": 120, "head_dim": 12}
        changes["initializer_range"] = 0.02
        tensors = weights(CONFIGS["llama"] | changes)
        tensors["model.layers.1.mlp.gate_proj.weight"] = (array / array.std() * 0.02).astype(np.float32)
        model = wk.open(write(tmp_path / name, tensors=tensors, **changes))
        assert [f.kind for f in model.outliers("layers.1.ffn.gate")] == kinds
