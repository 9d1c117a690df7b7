"""safetensors headers, the good and the bad, each made here by hand."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from weightkit import files
from weightkit.dtypes import DTYPES
from weightkit.errors import FormatError
from weightkit.formats import NOT_READ, open_file
from weightkit.formats.safetensors import TYPES
from weightkit.formats.shard import ShardFile

Header = dict[str, Any] | bytes


def pack(header: Header, data: bytes = b"") -> bytes:
    """The bytes of a file: eight of length, the header, the data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def write(folder: Path, content: bytes) -> Path:
    path = folder / "some.safetensors"
    path.write_bytes(content)
    return path


@contextmanager
def fetched(path: Path, head: bytes, size: int) -> Iterator[list[int]]:
    """A file of `size` bytes, zeros after its head, and how many bytes each read of it takes."""
    taken: list[int] = []

    def fetch(start: int, stop: int) -> bytes:
        taken.append(stop - start)
        return head[start:stop].ljust(stop - start, b"\0")

    files.put_elsewhere(path, size, fetch)
    try:
        yield taken
    finally:
        files.forget(path.parent)


def opened(folder: Path, header: Header, data: bytes = b"") -> ShardFile:
    return open_file(write(folder, pack(header, data)))


ONE = entry()
WHOLE = pack({"w": ONE}, bytes(4))
JSON = json.dumps({"w": ONE}).encode()

# What is wrong with the eight bytes, or with where the file ends.
FRAMES = {
    "nothing": b"",
    "seven bytes": WHOLE[:7],
    "no header": bytes(8),
    "no header, but data": bytes(12),
    "length past the end": (10**6).to_bytes(8, "little") + WHOLE[8:],
    "length 2^64 - 1": b"\xff" * 8 + WHOLE[8:],
    "length 2^63": (1 << 63).to_bytes(8, "little") + WHOLE[8:],
    "length cuts the header": (len(JSON) - 8).to_bytes(8, "little") + WHOLE[8:],
    "length takes a byte of data": (len(JSON) + 1).to_bytes(8, "little") + WHOLE[8:],
    "length of the other endianness": len(JSON).to_bytes(8, "big") + WHOLE[8:],
    "ends in the header": WHOLE[:30],
    "ends a byte early": WHOLE[:-1],
    "goes on after the data": WHOLE + b"\0",
    "a zip goes on after the data": WHOLE + b"PK\5\6" + bytes(18),
}
# Headers that are not one JSON object in UTF-8.
TEXTS = {
    "a byte order mark": b"\xef\xbb\xbf" + JSON,
    "UTF-16": JSON.decode().encode("utf-16-le"),
    "not UTF-8": JSON.replace(b'"w"', b'"\xff"'),
    "an overlong slash": JSON.replace(b'"w"', b'"\xc0\xaf"'),
    "half a surrogate pair": JSON.replace(b'"w"', b'"\\ud800"'),
    "a space before": b" " + JSON,
    "NUL after": JSON + b"\0",
    "garbage after": JSON + b"x",
    "another object after": JSON + b"{}",
    "an array": b"[1]",
    "null": b"null",
    "a string": b'"w"',
    "not JSON": b"{w}",
    "a comma too many": JSON[:-1] + b",}",
    "NaN": JSON.replace(b'"dtype"', b'"more": NaN, "dtype"'),
    "Infinity": JSON.replace(b'"dtype"', b'"more": [-Infinity], "dtype"'),
    "nested deeply": b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a raw newline in a name": JSON.replace(b'"w"', b'"\n"'),
    "a tensor twice": b"{" + JSON[1:-1] + b", " + JSON[1:],
    "metadata twice": b'{"__metadata__": {}, "__metadata__": {}, ' + JSON[1:],
    "a field twice": JSON.replace(b'"dtype"', b'"dtype": "F32", "dtype"'),
    "thousands of digits": JSON.replace(b"[1]", b"[" + b"9" * 5000 + b"]"),
}
# Entries of the tensor `w` that contradict themselves or the four bytes of data.
ENTRIES: dict[str, Any] = {
    "a list": [1],
    "null": None,
    "no dtype": {"shape": [1], "data_offsets": [0, 4]},
    "no shape": {"dtype": "F32", "data_offsets": [0, 4]},
    "no offsets": {"dtype": "F32", "shape": [1]},
    "an unknown dtype": entry("F33"),
    "a dtype in lower case": entry("f32"),
    "a dtype that is a number": entry(32),
    "a dtype that is a list": entry(["F32"]),
    "a shape that is null": entry(shape=None),
    "a shape that is a number": entry(shape=1),
    "a shape that is a string": entry(shape="1"),
    "a negative size": entry(shape=[-1]),
    "negative sizes whose product fits": entry(shape=[-1, -1]),
    "a size with a fraction": entry(shape=[1.0]),
    "a size in quotes": entry(shape=["1"]),
    "true as a size": entry(shape=[True]),
    "sizes whose product overflows to 0": entry("U8", [1 << 32, 1 << 32], [0, 0]),
    "sizes whose bytes overflow to 0": entry("F64", [1 << 61], [0, 0]),
    "sizes without bound beside a 0": entry("U8", [1 << 62, 1 << 62, 0], [0, 0]),
    "a size of 2^64 - 1": entry(shape=[(1 << 64) - 1]),
    "a size of 400 digits": entry(shape=[10**400]),
    "65 dimensions": entry(shape=[1] * 65),
    "half a byte": entry("F4", [1], [0, 1]),
    "a quarter of three bytes": entry("F6_E2M3", [2], [0, 1]),
    "a negative offset": entry(offsets=[-4, 0]),
    "offsets the wrong way round": entry(offsets=[4, 0]),
    "an end past the data": entry(shape=[2], offsets=[0, 8]),
    "all past the data": entry(offsets=[4, 8]),
    "an offset of 2^64 - 1": entry(offsets=[0, (1 << 64) - 1]),
    "offsets near 2^64": entry(offsets=[(1 << 64) - 5, (1 << 64) - 1]),
    "offsets with fractions": entry(offsets=[0.0, 4.0]),
    "offsets in quotes": entry(offsets=["0", "4"]),
    "three offsets": entry(offsets=[0, 2, 4]),
    "one offset": entry(offsets=[4]),
    "fewer bytes than the shape": entry(shape=[1], offsets=[0, 3]),
    "more bytes than the shape": entry("U8", [3], [0, 4]),
}
# Headers whose tensors do not fill the eight bytes of data exactly once.
GAPS: dict[str, Any] = {
    "a gap before": {"w": entry(offsets=[4, 8])},
    "a gap between": {"a": entry("U8", [2], [0, 2]), "w": entry("U8", [5], [3, 8])},
    "a gap after": {"w": entry(offsets=[0, 4])},
    "no tensor": {},
    "overlap": {"a": entry("U8", [5], [0, 5]), "w": entry("U8", [4], [4, 8])},
    "the same bytes twice": {"a": entry(shape=[2], offsets=[0, 8]), "w": entry(shape=[2], offsets=[0, 8])},
    "the same bytes 2,000 times": {str(i): entry(shape=[2], offsets=[0, 8]) for i in range(2000)},
    "nothing, inside another": {"a": entry(shape=[2], offsets=[0, 8]), "w": entry(shape=[0], offsets=[4, 4])},
}
METADATA: dict[str, Any] = {"a list": ["pt"], "a number": {"a": 1}, "an object": {"a": {}}, "a string": "pt"}


