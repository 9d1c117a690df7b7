"""weightkit stats: a table of statistics."""

from __future__ import annotations

import dataclasses
import operator
from typing import Annotated

import typer

from weightkit.analysis.statistics import QUANTILES, Statistics
from weightkit.cli.output import (
    Address,
    Cluster,
    Csv,
    Json,
    Markdown,
    ModelPath,
    NoCache,
    Parquet,
    UsageError,
    Values,
    emit,
    open_model,
    plain,
    progress,
    rows,
    values_of,
    workers,
    write_parquet,
)
from weightkit.report import units
from weightkit.report.tables import Column

FIELDS = [field.name for field in dataclasses.fields(Statistics) if field.name != "quantiles"]
NUMBERS = [name for name in FIELDS if name not in ("address", "name", "role", "dtype", "shape", "exact")]
KINDS = ("role", "layer", "head", "expert", "row", "column")
SHOWN = ("mean", "std", "min", "max", "zeros", "nan", "inf")  # in every table, the last three where there are any
COMPARED = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "=": operator.eq}


def stats(
    model: ModelPath,
    address: Address = None,
    by: Annotated[
        str | None, typer.Option(metavar="WHAT", help="One row for each role, layer, head, expert, row or column.")
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="FIELD", help="The rows with the largest of a number first, as in abs_max.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="Only rows of which this is true, as in 'kurtosis > 10' or 'nan > 0'."),
    ] = None,
    cluster: Cluster = None,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
    parquet: Parquet = None,
    no_cache: NoCache = False,
) -> None:
    """Statistics of weights: mean, std, extremes, median, zeros, NaN and Inf, over every number."""
    tests = [_condition(text) for text in where or ()]
    if sort is not None and sort not in NUMBERS:
        raise UsageError(f"--sort {sort}: sort by one of {', '.join(NUMBERS)}")
    if by not in (None, *KINDS):
        raise UsageError(f"--by {by}: one of {', '.join(KINDS)}")
    opened = open_model(model)
    with workers(cluster) as executor, progress("reading", "bytes") as report:
        found: list[Statistics] = opened.statistics(
            address, by=by, cache=not no_cache, executor=executor, progress=report
        )
    found = [row for row in found if all(_is_true(row, *test) for test in tests)]
    if sort is not None:
        found.sort(key=lambda row: -_number(row, sort))
    values = _values(found)
    write_parquet(parquet, values)
    if json:
        emit("stats", rows=found)
        return
    named = dict.fromkeys(([sort] if sort else []) + [field for field, _, _ in tests])
    named_too = [name for name in named if name not in SHOWN]
    _table(found, values, csv=csv, markdown=markdown, title=by or "address", named=named_too)


def _condition(text: str) -> tuple[str, str, float]:
    """A field, a sign and a number. UsageError where it is something else."""
    for sign in COMPARED:
        field, found, number = text.partition(sign)
        if found and field.strip() in NUMBERS:
            try:
                return field.strip(), sign, float(number)
            except ValueError:
                break
    raise UsageError(f"--where {text!r}: give a field, a sign and a number, as in 'kurtosis > 10'")


def _is_true(row: Statistics, field: str, sign: str, number: float) -> bool:
    value = getattr(row, field)
    return value is not None and bool(COMPARED[sign](value, number))


def _number(row: Statistics, field: str) -> float:
    """A number to sort by; one that does not exist comes last."""
    value = getattr(row, field)
    return float("-inf") if value is None or value != value else float(value)


def _values(found: list[Statistics]) -> Values:
    """The fields and quantiles, and their values for each row."""
    names = [f"{q:g}" for q in QUANTILES]
    fields, values = values_of(found, FIELDS)
    quantiles = ([plain(row.quantiles[q]) for q in names] for row in found)
    return [*fields, *(f"q{q}" for q in names)], [[*v, *q] for v, q in zip(values, quantiles, strict=True)]


def _table(found: list[Statistics], values: Values, *, csv: bool, markdown: bool, title: str, named: list[str]) -> None:
    """Print rows; `named` are fields that get a column because the command names them."""
    # Columns that would hold nothing but zeros are left out: what is left fits a narrow terminal.
    counts = [name for name in ("zeros", "nan", "inf") if any(getattr(row, name) for row in found)]
    titles = ["mean", "std", "min", "median", "max", *(_TITLES.get(name, name) for name in counts), *named]
    columns = [Column(title, style="cyan", shrinks=True), *(Column(title, right=True) for title in titles)]
    below = "no zeros, NaN or Inf" if found and not counts else ""
    cells = [_cells(row, counts, named) for row in found]
    rows(columns, cells, csv=csv, markdown_=markdown, values=values, below=below)


_TITLES = {"nan": "NaN", "inf": "Inf"}


def _cells(row: Statistics, counts: list[str], named: list[str]) -> list[str]:
    numbers = (row.mean, row.std, row.min, row.quantiles["0.5"], row.max)
    asked = (getattr(row, name) for name in named)
    return [
        row.address,
        *(units.real(n, 3) for n in numbers),
        *(units.count(getattr(row, n)) for n in counts),
        *(units.count(n) if isinstance(n, int) else units.real(n, 3) for n in asked),
    ]
