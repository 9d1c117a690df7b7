"""HDF5 and Keras files: what h5py writes is read as h5py reads it, and what is odd or damaged is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.by_hand import NUMPY
from tests.conftest import SHARED
from tests.pickles import bomb
from tests.test_npz import STORABLE, values
from weightkit.dtypes import DTYPES, Array
from weightkit.errors import FormatError, SaveError
from weightkit.formats import hdf5
from weightkit.formats.hdf5 import faults, open_file, write
from weightkit.formats.hdf5_structure import chunked, image
from weightkit.formats.hdf5_structure.chunked import Dataset, boxes
from weightkit.formats.hdf5_structure.filters import fletcher32, undo
from weightkit.formats.shard import UNPACKED_BYTES, VERIFIED_BYTES, ShardFile
from weightkit.tensor import Tensor

VERSIONS = ["earliest", "v108", "v110", "latest"]
# With a version of 1.10 or later each of these makes an index of another kind.
INDEXES: dict[str, dict[str, Any]] = {
    "single": {"shape": (9, 4), "chunks": (9, 4)},
    "single, larger": {"shape": (9, 4), "chunks": (16, 8), "maxshape": (16, 8)},
    "fixed": {"shape": (37, 29), "chunks": (4, 5)},
    "fixed, may grow": {"shape": (10, 9), "chunks": (3, 4), "maxshape": (23, 17)},
    "fixed, in pages": {"shape": (1200, 3), "chunks": (1, 3)},
    "extensible": {"shape": (100, 7), "chunks": (3, 2), "maxshape": (None, 7)},
    "extensible, second axis": {"shape": (7, 100), "chunks": (3, 2), "maxshape": (11, None)},
    "extensible, in blocks of blocks": {"shape": (5, 400), "chunks": (2, 3), "maxshape": (9, None)},
    "tree": {"shape": (100, 30), "chunks": (3, 2), "maxshape": (None, None)},
    "three axes": {"shape": (5, 6, 7), "chunks": (2, 3, 4)},
}
PIPELINES: dict[str, dict[str, Any]] = {
    "as they are": {},
    "gzip": {"compression": "gzip"},
    "gzip + shuffle + fletcher32": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    "lzf": {"compression": "lzf"},
    "lzf + shuffle": {"compression": "lzf", "shuffle": True},
    "fletcher32": {"fletcher32": True},
}


def refused(path: Path) -> str:
    with pytest.raises(FormatError) as error:
        open_file(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def require_as_h5py(path: Path) -> ShardFile:
    """Every number of the file, against h5py."""
    shard = open_file(path)
    found: dict[str, Array] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None and item.dtype.kind in "biufc":
            found[name] = item[()]

    with h5py.File(path) as file:
        file.visititems_links(lambda name, _: visit(name, file[name]))
    assert shard.tensors.keys() == found.keys()
    for name, array in found.items():
        source = shard.tensors[name]
        mapped = source.mapped()
        assert (mapped.shape, source.nbytes) == (array.shape, mapped.nbytes), name
        assert np.array_equal(source.dtype.decode(mapped, array.dtype) if array.dtype.kind != "c" else mapped, array)
        third = array.size // 3
        assert source.read(third, array.size).tobytes() == np.ascontiguousarray(mapped).reshape(-1)[third:].tobytes()
    return shard


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "w.h5"


def made(path: Path, version: str = "earliest") -> Any:
    return h5py.File(path, "w", libver=(version, "latest"))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_index_of_chunks(path: Path, version: str, pipeline: str) -> None:
    random = np.random.default_rng(0)
    with made(path, version) as file:
        for name, options in INDEXES.items():
            data = random.integers(-3, 9, options["shape"]).astype(np.float32)
            file.create_dataset(name, data=data, **{**options, **PIPELINES[pipeline]})
    shard = require_as_h5py(path)
    kinds = {name: type(source) for name, source in shard.tensors.items()}
    assert kinds.pop("single") is (Dataset if PIPELINES[pipeline] else Tensor)  # one chunk, as it is: in one piece
    assert set(kinds.values()) == {Dataset}


def test_indexes_of_many_chunks(path: Path) -> None:
    """Blocks in pages take 65,000 chunks, B-trees of three levels take 5,000; most are never written."""
    with made(path, "latest") as file:
        array = file.create_dataset("extensible", (200_000,), "i1", chunks=(1,), maxshape=(None,), fillvalue=3)
        for start in (0, 243, 70_000, 71_100, 130_000, 199_990):
            array[start : start + 9] = np.arange(9)
        array = file.create_dataset("fixed", (20_000,), "i1", chunks=(1,), fillvalue=4)
        for start in (5_000, 19_995):
            array[start : start + 5] = np.arange(5)
        file.create_dataset("tree", data=np.arange(7000) % 99, chunks=(1,), maxshape=(None,))
        file.create_dataset("deep", data=np.ones((80, 90), "i1"), chunks=(1, 1), maxshape=(None, None))
    require_as_h5py(path)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_type_and_shape(path: Path, version: str) -> None:
    with made(path, version) as file:
        for name in STORABLE:
            if name != "BF16":
                for shape in [(), (0, 4), (3, 4)]:
                    file[f"{name}/{len(shape)}x{0 in shape}"] = values(name, shape)
                kind = np.dtype(NUMPY[name]).newbyteorder(">")
                file.create_dataset(f"{name}/big", data=values(name, (5, 3)).astype(kind), chunks=(2, 2))
                file[f"{name}/flat"] = values(name, (5, 3)).astype(kind)
    shard = require_as_h5py(path)
    assert {name.split("/")[0]: source.dtype.name for name, source in shard.tensors.items()} == {
        name: name for name in STORABLE if name != "BF16"
    }


def test_compact_early_partial_and_never_written(path: Path) -> None:
    with made(path, "v110") as file:
        for name in ("compact", "implicit"):
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            if name == "compact":
                plist.set_layout(h5py.h5d.COMPACT)
            else:
                plist.set_chunk((3, 4))
                plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            space = h5py.h5s.create_simple((10, 9), (10, 9) if name == "compact" else (12, 13))
            array = h5py.h5d.create(file.id, name.encode(), h5py.h5t.IEEE_F32BE, space, plist)
            array.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(90, dtype=np.float32).reshape(10, 9))
        part = file.create_dataset("partial", (50, 50), "f4", chunks=(8, 8), fillvalue=7, compression="gzip")
        part[3:5, 30:44] = 3
        file.create_dataset("never", (50, 50), ">i2", chunks=(8, 8), fillvalue=-5)
        for name, shape in (("one piece", (5, 7)), ("a number", ()), ("the largest", (1 << 18,)), ("nothing", (0, 2))):
            file.create_dataset(name, shape, ">f4", fillvalue=2)
        file.create_dataset("zeros", (5,), "i8")
        grown = file.create_dataset("grown", (4, 4), "f4", chunks=(2, 2), maxshape=(None, 4), data=np.ones((4, 4)))
        grown.resize((9, 4))
        grown[8] = 3
        grown.resize((3, 4))
    shard = require_as_h5py(path)
    assert isinstance(shard.tensors["compact"], Tensor)


@pytest.mark.parametrize("version", VERSIONS)
def test_groups_of_every_form(path: Path, version: str) -> None:
    with made(path, version) as file:
        for index in range(2500):
            file.create_dataset(f"wide/{'n' * (index % 60)}{index}", data=np.int8(index % 100))
        for index in range(40):
            file[f"a/b/{index}/" + "/".join("deeper") + "/w"] = np.float32(index)
        file.create_group("empty")
        file["layers/é/k:0"] = np.ones(2)
        file.attrs["config"] = "x" * 5000
        file["wide"].attrs["more"] = np.zeros(2000)
    assert len(require_as_h5py(path).tensors) == 2541


def test_a_named_type_a_user_block_and_something_before_the_file(path: Path, tmp_path: Path) -> None:
    with h5py.File(path, "w", userblock_size=1024) as file:
        kind = h5py.h5t.IEEE_F32BE.copy()
        kind.commit(file.id, b"type")
        for name in (b"a", b"b"):
            array = h5py.h5d.create(file.id, name, kind, h5py.h5s.create_simple((3,)))
            array.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(3, dtype=np.float32))
        file.create_dataset("c", data=np.arange(9), chunks=(2,))
    assert require_as_h5py(path).tensors.keys() == {"a", "b", "c"}
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["w"] = np.arange(4.0)
    path.write_bytes(bytes(512) + (tmp_path / "plain.h5").read_bytes())
    require_as_h5py(path)


def test_hard_links_are_two_names_of_the_same_data(path: Path) -> None:
    with made(path) as file:
        file["a/w"] = np.arange(3.0)
        file["b"] = file["a/w"]
        file.create_dataset("c", data=np.arange(9), chunks=(2,))
        file["d"] = file["c"]
    tensors: dict[str, Any] = dict(open_file(path).tensors)
    assert tensors["a/w"].offset == tensors["b"].offset
    assert tensors["c"].address == tensors["d"].address
    assert [tensor.name for tensor in tensors.values()] == list(tensors)


def test_groups_in_circles_end(path: Path) -> None:
    with made(path) as file:
        groups = [file.create_group(f"g{i}") for i in range(12)]
        for group in groups:
            for index, other in enumerate(groups):
                group[f"x{index}"] = other
        groups[0]["w"] = np.ones(2)
    assert [name.split("/")[-1] for name in open_file(path).tensors] == ["w"]


def test_what_is_no_number_is_left_out_or_refused(path: Path) -> None:
    with made(path) as file:
        file["w"] = np.ones(2)
        file["text"] = "abc"
        file.create_dataset("texts", data=["a", "b"], dtype=h5py.string_dtype())
        file["fixed"] = np.array([b"ab", b"c"])
        file.create_dataset("ragged", (2,), h5py.vlen_dtype(np.int32))
        file.create_dataset("references", (2,), h5py.ref_dtype)
        file["nothing"] = h5py.Empty("f4")
    assert list(open_file(path).tensors) == ["w"]


def enum(base: Any, *names: str) -> Any:
    return h5py.enum_dtype({name: i for i, name in enumerate(names)}, base)


@pytest.mark.parametrize(
    "kind",
    [
        np.dtype([("a", "f4")]), np.dtype([("r", "f4"), ("i", "f8")]), np.complex128, np.dtype("V3"), np.longdouble,
        np.dtype(("f4", (2,))), enum("i1", "RED", "BLUE"), enum("i4", "FALSE", "TRUE"), enum("i1", "TRUE", "FALSE"),
        np.dtype([("i", "f4"), ("r", "f4")]),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_other_types_are_refused(path: Path, kind: Any, version: str) -> None:
    with made(path, version) as file:
        file.create_dataset("w", (2,), kind)
    assert "dataset 'w': holds" in refused(path)


@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_links_that_lead_away_are_not_followed(path: Path, version: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["w"] = np.ones(2)
    for link in (h5py.SoftLink("/w"), h5py.SoftLink("/nowhere"), h5py.ExternalLink("other.h5", "/w")):
        with made(path, version) as file:
            file["w"] = np.ones(2)
            file["g/away"] = link
        assert "'away' is a" in refused(path)


def test_data_outside_of_the_file_is_not_read(path: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(range(16)))
    with made(path) as file:
        file.create_dataset("w", (4,), "f4", external=[("secret", 0, 16)])
    assert "external storage" in refused(path)
    with made(path, "latest") as file:
        file["base"] = np.ones(4)
        virtual = h5py.VirtualLayout((4,), "f8")
        virtual[:] = h5py.VirtualSource(".", "base", (4,))
        file.create_virtual_dataset("w", virtual)
    assert "virtual" in refused(path)


HUGE: dict[str, dict[str, Any]] = {
    "contiguous": {"shape": (1 << 40,)},
    "of one chunk's size": {"shape": (1 << 22,), "chunks": (1 << 20,)},
    "3 GB": {"shape": (805_306_368,), "chunks": (1 << 20,), "fillvalue": 1},
    "4 TB": {"shape": (1 << 40,), "chunks": (1 << 20,), "compression": "gzip"},
    "4 TB that may grow": {"shape": (1 << 40,), "chunks": (1 << 20,), "maxshape": (None,)},
    "4 TB in two axes that may grow": {
        "shape": (1 << 20, 1 << 20),
        "chunks": (1 << 10, 1 << 10),
        "maxshape": (None, None),
    },
    "chunks of bytes": {"shape": (1 << 40,), "chunks": (1,)},
    "a chunk of 2 GB": {"shape": (1 << 30,), "chunks": (1 << 29,), "compression": "gzip"},
}


@pytest.mark.parametrize("options", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize("version", ["earliest", "latest"])
@pytest.mark.parametrize("written", [False, True])
def test_arrays_of_more_than_is_stored_are_refused(
    path: Path, options: dict[str, Any], version: str, written: bool
) -> None:
    if written and "chunks" not in options:
        pytest.skip("an array in one piece is written as a whole")
    if written and options["chunks"] == (1 << 29,):
        pytest.skip("a chunk of 2 GB takes as much to write")
    with made(path, version) as file:
        array = file.create_dataset("w", dtype="f4", **options)
        if written:
            array[(0,) * array.ndim] = 1
    assert "dataset 'w'" in refused(path)


def test_64_gigabytes_of_holes_open_by_their_header(path: Path) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with made(path) as file:
        h5py.h5d.create(file.id, b"w", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((16 << 30,)), plist)
    source = open_file(path).tensors["w"]
    assert source.nbytes == 64 << 30
    assert source.read((16 << 30) - 2, 16 << 30).tolist() == [0, 0]


def test_fill_values_without_end_are_refused(path: Path) -> None:
    with made(path) as file:
        for index in range(2):
            file.create_dataset(f"piece {index}", (1 << 18,), "f4")
            file.create_dataset(f"chunks {index}", (1 << 18,), "f4", chunks=(1 << 16,))
        first = file["piece 0"]
        for index in range(512):
            file[f"links/{index}"] = first  # one array all the same
    assert len(require_as_h5py(path).tensors) == 516
    with made(path) as file:
        for index in range(2048):
            file.create_dataset(f"w{index}", (1 << 18,), "f4", chunks=(1 << 16,) if index % 2 else None)
    assert "again and again" in refused(path)


@pytest.mark.parametrize(("filter", "name"), [("szip", "szip"), (32001, "32001"), (6, "scaleoffset"), (5, "nbit")])
def test_other_filters_are_refused_by_name(path: Path, filter: Any, name: str) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((4,))
    if filter == "szip":
        plist.set_szip(h5py.h5z.SZIP_NN_OPTION_MASK, 4)
    elif filter == 6:
        plist.set_scaleoffset(h5py.h5z.SO_INT, 0)
    else:
        plist.set_filter(filter, h5py.h5z.FLAG_OPTIONAL, ())
    with made(path) as file:
        array = h5py.h5d.create(file.id, b"w", h5py.h5t.STD_I32LE, h5py.h5s.create_simple((4,)), plist)
        array.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(4, dtype=np.int32))
    assert name in refused(path)


def with_chunk(path: Path, raw: bytes, **options: Any) -> Path:
    """A file whose only chunk, of four float32, has these bytes."""
    with made(path, "latest") as file:
        array = file.create_dataset("w", (4,), "f4", chunks=(4,), **options)
        array.id.write_direct_chunk((0,), raw)
    return path


def test_chunks_that_do_not_unpack_are_refused(path: Path) -> None:
    import zlib

    good = zlib.compress(np.arange(4, dtype=np.float32).tobytes())
    assert open_file(with_chunk(path, good, compression="gzip")).tensors["w"].mapped().tolist() == [0, 1, 2, 3]
    for raw in (b"garbage", good[:-1], good + b"x", zlib.compress(bytes(15)), zlib.compress(bytes(17)), b"\0"):
        assert "chunk" in refused(with_chunk(path, raw, compression="gzip"))
    bomb = zlib.compress(bytes(900_000))
    assert len(bomb) < 1000
    assert "does not end" in refused(with_chunk(path, bomb, compression="gzip"))
    for raw in (b"\x0f", b"\x20\x05", b"\x00a\xe0", b"\x00a\xe0\xff\x00" * 4):
        assert "chunk" in refused(with_chunk(path, raw, compression="lzf"))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 8, 721, 5000, 70_001, 3_000_001])
def test_fletcher32_is_that_of_libhdf5(path: Path, size: int) -> None:
    data = (np.arange(size) * 7 % 256).astype(np.uint8)
    for content in (data, np.full(size, 255, np.uint8), np.zeros(size, np.uint8)):
        if not size:
            assert fletcher32(b"") == 0
            continue
        with made(path) as file:
            array = file.create_dataset("w", data=content, chunks=(size,), fletcher32=True)
            _, raw = array.id.read_direct_chunk((0,))
        assert fletcher32(content.tobytes()) == int.from_bytes(raw[-4:], "little")


@pytest.mark.parametrize("options", [o for n, o in PIPELINES.items() if n != "as they are" and n != "lzf + shuffle"])
def test_a_changed_byte_in_a_chunk_is_found(path: Path, options: dict[str, Any]) -> None:
    with made(path) as file:
        array = file.create_dataset("w", data=np.tile(np.arange(50.0), 40), chunks=(500,), **options)
        info = array.id.get_chunk_info(1)
    assert list(faults(path)) == []
    raw = bytearray(path.read_bytes())
    raw[info.byte_offset + info.size // 2] ^= 4
    path.write_bytes(raw)
    if options == {"compression": "lzf"}:  # has no checksum
        assert list(faults(path)) == []
        return
    assert "chunk" in refused(path)
    assert len(list(faults(path))) == 1


def test_a_large_file_opens_unread_and_its_faults_are_found(path: Path) -> None:
    with made(path) as file:
        file["pad"] = np.zeros(VERIFIED_BYTES, np.uint8)
        array = file.create_dataset("w", data=np.arange(50.0), chunks=(50,), fletcher32=True)
        info = array.id.get_chunk_info(0)
    with open(path, "r+b") as raw:
        raw.seek(info.byte_offset)
        raw.write(b"\1")
    source = open_file(path).tensors["w"]
    (fault,) = faults(path)
    assert "'w'" in fault
    with pytest.raises(FormatError, match=r"'w'.*fletcher32"):
        source.read(0, 1)


def test_every_changed_byte_of_the_newer_structure_is_found(path: Path) -> None:
    """All structure of version 1.8 and later has checksums; they are compared with those of libhdf5 here."""
    with made(path, "latest") as file:
        for index in range(30):
            file.create_group(f"group {index}")
        for name in ("fixed, in pages", "extensible, in blocks of blocks", "tree"):
            file.create_dataset(name, dtype="i1", fillvalue=1, **INDEXES[name])[...] = 2
    raw = path.read_bytes()
    stop, found = len(raw), 0
    random = np.random.default_rng(0)
    for mark in (b"OHDR", b"FRHP", b"FHDB", b"BTHD", b"BTLF", b"FAHD", b"FADB", b"EAHD", b"EAIB", b"EASB", b"EADB"):
        at = raw.find(mark)
        assert 0 < at < stop, mark
        for offset in (5, *random.integers(6, 16, 3)):
            changed = bytearray(raw)
            changed[at + offset] ^= 1 << random.integers(0, 8)
            path.write_bytes(changed)
            refused(path)
            found += 1
    assert found == 44


def test_checksums_of_one_and_of_many_blocks_agree() -> None:
    known = b"Four score and seven years ago"  # the example of lookup3.c
    assert image._lookup3(image._words(known), len(known)) == 0x17770551
    random = np.random.default_rng(0)
    for length in (1, 11, 12, 13, 24, 100):
        bodies = [random.bytes(length) for _ in range(40)]
        blocks = [body + struct.pack("<L", image._lookup3(image._words(body), length)) for body in bodies]
        assert image.sums_match(blocks)
        assert image.sums_match(blocks[:1])
        for broken in (blocks[:1], blocks):
            last = broken[-1]
            assert not image.sums_match([*broken[:-1], bytes([last[0] ^ 1]) + last[1:]])


def small_file(version: str) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w", libver=version) as h5:
        h5["dense/kernel"] = np.ones((3, 4), np.float32)
        h5.create_dataset("g", data=np.arange(40).reshape(8, 5), chunks=(3, 2), compression="gzip", fletcher32=True)
    return file.getvalue()


FILES = {version: small_file(version) for version in ("earliest", "latest")}
FRAMES = {
    "empty": b"",
    "text": b"hello\n" * 99,
    "a signature alone": FILES["earliest"][:8],
    "a signature and zeros": FILES["earliest"][:8] + bytes(5000),
    "an older superblock alone": FILES["earliest"][:96],
    "a newer superblock alone": FILES["latest"][:48],
    "half": FILES["earliest"][: len(FILES["earliest"]) // 2],
    "a byte less": FILES["latest"][:-1],
    "version 4": FILES["latest"][:8] + b"\4" + FILES["latest"][9:],
    "addresses of four bytes": FILES["earliest"][:13] + b"\4" + FILES["earliest"][14:],
    "an end far away": FILES["earliest"][:40] + bytes(7) + b"\x10" + FILES["earliest"][48:],
    "another base": FILES["earliest"][:24] + b"\x08" + FILES["earliest"][25:],
    "no B-tree": FILES["earliest"].replace(b"TREE", b"EERT"),
    "no heap": FILES["earliest"].replace(b"HEAP", b"PAEH"),
    "no names": FILES["earliest"].replace(b"SNOD", b"DONS"),
    "a root that is nowhere": FILES["earliest"][:64] + b"\xff" * 8 + FILES["earliest"][72:],
}


@pytest.mark.parametrize("content", FRAMES.values(), ids=FRAMES)
def test_broken_frames_are_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refused(path)


def grown(path: Path, patches: dict[int, bytes], size: int = 1 << 30) -> Path:
    """The older small file with some bytes changed, and a large hole behind it."""
    path.write_bytes(FILES["earliest"])
    os.truncate(path, size)
    with open(path, "r+b") as file:
        for at, new in {40: size.to_bytes(8, "little"), **patches}.items():
            file.seek(at)
            file.write(new)
    return path


def test_a_heap_of_holes_is_not_read(path: Path) -> None:
    assert open_file(grown(path, {})).tensors.keys() == {"dense/kernel", "g"}
    heap = FILES["earliest"].index(b"HEAP")
    assert "a structure of 104,857,600 bytes" in refused(grown(path, {heap + 8: (100 << 20).to_bytes(8, "little")}))


def test_messages_of_nothing_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header of 4 MB has half a million empty messages, and there may be any number of such headers."""
    monkeypatch.setattr(image, "_MOST_READ_IN_ALL", 8 << 20)
    header = b"\1" + bytes(7) + (2 << 20).to_bytes(4, "little")
    assert "again and again" in refused(grown(path, {64: (1 << 20).to_bytes(8, "little"), 1 << 20: header}))


