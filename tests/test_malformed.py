"""The shared corpus of malformed and hostile checkpoints, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SHARED, Cli, Result

CORPUS = SHARED / "malformed"
# `list` opens it by names, as it must open every unknown architecture; what needs the family refuses it.
BY_NAMES = "cf_type_unknown"


def _cases() -> list[Any]:
    kinds = ("safetensors", "dirs", "pickles", "gguf", "h5", "npz")
    manifests = [CORPUS / kind / "manifest.json" for kind in kinds]
    if not all(manifest.is_file() for manifest in manifests):
        return [pytest.param(None, "", marks=pytest.mark.skip("the shared corpus is not here"))]
    cases = [(path.parent / case["file"], case) for path in manifests for case in json.loads(path.read_text())]
    return [
        pytest.param(path, case["expected"], id=f"{path.parent.name}-{case['name']}")
        for path, case in cases
        if case["name"] != BY_NAMES
    ]


def require_refused(result: Result) -> None:
    assert result.code == 2
    assert result.out == ""
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("error: ")
    assert "please report it" not in result.err  # as an exception that nobody thought of is


@pytest.mark.parametrize(("path", "expected"), _cases())
def test_the_corpus(cli: Cli, path: Path, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("list", path)
    assert list(tmp_path.iterdir()) == []  # where a payload ran, it would have left its mark here
    assert "\x1b" not in result.out + result.err
    if expected == "reject" or (expected == "either" and result.code != 0):
        require_refused(result)
    else:
        assert result.code == 0
        assert "Traceback" not in result.err


def test_an_unknown_type_is_listed_by_names_but_neither_sound_nor_run(cli: Cli, shared: Path) -> None:
    path = CORPUS / "dirs" / BY_NAMES
    assert cli("list", path).code == 0
    assert cli("check", path).code == 1
    require_refused(cli("run", path, "--ids", "1"))
