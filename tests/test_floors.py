"""Rooms and floors: imports point down only, and importing weightkit costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "weightkit"

# A room is a module or a folder. What is not here is a room without a floor, and fails.
FLOORS = {
    "errors": 0,
    "files": 0,
    "strictjson": 0,
    "dtypes": 0,
    "compiled": 0,
    "kernels": 0,
    "steps": 0,
    "threads": 0,
    "parallel": 0,
    "cluster": 0,
    "demo": 5,
    "tensor": 1,
    "words": 1,
    "formats": 1,
    "packing": 2,
    "remote": 2,
    "checkpoint": 2,
    "config": 2,
    "address": 2,
    "architectures": 3,
    "layout": 3,
    "weight": 3,
    "registry": 3,
    "assembly": 3,
    "analysis": 4,
    "surgery": 4,
    "patch": 4,
    "engine": 4,
    "effect": 5,
    "analysing": 5,
    "running": 5,
    "tracing": 5,
    "model": 5,
    "report": 6,
    "cli": 7,
    "__main__": 7,
}
BLIND = {"analysis", "surgery", "engine"}  # to each other
DOOR = "__init__"  # the public names: it may name every room, and leads to all of them up to Model
DOOR_FLOOR = FLOORS["model"]


def room(module: str) -> str:
    """The room of a module, as in weightkit.analysis.counts."""
    return [*module.split("."), DOOR][1]


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(part for part in parts if part != DOOR or len(parts) == 2), path


def imported(source: str, module: str) -> Iterator[str]:
    """The modules of weightkit that a source imports: anywhere in it, for types only as well."""
    package = module if (PACKAGE.parent / module.replace(".", "/")).is_dir() else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "weightkit")
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            target = ".".join([*above, *filter(None, [node.module])])
            if target == "weightkit":
                names = [alias.name for alias in node.names if alias.name != "__version__"]
                yield from (f"weightkit.{name}" if name in FLOORS else "weightkit" for name in names)
            elif target.startswith("weightkit."):
                yield target


def fault(source: str, module: str) -> str | None:
    """What is wrong with the imports of a module, or None."""
    here = room(module)
    if here == DOOR:
        return None
    if here not in FLOORS:
        return f"{module} has no floor"
    for target in imported(source, module):
        there = room(target)
        floor = DOOR_FLOOR if there == DOOR else FLOORS.get(there)
        if floor is None:
            return f"{module} imports {target}, which has no floor"
        if floor > FLOORS[here]:
            return f"{module} (floor {FLOORS[here]}) imports {target} (floor {floor})"
        if {here, there} <= BLIND and here != there:
            return f"{module} imports {target}: {here} and {there} are blind to each other"
    return None


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_point_down_only(module: str, path: Path) -> None:
    assert fault(path.read_text(), module) is None


def test_every_floor_has_its_room() -> None:
    assert {room(module) for module, _ in modules()} - {DOOR} == set(FLOORS)


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from weightkit.model import Model", "weightkit.config"),
        ("import weightkit.cli.app", "weightkit.report.tables"),
        ("from weightkit import registry", "weightkit.tensor"),
        ("def f():\n    from weightkit.engine import forward", "weightkit.checkpoint"),
        ("if TYPE_CHECKING:\n    from weightkit.model import Model", "weightkit.registry"),
        ("from weightkit.engine.forward import Engine", "weightkit.analysis.counts"),
        ("from ..surgery import save", "weightkit.analysis.counts"),
        ("from .model import Model", "weightkit.layout"),
        ("import weightkit as wk", "weightkit.config"),
        ("from weightkit import diff", "weightkit.engine.forward"),
        ("from weightkit.novelty import x", "weightkit.model"),
        ("", "weightkit.novelty"),
    ],
)
def test_an_import_that_points_up_is_found(source: str, module: str) -> None:
    assert fault(source, module) is not None


def test_importing_weightkit_loads_nothing_heavy() -> None:
    heavy = {"numpy", "pandas", "h5py", "llvmlite", "rich", "tokenizers", "typer", "ml_dtypes", "safetensors", "torch"}
    code = "import sys, weightkit; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert heavy.isdisjoint(name.split(".")[0] for name in done.stdout.split())
