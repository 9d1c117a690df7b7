"""The pipeline of a model, from text to output, with its parameters on every step that has weights."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from weightkit.architectures.parts import Role
from weightkit.registry import Registry
from weightkit.report import units
from weightkit.report.tables import Line
from weightkit.weight import Weight


@dataclass(frozen=True)
class Step:
    """One step. Those in a layer stand for all layers."""

    name: str
    weights: bool  # whether it uses learned weights
    in_layer: bool = False
    address: str | None = None
    shape: tuple[int, ...] = ()
    parameters: int = 0  # of all layers together, biases included
    tied_to: str | None = None
    bias: bool = False


def steps(registry: Registry) -> list[Step]:
    """The steps in the order in which they are computed. Empty where the family is not known."""
    architecture, config = registry.architecture, registry.config
    if architecture is None or config is None:
        return []
    groups: dict[str, list[Weight]] = defaultdict(list)
    biases: dict[str, int] = defaultdict(int)
    for weight in registry.values():
        if weight.address.startswith("name:"):
            continue
        address = weight.address if weight.layer is None else weight.address.replace(f".{weight.layer}.", ".*.", 1)
        if weight.role is Role.BIAS:
            biases[address.removesuffix(".bias")] += weight.parameters()
        else:
            groups[address].append(weight)
    found = [_step(address, weights, biases[address]) for address, weights in groups.items()]
    result = [Step("text", False), Step("tokenizer", False), Step("token ids", False)]
    for step in found:
        result += _before(step.address or "", config.activation, architecture.positions == "rope")
        result.append(step)
    return [*result, Step("output: logits of the next token", False)]


def _step(address: str, weights: list[Weight], bias: int) -> Step:
    first = weights[0]
    return Step(
        name=str(first.role) if first.role is not Role.NORM else "norm" + _norm_of(address),
        weights=True,
        in_layer=first.layer is not None,
        address=address,
        shape=first.shape,
        parameters=sum(weight.parameters() for weight in weights) + bias,
        tied_to=first.tied_to,
        bias=bool(bias),
    )


def _norm_of(address: str) -> str:
    return {"q.norm": " of q", "k.norm": " of k"}.get(".".join(address.split(".")[-2:]), "")


def _before(address: str, activation: str, rope: bool) -> list[Step]:
    """The steps without weights that come before a weight."""
    match address.split(".")[-2:]:
        case ["attn", "o"]:
            rotate = "rotate q and k → " if rope else ""
            return [Step(f"{rotate}scores → softmax → weighted sum", False, in_layer=True)]
        case ["ffn", "down"]:
            return [Step(f"activation ({activation})", False, in_layer=True)]
    return []


def pipeline(registry: Registry, total: int) -> list[Line]:
    """The steps as lines: those with learned weights marked *, with shape, parameters and share."""
    found = steps(registry)
    rows = [_row(step, total) for step in found]
    weighted = [row for step, row in zip(found, rows, strict=True) if step.weights]
    if not weighted:
        return []
    widths = [max(len(row[i]) for row in weighted) for i in range(4)]
    layers = registry.config.layers if registry.config else 0
    lines: list[Line] = []
    inside = False
    for step, row in zip(found, rows, strict=True):
        if step.in_layer != inside:
            inside = step.in_layer
            rule = f"╭─ × {units.plural(layers, 'layer')}" if inside else "╰─"
            lines.append([("   " + rule, "dim")])
        edge = ("   │ " if inside else "   ", "dim")
        if not step.weights:
            lines.append([edge, (f"  {row[0]}", "dim")])
            continue
        width = widths[0] + (0 if inside else 2)
        lines.append(
            [
                edge,
                ("* ", "bold yellow"),
                (f"{row[0]:<{width}}  ", "bold"),
                (f"{row[1]:<{widths[1]}}  " if row[2] else row[1], ""),
                (f"{row[2]:>{widths[2]}}  " if row[2] else "", "bold cyan"),
                (f"{row[3]:>{widths[3]}}" if row[3] else "", ""),
            ]
        )
    return lines


def _row(step: Step, total: int) -> tuple[str, str, str, str]:
    if step.tied_to:
        return step.name, f"tied to {step.tied_to}", "", ""
    shape = units.shape(step.shape) + (" + bias" if step.bias else "")
    share = units.percent(step.parameters / total) if total else units.NONE
    return step.name, shape, units.count(step.parameters), share
