"""What surrounds a command: its output when nobody takes it, its log, its errors and its exit status."""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import os
import pty
import re
import resource
import struct
import sys
import termios
import time
from collections.abc import Iterator

import pytest

from echopair.address import AddressError
from echopair.cli import command
from echopair.cli.command import (
    LineFormatter,
    LineLimit,
    Output,
    complain,
    configure_logging,
    raise_descriptor_limit,
    run,
)
from echopair.cli.options import Answer, UsageError
from helpers import Clock


@pytest.fixture
def full() -> Iterator[io.TextIOWrapper]:
    """A stream that takes nothing, and says so when it is flushed (full(4))."""
    with open("/dev/full", "w") as stream:
        yield stream


def record(level: int = logging.INFO, message: str = "%s is here", **others: object) -> logging.LogRecord:
    about = {
        "levelno": level,
        "levelname": logging.getLevelName(level),
        "name": "peer",
        "msg": message,
        "args": ("peer",),
    }
    return logging.makeLogRecord({**about, "created": 1.25, "msecs": 250.0, **others})


# Output


def test_lines_are_buffered_until_flushed(tmp_path) -> None:
    with open(tmp_path / "out", "w") as stream:
        output = Output(stream)
        output.line("one")
        assert (tmp_path / "out").read_text() == ""
        output.line("two", flush=True)
        assert (tmp_path / "out").read_text() == "one\ntwo\n"
        output.line("three")
        output.flush()
        assert (tmp_path / "out").read_text() == "one\ntwo\nthree\n"
    assert output.failure is None


def test_output_that_fails_says_so_once_and_drops_the_rest(full: io.TextIOWrapper) -> None:
    failures: list[OSError | None] = []
    output = Output(full)
    output.failed = lambda: failures.append(output.failure)
    output.line("buffered")
    assert failures == []
    output.line("too much", flush=True)
    output.line("more", flush=True)
    output.flush()
    assert [str(error) for error in failures] == ["[Errno 28] No space left on device"]


# Errors and exit status


def exiting(error: BaseException):
    def body(_argv, _output) -> int:
        raise error

    return body


def test_status_is_that_of_the_body_and_what_it_printed_is_flushed(capsys: pytest.CaptureFixture[str]) -> None:
    def body(argv, output: Output) -> int:
        output.line(f"given {argv}")
        return 7

    assert run("echo-test", body, ["-q"]) == 7
    assert capsys.readouterr() == ("given ['-q']\n", "")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UsageError("no such option"), 2, "echo-test: no such option; see echo-test --help\n"),
        (AddressError("cannot resolve 'x'"), 1, "echo-test: cannot resolve 'x'\n"),
        (KeyboardInterrupt(), 130, "echo-test: interrupted\n"),
    ],
)
def test_what_users_and_networks_cause_takes_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, line: str
) -> None:
    assert run("echo-test", exiting(error), None) == status
    assert capsys.readouterr() == ("", line)


def test_what_the_system_refuses_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("echo-test", exiting(OSError(errno.EMFILE, "Too many open files")), None) == 1
    assert capsys.readouterr().err.startswith("echo-test: too many open files (")


def test_complaint_that_cannot_be_made_changes_no_status(
    monkeypatch: pytest.MonkeyPatch, full: io.TextIOWrapper
) -> None:
    monkeypatch.setattr(sys, "stderr", full)
    assert complain("echo-test", "wrong", 2) == 2


def test_an_answer_is_output_and_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("echo-test", exiting(Answer("usage: ...\n")), None) == 0
    assert capsys.readouterr() == ("usage: ...\n", "")


@pytest.mark.parametrize("granted", [True, False])
def test_descriptor_limit_is_raised_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch, *, granted: bool) -> None:
    asked = []

    def setrlimit(_which, limits) -> None:
        asked.append(limits)
        if not granted:
            raise ValueError

    monkeypatch.setattr(resource, "getrlimit", lambda _which: (100, 5000))
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    assert raise_descriptor_limit() == (5000 if granted else 100)
    assert asked == [(5000, 5000)]


def test_a_terminal_says_how_wide_it_is_unless_the_environment_does(monkeypatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    terminal, ours = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 123, 0, 0))
    assert command.columns(ours) == 123
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))  # as on a serial line
    assert command.columns(ours) == 80
    os.close(ours)
    os.close(terminal)
    monkeypatch.setenv("COLUMNS", "61")
    assert command.columns(0) == 61
    monkeypatch.setenv("COLUMNS", "wide")
    assert command.columns(-1) == 80


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run("echo-test", exiting(ZeroDivisionError()), None)


@pytest.mark.parametrize(("status", "told"), [(0, 1), (99, 99), (143, 143)])
def test_output_that_is_not_taken_is_reported_and_no_success(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    full: io.TextIOWrapper,
    status: int,
    told: int,
) -> None:
    def body(_argv, output: Output) -> int:
        output.line("nobody reads this")
        return status

    monkeypatch.setattr(sys, "stdout", full)
    assert run("echo-test", body, None) == told
    complaint = "echo-test: cannot write to standard output: no space left on device\n"
    assert capsys.readouterr().err == complaint


def test_command_runs_without_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(_argv, output: Output) -> int:
        output.line("nobody reads this", flush=True)
        return 0

    monkeypatch.setattr(sys, "stdout", None)  # as it is where the shell says >&-
    assert run("echo-test", body, None) == 0


