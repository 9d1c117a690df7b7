"""Multi-head latent attention: queries, keys and values by way of vectors of low rank.

Source: DeepSeek-V2, arXiv:2405.04434, section 2.1.
"""

from __future__ import annotations

import numpy as np

from weightkit.config import Config, Latent
from weightkit.engine.functions import F32, rms_norm
from weightkit.engine.positions import rotate
from weightkit.engine.weights import Weights

EPS = 1e-6  # of the norms on the way, whatever the config says of the others


def project(
    x: F32, at: str, weights: Weights, config: Config, latent: Latent, turn: tuple[F32, F32] | None
) -> tuple[F32, F32, F32]:
    """Queries, keys and values of each head, [b, heads, t, nope + rope] twice and [b, heads, t, value].

    The rotated part of a key is the same for all heads.
    """
    if f"{at}.q_a" in weights:
        q = weights.linear(_normed(weights.linear(x, f"{at}.q_a"), f"{at}.q_a.norm", weights), f"{at}.q_b")
    else:
        q = weights.linear(x, f"{at}.q")
    q = _split(q, config.heads)  # [b, heads, t, nope + rope]
    compressed = _normed(weights.linear(x, f"{at}.kv_a"), f"{at}.kv_a.norm", weights)  # [b, t, kv_rank]
    k_nope = _split(weights.linear(compressed, f"{at}.k_b"), config.heads)
    v = _split(weights.linear(compressed, f"{at}.v_b"), config.heads)
    k_rope = weights.linear(x, f"{at}.k_rope")[:, None]  # [b, 1, t, rope]
    q_nope, q_rope = q[..., : latent.nope], q[..., latent.nope :]
    if turn is not None:
        interleaved = config.rope.interleaved
        q_rope, k_rope = rotate(q_rope, *turn, interleaved=interleaved), rotate(k_rope, *turn, interleaved=interleaved)
    k_rope = np.broadcast_to(k_rope, (*k_nope.shape[:3], latent.rope))
    return np.concatenate((q_nope, q_rope), axis=-1), np.concatenate((k_nope, k_rope), axis=-1), v


def _normed(x: F32, address: str, weights: Weights) -> F32:
    return rms_norm(x, weights[address], EPS)


def _split(x: F32, heads: int) -> F32:  # [b, t, heads · d] -> [b, heads, t, d]
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)
