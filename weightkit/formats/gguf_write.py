"""Writing GGUF, version 3: the header first, then each tensor in blocks of bounded size.

Numbers are quantised by the gguf package, block by block as llama.cpp does. What already is in the type asked
for is copied as it is.
"""

from __future__ import annotations

import functools
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from weightkit import files
from weightkit.dtypes import Array, DType
from weightkit.errors import EditError, SaveError, nearest
from weightkit.formats.gguf import PLAIN, types
from weightkit.formats.gguf_header import ARRAY, BOOL, CODES, FLOAT32, MOST_DIMENSIONS, STRING, UINT32, UINT64
from weightkit.tensor import BLOCK, Source, Tensor

ALIGNMENT = 32
MOST_NAME = 63  # bytes; llama.cpp refuses longer names of tensors
_INT32, _INT64, _UINT8 = 5, 11, 0

Named = tuple[str, Source, str]  # name, numbers, type to write them in


def write(path: Path, tensors: Iterable[Named], metadata: Mapping[str, Any]) -> None:
    """Write tensors, each in the type of its name in GGML (`writable_types`), and metadata.

    Metadata are strings, bools, ints (UINT32, or UINT64, INT32, INT64 where they need it), floats (FLOAT32),
    bytes (an array of UINT8) and lists of one kind of these. SaveError for what GGUF or llama.cpp does not
    allow; EditError where a number does not fit into its type.
    """
    tensors = list(tensors)
    kinds = [_kind(*tensor) for tensor in tensors]
    if len({name for name, *_ in tensors}) != len(tensors):
        raise SaveError(f"{path}: two tensors have one name")
    header = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    header += [_string(key) + _value(key, value) for key, value in metadata.items()]
    end = 0
    for (name, source, _), (kind, dtype) in zip(tensors, kinds, strict=True):
        shape = source.shape[::-1]
        header.append(_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, end))
        end = _aligned(end + dtype.nbytes(math.prod(shape)))
    with open(path, "wb") as file:
        file.write(b"".join(header))
        _pad(file)
        for (_, source, _), (_, dtype) in zip(tensors, kinds, strict=True):
            for block in _blocks(source, dtype):
                file.write(block)
            _pad(file)
        file.flush()
        os.fsync(file.fileno())


@functools.cache
def writable_types() -> tuple[str, ...]:
    """The types that numbers can be written in; others can only be copied from a GGUF file that has them."""
    import gguf

    found = []
    for kind, (block, _) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.quantize(np.zeros((1, block), np.float32), kind)
        except NotImplementedError:
            continue
        found.append(kind.name)
    return (*found, *(name for name in PLAIN if name not in found))


def require_type(name: str) -> str:
    """The type by its GGML name, upper or lower case. SaveError where numbers cannot be written in it."""
    if name.upper() not in writable_types():
        known = writable_types()
        near = nearest(name.upper(), known)
        raise SaveError(f"{name!r} is not a type that GGUF files are written in{near}; known are {', '.join(known)}")
    return name.upper()


def blocks_fit(shape: tuple[int, ...], name: str) -> bool:
    """Whether rows of a tensor of this shape are whole blocks of a type."""
    block = next((dtype.block for dtype in types().values() if dtype.name == name), 1)
    return math.prod(shape[-1:]) % block == 0


def _kind(name: str, source: Source, to: str) -> tuple[int, DType]:
    """The number of a type in GGML, and the type. SaveError where the tensor cannot be written in it."""
    found = next(((kind, dtype) for kind, dtype in types().items() if dtype.name == to), None)
    if found is None or (to not in writable_types() and source.dtype.name != to):
        raise SaveError(f"{name}: cannot be written as {to!r}{nearest(to, writable_types())}")
    if not 0 < len(name.encode()) <= MOST_NAME:
        raise SaveError(f"{name}: a name in GGUF has 1 to {MOST_NAME} bytes")
    if len(source.shape) > MOST_DIMENSIONS or 0 in source.shape:
        raise SaveError(f"{name}: GGUF has no tensors of shape {list(source.shape)}")
    if math.prod(source.shape[-1:]) % found[1].block:
        raise SaveError(f"{name}: rows of {source.shape[-1]} do not divide into {to} blocks of {found[1].block}")
    if found[1].kind != source.dtype.kind and source.dtype.kind not in ("float", found[1].kind):
        raise SaveError(f"{name}: {source.dtype.name} cannot be written as {to}")
    return found


