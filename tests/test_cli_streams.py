"""Standard output and standard error, whatever is behind them: nothing waits, nothing that must get out is lost."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import re
import socket
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from echopair.cli import command, streams
from echopair.cli.command import Output, complain, configure_logging
from echopair.cli.streams import Aside, Writer, open_anew
from helpers import HUNG

STEADY = ["pipe", "somebody's pipe", "socket"]  # these stay full when nobody reads; a terminal still moves bytes
KINDS = [*STEADY, "terminal", "somebody's terminal"]
LINE = b"x" * 99 + b"\n"


class Stream:
    """A small stream of some kind: what a command writes to, and the end that the test reads."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        if kind == "socket":
            ours, theirs = (sock.detach() for sock in socket.socketpair())
            with socket.socket(fileno=os.dup(theirs)) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        elif "terminal" in kind:
            ours, theirs = pty.openpty()
            tty.setraw(theirs)
        else:
            ours, theirs = os.pipe()
            fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
        self.reader, self.descriptor = ours, theirs

    def read(self, until: Callable[[bytes], object]) -> bytes:
        """Read until that holds of what was read; a terminal hands it over in its own time."""
        data = b""
        while not until(data):
            data += os.read(self.reader, 65536)
        return data

    def read_all(self) -> bytes:
        """Read all that is there, of a stream that hands it over at once."""
        size = bytearray(4)
        fcntl.ioctl(self.reader, termios.FIONREAD, size)
        return self.read(partial(reached, int.from_bytes(size, sys.byteorder)))

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.descriptor)


def reached(size: int, data: bytes) -> bool:
    return len(data) >= size


@pytest.fixture(params=KINDS)
def stream(request, monkeypatch) -> Iterator[Stream]:
    if "somebody's" in request.param:  # or there is no /proc
        monkeypatch.setattr(streams, "open_anew", lambda _descriptor: None)
    stream = Stream(request.param)
    yield stream
    stream.close()


@contextmanager
def standard_error(stream: Stream) -> Iterator[None]:
    """Let standard error be the stream."""
    with pytest.MonkeyPatch.context() as patched, open(stream.descriptor, "w", closefd=False) as text:
        patched.setattr(sys, "stderr", text)
        yield


@pytest.fixture
def aside(stream) -> Iterator[Aside]:
    with standard_error(stream):
        aside = Aside()
    yield aside
    aside.close()


# Writing without waiting


def test_a_writer_takes_what_there_is_room_for_and_never_waits(stream):
    writer = Writer(stream.descriptor)
    for _ in range(2):  # until it is full, and again once it was read
        written = b""
        while taken := writer.write(LINE):
            written += LINE[:taken]
        assert stream.read(partial(reached, len(written))) == written != b""
    assert os.get_blocking(stream.descriptor), "others share this one"
    writer.close()


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_writer_finds_room_where_others_made_it_non_blocking(monkeypatch, kind):
    if kind != "pipe":
        monkeypatch.setattr(streams, "open_anew", lambda _descriptor: None)
    stream = Stream(kind)
    os.set_blocking(stream.descriptor, False)
    writer = Writer(stream.descriptor)
    while writer.write(LINE):
        pass
    assert not os.get_blocking(stream.descriptor)
    writer.close()
    stream.close()


def test_a_writer_raises_where_nobody_reads_any_more(stream):
    writer = Writer(stream.descriptor)
    os.close(stream.reader)
    with pytest.raises(OSError, match=r"Broken pipe|Input/output error"):
        writer.write(LINE)
    writer.close()
    stream.reader = os.open(os.devnull, os.O_RDONLY)


def test_a_file_takes_everything_and_a_full_disk_says_so(tmp_path):
    descriptor = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY)
    writer = Writer(descriptor)
    assert writer.write(bytes(1 << 20)) == 1 << 20
    writer.close()
    os.close(descriptor)
    descriptor = os.open("/dev/full", os.O_WRONLY)
    writer = Writer(descriptor)
    with pytest.raises(OSError, match="No space left"):
        writer.write(b"x")
    writer.close()
    os.close(descriptor)


def test_what_cannot_be_opened_again_is_not():
    assert open_anew(1 << 30) is None


# Standard error


def test_texts_aside_are_taken_whole_or_left_out(aside, stream):
    texts = [f"{number:099}\n" for number in range(2000)]
    taken = [text for text in texts if aside.write(text)]
    read = []
    reader = threading.Thread(target=lambda: read.append(stream.read(lambda data: data.endswith(b"end\n"))))
    reader.start()
    assert aside.write("the end\n", HUNG)
    reader.join()
    assert read == ["".join([*taken, "the end\n"]).encode()]
    assert 0 < len(taken) < len(texts)


