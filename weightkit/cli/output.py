"""What every verb shares: its options, its ways of writing, its progress."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightkit.errors import WeightkitError
from weightkit.parallel import Progress
from weightkit.report import units
from weightkit.report.tables import Column, Line, csv_text, markdown, table
from weightkit.report.tables import plain as plain_table

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from rich.console import Console

    from weightkit.model import Model

ModelPath = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A safetensors file, a folder, an index file, a config.json, or demo (also demo:early, demo:step0).",
        show_default=False,
    ),
]
Address = Annotated[
    str | None,
    typer.Argument(
        metavar="[ADDRESS]",
        help="What to look at, as in 'layers.*.ffn.down'; everything without one.",
        show_default=False,
    ),
]
Before = Annotated[str, typer.Argument(metavar="A", help="A model: what was.", show_default=False)]
After = Annotated[str, typer.Argument(metavar="B", help="A model: what is now.", show_default=False)]


def _use_threads(count: int | None) -> int | None:
    if count is not None:
        from weightkit.threads import set_threads

        set_threads(count)
    return count


Threads = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", callback=_use_threads, help="Threads to compute with; as many as processors, if not given."
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="WHERE",
        help="Work in other processes: tcp://host:port, a Dask scheduler, or local:N, N processes for this command.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else.")]
Csv = Annotated[bool, typer.Option("--csv", help="The rows as CSV.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="The rows as a Markdown table.")]

NoCache = Annotated[bool, typer.Option("--no-cache", help="Read every number, even of files that were read before.")]


class UsageError(WeightkitError):
    """A command was given options that do not go together."""


def _need_pyarrow(path: Path | None) -> Path | None:
    if path is not None and importlib.util.find_spec("pyarrow") is None:
        raise UsageError("--parquet: needs pyarrow; pip install pyarrow, or write --csv")
    return path


Parquet = Annotated[
    Path | None,
    typer.Option(metavar="FILE", callback=_need_pyarrow, help="Write the rows as Parquet too; needs pyarrow."),
]
Values = tuple[Sequence[str], Iterable[Sequence[object]]]  # the names of fields, and rows of their full values


NOTES: list[str] = []  # said on stderr when the command has done its work; an error stands alone


def open_model(path: str) -> Model:
    """Open a model and note what is not available for it."""
    from weightkit.model import open_model

    model = open_model(path)
    NOTES.extend(model.notes)
    return model


@contextmanager
def workers(cluster: str | None) -> Iterator[Executor | None]:
    """The executor that `--cluster` names; None, threads, without it."""
    if cluster is None:
        yield None
        return
    from weightkit.cluster import connect

    with connect(cluster) as executor:
        yield executor


def given(context: typer.Context, *names: str) -> list[str]:
    """Those of some options that were given, as they are written."""
    sources = {name: context.get_parameter_source(name) for name in names}
    said = (name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")
    return [f"--{name.replace('_', '-')}" for name in said]


def note_new_folders(out: str) -> None:
    """Note the folders that writing to a place will make: they may come of a slip of the pen."""
    new = [parent for parent in Path(out).parents if not parent.exists()]
    if new:
        NOTES.append(f"{new[0]}: this folder is new")


@functools.cache
def console() -> Console:
    """Where styled text goes: stdout, with colour only where it is a terminal."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def width() -> int | None:
    """Columns of the terminal; None where stdout is not one, so that nothing is cut in a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def say(*lines: Line | str) -> None:
    """Print lines. A string is a line in plain style; text from files is escaped by who made the line."""
    if not sys.stdout.isatty():
        text = ("".join(span for span, _ in line) if isinstance(line, list) else line for line in lines)
        sys.stdout.write("".join(line + "\n" for line in text))
        return
    from rich.text import Text

    for line in lines:
        text_line = Text.assemble(*line) if isinstance(line, list) else Text(line)
        console().print(text_line, soft_wrap=True)


def emit(verb: str, **fields: Any) -> None:
    """Print the one JSON object of a verb, with its schema."""
    value = {"schema": f"weightkit.{verb}/1", **{name: plain(value) for name, value in fields.items()}}
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """A value as strict JSON has it: dataclasses as objects, numbers that do not exist as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def rows(
    columns: Sequence[Column],
    cells: Iterable[Sequence[str]],
    *,
    csv: bool = False,
    markdown_: bool = False,
    values: Values | None = None,
    below: str = "",
) -> None:
    """Print rows: as a table with a line below, or as Markdown, or as CSV with the full values in `values`."""
    if csv and markdown_:
        raise UsageError("--csv and --markdown: choose one")
    if csv:
        sys.stdout.write(csv_text(*(values or ([c.title for c in columns], cells))))
        return
    if markdown_:
        sys.stdout.write(markdown(columns, cells))
        return
    if sys.stdout.isatty():
        for line in table(columns, cells, width()):
            say(line)
    else:
        sys.stdout.writelines(plain_table(columns, cells))
    if below:
        say("", [(below, "dim")])


def values_of(items: Iterable[Any], fields: Sequence[str]) -> Values:
    """The fields of dataclasses as rows."""
    return fields, [[plain(getattr(item, name)) for name in fields] for item in items]


def write_parquet(path: Path | None, values: Values) -> None:
    """Write rows as Parquet, where that is asked for."""
    if path is None:
        return
    import pyarrow
    import pyarrow.parquet

    names, found = values
    columns = list(zip(*found, strict=True)) or [()] * len(names)
    pyarrow.parquet.write_table(pyarrow.table(dict(zip(names, map(list, columns), strict=True))), path)


@contextmanager
def progress(what: str, unit: str = "") -> Iterator[Progress | None]:
    """A line on stderr with rate and time left, for work of over a second, on a terminal only; gone when done.

    `unit` may be bytes.
    """
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    start, last = time.monotonic(), 0.0
    shown = False

    def report(done: int, total: int) -> None:
        nonlocal last, shown
        now = time.monotonic()
        if now - start < 1 or (now - last < 0.1 and done < total):
            return
        rate = done / (now - start)
        text = f"{done:,} of {total:,}, {rate:.3g}/s"
        if unit == "bytes":
            text = f"{units.size(done)} of {units.size(total)}, {units.size(rate)}/s"
        left = f", {(total - done) / rate:.0f} s left" if rate else ""
        sys.stderr.write(f"\r\033[K{what} {text}{left}")
        sys.stderr.flush()
        last, shown = now, True

    try:
        yield report
    finally:
        if shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
