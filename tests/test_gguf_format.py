"""GGUF: the header, values of every type, the order of rows, config, tokenizer, names and the writer.

The gguf package is the oracle for files and for values of every type; files are made by hand where it would not.
"""

from __future__ import annotations

import json
import math
import pickle
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightkit as wk
from tests.test_safetensors import fetched
from weightkit.dtypes import DTYPES, Array
from weightkit.errors import EditError, FormatError, SaveError
from weightkit.formats import gguf_config, gguf_write
from weightkit.formats.gguf import open_file, types
from weightkit.formats.gguf_order import Changed, Permuted, Unpermuted, permute_rows, permuted, turn_rows
from weightkit.formats.safetensors import open_file as open_safetensors
from weightkit.tensor import Tensor

U8, U32, I32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 5, 6, 7, 8, 9, 10
QUANTISED = [kind for kind, (block, _) in gguf.GGML_QUANT_SIZES.items() if block > 1]


# ── files by hand ──────────────────────────────────────────────────────────────────────────────────


@dataclass
class Made:
    """A GGUF file by hand, little-endian or big."""

    values: list[tuple[bytes, int, bytes]] = field(default_factory=list)
    tensors: list[tuple[bytes, tuple[int, ...], int, int]] = field(default_factory=list)
    data: bytes = b""
    version: int = 3
    order: str = "<"
    alignment: int = 32
    counts: tuple[int, int] | None = None

    def pack(self, code: str, *numbers: float) -> bytes:
        return struct.pack(self.order + code, *numbers)

    def text(self, raw: bytes) -> bytes:
        return self.pack("Q", len(raw)) + raw

    def array(self, kind: int, count: int, raw: bytes) -> bytes:
        return self.pack("IQ", kind, count) + raw

    def raw(self) -> bytes:
        out = b"GGUF" + self.pack("I", self.version)
        out += self.pack("QQ", *(self.counts or (len(self.tensors), len(self.values))))
        out += b"".join(self.text(key) + self.pack("I", kind) + value for key, kind, value in self.values)
        for name, sizes, kind, offset in self.tensors:
            out += self.text(name) + self.pack(f"I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
        return out + b"\0" * (-len(out) % self.alignment) + self.data


def named(architecture: bytes = b"llama", **more: Any) -> Made:
    made = Made(**more)
    made.values.insert(0, (b"general.architecture", STRING, made.text(architecture)))
    return made


FOUR = np.array([1, -2, 0.5, 3], "<f4")


def file(folder: Path, made: Made | bytes) -> Path:
    path = folder / "m.gguf"
    path.write_bytes(made.raw() if isinstance(made, Made) else made)
    return path


def with_tensor(**more: Any) -> Made:
    return named(tensors=[(b"w", (4,), 0, 0)], data=FOUR.tobytes(), **more)


def refused(folder: Path, made: Made | bytes, why: str) -> None:
    with pytest.raises(FormatError, match=why) as caught:
        open_file(file(folder, made))
    assert len(str(caught.value).splitlines()) == 1


def write_by_package(
    path: Path, architecture: str, values: dict[str, Any], tensors: dict[str, Array], **options: Any
) -> Path:
    """A file as the gguf package writes it; metadata keys without the architecture in front."""
    writer = gguf.GGUFWriter(path, architecture, **options)
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in values.items():
        full = key if key.startswith(("tokenizer.", "general.", "split.")) else f"{architecture}.{key}"
        adders.get(type(value), writer.add_array)(full, value)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# ── the header ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("counts", [(0, 1), (1, 0)])
def test_a_name_of_megabytes_is_refused_before_it_is_read(tmp_path: Path, counts: tuple[int, int]) -> None:
    head = Made(counts=counts).raw()[:24] + (90 << 20).to_bytes(8, "little")
    with fetched(tmp_path / "m.gguf", head, 64 << 30) as taken:
        with pytest.raises(FormatError, match="94,371,840 bytes long"):
            open_file(tmp_path / "m.gguf")
        assert sum(taken) < 1 << 20


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("order", ["<", ">"])
def test_versions_and_byte_orders(tmp_path: Path, version: int, order: str) -> None:
    made = named(version=version, order=order, tensors=[(b"w", (4, 1), 0, 0)])
    made.values.append((b"n", U32, made.pack("I", 7)))
    made.data = FOUR.astype(order + "f4").tobytes()
    shard = open_file(file(tmp_path, made))
    (tensor,) = shard.tensors.values()
    assert shard.metadata == {"general.architecture": "llama", "n": "7"}
    assert (tensor.name, tensor.shape, tensor.dtype.name, tensor.nbytes) == ("w", (1, 4), "F32", 16)
    assert tensor.read(1, 3).tolist() == [-2, 0.5]
    assert tensor.mapped().tolist() == [FOUR.tolist()]


def test_every_value(tmp_path: Path) -> None:
    made = Made()
    numbers: dict[int, tuple[str, float]] = {
        0: ("B", 200),
        1: ("b", -3),
        2: ("H", 60_000),
        3: ("h", -300),
        4: ("I", 1 << 31),
        5: ("i", -5),
    }
    numbers |= {10: ("Q", 1 << 63), 11: ("q", -(1 << 60)), 6: ("f", 1e-5), 12: ("d", 0.1), 7: ("B", 1)}
    for kind, (code, value) in numbers.items():
        made.values.append((b"k%d" % kind, kind, made.pack(code, value)))
    made.values.append((b"text", STRING, made.text("é\x00".encode())))
    made.values.append((b"list", ARRAY, made.array(I32, 3, made.pack("iii", 1, -2, 3))))
    made.values.append((b"words", ARRAY, made.array(STRING, 2, made.text(b"a") + made.text(b""))))
    made.values.append((b"long", ARRAY, made.array(U8, 9000, bytes(9000))))
    made.values.append((b"nested", ARRAY, made.array(ARRAY, 1, made.array(U8, 2, b"ab"))))
    metadata = open_file(file(tmp_path, made)).metadata
    assert metadata == {
        **{f"k{kind}": str(value) for kind, (_, value) in numbers.items() if kind != BOOL},
        "k7": "True",
        "text": "é\x00",
    }


def test_a_key_of_64_kilobytes_is_on_both_sides_of_a_block(tmp_path: Path) -> None:
    for length in range(65_400, 65_535, 9):
        made = with_tensor()
        made.values.append((b"k" * length, U32, made.pack("I", 5)))
        assert open_file(file(tmp_path, made)).metadata["k" * length] == "5"


@given(lengths=st.lists(st.integers(0, 40_000), max_size=12), tail=st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_strings_of_all_lengths_across_blocks(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], tail: int
) -> None:
    made = with_tensor()
    strings = [b"x" * length for length in lengths]
    made.values.append((b"before", STRING, made.text(b"y" * tail)))
    made.values.append((b"a", ARRAY, made.array(STRING, len(strings), b"".join(map(made.text, strings)))))
    shard = open_file(file(tmp_path_factory.mktemp("g"), made))
    assert list(shard.tensors) == ["w"]
    assert shard.tensors["w"].read(0, 4).tolist() == FOUR.tolist()


def test_alignment(tmp_path: Path) -> None:
    for alignment in (8, 24, 64):
        made = with_tensor(alignment=alignment)
        made.values.append((b"general.alignment", U32, made.pack("I", alignment)))
        assert open_file(file(tmp_path, made)).tensors["w"].read(0, 4).tolist() == FOUR.tolist()


def _bad_values() -> Iterator[tuple[str, bytes, int, bytes, str]]:
    m = Made()
    yield "type", b"k", 13, b"\0" * 8, "type 13"
    yield "empty key", b"", U32, m.pack("I", 1), "empty"
    yield "key not UTF-8", b"\xff", U32, m.pack("I", 1), "UTF-8"
    yield "key twice", b"general.architecture", U32, m.pack("I", 1), "twice"
    yield "a long key", b"k" * 70_000, U32, m.pack("I", 1), "bytes long"
    yield "bool", b"k", BOOL, b"\2", "neither true"
    yield "string past the end", b"k", STRING, m.pack("Q", 1 << 40), "would end"
    yield "string of 2^64", b"k", STRING, m.pack("Q", (1 << 64) - 1), "would end"
    yield "numbers past the end", b"k", ARRAY, m.array(U64, 1 << 61, b""), "would end"
    yield "numbers that wrap", b"k", ARRAY, m.array(U64, 1 << 63, b""), "would end"
    yield "strings past the end", b"k", ARRAY, m.array(STRING, 1 << 62, b""), "does not fit"
    yield "a string in a list past the end", b"k", ARRAY, m.array(STRING, 2, m.pack("QQ", 0, 1 << 63)), "would end"
    yield "list of an unknown type", b"k", ARRAY, m.array(77, 1, b"\0" * 8), "type 77"
    yield "nested", b"k", ARRAY, m.array(ARRAY, 1, m.pack("IQ", ARRAY, 1) * 10_000), "nested"
    yield "alignment of 0", b"general.alignment", U32, m.pack("I", 0), "multiple of 8"
    yield "alignment of 12", b"general.alignment", U32, m.pack("I", 12), "multiple of 8"
    yield "signed alignment", b"general.alignment", I32, m.pack("i", 32), "multiple of 8"
    yield "alignment of words", b"general.alignment", STRING, m.text(b"32"), "multiple of 8"
    yield "alignment true", b"general.alignment", BOOL, b"\1", "multiple of 8"
    yield "a newline in a key", b"a\nb", STRING, m.pack("Q", 1 << 40), r"a\\nb"


@pytest.mark.parametrize(
    ("key", "kind", "value", "why"), [case[1:] for case in _bad_values()], ids=[c[0] for c in _bad_values()]
)
def test_bad_values(tmp_path: Path, key: bytes, kind: int, value: bytes, why: str) -> None:
    made = with_tensor()
    made.values.append((key, kind, value))
    refused(tmp_path, made, why)


def _bad_tensors() -> Iterator[tuple[str, list[tuple[bytes, tuple[int, ...], int, int]], str]]:
    yield "five dimensions", [(b"w", (1, 1, 1, 1, 4), 0, 0)], "dimensions"
    yield "a dimension of 0 and a giant one", [(b"w", (0, 1 << 62), 0, 0)], "sizes"
    yield "a product that wraps", [(b"w", (1 << 62, 4), 0, 0)], "sizes"
    yield "past the end", [(b"w", (5,), 0, 0)], "cut short"
    yield "offset past the end", [(b"w", (4,), 0, 1 << 20)], "cut short"
    yield "nothing past the end", [(b"w", (0, 4), 0, (1 << 63) - 32)], "cut short"
    yield "offset that wraps", [(b"w", (4,), 0, (1 << 64) - 32)], "cut short"
    yield "offset of 8", [(b"w", (1,), 0, 8)], "multiple"
    yield "removed type", [(b"w", (4,), 4, 0)], "type 4"
    yield "type -1", [(b"w", (4,), (1 << 32) - 1, 0)], "type 4294967295"
    yield "not whole blocks", [(b"w", (33,), 8, 0)], "blocks of 32"
    yield "whole blocks, but not in a row", [(b"w", (16, 2), 8, 0)], "blocks of 32"
    yield "a block without dimensions", [(b"w", (), 8, 0)], "blocks of 32"
    yield "twice", [(b"w", (1,), 0, 0), (b"w", (1,), 0, 32)], "twice"
    yield "overlap", [(b"w", (4,), 0, 0), (b"v", (1,), 0, 0)], "overlaps"
    yield "no name", [(b"", (4,), 0, 0)], "empty"
    yield "name not UTF-8", [(b"\xc3", (4,), 0, 0)], "UTF-8"


@pytest.mark.parametrize(("tensors", "why"), [case[1:] for case in _bad_tensors()], ids=[c[0] for c in _bad_tensors()])
def test_bad_tensors(tmp_path: Path, tensors: Any, why: str) -> None:
    refused(tmp_path, named(tensors=tensors, data=FOUR.tobytes()), why)


def test_nothing_behind_the_last_tensor(tmp_path: Path) -> None:
    made = named(tensors=[(b"w", (4,), 0, 0), (b"n", (0, 4), 0, 32)], data=FOUR.tobytes())
    empty = open_file(file(tmp_path, made)).tensors["n"]
    assert empty.read(0, 0).shape == (0,)
    assert empty.mapped().shape == (4, 0)


def test_bad_starts(tmp_path: Path) -> None:
    raw = with_tensor().raw()
    refused(tmp_path, b"", "would end")
    refused(tmp_path, b"GGML" + raw[4:], "does not begin with GGUF")
    for version in (0, 1, 4, 1 << 16, 4 << 24, 3 << 16):
        refused(tmp_path, with_tensor(version=version), "version")
    for counts in ((1 << 63, 1), (1, 1 << 63), (1 << 20, 0), ((1 << 64) - 1, (1 << 64) - 1)):
        refused(tmp_path, with_tensor(counts=counts), "do not fit")


def test_cut_anywhere(tmp_path: Path) -> None:
    raw = with_tensor().raw()
    for length in range(len(raw)):
        refused(tmp_path, raw[:length], ".")
    assert open_file(file(tmp_path, raw + b"\0" * 16)).tensors


def test_a_scalar_has_no_dimensions(tmp_path: Path) -> None:
    made = named(tensors=[(b"w", (), 0, 0)], data=FOUR[:1].tobytes())
    tensor = open_file(file(tmp_path, made)).tensors["w"]
    assert tensor.shape == ()
    assert tensor.mapped().item() == 1


@pytest.mark.parametrize(("kind", "count"), [(STRING, 1 << 31), (STRING, 1_000_000), (ARRAY, 60_000), (U8, 1 << 34)])
def test_a_sparse_file_of_64_gigabytes_opens_at_once(tmp_path: Path, kind: int, count: int) -> None:
    import time
    import tracemalloc

    made = Made(counts=(0, 1))
    path = file(tmp_path, made.raw()[:24] + made.text(b"k") + made.pack("I", ARRAY) + made.pack("IQ", kind, count))
    with open(path, "r+b") as sparse:
        sparse.truncate(64 << 30)
    start = time.process_time()
    try:
        open_file(path)
    except FormatError:
        assert count != 1_000_000
    assert time.process_time() - start < 2  # half a second on a machine that does nothing else
    tracemalloc.start()
    try:
        if count < 1 << 20:
            open_file(path)
        assert tracemalloc.get_traced_memory()[1] < 150 << 20
    finally:
        tracemalloc.stop()


# ── values ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_blocks_are_those_of_the_gguf_package(tmp_path: Path, kind: Any) -> None:
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    shape = (70, 3 * block)
    raw = np.random.default_rng(kind).integers(0, 256, (70, 3 * nbytes), dtype=np.uint8)
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("w", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = open_file(path).tensors["w"]
    assert (tensor.dtype.name, tensor.shape, tensor.nbytes) == (kind.name, shape, raw.size)
    assert tensor.dtype.block == block
    try:
        with np.errstate(all="ignore"):
            expected = gguf.dequantize(raw, kind)
    except NotImplementedError:
        with pytest.raises(FormatError, match=kind.name):
            tensor.read(0, 4)
        with pytest.raises(FormatError, match=kind.name):
            tensor.mapped()
        return
    assert expected.shape == shape
    assert tensor.mapped().tobytes() == expected.tobytes()
    for start, stop in ((0, 1), (block - 1, block + 1), (5, 5), (2 * block + 7, 69 * 3 * block), (0, expected.size)):
        assert tensor.read(start, stop).tobytes() == expected.reshape(-1)[start:stop].tobytes()


@pytest.mark.parametrize("name", ["F64", "F32", "F16", "I8", "I16", "I32", "I64"])
def test_plain_types_are_those_of_the_gguf_package(tmp_path: Path, name: str) -> None:
    array = (np.arange(24).reshape(2, 3, 4) - 11).astype(DTYPES[name].stored)
    path = write_by_package(tmp_path / "m.gguf", "llama", {}, {"w": array})
    tensor = open_file(path).tensors["w"]
    assert tensor.dtype == DTYPES[name]
    assert tensor.mapped().tobytes() == array.tobytes()
    assert tensor.shape == array.shape


def test_big_endian_files_of_the_gguf_package(tmp_path: Path) -> None:
    array = np.arange(8, dtype=np.float32).reshape(2, 4)
    path = write_by_package(
        tmp_path / "m.gguf", "llama", {"block_count": 3}, {"w": array}, endianess=gguf.GGUFEndian.BIG
    )
    shard = open_file(path)
    assert shard.metadata["llama.block_count"] == "3"
    assert shard.tensors["w"].mapped().tolist() == array.tolist()
    assert shard.tensors["w"].read(2, 5).tolist() == [2, 3, 4]


def test_big_endian_blocks_are_counted_and_refused(tmp_path: Path) -> None:
    made = named(order=">", tensors=[(b"w", (32, 2), 8, 0)], data=bytes(68))
    tensor = open_file(file(tmp_path, made)).tensors["w"]
    assert (tensor.shape, tensor.nbytes) == ((2, 32), 68)
    with pytest.raises(FormatError, match="big-endian"):
        tensor.read(0, 3)
    with pytest.raises(FormatError, match="big-endian"):
        tensor.mapped()


# ── rows ───────────────────────────────────────────────────────────────────────────────────────────


def by_the_definition(rows: Array, heads: int) -> Array:
    """GGUF rows in Hugging Face order: row h·d + j·d/2 + i is row h·d + 2i + j."""
    size = rows.shape[0] // heads
    order = [h * size + 2 * i + j for h in range(heads) for j in range(2) for i in range(size // 2)]
    return rows[order]


@given(
    heads=st.integers(1, 5),
    half=st.integers(1, 6),
    row=st.sampled_from([(), (1,), (7,), (2, 3)]),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    block=st.sampled_from([1, 16, 1 << 20]),
)
@settings(max_examples=200, deadline=None)
def test_rows_in_both_orders(
    tmp_path_factory: pytest.TempPathFactory,
    heads: int,
    half: int,
    row: tuple[int, ...],
    cut: tuple[float, float],
    block: int,
) -> None:
    shape = (heads * half * 2, *row)
    array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    path = tmp_path_factory.mktemp("g") / "w"
    path.write_bytes(array.tobytes())
    tensor = Tensor("w", DTYPES["F32"], shape, path, 0)
    expected = by_the_definition(array, heads)
    assert (turn_rows(array, heads) == expected).all()
    assert (permute_rows(expected, heads) == array).all()
    low, high = sorted(round(share * array.size) for share in cut)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weightkit.formats.gguf_order.BLOCK", block)
        for source, whole in (
            (Unpermuted(tensor, heads), expected),
            (Permuted(tensor, heads), permute_rows(array, heads)),
            (Permuted(Unpermuted(tensor, heads), heads), array),
        ):
            source = pickle.loads(pickle.dumps(source))
            assert source.read(low, high).tolist() == whole.reshape(-1)[low:high].tolist()
            assert (source.mapped() == whole).all()
            assert (source.shape, source.nbytes, source.name) == (shape, tensor.nbytes, "w")
    assert permuted(Unpermuted(tensor, heads), heads) is tensor


def test_reading_a_large_matrix_in_order_takes_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    shape = (2 * 4096, 2048)
    path = tmp_path / "w"
    with open(path, "wb") as sparse:
        sparse.truncate(4 * math.prod(shape))
    source = Unpermuted(Tensor("w", DTYPES["F32"], shape, path, 0), 1)
    tracemalloc.start()
    source.read(0, 1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"])
def test_a_real_model(shared: Path, name: str) -> None:
    folder = shared / "models"
    shard = open_file(folder / f"stories260K-formats/gguf/stories260K-{name}.gguf")
    original = open_safetensors(folder / "stories260K/model.safetensors").tensors
    names = gguf_config.hf_names("llama", 5, original)
    assert {names[name] for name in original if name != "lm_head.weight"} >= set(shard.tensors)
    apart = []
    for hf, tensor in original.items():
        if names[hf] not in shard.tensors:
            continue
        mine, theirs = shard.tensors[names[hf]].mapped(), tensor.mapped()
        assert mine.shape == theirs.shape
        stored = shard.tensors[names[hf]].dtype
        if stored.name == "F32" and name == "F32":
            assert mine.tobytes() == theirs.tobytes()
        apart.append(float(np.abs(stored.decode(mine) - theirs).max() / np.abs(theirs).max()))
    most = {"F32": 0, "F16": 1e-3, "BF16": 8e-3, "Q8_0": 8e-3, "Q5_0": 0.07, "Q5_1": 0.07, "Q4_0": 0.14, "Q4_1": 0.14}
    assert len(apart) == 47
    assert max(apart) <= most[name]


@pytest.mark.parametrize("architecture", ["gemma", "gemma2", "gemma3"])
def test_gemma_norms_are_those_of_hugging_face(tmp_path: Path, architecture: str) -> None:
    norm = np.array([1.5, 0.25, -2, 1], np.float32)
    tensors = {"blk.0.attn_norm.weight": norm, "blk.0.attn_q.weight": np.ones((2, 4), np.float32)}
    found = open_file(write_by_package(tmp_path / "m.gguf", architecture, {}, tensors)).tensors
    source = pickle.loads(pickle.dumps(found["blk.0.attn_norm.weight"]))
    assert source.read(1, 3).tolist() == [-0.75, -3]
    assert source.mapped().tolist() == [0.5, -0.75, -3, 0]
    assert source.dtype.name == "F32"
    assert Changed(source, "plus one").mapped().tolist() == norm.tolist()
    assert found["blk.0.attn_q.weight"].mapped().tolist() == [[1] * 4] * 2


def test_mamba_is_that_of_hugging_face(tmp_path: Path) -> None:
    log = np.array([[0.5, 1], [2, -3]], np.float32)
    convolution = np.arange(8, dtype=np.float32).reshape(2, 4)
    tensors = {"blk.0.ssm_a": -np.exp(log), "blk.0.ssm_conv1d.weight": convolution}
    found = open_file(write_by_package(tmp_path / "m.gguf", "mamba", {}, tensors)).tensors
    assert np.allclose(found["blk.0.ssm_a"].mapped(), log, rtol=1e-6)
    assert np.allclose(Changed(found["blk.0.ssm_a"], "minus exp").mapped(), -np.exp(log), rtol=1e-6)
    assert found["blk.0.ssm_conv1d.weight"].mapped().tolist() == convolution[:, None].tolist()


def test_heads_that_do_not_divide_the_rows_or_differ_by_layer(tmp_path: Path) -> None:
    rows = np.arange(8, dtype=np.float32).reshape(8, 1)
    tensors = {f"blk.{layer}.attn_q.weight": rows for layer in range(3)}
    for heads, expected in ((3, [0, 0, 0]), ([2, 4, 2], [2, 4, 2]), ("x", [0, 0, 0])):
        path = write_by_package(tmp_path / "m.gguf", "llama", {"attention.head_count": heads}, tensors)
        found = open_file(path).tensors.values()
        assert [t.heads if isinstance(t, Unpermuted) else 0 for t in found] == expected


# ── config ─────────────────────────────────────────────────────────────────────────────────────────

BASE: dict[str, Any] = {
    "context_length": 128,
    "embedding_length": 64,
    "block_count": 2,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
    "rope.dimension_count": 16,
}
EMBED = {"token_embd.weight": np.zeros((10, 64), np.float32)}


def config_of(folder: Path, architecture: str, more: dict[str, Any], tensors: dict[str, Array] | None = None) -> Any:
    path = write_by_package(folder / "m.gguf", architecture, {**BASE, **more}, {**EMBED, **(tensors or {})})
    return open_file(path).config


def test_the_config_of_a_real_model(shared: Path) -> None:
    folder = shared / "models"
    config = open_file(folder / "stories260K-formats/gguf/stories260K-F32.gguf").config
    original = json.loads((folder / "stories260K/config.json").read_text())
    assert config is not None
    same = {key: config[key] for key in original if key in config}
    assert same == {key: original[key] for key in same}
    assert len(same) == 13
    assert set(config) - set(original) == {"head_dim"}


@pytest.mark.parametrize(
    ("architecture", "more", "expected"),
    [
        ("llama", {}, {"model_type": "llama", "rms_norm_eps": 1e-05, "head_dim": 16, "vocab_size": 10}),
        ("llama", {"expert_count": 8, "expert_used_count": 2}, {"model_type": "mixtral", "num_local_experts": 8}),
        ("llama", {"attention.sliding_window": 64}, {"model_type": "mistral", "sliding_window": 64}),
        ("qwen3", {"attention.key_length": 32}, {"model_type": "qwen3", "head_dim": 32}),
        (
            "qwen3moe",
            {"expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 24},
            {"model_type": "qwen3_moe", "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        ),
        ("gemma3", {"attention.sliding_window": 32}, {"model_type": "gemma3_text", "sliding_window": 32}),
        ("phi2", {"rope.dimension_count": 8}, {"model_type": "phi", "partial_rotary_factor": 0.5}),
        ("gptneox", {"rope.dimension_count": 4}, {"model_type": "gpt_neox", "partial_rotary_factor": 0.25}),
        ("gpt2", {}, {"model_type": "gpt2", "layer_norm_epsilon": 1e-05}),
        ("falcon", {"attention.head_count_kv": 1}, {"new_decoder_architecture": False, "multi_query": True}),
        ("falcon", {}, {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
        ("starcoder", {"attention.head_count_kv": 1}, {"model_type": "gpt_bigcode", "multi_query": True}),
        ("starcoder2", {}, {"model_type": "starcoder2", "norm_epsilon": 1e-05, "use_bias": False}),
        ("granite", {"attention.scale": 0.5, "logit_scale": 8.0}, {"attention_multiplier": 0.5, "logits_scaling": 8.0}),
        ("command-r", {"logit_scale": 0.0625}, {"model_type": "cohere", "logit_scale": 0.0625}),
        ("olmo2", {"attention.sliding_window": 9}, {"model_type": "olmo3"}),
        ("internlm2", {}, {"model_type": "llama"}),
        ("chatglm", {}, {"multi_query_group_num": 2, "kv_channels": 16, "layernorm_epsilon": 1e-05}),
        (
            "deepseek2",
            {
                "attention.key_length_mla": 24,
                "attention.value_length_mla": 12,
                "attention.kv_lora_rank": 32,
                "attention.head_count_kv": 1,
                "rope.dimension_count": 8,
                "expert_gating_func": 2,
                "expert_count": 8,
            },
            {
                "model_type": "deepseek_v3",
                "qk_nope_head_dim": 16,
                "qk_rope_head_dim": 8,
                "v_head_dim": 12,
                "q_lora_rank": None,
                "num_key_value_heads": 4,
                "n_routed_experts": 8,
            },
        ),
        ("t5", {"attention.key_length": 8}, {"d_kv": 8, "num_decoder_layers": 2, "feed_forward_proj": "relu"}),
        ("mamba", {"ssm.inner_size": 128, "ssm.conv_kernel": 4}, {"intermediate_size": 128, "conv_kernel": 4}),
    ],
)
def test_configs(tmp_path: Path, architecture: str, more: dict[str, Any], expected: dict[str, Any]) -> None:
    config = config_of(tmp_path, architecture, more)
    assert config is not None
    assert {key: config.get(key, "absent") for key in expected} == expected
    assert config["tie_word_embeddings"] is True


def test_what_only_tensors_tell(tmp_path: Path) -> None:
    vector = np.zeros(64, np.float32)
    tensors = {"output.weight": EMBED["token_embd.weight"], "blk.0.attn_q.bias": vector, "blk.0.ffn_up.bias": vector}
    config = config_of(tmp_path, "llama", {}, tensors)
    assert (config["tie_word_embeddings"], config["attention_bias"], config["mlp_bias"]) == (False, True, True)


def test_no_config(tmp_path: Path) -> None:
    assert config_of(tmp_path, "unheard-of", {}) is None
    assert config_of(tmp_path, "llama", {"general.type": "adapter"}) is None
    assert open_file(file(tmp_path, with_tensor())).config is None


def test_values_that_make_no_sense_stay_out_of_the_way(tmp_path: Path) -> None:
    for value in ("many", -1.0, float("nan"), True, ["a"], []):
        config = config_of(tmp_path, "deepseek2", {"rope.freq_base": value, "attention.head_count": value})
        json.dumps(config, allow_nan=False)


@pytest.mark.parametrize("heads", [0, 3, "many", 1 << 31])
@pytest.mark.parametrize("architecture", gguf_config.FAMILIES)
def test_no_family_stumbles_over_odd_heads_and_tensors(tmp_path: Path, architecture: str, heads: Any) -> None:
    names = [
        "blk.0.ffn_up_exps.weight",
        "blk.0.attn_q.weight",
        "blk.0.ssm_a",
        "rope_freqs.weight",
        "output_norm.weight",
    ]
    for shape in ((3,), (0,), (2, 0), (1, 2, 3)):
        tensors = dict.fromkeys(names, np.ones(shape, np.float32))
        values = {"attention.head_count": heads, "rope.freq_base": 3.4e38}
        path = write_by_package(tmp_path / "m.gguf", architecture, {**BASE, **values}, {**EMBED, **tensors})
        shard = open_file(path)
        assert shard.config is None or json.loads(json.dumps(shard.config, allow_nan=False))
        assert [len(tensor.mapped().reshape(-1)) for tensor in shard.tensors.values()][1:] == [math.prod(shape)] * 5


def test_vocabulary_of_a_file_without_tensors(tmp_path: Path) -> None:
    values = {**BASE, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b", "c"]}
    shard = open_file(write_by_package(tmp_path / "m.gguf", "llama", values, {}))
    assert shard.config is not None
    assert shard.config["vocab_size"] == 3


@pytest.mark.parametrize("original", [8192, 128])
def test_llama_3_rope_is_recognised_in_its_factors(tmp_path: Path, original: int) -> None:
    factor, theta, low, high = 8.0, 500_000.0, 1.0, 4.0
    lengths = 2 * math.pi * theta ** (np.arange(64) / 64)
    smooth = np.clip((original / lengths - low) / (high - low), 0, 1)
    factors = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    config = config_of(tmp_path, "llama", {"rope.freq_base": theta}, {"rope_freqs.weight": factors})
    assert config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }
    odd = {"rope_freqs.weight": np.linspace(1, 9, 64, dtype=np.float32)}
    scaling = config_of(tmp_path, "llama", {"rope.freq_base": theta}, odd)["rope_scaling"]
    assert (scaling["rope_type"], scaling["attention_factor"]) == ("longrope", 1.0)
    assert scaling["long_factor"] == scaling["short_factor"]
    assert np.allclose(scaling["long_factor"], odd["rope_freqs.weight"])


def test_other_scalings(tmp_path: Path) -> None:
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
    expected = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    assert config_of(tmp_path, "qwen2", yarn)["rope_scaling"] == expected
    assert "rope_scaling" not in config_of(tmp_path, "qwen2", {"rope.scaling.type": "none"})
    factors = {f"rope_factors_{which}.weight": np.full(8, n, np.float32) for which, n in (("long", 2), ("short", 1))}
    found = config_of(tmp_path, "phi3", {"rope.scaling.attn_factor": 1.25}, factors)["rope_scaling"]
    assert found["long_factor"] == [2.0] * 8
    assert found["short_factor"] == [1.0] * 8
    assert found["attention_factor"] == 1.25


def test_parts(tmp_path: Path) -> None:
    split = {"split.no": 0, "split.count": 3}
    path = write_by_package(tmp_path / "m.gguf", "llama", {**BASE, **split}, EMBED)
    shard = open_file(path)
    assert shard.part == (0, 3)
    assert shard.config is not None
    assert "tie_word_embeddings" not in shard.config
    for number, count in ((3, 3), (0, 1), (0, 0)):
        values = {"split.no": number, "split.count": count}
        assert open_file(write_by_package(tmp_path / "m.gguf", "llama", values, EMBED)).part is None


def test_names() -> None:
    names = {
        "model.layers.17.self_attn.q_proj.weight": "blk.17.attn_q.weight",
        "model.layers.3.mlp.down_proj.bias": "blk.3.ffn_down.bias",
        "model.embed_tokens.weight": "token_embd.weight",
        "lm_head.weight": "output.weight",
        "model.norm.weight": "output_norm.weight",
        "model.layers.1.block_sparse_moe.experts.w1.weight": "blk.1.ffn_gate_exps.weight",
        "model.layers.1.block_sparse_moe.experts.12.w1.weight": "blk.1.ffn_gate.12.weight",
    }
    others = ["model.layers.18.mlp.down_proj.weight", "x", ""]
    assert gguf_config.hf_names("llama", 18, [*names, *others]) == names
    assert gguf_config.hf_names("bert", 1, ["bert.encoder.layer.0.attention.self.query.bias"]) == {
        "bert.encoder.layer.0.attention.self.query.bias": "blk.0.attn_q.bias"
    }
    assert gguf_config.hf_names("mamba", 2, ["backbone.layers.1.mixer.A_log"]) == {
        "backbone.layers.1.mixer.A_log": "blk.1.ssm_a"
    }
    assert gguf_config.hf_names("unheard-of", 3, names) == {}


@pytest.mark.parametrize("architecture", gguf_config.FAMILIES)
def test_names_are_those_of_the_whole_table(architecture: str) -> None:
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(kind, 3)
    names = [name + ending for name in table.mapping if "{" not in name for ending in (".weight", ".bias")]
    found = gguf_config.hf_names(architecture, 3, names)
    expected = {name: table.get_name(name, try_suffixes=(".weight", ".bias")) for name in names}
    assert {name: found.get(name) for name in names} == expected


# ── tokenizer ──────────────────────────────────────────────────────────────────────────────────────

TEXTS = [
    "",
    " ",
    "  two  spaces ",
    "Once upon a time, there was a little girl named Lily.",
    "naïve café ☕ 日本語 \U0001f600",
    "tabs\tand\nnewlines\r\n\n",
    "▁ is not a space",
    "12345 3.14 don't can't WE'LL",
    "<s> </s> <unk>",
    "\x00\x7f",
]


def tokenizer_of(shard_tokenizer: Any) -> Any:
    import tokenizers

    assert shard_tokenizer is not None
    return tokenizers.Tokenizer.from_str(pickle.loads(pickle.dumps(shard_tokenizer))().decode())


@pytest.fixture(scope="module")
def both_tokenizers() -> tuple[Any, Any]:
    import tokenizers

    from tests.conftest import SHARED

    folder = SHARED / "models"
    if not folder.is_dir():
        pytest.skip("the shared checkpoints are not here")
    mine = tokenizer_of(open_file(folder / "stories260K-formats/gguf/stories260K-F32.gguf").tokenizer)
    return mine, tokenizers.Tokenizer.from_file(str(folder / "stories260K/tokenizer.json"))


@given(text=st.one_of(st.text(), st.text("abcdehilnorstuwy .,ALST\n", max_size=200), st.sampled_from(TEXTS)))
@settings(max_examples=1000, deadline=None)
def test_sentencepiece_as_the_original(both_tokenizers: tuple[Any, Any], text: str) -> None:
    mine, original = both_tokenizers
    for special in (True, False):
        ids = original.encode(text, add_special_tokens=special).ids
        assert mine.encode(text, add_special_tokens=special).ids == ids
        assert mine.decode(ids) == original.decode(ids)
        assert mine.decode(ids, skip_special_tokens=False) == original.decode(ids, skip_special_tokens=False)


def test_the_chat_template_and_the_names_of_tokens(tmp_path: Path) -> None:
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 4,  # there is no such token
        "tokenizer.chat_template": "{{ bos_token }}" + "x" * 2000,
    }
    made = open_file(write_by_package(tmp_path / "m.gguf", "llama", values, {})).tokenizer_config
    assert made is not None
    template = values["tokenizer.chat_template"]
    assert made() == {"chat_template": template, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    model = wk.open(tmp_path / "m.gguf")
    assert model.chat_prompt([]) == "<s>" + "x" * 2000
    assert model.end_ids == {2}


def test_sentencepiece_without_a_prefix(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "a", "b", "▁", "ab", "▁a", "<end>"]
    kinds = [2, 3, 3, *[6] * 256, 1, 1, 1, 1, 1, 4]
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 262 + [-1.0, -2.0, 0.0],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_eos_token": True,
    }
    made = tokenizer_of(open_file(write_by_package(tmp_path / "m.gguf", "llama", values, {})).tokenizer)
    assert made.encode("ab ab<end>").tokens == ["<s>", "ab", "▁", "ab", "<end>", "</s>"]
    assert made.encode(" ä", add_special_tokens=False).tokens == ["▁", "<0xC3>", "<0xA4>"]
    assert made.decode(made.encode(" ab").ids) == " ab"
    pair = made.encode("a", "b").tokens
    assert pair == ["<s>", "a", "</s>", "<s>", "b", "</s>"]


@pytest.fixture(scope="module")
def byte_level() -> Any:
    """A byte-level BPE trained on a few words."""
    import tokenizers

    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    trained.train_from_iterator(["the cat sat on the mat, isn't it? 1234567 99 DON'T   x"] * 3, trainer)
    trained.decoder = tokenizers.decoders.ByteLevel()
    return json.loads(trained.to_str())


def bytes_values(trained: Any, pre: str | None) -> dict[str, Any]:
    vocab = trained["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token == "<|endoftext|>" else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in trained["model"]["merges"]] + ["not there"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
    }
    return values | ({} if pre is None else {"tokenizer.ggml.pre": pre})


@given(text=st.one_of(st.text(), st.sampled_from([*TEXTS, "the cat's mat<|endoftext|> isn't 1234567"])))
@settings(max_examples=300, deadline=None)
def test_bytes_as_gpt_2_cuts_them(tmp_path_factory: pytest.TempPathFactory, byte_level: Any, text: str) -> None:
    import tokenizers

    original = tokenizers.Tokenizer.from_str(json.dumps(byte_level))
    path = tmp_path_factory.mktemp("g") / "m.gguf"
    made = tokenizer_of(open_file(write_by_package(path, "gpt2", bytes_values(byte_level, "gpt-2"), {})).tokenizer)
    assert made.encode(text).ids == original.encode(text).ids
    assert made.decode(made.encode(text).ids) == original.decode(original.encode(text).ids)


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["DON", "'", "T", " 1234567", "  ", " x"]),
        ("llama-bpe", ["DON", "'T", " ", "123", "456", "7", "  ", " x"]),
        ("qwen2", ["DON", "'T", " ", "1", "2", "3", "4", "5", "6", "7", "  ", " x"]),
        ("starcoder", ["DON", "'", "T", " ", "1", "2", "3", "4", "5", "6", "7", "  ", " x"]),
        ("falcon", ["DON", "'", "T", " ", "123", "456", "7", "  ", " x"]),
        ("default", ["DON", "'", "T", " ", "123", "456", "7", "  ", " x"]),
        ("unheard-of", ["DON", "'", "T", " ", "123", "456", "7", "  ", " x"]),
        (None, ["DON", "'", "T", " ", "123", "456", "7", "  ", " x"]),
        ("tekken", ["DON", "'T", " ", "1", "2", "3", "4", "5", "6", "7", "  ", " x"]),
        ("gpt-4o", ["DON'T", " ", "123", "456", "7", "  ", " x"]),
        ("deepseek-v3", ["DON", "'T", " ", "123", "456", "7", "  ", " x"]),
    ],
)
def test_words(tmp_path: Path, byte_level: Any, pre: str | None, expected: list[str]) -> None:
    path = write_by_package(tmp_path / "m.gguf", "gpt2", bytes_values(byte_level, pre), {})
    made = tokenizer_of(open_file(path).tokenizer)
    pieces = made.pre_tokenizer.pre_tokenize_str("DON'T 1234567   x")
    assert ["DON'T 1234567   x"[start:end] for _, (start, end) in pieces] == expected
    begins = made.encode("x").tokens[0] == "<|endoftext|>"
    assert begins is (pre in ("llama-bpe", "tekken"))


def test_no_tokenizer(tmp_path: Path) -> None:
    for values in (
        {},
        {"tokenizer.ggml.model": "rwkv", "tokenizer.ggml.tokens": ["a"]},
        {"tokenizer.ggml.model": "gpt2"},
    ):
        assert open_file(write_by_package(tmp_path / "m.gguf", "llama", values, {})).tokenizer is None


def test_a_tokenizer_that_makes_no_sense_is_made_all_the_same(tmp_path: Path) -> None:
    for model in ("llama", "gpt2"):
        values = {
            "tokenizer.ggml.model": model,
            "tokenizer.ggml.tokens": ["a", "a", "", "b"],
            "tokenizer.ggml.scores": [float("nan")],
            "tokenizer.ggml.token_type": [3, 77],
            "tokenizer.ggml.merges": [" ", "a", "a b"],
            "tokenizer.ggml.bos_token_id": 99,
            "tokenizer.ggml.add_bos_token": True,
        }
        made = open_file(write_by_package(tmp_path / "m.gguf", "llama", values, {})).tokenizer
        assert made is not None
        assert json.loads(made())["model"]["vocab"] == {"a": 0, "": 2, "b": 3}


# ── writing ────────────────────────────────────────────────────────────────────────────────────────


def source(folder: Path, array: Array, name: str = "F32") -> Tensor:
    path = folder / f"{name}{array.shape}.bin"
    path.write_bytes(array.tobytes())
    return Tensor("w", DTYPES[name], array.shape, path, 0)


def test_values_as_the_gguf_package_reads_them(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "general.architecture": "llama",
        "text": "é",
        "yes": True,
        "small": 7,
        "large": 1 << 40,
        "negative": -3,
        "very negative": -(1 << 40),
        "float": 0.5,
        "words": ["a", "", "ß"],
        "numbers": [1, 2, -3],
        "floats": [0.5, -1.0],
        "flags": [True, False],
        "bytes": b"\x00\xff",
        "unsigned": [1, (1 << 32) - 1],
        "wide": [-1, 1 << 62],
    }
    gguf_write.write(tmp_path / "m.gguf", [], values)
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    expected = values | {"bytes": [0, 255]}
    assert {key: fields[key].contents() for key in values} == expected
    kinds = {key: [kind.name for kind in fields[key].types] for key in values}
    assert kinds["small"] == ["UINT32"]
    assert kinds["large"] == ["UINT64"]
    assert kinds["negative"] == ["INT32"]
    assert kinds["float"] == ["FLOAT32"]
    assert kinds["numbers"] == ["ARRAY", "INT32"]
    assert kinds["unsigned"] == ["ARRAY", "UINT32"]
    assert kinds["wide"] == ["ARRAY", "INT64"]
    assert open_file(tmp_path / "m.gguf").metadata["text"] == "é"


@pytest.mark.parametrize("name", gguf_write.writable_types())
def test_tensors_as_the_gguf_package_reads_them(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_write, "BLOCK", 1024)
    numbers = np.random.default_rng(1).normal(0, 20, (7, 768)).astype(np.float32)
    vector = np.arange(5, dtype=np.float32)
    if DTYPES.get(name) and DTYPES[name].kind == "int":
        numbers, vector = np.rint(numbers).clip(-100, 100), np.rint(vector)
    tensors = [("blk.0.w.weight", source(tmp_path, numbers), name), ("v", source(tmp_path, vector), "F32")]
    path = tmp_path / "m.gguf"
    gguf_write.write(path, tensors, {"general.architecture": "llama"})
    first, second = gguf.GGUFReader(path).tensors
    assert (first.name, first.tensor_type.name, first.shape.tolist()) == ("blk.0.w.weight", name, [768, 7])
    kind = gguf.GGMLQuantizationType[name]
    if name in DTYPES:
        expected = DTYPES[name].encode(numbers.astype(np.float64)).view(np.uint8).reshape(7, -1)
        assert first.data.view(np.uint8).reshape(7, -1).tobytes() == expected.tobytes()
    else:
        assert first.data.tobytes() == gguf.quantize(numbers, kind).tobytes()
        assert (
            open_file(path).tensors["blk.0.w.weight"].mapped().tobytes() == gguf.dequantize(first.data, kind).tobytes()
        )
    assert second.data.tolist() == vector.tolist()
    assert all(t.data_offset % 32 == 0 for t in (first, second))
    assert path.stat().st_size % 32 == 0


def test_halves_are_rounded_to_even(tmp_path: Path) -> None:
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11], np.float32)
    path = tmp_path / "m.gguf"
    gguf_write.write(path, [("b", source(tmp_path, values), "BF16"), ("h", source(tmp_path, values), "F16")], {})
    found = open_file(path).tensors
    assert DTYPES["BF16"].decode(found["b"].mapped()).tolist() == [1, 1 + 2**-6, 1, 1]
    assert found["h"].mapped().tolist() == [1 + 2**-8, 1 + 3 * 2**-8, 1, 1 + 2**-9]


def test_what_is_in_the_type_already_is_copied(tmp_path: Path) -> None:
    raw = np.random.default_rng(3).integers(0, 256, (4, 2 * 144), dtype=np.uint8)
    path = tmp_path / "q.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.attention.head_count", 2)
    writer.add_tensor("blk.0.attn_q.weight", raw, raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    opened = open_file(path).tensors["blk.0.attn_q.weight"]
    assert isinstance(opened, Unpermuted)
    gguf_write.write(tmp_path / "copy.gguf", [("q", permuted(opened, 2), "Q4_K")], {})
    assert gguf.GGUFReader(tmp_path / "copy.gguf").tensors[0].data.tobytes() == raw.tobytes()


def test_what_cannot_be_written(tmp_path: Path) -> None:
    plain = source(tmp_path, np.ones((2, 33), np.float32))
    even = source(tmp_path, np.ones((2, 32), np.float32))
    wide = source(tmp_path, np.full((1, 32), 1e6, np.float32))
    broken = source(tmp_path, np.full((3, 32), np.nan, np.float32))
    deep = source(tmp_path, np.ones((1, 1, 1, 1, 2), np.float32))
    path = tmp_path / "m.gguf"
    cases: list[tuple[list[gguf_write.Named], dict[str, Any], type[Exception], str]] = [
        ([("w", plain, "Q8_0")], {}, SaveError, "blocks of 32"),
        ([("w", even, "Q4_K")], {}, SaveError, "cannot be written"),
        ([("w", even, "Q9_9")], {}, SaveError, "cannot be written"),
        ([("w" * 64, even, "F32")], {}, SaveError, "63 bytes"),
        ([("w", deep, "F32")], {}, SaveError, "shape"),
        ([("w", even, "F32")] * 2, {}, SaveError, "one name"),
        ([("w", wide, "F16")], {}, EditError, "w: 1e"),
        ([("w", broken, "Q8_0")], {}, EditError, "NaN"),
        ([], {"k": None}, SaveError, "NoneType"),
        ([], {"k": [1, "a"]}, SaveError, "one type"),
        ([], {"k": 1 << 70}, SaveError, "64 bits"),
        ([], {"general.alignment": 64}, SaveError, "aligned"),
    ]
    for tensors, values, kind, why in cases:
        with pytest.raises(kind, match=why):
            gguf_write.write(path, tensors, values)


def test_types_are_all_of_ggml() -> None:
    assert {dtype.name for dtype in types().values()} == {kind.name for kind in gguf.GGML_QUANT_SIZES}
    for kind, (block, nbytes) in gguf.GGML_QUANT_SIZES.items():
        assert types()[kind].nbytes(7 * block) == 7 * nbytes


# ── the corpus ─────────────────────────────────────────────────────────────────────────────────────


def test_malformed_files(shared: Path) -> None:
    folder = shared / "malformed/gguf"
    wrong = []
    for case in json.loads((folder / "manifest.json").read_text()):
        try:
            for tensor in open_file(folder / case["file"]).tensors.values():
                tensor.read(0, 4)
                tensor.mapped()
            found = "accept"
        except FormatError as error:
            found = "reject" if len(str(error).splitlines()) == 1 else "several lines"
        if case["expected"] not in (found, "either"):
            wrong.append((case["name"], found))
    assert not wrong
