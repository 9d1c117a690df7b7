"""The cache of summaries: a second look reads nothing, a changed file is read, a useless folder is no error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import weightkit as wk
from tests.by_hand import Array, write_file
from weightkit.analysis import reading, remembered
from weightkit.analysis.statistics import Statistics
from weightkit.weight import Selection


@pytest.fixture(params=["<f4", "<f2"])
def path(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is large enough."""
    monkeypatch.setattr(remembered, "LEAST", 1000)
    array = np.random.default_rng(0).standard_normal((64, 65)).astype(request.param)
    return write_file(tmp_path / "x.safetensors", {"x": array, "small": array[0]})


def look(path: Path) -> list[Statistics]:
    return wk.open(path).statistics(cache=True)


def no_reading(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is read from now on, by name."""
    seen: list[str] = []
    stored = reading.stored

    def seeing(selection: Selection) -> Iterator[Array]:
        seen.append(selection.name)
        return stored(selection)

    monkeypatch.setattr(reading, "stored", seeing)
    return seen


def test_a_second_look_reads_small_tensors_only(path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    want = wk.open(path).statistics()
    assert not any(cache.iterdir())
    assert look(path) == want
    seen = no_reading(monkeypatch)
    assert look(path) == want
    assert set(seen) == {"small"}


def test_a_changed_file_is_read(path: Path) -> None:
    before = look(path)
    raw, status = bytearray(path.read_bytes()), path.stat()
    raw[-400:-300] = bytes(100)
    path.write_bytes(raw)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert look(path) == wk.open(path).statistics() != before


@pytest.mark.parametrize("harm", ["cut", "changed", "emptied"])
def test_broken_files_are_made_again(path: Path, cache: Path, harm: str) -> None:
    want = look(path)
    kept = [file for file in cache.rglob("*") if file.is_file()]
    assert kept
    for file in kept:
        raw = file.read_bytes()
        file.write_bytes({"cut": raw[:-5], "changed": raw[:-1] + bytes([raw[-1] ^ 1]), "emptied": b""}[harm])
    assert look(path) == want


def test_a_folder_that_cannot_be_written_is_no_error(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "file"))
    assert look(path) == wk.open(path).statistics()


def test_the_oldest_files_make_room(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    want = look(path)
    kept = [file for file in cache.rglob("*") if file.is_file()]
    monkeypatch.setattr(remembered, "_written", {})
    monkeypatch.setattr(remembered, "MOST", 3000)
    folder = kept[0].parent
    old = [folder / f"old{i}" for i in range(4)]
    for i, file in enumerate(old):
        file.write_bytes(bytes(1000))
        os.utime(file, (i, i))
    remembered._make_room(cache / "weightkit", 1)
    left = {file for file in cache.rglob("*") if file.is_file()}
    size = sum(file.stat().st_size for file in left)
    assert size <= 3000
    assert old[0] not in left
    assert look(path) == want
    monkeypatch.setattr(remembered, "MOST", 0)
    for file in left:
        file.unlink()
    assert look(path) == want  # nothing is kept, which is no error
    assert not [file for file in cache.rglob("*") if file.is_file()]


def test_a_full_disk_is_no_error(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert look(path) == wk.open(path).statistics()
    assert not [file for file in cache.rglob("*") if file.is_file()]
