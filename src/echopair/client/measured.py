"""One place of a load: a session that is timed, on one connection after another.

It says when it begins a message and when that has come back, and counts both in the run's tally. A message is due when
the schedule says (an open loop) or when the pipeline has room for it (a closed loop); response time runs from then on,
service time from the moment the message is handed to the kernel. Of a message in flight two moments are kept, of others
nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from echopair.client.payload import Payload
from echopair.client.session import EMPTY, Session
from echopair.client.tcpinfo import kernel_figures
from echopair.connection import Connection
from echopair.measure.tally import NS, Tally

ENDLESS = 1 << 62  # messages; more than any run sends


@dataclass(frozen=True, slots=True)
class Schedule:
    """When messages are due in an open loop: number `k`, from 0, of all connections, `k / rate` seconds after `begin`.

    They go round the connections, so that each has its own fixed times, whatever becomes of the others.
    """

    begin: float
    rate: float
    conns: int

    def due(self, message: int) -> float:
        """Return when message number `message` of all is due."""
        return self.begin + message / self.rate

    def due_before(self, end: float) -> int:
        """Return how many messages are due before `end`."""
        number = max(int((end - self.begin) * self.rate) - 1, 0)  # or a few more, for floats differ by a hair
        while self.due(number) < end:
            number += 1
        return number


@dataclass(slots=True, eq=False)
class MeasuredSession(Session):
    """Sends messages of `payload`, as many as are due and `limit` allows, and tallies what becomes of them.

    `begun` counts the messages of all its connections, as do `due` and `limit`; `per_connection` ends each connection
    after so many. Messages due before `since`, by `clock`, warm up: they are not counted.
    """

    payload: Payload = field(kw_only=True)
    tally: Tally = field(kw_only=True)
    clock: Callable[[], float] = field(kw_only=True)
    established: Callable[[MeasuredSession], object] = field(kw_only=True)
    per_connection: int = ENDLESS
    schedule: Schedule | None = None
    since: float = float("inf")
    due: int = 0
    limit: int = ENDLESS
    live: bool = False  # connected
    in_flight: deque[tuple[float, float]] = field(default_factory=deque)  # when due, when handed to the kernel
    settled_at: float = 0.0  # when a message last came back or was given up by the owner
    plain_until: int = 0  # messages up to this one may be sent as soon as the one before is back

    @property
    def begun(self) -> int:
        """How many messages were sent, at least in part, on all connections so far."""
        return self.messages_before + self.messages_sent

    def start(self, connection: Connection) -> None:
        """Begin on a new connection, whatever became of the last one."""
        self.messages_before = self.begun
        self.outstanding.clear()
        self.in_flight.clear()
        self.matched = self.echoed = self.pieces_sent = 0
        self.unsent = EMPTY
        self.failure = None
        self.pieces = self.payload.pieces(self.number, first=self.messages_before)
        self.live = True
        self.connection = connection
        self.established(self)
        super(MeasuredSession, self).start(connection)

    def go_on(self) -> None:
        """Send what is allowed now, or half-close if it was all; without a connection, nothing."""
        if self.live and not self.connection.closed:
            self.send_more(self.connection)

    def skip(self) -> int:
        """Forget what was due and is not sent, and return how much: it was to warm up only, and that is over."""
        late = max(self.due - self.begun, 0)
        self.messages_before += late
        return late

    def send_more(self, connection: Connection) -> None:
        """Send what is due and what the pipeline and the kernel have room for; half-close when it was all."""
        between = not self.unsent and self.pieces_sent % self.pieces_per_message == 0
        here = min(self.limit - self.messages_before, self.per_connection)
        self.exhausted = between and self.messages_sent >= here
        self.plain_until = here if self.pipeline == 1 and not self.schedule else 0
        super(MeasuredSession, self).send_more(connection)

    def messages_allowed(self) -> int:
        """Return how many messages may have been sent by now on this connection."""
        here = min(self.due, self.limit) - self.messages_before
        return min(here, self.per_connection, self.messages_echoed + self.pipeline)

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Compare what came back, time it, and go on.

        The common case, in which what comes back is the one message in flight, is here without the calls that the
        others need.
        """
        outstanding = self.outstanding
        if len(outstanding) != 1 or data != outstanding[0] or self.matched or self.pieces_per_message > 1:
            super(MeasuredSession, self).data_received(connection, data)
            return
        now = self._time_echo()
        if self.pieces_sent >= self.plain_until:
            outstanding.popleft()
            self.send_more(connection)
            return
        outstanding[0] = piece = next(self.pieces)
        self.in_flight.append((now, now))
        self.pieces_sent += 1
        connection.send(piece)

    def send_piece(self, connection: Connection, piece: bytes) -> None:
        """Send one piece, and time it if a message begins with it."""
        if self.pieces_sent % self.pieces_per_message == 0:
            now = due = self.clock()
            if self.schedule:
                due = self.schedule.due(self.number - 1 + self.begun * self.schedule.conns)
            self.in_flight.append((due, now))
        super(MeasuredSession, self).send_piece(connection, piece)

    def piece_echoed(self) -> None:
        """Let go of the piece that has come back, and time it if a message ends with it."""
        super(MeasuredSession, self).piece_echoed()
        if self.pieces_echoed % self.pieces_per_message == 0:
            self._time_echo()

    def _time_echo(self) -> float:
        """Count the message that has come back whole, and how long that took, unless it was to warm up; return when."""
        now = self.clock()
        due, handed_over = self.in_flight.popleft()
        if due >= self.since:
            self.settled_at = now
            self.tally.recent.record(int((now - due) * NS))
            if self.schedule:
                self.tally.service.record(int((now - handed_over) * NS))
        else:
            self.tally.warmup_echoed += 1
        return now

    def eof_received(self, connection: Connection) -> None:
        """End well if all has come back, or was to be left unchecked; but an end before all is sent is none."""
        super(MeasuredSession, self).eof_received(connection)
        if not (self.failure or self.exhausted):
            self.fail("echo", "closed", f"the server closed at {self.place()}: more was to be sent")

    def silent(self, timeout: float) -> None:
        """Fail, unless it is our turn: no message is due, or none may be sent yet."""
        if self.outstanding or self.connection.outbound or self.connection.eof_sent:
            super(MeasuredSession, self).silent(timeout)

    def closing(self, connection: Connection) -> None:
        """Ask the kernel how the connection was."""
        figures = kernel_figures(connection.sock)
        if figures:
            self.tally.tcp(*figures)

    def finish(self) -> None:
        """Count what did not come back, and tell the owner."""
        self.live = False
        if self.in_flight and self.in_flight[0][0] < self.since:
            self.tally.warmup_partly += self.echoed + self.matched
        lost = sum(due >= self.since for due, _ in self.in_flight)
        if lost and self.failure and self.failure.error == "mismatch":
            self.tally.mismatched += 1
            lost -= 1
        self.tally.unanswered += lost
        super(MeasuredSession, self).finish()
