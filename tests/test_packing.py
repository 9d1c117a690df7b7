"""Packed weights: each scheme packed here the slow way, number by number, and read back.

The loops follow the packers of AutoGPTQ, AutoAWQ, bitsandbytes, compressed-tensors and MLX; the values are
computed from the small numbers by the formula of each, written here once more. Tests marked `oracle` ask the
unpackers of transformers.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import weightkit as wk
from tests import tiny
from tests.conftest import Cli
from weightkit import packing
from weightkit.checkpoint import open_checkpoint
from weightkit.errors import FormatError
from weightkit.weight import Weight

A = NDArray[Any]
RNG = np.random.default_rng(3)
OUT, IN = 64, 96
F4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def codes(*shape: int, bits: int) -> A:
    return RNG.integers(0, 1 << bits, shape)


def stream(numbers: A, bits: int) -> A:
    """Numbers [rows, n] one after another, lowest bits first, in words of 32 bits: [rows, n · bits / 32]."""
    words = np.zeros((len(numbers), numbers.shape[1] * bits // 32), np.uint64)
    for row, line in enumerate(numbers):
        whole = sum(int(n) << (bits * i) for i, n in enumerate(line))
        for word in range(words.shape[1]):
            words[row, word] = (whole >> (32 * word)) & 0xFFFFFFFF
    return words.astype(np.uint32)


def scales(*shape: int) -> A:
    return (RNG.random(shape) + 0.1).astype(np.float16)


Case = tuple[dict[str, A], dict[str, Any], A]  # tensors by ending, settings, the numbers that they stand for


def gptq(bits: int, *, order: bool = False, v2: bool = False) -> Case:
    q, group = codes(OUT, IN, bits=bits), 32
    z, s = codes(IN // group, OUT, bits=bits), scales(IN // group, OUT)
    index = RNG.integers(0, IN // group, IN) if order else np.arange(IN) // group
    tensors = {
        ".qweight": stream(q, bits).T.astype(np.int32).copy(),
        ".qzeros": stream(z if v2 else (z - 1) & ((1 << bits) - 1), bits).astype(np.int32),
        ".scales": s,
    }
    if order:
        tensors[".g_idx"] = index.astype(np.int32)
    settings = {"quant_method": "gptq", "bits": bits, "checkpoint_format": "gptq_v2" if v2 else "gptq"}
    value = s[index].T.astype(np.float32) * (q - z[index].T)
    return tensors, settings, value


def awq() -> Case:
    q, group = codes(OUT, IN, bits=4), 32
    z, s = codes(IN // group, OUT, bits=4), scales(IN // group, OUT)

    def pack(matrix: A) -> A:  # [rows, out] -> [rows, out / 8]
        words = np.zeros((len(matrix), OUT // 8), np.uint32)
        for word in range(OUT // 8):
            for place, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                words[:, word] |= matrix[:, 8 * word + column].astype(np.uint32) << np.uint32(4 * place)
        return words.astype(np.int32)

    tensors = {".qweight": pack(q.T), ".qzeros": pack(z), ".scales": s}
    index = np.arange(IN) // group
    return tensors, {"quant_method": "awq", "bits": 4}, s[index].T.astype(np.float32) * (q - z[index].T)


def nf4(*, nested: bool, storage: type[np.generic] = np.uint8) -> Case:
    book = np.sort(RNG.normal(size=16)).astype(np.float32)
    q, size, block = codes(OUT * IN, bits=4), OUT * IN, 64
    raw = np.array([(q[i] << 4) | q[i + 1] for i in range(0, size, 2)], np.uint8).view(storage)[:, None]
    absmax = RNG.random(size // block).astype(np.float32)
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": [OUT, IN]}
    tensors: dict[str, A] = {".weight": raw, ".weight.quant_map": book, ".weight.absmax": absmax}
    if nested:
        inner, outer, offset = RNG.normal(size=256).astype(np.float32), RNG.random(6).astype(np.float32), 0.25
        small = codes(size // block, bits=8)
        absmax = np.array([inner[n] * outer[i // 16] + np.float32(offset) for i, n in enumerate(small)], np.float32)
        state |= {"nested_blocksize": 16, "nested_offset": offset, "nested_dtype": "float32"}
        tensors |= {".weight.absmax": small.astype(np.uint8), ".weight.nested_absmax": outer,
                    ".weight.nested_quant_map": inner}  # fmt: skip
    tensors[".weight.quant_state.bitsandbytes__nf4"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return tensors, {"quant_method": "bitsandbytes"}, (book[q] * np.repeat(absmax, block)).reshape(OUT, IN)


def int8() -> Case:
    q, s = RNG.integers(-127, 128, (OUT, IN)).astype(np.int8), RNG.random(OUT).astype(np.float32)
    tensors: dict[str, A] = {".weight": q, ".SCB": s, ".weight_format": np.array(0, np.uint8)}
    return tensors, {"quant_method": "bitsandbytes"}, q * (s[:, None] / np.float32(127))


def packed_int(bits: int = 4, *, zeros: bool = False, group: int = 32, order: bool = False) -> Case:
    """The settings always speak of 4 bits: of the others the shapes tell."""
    q, s = codes(OUT, IN, bits=bits), scales(OUT, IN // group)
    z = codes(OUT, IN // group, bits=bits) if zeros else np.full((OUT, IN // group), 1 << (bits - 1))
    tensors = {".weight_packed": stream(q, bits).astype(np.int32), ".weight_scale": s,
               ".weight_shape": np.array([OUT, IN])}  # fmt: skip
    if zeros:
        tensors[".weight_zero_point"] = stream(z.T, bits).T.astype(np.int32).copy()  # packed down the rows
    index = RNG.integers(0, IN // group, IN) if order else np.arange(IN) // group
    if order:
        tensors[".weight_g_idx"] = index.astype(np.int32)
    value = (q - z[:, index]).astype(np.float32) * s[:, index].astype(np.float32)
    settings = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}
    return tensors, settings, value


def stacked(*cases: Case) -> Case:
    """The experts of one layer in one tensor."""
    first = cases[0][0]
    tensors = {ending: np.stack([case[0][ending] for case in cases]) for ending in first if ending != ".weight_shape"}
    if ".weight_shape" in first:
        tensors[".weight_shape"] = np.array([len(cases), OUT, IN])
    return tensors, cases[0][1], np.stack([case[2] for case in cases])


def int8_zeros() -> Case:
    q, z = RNG.integers(-128, 128, (OUT, IN)), RNG.integers(-128, 128, (OUT, 3))
    s = RNG.random((OUT, 3)).astype(np.float32)
    index = np.arange(IN) // 32
    tensors: dict[str, A] = {".weight": q.astype(np.int8), ".weight_scale": s, ".weight_zero_point": z.astype(np.int8)}
    return tensors, {"quant_method": "compressed-tensors"}, (q - z[:, index]) * s[:, index]


def fp8(scale_shape: tuple[int, ...], ending: str = ".weight_scale", block: list[int] | None = None) -> Case:
    q = RNG.normal(size=(OUT, IN)).astype(ml_dtypes.float8_e4m3fn)
    s = RNG.random(scale_shape).astype(np.float32)
    high, wide = block or (OUT, IN)
    value = np.empty((OUT, IN), np.float32)
    for i in range(OUT):
        for j in range(IN):
            of_row = s.reshape(-1)[i % s.size]
            value[i, j] = np.float32(q[i, j]) * (s[i // high, j // wide] if block else of_row)
    return {".weight": q, ending: s}, {"quant_method": "fp8", "weight_block_size": block}, value


def exponents(*, pairs: bool = False) -> Case:
    """MXFP8: a byte for every 32 numbers, a power of two; or pairs of FP4 in bytes, beside weight_scale_inv."""
    e = RNG.integers(120, 134, (OUT, IN // 32)).astype(np.uint8)
    each = np.repeat(np.exp2(e.astype(np.float64) - 127), 32, axis=1)
    if pairs:
        q = codes(OUT, IN, bits=4)
        raw = (q[:, 0::2] | (q[:, 1::2] << 4)).astype(np.uint8).view(np.int8)
        return {".weight": raw, ".weight_scale_inv": e}, {"quant_method": "fp8"}, F4[q] * each
    w = RNG.normal(size=(OUT, IN)).astype(ml_dtypes.float8_e4m3fn)
    return {".weight": w, ".weight_scale": e}, {"quant_method": "compressed-tensors"}, w.astype(np.float64) * each


def mx(bits: int) -> Case:
    """MXFP4 and MXFP6 of compressed-tensors."""
    q, e = codes(OUT, IN, bits=bits), RNG.integers(120, 134, (OUT, IN // 32)).astype(np.uint8)
    six = np.arange(64, dtype=np.uint8).view(ml_dtypes.float6_e2m3fn).astype(np.float32)
    value = (F4 if bits == 4 else six)[q] * np.repeat(np.exp2(e.astype(np.float64) - 127), 32, axis=1)
    return {".weight_packed": stream(q, bits).view(np.uint8), ".weight_scale": e}, {}, value


def fp4(*, modelopt: bool) -> Case:
    q = codes(OUT, IN, bits=4)
    raw = (q[:, 0::2] | (q[:, 1::2] << 4)).astype(np.uint8)
    s = (RNG.random((OUT, IN // 16)) + 0.5).astype(ml_dtypes.float8_e4m3fn)
    outer = np.array([3.5], np.float32)
    each = np.repeat(s.astype(np.float32) * outer if modelopt else s.astype(np.float32) / outer, 16, axis=1)
    names = (".weight", ".weight_scale_2") if modelopt else (".weight_packed", ".weight_global_scale")
    return {names[0]: raw, ".weight_scale": s, names[1]: outer}, {"quant_method": "modelopt"}, F4[q] * each


def mxfp4() -> Case:
    q, s = codes(3, 20, 2, 32, bits=4), RNG.integers(120, 134, (3, 20, 2)).astype(np.uint8)
    raw = (q[..., 0::2] | (q[..., 1::2] << 4)).astype(np.uint8)
    value = F4[q] * np.exp2(s.astype(np.float64) - 127)[..., None]
    return {"_blocks": raw, "_scales": s}, {"quant_method": "mxfp4"}, value.reshape(3, 20, 64).swapaxes(1, 2)


def mlx(bits: int) -> Case:
    q, group = codes(OUT, IN, bits=bits), 32
    s, b = scales(OUT, IN // group), scales(OUT, IN // group)
    index = np.arange(IN) // group
    value = q * s[:, index].astype(np.float32) + b[:, index].astype(np.float32)
    return {".weight": stream(q, bits), ".scales": s, ".biases": b}, {"group_size": group, "bits": bits}, value


def mlx_float(mode: str) -> Case:
    bits, group = (8, 32) if mode == "mxfp8" else (4, 16 if mode == "nvfp4" else 32)
    q = RNG.integers(0, 120, (OUT, IN)) if bits == 8 else codes(OUT, IN, bits=4)
    values = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32) if bits == 8 else F4
    if mode == "nvfp4":
        s = RNG.integers(40, 70, (OUT, IN // group)).astype(np.uint8)
        each = s.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    else:
        s = RNG.integers(120, 134, (OUT, IN // group)).astype(np.uint8)
        each = np.exp2(s.astype(np.float64) - 127)
    settings = {"group_size": 64, "bits": 4, BASE: {"group_size": group, "bits": bits, "mode": mode}}
    return {".weight": stream(q, bits), ".scales": s}, settings, values[q] * np.repeat(each, group, axis=1)


BASE = "model.layers.0.self_attn.q_proj"
CASES = {
    "GPTQ 4": gptq(4), "GPTQ 8": gptq(8), "GPTQ 2": gptq(2), "GPTQ 3": gptq(3), "GPTQ ordered": gptq(4, order=True),
    "GPTQ v2": gptq(4, v2=True), "AWQ": awq(), "NF4": nf4(nested=False), "NF4 nested": nf4(nested=True),
    "LLM.int8": int8(), "packed": packed_int(zeros=False), "packed zeros": packed_int(zeros=True),
    "packed by row": packed_int(zeros=False, group=IN), "FP8 of all": fp8((1,)), "FP8 scalar": fp8(()),
    "FP8 of rows": fp8((OUT, 1)), "FP8 flat rows": fp8((OUT,)),
    "FP8 blocks": fp8((4, 6), ".weight_scale_inv", [16, 16]), "FP8 ragged": fp8((3, 4), ".weight_scale_inv", [24, 28]),
    "NVFP4": fp4(modelopt=False), "ModelOpt": fp4(modelopt=True), "MXFP4": mxfp4(),
    "MLX 4": mlx(4), "MLX 8": mlx(8), "MLX 3": mlx(3), "MLX 6": mlx(6), "MLX 2": mlx(2), "MLX 1": mlx(1),
    "MLX 5": mlx(5), "MLX stack": stacked(mlx(4), mlx(4), mlx(4)), "MLX mxfp4": mlx_float("mxfp4"),
    "MLX mxfp8": mlx_float("mxfp8"), "MLX nvfp4": mlx_float("nvfp4"), "GPTQ v1 3": gptq(3, order=True),
    "NF4 in float16": nf4(nested=True, storage=np.float16), "packed ordered": packed_int(order=True),
    **{f"packed {bits}": packed_int(bits, zeros=bits % 2 == 1) for bits in (1, 2, 3, 5, 6, 7, 8)},
    "packed stack": stacked(*(packed_int(zeros=True) for _ in range(3))), "int8 zeros": int8_zeros(),
    "FP8 stack": stacked(*(fp8((4, 6), ".weight_scale_inv", [16, 16]) for _ in range(3))),
    "MXFP8": exponents(), "FP4 pairs": exponents(pairs=True), "MX 4": mx(4), "MX 6": mx(6),
}  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES)


def sources(folder: Path, tensors: Mapping[str, A]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({BASE + ending: np.ascontiguousarray(t) for ending, t in tensors.items()}, folder / "w.safetensors")
    return dict(open_checkpoint(folder / "w.safetensors").tensors)


def packed(folder: Path, case: Case) -> packing.Packed:
    found = packing.unpack(BASE, sources(folder, case[0]), case[1])
    assert found is not None
    return found


@every_case
def test_the_numbers(tmp_path: Path, case: str) -> None:
    tensors, _, value = CASES[case]
    found = packed(tmp_path, CASES[case])
    assert found.shape == value.shape
    np.testing.assert_allclose(found.mapped(), value, rtol=3e-7, atol=0)
    assert found.mapped().dtype == np.float32
    assert found.nbytes == sum(t.nbytes for t in tensors.values())
    assert found.dtype.packed


@every_case
def test_any_part_reads_as_the_whole_does(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = packed(tmp_path, CASES[case])
    whole = found.mapped().reshape(-1)
    monkeypatch.setattr("weightkit.packing.packed.BLOCK", 200)  # many steps
    half = whole.size // 2  # where one matrix of a stack ends, or near it
    spans = ((0, whole.size), (1, 2), (63, 65), (130, 1999), (half - 700, half + 700), (whole.size - 1, whole.size))
    for start, stop in (*spans, (5, 5)):
        np.testing.assert_array_equal(found.read(start, stop), whole[start:stop])


@every_case
def test_it_pickles(tmp_path: Path, case: str) -> None:
    found = packed(tmp_path, CASES[case])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).mapped(), found.mapped())


@every_case
def test_names_alone_tell_what_belongs_together(tmp_path: Path, case: str) -> None:
    names = {BASE + ending for ending in CASES[case][0]} | {BASE + ".input_scale", "other.weight"}
    found = packing.parts(BASE, names)
    assert set(found) == names - {"other.weight"}
    assert found[0] == packed(tmp_path, CASES[case]).name
    assert all(packing.bookkeeping(name) for name in found[1:])
    assert not packing.bookkeeping("other.weight")


@every_case
def test_parts_of_the_wrong_shape_or_type_are_refused(tmp_path: Path, case: str) -> None:
    """Whatever is wrong with one part: an error that names a tensor, or still a matrix; never anything else."""
    tensors, settings, value = CASES[case]
    refused = 0
    for ending, array in tensors.items():
        for number, bad in enumerate((array[:-1] if array.ndim else array, array.reshape(-1)[:0], array.reshape(1, -1),
                                      np.full_like(array, -1 if array.dtype.kind in "if" else 255),
                                      array.astype(np.float32))):  # fmt: skip
            found = sources(tmp_path / f"{ending}{number}", tensors | {ending: np.asarray(bad)})
            try:
                made = packing.unpack(BASE, found, settings)
                if made is not None:
                    made.read(0, min(100, int(np.prod(made.shape))))
            except FormatError as error:
                refused += BASE in str(error)
    assert refused
    assert value.size


@pytest.mark.parametrize("settings", [{"bits": "4"}, {"bits": 5}, {"bits": 1 << 80}, {"bits": True}, {"bits": -1}])
def test_settings_that_make_no_sense(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        packing.unpack(BASE, sources(tmp_path, CASES["GPTQ 4"][0]), {"quant_method": "gptq", **settings})


STATES = [
    b"", b"{", b"[]", b'{"shape": 3}', b'{"shape": [1e9, 2], "blocksize": 64}', b'{"shape": [64, 96], "blocksize": 0}',
    b'{"shape": [-1, 96], "blocksize": 64}', b"[" * 50_000, b'{"shape": [4611686018427387904, 4], "blocksize": 64}',
    b'{"shape": [64, 96], "blocksize": 64, "nested_offset": 1' + b"0" * 400 + b"}",
    b'{"shape": [64, 96], "blocksize": 32, "blocksize": 64}',
]  # fmt: skip


@pytest.mark.parametrize("state", STATES, ids=lambda state: state[:60].decode())
def test_a_state_that_a_stranger_wrote(tmp_path: Path, state: bytes) -> None:
    tensors = CASES["NF4"][0] | {".weight.quant_state.bitsandbytes__nf4": np.frombuffer(state, np.uint8)}
    with pytest.raises(FormatError, match=r"quant_state|needs"):
        packing.unpack(BASE, sources(tmp_path, tensors), {})


# case, the ending that is put in its place, what is put there, what the error says
SPOILT: list[tuple[str, str, A, str]] = [
    ("GPTQ ordered", ".g_idx", np.full(IN, -1, np.int32), "outside"),
    ("GPTQ ordered", ".g_idx", np.full(IN, 3, np.int32), "outside"),
    ("GPTQ 4", ".g_idx", np.full(IN, np.nan, np.float32), "needs I32"),
    ("GPTQ 4", ".scales", np.ones((3, OUT - 8), np.float16), "needs 64 a group"),
    ("GPTQ 4", ".scales", np.ones((5, OUT), np.float16), r"needs I32 or U32 \[5, 8\]"),
    ("AWQ", ".scales", np.ones((3, OUT), np.int32), "floats"),
    ("NF4 nested", ".weight.nested_absmax", np.ones(5, np.float32), "needs 6 floats"),
    ("NF4", ".weight.absmax", np.ones(96, np.uint8), "floats"),
    ("LLM.int8", ".weight_format", np.array(2, np.uint8), "only weights in rows"),
    ("LLM.int8", ".SCB", np.ones(OUT + 1, np.float32), "needs 64 floats"),
    ("packed", ".weight_shape", np.array([np.nan, np.inf], np.float32), "needs 2 I32 or I64"),
    ("packed", ".weight_shape", np.array([OUT, 1 << 62]), "rows of 12 words"),
    ("packed", ".weight_g_idx", np.full(IN, 7, np.int32), "outside"),
    ("packed", ".weight_g_idx", np.zeros(IN - 1, np.int32), "needs I32"),
    ("int8 zeros", ".weight_zero_point", np.zeros((3, OUT), np.int8), "the scales are"),
    ("FP8 blocks", ".weight_scale_inv", np.ones((5, 7), np.float32), "do not fit"),
    ("FP8 blocks", ".weight_scale_inv", np.ones((4, 6), np.int32), "floats"),
    ("NVFP4", ".weight_global_scale", np.ones(7, np.float32), "needs 1 floats"),
    ("MXFP4", "_blocks", np.zeros((3, 20, 2, 8), np.uint8), "expected 16"),
    ("MLX mxfp4", ".scales", np.ones((OUT, IN // 32), np.float16), "F8_E8M0"),
]


@pytest.mark.parametrize(("case", "ending", "array", "message"), SPOILT)
def test_a_part_that_a_stranger_wrote(tmp_path: Path, case: str, ending: str, array: A, message: str) -> None:
    with pytest.raises(FormatError, match=message) as error:
        packed(tmp_path, (CASES[case][0] | {ending: array}, *CASES[case][1:])).read(0, 100)
    assert BASE in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("case", "settings"),
    [
        ("GPTQ 4", {"checkpoint_format": "gptq_p"}),
        ("GPTQ 4", {"checkpoint_format": ["gptq"]}),
        ("GPTQ 4", {"dynamic": {"+:.*": {"bits": 4}}, "bits": "x"}),
        ("AWQ", {"version": "gemv"}),
        ("FP8 blocks", {"weight_block_size": [0, 16]}),
        ("FP8 blocks", {"weight_block_size": None, "config_groups": {"a": {"weights": {"block_structure": "x"}}}}),
        ("packed", {"config_groups": {"a": {"weights": {"num_bits": 1 << 70}}}}),
        ("MLX 4", {"mode": "nf4"}),
        ("MLX 4", {"mode": ["affine"]}),
        ("MLX 4", {BASE: {"group_size": 7}}),
    ],
)
def test_settings_that_are_not_known(tmp_path: Path, case: str, settings: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        packing.unpack(BASE, sources(tmp_path, CASES[case][0]), CASES[case][1] | settings)


def test_bits_that_differ_between_modules(tmp_path: Path) -> None:
    tensors, settings, value = CASES["GPTQ 8"]
    found = packed(tmp_path, (tensors, settings | {"bits": 4, "dynamic": {"+:.*q_proj": {"bits": 8}}}, value))
    np.testing.assert_allclose(found.mapped(), value, rtol=3e-7)


def test_groups_whose_last_is_shorter(tmp_path: Path) -> None:
    """96 numbers in groups of 40: the settings tell, as three groups of 32 would have as many scales."""
    tensors, settings, _ = gptq(4)
    found = packed(tmp_path, (tensors, settings | {"group_size": 40}, np.empty(0)))
    index = np.arange(IN) // 40
    plain = packed(tmp_path / "ordered", (tensors | {".g_idx": index.astype(np.int32)}, settings, np.empty(0)))
    np.testing.assert_array_equal(found.mapped(), plain.mapped())
    assert not np.array_equal(found.mapped(), packed(tmp_path / "even", (tensors, settings, np.empty(0))).mapped())


def test_an_index_that_was_never_filled_in(tmp_path: Path) -> None:
    tensors, settings, value = CASES["packed"]
    found = packed(tmp_path, (tensors | {".weight_g_idx": np.full(IN, -1, np.int32)}, settings, value))
    np.testing.assert_allclose(found.mapped(), value, rtol=3e-7)


def test_scales_that_overflow_are_no_warning(tmp_path: Path) -> None:
    tensors, settings, value = CASES["FP8 flat rows"]
    found = packed(tmp_path, (tensors | {".weight_scale": np.full(OUT, 3e38, np.float32)}, settings, value))
    assert np.isinf(found.mapped()).any()


def test_one_row_is_read_of_a_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is unpacked is bounded by what is asked for, not by the size of an expert."""
    for case in ("MXFP4", "FP8 stack", "packed stack", "MLX stack"):
        found = packed(tmp_path / case, CASES[case])
        seen: list[int] = []

        def rows(p: packing.Packed, first: int, last: int, real: Any = found.rows, seen: list[int] = seen) -> A:
            seen.append(last - first)
            return real(p, first, last)

        row = found.shape[-1]
        replace(found, rows=rows).read(row * 5, row * 6)
        assert seen == [1]


