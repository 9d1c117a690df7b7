"""Trace files: what h5py reads is what `trace` keeps, text after text; and what cannot be written leaves no mark."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import weightkit as wk
from tests import running, tiny
from tests.by_hand import files, tokenizer
from tests.running import IDS
from weightkit.effect import trace as room
from weightkit.effect import trace_file
from weightkit.effect.activations import CHOICES
from weightkit.engine import attention
from weightkit.errors import AddressError, EngineError, SaveError, WeightkitError

LONG = (np.arange(60) * 31 % 97).tolist()


@pytest.fixture
def model(tmp_path: Path) -> wk.Model:
    return wk.open(tokenizer(tiny.write(tmp_path / "m")))


def read(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        return {name: dataset[()] for name, dataset in file.items()}


@pytest.mark.parametrize("variant", ["llama", "gpt2", "mixtral", "deepseek_v3", "mamba", "bert", "t5"])
@pytest.mark.parametrize("step", [256, 7])
def test_the_file_holds_the_trace(variant: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "STEP", step)
    model, out = running.opened(tmp_path / "m", variant), tmp_path / "trace.h5"
    rows = model.save_trace(out, LONG, ["*"])
    traced, found = model.trace(LONG, ["*"]), read(out)
    extra = {"ids", "tokens", "text"} | (
        {"encoder.ids", "encoder.tokens", "encoder.text"} if variant == "t5" else set()
    )
    assert set(found) == {*traced, *extra}
    for address, x in traced.items():
        assert found[address].dtype == x.dtype
        assert np.array_equal(found[address], x), address
    assert found["encoder.ids" if variant == "t5" else "ids"].tolist() == LONG
    assert [(row.address, row.axes, row.shape) for row in rows] == [
        (a, traced.axes[a], x.shape) for a, x in traced.items()
    ]
    for row in rows:
        if row.axes == CHOICES:
            assert (row.rms, row.abs_max) == (None, None)
            continue
        wide = traced[row.address].astype(np.float64)
        assert row.rms == pytest.approx(np.sqrt(np.mean(wide**2)), rel=1e-6)
        assert row.abs_max == np.abs(wide).max()
    assert model.activations(LONG) == rows


def test_the_file_says_what_it_holds(model: wk.Model, tmp_path: Path) -> None:
    out = tmp_path / "trace.h5"
    edited = model.apply(wk.zero("layers.0.attn[head=1]"))
    edited.save_trace(out, "w5 w17", ["layers.1.attn.pattern"], [wk.scale("layers.0.out", 2)])
    with h5py.File(out) as file:
        pattern = file["layers.1.attn.pattern"]
        assert [dimension.label for dimension in pattern.dims] == list(pattern.attrs["axes"])
        assert list(pattern.attrs["axes"]) == ["head", "position", "key"]
        assert pattern.maxshape == (4, None, None)
        assert dict(file.attrs) == {
            "schema": "weightkit.trace/1",
            "model": str(tmp_path / "m"),
            "edits": "zero layers.0.attn[head=1]",
            "changes": "scale layers.0.out = 2",
        }
        assert file["tokens"].asstr()[:].tolist() == [" w5", " w17"]
        assert file["ids"][:].tolist() == [5, 17]


def test_texts_are_appended(model: wk.Model, tmp_path: Path) -> None:
    out, capture = tmp_path / "trace.h5", ["layers.1.attn.pattern", "layers.*.out", "layers.0.attn.q"]
    for ids in (IDS, LONG, [7]):
        model.save_trace(out, ids, capture, append=True)
    found = read(out)
    assert found["ids"].tolist() == [*IDS, *LONG, 7]
    assert found["text"].tolist() == [0] * 9 + [1] * 60 + [2]
    for number, ids in enumerate((IDS, LONG, [7])):
        traced, of_text = model.trace(ids, capture), found["text"] == number
        assert np.array_equal(found["layers.2.out"][of_text], traced["layers.2.out"])
        assert np.array_equal(found["layers.0.attn.q"][:, of_text], traced["layers.0.attn.q"])
        pattern = found["layers.1.attn.pattern"][:, of_text]
        assert np.array_equal(pattern[..., : len(ids)], traced["layers.1.attn.pattern"])
        assert not pattern[..., len(ids) :].any()


def test_texts_of_an_encoder_are_appended(tmp_path: Path) -> None:
    model, out = running.opened(tmp_path / "m", "t5"), tmp_path / "trace.h5"
    model.save_trace(out, IDS, ["*"])
    model.save_trace(out, IDS[:4], ["*"], decoder_ids=[0, 5, 6], append=True)
    found, traced = read(out), model.trace(IDS[:4], ["*"], decoder_ids=[0, 5, 6])
    assert (found["ids"].tolist(), found["text"].tolist()) == ([0, 0, 5, 6], [0, 1, 1, 1])
    assert np.array_equal(found["encoder.norm"][9:], traced["encoder.norm"])
    assert np.array_equal(found["decoder.layers.1.cross.pattern"][:, 1:, :4], traced["decoder.layers.1.cross.pattern"])


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pattern of 2,000 tokens is 64 MB."""
    monkeypatch.setattr(room, "MOST_PATTERN", 1 << 18)
    model = wk.open(tiny.write(tmp_path / "m"))
    ids = (np.arange(2000) * 31 % 97).tolist()
    tracemalloc.start()
    try:
        model.save_trace(tmp_path / "trace.h5", ids, ["layers.1.attn.pattern", "layers.*.ffn.post"])
        assert tracemalloc.get_traced_memory()[1] < 30 << 20
    finally:
        tracemalloc.stop()
    assert (tmp_path / "trace.h5").stat().st_size > 30 << 20


