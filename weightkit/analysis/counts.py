"""Counts: how many parameters, of what kind, and what they cost to keep and to run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from weightkit.architectures.parts import Role
from weightkit.config import Config
from weightkit.dtypes import DTYPES
from weightkit.registry import Registry
from weightkit.weight import Weight

if TYPE_CHECKING:
    import pandas as pd

MATRICES = (Role.Q, Role.K, Role.V, Role.O, Role.GATE, Role.UP, Role.DOWN, Role.ROUTER, Role.HEAD)
OUTSIDE = "outside layers"
_TORCH_NAMES = {"float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16", "half": "F16"}


@dataclass(frozen=True)
class Counts:
    """Parameters of a model. Tied matrices count once; masks and other buffers do not count."""

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

    def frame(self) -> pd.DataFrame:
        """One row per role: role, parameters, share of the total, formula."""
        import pandas as pd

        rows = [(r, n, n / max(1, self.total), self.formulas[r]) for r, n in self.by_role.items()]
        return pd.DataFrame(rows, columns=["role", "parameters", "share", "formula"])

    def kv_cache(self, context: int, bytes_per_number: int = 2) -> int | None:
        """Bytes of the keys and values of `context` tokens; a sliding window caps a layer's.

        None where the architecture is not known.
        """
        if self.config is None:
            return None
        kept = sum(min(context, window or context) for window in self._windows())
        return 2 * self.config.kv_heads * self.config.head_dim * kept * bytes_per_number

    def flops(self, context: int) -> int | None:
        """Floating-point operations for one token that sees `context` tokens.

        Two per weight of every matrix (a tied vocab projection runs all the same), and in attention
        four per key, query head and dimension: a product for the scores, one for the weighted sum.
        """
        if self.config is None:
            return None
        used = sum(self.by_role.get(role, 0) for role in MATRICES)
        used += self.config.vocab * self.config.width if any("lm_head" in group for group in self.tied) else 0
        seen = sum(min(context, window or context) for window in self._windows())
        return 2 * used + 4 * self.config.heads * self.config.head_dim * seen

    def _windows(self) -> tuple[int | None, ...]:
        assert self.config is not None
        return self.config.windows or (None,) * self.config.layers


def count(registry: Registry) -> Counts:
    """Count a model's parameters. Reads no weights."""
    weights = list(registry.values())
    config = registry.config
    by_role, by_layer, by_dtype = Counter[str](), Counter[str](), Counter[str]()
    for weight in weights:
        number = weight.parameters()
        by_role[weight.role] += number
        by_layer[OUTSIDE if weight.layer is None else str(weight.layer)] += number
        by_dtype[_dtype(weight, config)] += number
    total = sum(by_role.values())
    files = [weight.stored for weight in registry.by_name.values()]
    widths = {name: DTYPES[name].bits if name in DTYPES else 0 for name in by_dtype}
    implied = sum(number * widths[name] // 8 for name, number in by_dtype.items())
    sizes = [registry.by_name[tensor.name].size for tensor in files]
    return Counts(
        model_type=registry.model_type,
        total=total,
        active=total,
        stored=sum(sizes),
        bytes=sum(t.dtype.nbytes(n) for t, n in zip(files, sizes, strict=True)) if files else implied,
        by_role={str(role): by_role[role] for role in Role if role in by_role},
        by_layer=dict(by_layer),
        by_dtype={name: number for name, number in by_dtype.most_common() if number},
        tied=registry.tied,
        unclaimed=list(registry.unclaimed),
        formulas={str(r): _formula([w for w in weights if w.role == r]) for r in Role if r in by_role},
        config=config,
    )


def _dtype(weight: Weight, config: Config | None) -> str:
    if weight.source is not None:
        return weight.source.dtype.name
    return _TORCH_NAMES.get(str(config and config.dtype), "unknown")


def _formula(weights: list[Weight]) -> str:
    """How many matrices of what shapes, as in `80 × (8,192 × 28,672)`."""
    tied = next((w.tied_to for w in weights if w.tied_to), None)
    shapes = Counter(weight.shape for weight in weights if not weight.tied_to)
    if not shapes:
        return f"tied to {tied}"
    if len(shapes) > 4:
        return f"{sum(shapes.values()):,} tensors of {len(shapes)} shapes"
    terms = []
    for shape, times in shapes.items():
        product = " × ".join(f"{n:,}" for n in shape) or "1"
        terms.append(product if times == 1 else f"{times} × {product}" if len(shape) < 2 else f"{times} × ({product})")
    return " + ".join(terms)