def test_a_row_that_memory_does_not_hold(tmp_path: Path) -> None:
    """A sparse file of a stranger: one row of 16 billion numbers, and nothing is allocated for it."""
    width = 1 << 34
    header = json.dumps({
        f"{BASE}.weight": {"dtype": "F8_E4M3", "shape": [1, width], "data_offsets": [0, width]},
        f"{BASE}.weight_scale": {"dtype": "F32", "shape": [1], "data_offsets": [width, width + 4]},
    }).encode()  # fmt: skip
    with (tmp_path / "w.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + width + 4)
    found = packing.unpack(BASE, dict(open_checkpoint(tmp_path / "w.safetensors").tensors), {})
    assert found is not None
    assert found.shape == (1, width)
    with pytest.raises(FormatError, match="too long to unpack"):
        found.read(0, 10)


# ── the unpackers of transformers ────────────────────────────────────────────────────────────────────


@pytest.mark.oracle
@pytest.mark.parametrize("case", ["FP8 blocks", "FP8 stack", "FP4 pairs", "MXFP8"])
def test_fp8_as_transformers_unpacks_it(tmp_path: Path, case: str) -> None:
    import torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    tensors = CASES[case][0]
    raw = tensors[".weight"]
    weight = torch.from_numpy(raw.view(np.uint8).copy())
    weight = weight.view(torch.int8 if raw.dtype == np.int8 else torch.float8_e4m3fn)
    scale = torch.from_numpy(next(array for ending, array in tensors.items() if ending != ".weight").copy())
    theirs = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32)
    np.testing.assert_array_equal(packed(tmp_path, CASES[case]).mapped(), theirs.numpy())


