"""Object headers, and the messages in them that describe an array: its type, its shape, where it lies."""

from __future__ import annotations

import math
from functools import lru_cache
from struct import Struct
from typing import NamedTuple

from weightkit.formats.hdf5_structure.image import Image
from weightkit.formats.shard import MOST_ELEMENTS

SPACE, LINKS, TYPE, OLD_FILL, FILL, LINK, EXTERNAL, LAYOUT, FILTERS, CONTINUED, TABLE, NODE_SIZES = (
    0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x0B, 0x10, 0x11, 0x13,
)  # fmt: skip
_KNOWN = 0x18  # the last message that version 4.0 of the specification describes
_KEPT = {SPACE, LINKS, TYPE, OLD_FILL, FILL, EXTERNAL, LAYOUT, FILTERS, TABLE, NODE_SIZES}  # at most one of each
_SHARED, _MUST_BE_KNOWN = 1 << 1, 1 << 7  # flags of a message

_PREFIX1 = Struct("<BxHLL4x")  # version, messages, references, bytes
_MESSAGE1 = Struct("<HHB3x")  # type, bytes, flags
_MESSAGE2 = Struct("<BHB")
_SPAN = Struct("<QQ")  # address, length
_USUAL = 512  # bytes within which most headers lie
_MOST_PART = 4 << 20  # bytes of one piece of a header
_MESSAGE_WORK = 64  # bytes that are read in the time that a message takes


class Message(NamedTuple):
    """One message of an object header, and the address of its first byte in the file."""

    body: bytes
    address: int


class Header(NamedTuple):
    """What is needed of an object header: one message of each type, and all links."""

    one: dict[int, Message]
    links: list[Message]


class Filter(NamedTuple):
    """One step that chunks went through on their way into the file."""

    id: int
    parameters: tuple[int, ...]


def read_header(image: Image, address: int, *, named: bool = True) -> Header:
    """The object header at `address`; `named` allows it to name a type that lies in a header of its own.

    Raises FormatError where there is no header, or where it contradicts itself.
    """
    raw = image.peek(address, _USUAL)
    newer = raw[:4] == b"OHDR"
    start, stop, order = _newer_span(image, raw) if newer else _older_span(image, raw)
    raw = raw[: stop + 4 * newer] if len(raw) >= stop + 4 * newer else _part(image, address, stop + 4 * newer)
    image.charge(len(raw))
    if newer:
        image.check(raw)
    header = Header({}, [])
    waiting = [(raw, address, start, stop)]
    while waiting:
        for offset, length in _collect(image, header, *waiting.pop(), order, named):
            if length < 8:
                raise image.fail(f"a damaged HDF5 file: a part of {length} bytes of the object header at {address:,}")
            if newer:
                part = _part(image, offset, length)
                if part[:4] != b"OCHK":
                    raise image.fail(f"a damaged HDF5 file: no OCHK at {offset:,}")
                image.check(part)
                waiting.append((part, offset, 4, length - 4))
            else:
                waiting.append((_part(image, offset, length), offset, 0, length))
    return header


def _part(image: Image, address: int, count: int) -> bytes:
    if count > _MOST_PART:
        raise image.fail(f"a damaged HDF5 file: {count:,} bytes of an object header at {address:,}")
    return image.at(address, count)


def _older_span(image: Image, raw: bytes) -> tuple[int, int, None]:
    """Section IV.A.1.a: where the messages of an object header of version 1 begin and end."""
    version, _, _, length = _PREFIX1.unpack_from(raw)
    if version != 1:
        raise image.fail(f"a damaged HDF5 file: version {version} where an object header should begin")
    return _PREFIX1.size, _PREFIX1.size + length, None


def _newer_span(image: Image, raw: bytes) -> tuple[int, int, int]:
    """Section IV.A.1.b: where the messages begin and end, and the bytes of the creation order in each."""
    version, flags = raw[4], raw[5]
    if version != 2 or flags & 0xC0:
        raise image.fail(f"an object header of version {version} with flags {flags:#x} is not one that is known")
    at = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
    width = 1 << (flags & 3)
    start = at + width
    return start, start + int.from_bytes(raw[at:start], "little"), 2 * bool(flags & 4)