def test_chunks_of_holes_are_refused(path: Path) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((8,))
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple((8 * (1 << 20) + 8,))
    with made(path, "latest") as file:
        h5py.h5d.create(file.id, b"w", h5py.h5t.STD_U8LE, space, plist)
    assert "1,048,577 chunks; rewrite it" in refused(path)


def test_a_chunk_does_not_lie_where_the_file_begins(path: Path) -> None:
    with made(path) as file:
        place = file.create_dataset("w", data=np.ones(5), chunks=(5,)).id.get_chunk_info(0).byte_offset
    content = path.read_bytes()
    assert content.count(place.to_bytes(8, "little")) == 1
    path.write_bytes(content.replace(place.to_bytes(8, "little"), bytes(8)))
    assert "a chunk of 40 bytes at 0" in refused(path)


def test_checksums_at_opening_take_a_bounded_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = bytearray(FILES["latest"])
    assert wrong.startswith(b"OHDR\2\0", 48)
    wrong[48 + 7 + wrong[48 + 6]] ^= 1  # of the checksum behind the messages
    path.write_bytes(wrong)
    assert "checksum" in refused(path)
    monkeypatch.setattr(hdf5, "_SUMS_AT_OPENING", 10)
    assert open_file(path).tensors.keys() == {"dense/kernel", "g"}
    with pytest.raises(FormatError, match="checksum"):
        list(faults(path))


