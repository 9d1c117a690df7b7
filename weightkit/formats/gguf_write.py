"""Writing GGUF: the header by the gguf package, the data in blocks, quantised as they go by."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weightkit.dtypes import DTYPES, Array
from weightkit.errors import SaveError, nearest
from weightkit.formats.gguf import permute_rows
from weightkit.tensor import BLOCK, Source

PLAIN = ("F64", "F32", "F16", "BF16")  # as numbers are; all others are blocks with scales


@dataclass(frozen=True)
class Entry:
    """One tensor to write."""

    name: str
    source: Source
    kind: str  # F32, BF16, Q8_0, …
    heads: int = 0  # of Q and K whose rows are put in the order of interleaved rotary positions

    @property
    def blocks_fit(self) -> bool:
        """Whether rows are whole blocks of the type."""
        return self.kind in PLAIN or self.source.shape[-1] % _sizes(self.kind)[0] == 0

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        size = math.prod(self.source.shape)
        if self.kind in PLAIN:
            return DTYPES[self.kind].nbytes(size)
        block, nbytes = _sizes(self.kind)
        return size // block * nbytes

    def rows(self, first: int, last: int) -> Array:
        """The bytes of some rows, which are whole heads where the order of rows changes."""
        width = math.prod(self.source.shape[1:])
        values = self.source.dtype.decode(self.source.read(first * width, last * width), np.float64)
        rows = values.reshape(-1, width)
        if self.heads:
            rows = permute_rows(rows, (last - first) * self.heads // self.source.shape[0])
        if self.kind in PLAIN:
            return DTYPES[self.kind].encode(rows).view(np.uint8)
        import gguf

        return np.asarray(gguf.quantize(rows.astype(np.float32), gguf.GGMLQuantizationType[self.kind]))


def _sizes(kind: str) -> tuple[int, int]:
    import gguf

    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return int(block), int(nbytes)


def require_kind(kind: str) -> str:
    """The type by its GGML name. SaveError where there is none, or it cannot be written."""
    import gguf

    known = [*PLAIN[1:], *(k.name for k in gguf.GGMLQuantizationType if k.name not in PLAIN and _writable(k))]
    if kind.upper() not in known:
        near = nearest(kind.upper(), known)
        raise SaveError(f"{kind!r} is not a type that GGUF files are written in{near}; known are {', '.join(known)}")
    return kind.upper()


def _writable(kind: Any) -> bool:
    """Whether the gguf package can quantise to a type: many it can only read."""
    import gguf

    block = gguf.GGML_QUANT_SIZES[kind][0]
    if block == 1:
        return False
    try:
        gguf.quantize(np.zeros((1, block), np.float32), kind)
    except NotImplementedError:
        return False
    return True


def write(path: Path, architecture: str, entries: Sequence[Entry], metadata: Mapping[str, Any]) -> None:
    """Write a GGUF file of version 3; memory holds one block at a time."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for entry in entries:
        kind = gguf.GGMLQuantizationType[entry.kind]
        shape = entry.source.shape or (1,)
        writer.add_tensor_info(entry.name, shape, np.dtype(np.float32), entry.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with open(path, "r+b") as file:
        file.seek(0, os.SEEK_END)
        for entry in entries:
            file.write(b"\0" * (-file.tell() % gguf.GGUF_DEFAULT_ALIGNMENT))
            _write_data(file, entry)
        file.flush()
        os.fsync(file.fileno())


def _write_data(file: Any, entry: Entry) -> None:
    rows = entry.source.shape[0] if entry.source.shape else 1
    unit = rows // entry.heads if entry.heads else 1  # rows that stay together
    width = math.prod(entry.source.shape[1:])
    step = max(1, BLOCK // max(1, width * unit)) * unit
    for first in range(0, rows, step):
        file.write(np.ascontiguousarray(entry.rows(first, min(first + step, rows))).data)
