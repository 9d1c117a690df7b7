"""weightkit circuits: which attention heads read what others write."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from weightkit.analysis.circuits import Composition, expected
from weightkit.cli.output import (
    Address,
    Csv,
    Json,
    Markdown,
    ModelPath,
    Parquet,
    emit,
    open_model,
    progress,
    rows,
    values_of,
    write_parquet,
)
from weightkit.report import units
from weightkit.report.tables import Column

FIELDS = [field.name for field in dataclasses.fields(Composition)]


def circuits(
    model: ModelPath,
    address: Address = None,
    top: Annotated[int, typer.Option(min=1, help="Rows: the largest scores.")] = 20,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
    parquet: Parquet = None,
) -> None:
    """Composition scores between attention heads: how much of what one writes a later one reads, and as what.

    With an address, as 'layers.3.attn[head=2]', those that the heads it names take part in.
    """
    opened = open_model(model)
    with progress("multiplying layers") as report:
        found = opened.circuits(address, top, progress=report)
    random = expected(opened.registry)
    values = values_of(found, FIELDS)
    write_parquet(parquet, values)
    if json:
        emit("circuits", expected=random, rows=found)
        return
    columns = [
        Column("writer", style="cyan"),
        Column("reader", style="cyan"),
        Column("as"),
        Column("score", right=True),
        Column("× random", right=True),
    ]
    cells = [(c.writer, c.reader, c.kind, units.real(c.score), units.real(c.score / random, 3)) for c in found]
    below = f"heads that have nothing to do with each other score about {units.real(random)}"
    rows(columns, cells, csv=csv, markdown_=markdown, values=values, below=below)
