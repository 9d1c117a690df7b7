"""Stored weights times many vectors: tiles of the product that stay in registers while sums are formed.

The numbers of `x` lie in panels, [panels, n, PANEL], so that a vector has one number of each of PANEL rows. A part of
the job is some rows of w, of which CHUNK numbers at a time are widened into a place that stays in the cache; a tile
is TILE of these rows times a panel. Sums are formed number by number, a chunk after another, whatever the number of
rows and of threads. Source of the order of the loops: Goto and van de Geijn, "Anatomy of high-performance matrix
multiplication", ACM Transactions on Mathematical Software 34 (3), 2008.
"""

from __future__ import annotations

import functools

import llvmlite.binding as llvm
from llvmlite import ir

from weightkit.compiled.loops import MATRICES, SHARED, Form, Job, each, loop, place, row_of, smaller, variable
from weightkit.compiled.numbers import (
    FLOAT,
    I32,
    I64,
    KINDS,
    Value,
    constant,
    fma,
    load,
    splat,
    store,
    vector,
    widen_f32,
)

PANEL = 32 if llvm.get_host_cpu_features().get("avx512f") else 16  # rows of x: two registers
TILE = 6  # rows of w: twice so many registers hold sums
CHUNK = 512  # numbers of a row of w that are widened at a time
PART = 96  # rows of w: as float32 a chunk of them is less than the cache of a core
UNROLLED = 4  # numbers of a row of w that one turn of the loop multiplies
SQUARE = 8  # rows and columns that are transposed in registers


def _transposed(b: Value, rows: list[Value]) -> list[Value]:
    """Eight vectors of eight numbers, rows becoming columns."""
    for distance in (4, 2, 1):
        shuffles = [
            ir.Constant(vector(I32, SQUARE), [_from(lane, distance, upper) for lane in range(SQUARE)])
            for upper in (0, 1)
        ]
        made = list(rows)
        for i in range(SQUARE):
            if not i & distance:
                made[i] = b.shuffle_vector(rows[i], rows[i + distance], shuffles[0])
                made[i + distance] = b.shuffle_vector(rows[i], rows[i + distance], shuffles[1])
        rows = made
    return rows


def _from(lane: int, distance: int, upper: int) -> int:
    """The number that a lane gets when squares of `distance` change places; those of the second vector are 8 and up."""
    if not upper:
        return lane if not lane & distance else SQUARE + lane - distance
    return lane + distance if not lane & distance else SQUARE + lane


# ── panels ─────────────────────────────────────────────────────────────────────────────────────────────

PACK = (*SHARED, "x", "x_step", "rows", "n", "y")


def _pack(b: Value, kind: str, job: Job, first: Value, last: Value) -> None:  # noqa: ARG001
    """The panels `first` to `last` of x; beyond its rows the last one is there again."""
    end = b.sub(job.rows, I64(1))
    squares = b.and_(job.n, I64(-SQUARE))

    def each_square(top: Value) -> None:
        rows = [smaller(b, b.add(top, I64(i)), end) for i in range(SQUARE)]
        xs = [b.add(job.x, b.mul(row, job.x_step)) for row in rows]
        panel, across = b.udiv(top, I64(PANEL)), b.urem(top, I64(PANEL))
        y = b.add(job.y, b.mul(b.add(b.mul(b.mul(panel, job.n), I64(PANEL)), across), I64(4)))

        def put(index: Value, more: int, value: Value) -> None:
            store(b, value, b.add(y, b.mul(b.add(index, I64(more)), I64(4 * PANEL))))

        def turn(index: Value) -> None:
            columns = _transposed(b, [widen_f32(b, place(b, "F32", x, index), SQUARE) for x in xs])
            for more, column in enumerate(columns):
                put(index, more, column)

        def gather(index: Value) -> None:
            column = constant(vector(FLOAT, SQUARE), 0)
            for lane, x in enumerate(xs):
                column = b.insert_element(column, load(b, place(b, "F32", x, index), FLOAT), I32(lane))
            put(index, 0, column)

        loop(b, I64(0), squares, SQUARE, turn)
        loop(b, squares, job.n, 1, gather)

    loop(b, b.mul(first, I64(PANEL)), b.mul(last, I64(PANEL)), SQUARE, each_square)


# ── tiles ──────────────────────────────────────────────────────────────────────────────────────────────


def _tiles(b: Value, kind: str, job: Job, first: Value, last: Value, *, transposed: bool = False) -> None:
    """y[i, j] = Σ w[j, k] · x[i, k] for the rows `first` to `last` of w and all rows of x."""
    with b.goto_entry_block():
        wide = b.ptrtoint(b.alloca(ir.ArrayType(FLOAT, PART * CHUNK)), I64)
        room = b.ptrtoint(b.alloca(ir.ArrayType(FLOAT, PANEL * SQUARE)), I64)
    steps = (1, PART) if transposed else (CHUNK, 1)  # from row to row, and from number to number, of what is widened
    panels = b.udiv(b.add(job.rows, I64(PANEL - 1)), I64(PANEL))

    def each_chunk(start: Value) -> None:
        count = smaller(b, b.sub(job.n, start), I64(CHUNK))
        fresh = b.icmp_signed("==", start, I64(0))
        (_widen_transposed if transposed else _widen)(b, kind, job, (first, last), (start, count), wide)

        def each_panel(panel: Value) -> None:
            x = b.add(job.x, b.mul(b.add(b.mul(panel, job.n), start), I64(4 * PANEL)))
            left = smaller(b, b.sub(job.rows, b.mul(panel, I64(PANEL))), I64(PANEL))
            y = b.add(job.y, b.mul(b.mul(panel, I64(PANEL)), job.y_step))

            def each_tile(j: Value) -> None:
                w = b.add(wide, b.mul(b.sub(j, first), I64(4 * steps[0])))
                sums = _tile(b, x, w, count, steps)
                here = smaller(b, b.sub(last, j), I64(TILE))
                _put(b, sums, b.add(y, b.mul(j, I64(4))), job.y_step, (left, here), fresh, room)

            loop(b, first, last, TILE, each_tile)

        loop(b, I64(0), panels, 1, each_panel)

    loop(b, I64(0), job.n, CHUNK, each_chunk)


