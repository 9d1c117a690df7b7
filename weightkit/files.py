"""Files that strangers wrote, opened with care: only regular ones, and errors in one line.

A file may also lie elsewhere: `elsewhere` maps the path of a stand-in to how it is read there.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

from weightkit.errors import FormatError, MissingError

BUFFER = 256 << 10  # bytes of one request for a header

Fetch = Callable[[int, int], bytes]  # (first byte, byte after the last) → the bytes between

Opener = Callable[[str], tuple[int, Fetch]]  # the name of a file in a folder → its size, and how it is fetched
Abroad = tuple[tuple[Path, Opener], ...]  # folders of stand-ins, and how to read what they stand for

_ELSEWHERE: dict[Path, tuple[int, Fetch]] = {}
_OPENERS: dict[Path, Opener] = {}  # of folders that were made here
_LEARNED: dict[Path, Opener] = {}  # of folders that another process made, which need not be there


def put_elsewhere(path: Path, size: int, fetch: Fetch) -> None:
    """From now on, read `path`, which no link leads to, by fetching ranges of a file of `size` bytes."""
    _ELSEWHERE[path] = (size, fetch)


def put_folder_elsewhere(folder: Path, opener: Opener) -> None:
    """Have other processes read the files of a folder that lie elsewhere by an opener, which pickles."""
    _OPENERS[folder] = opener


def forget(folder: Path) -> None:
    """Files below a folder are read from where they are again."""
    for path in [path for path in _ELSEWHERE if path.is_relative_to(folder)]:
        del _ELSEWHERE[path]
    _OPENERS.pop(folder, None)


def abroad() -> Abroad:
    """What another process has to `learn` so that it can read files that lie elsewhere as this one does."""
    return tuple(_OPENERS.items())


def learn(abroad: Abroad) -> None:
    """Read files that another process has stand-ins of."""
    for folder, opener in abroad:
        if folder not in _LEARNED:
            forget(folder)  # a child that was forked has connections that are its parent's
            _LEARNED[folder] = opener


def is_elsewhere(path: Path) -> bool:
    """Whether a file is read from elsewhere, so that it cannot be mapped into memory."""
    if path not in _ELSEWHERE and path.parent in _LEARNED:
        put_elsewhere(path, *_LEARNED[path.parent](path.name))
    return path in _ELSEWHERE


def version(path: Path) -> int:
    """What changes when a file does, so that nothing that is kept of it is used too long."""
    return 0 if is_elsewhere(path) else os.stat(path).st_mtime_ns


def size(path: Path) -> int:
    """The size in bytes of the regular file at `path`.

    Raises MissingError where there is none, FormatError for a FIFO or a device, which is never waited on.
    """
    if is_elsewhere(path):
        return _ELSEWHERE[path][0]
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MissingError(f"{path}: cannot be opened: {reason}") from None
    if not stat.S_ISREG(status.st_mode):
        raise FormatError(f"{path}: is not a regular file")
    return status.st_size


def open_bytes(path: Path, *, buffered: bool = True) -> BinaryIO:
    """The regular file at `path`, open for reading. Raises FormatError as `size` does."""
    if is_elsewhere(path):
        ranges = _Ranges(path, *_ELSEWHERE[path])
        return cast(BinaryIO, io.BufferedReader(ranges, BUFFER) if buffered else ranges)
    size(path)
    try:
        return open(path, "rb", buffering=-1 if buffered else 0)
    except OSError as error:
        raise MissingError(f"{path}: cannot be read: {error.strerror}") from None


class _Ranges(io.RawIOBase):
    """A file that is read by fetching ranges of it."""

    def __init__(self, path: Path, size: int, fetch: Fetch) -> None:
        self._path, self._size, self._fetch, self._position = path, size, fetch, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._position + len(view), self._size)
        if end <= self._position:
            return 0
        data = self._fetch(self._position, end)
        if len(data) != end - self._position:
            raise FormatError(f"{self._path}: {len(data):,} bytes came where {end - self._position:,} were asked for")
        view[: len(data)] = data
        self._position = end
        return len(data)
