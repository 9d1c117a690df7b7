"""PyTorch checkpoints: the good, the bad and those that would run something, most of them made here by hand."""

from __future__ import annotations

import gc
import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.conftest import SHARED
from tests.pickles import (
    FOUR,
    HOOKS,
    archive,
    bomb,
    call,
    group,
    legacy,
    mapping,
    name,
    number,
    pickled,
    storage,
    tensor,
    text,
    write,
    zipped,
)
from weightkit.errors import FormatError
from weightkit.formats import safetensors
from weightkit.formats.shard import UNPACKED_BYTES, VERIFIED_BYTES, ShardFile
from weightkit.formats.torch_names import NAMES
from weightkit.formats.torch_pickle import faults, open_file
from weightkit.formats.unpickle import load
from weightkit.formats.unpickle.values import PickleError
from weightkit.tensor import Strided, Tensor

LAYOUTS: list[Callable[[bytes], bytes]] = [archive, legacy]


def opened(folder: Path, content: bytes) -> ShardFile:
    return open_file(write(folder, content))


def refusal(folder: Path, content: bytes) -> str:
    path = write(folder, content)
    with pytest.raises(FormatError) as raised:
        values(open_file(path))
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    return message.removeprefix(f"{path}: ")


def values(shard: ShardFile) -> dict[str, NDArray[Any]]:
    result = {}
    for key, source in shard.tensors.items():
        mapped = source.mapped()
        assert mapped.shape == source.shape
        np.testing.assert_array_equal(source.read(0, mapped.size), mapped.reshape(-1))
        result[key] = mapped
    return result


# What the layouts hold.


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tensor_is_mapped_where_it_lies(layout: Callable[[bytes], bytes], tmp_path: Path) -> None:
    content = layout(mapping({"w": tensor((2, 2), (2, 1))}))
    source = opened(tmp_path, content).tensors["w"]
    assert isinstance(source, Tensor)
    assert content[source.offset : source.offset + source.nbytes] == FOUR
    assert source.dtype.name == "F32"
    assert source.mapped().tolist() == [[1, 2], [3, 4]]


