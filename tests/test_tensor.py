"""Tensors: tiles, regions, and what happens when the file changes under them."""

from __future__ import annotations

import itertools
import math
import os
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from weightkit import tensor as tensor_module
from weightkit.dtypes import DTYPES, DType
from weightkit.errors import FormatError
from weightkit.registry import Registry, unnamed
from weightkit.tensor import Region, Tensor, read_region, region_shape, region_size, tiles, whole

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@dataclass
class Memory:
    """A source that is an array, and counts how much of it was read."""

    array: NDArray[Any]
    name: str = "w"
    dtype: DType = DTYPES["I32"]
    reads: list[int] = field(default_factory=list)
    path: Path = Path("memory")

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def read(self, start: int, stop: int) -> NDArray[Any]:
        self.reads.append(stop - start)
        return self.array.ravel()[start:stop].copy()

    def mapped(self) -> NDArray[Any]:
        return self.array


def counting(*shape: int) -> Memory:
    return Memory(np.arange(math.prod(shape), dtype=np.int32).reshape(shape))


@st.composite
def regions(draw: st.DrawFn, shape: tuple[int, ...], least: int = 0) -> Region:
    """Any region of an array: a start, a stop that may be the same, and a step per dimension."""
    parts = []
    for n in shape:
        start = draw(st.integers(0, max(0, n - least)))
        parts.append(slice(start, draw(st.integers(min(n, start + least), n)), draw(st.integers(1, 4))))
    return tuple(parts)


def ends(shape: tuple[int, ...], region: Region) -> tuple[int, int]:
    """The first and last place of a region in the flattened array."""
    if not shape:
        return 0, 0
    first, last = [s.start for s in region], [s.stop - 1 for s in region]
    return int(np.ravel_multi_index(first, shape)), int(np.ravel_multi_index(last, shape))


@settings(deadline=None)
@given(SHAPES, st.integers(1, 40))
@example((), 1)
@example((2, 3, 10**7), 10**6)
@example((10**12,), 10**10)
@example((7, 1, 10**6), 3 * 10**6)
def test_tiles_cover_once_in_order_each_contiguous_and_bounded(shape: tuple[int, ...], most: int) -> None:
    done = 0
    for tile in tiles(shape, most):
        first, last = ends(shape, tile)
        assert len(tile) == len(shape)
        assert first == done  # nothing left out, nothing twice
        assert last - first + 1 == region_size(tile) <= most
        done = last + 1
    assert done == math.prod(shape)


def test_tiles_are_as_large_as_they_may_be() -> None:
    assert list(tiles((10, 7), 21)) == [(slice(i, min(i + 3, 10), 1), slice(0, 7, 1)) for i in (0, 3, 6, 9)]
    assert list(tiles((2, 5), 3))[:2] == [(slice(0, 1, 1), slice(0, 3, 1)), (slice(0, 1, 1), slice(3, 5, 1))]


