"""Fuzz the reader of .npz and .npy files; see tests.fuzz.common."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from tests.fuzz.common import reader, run


def seeds() -> list[bytes]:
    """Archives stored and compressed, in both orders and both endiannesses, and an array alone."""
    arrays: dict[str, Any] = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6, dtype=">i4").reshape(3, 2)),
        "s": np.array(True),
    }
    result = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, **arrays)
        result.append(file.getvalue())
    file = io.BytesIO()
    np.save(file, arrays["w"])
    return [*result, file.getvalue()]


if __name__ == "__main__":
    run(reader("npz"), seeds(), ".npz")
