"""weightkit count: how many parameters, of what kind, and what they cost."""

from __future__ import annotations

from weightkit.cli.output import Json, ModelPath, emit, open_model, say, width
from weightkit.report import units
from weightkit.report.tables import Column, pairs, table


def count(model: ModelPath, json: Json = False) -> None:
    """Count parameters: total, by role, layer and type, with the formula each count comes from."""
    opened = open_model(model)
    counts = opened.counts()
    config = counts.config
    if json:
        emit(
            "count",
            model_type=counts.model_type,
            total=counts.total,
            active=counts.active,
            stored=counts.stored,
            bytes=counts.bytes,
            by_role=counts.by_role,
            by_layer=counts.by_layer,
            by_dtype=counts.by_dtype,
            tied=counts.tied,
            unclaimed=counts.unclaimed,
            formulas=counts.formulas,
            kv_cache_bytes_per_token=counts.kv_cache(1),
            flops_per_token=counts.flops(1),
        )
        return
    say(
        [
            ("total  ", ""),
            (units.count(counts.total), "bold cyan"),
            (f"  parameters ({units.short(counts.total)})", ""),
        ],
        "",
    )
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
    facts = [
        ("model type", counts.model_type or "unknown"),
        ("active per token", units.count(counts.active)),
        ("stored in the files", f"{units.count(counts.stored)} numbers, {units.size(counts.bytes)}"),
        ("by type", ", ".join(f"{name} {units.count(number)}" for name, number in counts.by_dtype.items())),
        ("by layer", _layers(counts.by_layer)),
    ]
    if not counts.stored:
        facts[2] = ("stored in the files", f"no files here; {units.size(counts.bytes)} in the config's type")
    if counts.tied:
        facts.append(("tied", ", ".join(" = ".join(group) for group in counts.tied)))
    if config is not None:
        at = f"{config.positions:,} tokens"
        cache = units.size(counts.kv_cache(1)), units.size(counts.kv_cache(config.positions))
        work = units.operations(counts.flops(1)), units.operations(counts.flops(config.positions))
        facts += [
            ("memory", ", ".join(f"{units.size(counts.total * b)} in {name}" for name, b in _TYPES)),
            ("KV cache in 16 bits", f"{cache[0]} a token, {cache[1]} at {at}"),
            ("to compute a token", f"{work[0]}, {work[1]} after {at}"),
        ]
    if counts.unclaimed:
        facts.append(("without a role", units.plural(len(counts.unclaimed), "tensor")))
    say(*pairs(facts))


_TYPES = (("F32", 4), ("BF16", 2), ("8 bits", 1))


def _layers(by_layer: dict[str, int]) -> str:
    """Layers of equal size together, as in `0 to 31: 218,112,000 each`."""
    parts: list[str] = []
    runs: list[list[str]] = []
    for name, number in by_layer.items():
        if runs and name.isdecimal() and runs[-1][0].isdecimal() and by_layer[runs[-1][-1]] == number:
            runs[-1].append(name)
        else:
            runs.append([name])
    for run in runs:
        each = units.count(by_layer[run[0]])
        parts.append(f"{run[0]} to {run[-1]}: {each} each" if len(run) > 1 else f"{run[0]}: {each}")
    return ", ".join(parts[:6]) + (", …" if len(parts) > 6 else "")
