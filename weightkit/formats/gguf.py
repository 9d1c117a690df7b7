"""GGUF: a header of typed values and tensor descriptions, then the data, aligned.

The header is read here rather than by the gguf package, which takes seconds for a large vocabulary and
does not come back from some broken files; the package's tables and dequantisation are used.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from weightkit import files
from weightkit.dtypes import DTYPES, Array, DType
from weightkit.errors import FormatError
from weightkit.formats import gguf_config, gguf_tokenizer
from weightkit.formats.shard import MOST_ELEMENTS, ShardFile
from weightkit.tensor import BLOCK, Derived, Source, Tensor

SUFFIXES = (".gguf",)
MOST_NAME = 1 << 16
MOST_STRING = 100 << 20
MOST_NESTED = 8
KV_BYTES, TENSOR_BYTES = 13, 24  # the least that one of them takes

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_UINT32 = 4
_PLAIN = ("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64")


@dataclass(frozen=True)
class List:
    """An array of a header: where it is. Only what is asked for is read."""

    kind: int
    count: int
    offset: int


Value = int | float | bool | str | List


class _Header:
    """The header of a file, read from the front, never past its end."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size
        self.position = 0
        self.order = "<"

    def fail(self, message: str) -> FormatError:
        return FormatError(f"{self.path}: {message}")

    def take(self, count: int, what: str) -> bytes:
        """The next bytes. FormatError where there are not that many."""
        if count > self.size - self.position:
            raise self.fail(f"cut short, or not a GGUF file: {what} would end at byte {self.position + count:,}")
        data = self.file.read(count)
        if len(data) != count:
            raise self.fail("became shorter while it was read")
        self.position += count
        return data

    def skip(self, count: int, what: str) -> None:
        if count > self.size - self.position:
            raise self.fail(f"cut short, or not a GGUF file: {what} would end at byte {self.position + count:,}")
        self.position += count
        self.file.seek(self.position)

    def number(self, kind: int, what: str) -> Any:
        code = _SCALARS[kind]
        data = self.take(struct.calcsize(code), what)
        if code == "?" and data not in (b"\0", b"\1"):
            raise self.fail(f"{what} is {data[0]}, which is neither true nor false")
        return struct.unpack(self.order + code, data)[0]

    def text(self, what: str, most: int) -> bytes:
        length: int = self.number(10, f"the length of {what}")
        if length > most:
            raise self.fail(f"{what} would be {length:,} bytes long")
        return self.take(length, what)

    def name(self, what: str) -> str:
        raw = self.text(what, MOST_NAME)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8: {raw[:40]!r}") from None


