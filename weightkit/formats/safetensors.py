"""safetensors: eight bytes of header length, a JSON header, then the bytes of all tensors, gapless.

The header is read here rather than by the safetensors package because that package accepts duplicate
names and waits on a FIFO, and because a header is all that is needed.

Format: https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightkit import files, strictjson
from weightkit.dtypes import DTYPES
from weightkit.errors import FormatError
from weightkit.formats.shard import MOST_DIMENSIONS, ShardFile, is_sensible
from weightkit.tensor import Source, Tensor

SUFFIXES = (".safetensors",)
TYPES = {name: dtype for name, dtype in DTYPES.items() if name != "C128"}  # which the format does not have


def open_file(path: Path) -> ShardFile:
    """Read the header of a safetensors file; no tensor is touched.

    Raises FormatError on every departure from the format: a header that is not strict JSON, names
    given twice, unknown types, sizes that do not match, and bytes that belong to no tensor or to two.
    """
    size = files.size(path)
    try:
        with files.open_bytes(path) as file:
            head = file.read(9)
            length = int.from_bytes(head[:8], "little")
            if len(head) < 8 or length > size - 8:
                raise FormatError(
                    f"{path}: not a safetensors file, or cut short: its header would end at byte "
                    f"{8 + length:,} of {size:,}"
                )
            if length > strictjson.MOST_BYTES:
                raise FormatError(f"{path}: a header of {length:,} bytes; safetensors allows 100 MB")
            if not length or head[8:] != b"{":  # a file of zeros says so before 100 MB of it are read
                raise FormatError(f"{path}: not a safetensors file: its header does not begin with '{{'")
            file.seek(8)
            raw = file.read(length)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None
    header = strictjson.parse(raw, f"{path}: header")
    metadata = _metadata(header.pop("__metadata__", None), path)
    data = 8 + length
    tensors = {name: _tensor(name, info, path, data, size - data) for name, info in header.items()}
    _require_gapless(tensors, path, data, size)
    return ShardFile(path, path.name, tensors, metadata)


def _metadata(value: Any, path: Path) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise FormatError(f"{path}: __metadata__ must map strings to strings")
    return value


def _tensor(name: str, info: Any, path: Path, data: int, available: int) -> Tensor:
    try:
        dtype, shape, (start, end) = TYPES[info["dtype"]], info["shape"], info["data_offsets"]
        sound = _naturals(shape) and _naturals(info["data_offsets"]) and start <= end <= available
        fits = sound and len(shape) <= MOST_DIMENSIONS and math.prod(shape) * dtype.bits == 8 * (end - start)
        if fits and (0 not in shape or is_sensible(shape)):  # what is not empty is as large as its bytes
            return Tensor(name, dtype, tuple(shape), path, data + start)
    except (TypeError, KeyError, ValueError):
        pass
    raise FormatError(f"{path}: tensor {name!r}: {_why(info, available)}")


def _why(info: Any, available: int) -> str:
    """What is wrong with a tensor's header entry."""
    if not isinstance(info, dict):
        return "its header entry is not an object"
    if not info.keys() >= _FIELDS:
        return f"its header entry has no {min(_FIELDS - info.keys())}"
    dtype = TYPES.get(info["dtype"]) if isinstance(info["dtype"], str) else None
    if dtype is None:
        return f"unknown dtype {info['dtype']!r}"
    shape, offsets = info["shape"], info["data_offsets"]
    if not _naturals(shape) or not is_sensible(shape):
        return f"its shape is not a list of at most {MOST_DIMENSIONS} sensible sizes"
    if not _naturals(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= available:
        return f"its data_offsets do not lie in the {available:,} bytes of data"
    bits, given = math.prod(shape) * dtype.bits, offsets[1] - offsets[0]
    return f"{dtype.name} {shape} takes {bits / 8:,.10g} bytes, its data_offsets give it {given:,}"


_FIELDS = {"dtype", "shape", "data_offsets"}


def _naturals(value: Any) -> bool:
    if type(value) is not list:
        return False
    for n in value:  # noqa: SIM110 — a generator here takes a third of the time of a long header
        if type(n) is not int or not 0 <= n < 1 << 63:
            return False
    return True


def _require_gapless(tensors: dict[str, Tensor], path: Path, data: int, size: int) -> None:
    end = data
    in_order = sorted((t.offset, t.nbytes, t.name) for t in tensors.values())
    for offset, nbytes, name in in_order:
        if offset != end:
            kind = "overlaps another" if offset < end else f"follows {offset - end:,} unused bytes"
            raise FormatError(f"{path}: tensor {name!r} {kind}")
        end = offset + nbytes
    if end != size:
        raise FormatError(f"{path}: {size - end:,} bytes at the end belong to no tensor")


def header(tensors: Sequence[tuple[str, Source]], metadata: Mapping[str, str] | None = None) -> bytes:
    """What a file of these tensors begins with; their bytes follow, one after another."""
    values: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, source in tensors:
        values[name] = {
            "dtype": source.dtype.name,
            "shape": list(source.shape),
            "data_offsets": [end, end := end + source.nbytes],
        }
    raw = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # so that the data is aligned
    return len(raw).to_bytes(8, "little") + raw
