"""The state of the pickle machine: a stack, a memo, and the places of the marks in the stack."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from weightkit.formats.unpickle.values import Global, PickleError, TruncatedError

Names = Mapping[tuple[str, str], object]  # (module, name) to what it stands for: a Known, or any value

_MOST_LINE = 1000  # characters of a name, or of a number written as text
_FREE_OBJECTS = 250_000
_BYTES_PER_OBJECT = 6  # a real pickle makes no more than one object of a kind, or memo entry, in about 10 bytes
_NAME_OBJECTS = 8  # what a name takes that was not met before
_FREE_LINES, _BYTES_PER_LINE = 1_000_000, 8  # of text, each of which takes as long as ten other opcodes
_INDEX = struct.Struct("<I").unpack_from
_LONG_BINPUT, _BININT1, _BINGET, _BINUNICODE, _MARK, _TUPLE, _TUPLE2, _STOP = b"rKhX(t\x86."


class Machine:
    """One run through one pickle."""

    __slots__ = ("data", "left", "lines", "marks", "memo", "named", "names", "persistent", "stack")

    def __init__(self, data: bytes, names: Names, persistent: Callable[[object], object]) -> None:
        self.data, self.names, self.persistent = data, names, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.named: dict[tuple[str, str], object] = {}
        self.left = _FREE_OBJECTS + len(data) // _BYTES_PER_OBJECT
        self.lines = _FREE_LINES + len(data) // _BYTES_PER_LINE

    def run(self, at: int, handlers: list[Handler]) -> int:
        """Go from `at` to the STOP, each opcode by its handler; returns the place after it.

        The opcodes that most of a checkpoint consist of are done here: a call for each would
        double the time that a large one takes. Tuples, marks and memo entries are accounted for here as well.
        """
        data, stack, memo, marks, left = self.data, self.stack, self.memo, self.marks, self.left
        try:
            while True:
                code = data[at]
                at += 1
                if code == _LONG_BINPUT:
                    (index,) = _INDEX(data, at)
                    memo[index] = stack[-1]
                    at += 4
                    left -= 1
                elif code == _BININT1:
                    stack.append(data[at])
                    at += 1
                elif code == _BINGET:
                    stack.append(memo[data[at]])
                    at += 1
                elif code == _BINUNICODE:
                    (count,) = _INDEX(data, at)
                    start, at = at + 4, at + 4 + count
                    if at > len(data):
                        raise TruncatedError
                    stack.append(str(data[start:at], "utf-8"))
                elif code == _MARK:
                    marks.append(len(stack))
                    left -= 1
                elif code == _TUPLE:
                    stack.append(tuple(self.since_mark()))
                    left -= 1
                elif code == _TUPLE2:
                    second = stack.pop()
                    stack[-1] = (stack[-1], second)
                    left -= 1
                elif code == _STOP:
                    return at
                else:
                    at = handlers[code](self, at)
                if left < 0:
                    self.spend(self.left + 1)
        except (IndexError, struct.error):  # of the data, or of the stack
            if at >= len(data) - 4:
                raise TruncatedError from None
            raise PickleError("the pickle is damaged: it uses values that are not there") from None
        except UnicodeDecodeError:
            raise PickleError("the pickle holds text that is not UTF-8") from None
        except KeyError:
            raise PickleError("the pickle is damaged: it remembers a value that it never had") from None

    def spend(self, count: int = 1) -> None:
        """Account for objects made, and for opcodes that no real pickle has many of.

        A small file cannot fill the memory then; what is not accounted for puts a value into the pickle's own.
        """
        self.left -= count
        if self.left < 0:
            raise PickleError("the pickle makes more objects than a real one of its size")

    def since_mark(self) -> list[Any]:
        """Take what lies above the last mark off the stack."""
        place = self.marks.pop()
        items = self.stack[place:]
        if place > len(self.stack):
            raise IndexError
        del self.stack[place:]
        return items

    def bytes_at(self, at: int, count: int) -> bytes:
        """`count` bytes; raises TruncatedError where there are not as many."""
        if count > len(self.data) - at:
            raise TruncatedError
        return self.data[at : at + count]

    def line(self, at: int) -> tuple[bytes, int]:
        """The bytes up to the next line end, and the place after it."""
        self.lines -= 1
        if self.lines < 0:
            raise PickleError("the pickle has more lines of text than a real one of its size")
        end = self.data.find(b"\n", at, at + _MOST_LINE)
        if end < 0:
            raise (
                TruncatedError if len(self.data) < at + _MOST_LINE else PickleError("the pickle holds an endless name")
            )
        return self.data[at:end], end + 1

    def look_up(self, module: object, name: object) -> object:
        """What a name stands for."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("the pickle is damaged: a name is not text")
        if len(module) + len(name) > 2 * _MOST_LINE:
            raise PickleError("the pickle holds an endless name")
        key = module, name
        if key not in self.named:
            self.spend(_NAME_OBJECTS)
            self.named[key] = self.names.get(key) or Global(module, name)
        return self.named[key]


Handler = Callable[[Machine, int], int]  # takes the place after the opcode, returns the place after its argument
