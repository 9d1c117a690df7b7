"""What transformers' config classes read, and what they assume where a key is left out: one entry a family.

Sources: the configuration_*.py of transformers 5.23; for qwen, chatglm, internlm and mixformer-sequential the
configuration files that come with the models.
"""

from __future__ import annotations

from typing import Any

from weightkit.config import extras
from weightkit.config.defaults import Defaults

_GPT: dict[str, Any] = {
    "activation_key": "activation_function",
    "activation": "gelu_new",
    "eps_key": "layer_norm_epsilon",
    "eps": 1e-5,
}
_ALL_BIASES: dict[str, Any] = {"qkv_bias": True, "output_bias": True, "ffn_bias": True}
_ATTENTION_BIAS: dict[str, Any] = {"qkv_bias": "attention_bias", "output_bias": "attention_bias"}
_BERT: dict[str, Any] = {
    **_ALL_BIASES,
    "activation": "gelu",
    "eps_key": "layer_norm_eps",
    "eps": 1e-12,
    "positions": 512,
    "tied": True,
}
_GEMMA: dict[str, Any] = {"activation": "gelu_pytorch_tanh", "head_dim": 256, "positions": 8192, "tied": True}
_QWEN: dict[str, Any] = {"positions": 32_768, "windows": "asked for", "sliding_window": 4096}

