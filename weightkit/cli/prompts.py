"""What verbs that run a model share: what they are given to run, how tokens are drawn, and text as it comes."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightkit.cli.output import NOTES, UsageError
from weightkit.errors import EngineError, printable

if TYPE_CHECKING:
    from weightkit.model import Model

MOST_TEXT = 16 << 20

Ids = Annotated[str | None, typer.Option(metavar="IDS", help="Token ids instead of a text, as in 1,403,407.")]
TokenIds = Annotated[
    list[str] | None, typer.Option(metavar="IDS", help="Token ids instead of a text, as in 1,403,407.")
]
Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token.")]
TopK = Annotated[int | None, typer.Option(help="Draw from the K likeliest only.")]
TopP = Annotated[
    float, typer.Option(metavar="P", help="Draw from the fewest likeliest that have this probability together.")
]
Seed = Annotated[int, typer.Option(help="Of the draws.")]
Stop = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="End before this text; as often as you like.", show_default=False),
]


def parse_ids(text: str) -> list[int]:
    """Token ids as they are given on the command line: numbers with commas or spaces between."""
    try:
        return [int(part) for part in re.split(r"\s*,\s*|\s+", text.strip())]
    except ValueError:
        raise UsageError(f"--ids {text!r}: give whole numbers with commas between, as in 1,403,407") from None


def note_length(model: Model, tokens: int, asked: int) -> None:
    """Note where a text went beyond what the model was made for, or ended where it has no more positions."""
    engine, most = model.engine, model.engine.made_for
    if most is None or engine.has_encoder or tokens <= most:
        return
    if engine.most_tokens is None:
        NOTES.append(f"this model was made for texts of up to {most:,} tokens")
    elif tokens < asked:
        NOTES.append(f"the text ends there because the model has no more than {most:,} positions")


def read_text(text: str) -> str:
    """The contents of a file, or the text itself where it does not look like a path."""
    if not text:
        raise UsageError("--text is empty: give a text file, or a text")
    if is_file(text):
        return read_file(text)
    if _is_folder(text) or re.fullmatch(r"\S*[/\\]\S*|\S+\.[A-Za-z0-9]{1,5}", text):
        raise _no_file(text)
    return text


def read_file(name: str) -> str:
    """The contents of a text file. Raises an error of one line where it is none."""
    path = Path(name)
    if not is_file(name):
        raise _no_file(name)
    if path.stat().st_size > MOST_TEXT:
        raise EngineError(f"{path}: more than {MOST_TEXT >> 20} MB of text; give a part of it")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise EngineError(f"{path}: not a text file in UTF-8") from None


def _no_file(name: str) -> UsageError:
    return UsageError(f"{name}: {'a folder, not a text file' if _is_folder(name) else 'no such file'}")


def is_file(text: str) -> bool:
    """Whether a text is the name of a file."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or a NUL in it
        return False


def _is_folder(text: str) -> bool:
    try:
        return Path(text).is_dir()
    except (OSError, ValueError):
        return False


def stream(parts: Iterable[str]) -> None:
    """Print parts of a text as they come, line breaks kept and all else that acts on a terminal escaped."""
    try:
        for part in parts:
            sys.stdout.write("\n".join(printable(line) for line in part.split("\n")))
            sys.stdout.flush()
    finally:
        sys.stdout.write("\n")  # where it breaks off, what is said of it begins a line
