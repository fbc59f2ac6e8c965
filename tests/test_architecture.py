"""The plan of the house: who may import whom, who may do what, and nothing but the standard library."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import echopair
from helpers import HUNG

SOURCE = Path(echopair.__file__).parent
MODULES = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in sorted(SOURCE.rglob("*.py"))}
every_module = pytest.mark.parametrize("module", MODULES)

CORE = {"address", "connection", "idle", "loop", "selector", "text"}
MAY_IMPORT = {
    "__init__": set(),
    "text": set(),
    "selector": set(),
    "loop": {"selector"},
    "connection": {"loop", "text"},
    "address": {"loop", "text"},
    "idle": {"connection", "loop", "text"},
    "measure": {"measure", "text"},
    "server": {"server", *CORE},
    "client": {"client", "measure", *CORE},
    "check": {"check", "client", "measure", *CORE},
    "cli": {"__init__", "check", "cli", "client", "measure", "server", *CORE},
    "__main__": {"__init__", "cli"},
}


def room(module: str) -> str:
    """Return in which part of the house a module is: `server` for `server.echo`."""
    return module.partition(".")[0]


def parsed(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def imported(module: str) -> Iterator[str]:
    """Yield the full name of everything that a module imports, at its start or later."""
    package = f"echopair.{module}".rpartition(".")[0]
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{origin}.{alias.name}" for alias in node.names)


@cache
def used(module: str) -> set[str]:
    """Return every name that a module uses or imports, in full and in part: `print`, `sys.exit`, `sys`, `exit`."""
    names: set[str] = set()
    for name in imported(module):
        names |= {name, *name.split(".")}
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names |= {node.attr, ast.unparse(node)}
    return names


@every_module
def test_imports_point_one_way(module: str) -> None:
    assert room(module) in MAY_IMPORT, "a new part of the house needs its place in the plan above"
    ours = [name.split(".")[1] for name in imported(module) if name.startswith("echopair.")]
    rooms = {name if name in MAY_IMPORT else "__init__" for name in ours}
    assert rooms <= MAY_IMPORT[room(module)]


@every_module
def test_only_the_standard_library_is_imported(module: str) -> None:
    roots = {name.partition(".")[0] for name in imported(module)}
    assert roots <= sys.stdlib_module_names | {"echopair"}


@pytest.mark.parametrize(
    ("rooms", "names"),
    [
        ({"loop", "selector"}, {"selectors"}),
        ({"loop"}, {"set_wakeup_fd"}),
        ({"loop", "__main__"}, {"signal.signal"}),
        ({"address"}, {"getaddrinfo", "bind", "connect_ex", "create_connection", "create_server"}),
        ({"cli", "__main__"}, {"sys.argv", "sys.exit", "SystemExit", "os._exit", "print", "argparse"}),
        ({"cli"}, {"basicConfig", "dictConfig", "StreamHandler", "addHandler", "addFilter", "setLevel", "environ"}),
    ],
)
def test_what_is_done_in_one_place_is_done_nowhere_else(rooms: set[str], names: set[str]) -> None:
    found = {name: {room(module) for module in MODULES if name in used(module)} for name in names}
    assert {name: where for name, where in found.items() if not where <= rooms} == {}
    assert any(found.values())


def test_start_of_the_server_imports_nothing_dear() -> None:
    program = "import sys, echopair.__main__, echopair.cli.server; print(*sys.modules)"
    # Without site, which might import anything; so the path must be given.
    command = [sys.executable, "-S", "-c", program]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=HUNG, env={"PYTHONPATH": str(SOURCE.parent)}
    )
    loaded = set(done.stdout.split())
    assert "echopair.address" in loaded
    assert not loaded & {"asyncio", "dataclasses", "echopair.server", "json", "random", "ssl", "typing"}
