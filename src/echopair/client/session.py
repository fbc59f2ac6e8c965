"""One connection's life as a client: send, see that exactly that comes back, half-close, wait for the server's EOF.

A session is the handler of its connection. It owns what is outstanding, the pieces sent that have not come back,
and compares what comes with them, in order and byte by byte. Sending stops where the kernel takes no more, and
reading never waits for it, so no size of message can make the two ends wait for each other.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from echopair.address import Address
from echopair.client.mismatch import agreement, diagnose, dump
from echopair.connection import READ_SIZE, Connection, Handler
from echopair.text import count, reason

EMPTY = memoryview(b"")
FULL, LENGTH, NONE = "full", "length", "none"  # what of the echo is checked


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a session failed: in which phase (connect, echo, close), by which error, and the story in one line."""

    phase: str
    error: str
    story: str


def error_name(error: Exception) -> str:
    """Return the name that programs know an error by: `ECONNRESET`."""
    return errno.errorcode.get(getattr(error, "errno", None) or 0, type(error).__name__)


@dataclass(slots=True, eq=False)
class Session(Handler):
    """Sends `pieces`, none of them empty, at most `pipeline` messages ahead of their echo, and checks the echo.

    A message is `pieces_per_message` pieces, all but its last of the same size. `verify` says what is checked: FULL
    every byte, LENGTH only how many come back, NONE nothing, though as many are waited for. When the session has
    ended `ended(session)` is called, once; `failure` then says what went wrong, if anything did. `locate` may say
    to which connection and message bytes in the wrong place belong.
    """

    number: int  # from 1; what reports call the connection
    pieces: Iterator[bytes]
    ended: Callable[[Session], object] = lambda _session: None
    pieces_per_message: int = 1
    pipeline: int = 1
    verify: str = FULL
    locate: Callable[[bytes], tuple[int, int] | None] | None = None
    connection: Connection = field(init=False)  # from start() on
    connect_seconds: float = 0.0  # how long it took to make it
    failed_attempts: Sequence[tuple[Address, OSError]] = ()  # attempts at other addresses, or all of them
    outstanding: deque[bytes] = field(default_factory=deque)
    matched: int = 0  # bytes of outstanding[0] that have come back
    echoed: int = 0  # bytes of the current message that came back in whole pieces
    unsent: memoryview = EMPTY  # what is left of a piece too large to be sent at once
    messages_before: int = 0  # that were sent on other connections
    pieces_sent: int = 0
    exhausted: bool = False  # nothing is left to send
    failure: Failure | None = None

    @property
    def messages_sent(self) -> int:
        """How many messages were sent, at least in part."""
        return -(-self.pieces_sent // self.pieces_per_message)

    @property
    def pieces_echoed(self) -> int:
        """How many pieces came back whole."""
        return self.pieces_sent - len(self.outstanding)

    @property
    def messages_echoed(self) -> int:
        """How many messages came back whole."""
        return self.pieces_echoed // self.pieces_per_message

    def start(self, connection: Connection) -> None:
        """Begin, on a connection just made."""
        self.connection = connection
        self.send_more(connection)

    def send_more(self, connection: Connection) -> None:
        """Send what the pipeline and the kernel have room for; half-close when all is sent and has come back."""
        allowed = self.messages_allowed() * self.pieces_per_message
        while not (connection.outbound or connection.eof_queued):
            if self.unsent:
                chunk, self.unsent = self.unsent[:READ_SIZE], self.unsent[READ_SIZE:]
                connection.send(chunk)
            elif self.exhausted or self.pieces_sent >= allowed:
                break
            elif (piece := next(self.pieces, None)) is None:
                self.exhausted = True
            else:
                self.send_piece(connection, piece)
        if self.exhausted and not self.outstanding:
            connection.send_eof()

    def messages_allowed(self) -> int:
        """Return how many messages may have been sent by now."""
        return self.messages_echoed + self.pipeline

    def send_piece(self, connection: Connection, piece: bytes) -> None:
        """Send one piece, a large one bit by bit, and expect it back."""
        self.outstanding.append(piece)
        self.pieces_sent += 1
        if len(piece) <= READ_SIZE:
            connection.send(piece)
        else:
            self.unsent = memoryview(piece)  # outbound is no place for it: while that is full, nothing is read

    def fail(self, phase: str, error: str, story: str) -> None:
        """End the session at once: it failed, for this reason."""
        self.failure = self.failure or Failure(phase, error, f"connection {self.number}: {story}")
        self.connection.abort()

    def silent(self, timeout: float) -> None:
        """Fail: no byte has moved for `timeout` seconds, and the server is the one to move it."""
        if self.connection.outbound:
            self.fail("echo", "timeout", f"the server took nothing for {timeout:g} s, while waiting for {self.place()}")
        elif self.connection.eof_sent and not self.outstanding:
            self.not_closed(timeout)
        else:
            self.fail("echo", "timeout", f"nothing moved for {timeout:g} s, waiting for {self.place()}")

    def not_closed(self, timeout: float) -> None:
        """Fail: only the server's EOF is missing."""
        self.fail("close", "timeout", f"all came back, but our EOF was not answered for {timeout:g} s")

    def place(self) -> str:
        """Return where in the conversation the next byte to come back stands."""
        return f"message {self.messages_before + self.messages_echoed + 1:,}, offset {self.echoed + self.matched:,}"

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Compare what came back, and go on."""
        if not self.matched and self.outstanding and data == self.outstanding[0]:
            self.piece_echoed()  # the common case: a whole message and nothing but it
        elif not self._match(data):
            return
        self.send_more(connection)

    def piece_echoed(self) -> None:
        """Let go of the piece that has come back."""
        self.echoed += len(self.outstanding.popleft())
        self.matched = 0
        if self.pieces_echoed % self.pieces_per_message == 0:
            self.echoed = 0

    def drained(self, connection: Connection) -> None:
        """Go on sending."""
        self.send_more(connection)

    def eof_received(self, connection: Connection) -> None:
        """End well if all has come back; otherwise the rest is missing."""
        if connection.error:
            self.fail("echo", error_name(connection.error), f"{reason(connection.error)} at {self.place()}")
        elif self.verify != NONE and not (self.exhausted and not self.outstanding):
            owed = sum(map(len, self.outstanding)) - self.matched - len(self.unsent) - len(connection.outbound)
            missing = f"{count(owed, 'byte')} sent did not come back" if owed > 0 else "more was to be sent"
            if self.connection.eof_sent:
                missing += " (it closed upon our EOF; some servers and proxies do not know half-closed connections)"
            self.fail("echo", "missing" if owed > 0 else "closed", f"the server closed at {self.place()}: {missing}")
        else:
            connection.send_eof()

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Tell the owner, and why where the network was the reason."""
        if error:
            self.fail("echo", error_name(error), f"{reason(error)} at {self.place()}")
        self.finish()

    def finish(self) -> None:
        """Tell the owner that this was all."""
        self.ended(self)

    def _match(self, data: bytes) -> bool:
        """Compare `data` with what is outstanding, piece by piece; return whether the session goes on."""
        start = 0
        while start < len(data) and self.outstanding:
            piece = self.outstanding[0]
            end = min(len(data), start + len(piece) - self.matched)
            if self.verify == FULL and data[start:end] != piece[self.matched : self.matched + end - start]:
                self._mismatch(data[start:])
                return False
            self.matched += end - start
            start = end
            if self.matched == len(piece):
                self.piece_echoed()
        if start < len(data) and self.verify == NONE and self.exhausted and not self.outstanding:
            self.connection.abort()  # or a server that never ends would keep us for ever
            return False
        if start < len(data) and self.verify != NONE:
            extra = len(data) - start
            self.fail("echo", "extra", f"{count(extra, 'byte')} more came back than was sent: {dump(data[start:])}")
            return False
        return True

    def _mismatch(self, got: bytes) -> None:
        """Fail, saying where the echo that goes on with `got` goes wrong, and what that looks like."""
        owner = self.locate(got) if self.locate and not self.matched else None
        expected = b"".join(self.outstanding)[self.matched :]
        right = agreement(expected, got)
        self.matched += right
        expected, got = expected[right:], got[right:]
        looks = "these are bytes of connection {}, message {}".format(*owner) if owner else diagnose(expected, got)
        self.fail(
            "echo",
            "mismatch",
            f"{self.place()}: expected {dump(expected)}, got {dump(got)}" + (f" ({looks})" if looks else ""),
        )
