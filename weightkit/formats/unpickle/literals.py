"""The opcodes of numbers, text and bytes."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from weightkit.formats.unpickle.machine import Handler, Machine
from weightkit.formats.unpickle.values import PickleError, TruncatedError

_MOST_INT_BYTES = 256
_FLOAT = Struct(">d")


def _unknown(machine: Machine, at: int) -> int:
    raise PickleError(f"the pickle is damaged, or not a pickle: it has no opcode {machine.data[at - 1]:#04x}")


HANDLERS: list[Handler] = [_unknown] * 256


def op(*codes: bytes) -> Callable[[Handler], Handler]:
    """Register the handler of these opcodes."""

    def register(handler: Handler) -> Handler:
        for code in codes:
            HANDLERS[code[0]] = handler
        return handler

    return register


def _constant(code: bytes, value: object) -> None:
    @op(code)
    def push(machine: Machine, at: int) -> int:
        machine.stack.append(value)
        return at


for _code, _value in ((b"N", None), (b"\x88", True), (b"\x89", False), (b")", ())):
    _constant(_code, _value)


def _integer(code: bytes, count: int, signed: bool = False) -> None:
    @op(code)
    def push(machine: Machine, at: int) -> int:  # a number cut short is noticed at the next opcode
        end = at + count
        machine.stack.append(int.from_bytes(machine.data[at:end], "little", signed=signed))
        return end


_integer(b"M", 2)
_integer(b"J", 4, signed=True)


@op(b"I", b"L", b"F")
def _number_line(machine: Machine, at: int) -> int:
    text, end = machine.line(at)
    code = machine.data[at - 1 : at]
    try:
        if code == b"I" and text in (b"00", b"01"):  # how protocol 0 writes False and True
            machine.stack.append(text == b"01")
        else:
            machine.stack.append(float(text) if code == b"F" else int(text.removesuffix(b"L")))
    except ValueError:
        raise PickleError("the pickle is damaged: a number is none") from None
    return end


@op(b"G")
def _float(machine: Machine, at: int) -> int:
    machine.stack.append(_FLOAT.unpack(machine.bytes_at(at, 8))[0])
    return at + 8


def _long(code: bytes, width: int) -> None:
    @op(code)
    def push(machine: Machine, at: int) -> int:
        count = int.from_bytes(machine.bytes_at(at, width), "little")
        if count > _MOST_INT_BYTES:
            raise PickleError(f"the pickle holds a number of {count:,} bytes")
        machine.stack.append(int.from_bytes(machine.bytes_at(at + width, count), "little", signed=True))
        return at + width + count


_long(b"\x8a", 1)
_long(b"\x8b", 4)


def text_of(raw: bytes) -> str:
    """UTF-8, strictly."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise PickleError("the pickle holds text that is not UTF-8") from None


def _text_or_bytes(raw: bytes) -> object:
    """A Python 2 string, which may be either."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw


def _counted(code: bytes, width: int, convert: Callable[[bytes], object]) -> None:
    @op(code)
    def push(machine: Machine, at: int) -> int:
        data, start = machine.data, at + width
        end = start + int.from_bytes(data[at:start], "little")
        if end > len(data):
            raise TruncatedError
        machine.stack.append(convert(data[start:end]))
        return end


_counted(b"\x8c", 1, text_of)
_counted(b"\x8d", 8, text_of)
_counted(b"U", 1, _text_or_bytes)
_counted(b"T", 4, _text_or_bytes)
_counted(b"C", 1, bytes)
_counted(b"B", 4, bytes)
_counted(b"\x8e", 8, bytes)
_counted(b"\x96", 8, bytes)


@op(b"V", b"S")
def _text_line(machine: Machine, at: int) -> int:
    raw, end = machine.line(at)
    if machine.data[at - 1 : at] == b"S":
        if len(raw) < 2 or raw[:1] != raw[-1:] or raw[:1] not in (b"'", b'"'):
            raise PickleError("the pickle is damaged: a string has no quotes")
        raw = raw[1:-1]
    try:
        text = raw.decode("raw-unicode-escape" if machine.data[at - 1 : at] == b"V" else "unicode-escape")
        text.encode("utf-8")
    except UnicodeError:
        raise PickleError("the pickle is damaged: a string cannot be decoded") from None
    machine.stack.append(text)
    return end
