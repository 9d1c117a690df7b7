"""JSON that strangers wrote, read strictly: bounded, no duplicate keys, no NaN, no lone surrogates."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from weightkit import files
from weightkit.errors import FormatError

MOST_BYTES = 100 << 20  # safetensors caps its header here; a config or an index is far smaller


def parse(raw: bytes, what: str) -> Any:
    """The value of the JSON text `raw`; `what` names it in the error.

    Raises FormatError on anything that RFC 8259 or a careful reader refuses: text that is not
    UTF-8, duplicate keys (two readers would disagree), NaN and Infinity, nesting deep enough to
    exhaust the stack, integers of thousands of digits, lone surrogates.
    """
    try:
        text = raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise FormatError(f"{what}: JSON nested too deeply to be real") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise FormatError(f"{what}: not valid JSON: {str(error).splitlines()[0]}") from None
    if "\\u" in text and not _encodable(value):
        raise FormatError(f"{what}: not valid JSON: a lone surrogate is not a character")
    return value


def read(path: Path) -> Any:
    """The JSON value in the file at `path`. Raises FormatError as `parse` does."""
    return parse(read_bytes(path), str(path))


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file at `path`. Raises FormatError when it holds something else."""
    value = read(path)
    if not isinstance(value, dict):
        raise FormatError(f"{path}: holds a JSON {type(value).__name__}, expected an object")
    return value


def read_bytes(path: Path) -> bytes:
    """The bytes of a small regular file. A FIFO or a device is refused, never waited on."""
    size = files.size(path)
    if size > MOST_BYTES:
        raise FormatError(f"{path}: {size:,} bytes is too large for a JSON file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r} appears twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
