"""weightkit check: is it sound?"""

from __future__ import annotations

import sys

from weightkit.cli.output import Cluster, Json, ModelPath, emit, progress, say, width, workers
from weightkit.report import units
from weightkit.report.tables import Column, table


def check(model: ModelPath, cluster: Cluster = None, json: Json = False) -> int:
    """Check a checkpoint: headers, shards, index, config against shapes, NaN and Inf. Exit 1 on a fault."""
    from weightkit.model import open_model

    opened = open_model(model)  # what is not available for it is among the findings
    with workers(cluster) as executor, progress("reading tensor") as report:
        result = opened.check(executor=executor, progress=report)
    if json:
        emit(
            "check",
            sound=result.sound,
            faults=result.faults,
            not_checked=result.not_checked,
            tensors=result.tensors,
            bytes=result.bytes,
        )
    else:
        columns = [
            Column("fault", style="red"),
            Column("where", style="cyan", shrinks=True),
            Column("what", shrinks=True),
        ]
        if result.faults:
            say(*table(columns, [(f.kind, f.where, f.message) for f in result.faults], width()), "")
        for what in result.not_checked:
            say([("not checked: ", "yellow"), (what, "")])
        if result.sound:
            seen = f"{units.plural(result.tensors, 'tensor')}, {units.size(result.bytes)}"
            say([("sound", "bold green"), (f": {seen} read", "")])
    if not result.sound:
        sys.stderr.write(f"{units.plural(len(result.faults), 'fault')} found\n")
    return 0 if result.sound else 1
