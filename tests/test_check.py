"""Check: every fault is found and placed, and a sound checkpoint has none."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightkit as wk
from tests.by_hand import NUMPY, Array, shrink_blocks, tokenizer, write_file
from tests.conftest import Cli
from tests.tiny import CONFIGS, FAMILIES, weights, write
from weightkit.analysis.check import Fault

FLOATS = [name for name in NUMPY if name[0] in "FB" and name != "BOOL"] + ["C64"]
NO_INF = ("F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0")


def faults(path: Path, kind: str = "") -> list[Fault]:
    found = wk.open(path).check().faults
    return [fault for fault in found if fault.kind == kind or not kind]


def with_value(dtype: str, value: complex, place: tuple[int, ...], shape: tuple[int, ...] = (3, 5)) -> Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = np.ones(shape).astype(NUMPY[dtype])
        array[place] = value
    return array


CASES = [(d, v) for d in FLOATS for v in (np.nan, np.inf, -np.inf) if not (np.isinf(v) and d in NO_INF)]


@pytest.mark.parametrize(("dtype", "value"), CASES)
def test_nan_and_inf_in_every_type(tmp_path: Path, dtype: str, value: float) -> None:
    path = write_file(tmp_path / "x.safetensors", {"ok": np.ones(3, np.int8), "bad": with_value(dtype, value, (1, 3))})
    (fault,) = faults(path, "values")
    what = "NaN" if np.isnan(value) else "Inf"
    assert (fault.where, fault.message) == ("bad", f"1 {what}, the first at [1, 3]")


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E5M2"])
def test_nan_and_inf_are_counted_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    array = with_value(dtype, np.inf, (4, 6), (9, 11))
    array[7], array[8, 0] = np.nan, -np.inf
    path = write_file(tmp_path / "x.safetensors", {"bad": array})
    for most in (1 << 20, 7, 1):
        shrink_blocks(monkeypatch, most)
        assert [f.message for f in faults(path)] == ["11 NaN and 2 Inf, the first at [4, 6]"]


@pytest.mark.parametrize("place", [(), (2,), (0, 1, 2)])
def test_coordinates_of_any_rank(tmp_path: Path, place: tuple[int, ...]) -> None:
    path = write_file(
        tmp_path / "x.safetensors", {"bad": with_value("F32", np.nan, place, tuple(i + 2 for i in place))}
    )
    assert [f.message for f in faults(path)] == [f"1 NaN, the first at {list(place)}"]


@pytest.mark.parametrize("dtype", ["I8", "I64", "U8", "BOOL"])
def test_whole_numbers_have_no_nan(tmp_path: Path, dtype: str) -> None:
    raw = np.full((4, 8), 255, np.uint8).view(NUMPY[dtype]) if dtype != "BOOL" else np.ones((4, 8), np.bool_)
    assert faults(write_file(tmp_path / "x.safetensors", {"x": raw})) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("shards", "dtype"), [(1, "F32"), (4, "BF16")])
def test_sound(tmp_path: Path, family: str, shards: int, dtype: str) -> None:
    folder = tokenizer(write(tmp_path, family, shards=shards, dtype=dtype))
    result = wk.open(folder).check()
    tensors = weights(CONFIGS[family])
    assert (result.sound, result.faults, result.not_checked) == (True, [], [])
    assert result.tensors == len(tensors)
    assert result.bytes == sum(a.size for a in tensors.values()) * (4 if dtype == "F32" else 2)


def test_what_could_not_be_looked_at_is_said(tmp_path: Path) -> None:
    folder = write(tmp_path)
    assert wk.open(folder).check().not_checked == ["tokenizer: there is none"]
    alone = wk.open(folder / "config.json").check()
    assert alone.sound
    assert [what.split(":")[0] for what in alone.not_checked] == ["values", "tokenizer"]
    (folder / "config.json").unlink()
    assert any("config" in what for what in wk.open(folder).check().not_checked)


def change_index(folder: Path, **changes: Any) -> Path:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    for key, change in changes.items():
        index[key] = change(index[key])
    path.write_text(json.dumps(index))
    return folder


def without(name: str) -> Any:
    return lambda mapping: {key: value for key, value in mapping.items() if key != name}


def test_total_size_that_is_wrong(tmp_path: Path) -> None:
    folder = change_index(write(tmp_path, shards=3), metadata=lambda m: m | {"total_size": 5})
    (fault,) = faults(folder)
    assert (fault.kind, fault.where) == ("index", "model.safetensors.index.json")
    assert "total_size is 5" in fault.message
    assert f"{sum(a.nbytes for a in weights(CONFIGS['llama']).values()):,}" in fault.message


def test_no_total_size_is_no_fault(tmp_path: Path) -> None:
    assert faults(change_index(write(tmp_path, shards=3), metadata=without("total_size"))) == []


def test_tensor_that_the_index_does_not_list(tmp_path: Path) -> None:
    folder = change_index(write(tmp_path, shards=3), weight_map=without("model.norm.weight"))
    (fault,) = faults(folder)
    assert fault.kind == "index"
    assert "'model.norm.weight'" in fault.message


def test_a_layer_too_many(tmp_path: Path) -> None:
    more = weights(CONFIGS["llama"] | {"num_hidden_layers": 4})
    found = faults(write(tmp_path, tensors=more))
    assert {f.kind for f in found} == {"tensors"}
    assert {f.where for f in found} == {name for name in more if ".layers.3." in name}


def test_a_tie_that_lies(tmp_path: Path) -> None:
    tensors = weights(CONFIGS["llama"])
    (fault,) = faults(write(tmp_path / "lies", tensors=tensors, tie_word_embeddings=True))
    assert (fault.kind, fault.where) == ("config", "lm_head")
    honest = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    assert faults(write(tmp_path / "honest", tensors=honest, tie_word_embeddings=True)) == []


def test_no_head(tmp_path: Path) -> None:
    tensors = {name: array for name, array in weights(CONFIGS["llama"]).items() if name != "lm_head.weight"}
    (fault,) = faults(write(tmp_path, tensors=tensors))
    assert (fault.kind, fault.where) == ("tensors", "lm_head")


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}']
)
def test_broken_tokenizer(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path)
    (folder / "tokenizer.json").write_text(text)
    (fault,) = faults(folder)
    assert (fault.kind, fault.where) == ("tokenizer", "tokenizer.json")
    assert "\n" not in fault.message


@pytest.mark.parametrize(("size", "sound"), [(96, True), (97, True), (98, False), (200, False)])
def test_tokenizer_with_ids_beyond_the_vocabulary(tmp_path: Path, size: int, sound: bool) -> None:
    found = faults(tokenizer(write(tmp_path), size))
    assert (found == []) is sound
    assert all(f.kind == "tokenizer" and f"up to {size - 1}" in f.message and "97" in f.message for f in found)


@pytest.mark.parametrize("change", [{"model_type": "unheard_of"}, {"quantization_config": {"quant_method": "gptq"}}])
def test_what_is_not_known_fails_closed(tmp_path: Path, change: dict[str, Any]) -> None:
    found = faults(write(tmp_path, **change))
    assert [(f.kind, f.where) for f in found] == [("config", "config.json")]
    assert re.search("cannot be checked|none are", found[0].message)


def test_values_are_read_where_the_family_is_not_known(tmp_path: Path) -> None:
    tensors = weights(CONFIGS["llama"])
    tensors["model.norm.weight"][3] = np.nan
    found = faults(write(tmp_path, tensors=tensors, model_type="unheard_of"))
    assert {f.kind for f in found} == {"config", "values"}


@pytest.mark.parametrize("storage", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_packed_bytes_are_no_numbers_of_the_type_that_holds_them(tmp_path: Path, storage: type[np.generic]) -> None:
    tensors: dict[str, Any] = dict(weights(CONFIGS["llama"]))
    state = {"quant_type": "nf4", "blocksize": 64, "shape": [80, 48]}
    name = "model.layers.1.mlp.up_proj.weight"
    tensors |= {
        name: np.full(80 * 48 // 2, 255, np.uint8).view(storage)[:, None],  # all bits set: NaN in each of the types
        name + ".absmax": np.ones(60, np.float32),
        name + ".quant_map": np.linspace(-1, 1, 16, dtype=np.float32),
        name + ".quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), np.uint8),
    }
    folder = write(tmp_path / "a", tensors=tensors, quantization_config={"quant_method": "bitsandbytes"})
    assert faults(folder) == []
    tensors[name + ".absmax"] = with_value("F32", np.nan, (7,), (60,))
    folder = write(tmp_path / "b", tensors=tensors, quantization_config={"quant_method": "bitsandbytes"})
    assert [fault.where for fault in faults(folder)] == [name + ".absmax"]


def test_an_edited_model_is_checked_as_edited(tmp_path: Path) -> None:
    tensors = weights(CONFIGS["llama"])
    tensors["model.norm.weight"][3] = np.nan
    model = wk.open(write(tmp_path, tensors=tensors))
    assert [f.where for f in model.check().faults] == ["model.norm.weight"]
    assert model.apply(wk.set("norm[residual=3]", 1)).check().sound
    assert not model.apply(wk.zero("norm[residual=4]")).check().sound


def test_exit_codes(tmp_path: Path, cli: Cli) -> None:
    good = tokenizer(write(tmp_path / "good"))
    bad = write(tmp_path / "bad", tensors=weights(CONFIGS["llama"]), tie_word_embeddings=True)
    assert cli("check", good).code == 0
    found = cli("check", bad)
    assert (found.code, found.err) == (1, "1 fault found\n")
    assert "tied to embed by the config" in found.out
    both = cli("check", bad, "--json")
    assert (both.code, both.json["sound"], len(both.json["faults"])) == (1, False, 1)


def test_real_checkpoints_are_sound(shared: Path) -> None:
    for name in ("stories260K", "cappgpt-v1", "stories260K-formats/st-sharded", "stories260K-formats/st-bf16"):
        assert wk.open(shared / "models" / name).check().faults == []
