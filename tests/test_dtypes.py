"""Bits to numbers and back, against the formats' definitions and exact rational arithmetic."""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from weightkit.dtypes import DTYPES
from weightkit.errors import EditError


class Format(NamedTuple):
    """A floating-point format as its standard describes it."""

    exponent: int  # bits
    mantissa: int
    bias: int
    special: str  # ieee: inf and NaN · fn: all ones is NaN · fnuz: -0 is NaN · none

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    def value(self, pattern: int) -> float:
        """The number that a bit pattern stands for."""
        negative = pattern >> (self.bits - 1)
        exponent = pattern >> self.mantissa & ((1 << self.exponent) - 1)
        fraction = pattern & ((1 << self.mantissa) - 1)
        full = exponent == (1 << self.exponent) - 1
        if self.special == "ieee" and full:
            return math.nan if fraction else (-math.inf if negative else math.inf)
        if self.special == "fn" and full and fraction == (1 << self.mantissa) - 1:
            return math.nan
        if self.special == "fnuz" and pattern == 1 << (self.bits - 1):
            return math.nan
        whole = fraction + (1 << self.mantissa) * (exponent > 0)
        size = math.ldexp(whole, max(exponent, 1) - self.bias - self.mantissa)
        return -size if negative else size

    @property
    def largest(self) -> float:
        return _largest(self)

    def rounded(self, value: float) -> Fraction:
        """The nearest number of the format, ties to even, as if it had no largest number."""
        exact = Fraction(value)
        exponent = max(math.frexp(value)[1] - 1, 1 - self.bias)
        unit = Fraction(2) ** (exponent - self.mantissa)
        return round(exact / unit) * unit


@functools.cache
def _largest(form: Format) -> float:
    values = map(form.value, range(1 << form.bits))
    return max(v for v in values if math.isfinite(v))


# IEEE 754 · Intel's bfloat16 · OCP OFP8 and MX 1.0 · Graphcore and AMD's FNUZ variants
FORMATS = {
    "F16": Format(5, 10, 15, "ieee"),
    "BF16": Format(8, 7, 127, "ieee"),
    "F8_E5M2": Format(5, 2, 15, "ieee"),
    "F8_E4M3": Format(4, 3, 7, "fn"),
    "F8_E5M2FNUZ": Format(5, 2, 16, "fnuz"),
    "F8_E4M3FNUZ": Format(4, 3, 8, "fnuz"),
    "F6_E3M2": Format(3, 2, 3, "none"),
    "F6_E2M3": Format(2, 3, 1, "none"),
    "F4": Format(2, 1, 1, "none"),
}
WRITABLE = [name for name, form in FORMATS.items() if form.bits >= 8]
INTEGERS = [name for name, dtype in DTYPES.items() if dtype.kind == "int"]


def patterns(name: str) -> NDArray[Any]:
    """Every bit pattern of a type of 16 bits or less, as stored elements."""
    dtype = DTYPES[name]
    return np.arange(1 << dtype.bits, dtype=f"<u{max(1, dtype.bits // 8)}").view(dtype.stored)


