"""PyTorch checkpoints as PyTorch writes them, against what PyTorch reads."""

from __future__ import annotations

import random
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from weightkit.errors import FormatError
from weightkit.formats.shard import ShardFile
from weightkit.formats.torch_pickle import faults, open_file
from weightkit.tensor import Strided, Tensor

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

BOTH = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
    "complex128": "C128",
}


def saved(value: Any, folder: Path, zipped: bool, **options: Any) -> ShardFile:
    import torch

    path = folder / "some.pt"
    torch.save(value, path, _use_new_zipfile_serialization=zipped, **options)
    assert list(faults(path)) == []
    return open_file(path)


def tensors(value: Any, *path: str) -> Iterator[tuple[str, Any]]:
    """All tensors in a nested value, named as weightkit names them."""
    import torch

    if isinstance(value, torch.Tensor):
        yield ".".join(path) or "tensor", value.detach()
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors(item, *path, str(key))
    elif isinstance(value, (list, tuple)):
        for key, item in enumerate(value):
            yield from tensors(item, *path, str(key))


def raw(tensor: Any) -> bytes:
    import torch

    flat: bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return flat


def require_same(shard: ShardFile, value: Any, readable: bool = True) -> None:
    """The same names in the same order, types, shapes and bits as in what torch.load gives."""
    import torch

    want = dict(tensors(torch.load(shard.path, weights_only=False) if readable else value))
    assert list(shard.tensors) == list(want) == [name for name, _ in tensors(value)]
    for name, source in shard.tensors.items():
        assert source.shape == tuple(want[name].shape)
        assert source.dtype.name == DTYPES[str(want[name].dtype).removeprefix("torch.")]
        assert source.mapped().tobytes() == raw(want[name])
        size = want[name].numel()
        assert source.read(size // 3, size).tobytes() == raw(want[name].reshape(-1)[size // 3 :])


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type(dtype: str, zipped: bool, tmp_path: Path) -> None:
    import torch

    bits = torch.from_numpy(np.random.default_rng(7).integers(0, 256, (6, 16), np.uint8))
    bits &= 1 if dtype == "bool" else 255
    value = {"w": bits.view(getattr(torch, dtype)), "n": torch.empty((0, 3)).to(getattr(torch, dtype))}
    newer = dtype.startswith(("float8", "uint")) and dtype != "uint8"
    require_same(saved(value, tmp_path, zipped), value, readable=zipped or not newer)  # torch only writes these


@BOTH
def test_every_kind_of_view(zipped: bool, tmp_path: Path) -> None:
    import torch

    base = torch.arange(240, dtype=torch.float32)
    cube = base.reshape(2, 3, 40)
    value = {
        "base": base,
        "cube": cube,
        "transposed": cube.permute(2, 0, 1),
        "column": cube[:, 1, 3],
        "rows": cube[1],
        "steps": base[5::7],
        "scalar": base[17],
        "expanded": base[:3, None].expand(3, 50),
        "windows": base.unfold(0, 9, 2),
        "diagonal": base[:225].reshape(15, 15).diagonal(),
        "channels": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "single": base[3:4].reshape(1, 1).T,
        "empty": base[:0],
        "empty rows": cube[:, :0],
        "bits": base.view(torch.float32)[100:140].reshape(4, 10).T[2:5, 1:3],
    }
    shard = saved(value, tmp_path, zipped)
    require_same(shard, value)
    for name, source in shard.tensors.items():
        assert isinstance(source, Tensor if value[name].is_contiguous() else Strided)


@BOTH
@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_a_training_checkpoint(protocol: int, zipped: bool, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.LSTM(8, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    sum(parameter.square().sum() for parameter in model.parameters()).backward()
    optimizer.step()
    value = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epoch": 3,
        "best_val_loss": torch.tensor(1.5),
        "rng_state": torch.get_rng_state(),
        "numpy": {"rng": np.random.get_state(), "loss": np.float64(2), "array": np.arange(3)},
        "config": {"betas": (0.9, 0.95), "path": Path("/tmp"), "device": torch.device("cpu"), "dtype": torch.bfloat16},
        "seen": {1, 2},
        "size": torch.Size([1, 2]),
        "layout": torch.strided,
    }
    shard = saved(value, tmp_path, zipped, pickle_protocol=protocol)
    require_same(shard, value)
    assert {name for name in shard.tensors if name not in shard.aside} == {f"model.{n}" for n in model.state_dict()}


@BOTH
@pytest.mark.parametrize("protocol", [1, 2, 5])
def test_values_of_python_beside_the_weights(protocol: int, zipped: bool, tmp_path: Path) -> None:
    import torch

    value = {
        "w": torch.arange(6.0).reshape(2, 3).T,
        "recent": deque([torch.ones(2)], maxlen=3),
        "types": [int, float, str, bool, bytes, list],
        "numbers": [Decimal("1.5"), Fraction(1, 3), range(3), 1 << 80, 2j, ...],
        "paths": [Path("a"), PurePosixPath("a"), PureWindowsPath("a")],
        "id": UUID(int=7),
        "times": [datetime(2026, 1, 1, tzinfo=UTC), timedelta(1)],
        "random": [np.random.RandomState(1), np.random.SeedSequence(1), random.getstate()],
        "generators": [
            np.random.Generator(getattr(np.random, name)(1)) for name in ("PCG64", "PCG64DXSM", "MT19937", "SFC64")
        ],
        "counts": [Counter("aab"), defaultdict(list, a=[1]), OrderedDict(b=2)],
        "arguments": Namespace(lr=0.1),
    }
    shard = saved(value, tmp_path, zipped, pickle_protocol=protocol)
    assert list(shard.tensors) == ["w", "recent.0"]
    read = torch.load(shard.path, weights_only=False)
    assert shard.tensors["w"].mapped().tobytes() == raw(read["w"])
    assert shard.tensors["recent.0"].mapped().tobytes() == raw(read["recent"][0])


@BOTH
def test_what_pytorch_writes_and_cannot_read(zipped: bool, tmp_path: Path) -> None:
    import torch

    with pytest.raises(FormatError, match=r"protocol 0.*save it with protocol 2"):
        saved({"w": torch.ones(2)}, tmp_path, zipped, pickle_protocol=0)
    with pytest.raises(AssertionError, match="saved_id must be a tuple"):
        torch.load(tmp_path / "some.pt", weights_only=False)


@BOTH
def test_parameters_and_ties(zipped: bool, tmp_path: Path) -> None:
    import torch

    weight = torch.nn.Parameter(torch.randn(5, 3))
    with_state = torch.nn.Parameter(torch.randn(2))
    with_state.note = "read me"
    buffer = torch.nn.Buffer(torch.ones(3))
    value = {"a": weight, "b": weight, "c": weight.detach()[1:], "state": with_state, "buffer": buffer}
    shard = saved(value, tmp_path, zipped)
    require_same(shard, value)
    first, second, part = (shard.tensors[name] for name in "abc")
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    assert isinstance(part, Tensor)
    assert first.offset == second.offset == part.offset - 12


@BOTH
def test_a_shared_dict_has_two_names(zipped: bool, tmp_path: Path) -> None:
    import torch

    inner = {"w": torch.ones(2)}
    value = {"a": inner, "b": [inner, torch.zeros(1)]}
    require_same(saved(value, tmp_path, zipped), value)


@BOTH
def test_what_cannot_be_read_is_refused_by_name(zipped: bool, tmp_path: Path) -> None:
    import torch

    refused = {
        "_rebuild_sparse_tensor": torch.eye(3).to_sparse(),
        "torch.nn.modules.linear.Linear": torch.nn.Linear(2, 2),
        "QUInt8Storage": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
        "_rebuild_meta_tensor_no_storage": torch.ones(2, device="meta"),
        "conj": torch.ones(2, dtype=torch.complex64).conj(),
    }
    for name, value in refused.items():
        with pytest.raises(FormatError, match=name):
            saved({"x": value}, tmp_path, zipped)


def test_a_program_is_refused(tmp_path: Path) -> None:
    import torch

    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "some.pt"))
    with pytest.raises(FormatError, match="TorchScript"):
        open_file(tmp_path / "some.pt")


def test_more_than_4_gigabytes(tmp_path: Path) -> None:
    """Sparse files: the storages are left as holes, but for the last bytes."""
    import torch

    value = {"a": torch.empty(5 << 30, dtype=torch.uint8), "b": torch.empty(4, dtype=torch.uint8)}
    path = tmp_path / "some.pt"
    with torch.serialization.skip_data():
        torch.save(value, path)
    shard = open_file(path)
    a, b = shard.tensors["a"], shard.tensors["b"]
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    with open(path, "r+b") as file:
        for at in (a.offset + a.nbytes - 2, b.offset):
            file.seek(at)
            file.write(b"\x11\x22")
    loaded = torch.load(path, mmap=True)
    assert loaded["a"][-3:].tolist() == a.read(a.size - 3, a.size).tolist() == [0, 0x11, 0x22]
    assert loaded["b"].tolist() == b.mapped().tolist() == [0x11, 0x22, 0, 0]


def test_the_version_of_torch_beside_the_weights(tmp_path: Path) -> None:
    import torch

    torch.save({"w": torch.ones(2), "version": torch.__version__}, tmp_path / "x.pt")
    assert set(open_file(tmp_path / "x.pt").tensors) == {"w"}
