"""Mixtures of experts, and DeepSeek's latent attention, which comes with them: fields of Config read by functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from weightkit.config.defaults import Extra, Fields
from weightkit.config.normal import Experts, Latent, Rope, Routing
from weightkit.config.reader import Reader, short

_SOFTMAX = Routing()


def experts(count: int = 8, per_token: int = 2, *, routing: Routing = _SOFTMAX, renormalise: bool = False) -> Extra:
    """A mixture of experts in every layer. `renormalise`: a key says whether weights are made to add up to one."""

    def extra(read: Reader, fields: Fields) -> Fields:
        number = read.size("num_local_experts", "num_experts", default=count, most=1 << 16)
        normalised = read.flag("norm_topk_prob", default=False) if renormalise else routing.normalised
        how = replace(routing, normalised=normalised)
        return {"experts": Experts(number, _per_token(read, per_token, number), fields["ffn"], routing=how)}

    return extra


def _per_token(read: Reader, default: int, count: int) -> int:
    return read.size("num_experts_per_tok", "experts_per_token", default=min(default, count), most=count)


def qwen_moe(count: int, per_token: int, ffn: int, shared_ffn: int) -> Extra:
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
        routing = Routing(normalised=read.flag("norm_topk_prob", default=False))
        used = _per_token(read, per_token, max(number, 1))
        return {"experts": Experts(max(number, 1), used, width, shared, dense, routing)}

    return extra


def deepseek(
    experts: Experts, routing: Callable[[Reader, int], Routing], *, dense_layers: int = 0, mtp_layers: int = 0
) -> Extra:
    """Latent attention, and experts after the first few layers. `experts` is what an absent key means."""

    def extra(read: Reader, fields: Fields) -> Fields:
        rank = read.values.get("q_lora_rank", 1536)
        latent = Latent(
            q_rank=0 if rank is None else read.size("q_lora_rank", default=1536),
            kv_rank=read.size("kv_lora_rank", default=512),
            nope=read.size("qk_nope_head_dim", default=128),
            rope=read.size("qk_rope_head_dim", default=64),
            value=read.size("v_head_dim", default=128),
        )
        number = read.size("n_routed_experts", "num_local_experts", default=experts.count, most=1 << 16)
        width = read.size("moe_intermediate_size", default=experts.ffn)
        first = read.size("first_k_dense_replace", default=dense_layers, least=0)
        every = read.size("moe_layer_freq", default=1)
        moe = Experts(
            number,
            _per_token(read, experts.per_token, number),
            width,
            width * read.size("n_shared_experts", default=experts.shared_ffn // experts.ffn, least=0),
            tuple(layer < first or layer % every != 0 for layer in range(fields["layers"])),
            routing(read, number),
        )
        straight = {"q_straight"} if not latent.q_rank else {"q_latent"}
        rotated: Rope = replace(fields["rope"], dims=latent.rope)
        return {
            "latent": latent,
            "experts": moe,
            "head_dim": latent.nope + latent.rope,
            "rope": rotated,
            "attention_scale": (latent.nope + latent.rope) ** -0.5 * _temperature(rotated) ** 2,
            "mtp_layers": read.size("num_nextn_predict_layers", default=mtp_layers, most=64, least=0),
            "parts": fields["parts"] | straight,
        }

    return extra


def _temperature(rope: Rope) -> float:
    """How much sharper attention is made in a longer context. Source: arXiv:2309.00071, section 3.4."""
    if rope.type == "default" or not rope.mscale_all_dim or (rope.factor or 1.0) <= 1:
        return 1.0
    return 0.1 * rope.mscale_all_dim * math.log(rope.factor or 1.0) + 1.0


def deepseek_v2_routing(read: Reader, count: int) -> Routing:
    """The best by softmax, of all experts or of the best groups; their weights are left as they are."""
    scale = read.number("routed_scaling_factor", default=1.0) or 0.0
    if read.values.get("topk_method", "greedy") != "group_limited_greedy":
        return Routing(scale=scale)
    return replace(_groups(read, Routing(scale=scale), count, 1, 1), best_of_group=1)


def deepseek_v3_routing(read: Reader, count: int) -> Routing:
    """The best by sigmoid and a correction, of the groups whose two best are best."""
    routing = Routing(
        "sigmoid",
        normalised=read.flag("norm_topk_prob", default=True),
        scale=read.number("routed_scaling_factor", default=2.5) or 0.0,
        best_of_group=2,
    )
    return _groups(read, routing, count, 8, 4)


def _groups(read: Reader, routing: Routing, count: int, groups: int, kept: int) -> Routing:
    groups = read.size("n_group", default=groups)
    if count % groups:
        raise read.fail(f"{count} experts are not a multiple of {groups} groups")
    return replace(routing, groups=groups, groups_kept=read.size("topk_group", default=kept, most=groups))
