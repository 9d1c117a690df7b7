"""Saving: what is written, what is shared, what is kept. Failures are in test_save_failures."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightkit as wk
from tests.by_hand import Array, bits, files, read_file, read_header, shrink_blocks, tokenizer, write_file
from tests.tiny import CONFIGS, FAMILIES, weights, write
from weightkit.errors import EditError, SaveError

EXTRAS = {"README.md": b"# about\n", "LICENSE": b"MIT\n", "vocab.txt": bytes(range(256)), "empty.json": b""}


def source(folder: Path, family: str = "llama", shards: int = 5, **changes: Any) -> Path:
    """A checkpoint folder with the small files that real ones have."""
    tokenizer(write(folder, family, shards=shards, **changes))
    for name, raw in EXTRAS.items():
        (folder / name).write_bytes(raw)
    (folder / ".hidden").write_bytes(b"not part of the model")
    (folder / "pytorch_model.bin").write_bytes(b"the same weights in another format, not edited")
    return folder


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of every file."""
    return {name: (raw, (folder / name).stat().st_mtime_ns) for name, raw in files(folder).items()}


def visible(folder: Path) -> dict[str, bytes]:
    left_out = (".hidden", "pytorch_model.bin")
    return {name: raw for name, raw in files(folder).items() if name not in left_out}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shards", [1, 4])
def test_no_edit_gives_the_same_bytes(tmp_path: Path, family: str, shards: int) -> None:
    a = source(tmp_path / "a", family, shards)
    before = state(a)
    assert wk.open(a).apply().save(tmp_path / "b") == tmp_path / "b"
    assert files(tmp_path / "b") == visible(a)
    assert state(a) == before
    assert wk.diff(wk.open(a), wk.open(tmp_path / "b")).identical
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_one_head_in_five_shards(tmp_path: Path) -> None:
    a, b = source(tmp_path / "a"), tmp_path / "b"
    before = state(a)
    edited = wk.open(a).apply(wk.scale("layers.1.attn.q[head=2]", 0.5))
    name = "model.layers.1.self_attn.q_proj.weight"
    home = json.loads((a / "model.safetensors.index.json").read_text())["weight_map"][name]
    assert list(edited.plan().rewritten) == [home]
    assert len(edited.plan().linked) == 4
    edited.save(b)
    assert state(a) == before
    assert files(b).keys() == visible(a).keys()
    for file, raw in visible(a).items():
        shard = file.endswith(".safetensors")
        assert os.path.samefile(a / file, b / file) is (shard and file != home)
        assert (b / file).read_bytes() == raw or file == home
    assert read_header(a / home) == read_header(b / home)
    old, new = (np.frombuffer((folder / home).read_bytes(), np.uint8) for folder in (a, b))
    start = (
        read_header(a / home)[name]["data_offsets"][0]
        + old.size
        - sum(len(t.raw) for t in read_file(a / home).values())
    )
    differ = np.flatnonzero(old != new)
    assert start + 24 * 48 * 4 <= differ.min() <= differ.max() < start + 36 * 48 * 4
    want = weights(CONFIGS["llama"])[name]
    want[24:36] *= np.float32(0.5)
    assert read_file(b / home)[name].raw == want.tobytes()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("address", ["layers.1.attn[head=1]", "layers.*.ffn[neuron=5]", "embed[token=3]", "layers.2"])
def test_what_is_saved_is_what_was_seen(tmp_path: Path, family: str, dtype: str, address: str) -> None:
    a = source(tmp_path / "a", family, 3, dtype=dtype)
    edited = wk.open(a).apply(wk.noise(address, relative_std=0.5, seed=1), wk.scale(address, 1.1))
    edited.save(tmp_path / "b")
    saved = wk.open(tmp_path / "b")
    assert wk.diff(edited, saved).identical
    touched = {tensor.name for tensor in edited.plan().tensors}
    before, after = (
        {name: t for file in sorted(f.glob("*.safetensors")) for name, t in read_file(file).items()}
        for f in (a, tmp_path / "b")
    )
    assert list(before) == list(after)
    assert {name for name in before if before[name] != after[name]} == touched
    assert {t.dtype for t in after.values()} == {dtype}