VIEWS = {
    "transposed": (tensor((2, 2), (1, 2)), [[1, 3], [2, 4]]),
    "a column": (tensor((2,), (2,), 1), [2, 4]),
    "a row": (tensor((2,), (1,), 2), [3, 4]),
    "one number": (tensor((), (), 3), 4),
    "nothing": (tensor((0, 3), (3, 1)), []),
    "nothing at the end": (tensor((0,), (1,), 4), []),
    "overlapping rows": (tensor((3, 2), (1, 1)), [[1, 2], [2, 3], [3, 4]]),
    "the same row again": (tensor((3, 2), (0, 1)), [[1, 2]] * 3),
    "a single row, odd strides": (tensor((1, 4), (99, 1)), [[1, 2, 3, 4]]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("body", "wanted"), VIEWS.values(), ids=VIEWS)
def test_views(layout: Callable[[bytes], bytes], body: bytes, wanted: Any, tmp_path: Path) -> None:
    assert values(opened(tmp_path, layout(body)))["tensor"].tolist() == wanted


def test_only_what_is_strided_is_a_strided_view(tmp_path: Path) -> None:
    body = mapping({"row": tensor((1, 2), (7, 1), 2), "column": tensor((2, 1), (2, 1), 1)})
    row, column = opened(tmp_path, archive(body)).tensors.values()
    assert isinstance(row, Tensor)
    assert isinstance(column, Strided)
    assert column.base.shape == (3,)  # not all of the storage


OUTSIDE = {
    "size": tensor((5,), (1,)),
    "offset": tensor((4,), (1,), 1),
    "offset alone": tensor((0,), (1,), 5),
    "stride": tensor((2,), (4,)),
    "negative size": tensor((-1,), (1,)),
    "negative stride": tensor((2,), (-1,), 3),
    "negative offset": tensor((1,), (1,), -1),
    "two sizes, one stride": tensor((2, 2), (1,)),
    "a size of 2^64": tensor((1 << 64,), (0,)),
    "more than 2^64 elements": tensor((1 << 40, 1 << 40), (0, 0)),
    "repeated too often": tensor((1 << 21,), (0,)),
    "65 dimensions": tensor((1,) * 65, (1,) * 65),
    "a flag for a size": call(
        "torch._utils", "_rebuild_tensor_v2", storage(), number(0), group(b"\x88"), group(number(1)), b"\x89", HOOKS
    ),
    "text for an offset": call(
        "torch._utils", "_rebuild_tensor_v2", storage(), text("0"), group(number(1)), group(number(1)), b"\x89", HOOKS
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("body", OUTSIDE.values(), ids=OUTSIDE)
def test_views_that_leave_their_storage_are_refused(
    layout: Callable[[bytes], bytes], body: bytes, tmp_path: Path
) -> None:
    assert "'w'" in refusal(tmp_path, layout(mapping({"w": body})))


def test_a_file_is_not_seen_over_and_over(tmp_path: Path) -> None:
    repeated = {f"w{i}": tensor((1 << 20,), (0,)) for i in range(256)}  # of 4 MB, which one alone may be
    assert len(opened(tmp_path, archive(mapping(repeated))).tensors) == 256
    assert "far more than its" in refusal(tmp_path, archive(mapping(repeated | {"w": tensor((1 << 20,), (0,))})))


@pytest.mark.parametrize(("order", "read"), [(b"big", ">f4"), (b"little", "<f4"), (None, "<f4")])
def test_byte_order(order: bytes | None, read: str, tmp_path: Path) -> None:
    raw = np.array([1, 2, 3, 4], read).tobytes()
    body = mapping({"w": tensor(), "t": tensor((2, 2), (1, 2))})
    records = {} if order is None else {"byteorder": order}
    shard = opened(tmp_path, archive(body, {"0": raw}, **records))
    assert {key: array.tolist() for key, array in values(shard).items()} == {"w": [1, 2, 3, 4], "t": [[1, 3], [2, 4]]}


def test_parts_of_a_storage_in_the_old_layout(tmp_path: Path) -> None:
    part = storage("0", "FloatStorage", 4, group(text("1"), number(1), number(2)))
    whole = storage("0", "FloatStorage", 4, b"N")
    shard = opened(tmp_path, legacy(mapping({"w": tensor((2,), (1,), 0, part), "all": tensor(base=whole)})))
    assert {key: array.tolist() for key, array in values(shard).items()} == {"w": [2, 3], "all": [1, 2, 3, 4]}
    for view in (group(text("1"), number(3), number(2)), group(text("1"), number(-1), number(2)), group(), number(1)):
        bad = tensor((2,), (1,), 0, storage("0", "FloatStorage", 4, view))
        assert "a view of storage '0'" in refusal(tmp_path, legacy(mapping({"w": bad})))


def test_a_long_pickle_in_the_old_layout(tmp_path: Path) -> None:
    body = mapping({f"w{i}": tensor(base=storage("0", "FloatStorage", 4, b"N")) for i in range(9000)})
    assert len(body) > 1 << 20
    assert len(opened(tmp_path, legacy(body)).tensors) == 9000
    assert "cut short" in refusal(tmp_path, legacy(body)[: len(body) - 100])


STORAGES = {
    "missing": ({}, "no storage '0'"),
    "short": ({"0": FOUR[:-1]}, "takes 16 bytes, the file has 15"),
}


@pytest.mark.parametrize(("storages", "message"), STORAGES.values(), ids=STORAGES)
def test_storages_that_are_not_there(storages: dict[str, bytes], message: str, tmp_path: Path) -> None:
    assert message in refusal(tmp_path, archive(mapping({"w": tensor()}), storages))


OLD = {
    "missing": {},
    "cut short": {"0": (4, FOUR[:-1])},
    "too long": {"0": (4, FOUR + b"\0")},
    "another number": {"0": (5, FOUR)},
    "2^62 elements": {"0": (1 << 62, FOUR)},
    "one that no tensor has": {"0": (4, FOUR), "1": (1, b"1234")},
}


@pytest.mark.parametrize("storages", OLD.values(), ids=OLD)
def test_storages_of_the_old_layout(storages: dict[str, tuple[int, bytes]], tmp_path: Path) -> None:
    refusal(tmp_path, legacy(mapping({"w": tensor()}), storages))


IDS = {
    "a path": storage("../0"),
    "an absolute path": storage("/etc/passwd"),
    "a backslash": storage("..\\0"),
    "dots": storage(".."),
    "nothing": storage(""),
    "a negative size": storage(size=-1),
    "2^62 elements": storage(size=1 << 62),
    "an unknown type": storage(kind="EvilStorage"),
    "a function as type": storage(kind="Size"),
    "too short": group(text("storage"), name("torch", "FloatStorage"), text("0")) + b"Q",
    "empty": b")Q",
    "not a tuple": text("storage") + b"Q",
    "a number as key": group(text("storage"), name("torch", "FloatStorage"), number(0), text(""), number(4)) + b"Q",
    "a module": group(text("module"), name("some", "Net"), b"N", b"N") + b"Q",
}


@pytest.mark.parametrize("base", IDS.values(), ids=IDS)
def test_persistent_ids(base: bytes, tmp_path: Path) -> None:
    refusal(tmp_path, archive(mapping({"w": tensor(base=base)})))


# What the pickle may do.

EVIL = {
    "os.system": call("os", "system", text("echo")),
    "__builtin__.eval": call("__builtin__", "eval", text("1")),
    "torch.load": call("torch", "load", text("x")),
    "torch.FloatTensor": call("torch", "FloatTensor", number(1 << 30)),
    "torch._utils._rebuild_sparse_tensor": call("torch._utils", "_rebuild_sparse_tensor", b"N", b"N"),
    "torch.os.system": call("torch", "os.system", text("echo")),
    "builtins.getattr": call("builtins", "getattr", name("os", "system"), text("x")),
    "some.function": call("some", "function"),
    "os.mkdir": b"(" + text("x") + b"ios\nmkdir\n",
    "os.rmdir": b"(" + name("os", "rmdir") + text("x") + b"o",
    "os.unlink": name("os", "unlink") + b")\x81",
    "subprocess.Popen": name("subprocess", "Popen") + b")\x81",
    "os.remove": text("os") + text("remove") + b"\x93" + group(text("x")) + b"R",
    "os.fork": call("torch._tensor", "_rebuild_from_type_v2", name("os", "fork"), b"N", b")", b"N"),
    "os.abort": call("copyreg", "_reconstructor", name("os", "abort"), name("builtins", "object"), b"N"),
    "os.wait": name("os", "wait"),  # not called, but what for?
    "posix.kill": mapping({"x": name("posix", "kill")}),
}


@pytest.mark.parametrize("layout", [*LAYOUTS, pickled])
@pytest.mark.parametrize("named", EVIL)
def test_a_pickle_that_would_run_something_is_refused_by_name(
    named: str, layout: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    assert named in refusal(tmp_path, layout(mapping({"w": EVIL[named]})))


@pytest.mark.parametrize(
    "body",
    [
        number(7) + b")R",
        b"}" + mapping({"__setstate__": b"N"}) + b"b",
        call("builtins", "bytearray", number(1 << 40)),
        call("builtins", "list", number(1)),
        call("collections", "OrderedDict", number(1)),
        call("torch", "Size", text("44")),
        call("torch._utils", "_rebuild_tensor_v2", storage()),
        call("torch._utils", "_rebuild_tensor_v2", *[b"N"] * 9),
        call("torch._utils", "_rebuild_tensor_v2", number(1), *[b"N"] * 5),
        tensor() + text("x") + b"Ns",
        tensor() + b"}b",
        b"](" + text("x") + b"u",
        b"}Na",
        b"0",
        b"t",
        b"h\0",
        b"j\0\0\0\1",
        b"(",
        b"NN",
        b"Pstorage\n",
        b"\x82\1",
        b"\x97",
        b"X\xff\xff\xff\xffx",
        b"\x8d" + (1 << 62).to_bytes(8, "little") + b"x",
        b"X\1\0\0\0\xff",
        b"X\3\0\0\0\xed\xa0\x80",
        b"\x8b\0\0\1\0" + bytes(1 << 16),
        b"I" + b"9" * 900 + b"x\n",
        b"c" + b"a" * 5000,
        b"\xff",
    ],
)
def test_a_damaged_pickle_is_refused(body: bytes, tmp_path: Path) -> None:
    refusal(tmp_path, archive(body))


def test_a_lazily_conjugated_tensor_is_refused(tmp_path: Path) -> None:
    arguments = storage(), number(0), group(number(4)), group(number(1)), b"\x89", HOOKS
    conjugated = call("torch._utils", "_rebuild_tensor_v2", *arguments, mapping({"conj": b"\x88"}))
    assert "resolve_conj" in refusal(tmp_path, archive(mapping({"w": conjugated})))


MODULES = {
    "of torch": name("torch.nn.modules.linear", "Linear") + b")\x81",
    "of somebody": name("__main__", "Net")
    + b")\x81"
    + mapping({"_parameters": b"}", "_buffers": b"}", "_modules": b"}"})
    + b"b",
}


@pytest.mark.parametrize("body", MODULES.values(), ids=MODULES)
def test_a_whole_module_is_refused_with_advice(body: bytes, tmp_path: Path) -> None:
    message = refusal(tmp_path, archive(mapping({"model": body, "w": tensor()})))
    assert "state_dict()" in message
    assert "Net" in message or "Linear" in message


FOREIGN = {
    "argparse": name("argparse", "Namespace") + b")\x81" + mapping({"lr": number(1)}) + b"b",
    "a class": name("some.config", "Config") + b")\x81" + mapping({"lr": number(1)}) + b"b",
    "slots": name("some.config", "Config") + b")\x81" + group(b"N", mapping({"lr": number(1)})) + b"b",
    "a dict of a class": name("some.config", "Config") + b")\x81" + text("a") + b"Ns",
    "a list of a class": name("some.config", "Config") + b")\x81Na",
    "an old class": call("copyreg", "_reconstructor", name("some", "Old"), name("builtins", "object"), b"N"),
    "a class as a value": name("some.callbacks", "Callback"),
    "a device": call("torch", "device", text("cuda"), number(0)),
    "a size": call("torch", "Size", group(number(1))),
    "a set": call("builtins", "set", b"](" + number(1) + b"e"),
    "a numpy scalar": call(
        "numpy.core.multiarray",
        "scalar",
        call("numpy", "dtype", text("f8"), b"\x89", b"\x88") + group(number(3), text("<")) + b"b",
        call("_codecs", "encode", text("12345678"), text("latin1")),
    ),
    "a path": call("pathlib", "PosixPath", text("/"), text("etc")),
    "a path of Windows": call("pathlib", "WindowsPath", text("C:")),
    "a path of Python 3.13": call("pathlib._local", "PosixPath", text("a")),
    "a random state of an old numpy": call("numpy.random", "__RandomState_ctor", text("MT19937")) + b"}b",
    "a default dict": call("collections", "defaultdict", name("builtins", "list")),
}


@pytest.mark.parametrize("body", FOREIGN.values(), ids=FOREIGN)
def test_what_is_only_data_may_lie_beside_the_weights(body: bytes, tmp_path: Path) -> None:
    shard = opened(tmp_path, archive(mapping({"state_dict": mapping({"w": tensor()}), "more": body})))
    assert {key: array.tolist() for key, array in values(shard).items()} == {"state_dict.w": [1, 2, 3, 4]}
    assert not shard.aside


def test_tensors_in_an_object_of_an_unknown_class_are_not_lost(tmp_path: Path) -> None:
    body = name("some", "Holder") + b")\x81" + mapping({"w": tensor()}) + b"b"
    assert list(opened(tmp_path, archive(mapping({"held": body}))).tensors) == ["held.w"]


PARAMETERS = {
    "_rebuild_parameter": call("torch._utils", "_rebuild_parameter", tensor(), b"\x88", HOOKS),
    "with state": call("torch._utils", "_rebuild_parameter_with_state", tensor(), b"\x88", HOOKS, b"}"),
    "_rebuild_tensor": call(
        "torch._utils", "_rebuild_tensor", storage(), number(0), group(number(4)), group(number(1))
    ),
    "of a subclass": call(
        "torch._tensor",
        "_rebuild_from_type_v2",
        name("torch._utils", "_rebuild_tensor"),
        name("some", "Parameter"),
        group(storage(), number(0), group(number(4)), group(number(1))),
        b"}",
    ),
    "v3": call(
        "torch._utils",
        "_rebuild_tensor_v3",
        group(text("storage"), name("torch.storage", "UntypedStorage"), text("0"), text(""), number(16)) + b"Q",
        *(number(0), group(number(4)), group(number(1)), b"\x89", HOOKS, name("torch", "float32")),
    ),
}


@pytest.mark.parametrize("body", PARAMETERS.values(), ids=PARAMETERS)
def test_every_way_to_write_a_tensor(body: bytes, tmp_path: Path) -> None:
    assert values(opened(tmp_path, archive(mapping({"w": body}))))["w"].tolist() == [1, 2, 3, 4]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 90), 1 << 90) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text() | st.integers(-(1 << 59), 1 << 59), inner, max_size=5)
    ),
    max_leaves=30,
)


