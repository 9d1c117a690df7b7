"""Swapped: what parts of a difference do to what a model predicts, as each takes its place in the other model."""

from __future__ import annotations

import gc
import math
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightkit as wk
from tests.by_hand import tokenizer
from tests.conftest import Cli
from tests.test_families import random as random_tensors
from tests.test_families import write as write_family
from tests.tiny import CONFIGS, weights, write
from weightkit.analysis.parts import MOST, REST, Part, parts
from weightkit.effect.swapped import SETTINGS, swapped
from weightkit.errors import EngineError, WeightkitError

IDS = [5, 17, 3, 60, 2, 9]
TEXT = "Once upon a time there was a little girl."


def changed(folder: Path, names: list[str], family: str = "llama", **settings: Any) -> tuple[wk.Model, wk.Model]:
    """A model, and the same with other numbers in some tensors."""
    before, other = weights(CONFIGS[family]), weights(CONFIGS[family], seed=5)
    after = before | {name: other[name] for name in names}
    folders = write(folder / "a", family, tensors=before), write(folder / "b", family, tensors=after, **settings)
    return wk.open(folders[0]), wk.open(folders[1])


def kl(a: wk.Model, b: wk.Model) -> float:
    """What `measure` says of two models that are files."""
    return wk.measure(a, b, ids=[IDS]).kl_mean


Q, UP, HEAD = "model.layers.1.self_attn.q_proj.weight", "model.layers.2.mlp.up_proj.weight", "lm_head.weight"


def test_a_part_does_what_a_file_with_it_does(tmp_path: Path) -> None:
    a, b = changed(tmp_path, [Q, UP, HEAD])
    found = wk.diff(a, b, ids=[IDS], by="weight").parts
    assert sorted(part.part for part in found) == ["layers.1.attn.q", "layers.2.ffn.up", "lm_head"]
    assert [part.l2 for part in found] == sorted((part.l2 for part in found), reverse=True)
    names = {"layers.1.attn.q": Q, "layers.2.ffn.up": UP, "lm_head": HEAD}
    taken: list[str] = []
    for number, part in enumerate(found):
        taken.append(names[part.part])
        assert part.kl_alone == kl(a, changed(tmp_path / f"alone{number}", [names[part.part]])[1]) > 0
        assert part.kl_together == kl(a, changed(tmp_path / f"together{number}", taken)[1])
    assert found[-1].kl_together == kl(a, b)


def test_parts_are_by_role_layer_or_weight(tmp_path: Path) -> None:
    a, b = changed(tmp_path, [Q, UP, HEAD])
    found = {by: {p.part: p.addresses for p in wk.diff(a, b, ids=[IDS], by=by).parts} for by in ("role", "layer")}
    assert found["role"] == {"Q": ["layers.1.attn.q"], "W_up": ["layers.2.ffn.up"], "vocab projection": ["lm_head"]}
    assert found["layer"] == {
        "layer 1": ["layers.1.attn.q"], "layer 2": ["layers.2.ffn.up"], "outside layers": ["lm_head"],
    }  # fmt: skip
    with pytest.raises(WeightkitError, match="'head': parts are by one of role, layer, weight"):
        wk.diff(a, b, ids=[IDS], by="head")
    assert wk.diff(a, b).parts == []
    assert wk.diff(a, a, ids=[IDS]).parts == []


def test_the_smallest_of_many_are_one(tmp_path: Path) -> None:
    a, b = (wk.open(write(tmp_path / str(seed), seed=seed)) for seed in (1, 2))
    rows = wk.diff(a, b).changed
    found = parts(rows, "weight")
    assert len(found) == MOST
    assert len(found[-1].addresses) == len(rows) - MOST + 1
    assert found[-1].part == REST
    assert sum(part.l2**2 for part in found) == pytest.approx(sum(row.l2**2 for row in rows))


def test_what_models_are_tied_to_goes_with_it(tmp_path: Path) -> None:
    tensors = {name: array for name, array in weights(CONFIGS["llama"]).items() if name != HEAD}
    other = tensors | {"model.embed_tokens.weight": weights(CONFIGS["llama"], seed=5)["model.embed_tokens.weight"]}
    a, b = (
        wk.open(write(tmp_path / name, tensors=t, tie_word_embeddings=True))
        for name, t in (("a", tensors), ("b", other))
    )
    (part,) = wk.diff(a, b, ids=[IDS]).parts
    assert (part.part, part.addresses, part.kl_together) == ("embedding", ["embed"], kl(a, b))


def test_tied_against_untied(tmp_path: Path) -> None:
    tensors = weights(CONFIGS["llama"])
    tied = {name: array for name, array in tensors.items() if name != HEAD}
    a = wk.open(write(tmp_path / "a", tensors=tied, tie_word_embeddings=True))
    b = wk.open(write(tmp_path / "b", tensors=tensors))
    for one, other in ((a, b), (b, a)):
        (part,) = wk.diff(one, other, ids=[IDS]).parts
        assert (part.addresses, part.kl_together) == (["lm_head"], kl(one, other))