DEFAULTS: dict[str, Defaults] = {
    family.model_type: family
    for family in (
        Defaults("llama", qkv_bias="attention_bias", output_bias="attention_bias", ffn_bias="mlp_bias"),
        Defaults("mistral", positions=131_072, kv_heads=8, windows="all layers", sliding_window=4096),
        Defaults(
            "mixtral", positions=131_072, kv_heads=8, eps=1e-5, theta=1e6, windows="all layers", extra=extras.experts()
        ),
        Defaults("qwen2", kv_heads=32, qkv_bias=True, **_QWEN),
        Defaults("qwen3", kv_heads=32, head_dim=128, **_ATTENTION_BIAS, **_QWEN),
        Defaults(
            "qwen2_moe",
            kv_heads=16,
            extra=extras.qwen_moe(60, 4, 1408, 5632),
            **{**_QWEN, "qkv_bias": ("qkv_bias", True)},
        ),
        Defaults("qwen3_moe", kv_heads=4, extra=extras.qwen_moe(128, 8, 768, 0), **_ATTENTION_BIAS, **_QWEN),
        Defaults("gemma", kv_heads=16, **{**_GEMMA, **_ATTENTION_BIAS}),
        Defaults(
            "gemma2",
            activation_key="hidden_activation",
            kv_heads=4,
            windows="all but every nth",
            sliding_window=4096,
            full_every=2,
            **_GEMMA,
            **_ATTENTION_BIAS,
        ),
        *(
            Defaults(
                kind,
                activation_key="hidden_activation",
                kv_heads=4,
                theta=1e6,
                windows="all but every nth",
                sliding_window=4096,
                full_every=6,
                extra=extras.gemma3,
                **{**_GEMMA, "positions": 131_072},
                **_ATTENTION_BIAS,
            )
            for kind in ("gemma3", "gemma3_text")
        ),
        Defaults("phi3", eps=1e-5, positions=4096, windows="all layers"),
        Defaults(
            "phimoe",
            kv_heads=8,
            eps=1e-5,
            positions=131_072,
            windows="all layers",
            parts={"head_bias": "lm_head_bias"},
            extra=extras.experts(16),
            **_ATTENTION_BIAS,
        ),
        Defaults(
            "phi",
            activation="gelu_new",
            eps_key="layer_norm_eps",
            eps=1e-5,
            partial_rotary=0.5,
            parts={"qk_norm": "qk_layernorm"},
            **_ALL_BIASES,
        ),
        Defaults("mixformer-sequential", ffn_ratio=4, **_GPT, **_ALL_BIASES),
        Defaults("gpt2", positions=1024, tied=True, ffn_ratio=4, **_GPT, **_ALL_BIASES),
        Defaults(
            "gpt_bigcode",
            positions=1024,
            tied=True,
            ffn_ratio=4,
            extra=extras.gpt_bigcode,
            **{**_GPT, "activation": "gelu_pytorch_tanh"},
            **_ALL_BIASES,
        ),
        Defaults("gpt_neo", tied=True, ffn_ratio=4, output_bias=True, ffn_bias=True, extra=extras.gpt_neo, **_GPT),
        Defaults("gptj", ffn_ratio=4, ffn_bias=True, **_GPT),
        Defaults(
            "gpt_neox",
            activation="gelu",
            eps_key="layer_norm_eps",
            eps=1e-5,
            partial_rotary=0.25,
            qkv_bias=("attention_bias", True),
            output_bias=("attention_bias", True),
            ffn_bias=True,
        ),
        Defaults(
            "opt",
            activation_key="activation_function",
            activation="relu",
            eps_key="layer_norm_eps",
            eps=1e-5,
            tied=True,
            extra=extras.opt,
            **_ALL_BIASES,
        ),
        Defaults(
            "bloom",
            activation="gelu_new",
            eps_key="layer_norm_epsilon",
            eps=1e-5,
            tied=True,
            ffn_ratio=4,
            **_ALL_BIASES,
        ),
        Defaults(
            "mpt", activation="gelu", eps_key="layer_norm_epsilon", eps=1e-5, tied=True, ffn_ratio=4, extra=extras.mpt
        ),
        Defaults(
            "falcon",
            activation_key="activation",
            activation="gelu",
            eps_key="layer_norm_epsilon",
            eps=1e-5,
            tied=True,
            ffn_ratio=4,
            qkv_bias="bias",
            output_bias="bias",
            ffn_bias="bias",
            extra=extras.falcon,
        ),
        Defaults(
            "stablelm",
            eps_key="layer_norm_eps",
            eps=1e-5,
            positions=4096,
            partial_rotary=0.25,
            qkv_bias="use_qkv_bias",
            parts={"qk_norm": "qk_layernorm", "parallel": "use_parallel_residual"},
        ),
        Defaults(
            "starcoder2",
            activation="gelu_pytorch_tanh",
            eps_key="norm_epsilon",
            eps=1e-5,
            positions=4096,
            kv_heads=2,
            tied=True,
            windows="all layers",
            qkv_bias=("use_bias", True),
            output_bias=("use_bias", True),
            ffn_bias=("use_bias", True),
        ),
        Defaults("olmo", eps_key="layer_norm_eps", eps=1e-5, **_ATTENTION_BIAS),
        Defaults("olmo2", eps=1e-5, **_ATTENTION_BIAS),
        Defaults(
            "olmo3",
            eps=1e-5,
            windows="all but every nth",
            sliding_window=4096,
            full_every=4,
            **_ATTENTION_BIAS,
        ),
        Defaults("olmoe", eps=1e-5, positions=4096, extra=extras.experts(64, 8), **_ATTENTION_BIAS),
        Defaults(
            "cohere",
            eps_key="layer_norm_eps",
            eps=1e-5,
            positions=8192,
            tied=True,
            theta=500_000.0,
            parts={"qk_norm": "use_qk_norm"},
            **_ATTENTION_BIAS,
        ),
        Defaults(
            "cohere2",
            eps_key="layer_norm_eps",
            eps=1e-5,
            positions=8192,
            tied=True,
            windows="all but every nth",
            sliding_window=4096,
            full_every=4,
            **_ATTENTION_BIAS,
        ),
        Defaults("granite", ffn_bias="mlp_bias", **_ATTENTION_BIAS),
        Defaults("granitemoe", extra=extras.experts(), **_ATTENTION_BIAS),
        Defaults("internlm", qkv_bias="bias", output_bias="bias"),
        Defaults("smollm3", kv_heads=4, positions=32_768, tied=True, theta=2e6, ffn_bias="mlp_bias", **_ATTENTION_BIAS),
        Defaults(
            "glm",
            kv_heads=2,
            head_dim=128,
            positions=131_072,
            eps=1.5625e-07,
            partial_rotary=0.5,
            qkv_bias=("attention_bias", True),
        ),
        Defaults(
            "glm4",
            kv_heads=2,
            head_dim=128,
            positions=131_072,
            eps=1.5625e-07,
            partial_rotary=0.5,
            qkv_bias=("attention_bias", True),
        ),
        Defaults("chatglm", eps_key="layernorm_epsilon", eps=1e-5, qkv_bias="add_qkv_bias", extra=extras.chatglm),
        Defaults("qwen", eps_key="layer_norm_epsilon", positions=8192, qkv_bias=True, extra=extras.qwen),
        Defaults("deepseek_v2", extra=extras.deepseek(1536, 64, 6), **_ATTENTION_BIAS),
        Defaults("deepseek_v3", positions=4096, extra=extras.deepseek(1536, 256, 8), **_ATTENTION_BIAS),
        Defaults(
            "gpt_oss",
            kv_heads=8,
            head_dim=64,
            positions=131_072,
            eps=1e-5,
            theta=150_000.0,
            windows="all but every nth",
            sliding_window=128,
            full_every=2,
            extra=extras.experts(128, 4),
            qkv_bias=("attention_bias", True),
            output_bias=("attention_bias", True),
        ),
        Defaults(
            "mamba",
            eps_key="layer_norm_epsilon",
            eps=1e-5,
            tied=True,
            parts={"conv_bias": ("use_conv_bias", True), "ssm_bias": "use_bias"},
            extra=extras.mamba,
        ),
        Defaults("bert", extra=extras.bert, **_BERT),
        Defaults("roberta", extra=extras.bert, **_BERT),
        Defaults("distilbert", **{**_BERT, "activation_key": "activation"}),
        Defaults("t5", eps_key="layer_norm_epsilon", tied=True, positions=512, extra=extras.t5),
    )
}
# What a family was called before transformers had it.
ALIASES = {"RefinedWeb": "falcon", "RefinedWebModel": "falcon", "phi-msft": "mixformer-sequential"}
