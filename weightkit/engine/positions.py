"""Where a token is: rotated queries and keys, and what nearness adds to scores.

Rotary frequencies follow transformers' modeling_rope_utils; the papers are named at each function.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from weightkit import kernels, steps
from weightkit.config import Rope
from weightkit.engine.functions import F32, WORTH
from weightkit.errors import EngineError


def rotation(rope: Rope, positions: int, length: int, start: int = 0) -> tuple[F32, F32]:
    """Cosines and sines of the positions `start` to `length` of a sequence, [length - start, dims / 2] each.

    `positions` is the longest context that the model was made for.
    """
    frequencies, factor = inverse_frequencies(rope, positions, length)
    angles = np.arange(start, length)[:, None] * frequencies  # [t, dims / 2]
    return (np.cos(angles) * factor).astype(np.float32), (np.sin(angles) * factor).astype(np.float32)


def rotate(x: F32, cos: F32, sin: F32, *, interleaved: bool = False) -> F32:
    """Turn pairs of the first dimensions of each head by the angle of their position.

    x [..., t, head_dim], cos and sin [t, dims / 2], or [batch, 1, t, dims / 2] -> [..., t, head_dim]. The pairs are
    (i, i + dims / 2), or, interleaved, (2i, 2i + 1).
    """
    fits = x.ndim == 4 and cos.ndim == 2 and x.dtype == np.float32 and x.strides[-1] == x.itemsize
    if x.size >= WORTH and fits and kernels.available():
        return steps.turned(x, cos, sin, interleaved=interleaved)
    half = cos.shape[-1]
    result = np.empty_like(x)
    if 2 * half < x.shape[-1]:
        result[..., 2 * half :] = x[..., 2 * half :]
    if interleaved:
        low, high = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    else:
        low, high = slice(0, half), slice(half, 2 * half)
    a, b = x[..., low], x[..., high]
    np.multiply(a, cos, out=result[..., low])
    result[..., low] -= b * sin
    np.multiply(b, cos, out=result[..., high])
    result[..., high] += a * sin
    return result


def alibi_slopes(heads: int) -> F32:  # -> [heads]
    """How much each step of distance takes from the scores of each head.

    2^(-8k / p) for the first p heads, p being a power of two; the rest from between the slopes of 2p heads.
    Source: Press et al., arXiv:2108.12409, and the code published with it.
    """
    power = 1 << (heads.bit_length() - 1)
    first = [2 ** (-8 * k / power) for k in range(1, power + 1)]
    between = [2 ** (-4 * k / power) for k in range(1, 2 * power, 2)]
    return np.array([*first, *between][:heads], np.float32)


def to_bf16(x: F32) -> F32:
    """Rounded to the nearest number that bfloat16 has, ties to even."""
    bits = x.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def buckets(distance: NDArray[np.int64], count: int, farthest: int, *, both_sides: bool) -> NDArray[np.int64]:
    """The bucket of each relative position, key minus query: near ones have one each, far ones share.

    Source: T5, arXiv:1910.10683, section 2.1, and its code.
    """
    beyond = np.zeros_like(distance)
    if both_sides:
        count //= 2
        beyond = np.where(distance > 0, count, 0)
        steps = np.abs(distance)
    else:
        steps = np.maximum(-distance, 0)
    exact = count // 2
    with np.errstate(divide="ignore"):  # log 0 belongs to a near one
        # float32, as the reference computes it: on a boundary the last bit decides
        share = np.log(steps.astype(np.float32) / np.float32(exact)) / np.float32(math.log(farthest / exact))
    far = exact + np.minimum(share * np.float32(count - exact), count).clip(0).astype(np.int64)
    return np.asarray(beyond + np.where(steps < exact, steps, np.minimum(far, count - 1)))


def depends_on_length(rope: Rope, positions: int, length: int) -> float:
    """What about a sequence's length its frequencies depend on: equal values, equal frequencies."""
    if rope.type == "dynamic":
        return max(length, positions)
    if rope.type == "longrope":
        return float(length > rope.original_positions)
    return 0.0


