"""Vocabulary: what tokens, neurons and heads mean, against float64 numpy and in the trained model."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import weightkit as wk
from tests import make_golden as golden
from tests.by_hand import Array
from tests.tiny import CONFIGS, FAMILIES, weights, write
from tests.variants import VARIANTS
from weightkit.analysis.vocabulary import Reading
from weightkit.errors import AddressError, EngineError

VOCAB = 97


def wide(model: wk.Model, address: str) -> Array:
    return model.registry[address].array().astype(np.float64)


def ends(scores: Array) -> tuple[list[int], list[int]]:
    order = np.argsort(-scores, kind="stable")
    return order.tolist(), order[::-1].tolist()


def same(found: Reading, want: Array, left_out: int | None = None) -> None:
    """Whether a reading of the whole vocabulary has these scores."""
    high, low = ([i for i in end if i != left_out] for end in ends(want))
    assert ([s.id for s in found.highest], [s.id for s in found.lowest]) == (high, low)
    assert [s.score for s in found.highest] == pytest.approx(want[high], rel=1e-9, abs=1e-12)


def through_final_norm(model: wk.Model, x: Array) -> Array:
    """What is written, as the vocab projection reads it, but for the norm's division. [n, d] -> [n, d]"""
    family = model.registry.architecture
    assert family is not None
    x = x - x.mean(axis=1, keepdims=True) if family.norm == "layer" else x
    return x * (wide(model, "norm") + (family.norm == "rms + 1"))


