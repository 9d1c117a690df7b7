"""How fast statistics and spectra are, against peers that take turns with them; ratios to limits.

    python benchmarks/analysis.py [--gigabytes 4] [--watcher PYTHON] [--layers 30] [--large]

Statistics are of a bf16 checkpoint. The first ratio is to one plain read of the same memory, `np.sum` of its uint64
view; the peers are what people write: torch's `.float()` with mean, std, min, max, zeros and NaN (where torch is),
and numpy with quantiles, both on a part of the file, as they are slow, and scaled up. Memory is that of processes of
their own. Spectra are compared with those of WeightWatcher 0.7.7 where PYTHON is an interpreter that has it.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import spectrum
import workers
from main_job import run, sparse_file

ROUNDS = 5
PART = 1 << 24  # elements that the slow peers read
SIDE = 8192

ANONYMOUS = """
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
wk.open(sys.argv[1]).statistics()
done = True
thread.join()
print(peak / 1024)
"""


def random_file(path: Path, tensors: int) -> Path:
    """A checkpoint of normal random bf16 matrices of 128 MB."""
    sparse_file(path, {f"t{i}": (SIDE, SIDE) for i in range(tensors)})
    block = (np.random.default_rng(0).standard_normal(SIDE * SIDE) * 0.02).astype(ml_dtypes.bfloat16).tobytes()
    with open(path, "r+b") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        for _ in range(tensors):
            file.write(block)
    return path


def plain_read(path: Path) -> Callable[[], object]:
    """The sum of all bytes of the file as uint64, mapped once."""
    mapped = np.memmap(path, np.uint8, "r")
    words = mapped[len(mapped) % 8 :].view(np.uint64)
    words.sum()
    return words.sum


def by_numpy(part: np.ndarray[tuple[int], np.dtype[np.uint16]]) -> None:
    values = (part.astype(np.uint32) << 16).view(np.float32)
    finite = values[np.isfinite(values)].astype(np.float64)
    finite.mean(), finite.std(), finite.min(), finite.max(), (finite == 0).sum()
    np.quantile(finite, (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999), method="lower")


def by_torch(part: np.ndarray[tuple[int], np.dtype[np.uint16]]) -> None:
    import torch

    x = torch.from_numpy(part).view(torch.bfloat16).float()
    _ = x.mean(), x.std(), x.min(), x.max(), (x == 0).sum(), torch.isnan(x).sum()


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def compare(path: Path) -> list[tuple[str, float, str]]:
    """Medians of ratios of times for the same number of bytes."""
    import weightkit as wk

    size = path.stat().st_size
    part = np.fromfile(path, np.uint16, PART, offset=size - 2 * PART)
    share = size / part.nbytes
    peers = {"numpy with quantiles": (by_numpy, "at least 100")}
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(2)
        peers["torch .float()"] = (by_torch, "at least 20")
    read = plain_read(path)
    model = wk.open(path)
    model.statistics()  # compiles
    times: dict[str, list[float]] = {name: [] for name in ("a plain read", *peers)}
    for _ in range(ROUNDS):
        ours = seconds(model.statistics)
        print(f"{size / ours / 1e9:.2f} GB/s", file=sys.stderr)
        times["a plain read"].append(ours / seconds(read))
        for name, (peer, _) in peers.items():
            times[name].append(share * seconds(lambda peer=peer: peer(part)) / ours)  # type: ignore[misc]
    found = [("time / time of a plain read", statistics.median(times["a plain read"]), "at most 3")]
    return found + [(f"times as fast as {name}", statistics.median(times[name]), peers[name][1]) for name in peers]


def memory(path: Path) -> float:
    """Peak anonymous memory of a process that makes the statistics, in MB."""
    return float(run(sys.executable, "-c", ANONYMOUS, str(path)).out)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--gigabytes", type=float, default=4, help="of the file of statistics; the sparse one has 16 times as many"
    )
    parser.add_argument("--watcher", metavar="PYTHON", help="an interpreter that has torch and weightwatcher 0.7.7")
    parser.add_argument("--layers", type=int, default=spectrum.LAYERS, help="of the model of spectra")
    parser.add_argument("--large", action="store_true", help="the spectrum of a large embedding too: minutes")
    return parser.parse_args()


def statistics_rows(folder: Path, gigabytes: float) -> Iterator[tuple[str, float, str]]:
    path = random_file(folder / "random.safetensors", max(1, round(gigabytes * 1e9 / (2 * SIDE * SIDE))))
    yield from compare(path)
    yield f"MB of anonymous memory, {path.stat().st_size / 1e9:.1f} GB", memory(path), "under 300"
    yield from workers.two_against_one(folder / "matrices.safetensors")
    holes = folder / "holes.safetensors"
    sparse_file(holes, {f"t{i}": (SIDE * 4, SIDE * 4) for i in range(round(gigabytes * 8))})
    yield f"MB of anonymous memory, {holes.stat().st_size / 1e9:.0f} GB sparse", memory(holes), "under 300"


def main() -> None:
    asked = options()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = [statistics_rows(folder, asked.gigabytes)]
        if asked.watcher:
            parts.append(spectrum.against_watcher(asked.watcher, folder / "model.safetensors", asked.layers))
        if asked.large:
            parts.append(spectrum.large(folder / "large.safetensors"))
        print(f"{'':<66}{'measured':>10}  limit")
        for what, value, limit in itertools.chain(*parts):
            print(f"{what:<66}{value:>10.3g}  {limit}", flush=True)


if __name__ == "__main__":
    main()
