"""Packing: quantised weights, one matrix held by several stored tensors."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from weightkit.tensor import Strided, Tensor

Packed = Strided


def unpack(base: str, tensors: Mapping[str, Any], settings: Mapping[str, Any]) -> Tensor | None:
    """The packed matrix, or None."""
    return None


def parts(base: str, names: Container[str]) -> tuple[str, ...]:
    """Every name that belongs to the packed matrix `base`."""
    return ()


def bookkeeping(name: str) -> bool:
    """Whether a name is that of scales or zero points."""
    return False
