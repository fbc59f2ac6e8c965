"""`python -m echopair`: names the commands, and says so."""

from __future__ import annotations

import subprocess
import sys

import pytest

import echopair
from echopair import __main__ as entry
from echopair.cli import client, server
from helpers import HUNG

USAGE = "usage: python -m echopair {server,client} ...    (each has --help and --version)\n"
COMMANDS = [
    ("server", "echo-server", server, entry.echo_server),
    ("client", "echo-client", client, entry.echo_client),
]


@pytest.mark.parametrize("arguments", [[], ["sever"], ["sever", "--help"], ["sever", "--version"]])
def test_anything_but_a_command_is_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["echopair", *arguments])
    assert entry.main() == 2
    assert capsys.readouterr() == ("", USAGE)


@pytest.mark.parametrize("options", [["-h"], ["--help"], ["--help", "server"]])
def test_help_is_an_answer_and_not_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["echopair", *options])
    assert entry.main() == 0
    assert capsys.readouterr() == (USAGE, "")


def test_version_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["echopair", "--version"])
    assert entry.main() == 0
    assert capsys.readouterr() == (f"echopair {echopair.__version__}\n", "")


@pytest.mark.parametrize(("name", "program", "_module", "_start"), COMMANDS)
def test_command_gets_the_arguments_behind_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, program: str, _module, _start
) -> None:
    monkeypatch.setattr(sys, "argv", ["echopair", name, "--version"])
    assert entry.main() == 0
    assert capsys.readouterr().out == f"{program} {echopair.__version__}\n"


@pytest.mark.parametrize(("name", "_program", "module", "start"), COMMANDS)
def test_command_returns_its_status_and_an_interrupt_is_one(
    monkeypatch: pytest.MonkeyPatch, name: str, _program, module, start
) -> None:
    monkeypatch.setattr(module, "main", lambda: 7)
    monkeypatch.setattr(sys, "argv", ["echopair", name])
    assert start() == entry.main() == 7

    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "main", interrupted)
    assert start() == 130


@pytest.mark.parametrize(
    ("arguments", "status", "out", "err"),
    [
        (["--help"], 0, USAGE, ""),
        (["--version"], 0, f"echopair {echopair.__version__}\n", ""),
        (
            ["client", "-p"],
            2,
            "",
            "echo-client: -p/--port: expected one argument (one that begins with - is written --option=-value); "
            "see echo-client --help\n",
        ),
    ],
)
def test_module_runs_as_a_program(arguments: list[str], status: int, out: str, err: str) -> None:
    command = [sys.executable, "-m", "echopair", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=HUNG)
    assert (done.returncode, done.stdout, done.stderr) == (status, out, err)
