"""Compiled counting: how often each bit pattern occurs, and exact sums of powers of float32.

A function goes over `rows` rows of `n` stored elements, `step` bytes from one row to the next, and adds to
tables that are there. Patterns that follow each other are counted in tables of their own, for a processor
waits where it reads what it has just written.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

from weightkit.compiled import _compile

PAD = 80  # counts between tables: a processor takes places that are alike in their last 12 bits for one place
RECORDS = 512  # of float32, by sign and exponent; a record is 8 integers: Σm, 0, and Σm², Σm³, Σm⁴ of 128 bits each
EXTREMES = 4  # integers: zeros, infinities, the lowest and the highest finite number as ordered keys

Count = Callable[..., None]  # (data, rows, n, step, tables)

_ROWS = """
define void @{name}(ptr %data, i64 %rows, i64 %n, i64 %step, {tables}) {{
entry:
  {start}
  %whole = and i64 %n, -{each}
  br label %row.test
row.test:
  %r = phi i64 [ 0, %entry ], [ %r.next, %row.end ]
  %more = icmp slt i64 %r, %rows
  br i1 %more, label %row, label %end
row:
  %away = mul i64 %r, %step
  %at = getelementptr i8, ptr %data, i64 %away
  br label %many.test
many.test:
  %i = phi i64 [ 0, %row ], [ %i.next, {last} ]
  %i.in = icmp slt i64 %i, %whole
  br i1 %i.in, label %many, label %one.test
many:
  {many}
  %i.next = add i64 %i, {each}
  br label %many.test
one.test:
  %j = phi i64 [ %whole, %many.test ], [ %j.next, %one ]
  %j.in = icmp slt i64 %j, %n
  br i1 %j.in, label %one, label %row.end
one:
  {one}
  %j.next = add i64 %j, 1
  br label %one.test
row.end:
  %r.next = add i64 %r, 1
  br label %row.test
end:
  {finish}
  ret void
}}
"""


def _count(index: str, first: int, name: str) -> list[str]:
    """Add one to a place of the table that starts with count `first`."""
    return [
        f"%{name}.place = add i64 {index}, {first}",
        f"%{name}.at = getelementptr i32, ptr %tables, i64 %{name}.place",
        f"%{name}.old = load i32, ptr %{name}.at, align 4",
        f"%{name}.new = add i32 %{name}.old, 1",
        f"store i32 %{name}.new, ptr %{name}.at, align 4",
    ]


def tables(bits: int) -> tuple[int, int]:
    """The shape of the tables of 32-bit counts: how many, and from one to the next.

    Two of 16 bits leave room in the fastest cache for what is counted.
    """
    return (2 if bits == 16 else 4), (1 << bits) + PAD


def _patterns(bits: int) -> str:
    """Counts of elements of 8 or 16 bits, two times eight bytes at a time."""
    each = 64 // bits
    number, step = tables(bits)
    many = []
    for i in range(2 * each):
        word, k = divmod(i, each)
        if not k:
            many += [
                f"%i{word} = add i64 %i, {i}",
                f"%p{word} = getelementptr i{bits}, ptr %at, i64 %i{word}",
                f"%word{word} = load i64, ptr %p{word}, align 1",
            ]
        many += [f"%s{i} = lshr i64 %word{word}, {k * bits}", f"%v{i} = and i64 %s{i}, {(1 << bits) - 1}"]
        many += _count(f"%v{i}", i % number * step, f"c{i}")
    one = [
        f"%q = getelementptr i{bits}, ptr %at, i64 %j",
        f"%x = load i{bits}, ptr %q, align 1",
        f"%y = zext i{bits} %x to i64",
        *_count("%y", 0, "c"),
    ]
    return _ROWS.format(
        name="patterns", tables="ptr %tables", start="", each=2 * each, last="%many",
        many="\n  ".join(many), one="\n  ".join(one), finish="",
    )  # fmt: skip


# The next float32, -0 being 0.
_NEXT = """
  %p = getelementptr i32, ptr %at, i64 %i
  %stored = load i32, ptr %p, align 1
  %minus = icmp eq i32 %stored, -2147483648
  %x = select i1 %minus, i32 0, i32 %stored"""

# As m, 24 bits, times a power of two. Its upper 16 bits are counted.
_SINGLE = """
  %upper = lshr i32 %x, 16
  %bin = zext i32 %upper to i64
  {count}
  %exponent.bits = lshr i32 %x, 23
  %exponent = and i32 %exponent.bits, 255
  %special = icmp eq i32 %exponent, 255
  br i1 %special, label %not.finite, label %finite
not.finite:
  %rest = and i32 %x, 8388607
  %is.inf = icmp eq i32 %rest, 0
  %inf.more = zext i1 %is.inf to i64
  %inf.old = load i64, ptr %infinities, align 8
  %inf.new = add i64 %inf.old, %inf.more
  store i64 %inf.new, ptr %infinities, align 8
  br label %next
