"""Standard output and standard error as descriptors: how to write to any kind of file without waiting."""

from __future__ import annotations

import os
import select
import socket
import stat
import sys
import time
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would take a tenth of the start
    from collections.abc import Callable
    from typing import TextIO

PIPE_BUF = getattr(select, "PIPE_BUF", 512)  # bytes; POSIX grants 512, Windows has no such thing


def descriptor_of(stream: TextIO) -> int | None:
    """Return the descriptor to write bytes to; None if there is none, or on Windows, where consoles take text."""
    try:
        return stream.fileno() if os.name == "posix" else None
    except (OSError, ValueError):  # it is in memory, or closed
        return None


def open_anew(descriptor: int) -> int | None:
    """Open the pipe or terminal that `descriptor` is a second time, to write without blocking; None if that fails.

    It fails without /proc, and for what belongs to another user.
    """
    try:
        return os.open(f"/dev/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None


class Writer:
    """Writes to a descriptor what it takes at once.

    O_NONBLOCK belongs to the open file description, which other processes share (fcntl(2)). So a
    pipe or terminal is opened again, and a socket gets MSG_DONTWAIT (send(2)). If that is impossible,
    a pipe gets up to PIPE_BUF bytes when it is ready, and takes them without blocking (pipe(7)), and
    a terminal is made non-blocking for the one call. Files take everything.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.descriptor = descriptor  # which to wait for
        self._close: Callable[[], object] = lambda: None
        self._write: Callable[[bytes | bytearray | memoryview], int] = partial(os.write, descriptor)
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISSOCK(mode):
            sock = socket.socket(fileno=os.dup(descriptor))
            self.descriptor, self._close = sock.fileno(), sock.close
            self._write = lambda data: sock.send(data, socket.MSG_DONTWAIT)
        elif stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            own = open_anew(descriptor)
            if own is not None:
                self.descriptor, self._close = own, partial(os.close, own)
                self._write = partial(os.write, own)
            else:
                self._write = self._write_to_pipe if stat.S_ISFIFO(mode) else self._write_to_terminal
                self._blocking = os.get_blocking(descriptor)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Return how many bytes of `data`, which is not empty, were taken; 0 if there is no room. Raises OSError."""
        try:
            return self._write(data)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        """Close what was opened."""
        self._close()

    def _write_to_pipe(self, data: bytes | bytearray | memoryview) -> int:
        ready = select.select([], [self._descriptor], [], 0)[1]
        return os.write(self._descriptor, memoryview(data)[:PIPE_BUF]) if ready else 0

    def _write_to_terminal(self, data: bytes | bytearray | memoryview) -> int:
        os.set_blocking(self._descriptor, False)
        try:
            return os.write(self._descriptor, data)
        finally:
            os.set_blocking(self._descriptor, self._blocking)


class Aside:
    """Standard error: each text is written whole or left out; a reader that does not read blocks nothing."""

    def __init__(self) -> None:
        # None if the shell closed it (2>&-)
        self._stream: TextIO | None = sys.stderr
        self._encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        descriptor = descriptor_of(sys.stderr) if sys.stderr else None
        self._writer = None if descriptor is None else Writer(descriptor)
        self._rest = b""  # the rest of a text that was taken in part: written before any other

    def write(self, text: str, patience: float = 0.0) -> bool:
        """Write `text`, waiting up to `patience` seconds for room; return whether it was taken, at least in part."""
        try:
            if self._writer is None:
                if self._stream:
                    self._stream.write(text)
                    self._stream.flush()
                return True
            deadline = time.monotonic() + patience
            self._flush(self._writer, deadline)
            if self._rest:
                return False
            self._rest = data = text.encode(self._encoding, "backslashreplace")
            self._flush(self._writer, deadline)
            if self._rest is data:
                self._rest = b""
                return False
        except (OSError, ValueError):  # nobody is there to read it; it is closed
            return False
        return True

    def close(self) -> None:
        """Close what was opened; what is written after that is dropped."""
        if self._writer:
            self._writer.close()
        self._writer = self._stream = None

    def _flush(self, writer: Writer, deadline: float) -> None:
        while self._rest:
            written = writer.write(self._rest)
            if written:
                self._rest = self._rest[written:]
                continue
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([], [writer.descriptor], [], left)[1]:
                return
