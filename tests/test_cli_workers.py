"""Workers: they share a port and a limit, are started again, and end together; with forks of real processes."""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import socket
import time
from functools import partial
from pathlib import Path

import pytest

from echopair.address import listen
from echopair.cli import server as command
from echopair.cli import workers as module
from echopair.cli.command import FAILED, OK, USAGE
from echopair.cli.workers import ABSENT, Spread, Workers
from echopair.loop import EventLoop
from helpers import HUNG, LOCALHOST, run_client, running, running_server

APART = 0.6  # seconds; two signals that come closer together may count as one


def children(process) -> list[int]:
    """The processes that a process has started and that have not ended."""
    return [int(each) for each in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def until(condition) -> None:
    deadline = time.monotonic() + HUNG
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)  # another process is to do something


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def connect(port: int, **options: int) -> socket.socket:
    peer = socket.socket()
    for name, value in options.items():
        peer.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    peer.settimeout(HUNG)
    peer.connect((LOCALHOST, port))
    return peer


def queued(port: int) -> int:
    """How many connections wait in the listen queue of a port (proc(5), /proc/net/tcp: rx_queue of a listener)."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, queues, *_ = line.split()
        if state == "0A" and int(local.rpartition(":")[2], 16) == port:
            return int(queues.rpartition(":")[2], 16)
    raise AssertionError("nobody listens")


def test_workers_share_the_port_and_the_connections():
    with running_server("--workers", "2", "--max-conns", "50") as (server, port):
        peers = [connect(port) for _ in range(50)]
        for peer in peers:
            peer.sendall(b"hello")
        for peer in peers:
            assert peer.recv(100) == b"hello"
        for peer in peers:  # now, so that none got a place that another one had had
            peer.close()
        assert len(children(server)) == 2
        server.terminate()
        out, log = server.communicate(timeout=HUNG)
    assert server.returncode == 0
    served = [int(line.split()[2]) for line in log.splitlines() if " served " in line]
    assert served == [25, 25]
    assert out == ""  # after the line that says where


def test_the_limit_of_connections_is_the_service_s_and_a_worker_that_dies_gives_its_places_back():
    with running_server("--workers", "3", "--max-conns", "4") as (server, port):
        peers = [connect(port) for _ in range(9)]
        for peer in peers:
            peer.sendall(b"hello")
        until(lambda: queued(port) == 5)
        for peer in peers[:4]:  # the queue is first in, first out
            assert peer.recv(100) == b"hello"
            peer.sendall(b"again")
        for peer in peers[:4]:
            assert peer.recv(100) == b"again"
        assert queued(port) == 5
        os.kill(children(server)[0], signal.SIGKILL)
        left = [peer for peer in peers[:4] if not ended(peer)]
        until(lambda: queued(port) == len(left) + 1)
        for peer in peers[4 : 8 - len(left)]:
            assert peer.recv(100) == b"hello"
        for peer in peers:
            peer.close()


def ended(peer: socket.socket) -> bool:
    """Whether a connection to a worker was ended with it; the others still echo."""
    try:
        peer.sendall(b"there?")
        return peer.recv(100) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("other", [("--workers", "2"), ()])
def test_a_second_server_is_refused_the_port(other):
    with (
        running_server("--workers", "2") as (_, port),
        running("echo-server", "--host", LOCALHOST, "--port", str(port), *other) as second,
    ):
        _, said = second.communicate(timeout=HUNG)
    assert second.returncode == FAILED
    assert said.startswith(f"echo-server: cannot listen on {LOCALHOST}:{port}: address already in use (choose")


def test_the_worker_with_the_fewest_connections_is_next():
    spread = Spread(3)
    assert [spread.turn(number, 0) for number in range(3)] == [1, 1, 1]
    assert [spread.turn(number, 1) for number in range(3)] == [0, 0, 1]  # the last one still saw others with 1
    assert spread.turn(1, 80) < 0
    assert spread.turn(2, 80) < 0
    assert spread.turn(0, 80) == 80 // module.SLACK + 1  # of many connections a few do not matter
    spread.connections[0] = spread.connections[1] = ABSENT
    assert spread.turn(2, 10_000) == 10_000 // module.SLACK + 1


# Signals


def read_log(server, text: bytes, nudge=lambda: None) -> None:
    """Read the log until it says this; while it says nothing, `nudge()` now and then."""
    said = b""
    while text not in said:
        if select.select([server.stderr], [], [], APART)[0]:
            read = os.read(server.stderr.fileno(), 65536)
            assert read, f"not said in {said!r}"
            said += read
        else:
            nudge()


def slow_readers(port: int, count: int, each: int) -> list[socket.socket]:
    """Peers that have sent so many bytes and read none of the echo."""
    peers = [connect(port, SO_RCVBUF=4096) for _ in range(count)]
    for peer in peers:
        peer.sendall(bytes(each))
    return peers


def received(peer: socket.socket) -> int:
    """How many bytes a peer reads up to EOF."""
    total = 0
    while data := peer.recv(1 << 20):
        total += len(data)
    peer.close()
    return total


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_whole_group_loses_nothing_that_is_owed(signum):
    options = ("--workers", "2", "--no-zero-copy", "--max-buffer", "4M", "--drain-timeout", "1h")
    with running_server(*options, start_new_session=True, preexec_fn=heed_hang_ups) as (server, port):
        peers = slow_readers(port, 8, 2 << 20)
        os.killpg(server.pid, signum)
        read_log(server, b"draining ")
        assert [received(peer) for peer in peers] == [2 << 20] * 8
        server.communicate(timeout=HUNG)
    assert server.returncode == OK


def heed_hang_ups() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup(1)


def test_a_signal_to_a_worker_alone_is_left_to_its_parent():
    with running_server("--workers", "2") as (server, port), connect(port) as peer:
        until(lambda: len(children(server)) == 2)
        workers = children(server)
        for worker in workers:
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(worker, signum)
        peer.sendall(b"hello")
        assert peer.recv(100) == b"hello"
        assert children(server) == workers


def test_a_second_signal_to_the_group_does_not_wait_and_what_that_loses_is_a_failure():
    with running_server("--workers", "2", "--drain-timeout", "1h", start_new_session=True) as (server, port):
        peer = connect(port, SO_RCVBUF=4096)
        peer.settimeout(0.3)
        with pytest.raises(TimeoutError):  # every buffer on the way is full
            peer.sendall(bytes(64 << 20))
        os.killpg(server.pid, signal.SIGTERM)
        read_log(server, b"draining ")
        again = partial(os.killpg, server.pid, signal.SIGTERM)
        again()
        read_log(server, b"warning: closing 1 connection still active, ", again)
        server.communicate(timeout=HUNG)
        peer.close()
    assert server.returncode == FAILED


def test_workers_end_with_their_parent():
    with running_server("--workers", "2") as (server, _):
        until(lambda: len(children(server)) == 2)
        orphans = children(server)
        server.kill()
        server.wait()
        until(lambda: all(gone(process) for process in orphans))


# The parent


def supervise(loop: EventLoop, *works, patience: float = float("inf")) -> Workers:
    """Run workers in this process's loop, each with work of its own."""
    workers = Workers(loop, listen([LOCALHOST], 0), len(works), lambda n, lifeline, _: works[n](lifeline), patience)
    workers.start()
    return workers


