"""What GGUF calls the tensors that Hugging Face files have, by the table of the gguf package."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable


def hf_names(architecture: str, layers: int, names: Iterable[str]) -> dict[str, str]:
    """{a name as Hugging Face files have it: the name that GGUF has for that tensor}, where there is one.

    The experts of a layer, which are one tensor in all but the first GGUF files, go by their name without a
    number: `…experts.gate_proj.weight`.
    """
    find = _names(architecture)
    found: dict[str, str] = {}
    for name in names:
        number = _NUMBER.search(name)
        layer = int(number[1]) if number else 0
        said = find(f"{name[: number.start(1)]}0{name[number.end(1) :]}" if number else name)
        if said is not None and (layer < layers or not said.startswith("blk.")):
            found[name] = said.replace("blk.0.", f"blk.{layer}.", 1)
    return found


_NUMBER = re.compile(r"\.(\d{1,9})\.")  # the first in a name is that of its layer
_EXPERT = re.compile(r"\.experts\.(\d{1,5})\.")
_MERGED = (".experts.gate_up_proj.weight", ".experts.gate_up_proj.bias")
_ENDINGS = (("e_score_correction_bias", "e_score_correction.bias"), (".sinks", ".sinks.weight"))  # GGUF gives them one


@functools.cache
def _names(architecture: str) -> Callable[[str], str | None]:
    """What GGUF calls tensors of the first layer, and those of none, by the table of the gguf package."""
    import gguf

    kind = next((kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), None)
    if kind is None:
        return lambda _: None
    table = gguf.get_tensor_name_map(kind, 1)

    def find(name: str) -> str | None:
        if name.endswith(_MERGED):  # newer than the table of most releases of the package
            apart = find(name.replace("gate_up_proj", "gate_proj"))
            return None if apart is None else apart.replace("ffn_gate_exps", "ffn_gate_up_exps")
        if expert := _EXPERT.search(name):  # in a tensor of its own, as in the first files of Mixtral
            stack = find(name.replace(expert[0], ".experts.", 1))
            return None if stack is None else stack.replace("_exps.", f".{expert[1]}.")
        for without, with_one in _ENDINGS:
            name = name.removesuffix(without) + with_one if name.endswith(without) else name
        for known in (name, name.partition(".")[2]):  # some names are in the table without their prefix only
            said: str | None = table.get_name(known, try_suffixes=(".weight", ".bias"))
            if said is not None:
                return said
        return None

    return find
