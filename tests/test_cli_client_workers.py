"""A load shared out over processes: together they do what one would, and are told of as if they were one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from math import fsum

import pytest

from echopair.cli import client as command
from echopair.cli.client_workers import PATIENCE, TOLD, Reporter, SharedLoad
from echopair.cli.command import FAILED, INTERRUPTED, OK, USAGE
from echopair.client.load import Plan, Watcher
from echopair.connection import Connection
from echopair.loop import EventLoop
from echopair.measure.tally import Tally
from helpers import HUNG, LOCALHOST, Recorder, run_until, running_server
from test_cli_workers import Fork, children, until
from test_measure_schema import VALIDATOR


@pytest.fixture(scope="module")
def port():
    with running_server("-q") as (server, port):
        yield port
        server.terminate()
        server.communicate()


def run(capsys, *argv: str) -> tuple[int, dict]:
    status = command.main([*argv, "--json"])
    document = json.loads(capsys.readouterr().out)
    VALIDATOR.validate(document)
    return status, document


@pytest.mark.parametrize("options", [(), ("-r", "100k"), ("-w", "4"), ("--reconnect-every", "10"), ("-s", "100K")])
def test_a_count_is_shared_out_over_the_workers(capsys, port, options):
    status, document = run(capsys, f":{port}", "-c", "5", "-n", "403", "--workers", "3", "--seed", "1", *options)
    assert status == OK
    size = document["load"]["size"]
    assert document["messages"] == {"sent": 403, "echoed": 403, "mismatched": 0, "unanswered": 0, "not_sent": 0}
    assert document["bytes"] == {"sent": 403 * size, "received": 403 * size}
    assert document["load"]["workers"] == 3
    assert document["load"]["connections"] == 5
    assert document["latency_us"]["response"]["count"] == 403
    assert document["connections"]["established"] == document["latency_us"]["connect"]["count"]
    assert document["tcp"]["rtt_us"] > 0


@pytest.mark.parametrize("rate", [(), ("-r", "2k")])
def test_intervals_add_up_and_have_percentiles(capsys, port, rate):
    status, document = run(capsys, f":{port}", "-c", "4", "-d", "0.55s", "-i", "0.1s", "--workers", "2", *rate)
    assert status == OK
    intervals = document["intervals"]
    assert sum(interval["messages"] for interval in intervals) == document["messages"]["echoed"]
    assert sum(interval["bytes"] for interval in intervals) == document["bytes"]["received"]
    assert fsum(interval["duration_s"] for interval in intervals) == pytest.approx(document["duration_s"], abs=0.05)
    assert all(interval["connections"] == 4 for interval in intervals[:-1])
    assert all(interval["response_us"]["99"] > 0 for interval in intervals if interval["messages"])
    if rate:
        assert document["messages"]["sent"] == 1100
        assert document["throughput"]["messages_per_s"] == pytest.approx(1100 / document["duration_s"], rel=0.01)
        assert document["latency_us"]["schedule_lag"]["count"] == 1100


def test_a_warm_up_leaves_no_trace(capsys, port):
    status, document = run(capsys, f":{port}", "-c", "3", "-n", "30", "-r", "1k", "--warmup", "0.2s", "--workers", "2")
    assert status == OK
    assert document["messages"]["sent"] == document["messages"]["echoed"] == 30
    assert document["bytes"]["received"] == 30 * 1024


@pytest.mark.parametrize(("conns", "count", "workers"), [(1, 1, 1), (5, 403, 3), (7, 3, 2), (4, 0, 4), (10, 99, 4)])
def test_workers_have_every_connection_and_every_message_between_them(conns, count, workers):
    plans = [Plan(conns=conns, count=count, worker=worker, workers=workers) for worker in range(workers)]
    assert sorted(number for plan in plans for number in plan.numbers) == list(range(1, conns + 1))
    assert sum(plan.share for plan in plans) == count
    assert max(len(plan.numbers) for plan in plans) - min(len(plan.numbers) for plan in plans) <= 1


def test_all_serve_one_server_of_their_own(capsys):
    status, document = run(capsys, "--loopback", "-c", "4", "-n", "400", "--workers", "2")
    assert status == OK
    assert document["messages"]["echoed"] == 400


def test_there_are_no_more_workers_than_connections(capsys, port):
    status, document = run(capsys, f":{port}", "-c", "2", "-n", "2", "--workers", "8")
    assert status == OK
    assert document["load"]["workers"] == 2


def test_failures_of_all_workers_are_counted_and_exit_with_1(capsys):
    with socket.socket() as nobody:
        nobody.bind((LOCALHOST, 0))
        status, document = run(capsys, f":{nobody.getsockname()[1]}", "-c", "4", "-n", "40", "--workers", "2", "-4")
    assert status == FAILED
    assert document["connections"] == {"attempted": 4, "established": 0, "failed": 4, "closed_early": 0}
    assert document["messages"]["not_sent"] == 40
    (error,) = document["errors"]
    assert (error["phase"], error["error"], error["count"]) == ("connect", "ECONNREFUSED", 4)
    assert document["intervals"] == []


class Client:
    """An echo-client with two workers, in a process of its own, that has begun to measure."""

    def __init__(self, port: int, *options: str) -> None:
        command = [sys.executable, "-m", "echopair", "client", f":{port}", "-c", "4", "--workers", "2", "--json-lines"]
        self.process = subprocess.Popen(
            [*command, *(options or ("-d", "1h", "-i", "0.1s"))],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        while json.loads(self.process.stdout.readline())["event"] != "interval":
            pass

    def end(self) -> tuple[int, dict]:
        out, _ = self.process.communicate(timeout=HUNG)
        return self.process.returncode, json.loads(out.splitlines()[-1])["data"]


@pytest.mark.parametrize("to_all", [False, True])
def test_a_signal_ends_all_and_what_they_did_is_told(port, to_all):
    client = Client(port)
    if to_all:  # as a terminal does
        for process in children(client.process):
            os.kill(process, signal.SIGINT)
    client.process.send_signal(signal.SIGINT)
    status, document = client.end()
    assert status == document["exit_status"] == INTERRUPTED
    assert document["messages"]["echoed"] > 0
    assert sum(interval["messages"] for interval in document["intervals"]) == document["messages"]["echoed"]
    assert document["errors"] == []


def test_a_worker_that_dies_is_an_error_and_the_others_go_on(port):
    client = Client(port, "-d", "1s", "-i", "0.1s")
    os.kill(children(client.process)[0], signal.SIGKILL)
    status, document = client.end()
    assert status == FAILED
    (error,) = document["errors"]
    assert (error["phase"], error["error"]) == ("worker", "died")
    assert error["example"] == "worker 1 was ended by signal 9: of what it did, only whole intervals are in this report"
    assert document["messages"]["echoed"] > 0
    assert document["connections"]["attempted"] in (2, 4)
    assert sum(interval["messages"] for interval in document["intervals"]) == document["messages"]["echoed"]
    assert sum(interval["bytes"] for interval in document["intervals"]) == document["bytes"]["received"]


def test_workers_end_with_their_parent(port):
    client = Client(port)
    orphans = children(client.process)
    client.process.kill()
    client.process.communicate()
    until(lambda: not any(os.path.exists(f"/proc/{process}") for process in orphans))


def test_closing_ends_workers_that_do_not_end_themselves(port):
    with EventLoop() as loop:
        address = (socket.AF_INET, (LOCALHOST, int(port)))
        load = SharedLoad(loop, [address], Plan(conns=2, duration=60.0, workers=2), Watcher())
        run_until(loop, lambda: load.stage == "measuring" and load.echoed and load.connected == 2)
        processes = [worker.process for worker in load._workers]
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        load.stop()
        load.close()
        assert not any(os.path.exists(f"/proc/{process}") for process in processes)
        loop.run_once(0)
        assert load.tally.errors["worker", "died"].count == 2


def test_what_workers_told_before_they_died_adds_up():
    with running_server("-q", "--corrupt-rate", "0.01%") as (server, port), EventLoop() as loop:
        address = (socket.AF_INET, (LOCALHOST, int(port)))
        plan = Plan(conns=4, duration=60.0, interval=0.1, workers=2, timeout=1.0)
        load = SharedLoad(loop, [address], plan, Watcher())
        run_until(loop, lambda: all(worker.failures and worker.times.count for worker in load._workers))
        load.close()
        loop.run_once(0)
        failures = [failure for worker in load._workers for failure in worker.failures]
        assert load.seconds > 0
        assert load.tally.errors["echo", "mismatch"].count == len(failures) == load.tally.mismatched
        assert sum(interval["messages"] for interval in load.tally.intervals) == load.tally.echoed
        assert load.tally.sent == load.tally.echoed + load.tally.mismatched
        server.terminate()
        server.communicate()


def test_a_worker_that_is_stopped_is_not_waited_for(port, monkeypatch):
    monkeypatch.setattr("echopair.cli.client_workers.GRACE", 0.1)
    with EventLoop() as loop:
        address = (socket.AF_INET, (LOCALHOST, int(port)))
        done = []

        class Waiting(Watcher):
            def load_done(self):
                done.append(1)

        load = SharedLoad(loop, [address], Plan(conns=2, duration=0.2, timeout=0.1, workers=2), Waiting())
        run_until(loop, lambda: load.stage == "measuring")
        os.kill(load._workers[0].process, signal.SIGSTOP)
        run_until(loop, lambda: done)
        load.close()
        assert load.tally.errors["worker", "died"].count == 1
        assert load.tally.established >= 1


def test_a_worker_that_raises_is_an_error(monkeypatch, capsys, port):
    monkeypatch.setattr("echopair.cli.client_workers.Reporter", None)
    status, document = run(capsys, f":{port}", "-c", "2", "-n", "2", "--workers", "2")
    assert status == FAILED
    assert " ended with status 1: " in document["errors"][0]["example"]
    assert document["errors"][0]["count"] == 2
    assert document["messages"]["echoed"] == 0


def test_what_comes_back_soon_after_the_planned_end_is_in_the_last_interval(capsys, port):
    options = ("-n", "220", "-r", "1k", "-i", "0.2s", "--workers", "2")
    _, document = run(capsys, f":{port}", "-c", "2", *options)
    assert sum(interval["messages"] for interval in document["intervals"]) == document["messages"]["echoed"] == 220
    assert min(interval["duration_s"] for interval in document["intervals"]) >= 0.2 / 4


class Intervals(Watcher):
    """Keeps the intervals that it is told of."""

    def __init__(self):
        self.told = []

    def interval_ended(self, interval):
        self.told.append(interval)


def test_a_process_that_falls_behind_does_not_hold_up_the_intervals_of_the_others(port):
    with EventLoop() as loop:
        address = (socket.AF_INET, (LOCALHOST, int(port)))
        plan = Plan(conns=2, duration=60.0, interval=0.01, workers=2)
        load = SharedLoad(loop, [address], plan, watcher := Intervals())
        run_until(loop, lambda: watcher.told)
        os.kill(load._workers[0].process, signal.SIGSTOP)
        run_until(loop, lambda: len(load._workers[1].intervals) == PATIENCE)
        upto = len(watcher.told) + 3 * PATIENCE
        run_until(loop, lambda: len(watcher.told) > upto)
        assert len(load._workers[1].intervals) <= PATIENCE
        os.kill(load._workers[0].process, signal.SIGCONT)
        load.stop()
        run_until(loop, lambda: load._finished)
        load.close()
        assert sum(interval["messages"] for interval in watcher.told) == load.tally.echoed
        assert fsum(interval["duration_s"] for interval in watcher.told) == pytest.approx(load.seconds, abs=1e-5)


def test_the_death_of_the_last_process_is_in_the_last_interval(port):
    with EventLoop() as loop:
        address = (socket.AF_INET, (LOCALHOST, int(port)))
        plan = Plan(conns=2, duration=60.0, interval=60.0, workers=2)
        load = SharedLoad(loop, [address], plan, watcher := Intervals())
        run_until(loop, lambda: load.stage == "measuring" and load.echoed)
        load.close()
        (interval,) = watcher.told
        assert interval["errors"] == load.tally.error_count == 2
        assert interval["at_s"] == interval["duration_s"] == pytest.approx(load.seconds, abs=1e-5)
        loop.run_once(0)


def test_a_run_shorter_than_an_interval_has_one(capsys, port):
    _, document = run(capsys, f":{port}", "-c", "2", "-n", "20", "--workers", "2")
    (interval,) = document["intervals"]
    assert interval["messages"] == 20


@pytest.mark.parametrize("fails", [1, 3])
def test_a_start_without_room_for_all_workers_takes_one_line_and_leaves_nothing(monkeypatch, capsys, port, fails):
    fork = Fork(monkeypatch, fails)
    assert command.main([f":{port}", "-c", "3", "-n", "3", "--workers", "3"]) == FAILED
    said = capsys.readouterr()
    refused = f"cannot fork worker {fails}: resource temporarily unavailable (no more processes are allowed: "
    assert said.err.startswith(f"echo-client: {refused}raise ulimit -u")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert len(fork.made) == fails - 1
    assert not any(os.path.exists(f"/proc/{process}") for process in fork.made)


def test_a_worker_that_has_told_its_result_tells_nothing_more(loop, clock):
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    with socket.create_server((LOCALHOST, 0)) as gone:
        addresses = [(socket.AF_INET, gone.getsockname())]
    parent = Recorder()
    connection = Connection(loop, ours, parent, "the worker")
    Reporter(loop, theirs, addresses, Plan(conns=1, count=1))
    run_until(loop, lambda: "eof" in parent.events)
    told = parent.received
    clock.advance(TOLD)
    loop.run_once(0)  # a RuntimeError here, send() after send_eof(), was in the log of every seventh run
    connection.send_eof()
    run_until(loop, lambda: "lost" in parent.events)
    assert told.count(b"progress") == 2
    assert parent.received == told


def test_workers_need_fork(monkeypatch, capsys):
    monkeypatch.delattr(os, "fork")
    assert command.main(["-c", "2", "--workers", "2"]) == USAGE
    assert "--workers needs fork()" in capsys.readouterr().err


def test_what_two_tallies_counted_is_added_up():
    one, other = Tally(open_loop=True), Tally(open_loop=True)
    for tally in (one, other):
        tally.sent, tally.established = 3, 1
        tally.fail("echo", "missing", "a story")
        tally.service.record(1000)
        tally.tcp(10, 1)
    one.add(other)
    figures = one.figures(1.0, ("50",))
    assert figures["messages"]["sent"] == 6
    assert figures["errors"] == [{"phase": "echo", "error": "missing", "count": 2, "example": "a story"}]
    assert figures["latency_us"]["service"]["count"] == 2
    assert figures["tcp"] == {"rtt_us": 10.0, "retransmits": 2}
