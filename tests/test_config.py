"""Config files of every era come out in one normal form; broken ones get one clear line.

The defaults are those of transformers 5.23's config classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.families import VARIANTS
from weightkit.config import Config, Rope, normalise, quantization
from weightkit.errors import ConfigError

RMS = ("llama", "mistral", "qwen2", "qwen3")


def config(family: str, **changes: Any) -> Config:
    """The normal form of a tiny model's config; a change to `...` leaves the key out."""
    values = {**tiny.CONFIGS[family], **changes}
    return normalise({k: v for k, v in values.items() if v is not ...}, "somewhere/config.json")


def refused(family: str, **changes: Any) -> str:
    with pytest.raises(ConfigError) as error:
        config(family, **changes)
    message = str(error.value)
    assert message.startswith("somewhere/config.json: ")
    assert "\n" not in message
    assert len(message) < 300
    return message


def test_a_llama() -> None:
    assert config("llama", rms_norm_eps=1e-6, torch_dtype="bfloat16") == Config(
        model_type="llama",
        width=48,
        layers=3,
        heads=4,
        kv_heads=2,
        head_dim=12,
        ffn=80,
        vocab=97,
        positions=64,
        activation="silu",
        eps=1e-6,
        tied=False,
        rope=Rope(dims=12, original_positions=64),
        attention_scale=12**-0.5,
        windows=(None, None, None),
        dtype="bfloat16",
    )


def test_a_gpt2() -> None:
    c = config("gpt2")
    assert (c.width, c.layers, c.heads, c.kv_heads, c.head_dim, c.ffn, c.positions) == (48, 3, 4, 4, 12, 192, 64)
    assert (c.activation, c.eps, c.tied, c.attention_scale, c.scale_by_layer) == (
        "gelu_new",
        1e-5,
        True,
        12**-0.5,
        False,
    )
    assert (c.qkv_bias, c.output_bias, c.ffn_bias) == (True, True, True)


LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 5e5}, {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_theta": ..., "rope_parameters": {**LINEAR, "rope_theta": 5e5}},
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, {"rope_scaling": LINEAR}),
        ({"rope_scaling": None}, {"rope_scaling": ...}),
        ({"partial_rotary_factor": 0.5}, {"rope_parameters": {"partial_rotary_factor": 0.5}}),
        ({"torch_dtype": "float16"}, {"torch_dtype": ..., "dtype": "float16"}),
        ({"num_key_value_heads": 4}, {"num_key_value_heads": None}),
        ({"head_dim": 12}, {"head_dim": ...}),
        ({"rope_theta": 10_000}, {"rope_theta": ...}),
        (
            {"rope_scaling": {"type": "su", "short_factor": [1] * 6, "long_factor": [2] * 6}},
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}},
        ),
    ],
)
def test_old_and_new_keys_give_equal_configs(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert config("llama", **old) == config("llama", **new)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({"rope_type": "default"}, {}),
        (LINEAR, {"type": "linear", "factor": 2.0}),
        ({"type": "dynamic", "factor": 4.0}, {"type": "dynamic", "factor": 4.0}),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 2.0,
                "high_freq_factor": 5.0,
                "original_max_position_embeddings": 16,
            },
            {
                "type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 2.0,
                "high_freq_factor": 5.0,
                "original_positions": 16,
            },
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16, "beta_slow": 2, "truncate": False, "mscale": 0.7},
            {"type": "yarn", "factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False, "mscale": 0.7},
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5, "mscale_all_dim": 1.0},
            {"type": "yarn", "factor": 4.0, "attention_factor": 1.5, "mscale_all_dim": 1.0},
        ),
        (
            {"rope_type": "longrope", "short_factor": [1, 2], "long_factor": [3.5, 4]},
            {"type": "longrope", "short_factor": (1.0, 2.0), "long_factor": (3.5, 4.0)},
        ),
    ],
)
def test_every_type_of_rope(block: dict[str, Any], expected: dict[str, Any]) -> None:
    assert config("llama", rope_scaling=block).rope == Rope(**{"dims": 12, "original_positions": 64, **expected})


