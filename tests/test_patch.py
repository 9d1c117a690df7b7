"""Patches: from one model to another and back, to the bit; small; and nothing written where they do not fit."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import weightkit as wk
from tests.by_hand import Array, files, tokenizer
from tests.conftest import Cli
from tests.tiny import write
from weightkit import patch
from weightkit.analysis import compare
from weightkit.dtypes import DTYPES
from weightkit.errors import PatchError
from weightkit.formats import safetensors
from weightkit.patch import coding
from weightkit.patch.make import tensors_of
from weightkit.patch.tree import tree

BF16, F16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)
NAMES = {BF16: "BF16", F16: "F16", F32: "F32"}
SIZE = 256
Raw = tuple[str, tuple[int, ...], bytes]  # dtype, shape, bytes


def saved(path: Path, tensors: dict[str, Raw]) -> wk.Model:
    """A file of raw bytes, opened."""
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end := end + len(data)]}
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(data for _, _, data in tensors.values()))
    return wk.open(path)


def raw(array: Array) -> Raw:
    return NAMES[array.dtype], array.shape, np.ascontiguousarray(array).tobytes()


def there_and_back(folder: Path, a: wk.Model, b: wk.Model) -> patch.Patch:
    """The patch of two models of one file, after seeing that it gives both to the bit, on the disk and in memory."""
    made = patch.make(a, b, folder / "p.wkpatch", force=True)
    there = patch.apply(made, a, folder / "there.safetensors", force=True)
    back = patch.apply(made.inverse, b, folder / "back.safetensors", force=True)
    for path, model in ((there, b), (back, a)):
        assert root(wk.open(path)) == root(model)
        assert contents(wk.open(path)) == contents(model)
    assert contents(a.apply(made)) == contents(b)
    assert contents(b.apply(made.inverse)) == contents(a)
    return made


def contents(model: wk.Model) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    found = tensors_of(model)
    return {n: (t.dtype.name, t.shape, t.read(0, int(np.prod(t.shape))).tobytes()) for n, t in found.items()}


def root(model: wk.Model) -> str:
    return tree(tensors_of(model)).root


def kinds(made: patch.Patch) -> dict[str, list[str]]:
    return {entry.name: [step.kind for step in entry.steps] for entry in made.entries}


# ── every type ─────────────────────────────────────────────────────────────────────────────────────

STORABLE = [name for name in DTYPES if name in safetensors.TYPES]


@st.composite
def pairs(draw: st.DrawFn, name: str) -> tuple[Raw, Raw]:
    """Two arrays of one type: all bits at random, some of them changed."""
    dtype = DTYPES[name]
    rows, row = draw(st.integers(0, 9)), draw(st.integers(1, 6)) * dtype.group
    shape = (rows, row) if draw(st.booleans()) else (rows * row,)
    size = dtype.nbytes(rows * row)
    random = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    before = random.integers(0, 256, size, np.uint8)
    after = before.copy()
    change = draw(st.sampled_from(["none", "some", "one", "all", "zero"]))
    if size and change != "none":
        places = random.choice(size, {"one": 1, "some": -(-size // 8)}.get(change, size), replace=False)
        after[places] = 0 if change == "zero" else random.integers(0, 256, len(places), np.uint8)
    return (name, shape, before.tobytes()), (name, shape, after.tobytes())


@pytest.mark.parametrize("name", STORABLE)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_type_comes_back_to_the_bit(tmp_path: Path, name: str, data: st.DataObject) -> None:
    x, y = data.draw(pairs(name))
    folder = tmp_path / hashlib.sha256(repr((x, y)).encode()).hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    a, b = saved(folder / "a.safetensors", {"w": x, "k": x}), saved(folder / "b.safetensors", {"w": y, "k": x})
    made = there_and_back(folder, a, b)
    assert len(made.entries) == (x != y)
    assert (folder / "there.safetensors").read_bytes() == (folder / "b.safetensors").read_bytes()


@pytest.mark.parametrize("x", ["F64", "F32", "BF16", "F16", "F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize("y", ["F64", "F32", "BF16", "F16", "F8_E4M3", "F8_E5M2"])
def test_every_cast_comes_back_to_the_bit(tmp_path: Path, x: str, y: str) -> None:
    random = np.random.default_rng(3)  # with NaN of every kind, and infinity
    before = x, (24, 16), random.integers(0, 256, DTYPES[x].nbytes(384), np.uint8).tobytes()
    after = y, (24, 16), random.integers(0, 256, DTYPES[y].nbytes(384), np.uint8).tobytes()
    made = there_and_back(
        tmp_path, saved(tmp_path / "a.safetensors", {"w": before}), saved(tmp_path / "b.safetensors", {"w": after})
    )
    assert kinds(made) == ({"w": ["cast"]} if x != y else {"w": ["dense"]})


# ── kinds of change, and their sizes ───────────────────────────────────────────────────────────────


def zero_head(w: Array, random: np.random.Generator) -> Array:
    w[64:96] = 0
    return w


def zero_columns(w: Array, random: np.random.Generator) -> Array:
    w[:, 64:96] = 0
    return w


def coordinates(w: Array, random: np.random.Generator) -> Array:
    w.flat[random.choice(w.size, 100, replace=False)] = random.normal(0, 1, 100)
    return w


def lora(w: Array, random: np.random.Generator) -> Array:
    size = 0.01 * 0.02 / 4
    return w + size * random.normal(size=(w.shape[0], 16)) @ random.normal(size=(16, w.shape[1]))


def fine_tune(w: Array, random: np.random.Generator) -> Array:
    return w + random.normal(0, 0.02 * 0.02, w.shape)


def permute_rows(w: Array, random: np.random.Generator) -> Array:
    return w[random.permutation(len(w))]


def permute_columns(w: Array, random: np.random.Generator) -> Array:
    return w[:, random.permutation(w.shape[1])]


def scale(w: Array, random: np.random.Generator) -> Array:
    return w * 0.7


N = SIZE * SIZE
ORDER = sum(np.log2(np.arange(1, SIZE + 1))) / 8  # bytes that say which order of SIZE things
CHOICE = 100 * np.log2(np.e * N / 100) / 8  # bytes that say which 100 of N
KINDS: list[tuple[Callable[..., Array], str, Callable[[int], float]]] = [
    (coordinates, "sparse", lambda width: 1.2 * (CHOICE + 100 * width)),
    (zero_head, "block", lambda width: 1.2 * 32 * SIZE * width),
    (zero_columns, "block", lambda width: 1.2 * 32 * SIZE * width),
    (permute_rows, "permuted", lambda width: 1.3 * ORDER),
    (permute_columns, "permuted", lambda width: 1.3 * ORDER),
    (scale, "scaled", lambda width: 0.2 * N * width),
    (lora, "low_rank", lambda width: 1.2 * 16 * 2 * SIZE * 4),
    (fine_tune, "dense", lambda width: 0.75 * N * width),
]


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=lambda d: d.name)
@pytest.mark.parametrize(("change", "kind", "limit"), KINDS, ids=[k[0].__name__ for k in KINDS])
def test_kinds_of_change_take_what_they_say(
    tmp_path: Path, change: Callable[..., Array], kind: str, limit: Callable[[int], float], dtype: np.dtype[Any]
) -> None:
    random = np.random.default_rng(5)
    w = random.normal(0, 0.02, (SIZE, SIZE)).astype(dtype)
    changed = change(w.astype(np.float64), random).astype(dtype)
    a, b = (saved(tmp_path / f"{n}.safetensors", {"w": raw(x)}) for n, x in (("a", w), ("b", changed)))
    made = there_and_back(tmp_path, a, b)
    assert kinds(made) == {"w": [kind]}
    assert made.entries[0].size <= limit(dtype.itemsize)


def test_a_rank_is_found_where_rounding_hides_much_of_it(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    w = random.normal(0, 0.02, (SIZE, SIZE)).astype(BF16)
    a = saved(tmp_path / "a.safetensors", {"w": raw(w)})
    b = saved(tmp_path / "b.safetensors", {"w": raw(lora(w.astype(np.float64), random).astype(BF16))})
    assert patch.make(a, b).entries[0].steps[0].facts["rank"] == 16


# ── structure ──────────────────────────────────────────────────────────────────────────────────────


def test_tensors_come_and_go_and_change_shape_and_name(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    w = {n: random.normal(size=(6, 4)).astype(F32) for n in "abcdef"}
    more = np.concatenate([w["a"], random.normal(size=(2, 4)).astype(F32)])
    fewer = w["b"][:3].copy()
    fewer[0, 0] = 7
    before = {**w, "gone": w["a"][:1]}
    after = {"a": more, "b": fewer, "c": w["c"].reshape(8, 3), "d": w["d"].astype(BF16), "new": w["e"], "f": w["f"]}
    after["other"] = random.normal(size=3).astype(F16)
    a, b = (
        saved(tmp_path / f"{n}.safetensors", {k: raw(v) for k, v in x.items()})
        for n, x in (("a", before), ("b", after))
    )
    assert kinds(there_and_back(tmp_path, a, b)) == {
        "a": ["rows_added"],
        "b": ["rows_added", "sparse"],
        "c": ["reshaped"],
        "d": ["cast"],
        "gone": ["new"],
        "new": [],
        "other": ["new"],
    }
    there_and_back(tmp_path, b, a)


def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders in shards, with other weights, config and tokenizer."""
    a, b = (tokenizer(write(tmp_path / name, shards=shards)) for name, shards in (("a", 5), ("b1", 2)))
    wk.open(b).apply(wk.scale("layers.1.attn.q", 0.5), wk.zero("norm")).save(tmp_path / "b")
    b = tmp_path / "b"
    config = json.loads((b / "config.json").read_text()) | {"rope_theta": 5.0, "new": [1]}
    del config["rms_norm_eps"]
    (b / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    text = (b / "tokenizer.json").read_text()
    (b / "tokenizer.json").write_text(text + "\n")
    return a, b


def small(folder: Path) -> dict[str, bytes]:
    return {n: r for n, r in files(folder).items() if not n.endswith((".safetensors", ".index.json"))}


def test_shards_and_small_files(tmp_path: Path) -> None:
    a, b = folders(tmp_path)
    made = patch.make(wk.open(a), wk.open(b), tmp_path / "p.wkpatch")
    assert [c.name for c in made.files] == ["config.json", "tokenizer.json"]
    assert len(made.entries) == 2
    assert [op["path"] for op in made.files[0].ops or []] == ["/rms_norm_eps", "/rope_theta", "/new"]
    patch.apply(made, wk.open(a), tmp_path / "c")
    assert small(tmp_path / "c") == small(b)
    assert contents(wk.open(tmp_path / "c")) == contents(wk.open(b))
    linked = [n for n in files(a) if n.endswith(".safetensors") and (a / n).samefile(tmp_path / "c" / n)]
    assert len(linked) >= 3
    patch.apply(made.inverse, wk.open(tmp_path / "c"), tmp_path / "d")
    assert files(tmp_path / "d") == files(a)
    model = wk.open(a).apply(made)
    assert model.checkpoint.config == wk.open(b).checkpoint.config
    assert model.checkpoint.tokenizer() == (b / "tokenizer.json").read_bytes()
    model.save(tmp_path / "e")
    assert files(tmp_path / "e") == files(tmp_path / "c")


def test_in_place_nothing_is_written_through_links(tmp_path: Path) -> None:
    a, b = folders(tmp_path)
    made = patch.make(wk.open(a), wk.open(b))
    shutil.copytree(a, tmp_path / "c", copy_function=os.link)
    before = files(a)
    patch.apply(made, wk.open(tmp_path / "c"), tmp_path / "c", force=True)
    assert files(a) == before
    assert contents(wk.open(tmp_path / "c")) == contents(wk.open(b))
    assert small(tmp_path / "c") == small(b)


def test_an_index_tells_of_new_tensors(tmp_path: Path) -> None:
    a, b = (write(tmp_path / "a", shards=3), write(tmp_path / "b", num_hidden_layers=4, shards=2))
    patch.apply(patch.make(wk.open(a), wk.open(b)), wk.open(a), tmp_path / "c")
    assert contents(wk.open(tmp_path / "c")) == contents(wk.open(b))
    assert wk.open(tmp_path / "c").counts().total == wk.open(b).counts().total
    patch.apply(patch.make(wk.open(b), wk.open(a)), wk.open(b), tmp_path / "d")
    assert contents(wk.open(tmp_path / "d")) == contents(wk.open(a))


def test_the_tree_does_not_depend_on_files(tmp_path: Path) -> None:
    x, y = (wk.open(write(tmp_path / str(n), shards=n)) for n in (1, 4))
    assert root(x) == root(y)
    assert not patch.make(x, y).entries


def test_edits_and_patches_go_together(tmp_path: Path) -> None:
    a = wk.open(write(tmp_path / "a"))
    edited = a.apply(wk.zero("layers.0.attn[head=1]"))
    made = patch.make(a, edited)
    assert contents(a.apply(made)) == contents(edited)
    twice = a.apply(made, wk.scale("layers.0.ffn.up", 2.0))
    assert contents(twice) == contents(edited.apply(wk.scale("layers.0.ffn.up", 2.0)))
    twice.save(tmp_path / "b")
    assert contents(wk.open(tmp_path / "b")) == contents(twice)
    assert contents(twice.apply(patch.make(twice, a))) == contents(a)


def test_a_diff_gives_its_patch(tmp_path: Path) -> None:
    model = wk.open("demo")
    edited = model.apply(wk.scale("layers.1.ffn.up", 0.7))
    found = wk.diff(model, edited)
    saved = found.patch().save(tmp_path / "p.wkpatch")
    assert contents(model.apply(patch.open(saved))) == contents(edited)
    assert saved.read_bytes() == patch.make(model, edited).path.read_bytes()
    assert found == wk.diff(model, edited)
    assert "make_patch" not in repr(found)
    with pytest.raises(PatchError, match=r"ask the one that wk\.diff"):
        compare.diff(model.registry, edited.registry).patch()


def test_other_formats_become_safetensors(tmp_path: Path) -> None:
    a = wk.open(write(tmp_path / "a"))
    npz = a.convert(tmp_path / "a.npz")
    made = patch.make(wk.open(npz), a)
    assert not made.entries
    made = patch.make(a, a.apply(wk.zero("norm")))
    out = patch.apply(made, wk.open(npz), tmp_path / "b.safetensors")
    assert contents(wk.open(out)) == contents(a.apply(made))


def test_a_gguf_file_is_changed_in_place(tmp_path: Path) -> None:
    a = wk.open(write(tmp_path / "a"))
    x, y = (m.convert(tmp_path / f"{n}.gguf") for n, m in (("x", a), ("y", a.apply(wk.zero("norm")))))
    made = patch.make(wk.open(x), wk.open(y))
    patch.apply(made, wk.open(x), tmp_path / "z.gguf")
    assert (tmp_path / "z.gguf").read_bytes() == y.read_bytes()


# ── algebra ────────────────────────────────────────────────────────────────────────────────────────


def test_patches_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    a, b = map(wk.open, folders(tmp_path))
    x, y = (patch.make(a, b, tmp_path / f"{n}.wkpatch").path.read_bytes() for n in "xy")
    assert x == y


def test_compose_and_invert(tmp_path: Path) -> None:
    a, b = map(wk.open, folders(tmp_path))
    c = b.apply(wk.noise("layers.*.attn.q", relative_std=0.1), wk.set("embed[0, 0]", 3))
    p, q = patch.make(a, b), patch.make(b, c)
    both = patch.open(patch.compose(p, q).save(tmp_path / "pq.wkpatch"))
    assert contents(a.apply(both)) == contents(c)
    assert contents(c.apply(patch.open(both.inverse.save(tmp_path / "qp.wkpatch")))) == contents(a)
    nothing = patch.compose(p, p.inverse)
    assert not nothing.files
    assert contents(a.apply(nothing)) == contents(a)
    with pytest.raises(PatchError, match="was not made for the model that"):
        patch.compose(q, p)


def test_conflicts(tmp_path: Path) -> None:
    a = wk.open(write(tmp_path / "a"))
    made = {
        name: patch.make(a, a.apply(wk.set(address, 7)))
        for name, address in {
            "head 0": "layers.0.attn.q[head=0]", "head 1": "layers.0.attn.q[head=1]", "all": "layers.0.attn.q",
            "one": "layers.0.attn.q[0, 0]", "norm": "norm",
        }.items()
    }  # fmt: skip
    assert patch.conflicts(made["head 0"], made["head 1"]) == []
    assert patch.conflicts(made["norm"], made["all"]) == []
    name = "model.layers.0.self_attn.q_proj.weight"
    assert patch.conflicts(made["one"], made["one"])[0] == patch.Conflict(name, ["sparse"], ["sparse"], 1)
    assert [c.name for c in patch.conflicts(made["head 0"], made["all"])] == [name]
    with pytest.raises(PatchError, match="not for the same model"):
        patch.conflicts(made["one"], made["one"].inverse)


# ── what is refused ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Base, target and patch."""
    a, b = folders(tmp_path)
    patch.make(wk.open(a), wk.open(b), tmp_path / "p.wkpatch")
    return a, b, tmp_path / "p.wkpatch"


def refused(cli: Cli, *arguments: object) -> str:
    """The one line of an error; nothing is written."""
    done = cli("patch", *map(str, arguments))
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    return done.err


def test_another_base_is_refused_by_the_tensor_that_differs(cli: Cli, case: tuple[Path, Path, Path]) -> None:
    a, b, p = case
    out = a.parent / "out"
    wk.open(a).apply(wk.set("layers.2.ffn.up[0, 0]", 1)).save(a.parent / "other")
    assert "tensor 'model.layers.2.mlp.up_proj.weight' differs first" in refused(
        cli, "apply", p, a.parent / "other", "-o", out
    )
    assert "is what" in refused(cli, "apply", p, b, "-o", out)
    assert "is what" in refused(cli, "revert", p, a, "-o", out)
    write(a.parent / "less", num_hidden_layers=1)
    assert "has no tensor 'model.layers.1.self_attn.q_proj.weight'" in refused(
        cli, "apply", p, a.parent / "less", "-o", out
    )
    (a / "config.json").write_text((a / "config.json").read_text() + " ")
    assert "config.json is not as it was" in refused(cli, "apply", p, a, "-o", out)
    assert not out.exists()


def test_damage_anywhere_is_found(cli: Cli, case: tuple[Path, Path, Path]) -> None:
    a, _, p = case
    whole = p.read_bytes()
    random = np.random.default_rng(0)
    places = [*range(16), *(int(n) for n in random.integers(16, len(whole), 150))]
    for at in places:
        p.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << random.integers(8)]) + whole[at + 1 :])
        with pytest.raises(PatchError) as found:
            patch.open(p)
        assert "\n" not in str(found.value)
    for cut in (0, 7, 100, len(whole) - 1):
        p.write_bytes(whole[:cut])
        assert "p.wkpatch" in refused(cli, "apply", p, a, "-o", a.parent / "out")
    assert "no such file" in refused(cli, "show", "nowhere.wkpatch").lower()
    assert "not a patch" in refused(cli, "show", next(a.glob("*.safetensors")))


