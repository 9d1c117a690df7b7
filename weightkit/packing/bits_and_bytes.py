"""bitsandbytes: 4 bits with a code book, and LLM.int8(). Source: its functional.py, QuantState and dequantize_4bit."""

from __future__ import annotations

import math

import numpy as np

from weightkit import strictjson
from weightkit.dtypes import Array
from weightkit.errors import FormatError
from weightkit.packing.packed import (
    Made,
    Packed,
    Parts,
    Settings,
    fault,
    numbers,
    require_numbers,
    rows_of,
)
from weightkit.tensor import Source

MOST_STATE = 1 << 16  # bytes of a JSON state


def four(base: str, t: Parts, _: Settings) -> Made:
    """Two numbers in a byte, the first in its upper half; a book of 16 values; a scale for every block."""
    weight = t[".weight"]
    state = next((t[e] for e in t if ".quant_state." in e), None)
    if state is None:
        return None
    shape, block, nested, _offset = _state(state)
    size = math.prod(shape)
    if 0 in shape or weight.dtype.packed or weight.nbytes != -(-size // 2):  # bnb_4bit_quant_storage: any type
        raise fault(weight, f"{base} of shape {list(shape)} needs {-(-size // 2):,} bytes")
    blocks = -(-size // block)
    require_numbers(t[".weight.quant_map"], 16)
    if nested:
        if not {".weight.nested_absmax", ".weight.nested_quant_map"} <= set(t):
            raise fault(state, "speaks of nested scales, which are not there")
        require_numbers(t[".weight.nested_quant_map"], 256)
        require_numbers(t[".weight.nested_absmax"], -(-blocks // nested))
    require_numbers(t[".weight.absmax"], blocks, *(("U8",) if nested else ()))
    return shape, 4, (block, nested)


def _state(state: Source) -> tuple[tuple[int, ...], int, int, float]:
    """(shape, block size, block size of nested scales or 0, their offset)."""
    size = math.prod(state.shape)
    try:
        if size > MOST_STATE or state.dtype.name != "U8":
            raise ValueError
        value = strictjson.parse(state.read(0, size).tobytes(), state.name)
        shape, block, nested = tuple(value["shape"]), value["blocksize"], value.get("nested_blocksize") or 0
        numbers = (*shape, block, nested)
        offset = float(value.get("nested_offset") or 0.0)
        if not all(type(n) is int and 0 <= n < 1 << 40 for n in numbers) or not block or not shape:
            raise ValueError
    except (FormatError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        raise fault(state, "is not a state of bitsandbytes") from None
    return shape, block, nested, offset


def four_rows(p: Packed, first: int, last: int) -> Array:
    """value = book[q] × scale, and the scales themselves may be packed in the same way."""
    block, nested = p.options
    t = p.parts
    row = p.shape[-1] if len(p.shape) > 1 else 1
    start, stop = first * row, last * row
    each = t[".weight"].dtype.bits // 4  # numbers in one stored element
    raw = t[".weight"].read(start // each, -(-stop // each)).view(np.uint8)
    pairs = np.stack([raw >> 4, raw & 15], axis=-1).reshape(-1)[start % each :][: stop - start]
    code = numbers(t[".weight.quant_map"]).reshape(-1)
    low, high = start // block, -(-stop // block)
    stored = t[".weight.absmax"].read(low, high)
    if nested:
        state = next(source for ending, source in p.stored if ".quant_state." in ending)
        of_outer = t[".weight.nested_absmax"]
        outer = of_outer.dtype.decode(of_outer.read(low // nested, -(-high // nested)))
        index = np.arange(low, high) // nested - low // nested
        inner = numbers(t[".weight.nested_quant_map"]).reshape(-1)
        offset = np.float32(_state(state)[3])
        absmax = np.asarray(inner[stored] * outer[index] + offset, np.float32)
    else:
        absmax = t[".weight.absmax"].dtype.decode(stored)
    scale = np.repeat(absmax, block)[start - low * block :][: stop - start]
    return np.asarray(code[pairs] * scale, np.float32)


def eight(_: str, t: Parts, __: Settings) -> Made:
    """Whole numbers with a scale for every row."""
    weight = t[".weight"]
    if weight.dtype.name != "I8" or len(weight.shape) != 2:
        return None
    require_numbers(t[".SCB"], weight.shape[0])
    form = t.get(".weight_format")
    if form is not None:
        require_numbers(form, 1, "U8", "I8", "I32", "I64")
    return weight.shape, 8, ()


def eight_rows(p: Packed, first: int, last: int) -> Array:
    """value = q × scale of the row ÷ 127."""
    t = p.parts
    form = t.get(".weight_format")
    if form is not None and form.read(0, 1)[0] != 0:  # the tiles of old GPUs, which bitsandbytes reads no more
        raise fault(form, f"is {form.read(0, 1)[0]}: only weights in rows (0) can be read")
    scale = t[".SCB"].dtype.decode(t[".SCB"].read(first, last))
    value = rows_of(t[".weight"], first, last) * scale.astype(np.float32)[:, None]
    return np.asarray(value * np.float32(1 / 127), np.float32)
