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
    columns = [Column("address", style="cyan", shrinks=True), *(Column(name, right=True) for name in _TITLES)]
    quantiles = list(found[0].quantiles) if found else []
    values = [
        [*(plain(getattr(row, name)) for name in FIELDS), *(plain(row.quantiles[q]) for q in quantiles)]
        for row in found
    ]
    titles = [*FIELDS, *(f"q{q}" for q in quantiles)]
    rows(columns, map(_cells, found), csv=csv, markdown_=markdown, values=(titles, values))


_TITLES = ("mean", "std", "min", "median", "max", "zeros", "NaN", "Inf")


def _cells(row: Statistics) -> list[str]:
    numbers = (row.mean, row.std, row.min, row.quantiles["0.5"], row.max)
    counts = (row.zeros, row.nan, row.inf)
    return [
        row.address,
        *(units.real(n, 3) for n in numbers),
        *(units.count(n) if n else "0" for n in counts),
    ]
