"""Every family as GGUF: the same weights, counts and logits as its Hugging Face twin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightkit as wk
from tests import ggufs, test_families
from weightkit.model import Model

SAVED = test_families.SAVED
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
MULTIPLIERS = {
    "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0
}  # fmt: skip


def rope(variant: str, **said: Any) -> dict[str, Any]:
    return {"rope_parameters": SAVED[variant]["config"]["rope_parameters"] | said}


LONG = {"long_factor": [1.5, 2, 3, 4, 5, 6], "short_factor": [1, 1, 1.1, 1.2, 1.3, 1.4]}
CASES: dict[str, tuple[str, dict[str, Any]]] = {  # variant, and what its config says otherwise
    **{
        variant: (variant, {})
        for variant in """
            llama llama-bias llama-tied mistral mixtral qwen2 qwen3 gemma phi phi3 gpt2
            falcon-7b falcon-40b falcon-11b bloom mpt gpt_bigcode starcoder2 olmo olmo2 olmoe
            cohere cohere-qknorm smollm3 glm glm4 gpt_oss mamba t5 phimoe phimoe-bias
        """.split()
    },
    "qwen3_moe": ("qwen3_moe", {"norm_topk_prob": True}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 16, "sliding_window": 8}),
    "gemma3": ("gemma3_text", {"query_pre_attn_scalar": 16, "sliding_window": 8}),
    "olmo-clip": ("olmo", {"clip_qkv": 0.5}),
    "olmo3": ("olmo3", {"sliding_window": 8}),
    "cohere2": ("cohere2", {"sliding_window": 8}),
    "granite": ("granite", MULTIPLIERS),
    "granitemoe": ("granitemoe", MULTIPLIERS),
    "t5-v1_1": ("t5-v1_1", {"tie_word_embeddings": False}),
    "deepseek_v2-lite": ("deepseek_v2-lite", {"n_group": 1}),
    "deepseek_v2": ("deepseek_v2", {"n_group": 1, "routed_scaling_factor": 2.0}),
    "deepseek_v2-groups": ("deepseek_v2", {"topk_method": "group_limited_greedy"}),
    "deepseek_v2-yarn": ("deepseek_v2", {"n_group": 1, **rope("deepseek_v2", **YARN, mscale=0.7, mscale_all_dim=0.7)}),
    "deepseek_v3": ("deepseek_v3", {}),
    "gpt_oss-window": ("gpt_oss", {"sliding_window": 8}),
    "llama-linear": ("llama", rope("llama", rope_type="linear", factor=4.0)),
    "llama-yarn": ("llama", rope("llama", **YARN, beta_fast=16.0)),
    "llama3": ("llama", rope("llama", rope_type="llama3", factor=8.0, **LLAMA3)),
    "phi3-long": (
        "phi3",
        {
            "original_max_position_embeddings": 16,
            **rope("phi3", rope_type="longrope", original_max_position_embeddings=16, **LONG),
        },
    ),
    "phi3-window": ("phi3", {"sliding_window": 8}),
    **{
        variant: (variant, rope(variant, partial_rotary_factor=0.5))
        for variant in ("gpt_neox", "gpt_neox-nobias", "stablelm", "stablelm-12b")
    },
    "neox-serial": ("gpt_neox", {"use_parallel_residual": False, **rope("gpt_neox", partial_rotary_factor=0.5)}),
    "qwen2_moe": ("qwen2_moe", {"num_hidden_layers": 1, "layer_types": None}),  # those after have no experts
}


def small(variant: str) -> test_families.Tensors:
    """Random numbers of usual size: norms around one, or around none where one is added to them."""
    added = "gemma" in variant

    def scaled(name: str, array: Any) -> Any:
        is_norm = array.ndim == 1 and name.endswith("weight") and not added
        return array * np.float32(0.15) + np.float32(is_norm)

    return {name: scaled(name, array) for name, array in test_families.random(variant).items()}


def _layer(name: str) -> int:
    return int(next((part for part in name.split(".") if part.isdigit()), 0))


def twins(folder: Path, case: str, **options: Any) -> tuple[Model, Model]:
    variant, changes = CASES[case]
    tensors = small(variant)
    if changes.get("tie_word_embeddings") is False:  # transformers 5 leaves it out of its file, which the hub has not
        tensors["lm_head.weight"] = tensors["shared.weight"][::-1].copy()
    if layers := changes.get("num_hidden_layers"):
        tensors = {name: array for name, array in tensors.items() if _layer(name) < layers}
    model = wk.open(test_families.write(folder / "hf", variant, tensors, **changes))
    config = SAVED[variant]["config"] | changes
    return model, wk.open(ggufs.write(folder / "m.gguf", config, tensors, **options))


def error(got: Any, want: Any) -> float:
    return float(np.abs(got - want).max() / want.std())


IDS = np.random.RandomState(0).randint(0, 97, 30)


@pytest.mark.parametrize("case", CASES)
def test_the_same_weights_and_logits(tmp_path: Path, case: str) -> None:
    model, other = twins(tmp_path, case)
    assert other.notes == ()
    assert other.counts().total == model.counts().total
    assert other.counts().unclaimed == []
    assert set(other) == set(model)
    for address in model:
        np.testing.assert_allclose(other[address].array(), model[address].array(), rtol=1e-6, atol=1e-6)
    assert error(other.logits(IDS), model.logits(IDS)) < 1e-5
