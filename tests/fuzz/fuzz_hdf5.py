"""Fuzz the reader of HDF5 files; see tests.fuzz.common.

Checksums would hide what lies behind them from a fuzzer: with the environment variable FUZZ_WITHOUT_SUMS
they count as right.
"""

from __future__ import annotations

import io
import os
import zipfile
from typing import Any

import numpy as np

from tests.fuzz.common import reader, run


def seeds() -> list[bytes]:
    """Small files with groups and indexes of every form, and a .keras archive."""
    import h5py

    values = np.arange(63, dtype=np.float32).reshape(9, 7)
    chunked: dict[str, dict[str, Any]] = {
        "fixed": {"chunks": (4, 4)},
        "single": {"chunks": (9, 7), "compression": "gzip"},
        "extensible": {"chunks": (1, 2), "maxshape": (None, 7), "compression": "lzf"},
        "tree": {"chunks": (2, 2), "maxshape": (None, None), "shuffle": True, "fletcher32": True},
    }
    result = []
    for version in ("earliest", "latest"):
        for name in ("plain", *chunked):
            file = io.BytesIO()
            with h5py.File(file, "w", libver=version) as h5:
                h5.create_dataset(name, data=values, **chunked.get(name, {}))
                h5.create_dataset("never written", (2, 3), "f4", fillvalue=1)
                for index in range(20 if name == "plain" else 0):
                    h5.create_group(f"group/{index}")
            result.append(file.getvalue())
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as keras:
        keras.writestr("model.weights.h5", result[0])
    return [*result, archive.getvalue()]


if __name__ == "__main__":
    opener = reader("hdf5")
    if "FUZZ_WITHOUT_SUMS" in os.environ:
        from weightkit.formats.hdf5_structure import image

        image.sums_match = lambda blocks: True
    run(opener, seeds(), ".h5")
