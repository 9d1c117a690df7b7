"""What transformers' config classes read, and what they assume where a key is left out: one entry a family.

Sources: the configuration_*.py of transformers 5.23; for qwen, chatglm, internlm and mixformer-sequential the
configuration files that come with the models.
"""

from __future__ import annotations

from typing import Any

from weightkit.config import extras, mixtures
from weightkit.config.defaults import Defaults
from weightkit.config.normal import Experts, Norms, Routing

_GPT: dict[str, Any] = {
    "activation_key": "activation_function",
    "activation": "gelu_new",
    "eps_key": "layer_norm_epsilon",
    "eps": 1e-5,
    "grouped": False,
    "ffn_key": "n_inner",
    "ffn_ratio": 4,
}
_ALL_BIASES: dict[str, Any] = {"qkv_bias": True, "output_bias": True, "ffn_bias": True}
_ATTENTION_BIAS: dict[str, Any] = {"qkv_bias": "attention_bias", "output_bias": "attention_bias"}
_BERT: dict[str, Any] = {
    **_ALL_BIASES,
    "activation": "gelu",
    "eps_key": "layer_norm_eps",
    "eps": 1e-12,
    "positions": 512,
    "position_kind": "learned",
    "norms": "sum",
    "tied": True,
}
_COHERE: dict[str, Any] = {
    **_ATTENTION_BIAS,
    "interleaved": True,
    "eps_key": "layer_norm_eps",
    "eps": 1e-5,
    "positions": 8192,
    "tied": True,
    "parallel": True,
}
_GEMMA: dict[str, Any] = {"activation": "gelu_pytorch_tanh", "head_dim": 256, "positions": 8192, "tied": True}
_QWEN: dict[str, Any] = {"positions": 32_768, "windows": "asked for", "sliding_window": 4096}

_GPT_OSS_ROPE = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}
_GLM: dict[str, Norms] = {"glm": "before", "glm4": "both"}

_MIXTRAL = Routing(normalised=True)

