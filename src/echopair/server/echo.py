"""The echo server: every byte a peer sends comes back to it, in order, once, and nothing else does (RFC 862).

It owns the connections it has accepted. How long silence may last is idle.py's business, how it ends drain.py's.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from functools import partial

from echopair.address import Address, format_address
from echopair.connection import MAX_BUFFER, Connection, Handler
from echopair.loop import EventLoop
from echopair.server.acceptor import ACCEPTS_PER_WAKEUP, Acceptor
from echopair.server.stream import EchoStream
from echopair.server.zerocopy import Pipes, affordable, splice
from echopair.text import count, printable, reason

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would take a tenth of the start
    from typing import Any

log = logging.getLogger(__name__)


class EchoServer(Handler):
    """Serves every connection that arrives on `listeners` (see `address.listen`) from the moment it is made.

    It is the handler of all its connections: a subclass with its own `data_received` is another kind of server.
    At most `max_conns` are served at once, others wait in the listen queue; at most about `max_buffer` bytes are
    held for one peer. Bytes that are only echoed take the short path (stream.py); with `zero_copy`, if the system has
    splice(2), large reads do not enter the process. `processes` is how many
    such servers share what the user may have in pipes.
    """

    def __init__(
        self,
        loop: EventLoop,
        listeners: list[socket.socket],
        *,
        max_conns: int | None = None,
        max_buffer: int = MAX_BUFFER,
        zero_copy: bool = True,
        processes: int = 1,
        turn: Callable[[int], int] = lambda _connections: ACCEPTS_PER_WAKEUP,
    ) -> None:
        self.loop = loop
        self.addresses: list[Address] = [(listener.family, listener.getsockname()) for listener in listeners]
        self.connections: set[Connection] = set()
        self.emptied: Callable[[], object] = lambda: None  # called when the last connection has ended
        self.connections_served = 0
        self.bytes_received = 0  # by connections that have ended, as is bytes_sent
        self.bytes_sent = 0
        self._max_conns = max_conns
        self._whose_turn = turn
        self._max_buffer = max_buffer
        self._streams = type(self).data_received is EchoServer.data_received
        self._pipes = Pipes(affordable(max_conns, processes)) if self._streams and zero_copy and splice else None
        self.acceptor = Acceptor(loop, listeners, self._accepted, self._room, self._turn)

    @property
    def waiting(self) -> int:
        """How many connections are here and not yet among `connections`."""
        return 0

    def close(self) -> None:
        """Stop listening and end every connection at once; `Drain` does it gently."""
        self.acceptor.close()
        for connection in self.connections:
            connection.abort()
        if self._pipes:
            self._pipes.close()

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Echo."""
        connection.send(data)

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Log how it ended."""
        log.info(
            "%s  %s: %s received, %s sent",
            connection.peer,
            _end(error),
            count(connection.bytes_received, "byte"),
            count(connection.bytes_sent, "byte"),
        )

    def forget(self, connection: Connection) -> None:
        """Give the place of the connection to one that waits in the listen queue."""
        self.connections.discard(connection)
        self.bytes_received += connection.bytes_received
        self.bytes_sent += connection.bytes_sent
        self._turn()
        self.acceptor.resume()
        if not self.connections:
            self.emptied()

    def _accepted(self, sock: socket.socket, address: Any) -> None:
        sock.setblocking(False)
        kind = partial(EchoStream, pipes=self._pipes) if self._streams else Connection
        connection = kind(self.loop, sock, self, format_address(address), self._max_buffer)
        self.connections.add(connection)
        self.connections_served += 1
        log.info("%s  connected (%d open)", connection.peer, len(self.connections))

    def _turn(self) -> int:
        return self._whose_turn(len(self.connections) + self.waiting)

    def _room(self) -> int:
        if self._max_conns is None:
            return ACCEPTS_PER_WAKEUP
        return self._max_conns - len(self.connections) - self.waiting


class VerboseEchoServer(EchoServer):
    """An echo server that also logs what it echoes, escaped and cut."""

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Log, and echo."""
        log.debug("%s  echoes %s  %s", connection.peer, count(len(data), "byte"), printable(data))
        connection.send(data)


def _end(error: Exception | None) -> str:
    """Return how a connection ended: by both sides, by us (an error without a number) or by the network."""
    if error is None:
        return "closed"
    return f"lost ({reason(error)})" if getattr(error, "errno", None) else f"ended ({reason(error)})"
