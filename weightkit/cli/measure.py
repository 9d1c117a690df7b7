"""weightkit measure: two models on the same text."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightkit.cli.output import (
    After,
    Before,
    Json,
    TokenIds,
    UsageError,
    emit,
    open_model,
    parse_ids,
    plain,
    progress,
    say,
)
from weightkit.effect.measure import Effect
from weightkit.errors import EngineError
from weightkit.report import units
from weightkit.report.tables import pairs

if TYPE_CHECKING:
    from weightkit.model import Model

MOST_TEXT = 64 << 20


def measure(
    a: Before,
    b: After,
    text: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A text file, or the text itself.")] = None,
    ids: TokenIds = None,
    json: Json = False,
) -> None:
    """Run two models on the same text and compare what they predict."""
    if not text and not ids:
        raise UsageError("nothing to measure on: give --text FILE, or --ids 1,403,407")
    effect = effect_of(open_model(a), open_model(b), text or [], ids or [])
    if json:
        emit("measure", **fields(effect))
    else:
        print_effect(effect)


def effect_of(a: Model, b: Model, texts: list[str], ids: list[str]) -> Effect:
    """Measure on texts, or files of text, or ids, as they were given."""
    from weightkit.model import measure as compare

    with progress("running window") as report:
        return compare(a, b, [read_text(text) for text in texts], ids=[parse_ids(i) for i in ids], progress=report)


def fields(effect: Effect) -> dict[str, Any]:
    """The JSON fields of an effect."""
    values = asdict(effect)
    return plain(values | {"perplexity_a": effect.perplexity_a, "perplexity_b": effect.perplexity_b})


def read_text(text: str) -> str:
    """The contents of a file, or the text itself where it does not look like a path."""
    path = Path(text)
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # too long for a name, or a NUL in it
        is_file = False
    if not is_file:
        if re.fullmatch(r"\S*[/\\]\S*|\S+\.[A-Za-z0-9]{1,5}", text):
            raise UsageError(f"{text}: no such file")
        return text
    if path.stat().st_size > MOST_TEXT:
        raise EngineError(f"{path}: more than {MOST_TEXT >> 20} MB of text; measure on a part of it")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise EngineError(f"{path}: not a text file in UTF-8") from None


def print_effect(effect: Effect) -> None:
    """An effect, for people."""
    drift = "nowhere: the outputs are the same to the bit"
    if effect.first_drift is not None:
        drift = f"after layer {effect.first_drift}"
    elif effect.kl_max > 0:
        drift = "only after the last layer"
    real = units.real
    say(
        *pairs(
            [
                ("tokens predicted", units.count(effect.tokens)),
                ("perplexity", f"{real(effect.perplexity_a, 5)} → {real(effect.perplexity_b, 5)}"),
                ("nats per token", f"{real(effect.nll_a, 5)} → {real(effect.nll_b, 5)}"),
                ("KL divergence", f"{real(effect.kl_mean)} mean, {real(effect.kl_max)} at most (nats)"),
                ("same first choice", units.percent(effect.top1_agreement)),
                ("streams part", drift),
            ]
        )
    )
