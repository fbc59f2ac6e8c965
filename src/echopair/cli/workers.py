"""Workers: processes that share a port; their parent starts them, starts anew those that die, and ends them.

The parent makes a set of listening sockets for each worker (SO_REUSEPORT, socket(7)) and keeps them open, so the port
stays ours, and who connects while a worker is replaced waits in the queue. A pipe joins it to the workers, their
lifeline: when the parent closes it, or is gone, they finish what is owed and end.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial

from echopair.cli.command import FAILED, OK
from echopair.cli.forking import ending
from echopair.loop import SIGCHLD, SIGINT, SIGKILL, SIGTERM, EventLoop, Timer
from echopair.text import duration

RESTART_DELAY = 0.1  # seconds; doubled for each worker that dies young, up to the next figure
MAX_RESTART_DELAY = 5.0  # seconds
HURRY = 1.0  # seconds
YOUNG = 10.0  # seconds

Listeners = list[socket.socket]
Work = Callable[[Listeners, int], int]  # serves until the descriptor, its lifeline, is at its end; returns a status

log = logging.getLogger(__name__)


class Workers:
    """Runs `work` in a process for each of `sets` of listeners, until it is stopped and all have ended.

    A worker that has not ended `patience` seconds after it was told to, or HURRY after it was told again, is killed.
    """

    def __init__(self, loop: EventLoop, sets: Sequence[Listeners], work: Work, patience: float = float("inf")) -> None:
        self.status = OK  # the worst of those that the last processes ended with
        self._loop = loop
        self._sets = sets
        self._work = work
        self._patience = patience
        self._lifeline, self._held = os.pipe()
        self._stopping = self._hurried = False
        self._running: dict[int, tuple[int, float]] = {}  # by process: which worker, and since when
        self._died_young = [0] * len(sets)
        self._restarts: dict[int, Timer] = {}
        loop.add_signal_handler(SIGCHLD, self._reap)
        for signum in (SIGINT, SIGTERM):
            loop.add_signal_handler(signum, self.stop)
        for number in range(len(sets)):
            self._start(number)

    def stop(self) -> None:
        """Let the workers finish what is owed and end; the second time, not even that."""
        if self._stopping:
            self._hurried = True
            self._signal(SIGTERM)
            self._loop.call_later(HURRY, self._kill)
            return
        self._stopping = True
        os.close(self._held)
        for timer in self._restarts.values():
            timer.cancel()
        self._loop.call_later(self._patience, self._kill)
        self._end_if_over()

    def close(self) -> None:
        """End what is left, at once, and give everything back."""
        for process in self._running:
            os.kill(process, SIGKILL)
            os.waitpid(process, 0)
        self._running.clear()
        if not self._stopping:
            os.close(self._held)
        os.close(self._lifeline)
        for listeners in self._sets:
            for listener in listeners:
                listener.close()

    def _kill(self) -> None:
        for number, _ in self._running.values():
            log.warning("killing worker %d, which did not end", number + 1)
        self._signal(SIGKILL)

    def _signal(self, signum: int) -> None:
        for process in self._running:
            os.kill(process, signum)

    def _start(self, number: int) -> None:
        self._restarts.pop(number, None)
        process = os.fork()
        if process == 0:
            os._exit(self._be(number))  # pragma: no cover - tracing begins anew with the child's next call
        self._running[process] = number, self._loop.clock()
        log.info("worker %d started (process %d)", number + 1, process)

    def _be(self, number: int) -> int:
        """Be worker `number`; this is the child, which has its parent's loop and sockets and wants none of them."""
        try:
            self._loop.close()
            os.close(self._held)
            for other, listeners in enumerate(self._sets):
                if other != number:
                    for listener in listeners:
                        listener.close()
            return self._work(self._sets[number], self._lifeline)
        except BaseException:
            log.exception("worker %d failed", number + 1)
            return FAILED

    def _reap(self) -> None:
        """Take note of the workers that have ended (waitpid(2))."""
        for process in list(self._running):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                self._ended(process, os.waitstatus_to_exitcode(status))
        self._end_if_over()

    def _ended(self, process: int, status: int) -> None:
        number, since = self._running.pop(process)
        if self._stopping:
            well = status == OK or (self._hurried and status == -SIGTERM)  # it was past heeding signals
            self.status = max(self.status, OK if well else FAILED)
            return
        lived = self._loop.clock() - since
        self._died_young[number] = self._died_young[number] + 1 if lived < YOUNG else 0
        delay = min(RESTART_DELAY * 2 ** min(max(self._died_young[number] - 1, 0), 10), MAX_RESTART_DELAY)
        log.warning("worker %d %s; starting it anew in %s", number + 1, ending(status), duration(delay))
        self._restarts[number] = self._loop.call_later(delay, partial(self._start, number))

    def _end_if_over(self) -> None:
        if self._stopping and not self._running:
            self._loop.stop()
