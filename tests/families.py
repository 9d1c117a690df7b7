"""Tiny configs of every family and of its variants, as transformers' config classes take them.

`python -m tests.make_families` builds each with transformers and keeps what its file holds: names and
shapes. Tests open files of these names and shapes; the numbers in them do not matter there.
"""

from __future__ import annotations

from typing import Any

D, I, V, LAYERS = 48, 80, 97, 3
LLAMA = {
    "hidden_size": D,
    "intermediate_size": I,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": V,
    "max_position_embeddings": 64,
}
GPT = {"n_embd": D, "n_layer": LAYERS, "n_head": 4, "n_positions": 64, "vocab_size": V}
FALCON = {"hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "vocab_size": V}
MLA = {
    **LLAMA,
    "num_key_value_heads": 4,
    "kv_lora_rank": 20,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
}
BERT = {
    "hidden_size": D,
    "intermediate_size": I,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "vocab_size": V,
    "max_position_embeddings": 64,
}
T5 = {
    "d_model": D,
    "d_ff": I,
    "d_kv": 10,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": LAYERS,
    "vocab_size": V,
    "relative_attention_num_buckets": 8,
}
OPT: dict[str, Any] = {
    "hidden_size": D,
    "ffn_dim": I,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "vocab_size": V,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": D,
}
SHARED = {"moe_intermediate_size": 32, "num_experts": 6, "num_experts_per_tok": 2}

# variant: (model_type, keyword arguments of its config class)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT),
    "gpt2-cross": ("gpt2", {**GPT, "add_cross_attention": True}),
    "gpt_bigcode": ("gpt_bigcode", GPT),
    "gpt_bigcode-mha": ("gpt_bigcode", {**GPT, "multi_query": False}),
    "gpt_neo": (
        "gpt_neo",
        {
            "hidden_size": D,
            "num_layers": 4,
            "num_heads": 4,
            "intermediate_size": I,
            "vocab_size": V,
            "max_position_embeddings": 64,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 8,
        },
    ),
    "gpt_neox": ("gpt_neox", {**BERT}),
    "gpt_neox-nobias": ("gpt_neox", {**BERT, "attention_bias": False}),
    "gptj": ("gptj", {**GPT, "rotary_dim": 4}),
    "opt": ("opt", OPT),
    "opt-350m": ("opt", {**OPT, "word_embed_proj_dim": 24, "do_layer_norm_before": False}),
    "opt-nobias": ("opt", {**OPT, "enable_bias": False, "layer_norm_elementwise_affine": False}),
    "bloom": ("bloom", {"hidden_size": D, "n_layer": LAYERS, "n_head": 4, "vocab_size": V}),
    "mpt": ("mpt", {"d_model": D, "n_heads": 4, "n_layers": LAYERS, "vocab_size": V, "max_seq_len": 64}),
    "llama": ("llama", LLAMA),
    "llama-bias": ("llama", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("llama", {**LLAMA, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**LLAMA, "head_dim": 16}),
    "mixtral": ("mixtral", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", LLAMA),
    "qwen2_moe": ("qwen2_moe", {**LLAMA, **SHARED, "shared_expert_intermediate_size": 40, "mlp_only_layers": [1]}),
    "qwen2_moe-sparse": (
        "qwen2_moe",
        {**LLAMA, **SHARED, "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2},
    ),
    "qwen3": ("qwen3", {**LLAMA, "head_dim": 16}),
    "qwen3_moe": ("qwen3_moe", {**LLAMA, **SHARED, "head_dim": 16}),
    "gemma": ("gemma", {**LLAMA, "head_dim": 16}),
    "gemma2": ("gemma2", {**LLAMA, "head_dim": 16}),
    "gemma3_text": ("gemma3_text", {**LLAMA, "head_dim": 16}),
    "phi": ("phi", {**LLAMA, "num_key_value_heads": 4}),
    "phi-qknorm": ("phi", {**LLAMA, "num_key_value_heads": 4, "qk_layernorm": True}),
    "phi3": ("phi3", {**LLAMA, "pad_token_id": 0}),
    "phimoe": ("phimoe", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "phimoe-bias": ("phimoe", {**LLAMA, "num_local_experts": 4, "attention_bias": True, "lm_head_bias": True}),
    "falcon-7b": ("falcon", FALCON),
    "falcon-40b": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-11b": (
        "falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon-rw": ("falcon", {**FALCON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    "falcon-new-serial": (
        "falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "parallel_attn": False},
    ),
    "stablelm": ("stablelm", {**LLAMA, "use_qkv_bias": True}),
    "stablelm-12b": ("stablelm", {**LLAMA, "qk_layernorm": True, "use_parallel_residual": True}),
    "starcoder2": ("starcoder2", LLAMA),
    "olmo": ("olmo", LLAMA),
    "olmo2": ("olmo2", LLAMA),
    "olmo3": ("olmo3", LLAMA),
    "olmoe": ("olmoe", {**LLAMA, "num_experts": 6, "num_experts_per_tok": 2}),
    "cohere": ("cohere", LLAMA),
    "cohere-qknorm": ("cohere", {**LLAMA, "use_qk_norm": True}),
    "cohere2": ("cohere2", LLAMA),
    "granite": ("granite", LLAMA),
    "granitemoe": ("granitemoe", {**LLAMA, "num_local_experts": 4}),
    "deepseek_v2": ("deepseek_v2", MLA),
    "deepseek_v2-lite": ("deepseek_v2", {**MLA, "q_lora_rank": None, "n_shared_experts": 2}),
    "deepseek_v2-bias": ("deepseek_v2", {**MLA, "mlp_bias": True}),
    "deepseek_v3": ("deepseek_v3", MLA),
    "gpt_oss": ("gpt_oss", {**LLAMA, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "glm": ("glm", {**LLAMA, "head_dim": 16, "pad_token_id": 0}),
    "glm4": ("glm4", {**LLAMA, "head_dim": 16, "pad_token_id": 0}),
    "smollm3": ("smollm3", {**LLAMA, "pad_token_id": 0}),
    "mamba": ("mamba", {"hidden_size": D, "num_hidden_layers": LAYERS, "vocab_size": V, "state_size": 8}),
    "bert": ("bert", BERT),
    "bert-cross": ("bert", {**BERT, "is_decoder": True, "add_cross_attention": True}),
    "roberta": ("roberta", {**BERT, "type_vocab_size": 1, "pad_token_id": 1}),
    "roberta-cross": (
        "roberta",
        {**BERT, "type_vocab_size": 1, "pad_token_id": 1, "is_decoder": True, "add_cross_attention": True},
    ),
    "distilbert": (
        "distilbert",
        {"dim": D, "hidden_dim": I, "n_layers": LAYERS, "n_heads": 4, "vocab_size": V, "max_position_embeddings": 64},
    ),
    "t5": ("t5", T5),
    "t5-v1_1": ("t5", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
}
MASKED = ("bert", "roberta", "distilbert")  # models with a masked-language head
