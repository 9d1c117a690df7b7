"""Numbers as LLVM sees them: vectors of float32, and how each stored type becomes one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

LANES = 32  # numbers at a time: a block of Q8_0 and Q4_0, and 4 vectors of AVX, whose sums do not wait for each other

BLOCKS = {  # the types that can be read: numbers in a block, and its bytes
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "F8_E4M3": (1, 1),
    "F8_E5M2": (1, 1),
    "Q8_0": (32, 34),
    "Q4_0": (32, 18),
}

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
HALF, FLOAT, POINTER, VOID = ir.HalfType(), ir.FloatType(), ir.PointerType(), ir.VoidType()
Value = Any  # of llvmlite, which has no types

_ARM = llvm.get_process_triple().startswith(("aarch64", "arm64"))


def vector(element: Value, lanes: int) -> Value:
    """The type of so many numbers side by side."""
    return ir.VectorType(element, lanes)


def constant(kind: Value, number: float) -> Value:
    """One number in all lanes of a type."""
    return ir.Constant(kind, [number] * kind.count)


def load(b: Value, address: Value, kind: Value) -> Value:
    """What lies at an address."""
    return b.load(b.inttoptr(address, POINTER), align=1, typ=kind)


def store(b: Value, value: Value, address: Value) -> None:
    """Put a value at an address."""
    b.store(value, b.inttoptr(address, POINTER), align=1)


def prefetch(b: Value, address: Value) -> None:
    """Ask for what will be read soon, from an address that need not exist."""
    kind = ir.FunctionType(VOID, [POINTER, I32, I32, I32])
    function = b.module.declare_intrinsic("llvm.prefetch", [POINTER], kind)
    b.call(function, [b.inttoptr(address, POINTER), I32(0), I32(3), I32(1)])


def splat(b: Value, number: Value, lanes: int) -> Value:
    """One number in all lanes."""
    one = b.insert_element(ir.Constant(vector(number.type, lanes), ir.Undefined), number, I32(0))
    return b.shuffle_vector(one, one, constant(vector(I32, lanes), 0))


def fma(b: Value, x: Value, y: Value, sum: Value) -> Value:
    """x · y + sum, in one instruction where the machine has it."""
    return b.fadd(b.fmul(x, y, flags=("contract",)), sum, flags=("contract",))


def exp(b: Value, x: Value) -> Value:
    """e^x to about float32 accuracy; 0 below what has its full precision, infinity where it is nearly that.

    2^n e^r with n = x / ln 2 to the nearest whole number. Source: the polynomial of expf in Cephes.
    """
    number = functools.partial(constant, x.type)
    shift = number(1.5 * 2**23)  # in a sum with it the last bits are a whole number
    shifted = fma(b, x, number(1 / math.log(2)), shift)
    n = b.fsub(shifted, shift)
    r = fma(b, n, number(-0.693359375), x)
    r = fma(b, n, number(2.12194440e-4), r)
    power = number(1.9875691500e-4)
    for coefficient in _EXP:
        power = fma(b, power, r, number(coefficient))
    power = fma(b, b.fmul(r, r), power, b.fadd(r, number(1)))
    whole = vector(I32, x.type.count)
    exponent = b.shl(b.add(b.bitcast(shifted, whole), constant(whole, 127)), constant(whole, 23))
    result = b.fmul(power, b.bitcast(exponent, x.type))
    result = b.select(b.fcmp_ordered("<", x, number(-87.3)), number(0), result)
    return b.select(b.fcmp_ordered(">", x, number(88.3)), number(math.inf), result)


_EXP = (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)  # highest power first


# ── stored weights to float32, `lanes` at a time ───────────────────────────────────────────────────────


def _widen_bits(b: Value, bits: Value, kind: Value) -> Value:
    return b.zext(bits, vector(kind, bits.type.count))


def _bfloat(b: Value, bits: Value) -> Value:
    wide = _widen_bits(b, bits, I32)
    return b.bitcast(b.shl(wide, constant(wide.type, 16)), vector(FLOAT, bits.type.count))


@functools.cache
def _has_half() -> bool:
    """Whether the machine widens float16 itself; where it does not, LLVM calls a function that may not exist."""
    return _ARM or bool(llvm.get_host_cpu_features().get("f16c"))


def _half(b: Value, bits: Value) -> Value:
    lanes = bits.type.count
    if _has_half():
        return b.fpext(b.bitcast(bits, vector(HALF, lanes)), vector(FLOAT, lanes))
    return _half_by_hand(b, bits)


def _half_by_hand(b: Value, bits: Value) -> Value:
    """Exponent and fraction in place, then times 2^112 for the other bias, which also norms what was subnormal."""
    wide = _widen_bits(b, bits, I32)
    floats = vector(FLOAT, bits.type.count)
    number = functools.partial(constant, wide.type)
    magnitude = b.shl(b.and_(wide, number(0x7FFF)), number(13))
    scaled = b.bitcast(b.fmul(b.bitcast(magnitude, floats), constant(floats, 2.0**112)), wide.type)
    special = b.icmp_unsigned(">=", magnitude, number(0x7C00 << 13))  # infinity and NaN keep the highest exponent
    scaled = b.select(special, b.or_(magnitude, number(0x7F800000)), scaled)
    return b.bitcast(b.or_(scaled, b.shl(b.and_(wide, number(0x8000)), number(16))), floats)


def widen_f32(b: Value, at: Value, lanes: int) -> Value:
    """Float32 as it is."""
    return load(b, at, vector(FLOAT, lanes))


def _bf16(b: Value, at: Value, lanes: int) -> Value:
    return _bfloat(b, load(b, at, vector(I16, lanes)))


def _f16(b: Value, at: Value, lanes: int) -> Value:
    return _half(b, load(b, at, vector(I16, lanes)))


def _f8_e5m2(b: Value, at: Value, lanes: int) -> Value:
    """The upper half of a float16."""
    wide = _widen_bits(b, load(b, at, vector(I8, lanes)), I16)
    return _half(b, b.shl(wide, constant(wide.type, 8)))


def _f8_e4m3(b: Value, at: Value, lanes: int) -> Value:
    """A float16 of another bias, without infinity, and with one NaN of each sign."""
    wide = _widen_bits(b, load(b, at, vector(I8, lanes)), I16)
    number = functools.partial(constant, wide.type)
    magnitude = b.and_(wide, number(0x7F))
    sign = b.shl(b.and_(wide, number(0x80)), number(8))
    shifted = b.select(b.icmp_unsigned("==", magnitude, number(0x7F)), number(0x7E00), b.shl(magnitude, number(7)))
    value = _half(b, b.or_(shifted, sign))
    return b.fmul(value, constant(value.type, 256.0))


def _scale(b: Value, at: Value) -> Value:
    scale = _half(b, load(b, at, vector(I16, 1)))
    return splat(b, b.extract_element(scale, I32(0)), LANES)


def _q8_0(b: Value, at: Value, lanes: int) -> Value:
    """A scale, then 32 numbers of 8 bits."""
    q = load(b, b.add(at, I64(2)), vector(I8, lanes))
    return b.fmul(b.sitofp(q, vector(FLOAT, lanes)), _scale(b, at))


def _q4_0(b: Value, at: Value, lanes: int) -> Value:
    """A scale, then 16 bytes: the lower halves are the first 16 numbers, the upper halves the others, all plus 8."""
    pairs = load(b, b.add(at, I64(2)), vector(I8, lanes // 2))
    low = b.and_(pairs, constant(pairs.type, 15))
    high = b.lshr(pairs, constant(pairs.type, 4))
    q = b.shuffle_vector(low, high, ir.Constant(vector(I32, lanes), list(range(lanes))))
    q = b.sub(q, constant(q.type, 8))
    return b.fmul(b.sitofp(q, vector(FLOAT, lanes)), _scale(b, at))


KINDS: dict[str, Callable[[Value, Value, int], Value]] = {
    "F32": widen_f32,
    "F16": _f16,
    "BF16": _bf16,
    "F8_E4M3": _f8_e4m3,
    "F8_E5M2": _f8_e5m2,
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
}
