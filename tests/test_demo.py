"""The built-in model knows what it was taught, and the tour tells the truth about it."""

from __future__ import annotations

from pathlib import Path

import pytest

import weightkit as wk
from tests.conftest import ROOT, Cli
from weightkit.demo.facts import HELD_OUT, PHRASINGS, facts
from weightkit.demo.quiz import ask

SNAPSHOTS = ("step0", "early", "final")


@pytest.fixture(scope="module")
def right() -> dict[tuple[str, int], float]:
    """Share of facts right, by relation and held-out phrasing."""
    model = wk.open("demo")
    shares: dict[tuple[str, int], float] = {}
    for relation in HELD_OUT:
        asked = [fact for fact in facts() if fact.relation == relation]
        for phrasing in range(len(HELD_OUT[relation])):
            answers = ask(model, asked, phrasing)
            shares[relation, phrasing] = sum(answer.right for answer in answers) / len(answers)
    return shares


def test_it_knows_its_facts(right: dict[tuple[str, int], float]) -> None:
    assert sum(right.values()) / len(right) >= 0.98
    assert min(right.values()) >= 0.95


def test_it_learned_them() -> None:
    known = {name: sum(a.right for a in ask(wk.open(name), facts())) for name in ("demo:step0", "demo:early")}
    assert known["demo:step0"] <= 2
    assert 0.3 * len(facts()) <= known["demo:early"] <= 0.7 * len(facts())


def test_held_out_phrasings_were_not_trained() -> None:
    for relation, held_out in HELD_OUT.items():
        trained = [template.replace("{answer}", "").rstrip(" .") for template in PHRASINGS[relation]]
        for template in held_out:
            assert not any(other.startswith(template) for other in PHRASINGS[relation]), template
            assert template not in trained


def test_there_are_enough_phrasings() -> None:
    assert all(len(templates) >= 10 for templates in PHRASINGS.values())


@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_it_is_small_and_whole(snapshot: str) -> None:
    folder: Path = ROOT / "weightkit" / "demo" / snapshot
    assert (folder / "model.safetensors").stat().st_size < 3_000_000
    assert wk.open(folder).check().sound


def test_the_tour(cli: Cli) -> None:
    told = cli("demo").out
    numbers = cli("demo", "--json").json
    assert numbers["schema"] == "weightkit.demo/1"
    model = wk.open("demo")
    assert numbers["known"] == sum(answer.right for answer in ask(model, facts()))
    edited = model.apply(wk.zero("layers.0.attn[head=2]"))
    known = [answer.fact for answer in ask(model, facts()) if answer.right]
    assert numbers["left"]["layers.0.attn[head=2]"] == sum(answer.right for answer in ask(edited, known))
    assert f"{numbers['known']} right" in told.replace("\n", " ")
    assert told.count("  $ weightkit ") == 3
    assert [row["known"] for row in numbers["noise"]] == sorted((r["known"] for r in numbers["noise"]), reverse=True)
