"""Counting of stored elements: bit patterns of 8- and 16-bit types, exact sums of powers of all others.

Each compiled loop has a twin in numpy, which stands in for it where nothing can be compiled, or few are to count.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from weightkit import kernels
from weightkit.dtypes import Array

HALF = 1 << 16  # patterns of 16 bits
UNIT = 1126  # sums of the k-th powers are whole numbers of 2^(-k · UNIT): what 5e-324 has as 53 bits
MOST_COUNT = 1 << 31  # of tables of 32 bits
COPY = 8 << 20  # bytes that are put together at a time where elements lie apart
FEW = 1 << 16  # numbers that numpy counts sooner than a compiler is loaded
SOME = 1 << 12  # numbers that are sorted sooner than a table of all patterns is gone through
LIMB_OF_TABLE = 22  # bits of a power or a count that are multiplied at a time
LIMB = 18  # bits of a mantissa that are summed at a time: 2^35 of them have an exact float64 sum

SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)

Powers = tuple[int, int, int, int]  # Σx, Σx², Σx³, Σx⁴, exactly
NO_POWERS: Powers = (0, 0, 0, 0)


def lines(stored: Array) -> Iterator[Array]:
    """An array as matrices whose rows lie in one piece, [rows, n], whatever the order of its elements."""
    if not stored.size:
        return
    if stored.flags.c_contiguous or stored.flags.f_contiguous:
        yield stored.reshape(1, -1, order="C" if stored.flags.c_contiguous else "F")
        return
    turned = stored.T if stored.strides[0] == stored.itemsize else stored
    if turned.strides[-1] != turned.itemsize:
        for part in np.array_split(turned, 1 + turned.nbytes // COPY):
            yield np.ascontiguousarray(part).reshape(1, -1)
    elif turned.ndim == 2:
        yield turned
    else:
        for part in turned:
            yield from lines(part)


def _by_compiled(stored: Array) -> bool:
    """Whether a compiled loop counts these elements."""
    return stored.size >= FEW and kernels.available()


class Patterns:
    """How often each bit pattern occurs among elements of 8 or 16 bits."""

    def __init__(self, itemsize: int) -> None:
        self._size = 1 << 8 * itemsize
        self._few: list[Array] = []  # elements that are not counted yet
        self._waiting = 0  # how many these are
        self._total: Array | None = None
        self._tables: Array | None = None  # of the compiled loop, 32 bits each
        self._counted = 0  # in these

    def add(self, stored: Array) -> None:
        """Count the elements of an array, which may change afterwards."""
        for rows in lines(stored.view(f"u{stored.itemsize}")):
            if _by_compiled(rows):
                self._add_compiled(rows)
                continue
            self._few.append(rows.flatten())
            self._waiting += rows.size
            if self._waiting > FEW:
                self._total = self.counts()

    def _add_compiled(self, rows: Array) -> None:
        from weightkit.compiled import counts

        if self._tables is None or self._counted + rows.size > MOST_COUNT:
            self._total = self.counts()
            self._tables, self._counted = np.zeros(counts.tables(8 * rows.itemsize), np.uint32), 0
        counts.patterns(8 * rows.itemsize)(*_place(rows), self._tables.ctypes.data)
        self._counted += rows.size

    def counts(self) -> Array:
        """The counts so far, int64 [256] or [65536]."""
        total = np.zeros(self._size, np.int64) if self._total is None else self._total
        for elements in self._few:
            total = total + np.bincount(elements, minlength=self._size)
        self._few, self._waiting = [], 0
        if self._tables is not None:
            total = total + self._tables[:, : self._size].sum(axis=0, dtype=np.uint32)  # MOST_COUNT in all
            self._tables = None
        self._total = total
        return total

    def found(self) -> tuple[Array, Array]:
        """The patterns that occur, rising, and how often each does, int64."""
        if self._total is None and self._tables is None and self._waiting < SOME:
            none = np.empty(0, np.uint8 if self._size == 256 else np.uint16)
            return np.unique(np.concatenate([none, *self._few]), return_counts=True)
        counts = self.counts()
        present = np.flatnonzero(counts)
        return present, counts[present]


def _place(rows: Array) -> tuple[int, int, int, int]:
    """What a compiled loop is told of a matrix: where it is, its sizes, bytes from row to row."""
    return rows.ctypes.data, rows.shape[0], rows.shape[1], rows.strides[0]


# ── float32 ────────────────────────────────────────────────────────────────────────────────────────────


def key(values: Array) -> Array:
    """Float32 to uint32 in the same order: negative numbers by their complement; -0 is 0."""
    return _order((values + np.float32(0)).view(np.uint32), np.uint32(31))


def unkey(keys: Array) -> Array:
    """The float32 of ordered keys."""
    return np.where(keys >> 31, keys & np.uint32((1 << 31) - 1), ~keys).astype(np.uint32).view(np.float32)


def _order(bits: Array, last: np.unsignedinteger) -> Array:
    """Bit patterns of numbers with a sign to keys in the order of the numbers."""
    return np.where(bits >> last, ~bits, bits | (bits.dtype.type(1) << last))


class Singles:
    """What is counted of float32: upper halves by ordered key [65536], powers, NaN, Inf, zeros, lowest and highest."""

    def __init__(self) -> None:
        self.halves = np.zeros(HALF, np.int64)  # of finite numbers
        self.powers = NO_POWERS
        self.nan = self.inf = self.zeros = self.subnormals = 0
        self.low, self.high = np.inf, -np.inf

    def add(self, stored: Array) -> None:
        """Count the elements of an array of float32."""
        for rows in lines(stored):
            if _by_compiled(rows):
                self._add_compiled(rows)
            else:
                with np.errstate(invalid="ignore"):  # a signalling NaN is no surprise here
                    values = rows.astype(np.float64)
                self.add_values(values)

    def _add_compiled(self, rows: Array) -> None:
        from weightkit.compiled import counts

        upper, records = np.zeros(HALF, np.uint32), np.zeros((counts.RECORDS, 8), np.int64)
        extremes = np.array([0, 0, 1 << 32, -1], np.int64)
        counts.singles()(*_place(rows), upper.ctypes.data, records.ctypes.data, extremes.ctypes.data)
        special = (np.arange(HALF) & 0x7F80) == 0x7F80
        zeros, inf, low, high = map(int, extremes)
        self.zeros, self.inf = self.zeros + zeros, self.inf + inf
        self.nan += int(upper[special].sum(dtype=np.int64)) - inf
        self.subnormals += int(upper[(np.arange(HALF) & 0x7F80) == 0].sum(dtype=np.int64)) - zeros
        upper[special] = 0
        self.halves += _in_order(upper)
        self.powers = add_powers(self.powers, _of_records(records))
        if low <= high:
            ends = unkey(np.array([low, high], np.uint32))
            self.low, self.high = min(self.low, float(ends[0])), max(self.high, float(ends[1]))

    def add_values(self, values: Array, tiny: float = SMALLEST_NORMAL) -> bool:
        """Count float64 numbers, in numpy, subnormal below `tiny`; returns whether float32 has every finite one."""
        finite = values[np.isfinite(values)]
        with np.errstate(over="ignore"):
            single = finite.astype(np.float32)
        nan = int(np.isnan(values).sum())
        self.nan, self.inf = self.nan + nan, self.inf + values.size - finite.size - nan
        self.zeros += int((finite == 0).sum())
        self.subnormals += int(((finite != 0) & (np.abs(finite) < tiny)).sum())
        self.halves += np.bincount(key(single) >> np.uint32(16), minlength=HALF)
        self.powers = add_powers(self.powers, power_sums(finite))
        self.low = min(self.low, float(finite.min(initial=np.inf)) + 0.0)  # -0 is 0
        self.high = max(self.high, float(finite.max(initial=-np.inf)) + 0.0)
        return bool((single == finite).all())


def _in_order(upper: Array) -> Array:
    """Counts of the upper halves of bit patterns, in the order of the numbers."""
    result = np.empty(HALF, np.int64)
    result[_order(np.arange(HALF, dtype=np.uint16), np.uint16(15))] = upper
    return result


def add_powers(a: Powers, b: Powers) -> Powers:
    """The powers of both."""
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3])


def _of_records(records: Array) -> Powers:
    """The sums of the compiled loop, by sign and exponent, as whole numbers."""
    present = np.flatnonzero(records[:, 0])
    wide = [[int.from_bytes(records[i, 2 * k : 2 * k + 2].tobytes(), "little") for i in present] for k in (1, 2, 3)]
    return _scaled(present, [records[present, 0].tolist(), *wide], 150)


def _scaled(places: Array, sums: list[list[int]], point: int) -> Powers:
    """The four powers from sums of whole numbers, [power][place], of float32 with these signs and exponents.

    A number is m · 2^(exponent - point), and a place the upper 9 bits of float32.
    """
    total = [0, 0, 0, 0]
    for i, place in enumerate(places.tolist()):
        shift, negative = max(place & 255, 1) - point + UNIT, place > 255
        for k in range(4):
            total[k] += (-sums[k][i] if negative and k % 2 == 0 else sums[k][i]) << (k + 1) * shift
    return (total[0], total[1], total[2], total[3])


def table_powers(keys: Array, counts: Array) -> Powers:
    """Σ count · x^k for k = 1 to 4, exactly, of float32 by ordered keys, rising.

    The numbers have no more than 16 bits of mantissa, as those of all types of 8 and 16 bits.
    """
    if not keys.size:
        return NO_POWERS
    bits = unkey(keys).view(np.uint32)
    place = bits >> np.uint32(23)
    starts = np.flatnonzero(np.diff(place, prepend=np.uint32(1 << 9)))  # numbers of one sign and exponent follow
    hidden = ((place & np.uint32(255)) != 0).astype(np.uint32) << np.uint32(23)
    m = ((bits & np.uint32((1 << 23) - 1) | hidden) >> np.uint32(8)).astype(np.uint64)
    powers = np.cumprod(np.broadcast_to(m, (4, len(m))), axis=0)
    sums = np.zeros((4, len(starts)), object)
    for i, a in enumerate(_cut(powers)):  # so that a sum of 32,768 products is exact in 64 bits
        for j, b in enumerate(_cut(counts.astype(np.uint64))):
            sums += np.add.reduceat(a * b, starts, axis=1).astype(object) << LIMB_OF_TABLE * (i + j)
    return _scaled(place[starts], sums.tolist(), 142)


def _cut(values: Array) -> Iterator[Array]:
    """Numbers of 64 bits in limbs, the lowest first."""
    for low in range(0, int(values.max()).bit_length(), LIMB_OF_TABLE):
        yield values >> np.uint64(low) & np.uint64((1 << LIMB_OF_TABLE) - 1)


def lower_halves(stored: Array, uppers: Array) -> Array:
    """For some upper halves of ordered keys, how often each lower half occurs with them: int64 [uppers, 65536].

    `stored` are float32, of which the finite ones count, or float64, which are rounded.
    """
    if stored.dtype != np.float32 or not _by_compiled(stored):
        with np.errstate(over="ignore"):
            return _lower_numpy(key(stored[np.isfinite(stored)].astype(np.float32)), uppers)
    total = np.zeros((len(uppers), HALF), np.int64)
    for rows in lines(stored):
        total += _lower_compiled(rows, uppers)
    return total


def _slots(uppers: Array) -> Array:
    """The number of each upper half among those asked for, from 1; 0 for the others. uint8 [65536]"""
    slots = np.zeros(HALF, np.uint8)
    slots[uppers] = np.arange(1, len(uppers) + 1)
    return slots


def _lower_numpy(keys: Array, uppers: Array) -> Array:
    found = _slots(uppers)[keys >> np.uint32(16)].astype(np.int64)
    places = (found - 1) * HALF + (keys & np.uint32(HALF - 1))
    return np.bincount(places[found > 0], minlength=len(uppers) * HALF).reshape(-1, HALF)


def _lower_compiled(rows: Array, uppers: Array) -> Array:
    from weightkit.compiled import counts

    tables = np.zeros((len(uppers) + 1, HALF), np.uint32)
    by_bits = _slots(uppers)[_order(np.arange(HALF, dtype=np.uint16), np.uint16(15))]
    by_bits[(np.arange(HALF) & 0x7F80) == 0x7F80] = 0
    counts.lower_halves()(*_place(rows), tables.ctypes.data, by_bits.ctypes.data)
    result = tables[1:].astype(np.int64)
    negative = uppers < HALF // 2
    result[negative] = result[negative, ::-1]  # whose keys are complements
    return result


# ── any other type: by way of float64 ──────────────────────────────────────────────────────────────────


def power_sums(values: Array) -> Powers:
    """Σx, Σx², Σx³ and Σx⁴ of finite float64 numbers, exactly: limbs of the mantissas, by sign and exponent."""
    if not values.size:
        return NO_POWERS
    fraction, exponent = np.frexp(np.abs(values))
    mantissa = (fraction * 2.0**53).astype(np.uint64)
    groups = (exponent.astype(np.int64) - 53 + UNIT) * 2 + (values < 0)
    present = np.flatnonzero(np.bincount(groups))
    total = functools.partial(_total, groups=groups, present=present)
    one = _limbs([mantissa])
    two = _product(one, one)
    return (
        total(one, 1),
        total(two, 2),
        total(_product(two, one), 3),
        total(_product(two, two), 4),
    )


def _limbs(sums: list[Array]) -> list[Array]:
    """Numbers Σ sums[i] · 2^(LIMB · i) with every limb below 2^LIMB."""
    result, carry = [], np.zeros_like(sums[0])
    while sums or carry.any():
        carry = carry + sums[0] if sums else carry
        result.append(carry & np.uint64((1 << LIMB) - 1))
        carry, sums = carry >> np.uint64(LIMB), sums[1:]
    return result


def _product(a: list[Array], b: list[Array]) -> list[Array]:
    sums: list[Array] = [np.zeros_like(a[0]) for _ in range(len(a) + len(b) - 1)]
    for i, x in enumerate(a):
        if x.any():  # float32 and small integers have limbs of zeros
            for j, y in enumerate(b):
                sums[i + j] += x * y
    return _limbs(sums)


def _total(limbs: list[Array], power: int, groups: Array, present: Array) -> int:
    """The sum of numbers in limbs times 2^(power · exponent), odd powers with their signs."""
    found = [0] * len(present)
    for i, limb in enumerate(limbs):
        if limb.any():
            sums = np.bincount(groups, limb.astype(np.float64))[present]
            found = [n + (int(more) << LIMB * i) for n, more in zip(found, sums, strict=True)]
    return sum(
        (-n if group & 1 and power % 2 else n) << power * (int(group) >> 1)
        for group, n in zip(present, found, strict=True)
    )
