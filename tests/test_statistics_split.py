"""Statistics: the same however the numbers are split: summaries, parts, blocks, threads, processes, files."""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
import re
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import weightkit as wk
from tests.by_hand import NUMPY, Array, shrink_blocks, write_file, write_holes
from tests.exactly import opened, random, row, same
from tests.tiny import CONFIGS, weights, write
from weightkit.analysis import reading, statistics
from weightkit.analysis.statistics import Statistics
from weightkit.analysis.summary import ExactMoments, Sum, Summary
from weightkit.dtypes import DTYPES
from weightkit.errors import FormatError

pytestmark = pytest.mark.usefixtures("compiled")


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


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_sum_of_many_is_their_sum(dtype: str) -> None:
    kind = DTYPES[dtype]
    x = random(dtype, 9000).view(kind.stored)
    parts = [x[i : i + 1 + i % 90] for i in range(0, len(x), 90)]
    total = Sum(Summary())
    for part in parts:
        total.add(Summary.of(kind, [part]))
    want = Summary.of(kind, [np.concatenate(parts)]).to_bytes()
    assert total.total().to_bytes() == total.total().to_bytes() == want


def test_small_tensors_are_handed_out_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_file(tmp_path / "x.safetensors", {f"t{i}": random("F32", 5 + i) for i in range(70)})
    bundles: list[int] = []
    each = statistics._each
    monkeypatch.setattr(statistics, "_each", lambda f, bundle: bundles.append(len(bundle)) or each(f, bundle))  # type: ignore[func-returns-value]
    found, told = wk.open(path).statistics(progress=lambda *told: bundles.append(told[0] // told[1])), bundles.copy()
    monkeypatch.setattr(statistics, "MOST_IN_BUNDLE", 1)
    assert found == wk.open(path).statistics()
    assert sorted(told) == [0, 0, 0, 0, 1, 1, 6, 6, 32, 32, 32, 32]


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


def test_processes_give_the_same(tmp_path: Path) -> None:
    model = opened(tmp_path, random("F32"))
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        assert model.statistics(executor=executor) == model.statistics()


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


def test_a_file_that_vanishes_or_shrinks_is_one_clear_error(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.safetensors", {"x": random("BF16")})
    model = wk.open(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(FormatError, match="became shorter"):
        model.statistics()
    path.unlink()
    with pytest.raises(OSError, match="No such file"):
        model.statistics(cache=True)


def test_a_file_that_shrinks_while_it_is_read_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CHUNK", 1 << 16)
    path = write_file(tmp_path / "x.safetensors", {"x": random("BF16", 1 << 17)})
    pieces = reading.stored(wk.open(path).select()[0])
    next(pieces)
    os.truncate(path, 1 << 17)
    with pytest.raises(FormatError, match=r"x\.safetensors: the file became shorter"):
        next(pieces)  # whose pages are gone
