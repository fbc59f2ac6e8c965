"""Processes: how many a command may start, how to start one, which signals end it, and how it ended."""

from __future__ import annotations

import errno
import logging
import math
import os
import signal
from collections.abc import Callable

from echopair.cli.command import FAILED
from echopair.cli.options import UsageError
from echopair.loop import ENDINGS, SIGHUP, EventLoop

MAX_WORKERS = 1024
REMEDIES = {
    errno.EAGAIN: "no more processes are allowed: raise ulimit -u or the cgroup's pids.max, or use fewer --workers",
    errno.ENOMEM: "too little memory: use fewer --workers",
}

log = logging.getLogger(__name__)


def workers(text: str) -> int:
    """Read a number of workers."""
    if text == "auto":
        return min(processors(), MAX_WORKERS)
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 0 < int(text) <= MAX_WORKERS):
        raise ValueError(f"{text!r} is not a number of workers: give one from 1 to {MAX_WORKERS}, or auto")
    return int(text)


def processors(root: str = "/") -> int:
    """Return how many processors this process may use, by its affinity mask and its cgroups' quota (rounded up)."""
    runs_on = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(math.ceil(min(runs_on, _quota(root))), 1)


def _quota(root: str) -> float:
    """Return the least quota, in processors, of this process's cgroups and those above them (cgroups(7)).

    A container may see its own cgroup at the top, but its path as from outside, so missing directories are skipped.
    """
    try:
        with open(os.path.join(root, "proc/self/cgroup")) as file:
            memberships = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return math.inf  # not Linux
    least = math.inf
    for _, controllers, path in memberships:
        if controllers and "cpu" not in controllers.split(","):
            continue
        parts = path.strip("/").split("/")
        for depth in range(len(parts) + 1):
            inner = os.path.join(root, "sys/fs/cgroup", "cpu" * bool(controllers), *parts[:depth], "cpu.")
            if controllers:  # cgroup v1
                quota, period = _words(f"{inner}cfs_quota_us"), _words(f"{inner}cfs_period_us")
            else:
                quota, period = (words := _words(f"{inner}max"))[:1], words[1:]
            if quota and period and quota[0] not in ("max", "-1"):
                least = min(least, int(quota[0]) / int(period[0]))
    return least


def _words(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.read().split()
    except OSError:
        return []


def share(total: int, number: int, workers: int) -> int:
    """Return the share of `total` of worker `number`, from 0, of `workers`."""
    return total // workers + (number < total % workers)


def ending(status: int) -> str:
    """Say how a process ended, by its exit code (os.waitstatus_to_exitcode)."""
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"


def check_possible() -> None:
    """Raise UsageError where this system cannot have workers."""
    if not hasattr(os, "fork"):
        raise UsageError("--workers needs fork(), which this system lacks: leave it out")


def heed(loop: EventLoop, callback: Callable[[], object]) -> None:
    """Run `callback()` in the loop on each signal that ends a command; not on SIGHUP under nohup(1)."""
    for signum in ENDINGS:
        if not (signum == SIGHUP and loop.ignores(signum)):
            loop.add_signal_handler(signum, callback)


def spawn(loop: EventLoop, name: str, body: Callable[[], int]) -> int:
    """Run `body()` in a child process, which closes its copy of `loop`; return the child's id.

    The return value of `body` is the child's exit status. A terminal or a supervisor sends the signals that end a
    command to the whole process group, but only the parent acts on them: they are blocked before the child exists, and
    stay blocked in the child. Raises OSError that names fork and the remedy (fork(2)).
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    try:
        process = os.fork()
        if process == 0:
            os._exit(_be(loop, name, body))  # pragma: no cover - tracing begins again with the next call
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "use fewer --workers")
        raise OSError(error.errno, f"cannot fork {name}: {os.strerror(error.errno or 0)} ({remedy})") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def _be(loop: EventLoop, name: str, body: Callable[[], int]) -> int:
    """Be the child."""
    try:
        loop.close()
        return body()
    except BaseException:
        log.exception("%s failed", name)
        return FAILED
