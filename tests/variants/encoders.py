"""Variants of the masked models and of T5."""

from __future__ import annotations

from typing import Any

from tests import families
from tests.families import D
from tests.variants.kinds import ABSENT, VOCAB, Variant, Variants

_BERT: dict[str, Any] = {**families.BERT, **VOCAB}
_T5: dict[str, Any] = {**families.T5, **VOCAB, "relative_attention_max_distance": 10}
_HEAD = (VOCAB["vocab_size"], D)

CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"architectures": ["BertForMaskedLM"], "model_type": "bert", **_BERT},
    "roberta": {
        "architectures": ["RobertaForMaskedLM"],
        "model_type": "roberta",
        **_BERT,
        "type_vocab_size": 1,
        "pad_token_id": 1,
    },
    "distilbert": {
        "architectures": ["DistilBertForMaskedLM"],
        "model_type": "distilbert",
        **families.VARIANTS["distilbert"][1],
        **VOCAB,
    },
    "t5": {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", **_T5},
}

VARIANTS: dict[str, Variants] = {
    "bert": {
        "plain": Variant(),
        "eps": Variant({"layer_norm_eps": 0.1, "hidden_act": "gelu_new"}),
        "padded": Variant(pad=0),
        "types": Variant({"type_vocab_size": 3, "hidden_act": "relu"}),
        "untied": Variant({"tie_word_embeddings": False}),
    },
    "roberta": {
        "plain": Variant(),
        "padded": Variant(pad=1),
        "other-padding": Variant({"pad_token_id": 5, "layer_norm_eps": 0.1}, pad=5),
        "default-padding": Variant({"hidden_act": "gelu_new"}, {"pad_token_id": ABSENT}, pad=1),
        "untied": Variant({"tie_word_embeddings": False}),
    },
    "distilbert": {
        "plain": Variant(),
        "relu": Variant({"activation": "relu", "sinusoidal_pos_embds": True}),
        "eps-unread": Variant(written={"layer_norm_eps": 0.5}, pad=0),
        "untied": Variant({"tie_word_embeddings": False}),
    },
    "t5": {
        "plain": Variant(),
        "v1.1": Variant(
            {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, added={"lm_head.weight": _HEAD}
        ),
        "tied-with-own-head": Variant({"tie_word_embeddings": True}, added={"lm_head.weight": _HEAD}),
        "eps": Variant({"layer_norm_epsilon": 0.1, "tie_word_embeddings": True}),
        "as-deep": Variant({"num_decoder_layers": None, "feed_forward_proj": "gated-silu"}),
        "long": Variant({"relative_attention_max_distance": 40, "relative_attention_num_buckets": 12}, tokens=70),
        "padded": Variant(pad=0),
        "saved": Variant({"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, saved=True),
    },
}