@pytest.mark.parametrize("most", [1, 100, 1000])
@pytest.mark.parametrize("address", ["layers.1.attn[head=1]", "layers.1.ffn[neuron=40:]", "lm_head[token=90]"])
def test_written_in_small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, most: int) -> None:
    a = source(tmp_path / "a", "gpt2" if "head=" in address else "llama", 2)
    want = wk.open(a).apply(wk.scale(address, 3)).save(tmp_path / "want")
    shrink_blocks(monkeypatch, most)
    assert files(wk.open(a).apply(wk.scale(address, 3)).save(tmp_path / "b")) == files(want)


def test_metadata_order_and_gaps_are_kept(tmp_path: Path) -> None:
    names = ["z", "a", "m", "model.b.weight"]
    tensors: dict[str, Array] = {name: np.full((i + 1, 3), i, np.float16) for i, name in enumerate(names)}
    a = write_file(tmp_path / "x.safetensors", tensors, {"format": "pt", "note": "œ \u2028", "license": "mit"})
    wk.open(a).apply(wk.set("name:m[0, 1]", 7)).save(tmp_path / "y.safetensors")
    raw, saved = a.read_bytes(), (tmp_path / "y.safetensors").read_bytes()
    length = 8 + int.from_bytes(raw[:8], "little")
    assert saved[:length] == raw[:length]
    assert len(saved) == len(raw)
    found = read_file(tmp_path / "y.safetensors")
    assert list(found) == names
    assert np.frombuffer(found["m"].raw, np.float16).reshape(3, 3)[0].tolist() == [2, 7, 2]
    assert [name for name in names if found[name].raw != tensors[name].tobytes()] == ["m"]


def test_one_file_to_a_file_or_a_folder(tmp_path: Path) -> None:
    a = source(tmp_path / "a", shards=1)
    edited = wk.open(a).apply(wk.zero("norm"))
    edited.save(tmp_path / "alone.safetensors")
    edited.save(tmp_path / "new" / "deep" / "b")
    assert (tmp_path / "alone.safetensors").read_bytes() == (tmp_path / "new/deep/b/model.safetensors").read_bytes()
    by_file = wk.open(a / "model.safetensors").apply(wk.zero("norm"))
    by_file.save(tmp_path / "c")
    assert files(tmp_path / "c") == files(tmp_path / "new/deep/b")


def test_one_file_among_others(tmp_path: Path) -> None:
    """A file in a folder of downloads: what lies beside it is not part of the model."""
    a = write_file(tmp_path / "downloads" / "x.safetensors", {"x": np.ones(3)})
    for name in ("taxes.pdf", "holiday.jpg", "other.safetensors"):
        (a.parent / name).write_bytes(b"mine")
    wk.open(a).apply(wk.zero("name:x")).save(tmp_path / "out")
    assert files(tmp_path / "out").keys() == {"x.safetensors"}


def test_one_shard_by_itself(tmp_path: Path) -> None:
    a = source(tmp_path / "a")
    shard = a / "model-00002-of-00005.safetensors"
    name = next(iter(read_file(shard)))
    wk.open(shard).apply(wk.zero(f"name:{name}")).save(tmp_path / "b")
    assert not [p for p in (tmp_path / "b").iterdir() if p.name.endswith(".index.json")]  # it tells of the others
    assert not wk.open(tmp_path / "b" / shard.name)[f"name:{name}"].array().any()


def test_one_file_to_a_folder_beside_it(tmp_path: Path) -> None:
    a = write_file(tmp_path / "x.safetensors", {"x": np.ones(3)})
    wk.open(a).apply(wk.zero("name:x")).save(tmp_path / "out")
    assert not wk.open(tmp_path / "out")["name:x"].array().any()


