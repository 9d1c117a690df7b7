"""Circuits: composition scores against their definition in float64 numpy, and a planted pair of heads."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import weightkit as wk
from tests import make_golden as golden
from tests.by_hand import Array
from tests.tiny import CONFIGS, FAMILIES, weights, write
from tests.variants import VARIANTS
from weightkit.analysis.circuits import Composition, expected
from weightkit.analysis.heads import heads
from weightkit.errors import AddressError

HEADS, WIDTH = 4, 48
NO_HEADS = {"deepseek_v2", "deepseek_v3", "mamba"}  # latent attention, and no attention


def wide(model: wk.Model, address: str) -> Array:
    return model.registry[address].array().astype(np.float64)


def scores_by_definition(model: wk.Model) -> dict[tuple[str, str, str], float]:
    """Whole [width, width] matrices of every head, norms as matrices, and their products."""
    family, config = model.registry.architecture, model.config
    assert family is not None
    assert config is not None
    centre = np.eye(WIDTH) - 1 / WIDTH if family.norm == "layer" else np.eye(WIDTH)

    def norm(address: str) -> Array:
        if address not in model:
            return np.eye(WIDTH)
        return np.diag(wide(model, address) + (family.norm == "rms + 1")) @ centre

    circuits = {}
    for layer in range(config.layers):
        at = f"layers.{layer}.attn"
        before, after = norm(f"{at}.norm"), norm(f"{at}.post_norm")
        q, k, v, o = (wide(model, f"{at}.{part}") for part in "qkvo")
        for head in range(HEADS):
            own = slice(head * config.head_dim, (head + 1) * config.head_dim)
            shared = head // (HEADS // config.kv_heads)
            keys = slice(shared * config.head_dim, (shared + 1) * config.head_dim)
            qk = (q[own] @ before).T @ k[keys] @ before
            circuits[f"{at}[head={head}]"] = layer, qk, after @ o[:, own] @ v[keys] @ before
    found = {}
    for (writer, (early, _, ov)), (reader, (late, qk, read)) in itertools.product(circuits.items(), repeat=2):
        if early < late:
            for kind, matrix in (("Q", qk.T), ("K", qk), ("V", read)):
                norms = np.linalg.norm(matrix) * np.linalg.norm(ov)
                found[kind, writer, reader] = float(np.linalg.norm(matrix @ ov) / norms)
    return found


def table(rows: list[Composition]) -> dict[tuple[str, str, str], float]:
    return {(row.kind, row.writer, row.reader): row.score for row in rows}


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_definition(tmp_path: Path, family: str) -> None:
    model = wk.open(write(tmp_path / "m", family))
    rows = model.circuits()
    assert table(rows) == pytest.approx(scores_by_definition(model), rel=1e-9)
    assert [row.score for row in rows] == sorted((row.score for row in rows), reverse=True)


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])  # norms after the sum's terms, and stored less one
def test_norms_of_what_is_written_count(tmp_path: Path, family: str) -> None:
    model = wk.open(golden.write(tmp_path / "m", family, next(iter(VARIANTS[family]))))
    assert table(model.circuits()) == pytest.approx(scores_by_definition(model), rel=1e-9)


@pytest.mark.parametrize("family", sorted(VARIANTS))
def test_every_family_has_circuits_or_says_that_it_has_none(tmp_path: Path, family: str) -> None:
    model = wk.open(golden.write(tmp_path / "m", family, next(iter(VARIANTS[family]))))
    if not list(heads(model.registry)):
        assert family in NO_HEADS
        with pytest.raises(AddressError, match="no attention heads"):
            model.circuits()
        return
    rows = model.circuits()
    assert rows
    assert all(0 < row.score <= 1 for row in rows)


def test_a_planted_circuit_comes_first(tmp_path: Path) -> None:
    """The keys of a head read what the values of an earlier one were written to, as an induction head does."""
    tensors = weights(CONFIGS["llama"])
    written = tensors["model.layers.0.self_attn.o_proj.weight"][:, 12:24]  # head 1
    tensors["model.layers.2.self_attn.k_proj.weight"][12:24] = written.T  # of heads 2 and 3
    for layer in range(3):
        tensors[f"model.layers.{layer}.input_layernorm.weight"][:] = 1
    model = wk.open(write(tmp_path / "m", tensors=tensors))
    first, second, third = model.circuits(most=3)
    readers = {"layers.2.attn[head=2]", "layers.2.attn[head=3]"}
    assert {first.reader, second.reader} == readers
    assert all((row.kind, row.writer) == ("K", "layers.0.attn[head=1]") for row in (first, second))
    assert second.score > 1.5 * third.score


def test_an_address_keeps_the_rows_of_its_heads(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path / "m"))
    head = "layers.1.attn[head=2]"
    want = [row for row in model.circuits() if head in (row.writer, row.reader)]
    assert table(model.circuits(head)) == pytest.approx(table(want), rel=1e-12)
    assert table(model.circuits(head, 3)) == pytest.approx(table(want[:3]), rel=1e-12)
    three = {f"layers.2.attn[head={i}]" for i in (1, 2, 3)}  # which do not share their two key heads evenly
    want = [row for row in model.circuits() if row.reader in three]
    assert table(model.circuits("layers.2.attn[head=1:4]")) == pytest.approx(table(want), rel=1e-12)
    in_layer = [row for row in model.circuits() if "layers.1." in row.writer + row.reader]
    assert table(model.circuits("layers.1")) == pytest.approx(table(in_layer), rel=1e-12)


def test_heads_of_nothing_but_zeros_are_left_out(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path / "m")).apply(wk.zero("layers.0.attn.o[head=1]"), wk.zero("layers.1.attn.k"))
    rows = model.circuits()
    assert all(math.isfinite(row.score) for row in rows)
    assert not [row for row in rows if row.writer == "layers.0.attn[head=1]"]
    assert {row.kind for row in rows if row.reader.startswith("layers.1.")} == {"V"}


def test_nan_stays_where_it_is(tmp_path: Path) -> None:
    tensors = weights(CONFIGS["llama"])
    tensors["model.layers.0.self_attn.o_proj.weight"][3, 5] = np.nan
    rows = wk.open(write(tmp_path / "m", tensors=tensors)).circuits()
    want = wk.open(write(tmp_path / "clean")).circuits()
    assert rows == [row for row in want if row.writer != "layers.0.attn[head=0]"]


def test_any_executor_and_any_block_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wk.open(write(tmp_path / "m", dtype="BF16"))
    want = model.circuits()
    with ProcessPoolExecutor(1) as executor:
        assert model.circuits(executor=executor) == want
    for some in (1, 2, 3):  # heads at a time
        monkeypatch.setattr("weightkit.analysis.circuits.BLOCK", some * 12 * WIDTH)
        assert table(model.circuits()) == pytest.approx(table(want), rel=1e-12)


def test_progress_is_told_from_the_first_layer_to_the_end(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    wk.open(write(tmp_path / "m")).circuits(progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 6) for i in range(1, 7)]  # three layers, three pairs of them


def test_random_heads_score_as_expected(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path / "m"))
    mean = float(np.mean([row.score for row in model.circuits()]))
    assert mean == pytest.approx(expected(model.registry), rel=0.1)
    assert expected(model.registry) == 1 / math.sqrt(WIDTH)
