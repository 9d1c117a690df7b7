"""weightkit trace: the activations inside a run."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import typer

from weightkit.cli.edit import parse_edits
from weightkit.cli.output import (
    NOTES,
    Csv,
    Json,
    Markdown,
    ModelPath,
    Threads,
    UsageError,
    emit,
    note_new_folders,
    open_model,
    plain,
    progress,
    rows,
    say,
)
from weightkit.cli.prompts import Ids, note_length, parse_ids, read_file
from weightkit.effect.glance import Activation
from weightkit.report import units
from weightkit.report.tables import Column

FIELDS = [field.name for field in dataclasses.fields(Activation)]


def trace(
    model: ModelPath,
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="The text to run.", show_default=False)
    ] = None,
    ids: Ids = None,
    text: Annotated[str | None, typer.Option(metavar="FILE", help="A text file to run.")] = None,
    decoder_ids: Annotated[
        str | None, typer.Option("--decoder-ids", metavar="IDS", help="What the decoder beside an encoder reads.")
    ] = None,
    capture: Annotated[
        list[str] | None,
        typer.Option("--capture", "-c", metavar="ADDRESS", help="As in 'layers.*.attn.pattern'; all if absent."),
    ] = None,
    zero: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="Zero an activation, as in 'layers.3.attn.heads[head=2]'."),
    ] = None,
    set: Annotated[list[str] | None, typer.Option(metavar="ADDRESS=NUMBER", help="Set to a number.")] = None,
    scale: Annotated[list[str] | None, typer.Option(metavar="ADDRESS=FACTOR", help="Multiply by a factor.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="OUT", help="An HDF5 file for what --capture names.")
    ] = None,
    append: Annotated[bool, typer.Option("--append", help="Write behind the texts that OUT holds.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    threads: Threads = None,  # noqa: ARG001 - its callback has set it
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
) -> None:
    """Run a text and look at the activations inside, change them on the way, write them to an HDF5 file.

    Changes are made in this order: --zero, --set, --scale. Each can be given several times.
    """
    if sum(given is not None for given in (prompt, ids, text)) != 1:
        raise UsageError("give one text: a prompt, --text FILE, or token ids with --ids 1,403,407")
    if output is not None and not capture:
        raise UsageError("say what goes into the file: --capture 'layers.*.out', or --capture '*' for everything")
    if append and (force or output is None):
        raise UsageError("--append goes with -o OUT, and not with --force")
    changes = parse_edits(zero or [], set or [], scale or [])
    opened = open_model(model)
    _ = opened.engine  # that it cannot be run at all is said first
    run = parse_ids(ids) if ids is not None else opened.ids(read_file(text) if text is not None else prompt or "")
    answer = None if decoder_ids is None else parse_ids(decoder_ids)
    names = capture or ["*"]
    with progress("running token") as report:
        if output is None:
            found = opened.activations(run, names, changes, decoder_ids=answer, progress=report)
        else:
            note_new_folders(output)
            how = {"append": append, "force": force}
            found = opened.save_trace(output, run, names, changes, decoder_ids=answer, progress=report, **how)
    note_length(opened, len(run), len(run))
    _note_finite(found)
    if json:
        tokens = [opened.token_text(i) for i in run]
        emit("trace", ids=run, tokens=tokens, changes=changes, rows=found, output=output)
        return
    _print(found, csv=csv, markdown=markdown)
    if output and not (csv or markdown):
        say("", [("saved ", "bold green"), (output, "")])


def _note_finite(found: list[Activation]) -> None:
    """Note which activation is the first, of those that are looked at, with NaN or Inf."""
    first = next((a.address for a in found if a.abs_max is not None and not math.isfinite(a.abs_max)), None)
    if first is not None:
        NOTES.append(f"{first} is the first of these with NaN or Inf; weightkit check shows the weights that have any")


def _print(found: list[Activation], *, csv: bool, markdown: bool) -> None:
    columns = [
        Column("activation", style="cyan", shrinks=True),
        Column("axes", shrinks=True),
        Column("shape", right=True),
        Column("rms", right=True),
        Column("max |x|", right=True),
    ]
    cells = [
        (a.address, " × ".join(a.axes), units.shape(a.shape), units.real(a.rms), units.real(a.abs_max)) for a in found
    ]
    values = [(a.address, " ".join(a.axes), " ".join(map(str, a.shape)), plain(a.rms), plain(a.abs_max)) for a in found]
    rows(columns, cells, csv=csv, markdown_=markdown, values=(FIELDS, values))
