"""The Python API as it is documented: the page of the package, and ../shared/DESIGN.md, 4."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightkit as wk
from tests.by_hand import tokenizer
from tests.tiny import CONFIGS, weights, write
from weightkit.analysis.frames import Rows
from weightkit.errors import AddressError

NAMES = """
    Counts Diff Edit Effect Model Trace WeightkitError
    diff measure noise open patch replace scale set set_threads side_by_side trajectory zero
""".split()


@pytest.fixture
def model(tmp_path: Path) -> wk.Model:
    return wk.open(tokenizer(write(tmp_path / "m", shards=3)))


def test_names() -> None:
    assert sorted(wk.__all__) == NAMES
    assert set(NAMES) <= set(dir(wk))
    for name in NAMES:
        assert getattr(wk, name) is getattr(importlib.import_module("weightkit"), name)
    with pytest.raises(AttributeError, match="no attribute 'unheard_of'"):
        _ = wk.unheard_of


def test_star_import_hides_no_builtin_by_accident() -> None:
    """`from weightkit import *` gives what __all__ says, `open` and `set` among it, and no more."""
    space: dict[str, object] = {}
    exec("from weightkit import *", space)
    assert sorted(name for name in space if not name.startswith("__")) == NAMES


def test_importing_is_light() -> None:
    heavy = "numpy pandas rich typer tokenizers safetensors ml_dtypes"
    code = f"import sys, weightkit; print(sorted(set('{heavy}'.split()) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_documented(name: str) -> None:
    thing = getattr(wk, name)
    assert inspect.getdoc(thing)
    if inspect.isclass(thing) and thing.__module__.startswith("weightkit"):
        members = {n: m for n, m in vars(thing).items() if not n.startswith("_")}
        bare = [n for n, m in members.items() if (callable(m) or isinstance(m, property)) and not inspect.getdoc(m)]
        assert bare == []


def test_the_page_of_the_package_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer(write(tmp_path / "path" / "to" / "model"))
    monkeypatch.chdir(tmp_path)
    code = (wk.__doc__ or "").partition("import weightkit as wk")
    assert code[1]
    text = (
        (code[1] + code[2])
        .replace("The capital of France is Paris.", "w1 w2 w3")
        .replace("The capital of France is", "w1")
    )
    exec(compile(text, "weightkit", "exec"), {})
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_page_of_the_design_works(model: wk.Model, tmp_path: Path) -> None:
    """Every line of it that this version has; `patch` comes later."""
    counts = model.counts()
    assert (counts.total, list(counts.frame())[:2]) == (
        sum(a.size for a in weights(CONFIGS["llama"]).values()),
        ["role", "parameters"],
    )
    array = model["layers.0.attn.q"].array()
    assert array.dtype == np.float32
    assert array.shape == (48, 48)
    assert list(model.stats("layers.*.ffn.down").address) == [f"layers.{i}.ffn.down" for i in range(3)]
    edited = model.apply(wk.zero("layers.0.attn[head=3]"), wk.noise("layers.*.ffn.up", relative_std=0.01, seed=7))
    assert len(wk.diff(model, edited).changed) == 5
    effect = wk.measure(model, edited, texts=["w1 w2 w3 w4"])
    assert effect.tokens == 3
    assert effect.kl_mean > 0
    edited.save(tmp_path / "out")
    logits = model.logits([1, 2, 3])
    assert logits.dtype == np.float32
    assert logits.shape == (3, 97)
    assert model.generate("w1 w2", max_tokens=40).startswith("w1 w2 ")
    traced = model.trace("w1 w2", capture=["layers.*.attn.pattern", "layers.*.out"])
    assert traced["layers.2.attn.pattern"].shape == (4, 2, 2)


def test_a_model_never_changes(model: wk.Model) -> None:
    before = {address: weight.array().tobytes() for address, weight in model.registry.items()}
    logits = model.logits([1, 2, 3])
    edited = model.apply(wk.zero("layers"), wk.set("embed", 1))
    _ = edited.logits([1, 2, 3])
    assert {address: weight.array().tobytes() for address, weight in model.registry.items()} == before
    assert np.array_equal(model.logits([1, 2, 3]), logits)
    assert (model.edits, len(edited.edits)) == ((), 2)
    assert "2 edits" in repr(edited)


def test_no_edit_has_no_effect(model: wk.Model) -> None:
    for same in (model.apply(), model.apply(wk.scale("layers", 1.0)), model.apply(wk.noise("layers", std=0.0))):
        effect = wk.measure(model, same, ids=[[1, 2, 3, 4, 5]])
        assert (effect.kl_mean, effect.kl_max, effect.top1_agreement, effect.first_drift) == (0.0, 0.0, 1.0, None)
        assert effect.nll_a == effect.nll_b


def test_set_is_set_to(model: wk.Model) -> None:
    edit = wk.set("norm", 2)
    assert isinstance(edit, wk.Edit)
    assert (edit.op, edit.value) == ("set", 2.0)
    assert set(model.apply(edit)["norm"].array()) == {2.0}


def test_arrays_cannot_be_written_through(model: wk.Model) -> None:
    array = model["layers.0.attn.q"].array()
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1


def test_one_weight_or_a_part(model: wk.Model) -> None:
    want = weights(CONFIGS["llama"])["model.layers.0.self_attn.q_proj.weight"]
    assert np.array_equal(model["blocks.0.W_Q"].array(), want)
    assert np.array_equal(model["layers.0.attn.q[head=2]"].array(), want[24:36])
    assert np.array_equal(model["name:model.layers.0.self_attn.q_proj.weight"].array(), want)
    with pytest.raises(AddressError, match="names 3 weights"):
        _ = model["layers.*.attn.q"]
    assert [s.address for s in model.select("layers.*.attn.q")] == [f"layers.{i}.attn.q" for i in range(3)]


def test_tokens_by_their_text(model: wk.Model) -> None:
    assert model.token_id("w42") == 42
    (edited,) = model.select('embed[token="w42"]')
    assert np.array_equal(edited.array()[0], weights(CONFIGS["llama"])["model.embed_tokens.weight"][42])
    assert model.ids("w1 w2") == model.ids([1, 2]) == [1, 2]


def test_any_executor(model: wk.Model, tmp_path: Path) -> None:
    other = wk.open(write(tmp_path / "other", seed=1))
    with ThreadPoolExecutor(1) as executor:
        assert model.statistics(executor=executor) == model.statistics()
        assert wk.diff(model, other, executor=executor) == wk.diff(model, other)
        assert model.check(executor=executor) == model.check()


def test_one_error_class_for_all(model: wk.Model, tmp_path: Path) -> None:
    for call in (
        lambda: wk.open(tmp_path / "nothing"),
        lambda: model["layers.9"],
        lambda: wk.scale("norm", float("nan")),
        lambda: model.save(tmp_path / "m"),
        lambda: model.logits([97]),
        lambda: model.generate(""),
    ):
        with pytest.raises(wk.WeightkitError):
            call()


def test_every_table_of_the_analysis_is_a_frame(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path / "m"))
    composed = model.circuits("layers.0.attn[head=1]", 5)
    tables: list[Rows[Any]] = [model.statistics("layers.0"), model.outliers(), composed]
    for rows in tables:
        frame = rows.frame()
        assert len(frame) == len(rows)
        assert list(frame) == [field.name for field in dataclasses.fields(rows.kind)]
        assert pickle.loads(pickle.dumps(rows)) == rows
    assert composed.frame().score.tolist() == [row.score for row in composed]
    reading = model.vocabulary("embed[token=3]", 2)
    assert reading.frame().id.tolist() == [s.id for s in reading.highest + reading.lowest]
    assert list(reading.frame()) == ["end", "token", "id", "cosine"]
    assert "address" in model.spectrum("layers.0.attn.q").frame()
