"""Rotary positions, attention and the functions of a block, each against its formula in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import weightkit as wk
from tests import tiny
from weightkit.config import Config, Rope, normalise
from weightkit.engine import attention as room
from weightkit.engine.attention import Scores, attention, mask
from weightkit.engine.positions import depends_on_length, inverse_frequencies, rotate, rotation

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

# ── frequencies ──────────────────────────────────────────────────────────────────────────────────────


def plain(rope: Rope, dim: int) -> list[float]:
    return [rope.theta ** (-2 * i / dim) for i in range(dim // 2)]


def linear_rope(rope: Rope, dim: int, most: int, length: int) -> tuple[list[float], float]:
    assert rope.factor is not None
    return [f / rope.factor for f in plain(rope, dim)], 1.0


def dynamic(rope: Rope, dim: int, most: int, length: int) -> tuple[list[float], float]:
    assert rope.factor is not None
    stretched = rope.factor * max(length, most) / most - (rope.factor - 1)
    base = rope.theta * stretched ** (dim / (dim - 2))
    return [base ** (-2 * i / dim) for i in range(dim // 2)], 1.0


def llama3(rope: Rope, dim: int, most: int, length: int) -> tuple[list[float], float]:
    assert rope.factor is not None
    out = []
    for f in plain(rope, dim):
        wavelength = 2 * math.pi / f
        if wavelength < rope.original_positions / rope.high_freq_factor:
            out.append(f)
        elif wavelength > rope.original_positions / rope.low_freq_factor:
            out.append(f / rope.factor)
        else:
            span = rope.high_freq_factor - rope.low_freq_factor
            smooth = (rope.original_positions / wavelength - rope.low_freq_factor) / span
            out.append((1 - smooth) * f / rope.factor + smooth * f)
    return out, 1.0


def yarn(rope: Rope, dim: int, most: int, length: int) -> tuple[list[float], float]:
    factor = rope.factor or most / rope.original_positions

    def correction(turns: float) -> float:
        return dim * math.log(rope.original_positions / (2 * math.pi * turns)) / (2 * math.log(rope.theta))

    low, high = correction(rope.beta_fast), correction(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001
    out = []
    for i, f in enumerate(plain(rope, dim)):
        ramp = min(max((i - low) / width, 0.0), 1.0)
        out.append(f / factor * ramp + f * (1 - ramp))

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    if rope.attention_factor is not None:
        return out, rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return out, mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return out, mscale(1.0)


def longrope(rope: Rope, dim: int, most: int, length: int) -> tuple[list[float], float]:
    factors = rope.long_factor if length > rope.original_positions else rope.short_factor
    factor = rope.factor or most / rope.original_positions
    grown = math.sqrt(1 + math.log(factor) / math.log(rope.original_positions)) if factor > 1 else 1.0
    scale = grown if rope.attention_factor is None else rope.attention_factor
    return [f / by for f, by in zip(plain(rope, dim), factors, strict=True)], scale


def default(rope: Rope, dim: int, most: int, length: int) -> tuple[list[float], float]:
    return plain(rope, dim), 1.0


ORACLES: dict[str, Callable[[Rope, int, int, int], tuple[list[float], float]]] = {
    "default": default,
    "linear": linear_rope,
    "dynamic": dynamic,
    "llama3": llama3,
    "yarn": yarn,
    "longrope": longrope,
}


@st.composite
def ropes(draw: st.DrawFn, kind: str) -> tuple[Rope, int, int, int]:
    """A rope of a type, the head's dimensions, the longest context, a length."""
    dim = 2 * draw(st.integers(2, 64))
    original = draw(st.integers(2, 8192))
    low = draw(st.floats(0.25, 4))
    pairs = st.lists(st.floats(0.5, 64), min_size=dim // 2, max_size=dim // 2).map(tuple)
    maybe = st.none() | st.floats(0.1, 3)
    rope = Rope(
        type=kind,  # type: ignore[arg-type]
        theta=draw(st.floats(10, 1e7)),
        factor=draw(st.floats(1, 64)),
        original_positions=original,
        low_freq_factor=low,
        high_freq_factor=low + draw(st.floats(0.5, 16)),
        beta_fast=draw(st.floats(2, 64)),
        beta_slow=draw(st.floats(0.25, 2)),
        attention_factor=draw(maybe),
        mscale=draw(maybe),
        mscale_all_dim=draw(maybe),
        truncate=draw(st.booleans()),
        short_factor=draw(pairs) if kind == "longrope" else (),
        long_factor=draw(pairs) if kind == "longrope" else (),
    )
    return rope, dim, draw(st.integers(original, 4 * original)), draw(st.integers(1, 6 * original))


@pytest.mark.parametrize("kind", ORACLES)
@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_frequencies_follow_their_formula(kind: str, data: st.DataObject) -> None:
    rope, dim, most, length = data.draw(ropes(kind))
    frequencies, factor = inverse_frequencies(replace(rope, dims=dim), most, length)
    want, scale = ORACLES[kind](rope, dim, most, length)
    assert frequencies.dtype == np.float64
    np.testing.assert_allclose(frequencies, want, rtol=1e-10)
    assert factor == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize("kind", ["yarn", "longrope"])
def test_without_a_factor_it_is_the_growth_of_the_context(kind: str) -> None:
    pairs = (1.0, 2.0)
    rope = Rope(type=kind, original_positions=16, short_factor=pairs, long_factor=pairs)  # type: ignore[arg-type]
    got, want = inverse_frequencies(replace(rope, dims=4), 128, 9), ORACLES[kind](rope, 4, 128, 9)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-12)
    assert got[1] == pytest.approx(want[1])
    assert got[1] > 1


