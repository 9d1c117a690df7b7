"""The `weightkit` command: its verbs, its exit codes, its one-line errors.

Exit codes: 0 fine, 1 a difference or a fault was found, 2 it could not be done.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Iterable
from typing import Annotated, TextIO

import typer

from weightkit import __version__
from weightkit.cli.output import NOTES
from weightkit.errors import WeightkitError, printable

INTERRUPTED = 130
CLOSED_PIPE = 141  # as shells say it

# What each verb does, as the list of verbs says it. Only the verb that is called is imported: the others
# would double the time that a small command takes.
VERBS = {
    "demo": "a guided tour on the built-in model",
    "map": "the pipeline, with parameters on every step that has weights",
    "count": "how many parameters, of what kind, and what they cost",
    "list": "the named weights",
    "show": "one weight closely: statistics, histogram, outliers",
    "stats": "exact statistics, by weight, role, layer, head or expert",
    "spectrum": "singular values: ranks, entropy, power law, random or not",
    "outliers": "what is strange in the weights, and why",
    "vocabulary": "what a token, a neuron or a head means in tokens",
    "circuits": "which attention heads read what others write",
    "check": "is it sound: structure, index, config, NaN and Inf",
    "diff": "what differs between two models, and how much",
    "trajectory": "how weights moved over snapshots of one training",
    "patch": "the difference of two models: make, show, apply, revert, compose",
    "convert": "the same model in another format, type or number of files",
    "edit": "zero, set, scale, add noise; look first, measure, save",
    "run": "the likeliest next tokens, or a text",
    "chat": "what a model trained for conversations answers",
    "trace": "activations inside a run: look, change, write to a file",
    "measure": "what two models make of the same text",
}
_MODULES = {"map": "map_", "list": "list_"}  # Python has these names already


def application(verbs: Iterable[str] = VERBS) -> typer.Typer:
    """The command line with these verbs."""
    app = typer.Typer(
        name="weightkit",
        help="See, count, compare, edit and test the weights of any LLM checkpoint, without PyTorch.",
        epilog="Quote addresses, as shells need it: weightkit show demo 'layers.0.attn.q[head=3]'",
        add_completion=False,
        rich_markup_mode=None,  # brackets are addresses here, not markup
        pretty_exceptions_enable=False,
    )
    app.callback()(options)
    for verb in verbs:
        name = _MODULES.get(verb, verb)
        module = importlib.import_module(f"weightkit.cli.{name}")
        found = getattr(module, name)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=verb, short_help=VERBS[verb])
        else:
            app.command(verb, short_help=VERBS[verb])(found)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"weightkit {__version__}\n")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """See, count, compare, edit and test the weights of any LLM checkpoint, without PyTorch."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit. Errors are one line on stderr unless WEIGHTKIT_DEBUG is set."""
    gc.disable()  # a command ends soon; a file of 100,000 tensors would be walked through again and again
    sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    NOTES.clear()
    if _closed(sys.stderr):
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the end
    if _closed(sys.stdout):
        sys.stderr.write("error: stdout is closed: there is nowhere to write the answer to\n")
        return 2
    try:
        arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
        app = application([arguments[0]] if arguments and arguments[0] in VERBS else VERBS)
        code = app(arguments, standalone_mode=False, prog_name="weightkit")
        if code == INTERRUPTED:  # typer's way of passing on Ctrl-C
            raise KeyboardInterrupt
        sys.stdout.flush()
        for note in dict.fromkeys(NOTES):
            sys.stderr.write(f"note: {printable(note)}\n")
        return code if isinstance(code, int) else 0
    except (BrokenPipeError, SystemExit):  # and typer's way of passing it on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit has a place to go
        return CLOSED_PIPE
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("interrupted\n")
        sys.stderr.flush()
        os._exit(INTERRUPTED)  # what had to be put right is; do not wait for threads that still read
    except Exception as error:
        if os.environ.get("WEIGHTKIT_DEBUG") == "1":
            raise
        sys.stderr.write(f"error: {printable(_message(error))}\n")
        return 2


def _closed(file: TextIO | None) -> bool:
    """Whether a standard stream was closed by who started the command; Python has None there."""
    return file is None


def _message(error: Exception) -> str:
    if isinstance(error, WeightkitError):
        return str(error)
    if hasattr(error, "format_message"):  # how typer says that a command was called wrongly
        return f"{error.format_message()} See weightkit --help."
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, OSError):
        return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
    return f"unexpected {type(error).__name__}: {error}; WEIGHTKIT_DEBUG=1 shows where, please report it"