def open_file(path: Path) -> ShardFile:
    """Read the header of a GGUF file; no tensor is touched.

    Raises FormatError on every departure from the format: counts, lengths and sizes that the file cannot
    hold, names given twice, unknown types, tensors that overlap or are not aligned.
    """
    size = files.size(path)
    with files.open_bytes(path) as file:
        header = _Header(path, file, size)
        tensors_count, values_count = _start(header)
        values = _values(header, values_count)
        infos = _infos(header, tensors_count)
    alignment = values.get("general.alignment", 32)
    assert isinstance(alignment, int)  # seen to when it was read
    data = -(-header.position // alignment) * alignment
    tensors = _tensors(header, infos, data, alignment)
    metadata = {key: str(value) for key, value in values.items() if not isinstance(value, List)}
    lists = functools.partial(read_list, path, header.order)
    config = gguf_config.config(values, lists, {name: tensor.shape for name, tensor in tensors.items()})
    return ShardFile(
        path,
        path.name,
        _in_order_of_heads(tensors, metadata.get("general.architecture", ""), config),
        metadata,
        config=config,
        tokenizer=gguf_tokenizer.maker(path, values, lists),
        part=_part(values),
    )


def _start(header: _Header) -> tuple[int, int]:
    """Magic, version and counts; finds the byte order, which the version betrays."""
    if header.take(4, "the magic") != b"GGUF":
        raise header.fail("not a GGUF file: it does not begin with GGUF")
    raw = header.take(4, "the version")
    version = int.from_bytes(raw, "little")
    if version and not version & 0xFFFF:
        header.order, version = ">", int.from_bytes(raw, "big")
    if version not in (2, 3):
        raise header.fail(f"GGUF of version {version} cannot be read, only 2 and 3")
    tensors, values = header.number(10, "the number of tensors"), header.number(10, "the number of values")
    left = header.size - header.position
    if tensors * TENSOR_BYTES + values * KV_BYTES > left:
        raise header.fail(f"{tensors:,} tensors and {values:,} values do not fit in {left:,} bytes")
    return tensors, values


def _values(header: _Header, count: int) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for _ in range(count):
        key = header.name("a key")
        if not key:
            raise header.fail("a key is empty")
        if key in values:
            raise header.fail(f"the key {key!r} appears twice")
        kind = header.number(_UINT32, f"the type of {key!r}")
        values[key] = _value(header, kind, key)
        if key == "general.alignment":
            _require_alignment(header, kind, values[key])
    return values


def _require_alignment(header: _Header, kind: int, value: Value) -> None:
    if kind != _UINT32 or not isinstance(value, int) or value == 0 or value % 8:
        raise header.fail(f"general.alignment is {value!r}, which is not an unsigned multiple of 8")


def _value(header: _Header, kind: int, key: str) -> Value:
    if kind in _SCALARS:
        found: Value = header.number(kind, repr(key))
        return found
    if kind == _STRING:
        return header.text(repr(key), MOST_STRING).decode("utf-8", "replace")
    if kind == _ARRAY:
        return _skip_list(header, key, 0)
    raise header.fail(f"{key!r} is of type {kind}, which does not exist")


def _skip_list(header: _Header, key: str, depth: int) -> List:
    """Pass over an array, keeping where it is."""
    if depth >= MOST_NESTED:
        raise header.fail(f"{key!r}: arrays nested too deeply to be real")
    kind = header.number(_UINT32, f"the type of {key!r}")
    count = header.number(10, f"the length of {key!r}")
    found = List(kind, count, header.position)
    if kind in _SCALARS:
        header.skip(count * struct.calcsize(_SCALARS[kind]), repr(key))
        return found
    if kind not in (_STRING, _ARRAY):
        raise header.fail(f"{key!r} holds values of type {kind}, which does not exist")
    if count * (8 if kind == _STRING else 12) > header.size - header.position:
        raise header.fail(f"{key!r}: {count:,} values do not fit in what is left of the file")
    if kind == _STRING:
        _skip_strings(header, count, key)
    else:
        for _ in range(count):
            _skip_list(header, key, depth + 1)
    return found


def _skip_strings(header: _Header, count: int, key: str) -> None:
    """Pass over strings: a vocabulary has hundreds of thousands, so lengths are read straight from large blocks."""
    order = "little" if header.order == "<" else "big"
    position, block, start = header.position, b"", header.position
    for _ in range(count):
        if position + 8 - start > len(block):
            header.file.seek(position)
            block, start = header.file.read(1 << 20), position
        at = position - start
        raw = block[at : at + 8]
        length = int.from_bytes(raw, order)  # type: ignore[arg-type]
        position += 8 + length
        if len(raw) < 8 or position > header.size:
            raise header.fail(f"cut short: the strings of {key!r} go past the end")
    header.position = position
    header.file.seek(position)


def read_list(path: Path, order: str, found: List) -> list[Any]:
    """The values of an array; strings as bytes."""
    with files.open_bytes(path) as file:
        file.seek(found.offset)
        header = _Header(path, file, files.size(path))
        header.position, header.order = found.offset, order
        if found.kind in _SCALARS:
            code = _SCALARS[found.kind]
            raw = header.take(found.count * struct.calcsize(code), "an array")
            return list(struct.unpack(f"{order}{found.count}{code}", raw))
        if found.kind == _STRING:
            return [header.text("a string", MOST_STRING) for _ in range(found.count)]
    return []


# ── tensors ────────────────────────────────────────────────────────────────────────────────────────

Info = tuple[str, tuple[int, ...], DType, int]  # name, shape, type, offset in the data


def _infos(header: _Header, count: int) -> list[Info]:
    found: dict[str, Info] = {}
    for _ in range(count):
        name = header.name("the name of a tensor")
        if name in found:
            raise header.fail(f"tensor {name!r} appears twice")
        rank = header.number(_UINT32, f"the number of dimensions of {name!r}")
        if rank > 4:
            raise header.fail(f"tensor {name!r}: {rank:,} dimensions; GGUF allows 4")
        sizes = tuple(header.number(10, f"the shape of {name!r}") for _ in range(rank))
        kind = header.number(_UINT32, f"the type of {name!r}")
        offset = header.number(10, f"the offset of {name!r}")
        dtype = types().get(kind)
        if dtype is None:
            raise header.fail(f"tensor {name!r}: its type, {kind}, does not exist")
        if math.prod(sizes) > MOST_ELEMENTS:
            raise header.fail(f"tensor {name!r}: its shape {list(sizes)} is too large to be real")
        if (sizes[0] if sizes else 1) % dtype.block:
            raise header.fail(f"tensor {name!r}: its rows {list(sizes[:1])} are not whole blocks of {dtype.name}")
        found[name] = (name, sizes[::-1], dtype, offset)
    return list(found.values())


def _tensors(header: _Header, infos: list[Info], data: int, alignment: int) -> dict[str, Source]:
    end = data
    for name, shape, dtype, offset in sorted(infos, key=lambda info: info[3]):
        start = data + offset
        if offset % alignment:
            raise header.fail(f"tensor {name!r}: its offset {offset:,} is not a multiple of {alignment}")
        if start < end:
            raise header.fail(f"tensor {name!r} overlaps another")
        end = start + dtype.nbytes(math.prod(shape))
        if start < end > header.size:
            raise header.fail(f"tensor {name!r} would end at byte {end:,} of {header.size:,}: the file is cut short")
    big = header.order == ">"
    return {
        name: Tensor(name, dtype, shape, header.path, data + offset, big_endian=big and dtype.stored != "u1")
        for name, shape, dtype, offset in infos
    }


@functools.cache
def types() -> dict[int, DType]:
    """The element types by their numbers in GGML."""
    import gguf

    found = {}
    for kind, (block, nbytes) in gguf.GGML_QUANT_SIZES.items():
        name = kind.name
        found[int(kind)] = DTYPES[name] if name in _PLAIN else DType(name, 8 * nbytes, "float", "<f4", block=block)
    return found


def _part(values: dict[str, Value]) -> tuple[int, int] | None:
    number, count = values.get("split.no"), values.get("split.count")
    if type(number) is int and type(count) is int and 0 <= number < count <= 100_000:
        return number, count
    return None


# ── rows of Q and K ────────────────────────────────────────────────────────────────────────────────

# The converters of these reorder the rows of every head of Q and K for interleaved rotary positions:
# LlamaModel.permute in convert_hf_to_gguf.py, and the classes that take it over.
PERMUTED = ("llama", "deci", "granite", "granitemoe", "smollm3", "minicpm", "xverse", "arcee")


@dataclass(frozen=True)
class Unpermuted(Derived):
    """Q or K with its rows in the order that Hugging Face files have.

    Row j · d/2 + i of a head of d rows (i < d/2, j = 0, 1) is row 2 i + j of the head in the file.
    """

    heads: int

    def read(self, start: int, stop: int) -> Array:
        """Stored elements `start` to `stop`, rows in Hugging Face order; whole heads are read at a time."""
        row = math.prod(self.shape[1:])
        head = self.shape[0] // self.heads * row
        result = np.empty(stop - start, self.dtype.stored)
        if not result.size:
            return result
        step = max(1, BLOCK // head)
        for first in range(start // head, -(-stop // head), step):
            last = min(first + step, -(-stop // head))
            block = turn_rows(self.base.read(first * head, last * head).reshape(-1, row), last - first)
            low, high = max(start, first * head), min(stop, last * head)
            result[low - start : high - start] = block.reshape(-1)[low - first * head : high - first * head]
        return result


def turn_rows(rows: Array, heads: int) -> Array:
    """Rows of GGUF order in Hugging Face order, [heads · d, …]."""
    per_head = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return per_head.swapaxes(1, 2).reshape(rows.shape)


def permute_rows(rows: Array, heads: int) -> Array:
    """Rows of Hugging Face order in GGUF order, the inverse of `turn_rows`."""
    per_head = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return per_head.swapaxes(1, 2).reshape(rows.shape)


def heads_of(name: str, config: dict[str, Any]) -> int | None:
    """The heads of a tensor whose rows are reordered; None for all others."""
    part = name.rpartition("blk.")[2].partition(".")[2]
    heads = config["num_attention_heads"] if part.startswith("attn_q.") else None
    return config["num_key_value_heads"] if part.startswith("attn_k.") else heads


def _in_order_of_heads(
    tensors: dict[str, Source], architecture: str, config: dict[str, Any] | None
) -> dict[str, Source]:
    if architecture not in PERMUTED or config is None:
        return tensors
    turned: dict[str, Source] = {}
    for name, tensor in tensors.items():
        heads = heads_of(name, config)
        fits = heads and tensor.shape and tensor.shape[0] and tensor.shape[0] % (2 * heads) == 0
        turned[name] = Unpermuted(tensor, heads) if fits and heads and isinstance(tensor, Tensor) else tensor
    return turned


Lists = Callable[[List], list[Any]]
