"""Saving that fails: at every call in turn, by kill -9, on a full disk. What was there stays whole."""

from __future__ import annotations

import builtins
import errno
import functools
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import weightkit as wk
from tests.by_hand import files
from tests.conftest import Cli
from tests.tiny import write
from weightkit.errors import SaveError
from weightkit.surgery import place as place_module
from weightkit.surgery import save as save_module

CALLS: list[tuple[Any, str]] = [
    (os, "fsync"),
    (os, "rename"),
    (os, "replace"),
    (os, "mkdir"),
    (os, "chmod"),
    (shutil, "copyfile"),
    (tempfile, "mkdtemp"),
    (save_module, "open"),
]
ERRNOS = [errno.ENOSPC, errno.EIO, errno.EACCES]


class Breaking:
    """A function that fails the nth time it is called, or from then on."""

    def __init__(self, function: Callable[..., Any], at: int, error: BaseException, *, for_good: bool = False) -> None:
        self.function, self.at, self.error, self.for_good = function, at, error, for_good
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.at or (self.for_good and self.calls > self.at):
            raise self.error
        return self.function(*args, **kwargs)


def break_call(
    monkeypatch: pytest.MonkeyPatch, place: Any, name: str, at: int, error: BaseException, **how: Any
) -> Breaking:
    breaking = Breaking(getattr(place, name, None) or getattr(builtins, name), at, error, **how)
    monkeypatch.setattr(place, name, breaking, raising=False)
    return breaking


class Case:
    """A model, an edit, a destination that is there already or not."""

    def __init__(self, folder: Path, *, exists: bool, single: bool) -> None:
        self.folder = folder
        self.source = write(folder / "a", shards=1 if single else 3)
        self.out = folder / ("out.safetensors" if single else "out")
        self.force = exists
        model = wk.open(self.source)
        if exists:
            model.apply(wk.set("norm", 7)).save(self.out)
        self.edited = model.apply(wk.zero("layers.1.attn[head=1]"), wk.scale("embed", 2))
        self.before = files(folder)

    def save(self) -> None:
        self.edited.save(self.out, force=self.force)

    def failure(self) -> str | None:
        """Save; what the error says, or None where there is none."""
        try:
            self.save()
        except SaveError as error:
            return str(error)
        return None

    def again(self) -> None:
        """Take a saved destination away, unless there is one to be replaced."""
        if not self.force:
            shutil.rmtree(self.out) if self.out.is_dir() else self.out.unlink()
        self.before = files(self.folder)

    def require_saved(self) -> None:
        assert wk.diff(self.edited, wk.open(self.out)).identical
        assert not [p for p in self.folder.iterdir() if p.name.endswith(".tmp")]

    def require_untouched(self) -> None:
        assert files(self.folder) == self.before
        assert not [p for p in self.folder.iterdir() if p.name.endswith(".tmp")]


@pytest.fixture(params=["new folder", "old folder", "new file", "old file"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(tmp_path, exists=request.param.startswith("old"), single=request.param.endswith("file"))


@pytest.mark.parametrize(("place", "name"), CALLS, ids=[name for _, name in CALLS])
def test_each_call_fails_in_turn(case: Case, monkeypatch: pytest.MonkeyPatch, place: Any, name: str) -> None:
    for at, number in zip(itertools.count(1), itertools.cycle(ERRNOS), strict=False):
        with monkeypatch.context() as patch:
            breaking = break_call(patch, place, name, at, OSError(number, os.strerror(number)))
            error = case.failure()
        if error is not None:
            assert os.strerror(number) in error
            assert "\n" not in error
            case.require_untouched()
            continue
        case.require_saved()
        if breaking.calls < at:
            return  # it was called less often than that, so it never failed
        # Not to make a folder that is there, or not to sync the very last rename, loses nothing.
        assert name == "mkdir" or (name == "fsync" and breaking.calls == at)
        case.again()


@pytest.mark.parametrize("number", ERRNOS)
def test_each_write_fails_in_turn(case: Case, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    for at in itertools.count(1):
        writes: list[int] = []

        def write(file: Any, data: Any, at: int = at, writes: list[int] = writes) -> Any:
            writes.append(len(data))
            if len(writes) == at:
                raise OSError(number, os.strerror(number))
            return file.write(data)

        with monkeypatch.context() as patch:
            patch.setattr(save_module, "open", functools.partial(_Proxy, write), raising=False)
            if case.failure() is None:
                assert at > len(writes) >= 1
                return
        case.require_untouched()


class _Proxy:
    """An open file whose `write` is another."""

    def __init__(self, write: Callable[[Any, Any], Any], path: Path, mode: str) -> None:
        self.file, self._write = builtins.open(path, mode), write  # noqa: SIM115 (closed in __exit__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> Any:
        return self._write(self.file, data)

    def __enter__(self) -> _Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP])
def test_where_links_cannot_be_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    case = Case(tmp_path, exists=False, single=False)
    break_call(monkeypatch, os, "link", 1, OSError(number, os.strerror(number)), for_good=True)
    case.save()
    assert wk.diff(case.edited, wk.open(case.out)).identical
    shards = [p.name for p in case.out.glob("*.safetensors")]
    assert not any(os.path.samefile(case.source / name, case.out / name) for name in shards)


def test_in_place_where_links_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, exists=True, single=False)
    (case.out / "original").mkdir()
    (case.out / "original" / "notes.bin").write_bytes(b"kept")
    edited = wk.open(case.out).apply(wk.zero("embed"))
    before = files(case.out)
    break_call(monkeypatch, os, "link", 1, OSError(errno.EPERM, "no links here"), for_good=True)
    try:
        edited.save(case.out, force=True)
    except SaveError:
        assert files(case.out) == before
    else:
        assert files(case.out).keys() == before.keys()
        assert wk.diff(edited, wk.open(case.out)).identical


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()], ids=["ctrl-c", "no memory"])
def test_interrupted_between_the_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException
) -> None:
    monkeypatch.setattr(place_module, "_exchange", lambda *_: False)  # a system that cannot do it in one step
    case = Case(tmp_path, exists=True, single=False)
    breaking = break_call(monkeypatch, os, "rename", at, error)
    try:
        case.save()
    except type(error):
        case.require_untouched()
    else:
        assert breaking.calls < at