def test_settings_come_last(tmp_path: Path) -> None:
    a, b = changed(tmp_path, [Q], rope_theta=100.0)
    first, last = wk.diff(a, b, ids=[IDS]).parts
    assert first.part == "Q"
    assert (last.part, last.addresses, last.kl_together) == (SETTINGS, [], kl(a, b))
    assert math.isnan(last.kl_alone)
    assert first.kl_together != last.kl_together


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mixtral", "bert", "t5", "phi3", "mamba"])
def test_parts_of_other_families_come_to_the_whole(tmp_path: Path, family: str) -> None:
    tensors = random_tensors(family)
    moved = {name: (array * np.float32(1.1)).astype(array.dtype) for name, array in tensors.items()}
    a, b = (wk.open(write_family(tmp_path / n, family, t)) for n, t in (("a", tensors), ("b", moved)))
    try:
        whole = kl(a, b)
    except EngineError as error:
        pytest.skip(str(error))
    assert wk.diff(a, b, ids=[IDS]).parts[-1].kl_together == whole


def test_numbers_of_another_type_and_format(shared: Path) -> None:
    a = wk.open(shared / "models" / "stories260K")
    for name in ("st-fp16", "gguf/stories260K-Q4_0.gguf"):
        b = wk.open(shared / "models" / "stories260K-formats" / name)
        found = wk.diff(a, b, texts=[TEXT]).parts
        assert found[-1].kl_together == pytest.approx(wk.measure(a, b, [TEXT]).kl_mean, rel=1e-3, abs=1e-9)


def test_snapshots_of_the_model_that_is_built_in() -> None:
    a, b = wk.open("demo:early"), wk.open("demo")
    found = wk.diff(a, b, texts=[TEXT], by="layer").parts
    assert found[-1].kl_together == wk.measure(a, b, [TEXT]).kl_mean
    assert max(found, key=lambda part: part.kl_alone).part == "layer 0"  # where streams part first


def test_models_that_ran_are_let_go(tmp_path: Path) -> None:
    a, b = changed(tmp_path, [Q])
    gc.disable()  # as commands do
    try:
        engine = wk.Model(a.checkpoint, swapped(a.registry, b.registry, ["layers.1.attn.q"])).engine
        engine.logits([1, 2, 3])
        gone = weakref.ref(engine)
        del engine
        assert gone() is None
    finally:
        gc.enable()


# ── what cannot be swapped ─────────────────────────────────────────────────────────────────────────


def small(**settings: Any) -> dict[str, np.ndarray[Any, Any]]:
    return weights(CONFIGS["llama"] | settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"vocab_size": 98}, "vocabularies of 97 and 98 tokens"),
        ({"intermediate_size": 64}, "layers.0.ffn.gate is [80, 48] in A and [64, 48] in B"),
        ({"num_hidden_layers": 2}, "only A has layers.2."),
        ({"attention_bias": True}, "only B has layers.0.attn.q.bias"),
    ],
)
def test_other_shapes_are_refused_in_one_line(cli: Cli, tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b", tensors=small(**settings), **settings)
    done = cli("diff", a, b, "--ids", "1,2,3")
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert done.err.count("\n") == 1
    assert cli("diff", a, b).code == 1


def test_another_architecture_or_tokenizer_is_refused(cli: Cli, tmp_path: Path) -> None:
    a, b = tokenizer(write(tmp_path / "a")), tokenizer(write(tmp_path / "b", "mistral"))
    done = cli("diff", a, b, "--ids", "1,2,3")
    assert (done.code, done.out) == (2, "")
    assert "A is llama, B mistral: weights of one architecture cannot be put into another" in done.err
    c = tokenizer(write(tmp_path / "c", seed=3))
    raw = (c / "tokenizer.json").read_text()
    assert '"w7"' in raw
    (c / "tokenizer.json").write_text(raw.replace('"w7"', '"w777"'))
    done = cli("diff", a, c, "--measure", "w1 w2")
    assert (done.code, done.out) == (2, "")
    assert "the tokenizers differ" in done.err
    assert cli("diff", a, c, "--ids", "1,2,3").code == 1


# ── the command ────────────────────────────────────────────────────────────────────────────────────


def test_diff_measures(cli: Cli, tmp_path: Path) -> None:
    a, b = changed(tmp_path, [Q, UP])
    tokenizer(a.checkpoint.folder), tokenizer(b.checkpoint.folder)
    paths = a.checkpoint.folder, b.checkpoint.folder
    found = cli("diff", *paths, "--measure", "w1 w2 w3", "--json").json
    want = wk.diff(a, b, texts=["w1 w2 w3"]).parts
    assert [Part(**row) for row in found["parts"]] == want
    assert found["effect"]["kl_mean"] == want[-1].kl_together
    done = cli("diff", *paths, "--measure", "w1 w2 w3", "--detail")
    assert done.code == 1
    assert "layers.2.ffn.up" in done.out.partition("KL divergence from A")[2]
    assert "alone they come to" in done.out
    plain = cli("diff", *paths, "--json").json
    assert (plain["effect"], plain["parts"]) == (None, [])


def test_diff_by_layer(cli: Cli, tmp_path: Path) -> None:
    a, b = changed(tmp_path, [Q, UP])
    done = cli("diff", a.checkpoint.folder, b.checkpoint.folder, "--by", "layer")
    assert [line.split()[:2] for line in done.out.splitlines() if re.match(r"layer |\d +\d", line)] == [
        ["layer", "weights"], ["1", "1"], ["2", "1"],
    ]  # fmt: skip
    done = cli("diff", a.checkpoint.folder, b.checkpoint.folder, "--by", "head")
    assert (done.code, done.out) == (2, "")
    assert "--by head: one of role, layer" in done.err
