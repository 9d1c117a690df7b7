"""Several prompts at once: each goes on as it does alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import weightkit as wk
from tests import running, tiny
from tests.by_hand import tokenizer
from weightkit.engine import cache, positions, program, weights
from weightkit.engine.cache import Cache
from weightkit.engine.forward import Engine
from weightkit.engine.generate import Sampling, Steps, generate
from weightkit.errors import EngineError
from weightkit.kernels import FEW, available

PROMPTS = [[5, 17, 42], [9], [3, 88, 41, 3, 9, 60, 12, 7, 1], [11, 12]]
CONTINUES = [variant for variant in running.RUN if variant not in ("bert", "roberta", "distilbert")]
Taken = list[tuple[int, NDArray[np.float32]]]  # ids, each with the logits that it was chosen from


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> wk.Model:
    return wk.open(tokenizer(tiny.write(tmp_path_factory.mktemp("llama"))))


def together(engine: Engine, prompts: Sequence[list[int]], tokens: int, sampling: Sampling) -> list[Taken]:
    steps = Steps(engine)
    turns = itertools.zip_longest(*(generate(engine, p, tokens, sampling, steps=steps) for p in prompts))
    return [[taken for taken in row if taken is not None] for row in zip(*turns, strict=True)]


def words(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" if i else "a" for i in ids)


def require_same(engine: Engine, tokens: int, sampling: Sampling, *, to_the_bit: bool = False) -> None:
    for prompt, got in zip(PROMPTS, together(engine, PROMPTS, tokens, sampling), strict=True):
        want = list(generate(engine, prompt, tokens, sampling))
        assert [i for i, _ in got] == [i for i, _ in want]
        for (_, x), (_, y) in zip(got, want, strict=True):
            assert np.array_equal(x, y) if to_the_bit else np.abs(x - y).max() < 1e-4 * y.std()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, seed=3)], ids=["greedy", "drawn"])
@pytest.mark.parametrize("variant", CONTINUES)
def test_each_has_what_it_has_alone(variant: str, sampling: Sampling, tmp_path: Path) -> None:
    """In the first steps to the bit; then the text alone has a program, which rounds in its own way."""
    engine = running.opened(tmp_path, variant).engine
    require_same(engine, cache.WORTH - 1, sampling, to_the_bit=available())
    require_same(engine, 2 * cache.WORTH, sampling)


def test_rotations_where_loops_are_compiled_for_them(model: wk.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions, "WORTH", 1)
    require_same(model.engine, 2 * cache.WORTH, Sampling())


@pytest.mark.parametrize("variant", ["llama", "gpt2", "mamba", "t5", "bloom", "mixtral"])
def test_without_compiled_loops_too(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (weights, program):
        monkeypatch.setattr(room, "available", lambda: False)
    require_same(running.opened(tmp_path, variant).engine, 9, Sampling())


ROPES = [
    {"rope_type": "dynamic", "factor": 2.0},
    {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": 8,
    },
]


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
def test_each_turns_to_other_rotations_at_its_own_length(rope: dict[str, Any], tmp_path: Path) -> None:
    model = wk.open(tiny.write(tmp_path, head_dim=8, max_position_embeddings=8, rope_scaling=rope))
    assert model.generate(PROMPTS, 9) == [model.generate(prompt, 9) for prompt in PROMPTS]


def test_each_ends_after_its_own_last_position(tmp_path: Path) -> None:
    model = wk.open(tiny.write(tmp_path, "gpt2", n_positions=10))
    got = model.generate(PROMPTS, 30)
    assert [len(ids) for ids in got] == [11] * 4
    assert got == [model.generate(prompt, 30) for prompt in PROMPTS]


def test_they_are_computed_together(model: wk.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    head = Engine._head

    def counted(self: Engine, x: NDArray[np.float32], tap: Any) -> NDArray[np.float32]:
        sizes.append(len(x))
        return head(self, x, tap)

    monkeypatch.setattr(Engine, "_head", counted)
    model.generate(PROMPTS, 4)
    assert sizes == [1, 1, 1, 1, 4, 4, 4]
    sizes.clear()
    model.generate([[i] for i in range(30)], 2)
    assert sizes == [1] * 30 + [FEW, 30 - FEW]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_and_ids(model: wk.Model, temperature: float) -> None:
    alone = [model.generate(prompt, 6, temperature=temperature, seed=5) for prompt in PROMPTS]
    assert model.generate(PROMPTS, 6, temperature=temperature, seed=5) == alone
    assert model.generate(PROMPTS[2:3], 6, temperature=temperature, seed=5) == alone[2:3]
    assert model.generate(tuple(map(tuple, PROMPTS)), 6, temperature=temperature, seed=5) == alone
    texts = [words(prompt) for prompt in PROMPTS]
    assert model.generate(texts, 6, temperature=temperature, seed=5) == [words(ids) for ids in alone]


def test_each_has_its_own_end_and_its_own_stop(tmp_path: Path) -> None:
    ids = wk.open(tiny.write(tmp_path / "endless", seed=4)).generate(PROMPTS, 8)
    end = ids[0][5]
    model = wk.open(tokenizer(tiny.write(tmp_path / "ends", seed=4, eos_token_id=end)))
    texts = [words(prompt) for prompt in PROMPTS]
    got = model.generate(texts, 8)
    assert got == [model.generate(text, 8) for text in texts]
    assert got[0] == words(ids[0][:6])
    stop = f" w{ids[2][12]}"
    got = model.generate(texts, 8, stop=stop, ignore_eos=True)
    assert got == [model.generate(text, 8, stop=stop, ignore_eos=True) for text in texts]
    assert got[2] == words(ids[2][:12])
    assert model.generate(PROMPTS, 8, stop=stop)[2] == ids[2][:13]


def test_one_that_is_left_costs_one_token_more(model: wk.Model) -> None:
    """Nothing is computed for a text that no one takes from."""
    steps = Steps(model.engine)
    left, other = (generate(model.engine, prompt, 20, steps=steps) for prompt in PROMPTS[:2])
    next(left)
    assert len(list(other)) == 20
    assert [i for i, _ in left] == model.generate(PROMPTS[0], 20)[4:]


def test_an_error_in_one_is_an_error(model: wk.Model) -> None:
    with pytest.raises(EngineError, match="id 97 is not"):
        model.generate([[1, 2], [97]], 3)
    with pytest.raises(EngineError, match="prompt is empty"):
        model.generate([[1, 2], []], 3)


def test_logits_of_unequal_lengths(model: wk.Model, tmp_path: Path) -> None:
    got = model.logits(PROMPTS)
    assert all(np.array_equal(x, model.logits(ids)) for x, ids in zip(got, PROMPTS, strict=True))
    t5 = running.opened(tmp_path, "t5")
    for answers in ([[0], [0, 3], [0, 3, 4], [0]], [[0, 3]] * 4):
        got = t5.logits(PROMPTS, decoder_ids=answers)
        for x, ids, answer in zip(got, PROMPTS, answers, strict=True):
            assert np.array_equal(x, t5.logits(ids, decoder_ids=answer))
    assert t5.logits(PROMPTS)[2].shape == (1, t5.engine.config.vocab)


def test_caches_go_on_after_a_step_together(model: wk.Model) -> None:
    caches = [Cache(), Cache()]
    texts = [list(prompt) for prompt in PROMPTS[:2]]
    for own, text in zip(caches, texts, strict=True):
        model.engine.logits(text, own)
    for new in range(3 * cache.WORTH):  # together and alone in turn
        model.engine.logits_together([new, new + 1], caches)
        for i, (own, text) in enumerate(zip(caches, texts, strict=True)):
            text.extend((new + i, 50))
            want = model.logits(text)[-1]
            assert np.abs(model.engine.logits([50], own)[0, -1] - want).max() < 2e-5 * want.std()
            assert own.ids.tolist() == [text]


@pytest.mark.oracle
@pytest.mark.parametrize("variant", ["llama", "gpt2", "gemma2", "mistral", "phi3", "qwen3"])
def test_the_tokens_are_those_of_transformers_with_padding_before(variant: str, tmp_path: Path) -> None:
    import torch

    from tests import oracle

    folder = running.write(tmp_path, variant)
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS])
    with torch.no_grad():
        theirs = oracle.load(folder).generate(
            ids, attention_mask=mask, max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    assert [ids[len(p) :] for p, ids in zip(PROMPTS, wk.open(folder).generate(PROMPTS, 9), strict=True)] == theirs[
        :, longest:
    ].tolist()
