"""HDF5, as h5py and Keras write it: .h5, .hdf5, and the .keras archives that hold one.

A name is the full path in the file, without the first slash. What lies in one piece is mapped; what lies
in chunks is unpacked chunk by chunk. Attributes, layer configurations and the code in them are never
looked at. Files are written through h5py, and read by `hdf5_structure`, which says why.
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from weightkit import files
from weightkit.dtypes import DTYPES
from weightkit.errors import FormatError, SaveError, one_line, printable
from weightkit.formats import zipped
from weightkit.formats.hdf5_structure.chunked import Dataset, boxes, guarded, opened
from weightkit.formats.hdf5_structure.dataset import Described, chunk_table, describe
from weightkit.formats.hdf5_structure.header import LAYOUT, LINKS, NODE_SIZES, TABLE, TYPE, Header, read_header
from weightkit.formats.hdf5_structure.image import UNDEFINED, Image
from weightkit.formats.hdf5_structure.links import links
from weightkit.formats.shard import UNPACKED_BYTES, ShardFile, is_verified
from weightkit.tensor import BLOCK, Source, Tensor

SUFFIXES: tuple[str, ...] = (".h5", ".hdf5", ".keras")

_MOST_NAME = 1024  # characters that are written; HDF5 stores more than 4 kB in a way of its own
_SUMS_AT_OPENING = 1 << 20  # bytes: to compute their checksum takes a loop
_MEMBER = "model.weights.h5"  # of a .keras archive
_OPTIMIZER = ("optimizer_weights", "optimizer")  # top groups of Keras 2 and 3
_BOOKKEEPING = {"seed_generator", "iteration", "iterations", "iterations:0"}


def open_file(path: Path) -> ShardFile:
    """Read the structure of an HDF5 file or a .keras archive; no array is touched.

    Raises FormatError for whatever is damaged, leads out of the file, or says more than the file can hold;
    of a file that `is_verified`, also where a checksum is wrong or a chunk does not unpack.
    """
    small = is_verified(path)
    shard = _read(path, sums=_SUMS_AT_OPENING if small else 0)
    for fault in _faults_at_opening(shard) if small else ():
        raise FormatError(f"{path}: {fault}")
    return shard


def faults(path: Path) -> Iterator[str]:
    """What a full read finds: chunks that do not unpack, and what does not match its checksum."""
    if _is_archive(path):
        yield from zipped.crc_faults(path)
    for dataset in _datasets(_read(path, sums=math.inf)):
        yield from dataset.faults()


def _faults_at_opening(shard: ShardFile) -> Iterator[str]:
    """As `faults`, as far as it takes no longer than to read UNPACKED_BYTES, and looks at what is used only."""
    if _is_archive(shard.path):
        yield from zipped.crc_faults(shard.path, {_MEMBER: zipped.members(shard.path)[_MEMBER]})
    left = UNPACKED_BYTES
    for dataset in _datasets(shard):
        work = dataset.work()
        if work <= left:
            left -= work
            yield from dataset.faults()


def _datasets(shard: ShardFile) -> list[Dataset]:
    """Each array once that has to be unpacked, whatever names it has."""
    return list({t.address: t for t in shard.tensors.values() if isinstance(t, Dataset)}.values())


def _is_archive(path: Path) -> bool:
    """Whether this is a .keras archive, which is known by its content: in a cache, names are hashes."""
    with files.open_bytes(path) as file:
        return file.read(2) == b"PK"


def _read(path: Path, *, sums: float) -> ShardFile:
    with guarded(path):
        member = _MEMBER if _is_archive(path) else ""
        with opened(path, member) as (file, start, size):
            image = Image(file, path, size, start, sums=sums)
            tensors = _Walk(image, member).tensors()
            image.settle()
    return ShardFile(path, path.name, tensors, aside=frozenset(filter(_is_aside, tensors)))


def _is_aside(name: str) -> bool:
    parts = name.split("/")
    return parts[0] in _OPTIMIZER or not _BOOKKEEPING.isdisjoint(parts)


class _Walk:
    """A walk through the groups of a file."""

    def __init__(self, image: Image, member: str) -> None:
        self.image, self.member = image, member
        self.in_memory = isinstance(image.file, io.BytesIO)
        self.groups: set[int] = set()
        self.arrays: dict[int, Tensor | Dataset | None] = {}  # by address: one array may have several names

    def tensors(self) -> dict[str, Source]:
        """Every array of numbers, by its path. A group that is met again is not entered again."""
        self._read_extension()
        result: dict[str, Source] = {}
        waiting = [("", self.image.root)]
        while waiting:
            path, address = waiting.pop()
            if address in self.groups:
                continue
            if address not in self.arrays:
                header = read_header(self.image, address)
                if LAYOUT not in header.one:
                    waiting.extend(reversed(self._children(path, address, header)))
                    continue
                self.arrays[address] = self._array(path, address, header)
            array = self.arrays[address]
            if array is not None:
                result[path] = array if array.name == path else replace(array, name=path)
        return result

    def _read_extension(self) -> None:
        """The sizes of B-tree nodes, where the file has sizes of its own (section IV.A.2.t)."""
        if self.image.extension != UNDEFINED:
            message = read_header(self.image, self.image.extension).one.get(NODE_SIZES)
            if message:
                _, chunk, group, leaf = struct.unpack_from("<B3H", message.body)
                self.image.chunk_entries, self.image.group_entries = 2 * chunk, 2 * group
                self.image.leaf_entries = 2 * leaf

    def _children(self, path: str, address: int, header: Header) -> list[tuple[str, int]]:
        if not header.links and header.one.keys().isdisjoint((TABLE, LINKS)):
            if TYPE in header.one:
                return []  # a type that has a name
            raise self.image.fail(f"a damaged HDF5 file: {path or '/'!r} is neither a group nor an array")
        self.groups.add(address)
        found = [(self._path(path, name), child) for name, child in links(self.image, header)]
        if len(dict(found)) != len(found):
            raise self.image.fail(f"a damaged HDF5 file: a name is twice in {path or '/'!r}")
        return found

    def _path(self, group: str, raw: bytes) -> str:
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.image.fail(f"a damaged HDF5 file: a name in {group or '/'!r} is not UTF-8") from None
        if "/" in name or "\0" in name or name == ".":
            raise self.image.fail(f"a damaged HDF5 file: {name!r} cannot be a name in {group or '/'!r}")
        path = f"{group}/{name}" if group else name
        self.image.charge(len(path))
        return path

    def _array(self, path: str, address: int, header: Header) -> Tensor | Dataset | None:
        try:
            array = describe(self.image, header)
            where = self._in_one_piece(array) if array else None
        except FormatError as error:
            raise self.image.fail(f"dataset {path!r}: {str(error).removeprefix(f'{self.image.path}: ')}") from None
        except ValueError as error:
            raise self.image.fail(f"dataset {path!r}: a damaged HDF5 file: {error}") from None
        if array is None:
            return None
        dtype, big_endian = DTYPES[array.element.name], array.element.big_endian
        if where is None or self.in_memory:
            return Dataset(path, dtype, array.shape, self.image.path, address, self.member, big_endian)
        return Tensor(path, dtype, array.shape, self.image.path, where, big_endian)

    def _in_one_piece(self, array: Described) -> int | None:
        """Where in the file all elements lie one after another, if they do."""
        if not array.nbytes:
            return 0
        if not array.layout.chunk:
            if array.layout.address == UNDEFINED:
                return None
            self.image.claim(array.nbytes)
            return self.image.offset(array.layout.address)
        table = chunk_table(self.image, array)
        if array.filters or array.layout.chunk != array.shape or not table:
            return None
        return self.image.offset(next(iter(table.values())).address)


def write(path: Path, tensors: Iterable[tuple[str, Source]]) -> None:
    """Write arrays as an HDF5 file of contiguous datasets; a dot in a name becomes a slash, which makes groups.

    Arrays are read and written BLOCK elements at a time. BF16 becomes a float type of 16 bits that h5py
    reads as numbers. Raises SaveError for types that HDF5 does not have, and for names that collide.
    """
    import h5py

    places: dict[str, str] = {}
    try:
        with h5py.File(path, "w") as file:
            for name, source in tensors:
                place = name.replace(".", "/")
                if "\0" in place or not all(0 < len(part) <= _MOST_NAME for part in place.split("/")):
                    raise SaveError(f"{path}: {name[:99]!r} cannot be a name in HDF5: a part is empty or very long")
                if place in places:
                    raise SaveError(f"{path}: {name!r} and {places[place]!r} would have the same name in an HDF5 file")
                places[place] = name
                _write_one(path, file, place, source)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # all that h5py raises
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else printable(str(error))
        taken = [name for place, name in places.items() if any(other.startswith(f"{place}/") for other in places)]
        clash = f"{one_line(map(repr, taken))} cannot be an array and a group; " if taken else ""
        raise SaveError(f"{path}: cannot be written: {clash}{reason}") from None


def _write_one(path: Path, file: Any, place: str, source: Source) -> None:
    from h5py import h5d, h5p, h5s

    links_made, stored = h5p.create(h5p.LINK_CREATE), h5p.create(h5p.DATASET_CREATE)
    links_made.set_create_intermediate_group(True)
    links_made.set_char_encoding(1)  # UTF-8
    stored.set_layout(h5d.CONTIGUOUS)
    stored.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    stored.set_fill_time(h5d.FILL_TIME_NEVER)
    kind = _type(path, source)
    space = h5s.create_simple(source.shape) if source.shape else h5s.create(h5s.SCALAR)
    dataset = h5d.create(file.id, place.encode(), kind, space, stored, links_made)
    size = source.nbytes // source.dtype.nbytes(1)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        values, done = source.read(start, stop), 0
        for low, shape in boxes(source.shape, start, stop):
            part = values[done : (done := done + _size(shape))].reshape(shape)
            where = h5s.ALL if not shape else space.copy()
            if shape:
                where.select_hyperslab(low, shape)
            dataset.write(h5s.create_simple(shape) if shape else h5s.ALL, where, part, mtype=kind)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _type(path: Path, source: Source) -> Any:
    """The HDF5 type whose elements are the stored elements of a source."""
    import numpy as np
    from h5py import h5t

    dtype = source.dtype
    if dtype.name == "BF16":
        kind = h5t.IEEE_F32LE.copy()
        kind.set_fields(15, 7, 8, 0, 7)
        kind.set_size(2)
        kind.set_ebias(127)
        return kind
    if dtype.table or dtype.packed:
        raise SaveError(
            f"{path}: {source.name!r} is {dtype.name}, a type that HDF5 does not have; "
            "cast it to BF16 first, or save it as safetensors"
        )
    return h5t.py_create(np.dtype(bool if dtype.kind == "bool" else dtype.stored), logical=True)
