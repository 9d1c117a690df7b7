"""weightkit outliers: what is strange in the weights."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from weightkit.analysis.finding import Finding
from weightkit.cli.output import (
    Address,
    Csv,
    Json,
    Markdown,
    ModelPath,
    NoCache,
    Parquet,
    emit,
    open_model,
    progress,
    rows,
    say,
    values_of,
    write_parquet,
)
from weightkit.report import units
from weightkit.report.tables import Column

FIELDS = [field.name for field in dataclasses.fields(Finding)]


def outliers(
    model: ModelPath,
    address: Address = None,
    top: Annotated[int, typer.Option(min=1, help="Rows: the strongest.")] = 20,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
    parquet: Parquet = None,
    no_cache: NoCache = False,
) -> None:
    """What is strange in the weights, the strangest first, and why.

    Numbers, rows and columns far from the others, dead neurons, copies of heads and layers, untrained tokens, clipped
    values, NaN, and tensors that training has not moved.
    """
    opened = open_model(model)
    with progress("reading", "bytes") as report:
        found = opened.outliers(address, cache=not no_cache, progress=report)
    shown = found[:top]
    values = values_of(shown, FIELDS)
    write_parquet(parquet, values)
    if json:
        emit("outliers", found=len(found), rows=shown)
        return
    if not found and not (csv or markdown):
        say([("nothing strange", "bold green")])
        return
    columns = [
        Column("kind"),
        Column("address", style="cyan"),
        Column("value", right=True),
        Column("strength", right=True),
        Column("why", below=True),
    ]
    cells = [(f.kind, f.address, units.real(f.value, 3), units.real(f.strength, 3), f.why) for f in shown]
    below = f"{len(found) - len(shown):,} more; --top {len(found)} shows all" if len(found) > len(shown) else ""
    rows(columns, cells, csv=csv, markdown_=markdown, values=values, below=below)
