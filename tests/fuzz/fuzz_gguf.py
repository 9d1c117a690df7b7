"""Coverage-guided fuzzing of the GGUF reader: `python -m tests.fuzz.fuzz_gguf -runs=100000`.

The tokenizer is made too. Seeds are files of each kind of value, type and architecture that is treated specially.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from tests.fuzz import common
from weightkit.formats.shard import ShardFile

U32, F32, STRING, ARRAY = 4, 6, 8, 9


def with_tokenizer(open_file: common.OpenFile) -> common.OpenFile:
    """`open_file`, and what else a file gives."""

    def opened(path: Path) -> ShardFile:
        shard = open_file(path)
        if shard.tokenizer is not None:
            shard.tokenizer()
        return shard

    return opened


def seeds() -> list[bytes]:
    """Small files of several architectures, with tensors in several types."""
    import gguf

    found = []
    for architecture in ("llama", "gemma", "mamba", "deepseek2", "falcon", "qwen2moe"):
        for order in (gguf.GGUFEndian.LITTLE, gguf.GGUFEndian.BIG):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "m.gguf")
                writer = gguf.GGUFWriter(path, architecture, endianess=order)
                writer.add_block_count(1)
                writer.add_embedding_length(4)
                writer.add_head_count(2)
                writer.add_rope_freq_base(1e4)
                writer.add_array("split.list", [1, 2])
                writer.add_tokenizer_model("llama" if order == gguf.GGUFEndian.LITTLE else "gpt2")
                writer.add_token_list(["a", "b", "ab"])
                writer.add_token_scores([0.0, 0.0, -1.0])
                writer.add_token_types([1, 3, 1])
                writer.add_token_merges(["a b"])
                writer.add_tensor("token_embd.weight", np.ones((3, 4), np.float32))
                writer.add_tensor("blk.0.attn_q.weight", np.ones((4, 4), np.float32))
                writer.add_tensor("rope_freqs.weight", np.ones(2, np.float32))
                writer.add_tensor("output_norm.weight", np.ones(4, np.float16))
                writer.add_tensor("blk.0.ssm_a", np.ones((2, 2), np.float32))
                for kind in ("Q8_0", "Q4_K", "IQ2_XXS", "Q8_1"):
                    nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
                    raw = np.zeros((2, nbytes), np.uint8)
                    writer.add_tensor(kind, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
                writer.write_header_to_file()
                writer.write_kv_data_to_file()
                writer.write_tensors_to_file()
                writer.close()
                found.append(path.read_bytes())
    return found


if __name__ == "__main__":
    common.run(with_tokenizer(common.reader("gguf")), seeds(), ".gguf")
