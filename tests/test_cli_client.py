"""The `echo-client` command, run in this process against servers that run in it too."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from echopair.cli import client, client_options
from echopair.cli.client_options import parser as client_parser
from echopair.cli.command import FAILED, INTERRUPTED, OK, TERMINATED, USAGE
from echopair.cli.options import Parser
from helpers import HUNG, LOCALHOST


@pytest.fixture
def server(request) -> Callable[[Callable[[socket.socket], object]], str]:
    """Serve one connection after another in a thread, as the test says; return HOST:PORT."""

    def start(serve: Callable[[socket.socket], object]) -> str:
        listener = socket.create_server((LOCALHOST, 0))

        def run() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                with sock:
                    serve(sock)

        thread = threading.Thread(target=run)
        thread.start()

        def stop() -> None:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(HUNG)
            listener.close()
            assert not thread.is_alive()

        request.addfinalizer(stop)
        return "{}:{}".format(*listener.getsockname())

    return start


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


def answer(data: bytes) -> Callable[[socket.socket], None]:
    def serve(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass

    return serve


def with_port(port: int) -> Parser:
    """The client's parser with another default port, for nobody may listen on its own one in a test."""
    parser = client_parser()
    parser.set_defaults(port=port)
    return parser


# The conversation


def test_the_conversation_is_shown_line_by_line(server, capsys):
    target = server(echo)
    assert client.main([target]) == OK
    *lines, summary = capsys.readouterr().out.splitlines()
    assert lines == [
        f"[1] connected  to {target}",
        '[1] sent       25 bytes  "This is the first message"',
        '[1] received   25 bytes  "This is the first message"',
        '[1] sent       26 bytes  "This is the second message"',
        '[1] received   26 bytes  "This is the second message"',
        "[1] closed     51 bytes sent, 51 received",
    ]
    assert re.fullmatch(r"1 connection, 2 messages came back, all 51 bytes intact, in [0-9.]+ [mu]?s", summary)


def test_messages_are_bytes_not_characters(capsys):
    assert client.main(["--loopback", "-m", "Grüße", "-m", "2"]) == OK
    out = capsys.readouterr().out
    assert 'sent       7 bytes  "Gr\u00fc\u00dfe"' in out
    assert "1 connection, 2 messages came back, all 8 bytes intact" in out


def test_loopback_serves_every_connection(capsys):
    assert client.main(["--loopback", "--conns", "12"]) == OK
    out = capsys.readouterr().out
    assert "[ 1] connected" in out
    assert "12 connections, 24 messages came back, all 612 bytes intact" in out


def test_the_environment_sets_what_the_command_line_leaves_out(monkeypatch, capsys):
    monkeypatch.setenv("ECHO_CLIENT_LOOPBACK", "1")
    monkeypatch.setenv("ECHO_CLIENT_CONNS", "3")
    monkeypatch.setenv("ECHO_CLIENT_MESSAGE", "one message")
    assert client.main([]) == OK
    assert "3 connections, 3 messages came back, all 33 bytes intact" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environ", "arguments"),
    [
        ({"PORT": "tcp://10.96.12.3:7"}, []),
        ({"PORT": "http", "HOST": "a:b"}, ["localhost:{}"]),
        ({"PORT": "http"}, ["--host", "localhost", "--port", "{}"]),
        ({"HOST": "", "CONNS": "", "LOOPBACK": "", "TIMEOUT": ""}, ["localhost:{}"]),
        ({"PORT": "http", "HOST": "a:b"}, ["--loopback"]),
    ],
)
def test_the_environment_does_not_matter_where_the_command_line_says_it(server, monkeypatch, environ, arguments):
    port = server(echo).rpartition(":")[2]
    monkeypatch.setattr(client_options, "parser", lambda: with_port(int(port)))
    for name, value in environ.items():
        monkeypatch.setenv(f"ECHO_CLIENT_{name}", value)
    assert client.main(["-4", *(argument.format(port) for argument in arguments)]) == OK


@pytest.mark.parametrize(
    ("environ", "arguments", "complaint"),
    [
        ({"PORT": "http"}, ["localhost"], "ECHO_CLIENT_PORT: 'http' is not a port"),
        ({"HOST": "12345"}, [":7"], "ECHO_CLIENT_HOST: '12345' looks like a port: write --port 12345"),
        (
            {"MESSAGE": "x", "CONNS": "2", "SEED": "1"},
            ["-n", "2", "--seed", "3"],
            "-m says what to send, -n, --seed goes with generated messages: leave out one "
            "(the environment sets ECHO_CLIENT_CONNS, ECHO_CLIENT_MESSAGE)",
        ),
    ],
)
def test_where_the_environment_is_to_blame_it_is_named(monkeypatch, capsys, environ, arguments, complaint):
    for name, value in environ.items():
        monkeypatch.setenv(f"ECHO_CLIENT_{name}", value)
    assert client.main(arguments) == USAGE
    assert f"echo-client: {complaint}" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["-p", "{}"], ["--host", LOCALHOST, "--port", "{}"], [":{}", "-p", "1"]])