@given(PLAIN, st.integers(0, 5))
@settings(deadline=None)
def test_plain_values_are_what_pickle_makes_of_them(value: Any, protocol: int) -> None:
    if protocol < 3 and _holds_bytes(value):
        value = None  # written as a call of codecs.encode, whose result is left as text
    raw = b"before" + pickle.dumps(value, protocol) + b"after"

    def persistent(identity: object) -> object:
        raise AssertionError

    got, end = load(raw, 6, NAMES, persistent)
    assert got == value
    assert repr(got) == repr(value)  # True is not 1, and order counts
    assert raw[end:] == b"after"
    for cut in range(6, end):
        with pytest.raises(PickleError):
            load(raw[:cut], 6, NAMES, persistent)


def _holds_bytes(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_bytes, value.values()))
    return any(map(_holds_bytes, value)) if isinstance(value, (list, tuple)) else isinstance(value, bytes)


# Small files that would take for ever, or all memory.


def shared_lists(bottom: bytes, count: int) -> bytes:
    """A list of a list of a list …, each there twice: 2^count ways down to the bottom."""
    steps = b"".join(b"(h%ch%clq%c0" % (i, i, i + 1) for i in range(count))
    return bottom + b"q\0" + b"0" + steps + b"h%c" % count


ENDLESS = {
    "50,000 lists": b"]" * 50_000 + b"a" * 49_999,
    "500,000 tuples": b"N" + b"\x85" * 500_000,
    "2^200 nothings": shared_lists(b"N", 200),
    "2^200 tensors": shared_lists(tensor(), 200),
    "itself": b"]q\0h\0a",
    "its own value": b"}q\0" + text("x") + b"h\0s",
    "a key of nested tuples": b"}" + b"N" + b"\x85" * 200_000 + b"Ns",
    "a key of shared tuples": b"}N" + b"2\x86" * 200 + b"Ns",
    "equal hashes": b"}(" + b"".join(number(i * ((1 << 61) - 1)) + b"N" for i in range(1, 20_000)) + b"u",
    "a name of a megabyte, shared": b"X" + (1 << 20).to_bytes(4, "little") + b"a" * (1 << 20) + b"q\0"
    b"0(" + b"h\0h\0\x93" * 100_000 + b"t",
    "dicts copied": b"}(" + b"".join(number(i) + b"N" for i in range(20_000)) + b"uq\0"
    b"0(" + (name("collections", "OrderedDict") + b"h\0\x85R") * 20_000 + b"t",
    "states copied": b"}(" + b"".join(number(i) + b"N" for i in range(20_000)) + b"uq\0"
    b"0(" + (name("some", "Thing") + b")\x81h\0b") * 20_000 + b"t",
    "arguments copied": b"(" + b"N" * 100_000 + b"tq\0"
    b"0" + name("torch", "device") + b"q\1" + b"0(" + b"h\1h\0R" * 100_000 + b"t",
    "a long list of one tensor, shared": b"(" + tensor() + b"N" * 100_000 + b"lq\0" + b"0(" + b"h\0" * 100_000 + b"t",
    "memo": b"N" + b"".join(b"r" + (i * 9_973).to_bytes(4, "little") for i in range(400_000)),
    "memo at the end": b"Nr\xff\xff\xff\xff",
    "persistent ids": group(text("storage"), name("torch", "FloatStorage"), text("0"), text(""), number(4))
    + b"2Q" * 400_000
    + b"0" * 400_000,
}


