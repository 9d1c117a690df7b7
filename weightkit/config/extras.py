"""Extras: fields of Config that only one family has, read by a function of its own."""

from __future__ import annotations

from dataclasses import replace

from weightkit.config.defaults import Extra, Fields
from weightkit.config.normal import Experts, Rope, StateSpace, Vision
from weightkit.config.positions import attention_types
from weightkit.config.reader import Reader, short


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
    parts = fields["parts"] | {part, *(("one_norm",) if part != "two_norms" else ())}
    kind = "scaled alibi" if read.flag("alibi", default=False) else "rope"
    return {"kv_heads": kv_heads, "parts": parts, "position_kind": kind, "parallel": parallel or new}


def gpt2(read: Reader, fields: Fields) -> Fields:
    """Whether scores are scaled, by the size of a head and by the layer."""
    scaled = read.flag("scale_attn_weights", default=True)
    return {
        "attention_scale": fields["attention_scale"] if scaled else 1.0,
        "scale_by_layer": read.flag("scale_attn_by_inverse_layer_idx", default=False),
    }


def gpt_bigcode(read: Reader, fields: Fields) -> Fields:
    """One key head for all, or one each."""
    scaled = read.flag("scale_attn_weights", default=True)
    return {
        "kv_heads": 1 if read.flag("multi_query", default=True) else fields["heads"],
        "attention_scale": fields["attention_scale"] if scaled else 1.0,
    }


def rotary_dims(default: int) -> Extra:
    """How many dimensions of a head are rotated, by a key of its own."""

    def extra(read: Reader, fields: Fields) -> Fields:
        dims = read.size("rotary_dim", default=min(default, fields["head_dim"]), most=fields["head_dim"])
        return {"rope": replace(fields["rope"], dims=dims)}

    return extra


def clipped(read: Reader, _: Fields) -> Fields:
    """A bound on queries, keys and values."""
    return {"qkv_clip": read.number("clip_qkv") or None}


def olmo(_read: Reader, _fields: Fields) -> Fields:
    """Norms without weights."""
    return {"bare_norms": True}


def bloom(read: Reader, _: Fields) -> Fields:
    """What each half of a block is added to."""
    return {"residual_normed": read.flag("apply_residual_connection_post_layernorm", default=False)}


def cohere(read: Reader, _: Fields) -> Fields:
    """A scale on the logits."""
    return {"logit_scale": read.number("logit_scale", default=0.0625) or 0.0}


def cohere2(read: Reader, fields: Fields) -> Fields:
    """Only layers with a window are rotated."""
    full = frozenset(layer for layer, window in enumerate(fields["windows"]) if window is None)
    return {**cohere(read, fields), "unrotated": full}


def smollm3(read: Reader, fields: Fields) -> Fields:
    """Some layers are not rotated: those where no_rope_layers says 0, or every fourth. Only they have windows."""
    layers = fields["layers"]
    said = read.values.get("no_rope_layers")
    every = read.size("no_rope_layer_interval", default=4)
    said = [(layer + 1) % every != 0 for layer in range(layers)] if said is None else said
    if not isinstance(said, list) or len(said) != layers:
        raise read.fail(f"no_rope_layers is {short(said)}, expected a 0 or 1 for each of {layers} layers")
    windows = fields["windows"]
    if read.values.get("layer_types") is None:
        windows = tuple(None if rotated else window for rotated, window in zip(said, windows, strict=True))
    return {"unrotated": frozenset(layer for layer, rotated in enumerate(said) if not rotated), "windows": windows}


def internlm(read: Reader, fields: Fields) -> Fields:
    """Its rope, in words of its own."""
    inner = read.block("rotary")
    if inner is None:
        return {}
    kind = inner.word("type", known=frozenset(("origin", "dynamic")), default="origin")
    rope = replace(fields["rope"], theta=inner.positive("base", default=10_000.0))
    if kind == "dynamic":
        rope = replace(rope, type="dynamic", factor=inner.positive("scaling_factor", default=1.0))
    return {"rope": rope}


def granite(read: Reader, _: Fields) -> Fields:
    """Its four multipliers."""
    return {
        "attention_scale": read.positive("attention_multiplier", default=1.0),
        "embed_scale": read.positive("embedding_multiplier", default=1.0),
        "residual_scale": read.positive("residual_multiplier", default=1.0),
        "logit_scale": 1 / read.positive("logits_scaling", default=1.0),
    }


def embedding_by_width(_: Reader, fields: Fields) -> Fields:
    """The embedding is as large as the root of its width."""
    return {"embed_scale": fields["width"] ** 0.5}


def gemma(_: Reader, fields: Fields) -> Fields:
    """The first Gemma's configs say gelu and mean its tanh form."""
    return {"activation": "gelu_pytorch_tanh"} if fields["activation"] == "gelu" else {}


def gemma2(read: Reader, _: Fields) -> Fields:
    """Caps on scores and logits, and a scale of its own on scores."""
    return {
        "attention_scale": read.positive("query_pre_attn_scalar", default=256.0) ** -0.5,
        "score_cap": _cap(read, "attn_logit_softcapping", 50.0),
        "logit_cap": _cap(read, "final_logit_softcapping", 30.0),
    }


def _cap(read: Reader, key: str, default: float | None) -> float | None:
    """A key that is there and null means no cap; 0 would be none too."""
    return (read.number(key) if key in read.values else default) or None


