"""What goes wrong, said in one line: what is wrong, where, what to do."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable
from typing import Any


class WeightkitError(Exception):
    """Base of every error that weightkit raises on purpose; its text is ready for a person."""


class FormatError(WeightkitError):
    """A file is missing, truncated, malformed or of a kind that cannot be read."""


class MissingError(FormatError):
    """A file cannot be opened: it is not there, not any more, or not for the process that was to read it."""


class PackingError(FormatError):
    """Weights are packed in a way that exists, or may, and that is not unpacked here."""

    def __init__(self, where: str, packed_as: str) -> None:
        super().__init__(f"{where}: packed as {packed_as}, which is not unpacked")
        self.where, self.packed_as = where, packed_as

    def __reduce__(self) -> tuple[type[PackingError], tuple[str, str]]:
        return PackingError, (self.where, self.packed_as)  # so that it comes back from other processes


class ConfigError(WeightkitError):
    """A config.json is malformed, or says something that the weights contradict."""


class AddressError(WeightkitError):
    """An address does not parse, or names nothing in this model."""


class NotCapturedError(AddressError, KeyError):
    """A trace does not hold what an address names."""

    __str__ = Exception.__str__  # that of KeyError puts quotes around a sentence


class EditError(WeightkitError):
    """An edit cannot be made as asked."""


class PatchError(WeightkitError):
    """A patch is damaged, or was made for another model."""


class SaveError(WeightkitError):
    """A checkpoint cannot be written; the destination is as it was."""


class EngineError(WeightkitError):
    """The model cannot be run as asked (ids, tokenizer, a missing head, an unknown family)."""


class ClusterError(WeightkitError):
    """Work cannot be handed to other processes, or they are gone."""


def printable(text: str) -> str:
    """`text` with everything that a terminal could act on escaped: names in files are data."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nearest(word: str, candidates: Iterable[str]) -> str:
    """The candidate most like `word`, as the end of an error message, or nothing."""
    match = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def one_line(names: Iterable[str], most: int = 8) -> str:
    """A list of names for an error message, cut where it would grow past a line."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def whole_number(value: Any, what: str, *, least: int = 0) -> int:
    """The value, where it is a whole number from `least` on; EngineError, which calls it `what`, where it is not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
        raise EngineError(f"{what} is a whole number from {least}, not {value!r}")
    return int(value)
