"""weightkit measure: two models on the same text."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightkit.cli.output import (
    After,
    Before,
    Json,
    Threads,
    UsageError,
    emit,
    open_model,
    plain,
    progress,
    say,
    width,
)
from weightkit.cli.prompts import TokenIds, is_file, parse_ids, read_text
from weightkit.effect.measure import Effect, Ids
from weightkit.effect.windows import WINDOW
from weightkit.errors import EngineError, printable
from weightkit.report import units
from weightkit.report.tables import Line, pairs

if TYPE_CHECKING:
    from weightkit.effect.side_by_side import Continuations
    from weightkit.model import Model

CONTEXT = 8  # tokens shown before the one that the models see most differently


def measure(
    a: Before,
    b: After,
    text: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A text file, or the text itself.")] = None,
    ids: TokenIds = None,
    window: Annotated[
        int | None, typer.Option(metavar="N", help="Cut long texts into windows of N tokens.", show_default="512")
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens of a window that the next begins with.", show_default="half of it"),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Let both models go on from it; without --text, measure on it too."),
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, metavar="N", help="For --prompt.")] = 40,
    threads: Threads = None,  # noqa: ARG001 - its callback has set it
    json: Json = False,
) -> None:
    """Run two models on the same text and compare what they predict."""
    if not text and not ids and not prompt:
        raise UsageError("nothing to measure on: give --text FILE, --ids 1,403,407, or --prompt TEXT to go on from")
    from weightkit.model import side_by_side

    first, second = open_model(a), open_model(b)
    measured = measure_on(
        first, second, text or ([] if ids else prompt or []), ids or [], window=window, overlap=overlap
    )
    if measured.faults:
        raise EngineError("; ".join(measured.faults))
    written = [side_by_side(first, second, start, max_tokens) for start in prompt or []]
    if json:
        emit("measure", **measured.fields(), continuations=written)
        return
    measured.show()
    for both in written:
        say("", *_side_by_side(both))


@dataclass(frozen=True)
class Measured:
    """An effect, and the texts that it was measured on."""

    model: Model
    effect: Effect
    names: list[str]  # of the texts
    texts: list[Ids]
    faults: list[str]  # of models that predict nothing

    def fields(self) -> dict[str, Any]:
        """The JSON fields."""
        effect, place = self.effect, self.effect.kl_max_at
        values = asdict(effect) | {"perplexity_a": effect.perplexity_a, "perplexity_b": effect.perplexity_b}
        if place is not None:
            values["kl_max_at"] = asdict(place) | {"token": self.model.token_text(place.id)}
        return plain(values)

    def show(self) -> None:
        """Print it for people."""
        effect, real = self.effect, units.real
        say(
            *pairs(
                [
                    ("tokens predicted", units.count(effect.tokens)),
                    ("perplexity", f"{real(effect.perplexity_a, 5)} → {real(effect.perplexity_b, 5)}"),
                    ("nats per token", f"{real(effect.nll_a, 5)} → {real(effect.nll_b, 5)}"),
                    ("KL divergence", f"{real(effect.kl_mean)} mean, {real(effect.kl_max)} at most (nats)"),
                    *([("most at", self._place())] if effect.kl_max_at else []),
                    ("same first choice", units.percent(effect.top1_agreement)),
                    ("streams part", self._parting()),
                ],
                width(),
                prose=True,
            )
        )

    def _place(self) -> str:
        """Where the models differ most: the token, and what is before it."""
        place = self.effect.kl_max_at
        assert place is not None
        ids = deque(islice(self.texts[place.text], place.position), CONTEXT)
        before = "".join(map(self.model.token_text, ids))
        name = f"{self.names[place.text]}, " if len(self.texts) > 1 else ""
        text = f"{'…' if place.position > CONTEXT else ''}{before}"
        token = self.model.token_text(place.id)
        return printable(f"{name}token {place.position:,}: '{token}' after '{text}'")

    def _parting(self) -> str:
        if self.effect.first_drift is not None:
            return f"after layer {self.effect.first_drift}"
        if self.effect.kl_max == 0:
            return "nowhere: the outputs are the same to the bit"
        return "only after the last layer"  # the divergence from NaN is NaN


def measure_on(
    a: Model,
    b: Model,
    texts: Sequence[str],
    ids: Sequence[str],
    *,
    window: int | None = None,
    overlap: int | None = None,
) -> Measured:
    """Measure on texts, or files of text, or ids, as they were given."""
    from weightkit.model import measure as compare

    for model in (a, b):
        _ = model.engine  # that it cannot be run at all is said first
    names = [*(Path(text).name if is_file(text) else "" for text in texts), *("" for _ in ids)]
    names = [name or f"text {number}" for number, name in enumerate(names, start=1)]
    words = (a.text_file(text) if is_file(text) else a.ids(read_text(text)) for text in texts)
    sequences: list[Ids] = [*words, *map(parse_ids, ids)]
    with progress("predicting token") as report:
        effect = compare(a, b, ids=sequences, window=window, overlap=overlap, progress=report)
    longest = max(sequences, key=len)
    start = list(islice(longest, WINDOW))
    both = (("A", a, effect.nll_a), ("B", b, effect.nll_b))
    faults = [f"{name}: {_fault(model, start)}" for name, model, nll in both if not math.isfinite(nll)]
    return Measured(a, effect, names, sequences, faults)


def _fault(model: Model, ids: list[int]) -> str:
    """Why a model predicts nothing."""
    from weightkit.engine.finite import require_finite

    try:
        require_finite(model.logits(ids), model.engine, ids)
    except EngineError as error:
        return str(error)
    return "the model's output is not finite in some places"


def _side_by_side(both: Continuations) -> list[Line]:
    """One prompt, and what each model makes of it."""
    parted = "all of it" if both.ids_a == both.ids_b else units.plural(both.same, "token")
    rows = [("prompt", both.text), ("A", both.text_a), ("B", both.text_b), ("the same", parted)]
    return pairs(rows, width(), prose=True)