# ── tensors ────────────────────────────────────────────────────────────────────────────────────────


def _blocks(source: Source, dtype: DType) -> Iterator[bytes | memoryview]:
    """The bytes of a tensor in its new type; BLOCK is a multiple of every block of GGML."""
    if source.dtype == dtype and isinstance(source, Tensor) and not source.big_endian:
        yield from _copied(source)
        return
    size = math.prod(source.shape)
    for start in range(0, size, BLOCK):
        stored = source.read(start, min(start + BLOCK, size))
        yield np.ascontiguousarray(_encoded(source, stored, dtype)).data


def _copied(tensor: Tensor) -> Iterator[bytes]:
    with files.open_bytes(tensor.path) as file:
        file.seek(tensor.offset)
        for done in range(0, tensor.nbytes, 4 * BLOCK):
            yield file.read(min(4 * BLOCK, tensor.nbytes - done))


def _encoded(source: Source, stored: Array, dtype: DType) -> Array:
    if source.dtype == dtype and not dtype.packed:
        return stored
    if not dtype.packed:
        try:
            return dtype.encode(source.dtype.decode(stored, np.float64))
        except EditError as error:
            raise EditError(f"{source.name}: {error}") from None
    import gguf

    numbers = source.dtype.decode(stored).reshape(1, -1)
    if not np.isfinite(numbers).all():
        raise EditError(f"{source.name}: NaN and infinity cannot be stored as {dtype.name}")
    with np.errstate(all="ignore"):
        return gguf.quantize(numbers, gguf.GGMLQuantizationType[dtype.name])


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _pad(file: BinaryIO) -> None:
    file.write(bytes(_aligned(file.tell()) - file.tell()))


# ── values ─────────────────────────────────────────────────────────────────────────────────────────


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "replace")
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: Any) -> bytes:
    """The type of a value, and the value."""
    if key == "general.alignment" and value != ALIGNMENT:
        raise SaveError(f"general.alignment: tensors are aligned to {ALIGNMENT} bytes here, not {value}")
    if isinstance(value, bytes):
        return struct.pack("<IIQ", ARRAY, _UINT8, len(value)) + value
    if isinstance(value, list | tuple):
        kind = _list_kind(key, value)
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + b"".join(map(_packer(kind), value))
    kind = _scalar_kind(key, value)
    return struct.pack("<I", kind) + _packer(kind)(value)


def _packer(kind: int) -> Callable[[Any], bytes]:
    return _string if kind == STRING else struct.Struct("<" + CODES[kind]).pack


_SIMPLE: dict[type, int] = {str: STRING, bool: BOOL, float: FLOAT32}


def _scalar_kind(key: str, value: Any) -> int:
    if type(value) is int:
        return _int_kind(key, value, value, (UINT32, _INT32, UINT64, _INT64))
    return _require_kind(key, value)


def _list_kind(key: str, values: list[Any] | tuple[Any, ...]) -> int:
    """The type of the items of an array. Whole numbers are INT32 where they can be: llama.cpp expects it."""
    kinds = set(map(type, values))
    if kinds <= {int}:
        return _int_kind(key, min(values, default=0), max(values, default=0), (_INT32, UINT32, _INT64, UINT64))
    if len(kinds) != 1:
        raise SaveError(f"{key}: a list in GGUF holds values of one type")
    return _require_kind(key, values[0])


def _require_kind(key: str, value: Any) -> int:
    kind = _SIMPLE.get(type(value))
    if kind is None:
        raise SaveError(f"{key}: GGUF has no values of type {type(value).__name__}")
    return kind


_RANGES = {UINT32: (0, 2**32), _INT32: (-(2**31), 2**31), UINT64: (0, 2**64), _INT64: (-(2**63), 2**63)}


def _int_kind(key: str, least: int, most: int, kinds: tuple[int, ...]) -> int:
    fitting = (kind for kind in kinds if _RANGES[kind][0] <= least and most < _RANGES[kind][1])
    found = next(fitting, None)
    if found is None:
        raise SaveError(f"{key}: {most} does not fit into 64 bits")
    return found
