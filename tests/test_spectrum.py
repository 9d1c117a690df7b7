"""Spectra: singular values against numpy's SVD, fits against WeightWatcher's, laws against their integrals."""

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
from weightkit.analysis.marchenko_pastur import law_cdf, law_median, marchenko_pastur
from weightkit.analysis.power_law import power_law
from weightkit.analysis.spectrum import Shuffled, Spectra, Spectrum
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


def test_the_values_of_weightwatcher(tmp_path: Path) -> None:
    np.random.seed(123)
    law = power_law(np.random.pareto(2.5, 100))
    assert law is not None
    assert (law.alpha, law.distance, law.xmin) == pytest.approx((2.535777, 0.070437, 0.432972), abs=5e-7)
    found = row(tmp_path, np.random.default_rng(0).standard_normal((300, 100)))
    assert (found.stable_rank, found.entropy) == pytest.approx((41.127319, 0.963547), abs=5e-7)


MATRICES: dict[str, Array] = {
    "gaussian": random(300, 100, seed=7) * 0.05,
    "student": np.random.RandomState(8).standard_t(2.5, (200, 80)) * 0.02,
    "spiked": random(96, 96, seed=9) * 0.1 + 3 * np.outer(random(96, seed=10), random(96, seed=11)) / 96,
    "wide": random(64, 256, seed=12) * np.linspace(0.01, 0.3, 256),
}
# By `WeightWatcher(model).analyze(mp_fit=True)` 0.7.7 of torch.nn.Linear with these weights in float32.
WATCHED: dict[str, dict[str, float]] = {
    "gaussian": {
        "alpha": 4.832806302,
        "D": 0.152602292,
        "xmin": 0.978782508,
        "sigma": 0.69977149,
        "num_pl_spikes": 30,
        "stable_rank": 42.972383281,
        "entropy": 0.963230969,
        "matrix_rank": 100,
        "sv_max": 1.309844361,
        "sv_min": 0.371150286,
        "bulk_max": 1.781788999,
        "num_spikes": 0,
        "mp_softrank": 1.038524828,
    },
    "student": {
        "alpha": 3.044758065,
        "D": 0.07896412,
        "xmin": 0.498069613,
        "sigma": 0.457221803,
        "num_pl_spikes": 20,
        "stable_rank": 11.856566488,
        "entropy": 0.905558824,
        "matrix_rank": 80,
        "sv_max": 1.59838714,
        "sv_min": 0.195371351,
        "bulk_max": 0.753043191,
        "num_spikes": 7,
        "mp_softrank": 0.294751438,
    },
    "spiked": {
        "alpha": 4.476774463,
        "D": 0.083097181,
        "xmin": 2.485936249,
        "sigma": 1.048286943,
        "num_pl_spikes": 11,
        "stable_rank": 10.332348867,
        "entropy": 0.869192072,
        "matrix_rank": 96,
        "sv_max": 3.103109766,
        "sv_min": 0.000325817,
        "bulk_max": 4.178967663,
        "num_spikes": 1,
        "mp_softrank": 0.433985015,
    },
    "wide": {
        "alpha": 15.960679082,
        "D": 0.144808344,
        "xmin": 17.246725188,
        "sigma": 6.690619083,
        "num_pl_spikes": 5,
        "stable_rank": 24.44147187,
        "entropy": 0.953242976,
        "matrix_rank": 64,
        "sv_max": 4.550431136,
        "sv_min": 1.231345011,
        "bulk_max": 15.70944636,
        "num_spikes": 4,
        "mp_softrank": 0.758675024,
    },
}


@pytest.mark.parametrize("name", MATRICES)
def test_as_weightwatcher(tmp_path: Path, name: str) -> None:
    found, want = row(tmp_path, MATRICES[name].astype(np.float32)), WATCHED[name]
    law, random = found.power_law, found.marchenko_pastur
    assert law is not None
    assert random is not None
    assert law.alpha == pytest.approx(want["alpha"], abs=1e-6)
    assert (law.distance, law.xmin, law.error) == pytest.approx((want["D"], want["xmin"], want["sigma"]), rel=1e-6)
    assert law.tail == want["num_pl_spikes"]
    assert (found.stable_rank, found.entropy) == pytest.approx((want["stable_rank"], want["entropy"]), rel=1e-7)
    assert (found.sigma_max, found.sigma_min) == pytest.approx((want["sv_max"], want["sv_min"]), rel=1e-6)
    assert found.rank == want["matrix_rank"]
    if name in ("gaussian", "spiked"):  # a random bulk, of which WeightWatcher fits a smoothed density
        assert random.edge_max == pytest.approx(want["bulk_max"], rel=0.05)
        assert random.spikes == want["num_spikes"]
        assert random.soft_rank == pytest.approx(want["mp_softrank"], rel=0.05)


# ── power law ──────────────────────────────────────────────────────────────────────────────────────


def by_the_book(x: Array) -> tuple[float, float, float]:
    """alpha, D and xmin: Clauset, Shalizi and Newman, 2009, tail by tail."""
    x, found = np.sort(x), []
    for start, low in enumerate(x[:-1]):
        tail = x[start:]
        alpha = 1 + tail.size / np.log(tail / low).sum()
        below = np.arange(tail.size) / tail.size
        found.append((np.abs(1 - (tail / low) ** (1 - alpha) - below).max(), alpha, low))
    distance, alpha, low = min(found)
    return alpha, distance, low


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(20, 200), shape=st.floats(0.5, 6))
def test_power_law_by_the_book(seed: int, size: int, shape: float) -> None:
    x = np.random.RandomState(seed).pareto(shape, size) + 0.01
    law = power_law(x)
    assert law is not None
    assert (law.alpha, law.distance, law.xmin) == pytest.approx(by_the_book(x), rel=1e-9)
    assert law.tail == (x >= law.xmin).sum()


