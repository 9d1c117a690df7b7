"""Remote: checkpoints that lie behind a URL, read by ranges.

A local folder stands in for the remote one. The small files (config, tokenizer, index) are fetched into
it; of the weights there is an empty stand-in, and whatever is read of one is fetched, headers first and
blocks when they are asked for. The folder is gone when the process ends.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightkit import files, strictjson
from weightkit.errors import FormatError
from weightkit.formats import WEIGHTS

SCHEMES = ("https://", "http://", "s3://", "hf://", "gs://")
SMALL = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "adapter_config.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
SINGLE = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin")
MOST_SMALL = 100 << 20
MOST_FILES = 10_000


def is_url(path: str) -> bool:
    """Whether a path is the address of something remote."""
    return path.startswith(SCHEMES)


@dataclass(frozen=True)
class Mirror:
    """The local folder that stands in for a remote one, and what in it to open."""

    folder: Path
    opened: Path
    url: str

    def said(self, message: str) -> str:
        """A message about the stand-in as one about what it stands for."""
        return message.replace(os.fspath(self.opened), self.url).replace(os.fspath(self.folder), self.url)


@dataclass(frozen=True)
class Folder:
    """A remote folder, as another process opens the files in it: with its own credentials."""

    url: str

    def __call__(self, name: str) -> tuple[int, files.Fetch]:
        """The size of a file, and how it is fetched. FormatError where it cannot be reached."""
        system, root = _system(self.url)
        where = f"{root}/{name}"
        size = _size(system, where)
        if size is None:
            raise FormatError(f"{where}: is not there")
        return size, _fetcher(system, where)


def mirror(url: str) -> Mirror:
    """Make the stand-in of a file or folder at `url`. It is there until the process ends.

    Raises FormatError where it cannot be reached, or the packages that it needs are not installed.
    """
    if "::" in url:
        raise FormatError(f"{url}: chained URLs are not opened")
    url = url.replace("https://huggingface.co/", "hf://", 1).rstrip("/")
    system, root = _system(url)
    folder = Path(tempfile.mkdtemp(prefix="weightkit-")).resolve()
    atexit.register(_remove, folder)
    above, _, name = root.rpartition("/")
    if name.endswith((*WEIGHTS, ".json")):
        files.put_folder_elsewhere(folder, Folder(url.rpartition("/")[0]))
        _bring(system, above, folder, [name, *SMALL[:2]], needed=name)
        _bring_shards(system, above, folder)
        return Mirror(folder, folder / name, url)
    files.put_folder_elsewhere(folder, Folder(url))
    names = _listed(system, root)
    _bring(system, root, folder, [*SMALL, *SINGLE] if names is None else names)
    _bring_shards(system, root, folder)
    if not any(folder.iterdir()):
        raise FormatError(f"{url}: nothing there that is a model: no weights, index or config.json")
    return Mirror(folder, folder, url)


def _remove(folder: Path) -> None:
    files.forget(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it."""
    try:
        import fsspec

        system, root = fsspec.url_to_fs(url)
    except ImportError as error:
        raise FormatError(f"{url}: {error.name or error} is not installed; pip install 'weightkit[remote]'") from None
    except Exception as error:
        raise FormatError(f"{url}: {_reason(error)}") from None
    return system, str(root).rstrip("/")


def _reason(error: BaseException) -> str:
    """What went wrong, in one line, of the many exceptions that network libraries have."""
    first = (str(error).splitlines() or [""])[0]
    return f"cannot be reached: {type(error).__name__}{f': {first}' if first else ''}"[:300]


def _listed(system: Any, root: str) -> list[str] | None:
    """The names of weights and small files in a remote folder; None where a server does not list them."""
    protocol = system.protocol if isinstance(system.protocol, tuple) else (system.protocol,)
    if "http" in protocol or "https" in protocol:
        return None
    try:
        entries = system.ls(root, detail=True)[:MOST_FILES]
    except Exception as error:
        raise FormatError(f"{root}: {_reason(error)}") from None
    names = [str(e["name"]).rstrip("/").rpartition("/")[2] for e in entries if e.get("type") != "directory"]
    return [name for name in names if name.endswith((*WEIGHTS, ".json", ".jinja"))]


def _bring_shards(system: Any, root: str, folder: Path) -> None:
    """Stand in for the shards that an index names, as far as they are plain names: others are refused later."""
    for index in sorted(folder.glob("*.index.json")):
        value = strictjson.read_object(index).get("weight_map")
        named = dict.fromkeys(v for v in value.values() if isinstance(v, str)) if isinstance(value, dict) else {}
        plain = [name for name in named if name.endswith(WEIGHTS) and not {"/", "\\"} & set(name)]
        _bring(system, root, folder, plain[:MOST_FILES])


def _bring(system: Any, root: str, folder: Path, names: list[str], needed: str | None = None) -> None:
    """Fetch the small ones of some files, and stand in for the large ones; what is not there is passed over."""
    for name in names:
        if "\0" in name or name in (".", "..") or (folder / name).exists():
            continue
        where = f"{root}/{name}"
        size = _size(system, where)
        if size is None:
            if name == needed:
                raise FormatError(f"{where}: is not there")
            continue
        fetch = _fetcher(system, where)
        if name.endswith(WEIGHTS):
            (folder / name).touch()
            files.put_elsewhere(folder / name, size, fetch)
        elif size <= MOST_SMALL:
            (folder / name).write_bytes(fetch(0, size))


def _size(system: Any, where: str) -> int | None:
    """The size of a remote file; None where there is none."""
    try:
        size = system.info(where).get("size")
    except FileNotFoundError:
        return None
    except Exception as error:
        raise FormatError(f"{where}: {_reason(error)}") from None
    if size is None:
        raise FormatError(f"{where}: the server does not say how large it is, so it cannot be read in parts")
    return int(size)


def _fetcher(system: Any, where: str) -> files.Fetch:
    def fetch(start: int, stop: int) -> bytes:
        if start == stop:
            return b""
        try:
            return bytes(system.cat_file(where, start=start, end=stop))
        except Exception as error:
            raise FormatError(f"{where}: {_reason(error)}") from None

    return fetch
