"""Work in other processes: the same results to the bit, whatever happens to the processes."""

from __future__ import annotations

import inspect
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightkit as wk
from tests.by_hand import write_file
from tests.conftest import Cli
from tests.exactly import random
from tests.s3 import s3_folder
from tests.tiny import write
from weightkit import cluster, errors, parallel
from weightkit.errors import ClusterError, MissingError, PackingError, WeightkitError
from weightkit.surgery import shards

needs_dask = pytest.mark.skipif(not pytest.importorskip("importlib.util").find_spec("distributed"), reason="no Dask")

VERBS: dict[str, Callable[[wk.Model, wk.Model, Any], object]] = {
    "stats": lambda a, _, executor: a.statistics(executor=executor),
    "stats by head": lambda a, _, executor: a.statistics("layers.*.attn", by="head", executor=executor),
    "spectrum": lambda a, _, executor: a.spectrum(shuffle=7, executor=executor),
    "diff": lambda a, b, executor: wk.diff(a, b, executor=executor),
    "check": lambda a, _, executor: a.check(executor=executor),
}


class Pickling(Executor):
    """Does work here, from what a process elsewhere would be sent of it."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        raw = pickle.dumps((fn, arguments, named))
        self.sent.append(len(raw))
        fn, arguments, named = pickle.loads(raw)
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*arguments, **named))
        except Exception as error:
            done.set_exception(error)
        return done


@pytest.fixture(scope="module")
def workers() -> Iterator[Executor]:
    """Two Dask workers, each a process of its own."""
    with cluster.connect("local:2") as executor:
        yield executor


@pytest.fixture(scope="module")
def address(workers: Any) -> str:
    """Of the scheduler of these workers."""
    return str(workers._client.scheduler.address)


def pids(executor: Any) -> list[int]:
    return list(executor._client.run(os.getpid).values())


def pair(folder: Path, family: str) -> tuple[wk.Model, wk.Model]:
    """A model in two shards, and the same with some noise and a NaN."""
    a = wk.open(write(folder / family, family, shards=2, dtype="BF16"))
    b = wk.open(a.apply(wk.noise("layers.*.ffn.up", relative_std=0.1, seed=1)).save(folder / f"{family}-b"))
    hit: Any = b.registry["layers.0.ffn.up"].stored
    with open(hit.path, "r+b") as file:
        file.seek(hit.offset)
        file.write(b"\xc0\x7f")
    return b, a


# ── the same results ───────────────────────────────────────────────────────────────────────────────────


@needs_dask
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("verb", VERBS)
def test_workers_give_the_same_to_the_bit(tmp_path: Path, workers: Executor, family: str, verb: str) -> None:
    models = pair(tmp_path, family)
    assert repr(VERBS[verb](*models, workers)) == repr(VERBS[verb](*models, None))


@pytest.mark.parametrize("verb", VERBS)
def test_sums_do_not_depend_on_how_many_threads_blas_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # of the other process
    a = wk.open(write_file(tmp_path / "a.safetensors", {"w": random("F32", 90_000).reshape(300, 300)}))
    b = wk.open(write_file(tmp_path / "b.safetensors", {"w": random("F32", 90_000).reshape(300, 300) * np.float32(3)}))
    if "head" in verb:
        return
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        assert repr(VERBS[verb](a, b, executor)) == repr(VERBS[verb](a, b, None))


@needs_dask
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [None, "F16"])
@pytest.mark.parametrize("out", ["folder", "one.safetensors"])
def test_workers_write_the_same_files(
    tmp_path: Path, workers: Executor, family: str, dtype: str | None, out: str
) -> None:
    model, _ = pair(tmp_path, family)
    told: list[tuple[int, int]] = []
    for name, executor in (("here", None), ("there", workers)):
        place = tmp_path / name / out
        model.convert(place, dtype=dtype, shard_bytes=30_000, executor=executor, progress=lambda *n: told.append(n))
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert len(contents(tmp_path / "here")) > 3 or out != "folder"
    assert told[-1][0] == told[-1][1] > 0


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pieces_of_any_size_make_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wk.open(write(tmp_path / "m"))
    model.convert(tmp_path / "a.safetensors", dtype="F16")
    monkeypatch.setattr(shards, "PIECE", 1000)
    monkeypatch.setattr(shards, "BLOCK", 77)
    model.convert(tmp_path / "b.safetensors", dtype="F16")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize(
    "name", ["weights.npz", "weights.h5", "gguf/stories260K-Q8_0.gguf", "pt-zip/pytorch_model.bin"]
)
def test_other_formats_open_again_in_another_process(shared: Path, tmp_path: Path, name: str) -> None:
    path = shared / "models" / "stories260K-formats" / name
    if not path.exists():
        pytest.skip("is not there")
    model = wk.open(path)
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        assert repr(model.statistics(executor=executor)) == repr(model.statistics())
        model.convert(tmp_path / "there.safetensors", executor=executor)
    model.convert(tmp_path / "here.safetensors")
    assert (tmp_path / "there.safetensors").read_bytes() == (tmp_path / "here.safetensors").read_bytes()


@needs_dask
def test_the_command_line(tmp_path: Path, cli: Cli, address: str) -> None:
    pair(tmp_path, "llama")
    a, b = tmp_path / "llama", tmp_path / "llama-b"
    for command in (["stats", a, "--no-cache"], ["spectrum", a], ["diff", a, b], ["check", a]):
        here, there = cli(*command, "--json"), cli(*command, "--json", "--cluster", address)
        assert (there.code, there.json, there.err) == (here.code, here.json, here.err)
    for out, more in (("here", []), ("there", ["--cluster", address])):
        assert cli("convert", a, tmp_path / out / "m", "--dtype", "F16", *more).code == 0
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


@needs_dask
def test_processes_for_one_command(tmp_path: Path, process: Cli) -> None:
    path = write(tmp_path / "m")
    there = process("stats", path, "--json", "--cluster", "local:2", TMPDIR=str(tmp_path))
    assert (there.code, there.err) == (0, "")
    assert there.json == process("stats", path, "--json").json
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@needs_dask
def test_paths_are_where_the_command_is(
    tmp_path: Path, workers: Executor, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    write(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    model = wk.open("m")
    assert model.statistics(executor=workers) == model.statistics()
    model.convert("out", executor=workers)
    assert wk.diff(model, wk.open("out")).identical


@needs_dask
def test_workers_read_from_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "m", shards=3)
    with s3_folder(folder, monkeypatch) as url, cluster.connect("local:2") as executor:
        model, local = wk.open(url), wk.open(folder)
        for verb in ("stats", "spectrum", "diff"):
            assert repr(VERBS[verb](model, local, executor)) == repr(VERBS[verb](local, local, None))
        assert repr(model.check(executor=executor)) == repr(local.check())
        seen: Any = executor
        assert set(seen._client.run(counted, model.checkpoint.folder).values()) == {True}


def counted(folder: Path) -> bool:
    """Whether this process, which has no stand-ins, reads the files of a remote folder."""
    from weightkit import files

    return folder in files._LEARNED and files.is_elsewhere(folder / "model-00001-of-00003.safetensors")


# ── what is sent ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verb", VERBS)
def test_tasks_are_small(tmp_path: Path, verb: str) -> None:
    """They name files and places in them, and hold no numbers."""
    executor = Pickling()
    models = pair(tmp_path, "llama")
    assert repr(VERBS[verb](*models, executor)) == repr(VERBS[verb](*models, None))
    models[0].convert(tmp_path / "out", dtype="F32", executor=executor)
    assert max(executor.sent) < 1 << 14  # of a bundle of small tensors


def test_many_tasks_are_few_futures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "MOST_FUTURES", 10)
    monkeypatch.setattr(parallel, "AHEAD", 3)
    for count in (0, 1, 9, 10, 11, 101):
        executor = Pickling()
        found = parallel.in_order(abs, range(-count, 0), executor=executor)
        assert list(found) == list(range(count, 0, -1))
        assert len(executor.sent) <= 10


def test_tasks_that_nobody_waits_for_are_dropped() -> None:
    class Late(Executor):
        futures: list[Future[Any]] = []

        def submit(self, *_: Any, **__: Any) -> Future[Any]:
            self.futures.append(Future())
            if len(self.futures) == 3:
                self.futures[0].set_exception(ValueError("no"))
            return self.futures[-1]

    executor = Late()
    with pytest.raises(ValueError, match="no"):
        next(parallel.in_order(abs, [1, 2, 3], executor=executor))
    assert [future.cancelled() for future in executor.futures[1:]] == [True, True]


def test_every_error_comes_back_as_it_was() -> None:
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, WeightkitError):
            error = kind("a", "b") if kind is PackingError else kind("what: is wrong")
            again = pickle.loads(pickle.dumps(error))
            assert (type(again), str(again)) == (kind, str(error)), name


# ── processes that die ─────────────────────────────────────────────────────────────────────────────────


@needs_dask
def test_the_work_of_a_dead_worker_is_done_again(tmp_path: Path) -> None:
    tensors = {f"t{i}": random("F32", 3000).reshape(30, 100) for i in range(300)}
    model = wk.open(write_file(tmp_path / "m.safetensors", tensors))
    want = model.statistics()
    killed: list[int] = []
    with cluster.connect("local:2") as executor:

        def kill(_done: int, _all: int) -> None:
            if not killed:
                killed.append(pids(executor)[0])
                os.kill(killed[0], signal.SIGKILL)

        assert model.statistics(executor=executor, progress=kill) == want
        killed.clear()
        model.convert(tmp_path / "there", executor=executor, progress=kill)
        assert killed
    model.convert(tmp_path / "here")
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def die(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@needs_dask
def test_a_task_that_kills_every_worker_is_one_clear_error() -> None:
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        pytest.raises(ClusterError, match="died of the same task"),
        cluster.connect("local:1") as executor,
    ):
        list(parallel.in_order(die, [0], executor=executor))


def test_a_pool_that_breaks_is_one_clear_error() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as executor, pytest.raises(ClusterError, match="are gone"):
        list(parallel.in_order(die, [0], executor=executor))


# ── what goes wrong ────────────────────────────────────────────────────────────────────────────────────


def fails(done: Any, *said: str) -> None:
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1
    for text in said:
        assert text in done.err


@pytest.mark.parametrize(
    "where", ["", "local", "local:", "local:0", "local:1000000", "127.0.0.1:8786", "tcp://x", "http://x:1"]
)
def test_no_place_to_work(cli: Cli, where: str) -> None:
    fails(cli("stats", "demo", "--cluster", where), "tcp://host:port", "local:N")


def test_without_dask(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    fails(cli("stats", "demo", "--cluster", "local:2"), "weightkit[cluster]")


@needs_dask
def test_no_scheduler(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        fails(cli("diff", "demo", "demo", "--cluster", address), address, "no Dask scheduler")
        silent.listen()
        fails(cli("diff", "demo", "demo", "--cluster", address), address, "no Dask scheduler")


@needs_dask
@pytest.mark.parametrize(("module", "said"), [("distributed", "its scheduler is"), ("numpy", "has numpy")])
def test_other_versions(cli: Cli, address: str, monkeypatch: pytest.MonkeyPatch, module: str, said: str) -> None:
    monkeypatch.setattr(f"{module}.__version__", "1.2.3")
    fails(cli("stats", "demo", "--cluster", address), said, "1.2.3")


@needs_dask
@pytest.mark.parametrize("verb", ["stats", "spectrum", "diff", "check"])
def test_workers_that_do_not_see_the_file(
    tmp_path: Path, workers: Executor, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr("weightkit.analysis.check._reference", lambda _: [])  # which would not see it from here
    model = wk.open(write(tmp_path / "m"))
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(MissingError, match="workers need every file under the path"):
        VERBS[verb](model, wk.open("demo") if verb != "diff" else wk.open(write(tmp_path / "n", seed=1)), workers)


def test_another_file_under_the_same_path_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_file(tmp_path / "m.safetensors", {"w": random("F32")})
    work = parallel._Batch(len, [wk.open(path).select()], ("elsewhere", 1), ())
    again = pickle.loads(pickle.dumps(work))
    assert again() == [1]
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(MissingError, match="bytes, not"):
        again()


def test_a_single_file_of_another_format_is_written_by_one_process(tmp_path: Path, cli: Cli) -> None:
    done = cli("convert", "demo", tmp_path / "m.gguf", "--cluster", "local:2")
    fails(done, "is written by one process")


@needs_dask
def test_an_error_in_a_worker_is_an_error_here(tmp_path: Path, cli: Cli, address: str) -> None:
    model = tmp_path / "m.safetensors"
    write_file(model, {"w": np.full((4, 4), 1e30, np.float32)})
    done = cli("convert", model, tmp_path / "out", "--dtype", "F8_E4M3", "--cluster", address)
    want = cli("convert", model, tmp_path / "out", "--dtype", "F8_E4M3")
    assert (done.code, done.err) == (want.code, want.err)
    assert list(tmp_path.iterdir()) == [model]


@needs_dask
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    path = write_file(tmp_path / "m.safetensors", {f"t{i}": random("F32", 400) for i in range(40_000)})
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    command = [sys.executable, "-c", "from weightkit.cli.app import main; main()", "stats", str(path), "--no-cache"]
    running = subprocess.Popen(
        [*command, "--cluster", "local:2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(scratch)},
        start_new_session=True,
    )
    while not list(scratch.rglob("worker-*")):
        time.sleep(0.05)
    time.sleep(1)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to all of them
    out, err = running.communicate()
    assert (running.returncode, out, err) == (130, "", "interrupted\n")
    assert not list(scratch.iterdir())
    assert ended(running.pid)


def ended(group: int) -> bool:
    """Whether all processes of a group come to their end."""
    for _ in range(600):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False
