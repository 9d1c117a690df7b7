"""A model as a GGUF file: names, config and tokenizer as llama.cpp's converter writes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from weightkit import strictjson
from weightkit.checkpoint import Checkpoint
from weightkit.config import Config
from weightkit.errors import SaveError
from weightkit.formats.gguf_config import hf_names
from weightkit.formats.gguf_order import PERMUTED, heads_of, permuted
from weightkit.formats.gguf_write import Named, blocks_fit, require_type, writable_types, write
from weightkit.registry import Registry
from weightkit.tensor import Source

# Families of which a GGUF file differs in names and the order of rows alone, by general.architecture.
WRITTEN = {"llama": "llama", "mistral": "llama", "internlm": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_PRE = {"llama": "llama-bpe", "mistral": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2"}


def write_gguf(
    path: Path, checkpoint: Checkpoint, registry: Registry, tensors: Iterable[tuple[str, Source]], dtype: str | None
) -> None:
    """Write a model to `path`; matrices in `dtype`, vectors in F32, as they are without one.

    Raises SaveError for families and types that cannot be written.
    """
    config = registry.config
    if config is None or config.model_type not in WRITTEN:
        what = config.model_type if config else "a model of an unknown family"
        raise SaveError(f"{what} cannot be written as GGUF; {', '.join(WRITTEN)} can")
    architecture = WRITTEN[config.model_type]
    kind = require_type(dtype) if dtype else None
    named = dict(tensors)
    names = hf_names(architecture, config.layers, named)
    missing = next((name for name in named if name not in names), None)
    if missing is not None:
        raise SaveError(f"{missing}: GGUF files of {architecture} models have no such tensor")
    entries = [_entry(names[name], source, kind, config, architecture) for name, source in named.items()]
    metadata = {
        "general.architecture": architecture,
        **_metadata(config, architecture),
        "general.file_type": _file_type(entries),
    }
    write(path, entries, {**metadata, **_tokenizer(checkpoint, config)})


def _entry(name: str, source: Source, kind: str | None, config: Config, architecture: str) -> Named:
    own = source.dtype.name if source.dtype.name in writable_types() and not source.dtype.packed else "F32"
    kind = "F32" if len(source.shape) < 2 else kind or own
    heads = heads_of(name, config.heads, config.kv_heads) if architecture in PERMUTED else 0
    source = permuted(source, heads) if heads else source
    return name, source, kind if blocks_fit(source.shape, kind) else "F16"  # as llama.cpp does with odd widths


def _metadata(config: Config, architecture: str) -> dict[str, Any]:
    a = architecture + "."
    found: dict[str, Any] = {
        a + "context_length": config.positions,
        a + "embedding_length": config.width,
        a + "block_count": config.layers,
        a + "feed_forward_length": config.ffn,
        a + "attention.head_count": config.heads,
        a + "attention.head_count_kv": config.kv_heads,
        a + "attention.key_length": config.head_dim,
        a + "attention.value_length": config.head_dim,
        a + "attention.layer_norm_rms_epsilon": config.eps,
        a + "rope.dimension_count": config.head_dim,
        a + "rope.freq_base": config.rope.theta,
        a + "vocab_size": config.vocab,
        "general.quantization_version": 2,
    }
    if config.rope.type in ("linear", "yarn") and config.rope.factor:
        found |= {a + "rope.scaling.type": config.rope.type, a + "rope.scaling.factor": config.rope.factor}
        found[a + "rope.scaling.original_context_length"] = config.rope.original_positions
    elif config.rope.type != "default":
        raise SaveError(f"rotary positions of type {config.rope.type} cannot be written as GGUF here")
    if any(config.windows):
        if architecture != "llama" or len(set(config.windows)) > 1:  # llama.cpp reads one, for all layers, or none
            raise SaveError(f"the attention windows of this {config.model_type} model cannot be written as GGUF")
        found[a + "attention.sliding_window"] = config.windows[0]
    return found


def _file_type(entries: Iterable[Named]) -> int:
    """llama.cpp's number for the type that most matrices are of."""
    import gguf

    kinds = Counter(kind for _, source, kind in entries if len(source.shape) > 1)
    kind = kinds.most_common(1)[0][0] if kinds else "F32"
    names = (f"MOSTLY_{kind}", f"MOSTLY_{kind}_MOE", f"ALL_{kind}")
    return next((int(gguf.LlamaFileType[name]) for name in names if name in gguf.LlamaFileType.__members__), 0)


def _tokenizer(checkpoint: Checkpoint, config: Config) -> dict[str, Any]:
    """The tokenizer.json as GGUF has it; nothing where it is of a kind that GGUF does not know."""
    raw = checkpoint.tokenizer()
    if raw is None:
        return {}
    where = f"{checkpoint.folder}: its tokenizer"
    try:
        return _vocabulary(strictjson.parse(raw, where), checkpoint, config)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise SaveError(f"{where} is not a sound one, so it cannot be written as GGUF") from None


def _vocabulary(value: dict[str, Any], checkpoint: Checkpoint, config: Config) -> dict[str, Any]:
    """The vocabulary and merges of a tokenizer.json, of whatever shape a stranger gave it."""
    model = value.get("model") or {}
    vocab = model.get("vocab")
    if model.get("type") != "BPE" or not isinstance(vocab, dict):
        return {}
    added = {item["id"]: item for item in value.get("added_tokens") or []}
    by_id = {number: token for token, number in vocab.items()} | {n: item["content"] for n, item in added.items()}
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(config.vocab)]
    pairs = [m if isinstance(m, list) else m.split(" ", 1) for m in model.get("merges") or []]
    sentencepiece = bool(model.get("byte_fallback"))
    types = [_type(number, token, added, by_id, model, sentencepiece) for number, token in enumerate(tokens)]
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "llama" if sentencepiece else "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
    }
    if sentencepiece:
        ranks: dict[str, int] = {}
        for rank, (left, right) in enumerate(pairs):
            ranks.setdefault(left + right, rank)
        found["tokenizer.ggml.scores"] = [-float(ranks.get(token, 0)) for token in tokens]
    else:
        found["tokenizer.ggml.merges"] = [" ".join(pair) for pair in pairs]
        found["tokenizer.ggml.pre"] = _PRE.get(config.model_type, "default")
    return found | _special(checkpoint, tokens)


def _type(
    number: int, token: str, added: dict[int, Any], by_id: dict[int, str], model: dict[str, Any], sentencepiece: bool
) -> int:
    """GGML's kinds of tokens: 1 normal, 2 unknown, 3 control, 4 given by a user, 5 unused, 6 a byte."""
    if number not in by_id:
        return 5
    if token == model.get("unk_token"):
        return 2
    if number in added:
        return 3 if added[number].get("special") else 4
    return 6 if sentencepiece and len(token) == 6 and token.startswith("<0x") and token.endswith(">") else 1


def _special(checkpoint: Checkpoint, tokens: list[str]) -> dict[str, Any]:
    config = checkpoint.config or {}
    found: dict[str, Any] = {}
    for name, key in (("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")):
        value = config.get(key)
        value = value[0] if isinstance(value, list) and value else value
        if type(value) is int and 0 <= value < len(tokens):
            found[f"tokenizer.ggml.{name}_token_id"] = value
    if "<unk>" in tokens:
        found["tokenizer.ggml.unknown_token_id"] = tokens.index("<unk>")
    return found
