"""The numbers that the main job has to meet, each as a ratio to its limit: below 1 it is met.

    python benchmarks/main_job.py

Times of commands are medians of whole processes. The save is compared, in one process and in turn, with
a plain copy of the one shard that changes. Parity is against the reference values in ../shared/models, where they are.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "models"
RUNS = 5

BIG = {  # width, FFN neurons, layers, query heads, shards, parameters
    "Llama-3.1-405B": (16_384, 53_248, 126, 128, 191, 405_853_388_800),
    "Llama-3.1-70B": (8_192, 28_672, 80, 64, 30, 70_553_706_496),
}


class Row(NamedTuple):
    """One measured number and the limit that it has to stay below."""

    what: str
    value: float
    limit: float
    unit: str


class Run(NamedTuple):
    """One finished process."""

    seconds: float
    megabytes: float  # peak resident memory
    out: str


def run(*command: str) -> Run:
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        out = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return Run(time.perf_counter() - start, usage.ru_maxrss / 1024, out)


def median(action: Callable[[], Run]) -> Run:
    action()  # once to warm the file cache
    runs = sorted(action() for _ in range(RUNS))
    return runs[len(runs) // 2]._replace(megabytes=max(r.megabytes for r in runs))


def weightkit(*arguments: str) -> Run:
    return run(sys.executable, "-m", "weightkit", *arguments)


def starting() -> Iterator[Row]:
    empty = median(lambda: run(sys.executable, "-c", "pass"))
    imported = median(lambda: run(sys.executable, "-c", "import weightkit"))
    yield Row("import weightkit", imported.seconds - empty.seconds, 0.2, "s")
    yield Row("count on a small model", median(lambda: weightkit("count", "demo")).seconds, 0.5, "s")


def big(folder: Path) -> Iterator[Row]:
    for name, (width, neurons, layers, heads, shards, parameters) in BIG.items():
        path = sparse_llama(folder / name, width, neurons, layers, heads, shards)
        done = median(lambda path=path: weightkit("count", str(path), "--json"))  # type: ignore[misc]
        counted = json.loads(done.out)
        if counted["total"] != parameters:
            raise SystemExit(f"{name}: {counted['total']:,} parameters, not {parameters:,}")
        print(f"{name}: {counted['total']:,} parameters, {counted['by_role']['embedding']:,} in the embedding")
        yield Row(f"count {name}, {shards} shards", done.seconds, 1.5, "s")
        yield Row(f"count {name}, peak memory", done.megabytes, 150, "MB")


def sparse_llama(
    folder: Path, width: int, neurons: int, layers: int, heads: int, shards: int, vocab: int = 128_256
) -> Path:
    """A checkpoint of real headers and of holes where the weights would be."""
    head_dim, key_heads = 128, 8
    keys = key_heads * head_dim
    layer = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (heads * head_dim, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, heads * head_dim),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (neurons, width),
        "mlp.up_proj": (neurons, width),
        "mlp.down_proj": (width, neurons),
    }
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width)}
    for i in range(layers):
        tensors |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    tensors |= {"model.norm.weight": (width,), "lm_head.weight": (vocab, width)}
    folder.mkdir()
    config = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": neurons,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 131_072,
        "torch_dtype": "bfloat16",
        "vocab_size": vocab,
        "num_key_value_heads": key_heads,
        "head_dim": head_dim,
    }
    (folder / "config.json").write_text(json.dumps(config))
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        sparse_file(folder / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def sparse_file(path: Path, shapes: dict[str, tuple[int, ...]], fill: bool = False) -> None:
    """A bf16 safetensors file with a hole for its data, or random data."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        if not fill:
            file.truncate(8 + len(raw) + end)
            return
        block = np.random.default_rng(0).integers(0, 0x4000, 1 << 20, np.uint16).tobytes()
        for start in range(0, end, len(block)):
            file.write(block[: end - start])


def saving(folder: Path) -> Iterator[Row]:
    """One head zeroed in a 400 MB checkpoint of five shards, against a copy of the shard it is in."""
    import weightkit as wk

    path = sparse_llama(folder / "five", 2048, 5632, 4, 16, 5, vocab=4096)
    shards = sorted(path.glob("*.safetensors"))
    for shard in shards:
        sparse_file(shard, _shapes(shard), fill=True)
    out, copy = folder / "edited", folder / "copy"
    edit = wk.zero("layers.2.attn.q[head=3]")
    changed = next(iter(wk.open(path).apply(edit).plan().rewritten))

    def save() -> None:
        wk.open(path).apply(edit).save(out)

    def plain_copy() -> None:
        shutil.copyfile(path / changed, copy)
        with open(copy, "rb") as file:
            os.fsync(file.fileno())

    ratios = []
    for _ in range(RUNS + 1):
        shutil.rmtree(out, ignore_errors=True)
        copy.unlink(missing_ok=True)
        ratios.append(_seconds(save) / _seconds(plain_copy))
    if [os.stat(out / f.name).st_ino == f.stat().st_ino for f in shards].count(True) != 4:
        raise SystemExit("not exactly one shard was rewritten")
    total = sum(f.stat().st_size for f in shards) / 1e6
    print(f"save: 1 shard of 5 rewritten ({(path / changed).stat().st_size / 1e6:.0f} of {total:.0f} MB), 4 hardlinked")
    yield Row("zero a head and save / copy and sync the shard", statistics.median(ratios[1:]), 2.0, "×")
    shutil.rmtree(out)
    command = weightkit("edit", str(path), "--zero", edit.address, "-o", str(out))
    yield Row("  peak memory of the whole command", command.megabytes, 350, "MB")


def _seconds(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: tuple(info["shape"]) for name, info in header.items()}


def parity() -> Iterator[Row]:
    """Logits and greedy text of the shared models against transformers' stored values."""
    import weightkit as wk

    for reference in sorted((SHARED / "reference").glob("*.npz")):
        expected = np.load(reference)
        model = wk.open(SHARED / reference.stem)
        error = np.abs(model.logits(expected["ids"]) - expected["logits"]).max() / expected["logits"].std()
        if model.generate(expected["ids"][0].tolist(), 64) != expected["greedy"][0].tolist():
            raise SystemExit(f"{reference.stem}: greedy text differs")
        yield Row(f"max |Δlogit| / std, {reference.stem}", float(error), 2e-5, "")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [*starting(), *big(folder), *saving(folder), *parity()]
    print(f"\n{'':<50}{'measured':>12}{'limit':>10}{'ratio':>8}")
    for row in rows:
        print(f"{row.what:<50}{row.value:>9.3g} {row.unit:<2}{row.limit:>10g}{row.value / row.limit:>8.2f}")


if __name__ == "__main__":
    main()
