"""The end of a server: accept no more, echo every byte that is owed, and end.

A connection is served as before until it is quiet: nothing is owed, and for QUIET seconds no byte has moved. The wait
matters, because bytes that the peer sent before the end may still be on their way. Then the connection is half-closed
and ends with the peer's EOF. A timer limits the whole.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from echopair.connection import Connection
from echopair.idle import IdleWatch
from echopair.loop import EventLoop
from echopair.server.echo import EchoServer
from echopair.text import count

QUIET = 0.2  # seconds; a round trip and a delayed ACK (RFC 1122 4.2.3.2) on most paths

log = logging.getLogger(__name__)


class Drain:
    """Drains `server`, for at most `timeout` seconds, then calls `done()` from the loop."""

    def __init__(self, loop: EventLoop, server: EchoServer, timeout: float, done: Callable[[], object]) -> None:
        self._server = server
        self._done = done
        self._gave_up = False
        self.lost = 0  # bytes that were owed and dropped
        server.emptied = self._emptied
        server.acceptor.finish()
        self._timer = loop.call_later(timeout, self.give_up)
        self._quiet_watch = IdleWatch(loop, server.connections, QUIET, self._quiet)
        if not server.connections and not server.waiting:
            loop.call_soon(self._end)

    def give_up(self) -> None:
        """End what is left at once, and log how many bytes are lost."""
        self._gave_up = True
        left = [connection for connection in self._server.connections if not connection.closed]
        if left:
            self.lost += sum(len(connection.outbound) + len(connection.inbound) for connection in left)
            log.warning("closing %s still active, %s unsent", count(len(left), "connection"), count(self.lost, "byte"))
        for connection in left:
            connection.abort()
        if not self._server.connections and self._server.waiting:
            self._end()

    def _emptied(self) -> None:
        if self._gave_up or not self._server.waiting:
            self._end()

    def _end(self) -> None:
        self._timer.cancel()
        self._quiet_watch.close()
        try:
            self._server.close()
        finally:  # otherwise the process would never end
            self._done()

    def _quiet(self, connection: Connection) -> None:
        if connection.closed or connection.outbound or connection.inbound:
            return  # cut in this very turn, quiet because the peer does not read, or held up on request
        if connection.undelivered() == 0:
            connection.abort()  # nothing is on its way that a reset could destroy
        else:
            connection.close()
