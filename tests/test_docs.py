"""The documentation runs: its Python as it stands, its commands with the output that it shows."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import make_docs, tiny
from tests.by_hand import tokenizer
from tests.conftest import ROOT, Cli
from tests.test_generate import masked
from weightkit.analysing import Look
from weightkit.analysis.circuits import Composition
from weightkit.analysis.finding import KINDS
from weightkit.analysis.marchenko_pastur import MarchenkoPastur
from weightkit.analysis.power_law import PowerLaw
from weightkit.analysis.spectrum import Shuffled, Spectrum
from weightkit.analysis.statistics import Statistics
from weightkit.cli.app import VERBS, application

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page: page.read_text("utf-8") for page in PAGES}
ERROR = re.compile(r"\| (\d+)e-6 \|$", re.MULTILINE)
CONSOLE = re.compile(r"```console\n\$ weightkit (.+)\n((?:.*\n)*?)```")
COMMANDS = [(page.name, *found) for page in PAGES for found in CONSOLE.findall(TEXT[page])]
SNIPPETS = [(page, code) for page in PAGES for code in re.findall(r"```python\n((?:.*\n)*?)```", TEXT[page])]


@pytest.mark.parametrize(("page", "code"), SNIPPETS, ids=lambda value: getattr(value, "name", "code"))
def test_python_runs(page: Path, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(page), "exec"), {})


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.mark.parametrize(("page", "command", "shown"), COMMANDS)
def test_commands_print_what_is_shown(
    page: str, command: str, shown: str, cli: Cli, together: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page's commands, one after another in one folder: one reads what another wrote."""
    (together / page).mkdir(exist_ok=True)
    monkeypatch.chdir(together / page)
    result = cli(*shlex.split(command))
    assert result.code in (0, 1)
    assert _rounded(result.out) == _rounded(shown)


def _rounded(text: str) -> list[str]:
    """Lines with numbers cut to three digits: the last one may differ between processors."""
    lines = [
        re.sub(r"(\d+\.\d+)(e-?\d+)?", lambda m: f"{float(m[0]):.2g}", line.rstrip()) for line in text.splitlines()
    ]
    return [re.sub(r"[ ▆]+", " ", line) for line in lines]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_chapter(verb: str) -> None:
    assert f"`weightkit {verb}" in TEXT[ROOT / "README.md"]
    assert re.search(rf"^## {verb}$", TEXT[ROOT / "docs" / "commands.md"], re.MULTILINE)


BY_NAME = (
    "cause energy by_role by_layer by_dtype formulas quantiles rewritten linked config snapshots left facts".split()
)


def _fields(value: object) -> Iterator[str]:
    """The names in a JSON value; not those that are data."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from () if name in BY_NAME else _fields(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _fields(inner)


CALLS = [
    "demo", "map M", "count M --explain", "list M", "show M layers.0.attn.q", "stats M", "check NAN",
    "diff M OTHER --ids 1,2", "trajectory M OTHER",
    "patch make M OTHER -o PATCH", "patch apply PATCH M -o APPLIED", "patch conflicts PATCH PATCH",
    "convert M OUT", "edit M --zero norm --dry-run --ids 1,2", "run M w1 -n 1", "run MASKED w7[MASK]",
    "spectrum demo layers.0.attn --shuffle 0", "outliers NAN", "vocabulary M layers.0.ffn[neuron=3]", "circuits M",
    "chat M w1 -n 1", "trace M w1 --zero norm", "measure M OTHER --ids 1,2 --prompt w1",
]  # fmt: skip
AS_ELSEWHERE = {"show": "stats", "edit": "measure", "diff": "measure"}


def test_every_field_of_the_json_is_in_the_docs(cli: Cli, tmp_path: Path) -> None:
    tensors = tiny.weights(tiny.CONFIGS["llama"])
    tensors["model.norm.weight"][:] = np.nan
    places = {
        "M": tokenizer(tiny.write(tmp_path / "m")),
        "OTHER": tiny.write(tmp_path / "other", seed=9),
        "NAN": tiny.write(tmp_path / "nan", tensors=tensors),
        "MASKED": masked(tmp_path / "masked").checkpoint.path,
        "OUT": tmp_path / "out",
        "PATCH": tmp_path / "p.wkpatch",
        "APPLIED": tmp_path / "applied",
    }
    (places["M"] / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    found: dict[str, set[str]] = defaultdict(set)
    for call in CALLS:
        verb, *rest = call.split()
        done = cli(verb, *(places.get(word, word) for word in rest), "--json")
        assert done.code in (0, 1), done.err
        found[verb] |= set(_fields(done.json))
    table = TEXT[ROOT / "docs" / "commands.md"].partition("## JSON")[2]
    rows = {verb: set(re.findall(r"`(\w+)`", row)) for verb, row in re.findall(r"^\| (\w+) \| (.+) \|$", table, re.M)}
    for verb, fields in found.items():
        elsewhere = found[AS_ELSEWHERE[verb]] if verb in AS_ELSEWHERE else set()
        assert fields - elsewhere - rows[verb] == {"schema"} - elsewhere, verb
        assert rows[verb] <= fields, verb
    assert set(found) == set(VERBS)


def test_every_verb_says_what_it_does() -> None:
    for command in application().registered_commands:
        assert command.callback is not None
        assert (command.callback.__doc__ or "").strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", TEXT[page]):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", make_docs.PAGES)
def test_pages_that_are_made_from_tables_are_up_to_date(name: str) -> None:
    page = make_docs.PAGES[name]()
    assert _without_errors(TEXT[ROOT / "docs" / name]) == _without_errors(page), "run python -m tests.make_docs"


def _without_errors(page: str) -> str:
    """A page without measured errors, each seen to be allowed: the last digit may differ between processors."""
    assert all(int(found) <= 20 for found in ERROR.findall(page))
    return ERROR.sub("", page)


DEFINED: dict[str, list[Any]] = {
    "Counts and moments": [Statistics, Look],
    "Spectra": [Spectrum, PowerLaw, MarchenkoPastur, Shuffled],
    "Circuits": [Composition],
}
NAMES = {"address", "name", "role", "layer", "dtype", "shape", "statistics", "kind", "writer", "reader"}  # no numbers


@pytest.mark.parametrize("chapter", DEFINED)
def test_every_number_has_one_definition(chapter: str) -> None:
    fields = {field.name for kind in DEFINED[chapter] for field in dataclasses.fields(kind)}
    assert fields - NAMES <= set(re.findall(r"\w+", _first_cells(chapter)))


def test_every_strange_thing_and_every_measure_has_a_definition() -> None:
    assert all(kind in _first_cells("Strange things") for kind in KINDS)
    assert all(f"`{measure}`" in _first_cells("Tokens") for measure in ("cosine", "logit", "z"))


def _first_cells(chapter: str) -> str:
    """The first column of the tables of a chapter of the page of statistics."""
    (text,) = re.findall(rf"^## {chapter} (.*?)(?=^## |\Z)", TEXT[ROOT / "docs" / "statistics.md"], re.M | re.S)
    return " ".join(re.findall(r"^\| (.+?) \|", text, re.M))