def gpt_oss(read: Reader, fields: Fields) -> Fields:
    """Gates that are clamped; without a word of its rope, that of the first of these models."""
    rope = fields["rope"]
    if read.get("rope_scaling", "rope_parameters")[1] is None:
        rope = replace(rope, type="yarn", factor=32.0, original_positions=4096, truncate=False)
    return {
        "rope": rope,
        "gate_clamp": read.positive("swiglu_limit", default=7.0),
        "gate_alpha": read.positive("swiglu_alpha", default=1.702),
    }


def phimoe(read: Reader, fields: Fields) -> Fields:
    """transformers takes the short factors of its longrope at any length, and a scale by length."""
    full: Rope = fields["rope"]
    mixture: Experts = fields["experts"]
    routing = replace(mixture.routing, jitter=read.number("router_jitter_noise", default=0.01) or 0.0)
    return {
        "rope": replace(full, long_factor=full.short_factor),
        "experts": replace(mixture, routing=routing),
    }


def gpt_neo(read: Reader, fields: Fields) -> Fields:
    """Windows by attention_types; scores are not scaled."""
    return {"windows": attention_types(read, fields["layers"]), "attention_scale": 1.0}


def opt(read: Reader, fields: Fields) -> Fields:
    """An embedding of its own width, and where the last norm is."""
    embed_width = read.size("word_embed_proj_dim", default=fields["width"])
    before = read.flag("do_layer_norm_before", default=True)
    affine = read.flag("layer_norm_elementwise_affine", default=True)
    parts = {"projected"} if embed_width != fields["width"] else set()
    if affine:
        parts.add("norm_before" if before else "norm_after")
    if before and affine and not read.flag("_remove_final_layer_norm", default=False):
        parts.add("final_norm")
    return {
        "embed_width": embed_width,
        "position_offset": 2,
        "parts": fields["parts"] | parts,
        "norms": "before" if before else "sum",
        "bare_norms": not affine,
    }


def mpt(read: Reader, fields: Fields) -> Fields:
    """Key heads and positions as attn_config says."""
    inner = read.block("attn_config") or Reader({}, read.where)
    kv_heads = inner.size("kv_n_heads", default=1 if inner.values.get("attn_type") == "multiquery_attention" else 0)
    alibi = inner.flag("alibi", default=True)
    learned = read.flag("learned_pos_emb", default=True) and not alibi
    return {
        "kv_heads": kv_heads or fields["heads"],
        "parts": fields["parts"] | ({"positions"} if learned else set()),
        "position_kind": "alibi" if alibi else "learned" if learned else "none",
        "attention_scale": inner.number("softmax_scale") or fields["attention_scale"],
        "qkv_clip": inner.number("clip_qkv") or None,
    }


def qwen(read: Reader, fields: Fields) -> Fields:
    """Its intermediate_size is that of gate and up together."""
    head_dim = read.size("kv_channels", default=fields["head_dim"])
    return {"ffn": fields["ffn"] // 2, **_heads_of(head_dim, fields, 1)}


def _heads_of(head_dim: int, fields: Fields, rotated: int) -> Fields:
    """Heads of another size than the width says; one in so many of their dimensions is rotated."""
    rope = replace(fields["rope"], dims=head_dim // rotated)
    return {"head_dim": head_dim, "rope": rope, "attention_scale": head_dim**-0.5}


def chatglm(read: Reader, fields: Fields) -> Fields:
    """Key heads come in groups of heads."""
    groups = read.size("multi_query_group_num", default=2)
    grouped = read.flag("multi_query_attention", default=False)
    fields["rope"] = replace(fields["rope"], theta=fields["rope"].theta * read.positive("rope_ratio", default=1.0))
    found = _heads_of(read.size("kv_channels", default=128), fields, 2)
    return {**found, "kv_heads": groups if grouped else fields["heads"]}


def gemma3(read: Reader, fields: Fields) -> Fields:
    """A scale of its own on scores, and the vision tower of the models that have one: SigLIP."""
    found = {
        "attention_scale": read.positive("query_pre_attn_scalar", default=256.0) ** -0.5,
        "logit_cap": _cap(read, "final_logit_softcapping", None),
    }
    inner = read.block("vision_config")
    if inner is None:
        return found
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
    return {**found, "vision": vision, "parts": fields["parts"] | {"vision"}}


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


def roberta(read: Reader, fields: Fields) -> Fields:
    """Positions are counted from the one after that of padding; the head has an activation of its own."""
    pad = read.size("pad_token_id", default=1, least=0)
    return {**bert(read, fields), "pad_id": pad, "head_activation": "gelu"}


def t5(read: Reader, fields: Fields) -> Fields:
    """A decoder beside the encoder, and the kind of FFN."""
    kind = read.values.get("feed_forward_proj", "relu")
    if not isinstance(kind, str):
        raise read.fail(f"feed_forward_proj is {short(kind)}, expected a word")
    gated = kind.startswith("gated-")
    # transformers 5 calls every T5 tied, and keeps in a key of its own what being tied meant.
    scaled = read.flag("scale_decoder_outputs", default=read.flag("tie_word_embeddings", default=True))
    act = {"gated-gelu": "gelu_new"}.get(kind, kind.removeprefix("gated-"))
    return {
        "activation": act,
        "attention_scale": 1.0,
        "logit_scale": fields["width"] ** -0.5 if scaled else 1.0,
        "decoder_layers": read.size("num_decoder_layers", default=fields["layers"], most=10_000),
        "buckets": read.size("relative_attention_num_buckets", default=32),
        "farthest": read.size("relative_attention_max_distance", default=128),
        "decoder_start": read.size("decoder_start_token_id", default=0, least=0),
        "parts": fields["parts"] | {"gated" if gated else "plain_ffn"},
    }