@pytest.mark.parametrize("body", ENDLESS.values(), ids=ENDLESS)
def test_a_small_file_takes_little_time(body: bytes, tmp_path: Path) -> None:
    path = write(tmp_path, archive(mapping({"w": tensor(), "x": body})))
    gc.enable()  # which the command line, in other tests, turns off for good
    began = time.process_time()
    try:
        assert "w" in open_file(path).tensors
    except FormatError as error:
        assert len(str(error)) < 1000  # noqa: PT017
    assert time.process_time() - began < 4  # seconds, where an endless one takes minutes
    assert gc.isenabled()


def test_values_thrown_away_end_soon_and_a_long_mask_is_read() -> None:
    for opcodes in (b"N0", b"2", b"\x80\4"):
        with pytest.raises(PickleError, match="more objects"):
            load(pickled(b"N" + opcodes * 1_000_000), 0, NAMES, repr)
    mask = [True] * 4_000_000
    assert load(pickle.dumps(mask), 0, NAMES, repr)[0] == mask


def test_many_tensors_take_little_time(tmp_path: Path) -> None:
    count = 100_000
    body = mapping({f"model.layers.{i}.weight": tensor(base=b"h\0") for i in range(count)})
    path = write(tmp_path, archive(storage() + b"q\0" + b"0" + body))
    began = time.process_time()
    assert len(open_file(path).tensors) == count
    assert time.process_time() - began < 8


