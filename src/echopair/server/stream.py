"""A connection that echoes by itself: the path of a byte, as short as it gets.

What comes in goes out again without its handler's seeing it; the handler hears of EOF and of the end. Small reads are
copied, one recv and one send; after a large one the next go through a pipe (zerocopy.py). All that is not that simple,
a peer that does not take everything, an error, the end, is the business of `Connection`.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass

from echopair.connection import READ_SIZE, Connection
from echopair.loop import READ, WRITE
from echopair.server.zerocopy import PIPE_SIZE, Pipe, Pipes

LARGE = 8 * 1024  # bytes; a read of so many, and the next one is spliced: from here on that is cheaper, see the README
# splice(2): a socket that cannot, a kernel that cannot, a sandbox that forbids it
CANNOT_SPLICE = (errno.EINVAL, errno.ENOSYS, errno.EACCES, errno.EPERM)
# nothing to read, or an urgent byte; no descriptors or memory for a pipe (splice(2), pipe(2))
NOT_NOW = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class EchoStream(Connection):
    """A Connection that sends back what it receives; large reads by way of `pipes`, where there are any.

    While bytes are owed from a pipe, no more are read, so at most `max_buffer` are owed in either case.
    """

    pipes: Pipes | None = None
    large: bool = False  # the last read was

    @property
    def wanted(self) -> int:
        """The events to wait for, as for any connection, but for a debt in a pipe: that is paid first."""
        if isinstance(self.outbound, Pipe):
            return 0 if self.closed else WRITE
        return Connection.wanted.fget(self)  # type: ignore[attr-defined, no-any-return]

    def send(self, data: bytes | memoryview) -> None:
        """Pass `data` on, in order, as any connection does; what is owed from a pipe comes first."""
        self._empty_pipe()
        Connection.send(self, data)

    def _ready(self, events: int) -> None:  # noqa: C901 - in one piece, for a call costs a message 1 %
        if events != READ or self.outbound or self.eof_queued:
            Connection._ready(self, events)  # super() does not know a class that slots made anew
            return
        try:
            if self.large and self._splice():
                return
            try:
                data = self.sock.recv(READ_SIZE)
            except BlockingIOError:
                return
            except OSError as error:
                self._end(error)
                return
            self.active_at = self.loop.now
            if not data:
                self._take_eof()
                return
            received = len(data)
            self.bytes_received += received
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._stop_sending(error)
                return
            self.bytes_sent += sent
            if sent != received:
                self.outbound = bytearray(data[sent:])
                self._settle()
            elif received >= LARGE and self.pipes:
                self.large = True
        except Exception as error:
            log.exception("%s: the handler failed", self.peer)
            self._end(error)

    def _splice(self) -> bool:
        """Echo one read by way of the shared pipe; return False where a recv has to decide.

        At an urgent byte splice(2) fails with EAGAIN, and after the peer's EOF it returns 0 there (tcp_read_sock() of
        Linux stops at it), while recv(2) goes on: neither answer means what it means from recv.
        """
        assert self.pipes is not None  # noqa: S101 - without any, no read is large
        self.large = False
        descriptor = self.sock.fileno()
        try:
            pipe = self.pipes.share()
            received = pipe.fill(descriptor, min(PIPE_SIZE, self.max_buffer))
        except OSError as error:
            return self._cannot_fill(error)
        if not received:
            return False
        self.active_at = self.loop.now
        self.bytes_received += received
        self.large = received >= LARGE
        self.outbound = pipe  # so that no end leaves these bytes in the pipe for another connection
        try:
            self.bytes_sent += pipe.flush(descriptor)
        except BlockingIOError:
            pass
        except OSError as error:
            self._cannot_flush(error)
            return True
        if not pipe.length:
            self.outbound = b""
            return True
        if not self.pipes.keep():
            self._empty_pipe()
        self._settle()
        return True

    def _cannot_fill(self, error: OSError) -> bool:
        if error.errno in CANNOT_SPLICE:
            self.pipes = None
        elif error.errno not in NOT_NOW:
            self._end(error)
            return True
        return False

    def _flush(self) -> None:
        pipe = self.outbound
        if not isinstance(pipe, Pipe):
            Connection._flush(self)
            return
        try:
            sent = pipe.flush(self.sock.fileno())
        except BlockingIOError:
            return
        except OSError as error:
            self._cannot_flush(error)
            return
        self.active_at = self.loop.now
        self.bytes_sent += sent
        if not pipe.length:
            self._drop_outbound()
            self.handler.drained(self)
        self._settle()

    def _cannot_flush(self, error: OSError) -> None:
        if error.errno not in CANNOT_SPLICE:
            self._stop_sending(error)
            return
        self._empty_pipe()
        self.pipes = None
        self.large = False
        self._settle()

    def _empty_pipe(self) -> None:
        """Owe what is in a pipe from memory instead, and give the pipe back."""
        pipe = self.outbound
        if isinstance(pipe, Pipe):
            data = bytearray(pipe.read())
            self._drop_outbound()
            self.outbound = data

    def _drop_outbound(self) -> None:
        if isinstance(self.outbound, Pipe):
            assert self.pipes is not None  # noqa: S101 - the pipe is of these
            self.pipes.give_back(self.outbound)
        Connection._drop_outbound(self)
