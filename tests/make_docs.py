"""Write docs/formats.md and docs/families.md from the tables in the code. `python -m tests.make_docs`."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable
from pathlib import Path

import weightkit as wk
from tests import make_golden as golden
from tests.variants import VARIANTS
from weightkit.architectures import ARCHITECTURES
from weightkit.architectures.parts import Architecture, Role
from weightkit.config import normalise
from weightkit.config.families import ALIASES
from weightkit.formats import FORMATS, Format

DOCS = Path(__file__).resolve().parent.parent / "docs"
NORMS = {"rms": "RMS", "rms + 1": "RMS, stored less 1", "layer": "LayerNorm"}
POSITIONS = {
    "rope": "rotary",
    "learned": "learned",
    "alibi": "ALiBi",
    "scaled alibi": "ALiBi",
    "relative": "relative",
    "none": "none",
}


def families() -> str:
    """The page of families."""
    titles = ("model_type", "norm", "positions", "Q, K, V in the file", "FFN")
    table = _table(titles, (_family(ARCHITECTURES[kind]) for kind in sorted(ARCHITECTURES)))
    aliases = ", ".join(f"`{old}` is read as `{new}`" for old, new in ALIASES.items())
    tested = _table(("model_type", "variants", "largest error"), map(_tested, sorted(VARIANTS)))
    return HEAD_FAMILIES.format(table=table, aliases=aliases, tested=tested)


def _tested(family: str) -> tuple[str, ...]:
    """The golden variants of a family, and how far the engine is from transformers in the worst of them."""
    worst = max(_error(family, name) for name in VARIANTS[family])
    return f"`{family}`", ", ".join(VARIANTS[family]), f"{math.ceil(worst * 1e6)}e-6"


def _error(family: str, name: str) -> float:
    kept = golden.read(family, name)
    with tempfile.TemporaryDirectory() as folder:
        model = wk.open(golden.write(Path(folder), family, name))
        return kept.error(model.logits(kept.ids, decoder_ids=kept.decoder_ids))


def _family(family: Architecture) -> tuple[str, ...]:
    return (
        f"`{family.model_type}`",
        NORMS[family.norm],
        _positions(family),
        _attention(family),
        _ffn(family),
    )


def _positions(family: Architecture) -> str:
    """Those of the golden variants, and whether one of them has layers with a window."""
    kind = family.model_type
    configs = [normalise(golden.config_of(kind, name), name) for name in VARIANTS[kind]]
    kinds = dict.fromkeys(POSITIONS[config.position_kind] for config in configs)
    windows = any(window for config in configs for window in config.windows)
    return " or ".join(kinds) + (", sliding windows" if windows else "")


def _attention(family: Architecture) -> str:
    slots = [slot for slot in family.slots if slot.role is Role.Q and ".cross" not in slot.address]
    if not slots:
        return "no attention"
    if any(slot.address.endswith("q_a") for slot in slots):
        return "latent (MLA)"
    slot = slots[0]
    how = "separate" if not slot.fused else "fused, by key head" if slot.every else "fused, one after another"
    return how + (", stored [in, out]" if slot.transposed else "")


def _ffn(family: Architecture) -> str:
    roles = {slot.role for slot in family.slots if slot.address.startswith(("layers", "encoder"))}
    if Role.ROUTER in roles:
        shared = any(".shared." in slot.address for slot in family.slots)
        return "experts" + (" and a shared one" if shared else "")
    if Role.UP not in roles:
        return "state space mixer"
    fused = any(slot.fused for slot in family.slots if slot.role is Role.GATE)
    return ("gated" if Role.GATE in roles else "plain") + (", gate and up fused" if fused else "")


def formats() -> str:
    """The page of formats."""
    titles = ("format", "files", "read", "written by `convert`", "checksums")
    return HEAD_FORMATS.format(table=_table(titles, map(_format, FORMATS)))


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = tuple(titles)
    lines = [titles, ("---",) * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


READ = {
    "safetensors": "every type of the format, FP8, FP6 and FP4 included",
    "torch": "zip and legacy layout, without torch; nothing is executed",
    "gguf": "versions 2 and 3, both byte orders, split files; its config and tokenizer",
    "hdf5": "Keras 2, Keras 3, plain trees of datasets",
    "npz": "stored and compressed; never pickles",
}
WRITTEN = {"safetensors": "yes, in shards", "gguf": "yes", "hdf5": "yes", "npz": "yes"}


def _format(format: Format) -> tuple[str, ...]:
    checks = hasattr(format.load(), "faults")
    return (
        format.title,
        " ".join(f"`{suffix}`" for suffix in format.suffixes),
        READ[format.name],
        WRITTEN.get(format.name, "no"),
        "looked at by `check`" if checks else "none in the format",
    )


HEAD_FAMILIES = """# Families

