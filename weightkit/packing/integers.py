"""Integers with scales and zero points: GPTQ, AWQ, compressed-tensors, MLX."""

from __future__ import annotations

import math

import numpy as np

from weightkit.dtypes import Array
from weightkit.packing.packed import (
    Made,
    Packed,
    Parts,
    Settings,
    columns_of,
    fault,
    number,
    numbers,
    require,
    rows_of,
    spread,
    unpack_bits,
)
from weightkit.tensor import Source, read_region, whole

# ── GPTQ and AWQ: AutoGPTQ's qlinear_cuda_old.py, AutoAWQ's packing_utils.py ────────────────────────

_INT32 = ("I32", "U32")


def gptq(base: str, t: Parts, settings: Settings) -> Made:
    """Words down the columns of a matrix stored [in, out], a scale and a zero point for every group of rows."""
    weight, zeros, scales = t[".qweight"], t[".qzeros"], t[".scales"]
    if len(weight.shape) != 2 or len(scales.shape) != 2:
        raise fault(weight, f"{base} is not a matrix")
    groups, out = scales.shape
    if settings.get("quant_method") == "awq" or weight.shape[1] != out:
        return None
    bits = number(settings, "bits", 4)
    if bits not in (2, 3, 4, 8):
        raise fault(weight, f"GPTQ of {bits} bits is not known")
    rows = weight.shape[0] * 32 // bits
    if not groups or not rows or not out:
        raise fault(weight, "is empty")
    require(weight, (rows * bits // 32, out), *_INT32)
    require(zeros, (groups, out * bits // 32), *_INT32)
    if ".g_idx" in t:
        require(t[".g_idx"], (rows,), "I32", "I64")
    v2 = int(settings.get("checkpoint_format") == "gptq_v2")
    return (out, rows), bits, (bits, v2)


def gptq_rows(p: Packed, first: int, last: int) -> Array:
    """value = (q − zero point) × scale; the first version of the format keeps zero points less one."""
    bits, v2 = p.options
    t, width = p.parts, p.shape[1]
    words = columns_of(t[".qweight"], first, last)  # [in · bits / 32, rows]
    q = unpack_bits(np.ascontiguousarray(words.T), bits)[:, :width]
    zero_words = read_region(t[".qzeros"], whole(t[".qzeros"].shape))
    zeros = unpack_bits(zero_words, bits)[:, first:last].astype(np.float32) + (1 - v2)  # [groups, rows]
    scales = numbers(t[".scales"], (slice(0, t[".scales"].shape[0], 1), slice(first, last, 1)))
    groups = scales.shape[0]
    if ".g_idx" in t:
        index = read_region(t[".g_idx"], whole(t[".g_idx"].shape)).astype(np.int64)
        if index.size and (index.min() < 0 or index.max() >= groups):
            raise fault(t[".g_idx"], f"names a group outside the {groups} that there are")
    else:
        index = np.arange(width) // -(-width // groups)
    return np.asarray((q - zeros[index].T) * scales[index].T, np.float32)


_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that each nibble of a word holds


def awq(base: str, t: Parts, settings: Settings) -> Made:
    """Words along the rows of a matrix stored [in, out], eight columns in each, in an order of their own."""
    weight, zeros, scales = t[".qweight"], t[".qzeros"], t[".scales"]
    bits = number(settings, "bits", number(settings, "w_bit", 4))
    if bits != 4 or len(weight.shape) != 2 or len(scales.shape) != 2:
        raise fault(weight, f"{base}: AWQ of {bits} bits and shape {list(weight.shape)} is not known")
    rows, out, groups = weight.shape[0], weight.shape[1] * 8, scales.shape[0]
    if not rows or not out or not groups or rows % groups:
        raise fault(weight, "does not fit its scales")
    require(weight, (rows, out // 8), *_INT32)
    require(zeros, (groups, out // 8), *_INT32)
    require(scales, (groups, out))
    return (out, rows), bits, ()


def awq_rows(p: Packed, first: int, last: int) -> Array:
    """value = (q − zero point) × scale."""
    t = p.parts
    low, high = first // 8, -(-last // 8)

    def codes(source: Source) -> Array:  # [rows of the file, first … last]
        nibbles = unpack_bits(columns_of(source, low, high), 4).reshape(source.shape[0], high - low, 8)
        ordered = np.empty_like(nibbles)
        ordered[..., _AWQ_ORDER] = nibbles
        return ordered.reshape(source.shape[0], -1)[:, first - low * 8 : last - low * 8].astype(np.float32)

    scales = numbers(t[".scales"], (slice(0, t[".scales"].shape[0], 1), slice(first, last, 1)))
    group = p.shape[1] // scales.shape[0]
    zeros = np.repeat(codes(t[".qzeros"]), group, axis=0)
    return np.asarray(((codes(t[".qweight"]) - zeros) * np.repeat(scales, group, axis=0)).T, np.float32)


# ── compressed-tensors: compressors/pack_quantized.py ──────────────────────────────────────────────


def packed(base: str, t: Parts, settings: Settings) -> Made:
    """Words along the rows of [out, in], numbers offset by half their range."""
    weight, scale = t[".weight_packed"], t[".weight_scale"]
    if weight.dtype.name not in _INT32:
        return None
    shape_source = t.get(".weight_shape")
    if len(weight.shape) != 2 or len(scale.shape) != 2:
        raise fault(weight, f"{base} is not a matrix")
    bits = _ct_bits(settings)
    out, width = weight.shape[0], weight.shape[1] * (32 // bits)
    if shape_source is not None:
        if math.prod(shape_source.shape) != 2:
            raise fault(shape_source, "is not the shape of a matrix")
        given = tuple(int(n) for n in shape_source.read(0, 2))
        if given[0] != out or not width - 32 // bits < given[1] <= width:
            raise fault(shape_source, f"says {list(given)}, the packed numbers are {out} × {width}")
        width = given[1]
    if scale.shape[0] not in (1, out) or not scale.shape[1]:
        raise fault(scale, f"scales of shape {list(scale.shape)} do not fit {out} × {width}")
    if ".weight_zero_point" in t:
        require(t[".weight_zero_point"], (-(-out * bits // 32), scale.shape[1]), *_INT32)
    return (out, width), bits, (bits,)


def _ct_bits(settings: Settings) -> int:
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict) and weights.get("num_bits") in (2, 4, 8):
            return int(weights["num_bits"])
    return 4


def packed_rows(p: Packed, first: int, last: int) -> Array:
    """value = (q − zero point) × scale."""
    (bits,) = p.options
    t, width = p.parts, p.shape[1]
    half = 1 << (bits - 1)
    q = unpack_bits(rows_of(t[".weight_packed"], first, last), bits)[:, :width].astype(np.float32) - half
    scale = t[".weight_scale"]
    s = numbers(scale) if scale.shape[0] == 1 else scale.dtype.decode(rows_of(scale, first, last))
    index = _group_index(t.get(".weight_g_idx"), width, s.shape[1])
    if ".weight_zero_point" in t:
        words = read_region(t[".weight_zero_point"], whole(t[".weight_zero_point"].shape))  # [out · bits / 32, groups]
        zeros = unpack_bits(np.ascontiguousarray(words.T), bits).T[first:last].astype(np.float32) - half
        q = q - zeros[:, index]
    return np.asarray(q * s[:, index], np.float32)


def _group_index(source: Source | None, width: int, groups: int) -> Array:
    if source is None or math.prod(source.shape) != width:
        return np.arange(width) // -(-width // groups)
    index = source.read(0, width).astype(np.int64)
    if index.min() < 0:  # -1 throughout: in order
        return np.arange(width) // -(-width // groups)
    if index.max() >= groups:
        raise fault(source, f"names a group outside the {groups} that there are")
    return index


# ── MLX: mlx.core.quantize, affine ─────────────────────────────────────────────────────────────────


def mlx(base: str, t: Parts, settings: Settings) -> Made:
    """Words along the rows, a scale and a shift for every group of numbers."""
    weight, scales = t[".weight"], t[".scales"]
    if weight.dtype.name not in _INT32 or len(weight.shape) < 2 or scales.shape[:-1] != weight.shape[:-1]:
        return None
    own = settings.get(base)
    group = number(own if isinstance(own, dict) else settings, "group_size", 64)
    width = scales.shape[-1] * group
    bits, rest = divmod(weight.shape[-1] * 32, max(width, 1))
    if rest or bits not in (2, 3, 4, 5, 6, 8):
        raise fault(weight, f"{base}: {list(weight.shape)} words do not hold groups of {group} numbers")
    if ".biases" in t:
        require(t[".biases"], scales.shape)
    return (*weight.shape[:-1], width), bits, (bits,)


def mlx_rows(p: Packed, first: int, last: int) -> Array:
    """value = q × scale + shift."""
    t, width = p.parts, p.shape[-1]
    q = unpack_bits(rows_of(t[".weight"], first, last), p.options[0])[..., :width]
    scales = t[".scales"].dtype.decode(rows_of(t[".scales"], first, last))
    value = q * spread(scales, width)
    if ".biases" in t:
        value = value + spread(t[".biases"].dtype.decode(rows_of(t[".biases"], first, last)), width)
    return np.asarray(value, np.float32)
