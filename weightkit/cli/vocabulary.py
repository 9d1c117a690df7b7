"""weightkit vocabulary: what a token, a neuron or a head means in tokens."""

from __future__ import annotations

from itertools import zip_longest
from typing import Annotated

import typer

from weightkit.analysis.vocabulary import Scored
from weightkit.cli.output import (
    Csv,
    Json,
    Markdown,
    ModelPath,
    Parquet,
    emit,
    open_model,
    plain,
    progress,
    rows,
    write_parquet,
)
from weightkit.report import units
from weightkit.report.tables import Column


def vocabulary(
    model: ModelPath,
    address: Annotated[
        str,
        typer.Argument(
            metavar="ADDRESS",
            help="A token, a neuron or a head: 'embed[token=42]', 'layers.0.ffn[neuron=17]', 'layers.0.attn[head=3]'.",
        ),
    ],
    token: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="A token, as text or id, that the head attends to.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Rows: the highest and the lowest scores.")] = 10,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
    parquet: Parquet = None,
) -> None:
    """What something means in tokens, without running the model.

    The neighbours of a token; the tokens that a neuron writes; the tokens that a head copies or, with --token, what it
    writes where it attends to that one.
    """
    opened = open_model(model)
    with progress("reading block") as report:
        found = opened.vocabulary(address, top, token=_token(token), progress=report)
    write_parquet(parquet, found.rows())
    if json:
        emit("vocabulary", **plain(found))
        return
    titles = _TITLES[found.kind]
    columns = [
        c for title in titles for c in (Column(title), Column("id", right=True), Column(found.measure, right=True))
    ]
    both = zip_longest(found.highest, found.lowest)
    cells = [(*_cells(high), *_cells(low)) for high, low in both]
    rows(columns, cells, csv=csv, markdown_=markdown, values=found.rows(), below=_MEANS[found.kind])


_TITLES = {
    "neighbours": ("nearest", "farthest"),
    "writes": ("raised", "lowered"),
    "copies": ("copied", "suppressed"),
}
_MEANS = {
    "neighbours": "the cosine of the rows of two tokens",
    "writes": "what is added to the logits, but for the scale of the final norm",
    "copies": "z of a token's own logit among those it leads to through this head alone",
}


def _token(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdecimal() else text


def _cells(scored: Scored | None) -> tuple[str, ...]:
    return ("", "", "") if scored is None else (repr(scored.token), str(scored.id), units.real(scored.score))
