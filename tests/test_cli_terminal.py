"""The command line on a terminal, in a pipe that closes, under Ctrl-C, and with hostile names."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightkit as wk
from tests.by_hand import Array, f32, tokenizer, write_file, write_holes
from tests.conftest import Cli
from tests.tiny import CONFIGS, weights, write
from weightkit.cli import output

WIDTH = 80
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# What a terminal acts on: control characters but line feed, and those that turn the direction of text.
ACTS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
MAIN = "from weightkit.cli.app import main; main()"
ALL = """
import json, sys
from weightkit.cli.app import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit:
        print("=====", flush=True)
"""


def on_a_terminal(commands: Sequence[Sequence[object]], **environment: str) -> list[list[str]]:
    """The lines that each command prints where stdout is a terminal of 80 columns."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, WIDTH, 0, 0))
    words = json.dumps([[str(word) for word in command] for command in commands])
    process = subprocess.Popen(
        [sys.executable, "-c", ALL, words],
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.DEVNULL,
        env={k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")} | {"TERM": "xterm"} | environment,
    )
    os.close(terminal)
    raw = b""
    while True:
        try:
            part = os.read(controller, 1 << 16)
        except OSError:  # the other end is closed
            break
        raw += part
        if not part:
            break
    os.close(controller)
    assert process.wait() == 0
    text = raw.decode().replace("\r\n", "\n")
    return [part.strip("\n").split("\n") for part in text.split("=====\n")[:-1]]


def plain(lines: Sequence[str]) -> list[str]:
    return [COLOUR.sub("", line) for line in lines]


def commands(a: object, b: object) -> dict[str, list[object]]:
    return {
        "map": ["map", a],
        "count": ["count", a],
        "list": ["list", a],
        "list a part": ["list", a, "layers.*.attn[head=1:3]"],
        "show": ["show", a, "layers.0.attn.q"],
        "stats": ["stats", a],
        "spectrum": ["spectrum", a],
        "check": ["check", a],
        "diff": ["diff", a, b],
        "edit": ["edit", a, "--zero", "layers.*.attn[head=1]", "--scale", "layers.*.attn.q=0.5", "--dry-run"],
        "run": ["run", a, "--ids", "1,2"],
        "trace": ["trace", a, "--ids", "1,2"],
        "measure": ["measure", a, b, "--ids", "1,2,3"],
        "measure prose": ["measure", a, b, "--prompt", " ".join(f"w{i}" for i in range(40)), "-n", "40"],
        "no error": ["diff", a, a],
    }


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_tables_fit_a_terminal(tmp_path: Path, family: str) -> None:
    a, b = (tokenizer(write(tmp_path / str(i), family, seed=i, shards=3)) for i in range(2))
    wanted = commands(a, b)
    for name, lines in zip(wanted, on_a_terminal(list(wanted.values())), strict=True):
        assert len(lines) >= 1
        assert any(COLOUR.search(line) for line in lines), name
        assert not ACTS.search("".join(plain(lines))), name
        assert [line for line in plain(lines) if len(line) > WIDTH] == [], name


def test_small_numbers_fit_a_terminal(tmp_path: Path) -> None:
    tensors = {name: array * np.float32(1.2345e-5) for name, array in weights(CONFIGS["llama"]).items()}
    tensors["model.norm.weight"][:5] = np.nan
    a = write(tmp_path / "a", tensors=tensors)
    b = write(tmp_path / "b", tensors={name: array * np.float32(-1.001) for name, array in tensors.items()})
    for lines in on_a_terminal([["show", a, "layers.0.attn.q"], ["stats", a], ["diff", a, b], ["check", a]]):
        assert [line for line in plain(lines) if len(line) > WIDTH] == []


LARGE: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "hidden_size": 7168,
        "intermediate_size": 18_432,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "vocab_size": 129_280,
    },
    "gemma3": {
        "text_config": {"hidden_size": 2560, "intermediate_size": 10_240, "num_hidden_layers": 34},
        "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27},
    },
}


