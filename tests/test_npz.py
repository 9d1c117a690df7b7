"""NumPy's .npy and .npz: what numpy writes is read as numpy reads it, and everything odd is refused."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.by_hand import NUMPY
from tests.conftest import SHARED
from tests.pickles import bomb
from weightkit.dtypes import DTYPES, Array
from weightkit.errors import FormatError, SaveError
from weightkit.formats import npz
from weightkit.formats.npz import Deflated, open_file, write
from weightkit.formats.shard import UNPACKED_BYTES, VERIFIED_BYTES
from weightkit.parallel import MOST_THREADS
from weightkit.tensor import Strided, Tensor

STORABLE = [name for name in NUMPY if not name.startswith("F8")]
Save = Callable[..., None]
SAVES = pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "deflated"])


def values(dtype: str, shape: tuple[int, ...]) -> Array:
    count = int(np.prod(shape))
    return np.asarray((np.arange(count) % 251 - 100).reshape(shape) > 0 if dtype == "BOOL" else np.arange(count)
                      .reshape(shape) % 100).astype(NUMPY[dtype])  # fmt: skip


def header(text: str, version: bytes = b"\1\0", pad: int = 0) -> bytes:
    raw = text.encode() + b" " * pad + b"\n"
    return b"\x93NUMPY" + version + len(raw).to_bytes(2 if version == b"\1\0" else 4, "little") + raw


def described(descr: str = "'<f4'", order: str = "False", shape: str = "(2,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


def archive(folder: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    path = folder / "a.npz"
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def refused(path: Path) -> str:
    with pytest.raises(FormatError) as error:
        open_file(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@SAVES
@pytest.mark.parametrize("dtype", STORABLE)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)], ids=str)
def test_what_numpy_writes(tmp_path: Path, save: Save, dtype: str, shape: tuple[int, ...]) -> None:
    array = values(dtype, shape)
    save(tmp_path / "a.npz", **{"model/w.weight": array, "other": np.zeros(9, np.uint8)})
    source = open_file(tmp_path / "a.npz").tensors["model/w.weight"]
    assert (source.dtype.name, source.shape, source.nbytes) == (dtype, shape, array.nbytes)
    assert source.mapped().shape == shape
    assert source.mapped().tobytes() == source.read(0, array.size).tobytes() == array.tobytes()


@SAVES
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i2", "u4", "i8", "c8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_big_endian_and_fortran_order(tmp_path: Path, save: Save, dtype: str, order: Any) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(f">{dtype}", order=order)
    save(tmp_path / "a.npz", w=array)
    source = pickle.loads(pickle.dumps(open_file(tmp_path / "a.npz").tensors["w"]))
    assert isinstance(source, Strided) == (order == "F")
    assert source.mapped().tolist() == array.tolist()
    assert source.read(5, 17).tolist() == array.ravel()[5:17].tolist()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_a_bare_array_has_the_name_of_its_file(tmp_path: Path, version: tuple[int, int]) -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    with open(tmp_path / "embed.weight.npy", "wb") as file:
        np.lib.format.write_array(file, array, version)
    (source,) = open_file(tmp_path / "embed.weight.npy").tensors.values()
    assert isinstance(source, Tensor)
    assert source.name == "embed.weight"
    assert source.mapped().tolist() == array.tolist()


def test_stored_members_are_mapped_where_they_lie(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.arange(5))
    source = open_file(tmp_path / "a.npz").tensors["w"]
    assert isinstance(source, Tensor)
    assert isinstance(source.mapped().base, np.ndarray)
    assert (tmp_path / "a.npz").read_bytes()[source.offset :][:40] == np.arange(5).tobytes()


@pytest.fixture
def deflated(tmp_path: Path) -> tuple[Deflated, Array]:
    """A compressed array of several pieces."""
    array = np.random.default_rng(0).integers(0, 99, 15_000_000).astype(np.uint8)
    np.savez_compressed(tmp_path / "big.npz", w=array)
    source = open_file(tmp_path / "big.npz").tensors["w"]
    assert isinstance(source, Deflated)
    return source, array


def test_reading_in_order_unpacks_once(deflated: tuple[Deflated, Array], monkeypatch: pytest.MonkeyPatch) -> None:
    source, array = deflated
    started: list[npz._Stream] = []

    class Counted(npz._Stream):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            started.append(self)

    monkeypatch.setattr(npz, "_Stream", Counted)
    step = 700_001
    for start in range(0, array.size, step):
        assert np.array_equal(source.read(start, min(start + step, array.size)), array[start : start + step])
    assert len(started) == 1
    assert np.array_equal(source.read(14_000_000, 14_000_010), array[14_000_000:14_000_010])  # a little back
    assert len(started) == 1
    assert np.array_equal(source.read(3, 9), array[3:9])
    assert len(started) == 2
    assert np.array_equal(source.mapped(), array)


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_blocks_are_right_in_any_order_and_place(deflated: tuple[Deflated, Array], pool: Any) -> None:
    source, array = deflated
    starts = [*range(0, array.size, 1_000_000), 5, 14_999_000, 7_000_000, 0]
    with pool(2) as executor:
        parts = list(executor.map(source.read, starts, [start + 1000 for start in starts]))
    for start, part in zip(starts, parts, strict=True):
        assert np.array_equal(part, array[start : start + 1000])
    assert len(npz._streams) <= MOST_THREADS


def test_a_file_that_changes_is_not_read_from_memory(deflated: tuple[Deflated, Array], tmp_path: Path) -> None:
    source, array = deflated
    source.read(0, 10)
    np.savez_compressed(tmp_path / "big.npz", w=array + 1)
    assert source.read(0, 10).tolist() == (array[:10] + 1).tolist()
    (tmp_path / "big.npz").write_bytes(b"PK")
    with pytest.raises(FormatError, match="changed"):
        source.read(20, 30)


GOOD = {
    "as numpy writes it": described(),
    "without spaces": "{'descr':'<f4','fortran_order':False,'shape':(2,)}",
    "double quotes": '{"descr": "<f4", "fortran_order": False, "shape": (2,)}',
    "quotes of both kinds": """{"descr": '<f4', 'fortran_order': False, "shape": (2,)}""",
    "a space before the bracket": described(shape="(2, )"),
    "spaces where they may be": "{ 'descr' : '<f4' , 'fortran_order' : False , 'shape' : ( 2 , ) , }",
    "a scalar with a space": described("'<f8'", shape="( )"),
    "another order of keys": "{'shape': (2,), 'fortran_order': False, 'descr': '<f4'}",
    "Python 2": described(shape="(2L,)"),
    "bytes of any order": described("'|u1'", shape="(8,)"),
    "a scalar": described("'<f8'", shape="()"),
    "three sizes": described("'<u1'", shape="( 2, 2 , 2 )"),
}
BAD = {
    "two quotes that differ": """{'descr': '<f4", 'fortran_order': False, 'shape': (2,)}""",
    "nothing": "",
    "a list": "[]",
    "a name": "descr",
    "a call": "dict(descr='<f4', fortran_order=False, shape=(2,))",
    "an expression": described(shape="(1+1,)"),
    "a call in it": described(shape="tuple([2])"),
    "nested brackets": "(" * 9000 + ")" * 9000,
    "nested shape": described(shape="((2,),)"),
    "nested lists": described("[" * 5000),
    "no shape": "{'descr': '<f4', 'fortran_order': False}",
    "a key too many": "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 'y'}",
    "a key twice": "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}",
    "text after it": described() + "x",
    "a dict after it": described() + "{}",
    "not closed": described()[:-1],
    "an integer as order": described(order="0"),
    "text as order": described(order="'False'"),
    "None as order": described(order="None"),
    "a number as type": described("4"),
    "a tuple as type": described("('<f4', (2,))"),
    "a negative size": described(shape="(-2,)"),
    "two negative sizes": described(shape="(-2, -1)"),
    "a size with a point": described(shape="(2.0,)"),
    "a size in hexadecimal": described(shape="(0x2,)"),
    "a size with zeros": described(shape="(02,)"),
    "True as a size": described(shape="(True, 2)"),
    "text as shape": described(shape="'2'"),
    "a list as shape": described(shape="[2]"),
    "a number as shape": described(shape="(2)"),
    "a comma alone": described(shape="(,)"),
    "thousands of digits": described(shape=f"({'9' * 3000},)"),
    "65 dimensions": described(shape="(" + "1, " * 64 + "2,)"),
    "a product that overflows": described(shape="(4294967296, 4294967296)"),
    "terabytes": described(shape="(1099511627776,)"),
    "one too few": described(shape="(1,)"),
    "one too many": described(shape="(3,)"),
}
TYPES = {
    "'|O'": "pickle",
    "'O'": "pickle",
    "[('a', '|O')]": "records",
    "[('a', '<f4'), ('b', [('c', '|O')])]": "records",
    "'<U2'": "text",
    "'|S8'": "text",
    "'<U500000000'": "text",
    "'<M8[s]'": "dates",
    "'<m8[s]'": "times",
    "'|V1'": "raw bytes",
    "'<V1'": "raw bytes",
    "'|V8'": "raw bytes",
    "'>V2'": "order",
    "'|f4'": "order",
    "'<f16'": "not one known",
    "'<c16'": "not one known",
    "'=f4'": "not one known",
    "'f4'": "not one known",
    "'<f4,<f4'": "not one known",
    "'<f4\\n'": "header",
    "''": "not one known",
}


