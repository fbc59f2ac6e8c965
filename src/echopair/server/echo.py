"""The echo server: a peer gets back every byte it sends, in order, once, and no other (RFC 862).

It owns the connections it has accepted, and ends them gently: `drain()`. The bytes take the short
path of connection.py; how long silence may last is idle.py's business.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from echopair.address import Address, format_address
from echopair.connection import MAX_BUFFER, Connection, Handler
from echopair.idle import IdleWatch, undelivered
from echopair.loop import EventLoop, Timer
from echopair.server.acceptor import ACCEPTS_PER_WAKEUP, Acceptor
from echopair.server.zerocopy import Pipes, affordable, splice
from echopair.text import count, printable, reason

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would take a tenth of the start
    from typing import Any

# Seconds without a byte. Longer than a peer's first retransmission and its first probe of a closed
# window take, about 0.2 s (RFC 6298, RFC 9293 3.8.6.1): bytes may be on their way until then.
QUIET = 0.5

log = logging.getLogger(__name__)


class EchoServer(Handler):
    """Serves every connection on `listeners` (see `address.listen`) from the moment it is made.

    It is the handler of all its connections: a subclass with its own `data_received` is another
    kind of server. At most `max_conns` are served at once, others wait in the listen queue; at most
    about `max_buffer` bytes are held for one peer. Connections of a server that only echoes do so
    by themselves; with `zero_copy`, if the system has splice(2), large reads then do not enter the
    process. `processes` is how many such servers share the pages that a user may have in pipes.
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
        self.addresses: list[Address] = [(each.family, each.getsockname()) for each in listeners]
        self.connections: set[Connection] = set()
        self.connections_served = 0
        # Of connections that have ended.
        self.bytes_received = self.bytes_sent = 0
        # Owed when a drain gave up.
        self.bytes_lost = 0
        self.draining = False
        self._gave_up = False
        self._timer: Timer | None = None
        self._max_conns = max_conns
        self._whose_turn = turn
        self._max_buffer = max_buffer
        self._echoes = type(self).data_received is EchoServer.data_received
        spliced = self._echoes and zero_copy and splice
        self._pipes = Pipes(affordable(max_conns, processes)) if spliced else None
        self.acceptor = Acceptor(loop, listeners, self._accepted, self._room, self._turn)

    @property
    def waiting(self) -> int:
        """How many connections are here and not yet among `connections`."""
        return 0

    def close(self) -> None:
        """Stop listening and end every connection at once; `drain()` does it gently."""
        self.acceptor.close()
        for connection in self.connections:
            connection.abort()
        if self._pipes:
            self._pipes.close()

    def drain(self, timeout: float, ended: Callable[[], object]) -> None:
        """Stop listening, send what is owed, and end within `timeout` seconds; then call `ended()`.

        A connection is served as before until it is quiet: nothing is owed, and for QUIET seconds
        no byte has moved, because bytes that the peer sent before may still be on their way. Then
        it is half-closed and ends with the peer's EOF.
        """
        self.draining = True
        self._ended = ended
        self.acceptor.finish()
        self._timer = self.loop.call_later(timeout, self.give_up)
        self._quiet_watch = IdleWatch(self.loop, self.connections, QUIET, self._quiet)
        self.loop.call_soon(self._end_if_drained)

    def give_up(self) -> None:
        """End a drain at once, and log how many bytes are lost."""
        self._gave_up = True
        left = [connection for connection in self.connections if not connection.closed]
        if left:
            self.bytes_lost += sum(len(each.outbound) + len(each.inbound) for each in left)
            who, lost = count(len(left), "connection"), count(self.bytes_lost, "byte")
            log.warning("closing %s still active, %s unsent", who, lost)
        for connection in left:
            connection.abort()
        self._end_if_drained()

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Echo."""
        connection.send(data)

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Log how it ended."""
        received = count(connection.bytes_received, "byte")
        sent = count(connection.bytes_sent, "byte")
        log.info("%s  %s: %s received, %s sent", connection.peer, _end(error), received, sent)

    def forget(self, connection: Connection) -> None:
        """Give its place to a connection in the listen queue; end a drain if it was the last."""
        self.connections.discard(connection)
        self.bytes_received += connection.bytes_received
        self.bytes_sent += connection.bytes_sent
        self._turn()
        self.acceptor.resume()
        self._end_if_drained()

    def _accepted(self, sock: socket.socket, address: Any) -> None:
        sock.setblocking(False)
        connection = Connection(
            self.loop,
            sock,
            handler=self,
            peer=format_address(address),
            max_buffer=self._max_buffer,
            echoes=self._echoes,
            pipes=self._pipes,
        )
        self.connections.add(connection)
        self.connections_served += 1
        log.info("%s  connected (%d open)", connection.peer, len(self.connections))

    def _quiet(self, connection: Connection) -> None:
        if connection.closed or connection.outbound or connection.inbound:
            # Aborted in this turn, quiet because the peer does not read, or delayed on request.
            return
        if undelivered(connection.sock) == 0:
            # Nothing is on its way that a reset could destroy.
            connection.abort()
        else:
            connection.close()

    def _end_if_drained(self) -> None:
        if not self._timer or self.connections or (self.waiting and not self._gave_up):
            return
        self._timer.cancel()
        self._timer = None
        self._quiet_watch.close()
        try:
            self.close()
        finally:
            # Otherwise the process would never end.
            self._ended()

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
        size = count(len(data), "byte")
        log.debug("%s  echoes %s  %s", connection.peer, size, printable(data))
        connection.send(data)


def _end(error: Exception | None) -> str:
    """Return what ended a connection: both sides, we (an error without a number), the network."""
    if error is None:
        return "closed"
    how = "lost" if getattr(error, "errno", None) else "ended"
    return f"{how} ({reason(error)})"