DEFAULTS: dict[str, Defaults] = {
    family.model_type: family
    for family in (
        Defaults("llama", qkv_bias="attention_bias", output_bias="attention_bias", ffn_bias="mlp_bias"),
        Defaults("mistral", positions=131_072, kv_heads=8, windows="all layers", sliding_window=4096),
        Defaults(
            "mixtral",
            positions=131_072,
            kv_heads=8,
            eps=1e-5,
            theta=1e6,
            windows="all layers",
            extra=(mixtures.experts(routing=_MIXTRAL),),
        ),
        Defaults("qwen2", kv_heads=32, qkv_bias=True, **_QWEN),
        Defaults("qwen3", kv_heads=32, head_dim=128, **_ATTENTION_BIAS, **_QWEN),
        Defaults(
            "qwen2_moe",
            kv_heads=16,
            extra=(mixtures.qwen_moe(60, 4, 1408, 5632),),
            qkv_bias=("qkv_bias", True),
            asked="even below",
            **_QWEN,
        ),
        Defaults(
            "qwen3_moe", kv_heads=4, extra=(mixtures.qwen_moe(128, 8, 768, 0),), asked="all", **_ATTENTION_BIAS, **_QWEN
        ),
        Defaults("gemma", kv_heads=16, extra=(extras.gemma, extras.embedding_by_width), **_GEMMA, **_ATTENTION_BIAS),
        Defaults(
            "gemma2",
            activation_key="hidden_activation",
            kv_heads=4,
            windows="all but every nth",
            sliding_window=4096,
            full_every=2,
            norms="both",
            extra=(extras.gemma2, extras.embedding_by_width),
            **_GEMMA,
            **_ATTENTION_BIAS,
        ),
        *(
            Defaults(
                kind,
                activation_key="hidden_activation",
                heads=8,
                kv_heads=4,
                vocab=262_208,
                theta=1e6,
                windows="all but every nth",
                sliding_window=4096,
                full_every=6,
                full_every_key="sliding_window_pattern",
                window_rope="own theta",
                norms="both",
                extra=(extras.gemma3, extras.embedding_by_width),
                **{**_GEMMA, "positions": 131_072},
                **_ATTENTION_BIAS,
            )
            for kind in ("gemma3", "gemma3_text")
        ),
        Defaults("phi3", eps=1e-5, positions=4096, partial_rotary=1.0, windows="all layers"),
        Defaults(
            "phimoe",
            kv_heads=8,
            eps=1e-5,
            positions=131_072,
            windows="all layers",
            theta=1e6,
            parts={"head_bias": "lm_head_bias"},
            extra=(mixtures.experts(16, routing=Routing("sparsemixer")), extras.phimoe),
            **_ATTENTION_BIAS,
        ),
        Defaults(
            "phi",
            activation="gelu_new",
            eps_key="layer_norm_eps",
            eps=1e-5,
            partial_rotary=0.5,
            parallel=True,
            parts={"qk_norm": "qk_layernorm"},
            **_ALL_BIASES,
        ),
        Defaults(
            "mixformer-sequential",
            parallel=True,
            extra=(extras.rotary_dims(32),),
            **_GPT,
            **_ALL_BIASES,
        ),
        Defaults(
            "gpt2",
            positions=1024,
            position_kind="learned",
            tied=True,
            extra=(extras.gpt2,),
            **_GPT,
            **_ALL_BIASES,
        ),
        Defaults(
            "gpt_bigcode",
            positions=1024,
            position_kind="learned",
            tied=True,
            extra=(extras.gpt_bigcode,),
            **{**_GPT, "activation": "gelu_pytorch_tanh"},
            **_ALL_BIASES,
        ),
        Defaults(
            "gpt_neo",
            position_kind="learned",
            tied=True,
            output_bias=True,
            ffn_bias=True,
            extra=(extras.gpt_neo,),
            **{**_GPT, "ffn_key": "intermediate_size"},
        ),
        Defaults(
            "gptj",
            interleaved=True,
            ffn_bias=True,
            parallel=True,
            extra=(extras.rotary_dims(64),),
            **_GPT,
        ),
        Defaults(
            "gpt_neox",
            grouped=False,
            activation="gelu",
            eps_key="layer_norm_eps",
            eps=1e-5,
            partial_rotary=0.25,
            parallel=("use_parallel_residual", True),
            qkv_bias=("attention_bias", True),
            output_bias=("attention_bias", True),
            ffn_bias=True,
        ),
        Defaults(
            "opt",
            grouped=False,
            ffn_key="ffn_dim",
            position_kind="learned",
            activation_key="activation_function",
            activation="relu",
            eps_key="",
            eps=1e-5,
            tied=True,
            extra=(extras.opt,),
            qkv_bias=("enable_bias", True),
            output_bias=("enable_bias", True),
            ffn_bias=("enable_bias", True),
        ),
        Defaults(
            "bloom",
            grouped=False,
            position_kind="alibi",
            activation="gelu_new",
            eps_key="layer_norm_epsilon",
            eps=1e-5,
            tied=True,
            ffn_ratio=4,
            extra=(extras.bloom,),
            **_ALL_BIASES,
        ),
        Defaults(
            "mpt",
            grouped=False,
            activation="gelu",
            eps_key="layer_norm_epsilon",
            eps=1e-5,
            tied=True,
            ffn_ratio=4,
            extra=(extras.mpt,),
        ),
        Defaults(
            "falcon",
            grouped=False,
            ffn_key="ffn_hidden_size",
            activation_key="activation",
            activation="gelu",
            eps_key="layer_norm_epsilon",
            eps=1e-5,
            tied=True,
            ffn_ratio=4,
            qkv_bias="bias",
            output_bias="bias",
            ffn_bias="bias",
            extra=(extras.falcon,),
        ),
        Defaults(
            "stablelm",
            eps_key="layer_norm_eps",
            eps=1e-5,
            positions=4096,
            partial_rotary=0.25,
            qkv_bias="use_qkv_bias",
            parallel="use_parallel_residual",
            parts={"qk_norm": "qk_layernorm"},
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
        Defaults("olmo", eps=1e-5, eps_key="", extra=(extras.olmo, extras.clipped), **_ATTENTION_BIAS),
        Defaults("olmo2", eps=1e-5, norms="after", **_ATTENTION_BIAS),
        Defaults(
            "olmo3",
            eps=1e-5,
            norms="after",
            theta=500_000.0,
            window_rope="unscaled",
            windows="all but every nth",
            sliding_window=4096,
            full_every=4,
            **_ATTENTION_BIAS,
        ),
        Defaults(
            "olmoe",
            eps=1e-5,
            positions=4096,
            extra=(mixtures.experts(64, 8, renormalise=True), extras.clipped),
            **_ATTENTION_BIAS,
        ),
        Defaults(
            "cohere",
            theta=500_000.0,
            parts={"qk_norm": "use_qk_norm"},
            extra=(extras.cohere,),
            **_COHERE,
        ),
        Defaults(
            "cohere2",
            windows="all but every nth",
            sliding_window=4096,
            full_every=4,
            full_every_key="sliding_window_pattern",
            extra=(extras.cohere2,),
            **_COHERE,
        ),
        Defaults("granite", ffn_bias="mlp_bias", extra=(extras.granite,), **_ATTENTION_BIAS),
        Defaults(
            "granitemoe",
            extra=(mixtures.experts(routing=Routing("chosen softmax")), extras.granite),
            **_ATTENTION_BIAS,
        ),
        Defaults("internlm", qkv_bias="bias", output_bias="bias", extra=(extras.internlm,)),
        Defaults(
            "smollm3",
            kv_heads=4,
            positions=32_768,
            tied=True,
            theta=2e6,
            windows="asked for",
            asked="all",
            ffn_bias="mlp_bias",
            extra=(extras.smollm3,),
            **_ATTENTION_BIAS,
        ),
        *(
            Defaults(
                kind,
                interleaved=True,
                norms=norms,
                kv_heads=2,
                head_dim=128,
                positions=131_072,
                eps=1.5625e-07,
                partial_rotary=0.5,
                qkv_bias=("attention_bias", True),
            )
            for kind, norms in _GLM.items()
        ),
        Defaults(
            "chatglm",
            interleaved=True,
            grouped=False,
            ffn_key="ffn_hidden_size",
            eps_key="layernorm_epsilon",
            eps=1e-5,
            qkv_bias="add_qkv_bias",
            extra=(extras.chatglm,),
        ),
        Defaults(
            "qwen", grouped=False, eps_key="layer_norm_epsilon", positions=8192, qkv_bias=True, extra=(extras.qwen,)
        ),
        Defaults(
            "deepseek_v2",
            interleaved=True,
            ffn_bias="mlp_bias",
            extra=(mixtures.deepseek(Experts(64, 6, 1407, 2 * 1407), mixtures.deepseek_v2_routing),),
            **_ATTENTION_BIAS,
        ),
        Defaults(
            "deepseek_v3",
            interleaved=("rope_interleave", True),
            positions=4096,
            extra=(
                mixtures.deepseek(
                    Experts(256, 8, 2048, 2048), mixtures.deepseek_v3_routing, dense_layers=3, mtp_layers=1
                ),
            ),
            **_ATTENTION_BIAS,
        ),
        Defaults(
            "gpt_oss",
            kv_heads=8,
            head_dim=64,
            positions=131_072,
            eps=1e-5,
            theta=150_000.0,
            rope=_GPT_OSS_ROPE,
            windows="all but every nth",
            sliding_window=128,
            full_every=2,
            extra=(mixtures.experts(128, 4, routing=Routing("chosen softmax")), extras.gpt_oss),
            qkv_bias=("attention_bias", True),
            output_bias=("attention_bias", True),
        ),
        Defaults(
            "mamba",
            grouped=False,
            position_kind="none",
            eps_key="layer_norm_epsilon",
            eps=1e-5,
            tied=True,
            parts={"conv_bias": ("use_conv_bias", True), "ssm_bias": "use_bias"},
            extra=(extras.mamba,),
        ),
        Defaults("bert", grouped=False, extra=(extras.bert,), **_BERT),
        Defaults("roberta", grouped=False, extra=(extras.roberta,), **_BERT),
        Defaults(
            "distilbert",
            grouped=False,
            ffn_key="hidden_dim",
            **{**_BERT, "activation_key": "activation", "eps_key": ""},
        ),
        Defaults(
            "t5",
            grouped=False,
            ffn_key="d_ff",
            position_kind="relative",
            eps_key="layer_norm_epsilon",
            tied=True,
            positions=512,
            extra=(extras.t5,),
        ),
    )
}
# What a family was called before transformers had it.
ALIASES = {"RefinedWeb": "falcon", "RefinedWebModel": "falcon", "phi-msft": "mixformer-sequential"}
