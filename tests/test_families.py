"""Every family: its files are claimed to the last tensor, counted right, and taken apart as they must be.

`families.json` holds the names and shapes that transformers saves, and its own parameter counts.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import weightkit as wk
from tests.families import VARIANTS
from weightkit.architectures import ARCHITECTURES
from weightkit.config import normalise
from weightkit.config.families import ALIASES, DEFAULTS
from weightkit.layout import join
from weightkit.model import Model
from weightkit.tensor import Tensor

SAVED: dict[str, Any] = json.loads((Path(__file__).parent / "families.json").read_text())
NOT_IN_TRANSFORMERS = {"qwen", "chatglm", "internlm", "mixformer-sequential"}
every_variant = pytest.mark.parametrize("variant", SAVED)

Tensors = dict[str, NDArray[Any]]


def random(variant: str) -> Tensors:
    rng = np.random.default_rng(7)
    shapes = SAVED[variant]["tensors"]
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder: Path, variant: str, tensors: Tensors | None = None, **changes: Any) -> Path:
    """A folder with the variant's config and tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SAVED[variant]["config"] | changes))
    save_file(random(variant) if tensors is None else tensors, folder / "model.safetensors")
    return folder


def opened(folder: Path, variant: str, tensors: Tensors | None = None, **changes: Any) -> Model:
    return wk.open(write(folder, variant, tensors, **changes))


def test_every_variant_has_its_file() -> None:
    assert set(SAVED) == set(VARIANTS)


def test_every_family_has_an_architecture_a_config_and_a_fixture() -> None:
    assert set(ARCHITECTURES) == set(DEFAULTS)
    assert set(ALIASES.values()) <= set(DEFAULTS)
    fixtures = {kind for kind, _ in VARIANTS.values()}
    assert set(ARCHITECTURES) == fixtures | NOT_IN_TRANSFORMERS | {"gemma3"}  # gemma3 is gemma3_text with eyes


@every_variant
def test_every_tensor_is_claimed_and_counted(tmp_path: Path, variant: str) -> None:
    model = opened(tmp_path, variant)
    counts = model.counts()
    assert counts.total == SAVED[variant]["parameters"]
    assert counts.unclaimed == []
    assert model.notes == ()
    stored = sum(math.prod(shape) for shape in SAVED[variant]["tensors"].values())
    assert counts.stored == stored


@every_variant
def test_the_config_alone_describes_the_same(tmp_path: Path, variant: str) -> None:
    folder = write(tmp_path, variant)
    alone = wk.open(folder / "config.json")
    model = wk.open(folder)
    assert [(w.address, w.shape, w.role) for w in alone.registry.values()] == [
        (w.address, w.shape, w.role) for w in model.registry.values()
    ]
    assert alone.counts().total == SAVED[variant]["parameters"]
    assert model.explain().mismatches == []


