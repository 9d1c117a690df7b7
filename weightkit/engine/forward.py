"""The forward pass: embedding, blocks, vocab projection, as the config and the architecture describe them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightkit.architectures.parts import Architecture
from weightkit.config import Config
from weightkit.dtypes import Array
from weightkit.engine.attention import Bias
from weightkit.engine.block import Block, Run, Turn
from weightkit.engine.cache import Cache, Together
from weightkit.engine.functions import ACTIVATIONS, F32
from weightkit.engine.positions import alibi_slopes, buckets, depends_on_length, rotation, to_bf16
from weightkit.engine.program import program
from weightkit.engine.tap import CLOSED, Tap
from weightkit.engine.weights import Weights
from weightkit.errors import EngineError
from weightkit.registry import Registry
from weightkit.threads import one_blas_thread

Ids = NDArray[np.int64]
LOGITS_BYTES = 32 << 20  # of logits that are made at a time where not all are wanted at once


@contextmanager
def _running() -> Iterator[None]:
    """While weights are multiplied. What is large is shared out among threads elsewhere, and not by BLAS.

    What NaN or huge weights do to the numbers is for the caller to see, not for numpy to warn of.
    """
    with one_blas_thread(), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        yield


class Engine:
    """Runs one model. Weights are read when they are first needed."""

    def __init__(self, registry: Registry) -> None:
        if registry.architecture is None or registry.config is None:
            missing = "; put the config.json of the model beside it" if registry.architecture is not None else ""
            raise EngineError(f"this model cannot be run: {registry.notes[-1]}{missing}")
        self.architecture: Architecture = registry.architecture
        self.config: Config = registry.config
        if "lm_head" not in registry:
            raise EngineError(
                "this model cannot be run: lm_head is not in the files, and the config does not tie it to the embedding"
            )
        if self.config.cross_attention:
            raise EngineError("this model cannot be run: it attends to an encoder that is not here")
        self.weights = Weights(registry)
        self.block = Block(self.architecture, self.config, self.weights)

    @property
    def has_encoder(self) -> bool:
        """Whether it reads a text with an encoder and writes another with a decoder."""
        return self.config.decoder_layers > 0

    @property
    def stack(self) -> str:
        """What the addresses of the blocks whose output becomes logits begin with."""
        return "decoder." if self.has_encoder else ""

    @property
    def layers(self) -> int:
        """How many layers its stack has, which writes the text."""
        return self.config.decoder_layers if self.has_encoder else self.config.layers

    @property
    def continues(self) -> bool:
        """Whether it says what comes next; a masked language model says what is where."""
        return self.architecture.causal

    def require_continues(self) -> None:
        """Raise EngineError for a masked language model, which cannot be asked what comes next."""
        if not self.continues:
            raise EngineError("this model says what masked tokens are; it does not continue a text")

    @property
    def most_tokens(self) -> int | None:
        """The longest text, where learned positions set an end to it."""
        if self.config.position_kind != "learned":
            return None
        return self.config.positions - (0 if self.config.pad_id is None else self.config.pad_id + 1)

    @property
    def made_for(self) -> int | None:
        """The longest text that the model was made for, where there is such: rotations go on beyond it, to no use."""
        return self.config.positions if self.config.position_kind == "rope" else self.most_tokens

    def runs_in_steps(self, tokens: int) -> bool:
        """Whether a text of so many tokens can run some at a time, with a cache, to the same result."""
        return self.continues and self._frequencies(1) == self._frequencies(tokens)

    def ids(self, ids: Sequence[int] | Sequence[Sequence[int]] | Array) -> Ids:
        """Token ids as [batch, tokens]. Raises EngineError for what is not in the vocabulary."""
        try:
            array = np.asarray(ids)
        except (ValueError, OverflowError):
            array = np.empty(0)
        beyond = [i for i in array.flat if type(i) is int] if array.dtype == object else []
        if beyond:  # larger than 64 bits
            raise self._outside(max(beyond, key=abs))
        if array.ndim not in (1, 2) or not array.size or array.dtype.kind not in "iu":
            raise EngineError("ids are whole numbers, at least one, all sequences of one length")
        array = np.atleast_2d(array)
        wrong = array[(array < 0) | (array >= self.config.vocab)]
        if wrong.size:
            raise self._outside(wrong[0])
        return array.astype(np.int64)

    def _outside(self, token_id: int) -> EngineError:
        return EngineError(f"id {token_id} is not in the vocabulary, which goes from 0 to {self.config.vocab - 1}")

    def logits(
        self,
        ids: Any,
        cache: Cache | None = None,
        *,
        source: F32 | None = None,
        tap: Tap = CLOSED,
        last: bool = False,
    ) -> F32:
        """Logits of the next token at every position. [b, t] -> [b, t, vocab], or of the last one only.

        With a cache, `ids` continue what it holds. `source` is what `encode` made of the text that a model
        with an encoder reads; `ids` are then those of its decoder.
        """
        with _running():
            x = self._hidden(ids, cache, source, tap)
            return self._head(x[:, -1:] if last else x, tap)

    def logits_together(self, ids: Sequence[int], caches: Sequence[Cache]) -> F32:  # [n], [n] -> [n, vocab]
        """Logits after one more token of each of a few texts, of any lengths; none may begin with it, nor `turn_anew`.

        Weights are read once for all of them; what comes out is, but for rounding, what each has alone.
        """
        rows = self.ids(ids).T
        turns = [self._turns(len(cache) + 1, len(cache)) for cache in caches]
        turn, window_turn = (_stacked(kind) for kind in zip(*turns, strict=True))
        run = Run(Together(caches), turn, window_turn, self._bias())
        with _running():
            x = np.concatenate([self._embed(row[None], len(own)) for row, own in zip(rows, caches, strict=True)])
            logits = self._head(self.block.norm(self._layers(x, run), f"{self.stack}norm"), CLOSED)
        for row, cache in zip(rows, caches, strict=True):
            cache.add(row[None])
        return logits[:, 0]

    def turns_anew(self, cache: Cache) -> bool:
        """Whether the keys of a cache would be rotated otherwise with one token more, so that all begins again."""
        return self._frequencies(len(cache) + 1) != cache.frequencies

    def run(self, ids: Any, tap: Tap, cache: Cache | None = None, *, source: F32 | None = None) -> None:
        """What `logits` does, for the sake of what passes the tap: logits are made only where it wants them."""
        with _running():
            x = self._hidden(ids, cache, source, tap)
            if tap.wants("logits"):
                self._head(x, tap)

    def logits_at(
        self, ids: Any, places: NDArray[np.intp], *, source: F32 | None = None, tap: Tap = CLOSED
    ) -> Iterator[F32]:
        """Logits at some places of one text, some at a time: all those of a large vocabulary fill the memory.

        [t], [n] -> [some of n, vocab]
        """
        with _running():
            x = self._hidden(ids, None, source, tap)[:, places]
        step = max(1, LOGITS_BYTES // (4 * self.config.vocab))
        for at in range(0, x.shape[1], step):
            with _running():
                logits = self._head(x[:, at : at + step], tap)
            yield logits[0]

    def read_out(self, x: F32) -> F32:
        """The logits of a residual stream as though it were the last. [..., width] -> [..., vocab]"""
        with _running():
            return self._head(self.block.norm(x, f"{self.stack}norm"), CLOSED)

    def unembed(self, x: F32, tokens: Ids | None = None) -> F32:
        """Logits of a normed residual stream, before a cap. [..., width] -> [..., vocab], or of some tokens only."""
        weights = self.weights
        if "project" in weights:
            x = weights.linear(x, "project")
        own = "lm_head.decoder.bias"  # where the projection is not the embedding, its bias is its own too
        at = own if own in weights and not self.config.tied else "lm_head.bias"
        if tokens is None:
            logits = weights.linear(x, "lm_head", at)
        else:
            logits = x @ weights.rows("lm_head", tokens).T
            logits = logits + weights[at][tokens] if at in weights else logits
        return logits if self.config.logit_scale == 1 else logits * np.float32(self.config.logit_scale)

    def encode(self, ids: Any, tap: Tap = CLOSED) -> F32:
        """What the encoder of a model that has one makes of a text. [b, t] -> [b, t, width]"""
        ids = self.ids(ids)
        with _running():
            x = tap("encoder.embed", self._embed(ids, 0))
            run = Run(Cache(), bias=self._relative("encoder.position", both_sides=True), causal=False, tap=tap)
            for layer in range(self.config.layers):
                x = self.block(x, f"encoder.layers.{layer}", layer, run)
            return tap("encoder.norm", self.block.norm(x, "encoder.norm"))

    def _hidden(self, ids: Any, cache: Cache | None, source: F32 | None, tap: Tap) -> F32:
        """The normed output of the last block for the tokens of `ids`, [b, t] -> [b, t, width]."""
        ids, cache = self.ids(ids), Cache() if cache is None else cache
        if len(cache) and len(ids) != len(cache.ids):
            raise EngineError(f"the cache holds {len(cache.ids)} sequences, not {len(ids)}")
        if self.has_encoder and source is None and not len(cache):
            raise EngineError("this model reads a text with its encoder first: give the text, and the decoder's ids")
        new = ids.shape[1]
        length = len(cache) + new
        ids = self._again_where_rotations_change(ids, cache, length)
        turns = self._turns(length, len(cache))
        x = tap(f"{self.stack}embed", self._embed(ids, len(cache)))
        if ids.shape[1] == 1 and len(cache) and tap is CLOSED:
            written = cache.program(lambda: program(self.block, len(ids), turns))
        else:
            written = None
        run = Run(cache, *turns, self._bias(), self.architecture.causal, source, tap)
        x = self._layers(x, run) if written is None else written(x, turns, cache)
        cache.add(ids)
        return tap(f"{self.stack}norm", self.block.norm(x[:, -new:], f"{self.stack}norm"))

    def _layers(self, x: F32, run: Run) -> F32:  # [b, t, width] -> the same
        for layer in range(self.layers):
            x = self.block(x, f"{self.stack}layers.{layer}", layer, run)
        return x

    def _again_where_rotations_change(self, ids: Ids, cache: Cache, length: int) -> Ids:
        """The ids to compute: with those in the cache, where their keys would now be rotated otherwise."""
        frequencies = self._frequencies(length)
        if len(cache) and frequencies != cache.frequencies:
            ids = np.concatenate((cache.ids, ids), axis=1)
            cache.restart()
        cache.frequencies = frequencies
        return ids

    def _frequencies(self, length: int) -> tuple[float, ...]:
        """What about the length of a text its rotations depend on."""
        ropes = [rope for rope in (self.config.rope, self.config.window_rope) if rope is not None]
        return tuple(depends_on_length(rope, self.config.positions, length) for rope in ropes)

    def _turns(self, length: int, start: int) -> tuple[Turn | None, Turn | None]:
        """The rotations of the new tokens: of most layers, and of those with a window where they differ."""
        config = self.config
        if config.position_kind != "rope":
            return None, None
        window = config.window_rope
        return (
            rotation(config.rope, config.positions, length, start),
            None if window is None else rotation(window, config.positions, length, start),
        )

    def _bias(self) -> Bias | None:
        """What nearness adds to the scores."""
        config = self.config
        if config.position_kind == "relative":
            return self._relative("decoder.position", both_sides=False)
        if "alibi" not in config.position_kind:
            return None
        slopes = alibi_slopes(config.heads)[:, None, None]
        scaled = config.position_kind == "scaled alibi"

        def bias(_low: int, _high: int, start: int, stop: int) -> F32:  # -> [heads, 1, stop - start]
            places = np.arange(start, stop, dtype=np.float32)
            if not scaled:
                return slopes * places
            # Falcon computes it in bfloat16, and before the scores are scaled.
            return to_bf16(to_bf16(slopes) * to_bf16(places)) * np.float32(config.attention_scale)

        return bias

    def _relative(self, address: str, *, both_sides: bool) -> Bias:
        """A number for every distance, by head, out of a table [buckets, heads]."""
        table, config = self.weights[address], self.config

        def bias(low: int, high: int, start: int, stop: int) -> F32:  # -> [heads, high - low, stop - start]
            distance = np.arange(start, stop) - np.arange(low, high)[:, None]
            return table[buckets(distance, config.buckets, config.farthest, both_sides=both_sides)].transpose(2, 0, 1)

        return bias

    def _embed(self, ids: Ids, start: int) -> F32:  # [b, t] -> [b, t, width]
        config, weights = self.config, self.weights
        x = weights.rows("embed", ids)
        if config.embed_scale != 1:
            x = x * np.float32(config.embed_scale)
        if "embed.project" in weights:
            x = weights.linear(x, "embed.project")
        if "embed.type" in weights:
            x = x + weights["embed.type"][0]
        if config.position_kind == "learned":
            x = x + self._positions(ids, start)
        return self.block.norm(x, "embed.norm") if "embed.norm" in weights else x

    def _positions(self, ids: Ids, start: int) -> F32:  # [b, t] -> [t, width] or [b, t, width]
        config, end = self.config, start + ids.shape[1]
        most = self.most_tokens
        if most is not None and end > most:
            raise EngineError(f"{end} tokens are more than the {most} positions that this model has")
        if config.pad_id is None:
            return self.weights.rows("embed.position", np.arange(start, end) + config.position_offset)
        counted = ids != config.pad_id  # RoBERTa numbers what is not padding from pad_id + 1
        return self.weights.rows("embed.position", np.cumsum(counted, axis=1) * counted + config.pad_id)

    def _head(self, x: F32, tap: Tap) -> F32:  # [b, t, width] -> [b, t, vocab]
        config, weights = self.config, self.weights
        if "lm_head.dense" in weights:  # of a masked language model
            activation = ACTIVATIONS[config.head_activation] if config.head_activation else self.block.activation
            x = self.block.norm(activation(weights.linear(x, "lm_head.dense")), "lm_head.norm")
        logits = self.unembed(x)
        if config.logit_cap is not None:
            cap = np.float32(config.logit_cap)
            logits = np.tanh(logits / cap) * cap
        return tap("logits", logits)


def _stacked(turns: Sequence[Turn | None]) -> Turn | None:  # [1, dims / 2] each -> [texts, 1, 1, dims / 2]
    """The rotations of several texts, a token of each, along their batch; none where there are none."""
    found = [turn for turn in turns if turn is not None]
    if not found:
        return None
    cos, sin = (np.stack(parts)[:, None] for parts in zip(*found, strict=True))
    return cos, sin
