"""The config of a GGUF file in the keys of a Hugging Face config.json.

Sources: the specification of GGUF; convert_hf_to_gguf.py in llama.cpp, which writes the values; the config
classes of transformers, which read them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from weightkit.formats.gguf_families import FAMILIES, Family, Fields, Said, Tensors
from weightkit.formats.gguf_header import Items
from weightkit.formats.gguf_mapping import hf_names

__all__ = ["FAMILIES", "config", "hf_names"]

_NO_MODEL = ("adapter", "mmproj", "projector", "imatrix")  # general.type of files without a model of text
_MOST_LAYERS = 10_000
_MOST_FACTORS = 4096  # of a rope: one for two dimensions of a head


_KEYS = {  # below the name of the architecture: in a config.json
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "attention.sliding_window": "sliding_window",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}


def config(values: Mapping[str, Any], tensors: Tensors) -> Fields | None:
    """What a GGUF file says of its model, in the keys of a config.json; None where it has no known model.

    A file that is one of several does not know of the tensors of the others: where it has no output.weight
    itself, tie_word_embeddings is left out.
    """
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or values.get("general.type") in _NO_MODEL:
        return None
    said = Said(values, architecture, tensors)
    family = FAMILIES.get(architecture)
    if family is None:
        return None
    fields = _fields(said, family)
    needed = {"hidden_size", "num_hidden_layers", "vocab_size"}
    if not needed <= fields.keys() or ("num_attention_heads" not in fields and architecture != "mamba"):
        return None
    return fields | (family.extra(said, fields) if family.extra else {})


def _fields(said: Said, family: Family) -> Fields:
    """What most families have."""
    fields: Fields = {"model_type": family.model_type}
    fields |= {name: value for key, name in _KEYS.items() if (value := said.get(key)) is not None}
    heads, width = fields.get("num_attention_heads"), fields.get("hidden_size")
    if heads is not None:
        fields.setdefault("num_key_value_heads", heads)
    if type(heads) is int and type(width) is int and heads > 0 and width % heads == 0:
        fields.setdefault("head_dim", width // heads)
    if not fields.get("sliding_window"):
        fields.pop("sliding_window", None)
    fields |= _counts(said, family) | _layer_types(said, fields)
    eps = said.get("attention.layer_norm_rms_epsilon")
    eps = said.get("attention.layer_norm_epsilon") if eps is None else eps
    fields |= {} if eps is None else {family.eps: eps}
    fields |= dict.fromkeys(family.biases, said.has("blk.0.attn_q.bias", "blk.0.attn_qkv.bias"))
    fields |= {family.ffn_bias: said.has("blk.0.ffn_up.bias")} if family.ffn_bias else {}
    fields |= _rope(said, fields, family)
    if said.has("output.weight") or not said.values.get("split.count"):
        fields["tie_word_embeddings"] = not said.has("output.weight")
    return fields


def _counts(said: Said, family: Family) -> Fields:
    """The vocabulary and the experts."""
    tokens = said.values.get("tokenizer.ggml.tokens")
    vocab = said.rows("token_embd.weight") or said.get("vocab_size")
    vocab = vocab or (tokens.count if isinstance(tokens, Items) else None)
    experts = said.get("expert_count")
    return ({"vocab_size": vocab} if vocab else {}) | ({family.experts: experts} if experts else {})


def _layer_types(said: Said, fields: Fields) -> Fields:
    """Which layers have a window, where a value says it of each."""
    pattern = said.values.get(f"{said.architecture}.attention.sliding_window_pattern")
    slides = pattern.numbers() if isinstance(pattern, Items) and pattern.count <= _MOST_LAYERS else []
    if not slides or len(slides) != fields.get("num_hidden_layers"):
        return {}
    return {"layer_types": ["sliding_attention" if one else "full_attention" for one in slides]}


# ── rotary positions ───────────────────────────────────────────────────────────────────────────────


def _rope(said: Said, fields: Fields, family: Family) -> Fields:
    found: Fields = {}
    rotated, head = said.get("rope.dimension_count"), fields.get("head_dim")
    if family.partial and type(rotated) is int and type(head) is int and 0 < rotated <= head:
        found["partial_rotary_factor"] = rotated / head
    scaling = _scaling(said, fields)
    return found | ({"rope_scaling": scaling} if scaling else {})


def _scaling(said: Said, fields: Fields) -> Fields | None:
    """rope_scaling: some of it is in the values, some in tensors of factors."""
    long, short = (_factors(said, f"rope_factors_{which}.weight") for which in ("long", "short"))
    original = said.get("rope.scaling.original_context_length")
    common: Fields = {} if original is None else {"original_max_position_embeddings": original}
    factor = said.get("rope.scaling.factor")
    attention = said.get("rope.scaling.attn_factor")
    if long and short:
        return {"rope_type": "longrope", "long_factor": long, "short_factor": short, **common} | (
            {} if attention is None else {"attention_factor": attention}
        )
    if factors := _factors(said, "rope_freqs.weight"):
        return _llama3(factors, fields)
    kind = said.get("rope.scaling.type")
    if kind not in ("linear", "yarn") or not isinstance(factor, int | float) or factor in (0, 1):
        return None
    return {"rope_type": kind, "factor": factor, **common} | (_yarn(said) if kind == "yarn" else {})


def _yarn(said: Said) -> Fields:
    keys = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow", "yarn_attn_factor": "attention_factor"}
    found = {name: said.get(f"rope.scaling.{key}") for key, name in keys.items()}
    return {name: value for name, value in found.items() if value is not None}


def _factors(said: Said, name: str) -> list[float]:
    """The numbers of a small tensor that belongs to the config; nothing where it is not there, or is odd."""
    tensor = said.tensors.get(name)
    size = math.prod(tensor.shape) if tensor is not None else 0
    if tensor is None or len(tensor.shape) != 1 or tensor.dtype.name != "F32" or not 0 < size <= _MOST_FACTORS:
        return []
    factors = tensor.read(0, size)
    return [float(str(n)) for n in factors] if np.isfinite(factors).all() and (factors > 0).all() else []


def _llama3(factors: list[float], fields: Fields) -> Fields | None:
    """Llama 3's rope_scaling from the factors that GGUF keeps in its place; any others as they are."""
    factor, theta, size = max(factors), fields.get("rope_theta", 10_000.0), len(factors)
    if factor == 1.0 == min(factors):
        return None
    given = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if isinstance(theta, int | float) and theta > 0:
        lengths = 2 * math.pi * float(theta) ** (np.arange(size) / size)
        for original in (8192, fields.get("max_position_embeddings")):
            if type(original) is not int or not 0 < original < 1 << 40:
                continue
            with np.errstate(all="ignore"):
                smooth = np.clip((original / lengths - 1) / 3, 0, 1)
            if np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
                return {"rope_type": "llama3", **given, "original_max_position_embeddings": original}
    return {"rope_type": "longrope", "long_factor": factors, "short_factor": factors, "attention_factor": 1.0}
