"""Counts and costs of models that everyone knows, and of the real files beside the project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import weightkit as wk
from tests.conftest import SHARED
from weightkit.analysis import costs
from weightkit.config import normalise
from weightkit.model import Model

LLAMA_8B = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
            "max_position_embeddings": 131072}  # fmt: skip
MISTRAL = LLAMA_8B | {"model_type": "mistral", "vocab_size": 32000, "max_position_embeddings": 32768}
MIXTRAL = MISTRAL | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None}
GPT_OSS_20B = {"model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24,
               "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201088,
               "num_local_experts": 32, "num_experts_per_tok": 4, "attention_bias": True}  # fmt: skip
DEEPSEEK_V3 = {"model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
               "num_attention_heads": 128, "num_key_value_heads": 128, "vocab_size": 129280, "q_lora_rank": 1536,
               "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
               "n_routed_experts": 256, "n_shared_experts": 1, "moe_intermediate_size": 2048,
               "first_k_dense_replace": 3, "num_experts_per_tok": 8, "num_nextn_predict_layers": 1}  # fmt: skip
QWEN3_32B = {"model_type": "qwen3", "hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64,
             "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}  # fmt: skip
BLOOM = {"model_type": "bloom", "n_embed": 14336, "n_layer": 70, "num_attention_heads": 112, "vocab_size": 250880}
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
FALCON_40B = {"model_type": "RefinedWeb", "hidden_size": 8192, "n_head": 128, "n_head_kv": 8, "n_layer": 60,
              "parallel_attn": True, "vocab_size": 65024}  # fmt: skip

KNOWN: dict[str, tuple[dict[str, Any], int]] = {  # by the papers, the model cards, and transformers
    "gpt2": (GPT2, 124_439_808),
    "bloom": (BLOOM, 176_247_271_424),
    "mixtral-8x7b": (MIXTRAL, 46_702_792_704),
    "deepseek-v3": (DEEPSEEK_V3, 671_026_404_352),
    "qwen3-32b": (QWEN3_32B, 32_762_123_264),
    "gpt-oss-20b": (GPT_OSS_20B, 20_914_757_184),
    "llama-3.1-8b": (LLAMA_8B, 8_030_261_248),
    "falcon-40b": (FALCON_40B, 41_303_293_952),
}


def opened(tmp_path: Path, config: dict[str, Any]) -> Model:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return wk.open(tmp_path / "config.json")


@pytest.mark.parametrize("name", KNOWN)
def test_known_counts(tmp_path: Path, name: str) -> None:
    config, parameters = KNOWN[name]
    model = opened(tmp_path, config)
    assert model.counts().total == parameters
    assert model.explain().total == parameters


@pytest.mark.parametrize("bits", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "awq", "bits": 4},
                                  {"quant_method": "bitsandbytes", "load_in_4bit": True}])  # fmt: skip
def test_a_model_in_four_bits_is_as_large(tmp_path: Path, bits: dict[str, Any]) -> None:
    assert opened(tmp_path, LLAMA_8B | {"quantization_config": bits}).counts().total == 8_030_261_248


ACTIVE = {"mixtral-8x7b": 12_879_925_248, "deepseek-v3": 37_552_282_624, "gpt-oss-20b": 4_187_440_704}


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters(tmp_path: Path, name: str) -> None:
    """All but the experts that a token does not use, worked out by hand from the config."""
    config, parameters = KNOWN[name]
    counts = opened(tmp_path, config).counts()
    read = normalise(config, "")
    assert read.experts is not None
    width, ffn = read.width, read.experts.ffn
    expert = 3 * width * ffn + (3 * ffn - ffn + width if name == "gpt-oss-20b" else 0)  # gpt-oss has biases
    layers = 58 if name == "deepseek-v3" else read.layers
    idle = layers * (read.experts.count - read.experts.per_token) * expert
    assert counts.active == parameters - idle == ACTIVE[name]


def cache(config: dict[str, Any], context: int) -> int | None:
    return costs.kv_cache(normalise(config, ""), context)


def test_the_cache_of_keys_and_values() -> None:
    assert cache(DEEPSEEK_V3, 1) == 70_272  # 61 · (512 + 64) · 2
    assert cache(MISTRAL, 32_768) == 512 << 20  # a window of 4096 where the key is absent
    assert cache(MISTRAL | {"sliding_window": None}, 32_768) == 4 << 30
    assert cache(LLAMA_8B, 1) == 2 * 32 * 8 * 128 * 2
    assert cache(GPT2, 1) == 2 * 12 * 768 * 2
    assert cache(FALCON_40B, 1) == 2 * 60 * 8 * 64 * 2
    assert cache(GPT_OSS_20B, 10_000) == 2 * 8 * 64 * 2 * (12 * 128 + 12 * 10_000)  # every second layer slides


def test_gemma_3_keeps_all_in_every_sixth_layer() -> None:
    config = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
              "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208,
              "sliding_window": 1024}  # fmt: skip
    assert cache(config, 8192) == 2 * 4 * 256 * 2 * (29 * 1024 + 5 * 8192)


WINDOWS: list[tuple[dict[str, Any], list[bool]]] = [  # transformers' config classes, layer by layer
    ({"model_type": "gemma2"}, [True, False] * 3),
    ({"model_type": "gemma2", "sliding_window_pattern": 3}, [True, False] * 3),  # a key that it does not have
    ({"model_type": "gemma3_text"}, [True] * 5 + [False]),
    ({"model_type": "gemma3_text", "sliding_window_pattern": 2}, [True, False] * 3),
    ({"model_type": "cohere2"}, [True, True, True, False, True, True]),
    ({"model_type": "olmo3"}, [True, True, True, False, True, True]),
    ({"model_type": "gpt_oss"}, [True, False] * 3),
    ({"model_type": "mistral"}, [True] * 6),
    ({"model_type": "phi3"}, [False] * 6),
    ({"model_type": "qwen3"}, [False] * 6),
    ({"model_type": "qwen3", "use_sliding_window": True, "max_window_layers": 4}, [False] * 4 + [True] * 2),
    ({"model_type": "qwen3_moe", "use_sliding_window": True, "max_window_layers": 4}, [True] * 6),
    ({"model_type": "qwen2_moe", "use_sliding_window": True, "max_window_layers": 4}, [True, False] * 2 + [False] * 2),
]


@pytest.mark.parametrize(("changes", "slides"), WINDOWS)
def test_which_layers_slide(changes: dict[str, Any], slides: list[bool]) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 97, "num_experts_per_tok": 2}  # fmt: skip
    assert [window is not None for window in normalise(sizes | changes, "").windows] == slides


def test_where_there_is_no_formula_there_is_a_reason() -> None:
    mamba = normalise({"model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50280}, "")
    assert costs.kv_cache(mamba, 100) is None
    assert "state" in (costs.why_no_cache(mamba) or "")
    assert costs.flops(mamba, 10, 100) is None
    assert "state space" in (costs.why_no_flops(mamba) or "")


def test_operations(tmp_path: Path) -> None:
    """Two per number of each matrix, four per head, dimension and token seen."""
    counts = opened(tmp_path, LLAMA_8B).counts()
    matrices = 8_030_261_248 - 128256 * 4096 - 65 * 4096
    assert counts.flops(1000) == 2 * matrices + 4 * 32 * 32 * 128 * 1000


# ── the real files beside the project ────────────────────────────────────────────────────────────────

CONFIGS = SHARED / "configs"
FOLDERS = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir()) if CONFIGS.is_dir() else []
TRUTH: dict[str, Any] = json.loads((CONFIGS / "truth.json").read_text()) if FOLDERS else {}


@pytest.mark.parametrize("folder", FOLDERS)
def test_real_configs_and_indexes(folder: str) -> None:
    model = wk.open(CONFIGS / folder)
    counts = model.counts()
    assert counts.unclaimed == []
    assert model.registry.has_roles
    if folder in TRUTH:
        assert counts.total == TRUTH[folder]["parameters"]
        assert model.explain().mismatches == []
    if (CONFIGS / folder / "config.json").exists():
        assert wk.open(CONFIGS / folder / "config.json").counts().total == counts.total


def test_bytes_that_an_index_declares(shared: Path) -> None:
    """Two bytes for each parameter: an index with no total_size, one with a float, and a tie that is stored."""
    for folder, stored_twice in (("gptneox-redpajama-7b", 0), ("falcon-40b", 65024 * 8192), ("qwen1-7b", 0)):
        model = wk.open(shared / "configs" / folder)
        assert model.checkpoint.index is not None
        declared = model.checkpoint.index["metadata"]["total_size"]
        buffers = 32 * (2048 * 2048 + 1 + 64) if folder.startswith("gptneox") else 0
        assert abs(declared - 2 * (model.counts().total + stored_twice)) <= 4 * buffers


FORMATS = (
    "pt-zip pt-legacy st-bf16 st-fp16 st-sharded weights.npz weights_compressed.npz weights.h5 "
    "gguf/stories260K-F32.gguf gguf/stories260K-Q8_0.gguf gguf/stories260K-Q4_0.gguf"
).split()


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_weights_in_every_format(shared: Path, name: str) -> None:
    original = wk.open(shared / "models" / "stories260K")
    model = wk.open(shared / "models" / "stories260K-formats" / name)
    assert list(model) == list(original)
    assert [w.shape for w in model.registry.values()] == [w.shape for w in original.registry.values()]
    assert model.counts().total == original.counts().total == 260_032
    assert model.check().faults == []


RAW = {
    "slm4096/ckpt.pt": 211_712,  # masks and the tied head left out, as its own n_params says
    "gptbyhand/ckpt.pt": 6_864,
    "keras/shakespeare.h5": 94_140,  # an LSTM and a dense layer, without what Adam keeps
}


@pytest.mark.parametrize("name", RAW)
def test_raw_checkpoints(shared: Path, name: str) -> None:
    assert wk.open(shared / "models" / "raw" / name).counts().total == RAW[name]