def test_old_that_cannot_be_put_back_is_not_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place_module, "_exchange", lambda *_: False)
    case = Case(tmp_path, exists=True, single=False)
    old = files(case.out)
    break_call(monkeypatch, os, "rename", 2, OSError(errno.EIO, "I/O error"), for_good=True)
    with pytest.raises(SaveError) as raised:
        case.save()
    homes = [p for p in tmp_path.rglob("*") if p.is_dir() and p != case.source and files(p) == old]
    assert homes, "the old destination is gone"
    assert "the destination is as it was" not in str(raised.value) or case.out in homes


KILLED = """
import os, signal, sys
import weightkit as wk
source, out, at, force = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "True"
edited = wk.open(source).apply(wk.zero("layers.1.attn[head=1]"), wk.scale("embed", 2))
count = 0
def hook(event, args):
    global count
    if event.split(".")[0] in ("open", "os", "shutil", "tempfile"):
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
edited.save(out, force=force)
print(count)
"""


def killed(case: Case, at: int) -> subprocess.CompletedProcess[str]:
    """Save in a process that ends itself with kill -9 just before its nth call that touches files."""
    arguments = [str(case.source), str(case.out), str(at), str(case.force)]
    return subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("exists", [False, True], ids=["new", "old"])
def test_kill_9(tmp_path: Path, exists: bool) -> None:
    case = Case(tmp_path, exists=exists, single=False)
    want = files(case.edited.save(tmp_path / "want"))
    old = files(case.out)
    rehearsal = Case(tmp_path / "rehearsal", exists=exists, single=False)
    moments = int(killed(rehearsal, 10**9).stdout)
    chosen = [*random.Random(7).sample(range(1, moments + 1), 4), moments]
    for at in chosen:
        done = killed(case, at)
        assert done.returncode == -signal.SIGKILL
        assert files(case.source) == files(rehearsal.source)
        assert files(case.out) in (old, want)  # without an old one, `old` is nothing
        if files(case.out) != old:
            shutil.rmtree(case.out, ignore_errors=True)
            case = Case(tmp_path / f"again{at}", exists=exists, single=False)


# ── for real ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small file system of its own, where that is allowed."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no file system can be mounted here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # files that were compared may still be mapped


@pytest.mark.parametrize("kilobytes", [40, 120, 200])
def test_full_disk(tmp_path: Path, disk: Callable[[str], Path], cli: Cli, kilobytes: int) -> None:
    a, small = write(tmp_path / "a", shards=3), disk(f"size={kilobytes}k")
    done = cli("edit", a, "--zero", "layers.*.attn", "-o", small / "out")
    assert done.code == 2
    assert done.err == f"error: {small / 'out'}: not written: No space left on device; the destination is as it was\n"
    assert list(small.iterdir()) == []


def test_another_file_system(tmp_path: Path, disk: Callable[[str], Path]) -> None:
    a, other = write(tmp_path / "a", shards=3), disk("size=2m")
    edited = wk.open(a).apply(wk.zero("norm"))
    assert wk.diff(edited, wk.open(edited.save(other / "out"))).identical


def test_readonly_file_system(tmp_path: Path, disk: Callable[[str], Path], cli: Cli) -> None:
    a, other = write(tmp_path / "a"), disk("size=2m,ro")
    for out in (other / "out", other / "deep" / "out"):
        done = cli("edit", a, "--zero", "norm", "-o", out)
        assert (done.code, len(done.err.splitlines())) == (2, 1)
        assert done.err.startswith(f"error: {out}: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_readonly_parent(tmp_path: Path) -> None:
    a = write(tmp_path / "a")
    (tmp_path / "locked").mkdir(mode=0o555)
    for out in ("locked/out", "locked/deep/out"):
        with pytest.raises(SaveError):
            wk.open(a).apply(wk.zero("norm")).save(tmp_path / out)
    assert list((tmp_path / "locked").iterdir()) == []