def test_the_server_may_be_named_in_several_ways(server, capsys, arguments):
    port = server(echo).rpartition(":")[2]
    assert client.main(["-4", *(argument.format(port) for argument in arguments)]) == OK


# Failures


def test_a_refused_connection_is_one_line_and_status_1(capsys):
    with socket.create_server((LOCALHOST, 0)) as gone:
        port = gone.getsockname()[1]
    assert client.main([f"{LOCALHOST}:{port}"]) == FAILED
    captured = capsys.readouterr()
    assert captured.err == (
        f"echo-client: connection 1: cannot connect to {LOCALHOST}:{port}: connection refused (nothing listens there)\n"
    )
    assert captured.out.startswith("1 of 1 connection failed, 0 messages came back, 0 bytes sent, 0 received")


@pytest.mark.parametrize(
    ("reply", "story"),
    [
        (b"abcdefgH", r"message 1, offset 7: expected 68, got 48 \(one bit flipped\)"),
        (b"abc", r"the server closed at message 1, offset 3: 5 bytes sent did not come back"),
        (b"abcdefgh!", r"1 byte more came back than was sent: 21"),
    ],
)
def test_a_wrong_echo_is_named_and_status_1(server, capsys, reply, story):
    assert client.main([server(answer(reply)), "-m", "abcdefgh"]) == FAILED
    captured = capsys.readouterr()
    assert re.fullmatch(f"echo-client: connection 1: {story}\n", captured.err)
    assert "[1] failed     8 bytes sent" in captured.out


def test_a_silent_server_is_named_and_status_1(server, capsys):
    assert client.main([server(lambda sock: sock.recv(1000) and sock.recv(1000)), "--timeout", "50ms"]) == FAILED
    assert "nothing moved for 0.05 s, waiting for message 1, offset 0" in capsys.readouterr().err


def test_many_failures_are_counted_not_listed(capsys):
    with socket.create_server((LOCALHOST, 0)) as gone:
        port = gone.getsockname()[1]
    assert client.main([f"{LOCALHOST}:{port}", "-c", "15"]) == FAILED
    *lines, last = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert last == "echo-client: 5 more connections failed"


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
def test_a_signal_ends_the_run_with_its_report(server, capsys, signum, status):
    def signal_then_wait(sock: socket.socket) -> None:
        sock.recv(1000)
        os.kill(os.getpid(), signum)
        sock.recv(1000)

    assert client.main([server(signal_then_wait)]) == status
    out = capsys.readouterr().out
    assert "[1] closed     25 bytes sent, 0 received" in out
    assert "interrupted, 0 messages came back, 25 bytes sent, 0 received" in out


def test_a_second_signal_does_not_wait_for_output(server, capsys, monkeypatch):
    """A reader that never reads holds what came back; the first signal would wait for it."""
    monkeypatch.setattr("echopair.loop.AS_ONE", 0.0)

    def signal_twice(sock: socket.socket) -> None:
        sock.sendall(bytes(1 << 17))
        while filled(from_sink) < fcntl.fcntl(from_sink, fcntl.F_GETPIPE_SZ):
            time.sleep(0.001)  # another thread is to do something
        os.kill(os.getpid(), signal.SIGINT)
        with suppress(ConnectionResetError):
            sock.recv(1000)  # till the client, on the first signal, has closed
        os.kill(os.getpid(), signal.SIGINT)

    with piped() as (_, from_sink):
        assert client.main([server(signal_twice), "-", "--verify", "none"]) == INTERRUPTED


def filled(pipe: int) -> int:
    """How many bytes are in a pipe (ioctl_pipe(2), FIONREAD)."""
    number = bytearray(4)
    fcntl.ioctl(pipe, termios.FIONREAD, number)
    return int.from_bytes(number, sys.byteorder)


@contextmanager
def piped() -> Iterator[tuple[int, int]]:
    """Make pipes of the process's standard input and output; yield their other ends."""
    kept = os.dup(0), os.dup(1)
    source, to_source = os.pipe()
    from_sink, sink = os.pipe()
    os.dup2(source, 0)
    os.dup2(sink, 1)
    try:
        yield to_source, from_sink
    finally:
        os.dup2(kept[0], 0)
        os.dup2(kept[1], 1)
        for descriptor in (*kept, source, to_source, from_sink, sink):
            os.close(descriptor)


@pytest.mark.parametrize("at_a_terminal", [True, False])
def test_a_pipe_sums_up_for_a_person_and_not_for_a_script(server, monkeypatch, capsys, at_a_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: at_a_terminal)
    with piped() as (to_source, from_sink):
        os.write(to_source, b"hello")
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, to_source)  # the end of input, and still a descriptor to close
        os.close(null)
        assert client.main([server(echo), "-"]) == OK
        assert os.read(from_sink, 100) == b"hello"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert bool(re.fullmatch(r"echo-client: all 5 bytes intact, in .*B/s\n", captured.err)) == at_a_terminal


# Usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--conns", "0"], "-c/--conns: '0' is too small: give at least 1"),
        (["localhost:99999"], "'99999' is not a port"),
        (["::1"], "'::1' is ambiguous: put an IPv6 address in brackets"),
        (["--port", "0"], "port 0 cannot be connected to"),
        (["--source", "localhost"], "--source: 'localhost' is not an IP address: write one, like 192.0.2.1 or ::1"),
        (["--source", "::1", "-4"], "--source ::1 is not of the family that -4 or -6 selects"),
        (["--merge", "a.json", "--source", "::1"], "--merge reads results: leave out what to connect to"),
        (["--loopback", "x:1"], "--loopback serves itself: leave x:1 out"),
        (["-m", "x", "-n", "2"], "-m says what to send, -n goes with generated messages: leave out one"),
        (["-m", ""], "-m: an empty message cannot come back: give a text"),
        (["-", "-n", "2"], "- sends standard input on one connection: leave out -n"),
        (["-", "-c", "2"], "- sends standard input on one connection"),
        ([""], "HOST:PORT is empty: give a name or an address, or leave it out"),
        (
            ["-n", "1", "--fail-if", "lag.max>10ms"],
            "--fail-if 'lag.max>10ms': only an open loop has a schedule lag",
        ),
        (["a:1", "b:1"], "unexpected argument 'b:1'"),
        (["127.0.0.1", "7"], "unexpected argument '7': write 127.0.0.1:7"),
        (["::1", "7"], "unexpected argument '7': write [::1]:7"),
        (["12345"], "'12345' looks like a port: write :12345"),
        (["--host", "12345"], "--host: '12345' looks like a port: write --port 12345"),
        (["-z", "localhost", "7"], "-z: echo-client always sends something: leave out -z"),
        (["-k"], "-k: connections stay open anyway; --reconnect-every 1 makes one for each message"),
        (["-l", "7"], "-l: echo-client connects; echo-server listens"),
        (["-t", "10"], "-t: use -d for a duration, --timeout for a time limit"),
        (["--host", ""], "--host: the host is empty: give a name or an address"),
        (["--host", "a:1"], "--host: 'a:1' is a host and a port: give the port with --port"),
        (["-m", "x", "--seed", "2"], "-m says what to send, --seed goes with generated messages"),
        (["-c", "1000m"], "--conns 1,000,000,000 needs 1,000,000,016 descriptors, and this process may have "),
        (["-s", "K"], "-s/--size: 'K' is not a size"),
        (["-r", "10"], "-r needs an end: give -d (a duration) or -n (a number of messages)"),
        (["-r", "0"], "-r/--rate: '0' is too small"),
        (["-r", "never"], "-r/--rate: 'never' is not a rate"),
        (["--warmup", "never"], "--warmup must be finite"),
        (["--start-at", "@1"], "--start-at is in the past"),
        (["--start-at", "@nan"], "--start-at: '@nan' is not a moment"),
        (["--start-at", "@inf"], "--start-at: '@inf' is not a moment"),
        (["--dur", "1"], "unknown option --dur (did you mean --duration?)"),
        (["-d", "-1"], "-d/--duration: expected one argument (one that begins with - is written --option=-value)"),
        (["--merge", "a.json", "-d", "1"], "--merge reads results: leave out what to connect to and what to send"),
        (["-o", "/x", "--hdr", "/x"], "--hdr /x would overwrite the file of -o /x: give each file a name of its own"),
        (["--report", "-", "--hdr", "-"], "standard output takes one of --hdr -, --report -: name a file"),
        (["-J", "--hdr", "-"], "standard output takes one of --json, --hdr -: name a file for the others"),
        (["--check", "--json", "--junit", "-"], "standard output takes one of --json, --junit -: name a file"),
        (["-o", "-", "--json-lines"], "--json prints one document and --json-lines many: leave out one"),
        (
            ["-r", "9" * 400, "-n", "1"],
            "-r/--rate: '999999999999...9999999999999' is too large: give at most 1,000,000",
        ),
        (["--start-at", "soon"], "--start-at: 'soon' is not a moment: give it like 2026-01-31T12:00:00Z"),
        (["--percentiles", "50,101"], "--percentiles: '50,101' is not a list of percentiles"),
        (["--json", "--json-lines"], "--json prints one document and --json-lines many: leave out one"),
        (["--fail-if", "p99>20"], "--fail-if: 'p99>20' is not a threshold: give [response.|service.|connect.|lag.]p99"),
        (["--merge", "a.json", "--loopback"], "--merge reads results: leave out what to connect to"),
        (["-o", "/nowhere/x.json"], "--output: cannot write /nowhere/x.json: no such file or directory"),
        (["--verify", "all"], "--verify: invalid choice: 'all'"),
    ],
)
def test_bad_input_is_a_usage_error_in_one_line(capsys, arguments, message):
    assert client.main(arguments) == USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"echo-client: {message}")
    assert line.endswith("; see echo-client --help")


@pytest.mark.parametrize("stream", ["sys.stdin", "sys.stdout"])
def test_a_pipe_needs_both_its_ends(monkeypatch, capsys, stream):
    monkeypatch.setattr(stream, None)
    assert client.main(["-"]) == USAGE
    assert "one is closed" in capsys.readouterr().err
