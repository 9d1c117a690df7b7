"""Names: the tensors of a checkpoint by what their family's slots call them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

from weightkit.architectures.parts import Architecture
from weightkit.checkpoint import Checkpoint
from weightkit.tensor import Source


class Names:
    """The tensors of a checkpoint by the names that its family's slots have for them."""

    def __init__(self, checkpoint: Checkpoint, architecture: Architecture) -> None:
        plain = {name: _plain(name, architecture) for name in checkpoint.names if name not in checkpoint.aside}
        root, self.prefix = _prefix(plain.values(), architecture)
        self.actual = {said.removeprefix(root): name for name, said in plain.items()}  # in the file, by what slots say
        for missing, other in architecture.instead:
            if missing not in self.actual and other in self.actual:
                self.actual[missing] = self.actual.pop(other)
        self._tensors = checkpoint.tensors

    def adopt(self, renamed: Mapping[str, str]) -> None:
        """Add names by which a format calls the same tensors: {what slots say: in the file}."""
        self.actual.update(renamed)

    def said(self) -> dict[str, str]:
        """What Hugging Face files call the tensors that these files call otherwise."""
        return {name: said for said, name in self.actual.items() if said != name}

    @functools.cached_property
    def sources(self) -> dict[str, Source]:
        """The tensors themselves; empty where only their names are known."""
        return {said: self._tensors[name] for said, name in self.actual.items() if name in self._tensors}


def _plain(name: str, architecture: Architecture) -> str:
    name = name.replace("/", ".") if "/" in name else name
    for old, new in architecture.renamed:
        name = name.replace(old, new)
    return name


_WRAPPED = re.compile(r"(?:[\w-]+\.)*")


def _prefix(names: Iterable[str], architecture: Architecture) -> tuple[str, str]:
    """(what all names begin with, what names below the head have besides), from the name of the embedding.

    Wrappers leave a root (`module.`, `model.` of a training checkpoint, `language_model.`); the prefix is
    the family's own.
    """
    first = architecture.slots[0]
    stem = first.name.replace("{prefix}", "")
    stems = tuple(stem + ending for ending in (".weight", ".qweight", ".weight_packed"))
    best: tuple[int, int, str, str] | None = None
    for name in names:
        ending = next((s for s in stems if name.endswith(s)), None)
        if ending is None or not _WRAPPED.fullmatch(lead := name[: -len(ending)]):
            continue
        prefix = max((p for p in architecture.prefixes if lead.endswith(p)), key=len, default=None)
        if prefix is None:
            continue
        root = lead[: len(lead) - len(prefix)]
        found = (len(root), architecture.prefixes.index(prefix), root, prefix)
        best = found if best is None else min(best, found)
    return ("", architecture.prefixes[0]) if best is None else best[2:]