finite:
  %fraction = and i32 %x, 8388607
  %normal = icmp ne i32 %exponent, 0
  %hidden = select i1 %normal, i32 8388608, i32 0
  %m32 = or i32 %fraction, %hidden
  %m = zext i32 %m32 to i64
  %record = zext i32 %exponent.bits to i64
  %place = shl i64 %record, 3
  {sums}
  %sign = ashr i32 %x, 31
  %flip = or i32 %sign, -2147483648
  %key32 = xor i32 %x, %flip
  %key = zext i32 %key32 to i64
  %low.old = load i64, ptr %low, align 8
  %high.old = load i64, ptr %high, align 8
  %lower = icmp slt i64 %key, %low.old
  %higher = icmp sgt i64 %key, %high.old
  %is.zero = icmp eq i32 %m32, 0
  %outside = or i1 %lower, %higher
  %rare = or i1 %outside, %is.zero
  br i1 %rare, label %extreme, label %next
extreme:
  %zero.more = zext i1 %is.zero to i64
  %zero.old = load i64, ptr %extremes, align 8
  %zero.new = add i64 %zero.old, %zero.more
  store i64 %zero.new, ptr %extremes, align 8
  %low.new = select i1 %lower, i64 %key, i64 %low.old
  store i64 %low.new, ptr %low, align 8
  %high.new = select i1 %higher, i64 %key, i64 %high.old
  store i64 %high.new, ptr %high, align 8
  br label %next
next:"""

_SUMS = """
  %m.wide = zext i64 %m to i128
  %m2 = mul i64 %m, %m
  %m2.wide = zext i64 %m2 to i128
  %m3.wide = mul i128 %m2.wide, %m.wide
  %m4.wide = mul i128 %m2.wide, %m2.wide"""


def _add(value: str, kind: str, offset: int) -> str:
    """Add to an integer of the record at `place`."""
    name = f"%t{offset}"
    return f"""
  {name}.place = add i64 %place, {offset}
  {name}.at = getelementptr i64, ptr %records, i64 {name}.place
  {name}.old = load {kind}, ptr {name}.at, align 8
  {name}.new = add {kind} {name}.old, {value}
  store {kind} {name}.new, ptr {name}.at, align 8"""


def _singles() -> str:
    """Counts of the upper halves of float32, sums of powers by sign and exponent, and extremes."""
    adds = [_add("%m", "i64", 0), *(_add(f"%m{k}.wide", "i128", 2 * k - 2) for k in (2, 3, 4))]
    many = _NEXT + _SINGLE.format(count="\n  ".join(_count("%bin", 0, "c")), sums=_SUMS + "".join(adds))
    start = "\n  ".join(
        f"%{name} = getelementptr i64, ptr %extremes, i64 {i}"
        for i, name in enumerate(("infinities", "low", "high"), 1)
    )
    return _ROWS.format(
        name="singles", tables="ptr %tables, ptr %records, ptr %extremes", start=start, each=1, last="%next",
        many=many, one="", finish="",
    )  # fmt: skip


# A number whose upper half is one of those asked for is counted by its lower half, in the table of that one.
_LOWER = """
  %upper32 = lshr i32 %x, 16
  %upper = zext i32 %upper32 to i64
  %slot.at = getelementptr i8, ptr %slots, i64 %upper
  %slot = load i8, ptr %slot.at, align 1
  %wanted = icmp ne i8 %slot, 0
  br i1 %wanted, label %found, label %next
found:
  %slot.wide = zext i8 %slot to i64
  %table = shl i64 %slot.wide, 16
  %lower32 = and i32 %x, 65535
  %lower = zext i32 %lower32 to i64
  %here = or i64 %table, %lower
  {count}
  br label %next
next:"""


def _lower_halves() -> str:
    many = _NEXT + _LOWER.format(count="\n  ".join(_count("%here", 0, "c")))
    return _ROWS.format(
        name="lower", tables="ptr %tables, ptr %slots", start="", each=1, last="%next", many=many, one="", finish="",
    )  # fmt: skip


@functools.cache
def patterns(bits: int) -> Count:
    """Counts of bit patterns: (data, rows, n, step, tables), tables being uint32, see `tables`."""
    return _function(_patterns(bits), "patterns", 1)


@functools.cache
def singles() -> Count:
    """Float32: (data, rows, n, step, uint32 [65536] of upper halves, records int64 [RECORDS, 8], int64 [EXTREMES])."""
    return _function(_singles(), "singles", 3)


@functools.cache
def lower_halves() -> Count:
    """Lower halves of some float32: (data, rows, n, step, uint32 [1 + slots, 65536], slot of an upper half uint8)."""
    return _function(_lower_halves(), "lower", 2)


def _function(text: str, name: str, tables: int) -> Count:
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * 3, *[ctypes.c_void_p] * tables)
    return kind(_compile(text, name)[0])
