"""Numbers as people read them: separators, units, a sensible number of digits."""

from __future__ import annotations

import math

NONE = "–"


def count(number: int | None) -> str:
    """A whole number with separators."""
    return NONE if number is None else f"{number:,}"


def size(number: float | None) -> str:
    """Bytes in decimal units, three digits."""
    return NONE if number is None else _scaled(number, ("B", "kB", "MB", "GB", "TB", "PB"))


def operations(number: float | None) -> str:
    """Floating-point operations, three digits."""
    return NONE if number is None else _scaled(number, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def short(number: float) -> str:
    """A large count in three digits, as in 70.6 B."""
    return _scaled(number, ("", "k", "M", "B", "T")).strip()


def real(number: float | None, digits: int = 4) -> str:
    """A real number in few digits; a dash where it does not exist."""
    if number is None or math.isnan(number):
        return NONE
    text = f"{number:.{digits}g}"
    return text.replace("e-0", "e-").replace("e+0", "e")


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal."""
    return NONE if share is None or math.isnan(share) else f"{100 * share:.1f} %"


def shape(sizes: tuple[int, ...]) -> str:
    """A shape as in 4,096 × 11,008."""
    return " × ".join(map("{:,}".format, sizes)) or "1"


def plural(number: int, noun: str, many: str | None = None) -> str:
    """A count and its noun, as in 1 tensor or 2,048 tensors; `many` where it is not the noun and an s."""
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def _scaled(number: float, units: tuple[str, ...]) -> str:
    step = 0
    while abs(number) >= 999.5 and step < len(units) - 1:
        number /= 1000
        step += 1
    digits = 0 if step == 0 or abs(number) >= 99.95 else 1 if abs(number) >= 9.995 else 2
    return f"{number:,.{digits}f} {units[step]}"
