"""The address language: what it reads, how it prints, what it matches, what it says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from weightkit.address import Address, Index, Segment, parse
from weightkit.assembly import open_registry
from weightkit.checkpoint import open_checkpoint
from weightkit.dtypes import DTYPES
from weightkit.errors import AddressError
from weightkit.registry import Registry, unnamed
from weightkit.tensor import Tensor

# ── reading and printing ────────────────────────────────────────────────────────────────────────────

WHOLE = st.integers(-999, 999)
SLICES = st.builds(slice, st.none() | WHOLE, st.none() | WHOLE, st.none() | st.integers(2, 9))
AXES = st.sampled_from(["token", "position", "residual", "head", "kv_head", "neuron", "expert"])
NAMED = st.lists(st.builds(Index, AXES, WHOLE | SLICES | st.text(max_size=8)), max_size=3).map(tuple)
PLACED = st.lists(st.builds(Index, st.none(), WHOLE | SLICES), max_size=3).map(tuple)
LAYERS: st.SearchStrategy[Segment] = WHOLE | SLICES | st.just("*")
BELOW = st.sampled_from(
    """attn ffn attn.q attn.k attn.v attn.o attn.q.bias attn.q.norm attn.norm ffn.gate ffn.up ffn.down ffn.up.bias
    ffn.norm *.norm attn.* * ffn.router ffn.experts.3.up ffn.experts.*.down ffn.shared.up""".split()
)


def _path(layer: Segment, below: str) -> tuple[Segment, ...]:
    return ("layers", layer, *(int(part) if part.isdecimal() else part for part in below.split(".")))


PATHS: st.SearchStrategy[tuple[Segment, ...]] = st.builds(_path, LAYERS, BELOW) | st.sampled_from(
    [("embed",), ("embed", "position"), ("norm",), ("norm", "bias"), ("lm_head",), ("*",)]
)


@settings(deadline=None, max_examples=50)
@given(st.builds(Address, PATHS, NAMED | PLACED))
def test_what_is_printed_is_read_as_the_same(address: Address) -> None:
    assert parse(str(address)) == address


@settings(deadline=None)
@given(st.text(max_size=12).filter(lambda text: "[" not in text and text == text.strip()), NAMED | PLACED)
def test_names_are_printed_and_read_as_the_same(name: str, index: tuple[Index, ...]) -> None:
    again = parse(str(Address(name=name, index=index)))
    assert (again.name, again.index) == (name, index)


# What people call it elsewhere, by the place where it stands.
ALIASES = {
    "layers.2": "h.2 blocks.2 block.2 layer.2 model.layers.2 transformer.h.2 LAYERS.2 layers.02",
    "embed": "wte W_E embed_tokens tok_embeddings word_embeddings embedding embeddings embed_in Embed "
    "model.embed_tokens transformer.wte.weight embed.weight",
    "embed.position": "wpe W_pos pos_embed position_embeddings embed_positions transformer.wpe.weight",
    "norm": "ln_f ln_final final_norm final_layer_norm norm_f model.norm.weight",
    "norm.bias": "ln_f.bias transformer.ln_f.bias",
    "lm_head": "unembed W_U embed_out vocab_projection lm_head.weight",
    "layers.2.attn": "layers.2.self_attn layers.2.attention layers.2.self_attention",
    "layers.2.ffn": "layers.2.mlp layers.2.feed_forward",
    "layers.2.attn.norm": "layers.2.input_layernorm layers.2.ln_1 layers.2.ln1 layers.2.attention_norm",
    "layers.2.ffn.norm": "layers.2.ln_2 layers.2.ln2 layers.2.ffn_norm",
    "layers.2.attn.q": "layers.2.attn.q_proj blocks.2.attn.W_Q layers.2.attention.wq layers.2.attn.query "
    "layers.2.q_proj layers.2.W_Q model.layers.2.self_attn.q_proj.weight layers.2.q",
    "layers.2.attn.k": "layers.2.attn.k_proj blocks.2.attn.W_K layers.2.attention.wk layers.2.attn.key layers.2.k",
    "layers.2.attn.v": "layers.2.attn.v_proj blocks.2.attn.W_V layers.2.attention.wv layers.2.attn.value layers.2.v",
    "layers.2.attn.o": "layers.2.attn.o_proj blocks.2.attn.W_O layers.2.attention.wo layers.2.attn.out_proj "
    "h.2.attn.c_proj layers.2.attention.dense layers.2.o_proj",
    "layers.2.attn.q.bias": "blocks.2.attn.b_Q layers.2.self_attn.q_proj.bias layers.2.b_Q",
    "layers.2.attn.k.bias": "blocks.2.attn.b_K",
    "layers.2.attn.v.bias": "blocks.2.attn.b_V",
    "layers.2.attn.o.bias": "blocks.2.attn.b_O h.2.attn.c_proj.bias",
    "layers.2.attn.q.norm": "layers.2.self_attn.q_norm layers.2.self_attn.q_norm.weight",
    "layers.2.attn.k.norm": "layers.2.self_attn.k_norm",
    "layers.2.ffn.gate": "layers.2.mlp.gate_proj layers.2.mlp.W_gate layers.2.feed_forward.w1 layers.2.gate_proj",
    "layers.2.ffn.up": "layers.2.mlp.up_proj layers.2.mlp.W_up blocks.2.mlp.W_in layers.2.feed_forward.w3 h.2.mlp.c_fc "
    "layers.2.mlp.fc1 layers.2.up_proj layers.2.W_in",
    "layers.2.ffn.down": "layers.2.mlp.down_proj layers.2.mlp.W_down blocks.2.mlp.W_out layers.2.feed_forward.w2 "
    "h.2.mlp.c_proj layers.2.mlp.fc2 layers.2.down layers.2.down_proj.weight",
    "layers.2.ffn.up.bias": "blocks.2.mlp.b_in h.2.mlp.c_fc.bias",
    "layers.2.ffn.down.bias": "blocks.2.mlp.b_out",
    "layers.2.ffn.experts.3.up": "layers.2.mlp.experts.3.up_proj layers.2.mlp.experts.3.w3",
    "layers.*.attn.q": "layers.*.self_attn.q_proj blocks.*.attn.W_Q",
}


@pytest.mark.parametrize(
    ("written", "canonical"), [(written, name) for name, aliases in ALIASES.items() for written in aliases.split()]
)
def test_names_from_other_tools_are_printed_back_in_one_form(written: str, canonical: str) -> None:
    assert str(parse(written)) == canonical
    assert str(parse(canonical)) == canonical
    assert str(parse(f" {written}[0, 1:3] ")) == f"{canonical}[0, 1:3]"


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("layers.7.attn.q[head=3]", "layers.7.attn.q[head=3]"),
        ("layers.7.attn.q[ head = 3 ]", "layers.7.attn.q[head=3]"),
        ("layers.1.ffn.down[3968,7003]", "layers.1.ffn.down[3968, 7003]"),
        ("layers.*.attn.q[ : , 17 ]", "layers.*.attn.q[:, 17]"),
        ("embed[token='Paris']", 'embed[token="Paris"]'),
        ("embed[token='say \"x\"']", 'embed[token="say \\"x\\""]'),
        ('embed[token="it\'s"]', 'embed[token="it\'s"]'),
        ("embed[token='it\\'s']", 'embed[token="it\'s"]'),
        ('embed[token="a]b, c=d"]', 'embed[token="a]b, c=d"]'),
        ("lm_head[token=-1]", "lm_head[token=-1]"),
        ("layers.0.ffn[neuron=0:8:2]", "layers.0.ffn[neuron=0:8:2]"),
        ("layers.0.ffn[neuron=0:8:1]", "layers.0.ffn[neuron=0:8]"),
        ("layers.3:6.attn.q", "layers.3:6.attn.q"),
        ("layers.::2.attn.q", "layers.::2.attn.q"),
        ("name:model.layers.*.o_proj.weight", "name:model.layers.*.o_proj.weight"),
        ("name:x[0,1]", "name:x[0, 1]"),
    ],
)
def test_indexes_are_printed_back_in_one_form(written: str, canonical: str) -> None:
    assert str(parse(written)) == canonical


@pytest.mark.parametrize(
    "text",
    [
        *"[3] [head=3] layers..q .embed embed. layers.3-5.q layers.1:2:0.q q/p 7q layers.9999999999.q".split(),
        *"q[ q[] q[head] q[head=] q[head=3 q[head=3,4] q[head=3][1] q[head=3]x q[::-1] q[1.5] q[1,] q[=3]".split(),
        *(
            'q["Paris"]',
            'q[token="x]',
            "a b",
            "",
            " ",
            "layers.0 .attn",
            "q [head=3, 4]",
            "q[head=3] and more",
            "q[\n]",
        ),
    ],
)
def test_what_cannot_be_read_is_said_in_the_users_own_words(text: str) -> None:
    with pytest.raises(AddressError) as error:
        parse(text)
    assert repr(text.strip()) in str(error.value)
    assert "\n" not in str(error.value)


# ── matching ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A Llama of twelve layers, known by its config alone."""
    path = tmp_path_factory.mktemp("twelve") / "config.json"
    path.write_text(json.dumps({**tiny.CONFIGS["llama"], "num_hidden_layers": 12}))
    return open_registry(open_checkpoint(path))


