"""weightkit show: one weight closely."""

from __future__ import annotations

from typing import Annotated

import typer

from weightkit.cli.output import Json, ModelPath, emit, open_model, say, width
from weightkit.report import units
from weightkit.report.charts import bars
from weightkit.report.tables import Column, pairs, table


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
        emit("show", statistics=row, histogram=look.histogram, outliers=look.outliers)
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
