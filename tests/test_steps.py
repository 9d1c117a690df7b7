"""The compiled loops between the matrices against their numpy twins and against float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from weightkit import kernels
from weightkit.engine.attention import Scores, attention
from weightkit.engine.cache import Cache
from weightkit.engine.functions import ACTIVATIONS, WORTH, activate, layer_norm, rms_norm, soften, softmax
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
    x = normal(2, max(3, WORTH // n), n) * 20  # so many that numpy does not do it
    x[0, 0, n // 2 :] = -np.inf
    x[0, 0, 0] = 0
    x[1, 2, -1] = np.nan
    wide = x.astype(np.float64)
    e = np.exp(wide - wide.max(axis=-1, keepdims=True))
    got = soften(x.copy())
    np.testing.assert_allclose(got, e / e.sum(axis=-1, keepdims=True), rtol=1e-5, atol=1e-30)
    assert np.isnan(got[1, 2]).all()
    np.testing.assert_allclose(softmax(x), got, rtol=1e-5, atol=1e-30)


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
    few = kernels.turn(x[some], *(table[:5] for table in turn), interleaved=interleaved)
    np.testing.assert_array_equal(few, expected[some])


def by_parts(new: tuple[F32, F32, F32], cache: Cache, place: kernels.Place) -> F32:
    """What `kernels.attend` does, step by step in numpy."""
    q, k, v = new
    if place.turn is not None:
        q, k = (rotate(x, *place.turn, interleaved=place.interleaved) for x in (q, k))
    window = place.at + 1 - place.start if place.start else None
    return attention(q, *cache.extend("layers.0.attn", k, v), Scores(0.3, window)).reshape(len(q), -1)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("sizes", [(64, 64, 32), (80, 48, 20), (20, 7, 0)])
@pytest.mark.parametrize("window", [None, 5])
def test_attention_of_one_token(
    twins: pytest.MonkeyPatch,
    resized: Crew,
    interleaved: bool,
    heads: tuple[int, int],
    sizes: tuple[int, int, int],
    window: int | None,
) -> None:
    d, e, half = sizes
    compiled, plain = Cache(), Cache()
    for at in range(40):
        resized.resize(at % 3 + 1)
        new = normal(2, heads[0], 1, d), normal(2, heads[1], 1, d), normal(2, heads[1], 1, e)
        start = max(0, at + 1 - window) if window else 0
        place = kernels.Place(at, start, angles(1, half) if half else None, interleaved)
        twins.setattr(kernels, "available", lambda: False)
        expected = by_parts(new, plain, place)
        twins.undo()
        got = kernels.attend(new, compiled.room("layers.0.attn", *new[1:]), 0.3, place)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-6)
        for cache in (compiled, plain):
            cache.ids = np.zeros((2, at + 1), np.int64)
    for kept, right in zip(
        compiled.room("layers.0.attn", *new[1:]), plain.room("layers.0.attn", *new[1:]), strict=True
    ):
        np.testing.assert_array_equal(kept[:, :, :40], right[:, :, :40])


def test_what_is_shared_out_does_not_depend_on_threads(resized: Crew) -> None:
    x, w, turn = normal(300, 128), normal(128), angles(300, 16)
    new = normal(1, 8, 1, 64), normal(1, 4, 1, 64), normal(1, 4, 1, 64)
    kept = normal(1, 4, 90, 64), normal(1, 4, 90, 64)
    found = []
    for count in (1, 2, 3):
        resized.resize(count)
        rows = (
            rms_norm(x, w, 1e-5),
            activate(ACTIVATIONS["silu"], x, x),
            kernels.turn(x[None, None], *turn, interleaved=False),
        )
        found.append((*rows, kernels.attend(new, kept, 0.1, kernels.Place(70, 0))))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
