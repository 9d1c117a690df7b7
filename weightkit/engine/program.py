"""Program: the blocks of a model for one more token, as compiled jobs that are written down once.

A token of a small model takes numpy longer to be asked for than to compute. Where nobody looks at what passes
between the parts of a block, and the block does nothing unusual, all it does is a list of jobs that stays the
same from token to token but for two numbers of each attention: where the token is, and whom it sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from weightkit import steps
from weightkit.config import Config
from weightkit.engine.block import Block, Turn
from weightkit.engine.cache import Cache, Pair
from weightkit.engine.functions import COMPILED, F32
from weightkit.engine.weights import Rows
from weightkit.kernels import available, product
from weightkit.threads import Job, crew

Turns = tuple[Turn | None, Turn | None]  # of most layers, and of those with a window where they differ
ALL = 1 << 62  # a window that all tokens are within

# What may be as it likes in the config of a model that has a program: all else of a block is as usual.
_FREE = frozenset(
    """
    model_type width layers heads kv_heads head_dim ffn vocab positions activation eps tied position_kind rope
    window_rope unrotated windows qkv_bias output_bias ffn_bias parts norms parallel attention_scale scale_by_layer
    embed_scale residual_scale logit_scale logit_cap vision embed_width position_offset pad_id mtp_layers dtype
    quantization
    """.split()
)


class _UnusualError(Exception):
    """A block does what no job does."""


def program(block: Block, batch: int, turns: Turns) -> Program | None:
    """The program of a model for so many sequences; None where its blocks do anything that is no job."""
    config = block.config
    usual = all(getattr(config, f.name) == f.default for f in fields(Config) if f.name not in _FREE)
    if not usual or config.position_kind not in ("rope", "learned", "none") or not available():
        return None
    try:
        return Program(block, batch, turns)
    except _UnusualError:
        return None


@dataclass
class _Attention:
    """The attention of one layer, which is written down again when its keys and values have moved."""

    at: str
    number: int  # of its job
    window: int
    new: tuple[F32, F32, F32]  # q [b, heads, d], k [b, kv_heads, d], v [b, kv_heads, e]
    turn: Turn | None  # [half] each
    turning: steps.Turning
    scale: float
    y: F32  # [b, heads · e]

    def room(self, cache: Cache) -> Pair:
        """Where the keys and values are, with room for the new ones."""
        return cache.room(self.at, *(x[:, :, None] for x in self.new[1:]))


class Program:
    """What a block does for one token of each of `batch` sequences, layer after layer.

    It mirrors `Block`, and is held against it by the tests. Arrays are [batch, width]; those of one layer serve
    all others.
    """

    def __init__(self, block: Block, batch: int, turns: Turns) -> None:
        self._block, self._config, self._weights = block, block.config, block.weights
        self._batch = batch
        self._buffers: dict[tuple[str, int], F32] = {}
        self._held: list[F32] = []  # as the jobs know nothing but addresses
        self._used: set[str] = set()
        self._turns = tuple(None if turn is None else (turn[0][0].copy(), turn[1][0].copy()) for turn in turns)
        self._x = self._buffer("", self._config.width)
        self._jobs: list[Job] = []
        self._attentions: list[_Attention] = []
        self._kept: list[Pair] = []  # of each attention, as it is written down
        ends = [self._layer(layer) for layer in range(self._config.layers)]
        self._spans = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        self._written = np.stack([job.written() for job in self._jobs])  # [jobs, numbers]
        self._places = [attention.number for attention in self._attentions]
        self._windows = np.array([attention.window for attention in self._attentions])

    def __call__(self, x: F32, turns: Turns, cache: Cache) -> F32:  # [b, 1, width] -> [b, 1, width]
        """The output of the last block for the next token, which joins the cache."""
        self._x[:] = x[:, 0]
        for own, turn in zip(self._turns, turns, strict=True):
            if own is not None and turn is not None:
                own[0][:], own[1][:] = turn[0][0], turn[1][0]
        kept = [attention.room(cache) for attention in self._attentions]
        if not self._kept or any(new is not old for new, old in zip(kept, self._kept, strict=True)):
            self._move(kept)
        place, start = steps.place_and_start()
        self._written[self._places, place] = len(cache)
        self._written[self._places, start] = np.maximum(0, len(cache) + 1 - self._windows)
        for span in self._spans:  # a layer at a time, between which a user can interrupt
            crew.run_all(self._written[span])
        return self._x[:, None].copy()

    def _move(self, kept: list[Pair]) -> None:
        """Write down where the keys and values of the layers are now."""
        rows, room = (max(side) for side in zip(*(self._scratch_size(pair) for pair in kept), strict=True))
        scratch = self._hold(np.empty((rows, room), np.float32))
        self._kept = kept
        for a, pair in zip(self._attentions, kept, strict=True):
            job = steps.attention(a.new, pair, a.turn, a.turning, a.scale, scratch, a.y)
            self._written[a.number] = job.written()

    @staticmethod
    def _scratch_size(pair: Pair) -> tuple[int, int]:
        batch, kv_heads, room, d = pair[0].shape
        return batch * kv_heads, d + room

    # ── the layers ─────────────────────────────────────────────────────────────────────────────────

    def _layer(self, layer: int) -> int:
        """Write down a layer; returns how many jobs there are now."""
        at, x = f"layers.{layer}", self._x
        self._used.clear()
        if self._config.parallel:
            normed = self._norm(x, f"{at}.attn.norm")
            own = f"{at}.ffn.norm" in self._weights
            attended = self._attend(normed, f"{at}.attn", layer)
            fed = self._ffn(self._norm(x, f"{at}.ffn.norm") if own else normed, f"{at}.ffn")
            self._add(attended, fed)
            self._add(x, attended)
        else:
            self._half(f"{at}.attn", layer)
            self._half(f"{at}.ffn", layer)
        if self._weights.under(at) != self._used:  # there is more to it
            raise _UnusualError
        return len(self._jobs)

    def _half(self, at: str, layer: int) -> None:
        where, x = self._config.norms, self._x
        normed = self._norm(x, f"{at}.norm") if where in ("before", "both") else x
        y = self._attend(normed, at, layer) if at.endswith("attn") else self._ffn(normed, at)
        if where in ("after", "both"):
            y = self._norm(y, f"{at}.post_norm")
        self._add(x, y, self._config.residual_scale)
        if where == "sum":
            self._norm(x, f"{at}.post_norm", into=x)

    def _attend(self, x: F32, at: str, layer: int) -> F32:
        config = self._config
        names, counts = [f"{at}.{part}" for part in "qkv"], (config.heads, config.kv_heads, config.kv_heads)
        made = self._linears(x, *names)
        for y, name, heads in zip(made, names, counts, strict=True):
            self._head_norm(y, f"{name}.norm", heads)
        q, k, v = (y.reshape(self._batch, heads, -1) for y, heads in zip(made, counts, strict=True))
        turn, scale, window = (
            self._block.turn(layer, *self._turns),
            self._block.scale(layer),
            config.window(layer) or ALL,
        )
        y = self._buffer("attn.heads", config.heads * v.shape[2])
        number, turning, scale = len(self._jobs), self._turning(names[:2], turn), self._block.scale(layer)
        self._attentions.append(_Attention(at, number, window, (q, k, v), turn, turning, scale, y))
        self._jobs.append(Job(0, []))  # until it is known where keys and values are
        return self._linears(y, f"{at}.o")[0]

    def _turning(self, names: Sequence[str], turn: Turn | None) -> steps.Turning:
        """Which dimensions turn together, as the rows of Q and K are in the file."""
        parted = [self._rows(name).heads for name in names]
        if not any(parted):
            return "pairs" if self._config.rope.interleaved else "halves"
        whole = turn is not None and 2 * turn[0].size == self._config.head_dim
        more = [name for name in self._used for at in names if name.startswith(f"{at}.")]
        if not all(parted) or not whole or more or self._config.rope.interleaved:
            raise _UnusualError
        return "parted"

    def _ffn(self, x: F32, at: str) -> F32:
        kind = COMPILED.get(self._block.activation)
        if kind is None:
            raise _UnusualError
        gated = f"{at}.gate" in self._weights
        inner, *up = self._linears(x, *([f"{at}.gate"] if gated else []), f"{at}.up")
        self._jobs.append(steps.activation(kind, inner, up[0] if gated else None, inner))
        return self._linears(inner, f"{at}.down")[0]

    # ── the parts of a layer ───────────────────────────────────────────────────────────────────────

    def _linears(self, x: F32, *addresses: str) -> list[F32]:  # [b, in] -> [b, out] each
        matrices = [self._rows(address).matrix for address in addresses]
        found = [self._buffer(at, matrix.shape[0]) for at, matrix in zip(addresses, matrices, strict=True)]
        biases = [self._vector(f"{address}.bias") for address in addresses]
        for y, matrix in zip(found, matrices, strict=True):
            if matrix.transposed:  # whose products are added to what is there
                self._jobs.append(steps.copy(self._hold(np.zeros(y.shape[1], np.float32)), y))
        self._jobs.append(product(x, matrices, found))
        for y, bias in zip(found, biases, strict=True):
            if bias is not None:
                self._add(y, bias)
        return found

    def _head_norm(self, y: F32, address: str, heads: int) -> None:
        """The norm of queries or keys: one for all heads, or over all together."""
        if address not in self._weights:
            return
        (width, *more) = self._weights[address].shape
        if more or width not in (y.shape[1], y.shape[1] // heads):
            raise _UnusualError
        rows = y.reshape(-1, width)
        self._norm(rows, address, into=rows)

    def _norm(self, x: F32, address: str, into: F32 | None = None) -> F32:
        w, b = self._vector(address), self._vector(f"{address}.bias")
        if w is None:
            return x
        y = self._buffer(address, x.shape[1]) if into is None else into
        kind = self._block.norm_kind
        if kind == "layer":
            b = self._hold(np.zeros_like(w)) if b is None else b
        elif b is not None:
            raise _UnusualError
        w = self._hold(w + 1) if kind == "rms + 1" else w
        self._jobs.append(steps.norm(x, w, b, self._config.eps, y))
        return y

    def _add(self, x: F32, more: F32, factor: float = 1.0) -> None:
        self._jobs.append(steps.sum_of(x, more, x, factor))

    # ── arrays ─────────────────────────────────────────────────────────────────────────────────────

    def _buffer(self, address: str, width: int) -> F32:
        """Where what is made at an address goes, in every layer."""
        key = address.split(".", 2)[-1], width
        if key not in self._buffers:
            self._buffers[key] = np.zeros((self._batch, width), np.float32)
        return self._buffers[key]

    def _hold(self, array: F32) -> F32:
        self._held.append(array)
        return array

    def _vector(self, address: str) -> F32 | None:
        """A bias or the scales of a norm, or None where the model has none."""
        if address not in self._weights:
            return None
        self._used.add(address)
        return self._hold(np.ascontiguousarray(self._weights[address]))

    def _rows(self, address: str) -> Rows:
        """A matrix that the compiled loops can read."""
        rows = self._weights.compiled(address) if address in self._weights else None
        if rows is None:
            raise _UnusualError
        self._used.add(address)
        return rows
