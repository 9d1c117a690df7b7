"""Checkpoints behind URLs: by a server on this machine that counts what is asked of it."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightkit as wk
from tests.conftest import Cli
from tests.s3 import s3_folder
from tests.tiny import write
from weightkit import files
from weightkit.errors import FormatError

pytest.importorskip("aiohttp")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files with ranges, which the one of the standard library does not have."""

    sent: list[tuple[str, int]]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.stat().st_size
        start, stop, code = 0, data, 200
        if (wanted := self.headers.get("Range")) and body:
            first, last = wanted.removeprefix("bytes=").split("-")
            start, stop, code = int(first), min(int(last) + 1, data), 206
        self.send_response(code)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes")
        if code == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{data}")
        self.end_headers()
        if body:
            with open(path, "rb") as file:
                file.seek(start)
                self.wfile.write(file.read(stop - start))
            self.sent.append((path.name, stop - start))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, list[tuple[str, int]]]]:
    """(URL, the folder that it shows, what was sent: names and bytes)."""
    folder, sent = tmp_path / "served", []  # type: ignore[var-annotated]
    folder.mkdir()
    handler = type("H", (Handler,), {"sent": sent})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: handler(*a, directory=str(folder))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", folder, sent
        running.shutdown()


Server = tuple[str, Path, list[tuple[str, int]]]


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder(server: Server, shards: int) -> None:
    url, folder, _ = server
    local = wk.open(write(folder / "m", shards=shards))
    model = wk.open(f"{url}/m")
    assert model.counts() == local.counts()
    assert list(model) == list(local)
    np.testing.assert_array_equal(model["layers.1.attn.q"].array(), local["layers.1.attn.q"].array())
    assert wk.diff(local, model).identical
    np.testing.assert_array_equal(model.logits([1, 2, 3]), local.logits([1, 2, 3]))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", ""])
def test_what_a_url_can_name(server: Server, name: str) -> None:
    url, folder, _ = server
    local = wk.open(write(folder / "m"))
    assert wk.open(f"{url}/m/{name}").counts().total == local.counts().total


def test_an_index(server: Server) -> None:
    url, folder, _ = server
    local = wk.open(write(folder / "m", shards=2))
    assert wk.open(f"{url}/m/model.safetensors.index.json").counts().total == local.counts().total


def test_counting_fetches_headers_only(server: Server) -> None:
    url, folder, sent = server
    write(folder / "m", shards=3)
    for shard in (folder / "m").glob("*.safetensors"):  # 64 GB of holes each, which no one could fetch
        size = shard.stat().st_size
        header = 8 + int.from_bytes(shard.read_bytes()[:8], "little")
        assert size - header > 0
    wk.open(f"{url}/m").counts()
    per_shard = {name: sum(n for other, n in sent if other == name) for name, _ in sent if name.endswith("safetensors")}
    assert len(per_shard) == 3
    assert all(nbytes <= 512 << 10 for nbytes in per_shard.values())


def test_a_large_file_is_read_in_the_parts_that_are_asked_for(server: Server) -> None:
    url, folder, sent = server
    header = b'{"w":{"dtype":"F32","shape":[4096,4194304],"data_offsets":[0,68719476736]}}'
    path = folder / "big.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + (64 << 30))
    model = wk.open(f"{url}/big.safetensors")
    assert model.counts().total == 1 << 34
    assert model["name:w[4095, 0:3]"].array().tolist() == [[0, 0, 0]]
    assert sum(n for _, n in sent) < 1 << 20


def test_other_formats(server: Server, shared: Path) -> None:
    url, folder, _ = server
    formats = shared / "models" / "stories260K-formats"
    original = wk.open(shared / "models" / "stories260K")
    for name in ("gguf/stories260K-F32.gguf", "pt-zip/pytorch_model.bin", "weights.npz", "weights.h5"):
        target = folder / Path(name).name
        target.write_bytes((formats / name).read_bytes())
        model = wk.open(f"{url}/{target.name}")
        assert wk.diff(original, model).unchanged == 47


@pytest.mark.parametrize("path", ["nothing", "nothing/model.safetensors", "nothing/config.json"])
def test_what_is_not_there(server: Server, path: str, cli: Cli) -> None:
    done = cli("count", f"{server[0]}/{path}")
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1
    assert server[0].split("//")[1] in done.err


def test_errors_speak_of_the_url(server: Server) -> None:
    url, folder, _ = server
    (folder / "m.safetensors").write_bytes(b"nonsense" * 10)
    with pytest.raises(FormatError) as raised:
        wk.open(f"{url}/m.safetensors")
    assert str(raised.value).startswith(f"{url}/m.safetensors: ")
    assert "tmp" not in str(raised.value)


@pytest.mark.parametrize("url", ["https://[/m", "s3://", "simplecache::https://127.0.0.1/m", "http://127.0.0.1:1/m"])
def test_urls_that_lead_nowhere(url: str) -> None:
    with pytest.raises(FormatError) as raised:
        wk.open(url)
    assert "\n" not in str(raised.value)


def test_an_index_cannot_make_it_fetch_what_it_likes(server: Server) -> None:
    url, folder, sent = server
    (folder / "secret.safetensors").write_bytes(b"x" * 100)
    (folder / "m").mkdir()
    (folder / "m" / "model.safetensors.index.json").write_text('{"weight_map": {"w": "../secret.safetensors"}}')
    with pytest.raises(FormatError, match="out of the folder"):
        wk.open(f"{url}/m")
    assert "secret.safetensors" not in {name for name, _ in sent}


def test_a_short_answer_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.touch()
    files.put_elsewhere(path, 1000, lambda start, stop: b"abc")
    try:
        with pytest.raises(FormatError, match="3 bytes came"):
            wk.open(path)
    finally:
        files.forget(tmp_path)


def test_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "m", shards=2)
    with s3_folder(folder, monkeypatch) as url:
        model, local = wk.open(url), wk.open(folder)
        assert model.counts().total == local.counts().total
        assert wk.diff(local, model).identical
        with pytest.raises(FormatError):
            wk.open("s3://models/nothing")
