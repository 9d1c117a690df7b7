"""The functions of a transformer block, as they are in the papers: norms, activations, softmax."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from weightkit import kernels, steps
from weightkit.threads import by_rows

F32 = NDArray[np.float32]
WORTH = 1 << 16  # numbers from which on it pays to compile a loop that numpy has as well


def rms_norm(x: F32, w: F32, eps: float) -> F32:  # [..., d], [d] -> [..., d]
    """x / √(mean x² + eps) · w. Source: Zhang and Sennrich, arXiv:1910.07467."""
    if _are_rows(x, w):
        return steps.normed(x, w, None, eps)
    y = x / np.sqrt(_mean_square(x) + np.float32(eps))
    y *= w
    return y


def _are_rows(x: F32, *scales: F32) -> bool:  # [..., d], [d] each
    """Whether compiled loops can take them."""
    alike = x.dtype == np.float32 and all(w.shape == x.shape[-1:] and w.dtype == np.float32 for w in scales)
    return alike and x.size > 0 and kernels.available()


def _mean(x: F32) -> F32:  # [..., d] -> [..., 1]
    """The mean over the last axis; numpy's own takes longer to begin than to add up a token."""
    mean: F32 = np.add.reduce(x, axis=-1, keepdims=True)
    mean /= np.float32(x.shape[-1])
    return mean


def _mean_square(x: F32) -> F32:  # [..., d] -> [..., 1]
    return (np.einsum("...i,...i->...", x, x) / np.float32(x.shape[-1]))[..., None]


def layer_norm(x: F32, w: F32 | None, b: F32 | None, eps: float) -> F32:  # [..., d], [d], [d] -> [..., d]
    """(x - mean) / √(variance + eps) · w + b, with the population variance. Source: arXiv:1607.06450."""
    if w is not None and b is not None and _are_rows(x, w, b):
        return steps.normed(x, w, b, eps)
    centred = x - _mean(x)
    y = centred / np.sqrt(_mean_square(centred) + np.float32(eps))
    y = y if w is None else y * w
    return y if b is None else y + b


def softmax(x: F32) -> F32:  # [..., n] -> [..., n]
    """exp(x) / Σ exp(x) over the last axis, shifted so that nothing overflows."""
    e = x - np.maximum.reduce(x, axis=-1, keepdims=True)
    np.exp(e, out=e)
    e /= np.add.reduce(e, axis=-1, keepdims=True)
    return e


def log_softmax(x: F32) -> NDArray[np.float64]:  # [..., n] -> [..., n]
    """log softmax in float64, for the small differences that measurements are made of."""
    wide = x.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def silu(x: F32) -> F32:
    """x · sigmoid(x)."""
    return x / _one_and_exp(x)


def sigmoid(x: F32) -> F32:
    """1 / (1 + exp(-x))."""
    return np.reciprocal(_one_and_exp(x))


def _one_and_exp(x: F32) -> F32:
    """1 + exp(-x), which is Inf where sigmoid(x) is less than any float32."""
    with np.errstate(over="ignore"):
        e = np.exp(-x)
    e += 1
    return e


def softplus(x: F32) -> F32:
    """log(1 + exp(x)), without overflow."""
    return np.maximum(x, np.float32(0)) + np.log1p(np.exp(-np.abs(x)))


