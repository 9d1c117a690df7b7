"""Trajectories against plain float64 numpy."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import weightkit as wk
from tests.conftest import Cli
from tests.tiny import CONFIGS, weights, write
from weightkit.analysis import trajectory as room
from weightkit.errors import FormatError

NAMES = ("a", "b", "c", "d")
Q, HEAD = "model.layers.1.self_attn.q_proj.weight", "lm_head.weight"


def snapshots(folder: Path) -> list[dict[str, NDArray[Any]]]:
    """Four snapshots, of which the last moves in one matrix only, as models in folders of these names."""
    made = [weights(CONFIGS["llama"], seed=seed) for seed in range(3)]
    made.append(made[-1] | {Q: made[0][Q]})
    for name, tensors in zip(NAMES, made, strict=True):
        write(folder / name, tensors=tensors)
    return made


def flat(tensors: dict[str, NDArray[Any]], names: list[str]) -> NDArray[np.float64]:
    return np.concatenate([tensors[name].astype(np.float64).ravel() for name in names])


def require_is(found: room.Movement, points: list[NDArray[np.float64]], whole: list[NDArray[np.float64]]) -> None:
    steps = [after - before for before, after in itertools.pairwise(points)]
    lengths = [np.linalg.norm(step) for step in steps]
    moved = [np.linalg.norm(after - before) for before, after in itertools.pairwise(whole)]
    assert found.parameters == points[0].size
    assert found.norms == pytest.approx([np.linalg.norm(point) for point in points], rel=1e-12, abs=1e-12)
    assert found.steps == pytest.approx(lengths, rel=1e-12, abs=1e-12)
    assert found.path == pytest.approx(sum(lengths), rel=1e-12, abs=1e-12)
    assert found.net == pytest.approx(np.linalg.norm(points[-1] - points[0]), rel=1e-12, abs=1e-12)
    assert found.straightness == pytest.approx(found.net / found.path, rel=1e-12, abs=1e-12)
    assert found.shares == pytest.approx(
        [(a / b) ** 2 for a, b in zip(lengths, moved, strict=True)], rel=1e-12, abs=1e-12
    )
    for got, one, two in zip(found.cosines, steps, steps[1:], strict=False):
        size = float(np.linalg.norm(one) * np.linalg.norm(two))
        assert got == pytest.approx(one @ two / size if size else math.nan, nan_ok=True, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("numbers", [room.NUMBERS, 64])
def test_movements_are_those_of_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    monkeypatch.setattr(room, "NUMBERS", numbers)
    made = snapshots(tmp_path)
    found = wk.trajectory([wk.open(tmp_path / name) for name in NAMES])
    everything = [flat(tensors, sorted(tensors)) for tensors in made]
    require_is(found.total, everything, everything)
    groups = {
        "Q": [name for name in made[0] if "q_proj" in name],
        "vocab projection": [HEAD],
    }
    for role, names in groups.items():
        require_is(found.by_role[role], [flat(tensors, names) for tensors in made], everything)
    first = [name for name in made[0] if ".layers.1." in name]
    require_is(found.by_layer["1"], [flat(tensors, first) for tensors in made], everything)
    (row,) = (row for row in found.rows if row.address == "layers.1.attn.q")
    require_is(row, [flat(tensors, [Q]) for tensors in made], everything)
    assert row.shares[-1] == 1


def test_numbers_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    made = [weights(CONFIGS["llama"], seed=seed) for seed in range(3)]
    made[1][Q] = made[1][Q].copy()
    made[1][Q][0, :2] = math.nan, math.inf
    models = [wk.open(write(tmp_path / str(i), tensors=tensors)) for i, tensors in enumerate(made)]
    found = wk.trajectory(models)
    (row,) = (row for row in found.rows if row.address == "layers.1.attn.q")
    points = [tensors[Q].astype(np.float64).ravel()[2:] for tensors in made]
    assert (found.total.left_out, row.left_out) == (2, 2)
    assert row.net == pytest.approx(np.linalg.norm(points[2] - points[0]), rel=1e-12)
    assert row.norms == pytest.approx([np.linalg.norm(point) for point in points], rel=1e-12)


def test_what_does_not_move_has_no_direction(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path / "a"))
    total = wk.trajectory([model, model, model]).total
    assert (total.path, total.net) == (0, 0)
    assert math.isnan(total.straightness)
    assert all(map(math.isnan, total.cosines + total.shares))


def test_a_frame_has_a_row_for_each_weight(tmp_path: Path) -> None:
    snapshots(tmp_path)
    found = wk.trajectory([wk.open(tmp_path / name) for name in NAMES])
    frame = found.frame()
    assert list(frame.address) == [row.address for row in found.rows]
    assert list(frame.step_3) == [row.steps[2] for row in found.rows]
    assert list(frame.cosine_2) == [row.cosines[0] for row in found.rows]


def test_snapshots_have_the_same_weights(tmp_path: Path) -> None:
    a = wk.open(write(tmp_path / "a"))
    smaller = CONFIGS["llama"] | {"num_hidden_layers": 2}
    fewer = wk.open(write(tmp_path / "fewer", tensors=weights(smaller), num_hidden_layers=2))
    for pair in ([a, fewer], [fewer, a]):
        with pytest.raises(FormatError, match=r"fewer: has no layers\.2\.\S+, which \S+a has"):
            wk.trajectory(pair)
    narrow = CONFIGS["llama"] | {"intermediate_size": 64}
    other = wk.open(write(tmp_path / "narrow", tensors=weights(narrow), intermediate_size=64))
    with pytest.raises(FormatError, match=r"narrow: layers\.0\.ffn\.gate is \[64, 48\], and \[80, 48\] in \S+a"):
        wk.trajectory([a, other])
    with pytest.raises(FormatError, match="two snapshots or more, not 1"):
        wk.trajectory([a])


def test_the_command(cli: Cli, tmp_path: Path) -> None:
    snapshots(tmp_path)
    paths = [tmp_path / name for name in NAMES]
    found = wk.trajectory([wk.open(path) for path in paths])
    answer = cli("trajectory", *paths, "--json").json
    assert answer["snapshots"] == [str(path) for path in paths]
    assert answer["total"]["path"] == found.total.path
    assert set(answer["by_role"]) == set(found.by_role)
    assert len(answer["rows"]) == len(found.rows)
    lines = cli("trajectory", *paths, "--csv").out.splitlines()
    assert len(lines) == 1 + len(found.rows)
    assert lines[0].split(",") == found.table()[0]
    for options in ([], ["--by-layer"], ["--markdown"]):
        done = cli("trajectory", *paths, *options)
        assert (done.code, done.err) == (0, "")
    done = cli("trajectory", paths[0])
    assert (done.code, done.out) == (2, "")
    assert "give two or more" in done.err
