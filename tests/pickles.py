"""PyTorch checkpoints assembled opcode by opcode, so that tests and fuzzing can get every part of one wrong."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
FOUR = np.arange(1, 5, dtype="<f4").tobytes()  # 1 2 3 4


def number(value: int) -> bytes:
    if -1 << 31 <= value < 1 << 31:
        return b"J" + value.to_bytes(4, "little", signed=True)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def group(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return name(module, attribute) + group(*arguments) + b"R"


def mapping(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


HOOKS = call("collections", "OrderedDict")


def storage(key: str = "0", kind: str = "FloatStorage", size: int = 4, *view: bytes) -> bytes:
    return group(text("storage"), name("torch", kind), text(key), text("cuda:7"), number(size), *view) + b"Q"


_FIVE, _SIX = storage(), storage("0", "FloatStorage", 4, b"N")  # the old layout has one field more


def tensor(
    shape: Sequence[int] = (4,), strides: Sequence[int] = (1,), start: int = 0, base: bytes | None = None
) -> bytes:
    sizes = group(*map(number, shape)), group(*map(number, strides))
    base = storage() if base is None else base
    return call("torch._utils", "_rebuild_tensor_v2", base, number(start), *sizes, b"\x89", HOOKS)


def pickled(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def archive(body: bytes, storages: Mapping[str, bytes] | None = None, **records: bytes) -> bytes:
    """A checkpoint in the ZIP layout: the pickle of `body`, storages by key, other records by name."""
    members = {"data.pkl": pickled(body), **records}
    members |= {f"data/{key}": raw for key, raw in ({"0": FOUR} if storages is None else storages).items()}
    return zipped({f"archive/{key}": raw for key, raw in members.items()})


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for key, raw in members.items():
            file.writestr(zipfile.ZipInfo(key), raw, method)
    return out.getvalue()


def bomb(members: Mapping[str, bytes], name: str, claimed: int) -> bytes:
    """An archive in which the member of this name is deflated, and says that it unpacks to `claimed` bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for key, raw in members.items():
            file.writestr(zipfile.ZipInfo(key), raw, zipfile.ZIP_DEFLATED if key == name else zipfile.ZIP_STORED)
    size = len(members[name]).to_bytes(4, "little")
    assert out.getvalue().count(size) == 2  # in the member's header, and in the directory
    return out.getvalue().replace(size, claimed.to_bytes(4, "little"))


def legacy(body: bytes, storages: Mapping[str, tuple[int, bytes]] | None = None, magic: int = MAGIC) -> bytes:
    """A checkpoint in the old layout; each storage is a number of elements and bytes."""
    body = body.replace(_FIVE, _SIX)
    storages = {"0": (4, FOUR)} if storages is None else storages
    keys = b"](" + b"".join(map(text, storages)) + b"e"
    head = [number(magic), number(1001), mapping({"little_endian": b"\x88"}), body, keys]
    tail = (count.to_bytes(8, "little") + raw for count, raw in storages.values())
    return b"".join(map(pickled, head)) + b"".join(tail)


def write(folder: Path, content: bytes, suffix: str = ".pt") -> Path:
    path = folder / f"some{suffix}"
    path.write_bytes(content)
    return path
