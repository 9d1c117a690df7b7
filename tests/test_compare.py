"""Diff: the numbers against numpy, and what counts as the same."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightkit as wk
from tests.by_hand import NUMPY, Array, bits, f32, shrink_blocks, write_file
from tests.tiny import CONFIGS, FAMILIES, weights, write
from weightkit.analysis.compare import Changed, Diff


def pair(folder: Path, a: Array, b: Array) -> Diff:
    """The diff of two files with one tensor each."""
    files = [write_file(folder / f"{n}.safetensors", {"x": array}) for n, array in (("a", a), ("b", b))]
    return wk.diff(*map(wk.open, files))


def only(found: Diff) -> Changed:
    (row,) = found.changed
    return row


def expected(a: Array, b: Array) -> dict[str, float]:
    """The numbers of a row, over pairs of finite values."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    differ = (bits(a) != bits(b)).ravel() if a.dtype == b.dtype else (x != y) & ~(np.isnan(x) & np.isnan(y))
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    norm_x, norm_y, l2 = (math.sqrt(math.fsum(v * v)) for v in (x, y, y - x))
    both = norm_x * norm_y
    return {
        "l2": l2,
        "relative_l2": l2 / norm_x if norm_x else math.nan,
        "max_abs": np.abs(y - x).max(initial=0.0),
        "cosine": math.fsum(x * y) / both if both else math.nan,
        "changed_fraction": differ.mean(),
    }


def same(row: Changed, a: Array, b: Array) -> None:
    want = expected(a, b)
    assert {name: getattr(row, name) for name in want} == pytest.approx(want, rel=1e-9, nan_ok=True)


def random(dtype: str, seed: int, size: int = 3000) -> Array:
    generator = np.random.default_rng(seed)
    if dtype[0] in "IU":
        return generator.integers(0, 100, size).astype(NUMPY[dtype])
    return generator.standard_normal(size).astype(NUMPY[dtype])


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8", "I64", "U16"])
def test_numbers(tmp_path: Path, dtype: str) -> None:
    a, b = random(dtype, 1), random(dtype, 2)
    b[::3] = a[::3]
    row = only(pair(tmp_path, a, b))
    same(row, a, b)
    assert (row.address, row.name, row.dtypes, row.shapes) == ("name:x", "x", (dtype, dtype), ((3000,), (3000,)))


@pytest.mark.parametrize("most", [1, 7, 100])
def test_small_blocks_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    a, b = random("F32", 1, 600).reshape(20, 30), random("F32", 2, 600).reshape(20, 30)
    shrink_blocks(monkeypatch, most)
    same(only(pair(tmp_path, a, b)), a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1, 2], [0, 0]),
        ([0, 0], [1, 2]),
        ([1, np.nan, 3], [1, 5, 4]),
        ([1, np.inf, 3], [1, 5, 3]),
        ([1, 5, 3], [2, np.inf, 3]),
        ([1, 5, 3], [2, np.nan, 3]),
        ([np.nan], [0]),
        ([0.0], [-0.0]),  # other bits, so not the same, though the values are equal
        ([3e38, 1], [-3e38, 1]),
        ([np.inf], [-np.inf]),
    ],
)
def test_special_numbers(tmp_path: Path, a: list[float], b: list[float]) -> None:
    x, y = f32(*a), f32(*b)
    same(only(pair(tmp_path, x, y)), x, y)


def test_huge_numbers(tmp_path: Path) -> None:
    row = only(pair(tmp_path, np.array([1e300, 1.0]), np.array([-1e300, 1.0])))  # without a warning
    assert row.max_abs == 2e300
    assert row.changed_fraction == 0.5


@pytest.mark.parametrize("values", [[np.nan, 1], [np.nan, np.inf, -0.0], [], [[1, 2], [3, 4]]])
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_same_bits_are_the_same(tmp_path: Path, values: Any, dtype: str) -> None:
    a = np.array(values, np.float64).astype(NUMPY[dtype])
    found = pair(tmp_path, a, a.copy())
    assert (found.identical, found.changed, found.unchanged) == (True, [], 1)


def test_another_nan_is_another_number(tmp_path: Path) -> None:
    a, b = (np.array([bits_, 0x3F800000], np.uint32).view(np.float32) for bits_ in (0x7FC00000, 0x7FC00001))
    assert only(pair(tmp_path, a, b)).changed_fraction == 0.5


def test_same_values_in_another_type(tmp_path: Path) -> None:
    a = np.array([1, -2.5, 0, np.nan, np.inf], ml_dtypes.bfloat16)
    row = only(pair(tmp_path, a, a.astype(np.float32)))
    assert row.changed_fraction == row.l2 == row.max_abs == 0
    assert row.cosine == pytest.approx(1)
    assert row.dtypes == ("BF16", "F32")


def test_other_values_in_another_type(tmp_path: Path) -> None:
    a = random("F32", 1)
    b = a.astype(np.float16)
    same(only(pair(tmp_path, a, b)), a, b)


def test_another_shape(tmp_path: Path) -> None:
    row = only(pair(tmp_path, np.ones((2, 3), np.float32), np.ones((3, 2), np.float32)))
    assert row.shapes == ((2, 3), (3, 2))
    assert all(math.isnan(n) for n in (row.l2, row.relative_l2, row.max_abs, row.cosine, row.changed_fraction))


def test_what_only_one_has(tmp_path: Path) -> None:
    a = write_file(tmp_path / "a.safetensors", {"x": np.ones(3, np.int8), "y": np.ones(2, np.int8)})
    b = write_file(tmp_path / "b.safetensors", {"z[1]": np.ones(2, np.int8), "x": np.ones(3, np.int8)})
    found = wk.diff(wk.open(a), wk.open(b))
    assert (found.only_a, found.only_b, found.unchanged, found.changed) == (["name:y"], ["name:z[1]"], 1, [])
    assert not found.identical


