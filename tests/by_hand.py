"""Checkpoint files written byte by byte, and the values of every element type, without weightkit.

The format is eight bytes of header length, a JSON header, the tensors. Writing it here lets tests have
what no library writes: types numpy lacks, hostile names, holes for data, broken files.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[Any]

NUMPY: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "C64": np.complex64,
}
NAMES = {np.dtype(kind): name for name, kind in NUMPY.items()}


def write_file(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file, its tensors in the order given."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, array in tensors.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"".join(a.tobytes() for a in tensors.values()))
    return path


def write_holes(path: Path, shapes: Mapping[str, Sequence[int]], dtype: str, width: int) -> Path:
    """A safetensors file with a real header and a hole for data: any size, no disk. `width` is in bytes."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * width
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    os.truncate(path, 8 + len(raw) + end)
    return path


class Stored(NamedTuple):
    """One tensor of a file, read by hand."""

    dtype: str
    shape: tuple[int, ...]
    raw: bytes


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file."""
    raw = path.read_bytes()
    header: dict[str, Any] = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return header


def read_file(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, in the order of its header."""
    raw, header = path.read_bytes(), read_header(path)
    data = 8 + int.from_bytes(raw[:8], "little")
    header.pop("__metadata__", None)
    return {
        name: Stored(info["dtype"], tuple(info["shape"]), raw[data + start : data + stop])
        for name, info in header.items()
        for start, stop in [info["data_offsets"]]
    }


def f32(*values: float) -> Array:
    """A float32 vector."""
    return np.array(values, np.float32)


def bits(array: Array) -> Array:
    """An array as unsigned integers, so that NaN and -0 compare."""
    array = np.ascontiguousarray(array)
    kind = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[array.dtype.itemsize]
    return array.view(kind)


def rounded(values: Array, dtype: str) -> Array:
    """Float64 values rounded once to a type, nearest and ties to even.

    ml_dtypes rounds float64 to its types through float32, which is twice; so the two neighbours are
    looked up among all values of a small type. Their distances are exact in float64.
    """
    kind = NUMPY[dtype]
    if dtype in ("F64", "F32", "F16") or (dtype[0] in "IUB" and dtype != "BF16"):
        return values.astype(kind)
    known, patterns = _values(dtype)
    above = np.searchsorted(known, values).clip(1, len(known) - 1)
    low, high = known[above - 1], known[above]
    up = (values - low > high - values) | ((values - low == high - values) & (patterns[above] % 2 == 0))
    result = np.where(up, patterns[above], patterns[above - 1]).view(kind)
    negative_zero = (result.astype(np.float64) == 0) & np.signbit(values)
    return np.where(negative_zero, -result, result).astype(kind)


@functools.cache
def _values(dtype: str) -> tuple[Array, Array]:
    """The finite values of a small type in order, and their bit patterns; one zero, the positive one."""
    size = np.dtype(NUMPY[dtype]).itemsize
    patterns = np.arange(1 << 8 * size, dtype=f"u{size}")
    with np.errstate(invalid="ignore"):  # some of these are signalling NaN
        known = patterns.view(NUMPY[dtype]).astype(np.float64)
    kept = np.isfinite(known) & ~((known == 0) & np.signbit(known))
    known, patterns = known[kept], patterns[kept]
    order = np.argsort(known)
    return known[order], patterns[order]


def tokenizer(folder: Path, size: int = 97) -> Path:
    """A tokenizer.json of whole words: `a` is 0, `w1` is 1, …"""
    vocab = {"a": 0} | {f"w{i}": i for i in range(1, size)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "a"}
    (folder / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "model": model, "pre_tokenizer": {"type": "Whitespace"}})
    )
    return folder


def shrink_blocks(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Make weightkit work in blocks of `most` elements, so that small arrays have several."""
    from weightkit import layout, tensor
    from weightkit.surgery import overlay

    for module in (tensor, layout, overlay):
        monkeypatch.setattr(module, "BLOCK", most)
    for function in (tensor.tiles, layout.Layout.tiles):
        monkeypatch.setattr(function, "__defaults__", (most,))


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def spread(names: Sequence[str], parts: int) -> list[list[str]]:
    """Names cut into runs of about equal length."""
    cuts = [i * len(names) // parts for i in range(parts + 1)]
    return [list(names[a:b]) for a, b in itertools.pairwise(cuts)]
