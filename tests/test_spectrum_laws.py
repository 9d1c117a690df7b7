"""Laws of spectra: power law and Marchenko–Pastur against WeightWatcher and their integrals; shuffled matrices."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.by_hand import Array
from tests.test_spectrum import low_rank, opened, random, row, singular
from weightkit.analysis import spectrum
from weightkit.analysis.marchenko_pastur import law_cdf, law_median, marchenko_pastur
from weightkit.analysis.power_law import power_law
from weightkit.analysis.spectrum import Shuffled


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
