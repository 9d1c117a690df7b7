"""Differences: the compiled loop against numpy, line by line, for every type, layout and shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import weightkit as wk
from tests.by_hand import NUMPY, Array, write_file
from tests.tiny import CONFIGS, weights, write
from weightkit import kernels
from weightkit.analysis import differences
from weightkit.analysis.differences import Differences
from weightkit.analysis.same import same_numbers, same_place
from weightkit.weight import Weight

PAIRS = [("F32", "F32"), ("BF16", "BF16"), ("F16", "F16"), ("F8_E4M3", "F8_E4M3"), ("F8_E5M2", "F8_E5M2"),
         ("F32", "BF16"), ("BF16", "F16"), ("F8_E4M3", "F32")]  # fmt: skip


def random(seed: int, dtype: str, shape: tuple[int, ...]) -> Array:
    """Random numbers of a type, with what is rare: NaN, infinities, zeros of both signs."""
    generator = np.random.default_rng(seed)
    array = generator.standard_normal(shape)
    array[generator.random(shape) < 0.02] = -0.0
    for special in (np.nan, 0.0, *((np.inf, -np.inf) if dtype != "F8_E4M3" else ())):
        array[generator.random(shape) < 0.02] = special
    return array.astype(NUMPY[dtype])


def both(monkeypatch: pytest.MonkeyPatch, a: Weight, b: Weight) -> tuple[Differences, Differences]:
    """What the compiled loop finds, and numpy."""
    monkeypatch.setattr(differences, "FEW", 0)
    compiled = Differences.of(a, b)
    monkeypatch.setattr(kernels, "available", lambda: False)
    return compiled, Differences.of(a, b)


def same(compiled: Differences, by_numpy: Differences) -> None:
    assert compiled.axis == by_numpy.axis
    np.testing.assert_allclose(compiled.table, by_numpy.table, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(7, 37), (1, 8), (5, 3), (300, 64)])
@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_the_loop_finds_what_numpy_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: str, other: str, shape: tuple[int, int]
) -> None:
    a, b = random(1, one, shape), random(2, other, shape)
    a[0, :2] = b[0, :2].astype(a.dtype)
    models = [wk.open(write_file(tmp_path / f"{n}.safetensors", {"x": x})) for n, x in (("a", a), ("b", b))]
    compiled, by_numpy = both(monkeypatch, *(m.registry["name:x"] for m in models))
    same(compiled, by_numpy)
    assert len(compiled.table) == shape[0]


@pytest.mark.parametrize("address", ["layers.1.attn.k", "layers.0.ffn.down", "embed"])
def test_transposed_and_fused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    a, b = (wk.open(write(tmp_path / str(seed), "gpt2", seed=seed)).registry[address] for seed in (1, 2))
    compiled, by_numpy = both(monkeypatch, a, b)
    same(compiled, by_numpy)
    assert compiled.axis == (0 if address == "embed" else 1)  # Conv1D: the file has columns one after another
    x, y = (w.array().astype(np.float64) for w in (a, b))
    np.testing.assert_allclose(compiled.dd, np.square(y - x).sum(axis=1 - compiled.axis))


def test_steps_between_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = np.array([[1.0, -1.0, 0.0, -0.0, 1e-45, 2.0]], np.float32)
    b = np.nextafter(a, np.float32(9))
    b[0, 2:] = [-0.0, 0.0, -1e-45, -2.0]
    models = [wk.open(write_file(tmp_path / f"{n}.safetensors", {"x": x})) for n, x in (("a", a), ("b", b))]
    for found in both(monkeypatch, *(m.registry["name:x"] for m in models)):
        assert found.total("steps") == 2 * 0x40000000  # from 2 through 0 to -2
        assert found.total("steps_sum") == 1 + 1 + 0 + 0 + 2 + 2 * 0x40000000
        assert found.total("differ") == 6


def test_the_same_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = write(tmp_path / "a")
    (tmp_path / "link").mkdir()
    for file in a.iterdir():
        (tmp_path / "link" / file.name).hardlink_to(file)
    one, other = wk.open(a), wk.open(tmp_path / "link")
    monkeypatch.setattr("weightkit.analysis.same.rows_on_map", None)  # what reads
    monkeypatch.setattr("weightkit.tensor.Tensor.read", None)
    assert same_place(one.registry["norm"], other.registry["norm"])
    assert wk.diff(one, other).identical


def test_one_bit_anywhere_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightkit.analysis.same.CHUNK", 1 << 9)
    monkeypatch.setattr("weightkit.analysis.same.KEPT", 1 << 11)
    tensors = weights(CONFIGS["llama"])
    a = wk.open(write(tmp_path / "a", tensors=tensors))
    assert same_numbers(a.registry["embed"], wk.open(write(tmp_path / "same", tensors=tensors)).registry["embed"])
    for place in (0, 4000, 4655):
        embed = tensors["model.embed_tokens.weight"].copy()
        embed.view(np.uint32).reshape(-1)[place] ^= 1
        path = write(tmp_path / str(place), tensors=tensors | {"model.embed_tokens.weight": embed})
        assert not same_numbers(a.registry["embed"], wk.open(path).registry["embed"])
