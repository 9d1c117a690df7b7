"""Norms, activations, softmax: each against its formula, and the activations against transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import weightkit as wk
from tests import tiny
from weightkit.config.reader import ACTIVATIONS as NAMES
from weightkit.engine.functions import ACTIVATIONS, erf, layer_norm, log_softmax, rms_norm, sigmoid, softmax

WITH_WEIGHTS = {"prelu", "xielu"}  # which no family has
WIDE = np.concatenate((np.linspace(-30, 30, 4001), [0.0, -0.0, 1e-30, -1e-30, 80.0, -80.0]))


def gauss(x: float) -> float:
    return x * 0.5 * math.erfc(-x / math.sqrt(2))


def gauss_tanh(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


FORMULAS: dict[str, Callable[[float], float]] = {
    **dict.fromkeys(("silu", "swish"), lambda x: x * logistic(x)),
    **dict.fromkeys(("gelu", "gelu_python"), gauss),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"), gauss_tanh),
    "quick_gelu": lambda x: x * logistic(1.702 * x),
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "leaky_relu": lambda x: max(x, 0.01 * x),
    "hardswish": lambda x: x * min(max(x + 3, 0.0), 6.0) / 6,
    "gelu_10": lambda x: min(max(gauss(x), -10.0), 10.0),
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
    "laplace": lambda x: 0.5 * math.erfc((math.sqrt(0.5) - x) * math.sqrt(2 * math.pi)),
    "sqrtsoftplus": lambda x: math.sqrt(math.log1p(math.exp(x))),
    "sigmoid": logistic,
    "tanh": math.tanh,
    "linear": lambda x: x,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_follow_their_formula(name: str) -> None:
    x = WIDE.astype(np.float32)
    got = ACTIVATIONS[name](x)
    np.testing.assert_allclose(got, [FORMULAS[name](float(n)) for n in x], rtol=2e-6, atol=5e-7)
    assert got.dtype == np.float32


def test_every_activation_of_a_config_can_be_run_but_those_with_weights() -> None:
    assert NAMES - ACTIVATIONS.keys() == WITH_WEIGHTS
    assert ACTIVATIONS.keys() <= NAMES


@pytest.mark.oracle
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_an_activation_is_that_of_transformers(name: str) -> None:
    import torch
    from transformers.activations import ACT2FN

    x = np.concatenate((WIDE, [-1e4, -88.0, 20.5, 88.0, 1e4])).astype(np.float32)
    want = ACT2FN[name](torch.from_numpy(x)).numpy()
    got = ACTIVATIONS[name](x)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=5e-6, atol=2e-6)


@pytest.mark.oracle
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_a_model_with_an_activation_has_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    from tests import oracle

    folder, ids = tiny.write(tmp_path, hidden_act=name), np.array([[5, 17, 3, 88, 41]])
    want = oracle.logits(oracle.load(folder), ids)
    assert np.abs(wk.open(folder).logits(ids) - want).max() < 2e-5 * want.std()


def test_erf_is_that_of_the_c_library() -> None:
    x = np.concatenate((WIDE, np.linspace(-7, 7, 5001), [0.46875, -0.46875, 4.0, -4.0, 3e38, np.inf, -np.inf]))
    np.testing.assert_allclose(erf(x), [math.erf(n) for n in x], rtol=1e-15, atol=1e-300)
    assert np.isnan(erf(np.array([np.nan]))).all()


def test_sigmoid_does_not_overflow() -> None:
    assert sigmoid(np.array([-1e30, 1e30, -np.inf, np.inf], np.float32)).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6, 1e4])
@pytest.mark.parametrize("eps", [0.0, 1e-6, 1e-5, 0.1])
def test_norms_follow_their_formula(size: float, eps: float) -> None:
    """Where the variance is no larger than eps, eps decides: a wrong one is off by a factor."""
    random = np.random.default_rng(3)
    x = (random.standard_normal((3, 5, 48)) * size).astype(np.float32)
    w, b = random.standard_normal((2, 48)).astype(np.float32)
    wide = x.astype(np.float64)
    rms = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + eps) * w
    centred = wide - wide.mean(-1, keepdims=True)
    standard = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w
    np.testing.assert_allclose(rms_norm(x, w, eps), rms, rtol=3e-6, atol=1e-6)
    np.testing.assert_allclose(layer_norm(x, w, b, eps), standard + b, rtol=3e-6, atol=2e-6)
    np.testing.assert_allclose(layer_norm(x, w, None, eps), standard, rtol=3e-6, atol=2e-6)


def test_softmax_and_its_logarithm() -> None:
    x = (np.random.default_rng(0).standard_normal((4, 97)) * 30).astype(np.float32)
    x[0] += 1e4
    x[1, 5] = -np.inf
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True).astype(np.float64))
    np.testing.assert_allclose(softmax(x), e / e.sum(-1, keepdims=True), rtol=2e-5, atol=1e-30)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(log_softmax(x), np.log(e / e.sum(-1, keepdims=True)), rtol=1e-12)
    assert log_softmax(x).dtype == np.float64