def _collect(
    image: Image, header: Header, raw: bytes, address: int, at: int, stop: int, order: int | None, named: bool
) -> list[tuple[int, int]]:
    """Sort the messages of one block into `header`; returns the blocks in which it goes on."""
    shape = _MESSAGE1 if order is None else _MESSAGE2
    step = shape.size + (order or 0)
    more = []
    while at + step <= stop:
        kind, length, flags = shape.unpack_from(raw, at)
        image.charge(_MESSAGE_WORK)
        at += step
        if at + length > stop or (order is None and length % 8):
            raise image.fail(f"a damaged HDF5 file: a message of {length:,} bytes at {address + at:,}")
        if kind in _KEPT:
            if kind in header.one:
                raise image.fail(f"a damaged HDF5 file: an object with two messages of type {kind:#x}")
            message = Message(raw[at : at + length], address + at)
            header.one[kind] = _shared(image, kind, message.body, named) if flags & _SHARED else message
        elif kind == LINK:
            header.links.append(Message(raw[at : at + length], address + at))
        elif kind == CONTINUED:
            more.append(_SPAN.unpack_from(raw[at : at + length]))
        elif kind > _KNOWN and flags & _MUST_BE_KNOWN:
            raise image.fail(f"an HDF5 message of type {kind:#x}, which must be understood and is not")
        at += length
    return more


def _shared(image: Image, kind: int, body: bytes, named: bool) -> Message:
    """A message that lies in another header: a type that has a name (section IV.A.2: shared messages)."""
    version, where = body[0], body[1]
    if kind != TYPE or version not in (1, 2, 3) or (version == 3 and where != 2):
        raise image.fail("HDF5 with messages shared among objects cannot be read; rewrite it with h5repack")
    (address,) = Struct("<Q").unpack_from(body, 8 if version == 1 else 2)
    header = read_header(image, address, named=False) if named else Header({}, [])
    if TYPE not in header.one or LAYOUT in header.one:
        raise image.fail(f"a damaged HDF5 file: no type at {address:,}")
    return header.one[TYPE]


@lru_cache(maxsize=128)
def shape_of(body: bytes) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Shape and greatest shape of a dataspace (section IV.A.2.b); None for one that holds nothing.

    Raises ValueError, IndexError or struct.error where the message is damaged.
    """
    version, rank, flags = body[0], body[1], body[2]
    if version not in (1, 2) or rank > 32:
        raise ValueError(f"a shape of version {version} with {rank} dimensions")
    start = 8 if version == 1 else 4
    kind = body[3] if version == 2 else min(rank, 1)
    if kind == 2:
        return None
    if kind > 2 or (kind == 0) != (rank == 0):
        raise ValueError(f"a shape of kind {kind} with {rank} dimensions")
    sizes = Struct(f"<{rank}Q").unpack_from(body, start)
    most = Struct(f"<{rank}Q").unpack_from(body, start + 8 * rank) if flags & 1 else sizes
    if math.prod(sizes) > MOST_ELEMENTS or any(n > m for n, m in zip(sizes, most, strict=True)):
        raise ValueError(f"a shape of {' x '.join(map(str, sizes))} cannot be real")
    return sizes, most


def filters_of(image: Image, body: bytes) -> list[Filter]:
    """The filter pipeline (section IV.A.2.l), in the order in which chunks went through it."""
    version, count = body[0], body[1]
    if version not in (1, 2) or not 0 < count <= 32:
        raise image.fail(f"a damaged HDF5 file: a pipeline of version {version} with {count} filters")
    result, at = [], 8 if version == 1 else 2
    for _ in range(count):
        number = int.from_bytes(body[at : at + 2], "little")
        named = version == 1 or number >= 256
        _, name, _, values = Struct("<4H" if named else "<H0s2H").unpack_from(body, at)
        at += 8 if named else 6
        at += (-(-name // 8) * 8 if version == 1 else name) if named else 0
        result.append(Filter(number, Struct(f"<{values}L").unpack_from(body, at)))
        at += 4 * (values + (values % 2 if version == 1 else 0))
    return result


def fill_of(image: Image, header: Header) -> bytes:
    """The bytes of one element that was never written (section IV.A.2.e and IV.A.2.f); none for zeros."""
    old = header.one.get(OLD_FILL)
    new = header.one.get(FILL)
    if new is None:
        return old.body[4 : 4 + int.from_bytes(old.body[:4], "little")] if old else b""
    version = new.body[0]
    if version not in (1, 2, 3):
        raise image.fail(f"a damaged HDF5 file: a fill value of version {version}")
    given = new.body[1] & 0x20 if version == 3 else version == 1 or new.body[3]
    start = 2 if version == 3 else 4
    size = int.from_bytes(new.body[start : start + 4], "little") if given else 0
    return new.body[start + 4 : start + 4 + size] if size < 1 << 31 else b""
