"""Packing: quantised weights, one logical matrix held by several stored tensors.

Each scheme is one entry of the table below: how the names of its tensors end, and the functions that say
what matrix they hold and compute its rows.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Iterable, Mapping
from functools import partial

from weightkit.dtypes import DType
from weightkit.packing import bits_and_bytes, floats, integers
from weightkit.packing.packed import Packed, Scheme, Settings
from weightkit.tensor import Source

__all__ = ["Packed", "bookkeeping", "parts", "schemes_of", "unpack"]

_ZEROS = (".qzeros", ".scales")
_BOOK = (".weight.absmax", ".weight.quant_map")
_NESTED = (".weight.nested_absmax", ".weight.nested_quant_map")
_STATE = ".weight.quant_state.bitsandbytes__"
_INVERSE = ".weight_scale_inv"
_SCALE, _PACKED, _OUTER = ".weight_scale", ".weight_packed", ".weight_global_scale"
_OFFSETS = (".weight_zero_point", ".weight_shape", ".weight_g_idx")

# The first scheme whose tensors are all there, and which does not say that they are not its own, is taken.
SCHEMES = (
    Scheme("GPTQ", ".qweight", _ZEROS, (".g_idx",), integers.gptq, integers.gptq_rows),
    Scheme("AWQ", ".qweight", _ZEROS, (), integers.awq, integers.awq_rows),
    Scheme("NF4", ".weight", (*_BOOK, _STATE + "nf4"), _NESTED, bits_and_bytes.four, bits_and_bytes.four_rows),
    Scheme("BNB-FP4", ".weight", (*_BOOK, _STATE + "fp4"), _NESTED, bits_and_bytes.four, bits_and_bytes.four_rows),
    Scheme("LLM.int8", ".weight", (".SCB",), (".weight_format",), bits_and_bytes.eight, bits_and_bytes.eight_rows),
    Scheme(
        "FP8-block",
        ".weight",
        (_INVERSE,),
        (),
        partial(floats.scaled, _INVERSE),
        partial(floats.scaled_rows, _INVERSE),
    ),
    Scheme(
        "NVFP4",
        _PACKED,
        (_SCALE, _OUTER),
        (),
        partial(floats.small, 4, _PACKED, 16, _OUTER),
        partial(floats.small_rows, _PACKED, _OUTER),
    ),
    Scheme(
        "ModelOpt-FP4",
        ".weight",
        (_SCALE, ".weight_scale_2"),
        (),
        partial(floats.small, 4, ".weight", 16, ".weight_scale_2"),
        partial(floats.small_rows, ".weight", ".weight_scale_2"),
    ),
    Scheme("packed-int", _PACKED, (_SCALE,), _OFFSETS, integers.packed, integers.packed_rows),
    *(
        Scheme(
            f"MXFP{bits}",
            _PACKED,
            (_SCALE,),
            (),
            partial(floats.small, bits, _PACKED, 32, ""),
            partial(floats.small_rows, _PACKED, ""),
        )
        for bits in (6, 4)
    ),
    Scheme(
        "scaled",
        ".weight",
        (_SCALE,),
        _OFFSETS[:1],
        partial(floats.scaled, _SCALE),
        partial(floats.scaled_rows, _SCALE),
    ),
    Scheme("MXFP4", "_blocks", ("_scales",), (), floats.mxfp4, floats.mxfp4_rows),
    Scheme("MLX", ".weight", (".scales",), (".biases",), integers.mlx, integers.mlx_rows),
)
# Scales of activations, and what else lies beside packed weights; nothing that a matrix is computed from.
_BESIDE = tuple(
    f".{name}"
    for name in "input_scale output_scale q_scale k_scale v_scale input_global_scale input_zero_point".split()
)
_ENDINGS = tuple({ending for scheme in SCHEMES for ending in (*scheme.needs, *scheme.may)}.union(_BESIDE))


def schemes_of(names: Iterable[str]) -> tuple[Scheme, ...]:
    """The schemes that any of the tensors of these names can be of: most files have one, or none."""
    last = {name.rpartition(".")[2] for name in names}  # few, however many names there are

    def seen(ending: str) -> bool:
        return any(part.endswith(ending.rpartition(".")[2]) for part in last)

    return tuple(scheme for scheme in SCHEMES if all(map(seen, scheme.needs)))


def unpack(
    base: str, tensors: Mapping[str, Source], settings: Settings, schemes: tuple[Scheme, ...] = SCHEMES
) -> Packed | None:
    """The packed matrix `base` (`model.layers.0.self_attn.q_proj`), or None where it is not packed.

    `settings` is the config's quantization_config. Raises FormatError where its tensors contradict each other.
    """
    for scheme in schemes:
        if not scheme.is_there(base, tensors):
            continue
        endings = (scheme.main, *scheme.needs, *scheme.may)
        found = {ending: tensors[base + ending] for ending in endings if base + ending in tensors}
        made = scheme.make(base, found, settings)
        if made is not None:
            shape, bits, options = made
            return Packed(
                found[scheme.main].name, _dtype(scheme.name, bits), shape, tuple(found.items()), scheme.rows, options
            )
    return None


@functools.cache
def _dtype(scheme: str, bits: int) -> DType:
    return DType(f"{scheme}-{bits}bit", 8 * bits, "float", "<f4", block=8)


def parts(base: str, names: Container[str], schemes: tuple[Scheme, ...] = SCHEMES) -> tuple[str, ...]:
    """Every name that belongs to the packed matrix `base`, that of the numbers first; none if it is not packed."""
    for scheme in schemes:
        if scheme.is_there(base, names):
            endings = (scheme.main, *scheme.needs, *scheme.may, *_BESIDE)
            return tuple([base + ending for ending in endings if base + ending in names])
    return ()


def bookkeeping(name: str) -> bool:
    """Whether a tensor is named like scales, zero points or states of packed weights."""
    return name.endswith(_ENDINGS)
