"""weightkit list: the registry."""

from __future__ import annotations

from weightkit.cli.output import Address, Csv, Json, Markdown, ModelPath, emit, open_model, rows
from weightkit.report import units
from weightkit.report.tables import Column
from weightkit.weight import Selection

FIELDS = ("address", "name", "role", "layer", "dtype", "shape", "parameters", "tied_to")


def list_(
    model: ModelPath,
    address: Address = None,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
) -> None:
    """List the weights: address, role, shape, type, and the name in the file."""
    opened = open_model(model)
    everything = map(Selection.of, opened.registry.values())  # tied weights too, which select leaves out
    found = list(everything) if address is None else opened.select(address)
    values = map(_values, found)
    if json:
        emit(
            "list",
            rows=[dict(zip(FIELDS, row, strict=True)) for row in values],
            ignored=opened.registry.ignored,
        )
        return
    columns = [
        Column("address", style="cyan", shrinks=True),
        Column("role"),
        Column("shape", right=True),
        Column("type"),
        Column("parameters", right=True),
        Column("name in the file", style="dim", shrinks=True),
    ]
    cells = ((s.address, str(s.role), units.shape(s.shape), _dtype(s), _parameters(s), s.name) for s in found)
    rows(columns, cells, csv=csv, markdown_=markdown, values=(FIELDS, values))


def _values(selection: Selection) -> tuple[object, ...]:
    weight = selection.weight
    parameters = 0 if weight.tied_to else selection.size
    layer, shape = weight.layer, list(selection.shape)
    return (
        selection.address,
        selection.name,
        str(selection.role),
        layer,
        selection.dtype.name if weight.source is not None else None,
        shape,
        parameters,
        weight.tied_to,
    )


def _dtype(selection: Selection) -> str:
    return selection.dtype.name if selection.weight.source is not None else units.NONE


def _parameters(selection: Selection) -> str:
    tied = selection.weight.tied_to
    return f"= {tied}" if tied else units.count(selection.size)
