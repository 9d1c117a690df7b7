"""The compiled loops between the matrices against their numpy twins and against float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from weightkit import kernels, steps
from weightkit.engine.functions import ACTIVATIONS, activate, layer_norm, rms_norm, softmax
from weightkit.engine.positions import rotate
from weightkit.threads import Crew, crew

F32 = NDArray[np.float32]
random = np.random.default_rng(0)
FAR = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 90, -90, 88.5, -88.5, 1e-30, 0, -0.0], np.float32)


@pytest.fixture
def resized() -> Iterator[Crew]:
    size = crew.size
    yield crew
    crew.resize(size)


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Numpy does the work; `undo` brings the compiled loops back."""
    monkeypatch.setattr(kernels, "available", lambda: False)
    return monkeypatch


def normal(*shape: int) -> F32:
    return random.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 1, 64), (1, 2, 3, 77), (700, 96)])
def test_norms(shape: tuple[int, ...]) -> None:
    x, w, b = normal(*shape) * 3 + 1, normal(shape[-1]), normal(shape[-1])
    wide = x.astype(np.float64)
    rms = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + 1e-3) * w
    np.testing.assert_allclose(rms_norm(x, w, 1e-3), rms, rtol=2e-6)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    layer = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-3) * w + b
    np.testing.assert_allclose(layer_norm(x, w, b, 1e-3), layer, rtol=2e-6, atol=2e-6)


def test_norms_of_heads_that_do_not_lie_together(twins: pytest.MonkeyPatch) -> None:
    x, w = normal(1, 5, 3, 64).swapaxes(1, 2), normal(64)
    expected = rms_norm(x, w, 1e-6)
    twins.undo()
    np.testing.assert_allclose(rms_norm(x, w, 1e-6), expected, rtol=2e-6)


@pytest.mark.parametrize("name", ["silu", "gelu_new", "quick_gelu"])
@pytest.mark.parametrize("numbers", [5, 64, 40_001])
def test_activations(twins: pytest.MonkeyPatch, name: str, numbers: int) -> None:
    function = ACTIVATIONS[name]
    x, up = normal(1, numbers) * 10, normal(1, numbers)
    expected = activate(function, x), activate(function, x, up)
    twins.undo()
    np.testing.assert_allclose(activate(function, x), expected[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(activate(function, x, up), expected[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["silu", "gelu_new", "quick_gelu"])
def test_activations_of_numbers_far_off(twins: pytest.MonkeyPatch, name: str) -> None:
    function, x = ACTIVATIONS[name], np.tile(FAR, 4)
    with np.errstate(all="ignore"):
        expected = activate(function, x)
    twins.undo()
    np.testing.assert_allclose(activate(function, x), expected, rtol=2e-5, atol=1e-35)


@pytest.mark.parametrize("n", [1, 31, 32, 500])
def test_softmax(n: int) -> None:
    x = normal(2, 5, n) * 20
    x[0, 0, n // 2 :] = -np.inf
    x[0, 0, 0] = 0
    x[1, 2, -1] = np.nan
    wide = x.astype(np.float64)
    e = np.exp(wide - wide.max(axis=-1, keepdims=True))
    got = x.copy()
    steps.soften(got)
    np.testing.assert_allclose(got, e / e.sum(axis=-1, keepdims=True), rtol=1e-5, atol=1e-30)
    assert np.isnan(got[1, 2]).all()
    np.testing.assert_allclose(softmax(x), got, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("window", [None, 1, 40, 1000])
@pytest.mark.parametrize(("t", "n", "seen"), [(70, 100, 31), (70, 70, 1), (3, 5, 5), (33, 90, 40)])
def test_softmax_of_what_a_query_sees(t: int, n: int, seen: int, window: int | None) -> None:
    x = normal(2, 3, t, n) * 5
    stop = np.minimum(n, seen + np.arange(t))[:, None]
    place = np.arange(n)
    hidden = (place >= stop) | (place < stop - (window or n))
    expected = softmax(np.where(hidden, np.float32(-np.inf), x))
    steps.soften(x, seen, window)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-7)
    assert not x[:, :, hidden].any()


def angles(tokens: int, half: int) -> tuple[F32, F32]:
    turns = random.uniform(0, 9, (tokens, half))
    return np.cos(turns).astype(np.float32), np.sin(turns).astype(np.float32)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("d", "half"), [(64, 32), (80, 40), (96, 16), (7, 0)])
def test_rotation(twins: pytest.MonkeyPatch, d: int, half: int, interleaved: bool) -> None:
    x, turn = normal(2, 700, 7, d).swapaxes(1, 2), angles(700, half)
    expected = rotate(x, *turn, interleaved=interleaved)
    twins.undo()
    np.testing.assert_array_equal(rotate(x, *turn, interleaved=interleaved), expected)
    some = slice(2), slice(1, 3), slice(5)
    few = steps.turned(x[some], *(table[:5] for table in turn), interleaved=interleaved)
    np.testing.assert_array_equal(few, expected[some])


def test_what_is_shared_out_does_not_depend_on_threads(resized: Crew) -> None:
    x, w, turn = normal(300, 128), normal(128), angles(300, 16)
    found = []
    for count in (1, 2, 3):
        resized.resize(count)
        activated = activate(ACTIVATIONS["silu"], x, x)
        found.append((rms_norm(x, w, 1e-5), activated, steps.turned(x[None, None], *turn, interleaved=False)))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rows", [1, 3, 300])
def test_sums(rows: int) -> None:
    x, row, more = normal(rows, 100), normal(100), normal(rows, 100)
    y = np.empty_like(x)
    crew.run(steps.sum_of(x, row, y, -0.5))
    np.testing.assert_allclose(y, x - 0.5 * row.astype(np.float64), rtol=1e-6, atol=1e-7)
    crew.run(steps.sum_of(y, more, y))
    np.testing.assert_allclose(y, x - 0.5 * row.astype(np.float64) + more, rtol=1e-5, atol=1e-6)
    crew.run(steps.copy(row, y))
    np.testing.assert_array_equal(y, np.broadcast_to(row, x.shape))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_jobs_written_down_are_done_one_after_another(resized: Crew, threads: int) -> None:
    resized.resize(threads)
    x, one = np.zeros((2000, 64), np.float32), np.ones(64, np.float32)
    jobs = [steps.sum_of(x, one, x), steps.sum_of(x, x, x), steps.sum_of(x[:1], one, x[:1], 0.5)]
    for _ in range(20):
        x[:] = 3
        crew.run_all(np.stack([job.written() for job in jobs * 5]))
        expected = np.full_like(x, 3)
        for _ in range(5):
            expected = (expected + 1) * 2
            expected[0] += 0.5
        np.testing.assert_array_equal(x, expected)