@settings(max_examples=400, deadline=2000)
@given(data=st.data())
def test_damage_is_an_error_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(FILES[data.draw(st.sampled_from(list(FILES)))])
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content) - 1))
        piece = data.draw(st.binary(min_size=1, max_size=8) | st.just(b"\xff" * 8) | st.just(bytes(8)))
        content[start : start + len(piece)] = piece
    path = tmp_path_factory.getbasetemp() / "damaged.h5"
    path.write_bytes(content)
    try:
        for source in open_file(path).tensors.values():
            source.read(0, min(9, int(np.prod(source.shape))))
    except FormatError as error:
        assert "\n" not in str(error)  # noqa: PT017


@given(
    shape=st.lists(st.integers(1, 5), max_size=4).map(tuple),
    ends=st.tuples(st.integers(0, 700), st.integers(0, 700)),
)
def test_boxes_make_up_a_range(shape: tuple[int, ...], ends: tuple[int, int]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    start, stop = sorted(min(end, array.size) for end in ends)
    parts = [
        array[tuple(slice(i, i + n) for i, n in zip(low, size, strict=True))] for low, size in boxes(shape, start, stop)
    ]
    assert [part.shape for part in parts] == [size for _, size in boxes(shape, start, stop)]
    assert np.array_equal(np.concatenate([np.ravel(p) for p in parts]) if parts else [], range(start, stop))
    assert len(parts) <= max(1, 2 * len(shape))


@pytest.fixture
def dataset(path: Path) -> tuple[Dataset, Array]:
    array = np.random.default_rng(0).standard_normal((900, 700)).astype(np.float32)
    with made(path) as file:
        file.create_dataset("w", data=array, chunks=(100, 90), compression="gzip", shuffle=True)
    source = open_file(path).tensors["w"]
    assert isinstance(source, Dataset)
    return source, array


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_datasets_pickle_and_are_read_side_by_side(dataset: tuple[Dataset, Array], pool: Any) -> None:
    source, array = pickle.loads(pickle.dumps(dataset[0])), dataset[1].ravel()
    starts = list(range(0, array.size, 70_001))
    with pool(3) as executor:
        parts = list(executor.map(source.read, starts, [min(start + 70_001, array.size) for start in starts]))
    assert np.array_equal(np.concatenate(parts), array)


def test_blocks_in_order_unpack_each_chunk_once(
    dataset: tuple[Dataset, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, array = dataset
    unpacked: list[int] = []

    def counted(*arguments: Any) -> bytes:
        unpacked.append(1)
        return undo(*arguments)

    monkeypatch.setattr(chunked, "undo", counted)
    for start in range(0, array.size, 50_000):
        source.read(start, min(start + 50_000, array.size))
    assert len(unpacked) == 9 * 8


def test_what_is_kept_is_bounded(dataset: tuple[Dataset, Array], monkeypatch: pytest.MonkeyPatch) -> None:
    source, array = dataset
    kept = chunked.Kept(100_000)
    monkeypatch.setattr(chunked, "_kept", kept)
    np.testing.assert_array_equal(source.mapped(), array)
    assert 60_000 < kept.total == sum(map(len, kept.chunks.values())) <= 100_000


def test_a_file_that_changes_is_not_read_from_memory(dataset: tuple[Dataset, Array], path: Path) -> None:
    source, array = dataset
    source.read(0, 5)
    with made(path) as file:
        file.create_dataset("w", data=array + 1, chunks=(100, 90), compression="gzip", shuffle=True)
    assert np.array_equal(source.read(0, 5), array.ravel()[:5] + 1)
    with made(path) as file:
        file.create_dataset("w", data=array[:100], chunks=(100, 90), compression="gzip", shuffle=True)
    with pytest.raises(FormatError):
        source.read(0, 5)
    path.write_bytes(b"")
    with pytest.raises(FormatError):
        source.read(0, 5)


def test_optimizer_state_and_bookkeeping_are_set_aside(path: Path) -> None:
    names = {
        "model_weights/dense/dense/kernel:0": False,
        "layers/dense/vars/0": False,
        "layers/optimizer_like/vars/0": False,
        "optimizer_weights/Adam/iterations:0": True,
        "optimizer/vars/0": True,
        "layers/dropout/seed_generator/vars/0": True,
    }
    with made(path) as file:
        for name in names:
            file[name] = np.ones(2)
    shard = open_file(path)
    assert shard.tensors.keys() == names.keys()
    assert shard.aside == {name for name, aside in names.items() if aside}


def keras(folder: Path, method: int = zipfile.ZIP_STORED, weights: bytes | None = FILES["earliest"]) -> Path:
    path = folder / "m.keras"
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("metadata.json", "{}")
        file.writestr("config.json", '{"class_name": "Lambda", "module": "os", "config": "system"}')
        if weights is not None:
            file.writestr("model.weights.h5", weights)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_keras_archives(tmp_path: Path, method: int) -> None:
    path = keras(tmp_path, method)
    shard = open_file(path)
    assert list(faults(path)) == []
    kernel, other = shard.tensors["dense/kernel"], pickle.loads(pickle.dumps(shard.tensors["g"]))
    assert (kernel.path, kernel.mapped().tolist()) == (path, np.ones((3, 4)).tolist())
    assert isinstance(kernel, Tensor) == (method == zipfile.ZIP_STORED)
    assert other.mapped().tolist() == np.arange(40).reshape(8, 5).tolist()
    assert kernel.read(5, 12).tolist() == [1] * 7


def test_keras_archives_that_are_refused(tmp_path: Path) -> None:
    assert "no weights" in refused(keras(tmp_path, weights=None))
    assert "signature" in refused(keras(tmp_path, weights=b"text"))
    large = keras(tmp_path, zipfile.ZIP_DEFLATED, FILES["earliest"] + bytes(VERIFIED_BYTES))
    assert "unpack the archive" in refused(large)
    raw = bytearray(keras(tmp_path).read_bytes())
    raw[raw.index(np.ones(12, np.float32).tobytes())] ^= 1
    (tmp_path / "m.keras").write_bytes(raw)
    assert "CRC" in refused(tmp_path / "m.keras")
    (tmp_path / "m.keras").write_bytes(FILES["latest"])  # Keras 2 wrote HDF5 under any name
    assert list(open_file(tmp_path / "m.keras").tensors) == ["dense/kernel", "g"]


def test_only_what_is_used_of_a_keras_archive_is_unpacked_at_opening(tmp_path: Path) -> None:
    members = {"model.weights.h5": FILES["earliest"], "assets/words.txt": bytes(77_777)}
    path = tmp_path / "m.keras"
    path.write_bytes(bomb(members, "assets/words.txt", UNPACKED_BYTES + 1))
    assert list(open_file(path).tensors) == ["dense/kernel", "g"]
    assert "does not unpack" in "".join(faults(path))


def unwritten_chunk(path: Path, shape: tuple[int, ...], stored: bytes, **options: Any) -> Path:
    """An array of one chunk, which is not what its filters would have made."""
    with made(path) as file:
        array = file.create_dataset("w", (4,), "u1", chunks=shape, maxshape=(None,), **options)
        array.id.write_direct_chunk((0,), stored)
    return path


@pytest.mark.parametrize(
    ("size", "stored", "options"),
    [
        (32 << 20, bytes(9), {"compression": "gzip"}),  # a chunk that takes more memory than opening should
        (2 << 20, bytes(UNPACKED_BYTES // 100), {"compression": "lzf"}),  # which is undone by a loop
    ],
)
def test_chunks_that_take_long_to_unpack_are_not_at_opening(
    path: Path, size: int, stored: bytes, options: dict[str, Any]
) -> None:
    unwritten_chunk(path, (size,), stored, **options)
    assert list(open_file(path).tensors) == ["w"]
    assert len(list(faults(path))) == 1


def test_reading_does_not_import_h5py(path: Path) -> None:
    path.write_bytes(FILES["latest"])
    code = f"""import sys, pathlib
from weightkit.formats import hdf5
hdf5.open_file(pathlib.Path({str(path)!r})).tensors['g'].mapped()
sys.exit('h5py' in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("dtype", STORABLE)
def test_what_is_written_is_read_by_h5py_and_by_us(path: Path, tmp_path: Path, dtype: str) -> None:
    arrays = {f"layers.0.s{len(shape)}": values(dtype, shape) for shape in [(), (0, 2), (3,), (2, 3)]}
    savez: Any = np.savez
    savez(tmp_path / "in.npz", **arrays)
    from weightkit.formats import npz

    write(path, iter(npz.open_file(tmp_path / "in.npz").tensors.items()))
    ours = open_file(path).tensors
    with h5py.File(path) as theirs:
        for name, array in arrays.items():
            place = name.replace(".", "/")
            assert (ours[place].dtype.name, ours[place].shape) == (dtype, array.shape)
            assert ours[place].mapped().tobytes() == array.tobytes()
            assert isinstance(ours[place], Tensor)
            kind = np.float32 if dtype == "BF16" else array.dtype
            assert theirs[place].dtype == kind
            assert np.array_equal(theirs[place][()], array.astype(kind))


def test_writing_goes_in_blocks(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "BLOCK", 7)
    array = np.arange(120).reshape(4, 5, 6)
    with made(tmp_path / "in.h5") as file:
        file.create_dataset("w", data=array, chunks=(3, 2, 4))
    write(path, open_file(tmp_path / "in.h5").tensors.items())
    assert require_as_h5py(path).tensors["w"].mapped().tolist() == array.tolist()


@pytest.mark.parametrize(
    "names",
    [["a", "a"], ["a.b", "a/b"], ["a", "a.b"], ["a.b", "a"], [""], ["a..b"], [".a"], ["a\0"], ["\ud800"], ["x" * 9999]],
    ids=lambda names: ascii(names)[:20],
)
def test_names_that_cannot_be_written(path: Path, tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "raw").write_bytes(bytes(8))
    source = Tensor("w", DTYPES["F32"], (2,), tmp_path / "raw", 0)
    with pytest.raises(SaveError) as error:
        write(path, [(name, source) for name in names])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F4"])
def test_types_that_hdf5_lacks_are_not_written(path: Path, tmp_path: Path, dtype: str) -> None:
    (tmp_path / "raw").write_bytes(bytes(8))
    with pytest.raises(SaveError, match=f"'w' is {dtype}.*cast"):
        write(path, [("w", Tensor("w", DTYPES[dtype], (4,), tmp_path / "raw", 0))])


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="No such file"):
        write(tmp_path / "no" / "w.h5", [])


def test_what_is_not_a_regular_file_is_refused(path: Path) -> None:
    os.mkfifo(path)
    assert "not a regular file" in refused(path)


def test_a_real_model(shared: Path) -> None:
    from safetensors.numpy import load_file

    models = shared / "models"
    ours = open_file(models / "stories260K-formats" / "weights.h5").tensors
    theirs = load_file(models / "stories260K" / "model.safetensors")
    assert {name.replace("/", ".") for name in ours} == theirs.keys()
    for name, source in ours.items():
        assert np.array_equal(source.mapped(), theirs[name.replace("/", ".")])


def test_a_real_keras_model(shared: Path) -> None:
    path = shared / "models" / "raw" / "keras" / "shakespeare.h5"
    shard = require_as_h5py(path)
    model = {name: source for name, source in shard.tensors.items() if name not in shard.aside}
    assert sum(source.nbytes // 4 for source in model.values()) == 94_140
    assert {name.split("/")[1] for name in model} == {"lstm_1", "dense_1"}


def _corpus() -> list[Any]:
    manifest = SHARED / "malformed" / "h5" / "manifest.json"
    if not manifest.is_file():
        return [pytest.param({}, marks=pytest.mark.skip("the shared corpus is not here"))]
    return [pytest.param(case, id=case["name"]) for case in json.loads(manifest.read_text())]


@pytest.mark.parametrize("case", _corpus())
def test_the_corpus(case: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    path = SHARED / "malformed" / "h5" / case["file"]
    try:
        for source in open_file(path).tensors.values():
            source.read(0, min(9, int(np.prod(source.shape))))
        outcome = "accept"
    except FormatError as error:
        outcome = "reject"
        assert "\n" not in str(error)  # noqa: PT017
    assert case["expected"] in (outcome, "either")
    assert capfd.readouterr() == ("", "")