def same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Equal numbers, NaN like NaN, and zeros of the same sign."""
    return bool(np.array_equal(a, b, equal_nan=True) and np.array_equal(np.signbit(a[a == 0]), np.signbit(b[b == 0])))


@pytest.mark.parametrize("name", FORMATS)
def test_every_pattern_of_a_float_decodes_to_what_its_format_says(name: str) -> None:
    expected = np.array([FORMATS[name].value(p) for p in range(1 << FORMATS[name].bits)])
    for to in (np.float32, np.float64):
        decoded = DTYPES[name].decode(patterns(name), to)
        assert decoded.dtype == to
        assert same(decoded, expected.astype(to))


def test_e8m0_is_powers_of_two() -> None:
    decoded = DTYPES["F8_E8M0"].decode(patterns("F8_E8M0"))
    assert decoded.tolist()[:255] == [2.0 ** (p - 127) for p in range(255)]
    assert math.isnan(decoded[255])


def test_the_values_of_fp4_are_those_of_the_mx_table() -> None:
    half = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert DTYPES["F4"].decode(patterns("F4")).tolist() == half + [-x for x in half]


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("F4", [0x21, 0x43], [1, 2, 3, 4]),  # the low half of a byte comes first
        ("F6_E2M3", [0x81, 0x30, 0x10], [1, 2, 3, 4]),  # 000001 000010 000011 000100, lowest bits first
        ("F6_E3M2", [0xFF, 0x0F, 0x00], [63, 63, 0, 0]),
        ("U16", [1, 2], [513]),
        ("BF16", [0x80, 0x3F], [0x3F80]),
    ],
)
def test_packing(name: str, raw: list[int], expected: list[int]) -> None:
    dtype = DTYPES[name]
    assert dtype.unpack(np.array(raw, np.uint8)).tolist() == expected
    assert dtype.nbytes(len(expected)) == len(raw)


@pytest.mark.parametrize(("name", "group"), [("F4", 2), ("F6_E2M3", 4), ("F6_E3M2", 4), ("F8_E4M3", 1), ("F64", 1)])
@settings(deadline=None)
@given(data=st.data())
def test_unpacking_is_one_little_endian_number_cut_in_pieces(name: str, group: int, data: st.DataObject) -> None:
    dtype = DTYPES[name]
    raw = data.draw(st.binary(min_size=24, max_size=24))
    number, mask = int.from_bytes(raw, "little"), (1 << dtype.bits) - 1
    expected = [number >> (i * dtype.bits) & mask for i in range(len(raw) * 8 // dtype.bits)]
    unpacked = dtype.unpack(np.frombuffer(raw, np.uint8))
    assert unpacked.view(f"u{unpacked.itemsize}").tolist() == expected
    assert dtype.group == group


@pytest.mark.parametrize("name", [*WRITABLE, "F8_E8M0"])
def test_every_pattern_of_a_float_survives_decode_and_encode(name: str) -> None:
    dtype, stored = DTYPES[name], patterns(name)
    values = dtype.decode(stored, np.float64)
    again = dtype.encode(values)
    number = ~np.isnan(values)
    assert again.dtype == stored.dtype
    assert again[number].tobytes() == stored[number].tobytes()
    assert np.isnan(dtype.decode(again, np.float64)[~number]).all()


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_survive_decode_and_encode(name: str) -> None:
    info = np.iinfo(DTYPES[name].stored)
    top = min(int(info.max), 2**53)  # above, float64 has no odd numbers
    values = np.array([int(info.min), -1 if info.min else 0, 0, 1, top], np.float64)
    stored = DTYPES[name].encode(values)
    assert stored.dtype == DTYPES[name].stored
    assert stored.tolist() == values.astype(int).tolist()
    assert DTYPES[name].decode(stored, np.float64).tolist() == values.tolist()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1 + 2**-8 + 2**-40, 1 + 2**-7),  # float32 would make it a tie, and the tie goes down
        (1 + 3 * 2**-8 - 2**-40, 1 + 2**-7),  # … and here up
        (-(1 + 2**-8 + 2**-40), -(1 + 2**-7)),
        (1 + 2**-8, 1.0),  # real ties go to even
        (1 + 3 * 2**-8, 1 + 2**-6),
        (2.0**-134, 0.0),  # half of the smallest number: a tie, to zero
        (2.0**-134 * (1 + 2**-50), 2.0**-133),
        (5e-324, 0.0),
    ],
)
def test_bf16_is_rounded_once(value: float, expected: float) -> None:
    bf16 = DTYPES["BF16"]
    assert bf16.decode(bf16.encode(np.array([value]))).tolist() == [expected]


@pytest.mark.parametrize("name", WRITABLE)
@settings(deadline=None)
@given(data=st.data())
def test_encode_agrees_with_exact_arithmetic(name: str, data: st.DataObject) -> None:
    form = FORMATS[name]
    numbers = st.integers(0, (1 << form.bits) - 2).map(lambda p: (form.value(p) + form.value(p + 1)) / 2)
    nudged = st.tuples(numbers.filter(math.isfinite), st.sampled_from([0, 2**-52, -(2**-52), 2**-30, -(2**-30)]))
    near_ties = nudged.map(lambda pair: pair[0] * (1 + pair[1]))
    value = data.draw(near_ties | st.floats(-form.largest, form.largest))
    expected = form.rounded(value)
    if abs(expected) > Fraction(form.largest):
        with pytest.raises(EditError):
            DTYPES[name].encode(np.array([value]))
    else:
        assert DTYPES[name].decode(DTYPES[name].encode(np.array([value])), np.float64)[0] == float(expected)


@pytest.mark.parametrize("name", ["F64", "F32", *WRITABLE])
def test_nan_and_the_sign_of_zero_survive(name: str) -> None:
    dtype = DTYPES[name]
    all_ones = np.array([(1 << 63) - 1], np.uint64).view(np.float64)  # a NaN that rounding up would carry out of
    decoded = dtype.decode(dtype.encode(np.array([0.0, -0.0, np.nan, -np.nan, *all_ones])))
    assert np.isnan(decoded[2:]).all()
    assert decoded[:2].tolist() == [0, 0]
    assert np.signbit(decoded[1]) == ("FNUZ" not in name)  # those have one zero


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("F32", 1e39),
        ("F32", -1e39),
        ("F16", 65520.0),  # the first number that rounds to infinity
        ("BF16", 3.4e38),
        ("F8_E5M2", 61440.0),
        ("F8_E4M3", 480.0),
        ("F8_E4M3FNUZ", 256.0),
        ("F8_E5M2FNUZ", 1e5),
        ("F8_E8M0", 0.0),  # powers of two only
        ("F8_E8M0", -1.0),
        ("I8", 128.0),
        ("I8", -129.0),
        ("U8", -1.0),
        ("U8", 256.0),
        ("I64", 2.0**63),
        ("U64", 2.0**64),
        ("I32", 0.5),
        ("U16", 1.25),
        ("I16", math.nan),
        ("I32", math.inf),
        ("BOOL", 2.0),
        ("BOOL", 0.5),
        ("F4", 1.0),  # not written yet
        ("F6_E2M3", 1.0),
        ("C64", 1.0),
    ],
)
def test_what_does_not_fit_is_refused(name: str, value: float) -> None:
    with pytest.raises(EditError, match=name):
        DTYPES[name].encode(np.array([0.0 if name[:2] != "F8" else 1.0, value]))


@pytest.mark.parametrize("name", ["F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"])
def test_infinity_is_refused_where_there_is_none(name: str) -> None:
    with pytest.raises(EditError, match=name):
        DTYPES[name].encode(np.array([np.inf]))


@pytest.mark.parametrize("name", ["F64", "F32", "F16", "BF16", "F8_E5M2"])
def test_infinity_is_kept_where_there_is_one(name: str) -> None:
    dtype = DTYPES[name]
    assert dtype.decode(dtype.encode(np.array([np.inf, -np.inf]))).tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize(("name", "largest"), [("F16", 65519.0), ("F8_E5M2", 61439.0), ("F8_E4M3", 464.0)])
def test_what_rounds_down_to_the_largest_number_fits(name: str, largest: float) -> None:
    dtype = DTYPES[name]
    assert dtype.decode(dtype.encode(np.array([largest]))).tolist() == [FORMATS[name].largest]


def test_the_error_counts_what_does_not_fit() -> None:
    with pytest.raises(EditError, match=r"300 cannot be stored as U8 \(2 values\)"):
        DTYPES["U8"].encode(np.array([1.0, 300.0, 400.0]))


def test_float32_decodes_without_a_copy() -> None:
    stored = np.arange(4, dtype=np.float32)
    assert np.shares_memory(DTYPES["F32"].decode(stored), stored)


def test_what_float32_cannot_hold_becomes_infinite_quietly() -> None:
    assert DTYPES["F64"].decode(np.array([1e300, -1e300])).tolist() == [math.inf, -math.inf]


def test_complex_decodes_to_magnitude_and_bool_to_zero_or_one() -> None:
    assert DTYPES["C64"].decode(np.array([3 + 4j, -1], np.complex64)).tolist() == [5, 1]
    assert DTYPES["BOOL"].decode(np.array([0, 1, 2], np.uint8)).tolist() == [0, 1, 1]
