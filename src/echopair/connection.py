"""One non-blocking stream: what came in, what must go out, and how each direction ends.

A Connection owns its socket, its two buffers and the facts of its life. Its Handler decides what
the bytes mean, its owner how long silence may last.

`_ready()` is the path of every byte. A connection that `echoes` sends a small message back with
one recv and one send, in `_receive()`, and a large one through a pipe, in `_splice()`. On any other
connection the handler gets the bytes.

What a connection waits for is a pure function of its state (`wanted`). Every other path ends in
`_settle()`, which brings the selector into line with the state.

Each direction ends by itself (RFC 9293 3.6): EOF from the peer means "I send no more", not "go
away". When both directions have ended, or one has failed, the connection ends: once, in `_end()`.
The loop then calls the handler's `connection_lost`.
"""

from __future__ import annotations

import logging
import socket
import struct
from dataclasses import dataclass
from functools import partial

from echopair.loop import READ, WRITE, EventLoop

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would take a tenth of the start
    from collections.abc import Callable
    from typing import Any

# Bytes per recv. Twice that would cost an mmap and a munmap each time (malloc's threshold).
READ_SIZE = 64 * 1024
# Bytes. After a read of this size the next one is spliced: from here on that is cheaper (README).
LARGE = 8 * 1024
# Bytes; the high-water mark of either buffer.
MAX_BUFFER = 256 * 1024
# SO_LINGER with no time to linger: closing resets (socket(7), RFC 9293 3.10.4).
NO_LINGER = struct.pack("ii", 1, 0)

log = logging.getLogger(__name__)


