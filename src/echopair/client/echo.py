"""The echo client: opens the connections, gives each its session, and knows when all have ended."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from functools import partial

from echopair.address import Address, Dial, explain, format_address
from echopair.client.session import Failure, Session, error_name
from echopair.connection import Connection
from echopair.idle import IdleWatch
from echopair.loop import EventLoop

log = logging.getLogger(__name__)

TIMEOUT = 10.0  # seconds
CONNECT_TIMEOUT = 5.0  # seconds


class EchoClient:
    """Runs `sessions`, each on a connection of its own to the first of `addresses` that answers, all at once.

    A session fails when its connection takes longer than `connect_timeout` seconds an address to be made, or moves
    no byte for `timeout` seconds. Each session that has ended is told to `ended(session)`; after the last one,
    `done()` is called.
    """

    def __init__(
        self,
        loop: EventLoop,
        addresses: Sequence[Address],
        sessions: Sequence[Session],
        *,
        done: Callable[[], object],
        ended: Callable[[Session], object] = lambda _session: None,
        timeout: float = TIMEOUT,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        self.loop = loop
        self.sessions = sessions
        self._ended = ended
        self._done = done
        self._timeout = timeout
        self._running = len(sessions)
        self.connections: list[Connection] = []  # made so far, ended or not
        self._open: dict[Connection, Session] = {}
        self._dials: dict[Session, Dial] = {}
        for session in sessions:
            connected, failed = partial(self._connected, session), partial(self._failed, session)
            self._dials[session] = Dial(loop, addresses, connect_timeout, connected, failed)
        self._idle_watch = IdleWatch(loop, self._open, timeout, self._silent)
        if not sessions:
            loop.call_soon(self._finish)

    @property
    def failures(self) -> list[Failure]:
        """Why sessions failed, as far as they did."""
        return [session.failure for session in self.sessions if session.failure]

    def stop(self) -> None:
        """End now, what is under way unfinished."""
        for connection in self._open:
            connection.abort()
        for session, dial in list(self._dials.items()):
            dial.cancel()
            del self._dials[session]
            self._session_ended(session)

    def _connected(self, session: Session, sock: socket.socket, address: Address) -> None:
        del self._dials[session]
        connection = Connection(self.loop, sock, session, format_address(address[1]))
        self.connections.append(connection)
        self._open[connection] = session
        session.ended = self._connection_ended
        try:
            session.start(connection)
        except Exception as error:
            log.exception("connection %d could not begin", session.number)
            connection.abort(error)

    def _failed(self, session: Session, failures: list[tuple[Address, OSError]]) -> None:
        del self._dials[session]
        told = "; ".join(f"{format_address(address[1])}: {explain(error)}" for address, error in failures)
        session.failure = Failure(
            "connect", error_name(failures[-1][1]), f"connection {session.number}: cannot connect to {told}"
        )
        self._session_ended(session)

    def _silent(self, connection: Connection) -> None:
        if not connection.closed:  # it may have ended, and wait for its output
            self._open[connection].silent(self._timeout)

    def _connection_ended(self, session: Session) -> None:
        del self._open[session.connection]
        self._session_ended(session)

    def _session_ended(self, session: Session) -> None:
        self._ended(session)
        self._running -= 1
        if not self._running:
            self._finish()

    def _finish(self) -> None:
        self._idle_watch.close()
        self._done()
