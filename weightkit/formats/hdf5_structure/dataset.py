"""One array of an HDF5 file: what it says of itself, held against what is stored of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from weightkit.dtypes import DTYPES
from weightkit.formats.hdf5_structure import filters as known_filters
from weightkit.formats.hdf5_structure.elements import Element, element
from weightkit.formats.hdf5_structure.header import (
    EXTERNAL,
    FILTERS,
    SPACE,
    TYPE,
    Filter,
    Header,
    fill_of,
    filters_of,
    shape_of,
)
from weightkit.formats.hdf5_structure.image import UNDEFINED, Image
from weightkit.formats.hdf5_structure.layout import Layout, Stored, layout_of, stored_chunks

SMALL = 1 << 20  # bytes of an array of which not all chunks need to be in the file
FILLED_PER_READ = 256  # bytes of fill values that are made in the time of one that is read
MOST_CHUNK = 256 << 20  # bytes of a chunk, which has to be unpacked as a whole
MOST_DENSE = 1032  # deflate packs no tighter

Place = tuple[int, ...]


class Described(NamedTuple):
    """An array as its header describes it."""

    element: Element
    shape: tuple[int, ...]
    most: tuple[int, ...]
    layout: Layout
    filters: tuple[Filter, ...]
    fill: bytes
    nbytes: int  # of its numbers, unpacked

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk, unpacked."""
        return math.prod(self.layout.chunk) * self.layout.width

    @property
    def grid(self) -> tuple[int, ...]:
        """The number of chunks along each axis."""
        return tuple(-(-n // step) for n, step in zip(self.shape, self.layout.chunk, strict=True))


def describe(image: Image, header: Header) -> Described | None:
    """The array of an object header; None for text, references and what holds nothing.

    Raises FormatError for arrays of anything else than numbers, for those that lie in other files, for
    filters that are not known, and for contradictions.
    """
    if EXTERNAL in header.one:
        raise image.fail("its data lies in other files (external storage); rewrite it with h5repack")
    if TYPE not in header.one or SPACE not in header.one:
        raise image.fail("a damaged HDF5 file: an array without a type or a shape")
    kind, layout = element(header.one[TYPE].body), layout_of(image, header)
    sizes = shape_of(header.one[SPACE].body)
    if sizes is None or not kind.weight:
        return None
    if not kind.number:
        raise image.fail(f"holds {kind.name}; only integers, floats, booleans and complex64 can be read")
    filters = tuple(filters_of(image, header.one[FILTERS].body)) if FILTERS in header.one else ()
    nbytes = DTYPES[kind.name].nbytes(math.prod(sizes[0]))
    result = Described(kind, *sizes, layout, filters, fill_of(image, header), nbytes)
    _require_sound(image, result)
    return result


def _require_sound(image: Image, array: Described) -> None:
    chunk, filters, fill = array.layout.chunk, array.filters, array.fill
    width = DTYPES[array.element.name].nbytes(1)
    for filter in filters:
        if filter.id not in known_filters.KNOWN:
            name = known_filters.NAMES.get(filter.id, "not a known one")
            raise image.fail(f"uses filter {filter.id} ({name}); rewrite it with h5repack -f GZIP=4")
    if fill and len(fill) != width:
        raise image.fail(f"a damaged HDF5 file: {len(fill)} bytes to fill elements of {width} bytes with")
    if not chunk:
        _require_whole(image, array)
        return
    if len(chunk) != len(array.shape) or 0 in chunk or array.layout.width != width:
        raise image.fail("a damaged HDF5 file: chunks that do not fit the array")
    if array.chunk_bytes > MOST_CHUNK:
        raise image.fail(f"chunks of {array.chunk_bytes:,} bytes; rewrite it with smaller ones (h5repack -l CHUNK=…)")


def _require_whole(image: Image, array: Described) -> None:
    address, stored = array.layout.address, array.layout.nbytes
    if array.filters:
        raise image.fail("a damaged HDF5 file: filters, but no chunks")
    if not array.nbytes:
        return
    if address == UNDEFINED:  # never written, so that it reads as fill values
        if array.nbytes > SMALL:
            raise image.fail(f"says that it holds {array.nbytes:,} bytes, but nothing is stored")
        image.charge(array.nbytes // FILLED_PER_READ)
        return
    if stored != array.nbytes or address + stored > image.end:
        raise image.fail(f"says that it holds {array.nbytes:,} bytes, but stored are {stored:,} at {address:,}")


def chunk_table(image: Image, array: Described) -> dict[Place, Stored]:
    """The chunks of an array, by their place in its grid.

    Raises FormatError where they lie outside of the array or the file, or cannot hold what the array
    says it holds: an array of terabytes made of fill values.
    """
    chunk, grid = array.chunk_bytes, array.grid
    least, most = (1, chunk + chunk // 64 + 1024) if array.filters else (chunk, chunk)  # no filter lets much grow
    if array.nbytes > SMALL and math.prod(grid) > image.end:
        raise image.fail(f"says that it holds {array.nbytes:,} bytes, in more chunks than the file has bytes")
    result: dict[Place, Stored] = {}
    total = 0
    for stored in _chunks(image, array):
        inside = all(i < n for i, n in zip(stored.place, grid, strict=True))
        if not inside or stored.place in result:
            raise image.fail("a damaged HDF5 file: a chunk is outside of its array, or there twice")
        if not least <= stored.nbytes <= most or not 0 < stored.address <= image.end - stored.nbytes:
            raise image.fail(f"a damaged HDF5 file: a chunk of {stored.nbytes:,} bytes at {stored.address:,}")
        image.claim(stored.nbytes)
        total += stored.nbytes
        result[stored.place] = stored
    missing = math.prod(grid) - len(result)
    image.charge(min(missing * chunk, array.nbytes) // FILLED_PER_READ)
    if array.nbytes > SMALL and (missing or array.nbytes > total * MOST_DENSE):
        raise image.fail(f"says that it holds {array.nbytes:,} bytes, but {total:,} stored ones cannot be that")
    return result


def _chunks(image: Image, array: Described) -> Iterator[Stored]:
    if 0 in array.shape:
        return iter(())
    return stored_chunks(image, array.layout, array.shape, array.most, filtered=bool(array.filters))
