"""weightkit run: the next-token table, or a generated text."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from weightkit.cli.output import Json, ModelPath, UsageError, emit, open_model, parse_ids, say
from weightkit.errors import EngineError, printable
from weightkit.report import units
from weightkit.report.tables import Column, table

if TYPE_CHECKING:
    from weightkit.model import Model
    from weightkit.running import Token


def run(
    model: ModelPath,
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="The text to go on from.", show_default=False)
    ] = None,
    ids: Annotated[
        str | None, typer.Option(metavar="IDS", help="Token ids instead of a text, as in 1,403,407.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", "-n", min=1, metavar="N", help="Generate N tokens instead of the table."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Rows of the next-token table.")] = 10,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from the K likeliest only.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    json: Json = False,
) -> None:
    """Run the model: the likeliest next tokens after a prompt, or with -n a text."""
    if (prompt is None) == (ids is None):
        raise UsageError("give either a prompt, or token ids with --ids 1,403,407")
    opened = open_model(model)
    _ = opened.engine  # that it cannot be run at all is said first
    start = opened.ids(prompt) if prompt is not None else parse_ids(ids or "")
    if max_tokens is None:
        table_ = opened.next_tokens(start, top)
        if json:
            emit("run", text=_text(opened, start), ids=start, next=table_)
        else:
            _print_table(table_)
        return
    _generate(opened, start, max_tokens, (temperature, top_k, seed), top, json)


def _generate(
    model: Model, start: list[int], count: int, sampling: tuple[float, int | None, int], top: int, json: bool
) -> None:
    from weightkit.engine.generate import Sampling

    ids = list(start)
    shown = ""
    stream = model.stream(start, count, Sampling(*sampling))
    for token, _ in stream:
        ids.append(token)
        if not json:
            text = printable_text(_text(model, ids))
            # A piece can change the text before it; print only what is settled.
            if text.startswith(shown) and not text.endswith("\ufffd"):
                sys.stdout.write(text[len(shown) :])
                sys.stdout.flush()
                shown = text
    if json:
        emit("run", text=_text(model, ids), ids=ids, next=model.next_tokens(ids, top), prompt_tokens=len(start))
    else:
        sys.stdout.write("\n")


def printable_text(text: str) -> str:
    """Generated text as it is, line breaks kept and all else that acts on a terminal escaped."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _text(model: Model, ids: list[int]) -> str:
    """The text of ids; without a tokenizer, the ids themselves."""
    try:
        return model.tokenizer.decode(ids)
    except EngineError:
        return " ".join(map(str, ids))


def _print_table(rows: list[Token]) -> None:
    columns = [
        Column("token", style="bold"),
        Column("id", right=True, style="dim"),
        Column("logit", right=True),
        Column("probability", right=True, style="cyan"),
        Column(""),
    ]
    cells = [
        (
            f"'{row.token}'",
            str(row.id),
            f"{row.logit:.3f}",
            units.percent(row.probability),
            "▆" * round(30 * row.probability),
        )
        for row in rows
    ]
    say(*table(columns, cells))