def inverse_frequencies(rope: Rope, positions: int, length: int) -> tuple[NDArray[np.float64], float]:
    """Radians per position of each rotated pair, and a factor on cosine and sine."""
    dim = rope.dims
    _require_pairs(rope, dim)
    base = rope.theta ** (np.arange(0, dim, 2) / dim)  # [rotated / 2]
    match rope.type:
        case "linear":  # Chen et al., arXiv:2306.15595
            return 1 / base / _factor(rope), 1.0
        case "dynamic":
            return _dynamic(rope, dim, max(length, positions) / positions), 1.0
        case "llama3":
            return _llama3(rope, 1 / base), 1.0
        case "yarn":
            return _yarn(rope, base, dim, positions)
        case "longrope":
            return _longrope(rope, base, positions, length)
    return 1 / base, 1.0


def _require_pairs(rope: Rope, dim: int) -> None:
    if dim % 2 or (rope.type == "dynamic" and dim == 2):
        raise EngineError(f"heads of {dim} dimensions cannot be rotated in pairs")
    for name, factors in (("short_factor", rope.short_factor), ("long_factor", rope.long_factor)):
        if factors and len(factors) != dim // 2:
            raise EngineError(f"the config's {name} has {len(factors)} numbers for {dim // 2} pairs")


def _factor(rope: Rope) -> float:
    return rope.factor or 1.0


def _dynamic(rope: Rope, dim: int, stretch: float) -> NDArray[np.float64]:
    """NTK-aware scaling: the base grows with the sequence. Source: arXiv:2309.00071, section 3.1."""
    factor = _factor(rope)
    theta = rope.theta * (factor * stretch - (factor - 1)) ** (dim / (dim - 2))
    return theta ** -(np.arange(0, dim, 2) / dim)


def _llama3(rope: Rope, inverse: NDArray[np.float64]) -> NDArray[np.float64]:
    """Long wavelengths are divided by the factor, short ones kept, those between blended.

    Source: Llama 3.1, models/llama3/reference_impl.
    """
    low, high = rope.low_freq_factor, rope.high_freq_factor
    turns = rope.original_positions * inverse / (2 * math.pi)  # in the context of pretraining
    blend = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - blend) * inverse / _factor(rope) + blend * inverse


def _yarn(rope: Rope, base: NDArray[np.float64], dim: int, positions: int) -> tuple[NDArray[np.float64], float]:
    """Interpolated below one number of turns, kept above another, ramped between.

    Source: Peng et al., "YaRN", arXiv:2309.00071, section 3.2 to 3.4.
    """
    factor = rope.factor or positions / rope.original_positions

    def pair_with(turns: float) -> float:  # the pair that makes so many turns in the original context
        return dim * math.log(rope.original_positions / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_with(rope.beta_fast), pair_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low or 0.001), 0, 1)
    inverse = ramp / (factor * base) + (1 - ramp) / base
    if rope.attention_factor is not None:
        return inverse, rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return inverse, _mscale(factor, rope.mscale) / _mscale(factor, rope.mscale_all_dim)
    return inverse, _mscale(factor, 1.0)


def _mscale(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(rope: Rope, base: NDArray[np.float64], positions: int, length: int) -> tuple[NDArray[np.float64], float]:
    """A factor per pair, one set for short sequences and one for long. Source: arXiv:2402.13753."""
    original = rope.original_positions
    factors = rope.long_factor if length > original else rope.short_factor
    factor = rope.factor or positions / original
    mscale = rope.long_mscale if length > original else rope.short_mscale
    if mscale is not None:
        return 1 / (np.array(factors) * base), mscale
    attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 < original else 1.0
    if rope.attention_factor is not None:
        attention = rope.attention_factor
    return 1 / (np.array(factors) * base), attention
