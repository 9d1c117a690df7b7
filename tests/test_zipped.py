"""ZIP archives: what Python's zipfile wrote is read, and what two readers could understand differently is not."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pickles import write, zipped
from weightkit.errors import FormatError
from weightkit.formats.zipped import crc_faults, members, read

CONTENT = {"a/one": b"first" * 9, "a/two": b"", "a/ü": b"third"}
WHOLE = zipped(CONTENT)
END = WHOLE.rindex(b"PK\5\6")
DIRECTORY = struct.unpack_from("<L", WHOLE, END + 16)[0]
ENTRY2 = WHOLE.index(b"PK\1\2", DIRECTORY + 4)


def contents(path: Path) -> dict[str, bytes]:
    return {name: read(path, member, 1 << 20) for name, member in members(path).items()}


def patched(at: int, new: bytes, content: bytes = WHOLE) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def ended(middle: bytes, offset: int, length: int, count: int) -> bytes:
    return middle + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, length, offset, 0)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_what_was_written(method: int, tmp_path: Path) -> None:
    path = write(tmp_path, zipped(CONTENT, method))
    assert contents(path) == CONTENT
    assert list(crc_faults(path)) == []
    for name, member in members(path).items():
        assert (member.size, member.crc, member.method) == (len(CONTENT[name]), zlib.crc32(CONTENT[name]), method)
        stored = path.read_bytes()[member.offset : member.offset + member.stored_size]
        assert (stored == CONTENT[name]) == (method == zipfile.ZIP_STORED)


def test_sizes_may_follow_the_content(tmp_path: Path) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation

        def tell(self) -> int:
            raise io.UnsupportedOperation

    out = Pipe()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, raw in CONTENT.items():
            file.writestr(name, raw)
    assert contents(write(tmp_path, out.getvalue())) == CONTENT


def test_zip64_sizes_in_a_small_archive(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, raw in CONTENT.items():
            with file.open(name, "w", force_zip64=True) as member:
                member.write(raw)
    assert contents(write(tmp_path, out.getvalue())) == CONTENT


def test_an_archive_beyond_4_gigabytes(tmp_path: Path) -> None:
    """Sparse, in the numbers of zip64: two members of 3 GB and one of 5 GB."""
    path = tmp_path / "large.pt"
    sizes = {"a": 3 << 30, "b": 5 << 30, "c": 4}
    directory = b""
    with open(path, "wb") as file:
        for name, size in sizes.items():
            header, wide = file.tell(), size >= 1 << 32
            extra = struct.pack("<2H2Q", 1, 16, size, size) if wide else b""
            narrow = (0xFFFFFFFF,) * 2 if wide else (size,) * 2
            local = struct.pack("<5H3L2H", 45, 0, 0, 0, 0, 0, *narrow, 1, len(extra))
            file.write(b"PK\3\4" + local + name.encode() + extra)
            file.seek(size, io.SEEK_CUR)
            far = header >= 1 << 32
            extra = (struct.pack("<2Q", size, size) if wide else b"") + (struct.pack("<Q", header) if far else b"")
            extra = struct.pack("<2H", 1, len(extra)) + extra if extra else b""
            directory += b"PK\1\2" + struct.pack("<6H3L", 45, 45, 0, 0, 0, 0, 0, *narrow)
            directory += struct.pack("<5H2L", 1, len(extra), 0, 0, 0, 0, 0xFFFFFFFF if far else header)
            directory += name.encode() + extra
        start = file.tell()
        file.write(directory)
        end = file.tell()
        file.write(b"PK\6\6" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, 3, 3, len(directory), start))
        file.write(b"PK\6\7" + struct.pack("<LQL", 0, end, 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 3, 3, len(directory), 0xFFFFFFFF, 0))
    found = members(path)
    assert {name: member.size for name, member in found.items()} == sizes
    assert found["c"].offset + 4 == start
    with zipfile.ZipFile(path) as oracle:
        assert {info.filename: info.file_size for info in oracle.infolist()} == sizes
    with pytest.raises(FormatError, match="at most"):
        read(path, found["b"], 1 << 20)


BROKEN = {
    "junk before": b"#!/bin/sh\n" + WHOLE,
    "junk after": WHOLE + b"\n",
    "cut short": WHOLE[:-1],
    "half": WHOLE[: len(WHOLE) // 2],
    "no directory": WHOLE[:DIRECTORY],
    "nothing but a signature": b"PK\3\4",
    "a name of its own": patched(WHOLE.index(b"a/one"), b"a/own"),
    "encrypted": patched(6, b"\1", patched(DIRECTORY + 8, b"\1")),
    "encrypted in the directory only": patched(DIRECTORY + 8, b"\1"),
    "another method": patched(DIRECTORY + 10, b"\x08"),
    "a directory with another CRC": patched(DIRECTORY + 16, b"\1\2\3\4"),
    "a directory with another size": patched(DIRECTORY + 24, b"\1"),
    "stored with two sizes": patched(18, b"\1", patched(DIRECTORY + 20, b"\1")),
    "a member twice": zipped({"x/1": b"1", "x/2": b"2"}).replace(b"x/2", b"x/1"),
    "an entry twice": ended(WHOLE[:END], DIRECTORY, END - DIRECTORY, 2),
    "two members in one place": patched(ENTRY2 + 42, bytes(4)),
    "a header outside": patched(DIRECTORY + 42, b"\xff\xff\xff\x7f"),
    "a count that is too small": patched(END + 8, b"\2\0\2\0"),
    "a count that is too large": patched(END + 8, b"\xff\x7f\xff\x7f"),
    "two counts": patched(END + 8, b"\2"),
    "several disks": patched(END + 4, b"\1"),
    "a directory elsewhere": patched(END + 16, b"\0"),
    "a hole": ended(WHOLE[:DIRECTORY] + b"hidden" + WHOLE[DIRECTORY:END], DIRECTORY + 6, END - DIRECTORY, 3),
    "a comment that is an end": WHOLE[:-2] + b"\x16\0" + ended(b"", END + 22, 0, 0),
    "zip64 without its field": patched(DIRECTORY + 20, b"\xff" * 8),
    "zip64 without its end": patched(END + 16, b"\xff" * 4),
    "a name that is not UTF-8": WHOLE.replace("ü".encode(), b"\xff\xff"),
    "a version to come": patched(DIRECTORY + 6, b"\x40"),
    "an empty name": zipped({"": b"x"}),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path, content)
    with pytest.raises(FormatError) as raised:
        members(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert len(str(raised.value).splitlines()) == 1


def test_a_comment_is_allowed(tmp_path: Path) -> None:
    assert contents(write(tmp_path, WHOLE[:-2] + b"\2\0hi")) == CONTENT


@pytest.mark.parametrize("lie", ["count", "length", "offset", "disk"])
def test_two_ends_that_disagree_are_refused(lie: str, tmp_path: Path) -> None:
    start, length = struct.unpack_from("<2L", WHOLE, END + 12)[::-1]
    said = {"count": 3, "length": length, "offset": start, "disk": 0}
    said[lie] += 1

    def content(count: int, length: int, offset: int, disk: int) -> bytes:
        end64 = b"PK\6\6" + struct.pack("<Q2H2L4Q", 44, 45, 45, disk, 0, count, count, length, offset)
        return WHOLE[:END] + end64 + b"PK\6\7" + struct.pack("<LQL", 0, END, 1) + WHOLE[END:]

    assert contents(write(tmp_path, content(3, length, start, 0))) == CONTENT
    with pytest.raises(FormatError):
        members(write(tmp_path, content(**said)))


def test_faults_are_found_one_by_one(tmp_path: Path) -> None:
    content = patched(WHOLE.index(b"first"), b"F", patched(WHOLE.index(b"third"), b"T"))
    assert ["a/one" in fault or "a/ü" in fault for fault in crc_faults(write(tmp_path, content))] == [True, True]


def test_damaged_deflate_data_is_found_where_zipfile_finds_it(tmp_path: Path) -> None:
    packed = zipped({"n": b" ".join(b"%d" % i**3 for i in range(200))}, zipfile.ZIP_DEFLATED)
    (member,) = members(write(tmp_path, packed)).values()
    found = 0
    for at in range(member.offset, member.offset + member.stored_size):
        path = write(tmp_path, patched(at, bytes([packed[at] ^ 0x10]), packed))
        with zipfile.ZipFile(path) as oracle:
            try:
                damaged = oracle.testzip() is not None
            except zlib.error:
                damaged = True
        assert len(list(crc_faults(path))) >= damaged
        found += damaged
    assert found > member.stored_size - 3


def test_a_member_that_unpacks_to_more_than_it_says_is_cut_off(tmp_path: Path) -> None:
    bomb = zipped({"n": bytes(100 << 20)}, zipfile.ZIP_DEFLATED)
    small = bomb.replace(struct.pack("<L", 100 << 20), struct.pack("<L", 1000))
    path = write(tmp_path, small)
    (member,) = members(path).values()
    with pytest.raises(FormatError, match="does not unpack to"):
        read(path, member, 1000)


@given(st.data())
@settings(deadline=None, max_examples=400)
def test_no_damage_is_a_surprise(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    method = data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    content = bytearray(zipped(CONTENT, method))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from([0, 1, 8, 80, 127, 255]))
    path = write(tmp_path_factory.getbasetemp(), bytes(content), ".zip")
    try:
        found = members(path)
    except FormatError:
        return
    if not list(crc_faults(path, found)):
        with zipfile.ZipFile(path) as oracle:
            for name, member in found.items():
                info = oracle.getinfo(name)
                assert (info.file_size, info.CRC) == (member.size, member.crc)
