"""Golden logits: what transformers makes of tiny random models, so that parity is tested without torch.

Run with the extra `oracle`: `python -m tests.make_golden`. A golden file keeps, for each variant of a
family, the config.json, the token ids, and the float32 logits at a few positions. It keeps no weights:
they come from tiny.weights, seeded.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import tiny

GOLDEN = Path(__file__).parent / "golden"
POSITIONS = 6  # kept of each sequence, evenly spread; the last is the longest context
ABSENT = object()  # in `written`: the key is left out of the config.json

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Variant:
    """A tiny model: changes to a family's config, and what is written otherwise than the weights are made."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    written: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 24
    # Added to the seed. A few random models amplify rounding so much that transformers in float32 is near
    # 2e-5 from itself in float64; they would test the machine's matmul, not the engine.
    seed: int = 0


@dataclass(frozen=True)
class Golden:
    """What a golden file keeps of one variant."""

    config: Mapping[str, Any]
    ids: NDArray[np.int64]  # [batch, tokens]
    positions: NDArray[np.int64]
    logits: F32  # [batch, positions, vocab]

    def error(self, logits: F32) -> float:
        """max |Δlogit| / std(logit) of logits [batch, tokens, vocab], or [tokens, vocab] of the first sequence."""
        want = self.logits if logits.ndim == 3 else self.logits[0]
        return float(np.abs(logits[..., self.positions, :] - want).max() / self.logits.std())


def rope(kind: str, *, key: str = "rope_parameters", **values: Any) -> dict[str, Any]:
    """The keys of a rope type in today's form, or as `rope_scaling` and `rope_theta` of before."""
    if key == "rope_scaling":
        return {"rope_scaling": {"type": kind, **values}}
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}, "rope_theta": ABSENT}


