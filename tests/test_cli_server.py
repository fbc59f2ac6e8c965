"""The `echo-server` command, run in this process; a thread plays the peers and sends the signals."""

from __future__ import annotations

import os
import re
import resource
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from echopair.address import listen
from echopair.cli import server
from echopair.cli import server as command
from echopair.cli.command import FAILED, OK, USAGE
from echopair.loop import EventLoop
from echopair.server import EchoServer
from helpers import HUNG, LOCALHOST, connected_to, run_until, running_server, unix_listener


@contextmanager
def stdout_pipe(monkeypatch) -> Iterator[int]:
    """Make standard output a pipe, and yield its reading end."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        yield reader
    os.close(reader)


def serve(monkeypatch, options: list[str], peer: Callable[[int], None], signum: int = signal.SIGTERM) -> int:
    """Run the command while `peer(port)` runs in a thread and, at its end, a signal; return the exit status."""
    with stdout_pipe(monkeypatch) as reader:

        def play() -> None:
            line = b""
            while not line.endswith(b"\n"):
                line += os.read(reader, 1)
            try:
                peer(int(line.rpartition(b":")[2]))
            finally:
                os.kill(os.getpid(), signum)

        thread = threading.Thread(target=play)
        thread.start()
        status = server.main(["--host", LOCALHOST, "--port", "0", *options])
        thread.join(HUNG)
        assert not thread.is_alive()
        return status


def connect(port: int) -> socket.socket:
    return socket.create_connection((LOCALHOST, port), timeout=HUNG)


def connect_without_reading(port: int) -> socket.socket:
    """A peer that has sent until every buffer on the way is full; with a default one, that is tens of MiB."""
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    peer.connect((LOCALHOST, port))
    peer.settimeout(0.3)
    with pytest.raises(TimeoutError):
        peer.sendall(bytes(64 << 20))
    return peer


def connect_for_ever(port: int) -> None:
    while True:
        connect(port).close()


def hello(port: int) -> None:
    with connect(port) as peer:
        peer.sendall(b"hello")
        assert peer.recv(100) == b"hello"
        peer.shutdown(socket.SHUT_WR)
        assert peer.recv(100) == b""


@pytest.fixture
def lines(capsys) -> Callable[[], list[str]]:
    """What was logged so far, without the time of day."""
    return lambda: [re.sub(r"^[0-9:.]{12}  ", "", line) for line in capsys.readouterr().err.splitlines()]


def test_serves_and_sums_up(monkeypatch, lines):
    assert serve(monkeypatch, [], hello) == OK
    connected, closed, summary = lines()
    assert re.fullmatch(r"127\.0\.0\.1:\d+  connected \(1 open\)", connected)
    assert re.fullmatch(r"127\.0\.0\.1:\d+  closed: 5 bytes received, 5 bytes sent", closed)
    assert re.fullmatch(r"served 1 connection in [0-9.]+ [mu]?s: 5 bytes received, 5 bytes sent", summary)


def test_verbose_shows_payloads(monkeypatch, lines):
    serve(monkeypatch, ["-v"], hello)
    assert any(line.endswith('echoes 5 bytes  "hello"') for line in lines())


def test_quiet_logs_nothing_of_a_healthy_life(monkeypatch, lines):
    serve(monkeypatch, ["--quiet"], hello)
    assert lines() == []


def test_the_environment_sets_what_the_command_line_leaves_out(monkeypatch, lines):
    monkeypatch.setenv("ECHO_SERVER_QUIET", "yes")
    monkeypatch.setenv("ECHO_SERVER_PORT", "1")
    assert serve(monkeypatch, [], hello) == OK
    assert lines() == []


def test_an_idle_connection_is_ended(monkeypatch, lines):
    def idle(port: int) -> None:
        with connect(port) as peer:
            assert peer.recv(100) == b""

    serve(monkeypatch, ["--idle-timeout", "10ms"], idle)
    assert any("ended (idle for 0.01 s)" in line for line in lines())


@contextmanager
def hang_up(handler: signal.Handlers) -> Iterator[None]:
    """Have SIGHUP handled like this when the command starts; the tests may run under nohup(1)."""
    before = signal.signal(signal.SIGHUP, handler)
    yield
    assert signal.getsignal(signal.SIGHUP) == handler
    signal.signal(signal.SIGHUP, before)


def test_a_hang_up_drains_too(monkeypatch, lines):
    with hang_up(signal.SIG_DFL):
        assert serve(monkeypatch, [], hello, signal.SIGHUP) == OK
    assert any(line.startswith("served 1 connection in ") for line in lines())


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_hang_up_that_is_ignored_stays_so(monkeypatch, workers):
    def hangs_up_first(port: int) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        hello(port)

    with hang_up(signal.SIG_IGN):
        assert serve(monkeypatch, ["--workers", workers], hangs_up_first) == OK


@pytest.mark.parametrize(("told", "status"), [(b".", OK), (b"", OK), (b"..", FAILED)])
def test_a_worker_goes_by_its_lifeline(told, status):
    """A byte, or the end of the parent, drains it; a second byte does not wait."""
    lifeline, ours = os.pipe()
    (listener,) = listen([LOCALHOST], 0)
    port = listener.getsockname()[1]

    def parent() -> None:
        if status == OK:
            hello(port)
        else:
            peers.append(connect_without_reading(port))
        os.write(ours, told)
        os.close(ours)

    peers: list[socket.socket] = []
    thread = threading.Thread(target=parent)
    thread.start()
    args = command._parser().parse(["--drain-timeout", "1h", "--workers", "2", "--max-conns", "3"], {})
    assert command._work(args, [listener], 1, lifeline, lambda _connections: 1) == status
    thread.join(HUNG)
    for peer in peers:
        peer.close()
    os.close(lifeline)


def test_a_drain_that_goes_on_is_not_begun_again(caplog):
    caplog.set_level("INFO")
    with EventLoop() as loop:
        server = EchoServer(loop, [unix_listener()])
        peer = connected_to(server.addresses[0])
        run_until(loop, lambda: server.connections)
        stop = command.Stop(loop, server, 5.0)
        stop.drain()
        stop.drain()
        peer.close()
        loop.run()
    assert caplog.text.count("draining 1 connection, then stopping") == 1


def test_the_first_signal_drains_and_the_second_does_not_wait(monkeypatch, lines):
    def never_reads(port: int) -> None:
        peers.append(connect_without_reading(port))
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(OSError, match=r"refused|reset"):  # the first signal has closed the listener
            connect_for_ever(port)

    monkeypatch.setattr("echopair.loop.AS_ONE", 0.0)
    peers: list[socket.socket] = []
    status = serve(monkeypatch, ["--drain-timeout", "1h"], never_reads)
    peers[0].close()
    assert status == FAILED
    logged = lines()
    assert any(line.startswith("draining ") for line in logged)
    assert any(
        re.match(r"warning: closing [0-9,]+ connections? still active, [0-9,]+ bytes unsent", line) for line in logged
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--port", "99999"], USAGE, "-p/--port: '99999' is not a port: give a number from 0 to 65535"),
        (["--prot", "1"], USAGE, "unknown option --prot (did you mean --port?)"),
        (["--max-conns", "0"], USAGE, "--max-conns: '0' is too small: give at least 1"),
        (["--max-buffer", "K"], USAGE, "--max-buffer: 'K' is not a size"),
        (["-v", "-q"], USAGE, "-q/--quiet: not allowed with argument -v/--verbose"),
        (["-4", "-6"], USAGE, "-6/--ipv6: not allowed with argument -4/--ipv4"),
        (["--host", "nosuch.invalid"], FAILED, "cannot resolve 'nosuch.invalid'"),
    ],
)
def test_bad_input_takes_one_line_and_the_right_status(capsys, arguments, status, message):
    assert server.main(arguments) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"echo-server: {message}")


def test_a_taken_port_is_named_with_the_remedy(capsys):
    with socket.create_server((LOCALHOST, 0)) as other:
        port = other.getsockname()[1]
        assert server.main(["--host", LOCALHOST, "--port", str(port)]) == FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"echo-server: cannot listen on {LOCALHOST}:{port}: address already in use (choose another port"
    )


@pytest.mark.parametrize("host", ["", "[]"])
def test_a_host_that_is_empty_does_not_mean_every_interface(capsys, host):
    assert server.main(["--host", host]) == USAGE
    assert "the host is empty" in capsys.readouterr().err


def test_an_ipv6_host_comes_in_two_brackets_or_none(capsys):
    assert server.main(["--host", "[::1", "--port", "0"]) == USAGE
    assert "'[::1' is not an address: write [IPV6]:PORT, like [::1]:12345" in capsys.readouterr().err


def test_a_port_is_no_host(capsys):
    assert server.main(["--host", "12345"]) == USAGE
    assert "--host: '12345' looks like a port: write --port 12345" in capsys.readouterr().err


@pytest.mark.parametrize("habit", ["-k", "-l", "-t", "-u", "-U", "-z", "--tls", "--udp"])
def test_known_habits_get_an_answer(capsys, habit):
    assert server.main([habit]) == USAGE
    assert re.match(rf"echo-server: {habit}: (echo-server|use) ", capsys.readouterr().err)


DESCRIPTORS = 150
NOT_READING, OTHERS = 60, 50


def test_peers_that_do_not_read_leave_places_for_as_many_as_max_conns_says():
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))

    options = ("-q", "--max-conns", str(NOT_READING + OTHERS))
    with running_server(*options, preexec_fn=limit) as (_, port), ExitStack() as peers:
        stuck = [peers.enter_context(connect(port)) for _ in range(NOT_READING)]
        for peer in stuck:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            peer.setblocking(False)
        while writable := select.select([], stuck, [], 0.2)[1]:
            for peer in writable:
                with suppress(BlockingIOError):
                    peer.send(bytes(1 << 17))
        for _ in range(OTHERS):
            other = peers.enter_context(connect(port))
            other.sendall(b"hello")
            assert other.recv(100) == b"hello"


def test_more_connections_than_descriptors_allow_are_named_at_the_start(monkeypatch, lines):
    assert serve(monkeypatch, ["-q", "--max-conns", "100m"], hello) == OK
    (line,) = lines()
    assert re.fullmatch(r"warning: --max-conns 100000000 is more than \d+ descriptors allow: raise ulimit -n", line)
