"""Errors: one line on stderr that begins with `error: `, exit code 2, no traceback, nothing on stdout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.by_hand import files, tokenizer, write_file
from tests.conftest import Cli, Result
from tests.tiny import CONFIGS, weights, write
from weightkit.errors import FormatError

ONE = {
    "map": [],
    "count": [],
    "list": [],
    "show": ["layers.0.attn.q"],
    "stats": [],
    "spectrum": [],
    "check": [],
    "diff": ["SAME"],
    "edit": ["--zero", "norm", "--dry-run"],
    "run": ["--ids", "1"],
    "trace": ["--ids", "1,2"],
    "measure": ["SAME", "--ids", "1,2"],
}


def require_error(done: Result, *says: str) -> None:
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("error: ")
    assert done.err.endswith("\n")
    assert "please report it" not in done.err  # an exception that nobody thought of
    assert "Traceback" not in done.err
    for text in says:
        assert text in done.err, done.err


# ── models that cannot be opened ───────────────────────────────────────────────────────────────────


def missing(folder: Path) -> Path:
    return folder / "nothing"


def empty(folder: Path) -> Path:
    folder.mkdir()
    (folder / "notes.txt").write_text("no weights here")
    return folder


def truncated(folder: Path) -> Path:
    path = write(folder) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    return folder


def malformed(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"\x05" + b"\0" * 7 + b"{...}")
    return folder / "model.safetensors"


def not_a_file_of_weights(folder: Path) -> Path:
    folder.mkdir()
    (folder / "x.safetensors").write_text("Once upon a time there was no header")
    return folder / "x.safetensors"


def missing_shard(folder: Path) -> Path:
    (write(folder, shards=3) / "model-00002-of-00003.safetensors").unlink()
    return folder


def shard_outside(folder: Path) -> Path:
    write(folder, shards=3)
    shutil.move(folder / "model-00002-of-00003.safetensors", folder.parent / "elsewhere.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002-of-00003", "../elsewhere"))
    return folder


def another_config(folder: Path) -> Path:
    write(folder)
    (folder / "config.json").write_text(json.dumps(CONFIGS["llama"] | {"hidden_size": 64}))
    return folder


def too_few_layers(folder: Path) -> Path:
    write(folder)
    (folder / "config.json").write_text(json.dumps(CONFIGS["llama"] | {"num_hidden_layers": 4}))
    return folder


def broken_config(folder: Path) -> Path:
    write(folder)
    (folder / "config.json").write_text("{'model_type': llama}")
    return folder


def pytorch(folder: Path) -> Path:
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    return folder


BAD: dict[Callable[[Path], Path], str] = {
    missing: "no such file or folder",
    empty: "without weights",
    truncated: "model.safetensors",
    malformed: "not valid JSON",
    not_a_file_of_weights: "not a safetensors file",
    missing_shard: "'model-00002-of-00003.safetensors'",
    shard_outside: "leads out of the folder",
    another_config: "97 × 64",
    too_few_layers: "layers.3",
    broken_config: "config.json",
    pytorch: "pytorch_model.bin",
}


@pytest.mark.parametrize("verb", ONE)
@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
def test_models_that_cannot_be_opened(cli: Cli, tmp_path: Path, verb: str, bad: Callable[[Path], Path]) -> None:
    path = bad(tmp_path / "m")
    before = files(tmp_path)
    rest = [str(path) if word == "SAME" else word for word in ONE[verb]]
    for kind in ([], ["--json"]):
        require_error(cli(verb, path, *rest, *kind), BAD[bad], str(path.name))
    assert files(tmp_path) == before


# ── calls that cannot be answered ──────────────────────────────────────────────────────────────────

CALLS: list[tuple[str, str]] = [
    # an address that matches nothing, with the nearest one
    ("show M layers.9.attn.q", "no layer 9; this model has layers 0 to 2"),
    ("show M layers.0.attn.w", "did you mean"),
    ("stats M embedd", "did you mean 'embed'"),
    ("list M layers.0.ffn[expert=1]", "no weight here has the axis expert"),
    ("edit M --zero layers.0.attn[head=4] --dry-run", "head goes from 0 to 3, not to 4"),
    ("edit M --zero name:model.nrom.weight --dry-run", "did you mean 'name:model.norm.weight'"),
    ("edit M --zero model.layers.0.mlp.act.weight --dry-run", "nothing in this model"),
    ("show M layers.*.attn.q", "names 3 weights"),
    ("show M embed[", "cannot read"),
    ('show M embed[token="w1"]', "no tokenizer.json"),
    # text without a tokenizer, ids outside the vocabulary
    ("run M hello", "no tokenizer.json, so text cannot be read; give token ids instead"),
    ("run M --ids 97", "97"),
    ("run M --ids -1", "-1"),
    ("run M --ids 1,x", "whole numbers"),
    ("run M --ids 99999999999999999999999", "vocabulary"),
    ("run M --ids ,", "whole numbers"),
    ("run M --ids 1,,2", "whole numbers"),
    ("run T w60", "60"),
    ("run M", "either a prompt, or token ids"),
    ("run M hello --ids 1", "either a prompt, or token ids"),
    ("run M --ids 1 -n 0", "0"),
    ("run M --ids 1 --temperature -1 -n 2", "temperature"),
    # options that would do nothing
    ("run M --ids 1 --temperature 0", "--temperature goes with -n N"),
    ("run M --ids 1 --top-k 4", "--top-k goes with -n N"),
    ("run M --ids 1 --top-p 0.5", "--top-p goes with -n N"),
    ("run M --ids 1 --seed 4", "--seed goes with -n N"),
    ("run M --ids 1 --stop 4", "--stop goes with -n N"),
    ("run M --ids 1 --ignore-eos", "--ignore-eos goes with -n N"),
    ("run M --ids 1 -n 2 --top 3", "--top is for the table"),
    ("run M --ids 1 -n 2 --csv --json", "--csv is for the table"),
    ("run M --ids 1 --csv --markdown", "choose one"),
    ("run M --ids 1 -n 2 --stop 4", "no text that a stop string could be in"),
    ("measure M M", "nothing to measure on"),
    ("measure M M --ids 1", "at least two tokens"),
    ("measure M M --ids 1,97", "97"),
    ("measure M M --text there/is/no.txt", "no such file"),
    ("measure M M --text hello", "no tokenizer.json"),
    ("measure N N --text hello", "n.safetensors: this model cannot be run: there is no config.json"),
    ("run L --ids 1", "put the config.json of the model beside it"),
    ("chat M hello", "no chat template"),
    ("measure M V --ids 1,2", "vocabularies of 97 and 90"),
    # what a trace needs
    ("trace M", "give one text"),
    ("trace M hello --ids 1", "give one text"),
    ("trace M hello", "no tokenizer.json"),
    ("trace M --text there/is/no.txt", "no such file"),
    ("trace M --text words", "words: no such file"),
    ("trace M --text M", "a folder, not a text file"),
    ("trace M --ids ,", "whole numbers"),
    ("trace M --ids 1 --decoder-ids 1", "no encoder"),
    ("trace M --ids 1 -c layers.0.attn.patern", "did you mean 'layers.0.attn.pattern'"),
    ("trace M --ids 1 -c layers.0.attn.q[head=1]", "leave out the index"),
    ("trace M --ids 1 --zero layers.0.attn.q[head=4]", "head, which goes from 0 to 3"),
    ("trace M --ids 1 --scale layers.0.out", "expected an address, = and a number"),
    ("trace M --ids 1 -o OUT", "say what goes into the file"),
    ("trace M --ids 1 --append", "--append goes with -o"),
    ("trace M --ids 1 -c norm -o OUT --append --force", "--append goes with -o"),
    ("trace M --ids 1 -c norm -o EXISTS", "exists already"),
    ("trace M --ids 1 -c norm -o EXISTS --force", "is not a trace"),
    ("trace M --ids 1 -c norm -o M/inside/x --append --zero layers.9", "no activation"),
    ("trace M --ids 1 -c norm -o EMPTY", "exists already"),
    ("trace C --ids 1", "only a config.json"),
    # what an edit needs
    ("edit M --zero norm", "nothing to do"),
    ("edit M --scale norm -o OUT", "expected an address, = and a number"),
    ("edit M --scale norm= -o OUT", "expected an address, = and a number"),
    ("edit M --scale =2 -o OUT", ""),
    ("edit M --scale norm=nan -o OUT", "not a finite number"),
    ("edit M --set norm=inf -o OUT", "not a finite number"),
    ("edit M --noise norm=-1 -o OUT", "not negative"),
    ("edit H --scale norm=1e6 -o OUT", "cannot be stored as F16"),
    ("edit H --scale norm=1e6 --ids 1,2", "cannot be stored as F16"),
    ("edit M --zero norm -o EXISTS", "exists already"),
    ("edit M --zero norm -o M", "exists already"),
    ("edit M --zero norm -o M/inside --force", "inside the model"),
    ("edit C --zero norm -o OUT", "only a config.json"),
    ("stats C", "only a config.json"),
    ("show C norm", "only a config.json"),
    ("run C --ids 1", "only a config.json or an index was opened; open the weights"),
    ("outliers C", "only a config.json"),
    ("vocabulary C embed[token=1]", "only a config.json"),
    ("circuits C", "only a config.json"),
    ("diff C M", "only a config.json"),
    # what only known families have
    ("stats M --csv --markdown", "choose one"),
    ("vocabulary M layers.0.ffn", "names neither one token, one neuron nor one head"),
    ("outliers M layers.0.ffn[neuron=3]", "looked for in whole weights"),
    ("outliers M layers.7", "layers"),
    ("vocabulary M norm", "names neither one token, one neuron nor one head"),
    ("vocabulary M embed[token=1:3]", "names neither one token, one neuron nor one head"),
    ("vocabulary M embed[token=1] --token 2", "this one with a token"),
    ("vocabulary M embed[token=97]", "token goes from 0 to 96"),
    ("vocabulary M layers.0.attn[head=1] --token 97", "rows from 0 to 96"),
    ("vocabulary M layers.0.attn[head=1] --token Paris", "no tokenizer.json"),
    ("vocabulary T layers.0.attn[head=1] --token 96", "rows from 0 to 49"),
    ("circuits M layers.0.ffn", "no attention head is named"),
    ("circuits M layers.0.attn[head=9]", "head goes from 0 to 3"),
    ("circuits M --top 0", "not in the range"),
    # calls that are not commands
    ("count", "Missing argument"),
    ("count M --colour", "No such option"),
    ("count M M", "unexpected extra argument"),
    ("weigh M", "No such command"),
    ("run M --ids 1 --top many", "many"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models and places for all calls: none may leave a trace."""
    tmp_path = tmp_path_factory.mktemp("places")
    (tmp_path / "exists").mkdir()
    (tmp_path / "exists" / "precious").write_text("kept")
    m = write(tmp_path / "m")
    return {
        "M": m,
        "C": m / "config.json",
        "T": tokenizer(write(tmp_path / "t", vocab_size=50), size=97),
        "H": write(tmp_path / "h", dtype="F16"),
        "V": write(tmp_path / "v", vocab_size=90),
        "OUT": tmp_path / "out",
        "EXISTS": tmp_path / "exists",
        "M/inside": m / "inside",
        "EMPTY": Path(),
        "L": write_file(tmp_path / "l" / "l.safetensors", weights(CONFIGS["llama"])),
        "N": write_file(tmp_path / "n.safetensors", {"x": np.ones(3)}),
        "M/inside/x": m / "inside" / "x",
    }