def test_the_original_context_at_the_top_goes_before_the_one_in_the_block() -> None:
    block = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    assert config("llama", rope_scaling=block, original_max_position_embeddings=8).rope.original_positions == 8
    assert config("llama", rope_scaling=block).rope.original_positions == 16


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"type": "linear"}, "factor"),
        ({"type": "dynamic", "factor": None}, "factor"),
        ({"rope_type": "llama3"}, "factor"),
        ({"rope_type": "longrope", "short_factor": [1.0]}, "long_factor"),
        ({"rope_type": "lineer", "factor": 2.0}, "did you mean 'linear'"),
        ({"rope_type": 3}, "rope_type is 3"),
        ({"type": "linear", "factor": "2"}, "factor is '2'"),
        ({"type": "linear", "factor": -2.0}, "factor is -2.0"),
        ({"rope_type": "longrope", "short_factor": ["a"], "long_factor": [1]}, "short_factor"),
        ({"rope_type": "yarn", "factor": 2.0, "truncate": "no"}, "truncate is 'no'"),
        ("yarn", "rope_scaling is 'yarn'"),
        ([2.0], "rope_scaling is [2.0]"),
    ],
)
def test_a_broken_rope_is_refused(block: Any, words: str) -> None:
    message = refused("llama", rope_scaling=block)
    assert "rope_scaling" in message
    assert words in message


