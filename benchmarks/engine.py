"""The engine against transformers and llama.cpp on this machine: tokens a second, prefill, time to the first token.

    python benchmarks/engine.py

Random Llama models in BF16 are written to a temporary folder. Each peer is a process of its own with two
threads; they take turns, one round each, and what is compared are the ratios of a round: what else the
machine does then hits them all. Needs torch and transformers (`pip install weightkit[oracle]`); llama.cpp
takes part where xllamacpp is installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

THREADS = 2
ROUNDS = 5
STEPS = 64  # tokens of a decode
SMALL = {"hidden": 768, "layers": 12, "heads": 12, "kv_heads": 12, "ffn": 2048}  # 134 million parameters
LARGE = {"hidden": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "ffn": 5632}  # TinyLlama: 1.1 billion
VOCAB = 32_000
IDS = np.random.default_rng(0).integers(300, VOCAB, 512).tolist()


# ── models ─────────────────────────────────────────────────────────────────────────────────────────────


def write_model(folder: Path, size: dict[str, int]) -> Path:
    """A Llama of random numbers in BF16, and a tokenizer that llama.cpp takes."""
    folder.mkdir()
    hidden, heads, kv_heads = size["hidden"], size["heads"], size["kv_heads"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": size["layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": size["ffn"],
        "vocab_size": VOCAB,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    bytes_ = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    vocab = [*bytes_, *(f"t{number}" for number in range(len(bytes_), VOCAB - 1)), "ab"]
    model = {"type": "BPE", "vocab": {text: number for number, text in enumerate(vocab)}, "merges": ["a b"]}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {"version": "1.0", "added_tokens": [], "model": model, "pre_tokenizer": level, "decoder": level}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    _write_weights(folder / "model.safetensors", _shapes(size))
    return folder


def _shapes(size: dict[str, int]) -> dict[str, tuple[int, ...]]:
    hidden, ffn = size["hidden"], size["ffn"]
    kv = hidden // size["heads"] * size["kv_heads"]
    layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    layers = {f"model.layers.{i}.{name}.weight": s for i in range(size["layers"]) for name, s in layer.items()}
    ends = {"model.embed_tokens.weight": (VOCAB, hidden), "lm_head.weight": (VOCAB, hidden)}
    return {**ends, **layers, "model.norm.weight": (hidden,)}


def _write_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header, at, random = {}, 0, np.random.default_rng(0)
    for name, shape in shapes.items():
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for shape in shapes.values():
            values = random.standard_normal(shape, np.float32) * 0.02 if len(shape) > 1 else np.ones(shape, np.float32)
            file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())


# ── peers: each gives (prefill, decode), functions that return seconds ─────────────────────────────────


def timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def weightkit_peer(folder: str) -> tuple[Callable[[], float], Callable[[], float]]:
    import weightkit as wk
    from weightkit.engine.cache import Cache

    wk.set_threads(THREADS)
    engine = wk.open(folder).engine

    def decode() -> float:
        cache = Cache()
        engine.logits(IDS[:16], cache)
        return timed(lambda: [engine.logits([token], cache) for token in IDS[16 : 16 + STEPS]])

    return lambda: timed(lambda: engine.logits(IDS)), decode


def transformers_peer(folder: str, dtype: str) -> tuple[Callable[[], float], Callable[[], float]]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def decode() -> float:
        with torch.inference_mode():
            cache = model(torch.tensor([IDS[:16]])).past_key_values

            def steps() -> None:
                for token in IDS[16 : 16 + STEPS]:
                    model(torch.tensor([[token]]), past_key_values=cache)

            return timed(steps)

    def prefill() -> float:
        with torch.inference_mode():
            return timed(lambda: model(torch.tensor([IDS])))

    return prefill, decode


def llama_peer(path: str) -> tuple[Callable[[], float], Callable[[], float]]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_gpu_layers, params.n_parallel = path, 1024, 0, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    params.verbosity = 0
    server = xllamacpp.Server(params)

    def timings(prompt: list[int], tokens: int) -> Any:
        request = {"prompt": prompt, "n_predict": tokens, "cache_prompt": False, "ignore_eos": True, "temperature": 0}
        return server.handle_completions(request)["timings"]

    def decode() -> float:
        found = timings(IDS[:16], STEPS + 1)
        return STEPS / float(found["predicted_per_second"])

    return lambda: float(timings(IDS, 1)["prompt_ms"]) / 1000, decode


def serve(name: str, path: str) -> None:
    """Be a peer: a line in, seconds out."""
    prefill, decode = {
        "weightkit": lambda: weightkit_peer(path),
        "float32": lambda: transformers_peer(path, "float32"),
        "bfloat16": lambda: transformers_peer(path, "bfloat16"),
        "llama.cpp": lambda: llama_peer(path),
    }[name]()
    for line in sys.stdin:
        print("took", prefill() if line.strip() == "prefill" else decode(), flush=True)


def first_token(name: str, path: str) -> None:
    """Open a model and say what follows 128 tokens; imports are not counted. Prints seconds, and MiB of RssAnon."""
    if name == "weightkit":
        import weightkit as wk
        from weightkit.engine import generate, tokenizer  # noqa: F401

        wk.set_threads(THREADS)
        peak = [0]
        threading.Thread(target=_watch, args=(peak,), daemon=True).start()
        print("took", timed(lambda: next(wk.open(path).stream(IDS[:128], 1))), peak[0] / 1024)
        return
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)

    def first() -> None:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        model.generate(torch.tensor([IDS[:128]]), max_new_tokens=1, do_sample=False)

    print("took", timed(first), 0)


def _watch(peak: list[int]) -> None:
    while True:
        found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
        peak[0] = max(peak[0], int(found[1]) if found else 0)
        time.sleep(0.01)


# ── rounds ─────────────────────────────────────────────────────────────────────────────────────────────


class Peer:
    """A process that measures itself when it is asked to."""

    def __init__(self, name: str, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "serve", name, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=_environment(),
        )

    def ask(self, what: str) -> float:
        """Seconds that it took."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(what, file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("took "):
                return float(line.split()[1])
        raise RuntimeError("a peer ended")


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def throughput(folder: Path) -> None:
    paths = {"weightkit": folder, "float32": folder, "bfloat16": folder}
    if importlib.util.find_spec("xllamacpp"):
        import weightkit as wk

        paths["llama.cpp"] = wk.open(folder).convert(folder.parent / "model.gguf", dtype="BF16")
    peers = {name: Peer(name, path) for name, path in paths.items()}
    for what, unit in (("decode", STEPS), ("prefill", len(IDS))):
        for peer in peers.values():
            peer.ask(what)
        rounds = [{name: peer.ask(what) for name, peer in peers.items()} for _ in range(ROUNDS)]
        for name in peers:
            each = statistics.median(unit / round[name] for round in rounds)
            ratio = statistics.median(round[name] / round["weightkit"] for round in rounds)
            print(f"| {what} | {name} | {each:,.1f} tokens/s | {ratio:.2f} |", flush=True)
    for peer in peers.values():
        peer.process.kill()


def to_first_token(folder: Path) -> None:
    def run(name: str) -> tuple[float, float]:
        command = [sys.executable, __file__, "first", name, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment())
        _, seconds, size = next(line for line in done.stdout.splitlines() if line.startswith("took ")).split()
        return float(seconds), float(size)

    rounds = [(run("weightkit"), run("bfloat16")) for _ in range(3)]
    ours, theirs = (statistics.median(round[at][0] for round in rounds) for at in (0, 1))
    ratio = statistics.median(b[0] / a[0] for a, b in rounds)
    size = max(a[1] for a, _ in rounds)
    print(f"| first token | weightkit | {ours:.2f} s, {size:,.0f} MiB of anonymous memory | 1.00 |")
    print(f"| first token | bfloat16 | {theirs:.2f} s | {ratio:.2f} |")


def main() -> None:
    if len(sys.argv) > 2:
        {"serve": serve, "first": first_token}[sys.argv[1]](*sys.argv[2:])
        return
    print("| what | peer | speed | weightkit is so many times as fast |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        throughput(write_model(Path(folder) / "small", SMALL))
        to_first_token(write_model(Path(folder) / "large", LARGE))


if __name__ == "__main__":
    main()
