"""Small floats with scales: FP8 and int8 of compressed-tensors, DeepSeek, FBGEMM, ModelOpt; NVFP4; MXFP4, MXFP6."""

from __future__ import annotations

import math

import numpy as np

from weightkit.dtypes import DTYPES, Array, DType
from weightkit.errors import FormatError
from weightkit.packing.packed import (
    Made,
    Packed,
    Parts,
    Settings,
    fault,
    require,
    require_numbers,
    rows_of,
    spread,
    unpack_bits,
)
from weightkit.tensor import Source, read_region

_FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")


def _kind_of_scales(scale: Source) -> DType:
    """The type of scales: bytes are exponents."""
    return DTYPES["F8_E8M0"] if scale.dtype.name == "U8" else scale.dtype


# ── eight bits: DeepSeek-V3's inference/kernel.py, compressed-tensors' quantization/lifecycle ──────────


def scaled(ending: str, _: str, t: Parts, settings: Settings) -> Made:
    """Numbers of eight bits and, in the tensor of this ending, a grid of scales: one for every block.

    A block can be the whole matrix, a row, or a group of a row. Int8 beside weight_scale_inv are pairs of FP4.
    """
    weight, scale = t[".weight"], t[ending]
    pairs = weight.dtype.name == "I8" and ending == ".weight_scale_inv"  # transformers' finegrained_fp8.py
    if weight.dtype.name not in (*_FLOAT8, "I8") or len(weight.shape) not in (2, 3) or 0 in weight.shape:
        return None
    shape = (*weight.shape[:-1], weight.shape[-1] * (1 + pairs))
    grid = _grid(scale.shape, shape)
    block = _block(grid, shape, settings)
    if not block or (*grid[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1])) != grid:
        raise fault(scale, f"scales of shape {list(scale.shape)} do not fit {list(shape)}")
    require_numbers(scale, math.prod(grid), *(("U8",) if scale.dtype.name == "U8" else ()))
    zeros = t.get(".weight_zero_point")
    if zeros is not None and (zeros.dtype.name not in (*_FLOAT8, "I8") or _grid(zeros.shape, shape) != grid):
        raise fault(zeros, f"is {zeros.dtype.name} {list(zeros.shape)}, the scales are {list(scale.shape)}")
    return shape, 4 if pairs else 8, (*block, *grid)


