"""Write tests/families.json: what transformers saves of every family. `python -m tests.make_families`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.families import MASKED, VARIANTS

OUT = Path(__file__).parent / "families.json"


def build(variant: str, folder: Path) -> Any:
    """Make the model with transformers, every parameter random, and save it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    kind, arguments = VARIANTS[variant]
    config = AutoConfig.for_model(kind, **arguments)
    maker: Any = AutoModelForCausalLM
    if kind in MASKED:
        maker = AutoModelForMaskedLM
    elif kind == "t5":
        maker = AutoModelForSeq2SeqLM
    torch.manual_seed(0)
    model = maker.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.05)
    model.save_pretrained(folder)
    return model


def main() -> None:
    """Build them all."""
    from safetensors import safe_open

    found = {}
    for variant in VARIANTS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = build(variant, folder)
            with safe_open(folder / "model.safetensors", "numpy") as file:
                shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            found[variant] = {
                "config": json.loads((folder / "config.json").read_text()),
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "tensors": shapes,
            }
    lines = [f"{json.dumps(variant)}: {json.dumps(entry)}" for variant, entry in found.items()]
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
