"""Convert: the same model in every format, type and number of files."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

import weightkit as wk
from tests.conftest import Cli
from tests.test_families import SAVED
from tests.test_families import random as family_tensors
from tests.test_families import write as write_family
from tests.tiny import CONFIGS, weights, write
from weightkit.errors import EditError, SaveError
from weightkit.formats.gguf import permute_rows
from weightkit.formats.gguf_mapping import hf_names
from weightkit.surgery.convert import logical
from weightkit.tensor import Tensor

A = NDArray[Any]
OUTS = ["out", "m.safetensors", "m.npz", "m.h5", "m.hdf5", "m.gguf"]


def tensors_of(path: Path) -> dict[str, A]:
    found: dict[str, A] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "numpy") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize("out", OUTS)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_every_format_and_back(tmp_path: Path, out: str, dtype: str) -> None:
    model = wk.open(write(tmp_path / "a", dtype=dtype))
    there = wk.open(model.convert(tmp_path / "there" / out))
    if out != "m.gguf":  # whose vectors are F32
        assert wk.diff(model, there).identical
    assert list(there) == list(model)
    back = wk.open(there.convert(tmp_path / "back"))
    found = wk.diff(model, back)
    assert found.identical or (out == "m.gguf" and not any(row.changed_fraction for row in found.changed))
    assert set(tensors_of(tmp_path / "back")) == set(weights(CONFIGS["llama"]))


@pytest.mark.parametrize(("a", "b"), list(itertools.permutations(OUTS[1:], 2)))
def test_from_any_format_to_any(tmp_path: Path, a: str, b: str) -> None:
    folder = tmp_path / "a"
    model = wk.open(write(folder))
    first = model.convert(tmp_path / "first" / a)
    (first.parent / "config.json").write_text((folder / "config.json").read_text())
    second = wk.open(first).convert(tmp_path / "second" / b)
    assert wk.diff(model, wk.open(second)).identical


@pytest.mark.parametrize("variant", ["gpt2", "gpt_neox", "falcon-40b", "qwen3_moe", "gpt_oss", "t5", "bert", "mamba"])
@pytest.mark.parametrize("out", ["out", "m.npz", "m.h5"])
def test_families(tmp_path: Path, variant: str, out: str) -> None:
    model = wk.open(write_family(tmp_path / "a", variant))
    path = model.convert(tmp_path / "b" / out)
    (tmp_path / "b" / "config.json").write_text((tmp_path / "a" / "config.json").read_text())
    assert wk.diff(model, wk.open(path)).identical


CASTS = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F64": np.float64, "F8_E4M3": ml_dtypes.float8_e4m3fn,
         "F8_E5M2": ml_dtypes.float8_e5m2}  # fmt: skip


@pytest.mark.parametrize("dtype", CASTS)
@pytest.mark.parametrize("spelling", [str, str.lower])
def test_casts_round_to_nearest_even(tmp_path: Path, dtype: str, spelling: Any) -> None:
    folder = write(tmp_path / "a")
    wk.open(folder).convert(tmp_path / "b", dtype=spelling(dtype))
    saved = wk.open(tmp_path / "b")
    for name, array in weights(CONFIGS["llama"]).items():
        expected = array.astype(CASTS[dtype]).astype(np.float32)
        np.testing.assert_array_equal(saved[f"name:{name}"].array(), expected)
    assert saved.counts().by_dtype.keys() == {dtype}


def test_a_tie_goes_to_the_even_neighbour_and_only_once(tmp_path: Path) -> None:
    """1 + 2^-8 lies between two bf16 numbers; a double rounding by way of float32 would get the others wrong."""
    values = np.array(
        [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-40, -(1 + 2**-8), 1e-40, 0, np.nan, np.inf], np.float64
    )
    save_file({"w": values}, tmp_path / "a.safetensors")
    wk.open(tmp_path / "a.safetensors").convert(tmp_path / "b.safetensors", dtype="bf16")
    found = wk.open(tmp_path / "b.safetensors")["name:w"].array()
    assert found[:4].tolist() == [1.0, 1 + 2**-6, 1 + 2**-7, -1.0]
    assert np.isnan(found[6])
    assert np.isinf(found[7])


def test_whole_numbers_keep_their_type(tmp_path: Path) -> None:
    save_file({"ids": np.arange(5), "w": np.ones(3, np.float32)}, tmp_path / "a.safetensors")
    wk.open(tmp_path / "a.safetensors").convert(tmp_path / "b.safetensors", dtype="F16")
    assert {w.name: w.dtype.name for w in wk.open(tmp_path / "b.safetensors").registry.values()} == {
        "ids": "I64",
        "w": "F16",
    }


@pytest.mark.parametrize(("dtype", "words"), [("F16", "70000"), ("F8_E4M3", "cannot be stored"), ("I8", "not a type"),
                                              ("bf61", "did you mean 'BF16'"), ("", "not a type")])  # fmt: skip
def test_what_does_not_fit_or_exist(tmp_path: Path, dtype: str, words: str) -> None:
    save_file({"w": np.array([1.0, 70000.0], np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises((EditError, SaveError), match=words):
        wk.open(tmp_path / "a.safetensors").convert(tmp_path / "b", dtype=dtype)
    assert not (tmp_path / "b").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("size", [1, 20_000, 100_000, 10**9])
def test_shards(tmp_path: Path, size: int) -> None:
    model = wk.open(write(tmp_path / "a"))
    model.convert(tmp_path / "b", shard_bytes=size)
    files = sorted((tmp_path / "b").glob("*.safetensors"))
    arrays = weights(CONFIGS["llama"])
    assert wk.diff(model, wk.open(tmp_path / "b")).identical
    assert wk.open(tmp_path / "b").check().faults == []
    if size == 10**9:
        assert [f.name for f in files] == ["model.safetensors"]
        return
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in arrays.values())
    assert set(index["weight_map"]) == set(arrays)
    for file in files:
        with safe_open(file, "numpy") as opened:
            held = [opened.get_tensor(name).nbytes for name in opened.keys()]  # noqa: SIM118
        assert sum(held) <= size or len(held) == 1


def test_companions_come_along_and_the_config_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    (folder / "generation_config.json").write_text("{}")
    (folder / "LICENSE").write_text("free")
    wk.open(folder).convert(tmp_path / "b", dtype="BF16")
    names = {path.name for path in (tmp_path / "b").iterdir()}
    assert names == {"config.json", "generation_config.json", "LICENSE", "model.safetensors"}
    before, after = (json.loads((tmp_path / f / "config.json").read_text()) for f in "ab")
    assert after == before | {"torch_dtype": "bfloat16"}


def test_an_edited_model_is_converted_as_edited(tmp_path: Path) -> None:
    edited = wk.open(write(tmp_path / "a")).apply(wk.zero("layers.1.attn.q"), wk.scale("norm", 2.0))
    for out in OUTS:
        assert wk.diff(edited, wk.open(edited.convert(tmp_path / "b" / out))).identical


def test_an_edit_of_another_format_is_saved_as_safetensors(tmp_path: Path) -> None:
    model = wk.open(wk.open(write(tmp_path / "a")).convert(tmp_path / "b" / "m.gguf"))
    edited = model.apply(wk.zero("layers.0.ffn.up[neuron=3]"))
    edited.save(tmp_path / "c")
    assert wk.diff(edited, wk.open(tmp_path / "c")).identical
    assert np.any(model["layers.0.ffn.up[neuron=3]"].array())


def test_tied_weights_that_share_their_bytes_are_written_once(tmp_path: Path) -> None:
    import h5py

    tensors = weights(CONFIGS["llama"] | {"tie_word_embeddings": True})
    with h5py.File(tmp_path / "m.h5", "w") as file:
        for name, array in tensors.items():
            file[name.replace(".", "/")] = array
        file["lm_head/weight"] = file["model/embed_tokens/weight"]  # a hard link
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["llama"] | {"tie_word_embeddings": True}))
    model = wk.open(tmp_path / "m.h5")
    assert model.counts().tied == [["embed", "lm_head"]]
    model.convert(tmp_path / "out")
    assert "lm_head.weight" not in tensors_of(tmp_path / "out")
    assert wk.diff(model, wk.open(tmp_path / "out")).identical


def test_optimizer_state_is_left_behind(tmp_path: Path, shared: Path) -> None:
    model = wk.open(shared / "models" / "raw" / "gptbyhand" / "ckpt.pt")
    model.convert(tmp_path / "b.safetensors")
    saved = wk.open(tmp_path / "b.safetensors").counts()
    assert (saved.stored, model.counts().total) == (7376, 7376 - 32 * 16)  # the head was the embedding


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Blocks are all that is held: reading never asks for more than one."""
    asked: list[int] = []
    save_file({"w": np.zeros((3000, 1500), np.float32)}, tmp_path / "a.safetensors")
    model = wk.open(tmp_path / "a.safetensors")
    original = Tensor.read

    def read(self: Any, start: int, stop: int) -> Any:
        asked.append(stop - start)
        return original(self, start, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "read", read)
        for out in ("b.safetensors", "b.npz", "b.h5"):
            model.convert(tmp_path / out, dtype="BF16")
    assert max(asked) <= 1 << 20


