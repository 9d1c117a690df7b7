"""What a block does between its matrices, written with the builder of LLVM: norms, gates, rotation, attention."""

from __future__ import annotations

import math
from collections.abc import Callable

from llvmlite import ir

from weightkit.compiled.loops import SHARED, Form, Job, each, loop, smaller, total, variable
from weightkit.compiled.numbers import (
    FLOAT,
    I32,
    I64,
    LANES,
    VOID,
    Value,
    constant,
    exp,
    fma,
    load,
    splat,
    store,
    vector,
)

# All arrays are float32, addresses and steps bytes; what is said of rows is true of the last axis of any array.


def _floats(b: Value, address: Value, index: Value) -> Value:
    """The address of a number."""
    return b.add(address, b.mul(index, I64(4)))


def _load(b: Value, address: Value, index: Value, lanes: int) -> Value:
    return load(b, _floats(b, address, index), vector(FLOAT, lanes))


def _fold(
    b: Value, n: Value, first: float, take: Callable[[Value, int, Value], Value], join: Callable[[Value, Value], Value]
) -> Value:
    """One number out of n: `take(index, lanes, so far)` from some more of them each time, and all lanes joined."""
    kinds = {lanes: vector(FLOAT, lanes) for lanes in (LANES, 1)}
    places = {lanes: variable(b, constant(kind, first)) for lanes, kind in kinds.items()}

    def more(index: Value, lanes: int) -> None:
        b.store(take(index, lanes, b.load(places[lanes], typ=kinds[lanes])), places[lanes])

    each(b, "F32", n, more)
    most, rest = (b.load(places[lanes], typ=kinds[lanes]) for lanes in (LANES, 1))
    return b.extract_element(join(total(b, most, join), rest), I32(0))


def _map(b: Value, n: Value, y: Value, function: Callable[[Value, int], Value]) -> None:
    """y[i] = function(i) for n numbers, some lanes at a time."""
    each(b, "F32", n, lambda index, lanes: store(b, function(index, lanes), _floats(b, y, index)))


# ── norms ──────────────────────────────────────────────────────────────────────────────────────────────

NORM = (*SHARED, "x", "n", "w", "b", "eps", "y")


def _norm(b: Value, kind: str, job: Job, first: Value, last: Value) -> None:
    """Rows of x over the root of their mean square, times w; of kind "layer", from their mean, and plus b."""
    count = b.sitofp(job.n, FLOAT)

    def each_row(i: Value) -> None:
        x, y = (_floats(b, array, b.mul(i, job.n)) for array in (job.x, job.y))
        mean = FLOAT(0)
        if kind == "layer":
            whole = _fold(b, job.n, 0, lambda at, lanes, so_far: b.fadd(so_far, _load(b, x, at, lanes)), b.fadd)
            mean = b.fdiv(whole, count)

        def centred(at: Value, lanes: int) -> Value:
            value = _load(b, x, at, lanes)
            return b.fsub(value, splat(b, mean, lanes)) if kind == "layer" else value

        def square(at: Value, lanes: int, sum: Value) -> Value:
            value = centred(at, lanes)
            return fma(b, value, value, sum)

        squares = b.fdiv(_fold(b, job.n, 0, square, b.fadd), count)
        root = b.call(b.module.declare_intrinsic("llvm.sqrt", [FLOAT]), [b.fadd(squares, job.float32(b, "eps"))])

        def normed(at: Value, lanes: int) -> Value:
            value = b.fmul(b.fdiv(centred(at, lanes), splat(b, root, lanes)), _load(b, job.w, at, lanes))
            return b.fadd(value, _load(b, job.b, at, lanes)) if kind == "layer" else value

        _map(b, job.n, y, normed)

    loop(b, first, last, 1, each_row)


# ── sums ───────────────────────────────────────────────────────────────────────────────────────────────

ADD = (*SHARED, "x", "n", "more", "more_step", "factor", "y")


def _add(b: Value, kind: str, job: Job, first: Value, last: Value) -> None:
    """y = x + factor · more, for rows of n numbers; of kind "put", the rows of `more` themselves."""

    def each_row(i: Value) -> None:
        x, y = (_floats(b, array, b.mul(i, job.n)) for array in (job.x, job.y))
        more = b.add(job.more, b.mul(i, job.more_step))

        def added(at: Value, lanes: int) -> Value:
            value = _load(b, more, at, lanes)
            return value if kind == "put" else fma(b, value, splat(b, factor, lanes), _load(b, x, at, lanes))

        _map(b, job.n, y, added)

    factor = job.float32(b, "factor")
    loop(b, first, last, 1, each_row)


# ── activations that are x · sigmoid(g(x)) ─────────────────────────────────────────────────────────────

GATE = (*SHARED, "x", "up", "y")