def wait_for_the_end(lifeline: int) -> int:
    os.read(lifeline, 1)
    return OK


def deaf(_lifeline: int) -> int:
    while True:
        time.sleep(1)


def test_a_worker_that_dies_is_started_again_and_nobody_is_refused_meanwhile():
    with running_server("--workers", "2") as (server, port):
        until(lambda: len(children(server)) == 2)
        first = children(server)
        for process in first:
            os.kill(process, signal.SIGKILL)
        done = run_client(f"{LOCALHOST}:{port}", "-c", "20", "-n", "20")
        assert done.returncode == 0, done.stdout
        assert not set(children(server)) & set(first)
        server.terminate()
        _, log = server.communicate(timeout=HUNG)
    assert server.returncode == 0
    assert log.count("was ended by signal 9; starting it again in 100 ms") == 2


def test_workers_need_fork(monkeypatch, capsys):
    monkeypatch.delattr(os, "fork")
    assert command.main(["--workers", "2"]) == USAGE
    assert "--workers needs fork()" in capsys.readouterr().err


def test_the_worst_status_is_that_of_all():
    def fail_at_the_end(lifeline: int) -> int:
        os.read(lifeline, 1)
        return FAILED

    with EventLoop() as loop:
        workers = supervise(loop, wait_for_the_end, fail_at_the_end)
        loop.call_soon(workers.stop)
        loop.run()
        assert workers.status == FAILED
        workers.close()


def test_a_worker_that_raises_has_failed_and_is_started_again_less_and_less_often(caplog):
    def broken(_lifeline: int) -> int:
        raise ZeroDivisionError("a bug")

    with EventLoop() as loop:
        workers = supervise(loop, broken)
        until(lambda: loop.run_once(0.01) or caplog.text.count("starting it again") == 3)
        assert "worker 1 ended with status 1; starting it again in 400 ms" in caplog.text
        loop.call_soon(workers.stop)
        loop.run()
        assert workers.status == OK  # it was not running at the end
        workers.close()


