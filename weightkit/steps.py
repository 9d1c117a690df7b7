"""What a block does between its matrices, as compiled jobs on arrays of float32: norms, gates, rotations, sums.

A function named as a thing makes the job; one named as an action does it, and gives what it made.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Literal

import numpy as np

from weightkit.dtypes import Array
from weightkit.kernels import address_of, job
from weightkit.threads import Job, crew

PART_NUMBERS = 1 << 14  # that a thread takes at a time


@functools.cache
def _bits(number: float) -> int:
    """A float32, as the arguments of a job have it."""
    return int(np.float32(number).view(np.int32))


def _plain(x: Array) -> Array:
    """The array itself, or a copy whose numbers lie side by side."""
    return x if x.flags.c_contiguous else np.ascontiguousarray(x)


def norm(x: Array, w: Array, b: Array | None, eps: float, y: Array) -> Job:  # [..., d], [d], [d] -> [..., d]
    """y = x / √(mean x² + eps) · w; with b, of x less its mean, and plus b. y may be x."""
    width, kind, shift = x.shape[-1], "rms" if b is None else "layer", 0 if b is None else address_of(b)
    to = (address_of(x), width, address_of(w), shift, _bits(eps), address_of(y))
    return job("norm", kind, x.size // width, max(1, PART_NUMBERS // width), *to)


def normed(x: Array, w: Array, b: Array | None, eps: float) -> Array:  # [..., d], [d], [d] -> [..., d]
    """What `norm` makes."""
    x, w, b = _plain(x), _plain(w), b if b is None else _plain(b)
    y = np.empty_like(x)
    crew.run(norm(x, w, b, eps, y))
    return y


def activation(kind: str, x: Array, up: Array | None, y: Array) -> Job:  # [...] -> [...]
    """y = x · sigmoid of something ("silu", "gelu_tanh", "quick_gelu"), times `up` if given."""
    form, more = ("activate", 0) if up is None else ("gate", address_of(up))
    return job(form, kind, x.size, PART_NUMBERS, address_of(x), more, address_of(y))


def activated(kind: str, x: Array, up: Array | None = None) -> Array:  # [...] -> [...]
    """What `activation` makes."""
    x, up = _plain(x), up if up is None else _plain(up)
    y = np.empty_like(x)
    crew.run(activation(kind, x, up, y))
    return y


def sum_of(x: Array, more: Array, y: Array, factor: float = 1.0) -> Job:  # [r, n], [r, n] or [n] -> [r, n]
    """y = x + factor · more. y may be x."""
    return _sum("add", x, more, y, factor)


def copy(more: Array, y: Array) -> Job:  # [r, n] or [n] -> [r, n]
    """y = more."""
    return _sum("put", y, more, y, 1.0)


def _sum(kind: str, x: Array, more: Array, y: Array, factor: float) -> Job:
    width = x.shape[-1]
    to = (address_of(x), width, address_of(more), 4 * width * (more.ndim > 1), _bits(factor), address_of(y))
    return job("add", kind, x.size // width, max(1, PART_NUMBERS // width), *to)


def soften(x: Array, seen: int | None = None, window: int | None = None) -> None:  # [..., t, n]
    """The softmax over the last axis of numbers side by side, where they are; by this thread alone.

    With `seen`, row i of t is that of its first `seen` + i numbers, or of the last `window` of them; the rest is 0.
    """
    from weightkit.compiled import direct

    t, n = x.shape[-2:]
    sight = (n, 0) if seen is None else (seen, 1)
    arguments = (0, 0, 0, address_of(x), n, t, *sight, window or n)
    direct("softmax", "F32")((ctypes.c_int64 * len(arguments))(*arguments), 0, x.size // n)


def turned(x: Array, cos: Array, sin: Array, *, interleaved: bool) -> Array:  # [b, heads, t, d], [t, half] twice
    """Pairs of the first dimensions of each head turned, as positions.rotate does; those of a head lie together."""
    y = np.empty(x.shape, np.float32)
    batch, heads, tokens, d = x.shape
    strides, half = x.strides[:3], cos.shape[1]
    to = (address_of(x), heads, *strides, tokens, d, address_of(cos), address_of(sin), half, address_of(y))
    step = max(1, PART_NUMBERS // (tokens * d))
    crew.run(job("turn", "pairs" if interleaved else "halves", batch * heads, step, *to))
    return y


def place_and_start() -> tuple[int, int]:
    """Which numbers of a written attention are the place of its token, and of the first that it sees."""
    from weightkit.compiled import FIRST_ARGUMENT
    from weightkit.compiled.steps import ATTEND

    return FIRST_ARGUMENT + ATTEND.index("place"), FIRST_ARGUMENT + ATTEND.index("start")


Turning = Literal["halves", "pairs", "parted"]  # dimensions that turn together; "parted": pairs become halves


def attention(  # -> [b, heads · e]
    new: tuple[Array, Array, Array],
    kept: tuple[Array, Array],
    turn: tuple[Array, Array] | None,
    kind: Turning,
    scale: float,
    scratch: Array,
    y: Array,
) -> Job:
    """Attention of one token in each of b sequences, whose key and value join those that are kept.

    `new` are queries [b, heads, d], keys [b, kv_heads, d] and values [b, kv_heads, e], not turned yet; `kept` have
    room for them, [b, kv_heads, room, d] and [b, kv_heads, room, e]; `turn` cosines and sines, [half];
    `scratch` is [b · kv_heads, d + room]. The token is the first until the job as written says otherwise.
    """
    (q, k, v), (keys, values) = new, kept
    (_, kv_heads, room, d), e = keys.shape, values.shape[3]
    angles = (0, 0, 0) if turn is None else (*map(address_of, turn), turn[0].size)
    to = (
        *map(address_of, (q, k, v)), *angles, address_of(keys), 4 * room * d, address_of(values), 4 * room * e,
        d, e, q.shape[1] // kv_heads, 0, 0, _bits(scale), address_of(scratch), scratch.strides[0], address_of(y),
    )  # fmt: skip
    return job("attend", kind, len(q) * kv_heads, 1, *to)
