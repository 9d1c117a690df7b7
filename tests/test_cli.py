"""The command line: what every verb prints, as JSON, CSV, Markdown and plain text, and its exit codes."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

import weightkit as wk
from tests import running
from tests.by_hand import tokenizer, write_file
from tests.conftest import Cli
from tests.test_families import write as write_family
from tests.test_generate import masked
from tests.tiny import CONFIGS, FAMILIES, weights, write
from weightkit.analysis.statistics import Statistics
from weightkit.cli.app import VERBS
from weightkit.threads import crew

# One command for each verb; A and B stand for two models. `demo` has tests of its own.
COMMANDS: dict[str, list[str]] = {
    "map": ["A"],
    "count": ["A"],
    "list": ["A"],
    "show": ["A", "layers.0.attn.q"],
    "stats": ["A", "layers.*.attn"],
    "spectrum": ["A", "layers.*.attn"],
    "outliers": ["A"],
    "vocabulary": ["A", "layers.0.ffn[neuron=3]"],
    "circuits": ["A"],
    "check": ["A"],
    "convert": ["A", "C", "--force"],
    "diff": ["A", "B"],
    "trajectory": ["A", "B", "A"],
    "patch": ["make", "A", "B", "-o", "P", "--force"],
    "edit": ["A", "--zero", "layers.1.attn[head=1]", "--dry-run"],
    "run": ["A", "w1 w2"],
    "chat": ["A", "w1 w2", "-n", "3"],
    "trace": ["A", "--ids", "1,2,3"],
    "measure": ["A", "B", "--ids", "1,2,3,4"],
}
FIELDS: dict[str, str] = {  # that must keep their names: ../shared/DESIGN.md, 4
    "count": "model_type total active stored bytes by_role by_layer by_dtype tied unclaimed",
    "stats": "rows",
    "spectrum": "rows skipped",
    "outliers": "found rows",
    "vocabulary": "address kind measure highest lowest",
    "circuits": "expected rows",
    "diff": "identical changed only_a only_b unchanged",
    "trajectory": "snapshots total by_role by_layer rows",
    "measure": "tokens nll_a nll_b perplexity_a perplexity_b kl_mean kl_max top1_agreement first_drift",
    "run": "text ids next",
    "chat": "text ids prompt_tokens",
    "trace": "ids tokens changes rows output",
}
ROWS: dict[str, tuple[str, str]] = {
    "stats": (
        "rows",
        "address name role layer dtype shape count nan inf zeros mean std min max abs_max l2 skewness kurtosis "
        "quantiles exact",
    ),
    "spectrum": (
        "rows",
        "address name role layer dtype shape singular_values frobenius sigma_max sigma_min rank stable_rank entropy "
        "condition energy power_law marchenko_pastur shuffled",
    ),
    "vocabulary": ("highest", "token id score"),
    "circuits": ("rows", "kind writer reader score"),
    "diff": ("changed", "address name l2 relative_l2 max_abs cosine changed_fraction cause"),
    "trace": ("rows", "address axes shape rms abs_max"),
    "run": ("next", "token id logit probability"),
}
EXIT = {"diff": 1}  # these two models differ


TEMPLATE = "{% for m in messages %}{{ 'w5 ' if m.role == 'system' else '' }}{{ m.content }} w9 {% endfor %}"


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Path]:
    models = {name: tokenizer(write(tmp_path / name, seed=seed)) for seed, name in enumerate("AB")}
    for folder in models.values():
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    return models | {"C": tmp_path / "C", "P": tmp_path / "p.wkpatch"}


def line(verb: str, pair: dict[str, Path]) -> list[object]:
    return [verb, *(pair.get(word, word) for word in COMMANDS[verb])]


def test_every_verb_is_tested_here() -> None:
    assert {*COMMANDS, "demo"} == set(VERBS)


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help(cli: Cli, verb: str) -> None:
    done = cli(*filter(None, [verb, "--help"]))
    assert (done.code, done.err) == (0, "")
    assert "Usage: weightkit" in done.out
    if not verb:
        assert all(re.search(rf"^\s*{name} ", done.out, re.MULTILINE) for name in VERBS)


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"weightkit {wk.__version__}\n"


@pytest.mark.parametrize("verb", COMMANDS)
def test_json(cli: Cli, pair: dict[str, Path], verb: str) -> None:
    done = cli(*line(verb, pair), "--json")
    assert (done.code, done.err) == (EXIT.get(verb, 0), "")
    value = done.json  # one strict object and nothing else
    assert next(iter(value)) == "schema"
    assert value["schema"] == f"weightkit.{verb}/1"
    assert set(FIELDS.get(verb, "").split()) <= value.keys()
    if verb in ROWS:
        name, fields = ROWS[verb]
        assert value[name]
        assert all(set(fields.split()) <= row.keys() for row in value[name])


@pytest.mark.parametrize("verb", COMMANDS)
def test_plain_text_in_a_pipe(cli: Cli, pair: dict[str, Path], verb: str) -> None:
    done = cli(*line(verb, pair))
    assert (done.code, done.err) == (EXIT.get(verb, 0), "")
    assert done.out.endswith("\n")
    assert "\x1b" not in done.out
    assert not re.search(r"\w…\w", done.out)  # nothing is cut where there is no width
    assert not any(text != text.rstrip() for text in done.out.splitlines())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("verb", [verb for verb in COMMANDS if verb not in ("run", "chat")])
def test_every_family(cli: Cli, tmp_path: Path, family: str, verb: str) -> None:
    pair = {name: write(tmp_path / name, family, seed=seed, shards=3) for seed, name in enumerate("AB")}
    pair |= {"C": tmp_path / "C", "P": tmp_path / "p.wkpatch"}
    for kind in ([], ["--json"]):
        done = cli(*line(verb, pair), *kind)
        assert (done.code, done.err) == (EXIT.get(verb, 0), "")


# ── the command line is the API ────────────────────────────────────────────────────────────────────


def test_count_is_counts(cli: Cli, pair: dict[str, Path]) -> None:
    found, counts = cli("count", pair["A"], "--json").json, wk.open(pair["A"]).counts()
    for field in FIELDS["count"].split():
        assert found[field] == getattr(counts, field)
    text = cli("count", pair["A"]).out
    for role, number in counts.by_role.items():
        assert re.search(rf"^{role} +{number:,} .* {re.escape(counts.formulas[role])}$", text, re.MULTILINE)


def test_stats_is_statistics(cli: Cli, pair: dict[str, Path]) -> None:
    rows = cli("stats", pair["A"], "layers.0", "--json").json["rows"]
    want = wk.open(pair["A"]).statistics("layers.0")
    assert [Statistics(**row | {"shape": tuple(row["shape"])}) for row in rows] == want
    assert all(number is not None for row in rows for number in row["quantiles"].values())


def test_show_is_look(cli: Cli, pair: dict[str, Path]) -> None:
    found = cli("show", pair["A"], "layers.0.attn.q[head=1]", "--json").json
    look = wk.open(pair["A"]).look("layers.0.attn.q[head=1]")
    assert found["statistics"]["mean"] == look.statistics.mean
    assert found["histogram"] == dataclasses.asdict(look.histogram)
    assert [o["value"] for o in found["outliers"]] == [o.value for o in look.outliers]
    assert [o["coordinate"] for o in found["outliers"]] == [list(o.coordinate) for o in look.outliers]


def test_diff_is_diff(cli: Cli, pair: dict[str, Path]) -> None:
    found = cli("diff", pair["A"], pair["B"], "--json").json
    want = wk.diff(wk.open(pair["A"]), wk.open(pair["B"]))
    assert [row["l2"] for row in found["changed"]] == [row.l2 for row in want.changed]
    same = cli("diff", pair["A"], pair["A"], "--json")
    assert (same.code, same.json["identical"], same.json["changed"]) == (0, True, [])
    assert (
        cli("diff", pair["A"], pair["A"]).out == f"identical: {want.unchanged + len(want.changed)} weights to the bit\n"
    )


def test_diff_says_what_the_config_says(cli: Cli, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b", rms_norm_eps=1e-3)
    done = cli("diff", a, b)
    assert done.code == 1
    assert "config: eps 1e-05 → 0.001" in done.out
    assert cli("diff", a, b, "--json").json["config"] == {"eps": {"a": 1e-5, "b": 1e-3}}


def test_measure_says_where_a_model_ends_in_nan(cli: Cli, pair: dict[str, Path], tmp_path: Path) -> None:
    for name, at in (("model.layers.1.mlp.up_proj.weight", "layers.1.ffn"), ("lm_head.weight", "logits")):
        tensors = weights(CONFIGS["llama"])
        tensors[name][3] = np.nan
        done = cli("measure", pair["A"], write(tmp_path / at, tensors=tensors), "--ids", "1,2,3")
        assert (done.code, done.out) == (2, "")
        assert f"error: B: the model's output is not finite: the first NaN appears at {at}" in done.err


def test_an_edit_of_a_model_with_nan_is_made_and_measured(cli: Cli, tmp_path: Path) -> None:
    tensors = weights(CONFIGS["llama"])
    tensors["lm_head.weight"][3] = np.nan
    done = cli("edit", write(tmp_path / "a", tensors=tensors), "--zero", "norm", "--ids", "1,2", "-o", tmp_path / "b")
    assert done.code == 0
    assert "streams part       only after the last layer" in done.out
    assert "note: B: the model's output is not finite: the first NaN appears at logits" in done.err


def test_run_is_next_tokens(cli: Cli, pair: dict[str, Path]) -> None:
    model = wk.open(pair["A"])
    found = cli("run", pair["A"], "w1 w2", "--top", 3, "--json").json
    assert found["ids"] == [1, 2]
    assert found["next"] == [dataclasses.asdict(token) for token in model.next_tokens("w1 w2", 3)]
    assert cli("run", pair["A"], "--ids", "1, 2", "--top", 3, "--json").json["next"] == found["next"]
    generated = cli("run", pair["A"], "w1 w2", "-n", 5, "--json").json
    assert generated["ids"] == model.generate([1, 2], 5)
    assert generated["text"] == model.generate("w1 w2", 5)
    assert cli("run", pair["A"], "w1 w2", "-n", 5).out == generated["text"] + "\n"


def test_run_ends_where_generate_does(cli: Cli, tmp_path: Path) -> None:
    folder = tokenizer(write(tmp_path, seed=4, eos_token_id=30))  # its text is w27 w94 w62 w51 w95 w34 w26 w30 …
    text = "w5 w17 w42 w27 w94 w62 w51 w95 w34 w26"
    assert cli("run", folder, "w5 w17 w42", "-n", 9).out == text + " w30\n"
    assert cli("run", folder, "w5 w17 w42", "-n", 9, "--ignore-eos").out.startswith(text + " w30 w")
    stopped = ["run", folder, "w5 w17 w42", "-n", 9, "--stop", "never", "--stop", "5 w34"]
    assert cli(*stopped).out == "w5 w17 w42 w27 w94 w62 w51 w9\n"
    found = cli(*stopped, "--json").json
    assert (found["text"], found["prompt_tokens"]) == ("w5 w17 w42 w27 w94 w62 w51 w9", 3)
    assert found["ids"] == [5, 17, 42, 27, 94, 62, 51, 95, 34]
    drawn = ["--temperature", 2, "--top-k", 20, "--top-p", 0.6, "--seed", 3]
    want = wk.open(folder).generate("w5", 9, temperature=2, top_k=20, top_p=0.6, seed=3)
    assert cli("run", folder, "w5", "-n", 9, *drawn).out == want + "\n"
    assert cli("run", folder, "w5", "-n", 9, "--top-p", 0).code == 2


def test_run_at_the_last_position_has_no_table(cli: Cli, tmp_path: Path) -> None:
    folder = write(tmp_path, "gpt2", n_positions=10)
    found = cli("run", folder, "--ids", "1 2 3", "-n", 30, "--json").json
    assert (len(found["ids"]), found["next"]) == (11, [])
    note = "note: the text ends there because the model has no more than 10 positions\n"
    assert cli("run", folder, "--ids", "1 2 3", "-n", 30).err == note
    assert cli("run", folder, "--ids", "1 2 3", "-n", 8).err == ""


def test_run_fills_masks(cli: Cli, tmp_path: Path) -> None:
    model = masked(tmp_path)
    rows = [[dataclasses.asdict(row) for row in table] for table in model.fill("w7 [MASK] [MASK]", 3)]
    found = cli("run", tmp_path, "w7 [MASK] [MASK]", "--top", 3, "--json").json
    assert (found["ids"], found["next"], found["masks"]) == ([7, 96, 96], rows[0], rows)
    assert "[MASK]" in found["text"]
    lines = cli("run", tmp_path, "w7 [MASK] [MASK]", "--top", 3).out.splitlines()
    assert [lines[0], lines[5], lines[6]] == ["mask 1 of 2", "", "mask 2 of 2"]
    assert cli("run", tmp_path, "w7 [MASK]", "--top", 3).out.splitlines()[0] == lines[1]
    assert "put [MASK]" in cli("run", tmp_path, "w7").err


def test_run_as_csv_and_markdown(cli: Cli, tmp_path: Path) -> None:
    model = masked(tmp_path)
    rows = [
        dataclasses.asdict(row) | {"mask": n}
        for n, found in enumerate(model.fill("w7 [MASK] [MASK]", 3), 1)
        for row in found
    ]
    command = ["run", tmp_path, "w7 [MASK] [MASK]", "--top", 3]
    got = [
        row | {name: float(row[name]) for name in ("mask", "id", "logit", "probability")}
        for row in read_csv(cli(*command, "--csv").out)
    ]
    assert got == rows
    markdown = cli(*command, "--markdown").out.splitlines()
    assert (markdown[0], len(markdown)) == ("| mask | token | id | logit | probability |", 8)
    assert cli("run", "demo", "The capital of France is", "--csv", "--top", 1).out.startswith(
        "token,id,logit,probability\n Paris,489,"
    )


def test_run_of_a_model_with_an_encoder(cli: Cli, tmp_path: Path) -> None:
    model = wk.open(tokenizer(write_family(tmp_path, "t5")))
    want = model.generate("w5 w7", 4, ignore_eos=True)
    assert cli("run", tmp_path, "w5 w7", "-n", 4, "--ignore-eos").out == want + "\n"
    found = cli("run", tmp_path, "--ids", "5 7", "-n", 4, "--json").json
    assert (found["text"], found["ids"]) == (want, model.generate([5, 7], 4))
    assert found["next"][0]["id"] == model.generate([5, 7], 5)[-1]


def test_chat_is_chat(cli: Cli, pair: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [{"role": "system", "content": "w7"}, {"role": "user", "content": "w1 w2"}]
    writing = wk.open(pair["A"]).chat(messages, 5)
    assert writing.prompt == [5, 7, 9, 1, 2, 9]
    want = writing.whole()
    command = ["chat", pair["A"], "--system", "w7", "-n", 5]
    assert cli(*command, "w1 w2").out == want + "\n"
    found = cli(*command, "w1 w2", "--json").json
    assert (found["text"], found["ids"], found["prompt_tokens"]) == (want, writing.prompt + writing.ids, 6)
    monkeypatch.setattr("sys.stdin", io.StringIO("w1 w2\n"))
    assert cli(*command).out == want + "\n"
    assert "nothing to answer" in cli(*command).err  # it is read


def test_chat_without_a_template(cli: Cli) -> None:
    done = cli("chat", "demo", "Hello")
    assert (done.code, done.out) == (2, "")
    assert "no chat template" in done.err


def test_measure_is_measure(cli: Cli, pair: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("w1 w5 w3 w9 w2 w2")
    found = cli("measure", pair["A"], pair["B"], "--text", tmp_path / "text.txt", "--json").json
    effect = wk.measure(wk.open(pair["A"]), wk.open(pair["B"]), ids=[[1, 5, 3, 9, 2, 2]])
    for field in FIELDS["measure"].split():
        assert found[field] == pytest.approx(getattr(effect, field), rel=1e-5)
    assert cli("measure", pair["A"], pair["B"], "--text", "w1 w5 w3 w9 w2 w2", "--json").json == found
    same = cli("measure", pair["A"], pair["A"], "--text", "w1 w5", "--json").json
    assert (same["kl_max"], same["first_drift"], same["nll_a"]) == (0.0, None, same["nll_b"])


def test_trace_is_trace(cli: Cli, pair: dict[str, Path], tmp_path: Path) -> None:
    model, out = wk.open(pair["A"]), tmp_path / "trace.h5"
    capture = ["-c", "layers.*.attn.pattern", "--capture", "layers.1.out"]
    options = [
        "--scale",
        "layers.0.attn.heads[head=2]=0.5",
        "--set",
        "embed[position=1]=-1e-2",
        "--zero",
        "layers.1.in",
    ]
    changes = [
        wk.zero("layers.1.in"),
        wk.set("embed[position=1]", -0.01),
        wk.scale("layers.0.attn.heads[head=2]", 0.5),
    ]
    found = cli("trace", pair["A"], "w1 w2 w3", *capture, *options, "-o", out, "--json").json
    assert (found["ids"], found["tokens"], found["output"]) == ([1, 2, 3], [" w1", " w2", " w3"], str(out))
    assert [(change["op"], change["address"]) for change in found["changes"]] == [(c.op, c.address) for c in changes]
    names = [*(f"layers.{i}.attn.pattern" for i in range(2)), "layers.1.out", "layers.2.attn.pattern"]
    assert [row["address"] for row in found["rows"]] == names
    traced = model.trace([1, 2, 3], [*names], changes)
    with h5py.File(out) as file:
        assert all(np.array_equal(file[name], traced[name]) for name in names)
    (tmp_path / "text.txt").write_text("w5 w6")
    done = cli("trace", pair["A"], "--text", tmp_path / "text.txt", *capture, *options, "-o", out, "--append")
    assert f"saved {out}" in done.out
    with h5py.File(out) as file:
        assert file["ids"][:].tolist() == [1, 2, 3, 5, 6]
    assert cli("trace", pair["A"], "w1", "-c", "norm", "-o", out, "--force").code == 0
    rows = cli("trace", pair["A"], "w1 w2", "--json").json["rows"]
    assert rows == [
        dict(dataclasses.asdict(row), axes=list(row.axes), shape=list(row.shape)) for row in model.activations([1, 2])
    ]
    (head, *lines) = read_csv(cli("trace", pair["A"], "w1", "-c", "layers.0.attn.q", "--csv").out)
    assert (head["address"], head["axes"], head["shape"], lines) == (
        "layers.0.attn.q",
        "head position dim",
        "4 1 12",
        [],
    )


def test_a_new_folder_is_noted(cli: Cli, pair: dict[str, Path], tmp_path: Path) -> None:
    calls: list[list[object]] = [
        ["trace", pair["A"], "w1", "-c", "norm", "-o"],
        ["edit", pair["A"], "--zero", "norm", "-o"],
        ["convert", pair["A"]],
    ]
    for call in calls:
        place = tmp_path / str(call[0])
        assert cli(*call, place / "b" / "c.npz").err == f"note: {place / 'b'}: this folder is new\n"
        assert cli(*call, place / "b" / "d.npz").err == ""


def test_trace_notes_where_nan_comes_up_and_what_is_too_long(cli: Cli, tmp_path: Path) -> None:
    tensors = weights(CONFIGS["llama"])
    tensors["model.layers.1.mlp.up_proj.weight"][3] = np.nan
    path = write(tmp_path, tensors=tensors, max_position_embeddings=2)
    done = cli("trace", path, "--ids", "1,2,3", "-c", "layers.*.out", "-c", "norm")
    assert "note: layers.1.out is the first of these with NaN or Inf" in done.err
    assert "note: this model was made for texts of up to 2 tokens" in done.err
    assert cli("trace", path, "--ids", "1,2", "-c", "layers.0.out").err == ""


def test_trace_of_an_encoder(cli: Cli, tmp_path: Path) -> None:
    path = running.write(tmp_path, "t5")
    rows = cli("trace", path, "--ids", "1,2", "--decoder-ids", "0,5,6", "-c", "*.layers.0.*.pattern", "--json").json[
        "rows"
    ]
    assert [(row["address"], row["shape"]) for row in rows] == [
        ("encoder.layers.0.attn.pattern", [4, 2, 2]),
        ("decoder.layers.0.attn.pattern", [4, 3, 3]),
        ("decoder.layers.0.cross.pattern", [4, 3, 2]),
    ]


def test_map_is_the_pipeline(cli: Cli, pair: dict[str, Path]) -> None:
    found = cli("map", pair["A"], "--json").json
    assert sum(step["parameters"] for step in found["steps"]) == found["total"]
    text = cli("map", pair["A"]).out
    starred = [words for words in text.splitlines() if re.match(r"\s*(│ )?\* ", words)]
    assert len(starred) == sum(step["weights"] for step in found["steps"]) + 1  # and the legend


@pytest.mark.parametrize("verb", ["count", "stats", "show"])
def test_numbers_that_do_not_exist_are_null(cli: Cli, tmp_path: Path, verb: str) -> None:
    path = write_file(tmp_path / "x.safetensors", {"x": np.full(3, np.nan, np.float32)})
    done = cli(verb, path, *(["name:x"] if verb == "show" else []), "--json")
    assert done.code == 0
    value = done.json
    if verb != "count":
        row = value["rows"][0] if verb == "stats" else value["statistics"]
        assert [row[name] for name in ("mean", "std", "min", "kurtosis")] == [None] * 4
        assert row["nan"] == 3
        assert set(row["quantiles"].values()) == {None}


def test_a_tensor_without_an_address_has_its_name(cli: Cli, tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.safetensors", {"a.b[0]": np.ones(3)})
    (row,) = cli("stats", path, "--json").json["rows"]
    assert (row["address"], row["name"]) == ("name:a.b[0]", "a.b[0]")


# ── edit ───────────────────────────────────────────────────────────────────────────────────────────


def test_edit_parses_the_last_equals_sign(cli: Cli, pair: dict[str, Path]) -> None:
    options = [
        "--scale", "layers.0.attn.q[head=2]=0.5", "--set", "embed[token=3]=-1e-2",
        "--noise", "layers.*.ffn=0.1", "--zero", "norm", "--zero", "layers.1.attn[head=1]", "--seed", "4",
    ]  # fmt: skip
    found = cli("edit", pair["A"], *options, "--dry-run", "--json").json
    assert [(e["op"], e["address"], e["value"]) for e in found["edits"]] == [
        ("zero", "norm", 0.0),
        ("zero", "layers.1.attn[head=1]", 0.0),
        ("set", "embed[token=3]", -0.01),
        ("scale", "layers.0.attn.q[head=2]", 0.5),
        ("noise", "layers.*.ffn", 0.1),
    ]
    assert (found["edits"][-1]["seed"], found["edits"][-1]["relative"]) == (4, True)
    assert found["output"] is None


def test_edit_saves_what_the_api_saves(cli: Cli, tmp_path: Path) -> None:
    a = tokenizer(write(tmp_path / "a", shards=4))
    done = cli("edit", a, "--zero", "layers.1.attn[head=1]", "-o", tmp_path / "b", "--json").json
    wk.open(a).apply(wk.zero("layers.1.attn[head=1]")).save(tmp_path / "c")
    assert cli("diff", tmp_path / "b", tmp_path / "c").code == 0
    assert done["output"] == str(tmp_path / "b")
    assert done["elements"] == 2 * 12 * 48
    assert {t["name"].split(".")[-2] for t in done["tensors"]} == {"q_proj", "o_proj"}
    assert len(done["rewritten"]) + len(done["linked"]) == 4
    changed = cli("diff", a, tmp_path / "b", "--json").json["changed"]
    assert [row["address"] for row in changed] == ["layers.1.attn.q", "layers.1.attn.o"]


def test_edit_dry_run_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    a = write(tmp_path / "a", shards=4)
    done = cli("edit", a, "--zero", "layers.1", "--dry-run", "-o", tmp_path / "b")
    assert done.code == 0
    assert "nothing was written" in done.out
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_edit_without_edits_copies(cli: Cli, tmp_path: Path) -> None:
    a = write(tmp_path / "a", shards=4)
    assert cli("edit", a, "-o", tmp_path / "b").code == 0
    assert cli("diff", a, tmp_path / "b").code == 0


def test_edit_measures(cli: Cli, pair: dict[str, Path]) -> None:
    found = cli("edit", pair["A"], "--zero", "layers.1.attn", "--measure", "w1 w2 w3", "--json").json
    assert set(FIELDS["measure"].split()) <= found["effect"].keys()
    assert found["effect"]["first_drift"] == 1
    none = cli("edit", pair["A"], "--scale", "layers.1.attn=1", "--ids", "1 2 3", "--json").json["effect"]
    assert (none["kl_mean"], none["kl_max"], none["top1_agreement"], none["first_drift"]) == (0, 0, 1, None)
    assert "perplexity" in cli("edit", pair["A"], "--zero", "norm", "--measure", "w1 w2").out


def test_spectrum_is_the_spectra(cli: Cli, pair: dict[str, Path]) -> None:
    found = cli("spectrum", pair["A"], "layers.1", "--heads", "--shuffle", "3", "--json").json
    spectra = wk.open(pair["A"]).spectrum("layers.1", by_head=True, shuffle=3)
    assert [row["address"] for row in found["rows"]] == [row.address for row in spectra.rows]
    for row, want in zip(found["rows"], spectra.rows, strict=True):
        assert row["shuffled"] == dataclasses.asdict(want)["shuffled"]
        assert row["energy"] == want.energy
    assert found["skipped"] == [{"address": f"layers.1.{part}.norm", "reason": "a vector"} for part in ("attn", "ffn")]


def test_what_a_spectrum_leaves_out_is_said(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"zero": np.zeros((3, 3)), "nan": np.full((2, 2), np.nan), "big": np.eye(9), "vector": np.ones(4)}
    path = write_file(tmp_path / "x.safetensors", tensors)
    monkeypatch.setattr("weightkit.analysis.spectrum.LARGEST_SIDE", 8)
    text = cli("spectrum", path).out
    for line in ("all zeros, or .*: name:zero", "has NaN or Inf.*: name:nan", "a vector: name:vector"):
        assert re.search(rf"^skipped +{line}$", text, re.MULTILINE)
    assert re.search(r"^largest only +--full computes the rest: name:big$", text, re.MULTILINE)
    assert "largest only" not in cli("spectrum", path, "--full").out
    for kind in ("--csv", "--markdown"):
        noted = cli("spectrum", path, kind).err
        assert "name:zero" in noted
        assert "name:vector" not in noted  # is no matrix
    nothing = cli("spectrum", path, "name:zero", "--json").json
    assert (nothing["rows"], len(nothing["skipped"])) == ([], 1)
    assert cli("spectrum", path, "name:zero", "--csv").out == "address\n"


# ── CSV and Markdown ───────────────────────────────────────────────────────────────────────────────

ROWS_VERBS = ["list", "stats", "spectrum", "diff"]
FORMULAS = ["=1+1", "+1", "-1", "@x", "\tx", "\rx"]


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text), strict=True))


@pytest.mark.parametrize("verb", ROWS_VERBS)
def test_csv_has_the_rows_of_the_json(cli: Cli, pair: dict[str, Path], verb: str) -> None:
    rows = cli(*line(verb, pair), "--json").json["changed" if verb == "diff" else "rows"]
    done = cli(*line(verb, pair), "--csv")
    assert done.err == ""
    found = read_csv(done.out)
    assert [row["address"] for row in found] == [row["address"] for row in rows]
    for got, want in zip(found, rows, strict=True):
        numbers = {name: value for name, value in want.items() if isinstance(value, float)}
        assert {name: float(got[name]) for name in numbers} == numbers
        if verb == "spectrum":
            assert float(got["power_law.alpha"]) == want["power_law"]["alpha"]
        if verb == "stats":
            assert float(got["q0.5"]) == want["quantiles"]["0.5"]


@pytest.mark.parametrize("verb", ROWS_VERBS)
def test_csv_runs_no_formula(cli: Cli, tmp_path: Path, verb: str) -> None:
    names = [*FORMULAS, 'quote",', "new\nline", "плюс"]
    a, b = (
        write_file(tmp_path / f"{n}.safetensors", {name: np.full((2, 2), i + 1, np.float32) for name in names})
        for i, n in enumerate("ab")
    )
    done = cli(verb, a, *([b] if verb == "diff" else []), "--csv")
    found = [row["name"] for row in read_csv(done.out)]
    assert len(found) == len(names)
    assert not any(cell[:1] in "=+-@\t\r" for cell in found)
    assert all(want in got for want, got in zip(names[:4], found[:4], strict=True))


@pytest.mark.parametrize("verb", ROWS_VERBS)
def test_markdown(cli: Cli, pair: dict[str, Path], verb: str) -> None:
    done = cli(*line(verb, pair), "--markdown")
    assert done.err == ""
    lines = done.out.splitlines()
    rows = cli(*line(verb, pair), "--json").json["changed" if verb == "diff" else "rows"]
    assert len(lines) == len(rows) + 2
    assert re.fullmatch(r"\|( -+:? \|)+", lines[1])
    cells = [len(re.findall(r"(?<!\\)\|", text)) for text in lines]
    assert len(set(cells)) == 1


def test_markdown_escapes_names(cli: Cli, tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.safetensors", {"a|b<script>*[x](y)`": np.ones(2)})
    (row,) = cli("list", path, "--markdown").out.splitlines()[2:]
    assert len(re.findall(r"(?<!\\)\|", row)) == len(
        re.findall(r"\|", cli("list", path, "--markdown").out.splitlines()[1])
    )
    assert "<script>" not in row


def test_json_of_an_unknown_family_stays_clean(cli: Cli, tmp_path: Path) -> None:
    path = write(tmp_path, model_type="unheard_of")
    done = cli("count", path, "--json")
    assert done.json["model_type"] == "unheard_of"
    assert done.json["total"] == sum(a.size for a in weights(CONFIGS["llama"]).values())
    assert json.loads(done.out)["unclaimed"]
    assert "unheard_of" in done.err  # what is not available is said, and not on stdout
    assert not math.isnan(done.json["total"])


@pytest.mark.parametrize("command", ["run demo --ids 1,2", "measure demo demo:early --ids 1,2,3"])
def test_threads_change_nothing_but_the_time(cli: Cli, command: str) -> None:
    want = cli(*command.split(), "--json").out
    assert cli(*command.split(), "--json", "--threads", "1").out == want
    assert crew.size == 1
    wk.set_threads()
    assert cli(*command.split(), "--threads", "0").code == 2