def _grid(scales: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of scales with one number for each axis of the matrix."""
    if math.prod(scales) == 1:
        return (1,) * len(shape)
    return (*scales, *(1,) * (len(shape) - len(scales)))


def _block(grid: tuple[int, ...], shape: tuple[int, ...], settings: Settings) -> tuple[int, int] | None:
    """Rows and columns of a block: those of the settings, whose last blocks can be ragged, or what the grid implies."""
    if len(grid) != len(shape) or 0 in grid or grid[:-2] not in ((1,) * (len(shape) - 2), shape[:-2]):
        return None
    (tall, wide), (out, width) = grid[-2:], shape[-2:]
    high, broad = _block_size(settings)
    if (tall, wide) == (-(-out // high), -(-width // broad)):
        return high, broad
    return None if out % tall or width % wide else (out // tall, width // wide)


def _block_size(settings: Settings) -> tuple[int, int]:
    given = settings.get("weight_block_size") or _block_structure(settings) or [128, 128]
    if not isinstance(given, list) or len(given) != 2 or not all(type(n) is int and 0 < n < 1 << 20 for n in given):
        raise FormatError(f"quantization_config: the block size is {str(given)[:40]!r}, expected two sizes")
    return given[0], given[1]


def _block_structure(settings: Settings) -> object:
    """The blocks of compressed-tensors."""
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict) and weights.get("block_structure"):
            return weights["block_structure"]
    return None


def scaled_rows(ending: str, p: Packed, first: int, last: int) -> Array:
    """value = (q − zero point) × scale."""
    t = p.parts
    weight, scale, zeros = t[".weight"], t[ending], t.get(".weight_zero_point")
    raw = rows_of(weight, first, last)
    q = weight.dtype.decode(raw) if weight.shape == p.shape else DTYPES["F4"].decode(unpack_bits(raw, 4))
    if zeros is not None:
        q = q - _per_block(zeros, zeros.dtype, p, first, last)
    return np.asarray(q * _per_block(scale, _kind_of_scales(scale), p, first, last), np.float32)


def _per_block(source: Source, kind: DType, p: Packed, first: int, last: int) -> Array:
    """Scales of blocks for some rows, float32: [rows, columns] or what broadcasts to that."""
    high, broad, *grid = p.options
    tall, wide = grid[-2:]
    rows, out = np.arange(first, last), p.shape[-2]
    line = rows % out // high  # of the grid
    if len(grid) == 3 and grid[0] > 1:
        line += rows // out * tall
    low, above = int(line.min()), int(line.max()) + 1
    scales = kind.decode(source.read(low * wide, above * wide)).reshape(-1, wide)
    return spread(scales[line - low], broad, p.shape[-1])


# ── four and six bits: compressed-tensors' nvfp4 and mxfp6, ModelOpt's NVFP4QTensor, the OCP MX format ──


def small(bits: int, main: str, group: int, outer: str, base: str, t: Parts, _: Settings) -> Made:
    """FP4, two in a byte, or FP6, four in three bytes, with a scale for every group of numbers in a row."""
    weight, scale = t[main], t[".weight_scale"]
    if weight.dtype.name != "U8" or len(weight.shape) not in (2, 3) or 0 in weight.shape:
        return None
    *lead, stored = weight.shape
    width = scale.shape[-1] * group if scale.shape else 0
    if scale.shape[:-1] != tuple(lead) or stored * 8 != bits * width:
        if bits == 6:
            return None  # FP4, or nothing that is known
        raise fault(scale, f"{base}: {list(weight.shape)} bytes of FP4 need a scale for every {group} numbers")
    kinds = _FLOAT8[:1] if outer else ("U8", "F8_E8M0")
    require(scale, scale.shape, *kinds)
    if outer and not (len(lead) == 2 and t[outer].shape == (lead[0],)):
        require_numbers(t[outer], 1)
    return (*lead, width), bits, (bits, group)


def small_rows(main: str, outer: str, p: Packed, first: int, last: int) -> Array:
    """value = q × scale, and × the scale of the whole matrix, which compressed-tensors keeps inverted."""
    bits, group = p.options
    t = p.parts
    q = DTYPES["F4" if bits == 4 else "F6_E2M3"].decode(unpack_bits(rows_of(t[main], first, last), bits))
    scale = _kind_of_scales(t[".weight_scale"]).decode(rows_of(t[".weight_scale"], first, last))
    if outer:
        of_all = t[outer].dtype.decode(t[outer].read(0, math.prod(t[outer].shape)))
        each = of_all[np.arange(first, last) // p.shape[-2]][:, None] if of_all.size > 1 else of_all[0]
        scale = scale / each if outer == ".weight_global_scale" else scale * each
    return np.asarray(q * spread(scale, group, p.shape[-1]), np.float32)


# ── MXFP4 of gpt-oss: transformers' integrations/mxfp4.py, convert_moe_packed_tensors ──────────────────


def mxfp4(base: str, t: Parts, __: Settings) -> Made:
    """Experts as blocks [expert, row, group, 16 bytes]; the matrix lies transposed, as the unpacked tensor does."""
    blocks = t["_blocks"]
    if len(blocks.shape) != 4 or blocks.dtype.name != "U8":
        return None
    experts, rows, groups, half = blocks.shape
    if half != 16 or 0 in blocks.shape:
        raise fault(blocks, f"{base}: blocks of {half} bytes, expected 16")
    require(t["_scales"], (experts, rows, groups), "U8", "F8_E8M0")
    return (experts, groups * 32, rows), 4, ()


def mxfp4_rows(p: Packed, first: int, last: int) -> Array:
    """value = FP4 × 2^(scale − 127): rows of [experts · in, out], which are columns of the blocks."""
    t, (_, width, out) = p.parts, p.shape
    found = np.empty((last - first, out), np.float32)
    for expert in range(first // width, -(-last // width)):
        low, high = max(first - expert * width, 0), min(last - expert * width, width)
        groups = slice(low // 32, -(-high // 32), 1)
        part = (slice(expert, expert + 1, 1), slice(0, out, 1), groups)
        raw = read_region(t["_blocks"], (*part, slice(0, 16, 1)))[0]  # [out, groups, 16]
        scale = DTYPES["F8_E8M0"].decode(read_region(t["_scales"], part)[0])[..., None]
        values = (DTYPES["F4"].decode(unpack_bits(raw, 4)) * scale).reshape(out, -1)
        found[expert * width + low - first :][: high - low] = values[:, low % 32 :][:, : high - low].T
    return found
