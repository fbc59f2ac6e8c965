"""A connection driven by hand: a case of the check says when it sends, when it reads, and how it ends.

Unlike a Connection it reads nothing on its own, because some cases need a peer that does not read. What goes
wrong is told as it was seen from here, with the number of the byte at which it was.
"""

from __future__ import annotations

import socket
import statistics
from collections import deque
from collections.abc import Callable

from echopair.check.hint import Path, Seen
from echopair.check.script import ready, sleep
from echopair.client.mismatch import agreement, diagnose, dump
from echopair.client.tcpinfo import path_figures
from echopair.connection import NO_LINGER, READ_SIZE
from echopair.loop import READ, WRITE, EventLoop
from echopair.text import count, duration, reason

COMPARED = 1024  # bytes after the first wrong one, to say what happened there and not further on
MOMENT = 0.2  # seconds in which what must not come has time to come
HEAD = 512  # first bytes of each direction, kept for hints
SMALL = 1000  # bytes; the echo of a message up to this size takes one round trip
ROUND_TRIPS_KEPT = 99


class Failed(Exception):  # noqa: N818 - a verdict
    """What went wrong: in words, and as `seen` for a hint."""

    def __init__(self, told: str, seen: Seen | None = None) -> None:
        super().__init__(told)
        self.seen = seen or Seen()


class Late(Failed):
    """Bytes or EOF came too late, or did not come."""