@pytest.mark.parametrize(("call", "says"), CALLS, ids=[call for call, _ in CALLS])
def test_calls_that_cannot_be_answered(cli: Cli, places: dict[str, Path], call: str, says: str) -> None:
    around = places["M"].parent
    before = files(around)
    require_error(cli(*(places.get(word, word) for word in call.split())), says)
    assert files(around) == before
    assert not [p for p in around.iterdir() if p.name.startswith(".")]


def test_an_empty_text(cli: Cli, places: dict[str, Path]) -> None:
    require_error(cli("measure", places["M"], places["M"], "--text", ""), "--text is empty")


@pytest.mark.parametrize("call", ["map U", "run U --ids 1", "measure U U --ids 1,2", "list U embed", "show U embed"])
def test_a_family_that_is_not_known(cli: Cli, tmp_path: Path, call: str) -> None:
    path = write(tmp_path / "u", model_type="unheard_of")
    require_error(cli(*(path if word == "U" else word for word in call.split())))


def test_names_with_brackets(cli: Cli, tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.safetensors", {"a[0]": np.ones(3)})
    assert cli("show", path, "name:a[0]").code == 0
    require_error(cli("show", path, "name:a[1]"), "no tensor in the files has this name")


def test_no_arguments_show_the_help(cli: Cli) -> None:
    done = cli()
    assert done.code in (0, 2)
    assert "Usage: weightkit" in done.out + done.err
    assert "Traceback" not in done.err


# ── in a process of its own ────────────────────────────────────────────────────────────────────────

IN_A_PROCESS = ["show M layers.9.attn.q", "run M hello", "edit M --zero norm -o EXISTS", "weigh M", "count nowhere"]


@pytest.mark.parametrize("call", IN_A_PROCESS)
def test_in_a_process(process: Cli, places: dict[str, Path], call: str) -> None:
    require_error(process(*(places.get(word, word) for word in call.split())))


def test_debug_shows_where(process: Cli, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = process("count", tmp_path / "nothing", WEIGHTKIT_DEBUG="1")
    assert "Traceback (most recent call last)" in done.err
    assert "FormatError" in done.err
    require_error(process("count", tmp_path / "nothing", WEIGHTKIT_DEBUG="0"))
    monkeypatch.setenv("WEIGHTKIT_DEBUG", "1")
    with pytest.raises(FormatError):
        cli("count", tmp_path / "nothing")


def test_a_file_that_shrinks_while_it_is_read(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weightkit.model import Model

    path = write(tmp_path / "m") / "model.safetensors"
    statistics = Model.statistics

    def shrink(self: Model, *args: object, **kwargs: object) -> object:
        path.write_bytes(path.read_bytes()[:-40_000])
        return statistics(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "statistics", shrink)
    require_error(cli("stats", tmp_path / "m"), "became shorter")


def test_no_memory(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weightkit.model import Model

    def full(self: Model) -> None:
        raise MemoryError

    monkeypatch.setattr(Model, "counts", full)
    require_error(cli("count", write(tmp_path / "m")), "not enough memory")
