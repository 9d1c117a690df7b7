"""Spectra of a Llama-shaped model, against WeightWatcher's in turn, and of a large embedding. A part of analysis.py."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

LAYERS = 30
WIDTH, NEURONS, VOCAB = 576, 1536, 49_152  # of SmolLM-135M, its embedding tied
KEYS = 192
ASKED: dict[str, tuple[dict[str, bool], str]] = {
    "analyze()": ({}, "at least 2"),
    "analyze() with MP fit, randomised": ({"mp_fit": True, "randomize": True}, "at least 20"),
}

WATCHER = """
import json, logging, sys, time, warnings
warnings.simplefilter("ignore")
import matplotlib; matplotlib.use("Agg")
import torch, weightwatcher
from safetensors.torch import load_file
tensors = load_file(sys.argv[1])
model = torch.nn.Module()
for i, (name, tensor) in enumerate(tensors.items()):
    layer = torch.nn.Linear(tensor.shape[1], tensor.shape[0], bias=False)
    layer.weight.data = tensor.float()
    model.add_module(name.replace(".", "/"), layer)
watcher = weightwatcher.WeightWatcher(model=model, log_level=logging.CRITICAL)
start = time.perf_counter()
details = watcher.analyze(plot=False, **json.loads(sys.argv[2]))
seconds = time.perf_counter() - start
alphas = {name.replace("/", "."): alpha for name, alpha in zip(details.name, details.alpha)}
print("\\n" + json.dumps([seconds, alphas]))
"""


def write(path: Path, layers: int) -> Path:
    """Matrices with the tails that training leaves: the sum of random numbers and of a few strong directions."""
    random = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (VOCAB, WIDTH)} if layers == LAYERS else {}
    for i in range(layers):
        at = f"model.layers.{i}."
        shapes |= {f"{at}self_attn.{n}_proj.weight": (WIDTH, WIDTH) for n in "qo"}
        shapes |= {f"{at}self_attn.{n}_proj.weight": (KEYS, WIDTH) for n in "kv"}
        shapes |= {f"{at}mlp.{n}_proj.weight": (NEURONS, WIDTH) for n in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (WIDTH, NEURONS)}
    tensors = {}
    for name, (rows, columns) in shapes.items():
        strong = random.standard_normal((rows, 64)) * np.arange(1, 65) ** -0.6 @ random.standard_normal((64, columns))
        tensors[name] = (0.02 * random.standard_normal((rows, columns)) + 0.01 * strong).astype(ml_dtypes.bfloat16)
    save_file(tensors, path)
    return path


def weightkit(path: Path, everything: bool) -> tuple[float, dict[str, float]]:
    import weightkit as wk

    start = time.perf_counter()
    rows = wk.open(path).spectrum(shuffle=0 if everything else None).rows
    seconds = time.perf_counter() - start
    return seconds, {row.name.removesuffix(".weight"): row.power_law.alpha for row in rows if row.power_law}


def watcher(python: str, path: Path, asked: dict[str, bool]) -> tuple[float, dict[str, float]]:
    command = [python, "-c", WATCHER, str(path), json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, alphas = json.loads(done.stdout.splitlines()[-1])
    return seconds, {name.removesuffix(".weight"): alpha for name, alpha in alphas.items()}


def against_watcher(python: str, path: Path, layers: int) -> Iterator[tuple[str, float, str]]:
    """How many times as fast as WeightWatcher, by an interpreter that has it, and how far the exponents are apart."""
    write(path, layers)
    for what, (asked, limit) in ASKED.items():
        ratios, apart = [], 0.0
        for _ in range(1 if layers == LAYERS else 3):
            mine, theirs = weightkit(path, bool(asked)), watcher(python, path, asked)
            print(f"{what}: {mine[0]:.2f} s, WeightWatcher {theirs[0]:.2f} s", file=sys.stderr, flush=True)
            ratios.append(theirs[0] / mine[0])
            apart = max(apart, *(abs(alpha - mine[1][name]) for name, alpha in theirs[1].items()))
        yield f"times as fast as WeightWatcher's {what}", float(np.median(ratios)), limit
        yield f"|Δalpha|, {len(theirs[1])} matrices", apart, "below 1e-4"


def large(path: Path) -> Iterator[tuple[str, float, str]]:
    """An embedding of 128,256 × 4,096 in bf16, of which 4,096² float64 numbers are the Gram matrix."""
    size = 128_256 * 4_096 * 2
    header = json.dumps({"x": {"dtype": "BF16", "shape": [128_256, 4_096], "data_offsets": [0, size]}}).encode()
    block = np.random.default_rng(0).standard_normal(1 << 22).astype(ml_dtypes.bfloat16).tobytes()
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, size, len(block)):
            file.write(block[: size - start])
    command = [sys.executable, "-m", "weightkit", "spectrum", str(path), "--json"]
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    yield "s for the spectrum of an embedding, 128,256 × 4,096", seconds, ""
    yield "MB at the peak of it, resident", peak, ""