@settings(deadline=None)
@given(st.data())
def test_a_region_reads_as_numpy_slices(data: st.DataObject) -> None:
    source = counting(*data.draw(SHAPES))
    region = data.draw(regions(source.shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_module, "BLOCK", data.draw(st.sampled_from([1, 7, 1 << 20])))
        found = read_region(source, region)
    expected = source.array[region]
    assert found.shape == expected.shape == region_shape(region)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("block", [1, 6, 1000])
def test_regions_of_every_kind_on_every_axis(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(tensor_module, "BLOCK", block)
    source = counting(3, 4, 5)
    kinds = [[slice(0, n, 1), slice(1, n, 1), slice(1, 2, 1), slice(0, n, 2)] for n in source.shape]
    for region in itertools.product(*kinds):
        assert read_region(source, region).tolist() == source.array[region].tolist()


@pytest.mark.parametrize(("shape", "rows"), [((3, 4, 50), 2), ((99, 10), 3), ((99, 2), 1), ((5, 90), 1)])
def test_a_few_columns_are_read_a_block_at_a_time(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], rows: int
) -> None:
    monkeypatch.setattr(tensor_module, "BLOCK", 20)
    source = counting(*shape)
    region = (*(slice(0, n, rows) for n in shape[:-1]), slice(0, shape[-1] // 2, 1))
    read_region(source, region)
    assert max(source.reads) <= max(20, shape[-1] // 2)


@pytest.mark.parametrize("shape", [(40,), (6, 8), (2, 50), (3, 10, 7), (1, 1, 90)])
def test_reading_a_tile_reads_no_more_than_the_tile(shape: tuple[int, ...]) -> None:
    source = counting(*shape)
    for tile in tiles(shape, 16):
        read_region(source, tile)
    assert sum(source.reads) == math.prod(shape)
    assert max(source.reads) <= 16


def stored(path: Path, dtype: str, raw: bytes, *shape: int, offset: int = 3) -> Tensor:
    """A tensor whose bytes lie at an odd place of a file."""
    path.write_bytes(b"\xaa" * offset + raw + b"\xbb" * 5)
    return Tensor("w", DTYPES[dtype], shape, path, offset)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2"])
def test_reads_of_packed_types_may_start_and_stop_inside_a_byte(tmp_path: Path, dtype: str) -> None:
    raw = np.random.default_rng(0).bytes(12)
    count = 12 * 8 // DTYPES[dtype].bits
    tensor = stored(tmp_path / "f", dtype, raw, count)
    everything = DTYPES[dtype].unpack(np.frombuffer(raw, np.uint8)).tolist()
    for start in range(count + 1):
        for stop in range(start, count + 1):
            assert tensor.read(start, stop).tolist() == everything[start:stop]
    assert tensor.mapped().tolist() == everything


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "I16", "U8"])
def test_values_are_right_at_an_unaligned_offset(tmp_path: Path, dtype: str) -> None:
    values = np.arange(1, 7).astype(DTYPES[dtype].stored)
    tensor = stored(tmp_path / "f", dtype, values.tobytes(), 2, 3)
    assert tensor.mapped().tolist() == values.reshape(2, 3).tolist()
    assert tensor.read(1, 5).tolist() == values[1:5].tolist()
    assert (tensor.size, tensor.nbytes) == (6, values.nbytes)


def test_what_is_mapped_cannot_be_written_and_what_is_read_can(tmp_path: Path) -> None:
    tensor = stored(tmp_path / "f", "F32", bytes(8), 2)
    with pytest.raises(ValueError, match="read-only"):
        tensor.mapped()[0] = 1
    tensor.read(0, 2)[0] = 1
    assert tensor.read(0, 2).tolist() == [0, 0]


@pytest.mark.parametrize("left", [0, 3, 10])
@pytest.mark.parametrize("look", [lambda t: t.read(0, 4), Tensor.mapped])
def test_a_file_that_became_shorter_is_said_to_be(tmp_path: Path, look: Any, left: int) -> None:
    tensor = stored(tmp_path / "f", "F32", bytes(16), 4)
    look(tensor)
    os.truncate(tensor.path, left)
    os.utime(tensor.path, ns=(1, 1))  # a coarse clock must not hide the change from the test
    with pytest.raises(FormatError, match=r"f: the file became shorter"):
        look(tensor)


def test_a_file_that_was_rewritten_is_mapped_anew(tmp_path: Path) -> None:
    tensor = stored(tmp_path / "f", "U8", b"old", 3)
    assert tensor.mapped().tobytes() == b"old"
    (tmp_path / "new").write_bytes(b"\xaa" * 3 + b"new")
    os.utime(tmp_path / "new", ns=(1, 1))
    (tmp_path / "new").rename(tensor.path)
    assert tensor.mapped().tobytes() == b"new"


def test_a_tensor_pickles_as_where_it_is(tmp_path: Path) -> None:
    tensor = stored(tmp_path / "f", "F16", np.arange(5000, dtype=np.float16).tobytes(), 100, 50)
    tensor.mapped()
    pickled = pickle.dumps(tensor)
    again = pickle.loads(pickled)
    assert again == tensor
    assert len(pickled) < 1000
    assert again.read(70, 80).tolist() == list(range(70, 80))


def test_a_tensor_without_elements_needs_no_file() -> None:
    tensor = Tensor("w", DTYPES["F32"], (0, 3), Path("nowhere"), 0)
    assert tensor.mapped().shape == (0, 3)
    assert list(tiles(tensor.shape)) == []
    assert tensor.nbytes == 0


def test_whole_is_every_index() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    assert array[whole(array.shape)].tolist() == array.tolist()
    assert whole(()) == ()


@pytest.mark.parametrize("index", ["", "[::2, 5:600_000:7]", "[1, 699_999]", "[:, :3]"])
def test_a_selection_larger_than_a_block_comes_in_blocks(tmp_path: Path, index: str) -> None:
    array = (np.arange(3 * 700_000) % 251).astype(np.uint8).reshape(3, 700_000)
    (tmp_path / "raw").write_bytes(array.tobytes())
    registry = Registry({}, unnamed({"w": Tensor("w", DTYPES["U8"], array.shape, tmp_path / "raw", 0)}))
    (selection,) = registry.select("name:w" + index.replace("_", ""))
    blocks, seen = list(selection.blocks()), np.zeros(array.shape, int)
    for region, stored in blocks:
        assert np.array_equal(stored, array[region])
        seen[region] += 1
    assert seen[selection.region].min() == seen.max() == 1
    assert seen.sum() == selection.size
    assert len(blocks) > 1 or index not in ("", "[::2, 5:600_000:7]")