# Names, and what is no part of the model.


def names(folder: Path, body: bytes) -> list[str]:
    return list(opened(folder, archive(body)).tensors)


def test_names_are_the_keys_on_the_way(tmp_path: Path) -> None:
    assert names(tmp_path, tensor()) == ["tensor"]
    assert names(tmp_path, group(tensor(), b"N", tensor())) == ["0", "2"]
    deep = mapping({"a": group(mapping({"b": tensor()})), "": tensor()})
    assert names(tmp_path, deep) == ["a.0.b", ""]
    numbers = b"}(" + number(3) + tensor() + b"\x88" + tensor() + b"N" + tensor() + b")" + tensor() + b"u"
    assert names(tmp_path, numbers) == ["3", "True", "None", "tuple"]
    assert names(tmp_path, mapping({"\x1b[2J": tensor()})) == ["\x1b[2J"]


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    body = mapping({"a.b": tensor(), "a": mapping({"b": tensor((1,), (1,))}), "a.b#2": tensor((2,), (1,))})
    shapes = {key: source.shape for key, source in opened(tmp_path, archive(body)).tensors.items()}
    assert shapes == {"a.b": (4,), "a.b#3": (1,), "a.b#2": (2,)}


def test_a_list_in_two_places_has_both_names(tmp_path: Path) -> None:
    body = mapping({"a": mapping({"w": tensor()}) + b"q\0", "b": b"h\0"})
    assert names(tmp_path, body) == ["a.w", "b.w"]


