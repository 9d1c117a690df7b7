"""weightkit run: the next-token table, or a generated text."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Annotated

import typer

from weightkit.cli.output import (
    Csv,
    Json,
    Markdown,
    ModelPath,
    Threads,
    UsageError,
    emit,
    given,
    open_model,
    rows,
    say,
)
from weightkit.cli.prompts import Ids, Seed, Stop, Temperature, TopK, TopP, note_length, parse_ids, stream
from weightkit.report import units
from weightkit.report.tables import Column
from weightkit.running import Token

if TYPE_CHECKING:
    from weightkit.engine.generate import Choice
    from weightkit.engine.writing import Writing
    from weightkit.model import Model

IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on after the model's end of text.")]
DRAWING = ("temperature", "top_k", "top_p", "seed", "stop", "ignore_eos")
FIELDS = [field.name for field in dataclasses.fields(Token)]


def run(
    context: typer.Context,
    model: ModelPath,
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="The text to go on from.", show_default=False)
    ] = None,
    ids: Ids = None,
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
    csv: Csv = False,
    markdown: Markdown = False,
) -> None:
    """Run the model: the likeliest next tokens after a prompt, or with -n a text.

    Of a masked language model, what it puts in the place of [MASK].
    """
    if (prompt is None) == (ids is None):
        raise UsageError("give either a prompt, or token ids with --ids 1,403,407")
    if max_tokens is None and (drawing := given(context, *DRAWING)):
        raise UsageError(f"{drawing[0]} goes with -n N, which generates a text")
    if max_tokens is not None and (table := given(context, *([] if json else ["top"]), "csv", "markdown")):
        raise UsageError(f"{table[0]} is for the table of next tokens, which is not printed with -n N")
    opened = open_model(model)
    engine = opened.engine  # that it cannot be run at all is said first
    start = prompt if prompt is not None else parse_ids(ids or "")
    if max_tokens is not None:
        choice: Choice = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        writing = opened.write(start, max_tokens, stop=stop or (), ignore_eos=ignore_eos, **choice)
        _generate(opened, writing, top, json)
        note_length(opened, len(writing.prompt) + len(writing.ids), len(writing.prompt) + max_tokens)
        return
    prompt_ids = opened.ids(start)
    tables = [opened.next_tokens(prompt_ids, top)] if engine.continues else opened.fill(prompt_ids, top)
    note_length(opened, len(prompt_ids), len(prompt_ids))
    if json:
        text = prompt if prompt is not None and not engine.continues else opened.decode(prompt_ids)
        masks = {} if engine.continues else {"masks": tables}
        emit("run", text=text, ids=prompt_ids, next=tables[0], **masks)
    else:
        _print_tables(tables, masked=not engine.continues, csv=csv, markdown=markdown)


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


def _print_tables(tables: list[list[Token]], *, masked: bool, csv: bool, markdown: bool) -> None:
    """Print the one table, or that of each mask; as CSV and Markdown they are one, with the number of the mask."""
    if not (csv or markdown):
        for number, found in enumerate(tables, 1):
            if len(tables) > 1:
                say(*([""] if number > 1 else []), f"mask {number} of {len(tables)}")
            rows(*_cells(found))
        return
    mask = ["mask"] if masked else []
    columns, cells = _cells([row for found in tables for row in found])
    numbers = [[number] if masked else [] for number, found in enumerate(tables, 1) for _ in found]
    values = [dataclasses.astuple(row) for found in tables for row in found]
    rows(
        [*(Column(title, right=True) for title in mask), *columns[:-1]],
        [[*map(str, number), *cell[:-1]] for number, cell in zip(numbers, cells, strict=True)],
        csv=csv,
        markdown_=markdown,
        values=([*mask, *FIELDS], [[*number, *value] for number, value in zip(numbers, values, strict=True)]),
    )


def _cells(found: list[Token]) -> tuple[list[Column], list[list[str]]]:
    columns = [
        Column("token", style="bold"),
        Column("id", right=True, style="dim"),
        Column("logit", right=True),
        Column("probability", right=True, style="cyan"),
        Column(""),
    ]
    cells = [
        [
            f"'{row.token}'",
            str(row.id),
            f"{row.logit:.3f}",
            units.percent(row.probability),
            "▆" * round(30 * row.probability),
        ]
        for row in found
    ]
    return columns, cells
