"""Golden logits: what transformers makes of tiny random models, so that parity is tested without torch.

Run with the extra `oracle`: `python -m tests.make_golden`, or with the names of some families behind. A golden
file keeps, for each variant of a family, the config.json, names and shapes as transformers saves them, the
token ids, and the float32 logits at a few positions. It keeps no weights: they come from tests/tiny.py, seeded.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import oracle, tiny
from tests.variants import CASES, CONFIGS, VARIANTS, remote
from tests.variants.kinds import ABSENT, LONG, VOCAB

__all__ = ["CASES", "LONG", "Golden", "config_of", "ids_of", "load", "read", "reference", "write"]

GOLDEN = Path(__file__).parent / "golden"
POSITIONS = 6  # kept of each sequence, evenly spread; the last is the longest context
PADDED = np.s_[:, [0, 3, 4, -2]]  # where padding is
MOST = 1e-5  # of transformers in float32 from itself in float64: half of what the engine may differ by

F32 = NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Golden:
    """What a golden file keeps of one variant."""

    config: Mapping[str, Any]
    ids: NDArray[np.int64]  # [batch, tokens]
    positions: NDArray[np.int64]
    logits: F32  # [batch, positions, vocab]
    decoder_ids: NDArray[np.int64] | None  # of models that have an encoder too

    def error(self, logits: F32) -> float:
        """max |Δlogit| / std(logit) of logits [batch, tokens, vocab], or [tokens, vocab] of the first sequence."""
        want = self.logits if logits.ndim == 3 else self.logits[0]
        return float(np.abs(logits[..., self.positions, :] - want).max() / self.logits.std())


def seed_of(family: str, name: str) -> int:
    """The seed of a variant's weights and ids: its own, whatever other variants there are."""
    return zlib.crc32(f"{family}/{name}".encode()) % 10_000 + VARIANTS[family][name].seed


def made_from(family: str, name: str) -> dict[str, Any]:
    """The config that a variant's weights are made by."""
    return {**CONFIGS[family], **VARIANTS[family][name].changes}


def config_of(family: str, name: str) -> dict[str, Any]:
    """The config.json of a variant."""
    if VARIANTS[family][name].saved:
        return dict(kept(family)[f"{name}/config"])
    config = {**made_from(family, name), **VARIANTS[family][name].written}
    return {key: value for key, value in config.items() if value is not ABSENT}


def shapes_of(family: str, name: str) -> Shapes:
    """Names and shapes of a variant's file."""
    if family in tiny.CONFIGS:
        return tiny.shapes(made_from(family, name))
    return {tensor: tuple(shape) for tensor, shape in kept(family)[f"{name}/shapes"].items()}


def vocab_of(family: str) -> int:
    """How many tokens the models of a family have."""
    return 97 if family in tiny.CONFIGS else VOCAB["vocab_size"]


def ids_of(family: str, name: str, sequences: int = 2) -> NDArray[np.int64]:
    """Two sequences of random tokens."""
    random = np.random.RandomState(seed_of(family, name))  # frozen by numpy for good
    ids = random.randint(0, vocab_of(family), (sequences, VARIANTS[family][name].tokens)).astype(np.int64)
    pad = VARIANTS[family][name].pad
    if pad is not None:
        ids[PADDED] = pad
    return ids


def decoder_ids_of(family: str, name: str) -> NDArray[np.int64] | None:
    """What the decoder of a model with an encoder reads: other tokens, and fewer."""
    if family not in oracle.ENCODER_DECODERS:
        return None
    return (ids_of(family, name)[:, ::-1] * 5 % vocab_of(family))[:, 5:]


def kept_positions(tokens: int) -> NDArray[np.int64]:
    """The positions at which a golden file keeps logits."""
    return np.linspace(0, tokens - 1, POSITIONS).round().astype(np.int64)


def weights_of(family: str, name: str, *, seed: int | None = None) -> tiny.Tensors:
    """The weights of a variant. Gemma's norms multiply by 1 + w."""
    seed = seed_of(family, name) if seed is None else seed
    return tiny.of_shapes(shapes_of(family, name), seed, norm=0.0 if family.startswith("gemma") else 1.0)


