"""Accepting: turns connections waiting in listen queues into sockets, as fast as the owner and the system allow.

It owns the listening sockets and knows nothing of what the accepted ones are for. The rule: accepting never spins
and never starves the loop; what cannot be taken now waits in the kernel's listen queue.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable
from functools import partial

from echopair.address import explain
from echopair.loop import READ, EventLoop, Timer

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would take a tenth of the start
    from typing import Any

ACCEPTS_PER_WAKEUP = 64  # a flood of connections shares each turn of the loop with those already there
NEVER = -1.0
QUEUE = 4096  # connections; as long as listen queues get unasked (listen(2), somaxconn)
PATIENCE = 0.0002  # seconds; longer than a sleeping process takes to wake up and accept
RECOVERED_AFTER = 1.0  # seconds without a shortage; peers that come and go at the limit would flood the log
RETRY_DELAY = 0.1  # seconds; peers free descriptors and memory, and no event reports it

# accept(2): an error already pending on the new connection; it is that connection's end, not the listener's.
CONNECTION_FAILED = (
    errno.ECONNABORTED,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
    getattr(errno, "EHOSTDOWN", 0),  # these three not on every system
    getattr(errno, "ENONET", 0),
    getattr(errno, "EPROTO", 0),
)

log = logging.getLogger(__name__)


class Acceptor:
    """Accepts on `listeners`, calling `accepted(sock, address)` from the loop, until it is closed.

    `room()` says how many more connections the owner takes; at 0 accepting pauses until `resume()`. Out of
    descriptors or memory (EMFILE, ENFILE, ENOBUFS, ENOMEM) it pauses too, and tries again on a timer or at
    `resume()`; it logs this once, and again only after a second without. `turn()` says how many to accept until it is
    the turn of other processes that accept on the same listeners; at 0 they get PATIENCE seconds to come first.
    """

    def __init__(
        self,
        loop: EventLoop,
        listeners: list[socket.socket],
        accepted: Callable[[socket.socket, Any], object],
        room: Callable[[], int] = lambda: ACCEPTS_PER_WAKEUP,
        turn: Callable[[], int] = lambda: ACCEPTS_PER_WAKEUP,
    ) -> None:
        self._loop = loop
        self._listeners = listeners
        self._accepted = accepted
        self._room = room
        self._turn = turn
        self._paused = True
        self._short_at = NEVER  # when descriptors or memory last fell short, until that is over
        self._retry: Timer | None = None
        self._recovery: Timer | None = None
        self.resume()

    def resume(self) -> None:
        """Accept again, if accepting had paused."""
        if self._paused:
            self._paused = False
            self._forget_retry()
            try:
                for listener in self._listeners:
                    self._loop.watch(listener, READ, partial(self._ready, listener))
            except OSError as error:  # ENOMEM, ENOSPC (epoll_ctl(2)); otherwise nothing would try again
                self._wait_for_resources(error)

    def finish(self) -> None:
        """Accept the connections already queued, as far as there is room, then stop listening."""
        for listener in self._listeners:
            turns = QUEUE // ACCEPTS_PER_WAKEUP  # a flood must not go on for ever
            while turns and self._accept(listener):
                turns -= 1
        self.close()

    def close(self) -> None:
        """Stop listening; the kernel resets the connections in the queue."""
        self._pause()
        if self._recovery:
            self._recovery.cancel()
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    def _pause(self) -> None:
        self._paused = True
        self._forget_retry()
        for listener in self._listeners:
            self._loop.watch(listener, 0)

    def _forget_retry(self) -> None:
        if self._retry:
            self._retry.cancel()
            self._retry = None

    def _ready(self, listener: socket.socket, _events: int) -> None:
        turn = self._turn()
        if turn > 0:
            self._accept(listener, turn)
        else:
            self._pause()
            self._retry = self._loop.call_later(PATIENCE, partial(self._insist, listener))

    def _insist(self, listener: socket.socket) -> None:
        """Accept a connection that no other process has accepted."""
        self.resume()
        self._accept(listener, 1)

    def _accept(self, listener: socket.socket, most: int = ACCEPTS_PER_WAKEUP) -> bool:
        """Accept up to `most`, and up to ACCEPTS_PER_WAKEUP; return whether there may be more."""
        for _ in range(min(self._room(), most, ACCEPTS_PER_WAKEUP)):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in CONNECTION_FAILED:
                    continue
                self._wait_for_resources(error)
                return False
            except MemoryError:
                self._wait_for_resources(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
                return False
            try:
                self._accepted(sock, address)
            except OSError as error:  # the selector takes no more (epoll_ctl(2): ENOSPC, ENOMEM)
                sock.close()
                self._wait_for_resources(error)
                return False
            except Exception:
                log.exception("a new connection could not be served")
                sock.close()
        if self._room():
            return True
        self._pause()
        return False

    def _watch_for_recovery(self) -> None:
        due = self._short_at + RECOVERED_AFTER
        self._recovery = self._loop.call_at(due, partial(self._say_recovered, self._short_at))

    def _say_recovered(self, short_at: float) -> None:
        if self._short_at == short_at:
            self._short_at = NEVER
            log.warning("accepting again")
        else:  # it went on after that
            self._watch_for_recovery()

    def _wait_for_resources(self, error: OSError) -> None:
        first = self._short_at == NEVER
        self._short_at = self._loop.now
        if first:
            log.warning("not accepting for now: %s", explain(error))
            self._watch_for_recovery()
        self._pause()
        self._retry = self._loop.call_later(RETRY_DELAY, self.resume)
