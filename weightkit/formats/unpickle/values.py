"""What a pickle is made of here: plain Python values, and these for all that would need somebody's program."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from weightkit.errors import printable


class PickleError(Exception):
    """The pickle is damaged, or asks for what is not done; the text says which."""


class TruncatedError(PickleError):
    """The bytes end before the pickle does."""

    def __init__(self) -> None:
        super().__init__("the pickle is cut short or damaged")


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A function that a pickle may call, and what is done instead."""

    name: str
    call: Callable[..., object]
    copies: bool = False  # what it is given, so that each call costs as much as that is long


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that the pickle names. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return printable(f"{self.module}.{self.name}"[:200])

    @property
    def harmful(self) -> bool:
        """Whether its module is Python's own: no checkpoint names such a function for its own sake."""
        return self.module.partition(".")[0] in _PYTHON

    @property
    def plain_class(self) -> bool:
        """Whether it looks like a class of somebody's own, whose objects only hold data."""
        return self.module.partition(".")[0] not in _NOT_PLAIN and self.name.isidentifier() and self.name[0].isupper()


_PYTHON = frozenset((*sys.stdlib_module_names, "__builtin__", "copy_reg")) - {"__main__"}
_NOT_PLAIN = _PYTHON | {"torch", "numpy"}


@dataclass(slots=True, eq=False)
class Instance:
    """An object of a class that was not imported: its attributes and its items."""

    cls: str
    content: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Inert:
    """A value that is of no use here, such as a numpy scalar: only what it is."""

    what: str


@dataclass(frozen=True, slots=True, eq=False)
class Odd:
    """A dict key that is not hashed, because hashing a stranger's value can take for ever."""

    value: object


def call(function: object, arguments: object) -> object:
    """What a Known function makes of its arguments. Raises PickleError for every other function."""
    if isinstance(function, Global):
        raise PickleError(f"the pickle calls {function}; not opened")
    if not isinstance(function, Known) or not isinstance(arguments, tuple):
        raise PickleError("the pickle calls what is not a function; not opened")
    try:
        return function.call(*arguments)
    except TypeError:
        raise PickleError(f"the pickle calls {function.name} with arguments that it does not take") from None


def instance(cls: Global, arguments: object) -> object:
    """An object of a class: inert data, where the class looks like data. Raises PickleError elsewhere."""
    if cls.module.startswith("torch.nn."):
        raise whole_module(cls)
    if cls.plain_class and arguments == ():
        return Instance(str(cls))
    return call(cls, arguments)


def whole_module(cls: object) -> PickleError:
    """The refusal of a model that was pickled together with its program."""
    return PickleError(f"holds a whole pickled model ({cls}), which needs its program; save its state_dict() instead")
