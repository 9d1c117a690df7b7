"""Small files: config, tokenizer and the like, patched to the byte.

A change of a JSON file is a list of what is at which path, before and after, where such a list and a way of
writing JSON give both files to the byte; else the patch has both texts, packed.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from weightkit import strictjson
from weightkit.checkpoint import ADAPTER, CHAT_TEMPLATE, CONFIG, GENERATION, TOKENIZER, Checkpoint, inside
from weightkit.errors import FormatError, PatchError
from weightkit.surgery.place import one_file

NAMES = (
    CONFIG, GENERATION, ADAPTER, TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", CHAT_TEMPLATE, "preprocessor_config.json",
)  # fmt: skip
STYLES: tuple[dict[str, Any], ...] = tuple(
    {"indent": indent, "ensure_ascii": ascii, "end": end, "tight": tight}
    for indent, tight in ((2, False), (None, False), (None, True), (4, False), (1, False))
    for ascii in (False, True)
    for end in ("\n", "")
)
MOST_UNPACKED = strictjson.MOST_BYTES


def texts(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The small files of a model that a patch covers; none for a single file, which may lie in any folder."""
    if one_file(checkpoint):
        return {}
    found = {}
    for name in NAMES:
        path = checkpoint.folder / name
        if name in checkpoint.texts:
            text = checkpoint.texts[name]
        else:
            text = strictjson.read_bytes(inside(checkpoint.folder, path)) if path.exists() else None
        if text is not None:
            found[name] = text
    return found


@dataclass(frozen=True)
class FileChange:
    """What a patch does to one small file."""

    name: str
    hashes: tuple[str | None, str | None]  # SHA-256 before and after; None where there is no such file
    ops: list[dict[str, Any]] | None = None  # of JSON: {"path": …, "before": …, "after": …}
    styles: tuple[int, int] = (0, 0)  # how the JSON is written, before and after
    packed: tuple[bytes, bytes] = (b"", b"")  # the texts, where `ops` does not say it

    @property
    def inverse(self) -> FileChange:
        """What undoes it."""
        ops = None if self.ops is None else [_swapped(op) for op in reversed(self.ops)]
        return FileChange(self.name, self.hashes[::-1], ops, self.styles[::-1], self.packed[::-1])

    def to_json(self) -> dict[str, Any]:
        """The change as the patch has it; packed texts are bytes of their own."""
        value: dict[str, Any] = {"name": self.name, "sha256": list(self.hashes)}
        if self.ops is not None:
            return value | {"ops": self.ops, "styles": list(self.styles)}
        return value | {"sizes": [len(text) for text in self.packed]}

    def applied(self, text: bytes | None, where: str) -> bytes | None:
        """The file after the change; None where it is gone. PatchError where it is not what was patched."""
        if _hash(text) != self.hashes[0]:
            state = "is not there" if text is None else "is not as it was when the patch was made"
            raise PatchError(f"{where}: {self.name} {state}, and the patch changes it")
        if self.hashes[1] is None:
            return None
        if self.ops is None:
            result = _unpack(self.packed[1])
        else:
            value = strictjson.parse(text or b"", self.name)
            for op in self.ops:
                value = _done(value, op)
            result = _written(value, STYLES[self.styles[1]])
        if _hash(result) != self.hashes[1]:
            raise PatchError(f"{where}: the patch does not give the {self.name} that it says: it is damaged")
        return result


def changes(before: dict[str, bytes], after: dict[str, bytes]) -> list[FileChange]:
    """What leads from some files to others."""
    return [change(name, before.get(name), after.get(name)) for name in NAMES if before.get(name) != after.get(name)]


def change(name: str, before: bytes | None, after: bytes | None) -> FileChange:
    """What leads from one file to another; either may not be there."""
    hashes = _hash(before), _hash(after)
    if before is not None and after is not None:
        try:
            values = [strictjson.parse(text, name) for text in (before, after)]
        except FormatError:
            values = []
        styles = [_style(value, text) for value, text in zip(values, (before, after), strict=False)]
        if values and None not in styles:
            found = FileChange(name, hashes, list(_ops(values[0], values[1], "")), (styles[0] or 0, styles[1] or 0))
            if _gives(found, before, after):
                return found
    return FileChange(name, hashes, packed=(_pack(before), _pack(after)))


def joined(first: FileChange, second: FileChange) -> FileChange | None:
    """Two changes of one file as one; None where they cancel out."""
    hashes = first.hashes[0], second.hashes[1]
    if hashes[0] == hashes[1]:
        return None
    if first.ops is not None and second.ops is not None:
        return FileChange(first.name, hashes, [*first.ops, *second.ops], (first.styles[0], second.styles[1]))
    between = first.packed[1] if first.ops is None else second.packed[0]
    text = None if first.hashes[1] is None else _unpack(between)
    return change(first.name, first.inverse.applied(text, "the patch"), second.applied(text, "the patch"))


