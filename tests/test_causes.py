"""Causes: what each edit is called, with the right evidence, and the sentence for the whole model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightkit as wk
from tests.by_hand import NUMPY, Array, tokenizer, write_file
from tests.conftest import Cli
from tests.tiny import CONFIGS, weights, write
from weightkit.analysis.causes.evidence import rounded, spacing
from weightkit.analysis.compare import Diff
from weightkit.analysis.rolled import by_layer, by_role
from weightkit.dtypes import DTYPES

SHAPE = (96, 160)
Change = Callable[[Array, np.random.Generator], Array]


def base(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Array:
    random = np.random.default_rng(seed)
    return random.standard_normal(shape) * 0.02 * np.exp(0.3 * random.standard_normal(shape[-1]))


def cause(folder: Path, a: Array, b: Array, dtype: str = "F32") -> dict[str, Any]:
    """What is said of b, which is rounded to a type, unless it has one."""
    pair = (a.astype(NUMPY[dtype]), b.astype(NUMPY[dtype]) if b.dtype == np.float64 else b)
    files = [write_file(folder / f"{n}.safetensors", {"x": m}) for n, m in zip("ab", pair, strict=True)]
    (row,) = wk.diff(*map(wk.open, files)).changed
    json.dumps(row.cause)  # is plain data
    assert row.cause is not None
    return row.cause


def says(found: Mapping[str, Any], **wanted: Any) -> None:
    assert {name: found.get(name) for name in wanted} == {
        name: pytest.approx(value, rel=0.1) if isinstance(value, float) else value for name, value in wanted.items()
    }


def _set(x: Array, where: Any, value: Any) -> Array:
    y = x.copy()
    y[where] = value
    return y


def _factors(x: Array, axis: int) -> Array:
    return x * (1 + np.arange(x.shape[axis]) % 7 / 4 + 0.25)[(slice(None), None) if axis == 0 else slice(None)]


def _lora(x: Array, r: np.random.Generator, rank: int, size: float = 0.1) -> Array:
    change = r.standard_normal((x.shape[0], rank)) @ r.standard_normal((rank, x.shape[1]))
    return x + change * size * x.std() / change.std()


def _without(x: Array, r: np.random.Generator, side: str, strength: float = 1.0) -> Array:
    u = r.standard_normal(x.shape[side == "in"])
    u /= float(np.linalg.norm(u))
    return x - strength * (np.outer(u, u @ x) if side == "out" else np.outer(x @ u, u))


def _int4(x: Array) -> Array:
    groups = x.reshape(-1, 32)
    step = np.abs(groups).max(axis=1, keepdims=True) / 7
    return (np.round(groups / step) * step).reshape(x.shape)


EDITS: dict[str, tuple[Change, dict[str, Any]]] = {
    "all scaled": (lambda x, r: x * 0.7, {"kind": "scaled", "axis": "all", "factor": 0.7}),
    "some rows scaled": (
        lambda x, r: _set(x, [3, 9], x[[3, 9]] * 1.5),
        {"kind": "scaled", "axis": "row", "items": [3, 9], "factor": 1.5},
    ),
    "rows scaled": (lambda x, r: _factors(x, 0), {"kind": "scaled", "axis": "row"}),
    "columns scaled": (lambda x, r: _factors(x, 1), {"kind": "scaled", "axis": "column"}),
    "rows zeroed": (lambda x, r: _set(x, [4, 7], 0), {"kind": "zeroed", "axis": "row", "items": [4, 7]}),
    "columns zeroed": (
        lambda x, r: _set(x, (slice(None), [4, 7]), 0), {"kind": "zeroed", "axis": "column", "items": [4, 7]},
    ),
    "the smallest zeroed": (
        lambda x, r: np.where(np.abs(x) < np.quantile(np.abs(x), 0.3), 0, x), {"kind": "zeroed", "pattern": "smallest"},
    ),
    "coordinates": (
        lambda x, r: _set(x, ([1, 50], [2, 60]), 1.0),
        {"kind": "sparse", "count": 2, "coordinates": [[1, 2], [50, 60]]},
    ),
    "one coordinate zeroed": (lambda x, r: _set(x, (5, 6), 0), {"kind": "sparse", "count": 1}),
    "rank 1": (lambda x, r: _lora(x, r, 1), {"kind": "low_rank", "rank": 1}),
    "rank 16": (lambda x, r: _lora(x, r, 16), {"kind": "low_rank", "rank": 16}),
    "a small rank 8": (lambda x, r: _lora(x, r, 8, 0.01), {"kind": "low_rank", "rank": 8}),
    "rows permuted": (
        lambda x, r: x[::-1], {"kind": "permuted", "axis": "row", "permutation": list(range(95, -1, -1))},
    ),
    "columns permuted": (
        lambda x, r: np.roll(x, 1, axis=1), {"kind": "permuted", "axis": "column", "permutation": [159, *range(159)]},
    ),
    "rows changed": (
        lambda x, r: _set(x, [2, 3, 5], r.standard_normal((3, 160)) * 0.02), {"kind": "rows", "items": [2, 3, 5]},
    ),
    "columns changed": (
        lambda x, r: _set(x, (slice(None), [8]), x[:, [8]] + 0.01 * r.standard_normal((96, 1))),
        {"kind": "rows", "axis": "column", "items": [8]},
    ),
    "out of outputs": (lambda x, r: _without(x, r, "out"), {"kind": "direction", "side": "out", "strength": 1.0}),
    "out of inputs": (lambda x, r: _without(x, r, "in", 0.5), {"kind": "direction", "side": "in", "strength": 0.5}),
    "noise": (lambda x, r: x + 1e-3 * r.standard_normal(x.shape), {"kind": "noise", "std": 1e-3}),
    "uniform noise": (lambda x, r: x + r.uniform(-1e-3, 1e-3, x.shape), {"kind": "noise", "std": 1e-3 / 3**0.5}),
    "int4": (lambda x, r: _int4(x), {"kind": "quantised", "grid": "int4", "group": 32}),
    "replaced": (lambda x, r: base(9), {"kind": "replaced"}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_has_its_name(tmp_path: Path, edit: str, dtype: str) -> None:
    x = base().astype(NUMPY[dtype]).astype(np.float64)
    change, wanted = EDITS[edit]
    says(cause(tmp_path, x, np.array(change(x, np.random.default_rng(5)), np.float64), dtype), **wanted)


SAMPLED = ["rows scaled", "columns zeroed", "rank 16", "rows permuted", "out of outputs", "int4"]


@pytest.mark.parametrize("edit", SAMPLED)
def test_a_sample_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: str) -> None:
    from weightkit.analysis.causes import evidence

    monkeypatch.setattr(evidence, "ROWS", 70)
    monkeypatch.setattr(evidence, "COLUMNS", 128)
    monkeypatch.setattr(evidence, "ACROSS", 1 << 10)
    change, wanted = EDITS[edit]
    says(cause(tmp_path, base(), np.array(change(base(), np.random.default_rng(5)), np.float64)), **wanted)


@pytest.mark.parametrize("to", ["BF16", "F16", "F8_E4M3"])
def test_a_cast_is_one_whether_it_is_stored_so_or_not(tmp_path: Path, to: str) -> None:
    x = base().astype(np.float32)
    small = x.astype(NUMPY[to])
    says(cause(tmp_path / "1", x, small), kind="cast", to=to, exact=False)
    says(cause(tmp_path / "2", x, small.astype(np.float32)), kind="cast", to=to, exact=False)
    says(cause(tmp_path / "3", small.astype(np.float32), small), kind="cast", to=to, exact=True)


def test_nan_and_infinity_have_a_cause_too(tmp_path: Path) -> None:
    x = base()
    y = _lora(x, np.random.default_rng(0), 4)
    y[3, 4] = np.nan
    says(cause(tmp_path, x, y), kind="low_rank", rank=4)
    assert cause(tmp_path, x, np.full_like(x, np.nan))["kind"]


def test_names_along_axes(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path))
    edited = model.apply(wk.zero("layers.1.attn[head=2]"), wk.scale("layers.0.ffn[neuron=5]", 2))
    causes = {row.address: row.cause for row in wk.diff(model, edited).changed}
    for address in ("layers.1.attn.q", "layers.1.attn.o"):
        says(causes[address] or {}, kind="zeroed", axis="head", items=[2])
    for address in ("layers.0.ffn.gate", "layers.0.ffn.up", "layers.0.ffn.down"):
        says(causes[address] or {}, kind="scaled", axis="neuron", items=[5], factor=2.0)


def test_tokens_appended_and_neurons_removed(tmp_path: Path) -> None:
    x = base()
    rows = cause(tmp_path / "1", x, np.vstack([x, base(1, (3, 160))]))
    says(rows, kind="rows", appended=3, removed=0)
    says(cause(tmp_path / "2", x, np.delete(x, [4, 9], axis=1)), kind="rows", removed=2, items=[4, 9])
    says(cause(tmp_path / "3", x, np.vstack([x * 1.01, x[:2]])), kind="rows", appended=2, changed=96)
    says(cause(tmp_path / "4", x, base(1, (99, 160))), kind="replaced")
    says(cause(tmp_path / "5", x, base(1, (5, 5))), kind="replaced")


def layered(folder: Path, order: list[int]) -> Path:
    tensors = weights(CONFIGS["llama"])
    kept = {name: array for name, array in tensors.items() if ".layers." not in name}
    for j, i in enumerate(order):
        at = f"model.layers.{i}."
        kept |= {f"model.layers.{j}.{n[len(at) :]}": t for n, t in tensors.items() if n.startswith(at)}
    return write(folder, tensors=kept, num_hidden_layers=len(order))


@pytest.mark.parametrize(
    ("order", "said"),
    [([0, 2], "layer 1 dropped"), ([0, 1, 1, 2], "layer 1 duplicated"), ([0, 2, 1], "layers 1 and 2 moved")],
)
def test_layers(tmp_path: Path, order: list[int], said: str) -> None:
    found = wk.diff(wk.open(layered(tmp_path / "a", [0, 1, 2])), wk.open(layered(tmp_path / "b", order)))
    assert found.layers["layers."]["origin"] == order
    assert found.sentence.startswith(said)
    assert {row.cause["kind"] for row in found.changed if row.cause} == {"layers"}


def test_a_merged_lora_in_a_sentence(tmp_path: Path) -> None:
    tensors, random = weights(CONFIGS["llama"]), np.random.default_rng(0)
    parts = [n for n in tensors if "q_proj" in n or "v_proj" in n]
    merged = {n: _lora(tensors[n].astype(np.float64), random, 4).astype(np.float32) for n in parts}
    found = wk.diff(wk.open(write(tmp_path / "a")), wk.open(write(tmp_path / "b", tensors=tensors | merged)))
    assert found.sentence == "rank-4 change of Q and V in all 3 layers: a merged LoRA"
    (group,) = found.causes
    assert (group.roles, group.layers, len(group.addresses)) == (["Q", "V"], [0, 1, 2], 6)


def test_a_direction_that_many_share(tmp_path: Path) -> None:
    tensors = weights(CONFIGS["llama"])
    u = np.random.default_rng(0).standard_normal(48)
    u /= np.linalg.norm(u)
    parts = [n for n in tensors if "o_proj" in n or "down_proj" in n]
    ablated = {n: (tensors[n] - np.outer(u, u @ tensors[n])).astype(np.float32) for n in parts}
    found = wk.diff(wk.open(write(tmp_path / "a")), wk.open(write(tmp_path / "b", tensors=tensors | ablated)))
    assert {row.cause["shared_by"] for row in found.changed if row.cause} == {6}
    assert found.sentence == "a direction projected out of O and W_down in all 3 layers, the same in all"


def test_tokenizers_and_metadata(tmp_path: Path, cli: Cli) -> None:
    a, b = tokenizer(write(tmp_path / "a")), tokenizer(write(tmp_path / "b"), 99)
    found = wk.diff(wk.open(a), wk.open(b))
    assert found.tokens is not None
    assert (found.tokens.a, found.tokens.b, found.tokens.added, found.identical) == (97, 99, ["w97", "w98"], False)
    done = cli("diff", a, b)
    assert done.code == 1
    assert "tokenizer: 97 → 99 tokens, 2 added, 0 removed, 0 with another id" in done.out
    shutil.copy(a / "tokenizer.json", b / "tokenizer.json")
    assert wk.diff(wk.open(a), wk.open(b)).identical


def test_rolled_up(tmp_path: Path) -> None:
    a, b = (wk.open(write(tmp_path / str(seed), seed=seed)) for seed in (1, 2))
    found: Diff = wk.diff(a, b)
    assert [row.role for row in by_role(found.changed)][:3] == ["embedding", "norm", "Q"]
    assert [row.role for row in by_layer(found.changed)] == ["outside layers", "0", "1", "2"]
    q = next(row for row in by_role(found.changed) if row.role == "Q")
    x, y = (np.concatenate([m.registry[f"layers.{i}.attn.q"].array() for i in range(3)]) for m in (a, b))
    assert q.l2 == pytest.approx(float(np.linalg.norm(y - x)), rel=1e-5)
    assert q.relative_l2 == pytest.approx(float(np.linalg.norm(y - x) / np.linalg.norm(x)), rel=1e-5)


def test_what_training_did_is_called_so(shared: Path) -> None:
    found = wk.diff(*(wk.open(shared / "models" / f"cappgpt-{v}") for v in ("v1", "v2")))
    assert {row.cause["kind"] for row in found.changed if row.cause} == {"trained"}
    assert found.sentence == "all 68 weights trained, by 16 % of their size"


@pytest.mark.parametrize("pair", [("demo:early", "demo"), ("demo:step0", "demo"), ("demo:step0", "demo:early")])
def test_snapshots_of_training_are_trained(pair: tuple[str, str]) -> None:
    found = wk.diff(*map(wk.open, pair))
    assert {row.cause["kind"] for row in found.changed if row.cause} == {"trained"}


@pytest.mark.parametrize("name", ["F32", "BF16", "F16", "F8_E4M3", "F8_E5M2"])
def test_spacing_is_the_distance_of_neighbours(name: str) -> None:
    values = np.array([1.0, 1.5, 0.02, -3.0, 0.3])
    known = values.astype(NUMPY[name])
    width = f"u{known.dtype.itemsize}"
    above = (known.view(width) + 1).view(NUMPY[name]).astype(np.float64)
    np.testing.assert_array_equal(spacing(known.astype(np.float64), name), np.abs(above - known.astype(np.float64)))


def test_rounded_says_nan_of_what_a_type_has_not() -> None:
    assert np.isnan(rounded(np.array([1e9]), DTYPES["F16"])).all()
    assert rounded(np.array([1.0 + 2**-9]), DTYPES["BF16"]) == np.array([1.0 + 2**-9]).astype(ml_dtypes.bfloat16)
