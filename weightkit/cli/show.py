"""weightkit show: one weight closely."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from weightkit.analysis.closely import Norms
from weightkit.cli.output import Json, ModelPath, emit, open_model, say, width
from weightkit.report import units
from weightkit.report.charts import bars
from weightkit.report.tables import Column, Line, pairs, table


def show(
    model: ModelPath,
    address: Annotated[
        str,
        typer.Argument(metavar="ADDRESS", help="One weight or a part of one, as in 'layers.0.attn.q[head=3]'."),
    ],
    json: Json = False,
) -> None:
    """Show one weight: statistics, a histogram, and the numbers farthest from the mean."""
    look = open_model(model).look(address)
    row = look.statistics
    if json:
        emit(
            "show",
            statistics=row,
            histogram=look.histogram,
            outliers=look.outliers,
            rows=look.rows,
            columns=look.columns,
        )
        return
    number = units.real
    shown = {q: value for q, value in row.quantiles.items() if 0.01 <= float(q) <= 0.99}  # the rest are in the JSON
    say(
        *pairs(
            [
                ("address", row.address),
                ("name in the file", row.name),
                ("role", row.role),
                ("shape, type", f"{units.shape(row.shape)}  {row.dtype}"),
                ("numbers", units.count(row.count)),
                ("mean, std", f"{number(row.mean)}  ±  {number(row.std)}"),
                ("min … max", f"{number(row.min)} … {number(row.max)}"),
                ("L2 norm", number(row.l2, 6)),
                ("skewness, kurtosis", f"{number(row.skewness)}, {number(row.kurtosis)} (excess)"),
                (
                    "zeros, NaN, Inf",
                    f"{units.count(row.zeros)}, {units.count(row.nan)}, {units.count(row.inf)}",
                ),
                ("subnormals", units.count(row.subnormals)),
                *([] if row.entropy is None else [("distinct values", _distinct(row.distinct, row.entropy))]),
            ],
            width(),
        ),
        "",
        *table(
            [Column(f"{float(q) * 100:g} %", right=True) for q in shown],
            [[number(value, 3) for value in shown.values()]],
        ),
        *([] if row.exact else ["quantiles are approximate: right to the rounding of float32"]),
        "",
        *bars(look.histogram),
        "",
    )
    columns = [Column("farthest from the mean"), Column("value", right=True), Column("z", right=True)]
    cells = [[str(list(o.coordinate)), number(o.value), f"{o.z:+.1f}"] for o in look.outliers]
    say(*table(columns, cells))
    if look.rows and look.columns:
        say("", *_norm_lines({"row": look.rows, "column": look.columns}))


def _distinct(number: int | None, entropy: float) -> str:
    return f"{units.count(number)}, with an entropy of {units.real(entropy)} bits"


def _norm_lines(found: dict[str, Norms]) -> Iterator[Line]:
    """A table of the norms of rows and columns, and which have the largest."""
    titles = ("smallest", "median", "largest")
    columns = [Column("L2 norm of a"), *(Column(t, right=True) for t in titles), Column("largest, by index")]
    for_all = ((name, norms, (norms.min, norms.median, norms.max)) for name, norms in found.items())
    cells = [
        [name, *(units.real(n) for n in three), ", ".join(str(index) for index, _ in norms.largest)]
        for name, norms, three in for_all
    ]
    return table(columns, cells, width())