def layers_of(registry: Registry, address: str) -> list[int | None]:
    return [selection.weight.layer for selection in registry.select(address)]


@pytest.mark.parametrize(
    ("part", "layers"),
    [
        ("1", [1]),
        ("10", [10]),
        ("-1", [11]),
        ("-12", [0]),
        ("3:6", [3, 4, 5]),
        (":2", [0, 1]),
        ("10:", [10, 11]),
        ("-2:", [10, 11]),
        (":-10", [0, 1]),
        ("::4", [0, 4, 8]),
        ("1:9:3", [1, 4, 7]),
        ("8:99", [8, 9, 10, 11]),
        ("*", list(range(12))),
    ],
)
def test_layers_numbers_and_half_open_ranges(twelve: Registry, part: str, layers: list[int]) -> None:
    assert layers_of(twelve, f"layers.{part}.attn.q") == layers
    assert sorted(set(layers_of(twelve, f"layers.{part}"))) == layers  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("layers.1.attn", "attn.norm attn.q attn.k attn.v attn.o"),
        ("layers.1.ffn", "ffn.norm ffn.gate ffn.up ffn.down"),
        ("layers.1", "attn.norm attn.q attn.k attn.v attn.o ffn.norm ffn.gate ffn.up ffn.down"),
        ("layers.1.*.norm", "attn.norm ffn.norm"),
        ("layers.1.attn.*", "attn.norm attn.q attn.k attn.v attn.o"),
        ("layers.1.attn.q", "attn.q"),
        ("layers.1.ffn.*n", "ffn.down"),
    ],
)
def test_an_address_names_itself_or_everything_below(twelve: Registry, address: str, found: str) -> None:
    assert [s.address for s in twelve.select(address)] == [f"layers.1.{below}" for below in found.split()]


