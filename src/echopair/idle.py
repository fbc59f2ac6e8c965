"""Silence: finds connections on which no byte has moved for too long.

One timer serves all connections, and bytes only move a timestamp (`Connection.active_at`), so silence costs
nothing a message. What to do about it is the owner's to say.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Collection
from functools import partial

from echopair.connection import Connection
from echopair.loop import EventLoop, Timer

try:
    from fcntl import ioctl
    from termios import TIOCOUTQ
except ImportError:  # pragma: no cover - Windows has neither
    ioctl = None  # type: ignore[assignment]

PRECISION = 1 / 20  # of the timeout: how late silence may be noticed
LEAST_STEP = 0.05  # seconds from one sweep to the next, however short the timeout


def undelivered(sock: socket.socket) -> int:
    """Return how many bytes the kernel took and the peer has not acknowledged (tcp(7), SIOCOUTQ); -1: unknown."""
    if ioctl is None:  # pragma: no cover - Windows
        return -1
    unacknowledged = bytearray(4)
    try:
        ioctl(sock, TIOCOUTQ, unacknowledged)
    except (OSError, ValueError):  # not a TCP socket of Linux; closed
        return -1
    return int.from_bytes(unacknowledged, sys.byteorder)


class IdleWatch:
    """Calls `silent(connection)` for each of `connections` on which no byte has moved for `timeout` seconds.

    And again after each further `timeout`, while the connection stays in the collection and silent. Where the kernel
    still holds bytes for the peer it may take a second `timeout` to see that these do not move either: a slow reader's
    acknowledgements come seconds apart.
    """

    def __init__(
        self,
        loop: EventLoop,
        connections: Collection[Connection],
        timeout: float,
        silent: Callable[[Connection], object],
    ) -> None:
        self._loop = loop
        self._connections = connections
        self._timeout = timeout
        self._silent = silent
        self._told: dict[Connection, tuple[float, int]] = {}  # when of its silence, and what it had not acknowledged
        self._step = max(timeout * PRECISION, LEAST_STEP)
        self._timer: Timer = loop.call_later(timeout, self._sweep)

    def close(self) -> None:
        """Stop watching."""
        self._timer.cancel()

    def _sweep(self) -> None:
        now = self._loop.now
        due = now + self._step
        try:
            due = max(due, self._tell(now) + self._timeout)
        finally:  # otherwise nothing would notice silence from here on
            self._timer = self._loop.call_at(due, self._sweep)

    def _tell(self, now: float) -> float:
        """Report the silent connections; return since when the quietest of the others has been so."""
        told, self._told = self._told, {}
        oldest = now
        for connection in self._connections:
            since, unacknowledged = told.get(connection, (connection.active_at, -1))
            since = max(since, connection.active_at)
            if now - since >= self._timeout:
                # The kernel may still be busy with what it took from us; then the bytes do move (tcp(7), SIOCOUTQ).
                before, unacknowledged = unacknowledged, undelivered(connection.sock)
                if unacknowledged in (0, before):
                    self._loop.call_soon(partial(connection.call, self._silent, connection))
                since = now
            if since > connection.active_at:
                self._told[connection] = since, unacknowledged
            oldest = min(oldest, since)
        return oldest
