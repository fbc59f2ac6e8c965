"""The end of a server: accept no more, pay every peer what it is owed, and go.

It takes over as the handler of all connections, which go on being served until nothing is owed and nothing waits
to be read; then each is half-closed and ends with the peer's EOF. A timer bounds it all.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from echopair.connection import Connection, Handler
from echopair.loop import EventLoop
from echopair.server.echo import EchoServer
from echopair.text import count

try:
    from fcntl import ioctl
    from termios import TIOCOUTQ
except ImportError:  # pragma: no cover - Windows has neither
    ioctl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


class Drain(Handler):
    """Drains `server`, for at most `timeout` seconds, then calls `done()` from the loop."""

    def __init__(self, loop: EventLoop, server: EchoServer, timeout: float, done: Callable[[], object]) -> None:
        self._server = server
        self._done = done
        server.acceptor.close()
        self._timer = loop.call_later(timeout, self.give_up)
        for connection in server.connections:
            connection.handler = self
            self._finish(connection)
        if not server.connections:
            loop.call_soon(self._end)

    def give_up(self) -> None:
        """End what is left at once, and say what that costs."""
        owed = sum(len(connection.outbound) for connection in self._server.connections)
        if self._server.connections:
            log.warning("cutting %s, owed %s", count(len(self._server.connections), "connection"), count(owed, "byte"))
        for connection in self._server.connections:
            connection.abort()

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Serve on, and look whether that was all."""
        self._server.data_received(connection, data)
        self._finish(connection)

    def eof_received(self, connection: Connection) -> None:
        """Serve on: the end of the connection follows by itself."""
        self._server.eof_received(connection)

    def drained(self, connection: Connection) -> None:
        """Serve on, and look whether that was all."""
        self._server.drained(connection)
        self._finish(connection)

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Let the connection go; the last one ends the drain."""
        self._server.connection_lost(connection, error)
        if not self._server.connections:
            self._end()

    def _end(self) -> None:
        self._timer.cancel()
        self._done()

    def _finish(self, connection: Connection) -> None:
        """Close a connection that is owed nothing and has sent nothing that waits to be read."""
        if connection.closed or connection.outbound or connection.eof_queued or _waiting(connection.sock):
            return
        if _delivered(connection.sock):
            connection.abort()
        else:
            connection.close()


def _waiting(sock: socket.socket) -> bool:
    """Return whether there is something to read: bytes, EOF or an error."""
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _delivered(sock: socket.socket) -> bool:
    """Return whether the peer acknowledged every byte, so that a reset can destroy none (tcp(7), SIOCOUTQ)."""
    if ioctl is None:  # pragma: no cover - Windows: not known
        return False
    unacknowledged = bytearray(4)
    ioctl(sock, TIOCOUTQ, unacknowledged)
    return not any(unacknowledged)