def test_memory_grows_with_a_text_as_keys_and_values_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MOST_SCORES", 1 << 16)
    model = wk.open(tiny.write(tmp_path / "m"))
    config = model.engine.config

    def peak(tokens: int) -> int:
        tracemalloc.start()
        try:
            model.save_trace(tmp_path / "trace.h5", [5] * tokens, ["layers.*.out"], force=True)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(300)  # weights are kept from now on
    kept = 2 * 4 * config.layers * config.kv_heads * config.head_dim  # bytes of a token
    assert peak(4000) - peak(1000) < 3000 * kept * 1.25 + 3000 * 400  # a token as id and as text


def test_tokens_with_a_nul(model: wk.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model), "token_text", lambda *_: "a\0b")
    model.save_trace(tmp_path / "trace.h5", [5], ["embed"])
    assert read(tmp_path / "trace.h5")["tokens"].tolist() == [b"a\\0b"]


# ── what cannot be written ───────────────────────────────────────────────────────────────────────────


def refused(model: wk.Model, out: Path, message: str, error: type[Exception] = SaveError, **how: Any) -> None:
    before = files(out.parent) if out.parent.is_dir() else {}
    with pytest.raises(error, match=message) as raised:
        model.save_trace(out, how.pop("prompt", IDS), how.pop("capture", ["embed"]), **how)
    assert "\n" not in str(raised.value)
    assert (files(out.parent) if out.parent.is_dir() else {}) == before


def test_what_exists_is_kept(model: wk.Model, tmp_path: Path) -> None:
    out = tmp_path / "trace.h5"
    model.save_trace(out, IDS, ["embed"])
    refused(model, out, "exists already; .*--append.*--force")
    model.save_trace(out, [7], ["norm"], force=True)
    assert set(read(out)) == {"norm", "ids", "tokens", "text"}
    refused(model, out, r"holds other activations \(embed, norm\)", append=True)
    change = [wk.zero("embed")]
    refused(model, out, "changes there: none, now: zero embed", capture=["norm"], changes=change, append=True)
    refused(model.apply(wk.zero("norm")), out, "edits there: none, now: zero norm", capture=["norm"], append=True)
    other = wk.open(tiny.write(tmp_path / "other"))
    refused(other, out, "model there: .*m, now: .*other", capture=["norm"], append=True)


