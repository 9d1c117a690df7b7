"""How well diffs name causes, as a confusion table, and how fast they are, as ratios to limits.

    python benchmarks/diff.py [--edits 500] [--seed 0] [--gigabytes 2] [--only edits|speed]

Each edit is of one matrix of a small model of random numbers, in one of three types and of several sizes; a row of the
diff is right where the cause has the right kind and its evidence the right numbers. Identical checkpoints on different
inodes are compared with `cmp`, wholly different ones with torch's `(a.float() - b.float())`, its norm, its largest
magnitude and the cosine, on a part, both in turn in this process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import edits
import ml_dtypes
import numpy as np
from main_job import run, sparse_file
from safetensors.numpy import save_file

import weightkit as wk

ROUNDS, SIDE = 3, 8192
LAYERS = 3
MOVES = ("dropped", "duplicated", "moved")


def things(address: str, heads: int, width: int, neurons: int) -> dict[str, tuple[int, int, int]]:
    """What lies along the axes of a matrix: axis, numbers of each, how many."""
    part = address.rpartition(".")[2]
    head = {"head": (int(part == "o"), width // heads, heads)}
    neuron = {"neuron": (int(part == "down"), 1, neurons)}
    return {"q": head, "o": head, "gate": neuron, "up": neuron, "down": neuron}.get(
        part, {"token": (0, 1, edits.VOCAB)}
    )


NAMES = {
    "q": "self_attn.q_proj", "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}  # fmt: skip


def model(random: np.random.Generator, size: tuple[int, int, int]) -> dict[str, Any]:
    """The matrices of a small Llama, float64."""
    width, _, neurons = size
    shapes = {"q": (width, width), "o": (width, width), "gate": (neurons, width), "up": (neurons, width)}
    shapes |= {"down": (width, neurons)}
    tensors = {"model.embed_tokens.weight": edits.base(random, (edits.VOCAB, width))}
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        tensors |= {f"{at}{NAMES[k]}.weight": edits.base(random, shape) for k, shape in shapes.items()}
        tensors |= {f"{at}self_attn.{k}_proj.weight": edits.base(random, (width, width)) for k in "kv"}
        tensors |= {f"{at}{k}_layernorm.weight": np.ones(width) for k in ("input", "post_attention")}
    return tensors | {"model.norm.weight": np.ones(width)}


def write(folder: Path, tensors: dict[str, Any], size: tuple[int, int, int], dtype: str, layers: int = LAYERS) -> Path:
    """A checkpoint; matrices that have a type of their own keep it."""
    folder.mkdir(parents=True, exist_ok=True)
    width, heads, neurons = size
    config = {
        "model_type": "llama", "hidden_size": width, "intermediate_size": neurons, "num_hidden_layers": layers,
        "num_attention_heads": heads, "vocab_size": len(tensors["model.embed_tokens.weight"]),
        "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    kind = edits.DTYPES[dtype]
    stored = {k: np.ascontiguousarray(t.astype(kind) if t.dtype == np.float64 else t) for k, t in tensors.items()}
    save_file(stored, folder / "model.safetensors")
    return folder


def confusion(folder: Path, count: int, seed: int) -> Iterator[tuple[str, str, bool, str]]:
    """(what was done, what the diff said, whether all of it was right, in which model) for each edit."""
    random = np.random.default_rng(seed)
    bases = {}
    for s, size in enumerate(edits.SIZES):
        for dtype in edits.DTYPES:
            tensors = {k: _stored(t, dtype) for k, t in model(random, size).items()}
            bases[s, dtype] = tensors, wk.open(write(folder / f"{s}{dtype}", tensors, size, dtype))
    names = [*edits.KINDS, "layers"]
    for number in range(count):
        kind = names[number % len(names)]
        s, dtype = int(random.integers(len(edits.SIZES))), list(edits.DTYPES)[random.integers(len(edits.DTYPES))]
        tensors, before = bases[s, dtype]
        where = f"{dtype} {edits.SIZES[s][0]}"
        if kind == "layers":
            yield "layers", *_layers(folder / "b", tensors, before, random, s, dtype), where
            continue
        address, name = _pick(kind, random)
        edit = edits.KINDS[kind](
            random, tensors[name], dtype=dtype, things=things(address, edits.SIZES[s][1], *edits.SIZES[s][::2])
        )
        path = write(folder / "b", tensors | {name: edit.after}, edits.SIZES[s], dtype)
        found = next((row.cause for row in wk.diff(before, wk.open(path)).changed if row.address == address), None)
        good = edits.right(edit, found)
        yield kind, found["kind"] if found else "nothing", good, f"{where} {address} {dict(edit.expected)} {found}"


def _pick(kind: str, random: np.random.Generator) -> tuple[str, str]:
    if kind == "rows" and random.random() < 0.5:
        return "embed", "model.embed_tokens.weight"
    part = list(NAMES)[random.integers(len(NAMES))]
    return f"layers.1.{'attn' if part in 'qo' else 'ffn'}.{part}", f"model.layers.1.{NAMES[part]}.weight"


def _stored(x: Any, dtype: str) -> Any:
    return x.astype(edits.DTYPES[dtype]).astype(np.float64)


def _layers(
    folder: Path, tensors: dict[str, Any], before: wk.Model, random: np.random.Generator, s: int, dtype: str
) -> tuple[str, bool]:
    """A model whose layers are others of the same: one gone, one twice, or in another order."""
    order = {"dropped": [0, 2], "duplicated": [0, 1, 1, 2], "moved": [0, 2, 1]}[MOVES[random.integers(3)]]
    outside = {k: t for k, t in tensors.items() if ".layers." not in k}
    for j, i in enumerate(order):
        at = f"model.layers.{i}."
        outside |= {f"model.layers.{j}.{k[len(at) :]}": t for k, t in tensors.items() if k.startswith(at)}
    found = wk.diff(before, wk.open(write(folder, outside, edits.SIZES[s], dtype, len(order))))
    said = found.layers.get("layers.", {})
    return ("layers" if said else "nothing"), said.get("origin") == order


def table(found: list[tuple[str, str, bool, str]]) -> None:
    """A row for each cause, a column for each name that it got."""
    counts, right = Counter((kind, said) for kind, said, _, _ in found), Counter(k for k, _, ok, _ in found if ok)
    kinds = [*edits.KINDS, "layers"]
    said = [*kinds, *sorted({s for _, s, _, _ in found}.difference(kinds))]
    print(f"{'edit':<10} {'all right':>9}  " + " ".join(f"{name[:6]:>6}" for name in said))
    for kind in kinds:
        total = sum(counts[kind, name] for name in said)
        cells = " ".join(f"{counts[kind, name] or '·':>6}" for name in said)
        print(f"{kind:<10} {right[kind]:>4}/{total:<4}  {cells}")


# ── speed ──────────────────────────────────────────────────────────────────────────────────────────────


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def random_file(path: Path, count: int, seed: int) -> Path:
    """A checkpoint of random bf16 matrices of 128 MB."""
    sparse_file(path, {f"t{i}": (SIDE, SIDE) for i in range(count)})
    random = np.random.default_rng(seed)
    with open(path, "r+b") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        for _ in range(count):
            file.write((random.standard_normal((SIDE, SIDE), np.float32) * 0.02).astype(ml_dtypes.bfloat16).tobytes())
    return path


def by_torch(x: Any, y: Any) -> None:
    import torch

    a, b = (torch.from_numpy(m.view(np.int16)).view(torch.bfloat16) for m in (x, y))
    d = a.float() - b.float()
    _ = d.norm(), d.abs().max(), torch.nn.functional.cosine_similarity(a.float().ravel(), b.float().ravel(), dim=0)


MEMORY = """
import sys, threading, time
import weightkit as wk
peak, done = 0, False
def watch():
    global peak
    while not done:
        with open("/proc/self/status") as status:
            peak = max(peak, *(int(line.split()[1]) for line in status if line.startswith("RssAnon")))
        time.sleep(0.01)
