"""The loops over matrices, written with the builder of LLVM: over rows, over the numbers of a row."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from weightkit.compiled.numbers import (
    BLOCKS,
    FLOAT,
    I32,
    I64,
    KINDS,
    LANES,
    Value,
    constant,
    fma,
    load,
    prefetch,
    splat,
    store,
    vector,
    widen_f32,
)

AHEAD = 1024  # bytes of a row that are asked for before they are needed: processors do not look beyond a page
GROUP = 8  # rows of a transposed matrix that are summed before they are added to what is there


# ── loops over the numbers of a row ────────────────────────────────────────────────────────────────────


def loop(b: Value, start: Value, stop: Value, step: int, body: Callable[[Value], None]) -> None:
    """`body(index)` from `start` to before `stop`."""
    before = b.block
    test, inside, after = (b.append_basic_block() for _ in range(3))
    b.branch(test)
    b.position_at_end(test)
    index = b.phi(I64)
    index.add_incoming(start, before)
    b.cbranch(b.icmp_signed("<", index, stop), inside, after)
    b.position_at_end(inside)
    body(index)
    index.add_incoming(b.add(index, I64(step)), b.block)
    b.branch(test)
    b.position_at_end(after)


def each(b: Value, kind: str, n: Value, body: Callable[[Value, int], None]) -> None:
    """`body(index, lanes)` for all numbers of a row, LANES at a time, then one by one; blocks leave none over."""
    whole = b.and_(n, I64(-LANES))
    loop(b, I64(0), whole, LANES, lambda index: body(index, LANES))
    if BLOCKS[kind][0] == 1:
        loop(b, whole, n, 1, lambda index: body(index, 1))


def place(b: Value, kind: str, row: Value, index: Value) -> Value:
    """The address of a number in a row of weights, or of its block."""
    count, size = BLOCKS[kind]
    return b.add(row, b.mul(b.udiv(index, I64(count)), I64(size)))


def total(b: Value, value: Value, join: Callable[[Value, Value], Value] | None = None) -> Value:
    """The sum of all lanes, halves upon halves; or what else two numbers are joined to."""
    join = join or b.fadd
    lanes = value.type.count
    while lanes > 1:
        lanes //= 2
        low, high = (ir.Constant(vector(I32, lanes), list(range(at, at + lanes))) for at in (0, lanes))
        value = join(b.shuffle_vector(value, value, low), b.shuffle_vector(value, value, high))
    return value


def smaller(b: Value, x: Value, y: Value) -> Value:
    """The smaller of two whole numbers."""
    return b.select(b.icmp_signed("<", x, y), x, y)


def variable(b: Value, value: Value) -> Value:
    """A place that holds a value and can be given others."""
    with b.goto_entry_block():
        place = b.alloca(value.type)
    b.store(value, place)
    return place


# ── kernels: each does the part `first` to `last` of a job, in whose arguments it finds everything ──────

SHARED = ("kernel", "step", "total")  # what all jobs begin with: the kernel, how much a part is, and all of it


class Job:
    """The arguments of a job by name, as the kernel reads them at its start."""

    def __init__(self, b: Value, address: Value, names: tuple[str, ...]) -> None:
        self._numbers = {name: load(b, b.add(address, I64(8 * i)), I64) for i, name in enumerate(names)}

    def __getattr__(self, name: str) -> Value:
        return self._numbers[name]

    def float32(self, b: Value, name: str) -> Value:
        """An argument that is the bits of a float32."""
        return b.bitcast(b.trunc(self._numbers[name], I32), FLOAT)


# Matrices are addresses, and bytes from row to row. Row j of w is row j % run of the run j // run, as in a
# fused tensor; all other matrices are one run.
MATRICES = (*SHARED, "x", "x_step", "rows", "n", "w", "w_step", "run", "run_step", "y", "y_step")


def row_of(b: Value, job: Job, j: Value) -> Value:
    """The address of a row of the weights."""
    across, within = b.udiv(j, job.run), b.urem(j, job.run)
    return b.add(job.w, b.add(b.mul(across, job.run_step), b.mul(within, job.w_step)))


def _dots(b: Value, kind: str, job: Job, first: Value, last: Value) -> None:
    """y[i, j] = Σ w[j, k] · x[i, k] for the rows `first` to `last` of w and all rows of x, two at a time."""

    def dot(count: int, w: Value, i: Value, j: Value) -> None:
        turns = [b.add(i, I64(more)) for more in range(count)]
        xs = [b.add(job.x, b.mul(turn, job.x_step)) for turn in turns]
        sums = {lanes: [variable(b, constant(vector(FLOAT, lanes), 0.0)) for _ in xs] for lanes in (LANES, 1)}

        def add(index: Value, lanes: int) -> None:
            at = place(b, kind, w, index)
            if lanes > 1:
                prefetch(b, b.add(at, I64(AHEAD)))
            weights = KINDS[kind](b, at, lanes)
            for x, sum in zip(xs, sums[lanes], strict=True):
                value = fma(b, weights, widen_f32(b, place(b, "F32", x, index), lanes), b.load(sum, typ=weights.type))
                b.store(value, sum)

        each(b, kind, job.n, add)
        for turn, most, rest in zip(turns, sums[LANES], sums[1], strict=True):
            whole = total(b, b.load(most, typ=vector(FLOAT, LANES)))
            whole = b.fadd(whole, b.load(rest, typ=vector(FLOAT, 1)))
            store(b, whole, b.add(b.add(job.y, b.mul(turn, job.y_step)), b.mul(j, I64(4))))

    def each_row(count: int, i: Value) -> None:
        loop(b, first, last, 1, lambda j: dot(count, row_of(b, job, j), i, j))

    pairs = b.and_(job.rows, I64(-2))  # of x, which stay in the cache while the rows of w go by
    loop(b, I64(0), pairs, 2, lambda i: each_row(2, i))
    loop(b, pairs, job.rows, 1, lambda i: each_row(1, i))


def _columns(b: Value, kind: str, job: Job, first: Value, last: Value) -> None:
    """y[i, k] += Σ x[i, j] · w[j, k] for the columns `first` to `last` of w, a few rows of it at a time."""
    size, n = BLOCKS[kind][1], b.sub(last, first)

    def some(count: int, i: Value, j: Value) -> None:
        x = b.add(b.add(job.x, b.mul(i, job.x_step)), b.mul(j, I64(4)))
        y = b.add(b.add(job.y, b.mul(i, job.y_step)), b.mul(first, I64(4)))
        factors = [b.extract_element(widen_f32(b, b.add(x, I64(4 * more)), 1), I32(0)) for more in range(count)]
        rows = [b.add(row_of(b, job, b.add(j, I64(more))), b.mul(first, I64(size))) for more in range(count)]

        def add(index: Value, lanes: int) -> None:
            sum = constant(vector(FLOAT, lanes), 0.0)
            for row, factor in zip(rows, factors, strict=True):
                sum = fma(b, KINDS[kind](b, place(b, kind, row, index), lanes), splat(b, factor, lanes), sum)
            at = place(b, "F32", y, index)
            store(b, b.fadd(sum, widen_f32(b, at, lanes)), at)

        each(b, kind, n, add)

    def each_row(i: Value) -> None:
        groups = b.and_(job.n, I64(-GROUP))
        loop(b, I64(0), groups, GROUP, lambda j: some(GROUP, i, j))
        loop(b, groups, job.n, 1, lambda j: some(1, i, j))

    loop(b, I64(0), job.rows, 1, each_row)


def _wide(b: Value, kind: str, job: Job, first: Value, last: Value) -> None:
    """y[j, k] = w[j, k] for the rows `first` to `last`."""

    def each_row(j: Value) -> None:
        w, y = row_of(b, job, j), b.add(job.y, b.mul(j, job.y_step))

        def copy(index: Value, lanes: int) -> None:
            store(b, KINDS[kind](b, place(b, kind, w, index), lanes), place(b, "F32", y, index))

        each(b, kind, job.n, copy)

    loop(b, first, last, 1, each_row)


Form = tuple[tuple[str, ...], Callable[[Value, str, Job, Value, Value], None]]
FORMS: dict[str, Form] = {"dots": (MATRICES, _dots), "columns": (MATRICES, _columns), "wide": (MATRICES, _wide)}