class Peer:
    """One end of a connection; it fails when no byte moves for `patience` seconds.

    `doing` is called with the progress. A path that takes nothing for `moment` seconds is full; one that brings nothing
    for `moment` seconds is silent. The seconds that the echo of a small message takes go to `round_trips`, except for
    the first one of a connection, which may wait for more than a round trip. Bytes in `ignored` count as not received.
    """

    def __init__(
        self,
        loop: EventLoop,
        sock: socket.socket,
        patience: float,
        doing: Callable[[str], object],
        round_trips: deque[float] | None = None,
    ) -> None:
        self._loop = loop
        self.sock = sock
        self.patience = patience
        self._doing = doing
        self._round_trips = deque(maxlen=ROUND_TRIPS_KEPT) if round_trips is None else round_trips
        self._heads = bytearray(), bytearray()  # sent, received
        self.sent = 0
        self.received = 0
        self.closed = False
        self._buffered = False
        self.ignored = b""
        self.path: Path | None = None  # once it is closed

    @property
    def moment(self) -> float:
        """Return how many seconds to wait for something that may not come."""
        return max(MOMENT, 3 * statistics.median(self._round_trips or (0.0,)))

    async def send(self, data: bytes) -> None:
        """Send all of `data`, and read nothing meanwhile."""
        await self.exchange(data, b"")

    async def expect(self, data: bytes) -> None:
        """Read len(data) bytes and compare them with `data`."""
        await self.exchange(b"", data)

    async def echo(self, data: bytes) -> None:
        """Send `data` and read it back, both as fast as it goes."""
        first, began = not self.received, self._loop.clock()
        await self.exchange(data, data)
        if not first and len(data) <= SMALL:
            self._round_trips.append(self._loop.clock() - began)

    async def exchange(self, out: bytes, expected: bytes) -> None:
        """Send the one and read the other, both as fast as it goes."""
        unsent, place = memoryview(out), 0
        while unsent or place < len(expected):
            missing = len(expected) - place
            self._doing(self._progress())
            events = (READ if missing else 0) | (WRITE if unsent else 0)
            found = await ready(self._loop, self.sock, events, self.patience)
            if not found:
                what = "came" if missing else "was taken"
                told = f"nothing more {what} for {duration(self.patience)} after {self._progress()}"
                raise Late(told, self.seen())
            if found & READ:
                data = self._receive(min(missing, READ_SIZE))
                if data == b"":
                    raise Failed(f"EOF after {self._progress()}", self.seen(ended=True))
                if data and not expected.startswith(data, place):
                    raise Failed(self._difference(expected[place : place + READ_SIZE], data), self.seen())
                place += len(data or b"")
            if found & WRITE and unsent:
                unsent = unsent[self._send(unsent) :]

    def send_apart(self, data: bytes) -> None:
        """Send a few bytes, each by a send of its own, with nothing between them."""
        for byte in data:
            if not self._send(memoryview(bytes([byte]))):
                raise Failed(f"not even a byte was taken after {self._progress()}", self.seen())

    async def send_until_full(self, data: bytes) -> int:
        """Send of `data` what the path takes while nobody reads the echo; return how much that was."""
        unsent = memoryview(data)
        while unsent and await ready(self._loop, self.sock, WRITE, self.moment):
            unsent = unsent[self._send(unsent) :]
        return len(data) - len(unsent)

    async def expect_slowly(self, data: bytes, at_once: int, pause: float) -> None:
        """Read these bytes, a few at a time."""
        for start in range(0, len(data), at_once):
            await self.expect(data[start : start + at_once])
            await sleep(self._loop, pause)

    async def overhear(self) -> bytes:
        """Return what comes within a moment; nothing at EOF."""
        return (await ready(self._loop, self.sock, READ, self.moment) and self._receive(READ_SIZE)) or b""

    async def expect_silence(self) -> None:
        """See that for a moment nothing comes; EOF, or the end, is no noise."""
        if data := await self.overhear():
            raise Failed(f"{count(len(data), 'byte')} came that nobody had sent: {dump(data)}", self.seen())

    async def expect_eof(self) -> None:
        """Read EOF, and nothing before it."""
        self._doing("EOF had not come")
        data: bytes | None = None
        while data is None:
            if not await ready(self._loop, self.sock, READ, self.patience):
                raise Late(f"no EOF came back within {duration(self.patience)} of ours", self.seen())
            data = self._receive(READ_SIZE)
        if data:
            raise Failed(f"{count(len(data), 'byte')} more came back than was sent: {dump(data)}", self.seen())

    def send_eof(self) -> None:
        """Say that we send no more (shutdown(2), SHUT_WR)."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise Failed(f"{reason(error)} before our EOF", self.seen(ended=True)) from None

    def send_urgent(self, byte: bytes) -> None:
        """Send a byte of urgent data (RFC 9293 3.8.5, RFC 6093)."""
        try:
            self.sock.send(byte, socket.MSG_OOB)
        except OSError as error:
            raise self._broken(error) from None

    def buffer(self, length: int) -> None:
        """Set the size of the receive buffer; with a small one the path is full soon (socket(7), SO_RCVBUF)."""
        self._set(socket.SO_RCVBUF, length)
        self._buffered = True

    def reset(self) -> None:
        """End with a reset."""
        self._set(socket.SO_LINGER, NO_LINGER)
        self.close()

    def close(self) -> None:
        """Close the socket, whatever is under way."""
        if not self.closed:
            self.closed = True
            if figures := path_figures(self.sock):
                # A segment that does not fit into our buffer is lost too, but not on the path.
                lost, segments, unanswered, segment_bytes, out_of_order = figures
                out_of_order *= not self._buffered
                large = self.sent > segment_bytes
                self.path = Path(lost, segments, unanswered, segment_bytes, out_of_order, large)
            self._loop.watch(self.sock, 0)
            self.sock.close()

    def seen(self, *, ended: bool = False) -> Seen:
        """Return what was seen, for a hint."""
        sent, got = map(bytes, self._heads)
        return Seen(sent, got, b"" if sent else got, ended=ended)

    def _set(self, option: int, value: int | bytes) -> None:
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, option, value)
        except OSError as error:  # some systems refuse that once the peer has reset the connection
            raise self._broken(error) from None

    def _send(self, data: memoryview) -> int:
        try:
            sent = self.sock.send(data[:READ_SIZE])
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._broken(error) from None
        self._heads[0].extend(data[: min(sent, HEAD - len(self._heads[0]))])
        self.sent += sent
        return sent

    def _receive(self, most: int) -> bytes | None:
        try:
            data = self.sock.recv(most)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._broken(error) from None
        if self.ignored and data:
            data = data.replace(self.ignored, b"")
            if not data:
                return None
        self._heads[1].extend(data[: HEAD - len(self._heads[1])])
        self.received += len(data)
        return data

    def _broken(self, error: OSError) -> Failed:
        return Failed(f"{reason(error)} after {self._progress()}", self.seen(ended=True))

    def _progress(self) -> str:
        return f"{self.received:,} of {count(self.sent, 'byte')} sent had come back"

    def _difference(self, expected: bytes, got: bytes) -> str:
        same = agreement(expected, got)
        what = diagnose(expected[same : same + COMPARED], got[same : same + COMPARED])
        place = self.received - len(got) + same
        told = f"byte {place + 1:,} of the echo is wrong: expected {dump(expected[same:])}, got {dump(got[same:])}"
        return f"{told} ({what})" if what else told
