"""Opening a checkpoint in every form that people have one, and refusing what leads elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests import tiny
from tests.test_safetensors import at_once
from weightkit.checkpoint import Checkpoint, open_checkpoint
from weightkit.errors import FormatError

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
ONE_LAYER: dict[str, Any] = {"num_hidden_layers": 1}


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "single", **ONE_LAYER)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "sharded", shards=2, **ONE_LAYER)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A model in the Hugging Face cache: snapshots hold links into blobs named by their hashes."""
    real = tiny.write(tmp_path / "real", shards=2, **ONE_LAYER)
    (real / "tokenizer.json").write_text("{}")
    model = tmp_path / "models--owner--name"
    snapshot = model / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    for directory in ("blobs", "refs"):
        (model / directory).mkdir()
    for number, file in enumerate(sorted(real.iterdir())):
        file.rename(model / "blobs" / f"hash{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/hash{number}")
    (model / "refs" / "main").write_text("abc123")
    return model


def config(**changes: Any) -> dict[str, Any]:
    return {**tiny.CONFIGS["llama"], **ONE_LAYER, **changes}


def require_all(checkpoint: Checkpoint) -> None:
    """Every tensor of the tiny model is there, with its numbers."""
    expected = tiny.weights(config())
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in checkpoint.tensors.items():
        assert np.array_equal(tensor.mapped(), expected[name])
    assert checkpoint.nbytes == sum(array.nbytes for array in expected.values())


def edit_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def refused(path: Path | str, *words: str) -> None:
    with pytest.raises(FormatError) as error:
        open_checkpoint(path)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_a_single_file_and_its_folder(single: Path, file: str) -> None:
    checkpoint = open_checkpoint(single / file)
    require_all(checkpoint)
    assert checkpoint.config == config()
    assert checkpoint.whole == (file == "")
    assert checkpoint.folder == single
    assert checkpoint.tokenizer_path is None


@pytest.mark.parametrize("file", ["", INDEX])
def test_a_sharded_folder_and_its_index(sharded: Path, file: str) -> None:
    checkpoint = open_checkpoint(str(sharded / file))
    require_all(checkpoint)
    assert [shard.name for shard in checkpoint.shards] == [FIRST, SECOND]
    assert checkpoint.index == json.loads((sharded / INDEX).read_text())
    assert checkpoint.index_path == sharded / INDEX


def test_an_index_of_another_name(sharded: Path) -> None:
    (sharded / INDEX).rename(sharded / "adapter.json")
    require_all(open_checkpoint(sharded / "adapter.json"))
    (sharded / "adapter.json").rename(sharded / "consolidated.safetensors.index.json")
    require_all(open_checkpoint(sharded))


def test_one_shard_is_a_part(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded / SECOND)
    assert not checkpoint.whole
    assert 0 < len(checkpoint.tensors) < len(open_checkpoint(sharded).tensors)


