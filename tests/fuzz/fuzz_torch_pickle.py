"""Coverage-guided fuzzing of the PyTorch reader: `python -m tests.fuzz.fuzz_torch_pickle -runs=100000`.

An input is one byte of how to wrap the rest: as it is, as the pickle in an archive, or as that of the
old layout, so that the search reaches the pickle machine without having to guess checksums.
"""

from __future__ import annotations

from pathlib import Path

from tests import pickles
from tests.fuzz import common
from weightkit.formats.shard import ShardFile


def unwrapping(open_file: common.OpenFile) -> common.OpenFile:
    """`open_file`, on what an input stands for."""

    def opened(path: Path) -> ShardFile:
        raw = path.read_bytes()
        kind, body = raw[:1], raw[1:]
        if kind == b"z":
            body = pickles.zipped({"a/data.pkl": body, "a/data/0": pickles.FOUR})
        elif kind == b"l":
            body = pickles.legacy(body)
        path.write_bytes(body)
        return open_file(path)

    return opened


def seeds() -> list[bytes]:
    """Both layouts as they are, and pickles of each kind of value."""
    state = pickles.mapping({"w": pickles.tensor(), "t": pickles.tensor((2, 2), (1, 2)), "n": pickles.number(1 << 70)})
    objects = pickles.name("argparse", "Namespace") + b")\x81" + pickles.mapping({"lr": b"G" + bytes(8)}) + b"b"
    sizes = pickles.call("torch", "Size", pickles.group(pickles.number(2)))
    nested = pickles.mapping({"model": state, "args": objects, "size": sizes, "x": b"](NK\1M\1\1\x88\x89e"})
    oldest = b"(dS'w'\nq\0I1\nsV\\u00e9\np1\nL5L\ns."
    newest = b"\x80\x04\x95\x10" + bytes(7) + b"\x8c\5torch\x94\x8c\4Size\x94\x93\x8f(K\1\x90\x85R\x94."
    files = [pickles.archive(nested), pickles.legacy(nested)]
    return [
        *(b"r" + file for file in files),
        *(b"z" + raw for raw in (pickles.pickled(nested), oldest, newest)),
        b"l" + nested,
    ]


if __name__ == "__main__":
    common.run(unwrapping(common.reader("torch_pickle")), seeds(), ".pt")