@every_variant
def test_an_index_without_its_files_is_enough(tmp_path: Path, variant: str) -> None:
    weight_map = dict.fromkeys(SAVED[variant]["tensors"], "model-00001-of-00001.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SAVED[variant]["config"]))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    counts = wk.open(tmp_path).counts()
    assert (counts.total, counts.unclaimed) == (SAVED[variant]["parameters"], [])


@every_variant
def test_without_a_config_the_names_tell(tmp_path: Path, variant: str) -> None:
    folder = write(tmp_path, variant)
    (folder / "config.json").unlink()
    model = wk.open(folder)
    counts = model.counts()
    assert (counts.total, counts.unclaimed, counts.model_type) == (SAVED[variant]["parameters"], [], None)
    assert "no config.json" in " ".join(model.notes)


@every_variant
def test_what_shares_a_tensor_fills_it(tmp_path: Path, variant: str) -> None:
    """Fused layouts are a partition: put together again, their parts are the tensor, each number once."""
    tensors = random(variant)
    model = opened(tmp_path, variant, tensors)
    for name, stored in tensors.items():
        weights = [w for w in model.registry.values() if w.name == name and not w.alias]
        assert sum(w.size for w in weights) == stored.size
        joined = join([w.layout for w in weights], [w.layout.view(stored) for w in weights], stored.shape)
        np.testing.assert_array_equal(joined, stored)


HEADS, KV, HD, D = 4, 2, 12, 48


def concat(w: NDArray[Any], heads: int, kv: int, hd: int) -> list[NDArray[Any]]:
    return np.split(w, [heads * hd, (heads + kv) * hd])


def per_head(w: NDArray[Any], heads: int, _: int, hd: int) -> list[NDArray[Any]]:
    return [part.reshape(heads * hd, *w.shape[1:]) for part in w.reshape(heads, 3, hd, *w.shape[1:]).swapaxes(0, 1)]


def grouped(w: NDArray[Any], heads: int, kv: int, hd: int) -> list[NDArray[Any]]:
    g = w.reshape(kv, heads // kv + 2, hd, *w.shape[1:])
    return [part.reshape(-1, *w.shape[1:]) for part in (g[:, :-2], g[:, -2], g[:, -1])]


def transposed(w: NDArray[Any], heads: int, kv: int, hd: int) -> list[NDArray[Any]]:
    return concat(w.T, heads, kv, hd)


FUSED = {  # variant: (tensor of layer 1, how it is fused, key heads)
    "gpt2": ("transformer.h.1.attn.c_attn", transposed, 4),
    "gpt_bigcode": ("transformer.h.1.attn.c_attn", concat, 1),
    "gpt_bigcode-mha": ("transformer.h.1.attn.c_attn", per_head, 4),
    "gpt_neox": ("gpt_neox.layers.1.attention.query_key_value", per_head, 4),
    "bloom": ("transformer.h.1.self_attention.query_key_value", per_head, 4),
    "mpt": ("transformer.blocks.1.attn.Wqkv", concat, 4),
    "phi3": ("model.layers.1.self_attn.qkv_proj", concat, 2),
    "falcon-7b": ("transformer.h.1.self_attention.query_key_value", concat, 1),
    "falcon-40b": ("transformer.h.1.self_attention.query_key_value", grouped, 2),
    "falcon-11b": ("transformer.h.1.self_attention.query_key_value", grouped, 2),
    "falcon-rw": ("transformer.h.1.self_attention.query_key_value", per_head, 4),
}


@pytest.mark.parametrize("variant", FUSED)
@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_fused_q_k_v_are_what_the_formula_takes_out(tmp_path: Path, variant: str, kind: str) -> None:
    name, fuse, kv = FUSED[variant]
    tensors = random(variant)
    if f"{name}.{kind}" not in tensors:
        pytest.skip("this family has no such bias")
    model = opened(tmp_path, variant, tensors)
    ending = ".bias" if kind == "bias" else ""
    for address, expected in zip("qkv", fuse(tensors[f"{name}.{kind}"], HEADS, kv, HD), strict=True):
        np.testing.assert_array_equal(model[f"layers.1.attn.{address}{ending}"].array(), expected)


def test_attention_to_an_encoder(tmp_path: Path) -> None:
    tensors = random("gpt2-cross")
    model = opened(tmp_path / "gpt2", "gpt2-cross", tensors)
    at = "transformer.h.1.crossattention."
    keys, values = np.split(tensors[at + "c_attn.weight"].T, 2)  # as GPT2Attention splits what it computes with it
    np.testing.assert_array_equal(model["layers.1.cross.q"].array(), tensors[at + "q_attn.weight"].T)
    np.testing.assert_array_equal(model["layers.1.cross.k"].array(), keys)
    np.testing.assert_array_equal(model["layers.1.cross.v"].array(), values)
    np.testing.assert_array_equal(model["layers.1.cross.v[head=2]"].array(), values[24:36])
    np.testing.assert_array_equal(model["layers.1.cross.o"].array(), tensors[at + "c_proj.weight"].T)
    bert = opened(tmp_path / "bert", "bert-cross")
    roles = {w.address.rpartition(".")[2]: str(w.role) for w in bert.registry.values() if "layers.2.cross" in w.address}
    assert roles == {"q": "Q", "k": "K", "v": "V", "o": "O", "bias": "bias", "post_norm": "norm"}


def test_the_mask_of_attention_to_an_encoder_is_a_buffer(tmp_path: Path) -> None:
    mask = {"transformer.h.0.crossattention.bias": np.ones((1, 1, 64, 64), np.float32)}
    model = opened(tmp_path, "gpt2-cross", random("gpt2-cross") | mask)
    assert model.registry.ignored == tuple(mask)


@pytest.mark.parametrize("variant", ["deepseek_v2", "deepseek_v3"])
def test_latent_keys_and_values(tmp_path: Path, variant: str) -> None:
    tensors = random(variant)
    model = opened(tmp_path, variant, tensors)
    a = tensors["model.layers.1.self_attn.kv_a_proj_with_mqa.weight"]
    np.testing.assert_array_equal(model["layers.1.attn.kv_a"].array(), a[:20])
    np.testing.assert_array_equal(model["layers.1.attn.k_rope"].array(), a[20:])
    b = tensors["model.layers.1.self_attn.kv_b_proj.weight"].reshape(4, 22, 20)
    np.testing.assert_array_equal(model["layers.1.attn.k_b"].array(), b[:, :12].reshape(48, 20))
    np.testing.assert_array_equal(model["layers.1.attn.v_b"].array(), b[:, 12:].reshape(40, 20))
    assert model["layers.1.attn.v_b[head=2]"].array().tolist() == b[2, 12:].tolist()


def test_experts_of_gpt_oss_lie_transposed_gate_and_up_by_turns(tmp_path: Path) -> None:
    tensors = random("gpt_oss")
    model = opened(tmp_path, "gpt_oss", tensors)
    both = tensors["model.layers.2.mlp.experts.gate_up_proj"]  # [expert, residual, gate and up]
    np.testing.assert_array_equal(model["layers.2.ffn.experts.3.gate"].array(), both[3, :, 0::2].T)
    np.testing.assert_array_equal(model["layers.2.ffn.experts.3.up"].array(), both[3, :, 1::2].T)
    biases = tensors["model.layers.2.mlp.experts.gate_up_proj_bias"]
    np.testing.assert_array_equal(model["layers.2.ffn.experts.1.up.bias"].array(), biases[1, 1::2])
    down = tensors["model.layers.2.mlp.experts.down_proj"]
    np.testing.assert_array_equal(model["layers.2.ffn.experts.0.down"].array(), down[0].T)


@pytest.mark.parametrize("turned", [False, True])
def test_experts_that_are_stored_together_are_the_same(tmp_path: Path, turned: bool) -> None:
    """As newer Qwen files have them, in either orientation."""
    each = random("qwen3_moe")
    expected = opened(tmp_path / "each", "qwen3_moe", each)
    together = {name: array for name, array in each.items() if ".experts." not in name}
    for layer in range(3):
        at = f"model.layers.{layer}.mlp.experts."
        gate, up, down = (
            np.stack([each[f"{at}{e}.{part}_proj.weight"] for e in range(6)]) for part in ("gate", "up", "down")
        )
        both = np.concatenate([gate, up], axis=1)
        together[at + "gate_up_proj"] = both.swapaxes(1, 2).copy() if turned else both
        together[at + "down_proj"] = down.swapaxes(1, 2).copy() if turned else down
    model = opened(tmp_path / "together", "qwen3_moe", together)
    assert model.counts().unclaimed == []
    assert wk.diff(expected, model).identical


@pytest.mark.parametrize(("variant", "file"), [("gpt_oss", "gate_up_proj"), ("granitemoe", "input_linear.weight")])
def test_an_edit_of_one_expert_changes_only_its_numbers(tmp_path: Path, variant: str, file: str) -> None:
    tensors = random(variant)
    model = opened(tmp_path / "a", variant, tensors)
    model.apply(wk.zero("layers.1.ffn.experts.2.up[neuron=5]")).save(tmp_path / "b")
    saved = wk.open(tmp_path / "b")
    name = next(n for n in tensors if n.endswith(file) and ".1." in n)
    after = saved[f"name:{name}"].array()
    expected = tensors[name].copy()
    if variant == "gpt_oss":
        expected[2, :, 2 * 5 + 1] = 0
    else:
        expected[2, 80 + 5] = 0
    np.testing.assert_array_equal(after, expected)
    (changed,) = wk.diff(model, saved).changed
    assert changed.address == "layers.1.ffn.experts.2.up"


PREFIXED = [
    ("gpt2", "transformer.", ""),
    ("bloom", "transformer.", ""),
    ("opt", "model.decoder.", "decoder."),
    ("llama", "", "module."),
    ("gpt2", "", "model."),
    ("gemma3_text", "", "language_model."),
    ("mamba", "backbone.embeddings", "backbone.embedding"),
    ("bert", "LayerNorm.weight", "LayerNorm.gamma"),
]


@pytest.mark.parametrize(("variant", "old", "new"), PREFIXED)
def test_names_of_other_eras_and_wrappers(tmp_path: Path, variant: str, old: str, new: str) -> None:
    tensors = random(variant)
    renamed = {name.replace(old, new, 1) if old else new + name: array for name, array in tensors.items()}
    assert set(renamed) != set(tensors)
    model = opened(tmp_path / "new", variant, renamed)
    assert model.counts().unclaimed == []
    assert wk.diff(opened(tmp_path / "old", variant, tensors), model).identical


IN_MEMORY = {  # what transformers 5 calls things in memory, and torch.save of a state_dict keeps
    "gpt_neox": {"embed_out.": "lm_head."},
    "mixtral": {"block_sparse_moe.gate.": "mlp.gate."},
    "phimoe": {"block_sparse_moe.gate.": "mlp.router."},
    "granitemoe": {
        "block_sparse_moe.router.layer.weight": "block_sparse_moe.router.weight",
        "block_sparse_moe.input_linear.weight": "block_sparse_moe.experts.gate_up_proj",
        "block_sparse_moe.output_linear.weight": "block_sparse_moe.experts.down_proj",
    },
}


@pytest.mark.parametrize("variant", IN_MEMORY)
def test_names_in_memory(tmp_path: Path, variant: str) -> None:
    tensors = random(variant)
    renamed: Tensors = {}
    for name, array in tensors.items():
        for old, new in IN_MEMORY[variant].items():
            name = name.replace(old, new)
        renamed[name] = array
    if variant in ("mixtral", "phimoe"):
        for layer in range(3):
            at = f"model.layers.{layer}."
            w1, w2, w3 = (
                np.stack([renamed.pop(f"{at}block_sparse_moe.experts.{e}.{w}.weight") for e in range(4)])
                for w in ("w1", "w2", "w3")
            )
            renamed[at + "mlp.experts.gate_up_proj"] = np.concatenate([w1, w3], axis=1)
            renamed[at + "mlp.experts.down_proj"] = w2
    model = opened(tmp_path / "new", variant, renamed)
    assert model.counts().unclaimed == []
    assert wk.diff(opened(tmp_path / "old", variant, tensors), model).identical


HEADS_OF_TASKS = [
    "score.weight",
    "classifier.weight",
    "classifier.bias",
    "qa_outputs.bias",
    "classifier.out_proj.weight",
]


@pytest.mark.parametrize("name", HEADS_OF_TASKS)
@pytest.mark.parametrize("variant", ["llama", "llama-tied", "bert"])
def test_heads_of_tasks_are_weights(tmp_path: Path, variant: str, name: str) -> None:
    tensors = {n: a for n, a in random(variant).items() if "lm_head" not in n and "cls." not in n}
    head = np.ones((2, 48) if name.endswith("weight") else 2, np.float32)
    model = opened(tmp_path, variant, tensors | {name: head})
    assert model.counts().unclaimed == []
    assert model.counts().total == sum(a.size for a in tensors.values()) + head.size
    assert model[f"task.{name.removesuffix('.weight')}"].array().shape == head.shape
    assert model.check().faults == []
    assert "lm_head" not in model


def test_the_head_of_multiple_choices_is_besides_the_vocab_projection(tmp_path: Path) -> None:
    head = {"multiple_choice_head.summary.weight": np.ones((1, 48), np.float32)}
    model = opened(tmp_path, "gpt2", random("gpt2") | head)
    assert model.counts().tied == [["embed", "lm_head"]]


def test_an_encoder_by_itself(tmp_path: Path) -> None:
    tensors = {name: array for name, array in random("t5").items() if not name.startswith("decoder.")}
    model = opened(tmp_path, "t5", tensors)
    counts = model.counts()
    assert counts.total == sum(array.size for array in tensors.values())
    assert not any(address.startswith(("decoder.", "lm_head")) for address in model)
    assert counts.tied == []
    assert counts.kv_cache(1) is None
    matrices = sum(a.size for name, a in tensors.items() if re.search(r"\.(q|k|v|o|wi|wo)\.weight$", name))
    assert counts.flops(7) == 2 * matrices + 2 * 4 * (10 + 10) * 2 * 7
    assert model.check().faults == []


def test_a_bert_without_its_head_ends_with_hidden_states(tmp_path: Path) -> None:
    tensors = {name: array for name, array in random("bert").items() if not name.startswith("cls.")}
    assert "lm_head" not in opened(tmp_path, "bert", tensors)


def test_a_t5_that_keeps_its_embedding_in_the_decoder(tmp_path: Path) -> None:
    tensors = random("t5")
    moved = {name.replace("shared.", "decoder.embed_tokens."): array for name, array in tensors.items()}
    assert wk.diff(opened(tmp_path / "a", "t5", tensors), opened(tmp_path / "b", "t5", moved)).identical


def test_the_config_of_gemma_3_as_it_is_on_the_hub() -> None:
    """It leaves out what its class assumes: heads, key heads, vocabulary."""
    inner = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    config = normalise({"model_type": "gemma3", "text_config": inner}, "")
    assert (config.heads, config.kv_heads, config.head_dim, config.vocab) == (8, 4, 256, 262_208)


def test_a_key_that_a_family_does_not_have_says_nothing(tmp_path: Path) -> None:
    assert opened(tmp_path, "bert", num_key_value_heads=2).counts().total == SAVED["bert"]["parameters"]


BUFFERS: dict[str, dict[str, tuple[int, ...]]] = {
    "gpt2": {"transformer.h.0.attn.bias": (1, 1, 64, 64), "transformer.h.0.attn.masked_bias": ()},
    "gpt_neox": {
        "gpt_neox.layers.0.attention.bias": (1, 1, 64, 64),
        "gpt_neox.layers.0.attention.masked_bias": (),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": (6,),
    },
    "llama": {"model.layers.1.self_attn.rotary_emb.inv_freq": (6,)},
    "bert": {"bert.embeddings.position_ids": (1, 64)},
    "t5": {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": (8, 4)},
}


@pytest.mark.parametrize("variant", BUFFERS)
def test_buffers_are_listed_and_not_counted(tmp_path: Path, variant: str) -> None:
    extra = {name: np.ones(shape, np.float32) for name, shape in BUFFERS[variant].items()}
    model = opened(tmp_path, variant, random(variant) | extra)
    assert model.counts().total == SAVED[variant]["parameters"]
    assert set(model.registry.ignored) == set(extra)
    assert model.counts().unclaimed == []


COPIES = {  # variant: {the address of what the files hold once more: (its name, the name of the original)}
    "llama-tied": {"lm_head": ("lm_head.weight", "model.embed_tokens.weight")},
    "bert": {
        "lm_head": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        "lm_head.decoder.bias": ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    },
    "roberta": {
        "lm_head": ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        "lm_head.decoder.bias": ("lm_head.decoder.bias", "lm_head.bias"),
    },
    "t5": {
        "encoder.embed": ("encoder.embed_tokens.weight", "shared.weight"),
        "decoder.embed": ("decoder.embed_tokens.weight", "shared.weight"),
        "lm_head": ("lm_head.weight", "shared.weight"),
    },
}


@pytest.mark.parametrize("variant", COPIES)
@pytest.mark.parametrize("with_config", [True, False])
def test_what_is_stored_twice_counts_once(tmp_path: Path, variant: str, with_config: bool) -> None:
    tensors = random(variant)
    copies = {name: tensors[of] for name, of in COPIES[variant].values()}
    folder = write(tmp_path, variant, tensors | copies)
    if not with_config:
        (folder / "config.json").unlink()
    counts = wk.open(folder).counts()
    assert (counts.total, counts.unclaimed) == (SAVED[variant]["parameters"], [])
    assert {address for group in counts.tied for address in group[1:]} == {*COPIES[variant], "lm_head"}
    assert wk.open(folder).check().faults == []


@pytest.mark.parametrize("variant", COPIES)
@pytest.mark.parametrize("row", [0, 5])  # 5 is none of those that are looked at when the model is opened
def test_what_should_be_a_copy_and_differs_is_a_weight_of_its_own(tmp_path: Path, variant: str, row: int) -> None:
    tensors = random(variant)
    for address, (name, of) in COPIES[variant].items():
        own = tensors[of].copy()
        own[row] += 1
        model = opened(tmp_path / address, variant, tensors | {name: own})
        assert model.counts().total == SAVED[variant]["parameters"] + own.size
        (fault,) = model.check().faults
        assert (fault.kind, fault.where) == ("config", address)
        assert "by the config, but different in the files" in fault.message
        if row == 0:
            assert model.registry[address].tied_to is None
            assert sum(w.parameters() for w in model.registry.values()) == model.counts().total


def test_both_biases_of_an_untied_bert_are_learned(tmp_path: Path) -> None:
    tensors = random("bert")
    own = {"cls.predictions.decoder.weight": np.zeros((97, 48), np.float32),
           "cls.predictions.decoder.bias": tensors["cls.predictions.bias"] + 1}  # fmt: skip
    model = opened(tmp_path, "bert", tensors | own, tie_word_embeddings=False)
    assert model.counts().total == SAVED["bert"]["parameters"] + 97 * 48 + 97
    assert (model.counts().tied, model.check().faults) == ([], [])


def test_names_alone_do_not_untie(tmp_path: Path) -> None:
    names = [*SAVED["t5"]["tensors"], *(name for name, _ in COPIES["t5"].values())]
    (tmp_path / "config.json").write_text(json.dumps(SAVED["t5"]["config"]))
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert wk.open(tmp_path).counts().total == SAVED["t5"]["parameters"]


def test_opening_only_glances_at_what_may_be_tied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plain = Tensor.read

    def counted(self: Tensor, start: int, stop: int) -> NDArray[Any]:
        read.append(stop - start)
        return plain(self, start, stop)

    tensors = random("llama-tied") | {"lm_head.weight": random("llama-tied")["model.embed_tokens.weight"]}
    folder = write(tmp_path, "llama-tied", tensors)
    monkeypatch.setattr(Tensor, "read", counted)
    assert wk.open(folder).registry["lm_head"].tied_to == "embed"
    assert sum(read) == 2 * 4 * 48  # four rows of each


def test_layers_of_multi_token_prediction_are_ignored(tmp_path: Path) -> None:
    extra = {"model.layers.3.eh_proj.weight": np.ones((48, 96), np.float32)}
    model = opened(tmp_path, "deepseek_v3", random("deepseek_v3") | extra, num_nextn_predict_layers=1)
    assert model.registry.ignored == tuple(extra)
    assert model.counts().total == SAVED["deepseek_v3"]["parameters"]


def test_a_correction_of_the_router_is_a_buffer_with_an_address(tmp_path: Path) -> None:
    model = opened(tmp_path, "deepseek_v3")
    bias = model.registry["layers.2.ffn.router.correction"]
    assert (bias.shape, bias.parameters()) == ((8,), 0)


def test_a_tensor_of_no_family_is_unclaimed(tmp_path: Path) -> None:
    model = opened(tmp_path, "llama", random("llama") | {"model.layers.0.surprise": np.ones(3, np.float32)})
    assert model.counts().unclaimed == ["model.layers.0.surprise"]


@pytest.mark.parametrize("variant", SAVED)
def test_a_tensor_of_the_wrong_shape_is_named(tmp_path: Path, variant: str) -> None:
    tensors = random(variant)
    name = next(n for n in reversed(tensors) if tensors[n].ndim == 2 and "rel" not in n)
    folder = write(tmp_path, variant, tensors | {name: np.ones((5, 7), np.float32)})
    with pytest.raises(wk.WeightkitError, match=r"implies that .* is .*, but in model\.safetensors it is 5 × 7"):
        wk.open(folder)


QWEN = {"model_type": "qwen", "hidden_size": 48, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 4, "kv_channels": 12, "vocab_size": 97, "tie_word_embeddings": False}  # fmt: skip


def test_the_first_qwen_halves_its_intermediate_size() -> None:
    config = normalise(QWEN, "config.json")
    assert (config.ffn, config.head_dim, config.kv_heads) == (80, 12, 4)


ACTIVE = {  # parameters that one token uses: all but the experts that were not chosen
    "mixtral": 3 * 2 * 3 * 48 * 80,  # layers × idle experts × matrices × size
    "qwen3_moe": 3 * 4 * 3 * 48 * 32,
    "qwen2_moe": 2 * 4 * 3 * 48 * 32,
    "deepseek_v3": 2 * 6 * 3 * 48 * 24,
    "gpt_oss": 3 * 2 * (3 * 48 * 80 + 2 * 80 + 48),
    "llama": 0,
}


@pytest.mark.parametrize("variant", ACTIVE)
def test_active_parameters(tmp_path: Path, variant: str) -> None:
    counts = opened(tmp_path, variant).counts()
    assert counts.total - counts.active == ACTIVE[variant]
