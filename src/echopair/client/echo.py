"""The echo client: opens the connections, gives each its session, and knows when all have ended."""

from __future__ import annotations

import logging
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from echopair.address import Address, Dial, Route, format_address, tell_unreachable
from echopair.address import Failure as FailedAttempt
from echopair.client.session import Failure, Session, error_name
from echopair.connection import Connection
from echopair.idle import IdleWatch
from echopair.loop import EventLoop

log = logging.getLogger(__name__)

TIMEOUT = 10.0  # seconds
CONNECT_TIMEOUT = 5.0  # seconds
RETRY_DELAY = 0.1  # seconds; how soon a server that is awaited is tried again
AT_ONCE = 32  # attempts to connect in flight; the time of more would include waiting for each other
RETRANSMITTED = 1.0  # seconds; a slower connection lost its SYN (RFC 6298 2.1)


class EchoClient:
    """Runs `sessions`, each on a connection of its own to the first of `addresses` that answers.

    With `all_addresses`, connections use the addresses that answer in turn; `source` is the local
    address to connect from. A session fails when connecting takes longer than `connect_timeout`
    seconds per address, or no byte moves for `timeout` seconds. Each session that has
    ended is passed to `ended(session)`, which may `add()` one; when none is left, `done()` is called.

    One attempt begins per turn of the loop, and at most `_places` are in flight, so that connect
    times are those of the path and not of our own burst, and listen queues do not overflow. On a
    long path the places grow as in TCP's slow start (RFC 5681 3.1): by one for each connection made
    while at least half of them were taken, until a SYN is lost or an attempt fails. While addresses
    are unexplored there is one place, so that only one attempt has to find out which are dead.
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
        source: Address | None = None,
        all_addresses: bool = False,
    ) -> None:
        self.loop = loop
        self.sessions = sessions
        self._bytes_sent = self._bytes_received = 0  # by connections that have ended
        self.open: dict[Connection, Session] = {}
        self._route = Route(addresses, source=source, all_addresses=all_addresses)
        self._ended = ended
        self._done = done
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._running = 0
        self._dials: dict[Session, Dial] = {}
        self._waiting: OrderedDict[Session, None] = OrderedDict()  # for a place
        self._places: float = AT_ONCE
        self._reached = False  # a connection was made
        self._beginning = False
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
        self._waiting[session] = None
        self._proceed()
        if self._idle_watch is None:
            self._idle_watch = IdleWatch(self.loop, self.open, self._timeout, self._silent)

    def stop(self) -> None:
        """End now, what is under way unfinished."""
        for connection in self.open:
            connection.abort()
        for session in [*self._waiting, *self._dials]:
            self.stop_dialling(session)

    def stop_dialling(self, session: Session) -> bool:
        """End a session if its connection is not made yet, and return whether it was so; that itself is no failure."""
        dial = self._dials.pop(session, None)
        if dial:
            dial.cancel()
        elif session not in self._waiting:
            return False
        self._waiting.pop(session, None)
        self._session_ended(session)
        return True

    def _proceed(self) -> None:
        if not self._beginning:
            self._beginning = True
            self.loop.call_soon(self._begin_next)

    def _begin_next(self) -> None:
        self._beginning = False
        if not self._waiting or len(self._dials) >= (self._places if self._route.explored else 1):
            return
        session, _ = self._waiting.popitem(last=False)
        connected, failed = partial(self._connected, session), partial(self._failed, session)
        self._dials[session] = Dial(self.loop, self._route, self._connect_timeout, connected, failed)
        self._proceed()

    def _dial_ended(self, session: Session, seconds: float | None) -> None:
        """Free the place of an attempt that took `seconds` to connect, or failed (None)."""
        used = 2 * len(self._dials) >= self._places
        del self._dials[session]
        if not self._reached and seconds is None:
            self._places = float("inf")  # no server is there that a burst could hurt
        elif not self._reached or seconds is None or seconds >= RETRANSMITTED:
            self._places = AT_ONCE
        elif used:
            self._places += 1
        self._reached = self._reached or seconds is not None
        self._proceed()

    def _connected(self, session: Session, sock: socket.socket, address: Address) -> None:
        dial = self._dials[session]
        session.connect_seconds = self.loop.clock() - dial.attempted_at
        session.failed_attempts = dial.failures
        self._dial_ended(session, session.connect_seconds)
        connection = Connection(self.loop, sock, session, format_address(address[1]))
        self.open[connection] = session
        session.ended = self._connection_ended
        try:
            session.start(connection)
        except Exception as error:
            log.exception("connection %d could not begin", session.number)
            connection.abort(error)

    def _failed(self, session: Session, failures: list[FailedAttempt]) -> None:
        session.failed_attempts = failures
        story = f"connection {session.number}: {tell_unreachable(failures)}"
        session.failure = Failure("connect", error_name(failures[-1][1]), story)
        self._dial_ended(session, None)
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
