"""Numbers and tables for people: units, columns that shrink, the pipeline, histogram bars."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

import weightkit as wk
from tests.test_families import opened, random
from tests.test_families import write as write_family
from tests.tiny import CONFIGS, FAMILIES, shapes, write
from weightkit.analysis.closely import Histogram
from weightkit.report import units
from weightkit.report.charts import bars
from weightkit.report.pipeline import pipeline, steps
from weightkit.report.tables import Column, Line, csv_text, markdown, pairs, plain, table


def text(lines: Iterable[Line]) -> list[str]:
    return ["".join(span for span, _ in line) for line in lines]


@pytest.mark.parametrize(
    ("number", "size", "short"),
    [
        (0, "0 B", "0"),
        (999, "999 B", "999"),
        (1000, "1.00 kB", "1.00 k"),
        (9_994, "9.99 kB", "9.99 k"),
        (9_996, "10.0 kB", "10.0 k"),
        (99_960, "100 kB", "100 k"),
        (999_499, "999 kB", "999 k"),
        (999_500, "1.00 MB", "1.00 M"),
        (260_032, "260 kB", "260 k"),
        (70_553_706_496, "70.6 GB", "70.6 B"),
        (405_853_388_800, "406 GB", "406 B"),
        (811_706_777_600, "812 GB", "812 B"),
        (1.5e12, "1.50 TB", "1.50 T"),
    ],
)
def test_large_numbers(number: float, size: str, short: str) -> None:
    assert units.size(number) == size
    assert units.short(number) == short
    assert units.operations(number) == size.replace("B", "FLOP")


@pytest.mark.parametrize(
    ("number", "digits", "shown"),
    [
        (0.0, 4, "0"),
        (1.0, 4, "1"),
        (-0.123456, 4, "-0.1235"),
        (1.2344e-7, 4, "1.234e-7"),
        (1e-10, 3, "1e-10"),
        (123456.0, 4, "1.235e5"),
        (math.nan, 4, "–"),
        (None, 4, "–"),
        (math.inf, 4, "inf"),
    ],
)
def test_real_numbers(number: float | None, digits: int, shown: str) -> None:
    assert units.real(number, digits) == shown


def test_words_for_numbers() -> None:
    assert units.count(405_853_388_800) == "405,853,388,800"
    assert units.count(None) == units.size(None) == units.percent(None) == units.percent(math.nan) == "–"
    assert units.percent(0.12345) == "12.3 %"
    assert units.shape((4096, 11008)) == "4,096 × 11,008"
    assert units.shape(()) == "1"
    assert [units.plural(n, "tensor") for n in (0, 1, 2048)] == ["0 tensors", "1 tensor", "2,048 tensors"]


# ── tables ─────────────────────────────────────────────────────────────────────────────────────────

COLUMNS = [Column("name", shrinks=True), Column("n", right=True), Column("where it is", shrinks=True)]
ROWS = [("a" * 30 + "b" * 30, "1", "x"), ("short", "1,234", "y" * 50)]


def test_a_table_without_a_width_is_never_cut() -> None:
    lines = text(table(COLUMNS, ROWS))
    assert len(lines) == 3
    assert "a" * 30 + "b" * 30 in lines[1]
    assert "y" * 50 in lines[2]
    assert {line.index(number) + len(number) for line, number in zip(lines[1:], (" 1 ", "1,234 "), strict=True)} == {68}
    assert not any(line != line.rstrip() for line in lines)


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_a_table_shrinks_to_a_width(width: int) -> None:
    lines = text(table(COLUMNS, ROWS, width))
    assert max(map(len, lines)) <= width
    assert "…" in lines[1]
    assert lines[1].startswith("a")
    assert "b…" not in lines[1].split()[0]  # cut in the middle: both ends stay
    assert lines[1].split()[0].endswith("b")
    assert "1,234" in lines[2]  # numbers are never cut


def test_a_table_that_cannot_shrink_enough_keeps_its_numbers() -> None:
    lines = text(table(COLUMNS, ROWS, 10))
    assert "1,234" in lines[2]


def test_a_long_value_goes_on_below() -> None:
    rows = [("name", "a first item, a second, 1,000 of a third, and a fourth"), ("b", "c")]
    assert text(pairs(rows, 30)) == [
        "name  a first item, a second,",
        "      1,000 of a third,",
        "      and a fourth",
        "b     c",
    ]
    assert text(pairs(rows)) == [f"name  {rows[0][1]}", "b     c"]


def test_a_table_of_nothing() -> None:
    assert text(table(COLUMNS, [])) == ["name  n  where it is"]
    assert pairs([]) == []


def test_prose_breaks_between_any_words() -> None:
    assert text(pairs([("a", "words that need no comma")], 23, prose=True)) == ["a  words that need no", "   comma"]


def test_a_name_of_a_megabyte_is_not_cut_and_pads_no_other_row() -> None:
    rows = [("a" * 10**6, "1", "x"), ("short", "1", "y")]
    for title, long, short in (list(plain(COLUMNS, rows)), text(table(COLUMNS, rows))):
        assert "a" * 10**6 in long
        assert max(len(title), len(short)) < 300
    assert text(pairs([("a" * 10**6, "x"), ("short", "y")]))[1] == "short" + " " * 197 + "y"


def test_names_are_escaped() -> None:
    (_, row) = text(table([Column("name")], [("\x1b[2J\nnext [red]",)]))
    assert row == r"\x1b[2J\nnext [red]"
    assert text(pairs([("name", "\x1b\n")])) == [r"name  \x1b\n"]
    assert markdown([Column("a")], [("\x1b|<b>",)]).splitlines()[2] == r"| \x1b\|&lt;b> |"


def test_csv_text() -> None:
    rows = [("=1+1", -1.5, None), ("plain", 3, 'say "x", y')]
    assert csv_text(["a", "b", "c"], rows) == 'a,b,c\n\'=1+1,-1.5,\nplain,3,"say ""x"", y"\n'


@pytest.mark.parametrize("cell", ["\r=1", "a\rb", "a\nb", "\t=1"])
def test_csv_has_one_line_for_each_row(cell: str) -> None:
    text = csv_text(["a", "b"], [(cell, "x")])
    assert len(text.splitlines()) == 2
    ((shown, other),) = list(csv.reader(io.StringIO(text), strict=True))[1:]
    assert (ascii(cell)[1:-1] in shown, other) == (True, "x")
    assert shown[:1] not in "=+-@\t\r"


def test_markdown_titles_are_escaped() -> None:
    head = markdown([Column("max |Δ|"), Column("n", right=True)], [("1", "2")]).splitlines()
    assert head[0] == r"| max \|Δ\| | n |"
    assert head[1] == "| --- | ---: |"


# ── the pipeline ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_steps_hold_every_parameter(tmp_path: Path, family: str, tied: bool) -> None:
    model = wk.open(write(tmp_path, family, tie_word_embeddings=tied))
    found = steps(model.registry)
    assert sum(step.parameters for step in found) == model.counts().total
    assert [step.name for step in found[:3]] == ["text", "tokenizer", "token ids"]
    assert found[-1].name.startswith("output")
    assert all(step.weights is (step.address is not None) for step in found)
    named = {step.address.replace(".*.", ".0.") for step in found if step.address}
    assert named >= {"embed", "layers.0.attn.q", "layers.0.attn.o", "layers.0.ffn.down", "norm"}
    assert ("lm_head" in named) == (family != "gpt2" or tied)  # the file has none, and no tie


LLAMA = """text/tokenizer/token ids/*embedding/norm/*Q/*K/*V/scores/*O/norm/*W_gate/*W_up/activation/*W_down/norm
/*vocab projection/output"""
GPT2 = """text/tokenizer/token ids/*embedding/*position/norm/*Q/*K/*V/scores/*O/norm/*W_up/activation/*W_down/norm
/*vocab projection/output"""


@pytest.mark.parametrize(("family", "order"), [("llama", LLAMA), ("gpt2", GPT2)])
def test_steps_come_in_order(tmp_path: Path, family: str, order: str) -> None:
    found = steps(wk.open(write(tmp_path, family)).registry)
    wanted = order.replace("\n", "").split("/")
    assert len(found) == len(wanted)
    for step, want in zip(found, wanted, strict=True):
        assert want.lstrip("*") in step.name
        assert step.weights is (want.startswith("*") or want == "norm")


def test_the_parameters_of_a_step(tmp_path: Path) -> None:
    by_address = {step.address: step for step in steps(wk.open(write(tmp_path, "gpt2")).registry)}
    up = by_address["layers.*.ffn.up"]
    assert (up.shape, up.parameters, up.bias) == ((192, 48), 3 * (192 * 48 + 192), True)
    assert by_address["lm_head"].tied_to == "embed"
    assert by_address["lm_head"].parameters == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_lines_of_the_pipeline(tmp_path: Path, family: str) -> None:
    model = wk.open(write(tmp_path, family))
    lines = text(pipeline(model.registry, model.counts().total))
    assert sum("* " in line for line in lines) == sum(step.weights for step in steps(model.registry))
    (rule,) = [line for line in lines if "× 3 layers" in line]
    end = next(i for i, line in enumerate(lines) if "╰─" in line)
    assert all("│" in line for line in lines[lines.index(rule) + 1 : end])
    shares = [float(line.rsplit(" ", 2)[1]) for line in lines if line.endswith("%")]
    assert sum(shares) == pytest.approx(100, abs=0.1 * len(shares))
    name = "transformer.wte" if family == "gpt2" else "model.embed_tokens"
    vocab, width = shapes(CONFIGS[family])[name + ".weight"]
    assert any(f"{vocab} × {width}" in line and f"{vocab * width:,}" in line for line in lines)


def test_an_unknown_family_has_no_pipeline(tmp_path: Path) -> None:
    model = wk.open(write(tmp_path, model_type="unheard_of"))
    assert steps(model.registry) == []
    assert pipeline(model.registry, 1) == []


@pytest.mark.parametrize(
    ("variant", "head", "end"),
    [
        ("bert", "", "logits of the masked tokens"),
        ("gpt2", "", "logits of the next token"),
        ("gpt2", "score.weight", "scores of the task"),
        ("t5", "decoder.", "hidden states"),
    ],
)
def test_what_comes_out(tmp_path: Path, variant: str, head: str, end: str) -> None:
    tensors = random(variant)
    if head == "score.weight":
        tensors |= {head: np.ones((2, 48), np.float32)}
    elif head == "decoder.":
        tensors = {name: array for name, array in tensors.items() if not name.startswith(head)}
    assert steps(opened(tmp_path, variant, tensors).registry)[-1].name == f"output: {end}"


@pytest.mark.parametrize("variant", ["bert", "distilbert", "phi", "gptj", "t5", "deepseek_v3"])
def test_lines_add_up_to_the_total(tmp_path: Path, variant: str) -> None:
    model = opened(tmp_path, variant)
    total = model.counts().total
    lines = [line for line in text(pipeline(model.registry, total)) if "%" in line]
    assert sum(int(line.split("%")[0].split()[-2].replace(",", "")) for line in lines) == total


@pytest.mark.parametrize(("variant", "rotated"), [("falcon-7b", True), ("falcon-rw", False)])
def test_positions_by_nearness_rotate_nothing(tmp_path: Path, variant: str, rotated: bool) -> None:
    found = steps(opened(tmp_path, variant).registry)
    assert any("rotate" in step.name for step in found) == rotated


GEMMA3 = {
    "model_type": "gemma3",
    "text_config": {"hidden_size": 2560, "intermediate_size": 10_240, "num_hidden_layers": 34},
    "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27},
}


def test_what_is_seen_comes_before_the_layers_that_read_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GEMMA3))
    lines = text(pipeline(wk.open(tmp_path / "config.json").registry, 1))
    order = ("embedding", "patch", "× 27 layers of the vision tower", "project", "× 34 layers", "vocab projection")
    assert sorted(order, key=lambda words: next(i for i, line in enumerate(lines) if words in line)) == list(order)


# ── bars ───────────────────────────────────────────────────────────────────────────────────────────


def test_bars() -> None:
    lines = text(bars(Histogram([-1.0, 0.0, 1.0, 2.0], [0, 10, 1000]), 40))
    assert len(lines) == 3
    widths = [line.count("█") for line in lines]
    assert widths[0] == 0 < widths[1] < widths[2] == 40
    assert widths[1] == pytest.approx(40 * math.log1p(10) / math.log1p(1000), abs=1)
    assert [line.split()[-1] for line in lines] == ["0", "10", "1,000"]
    assert [line.split()[0] for line in lines] == ["-1", "0", "1"]


def test_bars_of_nothing() -> None:
    assert bars(Histogram([], [])) == []
    assert [line.count("█") for line in text(bars(Histogram([0.0, 1.0], [0])))] == [0]


def test_a_bias_without_a_matrix_is_in_the_step_above_it(tmp_path: Path) -> None:
    tensors = random("bert")
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"] + 1
    model = wk.open(write_family(tmp_path, "bert", tensors))
    assert sum(step.parameters for step in steps(model.registry)) == model.counts().total


def test_a_sentence_goes_below_its_row_where_the_line_is_too_long() -> None:
    columns = [Column("address"), Column("value", right=True), Column("why", below=True)]
    rows = [("layers.0.attn.q", "1.5", "it is five times as large as it is in other layers"), ("norm", "2", "")]
    wide = text(table(columns, rows, 80))
    assert wide[1] == "layers.0.attn.q    1.5  it is five times as large as it is in other layers"
    assert text(table(columns, rows, 40)) == [
        "address          value",
        "layers.0.attn.q    1.5",
        "    it is five times as large as it is",
        "    in other layers",
        "norm                 2",
    ]
