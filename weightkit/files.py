"""Files that strangers wrote, opened with care: only regular ones, and errors in one line."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from weightkit.errors import FormatError


def size(path: Path) -> int:
    """The size in bytes of the regular file at `path`.

    Raises FormatError for anything else: a FIFO or a device is refused, never waited on.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise FormatError(f"{path}: cannot be opened: {reason}") from None
    if not stat.S_ISREG(status.st_mode):
        raise FormatError(f"{path}: is not a regular file")
    return status.st_size


def open_bytes(path: Path) -> BinaryIO:
    """The regular file at `path`, open for reading. Raises FormatError as `size` does."""
    size(path)
    try:
        return open(path, "rb")
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None
