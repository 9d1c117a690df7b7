"""GGUF: a header of typed values and tensor descriptions, then the data, aligned.

A GGUF file says all of its model: the config, the tokenizer, the weights, most of them in types whose
elements share scales by blocks. Values come out as Hugging Face files have them (`gguf_order`).

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from weightkit import files
from weightkit.dtypes import DTYPES, DType
from weightkit.errors import FormatError
from weightkit.formats import gguf_config, gguf_header, gguf_order, gguf_tokenizer
from weightkit.formats.gguf_header import Header, Info, Items, Value
from weightkit.formats.gguf_order import PERMUTED, Unpermuted, permute_rows, turn_rows
from weightkit.formats.shard import ShardFile, is_sensible
from weightkit.tensor import Source, Tensor

__all__ = ["PERMUTED", "SUFFIXES", "Unpermuted", "open_file", "permute_rows", "turn_rows", "types"]

SUFFIXES = (".gguf",)
PLAIN = ("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64")
_MOST_TEXT = 1000  # characters of a value in the metadata
_BY_LAYER, _MOST_LAYERS = (".attention.head_count", ".attention.head_count_kv"), 10_000


def open_file(path: Path) -> ShardFile:
    """Read the header of a GGUF file; of the tensors only rope factors, which are a part of the config.

    Raises FormatError on every departure from the format: counts, lengths and sizes that the file cannot
    hold, names given twice, unknown types, tensors that overlap, are not aligned or not in the file.
    """
    header = gguf_header.read(path)
    tensors = _tensors(header, path)
    metadata = {key: text for key, value in header.values.items() if (text := _text(key, value)) is not None}
    return ShardFile(
        path,
        path.name,
        gguf_order.in_hf_order(tensors, metadata),
        metadata,
        config=gguf_config.config(header.values, tensors),
        tokenizer=gguf_tokenizer.maker(header.values),
        tokenizer_config=functools.partial(gguf_tokenizer.config, header.values),
        part=_part(header.values),
    )


def join(shards: list[ShardFile]) -> list[ShardFile]:
    """The files of one split model: what only the first of them says holds for all."""
    first = min(shards, key=lambda shard: shard.part or (0, 0))
    names = {name for shard in shards for name in shard.tensors}
    config = None if first.config is None else first.config | {"tie_word_embeddings": "output.weight" not in names}

    def whole(shard: ShardFile) -> ShardFile:
        if shard is first:
            return replace(shard, config=config)
        return replace(shard, tensors=gguf_order.in_hf_order(shard.tensors, first.metadata))

    return [whole(shard) for shard in shards]


@functools.cache
def types() -> dict[int, DType]:
    """The element types by their numbers in GGML."""
    import gguf

    return {
        int(kind): DTYPES[kind.name] if kind.name in PLAIN else DType(kind.name, 8 * size, "float", "<f4", block=block)
        for kind, (block, size) in gguf.GGML_QUANT_SIZES.items()
    }


def _tensors(header: Header, path: Path) -> dict[str, Source]:
    """The tensors of a header. FormatError where one is not aligned, not in the file or not by itself."""
    size = files.size(path)
    data = _padded(header.end, header)
    padded = _padded(size, header)  # where a tensor without elements may lie behind all others
    tensors: dict[str, Source] = {}
    for info in header.infos:
        try:
            dtype = _dtype(info)
            if info.offset % header.alignment:
                raise ValueError(f"its offset {info.offset:,} is not a multiple of {header.alignment}")
            nbytes = dtype.nbytes(math.prod(info.sizes))
            end = data + info.offset + nbytes
            if end > (size if nbytes else padded):
                raise ValueError(f"would end at byte {end:,} of {size:,}: the file is cut short")
        except ValueError as error:
            raise FormatError(f"{path}: tensor {info.name!r}: {error}") from None
        tensors[info.name] = Tensor(info.name, dtype, info.sizes[::-1], path, data + info.offset, header.big_endian)
    _require_apart(tensors, path)
    return tensors


def _padded(end: int, header: Header) -> int:
    return -(-end // header.alignment) * header.alignment


def _dtype(info: Info) -> DType:
    """The type of a tensor whose shape it allows. ValueError says what is wrong."""
    dtype = types().get(info.kind)
    if dtype is None:
        raise ValueError(f"its type {info.kind} is not one of GGML, or is no longer")
    if not is_sensible(info.sizes):
        raise ValueError(f"its shape {list(info.sizes)} is not one of sensible sizes")
    if math.prod(info.sizes[:1]) % dtype.block:
        raise ValueError(f"its shape {list(info.sizes)} does not divide into {dtype.name} blocks of {dtype.block}")
    return dtype


def _require_apart(tensors: Mapping[str, Source], path: Path) -> None:
    end = 0
    in_order = sorted((t.offset, t.nbytes, t.name) for t in tensors.values() if isinstance(t, Tensor))
    for offset, nbytes, name in in_order:
        if offset < end:
            raise FormatError(f"{path}: tensor {name!r} overlaps another")
        end = offset + nbytes


def _text(key: str, value: Value) -> str | None:
    """A value as the metadata shows it; None for an array, except where layers differ in their heads."""
    if isinstance(value, Items):
        if not key.endswith(_BY_LAYER) or value.count > _MOST_LAYERS:
            return None
        return json.dumps(value.numbers())
    text = str(value)
    return text if len(text) <= _MOST_TEXT else text[: _MOST_TEXT - 1] + "…"


def _part(values: Mapping[str, Value]) -> tuple[int, int] | None:
    """(split.no, split.count), where they say that this is one of several files."""
    number, count = values.get("split.no"), values.get("split.count")
    if type(number) is int and type(count) is int and 0 <= number < count and count > 1:
        return number, count
    return None
