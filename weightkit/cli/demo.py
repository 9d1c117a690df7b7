"""weightkit demo: the guided tour."""

from __future__ import annotations


def demo() -> None:
    """A guided tour on the built-in model: count, look, edit, measure, diff, undo."""
