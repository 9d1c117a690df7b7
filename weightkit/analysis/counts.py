"""Counts: how many parameters, of what kind, where each number comes from, and what they cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from weightkit.analysis import costs
from weightkit.analysis.same import same_numbers, same_sample
from weightkit.architectures.parts import Role
from weightkit.config import Config
from weightkit.dtypes import DTYPES
from weightkit.errors import FormatError
from weightkit.registry import Registry, tied_groups
from weightkit.weight import Weight

if TYPE_CHECKING:
    import pandas as pd

MATRICES = (Role.Q, Role.K, Role.V, Role.O, Role.GATE, Role.UP, Role.DOWN, Role.ROUTER, Role.HEAD)
OUTSIDE = "outside layers"
_TORCH_NAMES = {"float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16", "half": "F16"}


@dataclass(frozen=True)
class Counts:
    """Parameters of a model. Tied matrices count once; masks, scales and optimizer state do not count."""

    model_type: str | None
    total: int  # unique logical parameters
    active: int  # of them, used for one token
    stored: int  # elements in the files
    bytes: int  # of the tensors in the files; from a config alone, what they would take
    by_role: dict[str, int]
    by_layer: dict[str, int]
    by_dtype: dict[str, int]
    tied: list[list[str]]
    unclaimed: list[str]  # names in the files that no address claims
    formulas: dict[str, str] = field(default_factory=dict)  # by role: how its count comes about
    config: Config | None = None
    bookkeeping: int = 0  # elements of scales, zero points and states of packed weights
    ignored: int = 0  # elements of buffers and optimizer state
    sized: bool = True  # False: only names are known, and no number here means anything
    matrices: int = 0  # numbers that one token is multiplied with

    def frame(self) -> pd.DataFrame:
        """One row per role: role, parameters, share of the total, formula."""
        import pandas as pd

        rows = [(r, n, n / max(1, self.total), self.formulas[r]) for r, n in self.by_role.items()]
        return pd.DataFrame(rows, columns=["role", "parameters", "share", "formula"])

    @property
    def bits_per_parameter(self) -> float | None:
        """Bits in the files for each parameter, scales and buffers included."""
        return 8 * self.bytes / self.total if self.total and self.bytes else None

    def kv_cache(self, context: int, bytes_per_number: int = 2) -> int | None:
        """Bytes of the keys and values of `context` tokens; None where the model keeps none, or is not known."""
        return None if self.config is None else costs.kv_cache(self.config, context, bytes_per_number)

    def flops(self, context: int) -> int | None:
        """Floating-point operations for one token that sees `context` tokens; None where no formula is known."""
        return None if self.config is None else costs.flops(self.config, self.matrices, context)


def count(registry: Registry) -> Counts:
    """Count a model's parameters.

    Reads no weights, except where the files hold one that may be another once more, such as a vocab
    projection of the shape of the embedding: a few numbers of each and, if those are the same, all.
    """
    weights = [_settled(weight, registry) for weight in registry.values()]
    config = registry.config
    tied = tied_groups(weights)
    by_role, by_layer, by_dtype = Counter[str](), Counter[str](), Counter[str]()
    sizes: dict[int, int] = {}  # by the axes, which weights of one kind share
    for weight in weights:
        size = sizes.get(id(weight.axes))
        if size is None:
            size = sizes[id(weight.axes)] = weight.size
        number = 0 if weight.tied_to or weight.buffer else size
        by_role[weight.role] += number
        by_layer[_layer(weight)] += number
        by_dtype[_dtype(weight, config)] += number
    total = sum(by_role.values())
    files = {name: weight for name, weight in registry.by_name.items() if weight.source is not None}
    return Counts(
        model_type=registry.model_type,
        total=total,
        active=total - _idle(weights, config),
        stored=_elements(files.values()),
        bytes=sum(weight.stored.nbytes for weight in files.values()) if files else _implied(by_dtype),
        by_role={str(role): by_role[role] for role in Role if role in by_role},
        by_layer=dict(by_layer),
        by_dtype={name: number for name, number in by_dtype.most_common() if number},
        tied=tied,
        unclaimed=list(registry.unclaimed),
        formulas={str(r): formula([w for w in weights if w.role == r]) for r in Role if r in by_role},
        config=config,
        bookkeeping=_elements(files[name] for name in registry.bookkeeping if name in files),
        ignored=_elements(files[name] for name in registry.ignored if name in files),
        sized=registry.sized,
        matrices=_matrices(registry, config),
    )


def _elements(weights: Iterable[Weight]) -> int:
    return sum(math.prod(weight.stored.shape) for weight in weights)


def _implied(by_dtype: Counter[str]) -> int:
    """Bytes that the parameters would take in the types that the config names."""
    return sum(number * (DTYPES[name].bits if name in DTYPES else 0) // 8 for name, number in by_dtype.items())


def _settled(weight: Weight, registry: Registry) -> Weight:
    """A weight tied to another where the numbers of the two are the same, whatever is said of them.

    A vocab projection can be the embedding once more with nothing but its numbers to tell; where a config says
    so of numbers that differ, the files are right.
    """
    original = weight.tied_to or ("embed" if weight.address == "lm_head" else None)
    other = registry.get(original) if original else None
    if other is None or other.source is None or weight.source is None or weight.alias:
        return weight
    likely = weight.tied_to or (weight.shape == other.shape and weight.dtype == other.dtype)
    try:
        if not likely or not (weight.tied_to or same_sample(other, weight)):
            return weight
        return replace(weight, tied_to=original if same_numbers(other, weight) else None)
    except FormatError:  # of a type that cannot be read
        return weight


def _layer(weight: Weight) -> str:
    if weight.layer is None:
        return OUTSIDE
    stack = weight.address.partition("layers.")[0]  # encoder, decoder, vision: a stack of their own
    return f"{stack}{weight.layer}"


def _idle(weights: Iterable[Weight], config: Config | None) -> int:
    """Parameters of experts that one token does not use."""
    if config is None or config.experts is None:
        return 0
    routed = sum(weight.parameters() for weight in weights if ".ffn.experts." in weight.address)
    return routed // config.experts.count * (config.experts.count - config.experts.per_token)


def _matrices(registry: Registry, config: Config | None) -> int:
    """Numbers of all matrices that one token goes through, a tied vocab projection included."""
    used = [weight for weight in registry.values() if weight.role in MATRICES and not _of_the_eyes(weight)]
    return sum(weight.size for weight in used) - _idle(used, config)


def _of_the_eyes(weight: Weight) -> bool:
    return weight.address.startswith("vision.")


def _dtype(weight: Weight, config: Config | None) -> str:
    if weight.source is not None:
        return weight.source.dtype.name
    return _TORCH_NAMES.get(str(config and config.dtype), "unknown")


def formula(weights: list[Weight]) -> str:
    """How many matrices of what shapes, as in `80 × (8,192 × 28,672)`."""
    tied = next((w.tied_to for w in weights if w.tied_to), None)
    shapes = Counter(weight.shape for weight in weights if not weight.tied_to and not weight.buffer)
    if not shapes:
        return f"tied to {tied}" if tied else "buffers, which are no parameters"
    if len(shapes) > 4:
        return f"{sum(shapes.values()):,} tensors of {len(shapes)} shapes"
    terms = []
    for shape, times in shapes.items():
        product = " × ".join(f"{n:,}" for n in shape) or "1"
        terms.append(
            product if times == 1 else f"{times:,} × {product}" if len(shape) < 2 else f"{times:,} × ({product})"
        )
    return " + ".join(terms)