This page is made from the tables in the code by `python -m tests.make_docs`.

A family is data: which weights it has, what they are called in the file and how they lie there, which norm, positions
and FFN its block uses. The engine has one decoder block, knows no family by name and runs all of them.

{table}
{aliases}.

Names are those on disk, with and without the prefixes that wrappers leave (`module.`, `model.`, `language_model.`), in
the old and the new spelling, experts in tensors of their own or together. Every tensor is claimed, or listed as a
buffer that is no parameter, or shown as `name:…` without a role; nothing is dropped.

- Without a config.json the family is recognised by the names, as far as they tell.
- A `model_type` that is not in the table opens by the names in its files.
- A LoRA adapter opens with each pair under the address that it changes: `layers.3.attn.q.lora_A`.
- An index whose shards are not there is enough to count, given its config.

## What the engine is tested against

Logits of tiny random models by transformers, in float32. The largest error is max |Δlogit| / std(logit) over the
variants of a family, in millionths rounded up, as float32 sums in another order differ; 20e-6 is allowed. Families
that transformers does not have are compared with the one of its own that computes the same.

{tested}
## Adding a family

1. A table entry in `weightkit/architectures/`: a `Slot` for each matrix, with its address, its name in the file, its
   role and its axes. Most families take over the names of one that is there; see `llama.py`.
2. What its config class reads and assumes: an entry in `weightkit/config/families.py`.
3. A tiny config in `tests/families.py`; `python -m tests.make_families` builds the model with transformers and keeps
   the names, the shapes and the parameter count.
4. Variants in `tests/variants/`, one for each thing that its config can say; `python -m tests.make_golden` keeps the
   logits that transformers has for them.

The tests then show that the logits agree and feel each part of the description, that every tensor is claimed, that
the count is the one of transformers, that the config alone, an index alone and the names alone give the same, and that
what shares a tensor fills it without gap or overlap.
"""

HEAD_FORMATS = """# Formats

This page is made from the table in the code by `python -m tests.make_docs`.

All formats give the same lazy tensors: opening reads headers, and numbers are read in blocks when they are asked for.
Memory does not grow with the file.

{table}
A format is known by the file's suffix, or by its first bytes where the name says nothing.

Files come from strangers. Nothing in a checkpoint is executed, and objects in a pickle that are not tensors stay inert
and are never imported; a call that tensors do not need is refused by name. Nothing outside the checkpoint's folder is
read: no links out of it (but the blobs of the Hugging Face cache), no external storage, external links or virtual
datasets of HDF5. Sizes are checked against the file before anything is allocated. Names are data: no escape codes reach
the terminal, no name becomes a path. Small files are checked against their own checksums when they are opened, all of
them by `weightkit check`.

## Packed weights

A matrix that is stored as small integers with scales counts as the numbers that it stands for; scales, zero points and
states are listed as bookkeeping and are no parameters. GPTQ, AWQ, bitsandbytes (8 and 4 bits), compressed-tensors, FP8
with block scales, MXFP4, MLX and the types of GGUF are unpacked when they are read, so statistics, diffs and `convert`
see the numbers that the model computes with. They cannot be edited in place: convert first.

A packing that is not unpacked (AWQ of the gemv versions, GPTQ of a checkpoint_format or MLX of a mode that is not
known) opens by names, with a note: `list`, `count`, `show` and `check` see what is stored, `map` what the config
describes, and `run`, `edit` and `convert` say why they cannot.

## GGUF

The config comes from the file's own metadata, and so does the tokenizer. Rows of Q and K, which files of Llama-like
models keep in the order of interleaved rotary positions, are given back in the order of Hugging Face files, so that a
GGUF file and the model it was made from agree address by address. So are norms that have one added, Mamba's A, stacks
of experts, and the keys and values of latent attention; `convert` writes the tensors that Hugging Face files have. What
a file leaves out of its config is what llama.cpp assumes.

## Other things in a file

Optimizer state, random states and counters of training checkpoints are listed as ignored. Tensors that share their
bytes (tied weights in PyTorch, hard links in HDF5) count once.
"""


PAGES = {"families.md": families, "formats.md": formats}


if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), "utf-8")
