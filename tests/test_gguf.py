"""GGUF files, built here byte by byte and by the gguf package, and read back."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import weightkit as wk
from tests import tiny
from weightkit.errors import FormatError
from weightkit.formats.gguf import open_file, permute_rows, turn_rows, types

A = NDArray[Any]


def text(value: str | bytes, order: str = "<") -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack(order + "Q", len(raw)) + raw


def kv(key: str | bytes, kind: int, value: bytes, order: str = "<") -> bytes:
    return text(key, order) + struct.pack(order + "I", kind) + value


def info(name: str | bytes, dims: tuple[int, ...], kind: int, offset: int, order: str = "<") -> bytes:
    sizes = struct.pack(f"{order}I{len(dims)}Q", len(dims), *dims)
    return text(name, order) + sizes + struct.pack(order + "IQ", kind, offset)


def build(
    values: list[bytes],
    infos: list[bytes],
    data: bytes = b"",
    *,
    version: int = 3,
    order: str = "<",
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    tensors, keys = counts or (len(infos), len(values))
    head = b"GGUF" + struct.pack(order + "IQQ", version, tensors, keys) + b"".join(values) + b"".join(infos)
    return head + b"\0" * (-len(head) % alignment if data else 0) + data


def opened(tmp_path: Path, raw: bytes) -> Any:
    (tmp_path / "x.gguf").write_bytes(raw)
    return open_file(tmp_path / "x.gguf")


ONES = np.arange(8, dtype=np.float32)
BASIC = [info("w", (4, 2), 0, 0)]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_and_byte_orders(tmp_path: Path, order: str, version: int) -> None:
    raw = build([], [info("w", (4, 2), 0, 0, order)], ONES.astype(order + "f4").tobytes(), version=version, order=order)
    tensor = opened(tmp_path, raw).tensors["w"]
    assert tensor.shape == (2, 4)  # GGUF counts dimensions from the other end
    assert tensor.read(0, 8).tolist() == ONES.tolist()
    assert tensor.mapped().tolist() == ONES.reshape(2, 4).tolist()


SCALARS = {0: ("B", 200), 1: ("b", -3), 2: ("H", 60000), 3: ("h", -300), 4: ("I", 1 << 31), 5: ("i", -5), 6: ("f", 0.5),
           7: ("?", True), 10: ("Q", 1 << 60), 11: ("q", -(1 << 40)), 12: ("d", 1e-300)}  # fmt: skip


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", SCALARS)
def test_values_of_every_type(tmp_path: Path, kind: int, order: str) -> None:
    code, value = SCALARS[kind]
    raw = build([kv("k", kind, struct.pack(order + code, value), order)], [], order=order)
    assert opened(tmp_path, raw).metadata == {"k": str(value)}
    many = struct.pack(f"{order}IQ3{code}", kind, 3, value, value, value)
    after = kv("s", 8, text("é", order), order)
    assert opened(tmp_path, build([kv("k", 9, many, order), after], [], order=order)).metadata == {"s": "é"}


def nested(depth: int) -> bytes:
    return struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 0, 0)


REFUSED = {
    "empty": b"",
    "magic only": b"GGUF",
    "wrong magic": b"GGUX" + build([], [])[4:],
    "version 1": build([], [], version=1),
    "version 4": build([], [], version=4),
    "version 0": build([], [], version=0),
    "too many tensors": build([], BASIC, ONES.tobytes(), counts=(1 << 40, 0)),
    "tensors -1": build([], BASIC, ONES.tobytes(), counts=((1 << 64) - 1, 0)),
    "too many values": build([], BASIC, ONES.tobytes(), counts=(1, 1 << 40)),
    "one value more": build([], BASIC, ONES.tobytes(), counts=(1, 1)),
    "empty key": build([kv("", 0, b"1")], []),
    "key twice": build([kv("k", 0, b"1"), kv("k", 0, b"1")], []),
    "key not UTF-8": build([kv(b"\xff", 0, b"1")], []),
    "type 13": build([kv("k", 13, b"1")], []),
    "a bool of 2": build([kv("k", 7, b"\2")], []),
    "string past the end": build([kv("k", 8, struct.pack("<Q", 1000))], []),
    "string of 2^64 - 1": build([kv("k", 8, struct.pack("<Q", (1 << 64) - 1))], []),
    "array of 2^61 numbers": build([kv("k", 9, struct.pack("<IQ", 4, 1 << 61))], []),
    "array of 10^9 strings": build([kv("k", 9, struct.pack("<IQ", 8, 10**9))], []),
    "array whose strings end early": build([kv("k", 9, struct.pack("<IQ", 8, 2) + text("a") + b"\1\0\0")], []),
    "array whose strings go past": build([kv("k", 9, struct.pack("<IQ", 8, 1) + struct.pack("<Q", 1 << 63))], []),
    "array of type 77": build([kv("k", 9, struct.pack("<IQ", 77, 1))], []),
    "deep arrays": build([kv("k", 9, nested(5000))], []),
    "alignment 0": build([kv("general.alignment", 4, struct.pack("<I", 0))], BASIC, ONES.tobytes()),
    "alignment 13": build([kv("general.alignment", 4, struct.pack("<I", 13))], BASIC, ONES.tobytes()),
    "alignment of another type": build([kv("general.alignment", 5, struct.pack("<i", 32))], BASIC, ONES.tobytes()),
    "tensor twice": build([], [info("w", (4,), 0, 0), info("w", (4,), 0, 32)], bytes(64)),
    "name not UTF-8": build([], [info(b"\xfe", (4, 2), 0, 0)], ONES.tobytes()),
    "five dimensions": build([], [info("w", (1, 1, 1, 1, 1), 0, 0)], bytes(32)),
    "a product of 2^64": build([], [info("w", (1 << 32, 1 << 32), 0, 0)], bytes(32)),
    "1 TB": build([], [info("w", (1 << 38,), 0, 0)], bytes(32)),
    "rows that are no blocks": build([], [info("w", (33, 2), 2, 0)], bytes(64)),
    "type 4, removed": build([], [info("w", (32,), 4, 0)], bytes(64)),
    "type -1": build([], [info("w", (32,), (1 << 32) - 1, 0)], bytes(64)),
    "an offset past the end": build([], [info("w", (8,), 0, 1 << 20)], bytes(64)),
    "an offset of 2^64 - 32": build([], [info("w", (8,), 0, (1 << 64) - 32)], bytes(64)),
    "an odd offset": build([], [info("w", (8,), 0, 7)], bytes(64)),
    "tensors that overlap": build([], [info("a", (16,), 0, 0), info("b", (8,), 0, 32)], bytes(64)),
    "the same bytes twice": build([], [info("a", (8,), 0, 0), info("b", (8,), 0, 0)], bytes(64)),
    "a byte short": build([], BASIC, ONES.tobytes()[:-1]),
    "no data": build([], BASIC),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_breaks_the_format_is_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(FormatError) as raised:
        opened(tmp_path, REFUSED[case])
    assert str(raised.value).startswith(f"{tmp_path / 'x.gguf'}: ")
    assert "\n" not in str(raised.value)


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    strings = kv("a", 9, struct.pack("<IQ", 8, 2) + text("one") + text("two"))
    raw = build([kv("k", 4, struct.pack("<I", 7)), strings], BASIC, ONES.tobytes())
    opened(tmp_path, raw)
    for end in range(len(raw)):
        with pytest.raises(FormatError):
            opened(tmp_path, raw[:end])


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_other_alignments(tmp_path: Path, alignment: int) -> None:
    key = kv("general.alignment", 4, struct.pack("<I", alignment))
    raw = build([key], BASIC, ONES.tobytes(), alignment=alignment)
    assert opened(tmp_path, raw).tensors["w"].read(0, 8).tolist() == ONES.tolist()


def test_64_gigabytes_of_holes_and_a_large_vocabulary_open_by_their_header(tmp_path: Path) -> None:
    words = b"".join(text(f"word {i}") for i in range(256_000))
    tokens = kv("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 256_000) + words)
    raw = build([tokens], [info("w", (1 << 20, 1 << 14), 0, 0)], b"\1")
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    os.truncate(path, path.stat().st_size - 1 + (64 << 30))
    assert open_file(path).tensors["w"].nbytes == 64 << 30


QUANTISED = [kind for kind in gguf.GGML_QUANT_SIZES if gguf.GGML_QUANT_SIZES[kind][0] > 1]


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_blocks_of_every_type(tmp_path: Path, kind: Any) -> None:
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(1).integers(0, 60, (6, nbytes), dtype=np.uint8)  # small: scales stay finite
    tensor = opened(tmp_path, build([], [info("w", (2 * block, 3), int(kind), 0)], raw.tobytes())).tensors["w"]
    assert (tensor.shape, tensor.nbytes, tensor.dtype.name) == ((3, 2 * block), raw.size, kind.name)
    assert tensor.dtype.packed
    try:
        expected = gguf.dequantize(raw.reshape(3, -1), kind)
    except NotImplementedError:
        with pytest.raises(FormatError, match=kind.name):
            tensor.read(0, 1)
        return
    np.testing.assert_array_equal(tensor.mapped(), expected)
    for start, stop in ((0, 1), (1, 2 * block + 5), (6 * block - 1, 6 * block), (3, 3)):
        np.testing.assert_array_equal(tensor.read(start, stop), expected.ravel()[start:stop])


def test_blocks_of_a_big_endian_file_are_refused_rather_than_read_wrongly(tmp_path: Path) -> None:
    raw = build([], [info("w", (32, 1), 8, 0, ">")], bytes(34), order=">")
    tensor = opened(tmp_path, raw).tensors["w"]
    assert tensor.nbytes == 34
    with pytest.raises(FormatError, match="big-endian"):
        tensor.read(0, 1)


def test_blocks_of_nothing(tmp_path: Path) -> None:
    tensor = opened(tmp_path, build([], [info("w", (0, 4), 40, 0)])).tensors["w"]
    assert tensor.read(0, 0).tolist() == []


def test_plain_types_are_those_of_all_formats(tmp_path: Path) -> None:
    values = np.array([1.5, -2, 0.25, 3], np.float32)
    kinds: dict[int, Any] = {0: np.float32, 1: np.float16, 30: ml_dtypes.bfloat16, 28: np.float64, 24: np.int8,
                             25: np.int16, 26: np.int32, 27: np.int64}  # fmt: skip
    arrays: dict[int, A] = {kind: values.astype(dtype) for kind, dtype in kinds.items()}
    for kind, array in arrays.items():
        tensor = opened(tmp_path, build([], [info("w", (4,), kind, 0)], array.tobytes())).tensors["w"]
        assert tensor.dtype == types()[kind]
        assert not tensor.dtype.packed
        assert tensor.dtype.decode(tensor.read(0, 4)).tolist() == array.astype(np.float32).tolist()


# ── models ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_the_order_of_rows_is_the_converters(heads: int) -> None:
    """`LlamaModel.permute` of convert_hf_to_gguf.py, as it is written there."""
    weights = np.arange(16 * 3).reshape(16, 3)
    expected = weights.reshape(heads, 2, 16 // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)
    np.testing.assert_array_equal(permute_rows(weights, heads), expected)
    np.testing.assert_array_equal(turn_rows(permute_rows(weights, heads), heads), weights)


@pytest.fixture
def twins(tmp_path: Path) -> tuple[wk.Model, Path]:
    """A tiny llama, and the same written by the gguf package as llama.cpp's converter would."""
    config = tiny.CONFIGS["llama"]
    model = wk.open(tiny.write(tmp_path / "hf"))
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(48)
    writer.add_block_count(3)
    writer.add_feed_forward_length(80)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(97)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    for name, array in tiny.weights(config).items():
        heads = 4 if "q_proj" in name else 2 if "k_proj" in name else 0
        array = permute_rows(array, heads) if heads else array
        said = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert said is not None
        writer.add_tensor(said, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, tmp_path / "m.gguf"


def test_a_file_and_its_twin_agree(twins: tuple[wk.Model, Path]) -> None:
    model, path = twins
    other = wk.open(path)
    assert list(other) == list(model)
    assert wk.diff(model, other).identical
    np.testing.assert_array_equal(other.logits([1, 2, 3]), model.logits([1, 2, 3]))
    q = model["layers.1.attn.q"].array()
    np.testing.assert_array_equal(other["layers.1.attn.q[head=2]"].array(), q[24:36])
    assert other["layers.1.attn.q"].name == "blk.1.attn_q.weight"


def test_reordered_rows_read_in_any_part_and_pickle(twins: tuple[wk.Model, Path]) -> None:
    source = open_file(twins[1]).tensors["blk.0.attn_q.weight"]
    whole = source.mapped().ravel()
    for start, stop in ((0, 1), (47, 49), (5, 1700), (0, whole.size), (9, 9)):
        np.testing.assert_array_equal(source.read(start, stop), whole[start:stop])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).mapped().ravel(), whole)