def forged(path: Path, change: Callable[[dict[str, Any]], None], **blobs: bytes) -> patch.Patch:
    """A patch with other things in it, and a checksum that fits them."""
    old = safetensors.open_file(path)
    data = {n: t.read(0, t.shape[0]).tobytes() for n, t in old.tensors.items()} | blobs
    value = json.loads(old.metadata["patch"])
    change(value)
    text = json.dumps(value)
    total = hashlib.sha256(text.encode() + b"".join(data.values())).hexdigest()
    out = path.parent / "forged.wkpatch"
    header: dict[str, Any] = {"__metadata__": {"weightkit.patch": "1", "sha256": total, "patch": text}}
    end = 0
    for name, found in data.items():
        header[name] = {"dtype": "U8", "shape": [len(found)], "data_offsets": [end, end := end + len(found)]}
    head = json.dumps(header).encode()
    out.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(data.values()))
    return patch.open(out)


def step(value: dict[str, Any], **facts: Any) -> None:
    value["tensors"][0]["steps"][0].update(facts)


BOMB = zlib.compress(bytes(1 << 26), 9)[2:-4]
HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], None], dict[str, bytes]]] = {
    "more places than it has": (lambda v: step(v, count=3), {}),
    "very many places": (lambda v: step(v, count=1 << 50), {}),
    "sizes that do not add up": (lambda v: step(v, sizes=[1, 2, 3]), {}),
    "negative sizes": (lambda v: step(v, sizes=[-1, 5, 3]), {}),
    "an unknown step": (lambda v: step(v, kind="magic"), {}),
    "a rule that does not fit": (lambda v: step(v, kind="low_rank", rank=9, bits=16, exponent=0), {}),
    "a place outside": (
        lambda v: step(v, sizes=[len(coding.pack_indices(np.array([1 << 40]))), 0, 0]),
        {"0": coding.pack_indices(np.array([1 << 40]))},
    ),
    "a bomb": (
        lambda v: step(v, kind="dense", sizes=[len(BOMB) + 6, 3]),
        {"0": b"\1" + coding.number(len(BOMB) + 1) + b"\2" + BOMB + coding.number(len(BOMB) + 6) + b"\0"},
    ),
    "another tensor": (lambda v: v["tensors"][0].update(name="nothing"), {}),
    "a tensor twice": (lambda v: v["tensors"].append(v["tensors"][0]), {"1": b""}),
    "a file that leads out": (lambda v: v["files"].append({"name": "../x", "sha256": [None, None], "ops": []}), {}),
    "another target": (lambda v: v.update(target="0" * 64), {}),
    "no target": (lambda v: v.update(target=None), {}),
    "a huge tensor": (
        lambda v: v["tensors"][0].update(steps=[{"kind": "new", "dtype": "F32", "shape": [1 << 50], "sizes": [0, 0]}]),
        {"0": b""},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_patch_is_refused(tmp_path: Path, name: str) -> None:
    a = wk.open(write(tmp_path / "a"))
    p = patch.make(a, a.apply(wk.set("layers.0.attn.q[3, 4]", 7)), tmp_path / "p.wkpatch").path
    with pytest.raises(PatchError) as found:
        patch.apply(forged(p, HOSTILE[name][0], **HOSTILE[name][1]), a, tmp_path / "out")
    assert "\n" not in str(found.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "forged.wkpatch", "p.wkpatch"]


def test_a_bomb_is_not_unpacked() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PatchError):
            coding.unsqueeze(memoryview(b"\2" + BOMB), 1000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_forgery_that_changes_nothing_is_none(tmp_path: Path) -> None:
    """So that what is refused above is refused for what was changed."""
    a = wk.open(write(tmp_path / "a"))
    p = patch.make(a, a.apply(wk.set("layers.0.attn.q[3, 4]", 7)), tmp_path / "p.wkpatch").path
    patch.apply(forged(p, lambda value: None), a, tmp_path / "out")


@pytest.mark.parametrize("call", ["fsync", "write"])
def test_a_full_disk_leaves_nothing(
    cli: Cli, case: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    a, _, p = case
    before = files(a.parent)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (shutil, "copyfile")), full)
    assert "No space left" in refused(cli, "apply", p, a, "-o", a.parent / "out")
    assert files(a.parent) == before


def test_what_is_there_is_kept(cli: Cli, case: tuple[Path, Path, Path]) -> None:
    a, b, p = case
    before = p.read_bytes()
    assert "exists already" in refused(cli, "make", b, a, "-o", p)
    assert "exists already" in refused(cli, "apply", p, a, "-o", b)
    assert p.read_bytes() == before


# ── coding ─────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None)
@given(st.sets(st.integers(0, 1 << 40)))
def test_indices_come_back(places: set[int]) -> None:
    indices = np.array(sorted(places), np.int64)
    packed = memoryview(coding.pack_indices(indices))
    assert np.array_equal(coding.unpack_indices(packed, len(indices), (1 << 40) + 1), indices)
    if places:
        with pytest.raises(PatchError):
            coding.unpack_indices(packed, len(indices), max(places))


@settings(deadline=None)
@given(st.binary(max_size=2000), st.sampled_from([1, 2, 4, 8]))
def test_words_come_back(raw: bytes, width: int) -> None:
    words = np.frombuffer(raw[: len(raw) // width * width], f"<u{width}")
    packed = coding.pack_words(words)
    assert np.array_equal(coding.unpack_words(memoryview(packed), len(words), width), words)


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 5000), st.sampled_from([1, 2, 4, 8]))
def test_any_bytes_are_words_or_refused(raw: bytes, count: int, width: int) -> None:
    with contextlib.suppress(PatchError):
        assert len(coding.unpack_words(memoryview(raw), count, width)) == count
