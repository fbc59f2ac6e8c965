"""`python -m echopair`: names the commands, and says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

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


@pytest.fixture(autouse=True)
def _signals_as_they_were() -> Iterator[None]:
    """A command leaves them ignored, and here the process goes on."""
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


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


def run_signalled(signum: int, program: str, **options) -> subprocess.CompletedProcess[str]:
    """Run `program`, in which `signal` sends itself the signal and `entry` is the module of the commands."""
    head = "import os, sys\nfrom echopair import __main__ as entry\n"
    head += f"def signal(): os.kill(os.getpid(), {int(signum)}); sys.exit('it went on')\n"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([sys.executable, "-c", head + program], check=False, text=True, timeout=HUNG, **options)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_until_a_command_handles_signals_they_end_it_with_a_line(signum: int) -> None:
    done = run_signalled(signum, "entry._run('echo-test', signal)")
    assert (done.returncode, done.stdout, done.stderr) == (128 + signum, "", "echo-test: interrupted\n")


def test_a_signal_ends_a_command_whose_standard_error_is_full_or_closed() -> None:
    reader, writer = os.pipe()
    os.write(writer, bytes(65536))
    assert run_signalled(signal.SIGTERM, "entry._run('echo-test', signal)", stderr=writer).returncode == 143
    os.close(reader)
    os.close(writer)
    closed = "os.close(2)\nentry._run('echo-test', signal)"
    assert run_signalled(signal.SIGTERM, closed).returncode == 143


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_after_a_command_is_over_changes_nothing(signum: int) -> None:
    done = run_signalled(
        signum,
        "status = entry._run('echo-test', lambda: 'its status')\n"
        f"os.kill(os.getpid(), {int(signum)})\nsys.exit(status)",
    )
    assert (done.returncode, done.stderr) == (1, "its status\n")


def test_a_signal_that_whoever_started_the_command_had_it_ignore_is_ignored() -> None:
    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    done = run_signalled(signal.SIGHUP, "entry._run('echo-test', signal)", preexec_fn=nohup)
    assert (done.returncode, done.stderr) == (1, "it went on\n")
