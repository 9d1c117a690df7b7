"""weightkit patch: what leads from one model to another, to the bit, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightkit.cli.output import (
    NOTES,
    After,
    Before,
    Json,
    ModelPath,
    emit,
    note_new_folders,
    open_model,
    progress,
    rows,
    say,
)
from weightkit.errors import one_line, printable
from weightkit.report import units
from weightkit.report.tables import Column

if TYPE_CHECKING:
    from weightkit.patch import Conflict, Patch
    from weightkit.patch.container import Entry
    from weightkit.patch.steps import Step

patch = typer.Typer(
    help="Patches: the difference of two models as a small file that can be applied and taken back, to the bit.",
    rich_markup_mode=None,
)

PatchPath = Annotated[str, typer.Argument(metavar="PATCH", help="A patch, as in p.wkpatch.", show_default=False)]
First = Annotated[str, typer.Argument(metavar="P", help="A patch.", show_default=False)]
Second = Annotated[str, typer.Argument(metavar="Q", help="Another patch.", show_default=False)]
Out = Annotated[str, typer.Option("--output", "-o", metavar="OUT", help="Where to write the result.")]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")]


@patch.command()
def make(a: Before, b: After, output: Out, force: Force = False, json: Json = False) -> None:
    """Write the patch that makes B of A, and A of B."""
    from weightkit.patch import make

    first, second = open_model(a), open_model(b)
    note_new_folders(output)
    with progress("comparing tensor") as report:
        made = make(first, second, output, force=force, progress=report)
    _show(made, json)


@patch.command()
def show(path: PatchPath, json: Json = False) -> None:
    """What a patch changes, and how it is written. Reads no model."""
    _show(_open(path), json)


@patch.command()
def apply(path: PatchPath, base: ModelPath, output: Out, force: Force = False, json: Json = False) -> None:
    """Write what a patch makes of the model that it was made for; any other is refused."""
    _apply(_open(path), base, output, force, json)


@patch.command()
def revert(path: PatchPath, target: ModelPath, output: Out, force: Force = False, json: Json = False) -> None:
    """Take a patch back: write the model that it was applied to."""
    _apply(_open(path).inverse, target, output, force, json)


@patch.command()
def invert(path: PatchPath, output: Out, force: Force = False, json: Json = False) -> None:
    """Write the patch that undoes a patch."""
    inverse = _open(path).inverse
    inverse.save(output, force=force)
    _show(_open(output), json)


@patch.command()
def compose(first: First, second: Second, output: Out, force: Force = False, json: Json = False) -> None:
    """Write the patch that does what P does, then Q."""
    from weightkit.patch import compose

    compose(_open(first), _open(second)).save(output, force=force)
    _show(_open(output), json)


@patch.command()
def conflicts(first: First, second: Second, json: Json = False) -> int:
    """What two patches for one model both change. Exit 0 if nothing, 1 if something."""
    from weightkit.patch import conflicts

    found = conflicts(_open(first), _open(second))
    if json:
        emit("patch", conflicts=found)
    elif found:
        rows(_CONFLICTS, map(_conflict, found))
    else:
        say("no conflicts: the patches change nothing in the same place")
    return 1 if found else 0


def _open(path: str) -> Patch:
    from weightkit.patch import open

    return open(path)


def _apply(patch: Patch, base: str, output: str, force: bool, json: bool) -> None:
    from weightkit.patch import apply
    from weightkit.surgery.place import one_file

    model = open_model(base)
    note_new_folders(output)
    with progress("checking tensor") as report:
        saved = apply(patch, model, output, force=force, progress=report)
    if one_file(model.checkpoint) and patch.files:
        NOTES.append(f"{one_line(change.name for change in patch.files)}: not changed, as a single file was patched")
    if json:
        emit("patch", base=patch.base, target=patch.target, tensors=len(patch.entries), output=str(saved))
        return
    say(f"{units.plural(len(patch.entries), 'tensor')} changed; the result is the model that the patch names")
    say([("saved ", "bold green"), (printable(str(saved)), "")])


_TENSORS = [
    Column("tensor", style="cyan", shrinks=True),
    Column("change"),
    Column("how much"),
    Column("bytes", right=True),
]
_CONFLICTS = [Column("in both", style="cyan", shrinks=True), Column("P"), Column("Q"), Column("places", right=True)]


def _show(patch: Patch, json: bool) -> None:
    if json:
        emit("patch", **_fields(patch))
        return
    if patch.entries:
        rows(_TENSORS, map(_cells, patch.entries))
    for change in patch.files:
        paths = "as a whole" if change.ops is None else one_line(str(op["path"]) for op in change.ops)
        say(f"{change.name}: {printable(paths)}")
    say(
        "",
        f"{units.plural(len(patch.entries), 'tensor')} of "
        f"{len(patch.entries) + len(patch.unchanged):,} and {units.plural(len(patch.files), 'small file')}: "
        f"{units.size(patch.nbytes)}",
        f"from {patch.base[:16]} to {patch.target[:16]}",
    )


def _fields(patch: Patch) -> dict[str, Any]:
    return {
        "base": patch.base,
        "target": patch.target,
        "bytes": patch.nbytes,
        "unchanged": len(patch.unchanged),
        "changed": [
            {
                "before": entry.before,
                "after": entry.after,
                "bytes": entry.size,
                "steps": [_step_fields(step) for step in entry.steps],
            }
            for entry in patch.entries
        ],
        "files": [
            {"name": c.name, "paths": None if c.ops is None else [op["path"] for op in c.ops]} for c in patch.files
        ],
    }


def _step_fields(step: Step) -> dict[str, Any]:
    facts = {name: fact for name, fact in step.facts.items() if name not in ("sizes", "bits", "exponent")}
    return {"kind": step.kind, "back": step.back, "bytes": step.size, "facts": facts}


def _cells(entry: Entry) -> list[str]:
    if entry.before is None:
        name, change = entry.name, "added"
    elif entry.after is None:
        name, change = entry.name, "removed"
    else:
        name = entry.after if entry.before == entry.after else f"{entry.before} → {entry.after}"
        change = " + ".join(step.kind.replace("_", " ") for step in entry.steps) or "renamed"
    return [printable(name), change, "; ".join(filter(None, map(_how_much, entry.steps))), f"{entry.size:,}"]


def _how_much(step: Step) -> str:
    facts = step.facts
    match step.kind:
        case "sparse":
            return units.plural(int(facts["count"]), "number")
        case "block":
            return f"{units.plural(int(facts['rows']), 'row')} × {units.plural(int(facts['columns']), 'column')}"
        case "permuted":
            return units.plural(int(facts["count"]), "column" if facts["axis"] else "row")
        case "scaled":
            return f"{'÷' if step.back else '×'} {facts['factor']:.6g}"
        case "low_rank":
            return f"rank {facts['rank']}"
        case "cast":
            return " → ".join(facts["dtypes"][::-1] if step.back else facts["dtypes"])
        case "rows_added":
            return f"{units.plural(int(facts['rows']), 'row')} {'fewer' if step.back else 'more'}"
        case "new":
            return f"{facts['dtype']} {units.shape(tuple(facts['shape']))}"
        case "reshaped":
            before, after = (units.shape(tuple(facts[side])) for side in ("before", "after"))
            return f"{after} → {before}" if step.back else f"{before} → {after}"
    return ""


def _conflict(found: Conflict) -> list[str]:
    places = units.NONE if found.words is None else f"{found.words:,}"
    return [
        printable(found.name),
        *(printable(one_line(kinds, most=3)) for kinds in (found.first, found.second)),
        places,
    ]
