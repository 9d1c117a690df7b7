"""weightkit diff: what differs between two models."""

from __future__ import annotations

import dataclasses
import textwrap
from dataclasses import replace
from typing import Annotated, Any

import typer

from weightkit.analysis.compare import Changed, Diff
from weightkit.analysis.parts import Part
from weightkit.analysis.rolled import Rolled, by_layer, by_role
from weightkit.cli.measure import measure_on
from weightkit.cli.output import (
    NOTES,
    After,
    Before,
    Cluster,
    Csv,
    Json,
    Markdown,
    UsageError,
    emit,
    open_model,
    progress,
    rows,
    say,
    values_of,
    width,
    workers,
)
from weightkit.cli.prompts import TokenIds
from weightkit.errors import printable
from weightkit.report import units
from weightkit.report.charts import heat
from weightkit.report.tables import Column

FIELDS = [field.name for field in dataclasses.fields(Changed)]


MOST = 20  # weights that only one has, which are named


def diff(
    a: Before,
    b: After,
    by: Annotated[str, typer.Option(metavar="KIND", help="Roll up by role or by layer.")] = "role",
    detail: Annotated[bool, typer.Option("--detail", help="Every weight that differs, with its cause.")] = False,
    measure: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Run both on a text (or a file): what do the differences do?"),
    ] = None,
    ids: TokenIds = None,
    cluster: Cluster = None,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
) -> int:
    """What differs between two models, how much, and what kind of change it is.

    With --measure the parts of B that differ are put into A, by what they are rolled up by, the largest change first.
    Exit code 0 if the models are identical, 1 if they differ.
    """
    if by not in ROLLED:
        raise UsageError(f"--by {by}: one of {', '.join(ROLLED)}; --detail shows each weight")
    from weightkit.model import attribute, require_attributable
    from weightkit.model import diff as compare

    first, second = open_model(a), open_model(b)
    if measure or ids:
        require_attributable(first, second, text=bool(measure))
    measured = measure_on(first, second, measure or [], ids or []) if measure or ids else None
    with workers(cluster) as executor, progress("comparing tensor") as report:
        found = compare(first, second, executor=executor, progress=report)
    if measured:
        NOTES.extend(measured.faults)
        with progress("running with B's weights") as report:
            kind = "weight" if detail else by
            parts = attribute(first, second, found, ids=measured.texts, by=kind, progress=report)
        found = replace(found, parts=parts)
    if json:
        emit("diff", **_fields(found), effect=measured.fields() if measured else None)
    elif csv or markdown:
        values = values_of(found.changed, FIELDS)
        rows(COLUMNS, map(_cells, found.changed), csv=csv, markdown_=markdown, values=values)
    else:
        _print(found, by, detail)
        if measured:
            say("")
            measured.show()
            _print_parts(found.parts)
    return 0 if found.identical else 1


COLUMNS = [
    Column("address", style="cyan", shrinks=True),
    Column("changed", right=True),
    Column("L2", right=True),
    Column("relative", right=True, style="bold"),
    Column("max |Δ|", right=True),
    Column("cosine", right=True),
    Column("cause"),
    Column("", style="dim"),
]
PARTS = [
    Column("of B in A", style="cyan", shrinks=True),
    Column("weights", right=True),
    Column("L2", right=True),
    Column("alone", right=True, style="bold"),
    Column("with those above", right=True),
]
ROLLED = {"role": by_role, "layer": by_layer}
TOGETHER = [
    Column("weights", right=True),
    Column("changed", right=True),
    Column("L2", right=True),
    Column("relative", right=True, style="bold"),
    Column("max |Δ|", right=True),
    Column("cause", shrinks=True),
]


def _fields(found: Diff) -> dict[str, Any]:
    return {
        "identical": found.identical,
        "sentence": found.sentence,
        "causes": found.causes,
        "layers": found.layers,
        "changed": found.changed,
        "only_a": found.only_a,
        "only_b": found.only_b,
        "unchanged": found.unchanged,
        "config": {name: {"a": a, "b": b} for name, (a, b) in found.config.items()},
        "tokens": found.tokens,
        "parts": found.parts,
        "metadata": {key: {"a": a, "b": b} for key, (a, b) in found.metadata.items()},
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
        row.cause["kind"] if row.cause else units.NONE,
        note,
    ]


