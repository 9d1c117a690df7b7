"""weightkit convert: the same model in another format, type, or number of files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from weightkit.cli.output import (
    Cluster,
    Json,
    ModelPath,
    UsageError,
    emit,
    note_new_folders,
    open_model,
    progress,
    say,
    workers,
)
from weightkit.report import units

Out = Annotated[
    str,
    typer.Argument(
        metavar="OUT",
        help="A folder of safetensors, or a file ending in .safetensors, .npz, .h5 or .gguf.",
        show_default=False,
    ),
]
DTypeName = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="TYPE",
        help="Cast the weights: F32, F16, BF16, F8_E4M3, …; for .gguf also Q8_0, Q4_0, … As they are if absent.",
        show_default=False,
    ),
]
ShardSize = Annotated[str, typer.Option("--shard-size", metavar="SIZE", help="Most bytes of one file, as in 500MB.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is at OUT.")]

SINGLE = (".npz", ".h5", ".hdf5", ".gguf")  # formats whose files are written from their beginning to their end
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def convert(
    model: ModelPath,
    out: Out,
    dtype: DTypeName = None,
    shard_size: ShardSize = "5GB",
    force: Force = False,
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """Write a model in another format, type or number of files; rounding is to nearest even."""
    opened = open_model(model)
    note_new_folders(out)
    size = _bytes(shard_size)
    if cluster is not None and Path(out).suffix in SINGLE:
        raise UsageError(f"--cluster: {out} is written by one process; name a folder, or a .safetensors file")
    with workers(cluster) as executor, progress("writing", "bytes") as report:
        path = opened.convert(out, dtype=dtype, shard_bytes=size, force=force, executor=executor, progress=report)
    files = sorted(p for p in path.iterdir()) if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    if json:
        emit("convert", path=str(path), files=[file.name for file in files], bytes=size)
        return
    say([("written  ", ""), (str(path), "bold"), (f"  {units.plural(len(files), 'file')}, {units.size(size)}", "")])


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = _UNITS.get(found[2].upper()) if found else None
    if not found or unit is None or not (size := int(float(found[1]) * unit)):
        raise UsageError(f"--shard-size {text!r}: give a size such as 500MB or 2GB")
    return size
