"""weightkit edit: change weights, see what it would touch, measure what it does, save."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from weightkit.cli.measure import measure_on
from weightkit.cli.output import NOTES, Json, ModelPath, UsageError, emit, note_new_folders, open_model, say, width
from weightkit.cli.prompts import TokenIds
from weightkit.report import units
from weightkit.report.tables import Column, table
from weightkit.surgery.edits import Edit, noise, scale, set_to, zero
from weightkit.surgery.save import Plan


def edit(
    model: ModelPath,
    zero: Annotated[
        list[str] | None, typer.Option(metavar="ADDRESS", help="Set to zero, as in 'layers.0.attn[head=3]'.")
    ] = None,
    set: Annotated[list[str] | None, typer.Option(metavar="ADDRESS=NUMBER", help="Set to a number.")] = None,
    scale: Annotated[list[str] | None, typer.Option(metavar="ADDRESS=FACTOR", help="Multiply by a factor.")] = None,
    noise: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS=STD", help="Add Gaussian noise; STD is relative to each weight's own."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="OUT", help="Where to save the edited model.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be touched; write nothing.")] = False,
    measure: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Run both on a text (or a file) and compare.")
    ] = None,
    ids: TokenIds = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    json: Json = False,
) -> None:
    """Edit weights and save the result as a new checkpoint; the original is never touched.

    Edits are made in this order: --zero, --set, --scale, --noise. Each can be given several times.
    """
    if not (output or dry_run or measure or ids):
        raise UsageError("nothing to do: give -o OUT to save, --dry-run to look, or --measure TEXT to test")
    edits = parse_edits(zero or [], set or [], scale or [], noise or [], seed)
    base = open_model(model)
    edited = base.apply(*edits)
    measured = measure_on(base, edited, measure or [], ids or []) if measure or ids else None
    NOTES.extend(measured.faults if measured else [])
    saved = None
    if output and not dry_run:
        note_new_folders(output)
        saved = edited.save(output, force=force)
    plan = edited.plan()
    if json:
        emit(
            "edit",
            edits=edits,
            tensors=plan.tensors,
            elements=plan.elements,
            rewritten=plan.rewritten,
            linked=plan.linked,
            output=str(saved) if saved else None,
            effect=measured.fields() if measured else None,
        )
        return
    _print_plan(plan)
    if measured:
        say("")
        measured.show()
    if saved:
        say("", [("saved ", "bold green"), (str(saved), "")])
    elif dry_run:
        say("", "dry run: nothing was written")


def parse_edits(
    zeros: list[str], sets: list[str], scales: list[str], noises: Sequence[str] = (), seed: int = 0
) -> list[Edit]:
    """Edits as options give them, in the order in which they are made."""
    return [
        *map(zero, zeros),
        *(set_to(*_split("--set", text)) for text in sets),
        *(scale(*_split("--scale", text)) for text in scales),
        *(noise(a, relative_std=std, seed=seed) for a, std in (_split("--noise", text) for text in noises)),
    ]


def _split(option: str, text: str) -> tuple[str, float]:
    """ADDRESS=NUMBER: the last = separates them, since addresses may have some."""
    address, _, value = text.rpartition("=")
    try:
        return address, float(value)
    except ValueError:
        example = "'layers.3.attn.q[head=2]=0.5'"
        raise UsageError(f"{option} {text!r}: expected an address, = and a number, as in {example}") from None


def _print_plan(plan: Plan) -> None:
    columns = [
        Column("edited", style="cyan", shrinks=True),
        Column("numbers", right=True),
        Column("type"),
        Column("in tensor", shrinks=True),
        Column("of file", style="dim", shrinks=True),
    ]
    cells = [(", ".join(t.addresses), units.count(t.elements), t.dtype, t.name, t.shard) for t in plan.tensors]
    if cells:
        say(*table(columns, cells, width()), "")
    rewritten = units.size(sum(plan.rewritten.values()))
    say(
        f"{units.plural(plan.elements, 'number')} in {units.plural(len(plan.tensors), 'tensor')}; "
        f"{units.plural(len(plan.rewritten), 'file')} to rewrite ({rewritten}), "
        f"{len(plan.linked)} to link"
    )
    if plan.converted:
        say("saved as safetensors: files of this format cannot be changed in place")
