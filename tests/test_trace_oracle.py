"""Activations against what torch's hooks see in transformers, and changes against hooks that do the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import weightkit as wk
from tests import oracle, running
from tests.running import IDS

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

TOLERANCE = 2e-5  # of max |Δ| / std
DECODER_IDS = [0, 7, 31, 4]

F32 = NDArray[np.float32]


class Modules(NamedTuple):
    """Where transformers has what a block is made of, below a layer."""

    layers: str
    qkv: tuple[str, ...]  # q, k and v, or all in one
    o: str
    attention_added: str  # the module whose output is added to the stream
    up: str  # whose output the activation function takes
    down: str
    ffn_added: str
    ffn_from: str  # the module that is given the stream between attention and FFN; none where they run in parallel


LLAMA = Modules(
    "model.layers",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.down_proj",
    "mlp",
    "post_attention_layernorm",
)
GEMMA2 = LLAMA._replace(
    attention_added="post_attention_layernorm",
    ffn_added="post_feedforward_layernorm",
    ffn_from="pre_feedforward_layernorm",
)
GPT2 = Modules("transformer.h", ("attn.c_attn",), "attn.c_proj", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "mlp", "ln_2")
BERT = Modules(
    "bert.encoder.layer",
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output.dense",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
    "output.dense",
    "intermediate.dense",
)
FAMILIES = {"llama": LLAMA, "gemma2": GEMMA2, "gpt2": GPT2, "qwen2_moe": LLAMA, "bert": BERT}
FAMILIES["phi"] = LLAMA._replace(
    o="self_attn.dense",
    attention_added="self_attn.dense",
    up="mlp.fc1",
    down="mlp.fc2",
    ffn_added="mlp.fc2",
    ffn_from="",
)
ROTATED = ("llama", "gemma2", "qwen2_moe", "phi")
every_family = pytest.mark.parametrize("family", FAMILIES)
LAYER = 1  # of qwen2_moe, a dense one


def error(got: F32, want: F32) -> float:
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / want.std())


def run(theirs: Any, **options: Any) -> Any:
    if theirs.config.model_type == "t5":
        options["decoder_input_ids"] = torch.tensor([DECODER_IDS])
    with torch.no_grad():
        return theirs(input_ids=torch.tensor([IDS]), **options)


def seen(theirs: Any, names: list[str]) -> dict[str, tuple[F32, F32]]:
    """What goes into modules and comes out of them, without the batch."""
    kept: dict[str, tuple[F32, F32]] = {}

    def keep(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(_module: Any, inputs: Any, output: Any) -> None:
            out = output[0] if isinstance(output, tuple) else output
            kept[name] = inputs[0].numpy().squeeze(0), out.numpy().squeeze(0)

        return hook

    hooks = [theirs.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    run(theirs)
    for hook in hooks:
        hook.remove()
    return kept


def by_head(x: F32, heads: int) -> F32:  # [t, heads · d] -> [heads, t, d]
    return x.reshape(len(x), heads, -1).swapaxes(0, 1)


@every_family
def test_streams_and_patterns(family: str, tmp_path: Path) -> None:
    folder = running.write(tmp_path, family)
    traced = wk.open(folder).trace(IDS, ["*"])
    theirs = run(oracle.load(folder), output_hidden_states=True, output_attentions=True)
    for layer, (state, pattern) in enumerate(zip(theirs.hidden_states[:-1], theirs.attentions, strict=True)):
        assert error(traced[f"layers.{layer}.in"], state[0].numpy()) < TOLERANCE
        assert error(traced[f"layers.{layer}.attn.pattern"], pattern[0].numpy()) < TOLERANCE
    assert error(traced["norm"], theirs.hidden_states[-1][0].numpy()) < TOLERANCE
    assert error(traced.logits, theirs.logits[0].numpy()) < TOLERANCE


def test_both_stacks_of_t5(tmp_path: Path) -> None:
    folder = running.write(tmp_path, "t5-v1_1")
    traced = wk.open(folder).trace(IDS, ["*"], decoder_ids=DECODER_IDS)
    theirs = run(oracle.load(folder), output_hidden_states=True, output_attentions=True)
    for stack in ("encoder", "decoder"):
        states, patterns = getattr(theirs, f"{stack}_hidden_states"), getattr(theirs, f"{stack}_attentions")
        for layer, (state, pattern) in enumerate(zip(states[:-1], patterns, strict=True)):
            assert error(traced[f"{stack}.layers.{layer}.in"], state[0].numpy()) < TOLERANCE
            assert error(traced[f"{stack}.layers.{layer}.attn.pattern"], pattern[0].numpy()) < TOLERANCE
        assert error(traced[f"{stack}.norm"], states[-1][0].numpy()) < TOLERANCE
    for layer, pattern in enumerate(theirs.cross_attentions):
        assert error(traced[f"decoder.layers.{layer}.cross.pattern"], pattern[0].numpy()) < TOLERANCE
    assert error(traced.logits, theirs.logits[0].numpy()) < TOLERANCE


@every_family
def test_what_is_inside_a_layer(family: str, tmp_path: Path) -> None:
    folder, modules = running.write(tmp_path, family), FAMILIES[family]
    at = f"{modules.layers}.{LAYER}."
    kept = seen(oracle.load(folder), [at + name for name in {*modules.qkv, *modules[2:]} if name])
    model = wk.open(folder)
    traced = model.trace(IDS, [f"layers.{LAYER}"])
    ours = {name.removeprefix(f"layers.{LAYER}."): x for name, x in traced.items()}
    if len(modules.qkv) == 1:
        q, k, v = np.split(kept[at + modules.qkv[0]][1], 3, axis=-1)
    else:
        q, k, v = (kept[at + name][1] for name in modules.qkv)
    want = {"v": by_head(v, len(ours["attn.v"])), "heads": by_head(kept[at + modules.o][0], 4)}
    if family not in ROTATED:
        want |= {"q": by_head(q, 4), "k": by_head(k, 4)}
    for name, x in want.items():
        assert error(ours[f"attn.{name}"], x) < TOLERANCE, name
    assert error(ours["attn.out"], kept[at + modules.attention_added][1]) < TOLERANCE
    assert ("mid" in ours) == bool(modules.ffn_from)
    if modules.ffn_from:
        assert error(ours["mid"], kept[at + modules.ffn_from][0]) < TOLERANCE
    assert error(ours["ffn.pre"], kept[at + modules.up][1]) < TOLERANCE
    assert error(ours["ffn.post"], kept[at + modules.down][0]) < TOLERANCE
    assert error(ours["ffn.out"], kept[at + modules.ffn_added][1]) < TOLERANCE


def test_the_router(tmp_path: Path) -> None:
    folder = running.write(tmp_path, "qwen2_moe")
    theirs = oracle.load(folder)
    kept: list[Any] = []
    hook = theirs.get_submodule("model.layers.2.mlp.gate").register_forward_hook(lambda *args: kept.append(args[2]))
    run(theirs)
    hook.remove()
    scores, _, chosen = kept[0]
    traced = wk.open(folder).trace(IDS, ["layers.2.ffn"])
    assert error(traced["layers.2.ffn.router"], scores.numpy()) < TOLERANCE
    assert np.array_equal(traced["layers.2.ffn.experts"], chosen.numpy())


# ── changes ──────────────────────────────────────────────────────────────────────────────────────────


def changed(theirs: Any, name: str, *, before: bool, change: Callable[[Any], None]) -> F32:
    """The logits where a hook changes what goes into a module, or comes out of it."""
    module = theirs.get_submodule(name)

    def hook_before(_module: Any, inputs: Any) -> Any:
        x = inputs[0].clone()
        change(x)
        return (x, *inputs[1:])

    def hook_after(_module: Any, _inputs: Any, output: Any) -> Any:
        x = (output[0] if isinstance(output, tuple) else output).clone()
        change(x)
        return (x, *output[1:]) if isinstance(output, tuple) else x

    hook = module.register_forward_pre_hook(hook_before) if before else module.register_forward_hook(hook_after)
    logits = run(theirs).logits[0].numpy()
    hook.remove()
    return np.asarray(logits)


def put(index: Any, value: float, *, times: bool = False) -> Callable[[Any], None]:
    def change(x: Any) -> None:
        x[index] = x[index] * value if times else value

    return change


@every_family
def test_changes_are_those_of_hooks(family: str, tmp_path: Path) -> None:
    folder, modules = running.write(tmp_path, family), FAMILIES[family]
    model, theirs = wk.open(folder), oracle.load(folder)
    at, ours = f"{modules.layers}.{LAYER}.", f"layers.{LAYER}"
    d = model.trace(IDS, [f"{ours}.attn.heads"])[f"{ours}.attn.heads"].shape[-1]
    cases: list[tuple[Any, str, bool, Callable[[Any], None]]] = [
        (wk.zero(f"{ours}.attn.heads[head=2]"), modules.o, True, put(np.s_[..., 2 * d : 3 * d], 0)),
        (
            wk.scale(f"{ours}.ffn.post[position=4:, neuron=:9]", 3),
            modules.down,
            True,
            put(np.s_[:, 4:, :9], 3, times=True),
        ),
        (wk.replace(f"{ours}.ffn.pre[neuron=7]", 0.5), modules.up, False, put(np.s_[..., 7], 0.5)),
        (wk.set(f"{ours}.attn.out[position=-1]", 0.3), modules.attention_added, False, put(np.s_[:, -1], 0.3)),
        (wk.scale(f"{ours}.ffn.out", -1.0), modules.ffn_added, False, put(np.s_[:], -1, times=True)),
        (wk.zero(f"{ours}.out[residual=0:8]"), "", False, put(np.s_[..., :8], 0)),
    ]
    plain = run(theirs).logits[0].numpy()
    for change, name, before, hook in cases:
        want = changed(theirs, (at + name).rstrip("."), before=before, change=hook)
        assert error(model.trace(IDS, (), [change]).logits, want) < TOLERANCE, str(change)
        assert error(want, plain) > 1e-3
