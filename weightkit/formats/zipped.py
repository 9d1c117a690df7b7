"""ZIP archives, read strictly: what two readers could understand differently is refused.

Only the directory is read here; members that are stored (not compressed) can then be mapped at their
offset in the file. Python's zipfile does not serve: it believes the directory where a member's own
header says something else, skips what precedes the archive, and takes the last of two equal names.

Format: PKWARE APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3 (zip64).
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from struct import Struct
from typing import BinaryIO, NamedTuple

from weightkit import files
from weightkit.errors import FormatError

STORED, DEFLATED = 0, 8  # the methods that `chunks` reads
MOST_BYTES = 100 << 20  # of a directory: more than a million members
CHUNK = 1 << 20

_LOCAL = Struct("<4s5H3L2H")  # signature version flags method time date crc stored size name extra
_CENTRAL = Struct("<4s6H3L5H2L")  # … signature made version flags … extra comment disk attributes offset
_END = Struct("<4s4H2LH")  # signature disk disk members members bytes offset comment
_END64 = Struct("<4sQ2H2L4Q")  # signature length made version disk disk members members bytes offset
_LOCATOR = Struct("<4sLQL")  # signature disk offset disks
_MOST_COMMENT = 0xFFFF
_NEWEST = 63  # version of the format, times ten
_IN_EXTRA16, _IN_EXTRA32 = 0xFFFF, 0xFFFFFFFF  # "the number is too large for this field: see zip64"
_UTF8, _DESCRIPTOR = 1 << 11, 1 << 3
_REFUSED_FLAGS = 1 << 0 | 1 << 5 | 1 << 6 | 1 << 13  # encrypted, patched, strongly encrypted, masked
_DESCRIPTOR_BYTES = (0, 12, 16, 20, 24)  # PyTorch writes none after an empty member


class Member(NamedTuple):
    """One file of an archive. The archive's bytes `offset` to `offset + stored_size` are its content."""

    name: str
    offset: int
    size: int  # in bytes, unpacked
    stored_size: int
    method: int
    crc: int


class _Entry(NamedTuple):
    """A member as the directory describes it."""

    header: int  # offset of the member's own header
    raw_name: bytes
    flags: int
    method: int
    crc: int
    stored_size: int
    size: int


def members(path: Path) -> dict[str, Member]:
    """The members of the ZIP archive at `path`, by name, in the order in which they lie in the file.

    Raises FormatError unless the archive fills the file without overlaps and unexplained gaps, has no
    name twice, is not encrypted, and each member's own header agrees with the directory.
    """
    size = files.size(path)
    try:
        with files.open_bytes(path) as file:
            archive = _Archive(file, path, size)
            start, raw, count = archive.directory()
            entries = sorted(archive.entries(raw, count))
            found = [archive.member(entry) for entry in entries]
            archive.require_gapless(entries, found, start)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None
    result = {member.name: member for member in found}
    if len(result) != len(found):
        twice, _ = Counter(member.name for member in found).most_common(1)[0]
        raise FormatError(f"{path}: its ZIP directory lists {twice!r} twice")
    return result


def chunks(file: BinaryIO, path: Path, member: Member) -> Iterator[bytes]:
    """The content of a member, unpacked, in pieces of at most CHUNK bytes.

    Raises FormatError where it does not unpack to what the directory says; the CRC is not looked at.
    """
    left = member.size
    for piece in _inflated(file, path, member) if member.method == DEFLATED else _stored(file, path, member):
        left -= len(piece)
        if left < 0:
            break
        yield piece
    if left:
        raise FormatError(f"{path}: member {member.name!r} does not unpack to the {member.size:,} bytes it should")


def read(path: Path, member: Member, most: int) -> bytes:
    """The content of a member of at most `most` bytes. Raises FormatError as `chunks` does."""
    if member.size > most:
        raise FormatError(f"{path}: member {member.name!r} has {member.size:,} bytes, expected at most {most:,}")
    try:
        with files.open_bytes(path) as file:
            return b"".join(chunks(file, path, member))
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None


def crc_faults(path: Path, found: Mapping[str, Member] | None = None) -> Iterator[str]:
    """What a full read finds: each member whose bytes do not match its CRC-32."""
    try:
        with files.open_bytes(path) as file:
            for member in (members(path) if found is None else found).values():
                crc = 0
                try:
                    for piece in chunks(file, path, member):
                        crc = zlib.crc32(piece, crc)
                except FormatError as error:
                    yield str(error).removeprefix(f"{path}: ")
                    continue
                if crc != member.crc:
                    yield f"the bytes of member {member.name!r} do not match their checksum (CRC-32)"
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None


