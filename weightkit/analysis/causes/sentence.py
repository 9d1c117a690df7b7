"""What happened to a model, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from weightkit.analysis.causes.evidence import Found

MOST = 3  # causes that are told; the others are counted
NAMED = 4  # items that are named one by one


class Group(Protocol):
    """Weights of one cause."""

    @property
    def cause(self) -> Found:
        """What they have in common."""
        ...

    @property
    def roles(self) -> list[str]:
        """Their roles."""
        ...

    @property
    def layers(self) -> list[int]:
        """Their layers."""
        ...

    @property
    def addresses(self) -> list[str]:
        """Their addresses."""
        ...


def sentence(groups: Sequence[Group], moved: Mapping[str, Found], layers: int, weights: int) -> str:
    """Causes in words, the one of most numbers first; "" where there is none."""
    parts = [layers_moved(stack, found) for stack, found in moved.items()]
    others = [group for group in groups if group.cause["kind"] != "layers"]
    for group in others[:MOST]:
        parts.append(_what(group.cause, _where(group, layers, weights)))  # noqa: PERF401
    if len(others) > MOST:
        parts.append(f"and {len(others) - MOST} more kinds of change")
    return "; ".join(parts)


def _where(group: Group, layers: int, weights: int) -> str:
    """Which weights, as in `Q and V in all 32 layers`."""
    if len(group.addresses) == weights > 1:
        return f"all {weights:,} weights"
    if len(group.addresses) == 1:
        return group.addresses[0]
    roles = _and(group.roles if len(group.roles) <= NAMED else [f"{len(group.addresses)} weights"])
    if not group.layers:
        return roles
    if len(group.layers) == layers > 1:
        return f"{roles} in all {layers} layers"
    return f"{roles} in {_numbers('layer', group.layers)}"


def _numbers(noun: str, items: Sequence[int]) -> str:
    """As in layer 3, layers 3 to 7, layers 1, 4 and 6, 12 layers."""
    if len(items) == 1:
        return f"{noun} {items[0]}"
    if len(items) > 2 and list(items) == list(range(items[0], items[-1] + 1)):
        return f"{noun}s {items[0]} to {items[-1]}"
    return f"{noun}s {_and(map(str, items))}" if len(items) <= NAMED else f"{len(items):,} {noun}s"


def _and(words: Any) -> str:
    *most, last = list(words)
    return f"{', '.join(most)} and {last}" if most else str(last)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2g} %"


def _things(cause: Found) -> str:
    """What along an axis: `head 3 of `, or nothing where it is all."""
    items = cause.get("items")
    if cause.get("axis") in (None, "all", "element"):
        return ""
    noun = str(cause["axis"]).replace("kv_head", "key head").replace("residual", "residual dimension")
    return f"{noun}s of " if items is None else f"{_numbers(noun, items)} of "


def _what(cause: Found, where: str) -> str:
    match cause["kind"]:
        case "low_rank":
            rank = cause["rank"]
            return f"rank-one edit of {where}" if rank == 1 else f"rank-{rank} change of {where}: a merged LoRA"
        case "direction":
            shared = ", the same in all" if cause.get("shared_by", 0) > 1 else ""
            return f"a direction projected out of {where}{shared}"
        case "cast":
            return f"{where} cast to {cause['to']}" + (", which has all of the numbers" if cause.get("exact") else "")
        case "quantised":
            group = cause.get("group")
            by = f", {group} numbers a scale" if isinstance(group, int) else f", a scale for each {group}"
            return f"{where} quantised to {cause['grid']}{by if group else ''}"
        case "scaled":
            return f"{_things(cause)}{where} {_factor(cause)}"
        case "zeroed":
            share = f"{_percent(cause.get('share'))} of ".lstrip() if cause.get("share") else ""
            pattern = f" ({cause['pattern']})" if cause.get("pattern") else ""
            return f"{_things(cause)}{share}{where} zeroed{pattern}"
        case "permuted":
            return f"{_things(cause)}{where} permuted"
        case "sparse":
            return f"{cause['count']:,} single number{'s' * (cause['count'] != 1)} of {where} changed"
        case "rows":
            return _rows(cause, where)
        case "noise":
            return f"noise on {where}, {_percent(cause.get('relative'))} of their size"
        case "trained":
            return f"{where} trained, by {_percent(cause.get('relative'))} of their size"
        case "replaced":
            return f"{where} replaced by unrelated numbers"
    return f"{where}: {cause['kind']}"


def _factor(cause: Found) -> str:
    if "factor" in cause:
        return f"times {cause['factor']:.6g}"
    return f"scaled, each {cause['axis']} by a factor of its own" if "axis" in cause else "scaled"


def _rows(cause: Found, where: str) -> str:
    axis = str(cause.get("axis", "row")).replace("kv_head", "key head")
    for verb, preposition in (("appended", "to"), ("removed", "from")):
        if cause.get(verb):
            return f"{cause[verb]:,} {axis}{'s' * (cause[verb] != 1)} {verb} {preposition} {where}"
    return f"{_things(cause)}{where} changed"


def layers_moved(stack: str, found: Found) -> str:
    """What happened to the layers of a stack."""
    name = stack.removesuffix("layers.").removesuffix(".")
    of = f" of the {name}" if name else ""
    if found["dropped"]:
        return f"{_numbers('layer', found['dropped'])}{of} dropped"
    if found["duplicated"]:
        return f"{_numbers('layer', found['duplicated'])}{of} duplicated"
    away = [i for j, i in enumerate(found["origin"]) if i is not None and i != j]
    return f"{_numbers('layer', sorted(away))}{of} moved"
