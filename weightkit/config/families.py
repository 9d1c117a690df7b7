"""What transformers' config classes read, and what they assume where a key is left out: one entry a family.

Sources: the configuration_*.py of transformers 5.23; for qwen, chatglm, internlm and mixformer-sequential the
configuration files that come with the models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from weightkit.config.normal import Experts, Latent, StateSpace, Vision
from weightkit.config.positions import attention_types
from weightkit.config.reader import Reader, Rule, short

Fields = dict[str, Any]  # of Config


@dataclass(frozen=True)
class Defaults:
    """How the config of one family is read."""

    model_type: str
    activation_key: str = "hidden_act"
    activation: str = "silu"
    eps_key: str = "rms_norm_eps"
    eps: float = 1e-6
    positions: int = 2048
    kv_heads: int | None = None  # None: as many as heads
    head_dim: int | None = None  # None: width / heads
    tied: bool = False
    theta: float = 10_000.0
    partial_rotary: float = 1.0
    # Which layers have a sliding window. "asked for": those that use_sliding_window and layer_types say.
    windows: Literal["never", "all layers", "asked for", "all but every nth"] = "never"
    sliding_window: int | None = None
    full_every: int = 1  # the n of "all but every nth"
    ffn_ratio: int | None = None  # FFN neurons per width, where no key gives their number
    qkv_bias: Rule = False
    output_bias: Rule = False
    ffn_bias: Rule = False
    parts: Mapping[str, Rule] = field(default_factory=dict)  # other optional parts, as slots ask for them
    extra: Callable[[Reader, Fields], Fields] | None = None  # fields that only this family has


def _experts(
    count: int = 8, per_token: int = 2, *, ffn: str = "intermediate_size"
) -> Callable[[Reader, Fields], Fields]:
    """A mixture of experts in every layer."""

    def extra(read: Reader, fields: Fields) -> Fields:
        number = read.size("num_local_experts", "num_experts", default=count, most=1 << 16)
        width = read.size(ffn, default=fields["ffn"])
        return {"experts": Experts(number, _per_token(read, per_token, number), width)}

    return extra


def _per_token(read: Reader, default: int, count: int) -> int:
    return read.size("num_experts_per_tok", "experts_per_token", default=min(default, count), most=count)


def _qwen_moe(count: int, per_token: int, ffn: int, shared_ffn: int) -> Callable[[Reader, Fields], Fields]:
    """Experts in every `decoder_sparse_step`th layer that mlp_only_layers does not name."""

    def extra(read: Reader, fields: Fields) -> Fields:
        number = read.size("num_experts", "num_local_experts", default=count, most=1 << 16, least=0)
        step = read.size("decoder_sparse_step", default=1)
        only = read.values.get("mlp_only_layers") or []
        if not isinstance(only, list):
            raise read.fail(f"mlp_only_layers is {short(only)}, expected a list of layers")
        dense = tuple(layer in only or number == 0 or (layer + 1) % step != 0 for layer in range(fields["layers"]))
        width = read.size("moe_intermediate_size", default=ffn)
        shared = read.size("shared_expert_intermediate_size", default=shared_ffn) if shared_ffn else 0
        return {"experts": Experts(max(number, 1), _per_token(read, per_token, max(number, 1)), width, shared, dense)}

    return extra


def _deepseek(q_rank: int | None, experts: int, per_token: int) -> Callable[[Reader, Fields], Fields]:
    def extra(read: Reader, fields: Fields) -> Fields:
        rank = read.values.get("q_lora_rank", q_rank)
        latent = Latent(
            q_rank=0 if rank is None else read.size("q_lora_rank", default=q_rank),
            kv_rank=read.size("kv_lora_rank", default=512),
            nope=read.size("qk_nope_head_dim", default=128),
            rope=read.size("qk_rope_head_dim", default=64),
            value=read.size("v_head_dim", default=128),
        )
        number = read.size("n_routed_experts", "num_local_experts", default=experts, most=1 << 16)
        width = read.size("moe_intermediate_size", default=1407)
        first = read.size("first_k_dense_replace", default=0, least=0)
        every = read.size("moe_layer_freq", default=1)
        moe = Experts(
            number,
            _per_token(read, per_token, number),
            width,
            width * read.size("n_shared_experts", default=1, least=0),
            tuple(layer < first or layer % every != 0 for layer in range(fields["layers"])),
        )
        straight = {"q_straight"} if not latent.q_rank else {"q_latent"}
        return {
            "latent": latent,
            "experts": moe,
            "head_dim": latent.nope + latent.rope,
            "mtp_layers": read.size("num_nextn_predict_layers", default=0, most=64, least=0),
            "parts": fields["parts"] | straight,
        }

    return extra


def _falcon(read: Reader, fields: Fields) -> Fields:
    """Falcon's four layouts: 7b, 40b and 180b (two norms), 11b (one), rw (not parallel)."""
    new = read.flag("new_decoder_architecture", default=read.values.get("model_type") == "RefinedWeb")
    parallel = read.flag("parallel_attn", default=True)
    norms = read.size("num_ln_in_parallel_attn", default=2 if new else 1)
    if new:
        kv_heads = read.size("num_kv_heads", "n_head_kv", default=fields["heads"])
        part = "two_norms" if norms == 2 else "one_norm"
    else:
        kv_heads = 1 if read.flag("multi_query", default=True) else fields["heads"]
        part = "one_norm" if parallel else "norm_before_ffn"
    if fields["heads"] % kv_heads:
        raise read.fail(f"{fields['heads']} heads are not a multiple of {kv_heads} key heads")
    return {"kv_heads": kv_heads, "parts": fields["parts"] | {part, *(("one_norm",) if part != "two_norms" else ())}}


