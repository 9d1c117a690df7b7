"""Layouts: matrices inside fused, grouped, interleaved and transposed tensors are invertible views.

The formulas on the numpy side are the ones the models' own code uses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.test_tensor import Memory, counting, regions
from weightkit.layout import PLAIN, TRANSPOSED, Layout, clip, join
from weightkit.tensor import region_shape, region_size, whole

Matrices = list[NDArray[Any]]


class Case(NamedTuple):
    """A stored tensor, the layouts of the matrices in it, and those matrices as numpy takes them out."""

    stored: NDArray[Any]
    layouts: list[Layout]
    matrices: Matrices


class Sizes(NamedTuple):
    kv: int  # key heads
    group: int  # query heads for each
    hd: int  # head dimension
    d: int  # width


def _numbers(*shape: int) -> NDArray[Any]:
    return counting(*shape).array


def plain(s: Sizes) -> Case:
    w = _numbers(s.hd, s.d)
    return Case(w, [PLAIN], [w])


def transposed(s: Sizes) -> Case:
    w = _numbers(s.d, s.hd)
    return Case(w, [TRANSPOSED], [w.T])


def concat(s: Sizes) -> Case:  # phi3, falcon-7b, gpt_bigcode, mpt
    q, k = s.kv * s.group * s.hd, s.kv * s.hd
    w = _numbers(q + 2 * k, s.d)
    layouts = [Layout(start=0, block=q), Layout(start=q, block=k), Layout(start=q + k, block=k)]
    return Case(w, layouts, np.split(w, [q, q + k]))


def transposed_concat(s: Sizes) -> Case:  # gpt2's c_attn, [D, 3D]
    n = s.kv * s.hd
    w = _numbers(s.d, 3 * n)
    layouts = [Layout(transposed=True, start=i * n, block=n) for i in range(3)]
    return Case(w, layouts, [part.T for part in np.split(w, 3, axis=1)])


def per_head(s: Sizes) -> Case:  # gpt_neox, bloom, falcon-rw
    w = _numbers(s.kv * 3 * s.hd, s.d)
    layouts = [Layout(start=i * s.hd, block=s.hd, period=3 * s.hd, repeats=s.kv) for i in range(3)]
    return Case(w, layouts, list(w.reshape(s.kv, 3, s.hd, s.d).swapaxes(0, 1).reshape(3, s.kv * s.hd, s.d)))


def grouped(s: Sizes) -> Case:  # falcon's new decoder
    period = (s.group + 2) * s.hd
    w = _numbers(s.kv * period, s.d)
    g = w.reshape(s.kv, s.group + 2, s.hd, s.d)
    starts = [(0, s.group * s.hd), (s.group * s.hd, s.hd), ((s.group + 1) * s.hd, s.hd)]
    layouts = [Layout(start=start, block=block, period=period, repeats=s.kv) for start, block in starts]
    return Case(w, layouts, [m.reshape(-1, s.d) for m in (g[:, :-2], g[:, -2], g[:, -1])])


def interleaved(s: Sizes) -> Case:  # gate in the even rows, up in the odd ones
    w = _numbers(2 * s.hd, s.d)
    return Case(w, [Layout(start=i, block=1, period=2, repeats=s.hd) for i in range(2)], [w[::2], w[1::2]])


def interleaved_transposed(s: Sizes) -> Case:  # gpt_oss: the same in columns
    case = interleaved(s)
    layouts = [Layout(transposed=True, start=i, block=1, period=2, repeats=s.hd) for i in range(2)]
    return Case(np.ascontiguousarray(case.stored.T), layouts, case.matrices)


def fused_bias(s: Sizes) -> Case:  # one dimension, the same rows
    case = per_head(s)
    return Case(case.stored[:, 0], case.layouts, [m[:, 0] for m in case.matrices])


KINDS = [
    plain,
    transposed,
    concat,
    transposed_concat,
    per_head,
    grouped,
    interleaved,
    interleaved_transposed,
    fused_bias,
]
Kind = Callable[[Sizes], Case]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
small = settings(deadline=None, max_examples=60)
SIZES = st.builds(Sizes, st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5))


@every_kind
@small
@given(sizes=SIZES)
def test_a_view_is_what_the_formula_takes_out(kind: Kind, sizes: Sizes) -> None:
    stored, layouts, matrices = kind(sizes)
    for layout, matrix in zip(layouts, matrices, strict=True):
        assert layout.shape(stored.shape) == matrix.shape
        assert layout.view(stored).tolist() == matrix.tolist()


@every_kind
@small
@given(sizes=SIZES)
def test_split_and_join_are_inverse(kind: Kind, sizes: Sizes) -> None:
    stored, layouts, _ = kind(sizes)
    joined = join(layouts, [layout.view(stored) for layout in layouts], stored.shape)
    assert joined.dtype == stored.dtype
    assert joined.tolist() == stored.tolist()


@every_kind
@small
@given(sizes=SIZES, data=st.data())
def test_a_region_is_read_as_numpy_slices_the_matrix(kind: Kind, sizes: Sizes, data: st.DataObject) -> None:
    stored, layouts, matrices = kind(sizes)
    for layout, matrix in zip(layouts, matrices, strict=True):
        region = data.draw(regions(matrix.shape, least=1))
        assert layout.read(Memory(stored), region).tolist() == matrix[region].tolist()


@every_kind
@small
@given(sizes=SIZES, data=st.data())
def test_writing_the_pieces_of_a_region_changes_that_region_only(kind: Kind, sizes: Sizes, data: st.DataObject) -> None:
    stored, layouts, matrices = kind(sizes)
    which = data.draw(st.integers(0, len(layouts) - 1))
    region = data.draw(regions(matrices[which].shape))
    written, pieces = stored.copy(), list(layouts[which].pieces(region))
    for ours, place in pieces:
        block = -1 - matrices[which][ours]
        written[place] = block.T if layouts[which].transposed else block
    assert sum(region_size(ours) for ours, _ in pieces) == region_size(region)  # nothing twice
    for i, (layout, matrix) in enumerate(zip(layouts, matrices, strict=True)):
        expected = matrix.copy()
        if i == which:
            expected[region] = -1 - expected[region]
        assert layout.view(written).tolist() == expected.tolist()


@every_kind
@small
@given(sizes=SIZES, most=st.integers(1, 30))
def test_tiles_cover_the_matrix_once(kind: Kind, sizes: Sizes, most: int) -> None:
    stored, layouts, matrices = kind(sizes)
    for layout, matrix in zip(layouts, matrices, strict=True):
        seen = np.zeros(matrix.shape, int)
        for tile in layout.tiles(stored.shape, most):
            assert region_size(tile) <= most
            seen[tile] += 1
        assert seen.tolist() == np.ones(matrix.shape, int).tolist()


def test_tiles_of_a_transposed_matrix_do_not_read_the_file_over_and_over() -> None:
    source = Memory(_numbers(40, 8))
    for tile in TRANSPOSED.tiles(source.shape, 16):
        TRANSPOSED.read(source, tile)
    assert sum(source.reads) == 320


@pytest.mark.parametrize("layout", [PLAIN, TRANSPOSED, Layout(start=2, block=3)])
def test_one_run_of_rows_is_a_view_without_a_copy(layout: Layout) -> None:
    stored = _numbers(8, 6)
    assert np.shares_memory(layout.view(stored), stored)


def test_a_single_number_has_a_layout_too() -> None:
    source = counting()
    assert list(PLAIN.pieces(())) == [((), ())]
    assert PLAIN.read(source, ()).tolist() == 0
    assert PLAIN.shape(()) == ()


@small
@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 7), st.integers(0, 30), st.integers(0, 30))
def test_clip_is_set_intersection(start: int, length: int, step: int, low: int, width: int) -> None:
    part, high = slice(start, start + length, step), low + width
    clipped = clip(part, low, high)
    expected = [i for i in range(start, start + length, step) if low <= i < high]
    assert list(range(clipped.start, clipped.stop, clipped.step)) == expected


@every_kind
def test_reading_everything_is_reading_the_whole_region(kind: Kind) -> None:
    stored, layouts, matrices = kind(Sizes(2, 2, 3, 4))
    for layout, matrix in zip(layouts, matrices, strict=True):
        read = layout.read(Memory(stored), whole(matrix.shape))
        assert read.shape == region_shape(whole(matrix.shape))
        assert read.tolist() == matrix.tolist()