def _gives(found: FileChange, before: bytes, after: bytes) -> bool:
    """Whether a change leads from one text to the other, and back."""
    try:
        return found.applied(before, "") == after and found.inverse.applied(after, "") == before
    except PatchError:
        return False


def parse(value: Any, packed: bytes) -> FileChange:
    """A change of JSON with its bytes. PatchError where it is none."""
    if not isinstance(value, dict) or value.get("name") not in NAMES:
        raise PatchError("it changes a file that is not one of a model's small files")
    hashes, ops, styles, sizes = (value.get(name) for name in ("sha256", "ops", "styles", "sizes"))
    pair = isinstance(hashes, list) and len(hashes) == 2 and all(h is None or isinstance(h, str) for h in hashes)
    if not pair or not isinstance(hashes, list):
        raise PatchError("it does not say what a small file is before and after")
    if isinstance(ops, list) and all(isinstance(op, dict) and isinstance(op.get("path"), str) for op in ops):
        known = isinstance(styles, list) and len(styles) == 2
        if known and isinstance(styles, list) and all(type(s) is int and 0 <= s < len(STYLES) for s in styles):
            return FileChange(value["name"], (hashes[0], hashes[1]), ops, (styles[0], styles[1]))
    whole = isinstance(sizes, list) and len(sizes) == 2 and all(type(n) is int and n >= 0 for n in sizes)
    if whole and isinstance(sizes, list) and sum(sizes) == len(packed):
        texts = packed[: sizes[0]], packed[sizes[0] :]
        return FileChange(value["name"], (hashes[0], hashes[1]), packed=texts)
    raise PatchError("what it does to a small file is not understood")


# ── JSON ───────────────────────────────────────────────────────────────────────────────────────────


def _ops(before: Any, after: Any, path: str) -> Iterator[dict[str, Any]]:
    """What differs between two JSON values, by its place as JSON Pointers have it (RFC 6901)."""
    if isinstance(before, dict) and isinstance(after, dict):
        for at, key in reversed(list(enumerate(before))):
            if key not in after:
                yield {"path": _below(path, key), "before": before[key], "at": at}
        for at, (key, value) in enumerate(after.items()):
            if key not in before:
                yield {"path": _below(path, key), "after": value, "at": at}
            else:
                yield from _ops(before[key], value, _below(path, key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, pair in enumerate(zip(before, after, strict=True)):
            yield from _ops(*pair, f"{path}/{i}")
    elif type(before) is not type(after) or before != after:
        yield {"path": path, "before": before, "after": after}


def _below(path: str, key: str) -> str:
    return f"{path}/{key.replace('~', '~0').replace('/', '~1')}"


def _done(value: Any, op: dict[str, Any]) -> Any:
    """A JSON value after one change, which is made in place. PatchError where the place is not as it says."""
    if not op["path"]:
        return op.get("after")
    *above, last = [part.replace("~1", "/").replace("~0", "~") for part in op["path"].split("/")[1:]]
    inner = value
    try:
        for part in above:
            inner = inner[int(part) if isinstance(inner, list) else part]
        if isinstance(inner, list):
            inner[int(last)] = op["after"]
        elif "after" in op and last in inner:
            inner[last] = op["after"]
        elif "after" in op:
            pairs = list(inner.items())
            pairs.insert(op["at"], (last, op["after"]))
            inner.clear()
            inner.update(pairs)
        else:
            del inner[last]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise PatchError(f"there is nothing at {op['path']}") from None
    return value


def _swapped(op: dict[str, Any]) -> dict[str, Any]:
    names = {"before": "after", "after": "before"}
    return {names.get(name, name): value for name, value in op.items()}


def _style(value: Any, text: bytes) -> int | None:
    """Which way of writing gives this text."""
    return next((i for i, style in enumerate(STYLES) if _written(value, style) == text), None)


def _written(value: Any, style: dict[str, Any]) -> bytes:
    separators = (",", ":") if style["tight"] else None
    text = json.dumps(value, indent=style["indent"], ensure_ascii=style["ensure_ascii"], separators=separators)
    return (text + style["end"]).encode("utf-8", "surrogatepass")


# ── bytes ──────────────────────────────────────────────────────────────────────────────────────────


def _hash(text: bytes | None) -> str | None:
    return None if text is None else hashlib.sha256(text).hexdigest()


def _pack(text: bytes | None) -> bytes:
    return b"" if text is None else zlib.compress(text, 9)


def _unpack(packed: bytes) -> bytes:
    made = zlib.decompressobj()
    try:
        text = made.decompress(packed, MOST_UNPACKED)
    except zlib.error:
        raise PatchError("a small file in it cannot be unpacked") from None
    if not made.eof or made.unused_data:
        raise PatchError("a small file in it is cut short, or too large")
    return text
