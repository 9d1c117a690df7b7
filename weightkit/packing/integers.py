"""Integers with scales and zero points: GPTQ, AWQ, compressed-tensors, MLX."""

from __future__ import annotations

import math

import numpy as np

from weightkit.dtypes import DTYPES, Array
from weightkit.packing.packed import (
    Made,
    Packed,
    Parts,
    Settings,
    columns_of,
    fault,
    group_of,
    number,
    require,
    require_numbers,
    rows_of,
    spread,
    unknown,
    unpack_bits,
    unpack_columns,
)
from weightkit.tensor import Source

# ── GPTQ and AWQ: AutoGPTQ's qlinear_cuda_old.py, AutoAWQ's packing_utils.py ────────────────────────

_INT32 = ("I32", "U32")
_INDEX = ("I32", "I64")


def gptq(base: str, t: Parts, settings: Settings) -> Made:
    """Words down the columns of a matrix stored [in, out], a scale and a zero point for every group of rows."""
    weight, zeros, scales = t[".qweight"], t[".qzeros"], t[".scales"]
    if len(weight.shape) != 2 or len(scales.shape) != 2 or len(zeros.shape) != 2:
        raise fault(weight, f"{base} is not a matrix")
    groups, out = scales.shape
    if weight.shape[1] != out and settings.get("quant_method") == "gptq":
        raise fault(
            scales, f"is {list(scales.shape)}, the GPTQ of {list(weight.shape)} needs {weight.shape[1]} a group"
        )
    if weight.shape[1] != out or settings.get("quant_method") == "awq":
        return None
    form = settings.get("checkpoint_format") or "gptq"
    if form not in ("gptq", "gptq_v2"):
        raise unknown(weight, f"GPTQ of checkpoint_format {str(form)[:40]!r}")
    bits = number(settings, "bits", 4)
    if settings.get("dynamic") and out:  # GPTQModel's overrides of single modules: their tensors tell as well
        bits = zeros.shape[1] * 32 // out
    if bits not in (2, 3, 4, 8):
        raise unknown(weight, f"GPTQ of {bits} bits")
    rows = weight.shape[0] * 32 // bits
    if not groups or not rows or not out:
        raise fault(weight, "is empty")
    index = t.get(".g_idx")
    if index is not None and len(index.shape) == 1 and -(-index.shape[0] * bits // 32) == weight.shape[0]:
        rows = index.shape[0]  # the last word need not be full
    require(weight, (-(-rows * bits // 32), out), *_INT32)
    require(zeros, (groups, -(-out * bits // 32)), *_INT32)
    require_numbers(scales, groups * out)
    if index is not None:
        require(index, (rows,), *_INDEX)
    group = 0 if index is not None else group_of(scales, settings, rows, groups)
    return (out, rows), bits, (bits, int(form == "gptq_v2"), group)


def gptq_rows(p: Packed, first: int, last: int) -> Array:
    """value = (q − zero point) × scale; the first version of the format keeps zero points less one."""
    bits, v2, group = p.options
    t, width = p.parts, p.shape[1]
    q = unpack_columns(columns_of(t[".qweight"], first, last), bits, width)  # [in, rows]
    low, high = first // 32 * bits, -(-last // 32) * bits  # words of the zero points of these rows
    zeros = unpack_bits(columns_of(t[".qzeros"], low, high), bits)[:, first % 32 :][:, : last - first]
    if not v2:
        zeros = (zeros + 1) & ((1 << bits) - 1)
    scales = t[".scales"].dtype.decode(columns_of(t[".scales"], first, last))
    index = np.arange(width) // group if group else _index(t[".g_idx"], scales.shape[0])
    return np.asarray(((q - zeros.astype(np.float32)[index]) * scales[index]).T, np.float32)


def _index(source: Source, groups: int) -> Array:
    """The group of every number in a row."""
    index = source.read(0, source.shape[0])
    if index.min() < 0 or index.max() >= groups:
        raise fault(source, f"names a group outside the {groups} that there are")
    return index


_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that each nibble of a word holds


def awq(base: str, t: Parts, settings: Settings) -> Made:
    """Words along the rows of a matrix stored [in, out], eight columns in each, in an order of their own."""
    weight, zeros, scales = t[".qweight"], t[".qzeros"], t[".scales"]
    bits = number(settings, "bits", number(settings, "w_bit", 4))
    version = settings.get("version") or "gemm"
    if str(version).lower() != "gemm":
        raise unknown(weight, f"AWQ of version {str(version)[:40]!r}")
    if bits != 4:
        raise unknown(weight, f"AWQ of {bits} bits")
    if len(weight.shape) != 2 or len(scales.shape) != 2:
        raise fault(weight, f"{base} is not a matrix")
    rows, out, groups = weight.shape[0], weight.shape[1] * 8, scales.shape[0]
    if not rows or not out:
        raise fault(weight, "is empty")
    group = group_of(scales, settings, rows, groups)
    require(weight, (rows, out // 8), *_INT32)
    require(zeros, (groups, out // 8), *_INT32)
    require(scales, (groups, out))
    require_numbers(scales, groups * out)
    return (out, rows), bits, (group,)


def awq_rows(p: Packed, first: int, last: int) -> Array:
    """value = (q − zero point) × scale."""
    t = p.parts
    low, high = first // 8, -(-last // 8)

    def codes(source: Source) -> Array:  # [rows of the file, first … last]
        nibbles = unpack_bits(columns_of(source, low, high), 4).reshape(source.shape[0], high - low, 8)
        ordered = np.empty_like(nibbles)
        ordered[..., _AWQ_ORDER] = nibbles
        return ordered.reshape(source.shape[0], -1)[:, first - low * 8 : last - low * 8]

    scales = t[".scales"].dtype.decode(columns_of(t[".scales"], first, last))
    index = np.arange(p.shape[1]) // p.options[0]
    zeros = codes(t[".qzeros"]).astype(np.float32)
    return np.asarray(((codes(t[".qweight"]) - zeros[index]) * scales[index]).T, np.float32)


# ── compressed-tensors: compressors/pack_quantized ─────────────────────────────────────────────────


def packed(base: str, t: Parts, settings: Settings) -> Made:
    """Words along the rows of [out, in], or of a stack of such matrices; numbers offset by half their range."""
    weight, scale, said = t[".weight_packed"], t[".weight_scale"], t.get(".weight_shape")
    if weight.dtype.name not in _INT32:
        return None
    if len(weight.shape) not in (2, 3) or 0 in weight.shape:
        raise fault(weight, f"{base} is not a matrix")
    *lead, out, words = weight.shape
    bits, group = _ct_weights(settings)
    width = words * 32 // bits
    if said is not None:
        require_numbers(said, len(weight.shape), *_INDEX)
        *rows, width = (int(n) for n in said.read(0, len(weight.shape)))
        fitting = [b for b in (bits, *range(1, 9)) if width > 0 and -(-width * b // 32) == words]
        if rows != [*lead, out] or not fitting:
            raise fault(said, f"says {[*rows, width]}, there are {[*lead, out]} rows of {words:,} words")
        bits = fitting[0]  # which can differ between the modules of one model
    if scale.shape not in ((1,), (1, 1), (*lead, out, scale.shape[-1] if scale.shape else 0)):
        raise fault(scale, f"scales of shape {list(scale.shape)} do not fit {[*lead, out, width]}")
    groups = scale.shape[-1]
    require_numbers(scale, math.prod(scale.shape))
    index, zeros = t.get(".weight_g_idx"), t.get(".weight_zero_point")
    if index is not None:
        require(index, (width,), *_INDEX)
    if zeros is not None and zeros.dtype.name == "I8":
        require(zeros, scale.shape)
    elif zeros is not None:
        require(zeros, (*lead, -(-out * bits // 32), groups), *_INT32)
    return (*lead, out, width), bits, (bits, group_of(scale, {"group_size": group}, width, groups))


def _ct_weights(settings: Settings) -> tuple[int, int]:
    """The bits and group size of the first group of the settings."""
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            bits = number(weights, "num_bits", 4)
            return (bits if 1 <= bits <= 8 else 4), number(weights, "group_size", -1)
    return 4, -1


def packed_rows(p: Packed, first: int, last: int) -> Array:
    """value = (q − zero point) × scale."""
    bits, group = p.options
    t, width = p.parts, p.shape[-1]
    half, scale, zeros = 1 << (bits - 1), t[".weight_scale"], t.get(".weight_zero_point")
    q = unpack_bits(rows_of(t[".weight_packed"], first, last), bits)[:, :width].astype(np.float32) - half
    of_all = math.prod(scale.shape) == 1
    scales = scale.dtype.decode(scale.read(0, 1)[None] if of_all else rows_of(scale, first, last))
    index = _ct_index(t.get(".weight_g_idx"), scales.shape[1])
    if zeros is not None:
        shift = _ct_zeros(zeros, bits, p, first, last)
        q -= spread(shift, group, width) if index is None else shift[:, index]
    return np.asarray(q * (spread(scales, group, width) if index is None else scales[:, index]), np.float32)


def _ct_index(source: Source | None, groups: int) -> Array | None:
    """The group of every number in a row; None where they follow one another."""
    if source is None or groups == 1 or (source.read(0, source.shape[0]) == -1).all():  # never filled in
        return None
    return _index(source, groups)


def _ct_zeros(source: Source, bits: int, p: Packed, first: int, last: int) -> Array:
    """Zero points of some rows, float32 [rows, groups]: whole numbers, or packed down the rows of each matrix."""
    if source.dtype.name == "I8":
        one = math.prod(source.shape) == 1
        return (source.read(0, 1)[None] if one else rows_of(source, first, last)).astype(np.float32)
    out, groups = p.shape[-2], source.shape[-1]
    tall = source.shape[-2]
    found = np.empty((last - first, groups), np.float32)
    for matrix in range(first // out, -(-last // out)):
        low, high = max(first - matrix * out, 0), min(last - matrix * out, out)
        words = rows_of(source, matrix * tall + low // 32 * bits, matrix * tall + min(-(-high // 32) * bits, tall))
        numbers = unpack_columns(words, bits, high - low // 32 * 32)[low % 32 :]
        found[matrix * out + low - first :][: high - low] = numbers
    return found - (1 << (bits - 1))


# ── MLX: mlx.core.quantize ─────────────────────────────────────────────────────────────────────────

_MLX_FLOATS = {"mxfp4": ("F4", "F8_E8M0", 32), "mxfp8": ("F8_E4M3", "F8_E8M0", 32), "nvfp4": ("F4", "F8_E4M3", 16)}


def mlx(base: str, t: Parts, settings: Settings) -> Made:
    """Words along the rows, a scale and a shift for every group of numbers; or small floats and a scale."""
    weight, scales = t[".weight"], t[".scales"]
    if weight.dtype.name not in _INT32 or len(weight.shape) < 2 or scales.shape[:-1] != weight.shape[:-1]:
        return None
    own = settings.get(weight.name.removesuffix(".weight"), settings.get(base))
    settings = {**settings, **own} if isinstance(own, dict) else settings
    mode = settings.get("mode") or "affine"
    if mode != "affine" and (not isinstance(mode, str) or mode not in _MLX_FLOATS):
        raise unknown(weight, f"MLX of mode {str(mode)[:40]!r}")
    group = number(settings, "group_size", 64 if mode == "affine" else _MLX_FLOATS[mode][2])
    width = scales.shape[-1] * group
    bits, rest = divmod(weight.shape[-1] * 32, max(width, 1))
    if rest or bits not in ((1, 2, 3, 4, 5, 6, 8) if mode == "affine" else (DTYPES[_MLX_FLOATS[mode][0]].bits,)):
        raise fault(weight, f"{base}: {list(weight.shape)} words do not hold groups of {group} numbers")
    if ".biases" in t:
        require(t[".biases"], scales.shape)
    if mode != "affine":
        require(scales, scales.shape, "U8", _MLX_FLOATS[mode][1])
    elif ".biases" not in t or scales.dtype.kind != "float" or t[".biases"].dtype.kind != "float":
        raise fault(weight, f"{base} needs scales and biases that are floats")
    return (*weight.shape[:-1], width), bits, (bits, group, ["affine", *_MLX_FLOATS].index(mode))


def mlx_rows(p: Packed, first: int, last: int) -> Array:
    """value = q × scale + shift; small floats have no shift."""
    bits, group, mode = p.options
    t, width = p.parts, p.shape[-1]
    q = unpack_bits(rows_of(t[".weight"], first, last), bits)[:, :width]
    scales = rows_of(t[".scales"], first, last)
    if mode:
        kind, of_scales, _ = list(_MLX_FLOATS.values())[mode - 1]
        return np.asarray(DTYPES[kind].decode(q) * spread(DTYPES[of_scales].decode(scales), group, width), np.float32)
    shift = t[".biases"].dtype.decode(rows_of(t[".biases"], first, last))
    value = q * spread(t[".scales"].dtype.decode(scales), group, width)
    value += spread(shift, group, width)
    return np.asarray(value, np.float32)
