"""Outliers: each strange thing, planted in a random model, is found first; in a clean one nothing is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightkit as wk
from tests import make_golden as golden
from tests.by_hand import Array, shrink_blocks, tokenizer, write_file
from tests.conftest import Cli
from tests.tiny import CONFIGS, FAMILIES, Tensors, weights, write
from tests.variants import VARIANTS
from weightkit.analysis.finding import Finding
from weightkit.tensor import Region
from weightkit.weight import Selection

LAYER = "model.layers.1."
DOWN = LAYER + "mlp.down_proj.weight"
GATE = LAYER + "mlp.gate_proj.weight"
Q, O = LAYER + "self_attn.q_proj.weight", LAYER + "self_attn.o_proj.weight"
WIDE = {"intermediate_size": 120}  # enough numbers to know how they are distributed
RANDOM = np.random.default_rng(1)


def planted(folder: Path, plant: Callable[[Tensors], None], **changes: Any) -> wk.Model:
    tensors = weights(CONFIGS["llama"] | changes)
    plant(tensors)
    return wk.open(write(folder, tensors=tensors, **changes))


def nan(t: Tensors) -> None:
    t[DOWN][5, 7] = np.nan
    t[DOWN][6, 1] = np.inf


def super_weight(t: Tensors) -> None:
    t[DOWN][5, 7] = -12.0


def large_weight(t: Tensors) -> None:
    t[Q][3, 4] = 12.0


def massive_row(t: Tensors) -> None:
    t[DOWN][11] *= 8


def massive_column(t: Tensors) -> None:
    t[Q][:, 13] *= 8


def odd_scale(t: Tensors) -> None:
    t[O] *= 20


def constant(t: Tensors) -> None:
    t[O][:] = 0


def layers(t: Tensors) -> None:
    for name in list(t):
        if name.startswith(LAYER):
            t[name.replace(".1.", ".2.")][:] = t[name] + 0.02 * RANDOM.standard_normal(t[name].shape)


def heads(t: Tensors) -> None:
    t[Q.replace(".1.", ".2.")][24:36] = t[Q][:12]
    t[O.replace(".1.", ".2.")][:, 24:36] = t[O][:, :12]


def key_heads(t: Tensors) -> None:
    for part in "kv":
        name = LAYER + f"self_attn.{part}_proj.weight"
        t[name.replace(".1.", ".2.")][12:24] = t[name][:12]


def neuron(t: Tensors) -> None:
    t[GATE][17] = 0


def row(t: Tensors) -> None:
    t[Q][17] *= 1e-4


def column(t: Tensors) -> None:
    t[Q][:, 21] = 0


def clipped(t: Tensors) -> None:
    t[GATE][:] = t[GATE].clip(-0.4, 0.4)


def token(t: Tensors) -> None:
    t["lm_head.weight"][33] *= 0.05


def normal(t: Tensors) -> None:
    t[GATE] *= 0.1  # 0.02, as transformers has it where nothing else is said


def uniform(t: Tensors) -> None:
    t[GATE][:] = RANDOM.uniform(-1, 1, t[GATE].shape) / math.sqrt(48)


def ones(t: Tensors) -> None:
    t[LAYER + "input_layernorm.weight"][:] = 1


PLANTS = [
    (nan, "NaN or Inf", "layers.1.ffn.down[5, 7]", math.nan),
    (super_weight, "super weight", "layers.1.ffn.down[5, 7]", -12.0),
    (large_weight, "large weight", "layers.1.attn.q[3, 4]", 12.0),
    (massive_row, "massive row", "layers.1.ffn.down[11, :]", None),
    (massive_column, "massive column", "layers.1.attn.q[:, 13]", None),
    (odd_scale, "odd scale", "layers.1.attn.o", None),
    (constant, "constant", "layers.1.attn.o", 0.0),
    (layers, "duplicate layers", "layers.1 = layers.2", None),
    (heads, "duplicate heads", "layers.1.attn[head=0] = layers.2.attn[head=2]", 1.0),
    (key_heads, "duplicate key heads", "layers.1.attn[kv_head=0] = layers.2.attn[kv_head=1]", 1.0),
    (neuron, "dead neuron", "layers.1.ffn[neuron=17]", 0.0),
    (row, "dead row", "layers.1.attn.q[17, :]", None),
    (column, "dead column", "layers.1.attn.q[:, 21]", 0.0),
    (clipped, "clipped", "layers.1.ffn.gate", float(np.float32(0.4))),
    (token, "untrained token", "lm_head[token=33]", None),
    (uniform, "initial", "layers.1.ffn.gate", None),
    (ones, "initial", "layers.1.attn.norm", 1.0),
]


@pytest.mark.parametrize(("plant", "kind", "address", "value"), PLANTS, ids=lambda v: getattr(v, "__name__", ""))
def test_what_is_planted_is_found_first(
    tmp_path: Path, plant: Callable[[Tensors], None], kind: str, address: str, value: float | None
) -> None:
    found = planted(tmp_path / "m", plant, **WIDE).outliers()
    first = found[0]
    assert (first.kind, first.address) == (kind, address)
    assert value is None or first.value == pytest.approx(value, nan_ok=True)
    assert 1 <= first.strength <= 100
    assert len(found) == 1 or kind == "odd scale"  # and nothing else is


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_a_clean_model_nothing_is_found(tmp_path: Path, family: str, dtype: str) -> None:
    model = wk.open(write(tmp_path / "m", family, dtype=dtype))
    assert model.outliers() == []


@pytest.mark.parametrize("family", sorted(VARIANTS))
def test_every_family_is_read(tmp_path: Path, family: str) -> None:
    found = wk.open(golden.write(tmp_path / "m", family, next(iter(VARIANTS[family])))).outliers()
    assert all(1 <= f.strength <= 100 and f.why for f in found)


def test_a_model_that_was_not_trained_is_found_out() -> None:
    found = {f.address: f.kind for f in wk.open("demo:step0").outliers()}
    assert len(found) == 39
    assert set(found.values()) == {"initial"}


def test_the_law_of_the_config_is_looked_for(tmp_path: Path) -> None:
    (only,) = planted(tmp_path / "m", normal, initializer_range=0.02, **WIDE).outliers("layers.1.ffn.gate")
    assert only.kind == "initial"
    assert only.value == pytest.approx(0.02, rel=0.05)
    assert planted(tmp_path / "n", normal, **WIDE).outliers("layers.1.ffn.gate") == []
    small = planted(tmp_path / "s", normal, initializer_range=0.02)
    assert small.outliers("layers.1.ffn.gate") == []  # by so few numbers it cannot be told
    assert wk.open(write(tmp_path / "o", initializer_range="wide")).outliers() == []


def test_tokens_like_those_that_no_text_has(tmp_path: Path) -> None:
    """Rows beyond the tokenizer share a direction; a token that points there too was not trained either."""

    def plant(t: Tensors) -> None:
        direction = RANDOM.standard_normal(48) * 0.2
        for i in (17, *range(90, 97)):
            t["model.embed_tokens.weight"][i] = direction + 0.02 * RANDOM.standard_normal(48)

    tensors = weights(CONFIGS["llama"])
    plant(tensors)
    found = wk.open(tokenizer(write(tmp_path / "m", tensors=tensors), size=90)).outliers()
    assert [(f.kind, f.address) for f in found] == [("untrained token", "embed[token=17]")]
    rows = tensors["model.embed_tokens.weight"].astype(np.float64)
    rows -= rows.mean(axis=0)
    unused = rows[90:].mean(axis=0)
    assert found[0].value == pytest.approx(rows[17] @ unused / np.linalg.norm(rows[17]) / np.linalg.norm(unused))


def test_numbers_are_those_of_the_definition(tmp_path: Path) -> None:
    def plant(t: Tensors) -> None:
        super_weight(t)
        heads(t)
        t[Q][0, 0] += 0.5

    found = {f.kind: f for f in planted(tmp_path / "m", plant).outliers()}
    tensors = weights(CONFIGS["llama"])
    plant(tensors)
    wide = {name: array.astype(np.float64) for name, array in tensors.items()}

    def z(array: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
        others = np.delete(array.ravel(), np.abs(array).argmax())
        return float(np.abs(array).max() / np.sqrt(np.square(others).mean()))

    usual = np.median([z(wide[DOWN.replace(".1.", f".{i}.")]) for i in (0, 2)])
    own = z(wide[DOWN])
    assert found["super weight"].strength == pytest.approx(min(own / 12, own / usual / 2), rel=1e-9)
    later = [wide[name.replace(".1.", ".2.")] for name in (Q, O)]
    a = np.concatenate([wide[Q][:12].ravel(), wide[O][:, :12].ravel()])
    b = np.concatenate([later[0][24:36].ravel(), later[1][:, 24:36].ravel()])
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert found["duplicate heads"].value == pytest.approx(cosine, rel=1e-12)
    assert found["duplicate heads"].strength == pytest.approx(0.05 / (1 - cosine), rel=1e-6)


def test_many_of_a_kind_are_counted_and_not_told(tmp_path: Path) -> None:
    def plant(t: Tensors) -> None:
        t[GATE][20:30] = 0

    found = planted(tmp_path / "m", plant).outliers()
    assert [f.kind for f in found] == ["dead neuron"] * 3
    assert "one of 10 such rows" in found[0].why


def test_an_address_says_where_to_look(tmp_path: Path) -> None:
    model = planted(tmp_path / "m", super_weight)
    assert model.outliers("layers.0") == []
    assert [f.kind for f in model.outliers("layers.1.ffn")] == ["super weight"]


def test_files_without_roles_have_outliers_too(tmp_path: Path) -> None:
    array = RANDOM.standard_normal((40, 50)).astype(np.float32)
    array[3, 4] = 1e4
    model = wk.open(write_file(tmp_path / "x.safetensors", {"x": array, "y": np.ones(0, np.float32)}))
    assert [(f.kind, f.address) for f in model.outliers()] == [("large weight", "name:x[3, 4]")]


@pytest.mark.parametrize(
    "array",
    [np.zeros((0, 4)), np.zeros((4, 4)), np.full((9, 9), np.nan), np.ones((1, 1)), np.arange(60).reshape(3, 4, 5)],
    ids=["empty", "zeros", "nan", "one", "three axes"],
)
def test_odd_arrays(tmp_path: Path, array: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
    for dtype in (np.float32, np.float16, np.float64):
        model = wk.open(write_file(tmp_path / f"{dtype.__name__}.safetensors", {"x": array.astype(dtype)}))
        assert all(f.kind in ("constant", "NaN or Inf") for f in model.outliers())


@pytest.mark.parametrize("part", [300, 1 << 25])
@pytest.mark.parametrize("size", [1e-250, 1e250])
def test_huge_and_tiny_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: float, part: int) -> None:
    monkeypatch.setattr("weightkit.analysis.reading.PART", part)
    array = np.random.default_rng(0).standard_normal((40, 50)) * size
    array[3, 4] = 50 * size
    (found,) = wk.open(write_file(tmp_path / "x.safetensors", {"x": array})).outliers()
    assert (found.kind, found.address, found.value) == ("large weight", "name:x[3, 4]", 50 * size)


def test_blocks_and_executors_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plant(t: Tensors) -> None:
        t[GATE.replace("gate", "up")][5, 7] = -12.0
        for thing in (massive_row, heads, neuron, clipped, token):
            thing(t)

    model = planted(tmp_path / "m", plant)
    want = model.outliers()
    assert len(want) >= 6
    with ProcessPoolExecutor(1) as executor:
        assert model.outliers(executor=executor) == want
    shrink_blocks(monkeypatch, 100)
    monkeypatch.setattr("weightkit.analysis.rows.BLOCK", 100)
    monkeypatch.setattr("weightkit.analysis.reading.PART", 700)

    def key(f: Finding) -> tuple[str, str]:
        return f.kind, f.address

    assert sorted(map(key, model.outliers())) == sorted(map(key, want))


def test_on_the_command_line(cli: Cli, tmp_path: Path) -> None:
    planted(tmp_path / "m", super_weight)
    assert cli("outliers", write(tmp_path / "clean")).out == "nothing strange\n"
    done = cli("outliers", tmp_path / "m")
    assert "super weight" in done.out
    assert done.code == 0
    found = cli("outliers", tmp_path / "m", "--json").json
    assert found["found"] == 1
    assert set(found["rows"][0]) == {"kind", "address", "value", "strength", "why"}
    assert cli("outliers", "demo:step0", "--top", "2").out.endswith("37 more; --top 39 shows all\n")


def test_the_first_nan_is_told_whatever_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_blocks(monkeypatch, 80)
    assert [f.address for f in planted(tmp_path / "m", nan).outliers()] == ["layers.1.ffn.down[5, 7]"]


def test_a_token_of_zeros_is_told_once(tmp_path: Path) -> None:
    def plant(t: Tensors) -> None:
        t["lm_head.weight"][33] = 0

    assert [(f.kind, f.strength) for f in planted(tmp_path / "m", plant).outliers()] == [("untrained token", 100.0)]


def test_a_head_with_keys_of_its_own_is_told_once(tmp_path: Path) -> None:
    config = {"num_key_value_heads": 4}

    def plant(t: Tensors) -> None:
        for part in "qkv":
            name = f"model.layers.{{}}.self_attn.{part}_proj.weight"
            t[name.format(2)][24:36] = t[name.format(1)][:12]
        t[O.replace(".1.", ".2.")][:, 24:36] = t[O][:, :12]

    found = planted(tmp_path / "m", plant, **config).outliers()
    assert [(f.kind, f.address) for f in found] == [
        ("duplicate heads", "layers.1.attn[head=0] = layers.2.attn[head=2]")
    ]


def test_many_copies_are_counted(tmp_path: Path) -> None:
    """Keys and values of one head for all, as before they are made fewer."""

    def plant(t: Tensors) -> None:
        for part in "kv":
            for name in [name for name in t if f"{part}_proj" in name]:
                t[name][:] = np.tile(t[LAYER + f"self_attn.{part}_proj.weight"][:12], (4, 1))

    found = planted(tmp_path / "m", plant, num_key_value_heads=4).outliers()
    assert [f.kind for f in found] == ["duplicate key heads"] * 10
    assert "one of 66 such pairs" in found[0].why


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_what_was_read_before_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """By outliers, and what stats has counted too: to the same findings, and without reading the weights again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("weightkit.analysis.remembered.LEAST", 1)
    tensors = weights(CONFIGS["llama"])
    nan(tensors)
    massive_row(tensors)
    model = wk.open(write(tmp_path / "m", tensors=tensors, dtype=dtype))
    want = model.outliers()
    read = Selection.blocks
    seen: list[Selection] = []

    def watched(self: Selection) -> Iterator[tuple[Region, Array]]:
        seen.append(self)
        return read(self)

    monkeypatch.setattr(Selection, "blocks", watched)
    assert repr(model.outliers(cache=True)) == repr(want)
    matrices = [w for w in model.registry.unique() if len(w.shape) == 2]
    assert len([s for s in seen if len(s.shape) == 2]) == len(matrices)  # each in one pass
    seen.clear()
    assert repr(model.outliers(cache=True)) == repr(want)
    assert not [s for s in seen if len(s.shape) == 2]


def test_progress_goes_through_all_of_the_work(tmp_path: Path) -> None:
    def plant(t: Tensors) -> None:
        heads(t)
        layers(t)

    tensors = weights(CONFIGS["llama"])
    plant(tensors)
    model = wk.open(tokenizer(write(tmp_path / "m", tensors=tensors), size=90))
    told: list[tuple[int, int]] = []
    model.outliers(progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] > model.counts().bytes  # pairs and tokens are read once more
