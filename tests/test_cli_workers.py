"""Workers: they share a port, are started anew, and end together; with forks of real processes."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from echopair.address import listen
from echopair.cli import server as command
from echopair.cli import workers as module
from echopair.cli.command import FAILED, OK, USAGE
from echopair.cli.forking import processors, workers
from echopair.cli.workers import Workers
from echopair.loop import EventLoop
from helpers import HUNG, LOCALHOST, run_client, running_server


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


def test_workers_share_the_port_and_the_connections():
    with running_server("--workers", "2") as (server, port):
        assert run_client(f"{LOCALHOST}:{port}", "-c", "50", "-n", "500").returncode == 0
        assert len(children(server)) == 2
        server.terminate()
        out, log = server.communicate(timeout=HUNG)
    assert server.returncode == 0
    served = [int(line.split()[2]) for line in log.splitlines() if " served " in line]
    assert sum(served) == 50
    assert len(served) == 2
    assert min(served) > 0  # by the kernel's hash of 50 pairs of ports
    assert out == ""  # after the line that says where


def test_a_worker_that_dies_is_started_anew_and_nobody_is_refused_meanwhile():
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
    assert log.count("was ended by signal 9; starting it anew in 100 ms") == 2


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_all_workers_finish_what_is_owed(signum):
    with running_server("--workers", "2") as (server, port):
        peers = [socket.create_connection((LOCALHOST, port), timeout=HUNG) for _ in range(10)]
        for peer in peers:
            peer.sendall(b"hello")
        server.send_signal(signum)
        for peer in peers:
            assert peer.recv(100) == b"hello"
            peer.close()
        assert server.wait(HUNG) == 0
        server.communicate()


def test_a_second_signal_does_not_wait():
    with running_server("--workers", "2", "--drain-timeout", "1h") as (server, port):
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # it may grow to tens of MiB otherwise
        peer.connect((LOCALHOST, port))
        peer.settimeout(0.3)
        with pytest.raises(TimeoutError):
            peer.sendall(bytes(64 << 20))
        server.terminate()
        log = b""
        while "stopping once" not in (line := server.stderr.readline()):
            log += line.encode()
        server.terminate()
        assert server.wait(HUNG) == 0
        server.communicate()
        peer.close()


def test_workers_end_with_their_parent():
    with running_server("--workers", "2") as (server, _):
        until(lambda: len(children(server)) == 2)
        orphans = children(server)
        server.kill()
        server.wait()
        until(lambda: all(gone(process) for process in orphans))


def test_workers_need_fork_and_a_shared_port(monkeypatch, capsys):
    monkeypatch.delattr(socket, "SO_REUSEPORT")
    assert command.main(["--workers", "2"]) == USAGE
    assert "--workers needs fork() and SO_REUSEPORT" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "many", "-1", "1025", "", "9" * 5000])
def test_a_number_of_workers_is_one(text, capsys):
    assert command.main([f"--workers={text}"]) == USAGE
    assert "is not a number of workers: give one from 1 to 1024, or auto" in capsys.readouterr().err


def test_auto_is_one_a_processor(monkeypatch):
    assert workers("auto") == processors() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert processors() == os.cpu_count()


def supervise(loop: EventLoop, *works, patience: float = float("inf")) -> Workers:
    """Run workers in this process's loop."""
    sets = [listen([LOCALHOST], 0, shared=True) for _ in works]
    return Workers(loop, sets, lambda listeners, lifeline: works[sets.index(listeners)](lifeline), patience)


def wait_for_the_end(lifeline: int) -> int:
    os.read(lifeline, 1)
    return OK


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


def test_a_worker_that_raises_has_failed_and_is_started_anew_less_and_less_often(caplog):
    def broken(_lifeline: int) -> int:
        raise ZeroDivisionError("a bug")

    with EventLoop() as loop:
        workers = supervise(loop, broken)
        until(lambda: loop.run_once(0.01) or caplog.text.count("starting it anew") == 3)
        assert "worker 1 ended with status 1; starting it anew in 400 ms" in caplog.text
        loop.call_soon(workers.stop)
        loop.run()
        assert workers.status == OK  # it was not running at the end
        workers.close()


def test_a_worker_that_is_past_heeding_signals_may_be_ended_by_the_second(monkeypatch):
    def finishing(_lifeline: int) -> int:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        while True:
            time.sleep(1)

    with EventLoop() as loop:
        workers = supervise(loop, finishing)
        (process,) = workers._running
        until(lambda: b"SigCgt:\t" in Path(f"/proc/{process}/status").read_bytes() and not caught(process))
        loop.call_soon(workers.stop)
        loop.call_soon(workers.stop)
        loop.run()
        assert workers.status == OK
        workers.close()


@pytest.mark.parametrize("times", [1, 2])
def test_a_worker_that_does_not_end_is_killed(monkeypatch, caplog, times):
    def deaf(_lifeline: int) -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)

    monkeypatch.setattr(module, "HURRY", 0.05)
    with EventLoop() as loop:
        workers = supervise(loop, deaf, patience=0.05 if times == 1 else 1000.0)
        until(lambda: all(ignored(process) for process in workers._running))
        for _ in range(times):
            loop.call_soon(workers.stop)
        loop.run()
        assert workers.status == FAILED
        assert "killing worker 1, which did not end" in caplog.text
        workers.close()


def ignored(process: int) -> int:
    """Whether a process ignores SIGTERM (proc(5), SigIgn)."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.partition("SigIgn:")[2].split()[0], 16) & (1 << (signal.SIGTERM - 1))


def caught(process: int) -> int:
    """Whether a process handles SIGTERM (proc(5), SigCgt)."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.partition("SigCgt:")[2].split()[0], 16) & (1 << (signal.SIGTERM - 1))


def test_closing_ends_what_is_left(monkeypatch):
    def deaf(_lifeline: int) -> int:
        while True:
            time.sleep(1)

    with EventLoop() as loop:
        workers = supervise(loop, deaf, deaf)
        processes = list(workers._running)
        workers.close()
        assert all(gone(process) for process in processes)
        assert not workers._running


def test_a_worker_that_has_lived_long_is_started_anew_soon(monkeypatch, caplog):
    monkeypatch.setattr(module, "YOUNG", 0.0)

    def short(_lifeline: int) -> int:
        return OK

    with EventLoop() as loop:
        workers = supervise(loop, short)
        until(lambda: loop.run_once(0.01) or caplog.text.count("starting it anew in 100 ms") == 3)
        loop.call_soon(workers.stop)
        loop.run()
        workers.close()