def _widen(b: Value, kind: str, job: Job, rows: tuple[Value, Value], chunk: tuple[Value, Value], wide: Value) -> None:
    """A chunk of some rows of w as float32, [PART, CHUNK]."""
    start, count = chunk

    def each_row(j: Value) -> None:
        w, y = place(b, kind, row_of(b, job, j), start), b.add(wide, b.mul(b.sub(j, rows[0]), I64(4 * CHUNK)))
        _copy(b, kind, w, count, y)

    loop(b, *rows, 1, each_row)


def _widen_transposed(
    b: Value, kind: str, job: Job, rows: tuple[Value, Value], chunk: tuple[Value, Value], wide: Value
) -> None:
    """The same of a w that is stored transposed, [CHUNK, PART]."""
    start, count = chunk

    def each_number(k: Value) -> None:
        w = place(b, kind, row_of(b, job, b.add(start, k)), rows[0])
        _copy(b, kind, w, b.sub(rows[1], rows[0]), b.add(wide, b.mul(k, I64(4 * PART))))

    loop(b, I64(0), count, 1, each_number)


def _copy(b: Value, kind: str, w: Value, n: Value, y: Value) -> None:
    def some(index: Value, lanes: int) -> None:
        store(b, KINDS[kind](b, place(b, kind, w, index), lanes), place(b, "F32", y, index))

    each(b, kind, n, some)


def _tile(b: Value, x: Value, w: Value, count: Value, steps: tuple[int, int]) -> list[Value]:
    """The sums of a tile: for each of its rows of w a vector of PANEL."""
    lanes = vector(FLOAT, PANEL)
    sums = [variable(b, constant(lanes, 0)) for _ in range(TILE)]

    def turn(k: Value, numbers: int) -> None:
        values = [b.load(sum, typ=lanes) for sum in sums]
        for more in range(numbers):
            at = b.add(k, I64(more))
            panel = load(b, b.add(x, b.mul(at, I64(4 * PANEL))), lanes)
            number = b.add(w, b.mul(at, I64(4 * steps[1])))
            for i in range(TILE):
                weight = load(b, b.add(number, I64(4 * i * steps[0])), FLOAT)
                values[i] = fma(b, panel, splat(b, weight, PANEL), values[i])
        for sum, value in zip(sums, values, strict=True):
            b.store(value, sum)

    whole = b.and_(count, I64(-UNROLLED))
    loop(b, I64(0), whole, UNROLLED, lambda k: turn(k, UNROLLED))
    loop(b, whole, count, 1, lambda k: turn(k, 1))
    return [b.load(sum, typ=lanes) for sum in sums]


def _put(
    b: Value, sums: list[Value], y: Value, y_step: Value, size: tuple[Value, Value], fresh: Value, room: Value
) -> None:
    """A tile in y, whose rows are those of x, or added to it if not `fresh`; at the edges only as much as there is."""

    def put(value: Value, at: Value) -> None:
        before = load(b, at, value.type)
        store(b, b.select(fresh, value, b.fadd(value, before)), at)

    squares = []
    for start in range(0, PANEL, SQUARE):
        part = ir.Constant(vector(I32, SQUARE), list(range(start, start + SQUARE)))
        rows = [b.shuffle_vector(sum, sum, part) for sum in sums]
        squares += _transposed(b, rows + [constant(vector(FLOAT, SQUARE), 0)] * (SQUARE - TILE))
    full = b.and_(b.icmp_signed("==", size[0], I64(PANEL)), b.icmp_signed("==", size[1], I64(TILE)))
    with b.if_else(full) as (whole, edge):
        with whole:
            used = ir.Constant(vector(I32, TILE), list(range(TILE)))
            for i, row in enumerate(squares):
                put(b.shuffle_vector(row, row, used), b.add(y, b.mul(I64(i), y_step)))
        with edge:
            for i, row in enumerate(squares):
                store(b, row, b.add(room, I64(4 * SQUARE * i)))

            def each_row(i: Value) -> None:
                def number(j: Value) -> None:
                    sum = load(b, place(b, "F32", b.add(room, b.mul(i, I64(4 * SQUARE))), j), FLOAT)
                    put(sum, place(b, "F32", b.add(y, b.mul(i, y_step)), j))

                loop(b, I64(0), size[1], 1, number)

            loop(b, I64(0), size[0], 1, each_row)


FORMS: dict[str, Form] = {
    "pack": (PACK, _pack),
    "tiles": (MATRICES, _tiles),
    "tiles of columns": (MATRICES, functools.partial(_tiles, transposed=True)),
}