@pytest.mark.oracle
def test_mxfp4_as_transformers_unpacks_it(tmp_path: Path) -> None:
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = (torch.from_numpy(CASES["MXFP4"][0][ending].copy()) for ending in ("_blocks", "_scales"))
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    np.testing.assert_array_equal(packed(tmp_path, CASES["MXFP4"]).mapped(), theirs.numpy())


def test_an_unpacked_matrix_is_none(tmp_path: Path) -> None:
    assert packing.unpack(BASE, sources(tmp_path, {".weight": np.ones((4, 4), np.float32)}), {}) is None


# ── a whole model ────────────────────────────────────────────────────────────────────────────────────


def quantised(folder: Path) -> tuple[Path, dict[str, A]]:
    """A tiny llama whose FFN matrices are in 4 bits by MLX, and the numbers that they stand for."""
    tensors = tiny.weights(tiny.CONFIGS["llama"])
    dense = dict(tensors)
    for name in [n for n in tensors if ".mlp." in n]:
        out, width = tensors[name].shape
        group = 16
        q, s = codes(out, width, bits=4), scales(out, width // group).astype(np.float32)
        base = name.removesuffix(".weight")
        tensors |= {name: stream(q, 4), base + ".scales": s, base + ".biases": np.full_like(s, -0.5)}
        index = np.arange(width) // group
        dense[name] = q.astype(np.float32) * s[:, index] - np.float32(0.5)
    return tiny.write(folder, tensors=tensors, quantization={"group_size": 16, "bits": 4}), dense


def test_a_packed_model_is_counted_by_its_numbers(tmp_path: Path) -> None:
    folder, dense = quantised(tmp_path / "packed")
    model, plain = wk.open(folder), wk.open(tiny.write(tmp_path / "plain", tensors=dense))
    counts = model.counts()
    assert counts.total == plain.counts().total
    assert counts.unclaimed == []
    assert counts.bookkeeping == sum(2 * a.size // 16 for name, a in dense.items() if ".mlp." in name)
    assert counts.stored < counts.total
    assert counts.by_dtype["MLX-4bit"] == sum(a.size for name, a in dense.items() if ".mlp." in name)
    assert model.notes == ()


def test_a_packed_model_computes_with_its_numbers(tmp_path: Path) -> None:
    folder, dense = quantised(tmp_path / "packed")
    model, plain = wk.open(folder), wk.open(tiny.write(tmp_path / "plain", tensors=dense))
    for row in wk.diff(model, plain).changed:
        assert row.max_abs == 0  # of another type, and the same numbers
    np.testing.assert_array_equal(model.logits([1, 2, 3]), plain.logits([1, 2, 3]))
    mine, theirs = (m.statistics("layers.1.ffn.down")[0] for m in (model, plain))
    assert (mine.mean, mine.std, mine.min, mine.quantiles) == (theirs.mean, theirs.std, theirs.min, theirs.quantiles)


def test_a_packed_weight_cannot_be_edited_in_place(tmp_path: Path) -> None:
    folder, _ = quantised(tmp_path)
    with pytest.raises(wk.WeightkitError, match="MLX-4bit, which cannot be edited"):
        wk.open(folder).apply(wk.zero("layers.0.ffn.up"))


def test_converted_it_is_a_plain_model(tmp_path: Path) -> None:
    folder, dense = quantised(tmp_path / "packed")
    wk.open(folder).convert(tmp_path / "plain")
    model = wk.open(tmp_path / "plain")
    assert wk.diff(model, wk.open(tiny.write(tmp_path / "expected", tensors=dense))).identical
    assert "quantization" not in json.loads((tmp_path / "plain" / "config.json").read_text())


def test_packers_turn_the_matrices_of_gpt_2(tmp_path: Path) -> None:
    """It has them as [in, out], and AutoGPTQ and bitsandbytes as [out, in]: a square one tells by nothing else."""
    tensors = tiny.weights(tiny.CONFIGS["gpt2"])
    dense = dict(tensors)
    for name in [n for n in tensors if ".h." in n and tensors[n].ndim == 2]:
        width, out = tensors[name].shape
        q = RNG.integers(-127, 128, (out, width)).astype(np.int8)
        s = scales(out).astype(np.float32)
        tensors |= {name: q, name.removesuffix("weight") + "SCB": s}
        dense[name] = np.ascontiguousarray((q.astype(np.float32) * s[:, None] / 127).T)
    folder = tiny.write(
        tmp_path / "packed", "gpt2", tensors=tensors, quantization_config={"quant_method": "bitsandbytes"}
    )
    model, plain = wk.open(folder), wk.open(tiny.write(tmp_path / "plain", "gpt2", tensors=dense))
    for address in ("layers.1.attn.q", "layers.1.attn.o", "layers.1.ffn.up", "layers.1.ffn.down"):
        np.testing.assert_allclose(model[address].array(), plain[address].array(), rtol=1e-6)
    model.convert(tmp_path / "out")
    saved = wk.open(tmp_path / "out")
    for name, array in dense.items():
        stored = saved[f"name:{name}"]
        assert isinstance(stored, Weight)
        np.testing.assert_allclose(stored.stored.mapped(), array, rtol=1e-6)


FORMS = [
    ("AWQ", {"quant_method": "awq", "bits": 4, "version": "gemv"}, "AWQ of version 'gemv'"),
    ("AWQ", {"quant_method": "awq", "bits": 4, "version": "gemv_fast"}, "AWQ of version 'gemv_fast'"),
    ("GPTQ 4", {"quant_method": "gptq", "bits": 4, "checkpoint_format": "x"}, "GPTQ of checkpoint_format 'x'"),
    ("GPTQ 4", {"quant_method": "gptq", "bits": 5}, "GPTQ of 5 bits"),
    ("MLX 4", {"bits": 4, "group_size": 32, "mode": "nf4"}, "MLX of mode 'nf4'"),
]


@pytest.mark.parametrize(("case", "settings", "form"), FORMS)
def test_a_packing_that_is_not_unpacked_opens_by_names(
    tmp_path: Path, cli: Cli, case: str, settings: dict[str, Any], form: str
) -> None:
    dense = tiny.weights(tiny.CONFIGS["llama"])
    del dense[BASE + ".weight"]
    tensors = dense | {BASE + ending: array for ending, array in CASES[case][0].items()}
    folder = tiny.write(tmp_path / "m", tensors=tensors, quantization_config=settings)
    model = wk.open(folder)
    assert model.notes[-1].startswith(f"packed as {form}, which is not unpacked: counted as stored")
    assert model.counts().total == model.counts().stored == sum(a.size for a in tensors.values())
    for verb in ("list", "count", "map", "check"):
        done = cli(verb, folder)
        assert done.code == 0
        assert form in " ".join((done.out + done.err).split())
    for command in (
        ("run", folder, "--ids", "1,2"),
        ("convert", folder, tmp_path / "out"),
        ("edit", folder, "--zero", "name:model.norm.weight", "-o", tmp_path / "out"),
    ):
        done = cli(*command)
        assert (done.code, done.out, done.err.strip().count("\n")) == (2, "", 0)
        assert form in done.err
    assert not (tmp_path / "out").exists()


def test_an_index_of_a_packed_model_is_claimed(shared: Path) -> None:
    for folder in ("llama-2-13b-bnb", "llama-3.1-8b-bnb", "qwen3-14b-mlx-4bit"):
        counts = wk.open(shared / "configs" / folder).counts()
        assert counts.unclaimed == []
        assert counts.total == json.loads((shared / "configs" / "truth.json").read_text())[folder]["parameters"]
