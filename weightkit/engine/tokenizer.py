"""Text to token ids and back, through the tokenizer.json beside the weights."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightkit import strictjson
from weightkit.errors import EngineError, FormatError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MASKS = ("[MASK]", "<mask>")  # of BERT and of RoBERTa
PIECE, MARGIN = 1 << 16, 1 << 10  # characters of a long text that are read at a time, and seen on both sides


class LosesPlaceError(EngineError):
    """A tokenizer drops characters, and with them the count of where it is in a text."""


@dataclass(frozen=True)
class Piece:
    """A part of a long text: `first` to `stop` of what is seen, which is MARGIN more on both sides."""

    seen: str
    first: int
    stop: int
    is_first: bool
    is_last: bool


class Tokenizer:
    """A thin face on the `tokenizers` package."""

    def __init__(self, raw: bytes, path: Path, settings: Mapping[str, Any] | None = None) -> None:
        """Read a tokenizer.json, which errors call `path`. Raises FormatError where it is broken.

        `settings` are those of tokenizer_config.json and special_tokens_map.json: which token is which.
        """
        import tokenizers

        self._path = path
        _require_sane(raw, path)
        self.named = _named(settings or {}, path)  # "bos_token": "<s>", …
        self._tokenizer: Any = self._call(tokenizers.Tokenizer.from_str, raw.decode("utf-8"))
        # How long texts were when the tokenizer was saved says nothing of those to come; transformers unsets it too.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call into the tokenizers package; whatever goes wrong there is a FormatError.

        Where its Rust code panics, it raises what is not an Exception, and writes a trace to stderr
        that no one can read: that is kept from the terminal.
        """
        try:
            with _quiet_stderr():
                return function(*arguments, **options)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise FormatError(f"{self._path}: not a sound tokenizer: {reason}") from None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The ids of a text, with the special tokens that the tokenizer itself adds, or without.

        A long text is read in pieces, for a token takes much memory on its way; see `_piece`.
        """
        try:
            parts = (text[at : at + PIECE] for at in range(0, len(text), PIECE))
            return [i for ids in self.stream(parts, special=special) for i in ids]
        except LosesPlaceError:
            return self._encode(text, add_special_tokens=special)

    def stream(self, parts: Iterable[str], *, special: bool = True) -> Iterator[list[int]]:
        """The ids of a text that comes in parts, some at a time: those of the whole, which is never there at once.

        Raises LosesPlaceError for a long text where the tokenizer drops what it does not know.
        """
        for piece in _pieces(parts):
            if piece.is_first and piece.is_last:
                yield self._encode(piece.seen, add_special_tokens=special)
            else:
                yield self._piece(piece, special=special)

    def _piece(self, piece: Piece, *, special: bool) -> list[int]:
        """The ids of the tokens that begin in a piece; special ones only at the ends of the text.

        What they are is decided with text on both sides of the piece, so that they are those of the whole.
        """
        found = self._encoding(piece.seen, add_special_tokens=special)
        ids, starts_and_ends = found.ids, found.offsets  # each made anew whenever it is asked for
        own = [i for i, is_added in enumerate(found.special_tokens_mask) if not is_added]
        if piece.seen.strip() and (not own or starts_and_ends[own[-1]][1] < len(piece.seen.rstrip())):
            raise LosesPlaceError(f"{self._path}: drops what it does not know, so it cannot read a text in pieces")
        kept = [ids[i] for i in own if piece.first <= starts_and_ends[i][0] < piece.stop]
        before = ids[: own[0]] if own and piece.is_first else []
        after = ids[own[-1] + 1 :] if own and piece.is_last else []
        return [*before, *kept, *after]

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(self._encoding(text, add_special_tokens=add_special_tokens).ids)

    def _encoding(self, text: str, *, add_special_tokens: bool) -> Any:
        """What the tokenizers package makes of a text: ids, and where each is from."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise EngineError("the text holds bytes that are not UTF-8") from None
        return self._call(self._tokenizer.encode, text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens left out."""
        return self._decode(ids, skip_special_tokens=True)

    def _decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return str(self._call(self._tokenizer.decode, list(ids), skip_special_tokens=skip_special_tokens))

    def token(self, token_id: int) -> str:
        """One token as it reads in a text: with its leading space, special tokens by name."""
        piece = self._tokenizer.id_to_token(token_id)
        if piece is None:
            return f"<{token_id}>"
        # Decoders drop a leading space at the start of a text, so decode the token after another one.
        anchor = self._decode([token_id, token_id], skip_special_tokens=False)
        alone = self._decode([token_id], skip_special_tokens=False)
        second = anchor[len(alone) :] if anchor.startswith(alone) else alone
        return str(piece if not second or "\ufffd" in second else second)

    def id_named(self, name: str) -> int | None:
        """The id of a special token by what it is for, as in eos_token; None without one."""
        found: int | None = self._tokenizer.token_to_id(self.named[name]) if name in self.named else None
        return found

    @property
    def mask(self) -> str:
        """The token that stands for one to be guessed. Raises EngineError where there is none."""
        for token in (self.named.get("mask_token"), *MASKS):
            if token is not None and self._tokenizer.token_to_id(token) is not None:
                return token
        raise EngineError(f"{self._path}: has no mask token, so nothing can be asked of a masked language model")

    @property
    def last_id(self) -> int:
        """The largest id that the tokenizer can give."""
        return max(self._tokenizer.get_vocab().values(), default=-1)

    def ids_matching(self, pattern: re.Pattern[str]) -> list[int]:
        """The ids of the tokens whose names a pattern is found in, in order."""
        return sorted(i for token, i in self._tokenizer.get_vocab().items() if pattern.search(token))

    def id_of(self, text: str) -> int:
        """The id of the one token that `text` is. Raises EngineError where it is none, or several."""
        exact = self._tokenizer.token_to_id(text)
        if exact is not None:
            return int(exact)
        ids = self._encode(text, add_special_tokens=False)
        # Some tokenizers put a space before every text: the token that reads " Paris" is what "Paris" becomes.
        bare = self._encode(text.removeprefix(" "), add_special_tokens=False)
        if len(bare) == 1 and self.token(bare[0]) == text:
            return int(bare[0])
        if len(ids) != 1:
            pieces = " ".join(repr(self.token(i)) for i in ids[:8])
            raise EngineError(f"{text!r} is {len(ids)} tokens, not one: {pieces}; name one of them, or an id")
        if ids[0] == self._unknown:
            raise EngineError(f"{text!r} is not a token of this model")
        return int(ids[0])

    @property
    def _unknown(self) -> int | None:
        """The id that stands for whatever is not in the vocabulary, if there is one."""
        token = getattr(self._tokenizer.model, "unk_token", None)
        found: int | None = self._tokenizer.token_to_id(token) if token else None
        return found


def _pieces(parts: Iterable[str]) -> Iterator[Piece]:
    """A text that comes in parts, PIECE characters at a time; a text that is not much longer is one piece."""
    seen, first, is_first = "", 0, True
    for part in parts:
        seen += part
        while len(seen) > first + PIECE + MARGIN:
            yield Piece(seen[: first + PIECE + MARGIN], first, first + PIECE, is_first, is_last=False)
            kept = max(0, first + PIECE - MARGIN)
            seen, first, is_first = seen[kept:], first + PIECE - kept, False
    yield Piece(seen, first, len(seen), is_first, is_last=True)


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """File descriptor 2 leads nowhere meanwhile."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _named(settings: Mapping[str, Any], path: Path) -> dict[str, str]:
    """The special tokens by what they are for; an old file has them as objects."""
    found = {}
    for name in NAMED:
        value = settings.get(name)
        token = value.get("content") if isinstance(value, dict) else value
        if token is not None and not isinstance(token, str):
            raise FormatError(f"{path.parent}: tokenizer_config.json: its {name} is not a token")
        if token is not None:
            found[name] = token
    return found


def _require_sane(raw: bytes, path: Path) -> None:
    """Refuse JSON that two readers would take differently, and ids on which the tokenizers package would panic."""
    value = strictjson.parse(raw, str(path))
    model = value.get("model") if isinstance(value, dict) else None
    if not isinstance(model, dict):
        raise FormatError(f"{path}: not a tokenizer: it has no model")
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        ids = list(vocab.values())
        if not all(type(i) is int and 0 <= i < 1 << 32 for i in ids):
            raise FormatError(f"{path}: its vocabulary has an id that is not a whole number from 0 to 2³² - 1")
        if len(set(ids)) != len(ids):
            raise FormatError(f"{path}: its vocabulary gives one id to two tokens")
