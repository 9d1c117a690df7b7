"""weightkit list: the registry."""

from __future__ import annotations

import math

from weightkit.cli.output import Address, Csv, Json, Markdown, ModelPath, emit, open_model, rows
from weightkit.report import units
from weightkit.report.tables import Column
from weightkit.weight import Selection, Weight

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
    # Without an address tied weights too, which select leaves out.
    found = list(opened.registry.values()) if address is None else opened.select(address)
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
    cells = map(_cells, found)
    rows(columns, cells, csv=csv, markdown_=markdown, values=(FIELDS, values))


def _values(item: Weight | Selection) -> tuple[object, ...]:
    weight = item.weight if isinstance(item, Selection) else item
    parameters = 0 if weight.tied_to or weight.buffer else item.size
    dtype = weight.source.dtype.name if weight.source is not None else None
    role, shape = str(weight.role), list(item.shape)
    return item.address, weight.name, role, weight.layer, dtype, shape, parameters, weight.tied_to


def _cells(item: Weight | Selection) -> tuple[str, ...]:
    weight = item.weight if isinstance(item, Selection) else item
    shape = item.shape
    return (
        item.address,
        str(weight.role),
        units.shape(shape),
        weight.source.dtype.name if weight.source is not None else units.NONE,
        f"= {weight.tied_to}" if weight.tied_to else units.count(math.prod(shape)),
        weight.name,
    )