@pytest.mark.parametrize("kind", "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 TQ1_0 TQ2_0 MXFP4".split())
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_what_is_written_is_what_the_package_makes_of_it(tmp_path: Path, kind: str, family: str) -> None:
    size: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    config = tiny.CONFIGS[family] | size
    model = wk.open(tiny.write(tmp_path / "hf", family, tensors=tiny.weights(config), **size))
    path = model.convert(tmp_path / "m.gguf", dtype=kind)
    read = gguf.GGUFReader(path)
    by_name = {tensor.name: tensor for tensor in read.tensors}
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA if family == "llama" else gguf.MODEL_ARCH.QWEN3, 3)
    for name, array in tiny.weights(config).items():
        said = table.get_name(name, try_suffixes=(".weight", ".bias"))
        tensor = by_name[str(said)]
        heads = (4 if "q_proj" in name else 2 if "k_proj" in name else 0) if family == "llama" else 0
        expected = permute_rows(array, heads) if heads else array
        if array.ndim == 1:
            np.testing.assert_array_equal(tensor.data, expected)
            continue
        raw = gguf.quantize(np.ascontiguousarray(expected), gguf.GGMLQuantizationType[kind])
        np.testing.assert_array_equal(
            np.ascontiguousarray(tensor.data).view(np.uint8).ravel(), raw.view(np.uint8).ravel()
        )
    again = wk.open(path)
    assert again.counts().total == model.counts().total
    assert again.config is not None
    assert again.config.differences(model.config) == {} if model.config else False