@pytest.mark.parametrize(
    ("family", "keys", "expected"),
    [
        ("llama", {"sliding_window": 5}, None),
        ("mistral", {"sliding_window": ...}, 4096),
        ("mistral", {"sliding_window": None}, None),
        ("mistral", {"sliding_window": 7}, 7),
        ("qwen2", {}, None),
        ("qwen2", {"sliding_window": 5}, None),
        ("qwen2", {"sliding_window": 5, "use_sliding_window": False, "max_window_layers": 0}, None),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, 4096),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 5}, None),  # from layer 28 on
        ("qwen2", {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, None),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}, 9),
    ],
)
def test_the_window_of_every_layer(family: str, keys: dict[str, Any], expected: int | None) -> None:
    windows = config(family, **keys).windows
    assert windows == (expected,) * 3


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("keys", "windows"),
    [
        ({"max_window_layers": 1}, (None, 5, 5)),
        ({"max_window_layers": 3}, (None, None, None)),
        ({"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}, (5, None, 5)),
        ({"layer_types": ["full_attention"] * 3, "max_window_layers": 0}, (None, None, None)),
    ],
)
def test_qwen_windows_by_layer(family: str, keys: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert config(family, use_sliding_window=True, sliding_window=5, **keys).windows == windows


@pytest.mark.parametrize(
    ("variant", "key"),
    [
        ("llama", "intermediate_size"), ("gpt2", "n_inner"), ("gpt_neo", "intermediate_size"), ("gptj", "n_inner"),
        ("opt", "ffn_dim"), ("falcon-7b", "ffn_hidden_size"), ("t5", "d_ff"), ("distilbert", "hidden_dim"),
    ],
)  # fmt: skip
def test_the_key_of_the_family_goes_before_those_of_others(variant: str, key: str) -> None:
    kind, values = VARIANTS[variant]
    values = {"model_type": kind, **values}
    for other in ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "hidden_dim"):
        values[other] = 72
    assert normalise(values | {key: 80}, "config.json").ffn == 80


@pytest.mark.parametrize(
    ("family", "keys", "expected"),
    [
        ("llama", {"num_key_value_heads": ...}, {"kv_heads": 4}),
        ("mistral", {"num_key_value_heads": ..., "num_attention_heads": 16}, {"kv_heads": 8}),
        ("qwen2", {"num_key_value_heads": ..., "num_attention_heads": 32, "hidden_size": 64}, {"kv_heads": 32}),
        ("qwen3", {"num_key_value_heads": None}, {"kv_heads": 4}),
        ("llama", {"head_dim": ...}, {"head_dim": 12}),
        ("llama", {"head_dim": None}, {"head_dim": 12}),
        ("llama", {"head_dim": 20}, {"head_dim": 20}),
        ("qwen3", {"head_dim": ...}, {"head_dim": 128}),
        ("gpt2", {"n_inner": 100}, {"ffn": 100}),
        ("gpt2", {"n_inner": ...}, {"ffn": 192}),
        ("gpt2", {"n_positions": ...}, {"positions": 1024}),
        ("gpt2", {"tie_word_embeddings": False}, {"tied": False}),
        ("gpt2", {"scale_attn_weights": False}, {"attention_scale": 1.0}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, {"scale_by_layer": True}),
        ("gpt2", {"layer_norm_epsilon": ..., "activation_function": ...}, {"eps": 1e-5, "activation": "gelu_new"}),
        ("llama", {"rms_norm_eps": ..., "hidden_act": ...}, {"eps": 1e-6, "activation": "silu"}),
        ("llama", {"max_position_embeddings": ...}, {"positions": 2048}),
        ("mistral", {"max_position_embeddings": ...}, {"positions": 131_072}),
        ("qwen2", {"max_position_embeddings": ...}, {"positions": 32_768}),
        ("llama", {"tie_word_embeddings": ...}, {"tied": False}),
        ("llama", {"tie_word_embeddings": True}, {"tied": True}),
        ("llama", {"rms_norm_eps": 0}, {"eps": 0.0}),
        ("llama", {"torch_dtype": ...}, {"dtype": None}),
    ],
)
def test_what_a_key_that_is_not_there_means(family: str, keys: dict[str, Any], expected: dict[str, Any]) -> None:
    found = config(family, **keys)
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("family", "keys", "biases"),  # of q, k, v; of the output; of the FFN
    [
        ("llama", {}, (False, False, False)),
        ("llama", {"attention_bias": True}, (True, True, False)),
        ("llama", {"mlp_bias": True}, (False, False, True)),
        ("mistral", {"attention_bias": True}, (False, False, False)),
        ("qwen2", {}, (True, False, False)),
        ("qwen3", {}, (False, False, False)),
        ("qwen3", {"attention_bias": True}, (True, True, False)),
    ],
)
def test_biases(family: str, keys: dict[str, Any], biases: tuple[bool, bool, bool]) -> None:
    found = config(family, **keys)
    assert (found.qkv_bias, found.output_bias, found.ffn_bias) == biases


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", [0, -8, 48.0, "48", True, [48], 10**12, 10**400])
def test_a_size_that_no_model_has_is_refused_by_its_key(key: str, value: Any) -> None:
    assert f"{key} is " in refused("llama", **{key: value})


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", [None, ...])
def test_a_size_that_is_not_there_is_named(key: str, value: Any) -> None:
    assert f"no {key}" in refused("llama", **{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_key_value_heads", 0),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", "2"),
        ("num_attention_heads", 5),
        ("head_dim", 0),
        ("head_dim", 1.5),
        ("max_position_embeddings", -1),
        ("num_hidden_layers", 10**9),
        ("rms_norm_eps", -1e-5),
        ("rms_norm_eps", "1e-5"),
        ("rms_norm_eps", True),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", 1e400),
        ("rope_theta", "1e4"),
        ("rope_theta", -1.0),
        ("rope_theta", 0),
        ("tie_word_embeddings", "false"),
        ("tie_word_embeddings", 1),
        ("attention_bias", "yes"),
        ("mlp_bias", 0),
        ("hidden_act", "sillu"),
        ("hidden_act", 3),
        ("torch_dtype", "float999"),
        ("torch_dtype", ["float32"]),
        ("quantization_config", {"quant_method": "magic"}),
        ("quantization_config", "gptq"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_its_key(key: str, value: Any) -> None:
    assert key.removesuffix("_config") in refused("llama", **{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_sliding_window", "yes"),
        ("sliding_window", 0),
        ("sliding_window", "4096"),
        ("max_window_layers", -1),
        ("max_window_layers", "1"),
        ("layer_types", ["sliding_attention"]),
        ("layer_types", "sliding_attention"),
        ("layer_types", ["sliding", "full", "full"]),
    ],
)
def test_a_broken_window_is_refused_by_its_key(key: str, value: Any) -> None:
    assert key in refused("qwen2", **{"use_sliding_window": True, key: value})


@pytest.mark.parametrize("value", [None, ..., 3, "", "../x", "a b", "\x1b[2J", ["llama"]])
def test_a_model_type_that_is_not_a_name_is_refused(value: Any) -> None:
    message = refused("llama", model_type=value)
    assert "model_type" in message
    assert "\x1b" not in message


def test_a_family_that_is_not_known_is_told_which_are() -> None:
    assert "llama, mistral, mixtral" in refused("llama", model_type="rwkv")


@pytest.mark.parametrize(
    ("values", "method"),
    [
        ({}, None),
        ({"quantization_config": None}, None),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "mlx"),
        ({"quantization_config": {"quant_method": "intel/auto-round"}}, "intel/auto-round"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
    ],
)
def test_how_weights_are_packed(values: dict[str, Any], method: str | None) -> None:
    assert quantization(values, "config.json") == method


def test_differences_are_of_what_is_computed() -> None:
    a = config("llama")
    assert a.differences(config("llama", torch_dtype="float16")) == {}
    assert a.differences(config("llama", rope_theta=5e5)) == {"rope.theta": (10_000.0, 500_000.0)}
    assert a.differences(config("llama", rms_norm_eps=1e-6, num_hidden_layers=2)) == {
        "layers": (3, 2),
        "eps": (1e-5, 1e-6),
        "windows": ((None,) * 3, (None,) * 2),
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-1-30b", {"heads": 52, "kv_heads": 52, "head_dim": 128, "eps": 1e-6, "dtype": "float32"}),
        ("llama-2-70b-lzlv", {"heads": 64, "kv_heads": 8, "head_dim": 128, "positions": 4096}),
        ("llama-2-13b-bnb", {"quantization": "bitsandbytes", "layers": 40, "width": 5120}),
        ("llama-3.1-405b", {"width": 16384, "layers": 126, "kv_heads": 8, "vocab": 128_256, "ffn": 53_248}),
        ("llama-3.1-8b-bnb", {"quantization": "bitsandbytes", "layers": 32}),
        ("llama-3.2-3b-pertensor", {"tied": True, "layers": 28, "head_dim": 128}),
        (
            "mistral-7b-v0.3",
            {"windows": (None,) * 32, "rope": Rope(theta=1e6, dims=128, original_positions=32_768)},
        ),
        ("mistral-devstral-24b", {"head_dim": 128, "width": 5120, "heads": 32}),
        ("qwen2-cogito-14b", {"windows": (None,) * 48, "qkv_bias": True, "vocab": 151_665}),
        ("qwen3-32b", {"head_dim": 128, "heads": 64, "width": 5120, "windows": (None,) * 64}),
        ("qwen3-14b-mlx-4bit", {"quantization": "mlx", "layers": 40}),
    ],
)
def test_real_configs(shared: Path, name: str, expected: dict[str, Any]) -> None:
    found = normalise(json.loads((shared / "configs" / name / "config.json").read_text()), name)
    assert {key: getattr(found, key) for key in expected} == expected


def test_the_rope_of_llama_3_1(shared: Path) -> None:
    found = normalise(json.loads((shared / "configs" / "llama-3.1-70b" / "config.json").read_text()), "config.json")
    assert found.rope == Rope("llama3", 5e5, dims=128, factor=8.0, original_positions=8192)
