"""The engine against transformers: stored logits, streams and texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import weightkit as wk
from tests import make_golden as golden
from tests import tiny
from tests.oracle import MASKED
from weightkit.engine import weights
from weightkit.engine.cache import Cache
from weightkit.engine.forward import Engine
from weightkit.errors import EngineError, FormatError, WeightkitError

TOLERANCE = 2e-5  # of max |Δlogit| / std(logit), as float32 sums in another order differ
SHARED = ("stories260K", "cappgpt-v1", "cappgpt-v2", "slm4096")

F32 = NDArray[np.float32]


def error(got: F32, want: F32) -> float:
    return float(np.abs(got - want).max() / want.std())


class Streams:
    """A tap that keeps the residual stream before each block, and the normed one after the last."""

    def __init__(self) -> None:
        self.kept: list[F32] = []

    def __call__(self, address: str, x: F32) -> F32:
        if self.wants(address):
            self.kept.append(x)
        return x

    def wants(self, address: str) -> bool:
        return address == "norm" or (address.startswith("layers.") and address.endswith(".in"))


def residuals(engine: Engine, ids: Any, cache: Cache | None = None) -> list[F32]:
    tap = Streams()
    engine.logits(ids, cache, tap=tap)
    return tap.kept


# ── parity with transformers ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("family", "name"), golden.CASES)
def test_logits_are_those_of_transformers(family: str, name: str, tmp_path: Path) -> None:
    model, kept = wk.open(golden.write(tmp_path, family, name)), golden.read(family, name)
    ids, decoder_ids = kept.ids, kept.decoder_ids
    assert kept.error(model.logits(ids, decoder_ids=decoder_ids)) < TOLERANCE
    for row, want in enumerate(kept.logits):
        alone = model.logits(ids[row], decoder_ids=None if decoder_ids is None else decoder_ids[row])
        assert error(alone[kept.positions], want) < TOLERANCE
    twice = model.logits(
        np.tile(ids, (2, 1)), decoder_ids=None if decoder_ids is None else np.tile(decoder_ids, (2, 1))
    )
    assert kept.error(twice[:2]) < TOLERANCE
    assert kept.error(twice[2:]) < TOLERANCE


def test_a_decoder_begins_with_its_own_token(tmp_path: Path) -> None:
    folder, ids = golden.write(tmp_path, "t5", "plain"), golden.read("t5", "plain").ids
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "decoder_start_token_id": 7}))
    model = wk.open(folder)
    assert np.array_equal(model.logits(ids), model.logits(ids, decoder_ids=[[7], [7]]))


@pytest.mark.parametrize(("family", "name"), golden.CASES)
def test_golden_files_are_of_the_variants_as_they_are(family: str, name: str) -> None:
    kept = golden.read(family, name)
    assert kept.config == golden.config_of(family, name)
    assert np.array_equal(kept.ids, golden.ids_of(family, name))


@pytest.mark.parametrize(("family", "prefix"), [("llama", "model."), ("gpt2", "transformer.")])
def test_names_without_their_prefix_are_the_same_model(family: str, prefix: str, tmp_path: Path) -> None:
    made = tiny.weights(tiny.CONFIGS[family])
    with_prefix = wk.open(tiny.write(tmp_path / "with", family))
    bare = {name.removeprefix(prefix): array for name, array in made.items()}
    without = wk.open(tiny.write(tmp_path / "without", family, tensors=bare))
    assert np.array_equal(with_prefix.logits([1, 2, 3]), without.logits([1, 2, 3]))


# What transformers' config classes do with keys that are not theirs, or that come twice. Each of these
# has the logits of the plain variant, measured with transformers 5.23.
STRAY_KEYS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-window": ("llama", {"sliding_window": 5}),
    "llama-layer-types": ("llama", {"sliding_window": 5, "layer_types": ["sliding_attention"] * 3}),
    "llama-partial-rotary": ("llama", {"partial_rotary_factor": 0.5}),
    "mistral-use-window": ("mistral", {"use_sliding_window": False}),
    "gpt2-window": ("gpt2", {"sliding_window": 5}),
    "gpt2-hidden-act": ("gpt2", {"hidden_act": "relu"}),
    "gpt2-rms-norm-eps": ("gpt2", {"rms_norm_eps": 0.5}),
}


@pytest.mark.parametrize("case", STRAY_KEYS)
def test_keys_that_a_family_does_not_read_change_nothing(case: str, tmp_path: Path) -> None:
    family, keys = STRAY_KEYS[case]
    plain = wk.open(tiny.write(tmp_path / "plain", family))
    stray = wk.open(tiny.write(tmp_path / "stray", family, **keys))
    ids = list(range(24))
    assert np.array_equal(stray.logits(ids), plain.logits(ids))


def test_rope_scaling_wins_over_rope_parameters_as_in_transformers(tmp_path: Path) -> None:
    new = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    both = wk.open(tiny.write(tmp_path / "both", rope_parameters=new, rope_scaling={"type": "linear", "factor": 4.0}))
    old = wk.open(tiny.write(tmp_path / "old", rope_scaling={"type": "linear", "factor": 4.0}))
    assert np.array_equal(both.logits([1, 2, 3, 4]), old.logits([1, 2, 3, 4]))


# ── the shared checkpoints ───────────────────────────────────────────────────────────────────────────


def reference(shared: Path, name: str) -> dict[str, NDArray[Any]]:
    with np.load(shared / "models" / "reference" / f"{name}.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", SHARED)
def test_trained_models_give_the_logits_and_streams_of_transformers(shared: Path, name: str) -> None:
    model, want = wk.open(shared / "models" / name), reference(shared, name)
    assert error(model.logits(want["ids"]), want["logits"]) < TOLERANCE
    streams = residuals(model.engine, want["ids"])
    for layer, got in enumerate(streams):
        assert error(got, want[f"hidden_{layer}"]) < TOLERANCE


@pytest.mark.parametrize("name", SHARED)
def test_trained_models_write_the_text_of_transformers(shared: Path, name: str) -> None:
    want = reference(shared, name)
    assert wk.open(shared / "models" / name).generate(want["ids"][0].tolist(), 64) == want["greedy"][0].tolist()


@pytest.mark.parametrize(
    ("folder", "least", "most"), [("st-sharded", 0, 0), ("st-fp16", 1e-4, 0.02), ("st-bf16", 0.01, 0.1)]
)
def test_other_formats_are_as_close_as_their_type_allows(shared: Path, folder: str, least: float, most: float) -> None:
    ids = reference(shared, "stories260K")["ids"]
    original = wk.open(shared / "models" / "stories260K").logits(ids)
    other = wk.open(shared / "models" / "stories260K-formats" / folder).logits(ids)
    assert least <= np.abs(other - original).max() <= most


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_shards_and_types_do_not_change_what_is_computed(family: str, dtype: str, tmp_path: Path) -> None:
    single = wk.open(tiny.write(tmp_path / "single", family, dtype=dtype))
    sharded = wk.open(tiny.write(tmp_path / "sharded", family, dtype=dtype, shards=3))
    rounded = {k: v.astype(tiny.NUMPY[dtype]).astype(np.float32) for k, v in tiny.weights(tiny.CONFIGS[family]).items()}
    widened = wk.open(tiny.write(tmp_path / "widened", family, tensors=rounded))
    ids = [5, 6, 7, 96]
    assert np.array_equal(single.logits(ids), sharded.logits(ids))
    assert np.array_equal(single.logits(ids), widened.logits(ids))


# ── the cache ────────────────────────────────────────────────────────────────────────────────────────

CACHED = [
    ("llama", "plain"),
    ("llama", "dynamic-long"),  # the frequencies change at every token past position 16
    ("llama", "longrope-long"),  # and here once, at 16
    ("llama", "yarn"),
    ("mistral", "window"),
    ("mistral", "window-of-one"),
    ("qwen2", "layer-types"),
    ("qwen3", "bias"),
    ("gpt2", "full-length"),
]


CAUSAL = [(family, name) for family, name in golden.CASES if family not in MASKED]
STEPS = [(*case, [13, 1, 4]) for case in CAUSAL] + [(*case, chunks) for case in CACHED for chunks in ([1], [5, 2])]


@pytest.mark.parametrize(("family", "name", "chunks"), STEPS, ids=str)
def test_cache_on_equals_cache_off(family: str, name: str, chunks: Sequence[int], tmp_path: Path) -> None:
    engine, kept = wk.open(golden.write(tmp_path, family, name)).engine, golden.read(family, name)
    ids, source = kept.ids, None
    if kept.decoder_ids is not None:
        ids, source = kept.decoder_ids, engine.encode(kept.ids)
    cache, start, turn = Cache(), 0, 0
    spread = kept.logits.std()  # of a whole text: that of a token alone can be a fraction of it
    while start < ids.shape[1]:
        stop = min(start + chunks[turn % len(chunks)], ids.shape[1])
        got = engine.logits(ids[:, start:stop], cache, source=source)
        want = engine.logits(ids[:, :stop], source=source)[:, start:]
        assert np.abs(got - want).max() / spread < 2 * TOLERANCE  # each of them can be as far from the truth as one may
        assert len(cache) == stop
        assert np.array_equal(cache.ids, ids[:, :stop])
        start, turn = stop, turn + 1
    assert np.abs(got[:, -1] - kept.logits[:, -1]).max() / spread < TOLERANCE


def test_cached_keys_are_not_shared_between_caches(tmp_path: Path) -> None:
    engine = wk.open(tiny.write(tmp_path)).engine
    one, other = Cache(), Cache()
    engine.logits([1, 2, 3], one)
    engine.logits([4, 5], other)
    assert error(engine.logits([6], one), engine.logits([1, 2, 3, 6])[:, -1:]) < TOLERANCE


# ── what cannot be run ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([97], "id 97 is not in the vocabulary, which goes from 0 to 96"),
        ([1, -1], "id -1 is not in the vocabulary"),
        ([[1, 2], [3, 400]], "id 400 is not"),
        ([1.0, 2.0], "whole numbers"),
        ([[1, 2], 3], "one length"),
        ([[1, 2], []], "at least one"),
        ([], "at least one"),
        ([[]], "at least one"),
        ([True], "whole numbers"),
        ([2**70], "id 1180591620717411303424 is not in the vocabulary"),
        ([[[1]]], "whole numbers"),
        ("text", "no tokenizer.json"),
        (None, "whole numbers"),
    ],
)
def test_ids_that_are_not(ids: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=message):
        wk.open(tiny.write(tmp_path)).logits(ids)


def test_more_tokens_than_learned_positions(tmp_path: Path) -> None:
    model = wk.open(tiny.write(tmp_path, "gpt2", n_positions=8))
    assert model.logits(range(8)).shape == (8, 97)
    with pytest.raises(EngineError, match="9 tokens are more than the 8 positions"):
        model.logits(range(9))
    cache = Cache()
    model.engine.logits(list(range(8)), cache)
    with pytest.raises(EngineError, match="9 tokens"):
        model.engine.logits([1], cache)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"hidden_act": "prelu"}, "no activation 'prelu'"),
        ("llama", {"model_type": "rwkv"}, "'rwkv' is not known .*llama.*"),
        ("gpt2", {"tie_word_embeddings": False}, "lm_head is not in the files"),
    ],
)
def test_models_that_cannot_be_run(family: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = wk.open(tiny.write(tmp_path, family, tensors=tiny.weights(tiny.CONFIGS[family]), **changes))
    with pytest.raises(EngineError, match=message):
        model.logits([1])


def test_a_decoder_of_another_encoder_cannot_be_run(tmp_path: Path) -> None:
    rng, width = np.random.default_rng(0), 48
    shapes: dict[str, tuple[int, ...]] = {"ln_cross_attn.weight": (width,), "ln_cross_attn.bias": (width,)}
    for part, out in (("q_attn", width), ("c_attn", 2 * width), ("c_proj", width)):
        shapes |= {f"crossattention.{part}.weight": (width, out), f"crossattention.{part}.bias": (out,)}
    tensors = tiny.weights(tiny.CONFIGS["gpt2"])
    for layer in range(tiny.CONFIGS["gpt2"]["n_layer"]):
        for name, shape in shapes.items():
            tensors[f"transformer.h.{layer}.{name}"] = rng.standard_normal(shape).astype(np.float32)
    model = wk.open(tiny.write(tmp_path, "gpt2", tensors=tensors, add_cross_attention=True))
    with pytest.raises(EngineError, match="attends to an encoder"):
        model.logits([1])


def test_a_config_alone_cannot_be_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.CONFIGS["llama"]))
    with pytest.raises(FormatError, match=r"only a config\.json or an index was opened"):
        wk.open(tmp_path / "config.json").logits([1])


LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 16, "long_factor": golden.LONG}


@pytest.mark.parametrize(
    "changes",
    [{"head_dim": 11}, {"rope_scaling": {**LONGROPE, "short_factor": [1.0, 2.0]}}],
    ids=["odd-head-dim", "longrope-of-another-length"],
)
def test_positions_that_do_not_fit_are_said_in_plain_words(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(WeightkitError):
        wk.open(tiny.write(tmp_path, **changes)).logits([1, 2])


def test_one_model_in_many_threads(tmp_path: Path) -> None:
    model = wk.open(tiny.write(tmp_path))
    ids = (np.arange(40) * 7 % 97).tolist()
    want = model.logits(ids)
    with ThreadPoolExecutor(4) as pool:
        assert all(np.array_equal(got, want) for got in pool.map(model.logits, [ids] * 40))


@pytest.mark.parametrize("tokens", [1, 20, 300])
def test_logits_do_not_depend_on_threads(tmp_path: Path, tokens: int) -> None:
    ids = [number % 90 for number in range(tokens)]
    found = []
    for count in (1, 2, 3):
        wk.set_threads(count)
        found.append(wk.open("demo").logits(ids))
    wk.set_threads()
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_without_compiled_loops_the_logits_are_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = list(range(40))
    want = wk.open("demo").logits(ids)
    monkeypatch.setattr(weights, "available", lambda: False)
    assert error(wk.open("demo").logits(ids), want) < TOLERANCE


def test_logits_of_the_last_token_alone() -> None:
    engine, ids = wk.open("demo").engine, list(range(40))
    last = engine.logits(ids, last=True)
    assert last.shape == (1, 1, engine.config.vocab)
    assert error(last[:, 0], engine.logits(ids)[:, -1]) < TOLERANCE


@pytest.mark.parametrize("tokens", [5, 40])
def test_an_edit_that_changes_nothing_has_no_effect(tmp_path: Path, tokens: int) -> None:
    model = wk.open("demo")
    edited = model.apply(wk.scale("layers.*.attn.q", 1.0), wk.scale("embed", 1.0))
    ids = list(range(tokens))
    assert np.array_equal(model.logits(ids), edited.logits(ids))
