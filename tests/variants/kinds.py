"""What a variant is: a tiny model, by what its config has otherwise than its family's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ABSENT = object()  # in `written`: the key is left out of the config.json
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Variant:
    """A tiny model: changes to a family's config, and what is written otherwise than the weights are made."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    written: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 24
    # Added to the seed. A few random models amplify rounding so much that transformers in float32 is near
    # 2e-5 from itself in float64; they would test the machine's matmul, not the engine.
    seed: int = 0
    saved: bool = False  # its config.json is as transformers writes it today, with every key
    added: Shapes = field(default_factory=dict)  # tensors that are in the file and that transformers would not save
    pad: int | None = None  # an id that stands at some places of the input


VOCAB = {"vocab_size": 61}  # of the families that are not in tests/tiny.py: golden files are small
Variants = dict[str, Variant]
SAVED = Variant(saved=True)


def rope(kind: str, *, key: str = "rope_parameters", **values: Any) -> dict[str, Any]:
    """The keys of a rope type in today's form, or as `rope_scaling` and `rope_theta` of before."""
    if key == "rope_scaling":
        return {"rope_scaling": {"type": kind, **values}}
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}, "rope_theta": ABSENT}


SHORT = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]  # a longrope factor for each of the 6 pairs of a head
LONG = [1.0, 1.5, 2.5, 3.0, 4.0, 6.0]
LLAMA3: dict[str, Any] = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE: dict[str, Any] = {"short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 16}


def alternating(layers: int, every: int = 2) -> list[str]:
    """layer_types by which the first of every few layers sees all, which no class assumes."""
    return ["sliding_attention" if layer % every else "full_attention" for layer in range(layers)]
