"""Addresses: one small language that names a weight everywhere.

    embed   layers.7.attn.q   layers.7.ffn.down.bias   norm   lm_head      one weight
    layers.7   layers.7.attn                                             every weight below
    layers.*.ffn.down   layers.3:6.attn.q   layers.-1                    globs, ranges, from the end
    layers.7.attn.q[head=3]   embed[token="Paris"]   lm_head[token=42]   by the name of an axis
    layers.1.ffn.down[3968, 7003]   layers.*.attn.q[:, 17]               numpy indices of [out, in]
    name:model.layers.*.o_proj.weight                                    by the name in the file

The names that people know from other tools (q_proj, W_Q, wq, mlp, wte, unembed, …) are read too, and
printed back in the form above.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from weightkit.errors import AddressError

AXES = ("token", "position", "residual", "head", "kv_head", "neuron", "expert")

Segment = str | int | slice
Position = int | slice | str


@dataclass(frozen=True)
class Index:
    """One item in brackets: a position on a named axis, or (axis None) on the next axis in order."""

    axis: str | None
    at: Position

    def __str__(self) -> str:
        return (f"{self.axis}=" if self.axis else "") + _position(self.at)


@dataclass(frozen=True)
class Address:
    """A parsed address. `str()` prints it in canonical form."""

    path: tuple[Segment, ...] = ()
    index: tuple[Index, ...] = ()
    name: str | None = None  # a glob over the names in the file, instead of a path
    text: str = field(default="", compare=False)  # what the user wrote, after name: if it begins so

    def __str__(self) -> str:
        base = f"name:{self.name}" if self.name is not None else ".".join(map(_segment, self.path))
        return base + index_text(self.index)


def index_text(index: tuple[Index, ...]) -> str:
    """An index as it is written, in brackets; nothing for none."""
    return f"[{', '.join(map(str, index))}]" if index else ""


def parse(text: str) -> Address:
    """Read an address. Raises AddressError, with the user's own words, where it cannot be read."""
    if text.startswith("name:"):
        return _parse_name(text.removeprefix("name:"))
    text = text.strip()
    path, bracket, rest = text.partition("[")
    if not path:
        raise AddressError(f"{text!r}: an address starts with a name, such as layers.0.attn.q or embed")
    segments = tuple(_parse_segment(part, text) for part in path.strip().split("."))
    index = _parse_index(bracket + rest) if bracket else ()
    if index is None:
        raise AddressError(
            f"{text!r}: cannot read {bracket + rest!r}; an index is like [head=3], "
            '[token="Paris"], [neuron=0:8], [3968, 7003] or [:, 17]'
        )
    return Address(_canonical(segments), index, text=text)


def path_matches(pattern: tuple[Segment, ...], path: tuple[Segment, ...], is_weight: Callable[[int], bool]) -> bool:
    """Whether the address `path` of a weight is, or lies below, what `pattern` names.

    `is_weight(n)` tells whether the first n segments of `path` are themselves the address of a
    weight: `layers.0.attn.q` names the matrix and not also its bias, `layers.0.attn` names both.
    """
    if len(pattern) > len(path) or not all(map(_segment_matches, pattern, path)):
        return False
    return len(pattern) == len(path) or pattern[-1] == "*" or not is_weight(len(pattern))


def resolve_ends(pattern: tuple[Segment, ...], layers: Callable[[str], int]) -> tuple[Segment, ...]:
    """Layer numbers and ranges that count from the end, or have no end, made absolute.

    `layers` tells how many there are in a stack: "" the model's own, or "encoder", "decoder", "vision".
    """
    if "layers" not in pattern[:2]:
        return pattern
    place = pattern.index("layers") + 1
    if len(pattern) == place:
        return pattern
    at, count = pattern[place], layers(str(pattern[0]) if place == 2 else "")
    if isinstance(at, int) and at < 0:
        at += count
    elif isinstance(at, slice):
        at = slice(*at.indices(count))
    return (*pattern[:place], at, *pattern[place + 1 :])


def split_path(address: str) -> tuple[Segment, ...]:
    """The segments of a canonical path, numbers as numbers."""
    return tuple(int(part) if part.isdecimal() else part for part in address.split("."))


def _segment_matches(pattern: Segment, segment: Segment) -> bool:
    if isinstance(pattern, slice):
        return isinstance(segment, int) and segment in range(pattern.start, pattern.stop, pattern.step)
    if isinstance(pattern, str) and "*" in pattern:
        return fnmatch.fnmatchcase(str(segment), pattern)
    return pattern == segment


def _parse_segment(part: str, text: str) -> Segment:
    if re.fullmatch(r"-?\d{1,9}", part):
        return int(part)
    if re.fullmatch(r"(-?\d{1,9})?:(-?\d{1,9})?(:[1-9]\d{0,8})?", part):
        return _slice(part)
    if re.fullmatch(r"[A-Za-z_*][\w*-]*", part):
        return part
    what = f"cannot read {part!r}" if part else "an empty part"
    raise AddressError(f"{text!r}: {what}; parts are names, numbers, * or ranges such as 3:6, with dots between")


def _parse_name(text: str) -> Address:
    for found in re.finditer(r"\[", text):
        index = _parse_index(text[found.start() :])
        if index is not None:
            return Address(name=text[: found.start()], index=index, text=text)
    return Address(name=text, text=text)


_ITEM = re.compile(
    r"""\s*(?:(?P<axis>[A-Za-z_]+)\s*=\s*)?
    (?:(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      |(?P<slice>(?:-?\d{1,12})?\s*:\s*(?:-?\d{1,12})?(?:\s*:\s*[1-9]\d{0,11})?)
      |(?P<int>-?\d{1,12}))\s*(?P<end>[,\]])""",
    re.VERBOSE,
)


