"""Noise: keyed by seed, weight and place, so the same bytes whatever else runs and however it is cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import weightkit as wk
from tests.by_hand import NUMPY, Array, rounded, shrink_blocks, write_file
from tests.tiny import CONFIGS, weights, write
from weightkit.kernels import Moments
from weightkit.surgery.edits import gaussian
from weightkit.tensor import Region, region_shape, whole


def drawn(model: wk.Model, address: str, **kind: float) -> Array:
    """What noise adds to a float64 weight of zeros."""
    found: Array = model.apply(wk.noise(address, **kind)).registry["name:x"].stored.mapped()  # type: ignore[arg-type]
    return found


def zeros(folder: Path, *shape: int) -> wk.Model:
    return wk.open(write_file(folder / "x.safetensors", {"x": np.zeros(shape)}))


def test_mean_and_deviation(tmp_path: Path) -> None:
    noise = drawn(zeros(tmp_path, 1000, 700), "name:x", std=0.5, seed=1).ravel()
    n = noise.size
    assert abs(noise.mean()) < 5 * 0.5 / np.sqrt(n)
    assert noise.std() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(2 * n))
    assert abs((noise**3).mean()) < 5 * np.sqrt(15 / n) * 0.125
    assert ((noise / 0.5) ** 4).mean() == pytest.approx(3, abs=5 * np.sqrt(96 / n))
    assert len(np.unique(noise)) == n  # no cell is drawn twice


SHAPES = [(600, 300), (300, 700), (5, 1000), (1000, 3), (1, 70_000), (2000, 1), (130_000,), (3, 300, 5), (2, 2, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_neighbours_are_independent(shape: tuple[int, ...]) -> None:
    noise = gaussian(3, "embed", shape, whole(shape))
    assert noise.shape == shape
    flat = noise.ravel()
    assert len(np.unique(flat)) == flat.size
    bound = 5 / np.sqrt(flat.size / 2)
    assert abs(flat.mean()) < bound
    for lag in (1, shape[-1], 256):
        if lag < flat.size // 2:
            assert abs(np.corrcoef(flat[lag:], flat[:-lag])[0, 1]) < bound


def random_region(generator: np.random.Generator, shape: tuple[int, ...]) -> Region:
    slices = []
    for n in shape:
        start, stop = sorted(generator.choice(n + 1, 2, replace=False)) if n > 1 else (0, 1)
        slices.append(slice(int(start), int(stop), int(generator.integers(1, 4))))
    return tuple(slices)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_region_is_that_region_of_the_whole(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    full = gaussian(3, "embed", shape, whole(shape))
    for _ in range(20):
        region = random_region(generator, shape)
        part = gaussian(3, "embed", shape, region)
        assert part.shape == region_shape(region)
        assert np.array_equal(part, full[region])


@pytest.mark.parametrize("index", ["[3]", "[10:290:7, 5:]", "[:, 17]", "[299, 299]", "[255:257, 255:257]"])
def test_edit_of_a_region(tmp_path: Path, index: str) -> None:
    model = zeros(tmp_path, 300, 300)
    everything = drawn(model, "name:x", std=1.0, seed=4)
    part = drawn(model, "name:x" + index, std=1.0, seed=4)
    touched = part != 0
    assert touched.any()
    assert np.array_equal(part[touched], everything[touched])
    (selection,) = model.select("name:x" + index)
    assert touched.sum() == selection.size


def test_relative_to_the_whole_weight(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((300, 300)) * 3 + 1
    x[7] *= 100  # a head of its own size: the unit is the weight's, not the row's
    model = wk.open(write_file(tmp_path / "x.safetensors", {"x": x}))
    added = drawn(model, "name:x", relative_std=0.01, seed=5) - x
    unit = drawn(zeros(tmp_path, 300, 300), "name:x", std=1.0, seed=5)
    assert np.allclose(added, unit * 0.01 * x.std(), rtol=1e-6, atol=1e-12)
    row = drawn(wk.open(tmp_path / "x.safetensors"), "name:x[7]", std=1.0, seed=5)
    assert np.array_equal(row[7], unit[7])


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_rounded_once(tmp_path: Path, dtype: str) -> None:
    model = wk.open(write(tmp_path, dtype=dtype))
    before = weights(CONFIGS["llama"])["model.layers.1.mlp.up_proj.weight"].astype(NUMPY[dtype])
    edited = model.apply(wk.noise("layers.1.ffn.up", std=0.3, seed=8))
    exact = before.astype(np.float64) + 0.3 * gaussian(8, "layers.1.ffn.up", (80, 48), whole((80, 48)))
    found = edited.registry["layers.1.ffn.up"].stored.mapped()
    assert found.tobytes() == rounded(exact, dtype).tobytes()


def raw(model: wk.Model, address: str) -> bytes:
    weight = model.registry[address]
    return weight.read(whole(weight.shape)).tobytes()


def test_the_same_whatever_else_is_edited(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path / "1", "gpt2"))
    edit = wk.noise("layers.1.attn.k", relative_std=0.1, seed=7)
    alone = raw(model.apply(edit), "layers.1.attn.k")
    others = [
        wk.noise("layers.*.ffn", std=1.0, seed=7),
        wk.zero("layers.1.attn.q"),
        wk.noise("layers.1.attn.v", std=1.0),
    ]
    assert raw(model.apply(*others, edit), "layers.1.attn.k") == alone
    assert raw(model.apply(edit, *others), "layers.1.attn.k") == alone
    wider = model.apply(wk.noise("layers", relative_std=0.1, seed=7))
    assert raw(wider, "layers.1.attn.k") == alone
    sharded = wk.open(write(tmp_path / "5", "gpt2", shards=5))
    assert raw(sharded.apply(edit), "layers.1.attn.k") == alone


def test_keyed_by_seed_and_weight(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path))

    def noise(address: str, seed: int) -> Array:
        edited = model.apply(wk.noise(address, std=1.0, seed=seed))
        found: Array = edited.registry[address].array() - model.registry[address].array()
        return found

    first = noise("layers.0.attn.k", 1)
    assert np.array_equal(first, noise("layers.0.attn.k", 1))
    for other in (noise("layers.0.attn.k", 2), noise("layers.1.attn.k", 1), noise("layers.0.attn.v", 1)):
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(first.size)


def test_an_alias_is_the_same_weight(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path))
    first, second, third = (
        raw(model.apply(wk.noise(address, std=1.0, seed=3)), "layers.0.attn.q")
        for address in ("layers.0.attn.q", "blocks.0.self_attn.W_Q", "name:model.layers.0.self_attn.q_proj.weight")
    )
    assert first == second == third


def test_noise_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((300, 40)).astype(np.float32)
    model = wk.open(write_file(tmp_path / "x.safetensors", {"x": x}))
    want = drawn(model, "name:x", std=0.1, seed=2).tobytes()
    shrink_blocks(monkeypatch, 1000)
    assert drawn(model, "name:x", std=0.1, seed=2).tobytes() == want


def test_no_noise_is_no_change(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path))
    assert wk.diff(model, model.apply(wk.noise("layers", std=0.0), wk.noise("embed", relative_std=0))).identical


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
def test_nothing_to_add_noise_to(tmp_path: Path, shape: tuple[int, ...]) -> None:
    model = wk.open(write_file(tmp_path / "x.safetensors", {"x": np.zeros(shape)}))
    assert model.apply(wk.noise("name:x", std=1.0)).registry["name:x"].stored.mapped().shape == shape


@settings(deadline=None, max_examples=100)
@given(x=arrays.arrays(np.float64, st.integers(1, 50), elements=st.floats(-1e3, 1e3)), cut=st.integers(0, 50))
def test_the_deviation_adds_up_over_blocks(x: Array, cut: int) -> None:
    both = Moments.of(x[:cut]) + Moments.of(x[cut:])
    d = x - x.mean()
    assert both.count == x.size
    assert both.mean == pytest.approx(x.mean(), abs=1e-9)
    assert both.m2 == pytest.approx(float((d**2).sum()), abs=1e-9 * (float((d**2).sum()) + 1e-6))