def test_another_model_in_the_same_place(model: wk.Model, tmp_path: Path) -> None:
    out = tmp_path / "traces" / "trace.h5"
    model.save_trace(out, IDS, ["layers.0.ffn.post"])
    wider = wk.open(tiny.write(tmp_path / "m", intermediate_size=96))
    message = f"{out}: layers.0.ffn.post has other sizes there"
    refused(wider, out, message, capture=["layers.0.ffn.post"], append=True)


def test_activations_that_are_not_numbers(tmp_path: Path) -> None:
    tensors = tiny.weights(tiny.CONFIGS["llama"])
    tensors["model.layers.1.mlp.up_proj.weight"][3] = np.nan
    model = wk.open(tiny.write(tmp_path / "m", tensors=tensors))
    before, after = model.save_trace(tmp_path / "trace.h5", IDS, ["layers.0.out", "layers.1.out"])
    assert before.rms
    assert np.isnan(np.array([after.rms, after.abs_max], float)).all()
    assert np.isnan(read(tmp_path / "trace.h5")["layers.1.out"]).all()


@pytest.mark.parametrize("how", [{}, {"force": True}, {"append": True}])
def test_only_traces_are_replaced(model: wk.Model, tmp_path: Path, how: dict[str, Any]) -> None:
    (tmp_path / "notes.h5").write_text("my notes")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    for out in (tmp_path / "notes.h5", tmp_path / "other.h5", tmp_path / "m", tmp_path / "m" / "model.safetensors"):
        refused(model, out, "exists", **how)


@pytest.mark.parametrize("append", [False, True])
def test_a_run_that_fails_leaves_nothing(model: wk.Model, tmp_path: Path, append: bool) -> None:
    out = tmp_path / "deep" / "down" / "trace.h5"
    if append:
        model.save_trace(out, IDS, ["embed"])
    bad = {"changes": [wk.zero("layers.0.attn.q[head=4]")]} if not append else {"prompt": [97], "append": True}
    refused(model, out, "head|97", WeightkitError, **bad)
    assert append or not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"capture": ["layers.9.out"]}, AddressError, "no activation"),
        ({"capture": []}, SaveError, "nothing is captured"),
        ({"prompt": ""}, EngineError, "empty"),
    ],
)
def test_what_is_wrong_with_the_call_is_said_before_anything_is_written(
    model: wk.Model, tmp_path: Path, how: dict[str, Any], error: type[Exception], message: str
) -> None:
    refused(model, tmp_path / "new" / "trace.h5", message, error, **how)
    assert not (tmp_path / "new").exists()


def test_a_path_below_a_file(model: wk.Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused(model, tmp_path / "file" / "trace.h5", "not written|cannot be written")


@pytest.mark.parametrize("append", [False, True])
def test_a_full_disk(model: wk.Model, tmp_path: Path, append: bool) -> None:
    """A limit on the size of files ends writes as a full disk does."""
    out = tmp_path / "trace.h5"
    if append:
        model.save_trace(out, IDS, ["logits"])
    before = files(tmp_path)
    code = (
        "import resource, signal, sys; import weightkit as wk; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); model = wk.open(sys.argv[1])\n"
        "try: model.save_trace(sys.argv[2], [1, 2, 3] * 100, ['logits'], append=True)\n"
        "except wk.WeightkitError as error: print(error)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "m", out], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{out}: not written: File too large; the destination is as it was\n"
    assert files(tmp_path) == before


def test_a_write_that_fails_is_said(model: wk.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("put", "sync"):
        with monkeypatch.context() as patch:
            patch.setattr(trace_file, name, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            refused(model, tmp_path / "trace.h5", "No space left")
