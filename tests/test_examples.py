"""The examples run, on the built-in model, and say what they should."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

SAYS = {
    "count_parameters.py": ["1,000,576 parameters", "W_down"],
    "edit_and_measure.py": ["layers.0.attn[head=2]", "2 weights differ"],
    "look_inside.py": ["The capital of France is Paris", "layers.3.out", "head 3 of layer 0 looks most at"],
    "diff_checkpoints.py": ["W_gate", "39 of 39 weights differ"],
}


@pytest.mark.parametrize("name", SAYS)
def test_example(name: str) -> None:
    script = ROOT / "examples" / name
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert all(words in done.stdout for words in SAYS[name]), done.stdout


def test_every_example_is_tested() -> None:
    """`train_demo.py` trains with torch; its outcome is tested in test_demo."""
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {*SAYS, "train_demo.py"}
