"""Every part of what describes a model matters: with any one field broken, some golden logits are not matched.

The fields are those of the dataclasses themselves, so a new one is tried as soon as it is there. A field that no
logits can feel is in UNFELT, with the reason.
"""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest

import weightkit as wk
from tests import make_golden as golden
from tests.variants import VARIANTS
from weightkit.architectures import ARCHITECTURES
from weightkit.architectures.parts import Architecture, Slot
from weightkit.assembly import build
from weightkit.config import Config, Experts, Latent, Rope, Routing, StateSpace, Vision, normalise
from weightkit.engine.forward import Engine
from weightkit.model import Model

FELT = 1e-4  # of max |Δlogit| / std(logit): five times what parity allows
TRIES = 60  # cases in which a field is broken, before it counts as one that nothing feels

KINDS = (Config, Rope, Routing, Experts, Latent, StateSpace, Vision, Architecture, Slot)
UNFELT = {
    "Config.model_type": "a name",
    "Config.decoder_start": "golden cases give the decoder's ids",
    "Config.mtp_layers": "these layers are not run",
    "Config.dtype": "tensors say their own",
    "Config.quantization": "golden files are not packed",
    "Architecture.model_type": "a name",
    "Architecture.ignored": "says what is not run",
    "Architecture.instead": "golden files lack no tensor",
    "Slot.either": "golden files have the usual one",
    "Slot.foreign": "of files that are converted",
    "Slot.optional.head.extra": "either may be missing",
    "Slot.buffer": "of counts",
    "Slot.copies": "golden files hold nothing twice",
}
LAYOUT = ("transposed", "fused", "part", "every")  # fields of slots

Pair = tuple[str, str]  # two of the words that a field can be
Unit = tuple[type, str, Pair | None]
Case = tuple[str, str]
Description = tuple[Architecture, Config]


# ── what can be broken, and how ──────────────────────────────────────────────────────────────────────


def units() -> Iterator[Unit]:
    """Every field of every kind; those of a few words once for each two words that could be mistaken."""
    for kind in KINDS:
        for name, hint in typing.get_type_hints(kind).items():
            words = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
            for pair in itertools.combinations(words, 2) if words else (None,):
                yield kind, name, pair


def described(unit: Unit) -> str:
    kind, name, pair = unit
    return ".".join((kind.__name__, name, *(pair or ())))


def broken(value: Any, hint: Any, pair: Pair | None = None) -> Any:
    """Another value of a field, not far from its own; the same where it cannot be broken."""
    if pair is not None:
        return {pair[0]: pair[1], pair[1]: pair[0]}.get(value, value)
    if value is None:
        return next((other for kind, other in ((float, 1.5), (int, 1)) if kind in typing.get_args(hint)), None)
    if isinstance(value, StrEnum):
        return next(other for other in type(value) if other != value)
    if isinstance(value, KINDS):
        numbers = {name: number for name, number in vars(value).items() if type(number) in (int, float)}
        return dataclasses.replace(value, **{name: broken(number, None) for name, number in numbers.items()})
    simple: dict[type, Callable[[Any], Any]] = {
        bool: lambda flag: not flag,
        int: lambda number: number + 1,
        float: lambda number: number * 1.1 or 0.1,
        str: lambda word: "relu" if word in ("silu", "gelu") else "" if word else "x",
        tuple: lambda items: tuple(broken(item, int | None) for item in items),
        frozenset: lambda items: frozenset(broken(item, int) for item in items),
    }
    return simple[type(value)](value)


def places(description: Description, kind: type) -> list[tuple[str, ...]]:
    """Where in a model's description things of a kind are, by the names of the fields that lead there."""
    if kind in (Config, Architecture):
        return [()]
    config = description[1]
    found: list[tuple[str, ...]] = []
    for name in ("rope", "window_rope", "experts", "latent", "state_space", "vision"):
        value = getattr(config, name)
        found += [(name,)] if isinstance(value, kind) else []
        found += [(name, "routing")] if isinstance(value, Experts) and kind is Routing else []
    return found


def values(description: Description, unit: Unit) -> tuple[Any, ...]:
    """The values of a field in a model's description."""
    kind, name, _ = unit
    if kind is Slot:
        return tuple(getattr(slot, name) for slot in description[0].slots)
    root: Any = description[0] if kind is Architecture else description[1]
    return tuple(getattr(_at(root, place), name) for place in places(description, kind))


def _at(root: Any, place: tuple[str, ...]) -> Any:
    for name in place:
        root = getattr(root, name)
    return root


def _put(root: Any, place: tuple[str, ...], change: Callable[[Any], Any]) -> Any:
    if not place:
        return change(root)
    return dataclasses.replace(root, **{place[0]: _put(getattr(root, place[0]), place[1:], change)})


