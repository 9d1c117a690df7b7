"""Costs: what a model takes to run, from its config: the cache of keys and values, and operations.

Where no formula is known for a kind of model, there is a reason instead of a number.
"""

from __future__ import annotations

from weightkit.config import Config

_ENCODERS = ("bert", "roberta", "distilbert")


def is_encoder(config: Config) -> bool:
    """Whether a model is an encoder by itself, which has no next token to give."""
    return config.model_type in _ENCODERS or (config.model_type == "t5" and not config.decoder_layers)


def why_no_cache(config: Config) -> str | None:
    """Why a model keeps no keys and values for the tokens it has seen; None where it does."""
    if config.state_space is not None:
        return "a state space model keeps a state of fixed size instead"
    if is_encoder(config):
        return "an encoder sees all tokens at once and keeps none"
    return None


def why_no_flops(config: Config) -> str | None:
    """Why there is no formula for the operations of one token; None where there is."""
    if config.state_space is not None:
        return "the formula for a state space scan is not known here"
    if config.decoder_layers:
        return "an encoder and a decoder differ in what a token costs"
    return None


def kv_cache(config: Config, context: int, bytes_per_number: int = 2) -> int | None:
    """Bytes of the keys and values of `context` tokens; a sliding window caps a layer's.

    With latent attention a layer keeps one latent and one rotated key for all heads (DeepSeek-V2,
    arXiv:2405.04434, section 2.1.3). None where the model keeps none.
    """
    if why_no_cache(config) is not None:
        return None
    if config.latent is not None:
        numbers = config.latent.kv_rank + config.latent.rope
    else:
        numbers = 2 * config.kv_heads * config.head_dim
    return numbers * _seen(config, context) * bytes_per_number


def flops(config: Config, matrices: int, context: int) -> int | None:
    """Floating-point operations for one token that sees `context` tokens.

    Two per number of every matrix that the token goes through (`matrices` of them) and, in attention,
    two per query head and dimension of a key for the scores, two of a value for the weighted sum.
    """
    if why_no_flops(config) is not None:
        return None
    latent = config.latent
    dims = latent.nope + latent.rope + latent.value if latent else 2 * config.head_dim
    return 2 * matrices + 2 * config.heads * dims * _seen(config, context)


def _seen(config: Config, context: int) -> int:
    """Tokens whose keys and values are there, over all layers."""
    windows = config.windows or (None,) * config.layers
    if config.decoder_layers:
        windows = (None,) * config.decoder_layers
    return sum(min(context, window or context) for window in windows)
