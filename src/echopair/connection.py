"""One non-blocking stream: what came in, what must go out, and how each direction ends.

A Connection owns its socket, its two buffers and the facts of its life; what the bytes mean is its Handler's
business, how long silence may last its owner's. The rule: what it waits for is a pure function of its state
(`wanted`), and everything that changes the state on a slow path ends in `_settle()`, which brings the selector
into line. The fast path, readable and nothing owed, is one recv and one send and touches neither.

Each direction ends by itself (RFC 9293 3.6): EOF from the peer means "I send no more", not "go away". When both
have ended, or one has failed, the connection ends: once, in `_end()`, and the handler hears of it from the loop.
"""

from __future__ import annotations

import logging
import socket
import struct
import sys
from dataclasses import dataclass
from functools import partial

from echopair.loop import READ, WRITE, EventLoop

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would take a tenth of the start
    from collections.abc import Callable
    from typing import Any

try:
    from fcntl import ioctl
    from termios import TIOCOUTQ
except ImportError:  # pragma: no cover - Windows has neither
    ioctl = None  # type: ignore[assignment]

READ_SIZE = 64 * 1024  # bytes a recv; twice that and each call costs an mmap and a munmap (malloc's threshold)
NO_LINGER = struct.pack("ii", 1, 0)  # SO_LINGER with no time to linger: closing resets (socket(7), RFC 9293 3.10.4)
MAX_BUFFER = 256 * 1024  # bytes; the high-water mark of either buffer

log = logging.getLogger(__name__)


class Handler:
    """Callbacks of a connection; they never nest, except `closing`.

    One handler may serve one connection or thousands. An exception raised in a callback is logged and ends that one
    connection.
    """

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Take `data`, the next bytes from the peer; here, it waits in `inbound` for `consume()`."""
        connection.keep(data)

    def eof_received(self, connection: Connection) -> None:
        """Know that the peer sends no more; here, neither do we, once what is owed is sent."""
        connection.send_eof()

    def drained(self, connection: Connection) -> None:
        """Go on: `outbound`, of which the kernel had refused a part, is empty again, or sending has failed."""

    def closing(self, connection: Connection) -> None:
        """Look at the socket a last time, for it is closed next; the one call that comes from within others."""

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Take note that the connection has ended; `error` is None where both sides had sent EOF."""

    def forget(self, connection: Connection) -> None:
        """Drop what is kept for the connection; called last of all, even where `connection_lost` raised."""


