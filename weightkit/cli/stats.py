"""weightkit stats: a table of statistics."""

from __future__ import annotations

import dataclasses

from weightkit.analysis.statistics import Statistics
from weightkit.cli.output import (
    Address,
    Csv,
    Json,
    Markdown,
    ModelPath,
    emit,
    open_model,
    plain,
    progress,
    rows,
    say,
)
from weightkit.report import units
from weightkit.report.tables import Column

FIELDS = [field.name for field in dataclasses.fields(Statistics) if field.name != "quantiles"]


def stats(
    model: ModelPath,
    address: Address = None,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
) -> None:
    """Statistics of weights: mean, std, extremes, median, zeros, NaN and Inf, over every number."""
    opened = open_model(model)
    with progress("reading tensor") as report:
        found = opened.statistics(address, progress=report)
    if json:
        emit("stats", rows=found)
        return
    quantiles = list(found[0].quantiles) if found else []
    values = [
        [*(plain(getattr(row, name)) for name in FIELDS), *(plain(row.quantiles[q]) for q in quantiles)]
        for row in found
    ]
    # Columns that would hold nothing but zeros are left out: what is left fits a narrow terminal.
    counts = [name for name in ("zeros", "nan", "inf") if any(getattr(row, name) for row in found)]
    titles = ["mean", "std", "min", "median", "max", *(_TITLES.get(name, name) for name in counts)]
    columns = [Column("address", style="cyan", shrinks=True), *(Column(title, right=True) for title in titles)]
    cells = [_cells(row, counts) for row in found]
    rows(
        columns,
        cells,
        csv=csv,
        markdown_=markdown,
        values=([*FIELDS, *(f"q{q}" for q in quantiles)], values),
    )
    if found and not counts and not (csv or markdown):
        say("", [("no zeros, NaN or Inf", "dim")])


_TITLES = {"nan": "NaN", "inf": "Inf"}


def _cells(row: Statistics, counts: list[str]) -> list[str]:
    numbers = (row.mean, row.std, row.min, row.quantiles["0.5"], row.max)
    return [row.address, *(units.real(n, 3) for n in numbers), *(units.count(getattr(row, n)) for n in counts)]
