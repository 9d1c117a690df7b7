"""Writing: the text of ids that come one by one, given out as soon as it is settled, up to a stop string."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from weightkit.errors import EngineError

HALF = "\ufffd"  # how bytes read that are not a whole character
MOST_WAITING = 16  # tokens without settled text, after which it is what it is

Decode = Callable[[Sequence[int]], str]


class Settled:
    """Text of a growing list of ids, each part once.

    Only the last few ids are decoded again for each new one, so the work is linear. Those before the new ones
    are there because what a token reads like depends on its neighbour: SentencePiece drops the space that
    begins a text. The scheme is that of text-generation-inference.
    """

    def __init__(self, decode: Decode, context: Sequence[int] = ()) -> None:
        """`context` are the ids before the first, whose text is not given out again."""
        self._decode = decode
        self._ids = list(context)
        self._new = 0  # from here on they were not settled when the last part was given out
        self._waiting = 0  # ids since then
        self._given = 0  # characters of the text of these ids
        self.before = self._advance()

    def add(self, token_id: int) -> str:
        """What is settled with one more id."""
        self._ids.append(token_id)
        self._waiting += 1
        piece = self._advance()
        if self._waiting > MOST_WAITING:  # of special tokens, which have no text: they need not be kept
            self._ids.pop()
        return piece

    def _advance(self) -> str:
        text = self._decode(self._ids)
        whole = len(text.rstrip(HALF))
        if self._waiting > MOST_WAITING:  # no character is that long
            whole = len(text)
        piece = text[self._given : whole]
        self._given = max(self._given, whole)
        if piece and whole == len(text):
            self._ids, self._waiting = self._ids[self._new :], 0
            self._new, self._given = len(self._ids), len(self._decode(self._ids))
        return piece

    def end(self) -> str:
        """What was held back because more could have come."""
        return self._decode(self._ids)[self._given :]


class Stop:
    """Text in parts, up to the first of some strings: what may be the beginning of one is held back."""

    def __init__(self, strings: Sequence[str]) -> None:
        """Raises EngineError for an empty string, which every text holds."""
        if "" in strings:
            raise EngineError("a stop string is empty; give at least one character")
        self._strings = tuple(strings)
        self._held = ""
        self.reached = False

    def add(self, text: str) -> str:
        """What of the text so far can be given out."""
        self._held += text
        found = [at for string in self._strings if (at := self._held.find(string)) >= 0]
        self.reached = bool(found)
        return self._give(min(found) if found else len(self._held) - self._begun())

    def _begun(self) -> int:
        """How many of the last characters may begin a stop string."""
        lengths = range(min(len(self._held), max(map(len, self._strings), default=1) - 1), 0, -1)
        return next((n for n in lengths if any(s.startswith(self._held[-n:]) for s in self._strings)), 0)

    def _give(self, length: int) -> str:
        given, self._held = self._held[:length], self._held[length:]
        return given

    def end(self) -> str:
        """What was held back, where the text ends before a stop string."""
        return "" if self.reached else self._give(len(self._held))


class Writing:
    """A text as it is written: iterate for its parts. `ids` grows with it, and holds every id that was taken."""

    def __init__(
        self,
        ids: Iterable[int],
        decode: Decode,
        *,
        prompt: Sequence[int] = (),
        context: Sequence[int] = (),
        stop: Sequence[str] = (),
    ) -> None:
        """`ids` are asked for one by one, as what follows a prompt; `context` are those that the text goes on from.

        `before` is the text of the context, but for a last character that is not whole yet.
        """
        self.prompt, self.context = list(prompt), list(context)
        self.ids: list[int] = []
        self._given: list[str] = []
        self._coming = ids
        self._stop = Stop(stop)
        self._settled = Settled(decode, context)
        self.before = self._settled.before
        self._parts = self._written()

    def __iter__(self) -> Iterator[str]:
        return (part for part in self.steps() if part)

    def steps(self) -> Iterator[str]:
        """What of the text is settled with each id that is taken: it may be nothing yet."""
        for part in self._parts:
            self._given.append(part)
            yield part

    def _written(self) -> Iterator[str]:
        for token_id in self._coming:
            self.ids.append(token_id)
            yield self._stop.add(self._settled.add(token_id))
            if self._stop.reached:
                return
        yield self._stop.add(self._settled.end()) + self._stop.end()

    def whole(self) -> str:
        """All of it, with what was before."""
        for _ in self:
            pass
        return self.before + "".join(self._given)
