"""Element types: how the bits in a file become numbers, and numbers become bits again.

Every type is handled through *stored elements*, one numpy item per number: the number itself where
numpy has the type, else its bit pattern in an unsigned integer (BF16 in uint16, FP8, FP6 and FP4 in
uint8). Types of less than a byte are packed only in the file.

The names and packings are those of the safetensors format; values of FP8, FP6 and FP4 come from the
tables of ml_dtypes.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from weightkit.errors import EditError, FormatError

Kind = Literal["float", "int", "bool", "complex"]
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type of a checkpoint file."""

    name: str  # as safetensors writes it, or as GGUF does
    bits: int  # of one element in the file, or of one block of them
    kind: Kind
    stored: str  # numpy type of one stored element, little-endian
    table: str = ""  # the ml_dtypes type whose bit patterns these are
    block: int = 1  # elements that share scales in the file; a stored element of such a type is a float32

    def nbytes(self, count: int) -> int:
        """Bytes that `count` elements take in a file. Packed types must fill whole bytes."""
        return count * self.bits // (8 * self.block)

    @property
    def group(self) -> int:
        """The smallest number of elements that ends on a byte: 1, or 2 (FP4), 4 (FP6), or a block."""
        return self.block if self.block > 1 else math.lcm(self.bits, 8) // self.bits

    @property
    def packed(self) -> bool:
        """Whether an element in the file is not simply some bytes of its own."""
        return self.block > 1 or self.bits < 8

    @property
    def patterns(self) -> int | None:
        """How many bit patterns a stored element can have, where they are few enough to count."""
        return 1 << self.bits if self.bits <= 16 and self.block == 1 else None

    def unpack(self, raw: Array) -> Array:
        """Bytes of a file, uint8 [n], to stored elements, flat."""
        if self.block > 1:
            return _widened(self.name, raw)
        if self.bits >= 8:
            return raw.view(self.stored)
        places = np.arange(self.group, dtype=np.uint32) * self.bits
        width = self.group * self.bits // 8  # bytes in a group, lowest first
        whole = np.zeros(raw.size // width, np.uint32)
        for byte in range(width):
            whole |= raw[byte::width].astype(np.uint32) << np.uint32(8 * byte)
        return ((whole[:, None] >> places) & ((1 << self.bits) - 1)).astype(np.uint8).ravel()

    def decode(self, stored: Array, to: DTypeLike = np.float32) -> Array:
        """Stored elements to numbers of type `to`; shares memory where nothing has to change.

        Complex numbers become their magnitudes.
        """
        values = stored
        if self.name == "BF16":
            values = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
        elif self.table:
            values = _values(self.table)[stored]
        elif self.kind == "bool":
            values = stored != 0
        elif self.kind == "complex":
            values = np.abs(stored)
        # A float64 beyond float32 becomes inf, as it should; a signalling NaN is no surprise here.
        with np.errstate(over="ignore", invalid="ignore"):
            return values.astype(to, copy=False)

    def encode(self, values: Array) -> Array:
        """Float64 numbers to stored elements, rounded once, to nearest even.

        Raises EditError where a finite number does not fit: a result that silently became infinity
        (or, in an integer type, another number) is never what was asked for.
        """
        stored = self.rounded(values)
        back = self.decode(stored, np.float64)
        fits = (back == values) | (np.isnan(back) & np.isnan(values))
        if self.kind == "float":
            fits |= np.isfinite(back) & np.isfinite(values)
        if not fits.all():
            worst = values[~fits].flat[0]
            raise EditError(f"{worst:g} cannot be stored as {self.name} ({int((~fits).sum()):,} values)")
        return stored

    def rounded(self, values: Array) -> Array:
        """As `encode`, but a number that does not fit becomes what it may: infinity, or another one."""
        values = np.asarray(values, np.float64)
        if self.kind == "complex" or self.packed:
            raise EditError(f"numbers cannot be written into {self.name} tensors")
        with np.errstate(over="ignore", invalid="ignore"):
            if self.name == "BF16":
                bits = _odd_float32(values).view(np.uint32)
                nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
                quiet = (bits >> np.uint32(16)) | np.uint32(0x40)  # rounding must not turn NaN into inf
                return np.where(np.isnan(values), quiet, nearest).astype(np.uint16)
            if self.table:
                return _odd_float32(values).astype(_ml_type(self.table)).view(np.uint8)
            return values.astype(self.stored)


def _odd_float32(values: Array) -> Array:
    """Float64 to float32, rounded to odd, so that one more rounding is as if it were the only one.

    Source: Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008.
    """
    near = values.astype(np.float32)
    back = near.astype(np.float64)
    bits = near.view(np.uint32)
    inexact = (back != values) & np.isfinite(values)
    bits = bits - (inexact & (np.abs(back) > np.abs(values)))  # truncate towards zero …
    return np.asarray(bits | inexact, np.uint32).view(np.float32)  # … and remember what was cut


def _widened(name: str, raw: Array) -> Array:
    """Blocks of a type of GGUF, uint8 [n], to float32, flat. FormatError for a type that cannot be read.

    A file may hold NaN or infinity as the scale of a block, which is no surprise here.
    """
    import gguf

    try:
        kind = gguf.GGMLQuantizationType[name]
        wide = 64 * gguf.GGML_QUANT_SIZES[kind][1]  # rows of one block would take ten times as long
        cut = raw.size // wide * wide
        parts = [part for part in (raw[:cut].reshape(-1, wide), raw[cut:].reshape(1, -1)) if part.size]
        with np.errstate(all="ignore"):
            numbers = [gguf.dequantize(part, kind) for part in parts]
    except (KeyError, NotImplementedError):
        raise FormatError(f"tensors of type {name} are listed and counted, but cannot be read: convert them") from None
    return np.concatenate([np.asarray(n, np.float32).reshape(-1) for n in numbers] or [np.empty(0, np.float32)])


def _ml_type(name: str) -> Any:
    import ml_dtypes

    return getattr(ml_dtypes, name)


@functools.cache
def _values(name: str) -> Array:
    """The float32 value of every bit pattern of a small type. [256], or fewer for FP6 and FP4."""
    import ml_dtypes

    kind = _ml_type(name)
    patterns = np.arange(1 << ml_dtypes.finfo(kind).bits, dtype=np.uint8)
    return patterns.view(kind).astype(np.float32)


DTYPES: dict[str, DType] = {
    dtype.name: dtype
    for dtype in (
        DType("F64", 64, "float", "<f8"),
        DType("F32", 32, "float", "<f4"),
        DType("F16", 16, "float", "<f2"),
        DType("BF16", 16, "float", "<u2"),
        DType("F8_E4M3", 8, "float", "u1", "float8_e4m3fn"),
        DType("F8_E5M2", 8, "float", "u1", "float8_e5m2"),
        DType("F8_E4M3FNUZ", 8, "float", "u1", "float8_e4m3fnuz"),
        DType("F8_E5M2FNUZ", 8, "float", "u1", "float8_e5m2fnuz"),
        DType("F8_E8M0", 8, "float", "u1", "float8_e8m0fnu"),
        DType("F6_E2M3", 6, "float", "u1", "float6_e2m3fn"),
        DType("F6_E3M2", 6, "float", "u1", "float6_e3m2fn"),
        DType("F4", 4, "float", "u1", "float4_e2m1fn"),
        DType("I64", 64, "int", "<i8"),
        DType("I32", 32, "int", "<i4"),
        DType("I16", 16, "int", "<i2"),
        DType("I8", 8, "int", "i1"),
        DType("U64", 64, "int", "<u8"),
        DType("U32", 32, "int", "<u4"),
        DType("U16", 16, "int", "<u2"),
        DType("U8", 8, "int", "u1"),
        DType("BOOL", 8, "bool", "u1"),
        DType("C64", 64, "complex", "<c8"),
        DType("C128", 128, "complex", "<c16"),
    )
}
