"""How much faster two Dask workers of one thread each are than one; run by analysis.py."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

import weightkit as wk
from weightkit.cluster import connect

ROUNDS = 3
MATRICES, SIDE = 24, 1536


def matrices(path: Path) -> Path:
    """A checkpoint of normal random bf16 matrices."""
    from safetensors.numpy import save_file

    generator = np.random.default_rng(0)
    shape = (SIDE, SIDE)
    save_file({f"t{i}": generator.standard_normal(shape).astype(ml_dtypes.bfloat16) for i in range(MATRICES)}, path)
    return path


def two_against_one(path: Path) -> Iterator[tuple[str, float, str]]:
    """The median ratio of times for the spectra of a file, in turn, after a round that loads what is needed."""
    model = wk.open(matrices(path))
    with connect("local:1") as one, connect("local:2") as two:
        want = repr(model.spectrum())
        ratios = []
        for _ in range(ROUNDS + 1):
            times = []
            for executor in (one, two):
                start = time.perf_counter()
                found = model.spectrum(executor=executor)
                times.append(time.perf_counter() - start)
                if repr(found) != want:
                    raise SystemExit("workers had other results")
            ratios.append(times[0] / times[1])
    yield "times as fast with two Dask workers as with one", statistics.median(ratios[1:]), "at least 1.6"
