"""Generation: how the next token is chosen, and when it ends."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import weightkit as wk
from tests import running, tiny
from tests import test_families as families
from tests.by_hand import tokenizer
from tests.conftest import Cli
from weightkit.engine.generate import Choice, Sampling, candidates, choose, generate
from weightkit.errors import ConfigError, EngineError

F32 = NDArray[np.float32]
PROMPT = [5, 17, 42]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> wk.Model:
    return wk.open(tiny.write(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> wk.Model:
    return wk.open(tiny.write(tmp_path_factory.mktemp("gpt2"), "gpt2", n_positions=10))


def draws(logits: list[float], sampling: Sampling, times: int) -> NDArray[np.int64]:
    random = np.random.default_rng(sampling.seed)
    return np.array([choose(np.array(logits, np.float32), sampling, random) for _ in range(times)])


# ── one token ────────────────────────────────────────────────────────────────────────────────────────


def test_temperature_zero_takes_the_likeliest_and_the_first_of_equals() -> None:
    assert set(draws([0.0, 3.0, 1.0], Sampling(), 20)) == {1}
    assert set(draws([2.0, 7.0, 7.0], Sampling(), 20)) == {1}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 5, 99])
def test_draws_have_the_distribution_of_the_logits(temperature: float, top_k: int | None) -> None:
    logits = np.array([1.0, -1.0, 2.0, 0.0, 1.5])
    p = np.exp(logits / temperature)
    if top_k is not None:
        p[np.argsort(-logits)[top_k:]] = 0
    p /= p.sum()
    times = 3000
    seen = np.bincount(draws(list(logits), Sampling(temperature, top_k, seed=3), times), minlength=5) / times
    assert np.abs(seen - p).max() < 4 * np.sqrt(0.25 / times)  # four standard deviations of a share
    assert not seen[p == 0].any()


@pytest.mark.parametrize(("top_p", "kept"), [(1e-9, 1), (0.4, 1), (0.41, 2), (0.69, 2), (0.9, 3), (0.99, 4), (1.0, 5)])
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: int) -> None:
    p = np.array([0.25, 0.05, 0.405, 0.001, 0.294])
    ids, got = candidates(np.log(p).astype(np.float32), Sampling(1.0, None, top_p))
    assert ids.tolist() == [2, 4, 0, 1, 3][:kept]
    np.testing.assert_allclose(got, p[ids] / p[ids].sum(), rtol=1e-6)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 7, 50])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 0.05])
def test_the_distribution_is_that_of_transformers(
    seed: int, temperature: float, top_k: int | None, top_p: float
) -> None:
    import torch
    from transformers.generation import logits_process

    logits = (3 * np.random.RandomState(seed).standard_normal(97)).astype(np.float32)
    scores = logits_process.TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits[None]))
    if top_k is not None:
        scores = logits_process.TopKLogitsWarper(top_k)(None, scores)
    scores = logits_process.TopPLogitsWarper(top_p)(None, scores)
    ids, p = candidates(logits, Sampling(temperature, top_k, top_p))
    got = np.zeros(97)
    got[ids] = p
    np.testing.assert_allclose(got, torch.softmax(scores.double(), -1)[0].numpy(), atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-40, 1e-300])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    assert set(draws([0.0, 3.0, 2.9, -4.0], Sampling(temperature), 20)) == {1}


@pytest.mark.parametrize("temperature", [1e30, 1e300])
def test_a_very_high_temperature_is_even(temperature: float) -> None:
    seen = np.bincount(draws([0.0, 3.0, 20.0, -4.0], Sampling(temperature), 4000), minlength=4) / 4000
    assert np.abs(seen - 0.25).max() < 0.03


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": 0}, "top_k is a whole number from 1"),
        ({"top_k": -3}, "top_k is a whole number from 1"),
        ({"temperature": "1"}, "temperature"),
        ({"top_k": 1.5}, "top_k is a whole number from 1"),
        ({"top_p": 0.0}, "top_p is a probability above 0"),
        ({"top_p": 1.1}, "top_p is a probability above 0"),
        ({"top_p": float("nan")}, "top_p is a probability above 0"),
        ({"temperature": 1.0, "seed": -1}, "seed"),
    ],
)
def test_settings_that_are_none(model: wk.Model, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        model.generate(PROMPT, 2, **arguments)


# ── many tokens ──────────────────────────────────────────────────────────────────────────────────────


def greedy_by_hand(model: wk.Model, ids: list[int], tokens: int) -> list[int]:
    for _ in range(tokens):
        ids = [*ids, int(np.argmax(model.logits(ids)[-1]))]
    return ids


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_is_the_argmax_of_the_whole_text_each_time(family: str, tmp_path: Path) -> None:
    model = wk.open(tiny.write(tmp_path, family))
    assert model.generate(PROMPT, 20) == greedy_by_hand(model, PROMPT, 20)


@pytest.mark.parametrize("tokens", [0, 1, 7, 80])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_number_of_tokens_is_the_one_asked_for(model: wk.Model, tokens: int, temperature: float) -> None:
    got = model.generate(PROMPT, tokens, temperature=temperature)
    assert got[:3] == PROMPT
    assert len(got) == 3 + tokens


def test_the_same_seed_draws_the_same_and_another_does_not(model: wk.Model) -> None:
    texts = [model.generate(PROMPT, 30, temperature=1.0, seed=seed) for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len({tuple(text) for text in texts}) == 3
    assert texts[0] != model.generate(PROMPT, 30)


def test_top_k_of_one_is_greedy(model: wk.Model) -> None:
    assert model.generate(PROMPT, 20, temperature=2.0, top_k=1, seed=9) == model.generate(PROMPT, 20)


def test_each_token_comes_with_the_logits_it_was_chosen_from(model: wk.Model) -> None:
    ids = list(PROMPT)
    for token, logits in model.stream(PROMPT, 10, temperature=1.0, top_k=5, seed=4):
        np.testing.assert_allclose(logits, model.logits(ids)[-1], atol=1e-4)
        assert token in np.argsort(-logits)[:5]
        ids.append(token)


def test_the_prompt_is_not_changed(model: wk.Model) -> None:
    prompt = list(PROMPT)
    model.generate(prompt, 5)
    assert prompt == PROMPT


# ── where a text ends ────────────────────────────────────────────────────────────────────────────────


def with_ends(folder: Path, config: Any, generation: Any = None) -> wk.Model:
    """A model of the words a, w1, w2, …, whose files say what ends a text."""
    tokenizer(tiny.write(folder, seed=4, eos_token_id=config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    return wk.open(folder)


def words(ids: list[int]) -> str:
    return " ".join(f"w{i}" if i else "a" for i in ids)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """The prompt and what that model writes after it; no id comes twice."""
    ids: list[int] = with_ends(tmp_path_factory.mktemp("spoken"), None).generate(PROMPT, 8)
    assert len(set(ids)) == len(ids)
    return ids


def test_a_text_ends_with_the_token_that_ends_texts(spoken: list[int], tmp_path: Path) -> None:
    model = with_ends(tmp_path, spoken[6])
    assert model.generate(words(PROMPT), 8) == words(spoken[:7])
    assert model.generate(words(PROMPT), 8, ignore_eos=True) == words(spoken[:11])
    assert model.generate(PROMPT, 8) == spoken[:11]  # ids are as many as were asked for
    assert [i for i, _ in generate(model.engine, PROMPT, 8, ends={spoken[5]})] == spoken[3:6]


@pytest.mark.parametrize(
    ("config", "generation", "length"),
    [(6, None, 7), ([9, 5], None, 6), (6, 8, 9), (6, [96, 4], 5), (None, 7, 8), (None, None, 11), ([], None, 11)],
)
def test_the_generation_config_goes_before_the_config(
    spoken: list[int], tmp_path: Path, config: Any, generation: Any, length: int
) -> None:
    def of_places(value: Any) -> Any:
        return value if value is None else [of_places(v) for v in value] if isinstance(value, list) else place(value)

    def place(value: int) -> int:
        return spoken[value] if value < len(spoken) else value

    model = with_ends(tmp_path, of_places(config), of_places(generation))
    assert model.generate(words(PROMPT), 8) == words(spoken[:length])


@pytest.mark.parametrize("bad", ["</s>", [1, None], 2.5, True, {}])
def test_ends_that_are_no_ids(bad: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"generation_config.json: eos_token_id is neither"):
        with_ends(tmp_path, 1, bad).generate("w1", 2)


def test_a_stop_string_ends_a_text_across_tokens(spoken: list[int], tmp_path: Path) -> None:
    model = with_ends(tmp_path, None)
    whole = words(spoken)
    stop = f"{spoken[5]} w{spoken[6]}"  # begins within a token
    assert model.generate(words(PROMPT), 8, stop=stop) == whole[: whole.index(stop)]
    assert model.generate(words(PROMPT), 8, stop=["not in it", stop]) == whole[: whole.index(stop)]
    assert model.generate(words(PROMPT), 8, stop=words(PROMPT[:2])) == whole  # that is in the prompt
    assert model.generate(PROMPT, 8, stop=stop) == spoken[:7]
    with pytest.raises(EngineError, match="stop string is empty"):
        model.generate("w1", 2, stop="")


def test_a_stop_string_needs_a_text(model: wk.Model) -> None:
    with pytest.raises(EngineError, match="no text that a stop string"):
        model.generate(PROMPT, 4, stop="5")


@pytest.mark.parametrize("length", [1, 9, 10])
def test_it_stops_after_the_last_learned_position(gpt2: wk.Model, length: int) -> None:
    """The last position predicts one more token, which nothing can be predicted from."""
    got = gpt2.generate(list(range(length)), 30)
    assert len(got) == 11
    assert got == greedy_by_hand(gpt2, list(range(length)), 11 - length)


def test_a_prompt_longer_than_the_positions_is_refused(gpt2: wk.Model) -> None:
    with pytest.raises(EngineError, match="11 tokens are more than the 10 positions"):
        gpt2.generate(list(range(11)), 1)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt is empty"),
        ([97], "id 97"),
        ("a text", "no tokenizer.json"),
        ([[[1, 2], [3, 4]]], "one text, or its token ids"),
        (None, "one text"),
        ([1.5], "whole numbers"),
        (7, "one text"),
    ],
)
def test_prompts_that_are_none(model: wk.Model, prompt: Any, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        model.generate(prompt, 3)


def test_prompts_that_are_text_or_ids_of_any_kind(spoken: list[int], tmp_path: Path) -> None:
    model = with_ends(tmp_path, None)
    text, array = words(PROMPT), np.array(PROMPT)
    for prompt in (array, tuple(PROMPT)):
        got = model.generate(prompt, 4)
        assert json.dumps(got) == json.dumps(spoken[:7])
    assert json.dumps(model.generate(array[None], 4)) == json.dumps([spoken[:7]])
    np.testing.assert_array_equal(model.logits(text), model.logits(PROMPT))
    assert [i for i, _ in model.stream(text, 4)] == [i for i, _ in model.stream(PROMPT, 4)] == spoken[3:7]


@pytest.mark.parametrize("count", [-1, 2.5, "2", None, True])
def test_numbers_of_tokens_that_are_none(model: wk.Model, count: Any) -> None:
    for ask in (model.generate, model.write, model.stream, model.next_tokens):
        with pytest.raises(EngineError, match=r"is a whole number from [01], not"):
            ask(PROMPT, count)


def test_drawing_is_spelled_alike_everywhere(tmp_path: Path) -> None:
    model = with_ends(tmp_path, None)
    draw: Choice = {"temperature": 2.0, "top_k": 30, "top_p": 0.9, "seed": 5}
    ids = model.generate(PROMPT, 8, **draw)
    assert ids != model.generate(PROMPT, 8)
    assert [i for i, _ in model.stream(PROMPT, 8, **draw)] == ids[3:]
    writing = model.write(words(PROMPT), 8, **draw)
    assert (writing.whole(), writing.ids) == (words(ids), ids[3:])


def test_an_error_stands_alone(cli: Cli, tmp_path: Path) -> None:
    done = cli("run", tiny.write(tmp_path), "--ids", "5,97", "-n", 3)
    assert (done.code, done.out) == (2, "")


def test_an_error_after_some_text_begins_a_line(spoken: list[int], cli: Cli, tmp_path: Path) -> None:
    tensors = tiny.weights(tiny.CONFIGS["llama"], seed=4)
    tensors["model.embed_tokens.weight"][spoken[4]] = np.nan
    tokenizer(tiny.write(tmp_path, tensors=tensors))
    done = cli("run", tmp_path, words(PROMPT), "-n", 8)
    assert (done.code, done.out) == (2, words(spoken[:5]) + "\n")
    assert done.err.startswith("error: the model's output is not finite")


def test_a_text_beyond_what_a_model_was_made_for_is_noted(cli: Cli, tmp_path: Path) -> None:
    folder = tiny.write(tmp_path, max_position_embeddings=8)
    assert "note: this model was made for texts of up to 8 tokens" in cli("run", folder, "--ids", "5,6", "-n", 7).err
    assert "note" not in cli("run", folder, "--ids", "5,6", "-n", 6).err
    tokenizer(folder)
    assert "note" not in cli("run", folder, "w5", "-n", 99, "--stop", "w").err  # it ended before


def test_a_model_that_was_run_can_be_pickled(model: wk.Model) -> None:
    want = model.logits(PROMPT)
    assert np.array_equal(pickle.loads(pickle.dumps(model)).logits(PROMPT), want)


FAULTS = [
    ("model.embed_tokens.weight", np.nan, "the first NaN appears at embed, from NaN in embed;"),
    ("model.layers.1.self_attn.v_proj.weight", np.inf, r"layers\.1\.attn\.v, from Inf in layers\.1\.attn\.v;"),
    ("model.layers.1.mlp.up_proj.weight", np.nan, r"layers\.1\.ffn\.pre|post, from NaN in layers\.1\.ffn\.up;"),
    ("model.norm.weight", np.nan, "the first NaN appears at norm, from NaN in norm;"),
    ("lm_head.weight", np.inf, "appears at logits, from Inf in lm_head;"),
]


@pytest.mark.parametrize(("name", "value", "message"), FAULTS)
def test_where_the_first_nan_appears_is_said(name: str, value: float, message: str, tmp_path: Path) -> None:
    tensors = tiny.weights(tiny.CONFIGS["llama"])
    tensors[name][3] = value
    model = wk.open(tiny.write(tmp_path, tensors=tensors))
    for run in (lambda: model.generate([3, 4, 3], 3), lambda: model.next_tokens([3, 4, 3])):
        with pytest.raises(EngineError, match=f"output is not finite.*{message} weightkit check"):
            run()


def test_numbers_that_grow_too_large_are_said(tmp_path: Path) -> None:
    tensors = tiny.weights(tiny.CONFIGS["llama"])
    tensors["model.layers.1.mlp.up_proj.weight"][:] = 1e30
    tensors["model.layers.1.mlp.down_proj.weight"][:] = 1e30
    with pytest.raises(EngineError, match=r"appears at layers\.1\.ffn\.out, from large numbers"):
        wk.open(tiny.write(tmp_path, tensors=tensors)).generate(PROMPT, 3)


def test_the_first_nan_in_an_encoder(tmp_path: Path) -> None:
    model = running.opened(tmp_path, "t5").apply(
        wk.scale("encoder.layers.1.ffn.down", 3e38), wk.scale("encoder.layers.1.ffn.up", 3e38)
    )
    with pytest.raises(EngineError, match=r"appears at encoder\.layers\.1\.ffn\.\w+, from large numbers"):
        model.generate([3, 4], 2)


def test_very_large_weights_run_as_in_transformers(tmp_path: Path) -> None:
    """The square in the norm overflows, so the norm is 0: no reason for numpy to write to stderr."""
    tensors = tiny.weights(tiny.CONFIGS["llama"])
    tensors["model.layers.1.mlp.up_proj.weight"][3] = 1e30
    assert not wk.open(tiny.write(tmp_path, tensors=tensors)).logits(PROMPT).any()


def test_what_is_not_read_need_not_be_finite(tmp_path: Path) -> None:
    tensors = tiny.weights(tiny.CONFIGS["llama"])
    tensors["model.embed_tokens.weight"][3] = np.nan
    assert len(wk.open(tiny.write(tmp_path, tensors=tensors)).generate(PROMPT, 1)) == 4


def test_next_tokens_are_the_likeliest_first(model: wk.Model) -> None:
    table, logits = model.next_tokens(PROMPT, 5), model.logits(PROMPT)[-1].astype(np.float64)
    p = np.exp(logits - logits.max())
    assert [row.id for row in table] == np.argsort(-logits)[:5].tolist()
    assert [row.logit for row in table] == [logits[row.id] for row in table]
    np.testing.assert_allclose([row.probability for row in table], [(p / p.sum())[row.id] for row in table], rtol=1e-5)
    assert [row.token for row in table] == [f"<{row.id}>" for row in table]
    assert len(model.next_tokens(PROMPT, 500)) == 97


# ── models that do not continue a text ───────────────────────────────────────────────────────────────


def masked(folder: Path, variant: str = "bert", mask: str = "[MASK]", **settings: Any) -> wk.Model:
    """A masked language model of the words a, w1, w2, …, of which the last is the mask."""
    tokenizer(families.write(folder, variant), 96)
    path = folder / "tokenizer.json"
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"added_tokens": [{"id": 96, "content": mask, **flags}]}))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return wk.open(folder)


@pytest.mark.parametrize(
    ("variant", "mask", "settings"),
    [
        ("bert", "[MASK]", {}),
        ("roberta", "<mask>", {}),
        ("distilbert", "<?>", {"mask_token": "<?>"}),
        ("bert", "<?>", {"mask_token": {"content": "<?>", "lstrip": True}}),
    ],
)
def test_each_mask_is_filled(variant: str, mask: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = masked(tmp_path, variant, mask, **settings)
    logits = model.logits([7, 96, 9, 96])
    first, second = model.fill(f"w7 {mask} w9{mask}", 4)
    assert [row.id for row in first] == np.argsort(-logits[1])[:4].tolist()
    assert [row.logit for row in second] == [logits[3, row.id] for row in second]
    assert first == model.fill([7, 96, 9, 96], 4)[0]


def test_a_masked_model_is_not_asked_for_what_comes_next(tmp_path: Path) -> None:
    model = masked(tmp_path)
    with pytest.raises(EngineError, match=r"put \[MASK\] where"):
        model.fill("w7 w8")
    for ask in (model.next_tokens, model.generate):
        with pytest.raises(EngineError, match="does not continue a text"):
            ask("w7 [MASK]")


def test_a_model_that_continues_a_text_fills_no_mask(model: wk.Model) -> None:
    with pytest.raises(EngineError, match="continues a text"):
        model.fill(PROMPT)


def test_no_mask_without_a_token_for_it(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no mask token"):
        masked(tmp_path, mask="<other>").fill("w7")


def test_a_model_with_an_encoder_gives_its_answer_alone(tmp_path: Path) -> None:
    model = wk.open(tokenizer(families.write(tmp_path, "t5")))
    written: list[int] = []
    for _ in range(6):
        written.append(int(np.argmax(model.logits([5, 7], decoder_ids=[0, *written])[-1])))
    assert model.generate([5, 7], 6) == written
    assert model.generate("w5 w7", 6, ignore_eos=True) == words(written)
    table = model.next_tokens([5, 7], 3, decoder_ids=[0, *written])
    assert table[0].id == model.generate([5, 7], 7)[-1]
