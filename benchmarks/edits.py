"""Edits of one matrix whose cause is known: what they make of it, and what a diff should say of them. Seeded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Generator = np.random.Generator
DTYPES = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16}
SIZES = ((64, 4, 176), (128, 8, 352), (256, 8, 512), (512, 8, 1408))  # width, heads, neurons
VOCAB = 400


@dataclass(frozen=True)
class Edit:
    """What became of a matrix, the cause that says so, and what of its evidence has to be right."""

    after: Array  # float64, or of a type that it is to be stored in
    kind: str
    expected: Mapping[str, Any]


def base(random: Generator, shape: tuple[int, int]) -> Array:
    """Numbers as trained matrices have them: rows and columns of several sizes, tails heavier than normal."""
    rows, columns = (np.exp(0.3 * random.standard_normal(n)) for n in shape)
    numbers = random.standard_t(8, shape) * 0.02
    return numbers * rows[:, None] * columns


def size(random: Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform."""
    return float(np.exp(random.uniform(np.log(low), np.log(high))))


def cast(random: Generator, x: Array, dtype: str, **_: Any) -> Edit:
    coarser = {"F32": ["BF16", "F16"], "BF16": ["F8_E4M3", "F8_E5M2"], "F16": ["BF16", "F8_E4M3", "F8_E5M2"]}[dtype]
    to = coarser[random.integers(len(coarser))]
    kinds = {**DTYPES, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
    rounded = x.astype(np.float32).astype(kinds[to])
    after = rounded if random.random() < 0.5 else rounded.astype(np.float64)
    return Edit(after, "cast", {"to": to})


def quantised(random: Generator, x: Array, **_: Any) -> Edit:
    bits = int(random.choice([3, 4, 8]))
    group = int(random.choice([32, 64, 128, 0]))
    size = group if group and x.shape[1] % group == 0 and x.shape[1] > group else x.shape[1]
    parts = x.reshape(-1, size)
    zero_point = random.random() < 0.4
    if zero_point:
        low = parts.min(axis=1, keepdims=True)
        step = (parts.max(axis=1, keepdims=True) - low) / (2**bits - 1)
        after = low + np.round((parts - low) / step) * step
    else:
        step = np.abs(parts).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
        after = np.round(parts / step) * step
    grid = f"int{bits}" + (" with zero point" if zero_point else "")
    return Edit(after.reshape(x.shape), "quantised", {"grid": grid, "group": size if size < x.shape[1] else "row"})


def scaled(random: Generator, x: Array, things: Mapping[str, tuple[int, int, int]], **_: Any) -> Edit:
    factor = float(np.round(random.choice([size(random, 0.2, 0.9), size(random, 1.1, 4), -1.0]), 3))
    after, where = x.copy(), str(random.choice(["all", "things", "rows", "columns"]))
    if where == "things":
        name, (axis, width, count) = list(things.items())[random.integers(len(things))]
        items = np.sort(random.choice(count, random.integers(1, 3), replace=False))
        for i in items:
            pick = slice(i * width, (i + 1) * width)
            _of(after, axis)[pick] = _of(x, axis)[pick] * factor
        return Edit(after, "scaled", {"axis": name, "items": items.tolist(), "factor": factor})
    if where in ("rows", "columns"):
        axis = int(where == "columns")
        factors = np.exp(0.3 * random.standard_normal(x.shape[axis]))
        return Edit(x * (factors[:, None] if axis == 0 else factors), "scaled", {"factors": factors, "along": axis})
    return Edit(x * factor, "scaled", {"axis": "all", "factor": factor})


def _of(x: Array, axis: int) -> Array:
    return x if axis == 0 else x.T


def zeroed(random: Generator, x: Array, things: Mapping[str, tuple[int, int, int]], **_: Any) -> Edit:
    after = x.copy()
    if random.random() < 0.7:
        name, (axis, width, count) = list(things.items())[random.integers(len(things))]
        items = np.sort(random.choice(count, random.integers(1, min(6, count)), replace=False))
        for i in items:
            _of(after, axis)[i * width : (i + 1) * width] = 0
        return Edit(after, "zeroed", {"axis": name, "items": items.tolist()})
    if random.random() < 0.5:
        parts = np.abs(after).reshape(-1, 4)
        lowest = np.argsort(parts, axis=1)[:, :2]
        after.reshape(-1, 4)[np.arange(len(parts))[:, None], lowest] = 0
        return Edit(after, "zeroed", {"pattern": "2:4"})
    share = float(random.uniform(0.1, 0.7))
    after[np.abs(after) < np.quantile(np.abs(after), share)] = 0
    return Edit(after, "zeroed", {"pattern": "smallest", "share": share})


def sparse(random: Generator, x: Array, **_: Any) -> Edit:
    count = int(random.choice([1, 3, 10, 100, 300]))
    places = random.choice(x.size, count, replace=False)
    after = x.copy()
    after.flat[places] += x.std() * random.uniform(0.5, 3, count) * random.choice([-1, 1], count)
    return Edit(after, "sparse", {"count": count})


def low_rank(random: Generator, x: Array, **_: Any) -> Edit:
    rank = int(random.choice([1, 2, 4, 8, 16, 32]))
    change = random.standard_normal((x.shape[0], rank)) @ random.standard_normal((rank, x.shape[1]))
    after = x + change * (size(random, 0.005, 0.3) * x.std() / change.std())
    return Edit(after, "low_rank", {"rank": rank})


def permuted(random: Generator, x: Array, things: Mapping[str, tuple[int, int, int]], **_: Any) -> Edit:
    name, (axis, width, count) = list(things.items())[random.integers(len(things))]
    order = random.permutation(count)
    while (order == np.arange(count)).all():
        order = random.permutation(count)
    places = (order[:, None] * width + np.arange(width)).ravel()
    return Edit(np.take(x, places, axis), "permuted", {"axis": name, "permutation": order.tolist()})


def rows(random: Generator, x: Array, things: Mapping[str, tuple[int, int, int]], **_: Any) -> Edit:
    after = x.copy()
    name, (axis, width, count) = list(things.items())[random.integers(len(things))]
    if name == "token" and random.random() < 0.5:
        more = int(random.integers(1, 40))
        return Edit(np.vstack([x, base(random, (more, x.shape[1]))]), "rows", {"axis": "token", "appended": more})
    items = np.sort(random.choice(count, random.integers(1, max(2, min(40, count // 2))), replace=False))
    for i in items:
        pick = slice(i * width, (i + 1) * width)
        part = _of(after, axis)[pick]
        _of(after, axis)[pick] = part + x.std() * 0.3 * random.standard_normal(part.shape)
    return Edit(after, "rows", {"axis": name, "items": items.tolist()})


def direction(random: Generator, x: Array, **_: Any) -> Edit:
    side = str(random.choice(["out", "in"]))
    strength = float(random.choice([1.0, 1.0, 0.5, 1.5]))
    vector = random.standard_normal(x.shape[0] if side == "out" else x.shape[1])
    vector /= float(np.linalg.norm(vector))
    change = np.outer(vector, vector @ x) if side == "out" else np.outer(x @ vector, vector)
    return Edit(x - strength * change, "direction", {"side": side, "strength": strength})


def noise(random: Generator, x: Array, **_: Any) -> Edit:
    std = size(random, 0.005, 0.3) * float(x.std())
    normal = random.random() < 0.7
    drawn = random.standard_normal(x.shape) if normal else random.uniform(-(3**0.5), 3**0.5, x.shape)
    return Edit(x + std * drawn, "noise", {"std": std})


def trained(random: Generator, x: Array, **_: Any) -> Edit:
    """Steps of Adam on batches of inputs that are correlated, as activations are, to a target some way off."""
    width = x.shape[1]
    mix = random.standard_normal((width, width)) * np.exp(-np.arange(width) / (width / 4))
    target = x + 0.3 * x.std() * random.standard_normal(x.shape)
    after, first, second = x.copy(), np.zeros_like(x), np.zeros_like(x)
    rate = size(random, 0.002, 0.02) * x.std()
    for step in range(1, 41):
        inputs = random.standard_normal((32, width)) @ mix.T
        gradient = (inputs @ (after - target).T).T @ inputs / 32
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        after -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-12)
    return Edit(after, "trained", {})


def replaced(random: Generator, x: Array, **_: Any) -> Edit:
    return Edit(base(random, x.shape), "replaced", {})


KINDS: dict[str, Callable[..., Edit]] = {
    f.__name__: f
    for f in (cast, quantised, scaled, zeroed, sparse, low_rank, permuted, rows, direction, noise, trained, replaced)
}


def right(edit: Edit, cause: Mapping[str, Any] | None) -> bool:
    """Whether a cause has the right kind and says the right things."""
    if cause is None or cause["kind"] != edit.kind:
        return False
    return all(_same(name, wanted, cause) for name, wanted in edit.expected.items())


def _same(name: str, wanted: Any, cause: Mapping[str, Any]) -> bool:
    match name:
        case "std" | "strength" | "factor" | "share":
            near = {"std": 0.15, "strength": 0.1, "factor": 2e-3, "share": 0.05}[name]
            return name in cause and abs(cause[name] - wanted) <= near * abs(wanted)
        case "factors":
            found, items = np.array(cause.get("factors", ())), cause.get("items", [])
            as_before = np.delete(wanted, items)  # too near to one to show in the type
            near = found.size == len(items) and np.abs(found - wanted[items]) <= 2e-2 * wanted[items]
            return bool(np.all(near) and (np.abs(as_before - 1) <= 1e-2).all())
        case "along":
            return True
    return bool(cause.get(name) == wanted)