def test_odd_widths_become_f16(tmp_path: Path) -> None:
    path = wk.open(tiny.write(tmp_path / "hf")).convert(tmp_path / "m.gguf", dtype="Q8_0")
    assert {t.tensor_type.name for t in gguf.GGUFReader(path).tensors} == {"F32", "F16"}


@pytest.mark.parametrize(
    ("family", "dtype", "words"),
    [("gpt2", "F16", "cannot be written"), ("llama", "Q4_K", "'Q4_K'"), ("llama", "nonsense", "'nonsense'")],
)
def test_what_cannot_be_written(tmp_path: Path, family: str, dtype: str, words: str) -> None:
    with pytest.raises(wk.WeightkitError, match=words):
        wk.open(tiny.write(tmp_path / "hf", family)).convert(tmp_path / "m.gguf", dtype=dtype)
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("text", ["[]", "{", '{"model": 3}', '{"model": {}, "model": {}}', '{"model": {"type": "BPE"'
                                  ', "vocab": {"a": 0}, "merges": [["a"]], "byte_fallback": true}}'])  # fmt: skip
def test_a_tokenizer_that_is_none_is_not_written(tmp_path: Path, text: str) -> None:
    model = wk.open(tiny.write(tmp_path / "hf"))
    (tmp_path / "hf" / "tokenizer.json").write_text(text)
    with pytest.raises(wk.WeightkitError, match="tokenizer"):
        model.convert(tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_split_files_are_one_model(tmp_path: Path) -> None:
    for number in (0, 1):
        values = [kv("split.no", 2, struct.pack("<H", number)), kv("split.count", 2, struct.pack("<H", 2))]
        raw = build(values, [info(f"w{number}", (8,), 0, 0)], ONES.tobytes())
        (tmp_path / f"m-{number + 1:05}-of-00002.gguf").write_bytes(raw)
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", ""):
        assert wk.open(tmp_path / name).counts().total == 16
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(FormatError, match=r"m-00002-of-00002\.gguf"):
        wk.open(tmp_path / "m-00001-of-00002.gguf")


def test_a_file_that_says_it_is_one_of_a_million(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is looked at once, not a million times."""
    values = [kv("split.no", 4, struct.pack("<I", 0)), kv("split.count", 4, struct.pack("<I", 999_999))]
    path = tmp_path / "m-000001-of-999999.gguf"
    path.write_bytes(build(values, [info("w", (8,), 0, 0)], ONES.tobytes()))
    asked: list[Path] = []
    exists = Path.exists

    def counted(self: Path, **options: Any) -> bool:
        asked.append(self)
        return exists(self, **options)

    monkeypatch.setattr(Path, "exists", counted)
    with pytest.raises(FormatError, match=r"one of 999,999 files, of which m-000002-of-999999\.gguf"):
        wk.open(path)
    assert len(asked) < 100


def test_a_split_model_is_its_whole(twins: tuple[wk.Model, Path], tmp_path: Path) -> None:
    """Rows of Q in the second file are put in order by what only the first file says."""
    whole = gguf.GGUFReader(twins[1])
    halves = [whole.tensors[:10], whole.tensors[10:]]
    for number, half in enumerate(halves):
        writer = gguf.GGUFWriter(tmp_path / f"s-{number + 1:05}-of-00002.gguf", "llama")
        if number == 0:
            writer.add_head_count(4)
            writer.add_head_count_kv(2)
            for key, value in (("context_length", 64), ("embedding_length", 48), ("block_count", 3),
                               ("feed_forward_length", 80), ("vocab_size", 97)):  # fmt: skip
                writer.add_uint32(f"llama.{key}", value)
            writer.add_layer_norm_rms_eps(1e-5)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        for tensor in half:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    for name in ("s-00001-of-00002.gguf", "s-00002-of-00002.gguf"):
        assert wk.diff(twins[0], wk.open(tmp_path / name)).identical


TEXTS = ["Once upon a time", "Hello, wörld! 漢字 \n two  spaces", " x", "", "a\tb", "🙂", "<s> </s>"]


def test_the_tokenizer_is_the_one_of_the_original(shared: Path) -> None:
    models = shared / "models"
    mine = wk.open(models / "stories260K-formats" / "gguf" / "stories260K-Q8_0.gguf")
    theirs = wk.open(models / "stories260K")
    for line in TEXTS:
        assert mine.ids(line) == theirs.ids(line)
        assert mine.tokenizer.decode(mine.ids(line)) == theirs.tokenizer.decode(theirs.ids(line))


def test_a_byte_level_tokenizer_goes_there_and_back(tmp_path: Path) -> None:
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    made.train_from_iterator(["the cat sat on the mat " * 20, *TEXTS], trainer)
    folder = tiny.write(tmp_path / "hf", "qwen2", vocab_size=300)
    tiny.write(folder, "qwen2", tensors=tiny.weights(tiny.CONFIGS["qwen2"] | {"vocab_size": 300}), vocab_size=300)
    made.save(str(folder / "tokenizer.json"))
    other = wk.open(wk.open(folder).convert(tmp_path / "m.gguf"))
    for line in ("the cat sat", "Hello, wörld! 漢字 🙂", "it's 12345", "<|end|>"):
        assert other.tokenizer.decode(other.ids(line)) == made.decode(made.encode(line).ids)
    assert other.ids("the cat sat") == made.encode("the cat sat").ids


LOGITS = {"F32": 1e-4, "F16": 0.02, "BF16": 0.1, "Q8_0": 0.3, "Q5_1": 2.0, "Q4_0": 5.0}  # SOURCES.md, rounded up


@pytest.mark.parametrize("kind", LOGITS)
def test_real_files(shared: Path, kind: str) -> None:
    reference = np.load(shared / "models" / "reference" / "stories260K.npz")
    original = wk.open(shared / "models" / "stories260K")
    model = wk.open(shared / "models" / "stories260K-formats" / "gguf" / f"stories260K-{kind}.gguf")
    assert list(model) == list(original)
    assert model.counts().total == 260_032
    distance = np.abs(model.logits(reference["ids"]) - reference["logits"]).max()
    assert LOGITS[kind] / 20 < distance < LOGITS[kind] or kind == "F32"


def test_a_metadata_only_file_opens(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(build([kv("general.architecture", 8, text("llama"))], []))
    assert wk.open(tmp_path / "x.gguf").counts().total == 0


def test_the_config_of_a_file_is_json(twins: tuple[wk.Model, Path]) -> None:
    config = open_file(twins[1]).config
    assert json.loads(json.dumps(config)) == config
    assert config is not None
    assert config["rms_norm_eps"] == 1e-5
