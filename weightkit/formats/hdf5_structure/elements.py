"""HDF5 types to element types: numbers only (section IV.A.2.d)."""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import NamedTuple

FIXED, FLOAT, TEXT, COMPOUND, REFERENCE, ENUM, VARIABLE, COMPLEX = 0, 1, 3, 6, 7, 8, 9, 11
_NAMES = {2: "time", 3: "text", 4: "bits", 5: "opaque bytes", 6: "compound", 7: "references", 8: "an enumeration",
          9: "variable length", 10: "arrays", 11: "complex"}  # fmt: skip

# (bytes, sign, exponent at, exponent bits, mantissa at, mantissa bits, bias), with an implied leading bit
_FLOATS = {
    (8, 63, 52, 11, 0, 52, 1023): "F64",
    (4, 31, 23, 8, 0, 23, 127): "F32",
    (2, 15, 10, 5, 0, 10, 15): "F16",
    (2, 15, 7, 8, 0, 7, 127): "BF16",
}


class Element(NamedTuple):
    """An element type by the name of its DType, or what it is instead of a number."""

    name: str
    big_endian: bool = False
    number: bool = True
    weight: bool = True  # False: text and references, which no one takes for weights


@lru_cache(maxsize=128)
def element(body: bytes) -> Element:
    """The element type that a datatype message describes.

    Raises IndexError or struct.error where the message is too short.
    """
    kind = body[0] & 15
    reader = {FIXED: _fixed, FLOAT: _float, ENUM: _bool, COMPOUND: _pair, COMPLEX: _complex}.get(kind)
    found = reader(body) if reader and 1 <= body[0] >> 4 <= 5 else None
    return found or Element(
        _NAMES.get(kind, "numbers of an unusual layout"), number=False, weight=kind not in (TEXT, REFERENCE, VARIABLE)
    )


def _size(body: bytes) -> int:
    return int.from_bytes(body[4:8], "little")


def _fixed(body: bytes) -> Element | None:
    size = _size(body)
    offset, precision = Struct("<2H").unpack_from(body, 8)
    if size not in (1, 2, 4, 8) or offset or precision != 8 * size:
        return None
    return Element(f"{'I' if body[1] & 8 else 'U'}{8 * size}", bool(body[1] & 1) and size > 1)


def _float(body: bytes) -> Element | None:
    size, (offset, precision) = _size(body), Struct("<2H").unpack_from(body, 8)
    layout = Struct("<4BL").unpack_from(body, 12)
    name = _FLOATS.get((size, body[2], *layout))
    implied_bit = body[1] >> 4 & 3 == 2
    if name is None or offset or precision != 8 * size or not implied_bit or body[1] & 0x40:
        return None
    return Element(name, bool(body[1] & 1))


def _bool(body: bytes) -> Element | None:
    """An enumeration of FALSE and TRUE in a byte, as h5py writes it."""
    base, members = body[8:20], int.from_bytes(body[1:3], "little")
    if _size(body) != 1 or members != 2 or base[0] & 15 != FIXED or _size(base) != 1:
        return None
    names, values = body[20:31], body[31:33]
    if body[0] >> 4 < 3:
        names, values = body[20:36], body[36:38]
    known = [name for name in names.split(b"\0") if name] == [b"FALSE", b"TRUE"] and values == b"\0\1"
    return Element("BOOL") if known else None


def _pair(body: bytes) -> Element | None:
    """A compound of two float32, r and i, as h5py writes a complex64."""
    version, members = body[0] >> 4, int.from_bytes(body[1:3], "little")
    if _size(body) != 8 or members != 2:
        return None
    parts, at = [], 8
    for _ in range(2):
        end = body.index(b"\0", at)
        name = body[at:end]
        at = end + 1 if version >= 3 else at + (end - at + 8) // 8 * 8
        width = 1 if version >= 3 else 4
        offset = int.from_bytes(body[at : at + width], "little")
        at += width if version > 1 else 4 + 1 + 3 + 4 + 4 + 16
        parts.append((name, offset, _float(body[at : at + 20])))
        at += 20
    (first, one, real), (second, two, imaginary) = parts
    same = real is not None and real.name == "F32" and real == imaginary
    known = (first, one, second, two) == (b"r", 0, b"i", 4)
    return Element("C64", real.big_endian) if real and same and known else None


def _complex(body: bytes) -> Element | None:
    base = _float(body[8:28]) if body[8] & 15 == FLOAT else None
    return Element("C64", base.big_endian) if base and base.name == "F32" and _size(body) == 8 else None
