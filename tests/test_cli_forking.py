"""Processes: how many the machine has room for, and what a child does with signals."""

from __future__ import annotations

import os
import signal

import pytest

from echopair.cli import server as command
from echopair.cli.command import OK, USAGE
from echopair.cli.forking import processors, share, spawn, workers
from echopair.loop import EventLoop

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("text", ["0", "many", "-1", "1025", "", "9" * 5000])
def test_a_number_of_workers_is_one(text, capsys):
    assert command.main([f"--workers={text}"]) == USAGE
    assert "is not a number of workers: give one from 1 to 1024, or auto" in capsys.readouterr().err


@pytest.mark.parametrize(("total", "shares"), [(7, [3, 2, 2]), (3, [1, 1, 1]), (2, [1, 1, 0])])
def test_shares_are_as_even_as_can_be(total, shares):
    assert [share(total, number, 3) for number in range(3)] == shares


def test_auto_is_one_a_processor(monkeypatch):
    assert workers("auto") == processors() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert processors() == os.cpu_count()


def test_signals_that_end_a_command_do_nothing_to_a_child_from_its_first_moment(monkeypatch):
    fork = os.fork

    def signalled_at_once() -> int:
        process = fork()
        if process == 0:
            for signum in ENDINGS:
                os.kill(os.getpid(), signum)
        return process

    monkeypatch.setattr(os, "fork", signalled_at_once)

    def signalled_later() -> int:
        for signum in ENDINGS:
            os.kill(os.getpid(), signum)
        return OK

    with EventLoop() as loop:
        _, status = os.waitpid(spawn(loop, "child", signalled_later), 0)
    assert status == OK
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())  # in the parent
