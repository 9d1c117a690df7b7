"""weightkit run: the next-token table, or a generated text."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from weightkit.cli.output import NOTES, Json, ModelPath, Threads, UsageError, emit, open_model, parse_ids, say
from weightkit.errors import printable
from weightkit.report import units
from weightkit.report.tables import Column, table

if TYPE_CHECKING:
    from weightkit.engine.generate import Choice
    from weightkit.engine.writing import Writing
    from weightkit.model import Model
    from weightkit.running import Token

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
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on after the model's end of text.")]


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
        typer.Option("--max-tokens", "-n", min=1, metavar="N", help="Generate up to N tokens instead of the table."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Rows of the next-token table.")] = 10,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    stop: Stop = None,
    ignore_eos: IgnoreEos = False,
    threads: Threads = None,  # noqa: ARG001 - its callback has set it
    json: Json = False,
) -> None:
    """Run the model: the likeliest next tokens after a prompt, or with -n a text.

    Of a masked language model, what it puts in the place of [MASK].
    """
    if (prompt is None) == (ids is None):
        raise UsageError("give either a prompt, or token ids with --ids 1,403,407")
    opened = open_model(model)
    engine = opened.engine  # that it cannot be run at all is said first
    start = prompt if prompt is not None else parse_ids(ids or "")
    if max_tokens is not None:
        choice: Choice = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        writing = opened.write(start, max_tokens, stop=stop or (), ignore_eos=ignore_eos, **choice)
        _note_length(opened, len(writing.prompt) + max_tokens)
        _generate(opened, writing, top, json)
        return
    prompt_ids = opened.ids(start)
    _note_length(opened, len(prompt_ids))
    if engine.continues:
        _next(opened, prompt_ids, top, json)
    else:
        _fill(opened, prompt if prompt is not None else opened.decode(prompt_ids), prompt_ids, top, json)


def _note_length(model: Model, tokens: int) -> None:
    """Note where a text may go beyond what the model was made for."""
    most = model.engine.made_for
    if most is not None and not model.engine.has_encoder and tokens > most:
        NOTES.append(f"this model was made for texts of up to {most:,} tokens")


def _next(model: Model, ids: list[int], top: int, json: bool) -> None:
    rows = model.next_tokens(ids, top)
    if json:
        emit("run", text=model.decode(ids), ids=ids, next=rows)
    else:
        _print_table(rows)


def _fill(model: Model, text: str, ids: list[int], top: int, json: bool) -> None:
    tables = model.fill(ids, top)
    if json:
        emit("run", text=text, ids=ids, next=tables[0], masks=tables)
        return
    for number, rows in enumerate(tables, 1):
        if len(tables) > 1:
            say(*([""] if number > 1 else []), f"mask {number} of {len(tables)}")
        _print_table(rows)


def _generate(model: Model, writing: Writing, top: int, json: bool) -> None:
    if not json:
        parts = iter(writing)
        first = next(parts, "")  # an error stands alone, without the prompt before it
        stream(itertools.chain([writing.before, first], parts))
        return
    text, start = writing.whole(), writing.prompt
    ids = writing.ids if model.engine.has_encoder else start + writing.ids
    emit("run", text=text, ids=ids, next=_after(model, start, writing.ids, top), prompt_tokens=len(start))


def _after(model: Model, prompt: list[int], written: list[int], top: int) -> list[Token]:
    """The table after what was written; empty where the model has no position left for it."""
    engine, ids = model.engine, prompt + written
    if engine.has_encoder:
        return model.next_tokens(prompt, top, decoder_ids=[engine.config.decoder_start, *written])
    return [] if engine.most_tokens is not None and len(ids) > engine.most_tokens else model.next_tokens(ids, top)


def stream(parts: Iterable[str]) -> None:
    """Print parts of a text as they come, line breaks kept and all else that acts on a terminal escaped."""
    try:
        for part in parts:
            sys.stdout.write("\n".join(printable(line) for line in part.split("\n")))
            sys.stdout.flush()
    finally:
        sys.stdout.write("\n")  # where it breaks off, what is said of it begins a line


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
