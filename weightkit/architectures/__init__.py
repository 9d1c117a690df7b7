"""Families of models as data: one table entry each. `ARCHITECTURES[model_type]` is one."""

from __future__ import annotations

from weightkit.architectures import encoders, experts, gemma, gpt2, llama, others
from weightkit.architectures.parts import Architecture

_ROOMS = (llama, experts, gemma, gpt2, others, encoders)  # in the order in which names without a config are tried

ARCHITECTURES: dict[str, Architecture] = {family.model_type: family for room in _ROOMS for family in room.FAMILIES}
