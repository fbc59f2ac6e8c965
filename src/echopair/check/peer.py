"""A connection driven by hand: a case of the check says when it sends, when it reads, and how it ends.

Unlike a Connection it reads nothing on its own, for a peer that does not read is what some cases are about. What goes
wrong is told as it was seen from here, with the number of the byte at which it was.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from echopair.check.script import ready, sleep
from echopair.client.mismatch import agreement, diagnose, dump
from echopair.connection import NO_LINGER, READ_SIZE
from echopair.loop import READ, WRITE, EventLoop
from echopair.text import count, duration, reason

COMPARED = 1024  # bytes after the first wrong one, to say what happened there and not further on
MOMENT = 0.2  # seconds in which what must not come has time to come


class Failed(Exception):  # noqa: N818 - a verdict
    """What was seen instead of what should have been."""


class Peer:
    """One end of a connection, for as long as the other one moves a byte at least every `patience` seconds.

    `doing` is told how far it is; a path that takes nothing for `moment` seconds is full, and one that brings nothing
    for so long is silent.
    """

    def __init__(
        self,
        loop: EventLoop,
        sock: socket.socket,
        patience: float,
        doing: Callable[[str], object],
        moment: float = MOMENT,
    ) -> None:
        self._loop = loop
        self.sock = sock
        self._patience = patience
        self._doing = doing
        self._moment = moment
        self.sent = 0
        self.received = 0
        self.closed = False

    async def send(self, data: bytes) -> None:
        """Send all of `data`, and read nothing meanwhile."""
        await self.exchange(data, b"")

    async def expect(self, data: bytes) -> None:
        """Read so many bytes, which are these."""
        await self.exchange(b"", data)

    async def echo(self, data: bytes) -> None:
        """Send `data` and read it back, both as fast as it goes."""
        await self.exchange(data, data)

    async def exchange(self, out: bytes, expected: bytes) -> None:
        """Send the one and read the other, both as fast as it goes."""
        unsent, missing = memoryview(out), memoryview(expected)
        while unsent or missing:
            self._doing(self._progress())
            events = (READ if missing else 0) | (WRITE if unsent else 0)
            found = await ready(self._loop, self.sock, events, self._patience)
            if not found:
                what = "came" if missing else "was taken"
                raise Failed(f"nothing more {what} for {duration(self._patience)} after {self._progress()}")
            if found & READ:
                data = self._receive(min(len(missing), READ_SIZE))
                if data == b"":
                    raise Failed(f"EOF after {self._progress()}")
                if data and data != missing[: len(data)]:
                    raise Failed(self._difference(bytes(missing[:READ_SIZE]), data))
                missing = missing[len(data or b"") :]
            if found & WRITE and unsent:
                unsent = unsent[self._send(unsent) :]

    def send_apart(self, data: bytes) -> None:
        """Send a few bytes, each by a send of its own, with nothing between them."""
        for byte in data:
            if not self._send(memoryview(bytes([byte]))):
                raise Failed(f"not even a byte was taken after {self._progress()}")

    async def send_until_full(self, data: bytes) -> int:
        """Send of `data` what the path takes while nobody reads the echo; return how much that was."""
        unsent = memoryview(data)
        while unsent and await ready(self._loop, self.sock, WRITE, self._moment):
            unsent = unsent[self._send(unsent) :]
        return len(data) - len(unsent)

    async def expect_slowly(self, data: bytes, at_once: int, pause: float) -> None:
        """Read these bytes, a few at a time."""
        for start in range(0, len(data), at_once):
            await self.expect(data[start : start + at_once])
            await sleep(self._loop, pause)

    async def expect_silence(self) -> None:
        """See that for a moment nothing comes; EOF, or the end, is no noise."""
        if await ready(self._loop, self.sock, READ, self._moment):
            data = self._receive(READ_SIZE)
            if data:
                raise Failed(f"{count(len(data), 'byte')} came that nobody had sent: {dump(data)}")

    async def expect_eof(self) -> None:
        """Read EOF, and nothing before it."""
        self._doing("EOF had not come")
        if not await ready(self._loop, self.sock, READ, self._patience):
            raise Failed(f"no EOF came back within {duration(self._patience)} of ours")
        data = self._receive(READ_SIZE)
        if data:
            raise Failed(f"{count(len(data), 'byte')} more came back than was sent: {dump(data)}")

    def send_eof(self) -> None:
        """Say that we send no more (shutdown(2), SHUT_WR)."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise Failed(f"{reason(error)} before our EOF") from None

    def buffer(self, length: int) -> None:
        """Have a receive buffer of so many bytes; with a small one the path is full soon (socket(7), SO_RCVBUF)."""
        self._set(socket.SO_RCVBUF, length)

    def reset(self) -> None:
        """End with a reset."""
        self._set(socket.SO_LINGER, NO_LINGER)
        self.close()

    def close(self) -> None:
        """Close the socket, whatever is under way."""
        if not self.closed:
            self.closed = True
            self._loop.watch(self.sock, 0)
            self.sock.close()

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
        self.sent += sent
        return sent

    def _receive(self, most: int) -> bytes | None:
        try:
            data = self.sock.recv(most)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._broken(error) from None
        self.received += len(data)
        return data

    def _broken(self, error: OSError) -> Failed:
        return Failed(f"{reason(error)} after {self._progress()}")

    def _progress(self) -> str:
        return f"{self.received:,} of {count(self.sent, 'byte')} sent had come back"

    def _difference(self, expected: bytes, got: bytes) -> str:
        same = agreement(expected, got)
        what = diagnose(expected[same : same + COMPARED], got[same : same + COMPARED])
        place = self.received - len(got) + same
        told = f"byte {place + 1:,} of the echo is wrong: expected {dump(expected[same:])}, got {dump(got[same:])}"
        return f"{told} ({what})" if what else told
