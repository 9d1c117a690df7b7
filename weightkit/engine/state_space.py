"""The Mamba mixer: a short convolution, then a linear recurrence whose rates depend on the token.

Source: Gu and Dao, arXiv:2312.00752, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from weightkit.config import StateSpace
from weightkit.engine.functions import F32, softplus
from weightkit.engine.weights import Weights


@dataclass
class State:
    """What a mixer remembers of the tokens before."""

    inputs: F32  # [batch, kernel - 1, inner], of the convolution
    memory: F32  # [batch, inner, state]


def empty(batch: int, sizes: StateSpace) -> State:
    """The state before the first token."""
    inputs = np.zeros((batch, sizes.kernel - 1, sizes.inner), np.float32)
    return State(inputs, np.zeros((batch, sizes.inner, sizes.state), np.float32))


def mix(
    x: F32, at: str, weights: Weights, sizes: StateSpace, states: Sequence[State], activation: Callable[[F32], F32]
) -> F32:  # [b, t, width] -> [b, t, width]
    """One mixer over the next tokens; `states`, one of all texts or one for each, go on with them."""
    state = State(np.concatenate([s.inputs for s in states]), np.concatenate([s.memory for s in states]))
    u, gate = np.split(weights.linear(x, f"{at}.in"), 2, axis=-1)  # [b, t, inner] each
    u = activation(_convolve(u, weights[f"{at}.conv"], weights.get(f"{at}.conv.bias"), state))
    dt, b, c = np.split(weights.linear(u, f"{at}.x"), [sizes.rank, sizes.rank + sizes.state], axis=-1)
    dt = softplus(weights.linear(dt, f"{at}.dt"))  # [b, t, inner]
    rate = -np.exp(weights[f"{at}.A_log"])  # [inner, state]
    y = np.empty_like(u)
    for step in range(x.shape[1]):
        decay = np.exp(dt[:, step, :, None] * rate)  # [b, inner, state]
        state.memory = decay * state.memory + (dt[:, step] * u[:, step])[..., None] * b[:, step, None, :]
        y[:, step] = (state.memory @ c[:, step, :, None])[..., 0]
    for own, inputs, memory in zip(
        states, np.split(state.inputs, len(states)), np.split(state.memory, len(states)), strict=True
    ):
        own.inputs, own.memory = inputs, memory
    y = (y + weights[f"{at}.D"] * u) * activation(gate)
    return weights.linear(y, f"{at}.out")


def _convolve(u: F32, kernel: F32, bias: F32 | None, state: State) -> F32:  # [b, t, inner] -> [b, t, inner]
    """Each channel with its own kernel [inner, 1, k], over the tokens so far."""
    whole = np.concatenate((state.inputs, u), axis=1)  # [b, k - 1 + t, inner]
    width, t = kernel.shape[-1], u.shape[1]
    state.inputs = whole[:, t:]
    out = sum(whole[:, i : i + t] * kernel[:, 0, i] for i in range(width))
    return np.asarray(out if bias is None else out + bias)