def _print(found: Diff, by: str, detail: bool) -> None:
    if found.identical:
        say([("identical", "bold green"), (f": {units.plural(found.unchanged, 'weight')} to the bit", "")])
        return
    if found.sentence:
        for line in textwrap.wrap(printable(found.sentence), width() or len(found.sentence) + 1):
            say([(line, "bold")])
        say("")
    _structure(found)
    if found.changed and detail:
        rows(COLUMNS, map(_cells, found.changed))
    elif found.changed:
        rows([Column(by, style="cyan"), *TOGETHER], map(_rolled_cells, ROLLED[by](found.changed)))
        _map(found)
    total = units.plural(len(found.changed) + found.unchanged, "weight")
    in_type = sum(row.changed_fraction == 0 for row in found.changed)
    only = f" ({in_type:,} in type only, with the same numbers)" if in_type else ""
    say("", f"{len(found.changed):,} of {total} differ{only}, {found.unchanged:,} are the same to the bit")
    if found.changed and not detail:
        say([("--detail shows each weight", "dim")])


def _structure(found: Diff) -> None:
    """What differs besides numbers."""
    for name, (a, b) in found.config.items():
        say(f"config: {name} {printable(str(a))} → {printable(str(b))}")
    for key, (was, now) in found.metadata.items():
        say(f"metadata: {printable(key)} {_text(was)} → {_text(now)}")
    if found.tokens is not None:
        changes = [f"{len(found.tokens.added):,} added", f"{len(found.tokens.removed):,} removed"]
        sizes = f"{found.tokens.a:,} → {found.tokens.b:,} tokens"
        say(f"tokenizer: {sizes}, {', '.join(changes)}, {found.tokens.moved:,} with another id")
    for side, names in (("A", found.only_a), ("B", found.only_b)):
        for address in names[:MOST]:
            say(f"only in {side}: {printable(address)}")
        if len(names) > MOST:
            say(f"only in {side}: {len(names) - MOST:,} more")


def _text(value: str | None) -> str:
    text = printable(value or units.NONE)
    return text if len(text) <= 40 else text[:39] + "…"


def _rolled_cells(role: Rolled) -> list[str]:
    return [
        role.role,
        units.count(role.weights),
        units.percent(role.changed_fraction),
        units.real(role.l2),
        units.percent(role.relative_l2),
        units.real(role.max_abs),
        ", ".join(role.causes),
    ]


def _map(found: Diff) -> None:
    """Layers × roles, where there are layers."""
    layers = sorted({row.layer for row in found.changed if row.layer is not None})
    if len(layers) < 2:
        return
    shares: dict[str, dict[int, float]] = {}
    for row in found.changed:
        if row.layer is not None:
            here = shares.setdefault(row.role, {})
            here[row.layer] = max(here.get(row.layer, 0.0), row.relative_l2 if row.relative_l2 > 0 else 0.0)
    say("", [("relative change by layer: · < 0.1 % ≤ ░ < 1 % ≤ ▒ < 10 % ≤ ▓ < 100 % ≤ █", "dim")])
    say(*heat(shares, range(layers[-1] + 1), min(width() or 80, 80)))


def _print_parts(parts: list[Part]) -> None:
    """What each part does, and whether that adds up."""
    if not parts:
        return
    say("", [("KL divergence from A of A with parts of B, mean in nats, the largest change first", "dim")])
    rows(PARTS, map(_part_cells, parts))
    alone = sum(part.kl_alone for part in parts if part.addresses)
    say("", f"alone they come to {units.real(alone)}, together they do {units.real(parts[-1].kl_together)}")


def _part_cells(part: Part) -> list[str]:
    numbers = part.l2, part.kl_alone, part.kl_together
    return [part.part, units.count(len(part.addresses)), *map(units.real, numbers)]
