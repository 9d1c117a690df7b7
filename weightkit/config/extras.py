"""Extras: fields of Config that only one family has, read by a function of its own."""

from __future__ import annotations

from collections.abc import Callable

from weightkit.config.defaults import Fields
from weightkit.config.normal import Experts, Latent, StateSpace, Vision
from weightkit.config.positions import attention_types
from weightkit.config.reader import Reader, short


def experts(
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


def qwen_moe(count: int, per_token: int, ffn: int, shared_ffn: int) -> Callable[[Reader, Fields], Fields]:
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


def deepseek(q_rank: int | None, experts: int, per_token: int) -> Callable[[Reader, Fields], Fields]:
    """Latent attention, and experts after the first few layers."""

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


def falcon(read: Reader, fields: Fields) -> Fields:
    """Falcon's four layouts: 7b, 40b and 180b (two norms), 11b (one), rw (not parallel)."""
    new = read.flag("new_decoder_architecture", default=read.values.get("model_type") == "RefinedWeb")
    parallel = read.flag("parallel_attn", default=True)
    norms = read.size("num_ln_in_parallel_attn", default=2 if new else 1)
    if new:
        kv_heads = read.size("num_kv_heads", "n_head_kv", default=fields["heads"])
    else:
        kv_heads = 1 if read.flag("multi_query", default=True) else fields["heads"]
    part = "norm_before_ffn" if not parallel else "two_norms" if new and norms == 2 else "one_norm"
    if fields["heads"] % kv_heads:
        raise read.fail(f"{fields['heads']} heads are not a multiple of {kv_heads} key heads")
    return {"kv_heads": kv_heads, "parts": fields["parts"] | {part, *(("one_norm",) if part != "two_norms" else ())}}


def gpt_bigcode(read: Reader, fields: Fields) -> Fields:
    """One key head for all, or one each."""
    return {"kv_heads": 1 if read.flag("multi_query", default=True) else fields["heads"]}


def gpt_neo(read: Reader, fields: Fields) -> Fields:
    """Windows by attention_types; scores are not scaled."""
    return {"windows": attention_types(read, fields["layers"]), "scale_attention": False}


def opt(read: Reader, fields: Fields) -> Fields:
    """An embedding of its own width, and where the last norm is."""
    embed_width = read.size("word_embed_proj_dim", default=fields["width"])
    before = read.flag("do_layer_norm_before", default=True)
    parts = {"projected"} if embed_width != fields["width"] else set()
    if before and "affine" in fields["parts"] and not read.flag("_remove_final_layer_norm", default=False):
        parts.add("final_norm")
    return {"embed_width": embed_width, "position_offset": 2, "parts": fields["parts"] | parts}


def mpt(read: Reader, fields: Fields) -> Fields:
    """Key heads and positions as attn_config says."""
    inner = read.block("attn_config") or Reader({}, read.where)
    kv_heads = inner.size("kv_n_heads", default=1 if inner.values.get("attn_type") == "multiquery_attention" else 0)
    parts = (
        {"positions"} if read.flag("learned_pos_emb", default=True) and not inner.flag("alibi", default=True) else set()
    )
    return {"kv_heads": kv_heads or fields["heads"], "parts": fields["parts"] | parts}


def qwen(read: Reader, fields: Fields) -> Fields:
    """Its intermediate_size is that of gate and up together."""
    return {"ffn": fields["ffn"] // 2, "head_dim": read.size("kv_channels", default=fields["head_dim"])}


def chatglm(read: Reader, fields: Fields) -> Fields:
    """Key heads come in groups of heads."""
    groups = read.size("multi_query_group_num", default=2)
    grouped = read.flag("multi_query_attention", default=False)
    return {"kv_heads": groups if grouped else fields["heads"], "head_dim": read.size("kv_channels", default=128)}


def gemma3(read: Reader, fields: Fields) -> Fields:
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


def mamba(read: Reader, fields: Fields) -> Fields:
    """The sizes of the mixer."""
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


def bert(read: Reader, _: Fields) -> Fields:
    """The kinds of tokens."""
    return {"token_types": read.size("type_vocab_size", default=2, least=0)}


def t5(read: Reader, fields: Fields) -> Fields:
    """A decoder beside the encoder, and the kind of FFN."""
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