def refused(path: Path) -> str:
    with pytest.raises(FormatError) as error:
        open_file(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("content", FRAMES.values(), ids=FRAMES)
def test_broken_frames_are_refused(tmp_path: Path, content: bytes) -> None:
    refused(write(tmp_path, content))


@pytest.mark.parametrize("header", TEXTS.values(), ids=TEXTS)
def test_headers_that_are_not_strict_json_are_refused(tmp_path: Path, header: bytes) -> None:
    refused(write(tmp_path, pack(header, bytes(4))))


def test_a_header_of_zeros_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with fetched(tmp_path / "some.safetensors", (90 << 20).to_bytes(8, "little"), 64 << 30) as taken:
        assert "does not begin with" in refused(tmp_path / "some.safetensors")
        assert sum(taken) < 1 << 20


@pytest.mark.parametrize("value", ENTRIES.values(), ids=ENTRIES)
def test_contradictory_entries_are_refused_by_tensor_name(tmp_path: Path, value: Any) -> None:
    assert "'w'" in refused(write(tmp_path, pack({"w": value}, bytes(4))))


@pytest.mark.parametrize("header", GAPS.values(), ids=GAPS)
def test_bytes_of_no_tensor_or_of_two_are_refused(tmp_path: Path, header: dict[str, Any]) -> None:
    refused(write(tmp_path, pack(header, bytes(8))))


@pytest.mark.parametrize("value", METADATA.values(), ids=METADATA)
def test_metadata_that_does_not_map_strings_to_strings_is_refused(tmp_path: Path, value: Any) -> None:
    assert "__metadata__" in refused(write(tmp_path, pack({"__metadata__": value, "w": ONE}, bytes(4))))


def test_a_huge_header_is_refused_unread(tmp_path: Path) -> None:
    path = write(tmp_path, ((100 << 20) + 1).to_bytes(8, "little") + b"{")
    os.truncate(path, 1 << 30)
    assert "100 MB" in refused(path)


@pytest.mark.parametrize("dtype", TYPES)
def test_every_dtype_opens(tmp_path: Path, dtype: str) -> None:
    nbytes = 4 * DTYPES[dtype].bits // 8
    tensor = opened(tmp_path, {"w": entry(dtype, [4], [0, nbytes])}, bytes(nbytes)).tensors["w"]
    assert (tensor.dtype.name, tensor.shape, tensor.nbytes) == (dtype, (4,), nbytes)


@pytest.mark.parametrize(
    "name", ["", "../../up", "/etc/x", "a\0b", "a\nb", "\x1b[2J", "[bold]x[/]", "[/nope]", "=1+1", "é"]
)
def test_any_name_is_just_a_name(tmp_path: Path, name: str) -> None:
    assert list(opened(tmp_path, {name: ONE}, bytes(4)).tensors) == [name]


@pytest.mark.parametrize("shape", [[], [1], [1] * 64])
def test_scalars_and_many_dimensions(tmp_path: Path, shape: list[int]) -> None:
    tensor = opened(tmp_path, {"w": entry(shape=shape)}, np.float32(7).tobytes()).tensors["w"]
    assert tensor.mapped().shape == tuple(shape)
    assert tensor.mapped().item() == 7


def test_a_file_without_tensors_is_a_file(tmp_path: Path) -> None:
    shard = opened(tmp_path, {})
    assert (shard.tensors, shard.metadata, shard.name) == ({}, {}, "some.safetensors")


def test_metadata_and_the_order_of_the_header_are_kept(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "last": entry("U8", [1], [1, 2]),
        "empty": entry("F64", [3, 0], [1, 1]),
        "first": entry("U8", [1], [0, 1]),
    }
    shard = opened(tmp_path, header, b"\1\2")
    assert shard.metadata == {"format": "pt"}
    assert {name: t.mapped().tolist() for name, t in shard.tensors.items()} == {
        "last": [2],
        "empty": [[], [], []],
        "first": [1],
    }
    assert list(shard.tensors) == ["last", "empty", "first"]


@pytest.mark.parametrize("padding", range(9))
def test_unaligned_data_is_read_right(tmp_path: Path, padding: int) -> None:
    values = np.array([1.5, -2, 3], np.float32)
    shard = opened(
        tmp_path, json.dumps({"w": entry(shape=[3], offsets=[0, 12])}).encode() + b" " * padding, values.tobytes()
    )
    assert shard.tensors["w"].mapped().tolist() == values.tolist()
    assert shard.tensors["w"].read(1, 3).tolist() == values[1:].tolist()


ARRAYS: dict[str, NDArray[Any]] = {
    "F64": np.linspace(-1, 1, 6).reshape(2, 3),
    "F32": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2),
    "F16": np.linspace(-1, 1, 5).astype(np.float16),
    "BF16": np.linspace(-1, 1, 7).astype(ml_dtypes.bfloat16),
    "BOOL": np.array([[True, False, True]]),
    **{f"{kind}{bits}": np.arange(3).astype(f"{kind.lower()}{bits // 8}") for kind in "IU" for bits in (8, 16, 32, 64)},
}


