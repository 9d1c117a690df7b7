"""weightkit count: how many parameters, of what kind, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Annotated

import typer

from weightkit.analysis import costs
from weightkit.analysis.counts import Counts
from weightkit.analysis.explain import Explanation
from weightkit.cli.output import Json, ModelPath, emit, open_model, say, width
from weightkit.config import Config
from weightkit.errors import printable
from weightkit.report import units
from weightkit.report.tables import GAP, Column, pairs, table

Context = Annotated[
    int | None,
    typer.Option(
        "--context", min=1, help="Tokens of context for the cache and the work; the model's longest if absent."
    ),
]
Explain = Annotated[
    bool, typer.Option("--explain", help="Take every count apart, and hold it against the config and the files.")
]


def count(model: ModelPath, explain: Explain = False, context: Context = None, json: Json = False) -> int:
    """Count parameters: total, by role, layer and type, with the formula each count comes from."""
    opened = open_model(model)
    counts = opened.counts()
    at = context or (counts.config.positions if counts.config else None)
    explanation = opened.explain() if explain else None
    if json:
        _emit(counts, at, explanation)
    else:
        total = units.count(counts.total) if counts.sized else "unknown"
        short = f"  parameters ({units.short(counts.total)})" if counts.sized else "  parameters: only names are known"
        say([("total  ", ""), (total, "bold cyan"), (short, "")], "")
        if explanation is not None:
            _explain(explanation)
        else:
            _by_role(counts)
        say(*pairs(_facts(counts, at), width()))
    return 1 if explanation is not None and explanation.mismatches else 0


def _emit(counts: Counts, context: int | None, explanation: Explanation | None) -> None:
    known = counts.sized
    emit(
        "count",
        model_type=counts.model_type,
        total=counts.total if known else None,
        active=counts.active if known else None,
        stored=counts.stored if known else None,
        bytes=counts.bytes or None,  # of a type that nothing names
        bits_per_parameter=counts.bits_per_parameter,
        by_role=counts.by_role,
        by_layer=counts.by_layer,
        by_dtype=counts.by_dtype,
        tied=counts.tied,
        unclaimed=counts.unclaimed,
        bookkeeping=counts.bookkeeping,
        ignored=counts.ignored,
        formulas=counts.formulas,
        context=context,
        kv_cache_bytes_per_token=counts.kv_cache(1),
        kv_cache_bytes=counts.kv_cache(context) if context else None,
        flops_per_token=counts.flops(1),
        flops_per_token_at_context=counts.flops(context) if context else None,
        **({"explanation": explanation} if explanation is not None else {}),
    )


def _by_role(counts: Counts) -> None:
    columns = [Column("role"), Column("parameters", right=True, style="cyan"), Column("share", right=True)]
    cells = [
        (
            role,
            units.count(number),
            units.percent(number / counts.total if counts.total else None),
            counts.formulas[role],
        )
        for role, number in counts.by_role.items()
    ]
    say(*table([*columns, Column("how", shrinks=True)], cells, width()), "")


def _explain(explanation: Explanation) -> None:
    """One line for each kind of weight, then what the sum is held against."""
    columns = [
        Column("weights", style="cyan", shrinks=True),
        Column("formula", right=True),
        Column("= parameters", right=True, style="cyan"),
        Column("in words", shrinks=True),
    ]
    cells = [
        (
            term.address,
            (f"{term.times:,} × " if term.times > 1 else "")
            + (f"({units.shape(term.shape)})" if term.times > 1 else units.shape(term.shape)),
            term.note or units.count(term.parameters),
            term.axes,
        )
        for term in explanation.terms
    ]
    say(*table(columns, _by_factor(cells, width()), width()), "")
    says = [
        ("sum of the above", explanation.total),
        ("in the files", explanation.files),
        ("by the config", explanation.config),
    ]
    say(
        *pairs(
            [(name, units.count(number) if number is not None else "not known: there is none") for name, number in says]
        ),
        "",
    )
    for wrong in explanation.mismatches:
        files, config = units.count(wrong.files), units.count(wrong.config)
        say([("fault: ", "red"), (f"{printable(wrong.address)}: {files} in the files, {config} by the config", "")])


def _by_factor(cells: Sequence[tuple[str, ...]], columns: int | None) -> Sequence[tuple[str, ...]]:
    """The rows with their last cell over several, a factor on each, where a line has no room for it."""
    if columns is None:
        return cells
    used = sum(max(len(cell) for cell in column) + len(GAP) for column in list(zip(*cells, strict=True))[:-1])
    rows: list[tuple[str, ...]] = []
    for *row, words in cells:
        first, *others = [words] if used + len(words) <= columns else words.replace(" × ", "\0× ").split("\0")
        rows.append((*row, first))
        rows += [(*("" for _ in row), factor) for factor in others]
    return rows


def _facts(counts: Counts, context: int | None) -> list[tuple[str, str]]:
    facts = [("model type", counts.model_type or "unknown")]
    if counts.sized:
        facts += [("active per token", units.count(counts.active)), ("stored in the files", _stored(counts))]
    if counts.bits_per_parameter and counts.stored:
        facts.append(("bits per parameter", f"{counts.bits_per_parameter:.3g}"))
    if counts.by_dtype:
        facts.append(
            ("by type", ", ".join(f"{name} {units.count(number)}" for name, number in counts.by_dtype.items()))
        )
    if counts.sized:
        facts.append(("by layer", _layers(counts.by_layer)))
    if counts.tied:
        facts.append(("tied", ", ".join(" = ".join(group) for group in counts.tied)))
    if counts.config is not None and context is not None:
        facts += _costs(counts, counts.config, context)
    if counts.bookkeeping:
        facts.append(("scales and the like", f"{units.count(counts.bookkeeping)} numbers, no parameters"))
    if counts.ignored:
        facts.append(("buffers and the like", f"{units.count(counts.ignored)} numbers, no parameters"))
    if counts.unclaimed and counts.config is not None:
        facts.append(("without a role", units.plural(len(counts.unclaimed), "tensor")))
    return facts


def _stored(counts: Counts) -> str:
    if counts.stored:
        return f"{units.count(counts.stored)} numbers, {units.size(counts.bytes)}"
    return f"no files here; {units.size(counts.bytes or None)} in the config's type"


def _costs(counts: Counts, config: Config, context: int) -> list[tuple[str, str]]:
    at = f"{context:,} tokens"
    cache = f"{units.size(counts.kv_cache(1))} a token, {units.size(counts.kv_cache(context))} at {at}"
    work = f"{units.operations(counts.flops(1))}, {units.operations(counts.flops(context))} after {at}"
    return [
        ("memory", ", ".join(f"{units.size(counts.total * b)} in {name}" for name, b in _TYPES)),
        ("KV cache in 16 bits", costs.why_no_cache(config) or cache),
        ("to compute a token", costs.why_no_flops(config) or work),
    ]


_TYPES = (("F32", 4), ("BF16", 2), ("8 bits", 1))


def _layers(by_layer: dict[str, int]) -> str:
    """Layers of a stack of equal size together, as in `0 to 31: 218,112,000 each`."""
    parts: list[str] = []
    for (_, number), run in groupby(by_layer.items(), key=lambda layer: (layer[0].rstrip(_DIGITS), layer[1])):
        names = [name for name, _ in run]
        each = units.count(number)
        last = names[-1].rpartition(".")[2]  # of encoder.0 to encoder.5, the 5
        parts.append(f"{names[0]} to {last}: {each} each" if len(names) > 1 else f"{names[0]}: {each}")
    return ", ".join(parts[:6]) + (", …" if len(parts) > 6 else "")


_DIGITS = "0123456789"
