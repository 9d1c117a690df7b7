"""The tiny models that golden logits are kept of: for each family a config, and variants of it."""

from __future__ import annotations

from typing import Any

from tests import tiny
from tests.variants import encoders, experts, first, gemma, gpt_like, llama_like, remote
from tests.variants.kinds import Variants

CONFIGS: dict[str, dict[str, Any]] = {
    **tiny.CONFIGS,
    **llama_like.CONFIGS,
    **gemma.CONFIGS,
    **experts.CONFIGS,
    **gpt_like.CONFIGS,
    **encoders.CONFIGS,
    **remote.CONFIGS,
}
VARIANTS: dict[str, Variants] = {
    **first.VARIANTS,
    **llama_like.VARIANTS,
    **gemma.VARIANTS,
    **experts.VARIANTS,
    **gpt_like.VARIANTS,
    **encoders.VARIANTS,
    **remote.VARIANTS,
}
CASES = [(family, name) for family, variants in VARIANTS.items() for name in variants]