def test_complaint_never_gets_into_the_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as it is where the shell says 2>&-
    assert complain("echo-test", "wrong", 1) == 1
    assert capsys.readouterr().out == ""


def test_closed_standard_stream_is_pointed_at_the_null_device() -> None:
    kept = os.dup(0)
    os.close(0)
    try:
        run("echo-test", lambda _argv, _output: 0, None)
        assert os.fstat(0).st_rdev == os.stat(os.devnull).st_rdev
    finally:
        os.dup2(kept, 0)
        os.close(kept)


# The log


@pytest.fixture
def _logging_put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    level = logging.root.level
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's would be closed
    yield
    logging.root.setLevel(level)


@pytest.mark.usefixtures("_logging_put_back")
def test_log_goes_to_standard_error_from_its_level_on(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(logging.INFO)
    log = logging.getLogger("echopair.test")
    log.debug("hidden")
    log.info("%s connected", "peer")
    log.warning("odd")
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}  peer connected\n\d\d:\d\d:\d\d\.\d{3}  warning: odd\n", err)


@pytest.mark.usefixtures("_logging_put_back")
def test_log_of_what_peers_cause_is_limited(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    monkeypatch.setattr(time, "monotonic", clock)
    configure_logging(logging.INFO)
    for number in range(2 * command.LINES_PER_SECOND):
        logging.getLogger("echopair.test").info("%d", number)
    assert len(capsys.readouterr().err.splitlines()) == command.LINES_PER_SECOND


@pytest.mark.usefixtures("_logging_put_back")
def test_log_that_nobody_can_read_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = io.StringIO()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", broken)
        configure_logging(logging.INFO)
    broken.close()
    logging.getLogger("echopair.test").info("lost")
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("_logging_put_back")
def test_logging_needs_no_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    configure_logging(logging.INFO)
    logging.getLogger("echopair.test").info("lost")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("_logging_put_back")
@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("", True), ("1", False)])
def test_colour_is_for_terminals_unless_unwanted(
    monkeypatch: pytest.MonkeyPatch, no_color: str | None, coloured: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)  # https://no-color.org: not empty means none
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", terminal := Terminal())
        configure_logging(logging.INFO)
    logging.getLogger("echopair.test").info("x")
    assert ("\x1b[" in terminal.getvalue()) == coloured


@pytest.mark.parametrize(
    ("level", "plain", "coloured"),
    [
        (logging.DEBUG, "00:00:01.250  peer is here", "\x1b[2m00:00:01.250\x1b[0m  peer is here"),
        (logging.INFO, "00:00:01.250  peer is here", "\x1b[2m00:00:01.250\x1b[0m  peer is here"),
        (
            logging.WARNING,
            "00:00:01.250  warning: peer is here",
            "\x1b[2m00:00:01.250\x1b[0m  \x1b[33mwarning: peer is here\x1b[0m",
        ),
        (
            logging.ERROR,
            "00:00:01.250  error: peer is here",
            "\x1b[2m00:00:01.250\x1b[0m  \x1b[33merror: peer is here\x1b[0m",
        ),
    ],
)
def test_line_is_the_time_and_the_message_and_marks_problems(level: int, plain: str, coloured: str) -> None:
    for colour, line in ((False, plain), (True, coloured)):
        formatter = LineFormatter(colour=colour)
        formatter.converter = time.gmtime
        assert formatter.format(record(level)) == line


def test_traceback_follows_its_line() -> None:
    error = ValueError("broken")
    line = LineFormatter(colour=False).format(record(exc_info=(ValueError, error, None)))
    assert line.endswith("  peer is here\nValueError: broken")


def test_lines_above_the_limit_are_left_out_and_counted(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    limit = LineLimit(2, clock)
    assert [limit.filter(record()) for _ in range(5)] == [True, True, False, False, False]
    clock.advance(0.5)
    assert not limit.filter(record())
    clock.advance(0.5)
    assert limit.filter(record())
    assert caplog.messages == ["4 lines left out of this log"]
    assert [limit.filter(record()) for _ in range(2)] == [True, False]
    clock.advance(1)
    assert limit.filter(record())
    assert caplog.messages[1:] == ["1 line left out of this log"]


def test_second_within_the_limit_leaves_nothing_out(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    limit = LineLimit(2, clock)
    for _ in range(3):
        assert limit.filter(record())
        assert limit.filter(record())
        clock.advance(1)
    assert caplog.messages == []


def test_what_the_command_says_itself_is_never_left_out_and_brings_the_count(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    limit = LineLimit(1, clock)
    assert [limit.filter(record()) for _ in range(3)] == [True, False, False]
    assert limit.filter(record(name="echopair.cli.server"))
    assert caplog.messages == ["2 lines left out of this log"]


def test_what_the_command_says_itself_leaves_room_for_others(clock: Clock) -> None:
    limit = LineLimit(1, clock)
    assert limit.filter(record(name="echopair.cli.server"))
    assert limit.filter(record())


def test_problems_are_never_left_out_and_not_counted(clock: Clock) -> None:
    limit = LineLimit(1, clock)
    assert all(limit.filter(record(logging.WARNING)) for _ in range(3))
    assert [limit.filter(record()) for _ in range(2)] == [True, False]
    assert limit.filter(record(logging.ERROR))