@pytest.mark.parametrize("kind", LARGE)
def test_large_models_fit_a_terminal(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **LARGE[kind]}))
    verbs = ("map", "count", "count --explain")
    printed = on_a_terminal([[*verb.split(), tmp_path / "config.json"] for verb in verbs])
    lines = dict(zip(verbs, map(plain, printed), strict=True))
    assert [line for verb in verbs for line in lines[verb] if len(line) > WIDTH] == []
    words = " ".join("\n".join(lines["count"]).split())
    assert "no files here; – in the config's type" in words
    assert "by layer outside layers: " in words
    assert {"deepseek_v3": "3 to 60: 11,", "gemma3": "vision.0 to 26: 15,"}[kind] in words
    assert "× residual" in "\n".join(lines["count --explain"])  # what a size is a size of is never cut


def test_columns_and_no_color(tmp_path: Path) -> None:
    a = write(tmp_path)
    (narrow,) = on_a_terminal([["list", a]], COLUMNS="77")
    assert max(map(len, plain(narrow))) <= 77
    (grey,) = on_a_terminal([["count", a]], NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", "".join(grey))  # bold and dim may stay


# ── names from strangers ───────────────────────────────────────────────────────────────────────────

HOSTILE = [
    "\x1b[2J\x1b]0;owned\x07",
    "two\nlines",
    "back\b\b\bspace\rreturn\ttab",
    "\x9b31mC1",
    "[bold red]rich[/] [link=file:///etc/passwd]x[/link]",
    "[/unopened]",
    ":skull: \\[x]",
    "right\u202eto left\u2066",
    "nul\0 and del\x7f",
    "line\u2028separator",
    "long" * 2000,
]


def hostile(path: Path, value: float = 1.0) -> Path:
    tensors: dict[str, Array] = {name: np.full((2, 3), value, np.float32) for name in HOSTILE}
    if value == 1:
        tensors["\x1b[31monly here"] = f32(np.nan)
    return write_file(path, tensors, {"\x1b[2J": "\x1b[2J"})


@pytest.fixture
def strangers(tmp_path: Path) -> tuple[Path, Path]:
    return hostile(tmp_path / "a.safetensors"), hostile(tmp_path / "b.safetensors", 2.0)


def verbs_with_names(a: Path, b: Path) -> dict[str, list[object]]:
    found: dict[str, list[object]] = {
        "list": ["list", a],
        "stats": ["stats", a],
        "spectrum": ["spectrum", a],
        "count": ["count", a],
        "check": ["check", a],
        "diff": ["diff", a, b],
        "edit": ["edit", a, "--zero", "name:*", "--dry-run"],
    }
    return found | {f"show {i}": ["show", a, f"name:{name}"] for i, name in enumerate(HOSTILE) if "\0" not in name}


def test_hostile_names_in_a_pipe(cli: Cli, strangers: tuple[Path, Path]) -> None:
    for name, command in verbs_with_names(*strangers).items():
        done = cli(*command)
        assert done.code == (1 if name in ("diff", "check") else 0), done.err
        assert not ACTS.search(done.out + done.err), name
    listed = cli("list", strangers[0]).out.splitlines()
    assert len(listed) == len(HOSTILE) + 2  # one row each: a name cannot forge another
    assert any("[bold red]rich[/]" in line for line in listed)
    assert any(r"\x1b[2J" in line for line in listed)
    assert not ACTS.search(cli("list", strangers[0], "--markdown").out)


def test_hostile_names_on_a_terminal(strangers: tuple[Path, Path]) -> None:
    wanted = verbs_with_names(*strangers)
    for name, lines in zip(wanted, on_a_terminal(list(wanted.values())), strict=True):
        assert not ACTS.search("".join(plain(lines))), name
        if not name.startswith("show"):  # which shows the whole of the one name
            assert [line for line in plain(lines) if len(line) > WIDTH] == [], name
        if name == "list":
            assert len(lines) == len(HOSTILE) + 2


def test_hostile_names_in_json(cli: Cli, strangers: tuple[Path, Path]) -> None:
    for name, command in verbs_with_names(*strangers).items():
        done = cli(*command, "--json")
        assert not ACTS.search(done.out), name
        assert done.json["schema"].startswith("weightkit.")
    assert [row["name"] for row in cli("list", strangers[0], "--json").json["rows"]][:-1] == HOSTILE


@pytest.mark.parametrize("word", [*HOSTILE[:-1], "x" * 3000])
def test_hostile_words_in_errors(cli: Cli, tmp_path: Path, word: str) -> None:
    model = write(tmp_path / "m")
    word = word.replace("\0", "")  # which no command line can hold
    for command in (
        ["count", tmp_path / word],
        ["show", model, word],
        ["show", model, f"name:{word}"],
        ["edit", model, "--scale", f"{word}=x", "--dry-run"],
        ["edit", model, "--zero", f"embed[token={word}]", "--dry-run"],
        ["run", model, "--ids", word],
        [word, model],
        ["count", model, f"--{word}"],
    ):
        done = cli(*command)
        assert (done.code, done.out) == (2, "")
        assert re.fullmatch(r"error: [^\n]+\n", done.err)
        assert not ACTS.search(done.err)


def test_hostile_words_in_files(cli: Cli, tmp_path: Path) -> None:
    evil = "\x1b[2J\n\u202e"
    changes: list[dict[str, Any]] = [{"model_type": evil}, {"hidden_act": evil}, {"rope_scaling": {"rope_type": evil}}]
    for i, change in enumerate(changes):
        done = cli("count", write(tmp_path / str(i), **change))
        assert done.code == 2
        assert re.fullmatch(r"error: [^\n]+\n", done.err)
        assert not ACTS.search(done.err)


def test_hostile_text_from_a_tokenizer(cli: Cli, tmp_path: Path) -> None:
    folder = tokenizer(write(tmp_path))
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"w', r'"\u001b[2J\u202ew'))
    for rest in ([], ["-n", "5"], ["--json"]):
        done = cli("run", folder, "--ids", "1,2", *rest)
        assert (done.code, done.err) == (0, "")
        assert not ACTS.search(done.out)


# ── pipes and signals ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["", "--json", "--csv"])
def test_a_pipe_that_closes(tmp_path: Path, kind: str) -> None:
    tensors = {f"a.rather.long.name.{i}": np.ones(1, np.int8) for i in range(5000)}
    path = write_file(tmp_path / "x.safetensors", tensors)
    write_config = f"{sys.executable} -c '{MAIN}' list {path} {kind} | head -1"
    done = subprocess.run(["bash", "-c", write_config], capture_output=True, text=True, check=False)
    assert len(done.stdout.splitlines()) == 1
    assert [line for line in done.stderr.splitlines() if not line.startswith("note: ")] == []


def test_what_became_of_the_output_is_said(tmp_path: Path) -> None:
    """By the exit code of what writes into a pipe that closes, or has no place to write to."""
    path = write_file(tmp_path / "x.safetensors", {f"a.rather.long.name.{i}": np.ones(1, np.int8) for i in range(5000)})
    command = f"{sys.executable} -c '{MAIN}' list {path}"
    for rest, code, says in (
        (" | head -1; exit ${PIPESTATUS[0]}", 141, "address"),
        (" >&-", 2, "error: stdout is closed"),
        (" >&- 2>&-", 2, ""),
        (" 2>&- | tail -1; exit ${PIPESTATUS[0]}", 0, "name.4999"),
    ):
        done = subprocess.run(["bash", "-c", command + rest], capture_output=True, text=True, check=False)
        assert (done.returncode, says in done.stdout + done.stderr) == (code, True), (rest, done)
        assert "report it" not in done.stderr


def test_a_pipe_that_is_closed_before(tmp_path: Path) -> None:
    """Little output, which is written only when all is done."""
    command = f"{sys.executable} -c '{MAIN}' count {write(tmp_path)} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", "")


def test_interrupted_while_it_loads(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    search = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "weightkit", "--version"],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def interrupted(arguments: list[object], ready: Path | None = None) -> subprocess.Popen[str]:
    """A command that got Ctrl-C while it worked."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 20
    while ready and not list(ready.glob(".out.*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3 if ready else 1.5)
    assert process.poll() is None, "it was done before it could be interrupted"
    process.send_signal(signal.SIGINT)
    return process


@pytest.mark.parametrize("verb", ["stats", "spectrum", "outliers"])
def test_ctrl_c_in_one_huge_tensor(tmp_path: Path, verb: str) -> None:
    path = write_holes(tmp_path / "x.safetensors", {"x": (1 << 17, 1 << 17)}, "F32", 4)  # minutes of work
    process = interrupted([verb, path])
    try:
        out, err = process.communicate(timeout=5)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == ""
    assert [line for line in err.splitlines() if not line.startswith("note: ")] == ["interrupted"]


def test_ctrl_c_while_saving_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = write_holes(tmp_path / "a" / "x.safetensors", {"x": (4000, 10_000)}, "F32", 4)
    process = interrupted(["edit", path, "--noise", "name:x=0", "-o", tmp_path / "out"], ready=tmp_path)
    try:
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def talker(folder: Path) -> Path:
    tokenizer(write(folder))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} w9 {% endfor %}")
    return folder


def conversation(folder: Path, tokens: int) -> tuple[subprocess.Popen[bytes], int]:
    """`weightkit chat` on a terminal of its own, and the other end of that."""
    controller, terminal = pty.openpty()
    command = [sys.executable, "-c", MAIN, "chat", str(folder), "-n", str(tokens)]
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(terminal)
    return process, controller


def test_ctrl_c_ends_an_answer_and_not_the_conversation(tmp_path: Path) -> None:
    process, controller = conversation(talker(tmp_path), 100_000)
    shown = b""
    for awaited, typed in ((b"> ", b"w1\n"), (b" w", b"\x03"), (b"> ", b"w2\n"), (b" w", b"\x03"), (b"> ", b"\x04")):
        new = b""
        while not new.endswith(b"> ") if awaited == b"> " else new.count(awaited) < 3:
            new += os.read(controller, 1 << 16)
        os.write(controller, typed)
        shown += new
    assert (process.communicate()[1], process.returncode) == (b"", 0)
    assert shown.count(b"> ") == 3
    os.close(controller)


@pytest.mark.parametrize("end", [b"\x04", b"\x03"], ids=["Ctrl-D", "Ctrl-C"])
def test_a_conversation(tmp_path: Path, end: bytes) -> None:
    folder = talker(tmp_path)
    messages = [{"role": "user", "content": "w1"}]
    for said in ("w2", None):
        messages.append({"role": "assistant", "content": wk.open(folder).chat(messages, 3).whole()})
        messages += [{"role": "user", "content": said}] if said else []
    process, controller = conversation(folder, 3)
    shown = b""
    for typed in (b"w1\n", b"  \n", b"w2\n", end):  # nothing is not a message
        while not shown.endswith(b"> "):
            shown += os.read(controller, 1 << 16)
        time.sleep(0.2 if typed == b"\x03" else 0)  # a signal between the question and the reading would be lost
        os.write(controller, typed)
        shown += typed
    assert (process.communicate()[1], process.returncode) == (b"", 0)
    lines = shown.decode().replace("\r", "").split("\n")
    for message in messages:
        assert any(line.endswith(message["content"]) for line in lines)
    os.close(controller)


@pytest.mark.parametrize(
    ("unit", "said"),
    [("", "matrix 200 of 1,000, 50/s, 16 s left"), ("bytes", "matrix 200 B of 1.00 kB, 50 B/s, 16 s left")],
)
def test_progress_has_a_rate_and_a_time_and_goes_away(monkeypatch: pytest.MonkeyPatch, unit: str, said: str) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, clock = Terminal(), iter([0.0, 0.9, 4.0])
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with output.progress("matrix", unit) as report:
        assert report is not None
        report(100, 1000)  # too early
        report(200, 1000)
    assert terminal.getvalue() == f"\r\033[K{said}\r\033[K"