@pytest.mark.parametrize("kind", ["yarn", "longrope"])
def test_an_attention_factor_of_zero_is_zero(kind: str) -> None:
    rope = Rope(type=kind, original_positions=16, attention_factor=0.0, short_factor=(1.0,), long_factor=(1.0,))  # type: ignore[arg-type]
    assert inverse_frequencies(replace(rope, dims=2), 64, 9)[1] == 0


def test_llama_3_1_as_published() -> None:
    """The frequencies of Llama 3.1: fast pairs as they were, slow ones an eighth."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = config(rope_theta=5e5, rope_scaling=scaling).rope
    frequencies, _ = inverse_frequencies(replace(rope, dims=128), 131_072, 10)
    before = 5e5 ** (-np.arange(64) / 64)
    ratio = before / frequencies
    np.testing.assert_allclose(ratio[:29], 1, rtol=1e-12)
    assert ratio[-1] == pytest.approx(8)
    assert np.all(np.diff(ratio) >= -1e-9)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_what_depends_on_the_length_says_so(kind: str) -> None:
    pairs = {"short_factor": (1.0, 1.2), "long_factor": (2.0, 3.0)}
    rope = Rope(type=kind, factor=2.0, original_positions=10, **pairs)  # type: ignore[arg-type]
    seen: dict[float, F64] = {}
    for length in range(1, 40):
        frequencies, _ = inverse_frequencies(replace(rope, dims=4), 20, length)
        key = depends_on_length(rope, 20, length)
        assert np.array_equal(seen.setdefault(key, frequencies), frequencies)
    assert len({tuple(f) for f in seen.values()}) == len(seen) == {"dynamic": 20, "longrope": 2}[kind]


def config(family: str = "llama", **changes: Any) -> Config:
    return normalise({**tiny.CONFIGS[family], **changes}, "config.json")


def test_su_is_an_old_name_of_longrope() -> None:
    factors = {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6, "original_max_position_embeddings": 16}
    assert config(rope_scaling={"type": "su", **factors}) == config(rope_scaling={"type": "longrope", **factors})


# ── rotation ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("half", [6, 4])
def test_rotation_is_a_complex_product_of_halves(half: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 12)).astype(np.float32)
    angles = np.random.default_rng(1).uniform(-9, 9, (5, half))
    got = rotate(x, np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
    turned = (x[..., :half] + 1j * x[..., half : 2 * half]) * np.exp(1j * angles)
    np.testing.assert_allclose(got, np.concatenate((turned.real, turned.imag, x[..., 2 * half :]), -1), atol=1e-6)
    assert got.dtype == np.float32


def test_angles_are_position_times_frequency_from_any_start() -> None:
    cos, sin = rotation(Rope(dims=12), 64, 4000)
    frequencies = np.array(plain(Rope(), 12))
    angles = np.arange(4000)[:, None] * frequencies
    np.testing.assert_allclose(cos, np.cos(angles), atol=1e-7)
    np.testing.assert_allclose(sin, np.sin(angles), atol=1e-7)
    later = rotation(Rope(dims=12), 64, 4000, 3990)
    assert np.array_equal(later[0], cos[3990:])
    assert np.array_equal(later[1], sin[3990:])


def test_products_depend_on_distance_only() -> None:
    q, k = np.random.default_rng(0).standard_normal((2, 12)).astype(np.float32)
    cos, sin = rotation(Rope(dims=12), 64, 60)
    at = [rotate(x[None], cos, sin) for x in (np.tile(q, (60, 1)), np.tile(k, (60, 1)))]
    scores = (at[0] @ at[1].swapaxes(-1, -2))[0]
    for distance in (0, 1, 17):
        np.testing.assert_allclose(np.diagonal(scores, -distance), scores[distance, 0], rtol=0, atol=1e-5)


# ── attention ────────────────────────────────────────────────────────────────────────────────────────


def plain_attention(q: F32, k: F32, v: F32, scale: float, window: int | None) -> F64:
    """One query at a time, in float64."""
    batch, heads, t, d = q.shape
    shared, n = heads // k.shape[1], k.shape[2]
    out = np.zeros((batch, heads, t, d))
    for b, h, row in np.ndindex(batch, heads, t):
        i = n - t + row
        seen = [j for j in range(n) if j <= i and (window is None or i - window < j)]
        keys, values = k[b, h // shared, seen].astype(np.float64), v[b, h // shared, seen].astype(np.float64)
        weights = np.exp(keys @ q[b, h, row] * scale)
        out[b, h, row] = weights / weights.sum() @ values
    return out


@pytest.mark.parametrize("most", [1, 100, 1 << 24], ids=["one-query", "some-queries", "all"])
@pytest.mark.parametrize("window", [None, 1, 3, 11, 12, 50])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("t", [1, 5, 12])
def test_attention_in_blocks_is_plain_attention(
    t: int, kv_heads: int, window: int | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST_SCORES", most)
    random = np.random.default_rng(t)
    q = random.standard_normal((2, 6, t, 4)).astype(np.float32)
    k, v = random.standard_normal((2, 2, kv_heads, 12, 4)).astype(np.float32)
    before = q.copy()
    got = attention(q, k, v, Scores(0.7, window))
    np.testing.assert_allclose(got, plain_attention(q, k, v, 0.7, window), atol=2e-6)
    assert got.dtype == np.float32
    assert np.array_equal(q, before)


@pytest.mark.parametrize("window", [None, 1, 4])
def test_a_mask_shows_the_last_keys_up_to_the_query(window: int | None) -> None:
    got = mask(5, 9, 2, window)
    for (row, column), value in np.ndenumerate(got):
        i, j = 5 + row, 2 + column
        assert value == (0 if j <= i and (window is None or i - j < window) else -np.inf)


def test_blocks_do_not_change_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wk.open(tiny.write(tmp_path, "mistral"))
    whole = model.logits(range(30))
    monkeypatch.setattr(room, "MOST_SCORES", 200)
    np.testing.assert_allclose(model.logits(range(30)), whole, atol=1e-5)