ONE, WEIGHTS = tensor((), ()), mapping({"w": tensor()})
ASIDE = {
    "nanoGPT": (
        {"model": WEIGHTS, "optimizer": mapping({"state": WEIGHTS}), "best_val_loss": ONE, "config": b"}"},
        {"optimizer.state.w", "best_val_loss"},
    ),
    "Lightning": (
        {"epoch": number(1), "state_dict": WEIGHTS, "callbacks": WEIGHTS, "optimizer_states": group(WEIGHTS)},
        {"callbacks.w", "optimizer_states.0.w"},
    ),
    "averaged": ({"model": WEIGHTS, "model_ema": WEIGHTS, "ema": WEIGHTS, "rng": ONE}, {"rng"}),
    "two models": (
        {"encoder": WEIGHTS, "decoder": WEIGHTS, "lr_schedulers": group(WEIGHTS), "opt": WEIGHTS, "best": ONE},
        {"lr_schedulers.0.w", "opt.w", "best"},
    ),
    "flat": ({"w": tensor(), "opt.weight": tensor(), "bn.num_batches_tracked": ONE, "step": ONE}, {"step"}),
    "the optimizer alone": ({"state": WEIGHTS, "param_groups": b"]"}, {"state.w"}),
}


@pytest.mark.parametrize(("items", "aside"), ASIDE.values(), ids=ASIDE)
def test_what_is_no_part_of_the_model(items: dict[str, bytes], aside: set[str], tmp_path: Path) -> None:
    shard = opened(tmp_path, archive(mapping(items)))
    assert shard.aside == aside
    assert aside < set(shard.tensors) or items.keys() == {"state", "param_groups"}


