"""Tap: what happens to the activations of a run as they pass by, each under its address."""

from __future__ import annotations

from typing import Protocol

from weightkit.dtypes import Array


class Tap(Protocol):
    """Sees the activations of a run, and may change them."""

    def __call__(self, address: str, x: Array) -> Array:
        """What takes the place of the activation `x` at an address: `x` itself, or something of its shape."""

    def wants(self, address: str) -> bool:
        """Whether this activation is looked at; what costs time to have is not made where no one does."""


class Closed:
    """The tap that sees nothing."""

    def __call__(self, address: str, x: Array) -> Array:  # noqa: ARG002
        """The activation as it is."""
        return x

    def wants(self, address: str) -> bool:  # noqa: ARG002
        """It wants none."""
        return False


CLOSED = Closed()
