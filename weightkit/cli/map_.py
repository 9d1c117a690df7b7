"""weightkit map: the pipeline, with this model's parameters on every step that has weights."""

from __future__ import annotations

from weightkit.cli.output import Json, ModelPath, emit, open_model, say
from weightkit.errors import WeightkitError
from weightkit.report import units
from weightkit.report.pipeline import pipeline, steps
from weightkit.report.tables import Line


def map_(model: ModelPath, json: Json = False) -> None:
    """Draw the way from text to output; steps that use learned weights are marked *."""
    from weightkit.analysis.counts import count

    opened = open_model(model)
    registry, by = opened.registry, ""
    if registry.packed_as is not None and (described := opened.described()) is not None:
        registry, by = described, " by its config"  # its weights have no roles
    total = count(registry).total
    lines = pipeline(registry, total)
    if not lines:
        raise WeightkitError(f"{model}: its family is not known, so it has no map; weightkit list shows its tensors")
    if json:
        emit("map", total=total, steps=steps(registry))
        return
    architecture = registry.architecture
    kind = registry.config.model_type if registry.config else f"named like {architecture and architecture.model_type}"
    title: Line = [(f"{kind}{by}, ", ""), (units.count(total), "bold cyan"), (" parameters", "")]
    say(title, "", *lines, "", [("   * ", "bold yellow"), ("uses learned weights", "dim")])
