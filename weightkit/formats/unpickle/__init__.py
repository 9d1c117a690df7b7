"""A pickle machine that executes nothing: it builds plain values, and knows no function but those it is given.

Python's own unpickler imports and calls whatever a pickle names, which is why opening a stranger's
checkpoint can run their program. Here a name is looked up in a table; one that is not there becomes an
inert `Global`, and a pickle that calls it is refused by that name.

Opcodes: `pickletools` of the standard library, protocols 0 to 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import weightkit.formats.unpickle.opcodes  # noqa: F401  registers the handlers
from weightkit.formats.unpickle.literals import HANDLERS
from weightkit.formats.unpickle.machine import Machine, Names
from weightkit.formats.unpickle.values import Global, PickleError


def load(data: bytes, start: int, names: Names, persistent: Callable[[object], object]) -> tuple[Any, int]:
    """The value of the pickle that begins at `start` in `data`, and where that pickle ends.

    Dicts of every kind become dict; sets become list; `persistent` makes a value of a persistent id.
    Raises PickleError, and of its kinds TruncatedError where `data` ends first.
    """
    machine = Machine(data, names, persistent)
    end = machine.run(start, HANDLERS)
    if len(machine.stack) != 1 or machine.marks:
        raise PickleError("the pickle is damaged: it ends in the middle of a value")
    for name in machine.named.values():
        if isinstance(name, Global) and name.harmful:
            raise PickleError(f"the pickle names {name}; not opened")
    return machine.stack[0], end
