"""The documentation runs: its Python as it stands, its commands with the output that it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests import make_docs
from tests.conftest import ROOT, Cli
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


@pytest.mark.parametrize(("page", "command", "shown"), COMMANDS)
def test_commands_print_what_is_shown(page: str, command: str, shown: str, cli: Cli) -> None:
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
