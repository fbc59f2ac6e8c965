"""The echo client: opens the connections, gives each its session, and knows when all have ended."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from functools import partial

from echopair.address import Address, Dial, format_address, tell_unreachable
from echopair.client.session import Failure, Session, error_name
from echopair.connection import Connection
from echopair.idle import IdleWatch
from echopair.loop import EventLoop, Timer

log = logging.getLogger(__name__)

TIMEOUT = 10.0  # seconds
CONNECT_TIMEOUT = 5.0  # seconds
RETRY_DELAY = 0.1  # seconds; how soon a server that is awaited is tried again


class EchoClient:
    """Runs `sessions`, each on a connection of its own to the first of `addresses` that answers, all at once.

    A session fails when its connection takes longer than `connect_timeout` seconds an address to be made, or moves
    no byte for `timeout` seconds. Until a first connection is made they are tried again, for `wait` seconds. Each
    session that has ended is told to `ended(session)`, which may `add()` one; when none is left, `done()` is called.
    """

    def __init__(
        self,
        loop: EventLoop,
        addresses: Sequence[Address],
        sessions: Sequence[Session] = (),
        *,
        done: Callable[[], object] = lambda: None,
        ended: Callable[[Session], object] = lambda _session: None,
        timeout: float = TIMEOUT,
        connect_timeout: float = CONNECT_TIMEOUT,
        wait: float = 0.0,
    ) -> None:
        self.loop = loop
        self.sessions = sessions
        self._bytes_sent = self._bytes_received = 0  # by connections that have ended
        self.open: dict[Connection, Session] = {}
        self._addresses = addresses
        self._ended = ended
        self._done = done
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._awaited_until = loop.clock() + wait
        self._running = 0
        self._dials: dict[Session, Dial | Timer] = {}
        self._idle_watch: IdleWatch | None = None
        for session in sessions:
            self.add(session)
        if not sessions:
            loop.call_soon(self._finish)

    @property
    def failures(self) -> list[Failure]:
        """Why sessions failed, as far as they did."""
        return [session.failure for session in self.sessions if session.failure]

    def bytes_moved(self) -> tuple[int, int]:
        """Return how many bytes all connections so far have sent and received."""
        sent, received = self._bytes_sent, self._bytes_received
        for connection in self.open:
            sent += connection.bytes_sent
            received += connection.bytes_received
        return sent, received

    def add(self, session: Session) -> None:
        """Run one more session, or one that has ended again, on a new connection."""
        self._running += 1
        self._dial(session)
        if self._idle_watch is None:
            self._idle_watch = IdleWatch(self.loop, self.open, self._timeout, self._silent)

    def stop(self) -> None:
        """End now, what is under way unfinished."""
        for connection in self.open:
            connection.abort()
        for session in list(self._dials):
            self.stop_dialling(session)

    def stop_dialling(self, session: Session) -> bool:
        """End a session if its connection is not made yet, and return whether it was so; that itself is no failure."""
        dial = self._dials.pop(session, None)
        if dial:
            dial.cancel()
            self._session_ended(session)
        return dial is not None

    def _dial(self, session: Session) -> None:
        connected, failed = partial(self._connected, session), partial(self._failed, session)
        self._dials[session] = Dial(self.loop, self._addresses, self._connect_timeout, connected, failed)

    def _connected(self, session: Session, sock: socket.socket, address: Address) -> None:
        dial = self._dials.pop(session)
        assert isinstance(dial, Dial)  # noqa: S101 - a timer does not connect
        session.connect_seconds = self.loop.clock() - dial.attempted_at
        self._awaited_until = 0.0
        session.failure = None
        connection = Connection(self.loop, sock, session, format_address(address[1]))
        self.open[connection] = session
        session.ended = self._connection_ended
        try:
            session.start(connection)
        except Exception as error:
            log.exception("connection %d could not begin", session.number)
            connection.abort(error)

    def _failed(self, session: Session, failures: list[tuple[Address, OSError]]) -> None:
        story = f"connection {session.number}: {tell_unreachable(failures)}"
        session.failure = Failure("connect", error_name(failures[-1][1]), story)
        if self.loop.clock() < self._awaited_until:  # that is still its failure if it is stopped meanwhile
            self._dials[session] = self.loop.call_later(RETRY_DELAY, partial(self._dial, session))
        else:
            del self._dials[session]
            self._session_ended(session)

    def _silent(self, connection: Connection) -> None:
        if not connection.closed:  # it may have ended, and wait for its output
            self.open[connection].silent(self._timeout)

    def _connection_ended(self, session: Session) -> None:
        connection = session.connection
        del self.open[connection]
        self._bytes_sent += connection.bytes_sent
        self._bytes_received += connection.bytes_received
        self._session_ended(session)

    def _session_ended(self, session: Session) -> None:
        self._running -= 1
        try:
            self._ended(session)
        finally:
            self._finish()

    def _finish(self) -> None:
        if self._running:
            return
        if self._idle_watch:
            self._idle_watch.close()
            self._idle_watch = None
        self._done()
