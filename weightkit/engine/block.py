"""One block of any family: attention, experts or an FFN, or a state-space mixer, with norms where the config says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from weightkit.architectures.parts import Architecture
from weightkit.config import Config
from weightkit.engine import experts, latent, state_space
from weightkit.engine.attention import Bias, Scores, attention
from weightkit.engine.cache import Cache, Pair, Together
from weightkit.engine.functions import ACTIVATIONS, F32, activate, layer_norm, rms_norm, sigmoid
from weightkit.engine.positions import rotate
from weightkit.engine.tap import CLOSED, Tap
from weightkit.engine.weights import Weights
from weightkit.errors import EngineError

Turn = tuple[F32, F32]  # cosines and sines of the positions of the new tokens


@dataclass(frozen=True)
class Run:
    """What all blocks of one forward pass need to know."""

    cache: Cache | Together
    turn: Turn | None = None
    window_turn: Turn | None = None  # of the layers with a window, where it is another
    bias: Bias | None = None  # on the scores
    causal: bool = True
    source: F32 | None = None  # what an encoder made of its text, [batch, tokens, width]
    tap: Tap = CLOSED


class Block:
    """The block of one model. Its weights are found by address, so it holds none."""

    def __init__(self, architecture: Architecture, config: Config, weights: Weights) -> None:
        if config.activation not in ACTIVATIONS:
            raise EngineError(f"this model cannot be run: the engine has no activation {config.activation!r}")
        self.norm_kind = architecture.norm
        self.config = config
        self.weights = weights
        self.activation = ACTIVATIONS[config.activation]

    def __call__(self, x: F32, at: str, layer: int, run: Run) -> F32:  # [b, t, width] -> [b, t, width]
        """The block at an address such as `layers.3`, `layer` being its number."""
        x = run.tap(f"{at}.in", x)
        sizes = self.config.state_space
        if sizes is not None:
            states = run.cache.states(layer, lambda: state_space.empty(len(x), sizes))
            y = state_space.mix(self.norm(x, f"{at}.norm"), f"{at}.ssm", self.weights, sizes, states, self.activation)
            return run.tap(f"{at}.out", x + run.tap(f"{at}.ssm.out", y))

        if self.config.parallel:
            normed = self.norm(x, f"{at}.attn.norm")
            own = f"{at}.ffn.norm"
            attended = run.tap(f"{at}.attn.out", self._attend(normed, f"{at}.attn", layer, run))
            fed = self._feed_forward(self.norm(x, own) if own in self.weights else normed, f"{at}.ffn", layer, run)
            return run.tap(f"{at}.out", x + (attended + run.tap(f"{at}.ffn.out", fed)))
        x = self._half(x, f"{at}.attn", lambda normed: self._attend(normed, f"{at}.attn", layer, run), run.tap)
        if f"{at}.cross.q" in self.weights:
            x = self._half(x, f"{at}.cross", lambda normed: self._cross(normed, f"{at}.cross", run), run.tap)
        x = run.tap(f"{at}.mid", x)
        x = self._half(x, f"{at}.ffn", lambda normed: self._feed_forward(normed, f"{at}.ffn", layer, run), run.tap)
        return run.tap(f"{at}.out", x)

    def _half(self, x: F32, at: str, f: Callable[[F32], F32], tap: Tap) -> F32:
        """Half of a block, with its norms. What it adds to the stream, normed and scaled, passes the tap as `out`."""
        where = self.config.norms
        normed = self.norm(x, f"{at}.norm") if where in ("before", "both") else x
        y = f(normed)
        if where in ("after", "both"):
            y = self.norm(y, f"{at}.post_norm")
        if self.config.residual_scale != 1:
            y = y * np.float32(self.config.residual_scale)
        x = (normed if self.config.residual_normed else x) + tap(f"{at}.out", y)
        return self.norm(x, f"{at}.post_norm") if where == "sum" else x

    def norm(self, x: F32, address: str) -> F32:
        """The norm at an address; where the model has none there, nothing is done."""
        config = self.config
        if config.bare_norms:
            return layer_norm(x, None, None, config.eps)
        if address not in self.weights:
            return x
        return self._normed(x, self.weights[address], self.weights.get(f"{address}.bias"))

    def _normed(self, x: F32, w: F32, b: F32 | None) -> F32:
        if self.norm_kind == "layer":
            return layer_norm(x, w, b, self.config.eps)
        return rms_norm(x, w + 1 if self.norm_kind == "rms + 1" else w, self.config.eps)

    # ── attention ──────────────────────────────────────────────────────────────────────────────────

    def turn(self, layer: int, most: Turn | None, windowed: Turn | None) -> Turn | None:
        """How a layer turns queries and keys: as most layers do, as those with a window, or not at all."""
        if layer in self.config.unrotated:
            return None
        return windowed if self.config.window(layer) and windowed is not None else most

    def scale(self, layer: int) -> float:
        """What the scores of a layer are multiplied by."""
        return self.config.attention_scale / (layer + 1 if self.config.scale_by_layer else 1)

    def _attend(self, x: F32, at: str, layer: int, run: Run) -> F32:
        config = self.config
        turn = self.turn(layer, run.turn, run.window_turn)
        if config.latent:
            q, k, v = latent.project(x, at, self.weights, config, config.latent, turn)
        else:
            q, k, v = self._project(x, at)
            if turn is not None:
                q = rotate(q, *turn, interleaved=config.rope.interleaved)
                k = rotate(k, *turn, interleaved=config.rope.interleaved)
        q, k, v = run.tap(f"{at}.q", q), run.tap(f"{at}.k", k), run.tap(f"{at}.v", v)
        pairs = run.cache.extend(at, k, v) if run.causal else [(k, v)]
        how = Scores(
            self.scale(layer),
            config.window(layer),
            run.causal,
            config.score_cap,
            run.bias,
            self.weights.get(f"{at}.sinks"),
        )
        return self._output(q, pairs, how, at, run)

    def _cross(self, x: F32, at: str, run: Run) -> F32:
        """Attention to what the encoder made: keys and values are the same for every token."""
        heads = self.config.heads
        q = self._heads(self.weights.linear(x, f"{at}.q"), f"{at}.q", heads)

        def pair() -> Pair:
            assert run.source is not None
            k, v = self.weights.linears(run.source, f"{at}.k", f"{at}.v")
            return self._heads(k, f"{at}.k", heads), self._heads(v, f"{at}.v", heads)

        how = Scores(self.config.attention_scale, causal=False)
        return self._output(run.tap(f"{at}.q", q), run.cache.fixed(at, pair), how, at, run)

    def _output(self, q: F32, pairs: Sequence[Pair], how: Scores, at: str, run: Run) -> F32:
        """Heads together: [b, heads, t, d] -> [b, t, width]. Keys and values are one pair, or one for each text."""
        if run.tap.wants(f"{at}.pattern"):
            how = replace(how, seen=lambda weights: run.tap(f"{at}.pattern", weights))
        rows = [q] if len(pairs) == 1 else np.split(q, len(pairs))
        found = [attention(own, *pair, how) for own, pair in zip(rows, pairs, strict=True)]
        out = run.tap(f"{at}.heads", found[0] if len(found) == 1 else np.concatenate(found))
        merged = out.swapaxes(1, 2).reshape(q.shape[0], q.shape[2], -1)  # [b, t, heads · d]
        return self.weights.linear(merged, f"{at}.o")

    def _project(self, x: F32, at: str) -> tuple[F32, F32, F32]:
        """Queries, keys and values, [b, heads, t, d] each, normed but not yet rotated."""
        config = self.config
        counts = {f"{at}.q": config.heads, f"{at}.k": config.kv_heads, f"{at}.v": config.kv_heads}
        made = self.weights.linears(x, *counts)
        q, k, v = (self._heads(y, address, heads) for y, (address, heads) in zip(made, counts.items(), strict=True))
        if config.qkv_clip is not None:
            q, k, v = (np.clip(part, -config.qkv_clip, config.qkv_clip) for part in (q, k, v))
        return q, k, v

    def _heads(self, y: F32, address: str, heads: int) -> F32:  # [b, t, heads · d] -> [b, heads, t, d]
        """The heads apart, and normed where the model does so."""
        norm = self._head_norm(address)
        if norm is not None and norm.ndim == 1 and norm.size == y.shape[-1]:  # over all heads together
            y, norm = self._normed(y, norm, None), None
        y = y.reshape(*y.shape[:2], heads, -1).swapaxes(1, 2)
        if norm is None:
            return y
        w = norm[:, None] if norm.ndim == 2 else norm  # one for each head, [heads, 1, d], or for all, [d]
        return self._normed(y, w, self.weights.get(f"{address}.norm.bias"))

    def _head_norm(self, address: str) -> F32 | None:
        """The norm of queries or keys: [heads · d], [d], or [heads, d]; None where there is none."""
        if f"{address}.norm.0" in self.weights:
            count = self.config.heads if address.endswith("q") else self.config.kv_heads
            return np.stack([self.weights[f"{address}.norm.{head}"] for head in range(count)])
        return self.weights.get(f"{address}.norm")

    # ── FFN ────────────────────────────────────────────────────────────────────────────────────────

    def _feed_forward(self, x: F32, at: str, layer: int, run: Run) -> F32:
        mixture = self.config.experts
        if mixture is None or self.config.is_dense(layer):
            return self._ffn(x, at, run)
        rows = x.reshape(-1, x.shape[-1])
        router = f"{at}.router"
        scores, correction = self.weights.linear(rows, router), None
        if f"{router}.correction" in self.weights:
            correction = self.weights[f"{router}.correction"]
        choice = experts.route(run.tap(router, scores), mixture.per_token, mixture.routing, correction)
        if run.tap.wants(f"{at}.experts"):
            run.tap(f"{at}.experts", choice[0].reshape(*x.shape[:-1], -1))
        out = experts.mix(rows, choice, lambda tokens, number: self._ffn(tokens, f"{at}.experts.{number}", run))
        if mixture.shared_ffn:
            shared = self._ffn(rows, f"{at}.shared", run)
            gate = f"{at}.shared.router"
            out = out + (sigmoid(self.weights.linear(rows, gate)) * shared if gate in self.weights else shared)
        return out.reshape(x.shape)

    def _ffn(self, x: F32, at: str, run: Run) -> F32:
        if f"{at}.gate" in self.weights:
            gate, up = self.weights.linears(x, f"{at}.gate", f"{at}.up")
            inner = self._gated(run.tap(f"{at}.pre", gate), up)
        else:
            inner = activate(self.activation, run.tap(f"{at}.pre", self.weights.linear(x, f"{at}.up")))
        return self.weights.linear(run.tap(f"{at}.post", inner), f"{at}.down")

    def _gated(self, gate: F32, up: F32) -> F32:
        clamp = self.config.gate_clamp
        if clamp is None:
            return activate(self.activation, gate, up)
        gate = np.minimum(gate, np.float32(clamp))
        return (np.clip(up, -clamp, clamp) + 1) * gate * sigmoid(gate * np.float32(self.config.gate_alpha))
