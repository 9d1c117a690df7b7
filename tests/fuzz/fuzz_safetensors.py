"""Fuzz the safetensors reader: `python -m tests.fuzz.fuzz_safetensors -runs=100000`."""

from __future__ import annotations

from tests.fuzz.common import reader, run


def seeds() -> list[bytes]:
    """Small files that use every part of the format."""
    headers = [
        (b'{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}', 16),
        (b'{"__metadata__":{"a":"b"},"w":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]}}', 6),
        (
            b'{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]},"b":{"dtype":"F8_E4M3","shape":[],"data_offsets":[2,3]}}',
            3,
        ),
        (b"{}", 0),
    ]
    return [len(header).to_bytes(8, "little") + header + bytes(size) for header, size in headers]


if __name__ == "__main__":
    run(reader("safetensors"), seeds(), ".safetensors")