def test_shards_without_an_index(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    require_all(open_checkpoint(sharded))
    (sharded / FIRST).unlink()  # now it cannot be all of the model; by itself it can still be opened
    with pytest.raises(FormatError, match="2 shards and no index"):
        open_checkpoint(sharded)
    assert len(open_checkpoint(sharded / SECOND).shards) == 1


def test_a_whole_file_goes_before_shards(sharded: Path) -> None:
    save_file({"only": np.zeros(3, np.float32)}, sharded / "model.safetensors")
    assert list(open_checkpoint(sharded).tensors) == ["only"]


def test_a_shard_may_lie_in_a_folder_below(sharded: Path) -> None:
    (sharded / "sub").mkdir()
    (sharded / FIRST).rename(sharded / "sub" / FIRST)
    edit_index(
        sharded, lambda i: i["weight_map"].update({k: f"sub/{FIRST}" for k, v in i["weight_map"].items() if v == FIRST})
    )
    require_all(open_checkpoint(sharded))


@pytest.mark.parametrize("inside", ["", "snapshots/abc123", f"snapshots/abc123/{INDEX}"])
def test_the_hugging_face_cache(cache: Path, inside: str) -> None:
    checkpoint = open_checkpoint(cache / inside)
    require_all(checkpoint)
    assert [shard.name for shard in checkpoint.shards] == [FIRST, SECOND]
    assert all(shard.path.parent.name == "blobs" for shard in checkpoint.shards)
    assert checkpoint.config == config()
    assert checkpoint.tokenizer_path is not None
    assert checkpoint.tokenizer_path.read_text() == "{}"


def test_a_file_in_the_hugging_face_cache(cache: Path) -> None:
    checkpoint = open_checkpoint(cache / "snapshots" / "abc123" / FIRST)
    assert checkpoint.config == config()
    assert checkpoint.tensors


def test_a_folder_below_a_snapshot_of_the_cache(cache: Path) -> None:
    below = cache / "snapshots" / "abc123" / "text_encoder"
    below.mkdir()
    save_file({"w": np.zeros(3, np.float32)}, cache / "blobs" / "hash9")
    (below / "model.safetensors").symlink_to("../../../blobs/hash9")
    assert list(open_checkpoint(below).tensors) == ["w"]


@pytest.mark.parametrize("ref", ["", "..", "../snapshots/abc123", "gone", "."])
def test_a_ref_that_names_no_snapshot_is_not_followed(cache: Path, ref: str) -> None:
    (cache / "refs" / "main").write_text(ref)
    require_all(open_checkpoint(cache))  # the only snapshot there is


def test_two_snapshots_and_no_ref(cache: Path) -> None:
    (cache / "snapshots" / "def456").mkdir()
    (cache / "refs" / "main").unlink()
    refused(cache, "2 snapshots", "name one")


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_config_alone(tmp_path: Path, as_folder: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config()))
    checkpoint = open_checkpoint(tmp_path if as_folder else tmp_path / "config.json")
    assert checkpoint.config == config()
    assert not checkpoint.tensors


def test_a_config_beside_weights_opens_as_the_config_alone(single: Path) -> None:
    assert not open_checkpoint(single / "config.json").tensors


def test_weights_without_a_config(single: Path) -> None:
    (single / "config.json").unlink()
    checkpoint = open_checkpoint(single)
    assert checkpoint.config is None
    require_all(checkpoint)


def test_nothing_to_open(tmp_path: Path) -> None:
    refused(tmp_path / "gone", "gone", "no such file")
    refused(tmp_path / "gone" / "config.json", "no such file")
    refused(tmp_path, str(tmp_path), "without weights")
    refused("a\0b")
    refused("x" * 5000)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"a": 1, "a": 2}', '{"a": NaN}', '"x"'])
def test_a_config_that_is_not_an_object_is_refused(single: Path, text: str) -> None:
    (single / "config.json").write_text(text)
    refused(single, "config.json")
    refused(single / "config.json", "config.json")


def test_several_files_that_are_not_shards(single: Path) -> None:
    (single / "model.safetensors").rename(single / "a.safetensors")
    save_file({"w": np.zeros(3, np.float32)}, single / "b.safetensors")
    refused(single, "a.safetensors", "b.safetensors", "name the one")
    require_all(open_checkpoint(single / "a.safetensors"))


@pytest.mark.parametrize("name", ["flax_model.msgpack", "model.onnx"])
def test_only_weights_of_a_kind_that_cannot_be_read(single: Path, name: str) -> None:
    (single / "model.safetensors").rename(single / name)
    refused(single, name, "cannot be read")
    refused(single / name, name, "cannot be read")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf", "tf_model.h5", "model.npz"])
def test_a_file_under_another_formats_name(single: Path, name: str) -> None:
    (single / "model.safetensors").rename(single / name)
    refused(single, name)
    refused(single / name, name)


@pytest.mark.parametrize(
    ("shard", "words"),
    [
        ("gone.safetensors", "not there"),
        ("/etc/passwd.safetensors", "out of the folder"),
        ("../single/model.safetensors", "out of the folder"),
        ("sub/../../single/model.safetensors", "out of the folder"),
        ("..\\single\\model.safetensors", "out of the folder"),
        ("sub\\model.safetensors", "out of the folder"),  # a way up for some, a name for others
        ("C:\\model.safetensors", "out of the folder"),
        ("C:model.safetensors", "out of the folder"),
        ("\\\\server\\share\\model.safetensors", "out of the folder"),
        ("a\0b.safetensors", "out of the folder"),
        ("", "not a file name"),
        (7, "not a file name"),
        (None, "not a file name"),
        (["x"], "not a file name"),
        (INDEX, "not a file of weights"),
        ("config.json", "not a file of weights"),
        (".", "not a file of weights"),
    ],
)
def test_an_index_that_names_what_is_not_a_shard(single: Path, sharded: Path, shard: Any, words: str) -> None:
    assert single.is_dir()  # what some of the paths would reach
    edit_index(sharded, lambda index: index["weight_map"].update({"model.norm.weight": shard}))
    refused(sharded, INDEX, words)
    refused(sharded / INDEX, INDEX, words)


