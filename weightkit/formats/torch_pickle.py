"""PyTorch checkpoints (.bin, .pt, .pth, .ckpt), without PyTorch and without running what is in them.

Two layouts: since PyTorch 1.6 a ZIP archive of a pickle and one stored member for each storage; before, a
row of five pickles followed by the storages. In both, tensors are bytes in the file and are mapped.

Format: `_save`, `_legacy_save` and `_load` in `torch/serialization.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from weightkit import files
from weightkit.errors import FormatError
from weightkit.formats import zipped
from weightkit.formats.shard import MOST_DIMENSIONS, MOST_ELEMENTS, ShardFile, is_verified
from weightkit.formats.state_dict import flatten
from weightkit.formats.torch_names import NAMES, Storage, StorageType, View, named
from weightkit.formats.unpickle import load
from weightkit.formats.unpickle.values import PickleError, TruncatedError, whole_module
from weightkit.tensor import Source, Strided, Tensor

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".tar")

_MOST_PICKLE = 100 << 20
_READS = (1 << 20, 32 << 20, _MOST_PICKLE)  # of a file in the old layout, which does not say how long its pickles are
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_LEGACY_STARTS = (b"\x80", f"L{_MAGIC}L\n".encode())  # before protocol 2, a pickle does not say its protocol
_FREE_ELEMENTS = 1 << 20  # a view may repeat the elements of its storage up to this many
_FREE_BYTES, _MOST_SEEN = 1 << 30, 64  # all tensors may take this, and the bytes of the file this often
_SNIFFED = 512

# What else people find under these suffixes: (offset, bytes there, what it is).
_OTHERS = (
    (0, b"version https://git-lfs", "a Git LFS pointer: fetch the real file with git lfs pull"),
    (0, b"GGUF", "a GGUF file: rename it to .gguf"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file: rename it to .h5"),
    (0, b"\x93NUMPY", "a numpy array: rename it to .npy"),
    (8, b'{"', "a safetensors file: rename it to .safetensors"),
    (257, b"ustar", "a tar archive, the layout of PyTorch before 0.1.10; save it again with a newer PyTorch"),
    (0, b"\x1f\x8b", "a gzip file: unpack it first"),
)

_Locate = Callable[[Storage], tuple[int, int]]  # the offset in the file, and the bytes there


def open_file(path: Path) -> ShardFile:
    """Read the pickle of a PyTorch checkpoint; no tensor is touched.

    Raises FormatError where the file is damaged, and where its pickle needs any function or class beyond
    those that rebuild tensors. A small archive is checked against its checksums.
    """
    head = _head(path)
    collecting = gc.isenabled()
    gc.disable()  # nothing that is made here becomes garbage, and to look for it takes longer than all else
    try:
        return _open_zip(path) if head.startswith(b"PK") else _open_legacy(path, head)
    except PickleError as error:
        raise FormatError(f"{path}: {error}") from None
    finally:
        if collecting:
            gc.enable()


def faults(path: Path) -> Iterator[str]:
    """What a full read finds: each member of the archive that does not match its checksum."""
    if _head(path).startswith(b"PK"):
        yield from zipped.crc_faults(path)


def _head(path: Path) -> bytes:
    try:
        with files.open_bytes(path) as file:
            return file.read(_SNIFFED)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None


# The ZIP layout.


def _open_zip(path: Path) -> ShardFile:
    members = zipped.members(path)
    root = _root(path, members)
    if is_verified(path, sum(member.size for member in members.values())):
        for fault in zipped.crc_faults(path, members):
            raise FormatError(f"{path}: {fault}")
    raw = zipped.read(path, _stored(path, members[f"{root}/data.pkl"]), _MOST_PICKLE)
    order = members.get(f"{root}/byteorder")
    byte_order = zipped.read(path, _stored(path, order), 16) if order else b"little"
    if byte_order not in (b"little", b"big"):
        raise FormatError(f"{path}: its byteorder record is neither little nor big")

    def locate(storage: Storage) -> tuple[int, int]:
        member = members.get(f"{root}/data/{storage.key}")
        if member is None:
            raise PickleError(f"the archive has no storage {storage.key!r}")
        return _stored(path, member).offset, member.size

    top, end = load(raw, 0, NAMES, _storage)
    if end != len(raw):
        raise PickleError(f"{len(raw) - end:,} bytes follow the end of its pickle")
    return _shard(path, top, len(raw), locate, big_endian=byte_order == b"big")


def _root(path: Path, members: Mapping[str, zipped.Member]) -> str:
    """The folder in the archive that everything lies in."""
    names = [name for name in members if name.count("/") == 1 and name.lower().endswith("/data.pkl")]
    if not names:
        kind = "a numpy archive: rename it to .npz" if any(n.endswith(".npy") for n in members) else "no data.pkl in it"
        raise FormatError(f"{path}: a ZIP archive, but not a PyTorch checkpoint: {kind}")
    root, _, name = names[0].partition("/")
    if len(names) > 1 or name != "data.pkl":
        raise FormatError(f"{path}: more than one pickle could be the checkpoint: {', '.join(names[:3])!r}")
    if f"{root}/constants.pkl" in members or any(name.startswith(f"{root}/code/") for name in members):
        raise FormatError(
            f"{path}: a TorchScript program, not a checkpoint; save the state_dict() of the model instead"
        )
    return root


def _stored(path: Path, member: zipped.Member) -> zipped.Member:
    if member.method != zipped.STORED:
        raise FormatError(f"{path}: member {member.name!r} is compressed, which PyTorch does not do")
    return member


# The layout before PyTorch 1.6.


def _open_legacy(path: Path, head: bytes) -> ShardFile:
    size = files.size(path)
    if not size:
        raise FormatError(f"{path}: an empty file")
    for offset, magic, what in _OTHERS:
        if head.startswith(magic, offset):
            raise FormatError(f"{path}: {what}")
    if not head.startswith(_LEGACY_STARTS):
        raise FormatError(f"{path}: not a PyTorch checkpoint{_looks_like(head)}")
    try:
        with files.open_bytes(path) as file:
            pickles = _read_pickles(file, size)
            places = _places(file, size, pickles)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None

    def locate(storage: Storage) -> tuple[int, int]:
        if storage.key not in places:
            raise PickleError(f"the file has no storage {storage.key!r}")
        return places[storage.key]

    return _shard(path, pickles.top, pickles.end, locate)


@dataclass(frozen=True)
class _Pickles:
    """What the five pickles at the beginning say."""

    top: Any
    keys: list[Any]  # of the storages, in the order in which they follow
    end: int  # where they begin
    whole: dict[str, Storage]  # by key


def _read_pickles(file: BinaryIO, size: int) -> _Pickles:
    """The pickles, of which nothing says how long they are: more is read until it is enough."""
    for count in _READS:
        file.seek(0)
        try:
            return _parse_pickles(file.read(count))
        except TruncatedError:
            if count >= size:
                raise
    raise PickleError(f"its pickles are longer than {_MOST_PICKLE:,} bytes")


def _parse_pickles(data: bytes) -> _Pickles:
    whole: dict[str, Storage] = {}

    def persistent(identity: Any) -> Storage:
        storage = _storage(identity, 6)
        whole.setdefault(storage.key, storage)
        return _part(storage, identity[5])

    magic, end = load(data, 0, NAMES, persistent)
    if type(magic) is not int:
        raise PickleError("a bare pickle, not one that torch.save wrote; not opened")
    protocol, end = load(data, end, NAMES, persistent)
    if (magic, protocol) != (_MAGIC, _PROTOCOL):
        raise PickleError("not a PyTorch checkpoint: its magic number or its protocol number is another")
    _, end = load(data, end, NAMES, persistent)  # of the machine that wrote it; storages are little-endian always
    top, end = load(data, end, NAMES, persistent)
    keys, end = load(data, end, NAMES, persistent)
    if not isinstance(keys, list) or not all(type(key) is str for key in keys) or len(set(keys)) != len(keys):
        raise PickleError("its list of storages is not a list of different names")
    return _Pickles(top, keys, end, whole)


def _places(file: BinaryIO, size: int, pickles: _Pickles) -> dict[str, tuple[int, int]]:
    """Offset and bytes of each storage: eight bytes of its number of elements, and then they."""
    places, end = {}, pickles.end
    for key in pickles.keys:
        storage = pickles.whole.get(key)
        if storage is None:
            raise PickleError(f"it lists a storage {key!r} that no tensor has")
        file.seek(end)
        count = file.read(8)
        if len(count) != 8 or int.from_bytes(count, "little") != storage.size:
            raise PickleError(f"storage {key!r} is cut short, or has another size than its tensors say")
        places[key] = end + 8, storage.nbytes
        end += 8 + storage.nbytes
        if end > size:
            raise PickleError(f"it is cut short: storage {key!r} would end at byte {end:,} of {size:,}")
    if end != size:
        raise PickleError(f"{size - end:,} bytes at the end belong to no tensor")
    return places


def _looks_like(head: bytes) -> str:
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return ": an HTML page, as a failed download leaves; fetch the file again"
    return ": a text file" if head.isascii() and b"\0" not in head else ""


# Both layouts.


def _storage(identity: object, fields: int = 5) -> Storage:
    """What a persistent id stands for. Raises PickleError where it is not that of a storage."""
    if not isinstance(identity, tuple) or len(identity) < 2 or type(identity[0]) is not str:
        raise PickleError("the pickle has a persistent id that is not that of a storage")
    if identity[0] == "module":
        raise whole_module(named(identity[1]))
    if identity[0] != "storage" or len(identity) != fields:
        raise PickleError("the pickle has a persistent id that is not that of a storage")
    kind, key, size = identity[1], identity[2], identity[4]  # [3] is the device it was on
    if type(kind) is not StorageType:
        raise PickleError(f"the pickle has a storage of a type that cannot be read ({named(kind)})")
    if type(key) is not str or not 0 < len(key) < 100 or key in (".", "..") or not _OUT_OF_NAMES.isdisjoint(key):
        raise PickleError("the pickle has a storage whose key is not a plain name")
    if not _natural(size) or size > MOST_ELEMENTS:
        raise PickleError(f"storage {key!r} has an impossible size")
    return Storage(key, kind.dtype, size)


def _part(whole: Storage, view: object) -> Storage:
    """The part of a storage that the sixth field of a persistent id in the old layout describes."""
    if view is None:
        return whole
    if not isinstance(view, tuple) or len(view) != 3:
        raise PickleError(f"a view of storage {whole.key!r} is not described as one")
    _, start, size = view
    if not _natural(start) or not _natural(size) or start + size > whole.size:
        raise PickleError(f"a view of storage {whole.key!r} reaches out of it")
    return Storage(whole.key, whole.dtype, size, whole.dtype.nbytes(start))


_OUT_OF_NAMES = frozenset("/\\\0")


def _shard(path: Path, top: object, pickle_bytes: int, locate: _Locate, big_endian: bool = False) -> ShardFile:
    views, aside = flatten(top, pickle_bytes)
    tensors = {name: _source(path, name, view, locate, big_endian) for name, view in views.items()}
    seen, size = sum(tensor.nbytes for tensor in tensors.values()), files.size(path)
    if seen > _FREE_BYTES + _MOST_SEEN * size:
        raise PickleError(f"its tensors would take {seen:,} bytes, far more than its {size:,}; not opened")
    return ShardFile(path, path.name, tensors, aside=aside)


def _source(path: Path, name: str, view: View, locate: _Locate, big_endian: bool) -> Source:
    """The tensor of a view, once it is certain that all of it lies in its storage."""

    def fail(message: str) -> PickleError:
        return PickleError(f"tensor {name[:200]!r}: {message}")

    storage, dtype, start = view.storage, view.dtype, view.start
    offset, available = locate(storage)
    item, nbytes = dtype.nbytes(1), storage.nbytes
    if storage.shift + nbytes > available:
        raise fail(f"its storage takes {nbytes:,} bytes, the file has {available:,}")
    layout = _layout(view.shape, view.strides)
    if layout is None or not _natural(start):
        raise fail("its shape, strides and offset are not sensible numbers")
    count, span, contiguous = layout
    elements = nbytes // item
    if count > elements and count > _FREE_ELEMENTS:
        raise fail(f"a view of {count:,} elements on a storage of {elements:,} cannot be real")
    if start + span > elements:
        raise fail(f"it reaches element {start + span:,} of a storage of {elements:,}")
    begin, shape = offset + storage.shift + item * start, tuple(view.shape)
    if contiguous:
        return Tensor(name, dtype, shape, path, begin, big_endian)
    return Strided(name, Tensor(name, dtype, (span,), path, begin, big_endian), shape, tuple(view.strides))


def _layout(shape: Any, strides: Any) -> tuple[int, int, bool] | None:
    """Elements of a view, elements from its first to its last, and whether it is row-major without gaps.

    None where shape and strides are none. The stride of an axis of one index does not matter.
    """
    if not isinstance(shape, (tuple, list)) or not isinstance(strides, (tuple, list)):
        return None
    if len(shape) != len(strides) or len(shape) > MOST_DIMENSIONS:
        return None
    count, last, contiguous = 1, 0, True
    for n, step in zip(reversed(shape), reversed(strides), strict=True):
        if not _natural(n) or not _natural(step):
            return None
        if n != 1:
            contiguous = contiguous and step == count
            last += (n - 1) * step
        count *= n
    return (count, last + 1, contiguous) if count else (0, 0, True)


def _natural(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
