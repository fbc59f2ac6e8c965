"""Zero copy: large reads go from a socket into a pipe and on to the socket, and never enter the process (splice(2)).

A pipe is another kind of outbound buffer. While nothing is owed one pipe serves all connections, because each leaves it
empty. A connection whose peer does not take everything keeps the pipe with the bytes in it, and the others get another
one; when it is empty again the pipe is spare. Peers that do not read must not use up the descriptors: the number of
pipes has a limit, and beyond it the bytes move to the process's memory.
"""

from __future__ import annotations

import errno
import os

PIPE_SIZE = 256 * 1024  # bytes; Linux grants 64 KiB unasked, and a splice moves at most what the pipe holds
SPARE_PIPES = 16  # kept open: peers that do not keep up come in crowds
MOST_PIPES = 1024  # if neither descriptors nor pages are limited
OTHER_DESCRIPTORS = 32  # standard streams, log, selector, wake-up, listeners, one accept at the limit, the shared pipe
PAGES_FILE = "/proc/sys/fs/pipe-user-pages-soft"
PAGES = 16384  # what it holds by default
F_SETPIPE_SZ = 1031  # fcntl(2); Python names it on some systems only

# splice(2): these sockets cannot, this kernel cannot, a sandbox forbids it.
REFUSED = (errno.EINVAL, errno.ENOSYS, errno.EACCES, errno.EPERM)
# splice(2), pipe(2): nothing to read, or an urgent byte; no descriptors or memory for a pipe.
NOT_NOW = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

splice = getattr(os, "splice", None)  # Linux
NONBLOCK = getattr(os, "SPLICE_F_NONBLOCK", 2)


class Pipe:
    """A pipe whose length is how many bytes are in it. Raises OSError where no descriptors are left."""

    __slots__ = ("length", "reader", "writer")

    def __init__(self) -> None:
        from fcntl import fcntl

        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.length = 0
        try:
            fcntl(self.writer, F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:
            pass  # the user's pages for pipes are used up (pipe(7)); a small pipe will do

    def __len__(self) -> int:
        return self.length

    def read(self) -> bytes:
        """Take what is in the pipe out of it."""
        data = b""
        while self.length > len(data):
            data += os.read(self.reader, self.length - len(data))
        self.length = 0
        return data

    def close(self) -> None:
        """Give its descriptors back; what is in it is lost."""
        os.close(self.reader)
        os.close(self.writer)


def affordable(connections: int | None, processes: int = 1) -> int:
    """Return how many pipes one of `processes` of a server may have open, at least the one that all share.

    At most an eighth of the descriptors, and only those that `connections`, the maximum at once (None: no limit), do
    not need. All processes together use at most a quarter of the user's pages for pipes (pipe(7)), because other
    programs need them too.
    """
    from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit

    descriptors, _ = getrlimit(RLIMIT_NOFILE)
    try:
        with open(PAGES_FILE, "rb") as file:
            pages = int(file.read())
    except OSError:  # no /proc
        pages = PAGES
    most = [MOST_PIPES]
    if descriptors != RLIM_INFINITY:
        most += [descriptors // 8 // 2, (descriptors - (connections or 0) - OTHER_DESCRIPTORS) // 2]
    if pages:  # 0 is no limit
        most.append(pages * os.sysconf("SC_PAGESIZE") // 4 // PIPE_SIZE // processes)
    return max(min(most), 1)


class Pipes:
    """The pipes of a server, `most` at once: a shared one, empty between any two uses, and others.

    A connection may keep the shared one while there can be another to share. `refused` is whether splice(2) does not
    work here; then all is copied.
    """

    def __init__(self, most: int) -> None:
        self.refused = False
        self._most = most
        self._open = 0
        self._shared: Pipe | None = None
        self._spare: list[Pipe] = []

    def share(self) -> Pipe:
        """Return the shared pipe, a spare or a new one if there is none. Raises OSError if no descriptors are left."""
        if self._shared is None:
            self._shared = self._spare.pop() if self._spare else self._make()
        return self._shared

    def echo(self, descriptor: int, most: int) -> tuple[int, int, Pipe | bytearray | bytes, OSError | None]:
        """Move up to `most` bytes that came in on a socket out on it again, through the shared pipe.

        Return how many came in, how many went out, what holds the rest, and the error, if there was one. If none came
        in, recv(2) has to read: at an urgent byte splice(2) fails with EAGAIN, and after the peer's EOF it returns 0
        there (tcp_read_sock() of Linux stops at it). recv(2) goes on, so neither means what it means from recv(2).
        """
        received = sent = 0
        failure = None
        try:
            pipe = self._shared if self._shared is not None else self.share()
            received = splice(descriptor, pipe.writer, min(most, PIPE_SIZE), flags=NONBLOCK)  # type: ignore[misc]
            if received:
                sent = splice(pipe.reader, descriptor, received, flags=NONBLOCK)  # type: ignore[misc]
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno in REFUSED:
                self.refused = True
            elif received or error.errno not in NOT_NOW:
                failure = error
        if sent == received:
            return received, sent, b"", failure
        pipe.length = received - sent
        if failure:
            self.give_back(pipe)
            return received, sent, b"", failure
        if self.refused or not (self._spare or self._open < self._most):
            return received, sent, self.empty(pipe), None
        self._shared = None
        return received, sent, pipe, None

    def flush(self, pipe: Pipe, descriptor: int) -> tuple[int, Pipe | bytearray | bytes]:
        """Move bytes from a kept pipe to a socket; return how many, and what holds the rest. Raises OSError."""
        try:
            sent = splice(pipe.reader, descriptor, pipe.length, flags=NONBLOCK)  # type: ignore[misc]
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            self.refused = True
            return 0, self.empty(pipe)
        pipe.length -= sent
        if pipe.length:
            return sent, pipe
        self.give_back(pipe)
        return sent, b""

    def empty(self, pipe: Pipe) -> bytearray:
        """Take back a pipe and return what was in it."""
        data = bytearray(pipe.read())
        self.give_back(pipe)
        return data

    def give_back(self, pipe: Pipe) -> None:
        """Take back a pipe, shared or kept, and use it again if it is empty."""
        if pipe is self._shared:
            self._shared = None
        if pipe.length or len(self._spare) >= SPARE_PIPES:
            self._close(pipe)
        else:
            self._spare.append(pipe)

    def close(self) -> None:
        """Close all pipes except those that are kept."""
        for pipe in (self._shared, *self._spare):
            if pipe is not None:
                self._close(pipe)
        self._shared = None
        self._spare.clear()

    def _make(self) -> Pipe:
        pipe = Pipe()
        self._open += 1
        return pipe

    def _close(self, pipe: Pipe) -> None:
        pipe.close()
        self._open -= 1
