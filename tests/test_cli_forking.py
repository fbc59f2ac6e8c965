"""Processes: how many the machine has room for, and what a child does with signals."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from echopair.cli import server as command
from echopair.cli.command import OK, USAGE
from echopair.cli.forking import MAX_WORKERS, processors, share, spawn, workers
from echopair.loop import EventLoop

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("text", ["0", "many", "-1", "1025", "", "9" * 5000])
def test_a_number_of_workers_is_one(text, capsys):
    assert command.main([f"--workers={text}"]) == USAGE
    assert "is not a number of workers: give one from 1 to 1024, or auto" in capsys.readouterr().err


@pytest.mark.parametrize(("total", "shares"), [(7, [3, 2, 2]), (3, [1, 1, 1]), (2, [1, 1, 0])])
def test_shares_are_as_even_as_can_be(total, shares):
    assert [share(total, number, 3) for number in range(3)] == shares


def machine(monkeypatch, root: Path, processors: int, files: dict[str, str]) -> str:
    """A machine with so many processors, and these files below its root."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(processors)))
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


ON_THE_WAY = {
    "proc/self/cgroup": "0::/kubepods/pod7/c1\n",
    "sys/fs/cgroup/kubepods/cpu.max": "max 100000\n",
    "sys/fs/cgroup/kubepods/pod7/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/kubepods/pod7/c1/cpu.max": "400000 100000\n",
}
V1 = {
    "proc/self/cgroup": "9:name=systemd:/\n4:memory:/docker/c1\n1:cpu,cpuacct:/docker/c1\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
}


@pytest.mark.parametrize(
    ("found", "files"),
    [
        (8, {}),
        (8, {"proc/self/cgroup": "0::/\n"}),
        (8, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}),
        (3, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}),
        (1, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "10000 100000\n"}),
        (8, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1600000 100000\n"}),
        (2, ON_THE_WAY),
        (2, V1),
        (8, V1 | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}),
        (1, V1 | {f"sys/fs/cgroup/cpu/docker/c1/cpu.cfs_{name}_us": "100000\n" for name in ("quota", "period")}),
        (8, {"proc/self/cgroup": "4:memory:/\n0::/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "1000\n"}),
    ],
)
def test_auto_is_what_the_quota_of_the_cgroup_has_room_for(monkeypatch, tmp_path, found, files):
    assert processors(machine(monkeypatch, tmp_path, 8, files)) == found


def test_auto_is_no_more_than_the_affinity_mask_and_the_most_that_there_may_be(monkeypatch):
    assert 1 <= workers("auto") == processors() <= len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(MAX_WORKERS + 1)))
    monkeypatch.setattr("echopair.cli.forking._quota", lambda _root: float("inf"))
    assert workers("auto") == MAX_WORKERS
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