@dataclass(slots=True, eq=False)
class Connection:
    """A connected socket on the loop, reading from the moment it is made.

    `inbound` holds bytes received that the handler has not taken; `outbound` bytes sent that the kernel has not
    taken. Reading pauses while either is at `max_buffer` or above, so neither exceeds it by more than one read
    (`inbound`) or one `send()` (`outbound`). An empty buffer is `b""`: an idle connection keeps no memory for it.
    `bytes_received` and `bytes_sent` count what the kernel handed over and accepted; `active_at` is when it last did,
    in the loop's seconds.
    """

    loop: EventLoop
    sock: socket.socket
    handler: Handler
    peer: str
    max_buffer: int = MAX_BUFFER
    inbound: bytes | bytearray = b""
    outbound: Any = b""  # bytes or bytearray; or another kind of buffer that a subclass knows, with a length
    bytes_received: int = 0
    bytes_sent: int = 0
    active_at: float = 0.0
    eof_received: bool = False
    eof_queued: bool = False  # send_eof() was called; nothing may be sent after it
    eof_sent: bool = False
    discarding: bool = False  # close() was called; what still comes in is of no interest
    closed: bool = False
    error: OSError | None = None  # why sending failed; reading goes on, for what came before the failure
    _watched: int = 0

    def __post_init__(self) -> None:
        self.active_at = self.loop.now
        self._settle()

    @property
    def wanted(self) -> int:
        """The events to wait for: READ while there is room for what may come, WRITE while something is owed."""
        if self.closed:
            return 0
        room = len(self.inbound) < self.max_buffer and len(self.outbound) < self.max_buffer
        return (READ if room and not self.eof_received else 0) | (WRITE if self.outbound else 0)

    def send(self, data: bytes | memoryview) -> None:
        """Pass `data` on, in order: what the kernel does not take now waits in `outbound`.

        On a connection that has ended or whose sending has failed it does nothing, for the handler cannot know yet.
        Raises RuntimeError after `send_eof()`.
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
                self._stop_sending(error)
                return
            self.active_at = self.loop.now
            self.bytes_sent += sent
            if sent == len(data):
                return
            self.outbound = bytearray(data[sent:])
        else:
            self.outbound += data
        self._settle()

    def send_eof(self) -> None:
        """Send EOF once everything queued is sent, and keep reading (shutdown(2), SHUT_WR)."""
        self.eof_queued = True
        self._settle()

    def close(self) -> None:
        """Send what is queued, then EOF, then wait for the peer's EOF; what it still sends is read and dropped.

        The wait is what makes the end safe: closing a socket with input unread resets the connection, and the reset
        can overtake what was sent (RFC 1122 4.2.2.13, RFC 9293 3.10.4). Bound it with a timer and `abort()`.
        """
        self.discarding = True
        self.inbound = b""
        self.send_eof()

    def abort(self, error: Exception | None = None) -> None:
        """End now: what is queued is dropped, and `connection_lost(error)` follows from the loop."""
        self._end(error)

    def keep(self, data: bytes) -> None:
        """Append `data` to `inbound`, for the owner to take from it and say so with `consume()`."""
        if self.inbound:
            self.inbound += data
        else:
            self.inbound = bytearray(data)
        self._settle()

    def consume(self, count: int) -> None:
        """Forget the first `count` bytes of `inbound`, ended or not; reading goes on when there is room."""
        if count < len(self.inbound):
            del self.inbound[:count]  # type: ignore[union-attr]  # not empty, so a bytearray
        else:
            self.inbound = b""
        self._settle()

    def undelivered(self) -> int:
        """Return how many bytes the kernel took and the peer has not acknowledged (tcp(7), SIOCOUTQ); -1: unknown."""
        if ioctl is None:  # pragma: no cover - Windows
            return -1
        unacknowledged = bytearray(4)
        try:
            ioctl(self.sock, TIOCOUTQ, unacknowledged)
        except (OSError, ValueError):  # not a TCP socket of Linux; closed
            return -1
        return int.from_bytes(unacknowledged, sys.byteorder)

    def call(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Run `callback(*arguments)`, work of this connection: if it raises, log that and end the connection."""
        try:
            callback(*arguments)
        except Exception as error:
            log.exception("%s: the handler failed", self.peer)
            self._end(error)

    def _ready(self, events: int) -> None:
        try:
            if events & READ:
                self._receive()
            if events & WRITE and self.outbound:
                self._flush()
        except Exception as error:
            log.exception("%s: the handler failed", self.peer)
            self._end(error)

    def _receive(self) -> None:
        try:
            data = self.sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(self.error or error)
            return
        self.active_at = self.loop.now
        if data:
            self.bytes_received += len(data)
            if not self.discarding:
                self.handler.data_received(self, data)
        else:
            self._take_eof()

    def _take_eof(self) -> None:
        self.eof_received = True
        self.handler.eof_received(self)
        self._settle()

    def _flush(self) -> None:
        try:
            sent = self.sock.send(self.outbound)
        except BlockingIOError:
            return
        except OSError as error:
            self._stop_sending(error)
            self.handler.drained(self)
            return
        self.active_at = self.loop.now
        self.bytes_sent += sent
        if sent < len(self.outbound):
            del self.outbound[:sent]
        else:
            self.outbound = b""
            self.handler.drained(self)
        self._settle()

    def _stop_sending(self, error: OSError) -> None:
        """Drop what is owed, but read on: what the peer sent before it failed us may still be in the kernel."""
        self.error = error
        self._drop_outbound()
        self.send_eof()

    def _drop_outbound(self) -> None:
        self.outbound = b""

    def _settle(self) -> None:
        """Bring the selector into line with the state; send EOF, and end, when their time has come."""
        if self.closed:
            return
        if self.eof_queued and not self.eof_sent and not self.outbound:
            self.eof_sent = True
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError as error:  # ENOTCONN: a reset came first; recv will tell, if it has not had its EOF
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