def _gelu_tanh(b: Value, x: Value) -> Value:
    """Twice what the tanh of GELU is taken of, for (1 + tanh z) / 2 = sigmoid(2 z)."""
    number = 2 * math.sqrt(2 / math.pi)
    cube = b.fmul(b.fmul(b.fmul(x, x), x), constant(x.type, 0.044715))
    return b.fmul(b.fadd(x, cube), constant(x.type, number))


_INNER: dict[str, Callable[[Value, Value], Value]] = {
    "silu": lambda _, x: x,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": lambda b, x: b.fmul(x, constant(x.type, 1.702)),
}


def _activate(b: Value, kind: str, job: Job, first: Value, last: Value, *, gated: bool = False) -> None:
    """y = x · sigmoid(g(x)), times `up` where that is gated, for the numbers `first` to `last`."""
    x, up, y = (_floats(b, array, first) for array in (job.x, job.up, job.y))

    def activated(at: Value, lanes: int) -> Value:
        value = _load(b, x, at, lanes)
        shrunk = exp(b, b.fneg(_INNER[kind](b, value)))
        value = b.fdiv(value, b.fadd(shrunk, constant(shrunk.type, 1)))
        return b.fmul(value, _load(b, up, at, lanes)) if gated else value

    _map(b, b.sub(last, first), y, activated)


def _gate(b: Value, kind: str, job: Job, first: Value, last: Value) -> None:
    _activate(b, kind, job, first, last, gated=True)


# ── softmax ────────────────────────────────────────────────────────────────────────────────────────────

# Row i of the t of a head sees `seen` + i · `more` of n numbers at most, the last `window` of these.
SOFTMAX = (*SHARED, "x", "n", "t", "seen", "more", "window")


def _soften(b: Value, x: Value, n: Value) -> None:
    """The softmax of n numbers where they are."""

    def larger(a: Value, c: Value) -> Value:
        return b.select(b.fcmp_ordered(">", a, c), a, c)  # NaN is not; it stays in the numbers themselves

    most = _fold(b, n, -math.inf, lambda at, lanes, so_far: larger(_load(b, x, at, lanes), so_far), larger)

    def add(at: Value, lanes: int, sum: Value) -> Value:
        value = exp(b, b.fsub(_load(b, x, at, lanes), splat(b, most, lanes)))
        store(b, value, _floats(b, x, at))
        return b.fadd(sum, value)

    share = b.fdiv(FLOAT(1), _fold(b, n, 0, add, b.fadd))
    _map(b, n, x, lambda at, lanes: b.fmul(_load(b, x, at, lanes), splat(b, share, lanes)))


def _softmax(b: Value, kind: str, job: Job, first: Value, last: Value) -> None:  # noqa: ARG001
    """The softmax of what each row sees where it is, and 0 in the place of the rest."""

    def zero(x: Value, start: Value, stop: Value) -> None:
        _map(b, b.sub(stop, start), _floats(b, x, start), lambda _, lanes: constant(vector(FLOAT, lanes), 0))

    def each_row(i: Value) -> None:
        x = _floats(b, job.x, b.mul(i, job.n))
        stop = smaller(b, job.n, b.add(job.seen, b.mul(b.urem(i, job.t), job.more)))
        start = b.sub(stop, smaller(b, stop, job.window))
        zero(x, I64(0), start)
        _soften(b, _floats(b, x, start), b.sub(stop, start))
        zero(x, stop, job.n)

    loop(b, first, last, 1, each_row)


# ── rotation ───────────────────────────────────────────────────────────────────────────────────────────

TURN = (*SHARED, "x", "heads", "batch_step", "head_step", "token_step", "tokens", "n", "cos", "sin", "half", "y")


def _turner(b: Value, kind: str) -> Value:
    """The function (x, n, cos, sin, half, y) of a module, made once, as it is called in several places.

    y is the head x with the pairs of its first dimensions turned, of kind "pairs" side by side, and the others
    as they are: with `half` 0, a copy. Of kind "parted", pairs that are side by side in x are half a head apart in y.
    """
    if "turn_head" in b.module.globals:
        return b.module.globals["turn_head"]
    function = ir.Function(b.module, ir.FunctionType(VOID, [I64] * 6), "turn_head")
    function.attributes.add("noinline")
    b = ir.IRBuilder(function.append_basic_block())
    x, n, cos, sin, half, y = function.args
    whole = b.shl(half, I64(1))

    def pair(at: Value, lanes: int) -> None:
        twice = b.shl(at, I64(1))
        together, apart = (twice, b.add(twice, I64(1))), (at, b.add(at, half))
        p, q = (_load(b, x, place, lanes) for place in (apart if kind == "halves" else together))
        c, s = _load(b, cos, at, lanes), _load(b, sin, at, lanes)
        low, high = (_floats(b, y, place) for place in (together if kind == "pairs" else apart))
        store(b, b.fsub(b.fmul(p, c), b.fmul(q, s)), low)
        store(b, b.fadd(b.fmul(q, c), b.fmul(p, s)), high)

    if kind != "halves":
        loop(b, I64(0), half, 1, lambda at: pair(at, 1))
    else:
        each(b, "F32", half, pair)
    _map(b, b.sub(n, whole), _floats(b, y, whole), lambda at, lanes: _load(b, x, b.add(at, whole), lanes))
    b.ret_void()
    return function


