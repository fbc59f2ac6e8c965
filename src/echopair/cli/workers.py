"""Workers: processes that share a port; their parent starts them, restarts those that die, and ends them.

All accept from the same listening sockets, so a connection waits only while no worker has room, and a worker that
dies or hangs blocks no part of the queue. The kernel gives a connection to the worker that wakes up first, so `Spread`
says whose turn it is. A pipe joins the parent to each worker, its lifeline: at the first byte the worker drains and
ends, at the second it ends at once. If the parent is gone, it drains too.
"""

from __future__ import annotations

import logging
import mmap
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from echopair.address import explain
from echopair.cli.command import FAILED, OK
from echopair.cli.forking import ending, heed, spawn
from echopair.loop import SIGCHLD, SIGKILL, EventLoop, Timer
from echopair.text import duration

RESTART_DELAY = 0.1  # seconds; doubled for each worker that dies young, up to the next figure
MAX_RESTART_DELAY = 5.0  # seconds
HURRY = 1.0  # seconds
YOUNG = 10.0  # seconds
ABSENT = 2**62  # connections of a worker that is not running: nobody waits for it
SLACK = 8  # a worker may be ahead by one connection in 8: few are spread evenly, many accepted fast

# work(number, lifeline, turn): serves until the lifeline says so, and returns an exit status
Work = Callable[[int, int, Callable[[int], int]], int]

log = logging.getLogger(__name__)


class Spread:
    """The number of connections of each worker, in shared memory; each writes only its own, so no lock is needed."""

    def __init__(self, workers: int) -> None:
        self.connections = memoryview(mmap.mmap(-1, 8 * workers)).cast("q")

    def turn(self, number: int, connections: int) -> int:
        """Note the `connections` of worker `number`; return how many it may accept until another one's turn."""
        self.connections[number] = connections
        least = min(self.connections)
        return least + least // SLACK + 1 - connections


@dataclass(slots=True, eq=False)
class Worker:
    """A worker process: its number, when it started, and the parent's end of its lifeline."""

    number: int
    since: float
    lifeline: int


class Workers:
    """Runs `work` in `count` processes, from `start()` until `stop()` and the end of all; owns `listeners`.

    A worker that has not ended `patience` seconds after the first order, or HURRY after the second, is killed.
    """

    def __init__(
        self,
        loop: EventLoop,
        listeners: list[socket.socket],
        count: int,
        work: Work,
        patience: float = float("inf"),
    ) -> None:
        self.status = OK  # the worst of those that the last processes ended with
        self._loop = loop
        self._listeners = listeners
        self._count = count
        self._work = work
        self._patience = patience
        self._stopping = False
        self._running: dict[int, Worker] = {}  # by process
        self._spread = Spread(count)
        self._died_young = [0] * count
        self._restarts: dict[int, Timer] = {}
        loop.add_signal_handler(SIGCHLD, self._reap)
        heed(loop, self.stop)

    def start(self) -> None:
        """Start all workers. Raises OSError if the system refuses one; `close()` then ends the others."""
        for number in range(self._count):
            self._start(number)

    def stop(self) -> None:
        """Let the workers finish what is owed and end; the second time, not even that."""
        again, self._stopping = self._stopping, True
        self._close_listeners()  # before the workers end, so that the last of them closes the queue
        for timer in self._restarts.values():
            timer.cancel()
        for worker in self._running.values():
            try:
                os.write(worker.lifeline, b".")
            except BrokenPipeError:
                pass  # it has just ended
        self._loop.call_later(HURRY if again else self._patience, self._kill)
        self._end_if_over()

    def close(self) -> None:
        """End what is left, at once, and give everything back."""
        for process, worker in self._running.items():
            os.kill(process, SIGKILL)
            os.waitpid(process, 0)
            os.close(worker.lifeline)
        self._running.clear()
        self._close_listeners()

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()

    def _kill(self) -> None:
        for process, worker in self._running.items():
            log.warning("killing worker %d, which did not end", worker.number + 1)
            os.kill(process, SIGKILL)

    def _start(self, number: int) -> None:
        lifeline, ours = os.pipe()
        self._spread.connections[number] = 0
        try:
            process = spawn(self._loop, f"worker {number + 1}", partial(self._be, number, lifeline, ours))
        except OSError:
            self._spread.connections[number] = ABSENT
            os.close(ours)
            raise
        finally:
            os.close(lifeline)
        self._running[process] = Worker(number, self._loop.clock(), ours)
        log.info("worker %d started (process %d)", number + 1, process)

    def _be(self, number: int, lifeline: int, ours: int) -> int:
        """Be worker `number`; the lifelines end with the parent only if no child holds the parent's ends."""
        for descriptor in (ours, *(worker.lifeline for worker in self._running.values())):
            os.close(descriptor)
        return self._work(number, lifeline, partial(self._spread.turn, number))

    def _restart(self, number: int) -> None:
        del self._restarts[number]
        try:
            self._start(number)
        except OSError as error:
            self._restart_later(number, explain(error))

    def _restart_later(self, number: int, why: str, lived: float = 0.0) -> None:
        self._died_young[number] = self._died_young[number] + 1 if lived < YOUNG else 0
        delay = min(RESTART_DELAY * 2 ** min(max(self._died_young[number] - 1, 0), 10), MAX_RESTART_DELAY)
        log.warning("%s; starting it again in %s", why, duration(delay))
        self._restarts[number] = self._loop.call_later(delay, partial(self._restart, number))

    def _reap(self) -> None:
        """Take note of the workers that have ended (waitpid(2))."""
        for process in list(self._running):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                self._ended(self._running.pop(process), os.waitstatus_to_exitcode(status))
        self._end_if_over()

    def _ended(self, worker: Worker, status: int) -> None:
        os.close(worker.lifeline)
        self._spread.connections[worker.number] = ABSENT
        if self._stopping:
            self.status = max(self.status, OK if status == OK else FAILED)
        else:
            lived = self._loop.clock() - worker.since
            self._restart_later(worker.number, f"worker {worker.number + 1} {ending(status)}", lived)

    def _end_if_over(self) -> None:
        if self._stopping and not self._running:
            self._loop.stop()