def test_edits_of_an_edited_copy_never_reach_the_original(tmp_path: Path) -> None:
    a = source(tmp_path / "a")
    before = state(a)
    first = wk.open(a).apply(wk.zero("layers.0.attn.q")).save(tmp_path / "b")
    second = wk.open(first).apply(wk.zero("lm_head"), wk.zero("embed")).save(tmp_path / "c")
    middle = state(first)
    wk.open(first).apply(wk.zero("layers")).save(first, force=True)  # in place, on shards it shares
    assert state(a) == before
    assert state(first) != middle
    assert wk.diff(wk.open(a), wk.open(second)).unchanged == len(wk.open(a).registry) - 3
    assert not wk.open(first)["layers.2.ffn.up"].array().any()


def test_force_in_place(tmp_path: Path) -> None:
    a = source(tmp_path / "a")
    want = wk.open(a).apply(wk.zero("norm")).save(tmp_path / "want")
    wk.open(a).apply(wk.zero("norm")).save(a, force=True)
    assert files(a).items() >= files(want).items()
    alone = write_file(tmp_path / "x.safetensors", {"x": np.ones(3)})
    twin = tmp_path / "twin.safetensors"
    os.link(alone, twin)
    wk.open(alone).apply(wk.zero("name:x")).save(alone, force=True)
    assert not wk.open(alone)["name:x"].array().any()
    assert wk.open(twin)["name:x"].array().all()


def test_saving_in_place_loses_no_file(tmp_path: Path) -> None:
    """What is not part of the model is not copied elsewhere; but it must not vanish from its own folder."""
    a = source(tmp_path / "a")
    before = files(a)
    wk.open(a).apply(wk.zero("norm")).save(a, force=True)
    assert files(a).keys() == before.keys()


def test_an_existing_destination(tmp_path: Path) -> None:
    a = source(tmp_path / "a")
    edited = wk.open(a).apply(wk.zero("norm"))
    for out in (tmp_path / "folder", tmp_path / "empty"):
        out.mkdir()
    (tmp_path / "folder" / "precious").write_bytes(b"kept")
    for out in (tmp_path / "folder", tmp_path / "empty", a):
        with pytest.raises(SaveError, match=r"exists already.*--force"):
            edited.save(out)
    assert files(tmp_path / "folder") == {"precious": b"kept"}
    with pytest.raises(SaveError, match="not a checkpoint"):  # --force is for models, not for someone's folder
        edited.save(tmp_path / "folder", force=True)
    assert files(tmp_path / "folder") == {"precious": b"kept"}
    want = files(edited.save(tmp_path / "again"))
    edited.save(tmp_path / "empty", force=True)
    wk.open(a).apply(wk.set("norm", 5)).save(tmp_path / "empty", force=True)
    edited.save(tmp_path / "empty", force=True)
    assert files(tmp_path / "empty") == want


def test_parents_that_were_made_for_nothing_are_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edited = wk.open(source(tmp_path / "a")).apply(wk.zero("norm"))
    monkeypatch.setattr("os.replace", lambda *_: None)
    monkeypatch.setattr("shutil.copyfile", _full)
    with pytest.raises(SaveError, match="No space left"):
        edited.save(tmp_path / "new" / "deep" / "out")
    assert not (tmp_path / "new").exists()


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("force", [False, True])
def test_a_broken_link_is_something_that_exists(tmp_path: Path, force: bool) -> None:
    a = source(tmp_path / "a")
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SaveError):
        wk.open(a).save(tmp_path / "out", force=force)
    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / "out").is_symlink()


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("a/inside", "inside the model"),
        ("a/deep/inside", "inside the model"),
        ("link/inside", "inside the model"),
        ("out.safetensors", "5 files; name a folder"),
        ("file", "is not a folder"),
        ("file/below", "file"),
        (".", "holds the model"),
        ("a/..", "holds the model"),
    ],
)
def test_places_that_cannot_be(tmp_path: Path, out: str, says: str) -> None:
    a = source(tmp_path / "a")
    (tmp_path / "link").symlink_to(a)
    (tmp_path / "file").write_bytes(b"kept")
    before = files(tmp_path)
    with pytest.raises(SaveError, match=says) as raised:
        wk.open(a).apply(wk.zero("norm")).save(tmp_path / out, force=True)
    assert "\n" not in str(raised.value)
    assert files(tmp_path) == before


