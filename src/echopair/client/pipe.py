"""The pipe: sends what one descriptor yields, and writes the echo to another; any bytes, any amount.

Back-pressure runs both ways: input is read only when the kernel has taken all that was read before, and the
connection stops reading when its `inbound` is full of bytes that the output has not taken.

Neither descriptor is made non-blocking, because others share it (fcntl(2), O_NONBLOCK): input is read only when it
is ready, and output is written by a function that does not block. Regular files are always ready, and epoll refuses
them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from echopair.client.session import FULL, LENGTH, Session, error_name
from echopair.connection import READ_SIZE, Connection
from echopair.loop import READ, WRITE
from echopair.text import count, reason, size

MAX_OUTSTANDING = 64 * 1024 * 1024  # bytes kept to compare the echo with


@dataclass(slots=True, eq=False)
class Pipe(Session):
    """Sends what descriptor `source` yields, half-closes at its end, and writes the echo to descriptor `sink`.

    Everything that came back is written, even if it is wrong or the session failed. `write(data)` returns how many
    bytes the sink took, without blocking; 0 if there was no room. In reports the stream is one message.
    """

    source: int = 0
    sink: int = 1
    write: Callable[[memoryview], int] = len  # takes everything, and drops it
    _source_watched: bool = False
    _source_pollable: bool = True
    _sink_watched: bool = False
    _lost: bool = False

    def start(self, connection: Connection) -> None:
        """Begin, on a connection just made."""
        self.pieces_per_message = 1 << 62
        super(Pipe, self).start(connection)

    def place(self) -> str:
        """Return where in the stream the next byte to come back stands."""
        limit = (
            f" with {size(MAX_OUTSTANDING)} under way, all that can be compared (see --verify)" if self._full() else ""
        )
        matched = self.echoed + self.matched
        return f"offset {matched if self.verify == FULL else self.connection.bytes_received:,}{limit}"

    def send_more(self, connection: Connection) -> None:
        """Read on when there is room for what comes; half-close at the end of input."""
        if self.exhausted:
            self._watch_source(False)
            connection.send_eof()
        else:
            self._watch_source(not self._full() and not connection.outbound)

    def send_piece(self, connection: Connection, piece: bytes) -> None:
        """Send one piece, and expect it back if that is to be checked."""
        if self.verify != FULL:
            connection.send(piece)
        else:
            super(Pipe, self).send_piece(connection, piece)

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Pass the echo on, then check it."""
        connection.keep(data)
        self._watch_sink(connection)
        if self.verify == FULL:
            super(Pipe, self).data_received(connection, data)

    def eof_received(self, connection: Connection) -> None:
        """End well if all has come back."""
        surplus = connection.bytes_received - connection.bytes_sent - len(connection.outbound)
        if self.verify == LENGTH and not connection.error and (surplus or not self.exhausted):
            sent = connection.bytes_received - surplus
            story = f"{connection.bytes_received:,} of {count(sent, 'byte')} came back before the server closed"
            if surplus > 0:
                story = f"{count(surplus, 'byte')} more came back than was sent"
            self.fail("echo", "missing" if surplus <= 0 else "extra", story)
        else:
            super(Pipe, self).eof_received(connection)

    def silent(self, timeout: float) -> None:
        """Fail, unless it is the input or the output that keeps the server waiting."""
        connection = self.connection
        waiting_for_sink = len(connection.inbound) >= connection.max_buffer
        unanswered = self.verify != FULL and connection.bytes_received < connection.bytes_sent
        owed = self.outstanding or (unanswered and self.verify == LENGTH)
        if waiting_for_sink or not (owed or connection.outbound or connection.eof_sent):
            return
        if unanswered:
            came = f"{connection.bytes_received:,} of {count(connection.bytes_sent, 'byte')} had come back"
            self.fail("echo", "timeout", f"nothing moved for {timeout:g} s, when {came}")
        else:
            super(Pipe, self).silent(timeout)

    def _full(self) -> bool:
        """Return whether as much is under way as can be compared with what comes back."""
        return self.verify == FULL and self.connection.bytes_sent - self.connection.bytes_received >= MAX_OUTSTANDING

    def finish(self) -> None:
        """Tell the owner that this was all, once the output has taken what came."""
        self._lost = True
        self._watch_source(False)
        if not self.connection.inbound:
            self.ended(self)

    def _watch_source(self, wanted: bool) -> None:
        if wanted == self._source_watched:
            return
        self._source_watched = wanted
        if self._source_pollable:
            try:
                self.connection.loop.watch(self.source, READ if wanted else 0, self._read)
            except PermissionError:
                self._source_pollable = False
        if wanted and not self._source_pollable:
            self.connection.loop.call_soon(self._read)

    def _read(self, _events: int = READ) -> None:
        connection = self.connection
        if not self._source_pollable:
            self._source_watched = False
        if connection.closed:
            return
        try:
            data = os.read(self.source, READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail("input", error_name(error), f"cannot read standard input: {reason(error)}")
            return
        if data:
            self.send_piece(connection, data)
        else:
            self.exhausted = True
        self.send_more(connection)

    def _watch_sink(self, connection: Connection) -> None:
        if self._sink_watched:
            return
        self._sink_watched = True
        try:
            connection.loop.watch(self.sink, WRITE, self._write)
        except PermissionError:  # always ready
            while self._sink_watched:
                self._write()

    def _write(self, _events: int = WRITE) -> None:
        connection = self.connection
        try:
            written = self.write(memoryview(connection.inbound))
        except OSError as error:
            written = len(connection.inbound)
            self.fail("output", error_name(error), f"cannot write standard output: {reason(error)}")
        if not written:
            return
        connection.active_at = connection.loop.now
        connection.consume(written)
        if not connection.inbound:
            self._sink_watched = False
            connection.loop.watch(self.sink, 0)
            if self._lost:
                self.finish()
