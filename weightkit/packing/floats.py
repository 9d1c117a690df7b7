"""Small floats with scales: FP8 and int8 of compressed-tensors, DeepSeek, FBGEMM, ModelOpt; NVFP4; MXFP4."""

from __future__ import annotations

import math

import numpy as np

from weightkit.dtypes import DTYPES, Array
from weightkit.errors import FormatError
from weightkit.packing.packed import (
    Made,
    Packed,
    Parts,
    Settings,
    fault,
    numbers,
    require,
    rows_of,
    spread,
    unpack_bits,
)

# ── eight bits: DeepSeek-V3's inference/kernel.py, compressed-tensors' quantization/lifecycle ──────────


def scaled(ending: str, _: str, t: Parts, settings: Settings) -> Made:
    """Numbers of eight bits and, in the tensor of this ending, scales: of all, rows, groups or blocks."""
    weight, scale = t[".weight"], t[ending]
    if weight.dtype.bits != 8 or len(weight.shape) not in (2, 3) or weight.dtype.name == "U8":
        return None
    block = _block_size(settings)
    *lead, out, width = weight.shape
    blocks = (*lead, -(-out // block[0]), -(-width // block[1]))
    if scale.shape == blocks and scale.shape[-2:] != (out, 1):
        return weight.shape, 8, block
    grouped = scale.shape[:-1] == weight.shape[:-1] and scale.shape[-1] > 0 and width % scale.shape[-1] == 0
    if not grouped and scale.shape not in ((), (1,), (out,), (*lead, 1, 1)):
        raise fault(scale, f"scales of shape {list(scale.shape)} do not fit {list(weight.shape)}")
    return weight.shape, 8, ()


def _block_size(settings: Settings) -> tuple[int, int]:
    given = settings.get("weight_block_size") or [128, 128]
    if not isinstance(given, list) or len(given) != 2 or not all(type(n) is int and 0 < n < 1 << 20 for n in given):
        raise FormatError(f"quantization_config: weight_block_size is {str(given)[:40]!r}, expected two sizes")
    return given[0], given[1]


def scaled_rows(ending: str, p: Packed, first: int, last: int) -> Array:
    """value = (q − zero point) × scale."""
    t = p.parts
    q = t[".weight"].dtype.decode(rows_of(t[".weight"], first, last))
    if ".weight_zero_point" in t:
        q = q - _per_row(numbers(t[".weight_zero_point"]), p.shape, first, last)
    scale = numbers(t[ending])
    each = _per_block(scale, p, first, last) if p.options else _per_row(scale, p.shape, first, last)
    return np.asarray(q * each, np.float32)


def _per_row(scale: Array, shape: tuple[int, ...], first: int, last: int) -> Array:
    """Scales of all, of rows or of groups in a row, as they broadcast over rows `first` to `last`."""
    if scale.size == 1:
        return scale.reshape(-1)[0]
    scale = scale.reshape(*scale.shape, *(1,) * (len(shape) - scale.ndim))[first:last]
    return scale if scale.shape[-1] == 1 else spread(scale, shape[-1])


def _per_block(scale: Array, p: Packed, first: int, last: int) -> Array:
    """Scales of blocks of `high` rows and `wide` columns, one for each number."""
    high, wide = p.options
    if len(p.shape) == 3:  # a stack of matrices
        tall = np.repeat(scale[first:last], high, axis=1)[:, : p.shape[1]]
    else:
        tall = np.repeat(scale[first // high : -(-last // high)], high, axis=0)[first % high :][: last - first]
    return np.repeat(tall, wide, axis=-1)[..., : p.shape[-1]]


# ── four bits: compressed-tensors' nvfp4_quantized.py, ModelOpt's NVFP4QTensor, the OCP MX format ──────


def fp4(main: str, group: int, base: str, t: Parts, _: Settings) -> Made:
    """FP4, two in a byte, with a scale for every group of numbers in a row."""
    weight, scale = t[main], t[".weight_scale"]
    if weight.dtype.name != "U8" or len(weight.shape) != 2:
        return None
    out, width = weight.shape[0], weight.shape[1] * 2
    if scale.shape != (out, width // group):
        raise fault(scale, f"{base} of shape {out} × {width} needs a scale for every {group} numbers")
    return (out, width), 4, ()


def fp4_rows(main: str, outer: str, p: Packed, first: int, last: int) -> Array:
    """value = q × scale, and × the scale of the whole matrix, which compressed-tensors keeps inverted."""
    t = p.parts
    q = DTYPES["F4"].decode(unpack_bits(rows_of(t[main], first, last), 4))
    kind = t[".weight_scale"].dtype
    kind = DTYPES["F8_E8M0"] if kind.name == "U8" else kind
    scale = kind.decode(rows_of(t[".weight_scale"], first, last))
    if outer:
        of_all = numbers(t[outer]).reshape(-1)
        if of_all.size != 1:
            raise fault(t[outer], f"is {of_all.size:,} numbers, expected one")
        scale = scale / of_all[0] if outer == ".weight_global_scale" else scale * of_all[0]
    return np.asarray(q * spread(scale, p.shape[1]), np.float32)


# ── MXFP4 of gpt-oss: transformers' integrations/mxfp4.py, convert_moe_packed_tensors ──────────────────


def mxfp4(_: str, t: Parts, __: Settings) -> Made:
    """Experts as blocks [expert, row, group, 16 bytes]; the matrix lies transposed, as the unpacked tensor does."""
    blocks = t["_blocks"]
    if len(blocks.shape) != 4 or blocks.dtype.name != "U8":
        return None
    experts, rows, groups, half = blocks.shape
    require(t["_scales"], (experts, rows, groups), "U8", "F8_E8M0")
    return (experts, groups * half * 2, rows), 4, ()


def mxfp4_rows(p: Packed, first: int, last: int) -> Array:
    """value = FP4 × 2^(scale − 127), of some experts: [experts, in, out]."""
    t = p.parts
    q = DTYPES["F4"].decode(unpack_bits(rows_of(t["_blocks"], first, last), 4))  # [experts, rows, groups, 32]
    scale = DTYPES["F8_E8M0"].decode(rows_of(t["_scales"], first, last))[..., None]
    values = (q * scale).reshape(*q.shape[:2], math.prod(q.shape[2:]))  # [experts, rows, in]
    return np.asarray(values.swapaxes(1, 2), np.float32)