def _stored(file: BinaryIO, path: Path, member: Member) -> Iterator[bytes]:
    file.seek(member.offset)
    left = member.stored_size
    while left:
        piece = file.read(min(left, CHUNK))
        if not piece:
            raise FormatError(f"{path}: the file became shorter while it was read")
        left -= len(piece)
        yield piece


def _inflated(file: BinaryIO, path: Path, member: Member) -> Iterator[bytes]:
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for packed in _stored(file, path, member):
            rest = packed
            while rest and not engine.eof:
                piece = engine.decompress(rest, CHUNK)
                rest = engine.unconsumed_tail
                if piece:
                    yield piece
        while not engine.eof and (piece := engine.decompress(engine.unconsumed_tail, CHUNK)):
            yield piece
    except zlib.error:
        raise FormatError(f"{path}: member {member.name!r} is not valid deflate data") from None
    if not engine.eof or engine.unused_data:
        raise FormatError(f"{path}: member {member.name!r} does not end where its deflate data does")


class _Archive:
    """The few reads that a directory takes."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.file, self.path, self.size = file, path, size

    def fail(self, message: str) -> FormatError:
        return FormatError(f"{self.path}: {message}")

    def at(self, offset: int, count: int) -> bytes:
        """`count` bytes at `offset`; raises FormatError where the file has not as many."""
        if not 0 <= offset <= self.size - count:
            raise self.fail(f"a broken ZIP archive: {count:,} bytes are expected at {offset:,} of {self.size:,}")
        self.file.seek(offset)
        raw = self.file.read(count)
        if len(raw) != count:
            raise self.fail("the file became shorter while it was read")
        return raw

    def directory(self) -> tuple[int, bytes, int]:
        """The directory's offset, its bytes and its number of members."""
        end = self._end()
        _, disk, first_disk, here, count, length, offset, _ = _END.unpack(self.at(end, _END.size))
        stop = end
        if end >= _LOCATOR.size and self.at(end - _LOCATOR.size, 4) == b"PK\6\7":
            stop, wide = self._end64(end - _LOCATOR.size)
            narrow = (disk, first_disk, here, count, length, offset)
            limits = (_IN_EXTRA16,) * 4 + (_IN_EXTRA32,) * 2
            if any(n not in (w, limit) for n, w, limit in zip(narrow, wide, limits, strict=True)):
                raise self.fail("a broken ZIP archive: its two end records disagree")
            disk, first_disk, here, count, length, offset = wide
        if disk or first_disk or here != count:
            raise self.fail("one part of a ZIP archive in several")
        if offset + length != stop:
            raise self.fail("a broken ZIP archive: its directory is not where its end record says")
        if length > MOST_BYTES or count > length // _CENTRAL.size:
            raise self.fail(f"a ZIP directory of {count:,} members in {length:,} bytes cannot be real")
        return offset, self.at(offset, length), count

    def _end(self) -> int:
        """The offset of the end record, which with its comment ends the file."""
        span = min(self.size, _END.size + _MOST_COMMENT)
        tail = self.at(self.size - span, span)
        found, place = [], tail.rfind(b"PK\5\6")
        while place >= 0:
            if place + _END.size + int.from_bytes(tail[place + 20 : place + 22], "little") == span:
                found.append(self.size - span + place)
            place = tail.rfind(b"PK\5\6", 0, place + 3)
        if len(found) != 1:
            problem = "has no end record: it is cut short, or something follows it" if not found else "has two ends"
            raise self.fail(f"a broken ZIP archive: it {problem}")
        return found[0]

    def _end64(self, locator: int) -> tuple[int, tuple[int, ...]]:
        """The offset of the zip64 end record, and its six numbers."""
        _, disk, offset, disks = _LOCATOR.unpack(self.at(locator, _LOCATOR.size))
        signature, length, _, _, *wide = _END64.unpack(self.at(offset, _END64.size))
        if signature != b"PK\6\6" or disk or disks > 1 or offset + 12 + length != locator:
            raise self.fail("a broken ZIP archive: its zip64 end record is not where it should be")
        return offset, tuple(wide)

    def entries(self, raw: bytes, count: int) -> list[_Entry]:
        """The directory's entries."""
        result, at = [], 0
        for _ in range(count):
            if at + _CENTRAL.size > len(raw) or raw[at : at + 4] != b"PK\1\2":
                raise self.fail("a broken ZIP archive: its directory is damaged")
            (_, _, version, flags, method, _, _, crc, stored, size, name, extra, comment, disk, _, _, header) = (
                _CENTRAL.unpack_from(raw, at)
            )
            start, at = at + _CENTRAL.size, at + _CENTRAL.size + name + extra + comment
            if at > len(raw) or disk not in (0, _IN_EXTRA16) or version > _NEWEST:
                raise self.fail("a broken ZIP archive: its directory is damaged")
            if _IN_EXTRA32 in (size, stored, header):
                wide = raw[start + name : start + name + extra]
                size, stored, header = self._widened((size, stored, header), wide)
            result.append(_Entry(header, raw[start : start + name], flags, method, crc, stored, size))
        if at != len(raw):
            raise self.fail("a broken ZIP archive: its directory has more members than it says")
        return result

    def _widened(self, narrow: tuple[int, ...], extra: bytes) -> list[int]:
        """Numbers that may stand in the zip64 field of `extra` instead of where they belong."""
        fields, at = [], 0
        while at + 4 <= len(extra):
            kind, length = extra[at : at + 2], int.from_bytes(extra[at + 2 : at + 4], "little")
            if kind == b"\1\0":
                fields.append(extra[at + 4 : at + 4 + length])
            at += 4 + length
        wanted = narrow.count(_IN_EXTRA32)
        if len(fields) != 1 or len(fields[0]) < 8 * wanted:
            raise self.fail("a broken ZIP archive: a zip64 field is missing, short or there twice")
        wide = iter(int.from_bytes(fields[0][8 * i : 8 * i + 8], "little") for i in range(wanted))
        return [next(wide) if number == _IN_EXTRA32 else number for number in narrow]

    def member(self, entry: _Entry) -> Member:
        """The member of an entry, after a look at its own header."""
        raw_name = entry.raw_name
        raw = self.at(entry.header, _LOCAL.size + len(raw_name))
        signature, _, flags, method, _, _, crc, stored, size, name, extra = _LOCAL.unpack_from(raw)
        text = self._name(raw_name, entry.flags)
        start = entry.header + _LOCAL.size + name
        if signature != b"PK\3\4" or raw[_LOCAL.size :] != raw_name or name != len(raw_name):
            raise self.fail(f"a broken ZIP archive: the directory's {text!r} has another name where it lies")
        if flags & _REFUSED_FLAGS or entry.flags & _REFUSED_FLAGS:
            raise self.fail(f"member {text!r} of the ZIP archive is encrypted")
        if _IN_EXTRA32 in (size, stored):
            size, stored = self._widened((size, stored), self.at(start, extra))
        own, listed = (crc, stored, size), (entry.crc, entry.stored_size, entry.size)
        later = flags & _DESCRIPTOR  # then the header may leave them open
        agrees = all(a == b or (later and not a) for a, b in zip(own, listed, strict=True))
        if not agrees or flags != entry.flags or method != entry.method:
            raise self.fail(f"a broken ZIP archive: {text!r} and its entry in the directory disagree")
        if method == STORED and entry.size != entry.stored_size:
            raise self.fail(f"a broken ZIP archive: {text!r} is stored, but with two sizes")
        return Member(text, start + extra, entry.size, entry.stored_size, method, entry.crc)

    def _name(self, raw: bytes, flags: int) -> str:
        try:
            name = raw.decode("utf-8" if flags & _UTF8 else "cp437")
        except UnicodeDecodeError:
            raise self.fail("a broken ZIP archive: a member's name is not UTF-8") from None
        if not name or "\0" in name:
            raise self.fail("a broken ZIP archive: a member's name is empty or holds a NUL")
        return name

    def require_gapless(self, entries: list[_Entry], found: list[Member], stop: int) -> None:
        """Raise FormatError unless the members fill the file up to the directory at `stop`."""
        end = 0
        allowed: tuple[int, ...] = (0,)
        for entry, member in zip(entries, found, strict=True):
            self._require_gap(entry.header - end, allowed, f"before {member.name!r}")
            end = member.offset + member.stored_size
            allowed = _DESCRIPTOR_BYTES if entry.flags & _DESCRIPTOR else (0,)
        self._require_gap(stop - end, allowed, "before its directory")

    def _require_gap(self, gap: int, allowed: tuple[int, ...], where: str) -> None:
        if gap < 0:
            raise self.fail(f"a broken ZIP archive: two things overlap {where}")
        if gap not in allowed:
            raise self.fail(f"a ZIP archive with {gap:,} unexplained bytes {where}")
