"""What all fuzz targets share. They need atheris, which is no part of the test requirements.

A target is run as `python -m tests.fuzz.fuzz_<format>`, with options of libFuzzer such as -runs=100000
or -max_total_time=300.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weightkit.errors import WeightkitError
from weightkit.formats.shard import ShardFile

MOST_READ = 4096  # elements of each tensor
MOST_BYTES = 1 << 16  # of an input

OpenFile = Callable[[Path], ShardFile]


def reader(module: str) -> OpenFile:
    """`open_file` of a module of weightkit.formats, watched by the fuzzer from its first line."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["weightkit"]):
        opener: OpenFile = importlib.import_module(f"weightkit.formats.{module}").open_file
    return opener


def run(open_file: OpenFile, seeds: list[bytes], suffix: str) -> None:
    """Fuzz `open_file`, beginning with `seeds`. Whatever it raises must be a WeightkitError of one line."""
    atheris: Any = importlib.import_module("atheris")
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for index, seed in enumerate(seeds):
            (corpus / str(index)).write_bytes(seed)
        path = Path(folder, f"input{suffix}")

        def test(raw: bytes) -> None:
            path.write_bytes(raw)
            try:
                for source in open_file(path).tensors.values():
                    source.read(0, min(MOST_READ, _size(source.shape)))
            except WeightkitError as error:
                if len(str(error).splitlines()) != 1:
                    raise AssertionError(f"an error of several lines: {error}") from error

        atheris.Setup([*sys.argv, f"-max_len={MOST_BYTES}", str(corpus)], test)
        atheris.Fuzz()


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
