"""The loop that compares two matrices: everything that is summed over pairs of numbers, in one pass, line by line."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from weightkit.compiled.loops import SHARED, Form, Job, loop, total, variable
from weightkit.compiled.numbers import BLOCKS, I32, I64, KINDS, Value, constant, fma, load, store, vector

DOUBLE = ir.DoubleType()
WIDE = 8  # pairs at a time: two vectors of four doubles for each sum stay in the registers
PAIRS = (*SHARED, "x", "x_step", "y", "y_step", "n", "out")
KEPT = (
    9  # doubles of a line: Σx², Σy², Σxy, Σ(y-x)², max |y-x|, pairs that differ, largest and Σ distance in steps, bad
)
TYPES = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # whose rows can be compared
Join = Callable[[Value, Value], Value]


def _differences(b: Value, kinds: str, job: Job, first: Value, last: Value) -> None:
    """For each line of two matrices, KEPT numbers; `kinds` names both types, as in BF16,F32."""
    kind_x, kind_y = kinds.split(",")

    def line(i: Value) -> None:
        at_x, at_y = b.add(job.x, b.mul(i, job.x_step)), b.add(job.y, b.mul(i, job.y_step))
        sums = {lanes: _Sums(b, lanes) for lanes in (WIDE, 1)}

        def add(index: Value, lanes: int) -> None:
            x, y = (b.add(at, b.mul(index, I64(BLOCKS[k][1]))) for at, k in ((at_x, kind_x), (at_y, kind_y)))
            sums[lanes].add(kind_x, kind_y, x, y)

        whole = b.and_(job.n, I64(-WIDE))
        loop(b, I64(0), whole, WIDE, lambda index: add(index, WIDE))
        loop(b, whole, job.n, 1, lambda index: add(index, 1))
        out = b.add(job.out, b.mul(i, I64(8 * KEPT)))
        for k, (wide, single) in enumerate(zip(sums[WIDE].totals(), sums[1].totals(), strict=True)):
            store(b, sums[WIDE].joined(k, wide, single), b.add(out, I64(8 * k)))

    loop(b, first, last, 1, line)


class _Sums:
    """What is summed over the pairs of a line, in so many lanes."""

    def __init__(self, b: Value, lanes: int) -> None:
        self._b, self._lanes = b, lanes
        self._double, self._long = vector(DOUBLE, lanes), vector(I64, lanes)
        doubles = [variable(b, constant(self._double, 0.0)) for _ in range(5)]
        self._places = [*doubles, *(variable(b, constant(self._long, 0)) for _ in range(4))]
        for place in self._places:  # a line begins with nothing
            kind = self._double if place in doubles else self._long
            b.store(constant(kind, 0), place)

    def _grow(self, k: int, value: Value, join: Join) -> None:
        old = self._b.load(self._places[k], typ=value.type)
        self._b.store(join(old, value), self._places[k])

    def add(self, kind_x: str, kind_y: str, at_x: Value, at_y: Value) -> None:
        """The pairs at two addresses. Pairs of which one is not finite count as bad, and as differing, alone."""
        b, lanes = self._b, self._lanes
        x, y = KINDS[kind_x](b, at_x, lanes), KINDS[kind_y](b, at_y, lanes)
        zero = constant(x.type, 0.0)
        sound = b.fadd(b.fmul(x, zero), b.fmul(y, zero))  # NaN where one is NaN or infinite
        finite = b.fcmp_ordered("ord", sound, sound)
        differ, steps = self._bits(kind_x, at_x, at_y) if kind_x == kind_y else self._values(x, y)
        x, y = (b.fpext(b.select(finite, v, zero), self._double) for v in (x, y))
        d = b.fsub(y, x)
        for k, (u, v) in enumerate(((x, x), (y, y), (x, y), (d, d))):
            self._grow(k, u, lambda old, u, v=v: fma(b, u, v, old))  # type: ignore[misc]
        self._grow(4, self._larger(d, b.fsub(x, y)), self._larger)
        self._grow(5, b.zext(differ, self._long), b.add)
        steps = b.zext(b.select(finite, steps, constant(steps.type, 0)), self._long)
        self._grow(6, steps, self._larger)
        self._grow(7, steps, b.add)
        self._grow(8, b.zext(b.not_(finite), self._long), b.add)

    def _larger(self, u: Value, v: Value) -> Value:
        b = self._b
        return b.select(b.fcmp_ordered(">", u, v) if u.type.element == DOUBLE else b.icmp_unsigned(">", u, v), u, v)

    def _bits(self, kind: str, at_x: Value, at_y: Value) -> tuple[Value, Value]:
        """Whether the bits of pairs of one type differ, and how many numbers of the type lie from one to the other."""
        b, bits = self._b, 8 * BLOCKS[kind][1]
        stored = vector(ir.IntType(bits), self._lanes)
        pair = [load(b, at, stored) for at in (at_x, at_y)]
        differ = b.icmp_unsigned("!=", *pair)
        wide = vector(I32, self._lanes)
        lowest = constant(wide, -(1 << bits - 1))
        keys = []
        for value in pair:
            value = value if bits == 32 else b.sext(value, wide)
            negative = b.icmp_signed("<", value, constant(wide, 0))
            keys.append(b.select(negative, b.sub(lowest, value), value))  # in the order of the numbers; -0 is 0
        up = b.icmp_signed(">", keys[1], keys[0])
        return differ, b.select(up, b.sub(keys[1], keys[0]), b.sub(keys[0], keys[1]))

    def _values(self, x: Value, y: Value) -> tuple[Value, Value]:
        """Whether the values of pairs of two types differ, two NaN being the same; there are no steps between these."""
        b = self._b
        nan = b.and_(b.fcmp_unordered("uno", x, x), b.fcmp_unordered("uno", y, y))
        differ = b.and_(b.fcmp_unordered("!=", x, y), b.not_(nan))
        return differ, constant(vector(I32, self._lanes), 0)

    def totals(self) -> list[Value]:
        """Each over all lanes, as vectors of one."""
        b = self._b
        doubles = [total(b, b.load(p, typ=self._double), self._larger if k == 4 else None) for k, p in self._up_to(5)]
        longs = [
            total(b, b.load(p, typ=self._long), self._larger if k == 6 else b.add)
            for k, p in list(enumerate(self._places))[5:]
        ]
        return doubles + longs

    def _up_to(self, count: int) -> list[tuple[int, Value]]:
        return list(enumerate(self._places[:count]))

    def joined(self, k: int, u: Value, v: Value) -> Value:
        """Two of the totals as one double."""
        b = self._b
        join = self._larger if k in (4, 6) else b.fadd if k < 5 else b.add
        value = join(u, v)
        return value if k < 5 else b.uitofp(value, vector(DOUBLE, 1))


FORMS: dict[str, Form] = {"differences": (PAIRS, _differences)}