# What is not a checkpoint.

OTHERS = {
    "empty": (b"", "empty"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "HTML": (b"\n<!DOCTYPE html><html>", "HTML"),
    "text": (b"hello world\n" * 9, "text"),
    "safetensors": ((2).to_bytes(8, "little") + b'{"a":1}', "safetensors"),
    "GGUF": (b"GGUF\3\0\0\0", "GGUF"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "tar": (bytes(257) + b"ustar\0", "tar"),
    "bare pickle": (pickle.dumps({"a": 1}), "bare pickle"),
    "another magic number": (legacy(WEIGHTS, magic=1), "magic"),
    "a numpy archive": (zipped({"w.npy": b""}), ".npz"),
    "some archive": (zipped({"a/b": b""}), "data.pkl"),
    "no folder": (zipped({"data.pkl": pickled(WEIGHTS)}), "data.pkl"),
    "two roots": (zipped({"a/data.pkl": pickled(WEIGHTS), "b/data.pkl": b""}), "more than one"),
    "two cases": (zipped({"a/data.pkl": pickled(WEIGHTS), "a/DATA.pkl": b""}), "more than one"),
    "TorchScript": (zipped({"a/data.pkl": pickled(WEIGHTS), "a/constants.pkl": b""}), "TorchScript"),
    "TorchScript code": (zipped({"a/data.pkl": pickled(WEIGHTS), "a/code/x.py": b""}), "TorchScript"),
    "compressed": (zipped({"a/data.pkl": pickled(WEIGHTS), "a/data/0": FOUR}, method=8), "compressed"),
    "two pickles": (zipped({"a/data.pkl": pickled(b"}") * 2}), "follow"),
    "byte order": (archive(WEIGHTS, byteorder=b"middle"), "byteorder"),
    "no tensors": (archive(b"N"), "NoneType"),
    "an object": (archive(FOREIGN["a class"]), "some.config.Config"),
}


@pytest.mark.parametrize(("content", "hint"), OTHERS.values(), ids=OTHERS)
def test_what_is_not_a_checkpoint_says_what_it_is(content: bytes, hint: str, tmp_path: Path) -> None:
    assert hint in refusal(tmp_path, content)


def test_an_empty_state_dict_is_one(tmp_path: Path) -> None:
    assert opened(tmp_path, archive(b"}", {})).tensors == {}


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    content = bytearray(archive(WEIGHTS))
    content[content.index(FOUR)] ^= 1
    assert "checksum" in refusal(tmp_path, bytes(content))
    assert ["archive/data/0" in fault for fault in faults(tmp_path / "some.pt")] == [True]
    large = bytearray(archive(mapping({"w": tensor()}), {"0": FOUR, "1": bytes(VERIFIED_BYTES)}))
    large[large.index(FOUR)] ^= 1
    path = write(tmp_path, bytes(large))
    assert list(open_file(path).tensors) == ["w"]  # a large one opens at once, and is read only when asked
    assert len(list(faults(path))) == 1
    assert list(faults(write(tmp_path, legacy(WEIGHTS)))) == []


def test_a_member_that_no_tensor_needs_is_not_unpacked_without_end(tmp_path: Path) -> None:
    members = {"a/data.pkl": pickled(mapping({"w": tensor()})), "a/data/0": FOUR, "a/data/1": bytes(77_777)}
    path = write(tmp_path, bomb(members, "a/data/1", UNPACKED_BYTES + 1))
    assert list(open_file(path).tensors) == ["w"]
    assert "does not unpack" in "".join(faults(path))


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_no_damage_is_a_surprise(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from([layout(mapping(ASIDE["nanoGPT"][0])) for layout in LAYOUTS])))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.getbasetemp(), bytes(content[: data.draw(st.integers(1, len(content)))]))
    try:
        values(open_file(path))
    except FormatError as error:
        assert "\n" not in str(error)  # noqa: PT017