@pytest.mark.parametrize("weight_map", [None, [], {}, "x", 3])
def test_an_index_without_a_weight_map(sharded: Path, weight_map: Any) -> None:
    edit_index(sharded, lambda index: index.update(weight_map=weight_map))
    refused(sharded, INDEX, "weight_map")


def test_an_index_that_contradicts_its_shards(sharded: Path) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update({"extra": FIRST}))
    refused(sharded, "'extra'", FIRST, "does not hold")
    edit_index(sharded, lambda i: (i["weight_map"].pop("extra"), i["weight_map"].update({"model.norm.weight": FIRST})))
    refused(sharded, "'model.norm.weight'", FIRST, f"it is in {SECOND}")


def test_a_shard_that_is_cut_short_or_a_folder(sharded: Path) -> None:
    os.truncate(sharded / SECOND, (sharded / SECOND).stat().st_size - 1)
    refused(sharded, SECOND)
    (sharded / SECOND).unlink()
    refused(sharded, SECOND, "not there")
    (sharded / SECOND).mkdir()
    refused(sharded, SECOND, "not a regular file")


@pytest.mark.parametrize("keep_index", [True, False])
def test_a_tensor_in_two_shards(sharded: Path, keep_index: bool) -> None:
    for shard in (FIRST, SECOND):
        save_file({"w": np.zeros(3, np.float32)}, sharded / shard)
    edit_index(sharded, lambda index: index.update(weight_map={"w": FIRST, "v": SECOND}))
    if not keep_index:
        (sharded / INDEX).unlink()
    refused(sharded, "'w'", "is also in", FIRST)


@pytest.mark.parametrize("name", ["config.json", INDEX, SECOND])
def test_a_link_out_of_the_folder_is_not_followed(sharded: Path, tmp_path: Path, name: str) -> None:
    (sharded / name).rename(tmp_path / name)
    (sharded / name).symlink_to(tmp_path / name)
    refused(sharded, name, "link out of its folder")


def test_a_tokenizer_that_is_a_link_out_of_the_folder_is_not_read(single: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (single / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(FormatError, match="link out of its folder"):
        _ = open_checkpoint(single).tokenizer_path


@pytest.mark.parametrize("name", ["config.json", FIRST])
def test_a_cache_link_that_leaves_its_blobs_is_not_followed(cache: Path, tmp_path: Path, name: str) -> None:
    link = cache / "snapshots" / "abc123" / name
    link.resolve().rename(tmp_path / "elsewhere")
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere")
    refused(cache, name, "link out of its folder")


@pytest.mark.parametrize("part", ["snapshots/abc123", "snapshots", "blobs", "refs", "refs/main"])
@pytest.mark.parametrize("ref", [True, False])
def test_a_part_of_the_cache_that_is_a_link_out_of_it_is_not_followed(
    cache: Path, tmp_path: Path, part: str, ref: bool
) -> None:
    if not ref:
        (cache / "refs" / "main").write_text("")  # then it is the only snapshot that is taken
    (cache / part).rename(tmp_path / "elsewhere")
    (cache / part).symlink_to(tmp_path / "elsewhere")
    refused(cache, "link out of its folder")


@pytest.mark.parametrize("target", ["gone", SECOND])  # SECOND: a link to itself
def test_a_link_that_leads_nowhere(sharded: Path, target: str) -> None:
    (sharded / SECOND).unlink()
    (sharded / SECOND).symlink_to(target)
    refused(sharded, SECOND)


def test_a_link_within_the_folder_is_fine(sharded: Path) -> None:
    (sharded / SECOND).rename(sharded / "hash")
    (sharded / SECOND).symlink_to("hash")
    require_all(open_checkpoint(sharded))


def test_the_folder_itself_may_be_a_link(single: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(single)
    require_all(open_checkpoint(tmp_path / "link"))


@pytest.mark.parametrize("name", ["config.json", INDEX, SECOND])
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(sharded: Path, name: str) -> None:
    (sharded / name).unlink()
    os.mkfifo(sharded / name)
    with at_once():
        refused(sharded, name, "not a regular file")