# ── whole models ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", FAMILIES)
def test_copies_are_identical(tmp_path: Path, family: str) -> None:
    one, many = write(tmp_path / "1", family), write(tmp_path / "4", family, shards=4)
    copy = shutil.copytree(one, tmp_path / "copy")
    model = wk.open(one)
    for other in (one, many, copy):
        found = wk.diff(model, wk.open(other))
        assert found.identical
        assert found.unchanged == len(model.registry.unique())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_differs(tmp_path: Path, family: str) -> None:
    a, b = (wk.open(write(tmp_path / str(seed), family, seed=seed)) for seed in (1, 2))
    found = wk.diff(a, b)
    assert [row.address for row in found.changed] == [w.address for w in a.registry.unique()]
    assert found.unchanged == 0
    for row in found.changed[:4]:
        x, y = a.registry[row.address].array(), b.registry[row.address].array()
        same(row, x, y)


def test_fused_differs_in_its_parts(tmp_path: Path) -> None:
    tensors = weights(CONFIGS["gpt2"])
    fused = tensors["transformer.h.1.attn.c_attn.weight"].copy()
    fused[5, 48 + 3] += 1  # k, row 3
    a = wk.open(write(tmp_path / "a", "gpt2"))
    b = wk.open(write(tmp_path / "b", "gpt2", tensors=tensors | {"transformer.h.1.attn.c_attn.weight": fused}))
    row = only(wk.diff(a, b))
    assert (row.address, row.changed_fraction) == ("layers.1.attn.k", 1 / 48**2)


def test_prefixes_do_not_matter_where_addresses_are_known(tmp_path: Path) -> None:
    bare = {name.removeprefix("transformer."): array for name, array in weights(CONFIGS["gpt2"]).items()}
    a, b = write(tmp_path / "a", "gpt2"), write(tmp_path / "b", "gpt2", tensors=bare)
    assert wk.diff(wk.open(a), wk.open(b)).identical


def test_models_without_roles_are_compared_by_name(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b", model_type="unheard_of")
    found = wk.diff(wk.open(a), wk.open(b))
    assert (found.changed, found.only_a, found.only_b) == ([], [], [])
    assert found.unchanged == len(weights(CONFIGS["llama"]))


def test_tied_against_untied(tmp_path: Path) -> None:
    tensors = weights(CONFIGS["llama"])
    equal = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    tied_tensors = {name: array for name, array in tensors.items() if name != "lm_head.weight"}
    tied = wk.open(write(tmp_path / "tied", tensors=tied_tensors, tie_word_embeddings=True))
    same_head = wk.diff(tied, wk.open(write(tmp_path / "equal", tensors=equal)))
    assert (same_head.changed, same_head.only_a, same_head.only_b) == ([], [], [])
    assert same_head.config == {"tied": (True, False)}
    other_head = wk.diff(tied, wk.open(write(tmp_path / "other", tensors=tensors)))
    row = only(other_head)
    assert row.address == "lm_head"
    same(row, tensors["model.embed_tokens.weight"], tensors["lm_head.weight"])


def test_a_config_that_computes_something_else(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b", rope_theta=5e5)
    found = wk.diff(wk.open(a), wk.open(b))
    assert found.changed == []
    assert not found.identical
    assert found.config == {"rope.theta": (1e4, 5e5)}


def test_a_config_that_says_the_same_in_other_words(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    a, b = write(tmp_path / "a"), write(tmp_path / "b", rope_theta=None, rope_parameters=rope)
    assert wk.diff(wk.open(a), wk.open(b)).identical


def test_frame(tmp_path: Path) -> None:
    frame = pair(tmp_path, np.ones(3, np.float32), np.zeros(3, np.float32)).frame()
    assert list(frame.columns)[:7] == [
        "address", "name", "l2", "relative_l2", "max_abs", "cosine", "changed_fraction",
    ]  # fmt: skip
    assert list(frame.l2) == pytest.approx([math.sqrt(3)])


def test_an_edit_differs_where_it_was_made(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path, "gpt2", shards=3))
    edited = model.apply(wk.zero("layers.1.ffn[neuron=7]"))
    found = wk.diff(model, edited)
    assert [row.address for row in found.changed] == [
        "layers.1.ffn.up", "layers.1.ffn.up.bias", "layers.1.ffn.down",
    ]  # fmt: skip
    assert [row.changed_fraction for row in found.changed] == [1 / 192, 1 / 192, 1 / 192]
    assert wk.diff(edited, edited).identical
    assert wk.diff(model, model.apply()).identical


# ── real checkpoints ───────────────────────────────────────────────────────────────────────────────


def test_two_versions_of_one_model(shared: Path) -> None:
    found = wk.diff(*(wk.open(shared / "models" / f"cappgpt-{v}") for v in ("v1", "v2")))
    assert (found.unchanged, found.only_a, found.only_b, found.config) == (0, [], [], {})
    squares = sum(row.l2**2 for row in found.changed)
    base = sum((row.l2 / row.relative_l2) ** 2 for row in found.changed if row.relative_l2 > 0)
    assert math.sqrt(squares / base) == pytest.approx(0.155, abs=0.002)


def test_shards_of_a_real_model(shared: Path) -> None:
    whole, shards, half = (
        wk.open(shared / "models" / name)
        for name in ("stories260K", "stories260K-formats/st-sharded", "stories260K-formats/st-bf16")
    )
    assert wk.diff(whole, shards).identical
    cast = wk.diff(whole, half)
    assert {row.dtypes for row in cast.changed} == {("F32", "BF16")}
    assert all(row.relative_l2 < 2**-8 for row in cast.changed)