def test_a_worker_that_waits_to_be_started_again_is_not_once_all_end(caplog):
    def broken(_lifeline: int) -> int:
        raise ZeroDivisionError("a bug")

    with EventLoop() as loop:
        workers = supervise(loop, broken)
        until(lambda: loop.run_once(0.01) or "starting it again" in caplog.text)
        workers.stop()
        assert not any(timer.callback for timer in workers._restarts.values())
        workers.close()


def test_a_worker_that_has_lived_long_is_started_again_soon(monkeypatch, caplog):
    monkeypatch.setattr(module, "YOUNG", 0.0)

    def short(_lifeline: int) -> int:
        return OK

    with EventLoop() as loop:
        workers = supervise(loop, short)
        until(lambda: loop.run_once(0.01) or caplog.text.count("starting it again in 100 ms") == 3)
        loop.call_soon(workers.stop)
        loop.run()
        workers.close()


@pytest.mark.parametrize("times", [1, 2])
def test_a_worker_that_does_not_end_is_killed(monkeypatch, caplog, times):
    monkeypatch.setattr(module, "HURRY", 0.05)
    with EventLoop() as loop:
        workers = supervise(loop, deaf, patience=0.05 if times == 1 else 1000.0)
        for _ in range(times):
            loop.call_soon(workers.stop)
        loop.run()
        assert workers.status == FAILED
        assert "killing worker 1, which did not end" in caplog.text
        workers.close()


def test_a_worker_is_told_again_by_the_second_call():
    def hear_twice(lifeline: int) -> int:
        return OK if os.read(lifeline, 1) + os.read(lifeline, 1) == b".." else FAILED

    with EventLoop() as loop:
        workers = supervise(loop, hear_twice)
        for _ in range(2):
            loop.call_soon(workers.stop)
        loop.run()
        assert workers.status == OK
        workers.close()


def test_a_worker_that_has_just_ended_can_be_told_to_end(caplog):
    with EventLoop() as loop:
        workers = supervise(loop, lambda _lifeline: OK)
        (process,) = workers._running
        until(lambda: gone(process))
        workers.stop()  # before the loop has come to the end of that process
        loop.run()
        assert workers.status == OK
        workers.close()


def test_closing_ends_what_is_left():
    with EventLoop() as loop:
        workers = supervise(loop, deaf, deaf)
        processes = list(workers._running)
        workers.close()
        assert all(gone(process) for process in processes)
        assert not workers._running


class Fork:
    """fork(2) with a script: the processes that it makes, and which of its calls fail."""

    def __init__(self, monkeypatch, *fails: int, error: int = errno.EAGAIN) -> None:
        self.calls = 0
        self.made: list[int] = []
        self._fails = fails
        self._error = error
        self._fork = os.fork
        monkeypatch.setattr(os, "fork", self)

    def __call__(self) -> int:
        self.calls += 1
        if self.calls in self._fails:
            raise OSError(self._error, os.strerror(self._error))
        process = self._fork()
        self.made.append(process)
        return process


def test_a_worker_that_cannot_be_forked_is_tried_again_less_and_less_often(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    fork = Fork(monkeypatch, 2, 3)
    with EventLoop() as loop:
        workers = supervise(loop, wait_for_the_end)
        os.kill(fork.made[0], signal.SIGKILL)
        until(lambda: loop.run_once(0.01) or len(fork.made) == 2)
        loop.call_soon(workers.stop)
        loop.run()
        assert workers.status == OK
        workers.close()
    refused = "cannot fork worker 1: resource temporarily unavailable (no more processes are allowed: raise ulimit -u "
    told = [message for message in caplog.messages if "again" in message]
    assert told[0] == "worker 1 was ended by signal 9; starting it again in 100 ms"
    assert [message.startswith(refused) for message in told[1:]] == [True, True]
    assert [message.rpartition(" in ")[2] for message in told[1:]] == ["200 ms", "400 ms"]


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (errno.EAGAIN, "resource temporarily unavailable (no more processes are allowed: raise ulimit -u or the"),
        (errno.ENOMEM, "cannot allocate memory (too little memory: use fewer --workers)"),
        (errno.ENOSYS, "function not implemented (use fewer --workers)"),
    ],
)
def test_a_start_without_room_for_all_workers_takes_one_line_and_leaves_nothing(monkeypatch, capsys, error, remedy):
    fork = Fork(monkeypatch, 3, error=error)
    options = ["--workers", "4", "--host", LOCALHOST, "--port", "0", "--quiet"]
    assert command.main(options) == FAILED
    said = capsys.readouterr()
    assert said.err.startswith(f"echo-server: cannot fork worker 3: {remedy}")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert len(fork.made) == 2
    assert all(gone(process) for process in fork.made)
