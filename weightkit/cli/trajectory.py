"""weightkit trajectory: how weights moved over snapshots of one training."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from weightkit.analysis.trajectory import Movement, Trajectory
from weightkit.cli.output import (
    Cluster,
    Csv,
    Json,
    Markdown,
    UsageError,
    emit,
    open_model,
    plain,
    progress,
    rows,
    say,
    width,
    workers,
)
from weightkit.errors import printable
from weightkit.report import units
from weightkit.report.charts import heat
from weightkit.report.tables import Column

Snapshots = Annotated[
    list[str],
    typer.Argument(
        metavar="A B …", help="Models: snapshots of one training, in the order of time.", show_default=False
    ),
]
MOST = 3  # roles that are named at a step


def trajectory(
    snapshots: Snapshots,
    by_layer: Annotated[bool, typer.Option("--by-layer", help="The table and the map by layer, not by role.")] = False,
    cluster: Cluster = None,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
) -> None:
    """How weights moved over snapshots of one training: how far, how straight, which roles when."""
    from weightkit.model import trajectory

    if len(snapshots) < 2:
        raise UsageError(f"{snapshots[0]}: one snapshot does not show how weights move; give two or more")
    models = [open_model(path) for path in snapshots]
    with workers(cluster) as executor, progress("following tensor") as report:
        found = trajectory(models, executor=executor, progress=report)
    if json:
        emit("trajectory", **{**vars(found), "snapshots": snapshots})
    elif csv or markdown:
        names, values = found.table()
        cells = (_cells(row.address, row) for row in found.rows)
        rows([Column("address"), *_GROUP], cells, csv=csv, markdown_=markdown, values=(names, plain(values)))
    else:
        _print(found, snapshots, by_layer)


_GROUP = [
    Column("path", right=True),
    Column("net", right=True),
    Column("straight", right=True, style="bold"),
    Column("norm"),
]
_STEPS = [
    Column("step", right=True),
    Column("to", style="cyan", shrinks=True),
    Column("L2", right=True),
    Column("relative", right=True, style="bold"),
    Column("cosine", right=True),
    Column("most of it in"),
]


def _cells(name: str, found: Movement) -> list[str]:
    """One group of weights, or one weight."""
    norms = f"{units.real(found.norms[0])} → {units.real(found.norms[-1])}"
    return [name, units.real(found.path), units.real(found.net), units.percent(found.straightness), norms]


def _step_cells(found: Trajectory, groups: dict[str, Movement], i: int, name: str) -> list[str]:
    """Step i, which leads to the snapshot of this name."""
    largest = sorted(groups, key=lambda group: -groups[group].shares[i])[:MOST]
    shares = ((group, groups[group].shares[i]) for group in largest)
    cosine = found.total.cosines[i - 1] if i else math.nan
    return [
        str(i + 1),
        name,
        units.real(found.total.steps[i]),
        units.percent(_relative(found.total)[i]),
        units.NONE if math.isnan(cosine) else f"{cosine:.3f}",
        ", ".join(f"{group} {units.percent(share)}" for group, share in shares if share > 0),
    ]


def _relative(found: Movement) -> list[float]:
    """Each step over the norm before it; NaN where that is 0."""
    pairs = zip(found.steps, found.norms[:-1], strict=True)
    return [step / norm if norm else math.nan for step, norm in pairs]


def _print(found: Trajectory, snapshots: list[str], by_layer: bool) -> None:
    groups = found.by_layer if by_layer else found.by_role
    steps = [_step_cells(found, groups, i, name) for i, name in enumerate(snapshots[1:])]
    rows(_STEPS, steps)
    say("")
    title = Column("layer" if by_layer else "role", style="cyan", shrinks=True)
    rows([title, *_GROUP], [_cells(name, group) for name, group in groups.items()] + [_cells("all", found.total)])
    if len(steps) > 1:
        say("", [("relative change by step: · < 0.1 % ≤ ░ < 1 % ≤ ▒ < 10 % ≤ ▓ < 100 % ≤ █", "dim")])
        shares = {printable(name): dict(enumerate(_relative(group), 1)) for name, group in groups.items()}
        say(*heat(shares, range(1, len(snapshots)), min(width() or 80, 80)))
    if found.total.left_out:
        say("", f"{units.plural(found.total.left_out, 'number')} left out: NaN or infinite in a snapshot")
