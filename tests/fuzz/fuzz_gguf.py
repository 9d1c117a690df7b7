"""Fuzz the GGUF reader: `python -m tests.fuzz.fuzz_gguf -runs=100000`."""

from __future__ import annotations

import struct

from tests.fuzz.common import reader, run


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def seeds() -> list[bytes]:
    """Small files that use every part of the format."""
    value = _text(b"general.architecture") + struct.pack("<I", 8) + _text(b"llama")
    number = _text(b"llama.block_count") + struct.pack("<II", 4, 1)
    tokens = _text(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + _text(b"a") + _text(b"b")
    model = _text(b"tokenizer.ggml.model") + struct.pack("<I", 8) + _text(b"llama")
    plain = _text(b"w") + struct.pack("<IQQIQ", 2, 4, 2, 0, 0)
    packed = _text(b"q") + struct.pack("<IQIQ", 1, 32, 2, 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 4) + value + number + tokens + model + plain + packed
    big = b"GGUF" + struct.pack(">IQQ", 3, 0, 0)
    return [head + bytes(-len(head) % 32) + bytes(64), big, b"GGUF" + struct.pack("<IQQ", 2, 0, 0)]


if __name__ == "__main__":
    run(reader("gguf"), seeds(), ".gguf")
