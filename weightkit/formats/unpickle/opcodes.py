"""The opcodes of the stack, the memo, containers, names, calls and objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from weightkit.formats.unpickle.literals import op, text_of
from weightkit.formats.unpickle.machine import Machine
from weightkit.formats.unpickle.values import (
    Global,
    Inert,
    Instance,
    Known,
    Odd,
    PickleError,
    call,
    instance,
    whole_module,
)

_HASHABLE = frozenset((str, bytes, float, bool, type(None)))


def _key(key: Any) -> Any:
    kind = type(key)
    # Python hashes whole numbers modulo 2^61 - 1, so that large ones can be made to collide.
    if kind in _HASHABLE or (kind is int and -1 << 60 < key < 1 << 60):
        return key
    return Odd(key)


@op(b"0")
def _pop(machine: Machine, at: int) -> int:
    machine.spend()
    if machine.marks and machine.marks[-1] == len(machine.stack):
        machine.marks.pop()
    else:
        machine.stack.pop()
    return at


@op(b"1")
def _pop_mark(machine: Machine, at: int) -> int:
    machine.since_mark()
    return at


@op(b"2")
def _dup(machine: Machine, at: int) -> int:
    machine.spend()
    machine.stack.append(machine.stack[-1])
    return at


@op(b"q")
def _put(machine: Machine, at: int) -> int:
    machine.memo[machine.data[at]] = machine.stack[-1]
    return at + 1


@op(b"\x94")
def _memoize(machine: Machine, at: int) -> int:
    machine.spend()
    machine.memo[len(machine.memo)] = machine.stack[-1]
    return at


@op(b"p", b"g")
def _memo_line(machine: Machine, at: int) -> int:
    text, end = machine.line(at)
    if not text.isdigit() or int(text) >> 32:
        raise PickleError("the pickle is damaged: a memo number is none")
    if machine.data[at - 1 : at] == b"p":
        machine.spend()
        machine.memo[int(text)] = machine.stack[-1]
    else:
        _remember(machine, int(text))
    return end


def _remember(machine: Machine, index: int) -> None:
    if index not in machine.memo:
        raise PickleError("the pickle is damaged: it remembers a value that it never had")
    machine.stack.append(machine.memo[index])


@op(b"j")
def _long_get(machine: Machine, at: int) -> int:
    _remember(machine, int.from_bytes(machine.bytes_at(at, 4), "little"))
    return at + 4


# Containers. Sets are lists here.


def _container(codes: tuple[bytes, ...], make: Callable[[], object]) -> None:
    @op(*codes)
    def push(machine: Machine, at: int) -> int:
        machine.spend()
        machine.stack.append(make())
        return at


_container((b"]", b"\x8f"), list)
_container((b"}",), dict)


@op(b"\x85")
def _tuple_of_one(machine: Machine, at: int) -> int:
    machine.spend()
    machine.stack[-1] = (machine.stack[-1],)
    return at


@op(b"\x87")
def _tuple_of_three(machine: Machine, at: int) -> int:
    machine.spend()
    third, second = machine.stack.pop(), machine.stack.pop()
    machine.stack[-1] = (machine.stack[-1], second, third)
    return at


def _from_mark(codes: tuple[bytes, ...], make: Callable[[list[Any]], object]) -> None:
    @op(*codes)
    def push(machine: Machine, at: int) -> int:
        machine.spend()
        machine.stack.append(make(machine.since_mark()))
        return at


def _put_pairs(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise PickleError("the pickle is damaged: a dict has a key without a value")
    pairs = iter(items)
    for key in pairs:
        target[_key(key)] = next(pairs)
    return target


_from_mark((b"l", b"\x91"), list)
_from_mark((b"d",), lambda items: _put_pairs({}, items))


def _extend(target: object, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, Instance):
        target.content.update(enumerate(items, len(target.content)))
    else:
        raise PickleError("the pickle is damaged: it appends to what is not a list")


def _update(machine: Machine, target: object, items: list[Any]) -> None:
    machine.spend(len(items) // 2)
    if isinstance(target, Instance):
        target = target.content
    if not isinstance(target, dict):
        raise PickleError("the pickle is damaged: it sets an item of what is not a dict")
    _put_pairs(target, items)


@op(b"a")
def _append(machine: Machine, at: int) -> int:
    item = machine.stack.pop()
    _extend(machine.stack[-1], [item])
    return at


@op(b"e", b"\x90")
def _appends(machine: Machine, at: int) -> int:
    items = machine.since_mark()
    _extend(machine.stack[-1], items)
    return at


@op(b"s")
def _set_item(machine: Machine, at: int) -> int:
    value, key = machine.stack.pop(), machine.stack.pop()
    _update(machine, machine.stack[-1], [key, value])
    return at


@op(b"u")
def _set_items(machine: Machine, at: int) -> int:
    items = machine.since_mark()
    _update(machine, machine.stack[-1], items)
    return at


# Names, calls, objects.


@op(b"c")
def _global(machine: Machine, at: int) -> int:
    module, at = machine.line(at)
    name, at = machine.line(at)
    machine.stack.append(machine.look_up(text_of(module), text_of(name)))
    return at


@op(b"\x93")
def _stack_global(machine: Machine, at: int) -> int:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(machine.look_up(module, name))
    return at


@op(b"Q")
def _persistent(machine: Machine, at: int) -> int:
    machine.spend()
    machine.stack[-1] = machine.persistent(machine.stack[-1])
    return at


def _call(machine: Machine, function: object, arguments: object) -> object:
    machine.spend()
    if isinstance(function, Known) and function.copies and isinstance(arguments, tuple):
        machine.spend(len(arguments))
        machine.spend(sum(len(value) for value in arguments if isinstance(value, (list, tuple, dict))))
    return call(function, arguments)


@op(b"R")
def _reduce(machine: Machine, at: int) -> int:
    arguments = machine.stack.pop()
    machine.stack[-1] = _call(machine, machine.stack[-1], arguments)
    return at


@op(b"\x81", b"\x92")
def _new(machine: Machine, at: int) -> int:
    if machine.data[at - 1] == 0x92 and machine.stack.pop() != {}:
        raise PickleError("the pickle makes an object with named arguments; not opened")
    arguments = machine.stack.pop()
    cls = machine.stack[-1]
    machine.spend(3)  # as large as three of the others
    machine.stack[-1] = instance(cls, arguments) if isinstance(cls, Global) else _call(machine, cls, arguments)
    return at


@op(b"i")
def _inst(machine: Machine, at: int) -> int:
    at = _global(machine, at)
    function = machine.stack.pop()
    machine.stack.append(_call(machine, function, tuple(machine.since_mark())))
    return at


@op(b"o")
def _obj(machine: Machine, at: int) -> int:
    items = machine.since_mark()
    machine.stack.append(_call(machine, items[0], tuple(items[1:])))
    return at


@op(b"b")
def _build(machine: Machine, at: int) -> int:
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(state, dict) and "__setstate__" in state:
        raise PickleError("the pickle replaces the __setstate__ of an object; not opened")
    if isinstance(target, Instance):
        _set_state(machine, target, state)
    elif not isinstance(target, Inert) and not (isinstance(target, dict) and isinstance(state, dict)):
        raise PickleError("the pickle is damaged: it sets the state of what has none")
    return at  # the attributes of a state_dict (_metadata) and of inert values are of no use


def _set_state(machine: Machine, target: Instance, state: object) -> None:
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)  # (__dict__, __slots__)
    for part in parts:
        if isinstance(part, dict):
            if part.keys() >= {"_parameters", "_modules"}:
                raise whole_module(target.cls)
            machine.spend(len(part))
            target.content.update(part)
        elif part is not None:
            target.content["state"] = part


# What is not done, and what needs nothing done.


@op(b"\x80")
def _protocol(machine: Machine, at: int) -> int:
    machine.spend()
    if machine.data[at] > 5:
        raise PickleError(f"the pickle is of protocol {machine.data[at]}; 0 to 5 are known")
    return at + 1


@op(b"\x95")
def _frame(_machine: Machine, at: int) -> int:
    return at + 8


def _refuse(codes: tuple[bytes, ...], why: str) -> None:
    @op(*codes)
    def refuse(_machine: Machine, _at: int) -> int:
        raise PickleError(f"the pickle uses {why}")


_refuse((b"P",), "persistent ids as text, as protocol 0 does, which PyTorch does not read; save it with protocol 2")
_refuse((b"\x82", b"\x83", b"\x84"), "extension codes, which PyTorch does not write")
_refuse((b"\x97", b"\x98"), "buffers outside of it, which PyTorch does not write")
