"""Spectra: singular values against numpy's SVD, ranks, what has none, and memory."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightkit as wk
from tests.by_hand import NUMPY, Array, write_file, write_holes
from tests.tiny import CONFIGS, weights, write
from weightkit.analysis import gram, spectrum
from weightkit.analysis.spectrum import Spectra, Spectrum
from weightkit.errors import AddressError
from weightkit.threads import _blas


def opened(folder: Path, **tensors: Array) -> wk.Model:
    return wk.open(write_file(folder / "x.safetensors", tensors))


def row(folder: Path, array: Array, **asked: Any) -> Spectrum:
    (found,) = opened(folder, x=array).spectrum("name:x", **asked).rows
    return found


def singular(array: Array) -> Array:
    return np.linalg.svd(array.astype(np.float64), compute_uv=False)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.RandomState(seed).standard_normal(shape)


def low_rank(rank: int, *shape: int) -> Array:
    return random(shape[0], rank) @ random(rank, shape[1], seed=1)


# ── singular values ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", [(60, 60), (90, 40), (40, 90), (2, 2), (700, 3), (3, 700)])
@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F8_E4M3", "I8"])
def test_singular_values_are_those_of_the_svd(tmp_path: Path, dtype: str, shape: tuple[int, int]) -> None:
    array = (random(*shape) * (30 if dtype == "I8" else 0.1)).astype(NUMPY[dtype])
    model, want = opened(tmp_path, x=array), singular(array)
    assert model.singular_values("name:x") == pytest.approx(want, rel=1e-9)
    (found,) = model.spectrum().rows
    share = want**2 / (want**2).sum()
    assert found.singular_values == found.rank == want.size
    assert (found.sigma_max, found.sigma_min) == pytest.approx((want[0], want[-1]), rel=1e-9)
    assert found.frobenius == pytest.approx(np.linalg.norm(array.astype(np.float64)), rel=1e-12)
    assert found.stable_rank == pytest.approx(1 / share[0], rel=1e-10)
    assert found.entropy == pytest.approx(-(share * np.log(share)).sum() / np.log(want.size), rel=1e-10)
    assert found.condition == pytest.approx(want[0] / want[-1], rel=1e-9)
    for part, count in found.energy.items():
        assert count == next(k for k in range(1, want.size + 1) if share[:k].sum() >= float(part))


@pytest.mark.parametrize(("piece", "chunk", "strip"), [(1, 1, 1), (100, 64, 7), (1 << 24, 50, 16)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_however_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, piece: int, chunk: int, strip: int
) -> None:
    """gpt2 has Q, K and V in one tensor, stored [in, out]; the cuts go through all of them."""
    model = wk.open(write(tmp_path, family))
    want = model.spectrum(shuffle=1).rows
    for name, value in (("PIECE", piece), ("CHUNK", chunk), ("STRIP", strip)):
        monkeypatch.setattr(gram, name, value)
    for found, before in zip(model.spectrum(shuffle=1).rows, want, strict=True):
        assert found.rank == before.rank
        assert (found.sigma_max, found.entropy) == pytest.approx((before.sigma_max, before.entropy), rel=1e-10)
        assert found.shuffled is not None
        assert before.shuffled is not None
        assert found.shuffled.sigma_max == pytest.approx(before.shuffled.sigma_max, rel=1e-10)


def test_fused_matrices_are_taken_apart(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path, "gpt2"))
    fused = weights(CONFIGS["gpt2"])["transformer.h.1.attn.c_attn.weight"]
    for place, letter in enumerate("qkv"):
        want = singular(fused[:, 48 * place : 48 * (place + 1)])
        assert model.singular_values(f"layers.1.attn.{letter}") == pytest.approx(want, rel=1e-8)


def test_heads_and_parts(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path))
    stored = weights(CONFIGS["llama"])
    heads = model.spectrum("layers.1.attn", by_head=True).rows
    want = [f"layers.1.attn.{w}[{a}={i}]" for w, a, n in (("q", "head", 4), ("k", "kv_head", 2)) for i in range(n)]
    want += [f"layers.1.attn.v[kv_head={i}]" for i in range(2)] + [f"layers.1.attn.o[head={i}]" for i in range(4)]
    assert [found.address for found in heads] == want
    for found in heads:
        (alone,) = model.spectrum(found.address).rows
        assert alone == found
    o = singular(stored["model.layers.1.self_attn.o_proj.weight"][:, 36:])
    assert heads[-1].sigma_max == pytest.approx(o[0], rel=1e-10)
    up = stored["model.layers.0.mlp.up_proj.weight"][3:70:9, ::5]
    assert model.singular_values("layers.0.ffn.up[3:70:9, ::5]") == pytest.approx(singular(up), rel=1e-8)
    assert [r.address for r in model.spectrum("embed", by_head=True).rows] == ["embed"]


@settings(deadline=None, max_examples=30)
@given(rank=st.integers(1, 30), rows=st.integers(30, 80), columns=st.integers(30, 80))
def test_rank(tmp_path_factory: pytest.TempPathFactory, rank: int, rows: int, columns: int) -> None:
    array = low_rank(rank, rows, columns)
    found = row(tmp_path_factory.mktemp("x"), array)
    assert found.rank == rank == np.linalg.matrix_rank(array)
    assert found.energy["0.99"] is not None
    assert found.energy["0.99"] <= rank
    deficient = rank < min(rows, columns)
    assert (found.sigma_min == 0, math.isinf(found.condition)) == (deficient, deficient)
    assert math.isnan(found.entropy) is (rank == 1)


@pytest.mark.parametrize("size", [2, 30, 100])
def test_orthogonal(tmp_path: Path, size: int) -> None:
    """All directions are equal, and no power law is read out of rounding."""
    found = row(tmp_path, np.linalg.qr(random(size, size))[0] * 3)
    assert (found.sigma_max, found.stable_rank, found.entropy, found.condition) == pytest.approx((3, size, 1, 1))
    assert found.power_law is None
    assert found.rank == size


# ── the largest matrices ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", [(900, 600), (600, 900)])
@pytest.mark.parametrize("kind", ["random", "decaying", "low rank"])
def test_largest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, shape: tuple[int, int]) -> None:
    array = random(*shape)
    if kind == "decaying":
        array = array * np.arange(1, shape[1] + 1) ** -0.7
    if kind == "low rank":
        array = low_rank(5, *shape)
    model = opened(tmp_path, x=array.astype(np.float32))
    want = singular(array.astype(np.float32))
    (every,) = model.spectrum().rows
    monkeypatch.setattr(spectrum, "LARGEST_SIDE", 599)
    (found,) = model.spectrum(shuffle=1).rows
    assert model.spectrum(full=True).rows == [every]
    assert (found.singular_values, found.rank, found.power_law, found.marchenko_pastur) == (16, None, None, None)
    assert (found.sigma_max, found.frobenius, found.stable_rank) == pytest.approx(
        (want[0], every.frobenius, every.stable_rank), rel=1e-4
    )
    assert math.isnan(found.condition)
    assert found.energy["0.5"] in (None, every.energy["0.5"])
    got = gram.largest(lambda: gram.chunks(model.select("name:x")[0]), 600).eigenvalues
    assert np.sqrt(got) == pytest.approx(want[:16], rel=2e-3, abs=1e-3 * want[0])


# ── what has no spectrum ───────────────────────────────────────────────────────────────────────────

NONE: dict[str, tuple[Array, str]] = {
    "vector": (np.ones(5, np.float32), "a vector"),
    "number": (np.ones((), np.float32), "a vector"),
    "row": (np.ones((1, 9), np.float32), "a vector"),
    "empty": (np.ones((0, 9), np.float32), "empty"),
    "stack": (np.ones((3, 4, 5), np.float32), "3 axes: no matrix"),
    "NaN": (np.full((4, 4), np.nan, np.float32), "has NaN or Inf"),
    "one Inf": (np.array([[1, 2], [np.inf, 3]], np.float32), "has NaN or Inf"),
    "zeros": (np.zeros((5, 6), np.float32), "all zeros"),
    "bool zeros": (np.zeros((5, 6), np.bool_), "all zeros"),
    "huge": (np.full((3, 3), 1e200), "too large to be squared"),
    "tiny": (np.full((3, 3), 1e-200), "too small to be squared"),
    "complex": (np.ones((3, 3), np.complex64), "complex"),
}


@pytest.mark.parametrize("case", NONE)
@pytest.mark.parametrize("largest", [False, True])
def test_why_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, largest: bool) -> None:
    array, reason = NONE[case]
    model = opened(tmp_path, x=array, good=random(4, 4))
    if largest:
        monkeypatch.setattr(spectrum, "LARGEST_SIDE", 1)
    found = model.spectrum()
    assert [r.address for r in found.rows] == ["name:good"]
    (skipped,) = found.skipped
    assert skipped.address == "name:x"
    assert reason in skipped.reason
    assert list(found.frame().address) == ["name:good"]
    with pytest.raises(AddressError, match=f"name:x: has no singular values: .*{reason}"):
        model.singular_values("name:x")


def test_integers_and_truths_are_numbers(tmp_path: Path) -> None:
    array = np.random.RandomState(0).randint(0, 2, (30, 25))
    for kind in (np.bool_, np.int64, np.uint8):
        assert row(tmp_path, array.astype(kind)).sigma_max == pytest.approx(singular(array)[0])


def test_a_constant(tmp_path: Path) -> None:
    found = row(tmp_path, np.full((40, 30), -0.5, np.float32))
    assert found.rank == 1
    assert (found.stable_rank, found.sigma_max) == pytest.approx((1, 0.5 * math.sqrt(1200)))
    assert (found.power_law, found.marchenko_pastur) == (None, None)


# ── memory, threads, tables ────────────────────────────────────────────────────────────────────────


def test_any_executor(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path))
    want = model.spectrum(shuffle=0)
    with ThreadPoolExecutor(8) as eight, ThreadPoolExecutor(1) as one:
        assert model.spectrum(shuffle=0, executor=eight) == want
        assert model.spectrum(shuffle=0, executor=one) == want


def test_frame(tmp_path: Path) -> None:
    found = wk.open(write(tmp_path)).spectrum(shuffle=0)
    frame = found.frame()
    assert {"address", "stable_rank", "energy.0.9", "power_law.alpha", "shuffled.above"} <= set(frame)
    assert list(frame["energy.0.9"]) == [r.energy["0.9"] for r in found.rows]
    assert {field.name for field in dataclasses.fields(Spectrum)} == {str(c).split(".")[0] for c in frame}
    assert Spectra([], []).frame().empty


def test_memory_is_shared() -> None:
    room, most, now, lock = gram.Room(100), 0, 0, threading.Lock()

    def work(size: int) -> None:
        nonlocal most, now
        with room.take(size):
            with lock:
                now += min(size, 100)
                most = max(most, now)
            time.sleep(0.001)
            with lock:
                now -= min(size, 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [30, 60, 1000, 10, 50, 50] * 20))
    assert 0 < most <= 100


def test_blas_has_one_thread_and_then_its_own_again(tmp_path: Path) -> None:
    def threads() -> list[int]:
        return [pool["num_threads"] for pool in _blas().info() if pool["user_api"] == "blas"]

    before, during = threads(), list[int]()
    model = opened(tmp_path, x=random(9, 9), y=random(9, 9))
    model.spectrum(progress=lambda *_: during.extend(threads()))
    assert set(during) <= {1}
    assert threads() == before


def test_a_large_matrix_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No chunk of a sparse embedding of 2 GB is large."""
    path = write_holes(tmp_path / "x.safetensors", {"x": (250_000, 4_000)}, "BF16", 2)
    (selection,) = wk.open(path).select("name:x")
    sizes = [chunk.shape for chunk, _ in zip(gram.chunks(selection), range(9), strict=False)]
    assert {width for _, width in sizes} == {4_000}
    assert max(rows for rows, _ in sizes) * 4_000 <= gram.CHUNK