@pytest.mark.parametrize("dtype", ARRAYS)
def test_what_the_safetensors_package_writes_is_mapped_without_a_copy(tmp_path: Path, dtype: str) -> None:
    from safetensors.numpy import save_file

    array = ARRAYS[dtype]
    save_file({"w": array, "x": np.zeros(3, np.uint8)}, tmp_path / "m.safetensors")
    tensor = open_file(tmp_path / "m.safetensors").tensors["w"]
    mapped = tensor.mapped()
    assert (tensor.dtype.name, mapped.shape) == (dtype, array.shape)
    assert mapped.tobytes() == tensor.read(0, array.size).tobytes() == array.tobytes()
    assert tensor.dtype.decode(mapped, np.float64).tolist() == array.astype(np.float64).tolist()
    assert any(isinstance(base, np.memmap) for base in _bases(mapped))
    assert np.shares_memory(mapped, tensor.mapped())


def _bases(array: Any) -> Iterator[Any]:
    while array is not None:
        yield array
        array = getattr(array, "base", None)


def test_64_gigabytes_of_holes_open_by_their_header(tmp_path: Path) -> None:
    size = 64 << 30
    path = write(tmp_path, pack({"w": entry(shape=[16, size // 64], offsets=[0, size])}))
    os.truncate(path, path.stat().st_size + size)
    tensor = open_file(path).tensors["w"]
    assert tensor.nbytes == size
    assert tensor.read(size // 4 - 3, size // 4).tolist() == [0, 0, 0]


@contextmanager
def at_once(seconds: int = 5) -> Iterator[None]:
    """Fail, rather than wait for ever, when what is inside blocks."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"still waiting after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")], ids=str)
def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "m.safetensors"
    make(path)
    with at_once():
        assert "not a regular file" in refused(path)


@pytest.mark.parametrize("name", ["no.safetensors", "a\0b.safetensors", "x" * 300 + ".safetensors"])
def test_a_path_that_cannot_be_opened_is_an_error(tmp_path: Path, name: str) -> None:
    refused(tmp_path / name)


@pytest.mark.parametrize("suffix", NOT_READ)
def test_other_formats_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"m{suffix}").write_bytes(WHOLE)
    assert "cannot be read" in refused(tmp_path / f"m{suffix}")