def test_a_star_is_everything(twelve: Registry) -> None:
    assert [s.address for s in twelve.select("*")] == list(twelve)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("layers.12.attn.q", "no layer 12; this model has layers 0 to 11"),
        ("layers.-13", "no layer -13"),
        ("layers.6:3", "layers.6:3"),
        ("layers.12:", "layers.12:"),
        ("layers.0.attn.qq", "did you mean 'layers.0.attn.q'"),
        ("layers.0.atn.q", "did you mean 'layers.0.attn.q'"),
        ("embd", "did you mean 'embed'"),
        ("lmhead", "did you mean 'lm_head'"),
        ("layers.0.attn.q.bias", "layers.0.attn.q.bias"),  # this model has none
        ("layers.0.c_proj", "layers.0.c_proj"),  # of attention, or of the FFN?
        ("attn.q", "attn.q"),  # anchored at the root
        ("layers.0.attn.q.norm", "layers.0.attn.q.norm"),
        ("layers.0.attn.q[heads=1]", "heads"),
        ("layers.0.attn.q[neuron=1]", "no weight here has the axis neuron; its axes are head, residual"),
        ("layers.0.attn.q[head=4]", "head goes from 0 to 3, not to 4"),
        ("layers.0.attn.q[head=-5]", "head goes from 0 to 3, not to -5"),
        ("layers.0.attn.q[head=4:9]", "selects nothing"),
        ("layers.0.attn.q[0, 1, 2]", "has 2 dimensions, not 3"),
        ("layers.0.attn.q[48]", "from 0 to 47"),
        ("layers.0.attn.q[head=1, head=2]", "head"),  # which of them?
        ('layers.0.attn.q[head="3"]', "head"),
        ('embed[token="Paris"]', "Paris"),  # there is no tokenizer here
    ],
)
def test_an_address_that_names_nothing_says_why(twelve: Registry, address: str, words: str) -> None:
    with pytest.raises(AddressError) as error:
        twelve.select(address)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