@pytest.mark.parametrize("table", ["embed", "lm_head"])
def test_neighbours_are_by_cosine(tmp_path: Path, table: str) -> None:
    model = wk.open(write(tmp_path / "m"))
    rows = wide(model, table)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = model.vocabulary(f"{table}[token=5]", VOCAB)
    assert (found.kind, found.measure) == ("neighbours", "cosine")
    same(found, rows @ rows[5], left_out=5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_neuron_writes(tmp_path: Path, family: str) -> None:
    model = wk.open(write(tmp_path / "m", family))
    column = wide(model, "layers.1.ffn.down")[:, 7]
    found = model.vocabulary("layers.1.ffn[neuron=7]", VOCAB)
    assert (found.kind, found.measure) == ("writes", "logit")
    same(found, wide(model, "lm_head") @ through_final_norm(model, column[None])[0])


def test_a_norm_behind_the_neuron_counts(tmp_path: Path) -> None:
    model = wk.open(golden.write(tmp_path / "m", "gemma2", next(iter(VARIANTS["gemma2"]))))
    column = wide(model, "layers.1.ffn.down")[:, 7] * (wide(model, "layers.1.ffn.post_norm") + 1)
    want = wide(model, "lm_head") @ through_final_norm(model, column[None])[0]
    same(model.vocabulary("layers.1.ffn[neuron=7]", len(want)), want)


def ov(model: wk.Model, layer: int, head: int, kv_head: int) -> Array:
    """What each token leads to through a head: row by row the logits. [vocab, vocab]"""
    family, at, size = model.registry.architecture, f"layers.{layer}.attn", 12
    assert family is not None
    values = wide(model, f"{at}.v")[kv_head * size : (kv_head + 1) * size]
    output = wide(model, f"{at}.o")[:, head * size : (head + 1) * size]
    embedded = wide(model, "embed")
    embedded = embedded - embedded.mean(axis=1, keepdims=True) if family.norm == "layer" else embedded
    read = embedded * wide(model, f"{at}.norm")
    return through_final_norm(model, read @ values.T @ output.T) @ wide(model, "lm_head").T


@pytest.mark.parametrize(("family", "kv_head"), [("llama", 1), ("gpt2", 3)])
def test_what_a_head_copies_and_writes(tmp_path: Path, family: str, kv_head: int) -> None:
    model = wk.open(write(tmp_path / "m", family))
    logits = ov(model, 1, 3, kv_head)
    found = model.vocabulary("layers.1.attn[head=3]", VOCAB)
    assert (found.kind, found.measure) == ("copies", "z")
    same(found, (logits.diagonal() - logits.mean(axis=1)) / logits.std(axis=1))
    same(model.vocabulary("layers.1.attn[head=3]", VOCAB, token=11), logits[11])


def test_planted_meanings_come_first(tmp_path: Path) -> None:
    tensors = weights(CONFIGS["llama"])
    tensors["model.norm.weight"][:] = 1
    tensors["model.embed_tokens.weight"][60] = 1.1 * tensors["model.embed_tokens.weight"][5]
    tensors["model.layers.0.mlp.down_proj.weight"][:, 9] = tensors["lm_head.weight"][42]
    # A head that writes to the logit of 33 what it reads of token 21.
    tensors["model.layers.1.self_attn.v_proj.weight"][0] = tensors["model.embed_tokens.weight"][21]
    tensors["model.layers.1.self_attn.o_proj.weight"][:, 12] = 5 * tensors["lm_head.weight"][33]
    tensors["model.layers.1.self_attn.v_proj.weight"][12] = 9 * tensors["model.embed_tokens.weight"][70]
    tensors["model.layers.1.self_attn.o_proj.weight"][:, 24] = 9 * tensors["lm_head.weight"][70]
    model = wk.open(write(tmp_path / "m", tensors=tensors))
    assert model.vocabulary("embed[token=5]").highest[0].id == 60
    assert model.vocabulary("layers.0.ffn[neuron=9]").highest[0].id == 42
    assert model.vocabulary("layers.1.attn[head=1]", token=21).highest[0].id == 33
    assert model.vocabulary("layers.1.attn[head=2]").highest[0].id == 70


def test_the_trained_model_knows_its_capitals() -> None:
    model = wk.open("demo")
    near = model.vocabulary('lm_head[token=" Paris"]', 5).highest
    assert all(scored.token.startswith(" ") and scored.token[1].isupper() for scored in near)


def test_blocks_and_executors_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wk.open(write(tmp_path / "m", "gpt2", dtype="BF16"))
    addresses = ("embed[token=3]", "layers.2.ffn[neuron=1]", "layers.0.attn[head=2]")
    want = [model.vocabulary(address, VOCAB) for address in addresses]
    with ProcessPoolExecutor(1) as executor:
        assert [model.vocabulary(address, VOCAB, executor=executor) for address in addresses] == want
    monkeypatch.setattr("weightkit.analysis.rows.BLOCK", 500)
    for address, before in zip(addresses, want, strict=True):
        found = model.vocabulary(address, VOCAB)
        assert [s.id for s in found.highest] == [s.id for s in before.highest]
        assert [s.score for s in found.highest] == pytest.approx([s.score for s in before.highest], rel=1e-10)


def test_rows_of_zeros_and_nan_have_no_score(tmp_path: Path) -> None:
    tensors = weights(CONFIGS["llama"])
    tensors["model.embed_tokens.weight"][4] = 0
    tensors["model.embed_tokens.weight"][6, 2] = np.nan
    tensors["lm_head.weight"][8, 1] = np.nan
    model = wk.open(write(tmp_path / "m", tensors=tensors))
    for address, without in (("embed[token=3]", {3, 4, 6}), ("layers.0.attn[head=1]", {4, 6, 8})):
        assert {scored.id for scored in model.vocabulary(address, VOCAB).highest} == {*range(VOCAB)} - without
    assert model.vocabulary("embed[token=4]").highest == []


def test_experts_have_neurons_too(tmp_path: Path) -> None:
    model = wk.open(golden.write(tmp_path / "m", "mixtral", next(iter(VARIANTS["mixtral"]))))
    assert model.vocabulary("layers.1.ffn.experts.2[neuron=4]").kind == "writes"


@pytest.mark.parametrize(
    ("family", "address", "error"),
    [
        ("bert", "layers.0.ffn[neuron=1]", EngineError),  # normed after every sum
        ("t5", "encoder.layers.0.ffn[neuron=1]", EngineError),  # no vocabulary above it
        ("deepseek_v3", "layers.0.attn.o[head=1]", AddressError),  # values of low rank
    ],
)
def test_what_means_nothing_in_tokens(tmp_path: Path, family: str, address: str, error: type[Exception]) -> None:
    model = wk.open(golden.write(tmp_path / "m", family, next(iter(VARIANTS[family]))))
    with pytest.raises(error):
        model.vocabulary(address)