def write(folder: Path, family: str, name: str, *, seed: int | None = None, dtype: str = "F32") -> Path:
    """The checkpoint folder of a variant."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: array.astype(tiny.NUMPY[dtype]) for key, array in weights_of(family, name, seed=seed).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_of(family, name), indent=1))
    return folder


def load(folder: Path, dtype: str = "float32") -> Any:
    """The model as transformers loads it, in float32 and with its plainest attention."""
    return oracle.load(remote.told(folder), dtype)


def reference(
    folder: Path, ids: NDArray[np.int64], decoder_ids: NDArray[np.int64] | None = None, dtype: str = "float32"
) -> F32:
    """Logits by transformers, [batch, tokens, vocab]. The model is loaded anew: `dynamic` rope remembers lengths."""
    return oracle.logits(load(folder, dtype), ids, decoder_ids)


def text(value: Any) -> NDArray[np.uint8]:
    """JSON, as an array."""
    return np.frombuffer(json.dumps(value, sort_keys=True).encode(), np.uint8)


def make(family: str, name: str) -> tuple[dict[str, NDArray[Any]], float]:
    """What a golden file keeps of one variant, and how far its logits are from those of float64."""
    ids, decoder_ids = ids_of(family, name), decoder_ids_of(family, name)
    with tempfile.TemporaryDirectory() as folder:
        at = write(Path(folder), family, name)
        logits = reference(at, ids, decoder_ids)
        exact = reference(at, ids, decoder_ids, "float64")
    arrays: dict[str, NDArray[Any]] = {
        "ids": ids.astype(np.int16),
        "logits": logits[:, kept_positions(logits.shape[1])],
    }
    if decoder_ids is not None:
        arrays["decoder_ids"] = decoder_ids.astype(np.int16)
    return arrays, float(np.abs(logits - exact).max() / exact.std())


def described(family: str, name: str) -> dict[str, Any]:
    """What transformers says of a variant that we do not: names, shapes, and config.json where it writes that."""
    if family in tiny.CONFIGS:
        return {}
    variant = VARIANTS[family][name]
    config, shapes = remote.described(made_from(family, name))
    said: dict[str, Any] = {f"{name}/shapes": {**shapes, **variant.added}}
    return said | ({f"{name}/config": config} if variant.saved else {})


@cache
def kept(family: str) -> dict[str, Any]:
    """What the golden file of a family keeps: arrays, and what is JSON in it."""
    with np.load(GOLDEN / f"{family}.npz") as file:
        return {key: json.loads(file[key].tobytes()) if file[key].dtype == np.uint8 else file[key] for key in file}


def read(family: str, name: str) -> Golden:
    """One variant from its golden file."""
    file = kept(family)
    config, ids, logits = (file[f"{name}/{key}"] for key in ("config", "ids", "logits"))
    decoder_ids = file.get(f"{name}/decoder_ids")
    return Golden(
        config,
        ids.astype(np.int64),
        kept_positions((ids if decoder_ids is None else decoder_ids).shape[1]),
        logits,
        None if decoder_ids is None else decoder_ids.astype(np.int64),
    )


def make_family(family: str) -> None:
    """Write the golden file of a family: first what transformers says, which the weights are made by."""
    said = {key: value for name in VARIANTS[family] for key, value in described(family, name).items()}
    arrays = {key: text(value) for key, value in said.items()}
    np.savez_compressed(GOLDEN / f"{family}.npz", allow_pickle=False, **arrays)
    kept.cache_clear()
    arrays |= {f"{name}/config": text(config_of(family, name)) for name in VARIANTS[family]}
    for name in VARIANTS[family]:
        made, error = make(family, name)
        arrays |= {f"{name}/{key}": array for key, array in made.items()}
        print(f"{family}/{name}: {error:.1e}{' is too much' if error > MOST else ''}", flush=True)
    np.savez_compressed(GOLDEN / f"{family}.npz", allow_pickle=False, **arrays)


def main(families: list[str]) -> None:
    """Write golden files, of all families or of some."""
    GOLDEN.mkdir(exist_ok=True)
    for family in families or VARIANTS:
        make_family(family)


if __name__ == "__main__":
    main(sys.argv[1:])
