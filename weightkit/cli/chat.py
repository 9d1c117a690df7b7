"""weightkit chat: what the assistant answers, once or in a conversation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from weightkit.cli.output import Json, ModelPath, Threads, UsageError, emit, open_model
from weightkit.cli.prompts import Seed, Stop, Temperature, TopK, TopP, stream

if TYPE_CHECKING:
    from weightkit.engine.generate import Choice
    from weightkit.engine.writing import Writing

Message = dict[str, str]
PROMPT = "> "


def chat(
    model: ModelPath,
    message: Annotated[
        str | None,
        typer.Argument(
            metavar="[MESSAGE]",
            help="What to say. Without it, the text of a pipe; on a terminal, a conversation.",
            show_default=False,
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What to tell the model first.", show_default=False)
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, metavar="N", help="Of one answer.")] = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    stop: Stop = None,
    threads: Threads = None,  # noqa: ARG001 - its callback has set it
    json: Json = False,
) -> None:
    """Say something to a model that has a chat template. Ctrl-C ends an answer, Ctrl-D a conversation."""
    opened = open_model(model)
    choice: Choice = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    messages = [] if system is None else [_message("system", system)]

    def answer() -> Writing:
        return opened.chat(messages, max_tokens, stop=stop or (), **choice)

    if message is None and sys.stdin.isatty():
        if json:
            raise UsageError("--json has one answer: give the message too")
        _converse(messages, answer)
        return
    messages.append(_message("user", _piped() if message is None else message))
    writing = answer()
    if json:
        text = writing.whole()
        emit("chat", text=text, ids=writing.prompt + writing.ids, prompt_tokens=len(writing.prompt))
    else:
        stream(writing)


def _converse(messages: list[Message], answer: Callable[[], Writing]) -> None:
    """Ask and answer in turn, until Ctrl-D, or Ctrl-C at a question. Within an answer Ctrl-C ends the answer."""
    try:
        while True:
            while not (said := _asked()):
                pass
            messages.append(_message("user", said))
            parts: list[str] = []
            with suppress(KeyboardInterrupt):
                stream(_kept(answer(), parts))
            messages.append(_message("assistant", "".join(parts)))
    except (EOFError, KeyboardInterrupt):
        sys.stdout.write("\n")


def _asked() -> str:
    """What is typed. The prompt of `input` would go to stderr."""
    sys.stdout.write(PROMPT)
    sys.stdout.flush()
    return input().strip()


def _piped() -> str:
    """What comes through a pipe."""
    try:
        text = sys.stdin.read().strip()
    except UnicodeDecodeError:
        raise UsageError("what comes through the pipe is not text in UTF-8") from None
    if not text:
        raise UsageError("there is nothing to answer: give a message, or text through a pipe")
    return text


def _kept(parts: Iterable[str], kept: list[str]) -> Iterator[str]:
    for part in parts:
        kept.append(part)
        yield part


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