thread = threading.Thread(target=watch)
thread.start()
wk.diff(*map(wk.open, sys.argv[1:]))
done = True
thread.join()
print(peak / 1024)
"""


def speeds(folder: Path, gigabytes: float) -> Iterator[tuple[str, float, str]]:
    """Medians of ratios, each with its limit."""
    count = max(1, round(gigabytes * 1e9 / (2 * SIDE * SIDE)))
    a = random_file(folder / "a.safetensors", count, 0)
    b = random_file(folder / "b.safetensors", count, 1)
    (folder / "same").mkdir()
    same = folder / "same" / "a.safetensors"
    subprocess.run(["cp", "--reflink=never", str(a), str(same)], check=True)
    one, copy, other = wk.open(a), wk.open(same), wk.open(b)
    wk.diff(one, copy)
    ratios = []
    for _ in range(ROUNDS):
        theirs = seconds(lambda: subprocess.run(["cmp", str(a), str(same)], check=True))
        ratios.append(theirs / seconds(lambda: wk.diff(one, copy)))
    yield (
        f"times the speed of cmp, identical {a.stat().st_size / 1e9:.1f} GB",
        statistics.median(ratios),
        "at least 0.8",
    )
    if importlib.util.find_spec("torch"):
        part = [next(iter(m.registry.values())).stored.mapped() for m in (one, other)]
        by_torch(*part)
        ratios = []
        for _ in range(ROUNDS):
            theirs = count * seconds(lambda: by_torch(*part))
            ratios.append(theirs / seconds(lambda: wk.diff(one, other)))
        yield "times as fast as torch, all different bf16, causes included", statistics.median(ratios), "at least 10"
    yield "MB of anonymous memory, identical", _memory(a, same), "under 300"
    yield "MB of anonymous memory, all different", _memory(a, b), "under 300"


def _memory(a: Path, b: Path) -> float:
    return float(run(sys.executable, "-c", MEMORY, str(a), str(b)).out)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--edits", type=int, default=500, help="edits that are made")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gigabytes", type=float, default=2, help="of each checkpoint that is compared")
    parser.add_argument("--only", choices=["edits", "speed"])
    parser.add_argument("--misses", action="store_true", help="print the edits whose cause was not right")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if asked.only != "speed":
            found = list(confusion(Path(name), asked.edits, asked.seed))
            table(found)
            print(f"{sum(ok for _, _, ok, _ in found) / len(found):.1%} right, kind and evidence (at least 95 %)")
            if asked.misses:
                print(*(f"{kind} → {said}: {where[:300]}" for kind, said, ok, where in found if not ok), sep="\n")
        if asked.only != "edits":
            for what, value, limit in speeds(Path(name), asked.gigabytes):
                print(f"{value:8.2f}  {what} ({limit})")


if __name__ == "__main__":
    main()
