"""Counts: every number again by arithmetic that knows nothing of weightkit."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightkit as wk
from tests.by_hand import Array, f32, spread, write_file, write_holes
from tests.conftest import Cli
from tests.tiny import CONFIGS, FAMILIES, shapes, weights, write

LLAMA_LIKE = [family for family in FAMILIES if family != "gpt2"]
MATRIX = re.compile(r"(proj|c_attn|c_fc|lm_head)\.weight$")


def sizes(config: dict[str, Any]) -> dict[str, int]:
    return {name: math.prod(shape) for name, shape in shapes(config).items()}


def evaluate(formula: str) -> int:
    """The number that a formula such as `5 × (64 × 64)` stands for."""
    if formula.startswith("tied to "):
        return 0
    assert re.fullmatch(r"[\d,×+() ]+", formula), formula
    return int(eval(formula.replace(",", "").replace("×", "*")))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_totals(tmp_path: Path, family: str, tied: bool) -> None:
    config = {**CONFIGS[family], "tie_word_embeddings": tied}
    tensors = weights(config)
    if family == "gpt2" and not tied:  # as an untied gpt2 is saved
        tensors["lm_head.weight"] = np.ones((97, 48), np.float32)
    counts = wk.open(write(tmp_path, family, tensors=tensors, tie_word_embeddings=tied)).counts()
    expected = sum(array.size for array in tensors.values())
    assert counts.model_type == family
    assert counts.total == counts.active == counts.stored == expected
    assert counts.bytes == 4 * expected
    assert counts.by_dtype == {"F32": expected}
    assert sum(counts.by_role.values()) == sum(counts.by_layer.values()) == expected
    assert counts.tied == ([["embed", "lm_head"]] if tied else [])
    assert counts.unclaimed == []
    assert {role: evaluate(formula) for role, formula in counts.formulas.items()} == counts.by_role
    assert counts.by_role["vocab projection"] == (0 if tied else 97 * 48)


@pytest.mark.parametrize("family", FAMILIES)
def test_roles_and_layers(tmp_path: Path, family: str) -> None:
    counts = wk.open(write(tmp_path, family)).counts()
    layer = [n for name, n in sizes(CONFIGS[family]).items() if re.search(r"\.(layers|h)\.0\.", name)]
    outside = [n for name, n in sizes(CONFIGS[family]).items() if not re.search(r"\.(layers|h)\.\d\.", name)]
    assert counts.by_layer == {"outside layers": sum(outside), "0": sum(layer), "1": sum(layer), "2": sum(layer)}
    d, h, kv = 48, 4, 4 if family == "gpt2" else 2
    hd = CONFIGS[family].get("head_dim") or d // h
    ffn = 4 * d if family == "gpt2" else 80
    expected = {"embedding": 97 * d, "Q": 3 * h * hd * d, "K": 3 * kv * hd * d, "V": 3 * kv * hd * d}
    expected |= {"O": 3 * h * hd * d, "W_up": 3 * ffn * d, "W_down": 3 * ffn * d}
    assert expected.items() <= counts.by_role.items()
    assert ("bias" in counts.by_role) == (family in ("qwen2", "gpt2"))
    assert ("W_gate" in counts.by_role) == (family != "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_alone_counts_the_same(tmp_path: Path, family: str) -> None:
    folder = write(tmp_path, family)
    whole, config = wk.open(folder).counts(), wk.open(folder / "config.json").counts()
    assert (config.total, config.by_role, config.by_layer) == (whole.total, whole.by_role, whole.by_layer)
    assert config.formulas == whole.formulas
    assert config.stored == 0
    assert config.bytes == whole.bytes


def test_shards_do_not_matter(tmp_path: Path) -> None:
    one, many = wk.open(write(tmp_path / "1")).counts(), wk.open(write(tmp_path / "5", shards=5)).counts()
    assert one == many


def test_types_are_told_apart(tmp_path: Path) -> None:
    tensors: dict[str, Any] = dict(weights(CONFIGS["llama"]))
    halves = {name: array.astype(np.float16) for name, array in tensors.items() if "mlp" in name}
    folder = write(tmp_path, tensors=tensors | halves)
    counts = wk.open(folder).counts()
    small = sum(array.size for array in halves.values())
    assert counts.by_dtype == {"F16": small, "F32": counts.total - small}
    assert counts.bytes == 4 * counts.total - 2 * small


def test_a_tied_head_that_is_stored_counts_once(tmp_path: Path) -> None:
    tensors = weights(CONFIGS["llama"])
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    counts = wk.open(write(tmp_path, tensors=tensors, tie_word_embeddings=True)).counts()
    assert counts.total == sum(a.size for a in tensors.values()) - 97 * 48
    assert counts.stored == sum(a.size for a in tensors.values())
    assert counts.tied == [["embed", "lm_head"]]


BUFFERS: dict[str, dict[str, Array]] = {
    "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(6, np.float32)},
    "gpt2": {
        "transformer.h.0.attn.bias": np.ones((1, 1, 64, 64), np.bool_),
        "transformer.h.1.attn.masked_bias": f32(-1e4),
    },
}


@pytest.mark.parametrize("family", BUFFERS)
def test_buffers_are_not_parameters(tmp_path: Path, family: str) -> None:
    tensors: dict[str, Any] = weights(CONFIGS[family]) | BUFFERS[family]
    model = wk.open(write(tmp_path, family, tensors=tensors))
    counts = model.counts()
    assert counts.total == sum(sizes(CONFIGS[family]).values())
    assert counts.stored == sum(a.size for a in tensors.values())
    assert counts.unclaimed == []
    assert set(model.registry.ignored) == set(BUFFERS[family])


def test_a_tensor_that_no_address_claims_counts_and_is_named(tmp_path: Path) -> None:
    tensors = weights(CONFIGS["llama"]) | {"model.layers.7.extra.weight": np.ones((3, 5), np.float32)}
    counts = wk.open(write(tmp_path, tensors=tensors)).counts()
    assert counts.unclaimed == ["model.layers.7.extra.weight"]
    assert counts.by_role["other"] == 15
    assert counts.total == counts.stored == sum(a.size for a in tensors.values())


def test_names_alone(tmp_path: Path) -> None:
    shapes = [(), (3,), (0, 4), (2, 3, 5)]
    path = write_file(tmp_path / "x.safetensors", {f"t{i}": np.ones(s, np.int8) for i, s in enumerate(shapes)})
    counts = wk.open(path).counts()
    assert (counts.model_type, counts.total, counts.bytes) == (None, 34, 34)
    assert counts.by_role == {"other": 34}
    assert evaluate(counts.formulas["other"]) == 34
    assert counts.kv_cache(5) is None
    assert counts.flops(5) is None


def test_frame(tmp_path: Path) -> None:
    counts = wk.open(write(tmp_path)).counts()
    frame = counts.frame()
    assert list(frame.columns) == ["role", "parameters", "share", "formula"]
    assert dict(zip(frame.role, frame.parameters, strict=True)) == counts.by_role
    assert frame.share.sum() == pytest.approx(1)


# ── what it costs to run ───────────────────────────────────────────────────────────────────────────

WINDOWS: list[tuple[str, dict[str, Any], list[int | None]]] = [
    ("llama", {}, [None] * 3),
    ("gpt2", {}, [None] * 3),
    ("mistral", {}, [7] * 3),
    ("mistral", {"sliding_window": None}, [None] * 3),
    ("qwen2", {"sliding_window": 5}, [None] * 3),  # not used unless the config says so
    ("qwen2", {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1}, [None, 5, 5]),
    (
        "qwen3",
        {
            "sliding_window": 5,
            "use_sliding_window": True,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        [None, 5, None],
    ),
]


@pytest.mark.parametrize(("family", "changes", "windows"), WINDOWS)
@pytest.mark.parametrize("context", [1, 6, 64])
def test_kv_cache_and_flops(
    tmp_path: Path, family: str, changes: dict[str, Any], windows: list[int | None], context: int
) -> None:
    counts = wk.open(write(tmp_path, family, **changes)).counts()
    heads, kv_heads = 4, 4 if family == "gpt2" else 2
    head_dim = CONFIGS[family].get("head_dim") or 12
    seen = sum(context if w is None else min(w, context) for w in windows)
    assert counts.kv_cache(context) == 2 * kv_heads * head_dim * seen * 2
    assert counts.kv_cache(context, bytes_per_number=1) == 2 * kv_heads * head_dim * seen
    matrices = sum(n for name, n in sizes(CONFIGS[family]).items() if MATRIX.search(name))
    matrices += 97 * 48 if family == "gpt2" else 0  # its tied projection runs too
    assert counts.flops(context) == 2 * matrices + 4 * heads * head_dim * seen


# ── real configs, and real sizes ───────────────────────────────────────────────────────────────────


def test_real_configs(shared: Path) -> None:
    truth = json.loads((shared / "configs/truth.json").read_text())
    known = {folder: fact for folder, fact in truth.items() if fact["model_type"] in FAMILIES}
    assert len(known) >= 8
    found = {folder: wk.open(shared / "configs" / folder / "config.json").counts() for folder in known}
    assert {f: c.total for f, c in found.items()} == {f: fact["parameters"] for f, fact in known.items()}
    assert {f: bool(c.tied) for f, c in found.items()} == {f: fact["tied"] for f, fact in known.items()}


def big_llama(folder: Path, width: int, ffn: int, layers: int, heads: int, shards: int) -> Path:
    """Llama 3.1 as it is published, in sparse files: the shards of its index with holes for data."""
    config = CONFIGS["llama"] | {
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "torch_dtype": "bfloat16",
    }
    wanted = shapes(config)
    weight_map: dict[str, str] = {}
    for i, names in enumerate(spread(list(wanted), shards), start=1):
        file = f"model-{i:05}-of-{shards:05}.safetensors"
        write_holes(folder / file, {name: wanted[name] for name in names}, "BF16", 2)
        weight_map |= dict.fromkeys(names, file)
    total = 2 * sum(map(math.prod, wanted.values()))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("name", "size", "total", "embedding"),
    [
        ("405B", (16384, 53248, 126, 128, 191), 405_853_388_800, 128256 * 16384),
        ("70B", (8192, 28672, 80, 64, 30), 70_553_706_496, 1_050_673_152),
    ],
)
def test_llama_3_1_in_full_size(
    tmp_path: Path, cli: Cli, name: str, size: tuple[int, ...], total: int, embedding: int
) -> None:
    folder = big_llama(tmp_path, *size)
    model = wk.open(folder)
    assert len(model.checkpoint.shards) == size[-1]
    counts = cli("count", folder, "--json").json
    assert (counts["total"], counts["stored"], counts["bytes"]) == (total, total, 2 * total)
    assert counts["by_role"]["embedding"] == counts["by_role"]["vocab projection"] == embedding
    assert counts["by_dtype"] == {"BF16": total}
    assert {role: evaluate(formula) for role, formula in counts["formulas"].items()} == counts["by_role"]
    assert f"{total:,}" in cli("count", folder).out