def _parse_index(text: str) -> tuple[Index, ...] | None:
    """The items of `[…]`, or None where `text` is not all of one index."""
    items, at = [], 1
    while True:
        item = _ITEM.match(text, at)
        if not item:
            return None
        at = item.end()
        items.append(Index(item["axis"], _parse_position(item)))
        if item["end"] == "]":
            break
    mixed = len({item.axis is None for item in items}) > 1
    quoted = any(isinstance(item.at, str) and item.axis is None for item in items)
    return None if at != len(text) or mixed or quoted else tuple(items)


def _parse_position(item: re.Match[str]) -> Position:
    if item["int"]:
        return int(item["int"])
    if item["slice"]:
        return _slice(item["slice"])
    body = item["string"][1:-1]
    if item["string"][0] == "'":
        body = body.replace("\\'", "'").replace('"', '\\"')
    try:
        return str(json.loads(f'"{body}"'))
    except ValueError:
        return body


def _slice(text: str) -> slice:
    return slice(*(int(part) if part.strip() else None for part in text.split(":")))


def _segment(segment: Segment) -> str:
    return _position(segment) if isinstance(segment, slice) else str(segment)


def _position(at: Position) -> str:
    if isinstance(at, str):
        return json.dumps(at, ensure_ascii=False)
    if isinstance(at, int):
        return str(at)
    start, stop = ("" if end is None else str(end) for end in (at.start, at.stop))
    return f"{start}:{stop}" + (f":{at.step}" if at.step not in (None, 1) else "")


# Names that people know from elsewhere, by the place where they stand. Lower case; → canonical parts.
_ATTENTION = {
    "q": "q_proj w_q wq query",  # HF · TransformerLens · Meta
    "k": "k_proj w_k wk key",
    "v": "v_proj w_v wv value",
    "o": "o_proj w_o wo out_proj c_proj dense",  # c_proj: GPT-2 · dense: GPT-NeoX
    "q.bias": "b_q",
    "k.bias": "b_k",
    "v.bias": "b_v",
    "o.bias": "b_o",
    "q.norm": "q_norm",
    "k.norm": "k_norm",
}
_FFN = {
    "gate": "gate_proj w_gate w1",  # w1, w3, w2: Meta, Mixtral
    "up": "up_proj w_up w_in w3 c_fc fc1",
    "down": "down_proj w_down w_out w2 c_proj fc2",
    "up.bias": "b_in",
    "down.bias": "b_out",
}
_LAYER = {
    "attn": "self_attn attention self_attention",
    "ffn": "mlp feed_forward",
    "attn.norm": "input_layernorm ln_1 ln1 attention_norm",
    "ffn.norm": "ln_2 ln2 ffn_norm",
}
_ROOT = {
    "layers": "h blocks block layer",
    "embed": "wte w_e embed_tokens tok_embeddings word_embeddings embedding embeddings embed_in",
    "embed.position": "wpe w_pos pos_embed position_embeddings embed_positions",
    "norm": "ln_f ln_final final_norm final_layer_norm norm_f",
    "lm_head": "unembed w_u embed_out vocab_projection",
    "": "model transformer",  # a prefix that says nothing
}


def _table(*groups: dict[str, str]) -> dict[str, tuple[str, ...]]:
    return {
        alias: tuple(filter(None, canonical.split(".")))
        for group in groups
        for canonical, aliases in group.items()
        for alias in (canonical, *aliases.split())
    }


def _below(parent: str, group: dict[str, str], other: dict[str, str]) -> dict[str, str]:
    """`layers.3.down` for `layers.3.ffn.down`, where only one of attention and FFN knows the name."""
    taken = _table(other)
    return {
        f"{parent}.{key}": " ".join(a for a in (key, *names.split()) if a not in taken) for key, names in group.items()
    }


_ALIASES = {
    "root": _table(_ROOT),
    "layer": _table(_below("attn", _ATTENTION, _FFN), _below("ffn", _FFN, _ATTENTION), _LAYER),
    "attn": _table(_ATTENTION),
    "ffn": _table(_FFN),
}


def _canonical(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """The canonical path for what a user wrote: aliases replaced, a trailing `.weight` dropped."""
    path: list[Segment] = []
    place = "root"
    for segment in segments:
        if place in _ALIASES and isinstance(segment, str):
            path.extend(_ALIASES[place].get(segment.casefold(), (segment,)))
        else:
            path.append(segment)
        place = _place(path, place)
    return tuple(path[:-1] if len(path) > 1 and path[-1] == "weight" else path)


def _place(path: list[Segment], before: str) -> str:
    """Where the next segment stands, which decides what its name may be short for."""
    if not path:
        return "root"
    if path[0] != "layers":
        return "elsewhere"
    if len(path) <= 2:
        return ("", "layer number", "layer")[len(path)]
    inside = {"attn": "attn", "ffn": "ffn"}.get(str(path[2]), "elsewhere")
    return inside if len(path) == 3 or (before == inside == "ffn" and path[3] == "experts") else "elsewhere"


def axis_names(index: tuple[Index, ...]) -> list[str]:
    """The axis names that an index uses. AddressError for one that is not in the language."""
    names = [item.axis for item in index if item.axis is not None]
    for name in names:
        if name not in AXES:
            raise AddressError(f"no axis is called {name!r}; axes are {', '.join(AXES)}")
        if names.count(name) > 1:
            raise AddressError(f"{index_text(index)}: names the axis {name} twice")
    return names
