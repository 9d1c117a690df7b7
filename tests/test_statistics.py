"""Statistics: every field against numpy and math.fsum, in every type, however the data is cut."""

from __future__ import annotations

import dataclasses
import math
import mmap
import re
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import weightkit as wk
from tests.by_hand import NUMPY, Array, f32, shrink_blocks, write_file, write_holes
from tests.tiny import CONFIGS, weights, write
from weightkit.analysis import reading, tally
from weightkit.analysis.statistics import QUANTILES, Statistics
from weightkit.analysis.summary import ExactMoments, Summary
from weightkit.dtypes import DTYPES
from weightkit.errors import FormatError
from weightkit.kernels import Moments

REAL = [name for name in NUMPY if name != "C64"]
FLOATS = [name for name in REAL if name[0] in "FB" and name != "BOOL"]


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled loops count few numbers too."""
    monkeypatch.setattr(tally, "FEW", 0)


def opened(folder: Path, array: Array) -> wk.Model:
    return wk.open(write_file(folder / "x.safetensors", {"x": array}))


def row(folder: Path, array: Array) -> Statistics:
    (found,) = opened(folder, array).statistics("name:x")
    return found


def expected(array: Array) -> dict[str, float]:
    """The fields of a row from exact sums (math.fsum rounds once), of the finite values."""
    values = array.astype(np.float64).ravel()
    finite = values[np.isfinite(values)]
    result: dict[str, float] = {
        "count": values.size,
        "nan": int(np.isnan(values).sum()),
        "inf": int(np.isinf(values).sum()),
        "zeros": int((values == 0).sum()),
    }
    n = finite.size
    if not n:
        none = ("mean", "std", "min", "max", "abs_max", "l2", "skewness", "kurtosis")
        return result | dict.fromkeys(none, math.nan)
    mean = math.fsum(finite) / n
    m2, m3, m4 = (math.fsum((finite - mean) ** k) / n for k in (2, 3, 4))
    result |= {"mean": mean, "std": math.sqrt(m2), "min": finite.min(), "max": finite.max()}
    result |= {"abs_max": np.abs(finite).max(), "l2": math.sqrt(math.fsum(finite**2))}
    flat = finite.min() == finite.max()
    result |= {"subnormals": int(((np.abs(finite) < smallest_normal(array.dtype)) & (finite != 0)).sum())}
    return result | {"skewness": math.nan if flat else m3 / m2**1.5, "kurtosis": math.nan if flat else m4 / m2**2 - 3}


def smallest_normal(kind: Any) -> float:
    """The smallest normal number of a type; 0 of one of whole numbers."""
    return float(ml_dtypes.finfo(kind).smallest_normal) if ml_dtypes_float(kind) else 0.0


def ml_dtypes_float(kind: Any) -> bool:
    return np.dtype(kind).kind in "fV"  # V: the types of ml_dtypes


def same(found: Statistics, array: Array) -> None:
    want = expected(array)
    got = {name: getattr(found, name) for name in want}
    sums = ("mean", "std", "l2", "skewness", "kurtosis")
    assert {k: v for k, v in got.items() if k not in sums} == pytest.approx(
        {k: v for k, v in want.items() if k not in sums}, rel=0, abs=0, nan_ok=True
    )
    assert {k: got[k] for k in sums} == pytest.approx({k: want[k] for k in sums}, rel=1e-10, abs=1e-12, nan_ok=True)


def lower_quantiles(array: Array) -> list[float]:
    values = array.astype(np.float64).ravel()
    finite = values[np.isfinite(values)]
    if not finite.size:
        return [math.nan] * len(QUANTILES)
    return [float(np.quantile(finite, q, method="lower")) for q in QUANTILES]


def random(dtype: str, size: int = 5000, seed: int = 0) -> Array:
    """Random numbers that suit a type."""
    generator = np.random.default_rng(seed)
    kind = NUMPY[dtype]
    if dtype == "F8_E8M0":  # powers of two only
        return generator.integers(0, 255, size).astype(np.uint8).view(kind)
    if dtype == "BOOL":
        return generator.random(size) < 0.3
    if dtype[0] in "IU":
        info = np.iinfo(kind)
        return generator.integers(max(info.min, -(2**30)), min(info.max, 2**30), size).astype(kind)
    return (generator.standard_normal(size) * 0.7 + 0.1).astype(kind)


@pytest.mark.parametrize("dtype", REAL)
def test_random_numbers(tmp_path: Path, dtype: str) -> None:
    array = random(dtype)
    found = row(tmp_path, array)
    same(found, array)
    assert (found.dtype, found.shape, found.name, found.role) == (dtype, (5000,), "x", "other")
    values = array.astype(np.float64)
    as_float32 = values.astype(np.float32)
    assert found.exact is (np.dtype(NUMPY[dtype]).itemsize <= 2 or bool((as_float32 == values).all()))
    want = lower_quantiles(array) if found.exact else lower_quantiles(as_float32)
    assert list(found.quantiles.values()) == want
    assert list(found.quantiles) == [f"{q:g}" for q in QUANTILES]


SPECIAL: dict[str, list[float]] = {
    "empty": [],
    "one": [-1.5],
    "constant": [0.1] * 1000,
    "zeros of both signs": [0.0, -0.0, -0.0],
    "only negative zero": [-0.0],
    "all NaN": [math.nan] * 7,
    "all Inf": [math.inf, -math.inf],
    "everything": [1.0, math.nan, -2.0, math.inf, -0.0, 0.0, -math.inf, math.nan, 0.25, 3.0],
    "two": [-1.0, 2.0],
}
ONLY_NAN = ("F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2FNUZ")  # infinities become NaN in these


@pytest.mark.parametrize("dtype", [d for d in FLOATS if d != "F8_E8M0"])
@pytest.mark.parametrize("case", SPECIAL)
def test_special_numbers(tmp_path: Path, dtype: str, case: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ml_dtypes warns of what is meant here
        array = np.array(SPECIAL[case], np.float64).astype(NUMPY[dtype])
    found = row(tmp_path, array)
    same(found, array)
    if found.exact:
        assert list(found.quantiles.values()) == pytest.approx(lower_quantiles(array), rel=0, abs=0, nan_ok=True)
    if case.startswith(("zeros", "only")):
        assert math.copysign(1, found.min) == math.copysign(1, found.max) == 1.0


@pytest.mark.parametrize("dtype", [d for d in REAL if d[0] in "IU" or d == "BOOL"])
@pytest.mark.parametrize("values", [[], [1], [1] * 9, [0, 1, 0, 0], None], ids=str)
def test_whole_numbers(tmp_path: Path, dtype: str, values: list[int] | None) -> None:
    kind = NUMPY[dtype]
    if values is None:  # the ends of the type
        values = [0, 1] if dtype == "BOOL" else [np.iinfo(kind).min, 0, np.iinfo(kind).max]
    array = np.array(values, kind)
    found = row(tmp_path, array)
    if dtype in ("I64", "U64") and len(values) == 3:  # float64 holds their ends to the rounding
        assert (found.min, found.max) == (float(values[0]), float(values[2]))
    else:
        same(found, array)


@pytest.mark.parametrize("dtype", REAL)
def test_distinct_values_and_their_entropy(tmp_path: Path, dtype: str) -> None:
    array = random(dtype, 3000)
    array[:2] = np.array([0.0, -0.0]).astype(NUMPY[dtype])
    found = row(tmp_path, array)
    values, counts = np.unique(array.astype(np.float64), return_counts=True)
    if NUMPY[dtype] is not np.bool_ and np.dtype(NUMPY[dtype]).itemsize > 2:
        assert (found.distinct, found.entropy) == (None, None)
        return
    counts = counts[np.isfinite(values)]
    share = counts / counts.sum()
    assert found.distinct == len(counts)
    assert found.entropy == pytest.approx(-math.fsum(share * np.log2(share)), rel=1e-12)


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64"])
@pytest.mark.parametrize("part", [100, 999, 1 << 25])
def test_threads_and_parts_change_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, part: int
) -> None:
    model = opened(tmp_path, random(dtype, 6000).reshape(60, 100))
    (want,) = model.statistics()
    monkeypatch.setattr(reading, "PART", part)
    monkeypatch.setattr(reading, "CHUNK", part * 2)
    for threads in (1, 2, 8):
        with ThreadPoolExecutor(threads) as executor:
            assert model.statistics(executor=executor) == [want]


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="the system keeps the pages that it wants to")
def test_pages_are_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", 1 << 20)
    path = write_holes(tmp_path / "x.safetensors", {"x": (1 << 13, 1 << 13)}, "BF16", 2)
    pages = Path("/proc/self/smaps")
    most = 0
    for _ in reading.stored(wk.open(path).select()[0]):
        entry = pages.read_text().partition(str(path))[2]
        most = max(most, int(re.search(r"Rss: +(\d+) kB", entry)[1]))  # type: ignore[index]
    assert most <= 1 << 12  # of 128 MB


@pytest.mark.parametrize("value", [0.1, 1e-3, -7.77, 1e30, 3e-39])
def test_equal_numbers_have_no_spread(tmp_path: Path, value: float) -> None:
    found = row(tmp_path, np.full(30_001, value, np.float32))
    assert found.std <= 1e-7 * abs(value)
    assert math.isnan(found.skewness)
    assert math.isnan(found.kurtosis)


@pytest.mark.parametrize("dtype", ["F64", "F32"])
def test_huge_and_tiny_numbers(tmp_path: Path, dtype: str) -> None:
    top = float(np.finfo(NUMPY[dtype]).max)
    array = np.array([top, -top, top, np.finfo(NUMPY[dtype]).smallest_subnormal], NUMPY[dtype])
    with np.errstate(all="ignore"):
        want = np.mean(array / 4.0) * 4.0
    found = row(tmp_path, array)  # and no warning: those are errors here
    assert (found.min, found.max, found.abs_max, found.zeros) == (-top, top, top, 0)
    assert found.mean == pytest.approx(want)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 999, 1000, 1001, 2001])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_quantiles_at_any_length(tmp_path: Path, dtype: str, size: int) -> None:
    array = random(dtype, size, seed=size)
    assert list(row(tmp_path, array).quantiles.values()) == lower_quantiles(array)


# ── any split gives the same answer ────────────────────────────────────────────────────────────────

NUMBERS = arrays.arrays(np.float32, st.integers(0, 40), elements=st.floats(-1e3, 1e3, width=32) | st.just(math.nan))


@settings(deadline=None, max_examples=60)
@given(x=NUMBERS, y=NUMBERS, z=NUMBERS, dtype=st.sampled_from(["F32", "F64", "F16", "BF16", "F8_E5M2", "I8", "I32"]))
def test_summaries_add_up_to_the_bit(x: Array, y: Array, z: Array, dtype: str) -> None:
    with np.errstate(all="ignore"):
        parts = [
            (np.nan_to_num(v, nan=0) if dtype[0] == "I" else v).astype(NUMPY[dtype]).view(DTYPES[dtype].stored)
            for v in (x, y, z)
        ]
    a, b, c = (Summary.of(DTYPES[dtype], [part]) for part in parts)
    want = Summary.of(DTYPES[dtype], [np.concatenate(parts)]).to_bytes()
    assert {found.to_bytes() for found in ((a + b) + c, a + (b + c), c + (b + a), Summary() + b + c + a)} == {want}


@settings(deadline=None, max_examples=30)
@given(x=NUMBERS, y=NUMBERS, z=NUMBERS)
def test_summaries_of_different_types_add_up(x: Array, y: Array, z: Array) -> None:
    a, b = Summary.of(DTYPES["F32"], [x]), Summary.of(DTYPES["F64"], [z.astype(np.float64)])
    c = Summary.of(DTYPES["F16"], [y.astype(np.float16)])
    together = ((a + c) + b, a + (b + c), b + (c + a))
    assert len({found.to_bytes() for found in together}) == 1
    values = np.concatenate([x.astype(np.float64), y.astype(np.float16).astype(np.float64), z])
    values = values[np.isfinite(values)]
    assert together[0].finite == values.size
    if values.size:
        exact = sum(map(Fraction, values.tolist())) / values.size  # rounded once
        assert ExactMoments.of(together[0]).mean == float(exact)


@settings(deadline=None, max_examples=100)
@given(x=arrays.arrays(np.float64, st.integers(1, 50), elements=st.floats(-1e3, 1e3)), cut=st.integers(0, 50))
def test_moments_add_up(x: Array, cut: int) -> None:
    both = Moments.of(x[:cut]) + Moments.of(x[cut:])
    d = x - x.mean()
    assert both.count == x.size
    assert both.mean == pytest.approx(x.mean(), abs=1e-9)
    for power, found in zip((2, 3, 4), (both.m2, both.m3, both.m4), strict=True):
        scale = float((np.abs(d) ** power).sum()) + 1e-6
        assert found == pytest.approx(float((d**power).sum()), abs=1e-9 * scale)


@pytest.mark.parametrize("most", [1, 7, 64])
@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F8_E5M2", "I8"])
def test_small_blocks_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, most: int) -> None:
    array = random(dtype, 300).reshape(20, 15)
    model = opened(tmp_path, array)
    (want,), look = model.statistics("name:x[2:19:3, 1:]"), model.look("name:x")
    shrink_blocks(monkeypatch, most)
    (found,) = model.statistics("name:x[2:19:3, 1:]")
    same(found, array[2:19:3, 1:])
    assert found.quantiles == want.quantiles
    if dtype in ("BF16", "F8_E5M2", "I8"):  # counted, so the same to the last bit
        assert found == want
        assert model.look("name:x") == look
    assert model.look("name:x").histogram == look.histogram
    assert [o.coordinate for o in model.look("name:x").outliers] == [o.coordinate for o in look.outliers]


# ── parts of weights ───────────────────────────────────────────────────────────────────────────────

PARTS = [
    ("layers.1.attn.q[head=2]", "layers.1.self_attn.q_proj.weight", np.s_[24:36]),
    ("layers.1.attn.k[kv_head=1]", "layers.1.self_attn.k_proj.weight", np.s_[12:24]),
    ("layers.0.attn.o[head=0:2]", "layers.0.self_attn.o_proj.weight", np.s_[:, 0:24]),
    ("layers.2.ffn.down[neuron=-1]", "layers.2.mlp.down_proj.weight", np.s_[:, 79:]),
    ("layers.2.ffn.up[neuron=1:60:7]", "layers.2.mlp.up_proj.weight", np.s_[1:60:7]),
    ("layers.2.ffn.up[3:70:9, ::5]", "layers.2.mlp.up_proj.weight", np.s_[3:70:9, ::5]),
    ("layers.2.ffn.up[3, 5]", "layers.2.mlp.up_proj.weight", np.s_[3:4, 5:6]),
    ("embed[token=96]", "embed_tokens.weight", np.s_[96:]),
    ("norm[residual=4:9]", "norm.weight", np.s_[4:9]),
]


@pytest.mark.parametrize(("address", "name", "part"), PARTS)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_part_of_a_weight(tmp_path: Path, address: str, name: str, part: Any, dtype: str) -> None:
    model = wk.open(write(tmp_path, dtype=dtype))
    array = weights(CONFIGS["llama"])["model." + name].astype(NUMPY[dtype])[part]
    (found,) = model.statistics(address)
    same(found, array)
    assert (found.address, found.name, found.shape) == (address, "model." + name, array.shape)


@pytest.mark.parametrize(("place", "letter"), list(enumerate("qkv")))
def test_fused_is_as_if_split(tmp_path: Path, place: int, letter: str) -> None:
    model = wk.open(write(tmp_path, "gpt2"))
    stored = weights(CONFIGS["gpt2"])
    fused = stored["transformer.h.1.attn.c_attn.weight"][:, 48 * place : 48 * (place + 1)].T
    bias = stored["transformer.h.1.attn.c_attn.bias"][48 * place : 48 * (place + 1)]
    (matrix,) = model.statistics(f"layers.1.attn.{letter}")
    same(matrix, fused)
    assert matrix.shape == (48, 48)
    assert matrix.quantiles == row(tmp_path, np.ascontiguousarray(fused)).quantiles
    same(model.statistics(f"layers.1.attn.{letter}.bias")[0], bias)
    same(model.statistics(f"layers.1.attn.{letter}[head=3]")[0], fused[36:])


def test_one_row_per_weight_in_forward_order(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path, "gpt2"))
    rows = model.statistics()
    assert [r.address for r in rows] == [a for a in model.registry if a != "lm_head"]  # tied: embed says it
    frame = model.stats("layers.*.ffn.up")
    assert list(frame.address) == [f"layers.{i}.ffn.up" for i in range(3)]
    assert list(frame.columns) == [field.name for field in dataclasses.fields(Statistics)]


# ── histograms and outliers ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F8_E4M3", "I8", "BOOL"])
@pytest.mark.parametrize("bins", [1, 10, 32])
def test_histogram(tmp_path: Path, dtype: str, bins: int) -> None:
    array = random(dtype)
    histogram = opened(tmp_path, array).look("name:x", bins).histogram
    values = array.astype(np.float64)
    assert histogram.edges == np.linspace(values.min(), values.max(), bins + 1).tolist()
    assert histogram.counts == np.histogram(values, histogram.edges)[0].tolist()
    assert sum(histogram.counts) == array.size


def test_histogram_of_odd_things(tmp_path: Path) -> None:
    nothing = opened(tmp_path, np.full(3, np.nan, np.float32)).look("name:x")
    assert (nothing.histogram.counts, nothing.outliers) == ([], [])
    constant = opened(tmp_path, np.full(9, 2.5, np.float32)).look("name:x")
    assert (sum(constant.histogram.counts), constant.outliers) == (9, [])
    mixed = opened(tmp_path, f32(1, np.nan, 2, -np.inf, 5)).look("name:x")
    assert sum(mixed.histogram.counts) == 3


@pytest.mark.parametrize("value", [1e300, 1e17])
def test_histogram_of_large_equal_numbers(tmp_path: Path, value: float) -> None:
    assert sum(opened(tmp_path, np.full(4, value)).look("name:x").histogram.counts) == 4


@pytest.mark.parametrize("index", ["", "[1:40:3, 2:]"])
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16"])
def test_outliers(tmp_path: Path, dtype: str, index: str) -> None:
    array = random(dtype, 2000).reshape(50, 40)
    array[3, 7], array[31, 20], array[0, 0] = np.nan, 40, -60
    found = opened(tmp_path, array).look("name:x" + index).outliers
    values = array.astype(np.float64)
    part = values[1:40:3, 2:] if index else values
    mean, std = np.nanmean(part), np.nanstd(part)
    distance = np.full(values.shape, -1.0)
    region = np.s_[1:40:3, 2:] if index else np.s_[:]
    distance[region] = np.nan_to_num(np.abs(part - mean), nan=-1)
    top = [np.unravel_index(i, values.shape) for i in np.argsort(-distance, axis=None, kind="stable")[:5]]
    assert [o.coordinate for o in found] == [(int(i), int(j)) for i, j in top]
    assert [o.value for o in found] == [values[place] for place in top]
    assert [o.z for o in found] == pytest.approx([(values[place] - mean) / std for place in top], rel=1e-9)


@pytest.mark.parametrize("index", ["", "[1:40:3, 2:]"])
@pytest.mark.parametrize("dtype", ["F64", "BF16", "I8"])
def test_norms_of_rows_and_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, index: str) -> None:
    array = random(dtype, 2000).reshape(50, 40)
    shrink_blocks(monkeypatch, 64)
    look = opened(tmp_path, array).look("name:x" + index)
    part = array.astype(np.float64)[1:40:3, 2:] if index else array.astype(np.float64)
    for found, axis, start, step in ((look.rows, 1, 1, 3), (look.columns, 0, 2, 1)):
        want = np.sqrt((part**2).sum(axis=axis))
        assert found is not None
        assert (found.min, found.median, found.max) == pytest.approx((want.min(), np.median(want), want.max()))
        top = np.argsort(-want, kind="stable")[:5]
        assert [norm for _, norm in found.largest] == pytest.approx(want[top])
        if dtype != "I8":  # where norms are equal
            assert [i for i, _ in found.largest] == [start * bool(index) + int(i) * (step if index else 1) for i in top]


def test_norms_of_huge_and_tiny_numbers_and_of_vectors(tmp_path: Path) -> None:
    look = opened(tmp_path, np.array([[1e300, 1e300], [1.0, np.nan]])).look("name:x")
    assert look.rows is not None
    assert look.rows.max == pytest.approx(2**0.5 * 1e300)
    tiny = opened(tmp_path, np.full((3, 4), 1e-200)).look("name:x")
    assert tiny.rows is not None
    assert tiny.rows.median == pytest.approx(2e-200)
    vector = opened(tmp_path, f32(1, 2)).look("name:x")
    assert (vector.rows, vector.columns) == (None, None)


def test_a_file_that_vanishes_or_shrinks_is_one_clear_error(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.safetensors", {"x": random("BF16")})
    model = wk.open(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(FormatError, match="became shorter"):
        model.statistics()
    path.unlink()
    with pytest.raises(OSError, match="No such file"):
        model.statistics(cache=True)


def test_processes_give_the_same(tmp_path: Path) -> None:
    model = opened(tmp_path, random("F32"))
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        assert model.statistics(executor=executor) == model.statistics()