# The shared files.


def _cases() -> list[Any]:
    manifest = SHARED / "malformed" / "pickles" / "manifest.json"
    if not manifest.is_file():
        return [pytest.param({}, marks=pytest.mark.skip("the shared corpus is not here"))]
    return [pytest.param(case, id=case["name"]) for case in json.loads(manifest.read_text())]


@pytest.mark.parametrize("case", _cases())
def test_the_corpus(case: dict[str, str], shared: Path) -> None:
    path = shared / "malformed" / "pickles" / case["file"]
    try:
        values(open_file(path))
        result = "accept"
    except FormatError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        result = "reject"
    assert case["expected"] in (result, "either")


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_a_real_model_is_its_safetensors_twin(layout: str, shared: Path) -> None:
    got = values(open_file(shared / f"models/stories260K-formats/pt-{layout}/pytorch_model.bin"))
    want = values(safetensors.open_file(shared / "models/stories260K/model.safetensors"))
    for key, array in want.items():
        np.testing.assert_array_equal(got.pop(key), array)
    assert set(got) <= {"lm_head.weight"}  # tied: safetensors writes it once


def test_real_training_checkpoints(shared: Path) -> None:
    raw = shared / "models/raw"
    shard = open_file(raw / "gptbyhand/ckpt.pt")
    model = [key for key in shard.tensors if key not in shard.aside]
    assert all(key.startswith("model.transformer.") or key == "model.lm_head.weight" for key in model)
    assert "best_val_loss" in shard.aside
    assert all(np.isfinite(array).all() for array in values(shard).values())
    assert not open_file(raw / "slm4096/ckpt.pt").aside
