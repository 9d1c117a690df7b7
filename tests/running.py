"""Tiny random models of every family that run: the names and shapes of families.json, numbers of a usual size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

import weightkit as wk
from tests import tiny
from tests.test_families import SAVED

RUN = [variant for variant in SAVED if not variant.endswith("-cross")]
SCALED = {  # variants whose defaults scale nothing
    "granite": {"residual_multiplier": 0.3, "embedding_multiplier": 5.0, "logits_scaling": 4.0},
    "granitemoe": {"residual_multiplier": 0.3, "embedding_multiplier": 5.0, "logits_scaling": 4.0},
    "cohere": {"logit_scale": 2.0},
}
IDS = [5, 17, 3, 88, 41, 3, 9, 60, 12]


def write(folder: Path, variant: str, **changes: Any) -> Path:
    """A checkpoint folder of a variant; `changes` go into its config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_even(SAVED[variant]["config"]) | changes))
    shapes = {name: tuple(shape) for name, shape in SAVED[variant]["tensors"].items()}
    made = tiny.of_shapes(shapes, norm=0.0 if variant.startswith("gemma") else 1.0)  # its norms multiply by 1 + w
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def opened(folder: Path, variant: str, **changes: Any) -> wk.Model:
    return wk.open(write(folder, variant, **changes))


def _even(values: Any) -> Any:
    """A config whose heads of 12 can be rotated in pairs: half of the dimensions, where it was a quarter."""
    if isinstance(values, dict):
        return {key: 0.5 if key == "partial_rotary_factor" else _even(value) for key, value in values.items()}
    return values
