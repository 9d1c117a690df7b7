"""Families of models as data: one table entry each. `ARCHITECTURES[model_type]` is one."""

from __future__ import annotations

from weightkit.architectures import encoders, gpt2, llama, others
from weightkit.architectures.parts import Architecture

ARCHITECTURES: dict[str, Architecture] = {
    family.model_type: family for family in (*llama.FAMILIES, *gpt2.FAMILIES, *others.FAMILIES, *encoders.FAMILIES)
}