def _gpt_bigcode(read: Reader, fields: Fields) -> Fields:
    return {"kv_heads": 1 if read.flag("multi_query", default=True) else fields["heads"]}


def _gpt_neo(read: Reader, fields: Fields) -> Fields:
    return {"windows": attention_types(read, fields["layers"]), "scale_attention": False}


def _opt(read: Reader, fields: Fields) -> Fields:
    embed_width = read.size("word_embed_proj_dim", default=fields["width"])
    before = read.flag("do_layer_norm_before", default=True)
    parts = {"projected"} if embed_width != fields["width"] else set()
    if before and not read.flag("_remove_final_layer_norm", default=False):
        parts.add("final_norm")
    return {"embed_width": embed_width, "position_offset": 2, "parts": fields["parts"] | parts}


def _mpt(read: Reader, fields: Fields) -> Fields:
    inner = read.block("attn_config") or Reader({}, read.where)
    kv_heads = inner.size("kv_n_heads", default=1 if inner.values.get("attn_type") == "multiquery_attention" else 0)
    parts = (
        {"positions"} if read.flag("learned_pos_emb", default=True) and not inner.flag("alibi", default=True) else set()
    )
    return {"kv_heads": kv_heads or fields["heads"], "parts": fields["parts"] | parts}


def _qwen(read: Reader, fields: Fields) -> Fields:
    """Its intermediate_size is that of gate and up together."""
    return {"ffn": fields["ffn"] // 2, "head_dim": read.size("kv_channels", default=fields["head_dim"])}


def _chatglm(read: Reader, fields: Fields) -> Fields:
    groups = read.size("multi_query_group_num", default=2)
    grouped = read.flag("multi_query_attention", default=False)
    return {"kv_heads": groups if grouped else fields["heads"], "head_dim": read.size("kv_channels", default=128)}


def _gemma3(read: Reader, fields: Fields) -> Fields:
    """The vision tower of the models that have one: SigLIP."""
    inner = read.block("vision_config")
    if inner is None:
        return {}
    side = inner.size("image_size", default=224)
    patch = inner.size("patch_size", default=16)
    vision = Vision(
        width=inner.size("hidden_size", default=768),
        layers=inner.size("num_hidden_layers", default=12, most=1000),
        ffn=inner.size("intermediate_size", default=3072),
        patches=max(1, side // patch) ** 2,
        patch=patch,
        channels=inner.size("num_channels", default=3),
    )
    return {"vision": vision, "parts": fields["parts"] | {"vision"}}


def _mamba(read: Reader, fields: Fields) -> Fields:
    width = fields["width"]
    rank = read.values.get("time_step_rank", "auto")
    expand = read.size("expand", default=2, most=1 << 10)
    state = StateSpace(
        inner=read.size("intermediate_size", default=expand * width),
        state=read.size("state_size", default=16),
        kernel=read.size("conv_kernel", default=4),
        rank=-(-width // 16) if rank in ("auto", None) else read.size("time_step_rank"),
    )
    return {"state_space": state}


def _bert(read: Reader, _: Fields) -> Fields:
    return {"token_types": read.size("type_vocab_size", default=2, least=0)}


def _t5(read: Reader, fields: Fields) -> Fields:
    kind = read.values.get("feed_forward_proj", "relu")
    if not isinstance(kind, str):
        raise read.fail(f"feed_forward_proj is {short(kind)}, expected a word")
    gated = kind.startswith("gated-")
    act = {"gated-gelu": "gelu_new"}.get(kind, kind.removeprefix("gated-"))
    return {
        "activation": act,
        "scale_attention": False,
        "decoder_layers": read.size("num_decoder_layers", default=fields["layers"], most=10_000),
        "buckets": read.size("relative_attention_num_buckets", default=32),
        "parts": fields["parts"] | {"gated" if gated else "plain_ffn"},
    }


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
        Defaults("mixtral", positions=131_072, kv_heads=8, eps=1e-5, theta=1e6, windows="all layers", extra=_experts()),
        Defaults("qwen2", kv_heads=32, qkv_bias=True, **_QWEN),
        Defaults("qwen3", kv_heads=32, head_dim=128, **_ATTENTION_BIAS, **_QWEN),
        Defaults(
            "qwen2_moe", kv_heads=16, extra=_qwen_moe(60, 4, 1408, 5632), **{**_QWEN, "qkv_bias": ("qkv_bias", True)}
        ),
        Defaults("qwen3_moe", kv_heads=4, extra=_qwen_moe(128, 8, 768, 0), **_ATTENTION_BIAS, **_QWEN),
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
                extra=_gemma3,
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
            extra=_experts(16),
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
            extra=_gpt_bigcode,
            **{**_GPT, "activation": "gelu_pytorch_tanh"},
            **_ALL_BIASES,
        ),
        Defaults("gpt_neo", tied=True, ffn_ratio=4, output_bias=True, ffn_bias=True, extra=_gpt_neo, **_GPT),
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
            extra=_opt,
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
        Defaults("mpt", activation="gelu", eps_key="layer_norm_epsilon", eps=1e-5, tied=True, ffn_ratio=4, extra=_mpt),
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
            extra=_falcon,
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
        Defaults("olmoe", eps=1e-5, positions=4096, extra=_experts(64, 8), **_ATTENTION_BIAS),
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
        Defaults("granitemoe", extra=_experts(), **_ATTENTION_BIAS),
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
        Defaults("chatglm", eps_key="layernorm_epsilon", eps=1e-5, qkv_bias="add_qkv_bias", extra=_chatglm),
        Defaults("qwen", eps_key="layer_norm_epsilon", positions=8192, qkv_bias=True, extra=_qwen),
        Defaults("deepseek_v2", extra=_deepseek(1536, 64, 6), **_ATTENTION_BIAS),
        Defaults("deepseek_v3", positions=4096, extra=_deepseek(1536, 256, 8), **_ATTENTION_BIAS),
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
            extra=_experts(128, 4),
            qkv_bias=("attention_bias", True),
            output_bias=("attention_bias", True),
        ),
        Defaults(
            "mamba",
            eps_key="layer_norm_epsilon",
            eps=1e-5,
            tied=True,
            parts={"conv_bias": ("use_conv_bias", True), "ssm_bias": "use_bias"},
            extra=_mamba,
        ),
        Defaults("bert", extra=_bert, **_BERT),
        Defaults("roberta", extra=_bert, **_BERT),
        Defaults("distilbert", **{**_BERT, "activation_key": "activation"}),
        Defaults("t5", eps_key="layer_norm_epsilon", tied=True, positions=512, extra=_t5),
    )
}
# What a family was called before transformers had it.
ALIASES = {"RefinedWeb": "falcon", "RefinedWebModel": "falcon", "phi-msft": "mixformer-sequential"}