def test_a_file_where_a_folder_is(tmp_path: Path) -> None:
    a = source(tmp_path / "a", shards=1)
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(SaveError, match="is not a file"):
        wk.open(a).save(tmp_path / "x.safetensors", force=True)


def test_only_a_config(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match=r"only a config\.json"):
        wk.open(write(tmp_path / "a") / "config.json").save(tmp_path / "b")


def test_a_number_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    a = source(tmp_path / "a", dtype="F16")
    with pytest.raises(EditError, match="cannot be stored as F16"):
        wk.open(a).apply(wk.zero("embed"), wk.scale("layers.2.ffn.down", 1e7)).save(tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


# ── links ──────────────────────────────────────────────────────────────────────────────────────────


def cache(root: Path) -> Path:
    """A model as huggingface_hub keeps it: a snapshot of links into blobs that are called by their hash."""
    plain = source(root / "plain", shards=3)
    repo = root / "hub" / "models--owner--name"
    snapshot = repo / "snapshots" / "0123abc"
    for folder in (repo / "blobs", repo / "refs", snapshot):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text("0123abc")
    for i, name in enumerate(visible(plain)):
        shutil.move(plain / name, repo / "blobs" / f"{i:064x}")
        (snapshot / name).symlink_to(f"../../blobs/{i:064x}")
    return repo


@pytest.mark.parametrize("where", ["", "snapshots/0123abc", "snapshots/0123abc/model.safetensors.index.json"])
def test_from_the_hugging_face_cache(tmp_path: Path, where: str) -> None:
    repo = cache(tmp_path)
    snapshot = repo / "snapshots" / "0123abc"
    before = state(repo)
    edited = wk.open(repo / where).apply(wk.zero("layers.1.attn.q"))
    out = edited.save(tmp_path / "out")
    assert state(repo) == before
    assert all(p.is_symlink() for p in snapshot.iterdir())
    assert files(out).keys() == {p.name for p in snapshot.iterdir()}
    assert not any(p.is_symlink() for p in out.iterdir())
    (rewritten,) = edited.plan().rewritten
    assert [n for n, raw in files(out).items() if raw != (snapshot / n).read_bytes()] == [rewritten]
    assert wk.diff(edited, wk.open(out)).identical


def test_one_linked_file_by_itself(tmp_path: Path) -> None:
    snapshot = cache(tmp_path) / "snapshots" / "0123abc"
    shard = next(path for path in sorted(snapshot.iterdir()) if path.suffix == ".safetensors")
    out = wk.open(shard).save(tmp_path / "out")
    assert not any(path.is_symlink() for path in out.iterdir())
    assert (out / shard.name).read_bytes() == shard.read_bytes()


def test_into_the_cache_it_came_from(tmp_path: Path) -> None:
    repo = cache(tmp_path)
    before = state(repo / "blobs")
    snapshot = repo / "snapshots" / "0123abc"
    wk.open(snapshot).apply(wk.zero("norm")).save(snapshot, force=True)
    assert state(repo / "blobs") == before
    assert not wk.open(snapshot)["norm"].array().any()


def test_what_a_link_leads_to_outside_is_not_copied(tmp_path: Path) -> None:
    """A checkpoint from a stranger can have a link to a private file; the copy may be published."""
    a = source(tmp_path / "a")
    (tmp_path / "secret").write_bytes(b"private")
    (a / "notes.txt").symlink_to(tmp_path / "secret")
    try:
        out = wk.open(a).apply(wk.zero("norm")).save(tmp_path / "b")
    except SaveError:
        return  # to refuse is right, too
    assert b"private" not in files(out).values()


def test_readonly_sources(tmp_path: Path) -> None:
    a = source(tmp_path / "a")
    for path in a.iterdir():
        path.chmod(0o444)
    out = wk.open(a).apply(wk.zero("layers")).save(tmp_path / "b")
    again = wk.open(out).apply(wk.zero("embed")).save(tmp_path / "c")
    assert not wk.open(again)["embed"].array().any()
    assert np.array_equal(
        bits(wk.open(a)["embed"].array()), bits(weights(CONFIGS["llama"])["model.embed_tokens.weight"])
    )