SHORT = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]  # a longrope factor for each of the 6 pairs of a head
LONG = [1.0, 1.5, 2.5, 3.0, 4.0, 6.0]
LLAMA3: dict[str, Any] = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE: dict[str, Any] = {"short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 16}

VARIANTS: dict[str, dict[str, Variant]] = {
    "llama": {
        "plain": Variant(),
        "mha": Variant({"num_key_value_heads": 4}),
        "mqa": Variant({"num_key_value_heads": 1}),
        "kv-heads-null": Variant({"num_key_value_heads": 4}, {"num_key_value_heads": None}),
        "kv-heads-absent": Variant({"num_key_value_heads": 4}, {"num_key_value_heads": ABSENT}),
        "bias": Variant({"attention_bias": True, "mlp_bias": True}),
        "attention-bias": Variant({"attention_bias": True}),
        "tied": Variant({"tie_word_embeddings": True}),
        "tied-with-own-head": Variant(written={"tie_word_embeddings": True}),
        "head-dim": Variant({"head_dim": 20}),
        "eps": Variant({"rms_norm_eps": 0.1}),
        "eps-absent": Variant(written={"rms_norm_eps": ABSENT, "hidden_act": ABSENT}),
        "gelu": Variant({"hidden_act": "gelu"}),
        "gelu-tanh": Variant({"hidden_act": "gelu_pytorch_tanh"}),
        "relu": Variant({"hidden_act": "relu"}),
        "theta": Variant({"rope_theta": 500.0}),
        "theta-new-key": Variant(written={**rope("default"), "rope_parameters": {"rope_theta": 700.0}}),
        "linear": Variant(written=rope("linear", factor=3.0)),
        "linear-old-key": Variant(written=rope("linear", key="rope_scaling", factor=2.5)),
        "dynamic-short": Variant(written=rope("dynamic", factor=2.0)),
        "dynamic-long": Variant({"max_position_embeddings": 16}, rope("dynamic", factor=2.0), tokens=40),
        "dynamic-old-key": Variant(
            {"max_position_embeddings": 16}, rope("dynamic", key="rope_scaling", factor=3.0), tokens=30
        ),
        "llama3": Variant(written=rope("llama3", **LLAMA3)),
        "llama3-old-key": Variant({"rope_theta": 300.0}, rope("llama3", key="rope_scaling", **LLAMA3)),
        "llama3-long": Variant(
            {"max_position_embeddings": 32}, rope("llama3", **LLAMA3 | {"original_max_position_embeddings": 16}), 40
        ),
        "yarn": Variant(written=rope("yarn", **YARN)),
        "yarn-long": Variant(
            {"max_position_embeddings": 32}, rope("yarn", **YARN | {"original_max_position_embeddings": 8}), 40
        ),
        "yarn-attention-factor": Variant(written=rope("yarn", **YARN, attention_factor=1.3), seed=1),
        "yarn-mscale": Variant(written=rope("yarn", **YARN, mscale=0.7, mscale_all_dim=1.6)),
        "yarn-exact-range": Variant(written=rope("yarn", **YARN, beta_fast=4.0, beta_slow=0.5, truncate=False)),
        "yarn-factor-null": Variant(written=rope("yarn", factor=None, original_max_position_embeddings=16)),
        "yarn-old-key": Variant({"rope_theta": 200.0}, rope("yarn", key="rope_scaling", **YARN)),
        "longrope-short": Variant(written=rope("longrope", **LONGROPE), tokens=12),
        "longrope-at-original": Variant(written=rope("longrope", **LONGROPE), tokens=16),
        "longrope-long": Variant(written=rope("longrope", **LONGROPE), tokens=40),
        "longrope-factor": Variant(written=rope("longrope", **LONGROPE, factor=8.0)),
        "longrope-attention-factor": Variant(written=rope("longrope", **LONGROPE, attention_factor=1.25)),
        "longrope-original-outside": Variant(
            written={**rope("longrope", **LONGROPE), "original_max_position_embeddings": 20}
        ),
    },
    "mistral": {
        "window": Variant(),
        "window-of-one": Variant({"sliding_window": 1}),
        "window-wider": Variant({"sliding_window": 30}),
        "window-null": Variant({"sliding_window": None}),
        "head-dim-absent": Variant({"head_dim": 12}, {"head_dim": ABSENT}),
        "tied": Variant({"tie_word_embeddings": True, "rope_theta": 1e6}),
    },
    "qwen2": {
        "window-unused": Variant({"sliding_window": 5, "use_sliding_window": False}),
        "windows": Variant({"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1}),
        "layer-types": Variant(
            {
                "sliding_window": 6,
                "use_sliding_window": True,
                "max_window_layers": 3,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            }
        ),
        "tied": Variant({"tie_word_embeddings": True, "rms_norm_eps": 0.05}),
        "yarn": Variant(written=rope("yarn", **YARN)),
    },
    "qwen3": {
        "plain": Variant(),
        "bias": Variant({"attention_bias": True}),
        "head-dim": Variant({"head_dim": 20, "num_key_value_heads": 1}),
        "windows": Variant({"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 2}),
        "tied": Variant({"tie_word_embeddings": True, "rms_norm_eps": 0.2}),
    },
    "gpt2": {
        "plain": Variant(),
        "scale-by-layer": Variant({"scale_attn_by_inverse_layer_idx": True}),
        "unscaled": Variant({"scale_attn_weights": False}),
        "unscaled-by-layer": Variant({"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}),
        "n-inner": Variant({"n_inner": 80}),
        "gelu": Variant({"activation_function": "gelu"}),
        "eps": Variant({"layer_norm_epsilon": 0.1}),
        "defaults": Variant(written=dict.fromkeys(("n_inner", "activation_function", "layer_norm_epsilon"), ABSENT)),
        "full-length": Variant({"n_positions": 24}),
    },
}
CASES = [(family, name) for family, variants in VARIANTS.items() for name in variants]


def seed_of(family: str, name: str) -> int:
    """The seed of a variant's weights and ids: its own, whatever other variants there are."""
    return zlib.crc32(f"{family}/{name}".encode()) % 10_000 + VARIANTS[family][name].seed


def config_of(family: str, name: str) -> dict[str, Any]:
    """The config.json of a variant."""
    variant = VARIANTS[family][name]
    config = {**tiny.CONFIGS[family], **variant.changes, **variant.written}
    return {key: value for key, value in config.items() if value is not ABSENT}


def ids_of(family: str, name: str, sequences: int = 2) -> NDArray[np.int64]:
    """Two sequences of random tokens."""
    random = np.random.RandomState(seed_of(family, name))  # frozen by numpy for good
    return random.randint(0, 97, (sequences, VARIANTS[family][name].tokens)).astype(np.int64)


def kept_positions(tokens: int) -> NDArray[np.int64]:
    """The positions at which a golden file keeps logits."""
    return np.linspace(0, tokens - 1, POSITIONS).round().astype(np.int64)


def write(folder: Path, family: str, name: str, *, seed: int | None = None, dtype: str = "F32") -> Path:
    """The checkpoint folder of a variant."""
    made_from = {**tiny.CONFIGS[family], **VARIANTS[family][name].changes}
    seed = seed_of(family, name) if seed is None else seed
    kept = {key: array.astype(tiny.NUMPY[dtype]) for key, array in tiny.weights(made_from, seed).items()}
    tiny.write(folder, family, tensors=kept)
    (folder / "config.json").write_text(json.dumps(config_of(family, name), indent=1))
    return folder


def load(folder: Path) -> Any:
    """The model as transformers loads it, in float32 and with its plainest attention."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype="float32", attn_implementation="eager", local_files_only=True
    ).eval()


def reference(folder: Path, ids: NDArray[np.int64]) -> F32:
    """Logits by transformers, [batch, tokens, vocab]. The model is loaded anew: `dynamic` rope remembers lengths."""
    import torch

    with torch.no_grad():
        logits = load(folder)(torch.from_numpy(ids), use_cache=False).logits
    return np.asarray(logits.float().numpy())


def make(family: str, name: str) -> dict[str, NDArray[Any]]:
    """What a golden file keeps of one variant."""
    ids = ids_of(family, name)
    with tempfile.TemporaryDirectory() as folder:
        logits = reference(write(Path(folder), family, name), ids)
    config = np.frombuffer(json.dumps(config_of(family, name), sort_keys=True).encode(), np.uint8)
    return {"config": config, "ids": ids.astype(np.int16), "logits": logits[:, kept_positions(ids.shape[1])]}


def read(family: str, name: str) -> Golden:
    """One variant from its golden file."""
    with np.load(GOLDEN / f"{family}.npz") as file:
        config, ids, logits = (file[f"{name}/{key}"] for key in ("config", "ids", "logits"))
    return Golden(json.loads(config.tobytes()), ids.astype(np.int64), kept_positions(ids.shape[1]), logits)


def main() -> None:
    """Write every golden file."""
    GOLDEN.mkdir(exist_ok=True)
    for family, variants in VARIANTS.items():
        arrays = {f"{name}/{key}": array for name in variants for key, array in make(family, name).items()}
        np.savez_compressed(GOLDEN / f"{family}.npz", allow_pickle=False, **arrays)


if __name__ == "__main__":
    main()
