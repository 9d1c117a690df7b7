"""Families of models as data: one table entry each. `architecture(model_type)` finds one."""

from __future__ import annotations

from weightkit.architectures import gpt2, llama
from weightkit.architectures.parts import Architecture

ARCHITECTURES: dict[str, Architecture] = {family.model_type: family for family in (*llama.FAMILIES, *gpt2.FAMILIES)}