@pytest.mark.parametrize("stream", STEADY, indirect=True)
def test_a_text_aside_waits_for_room_as_long_as_it_may(aside, stream):
    while aside.write("x" * 100):
        pass
    started = time.monotonic()
    assert not aside.write("too late" * 100, 0.02)
    assert time.monotonic() - started >= 0.02
    reader = threading.Thread(target=stream.read, args=(lambda data: b"in time" in data,))
    reader.start()
    assert aside.write("in time", HUNG)
    reader.join()


def test_a_text_aside_is_tried_again_when_there_is_room(aside, stream, monkeypatch):
    refusals = [0]
    write = Writer.write
    monkeypatch.setattr(Writer, "write", lambda self, data: refusals.pop() if refusals else write(self, data))
    assert aside.write("later", HUNG)
    assert stream.read(lambda data: b"later" in data)


def test_nothing_is_written_aside_where_nobody_reads_any_more(aside, stream):
    os.close(stream.reader)
    assert not aside.write("nobody")
    assert not aside.write("nobody")
    stream.reader = os.open(os.devnull, os.O_RDONLY)


def test_nothing_is_written_aside_where_standard_error_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    aside = Aside()
    assert aside.write("nobody")
    aside.close()


@pytest.mark.parametrize("stream", STEADY, indirect=True)
def test_a_complaint_that_nobody_reads_is_given_up(aside, stream, monkeypatch):
    monkeypatch.setattr(command, "PATIENCE", 0.0)
    with standard_error(stream):
        assert complain("echo-test", "wrong", 2) == 2
        assert stream.read_all() == b"echo-test: wrong\n"
        while aside.write("x"):
            pass
        assert complain("echo-test", "wrong", 2) == 2
        assert b"wrong" not in stream.read_all()


@pytest.mark.parametrize("stream", STEADY, indirect=True)
def test_a_log_that_nobody_reads_keeps_nobody_waiting_and_counts_what_it_left_out(stream, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's would be closed
    with standard_error(stream):
        configure_logging(logging.WARNING)
        log = logging.getLogger("echopair.test")
        for _ in range(2000):
            log.warning("x" * 100)
        stream.read_all()
        log.warning("the end")
        (handler,) = logging.root.handlers
        logging.root.removeHandler(handler)
        handler.close()
    *_, left_out, last = re.sub(rb"\x1b\[\d*m", b"", stream.read_all()).splitlines()
    assert re.fullmatch(rb"\([0-9,]+ lines left out: nobody read them\)", left_out)
    assert last.endswith(b"  warning: the end")


# Standard output


@pytest.mark.parametrize("blocking", [True, False])
def test_all_output_gets_out_to_a_reader_that_is_slow(stream, blocking):
    os.set_blocking(stream.descriptor, blocking)
    lines = [f"{number} ü \udcff" for number in range(5000)]
    expected = "".join(line + "\n" for line in lines).encode(errors="backslashreplace")
    received = bytearray()

    def read() -> None:
        while len(received) < len(expected):
            received.extend(os.read(stream.reader, 1000))

    reader = threading.Thread(target=read)
    reader.start()
    with open(stream.descriptor, "w", encoding="utf-8", closefd=False) as text:
        output = Output(text)
        for line in lines[:1000]:
            output.event(line)
        for line in lines[1000:2000]:
            output.line(line)
        output.text("".join(line + "\n" for line in lines[2000:]))
        output.close()
    reader.join()
    assert bytes(received) == expected
    assert output.failure is None


def test_an_event_does_not_wait_for_a_reader_until_too_many_wait(stream, monkeypatch):
    with open(stream.descriptor, "w", closefd=False) as text:
        output = Output(text)
        waited = []
        monkeypatch.setattr(output, "flush", lambda: waited.append(True))
        written = 0
        while not waited:
            output.event("x" * 99)
            written += 100
        assert command.MAX_WAITING < written < command.MAX_WAITING + 300_000  # what waits, and what was taken
        monkeypatch.undo()
        output.failure = OSError()
        output.close()


def test_lines_are_shown_at_once_on_a_terminal():
    stream = Stream("terminal")
    with open(stream.descriptor, "w", closefd=False) as text:
        output = Output(text)
        output.line("one")
        assert stream.read(partial(reached, 4)) == b"one\n"
    stream.close()


def test_output_that_nobody_takes_any_more_fails_once(stream):
    with open(stream.descriptor, "w", closefd=False) as text:
        output = Output(text)
        failures: list[object] = []
        output.failed = lambda: failures.append(output.failure)
        os.close(stream.reader)
        output.event("one")
        output.line("two", flush=True)
        output.close()
    assert failures == [output.failure]
    stream.reader = os.open(os.devnull, os.O_RDONLY)


def test_output_on_windows_is_text(monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(os, "name", "nt")
        output = Output(sys.stdout)
    output.event("one")
    assert capsys.readouterr().out == "one\n"


def test_the_modes_of_writing_are_in_the_manual():
    manual = Path(streams.__file__).parents[1] / "manual" / "streams.md"
    assert f"{command.MAX_WAITING // 1024**2} MiB" in manual.read_text()
