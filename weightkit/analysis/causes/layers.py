"""Layers that were moved, dropped or duplicated: which layer of A each layer of B is."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

from weightkit.analysis.causes.evidence import Found
from weightkit.weight import Weight

Stack = dict[int, bytes]  # what tells each layer from others


def stacks(weights: Mapping[str, Weight]) -> dict[str, dict[int, list[Weight]]]:
    """Layers by the stack that they are in: "", or encoder, decoder."""
    found: dict[str, dict[int, list[Weight]]] = {}
    for address, weight in weights.items():
        stack, layered, rest = address.partition("layers.")
        if weight.layer is not None and layered and not weight.alias:
            found.setdefault(stack + layered, {}).setdefault(int(rest.partition(".")[0]), []).append(weight)
    return found


def moved(a: Mapping[str, Weight], b: Mapping[str, Weight]) -> dict[str, Found]:
    """For each stack whose layers are not where they were: `origin`, of each layer of B the layer of A that it is.

    Layers are the same where a few rows of each of their matrices are, to the bit.
    """
    mine, theirs = stacks(a), stacks(b)
    result = {}
    for stack in mine.keys() & theirs.keys():
        found = _origin(_prints(stack, mine[stack]), _prints(stack, theirs[stack]))
        if found is not None:
            result[stack] = found
    return result


def _prints(stack: str, layers: dict[int, list[Weight]]) -> Stack:
    found = {}
    for number, weights in layers.items():
        digest = hashlib.blake2b(digest_size=16)
        for weight in sorted(weights, key=lambda w: w.address):
            if len(weight.shape) < 2:
                continue
            digest.update(weight.address.removeprefix(f"{stack}{number}.").encode())
            for region in weight.spots():
                digest.update(weight.dtype.decode(weight.read(region)).tobytes())
        found[number] = digest.digest()
    return found


def _origin(before: Stack, after: Stack) -> Found | None:
    """None where every layer is in its place, or none is known again."""
    where: dict[bytes, int] = {}
    for number, digest in before.items():
        where.setdefault(digest, number)
    origin = {j: j if before.get(j) == digest else where.get(digest) for j, digest in sorted(after.items())}
    known = [i for i in origin.values() if i is not None]
    if all(i == j for j, i in origin.items() if i is not None) and len(before) == len(after):
        return None
    if not known:
        return None
    times = Counter(known)
    lost = sum(i is None for i in origin.values())
    dropped = sorted(set(before) - set(known))
    return {
        "kind": "layers",
        "origin": [origin[j] for j in sorted(origin)],
        "dropped": dropped if len(dropped) > lost else [],
        "duplicated": sorted(i for i, n in times.items() if n > 1),
    }
