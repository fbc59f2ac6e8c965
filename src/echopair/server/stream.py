"""A connection that echoes by itself: the path of a byte, as short as it gets.

What comes in goes out again without its handler's seeing it; the handler hears of EOF and of the end. Small reads are
copied, one recv and one send; after a large one the next go through a pipe (zerocopy.py). All that is not that simple,
a peer that does not take everything, an error, the end, is the business of `Connection`.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from echopair.connection import READ_SIZE, Connection
from echopair.loop import READ, WRITE
from echopair.server.zerocopy import PIPE_SIZE, Pipe, Pipes

LARGE = 8 * 1024  # bytes; a read of so many, and the next one is spliced: from here on that is cheaper, see the README
CANNOT_SPLICE = (errno.EINVAL, errno.ENOSYS, errno.EPERM)  # a strange socket, an old kernel, a sandbox (splice(2))


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

    def _ready(self, events: int) -> None:
        if events != READ or self.outbound or self.eof_queued:
            Connection._ready(self, events)  # super() does not know a class that slots made anew
            return
        if self.large:
            self._splice()
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

    def _splice(self) -> None:
        assert self.pipes is not None  # noqa: S101 - without any, no read is large
        try:
            pipe = self.pipes.share()
        except OSError:  # no descriptors for one
            self.large = False
            self._ready(READ)
            return
        descriptor = self.sock.fileno()
        try:
            received = pipe.fill(descriptor, min(PIPE_SIZE, self.max_buffer))
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in CANNOT_SPLICE:
                self._copy_from_now_on()
                self._ready(READ)
            else:
                self._end(error)
            return
        self.active_at = self.loop.now
        if not received:
            self._take_eof()
            return
        self.bytes_received += received
        self.large = received >= LARGE
        try:
            self.bytes_sent += pipe.flush(descriptor)
        except BlockingIOError:
            pass
        except OSError as error:
            data = pipe.read()
            if error.errno in CANNOT_SPLICE:
                self._copy_from_now_on()
                self.send(data)
            else:
                self._stop_sending(error)
            return
        if pipe.length:
            self.outbound = self.pipes.keep()
            self._settle()

    def _copy_from_now_on(self) -> None:
        self.pipes = None
        self.large = False

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
            self._stop_sending(error)
            return
        self.active_at = self.loop.now
        self.bytes_sent += sent
        if not pipe.length:
            self._drop_outbound()
            self.handler.drained(self)
        self._settle()

    def _drop_outbound(self) -> None:
        if isinstance(self.outbound, Pipe):
            assert self.pipes is not None  # noqa: S101 - the pipe is of these
            self.pipes.give_back(self.outbound)
        Connection._drop_outbound(self)
