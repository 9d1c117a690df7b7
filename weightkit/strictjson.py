"""JSON that strangers wrote, read strictly: bounded, no duplicate keys, no NaN, no lone surrogates."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

from weightkit import files
from weightkit.errors import FormatError

MOST_BYTES = 100 << 20  # safetensors caps its header here; a config or an index is far smaller
MOST_MEMORY = 14  # bytes for each byte of the text, beyond what no one misses; real headers take 3 to 10
_NEGLIGIBLE = 32 << 20
# Bytes of memory that a character of JSON stands for, outside of strings: a value, an array or object, half a
# string, a key of an object.
_COSTS = {b",": 44, b"[": 36, b"{": 36, b'"': 24, b":": 100}


def parse(raw: bytes, what: str) -> Any:
    """The value of the JSON text `raw`; `what` names it in the error.

    Raises FormatError on anything that RFC 8259 or a careful reader refuses: text that is not
    UTF-8, duplicate keys (two readers would disagree), NaN and Infinity, nesting deep enough to
    exhaust the stack, integers of thousands of digits, lone surrogates, values so many and so small
    that they would take many times the memory of the text.
    """
    try:
        text = raw.decode("utf-8")
        _require_modest(raw, text)
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise FormatError(f"{what}: JSON nested too deeply to be real") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise FormatError(f"{what}: not valid JSON: {str(error).splitlines()[0]}") from None
    if "\\u" in text and any(found[1] for found in _ESCAPE.finditer(text)):
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


def _require_modest(raw: bytes, text: str) -> None:
    """ValueError where millions of tiny values would take more memory than a text of this size should."""
    memory = sys.getsizeof(text) + sum(cost * raw.count(mark) for mark, cost in _COSTS.items())
    if memory > MOST_MEMORY * len(raw) + _NEGLIGIBLE:
        raise ValueError(f"too many values in {len(raw):,} bytes to be real")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = next(key for key, _ in pairs if result.pop(key, _TAKEN) is _TAKEN)
        raise ValueError(f"the key {twice!r} appears twice")
    return result


_TAKEN = object()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# Every escape of a valid text. A pair of surrogates is one character; the group is one without the other.
_ESCAPE = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|u([dD][89a-fA-F]..)|.)")
