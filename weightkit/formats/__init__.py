"""One module a file format. Each reads headers only and gives lazy tensors.

This page is the table of formats: `reader(path)` finds the one for a file.
"""

from __future__ import annotations

from pathlib import Path

from weightkit.errors import FormatError
from weightkit.formats import safetensors
from weightkit.formats.shard import ShardFile

NOT_YET = (
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".h5",
    ".hdf5",
    ".keras",
    ".npz",
    ".npy",
    ".msgpack",
    ".onnx",
)
WEIGHTS = (safetensors.SUFFIX, *NOT_YET)


def open_file(path: Path) -> ShardFile:
    """The header of the weights file at `path`. Raises FormatError when it cannot be read."""
    if path.suffix in NOT_YET:
        raise FormatError(
            f"{path}: {path.suffix} files cannot be read, only {safetensors.SUFFIX}; "
            "convert it first, for example with transformers' save_pretrained"
        )
    return safetensors.open_file(path)
