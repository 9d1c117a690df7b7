"""Statistics of groups: by role, layer, head and expert, against the numbers of the weights put together."""

from __future__ import annotations

import csv
import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest

import weightkit as wk
from tests import make_golden
from tests.by_hand import NUMPY, write_file
from tests.conftest import Cli
from tests.exactly import lower_quantiles, same
from tests.tiny import write
from tests.variants import VARIANTS
from weightkit.analysis import statistics
from weightkit.errors import AddressError


def numbers(model: wk.Model, *addresses: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    found = [s.array().ravel() for address in addresses for s in model.select(address)]
    return np.concatenate(found)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_by_role(tmp_path: Path, dtype: str) -> None:
    model = wk.open(write(tmp_path, dtype=dtype))
    rows = {row.address: row for row in model.statistics(by="role")}
    assert list(rows) == list(dict.fromkeys(str(s.role) for s in model.select()))
    down = numbers(model, "layers.*.ffn.down").astype(NUMPY[dtype])
    same(rows["W_down"], down)
    assert list(rows["W_down"].quantiles.values()) == lower_quantiles(down)
    assert (rows["W_down"].weights, rows["W_down"].role, rows["W_down"].layer) == (3, "W_down", None)
    assert sum(row.count for row in rows.values()) == sum(s.size for s in model.select())


def test_by_layer(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path))
    rows = {row.address: row for row in model.statistics(by="layer")}
    assert [name for name in rows if name.startswith("layers")] == [f"layers.{i}" for i in range(3)]
    assert "embed" in rows
    same(rows["layers.1"], numbers(model, "layers.1"))
    assert (rows["layers.1"].layer, rows["layers.1"].role, rows["layers.1"].shape) == (1, "", ())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_by_head_is_what_an_address_with_a_head_names(tmp_path: Path, family: str) -> None:
    model = wk.open(write(tmp_path, family))
    rows = {row.address: row for row in model.statistics(by="head")}
    assert len(rows) == 3 * 4
    for address in ("layers.0.attn[head=0]", "layers.2.attn[head=3]"):
        same(rows[address], numbers(model, address))
        assert rows[address].weights == len(model.select(address))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("at_once", [10, 1024])
def test_by_row_and_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, at_once: int) -> None:
    monkeypatch.setattr(statistics, "AT_ONCE", at_once)
    model = wk.open(write(tmp_path, family, dtype="BF16"))
    (whole,) = model.select("layers.1.attn.k")
    told: list[tuple[int, int]] = []
    rows = model.statistics("layers.1.attn.k", by="row", progress=lambda *at: told.append(at))
    assert told[-1] == (2 * whole.size, 2 * whole.size)
    columns = model.statistics("layers.1.attn.k[1:9:3, :]", by="column")
    assert (len(rows), len(columns)) == whole.shape
    for i in (0, 4, len(rows) - 1):
        assert rows[i].address == f"layers.1.attn.k[{i}, :]"
        same(rows[i], whole.array()[i].astype(NUMPY["BF16"]))
        assert model.statistics(rows[i].address) == [rows[i]]
    assert columns[3].address == "layers.1.attn.k[:, 3]"
    same(columns[3], whole.array()[1:9:3, 3].astype(NUMPY["BF16"]))
    with pytest.raises(AddressError, match="called row"):
        model.statistics("norm", by="row")


def test_by_expert(tmp_path: Path) -> None:
    model = wk.open(make_golden.write(tmp_path, "mixtral", next(iter(VARIANTS["mixtral"]))))
    rows = {row.address: row for row in model.statistics("layers.*.ffn", by="expert")}
    same(rows["layers.1.ffn.experts.2"], numbers(model, "layers.1.ffn.experts.2"))


def test_what_has_no_expert_is_an_error(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path))
    with pytest.raises(AddressError, match="called expert"):
        model.statistics(by="expert")
    with pytest.raises(AddressError, match="cannot group"):
        model.statistics(by="colour")


def test_types_that_differ_are_one_row_together(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = {name: generator.standard_normal(500).astype(NUMPY[name]) for name in ("F32", "BF16", "F16", "I8")}
    (found,) = wk.open(write_file(tmp_path / "x.safetensors", arrays)).statistics(by="role")
    values = np.concatenate([array.astype(np.float64) for array in arrays.values()])
    assert (found.dtype, found.count, found.exact) == ("F32+BF16+F16+I8", 2000, True)
    assert list(found.quantiles.values()) == lower_quantiles(values)
    assert (found.min, found.max, found.zeros) == (values.min(), values.max(), int((values == 0).sum()))
    assert (found.mean, found.std) == pytest.approx((values.mean(), values.std()), rel=1e-12)


def test_sort_and_where(tmp_path: Path, cli: Cli) -> None:
    path = write(tmp_path)
    rows = cli("stats", path, "--sort", "kurtosis", "--json").json["rows"]
    found = [row["kurtosis"] for row in rows if row["kurtosis"] is not None]
    assert found == sorted(found, reverse=True)
    wanted = cli("stats", path, "--where", "std > 0.02", "--where", "layer=1", "--json").json["rows"]
    assert {row["address"] for row in wanted} == {
        row["address"] for row in rows if row["layer"] == 1 and row["std"] > 0.02
    }
    assert "kurtosis" in cli("stats", path, "--sort", "kurtosis").out.partition("\n")[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sort", "colour"], "sort by one of"),
        (["--by", "colour"], "one of role"),
        (["--where", "std"], "a field, a sign and a number"),
        (["--where", "std > x"], "a field, a sign and a number"),
        (["--by", "expert"], "called expert"),
    ],
)
def test_wrong_options_are_one_line(tmp_path: Path, cli: Cli, arguments: list[str], says: str) -> None:
    done = cli("stats", write(tmp_path), *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert says in done.err


@pytest.mark.parametrize("verb", [["spectrum"], ["outliers"], ["circuits"], ["vocabulary", "layers.0.attn[head=0]"]])
def test_parquet_has_the_rows_of_csv(tmp_path: Path, cli: Cli, verb: list[str]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "rows.parquet"
    done = cli(verb[0], "demo", *verb[1:], "--parquet", out, "--csv")
    assert done.code == 0, done.err
    found = parquet.read_table(out).to_pylist()
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert found
    assert [list(row) for row in found] == [list(row) for row in rows]


def test_parquet_without_pyarrow_is_one_line(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = cli("stats", write(tmp_path), "--parquet", tmp_path / "rows.parquet")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "pip install pyarrow" in done.err


def test_parquet(tmp_path: Path, cli: Cli) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path, out = write(tmp_path), tmp_path / "rows.parquet"
    rows = cli("stats", path, "--parquet", out, "--json").json["rows"]
    found = parquet.read_table(out).to_pylist()
    assert [row["address"] for row in found] == [row["address"] for row in rows]
    assert [row["q0.5"] for row in found] == [row["quantiles"]["0.5"] for row in rows]