@pytest.mark.filterwarnings("ignore:Reading .* created on Python 2")
@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_headers_that_numpy_reads(tmp_path: Path, text: str) -> None:
    raw = header(text) + bytes(8)
    expected = np.lib.format.read_array(io.BytesIO(raw))
    source = open_file(archive(tmp_path, {"w.npy": raw})).tensors["w"]
    assert (source.shape, source.mapped().dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_headers_that_are_refused(tmp_path: Path, text: str) -> None:
    assert "'w'" in refused(archive(tmp_path, {"w.npy": header(text) + bytes(8)}))
    assert "'b'" in refused(bare(tmp_path, header(text) + bytes(8)))


def bare(folder: Path, content: bytes) -> Path:
    (folder / "b.npy").write_bytes(content)
    return folder / "b.npy"


@pytest.mark.parametrize("code", TYPES)
def test_types_that_are_refused_say_what_they_are(tmp_path: Path, code: str) -> None:
    assert TYPES[code] in refused(archive(tmp_path, {"w.npy": header(described(code)) + bytes(8)}))


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    np.savez(tmp_path / "a.npz", w=np.array([Bomb()], dtype=object))
    assert "pickle" in refused(tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()


FRAMES = {
    "empty": b"",
    "text": b"not an array",
    "six bytes": b"\x93NUMPY",
    "version 9": header(described(), b"\x09\0") + bytes(8),
    "version 1.1": header(described(), b"\1\1") + bytes(8),
    "a header past the end": b"\x93NUMPY\1\0\xff\xff" + described().encode() + bytes(8),
    "a header of 4 GB": b"\x93NUMPY\2\0\xff\xff\xff\xff" + described().encode() + bytes(8),
    "a header of 64 kB": header(described(), b"\2\0", 1 << 16) + bytes(8),
    "a header that is not UTF-8": header(described(), b"\3\0").replace(b"descr", b"desc\xff") + bytes(8),
    "bytes at the end": header(described()) + bytes(9),
    "no bytes": header(described()),
}


@pytest.mark.parametrize("content", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_that_are_not_arrays_are_refused(tmp_path: Path, content: bytes, method: int) -> None:
    refused(archive(tmp_path, {"w.npy": content}, method))
    refused(bare(tmp_path, content))


@SAVES
@pytest.mark.parametrize("name", ["../../up", "/etc/x", "a\nb", "\x1b[2J", "[bold]x[/]", "=1+1", "é", "a.b/c"])
def test_any_name_is_just_a_name(tmp_path: Path, name: str, save: Save) -> None:
    save(tmp_path / "a.npz", **{name: np.ones(2)})
    assert list(open_file(tmp_path / "a.npz").tensors) == [name]


def test_names_of_members(tmp_path: Path) -> None:
    one = header(described()) + bytes(8)
    assert list(open_file(archive(tmp_path, {"w": one, "x.npy": one, "y.npy.npy": one})).tensors) == ["w", "x", "y.npy"]
    assert "one name for two" in refused(archive(tmp_path, {"w": one, "w.npy": one}))
    assert "without arrays" in refused(archive(tmp_path, {}))
    assert "not by deflate" in refused(archive(tmp_path, {"w.npy": one}, zipfile.ZIP_BZIP2))


def test_a_member_that_says_more_than_it_can_hold(tmp_path: Path) -> None:
    array = np.zeros(1 << 20)
    np.savez_compressed(tmp_path / "a.npz", w=array)
    raw = (tmp_path / "a.npz").read_bytes()
    more, most = (array.nbytes + 128).to_bytes(4, "little"), (1 << 31).to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(raw.replace(more, most))
    refused(tmp_path / "a.npz")


@SAVES
def test_a_changed_byte_is_found(tmp_path: Path, save: Save) -> None:
    path = tmp_path / "a.npz"
    save(path, w=np.random.default_rng(0).random(400))
    assert list(npz.faults(path)) == []
    raw = bytearray(path.read_bytes())
    raw[1000] ^= 1
    path.write_bytes(raw)
    refused(path)
    assert len(list(npz.faults(path))) == 1


def test_a_small_file_that_unpacks_to_much_opens_unread_and_its_faults_are_found(tmp_path: Path) -> None:
    count = UNPACKED_BYTES + 1
    head = header(described("'|u1'", shape=f"({count},)"))
    path = tmp_path / "a.npz"
    members = {"w.npy": head + np.random.default_rng(0).bytes(count // 1000)}
    path.write_bytes(bomb(members, "w.npy", len(head) + count))
    assert open_file(path).tensors["w"].shape == (count,)
    assert "does not unpack" in "".join(npz.faults(path))


def test_a_large_file_opens_unread_and_its_faults_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, w=np.zeros(VERIFIED_BYTES, np.uint8))
    with open(path, "r+b") as file:
        file.seek(1 << 20)
        file.write(b"\1")
    assert open_file(path).tensors["w"].nbytes == VERIFIED_BYTES
    assert "'w.npy'" in "".join(npz.faults(path))


def test_64_gigabytes_of_holes_open_by_their_header(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    head = header(described("'<f4'", shape=f"({16 << 30},)"))
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + (64 << 30))
    source = open_file(path).tensors["a"]
    assert source.read((16 << 30) - 2, 16 << 30).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", STORABLE)
def test_what_is_written_is_read_by_numpy_and_by_us(tmp_path: Path, dtype: str) -> None:
    arrays = {f"layers.0/{len(shape)}": values(dtype, shape) for shape in [(), (0, 2), (3,), (2, 3)]}
    savez: Any = np.savez
    savez(tmp_path / "in.npz", **arrays)
    write(tmp_path / "out.npz", iter(open_file(tmp_path / "in.npz").tensors.items()))
    ours = open_file(tmp_path / "out.npz").tensors
    with np.load(tmp_path / "out.npz") as theirs:
        assert theirs.files == list(ours) == list(arrays)
        for name, array in arrays.items():
            kind = ml_dtypes.bfloat16 if dtype == "BF16" else theirs[name].dtype
            assert theirs[name].view(kind).dtype == array.dtype
            assert theirs[name].shape == ours[name].shape == array.shape
            assert theirs[name].tobytes() == ours[name].mapped().tobytes() == array.tobytes()


def test_writing_goes_in_blocks_and_the_same_arrays_make_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "in.npz", w=np.arange(100).reshape(5, 20), f=np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    sources = open_file(tmp_path / "in.npz").tensors
    write(tmp_path / "a.npz", sources.items())
    monkeypatch.setattr(npz, "BLOCK", 7)
    write(tmp_path / "b.npz", sources.items())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert open_file(tmp_path / "b.npz").tensors["f"].mapped().tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("names", [["a", "a"], [""], ["a\0"], ["\ud800"], ["x" * 70_000]], ids=lambda n: ascii(n)[:20])
def test_names_that_cannot_be_written(tmp_path: Path, names: list[str]) -> None:
    source = open_file(bare(tmp_path, header(described()) + bytes(8))).tensors["b"]
    with pytest.raises(SaveError) as error:
        write(tmp_path / "out.npz", [(name, source) for name in names])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F4", "F6_E2M3"])
def test_types_that_numpy_lacks_are_not_written(tmp_path: Path, dtype: str) -> None:
    (tmp_path / "raw").write_bytes(bytes(8))
    source = Tensor("w", DTYPES[dtype], (4,), tmp_path / "raw", 0)
    with pytest.raises(SaveError, match=f"'w' is {dtype}.*cast"):
        write(tmp_path / "out.npz", [("w", source)])


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="No such file"):
        write(tmp_path / "no" / "out.npz", [])


@pytest.mark.parametrize("name", ["weights.npz", "weights_compressed.npz"])
def test_a_real_model(shared: Path, name: str) -> None:
    from safetensors.numpy import load_file

    models = shared / "models"
    ours = open_file(models / "stories260K-formats" / name).tensors
    theirs = load_file(models / "stories260K" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for tensor, array in theirs.items():
        assert np.array_equal(ours[tensor].mapped(), array)
        assert np.array_equal(ours[tensor].read(3, array.size), array.ravel()[3:])


def _corpus() -> list[Any]:
    manifest = SHARED / "malformed" / "npz" / "manifest.json"
    if not manifest.is_file():
        return [pytest.param({}, marks=pytest.mark.skip("the shared corpus is not here"))]
    return [pytest.param(case, id=case["name"]) for case in json.loads(manifest.read_text())]


@pytest.mark.parametrize("case", _corpus())
def test_the_corpus(case: dict[str, str]) -> None:
    path = SHARED / "malformed" / "npz" / case["file"]
    try:
        for source in open_file(path).tensors.values():
            source.read(0, min(9, int(np.prod(source.shape))))
        outcome = "accept"
    except FormatError as error:
        outcome = "reject"
        assert "\n" not in str(error)  # noqa: PT017
    assert case["expected"] in (outcome, "either")
