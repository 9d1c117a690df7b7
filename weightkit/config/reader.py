"""Typed look-ups in a config.json: each error names the key and what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightkit.errors import ConfigError, nearest

# transformers' ACT2FN; the engine says which of them it computes.
ACTIVATIONS = frozenset(
    """
    gelu gelu_10 gelu_fast gelu_new gelu_python gelu_pytorch_tanh gelu_python_tanh gelu_accurate
    hardswish laplace leaky_relu linear mish quick_gelu relu relu2 relu6 sigmoid silu sqrtsoftplus
    swish tanh prelu xielu
    """.split()
)
DTYPE_NAMES = frozenset(
    """
    auto float64 float32 float16 bfloat16 half double float float8_e4m3fn float8_e5m2
    float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu int8 uint8
    """.split()
)
QUANTIZATIONS = frozenset(
    """
    aqlm auto-round auto_round autoround awq bitnet bitsandbytes bitsandbytes_4bit bitsandbytes_8bit
    compressed-tensors eetq exl2 exl3 fbgemm_fp8 finegrained_fp8 fouroversix fp8 fp_quant gptq
    gptq_marlin higgs hqq humming intel/auto-round intel_auto_round marlin metal mlx modelopt mxfp4 nvfp4
    quanto quark sinq spqr torchao vptq
    """.split()
)

# Whether an optional part is there: always, never, or as a key says, where it is absent being false or as given.
Rule = bool | str | tuple[str, bool]

MOST_LAYERS = 10_000
MOST_WIDE = 1 << 28  # of any one dimension


class Reader:
    """The values of a config.json; `where` names the file in errors."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def fail(self, message: str) -> ConfigError:
        """The error to raise about this file."""
        return ConfigError(f"{self.where}: {message}")

    def get(self, *keys: str) -> tuple[str, Any]:
        """The first of `keys` that is there and not null, with its value; else the first, and None."""
        return next(((k, self.values[k]) for k in keys if self.values.get(k) is not None), (keys[0], None))

    def size(self, *keys: str, default: int | None = None, most: int = MOST_WIDE, least: int = 1) -> int:
        """A whole number from `least` to `most`. ConfigError where there is none and no default."""
        key, value = self.get(*keys)
        if value is None:
            if default is None:
                raise self.fail(f"no {key}")
            return default
        if type(value) is not int or not least <= value <= most:
            raise self.fail(f"{key} is {short(value)}, expected a whole number from {least} to {most:,}")
        return value

    def number(self, *keys: str, default: float | None = None) -> float | None:
        """A number that is not negative."""
        key, value = self.get(*keys)
        if value is None:
            return default
        if type(value) not in (int, float) or not 0 <= value < 1e30:
            raise self.fail(f"{key} is {short(value)}, expected a number that is not negative")
        return float(value)

    def positive(self, *keys: str, default: float) -> float:
        """A number above zero."""
        value = self.number(*keys, default=default)
        if not value:
            raise self.fail(f"{self.get(*keys)[0]} is 0, expected a positive number")
        return value

    def rule(self, rule: Rule) -> bool:
        """What a rule comes to in this config."""
        if isinstance(rule, bool):
            return rule
        key, default = rule if isinstance(rule, tuple) else (rule, False)
        return self.flag(key, default=default)

    def flag(self, *keys: str, default: bool) -> bool:
        """True or false."""
        key, value = self.get(*keys)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.fail(f"{key} is {short(value)}, expected true or false")
        return value

    def word(self, *keys: str, known: frozenset[str], default: str | None = None) -> str | None:
        """One of the known words."""
        key, value = self.get(*keys)
        if value is None:
            return default
        if not isinstance(value, str) or value not in known:
            raise self.fail(f"{key} is {short(value)}, which is not known{nearest(str(value), known)}")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers; an absent one is empty."""
        value = self.values.get(key) or []
        if not isinstance(value, list) or not all(type(n) in (int, float) for n in value):
            raise self.fail(f"{key} is not a list of numbers")
        return tuple(map(float, value))

    def block(self, *keys: str) -> Reader | None:
        """An object inside this one."""
        key, value = self.get(*keys)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail(f"{key} is {short(value)}, expected an object")
        return Reader(value, f"{self.where}: {key}")


def short(value: Any) -> str:
    """A value as an error shows it."""
    text = ascii(value) if type(value) is not int or abs(value) < 10**20 else "a very large number"
    return text if len(text) <= 40 else text[:37] + "…"
