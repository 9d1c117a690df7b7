"""One module a file format. Each reads headers only and gives lazy tensors.

This page is the table of formats: `open_file(path)` finds the reader of a file by its name, or by its
first bytes where the name says nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from weightkit import files
from weightkit.errors import FormatError
from weightkit.formats.shard import ShardFile


@dataclass(frozen=True)
class Format:
    """A file format: how its files are recognised, and the module that reads them."""

    name: str
    suffixes: tuple[str, ...]
    magic: tuple[bytes, ...]
    module: str
    title: str

    def load(self) -> ModuleType:
        """The module, imported when the first such file is opened."""
        return importlib.import_module(f"weightkit.formats.{self.module}")


FORMATS = (
    Format("safetensors", (".safetensors",), (), "safetensors", "safetensors"),
    Format(
        "torch",
        (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".tar"),
        (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        "torch_pickle",
        "PyTorch",
    ),
    Format("gguf", (".gguf",), (b"GGUF",), "gguf", "GGUF"),
    Format("hdf5", (".h5", ".hdf5", ".keras"), (b"\x89HDF\r\n\x1a\n",), "hdf5", "HDF5 and Keras"),
    Format("npz", (".npz", ".npy"), (b"\x93NUMPY",), "npz", "NumPy"),
)
NOT_READ = (".msgpack", ".onnx", ".tflite", ".mlmodel")  # weights, in formats that are not read here
WEIGHTS = tuple(suffix for format in FORMATS for suffix in format.suffixes) + NOT_READ


def format_of(path: Path, name: str | None = None) -> Format:
    """The format of a file: by its suffix, else by its first bytes, else safetensors, which has no mark."""
    name = name or path.name
    suffix = Path(name).suffix.lower()
    if suffix in NOT_READ:
        known = ", ".join(format.title for format in FORMATS)
        raise FormatError(f"{path}: {suffix} files cannot be read; convert it to one of {known} first")
    for format in FORMATS:
        if suffix in format.suffixes:
            return format
    with files.open_bytes(path) as file:
        start = file.read(8)
    return next((f for f in FORMATS if f.magic and start.startswith(f.magic)), FORMATS[0])


def open_file(path: Path, name: str | None = None) -> ShardFile:
    """The header of the weights file at `path`, which a folder may know by another `name`.

    Raises FormatError when it cannot be read.
    """
    shard: ShardFile = format_of(path, name).load().open_file(path)
    return shard


def join(shards: list[ShardFile]) -> list[ShardFile]:
    """The files of one model, which may say something for one another."""
    if len(shards) < 2:
        return shards
    module = format_of(shards[0].path, shards[0].name).load()
    joined: list[ShardFile] = module.join(shards) if hasattr(module, "join") else shards
    return joined


def faults(shard: ShardFile) -> Iterator[str]:
    """What the checksums of a file say against it, read as a whole. Nothing where a format has none."""
    check = getattr(format_of(shard.path, shard.name).load(), "faults", None)
    if check is not None:
        yield from check(shard.path)


def gguf_names(architecture: str, layers: int, said: Iterable[str], names: Container[str]) -> Mapping[str, str]:
    """{a name as Hugging Face files have it: the name that GGUF has for it}, of those that are in a file."""
    from weightkit.formats.gguf_config import hf_names

    return {hf: name for hf, name in hf_names(architecture, layers, said).items() if name in names}