def test_no_power_law() -> None:
    x = np.random.RandomState(0).pareto(2, 19) + 1
    assert power_law(x) is None
    assert power_law(np.append(x, 2.0)) is not None
    assert power_law(np.append(x, [1e-6] * 9)) is None  # as good as 0
    assert power_law(np.full(50, 2.5)) is None


# ── Marchenko–Pastur ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ratio", [0.001, 0.1, 0.5, 0.97, 1.0])
def test_law_is_the_integral_of_its_density(ratio: float) -> None:
    low, high = ((1 + sign * math.sqrt(ratio)) ** 2 for sign in (-1, 1))
    angle = (np.arange(400_000) + 0.5) * math.pi / 400_000  # x = low … high, close together at the ends
    x = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
    density = np.sqrt((high - x) * (x - low)) / (2 * math.pi * ratio * x)
    share = np.cumsum(density * (high - low) / 2 * np.sin(angle)) * math.pi / 400_000
    assert share[-1] == pytest.approx(1, abs=1e-5)
    assert law_cdf(x, ratio) == pytest.approx(share, abs=2e-5)
    assert law_cdf(np.array([low / 2, high * 2]), ratio) == pytest.approx([0, 1], abs=1e-9)
    assert law_cdf(np.array([law_median(ratio)]), ratio) == pytest.approx([0.5], abs=1e-9)


@pytest.mark.parametrize("shape", [(400, 100), (100, 400), (200, 200), (900, 30)])
@pytest.mark.parametrize("spikes", [0, 3])
def test_random_bulk_and_spikes(shape: tuple[int, int], spikes: int) -> None:
    plain = random(*shape, seed=3) * 0.02
    planted = low_rank(3, *shape) * 0.02 if spikes else 0.0
    law = marchenko_pastur(singular(plain + planted) ** 2, shape)
    assert law is not None
    assert law.spikes == spikes
    assert law.sigma == pytest.approx(0.02, rel=0.05)
    edges = [(0.02 * (math.sqrt(max(shape)) + sign * math.sqrt(min(shape)))) ** 2 for sign in (-1, 1)]
    assert [law.edge_min, law.edge_max] == pytest.approx(edges, rel=0.1, abs=1e-9)
    assert law.distance < (0.05 if min(shape) >= 100 else 0.15)
    assert (law.soft_rank > 0.9) is (spikes == 0)


def test_structure_is_far_from_random() -> None:
    law = marchenko_pastur(np.geomspace(1e-3, 1e3, 100), (100, 100))
    assert law is not None
    assert law.distance > 0.2
    assert marchenko_pastur(singular(low_rank(20, 100, 50)).round(9) ** 2, (100, 50)) is None  # a median of 0


# ── the same numbers in another order ──────────────────────────────────────────────────────────────


def test_shuffled(tmp_path: Path) -> None:
    array = low_rank(2, 120, 80) + random(120, 80, seed=4)
    model = opened(tmp_path, x=array, y=random(120, 80, seed=5))
    structured, noise = (found.shuffled for found in model.spectrum(shuffle=3).rows)
    assert structured is not None
    assert noise is not None
    assert structured.above == 2
    assert structured.distance > 2 * noise.distance
    assert structured.sigma_max == pytest.approx(array.std() * (math.sqrt(120) + math.sqrt(80)), rel=0.05)
    assert model.spectrum(shuffle=3) == model.spectrum(shuffle=3)
    assert model.spectrum(shuffle=4) != model.spectrum(shuffle=3)
    assert model.spectrum("name:y", shuffle=3).rows[0].shuffled == noise  # whatever else is computed
    assert model.spectrum("name:y").rows[0].shuffled is None
    same = opened(tmp_path, x=array, y=array).spectrum(shuffle=3).rows
    assert same[0].shuffled != same[1].shuffled  # each in an order of its own


def test_shuffling_keeps_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix of equal numbers is as it was; one that is too large to hold has no comparison."""
    found = row(tmp_path, np.full((30, 20), 0.5, np.float32), shuffle=0)
    assert found.shuffled == Shuffled(pytest.approx(found.sigma_max), 0, pytest.approx(0, abs=1e-7))  # type: ignore[arg-type]
    monkeypatch.setattr(spectrum, "LARGEST_SHUFFLE", 30 * 20 * 4 - 1)
    assert row(tmp_path, np.full((30, 20), 0.5, np.float32), shuffle=0).shuffled is None


def test_distance_is_scipys() -> None:
    """0.0949… is scipy's, and WeightWatcher's, of these two."""
    p, q = np.arange(1.0, 6), np.array([2.0, 2, 2, 4, 5])
    assert spectrum._jensen_shannon(p / 15, q / 15) == pytest.approx(0.09496957487336706, rel=1e-12)
    assert spectrum._jensen_shannon(np.array([1.0, 0]), np.array([0.0, 1])) == pytest.approx(math.sqrt(math.log(2)))


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
