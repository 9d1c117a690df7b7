"""weightkit diff: what differs between two models."""

from __future__ import annotations

import dataclasses
from typing import Any

from weightkit.analysis.compare import Changed, Diff
from weightkit.cli.output import (
    After,
    Before,
    Cluster,
    Csv,
    Json,
    Markdown,
    emit,
    open_model,
    progress,
    rows,
    say,
    values_of,
    workers,
)
from weightkit.errors import printable
from weightkit.report import units
from weightkit.report.tables import Column

FIELDS = [field.name for field in dataclasses.fields(Changed)]


def diff(
    a: Before, b: After, cluster: Cluster = None, json: Json = False, csv: Csv = False, markdown: Markdown = False
) -> int:
    """Compare two models weight by weight. Exit 0 if they are identical, 1 if they differ."""
    from weightkit.model import diff as compare

    first, second = open_model(a), open_model(b)
    with workers(cluster) as executor, progress("comparing tensor") as report:
        found = compare(first, second, executor=executor, progress=report)
    if json:
        emit("diff", **_fields(found))
    elif csv or markdown:
        values = values_of(found.changed, FIELDS)
        rows(COLUMNS, map(_cells, found.changed), csv=csv, markdown_=markdown, values=values)
    else:
        _print(found)
    return 0 if found.identical else 1


COLUMNS = [
    Column("address", style="cyan", shrinks=True),
    Column("changed", right=True),
    Column("L2", right=True),
    Column("relative", right=True, style="bold"),
    Column("max |Δ|", right=True),
    Column("cosine", right=True),
    Column("", style="dim"),
]


def _fields(found: Diff) -> dict[str, Any]:
    return {
        "identical": found.identical,
        "changed": found.changed,
        "only_a": found.only_a,
        "only_b": found.only_b,
        "unchanged": found.unchanged,
        "config": {name: {"a": a, "b": b} for name, (a, b) in found.config.items()},
    }


def _cells(row: Changed) -> list[str]:
    note = " → ".join(row.dtypes) if row.dtypes[0] != row.dtypes[1] else ""
    if row.shapes[0] != row.shapes[1]:
        note = f"{units.shape(row.shapes[0])} → {units.shape(row.shapes[1])}"
    numbers = units.real(row.l2), units.percent(row.relative_l2), units.real(row.max_abs), f"{row.cosine:.6f}"
    return [
        row.address,
        units.percent(row.changed_fraction),
        *(n.replace("nan", units.NONE) for n in numbers),
        note,
    ]


def _print(found: Diff) -> None:
    if found.identical:
        say([("identical", "bold green"), (f": {units.plural(found.unchanged, 'weight')} to the bit", "")])
        return
    for name, (a, b) in found.config.items():
        say(f"config: {name} {printable(str(a))} → {printable(str(b))}")
    for side, names in (("A", found.only_a), ("B", found.only_b)):
        for address in names:
            say(f"only in {side}: {printable(address)}")
    if found.changed:
        rows(COLUMNS, map(_cells, found.changed))
    total = units.plural(len(found.changed) + found.unchanged, "weight")
    in_type = sum(row.changed_fraction == 0 for row in found.changed)
    only = f" ({in_type:,} in type only, with the same numbers)" if in_type else ""
    say("", f"{len(found.changed):,} of {total} differ{only}, {found.unchanged:,} are the same to the bit")
