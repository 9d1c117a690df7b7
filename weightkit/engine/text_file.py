"""Text files as token ids: read piece by piece, as often as they are asked for, and not held."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

from weightkit.engine.tokenizer import LosesPlaceError, Tokenizer
from weightkit.errors import EngineError

PART = 1 << 16  # characters that are read at a time
MOST_WHOLE = 1 << 20  # bytes of a file whose ids are held, where its tokenizer cannot read it in pieces


class TextFile:
    """The token ids of a text file, to iterate over; they are counted first, so what is wrong with it is said first.

    Raises EngineError where it is not text in UTF-8, or too large for a tokenizer that cannot read it in pieces.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self._path = path
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return self._counted[0]

    def __iter__(self) -> Iterator[int]:
        held = self._counted[1]
        return iter(held) if held is not None else chain.from_iterable(self._tokenizer.stream(self._parts()))

    @cached_property
    def _counted(self) -> tuple[int, list[int] | None]:
        """How many ids there are; and the ids, where they come only all at once."""
        try:
            return sum(map(len, self._tokenizer.stream(self._parts()))), None
        except LosesPlaceError as error:
            if self._path.stat().st_size > MOST_WHOLE:
                most = f"{MOST_WHOLE >> 20} MB"
                raise EngineError(f"{self._path}: more than {most} of text; measure on a part of it: {error}") from None
        held = self._tokenizer.encode("".join(self._parts()))
        return len(held), held

    def _parts(self) -> Iterator[str]:
        with open(self._path, encoding="utf-8") as file:
            try:
                yield from iter(partial(file.read, PART), "")
            except UnicodeDecodeError:
                raise EngineError(f"{self._path}: not a text file in UTF-8") from None