def _turn(b: Value, kind: str, job: Job, first: Value, last: Value) -> None:
    """The heads `first` to `last` of all batches turned, one token after another."""
    turn = _turner(b, kind)

    def each_head(i: Value) -> None:
        batch, head = b.udiv(i, job.heads), b.urem(i, job.heads)
        x = b.add(job.x, b.add(b.mul(batch, job.batch_step), b.mul(head, job.head_step)))
        y = _floats(b, job.y, b.mul(i, b.mul(job.tokens, job.n)))

        def each_token(t: Value) -> None:
            cos, sin = (_floats(b, table, b.mul(t, job.half)) for table in (job.cos, job.sin))
            token = b.add(x, b.mul(t, job.token_step))
            b.call(turn, [token, job.n, cos, sin, job.half, _floats(b, y, b.mul(t, job.n))])

        loop(b, I64(0), job.tokens, 1, each_token)

    loop(b, first, last, 1, each_head)


# ── attention of one token ─────────────────────────────────────────────────────────────────────────────

# Queries, keys and values are rows of heads. `keys` and `values` are what is kept of the tokens before, a step from
# head to head; the token is at `place` in them and sees all from `start`. A head has room of its own for a turned
# query and its scores.
ATTEND = (
    *SHARED, "q", "k", "v", "cos", "sin", "half", "keys", "keys_step", "values", "values_step", "d", "e", "group",
    "start", "place", "scale", "room", "room_step", "y",
)  # fmt: skip


def _attend(b: Value, kind: str, job: Job, first: Value, last: Value) -> None:
    """The key heads `first` to `last`: their key and value join those kept, and their queries attend to all."""
    turn = _turner(b, kind)
    seen = b.sub(b.add(job.place, I64(1)), job.start)

    def each_head(i: Value) -> None:
        keys, values = b.add(job.keys, b.mul(i, job.keys_step)), b.add(job.values, b.mul(i, job.values_step))
        k, v = _floats(b, job.k, b.mul(i, job.d)), _floats(b, job.v, b.mul(i, job.e))
        query = b.add(job.room, b.mul(i, job.room_step))
        b.call(turn, [k, job.d, job.cos, job.sin, job.half, _floats(b, keys, b.mul(job.place, job.d))])
        b.call(turn, [v, job.e, job.cos, job.sin, I64(0), _floats(b, values, b.mul(job.place, job.e))])  # a copy
        keys, values = (_floats(b, kept, b.mul(job.start, size)) for kept, size in ((keys, job.d), (values, job.e)))

        def each_query(g: Value) -> None:
            number = b.add(b.mul(i, job.group), g)
            b.call(turn, [_floats(b, job.q, b.mul(number, job.d)), job.d, job.cos, job.sin, job.half, query])
            scores = _floats(b, query, job.d)
            _score(b, job, seen, query, keys, scores)
            _soften(b, scores, seen)
            _mix(b, job, seen, scores, values, _floats(b, job.y, b.mul(number, job.e)))

        loop(b, I64(0), job.group, 1, each_query)

    loop(b, first, last, 1, each_head)


def _score(b: Value, job: Job, seen: Value, query: Value, keys: Value, scores: Value) -> None:
    """scores[j] = query · keys[j] · scale."""

    def each_key(j: Value) -> None:
        key = _floats(b, keys, b.mul(j, job.d))

        def add(at: Value, lanes: int, sum: Value) -> Value:
            return fma(b, _load(b, query, at, lanes), _load(b, key, at, lanes), sum)

        score = b.fmul(_fold(b, job.d, 0, add, b.fadd), job.float32(b, "scale"))
        store(b, score, _floats(b, scores, j))

    loop(b, I64(0), seen, 1, each_key)


def _mix(b: Value, job: Job, seen: Value, weights: Value, values: Value, y: Value) -> None:
    """y = Σ weights[j] · values[j], some lanes of all values after others."""

    def mixed(at: Value, lanes: int) -> Value:
        kind = vector(FLOAT, lanes)
        place = variable(b, constant(kind, 0))

        def add(j: Value) -> None:
            weight = splat(b, load(b, _floats(b, weights, j), FLOAT), lanes)
            value = _load(b, _floats(b, values, b.mul(j, job.e)), at, lanes)
            b.store(fma(b, weight, value, b.load(place, typ=kind)), place)

        loop(b, I64(0), seen, 1, add)
        return b.load(place, typ=kind)

    _map(b, job.e, y, mixed)


FORMS: dict[str, Form] = {
    "norm": (NORM, _norm),
    "add": (ADD, _add),
    "gate": (GATE, _gate),
    "activate": (GATE, _activate),
    "softmax": (SOFTMAX, _softmax),
    "turn": (TURN, _turn),
    "attend": (ATTEND, _attend),
}
