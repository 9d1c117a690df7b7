"""What a checkpoint's nested value holds: its tensors by name, and which of them are no part of the model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from weightkit.formats.torch_names import View
from weightkit.formats.unpickle.values import Inert, Instance, Odd, PickleError

MOST_DEPTH = 1000
_FREE = 2 << 20  # characters of all names together, and things looked at, beside four per byte of the pickle
_NAME_COST = 96  # what a tensor takes beside its name

_Path = tuple[Any, ...]  # the keys and indices that lead to a tensor

_MODEL = frozenset(
    "model model_state model_state_dict state_dict module net network weights params parameters generator".split()
)
_AVERAGE = re.compile(r"(^|_)(ema|averaged|swa)(_|$)")  # parameters too, where they lie beside the model
_ASIDE = re.compile(r"(^|_)(optimizers?|optim|opt|l?r?_?schedulers?|rng|grad_scaler|scaler)(_|$)", re.IGNORECASE)
_BOOKKEEPING = frozenset(
    "step steps global_step epoch epochs iter iters iteration iter_num best_val_loss best_loss val_loss loss lr".split()
)


def flatten(top: object, pickle_bytes: int) -> tuple[dict[str, View], frozenset[str]]:
    """The tensors in `top` by name, and the names of those that are no part of the model.

    A name is the keys joined with dots; of two tensors with one name the second is called name#2.
    Raises PickleError where there is no end to the names, as where lists share each other.
    """
    if isinstance(top, View):
        return {"tensor": top}, frozenset()
    found: list[tuple[_Path, str, View]] = []
    left = most = _FREE + 4 * pickle_bytes
    for path, view in _walk(top, most):
        name = ".".join(map(_text, path))
        left -= len(name) + _NAME_COST
        if left < 0:
            raise _endless()
        found.append((path, name, view))
    if not found and not isinstance(top, (dict, list, tuple)):
        what = top.cls if isinstance(top, Instance) else top.what if isinstance(top, Inert) else type(top).__name__
        raise PickleError(f"holds no tensors, only a value of type {what}")
    names = _distinct([name for _, name, _ in found])
    aside = _set_aside([(path, view) for path, _, view in found], top)
    return (
        {name: view for name, (_, _, view) in zip(names, found, strict=True)},
        frozenset(name for name, is_aside in zip(names, aside, strict=True) if is_aside),
    )


def _walk(top: object, most: int) -> Iterator[tuple[_Path, View]]:
    """All tensors below `top`, in order, each with its path.

    A container that is its own part is not entered again, nor one found to hold no tensor: those may be
    shared so that there is no end to them.
    """
    path: list[Any] = []
    frames = [(_children(top), id(top), 0)]
    entered, barren, count = {id(top)}, set[int](), 0
    while frames:
        children, identity, before = frames[-1]
        for key, value in children:
            if type(value) is View:
                count += 1
                yield (*path, key), value
            elif type(value) in _CONTAINERS and id(value) not in entered and id(value) not in barren:
                if len(path) >= MOST_DEPTH:
                    raise PickleError("the pickle is nested too deeply to be real")
                most -= len(value.content if type(value) is Instance else value)
                if most < 0:
                    raise _endless()
                path.append(key)
                entered.add(id(value))
                frames.append((_children(value), id(value), count))
                break
        else:
            frames.pop()
            entered.discard(identity)
            if count == before:
                barren.add(identity)
            if path:
                path.pop()


def _endless() -> PickleError:
    return PickleError("the pickle names the same tensors over and over; not opened")


_CONTAINERS = frozenset((dict, list, tuple, Instance))


def _children(value: object) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Instance):
        value = value.content
    if isinstance(value, dict):
        return iter(value.items())
    return iter(enumerate(value) if isinstance(value, (list, tuple)) else ())


def _text(key: object) -> str:
    if isinstance(key, bytes):
        return key.decode("utf-8", "replace")
    return type(key.value).__name__ if isinstance(key, Odd) else str(key)


def _distinct(names: list[str]) -> list[str]:
    """The same names, with #2, #3, … behind those that are there already."""
    given = set(names)
    used: set[str] = set()
    last: dict[str, int] = {}
    result = []
    for name in names:
        new = name
        while new in used or (new != name and new in given):
            last[name] = last.get(name, 1) + 1
            new = f"{name}#{last[name]}"
        used.add(new)
        result.append(new)
    return result


def _set_aside(found: list[tuple[_Path, View]], top: object) -> list[bool]:
    """For each tensor, whether it is no part of the model: the optimizer's state, counters, random states."""
    if isinstance(top, dict) and top.keys() >= {"state", "param_groups"}:
        return [True] * len(found)  # the state_dict of an optimizer
    nested = {path[0] for path, _ in found if len(path) > 1 and isinstance(path[0], str)}
    model = nested & _MODEL
    if model:
        model |= {key for key in nested if _AVERAGE.search(key)}
        return [len(path) == 1 or path[0] not in model for path, _ in found]
    return [_is_aside(path, view, bool(nested)) for path, view in found]


def _is_aside(path: _Path, view: View, is_nested: bool) -> bool:
    if any(isinstance(key, str) and _ASIDE.search(key) for key in path[:-1]):
        return True
    return len(path) == 1 and view.shape == () and (is_nested or path[0] in _BOOKKEEPING)