# ── names in the file ───────────────────────────────────────────────────────────────────────────────

ODD = [
    "a",
    "a[0]",
    "b[0]",
    "x*y",
    "xzzy",
    "new\nline",
    " space before",
    "after ",
    "after\n",
    "",
    "name:x",
    "[bold]",
    't["q"]',
]


def named(*names: str) -> Registry:
    """A model of tensors [2, 3] of these names, without roles."""
    return Registry({}, unnamed({n: Tensor(n, DTYPES["F32"], (2, 3), Path("nowhere"), 0) for n in names}))


@pytest.mark.parametrize("name", ODD)
def test_every_name_in_a_file_can_be_addressed(name: str) -> None:
    registry = named(*ODD)
    address = f"name:{name}"
    assert registry[address].name == name
    (found,) = registry.select(address)
    assert (found.name, found.shape) == (name, (2, 3))


@pytest.mark.parametrize("name", ODD)
def test_every_name_in_a_file_is_printed_whole(name: str) -> None:
    registry = named(*ODD)
    (found,) = [s for s in registry.select("name:*") if s.name == name]
    assert found.address == f"name:{name}"


@pytest.mark.parametrize(
    ("address", "names", "shape"),
    [
        ("name:a[1]", ["a"], (1, 3)),
        ("name:b[0][1, :2]", ["b[0]"], (1, 2)),
        ("name:[bold][0]", ["[bold]"], (1, 3)),
        ("name:x*y", ["x*y"], (2, 3)),  # a real name goes before a pattern
        ("name:x*y[0]", ["x*y", "xzzy"], (1, 3)),
        ("name:x*", ["x*y", "xzzy"], (2, 3)),
        ("name:new*", ["new\nline"], (2, 3)),
        ("name:*[0]", ODD, (1, 3)),
    ],
)
def test_indexes_and_patterns_of_names(address: str, names: list[str], shape: tuple[int, ...]) -> None:
    found = named(*ODD).select(address)
    assert [s.name for s in found] == names
    assert {s.shape for s in found} == {shape}


def test_a_name_that_is_not_there_offers_the_nearest() -> None:
    with pytest.raises(AddressError, match=r"wieght: .*did you mean 'name:model\.norm\.weight'"):
        named("model.norm.weight", "lm_head.weight").select("name:model.norm.wieght")


def test_a_model_without_roles_says_to_use_names() -> None:
    with pytest.raises(AddressError, match=r"norm\.weight: .*write name:.*did you mean 'name:model\.norm\.weight'"):
        named("model.norm.weight").select("norm.weight")


@pytest.mark.parametrize(
    "name", ["model.layers.0.post_attention_layernorm.weight", "model.layers.0.mlp.experts.weight"]
)
def test_a_name_of_the_file_pasted_as_an_address_is_recognised(tmp_path: Path, name: str) -> None:
    tensors = tiny.weights(tiny.CONFIGS["llama"])
    tensors["model.layers.0.mlp.experts.weight"] = np.zeros(3, np.float32)
    registry = open_registry(open_checkpoint(tiny.write(tmp_path, tensors=tensors)))
    with pytest.raises(AddressError, match=f"write name:{name}"):
        registry.select(name)
