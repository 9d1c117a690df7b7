"""Asking transformers: what it saves of a config, and what logits it has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

MASKED = ("bert", "roberta", "distilbert")  # models with a masked-language head
ENCODER_DECODERS = ("t5",)

Shapes = dict[str, tuple[int, ...]]


def maker(kind: str) -> Any:
    """The class of transformers that makes models of a family."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if kind in MASKED:
        return transformers.AutoModelForMaskedLM
    return transformers.AutoModelForSeq2SeqLM if kind in ENCODER_DECODERS else transformers.AutoModelForCausalLM


def described(config: Mapping[str, Any]) -> tuple[dict[str, Any], Shapes]:
    """The config.json that transformers saves for one of ours, and names and shapes of the tensors."""
    from safetensors import safe_open
    from transformers import AutoConfig

    with TemporaryDirectory() as folder:
        at = Path(folder)
        (at / "config.json").write_text(json.dumps(config))
        theirs = AutoConfig.from_pretrained(at, local_files_only=True)
        maker(config["model_type"]).from_config(theirs).save_pretrained(at)
        with safe_open(at / "model.safetensors", "numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return json.loads((at / "config.json").read_text()), shapes


def load(folder: Path, dtype: str = "float32") -> Any:
    """The model as transformers loads it, with its plainest attention. Every tensor of the file must be used.

    Falcon's plainest attention adds ALiBi twice; there torch's own is asked. Experts run one by one: the product
    of them all together is not there in float64.
    """
    config = json.loads((folder / "config.json").read_text())
    model, info = maker(config["model_type"]).from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="sdpa" if config.get("alibi") and config["model_type"] == "falcon" else "eager",
        experts_implementation="eager",
        local_files_only=True,
        output_loading_info=True,
    )
    bad = {key: value for key, value in info.items() if value}
    assert not bad, bad
    return model.eval()


def logits(model: Any, ids: NDArray[np.int64], decoder_ids: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """Logits [batch, tokens, vocab], in the model's own precision."""
    import torch

    more: dict[str, Any] = {} if model.config.model_type in MASKED else {"use_cache": False}
    if decoder_ids is not None:
        more["decoder_input_ids"] = torch.from_numpy(decoder_ids.copy())
    with torch.no_grad():
        return np.asarray(model(input_ids=torch.from_numpy(ids), **more).logits.numpy())
