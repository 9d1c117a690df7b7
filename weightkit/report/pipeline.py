"""The pipeline of a model, from text to output, with its parameters on every step that has weights."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from weightkit.analysis.explain import pattern_of
from weightkit.architectures.parts import Architecture, Role
from weightkit.registry import Registry
from weightkit.report import units
from weightkit.report.tables import Line, widest
from weightkit.weight import Weight


@dataclass(frozen=True)
class Step:
    """One step. Those in a layer stand for all layers, those of an expert for all experts."""

    name: str
    weights: bool  # whether it uses learned weights
    stack: str | None = None  # of the layers that it is in: "" for the only one, or encoder, decoder, vision
    address: str | None = None  # with * for numbers
    shape: tuple[int, ...] = ()
    parameters: int = 0  # of all layers together, biases included
    layers: int = 0  # in how many it is
    tied_to: str | None = None
    bias: bool = False

    @property
    def in_layer(self) -> bool:
        """Whether it is in a layer."""
        return self.stack is not None


def steps(registry: Registry) -> list[Step]:
    """The steps in the order in which they are computed. Empty where the family is not known."""
    architecture = registry.architecture
    if architecture is None:
        return []
    activation = f" ({registry.config.activation})" if registry.config else ""
    groups: dict[str, list[Weight]] = defaultdict(list)
    biases: dict[str, int] = defaultdict(int)
    for weight in registry.values():
        if weight.address.startswith("name:"):
            continue
        address = pattern_of(weight.address)
        if weight.role is Role.BIAS:
            biases[address.removesuffix(".bias")] += weight.parameters()
        else:
            groups[address].append(weight)
    for address in [address for address in biases if address not in groups]:  # of a matrix that is not in the model
        owner = next((above for above in _above(address) if above in groups), address)
        biases[owner] += biases.pop(address)
    rotated = registry.config is not None and registry.config.position_kind == "rope"
    result = [Step("text", False), Step("tokenizer", False), Step("token ids", False)]
    for address, weights in groups.items():
        step = _step(address, weights, biases[address])
        result += _before(address, step.stack, activation, rotated)
        result.append(step)
    return [*result, Step(f"output: {_end(registry, architecture)}", False)]


def _end(registry: Registry, architecture: Architecture) -> str:
    """What comes out."""
    if "lm_head" in registry:
        return "logits of the next token" if architecture.causal else "logits of the masked tokens"
    if any(address.startswith("task.") for address in registry):
        return "scores of the task"
    return "hidden states"


def _above(address: str) -> list[str]:
    """The addresses that an address is below, the nearest first."""
    parts = address.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


def _step(address: str, weights: list[Weight], bias: int) -> Step:
    first = weights[0]
    return Step(
        name=_name(address, first, weights),
        weights=True,
        stack=address.partition("layers.")[0].rstrip(".") if first.layer is not None else None,
        address=address,
        shape=first.shape,
        parameters=sum(weight.parameters() for weight in weights) + bias,
        layers=len({weight.layer for weight in weights}),
        tied_to=first.tied_to,
        bias=bool(bias),
    )


def _name(address: str, weight: Weight, weights: list[Weight]) -> str:
    """What a step is called: its role, and what sets it apart from others of that role."""
    parts = address.split(".")
    if ".experts." in address:
        number = len({w.address.split(".experts.")[1].split(".")[0] for w in weights})
        return f"{weight.role} × {number:,} experts"
    if "shared" in parts:
        return f"{weight.role}, shared"
    if weight.role is Role.NORM:
        of = next((part for part in parts if part in ("q", "k", "q_a", "kv_a")), None)
        return f"norm of {of}" if of else "norm"
    if weight.role is Role.OTHER or parts[-1] in _LOW_RANK:
        return parts[-1] if weight.role is Role.OTHER else f"{weight.role} ({parts[-1]})"
    return str(weight.role)


_LOW_RANK = ("q_a", "q_b", "kv_a", "k_rope", "k_b", "v_b")


def _before(address: str, stack: str | None, activation: str, rope: bool) -> list[Step]:
    """The steps without weights that come before a weight."""
    match address.split(".")[-2:]:
        case ["attn" | "cross", "o"]:
            rotate = "rotate q and k → " if rope and not stack else ""
            return [Step(f"{rotate}scores → softmax → weighted sum", False, stack)]
        case ["ffn" | "*" | "shared", "down"]:
            return [Step(f"activation{activation}", False, stack)]
    return []


_STACKS = {"vision": "vision tower"}  # where an address does not say it in full


def pipeline(registry: Registry, total: int) -> list[Line]:
    """The steps as lines: those with learned weights marked *, with shape, parameters and share."""
    found = steps(registry)
    rows = [_row(step, total) for step in found]
    weighted = [row for step, row in zip(found, rows, strict=True) if step.weights]
    if not weighted:
        return []
    widths = [widest(row[i] for row in weighted) for i in range(4)]
    layers = {stack: max(step.layers for step in found if step.stack == stack) for stack in {s.stack for s in found}}
    lines: list[Line] = []
    inside: str | None = None
    for step, row in zip(found, rows, strict=True):
        if step.stack != inside:
            if inside is not None:
                lines.append([("   ╰─", "dim")])
            inside = step.stack
            if inside is not None:
                of = f" of the {_STACKS.get(inside, inside)}" if inside else ""
                lines.append([(f"   ╭─ × {units.plural(layers[inside], 'layer')}{of}", "dim")])
        edge = ("   │ " if step.in_layer else "   ", "dim")
        if not step.weights:
            lines.append([edge, (f"  {row[0]}", "dim")])
            continue
        width = widths[0] + (0 if step.in_layer else 2)
        lines.append(
            [
                edge,
                ("* ", "bold yellow"),
                (f"{row[0]:<{width}}  ", "bold"),
                (f"{row[1]:<{widths[1]}}  " if row[2] else row[1], ""),
                (f"{row[2]:>{widths[2]}}  " if row[2] else "", "bold cyan"),
                (f"{row[3]:>{widths[3]}}" if row[3] else "", ""),
                (_where(step, layers[step.stack]), "dim"),
            ]
        )
    return lines


def _where(step: Step, layers: int) -> str:
    """In how many layers a step is, where that is not all of them."""
    return f"  {units.plural(step.layers, 'layer')}" if step.in_layer and 0 < step.layers < layers else ""


def _row(step: Step, total: int) -> tuple[str, str, str, str]:
    shape = f"tied to {step.tied_to}" if step.tied_to else units.shape(step.shape)
    if step.tied_to and not step.bias:
        return step.name, shape, "", ""
    share = units.percent(step.parameters / total) if total else units.NONE
    return step.name, shape + (" + bias" if step.bias else ""), units.count(step.parameters), share
