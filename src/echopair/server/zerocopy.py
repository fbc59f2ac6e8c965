"""Zero copy: large reads go from a socket into a pipe and on to the socket, and never enter the process (splice(2)).

A pipe is another kind of outbound buffer. While nothing is owed one pipe serves all connections, for each leaves it
empty. A connection whose peer does not take everything keeps the pipe, with what it is owed in it, and the others get
another; once the debt is paid the pipe is spare.
"""

from __future__ import annotations

import os

PIPE_SIZE = 256 * 1024  # bytes; Linux grants 64 KiB unasked, and a splice moves at most what the pipe holds
SPARE_PIPES = 16  # kept open: peers that do not keep up come in crowds
F_SETPIPE_SZ = 1031  # fcntl(2); Python names it on some systems only

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
            pass  # a user may have only so many pages in pipes (pipe(7)); a small one will do

    def __len__(self) -> int:
        return self.length

    def fill(self, descriptor: int, most: int) -> int:
        """Move up to `most` bytes from a socket into the pipe and return how many; 0 is its EOF. Raises OSError."""
        moved: int = splice(descriptor, self.writer, most, flags=NONBLOCK)  # type: ignore[misc]
        self.length += moved
        return moved

    def flush(self, descriptor: int) -> int:
        """Move what is in the pipe to a socket, as far as it takes it, and return how much. Raises OSError."""
        moved: int = splice(self.reader, descriptor, self.length, flags=NONBLOCK)  # type: ignore[misc]
        self.length -= moved
        return moved

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


class Pipes:
    """The pipes of a server: one that is shared, and empty between any two uses, and spare ones."""

    def __init__(self) -> None:
        self._shared: Pipe | None = None
        self._spare: list[Pipe] = []

    def share(self) -> Pipe:
        """Return the shared pipe, to be left empty or kept. Raises OSError where no descriptors are left for one."""
        if self._shared is None:
            self._shared = self._spare.pop() if self._spare else Pipe()
        return self._shared

    def keep(self) -> Pipe:
        """Return the shared pipe, which from now on is the caller's alone."""
        kept, self._shared = self.share(), None
        return kept

    def give_back(self, pipe: Pipe) -> None:
        """Take back a pipe that was kept, to be used again if nothing is left in it."""
        if pipe.length or len(self._spare) >= SPARE_PIPES:
            pipe.close()
        else:
            self._spare.append(pipe)

    def close(self) -> None:
        """Give all descriptors back."""
        for pipe in (self._shared, *self._spare):
            if pipe is not None:
                pipe.close()
        self._shared = None
        self._spare.clear()
