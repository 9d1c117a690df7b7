"""Spectra of a llama-shaped model of 134 M parameters, against WeightWatcher's, in one run and in turn.

    python benchmarks/spectrum.py [PYTHON]

PYTHON is an interpreter that has torch and weightwatcher 0.7.7. Ratios are how many times faster weightkit is.
The last rows are a large embedding's: its memory, and how far the largest singular values alone are off.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

WIDTH, NEURONS, LAYERS, VOCAB = 576, 1536, 30, 49_152  # of SmolLM-135M, its embedding tied
KEYS = 192
ASKED: dict[str, dict[str, bool]] = {"analyze()": {}, "with MP fit, randomised": {"mp_fit": True, "randomize": True}}

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


def compare(python: str, path: Path, rounds: int) -> None:
    for what, asked in ASKED.items():
        ratios, apart = [], 0.0
        for _ in range(rounds):
            mine, theirs = weightkit(path, bool(asked)), watcher(python, path, asked)
            ratios.append(theirs[0] / mine[0])
            apart = max(abs(alpha - mine[1][name]) for name, alpha in theirs[1].items())
            print(f"{what:<26} weightkit {mine[0]:6.2f} s   weightwatcher {theirs[0]:7.2f} s", flush=True)
        print(f"{what:<26} {np.median(ratios):.1f} × faster, |Δalpha| at most {apart:.1e}, {len(theirs[1])} matrices")


def large(folder: Path) -> None:
    """An embedding of 128,256 × 4,096 in bf16, of which 4,096² float64 numbers are the Gram matrix."""
    path = folder / "large.safetensors"
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
    print(f"embedding of 128,256 × 4,096  {seconds:.0f} s, peak resident memory of the command {peak:.0f} MB")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large(folder)
        if len(sys.argv) > 1:
            layers = int(sys.argv[2]) if len(sys.argv) > 2 else LAYERS
            compare(sys.argv[1], write(folder / "model.safetensors", layers), rounds=1 if layers == LAYERS else 3)


if __name__ == "__main__":
    main()
