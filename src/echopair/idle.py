"""Silence: finds connections on which no byte has moved for too long.

One timer serves all connections, and bytes only move a timestamp (`Connection.active_at`), so silence costs
nothing a message. What to do about it is the owner's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from echopair.connection import Connection
from echopair.loop import EventLoop, Timer

PRECISION = 1 / 20  # of the timeout: how late silence may be noticed; the sweep runs no oftener than that


class IdleWatch:
    """Calls `silent(connection)` for each of `connections` on which no byte has moved for `timeout` seconds.

    And again after each further `timeout`, while the connection stays in the collection and silent.
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
        self._timer: Timer = loop.call_later(timeout, self._sweep)

    def close(self) -> None:
        """Stop watching."""
        self._timer.cancel()

    def _sweep(self) -> None:
        now = self._loop.now
        silent = [connection for connection in self._connections if now - connection.active_at >= self._timeout]
        for connection in silent:
            connection.active_at = now  # told now; the next time is a timeout away
        oldest = min((connection.active_at for connection in self._connections), default=now)
        self._timer = self._loop.call_at(max(oldest + self._timeout, now + self._timeout * PRECISION), self._sweep)
        for connection in silent:
            self._silent(connection)
