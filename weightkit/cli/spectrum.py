"""weightkit spectrum: singular values in numbers."""

from __future__ import annotations

from typing import Annotated

import typer

from weightkit.analysis.spectrum import VECTOR, Skipped, Spectrum
from weightkit.cli.output import (
    NOTES,
    Address,
    Cluster,
    Csv,
    Json,
    Markdown,
    ModelPath,
    Parquet,
    emit,
    open_model,
    plain,
    progress,
    rows,
    say,
    width,
    workers,
    write_parquet,
)
from weightkit.errors import one_line
from weightkit.report import units
from weightkit.report.tables import Column, pairs


def spectrum(
    model: ModelPath,
    address: Address = None,
    heads: Annotated[bool, typer.Option("--heads", help="Each attention head by itself.")] = False,
    shuffle: Annotated[
        int | None, typer.Option(metavar="SEED", help="Compare with the same numbers in another order.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="All singular values of the largest matrices, in gigabytes of memory.")
    ] = False,
    cluster: Cluster = None,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
    parquet: Parquet = None,
) -> None:
    """Spectra of matrices: rank, stable rank, entropy, condition, energy, power law, Marchenko–Pastur law."""
    opened = open_model(model)
    with workers(cluster) as executor, progress("decomposing matrix") as report:
        found = opened.spectrum(address, by_head=heads, shuffle=shuffle, full=full, executor=executor, progress=report)
    flat = [row.flat() for row in found.rows]
    values = ([*flat[0]] if flat else ["address"], [[plain(value) for value in row.values()] for row in flat])
    write_parquet(parquet, values)
    if json:
        emit("spectrum", rows=found.rows, skipped=found.skipped)
        return
    shown = TITLES if shuffle is None else SHUFFLED
    columns = [Column("address", style="cyan", shrinks=True), *(Column(title, right=True) for title in shown)]
    cells = [[row["address"], *(_cell(row[field]) for field in shown.values())] for row in flat]
    rows(columns, cells, csv=csv, markdown_=markdown, values=values)
    left_out = [*_skipped(found.skipped), *_partly(found.rows)]
    if csv or markdown:
        NOTES.extend(f"{what}, {why}" for what, why in left_out if not why.startswith(VECTOR))
    elif left_out:
        say("", *pairs(left_out, width()))


TITLES = {  # of columns, and the fields that they show
    "rank": "rank",
    "stable": "stable_rank",
    "entropy": "entropy",
    "condition": "condition",
    "90 %": "energy.0.9",
    "alpha": "power_law.alpha",
    "D": "power_law.distance",
    "spikes": "marchenko_pastur.spikes",
}
SHUFFLED = {title: field for title, field in TITLES.items() if title not in ("condition", "90 %")} | {
    "shuffled": "shuffled.distance",  # in 80 columns
    "above": "shuffled.above",
}


def _cell(value: float | None) -> str:
    return units.count(value) if isinstance(value, int) else units.real(value, 3)


def _skipped(skipped: list[Skipped]) -> list[tuple[str, str]]:
    """Each reason, with the first addresses that it is true of."""
    reasons: dict[str, list[str]] = {}
    for item in skipped:
        reasons.setdefault(item.reason, []).append(item.address)
    return [("skipped", f"{reason}: {one_line(addresses, most=3)}") for reason, addresses in reasons.items()]


def _partly(found: list[Spectrum]) -> list[tuple[str, str]]:
    """The matrices of which the largest singular values alone are known."""
    largest = [row.address for row in found if row.rank is None]
    return [("largest only", f"--full computes the rest: {one_line(largest, most=3)}")] if largest else []
