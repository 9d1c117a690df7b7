"""A chat template rendered in a process of its own, which is run as a file: what it reads and writes is JSON.

Templates come from strangers. The sandbox of jinja2 keeps them from Python and from files, but not from running
for ever or from filling the memory: a process can be limited in both. The environment is that of transformers.

Nothing of weightkit is imported here, so that the process starts soon.
"""

from __future__ import annotations

import datetime
import json
import sys
from contextlib import suppress
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class Generation(Extension):
    """`{% generation %}` marks what the assistant says, which is of use in training: its content is kept."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """The content, in a scope of its own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Names(Namespace):
    """`namespace()` without the attributes that lead into Python."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a template may not set {name!r}")
        super().__setitem__(name, value)


def environment() -> ImmutableSandboxedEnvironment:
    """What templates are written for."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "namespace": Names,
        "dict": lambda *args, **values: dict(*args, **values),
    }
    return made


def tojson(value: Any, **options: Any) -> str:
    """JSON as it is: the filter of jinja2 escapes what HTML would read."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


def raise_exception(message: str) -> None:
    """How a template refuses messages."""
    raise TemplateError(message)


def strftime_now(form: str) -> str:
    """The time, as a template wants it."""
    return datetime.datetime.now().strftime(form)


def limit(seconds: int, memory: int) -> None:
    """Let this process compute for so long, and have so many bytes, where the system can say so."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def main() -> None:
    """Read {template, values, most, seconds, memory}; write {text} or {error}."""
    asked = json.load(sys.stdin)
    limit(asked["seconds"], asked["memory"])
    try:
        text = environment().from_string(asked["template"]).render(asked["values"])
        if len(text) > asked["most"]:
            raise TemplateError(f"it makes a text of more than {asked['most']:,} characters")
        answer = {"text": text}
    except MemoryError:
        answer = {"error": "it needs too much memory"}
    except Exception as error:
        answer = {"error": str(error) or type(error).__name__}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