def breaks(description: Description, unit: Unit) -> Iterator[Description]:
    """A model's description with a field broken, in each place where it is; of slots, in all with that value."""
    kind, name, pair = unit
    architecture, config = description
    hint = typing.get_type_hints(kind)[name]

    def change(thing: Any) -> Any:
        return dataclasses.replace(thing, **{name: broken(getattr(thing, name), hint, pair)})

    if kind is Slot:
        for value in dict.fromkeys(values(description, unit)):
            slots = tuple(change(s) if getattr(s, name) == value else s for s in architecture.slots)
            yield dataclasses.replace(architecture, slots=slots), config
    elif kind is Architecture:
        yield change(architecture), config
    else:
        for place in places(description, kind):
            yield architecture, _put(config, place, change)


# ── what is felt ─────────────────────────────────────────────────────────────────────────────────────


@cache
def descriptions() -> dict[Case, Description]:
    """What describes the model of every golden case."""
    configs = {case: normalise(golden.config_of(*case), "config.json") for case in golden.CASES}
    return {case: (ARCHITECTURES[config.model_type], config) for case, config in configs.items()}


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Model]:
    """The models of golden cases, each made once."""
    return cache(lambda case: wk.open(golden.write(Path(tmp_path_factory.mktemp("golden")), *case)))


def error(model: Model, case: Case, description: Description) -> float:
    """The parity error of a golden case whose model is described so; infinite where it cannot be run."""
    kept = golden.read(*case)
    try:
        engine = Engine(build(model.checkpoint, *description))
        if kept.decoder_ids is None:
            return kept.error(engine.logits(kept.ids))
        return kept.error(engine.logits(kept.decoder_ids, source=engine.encode(kept.ids)))
    except Exception:  # a broken description may fail anywhere
        return float("inf")


def cases(unit: Unit) -> list[Case]:
    """The golden cases in which a field can be broken: those first whose values few others have, then one a family."""
    found = {case: values(description, unit) for case, description in descriptions().items()}
    count, rank = Counter(found.values()), {case: list(VARIANTS[case[0]]).index(case[1]) for case in found}
    return sorted((case for case in found if found[case]), key=lambda case: (count[found[case]], rank[case]))


def feels(model_of: Callable[[Case], Model], unit: Unit) -> bool:
    """Whether any golden case fails when a field is broken."""
    tries = (
        (case, other)
        for case in cases(unit)
        for other in breaks(descriptions()[case], unit)
        if other != descriptions()[case]
    )
    return any(not error(model_of(case), case, other) < FELT for case, other in itertools.islice(tries, TRIES))


@pytest.mark.parametrize("unit", list(units()), ids=described)
def test_a_broken_field_is_felt_unless_it_is_said_not_to_be(unit: Unit, model_of: Callable[[Case], Model]) -> None:
    assert feels(model_of, unit) == (described(unit) not in UNFELT)


@pytest.mark.parametrize("family", VARIANTS)
def test_how_each_matrix_of_a_family_lies_in_its_file_is_felt(family: str, model_of: Callable[[Case], Model]) -> None:
    own = [(case, description) for case, description in descriptions().items() if case[0] == family]
    slots = own[0][1][0].slots
    for (number, slot), name in itertools.product(enumerate(slots), LAYOUT):
        here = [(case, said) for case, said in own if is_stored(slot, model_of(case))]
        if not here or not (getattr(slot, name) or (name == "part" and slot.fused)):
            continue
        other = dataclasses.replace(slot, **{name: broken(getattr(slot, name), str)})
        changed = (*slots[:number], other, *slots[number + 1 :])
        assert any(
            not error(model_of(case), case, (dataclasses.replace(said[0], slots=changed), said[1])) < FELT
            for case, said in here
        ), f"{slot.address}: {name}"


def is_stored(slot: Slot, model: Model) -> bool:
    """Whether the first tensor that a slot stands for is in the files."""
    first = {"prefix": "", "layer": 0, "expert": 0, "head": 0, "kv_head": 0, "next": 1, "last": 0}
    weight = model.registry.get(slot.address.format_map(first))
    name = slot.name.format_map(first) + ("" if slot.raw else ".weight")
    return weight is not None and weight.name.endswith(name)


def test_what_is_said_to_be_unfelt_is_there() -> None:
    assert set(UNFELT) <= set(map(described, units()))


def test_unbroken_descriptions_match(model_of: Callable[[Case], Model]) -> None:
    assert all(error(model_of(case), case, descriptions()[case]) < FELT for case in golden.CASES[::20])