def gelu_tanh(x: F32) -> F32:
    """The tanh form of GELU: gelu_new, gelu_pytorch_tanh, gelu_fast. Source: arXiv:1606.08415."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    return 0.5 * x * (1 + np.tanh(inner))


def quick_gelu(x: F32) -> F32:
    """x · sigmoid(1.702 x). Source: arXiv:1606.08415."""
    return x * sigmoid(np.float32(1.702) * x)


def gelu(x: F32) -> F32:
    """x · Φ(x), the exact GELU."""
    return 0.5 * x * (1 + erf(x.astype(np.float64) / math.sqrt(2)).astype(np.float32))


def relu(x: F32) -> F32:
    """max(x, 0)."""
    return np.maximum(x, np.float32(0))


def relu6(x: F32) -> F32:
    """max(x, 0), and at most 6. Source: arXiv:1704.04861, in the code published with it."""
    return np.clip(x, np.float32(0), np.float32(6))


def laplace(x: F32) -> F32:
    """Φ((x - √½) / σ) with σ² = 1 / 4π, in the digits of transformers. Source: Mega, arXiv:2209.10655, section 3.3."""
    return (0.5 * (1 + erf((x.astype(np.float64) - 0.707107) / (0.282095 * math.sqrt(2))))).astype(np.float32)


def erf(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The error function to float64 accuracy, by the rational approximations of W. J. Cody.

    Source: "Rational Chebyshev approximation for the error function", Math. Comp. 23 (1969).
    """
    a = np.abs(x)
    small, middle = a <= 0.46875, a <= 4.0
    z = np.square(np.minimum(a, 0.46875))
    near = x * _ratio(_ERF_NEAR, z)
    far_a = np.clip(a, 0.46875, 26.0)
    mid = np.exp(-far_a * far_a) * _ratio(_ERF_MIDDLE, np.minimum(far_a, 4.0))
    inverse = 1 / (far_a * far_a)
    tail = np.exp(-far_a * far_a) / far_a * (1 / math.sqrt(math.pi) - inverse * _ratio(_ERF_FAR, inverse))
    return np.where(small, near, np.copysign(1 - np.where(middle, mid, tail), x))


def _ratio(table: tuple[tuple[float, ...], tuple[float, ...]], x: NDArray[np.float64]) -> NDArray[np.float64]:
    top, bottom = (np.polyval(coefficients, x) for coefficients in table)
    return top / bottom


# Highest power first.
_ERF_NEAR = (
    (
        1.85777706184603153e-1,
        3.16112374387056560e0,
        1.13864154151050156e2,
        3.77485237685302021e2,
        3.20937758913846947e3,
    ),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)
_ERF_MIDDLE = (
    (
        2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1,
        2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
        1.23033935479799725e3,
    ),
    (
        1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
        3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3,
    ),
)  # fmt: skip
_ERF_FAR = (
    (
        1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
        1.60837851487422766e-2, 6.58749161529837803e-4,
    ),
    (
        1.0, 2.56852019228982242e0, 1.87295284992346047e0, 5.27905102951428412e-1, 6.05183413124413191e-2,
        2.33520497626869185e-3,
    ),
)  # fmt: skip


# All of transformers' but prelu and xielu, which have weights of their own.
ACTIVATIONS: dict[str, Callable[[F32], F32]] = {
    "silu": silu,
    "swish": silu,
    "gelu": gelu,
    "gelu_python": gelu,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_accurate": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_python_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "gelu_10": lambda x: np.clip(gelu(x), np.float32(-10), np.float32(10)),
    "relu": relu,
    "relu2": lambda x: np.square(relu(x)),
    "relu6": relu6,
    "leaky_relu": lambda x: np.where(x < 0, np.float32(0.01) * x, x),
    "hardswish": lambda x: x * relu6(x + np.float32(3)) / np.float32(6),  # arXiv:1905.02244
    "mish": lambda x: x * np.tanh(softplus(x)),  # arXiv:1908.08681
    "laplace": laplace,
    "sqrtsoftplus": lambda x: np.sqrt(softplus(x)),
    "sigmoid": sigmoid,
    "tanh": lambda x: np.tanh(x),
    "linear": lambda x: x,
}

COMPILED: dict[Callable[[F32], F32], str] = {silu: "silu", gelu_tanh: "gelu_tanh", quick_gelu: "quick_gelu"}


def activate(function: Callable[[F32], F32], x: F32, up: F32 | None = None) -> F32:  # [...] -> [...]
    """An activation of an array, times `up` where there is one."""
    kind = COMPILED.get(function)
    if kind is not None and _are_rows(x):
        return steps.activated(kind, x, up)
    return by_rows(function, x) if up is None else by_rows(lambda some, other: function(some) * other, x, up)