class Handler:
    """Callbacks of a connection. They never nest, except `closing`.

    One handler may serve one connection or thousands. An exception in a callback is logged, and
    ends that one connection.
    """

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Called with the next bytes from the peer. Default: keep them until `consume()`."""
        connection.keep(data)

    def eof_received(self, connection: Connection) -> None:
        """Called at the peer's EOF. Default: send EOF after all queued output."""
        connection.send_eof()

    def drained(self, connection: Connection) -> None:
        """Called when `outbound` is empty again: the kernel has taken it, or sending has failed."""

    def closing(self, connection: Connection) -> None:
        """Called just before the socket is closed, possibly from within another callback."""

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Called when the connection has ended; `error` is None if both sides had sent EOF."""

    def forget(self, connection: Connection) -> None:
        """Called last, even if `connection_lost` raised: drop what is kept for the connection."""


@dataclass(slots=True, eq=False)
class Connection:
    """A connected socket on the loop, reading from the moment it is made.

    `inbound` holds received bytes that the handler has not taken, `outbound` sent bytes that the
    kernel has not taken. Reading pauses while either holds `max_buffer` bytes or more, so neither
    exceeds that by more than one read (`inbound`) or one `send()` (`outbound`). An empty buffer is
    `b""`: an idle connection keeps no memory for it.

    With `echoes`, bytes that arrive while `outbound` is empty are sent back without a call of
    `data_received`. With `pipes` as well (server/zerocopy.py), large reads are spliced. Bytes that
    the kernel does not take then stay in a pipe, which is `outbound` until it is empty; no more are
    read before that.

    `bytes_received` and `bytes_sent` count what the kernel handed over and accepted; `active_at` is
    when it last did, in seconds of the loop's clock.
    """

    loop: EventLoop
    sock: socket.socket
    handler: Handler
    peer: str
    max_buffer: int = MAX_BUFFER
    echoes: bool = False
    pipes: Any = None
    inbound: bytes | bytearray = b""
    # b"", a bytearray or a pipe.
    outbound: Any = b""
    bytes_received: int = 0
    bytes_sent: int = 0
    active_at: float = 0.0
    # The last read was large: splice the next one.
    large: bool = False
    eof_received: bool = False
    # Nothing may be sent any more.
    eof_queued: bool = False
    eof_sent: bool = False
    # close() was called: drop what still comes in.
    discarding: bool = False
    closed: bool = False
    # Why sending failed. Reading goes on, for what the peer sent before.
    error: OSError | None = None
    _watched: int = 0

    def __post_init__(self) -> None:
        self.active_at = self.loop.now
        self._settle()

    @property
    def wanted(self) -> int:
        """The events to wait for: READ while both buffers have room, WRITE while bytes are owed."""
        if self.closed:
            return 0
        if self._piped():
            return WRITE
        room = len(self.inbound) < self.max_buffer and len(self.outbound) < self.max_buffer
        return (READ if room and not self.eof_received else 0) | (WRITE if self.outbound else 0)

    def send(self, data: bytes | memoryview) -> None:
        """Send `data` after all data before it; what the kernel refuses waits in `outbound`.

        Does nothing if the connection has ended or cannot send: the handler has not been notified
        yet. Raises RuntimeError after `send_eof()`.
        """
        if self.eof_queued:
            if self.closed or self.error or self.discarding:
                return
            raise RuntimeError("send() after send_eof()")
        sent = 0
        if not self.outbound:
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                pass
            except OSError as error:
                self._cannot_send(error)
                return
            self.active_at = self.loop.now
            self.bytes_sent += sent
            if sent == len(data):
                return
            self.outbound = bytearray(data[sent:])
        else:
            if self._piped():
                self.outbound = self.pipes.empty(self.outbound)
            self.outbound += data
        self._settle()

    def send_eof(self) -> None:
        """Send EOF after everything queued, and keep reading (shutdown(2), SHUT_WR)."""
        self.eof_queued = True
        self._settle()

    def close(self) -> None:
        """Send what is queued, then EOF; drop what still comes in until the peer's EOF.

        The wait makes the end safe: closing a socket with unread input resets the connection, and
        the reset can overtake what was sent (RFC 1122 4.2.2.13, RFC 9293 3.10.4). Limit it with a
        timer and `abort()`.
        """
        self.discarding = True
        self.inbound = b""
        self.send_eof()

    def abort(self, error: Exception | None = None) -> None:
        """End now and drop what is queued; the loop then calls `connection_lost(error)`."""
        self._end(error)

    def keep(self, data: bytes) -> None:
        """Append `data` to `inbound`; `consume()` removes it again."""
        if self.inbound:
            self.inbound += data
        else:
            self.inbound = bytearray(data)
        self._settle()

    def consume(self, count: int) -> None:
        """Drop the first `count` bytes of `inbound`; read on if there is room again.

        Works on a connection that has ended, too.
        """
        if count < len(self.inbound):
            del self.inbound[:count]  # type: ignore[union-attr]  # not empty, so a bytearray
        else:
            self.inbound = b""
        self._settle()

    def call(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Run `callback(*arguments)`; if it raises, log that and end this connection."""
        try:
            callback(*arguments)
        except Exception as error:
            log.exception("%s: the handler failed", self.peer)
            self._end(error)

    def _ready(self, events: int) -> None:
        """Receive, pass on, send what is owed; `events` is READ, WRITE or both."""
        try:
            if events != WRITE:
                self._receive()
            if events != READ and self.outbound:
                self._flush()
        except Exception as error:
            log.exception("%s: the handler failed", self.peer)
            self._end(error)

    def _receive(self) -> None:  # noqa: C901 - in one piece, for a call costs a message 1 %
        """Read once and pass the bytes on: echo them here, or call the handler."""
        if self.large and self._splice():
            return
        try:
            data = self.sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(self.error or error)
            return
        self.active_at = self.loop.now
        received = len(data)
        self.bytes_received += received
        if not data:
            self.eof_received = True
            self.handler.eof_received(self)
            self._settle()
        elif self.echoes and not (self.outbound or self.eof_queued):
            # What send() does, without the call.
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._cannot_send(error)
                return
            self.bytes_sent += sent
            if sent != received:
                self.outbound = bytearray(data[sent:])
                self._settle()
            elif received >= LARGE and self.pipes:
                self.large = True
        elif not self.discarding:
            self.handler.data_received(self, data)

    def _splice(self) -> bool:
        """Echo one read through a pipe; return False if recv(2) has to read."""
        self.large = False
        if self.outbound or self.eof_queued or self.pipes.refused:
            return False
        received, sent, self.outbound, error = self.pipes.echo(self.sock.fileno(), self.max_buffer)
        if received:
            self.active_at = self.loop.now
            self.bytes_received += received
            self.bytes_sent += sent
            self.large = received >= LARGE
            if error:
                self._cannot_send(error)
            elif sent != received:
                self._settle()
        elif error:
            self._end(error)
        else:
            return False
        return True

    def _flush(self) -> None:
        """Send what is owed, as much as the kernel takes now."""
        owed = self.outbound
        try:
            if self._piped():
                sent, self.outbound = self.pipes.flush(owed, self.sock.fileno())
            else:
                sent = self.sock.send(owed)
                del owed[:sent]
                self.outbound = owed or b""
        except BlockingIOError:
            return
        except OSError as error:
            self._cannot_send(error)
            self.handler.drained(self)
            return
        self.active_at = self.loop.now
        self.bytes_sent += sent
        if not self.outbound:
            self.handler.drained(self)
        self._settle()

    def _cannot_send(self, error: OSError) -> None:
        """Drop what is owed, but read on: the kernel may still hold what the peer sent before."""
        self.error = error
        self._drop_outbound()
        self.send_eof()

    def _drop_outbound(self) -> None:
        if self._piped():
            self.pipes.give_back(self.outbound)
        self.outbound = b""

    def _piped(self) -> bool:
        return not isinstance(self.outbound, (bytes, bytearray))

    def _settle(self) -> None:
        """Send EOF if due, end if both sides have sent it, then update the selector."""
        if self.closed:
            return
        if self.eof_queued and not self.eof_sent and not self.outbound:
            self.eof_sent = True
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                # ENOTCONN: a reset came first. Before the peer's EOF, recv(2) reports it as well.
                if not self.eof_received:
                    self.error = self.error or error
        if self.eof_received and self.eof_sent:
            self._end(self.error)
            return
        wanted = self.wanted
        if wanted != self._watched:
            self._watched = wanted
            self.loop.watch(self.sock, wanted, self._ready)

    def _end(self, error: Exception | None) -> None:
        if self.closed:
            return
        self.closed = self.eof_queued = True
        self._drop_outbound()
        self.loop.watch(self.sock, 0)
        self.call(self.handler.closing, self)
        self.sock.close()
        self.loop.call_soon(partial(self._lost, error))

    def _lost(self, error: Exception | None) -> None:
        self.call(self.handler.connection_lost, self, error)
        self.call(self.handler.forget, self)