@pytest.mark.parametrize("out", ["exists", "exists.npz", "a"])
def test_nothing_is_replaced_without_force(tmp_path: Path, out: str) -> None:
    model = wk.open(write(tmp_path / "a"))
    model.convert(tmp_path / "exists")
    model.convert(tmp_path / "exists.npz")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(SaveError, match="exists already"):
        model.convert(tmp_path / out)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    if out != "a":
        model.convert(tmp_path / out, dtype="F16", force=True)
        assert wk.open(tmp_path / out).counts().by_dtype.keys() == {"F16"}


def test_a_config_alone_cannot_be_converted(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    with pytest.raises(SaveError, match="no weights to save"):
        wk.open(folder / "config.json").convert(tmp_path / "b")


@pytest.mark.parametrize(
    ("size", "code"), [("500kB", 0), ("1GiB", 0), ("2 GB", 0), ("30000", 0), ("0", 2), ("5 cows", 2), ("-1MB", 2)]
)
def test_the_command(cli: Cli, tmp_path: Path, size: str, code: int) -> None:
    done = cli("convert", write(tmp_path / "a"), tmp_path / "b", "--shard-size", size, "--dtype", "float16")
    assert done.code == code
    assert (tmp_path / "b").exists() == (code == 0)
    if code:
        assert len(done.err.splitlines()) == 1


def test_experts_as_they_are(tmp_path: Path) -> None:
    tensors = family_tensors("qwen3_moe")
    wk.open(write_family(tmp_path / "a", "qwen3_moe", tensors)).convert(tmp_path / "b")
    saved = tensors_of(tmp_path / "b")
    assert saved.keys() == tensors.keys()
    assert all(np.array_equal(saved[name], array) for name, array in tensors.items())


# ── from GGUF, and from what is packed: as Hugging Face files have it ──────────────────────────────────


def concatenated(array: A, groups: int, *sizes: int) -> A:
    """Rows that come by turns for every group, in runs of these sizes: those of each kind together."""
    parts = np.split(array.reshape(groups, sum(sizes), *array.shape[1:]), np.cumsum(sizes)[:-1], axis=1)
    return np.concatenate([part.reshape(-1, *array.shape[1:]) for part in parts])


GGUF: dict[str, tuple[str, dict[str, Any]]] = {  # variant: (architecture, what a file of it says)
    "mixtral": ("llama", {"expert_count": 4, "expert_used_count": 2}),
    "qwen3_moe": (
        "qwen3moe",
        {
            "expert_count": 6,
            "expert_used_count": 2,
            "expert_feed_forward_length": 32,
            "attention.key_length": 16,
            "attention.head_count_kv": 2,
        },
    ),
    "deepseek_v2": (
        "deepseek2",
        {
            "expert_count": 8,
            "expert_used_count": 2,
            "expert_feed_forward_length": 24,
            "expert_shared_count": 1,
            "leading_dense_block_count": 1,
            "attention.q_lora_rank": 16,
            "attention.kv_lora_rank": 20,
            "attention.key_length": 20,
            "attention.value_length": 10,
            "attention.head_count_kv": 4,
            "rope.dimension_count": 8,
        },
    ),
    "gpt2": ("gpt2", {"feed_forward_length": 192}),
    "bloom": ("bloom", {"feed_forward_length": 192}),
    "gpt_neox": ("gptneox", {"use_parallel_residual": True}),
    "falcon-40b": ("falcon", {"attention.head_count_kv": 2, "feed_forward_length": 192}),
}


def as_gguf(variant: str, tensors: dict[str, A]) -> dict[str, A]:
    """The tensors as llama.cpp's converter lays them out."""
    found: dict[str, A] = {}
    stacks: dict[str, list[A]] = {}
    for name, array in tensors.items():
        if ".experts." in name:
            stacks.setdefault(re.sub(r"\.\d+\.(?=\D+)(?!.*experts)", ".", name), []).append(array)
        elif variant == "gpt2" and array.ndim == 2 and ".h." in name:
            found[name] = array.T
        elif variant in ("bloom", "gpt_neox") and "query_key_value" in name:
            found[name] = concatenated(array, 4, 12, 12, 12)
        elif variant == "falcon-40b" and "query_key_value" in name:
            found[name] = concatenated(array, 2, 24, 12, 12)
        elif variant == "mixtral" and (heads := 4 if "q_proj" in name else 2 if "k_proj" in name else 0):
            found[name] = permute_rows(array, heads)
        else:
            found[name] = array
    return found | {name: np.stack(arrays) for name, arrays in stacks.items()}


def write_gguf(path: Path, variant: str, tensors: dict[str, A]) -> Path:
    import gguf

    architecture, more = GGUF[variant]
    config = SAVED[variant]["config"]
    said = {
        "context_length": 64,
        "embedding_length": 48,
        "block_count": config.get("num_hidden_layers") or config.get("n_layer"),
        "feed_forward_length": 80,
        "attention.head_count": 4,
        "attention.head_count_kv": 2 if variant == "mixtral" else 4,
        "vocab_size": 97,
        **more,
    }
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in said.items():
        add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    names = hf_names(architecture, said["block_count"], laid := as_gguf(variant, tensors))
    for name, array in laid.items():
        writer.add_tensor(names[name], np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("variant", GGUF)
def test_a_gguf_file_becomes_what_it_was_made_from(tmp_path: Path, variant: str) -> None:
    tensors = family_tensors(variant)
    model = wk.open(write_gguf(tmp_path / "m.gguf", variant, tensors))
    assert model.check().faults == []
    model.convert(tmp_path / "out")
    saved = tensors_of(tmp_path / "out")
    assert saved.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(saved[name], array)
    assert wk.open(tmp_path / "out").counts().unclaimed == []


@pytest.mark.parametrize("variant", ["gpt2", "bloom", "qwen3_moe"])
def test_what_is_laid_out_anew_reads_in_any_part(tmp_path: Path, variant: str) -> None:
    tensors = family_tensors(variant)
    model = wk.open(write_gguf(tmp_path / "m.gguf", variant, tensors))
    for name, source in logical(model.registry):
        flat = tensors[name].ravel()
        for start in range(0, flat.size, 1009):
            np.testing.assert_array_equal(source.read(start, min(start + 1009, flat.size)), flat[start : start + 1009])


def test_a_gguf_file_that_is_known_by_names_only_goes_with_no_config(tmp_path: Path) -> None:
    tensors = family_tensors("mixtral")
    del tensors["model.norm.weight"]
    model = wk.open(write_gguf(tmp_path / "m.gguf", "mixtral", tensors))
    assert model.registry.architecture is None
    with pytest.raises(SaveError, match=r"m\.gguf: the names that Hugging Face files have .* are not known"):
        model.convert(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model.convert(tmp_path / "m.npz")


def of_mlx(tensors: dict[str, A]) -> dict[str, A]:
    """The tensors as mlx-lm has them: the experts of a layer in three stacks."""
    named = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    found: dict[str, A] = {}
    stacks: dict[str, list[A]] = {}
    for name, array in tensors.items():
        if match := re.fullmatch(r"(.*)\.experts\.\d+\.(\w+)\.weight", name):
            stacks.setdefault(f"{match[1]}.switch_mlp.{named.get(match[2], match[2])}.weight", []).append(array)
        else:
            found[name] = array
    return found | {name: np.stack(arrays) for name, arrays in stacks.items()}


@pytest.mark.parametrize("variant", ["mixtral", "phimoe-bias", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3"])
def test_experts_of_mlx_are_those_of_hugging_face(tmp_path: Path, variant: str) -> None:
    tensors = family_tensors(variant)
    model = wk.open(write_family(tmp_path / "mlx", variant, of_mlx(tensors)))
    plain = wk.open(write_family(tmp_path / "hf", variant, tensors))
    assert model.counts().unclaimed == []
    assert list(model) == list(plain)
    for address in plain:
        np.testing.assert_array_equal(model[address].array(), plain[address].array())
    model.convert(tmp_path / "out")
    saved = tensors_of(tmp_path / "out")
    assert saved.keys() == tensors.keys()
    assert all(np.array_equal(saved[name], array) for name, array in tensors.items())


def apart(tensors: dict[str, A], together: str, down: str, stem: str, *, by_turns: bool) -> dict[str, A]:
    """Stacks of gate and up together, each in a stack of its own and [out, in], as mlx-lm has them."""
    found: dict[str, A] = {}
    for name, array in tensors.items():
        kind = ".bias" if name.endswith("_bias") else ".weight"
        turned = array.swapaxes(1, 2) if by_turns and array.ndim == 3 else array
        at = f"model.layers.{name.removeprefix('model.layers.').partition('.')[0]}.{stem}"
        if together in name:
            halves = (turned[:, 0::2], turned[:, 1::2]) if by_turns else np.split(turned, 2, axis=1)
            found |= {f"{at}.{part}_proj{kind}": half for part, half in zip(("gate", "up"), halves, strict=True)}
        elif down in name:
            found[f"{at}.down_proj{kind}"] = turned
        else:
            found[name] = array
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


MLX_APART: dict[str, tuple[str, str, str, bool]] = {
    "gpt_oss": ("experts.gate_up_proj", "experts.down_proj", "mlp.experts", True),
    "granitemoe": ("input_linear", "output_linear", "block_sparse_moe.switch_mlp", False),
}


@pytest.mark.parametrize("variant", MLX_APART)
def test_stacks_of_mlx_become_those_of_hugging_face(tmp_path: Path, variant: str) -> None:
    tensors = family_tensors(variant)
    together, down, stem, by_turns = MLX_APART[variant]
    stacks = apart(tensors, together, down, stem, by_turns=by_turns)
    model = wk.open(write_family(tmp_path / "mlx", variant, stacks))
    plain = wk.open(write_family(tmp_path / "hf", variant, tensors))
    assert model.counts().unclaimed == []
    assert set(model) == set(plain)
    for address in plain:
        np.testing.assert_array_equal(model[address].array(), plain[address].array())
    again = wk.open(model.convert(tmp_path / "out"))
    assert wk.diff(again, plain).identical
    assert set(again.checkpoint.names) == set(plain.checkpoint.names)


@pytest.mark.parametrize(
    ("stored", "dtype", "file_type"),
    [
        ("F32", None, "ALL_F32"),
        ("F16", None, "MOSTLY_F16"),
        ("BF16", None, "MOSTLY_BF16"),
        ("F32", "BF16", "MOSTLY_BF16"),
    ],
)
def test_a_gguf_file_says_the_type_of_most_matrices(
    tmp_path: Path, stored: str, dtype: str | None, file_type: str
) -> None:
    path = wk.open(write(tmp_path / "a", dtype=stored)).convert(tmp_path / "m.gguf", dtype=dtype)
    assert gguf.LlamaFileType(gguf.GGUFReader(path).fields["general.file_type"].contents()).name == file_type


@pytest.mark.parametrize("first", [0, 1])
def test_windows_that_gguf_has_no_place_for_are_refused(tmp_path: Path, first: int) -> None:
    keys: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": first}
    with pytest.raises(SaveError, match="attention windows of this qwen2 model"):
        wk.open(write(tmp_path / "a", "qwen2", **keys)).convert(tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_the_window_of_all_layers_stays(tmp_path: Path) -> None:
    path = wk.open(write(tmp_path / "a", "mistral", sliding_window=8)).convert(tmp_path / "m.gguf")
    config = wk.open(path).registry.config
    assert config is not None
    assert config.windows == (8, 8, 8)
