"""What tests share: a clock that they move, sockets with small buffers, sockets that fail on demand, a small server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from echopair.address import Address
from echopair.connection import Connection, Handler
from echopair.loop import EventLoop

HUNG = 60.0  # seconds; only a test that fails gets there, however busy the machine is
LOCALHOST = "127.0.0.1"


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += seconds


class Recorder(Handler):
    """A handler that writes down what it is told, and takes what it gets out of the connection."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.received = b""
        self.errors: list[Exception | None] = []

    def data_received(self, connection: Connection, data: bytes) -> None:
        self.events.append("data")
        self.received += data

    def eof_received(self, connection: Connection) -> None:
        self.events.append("eof")

    def drained(self, connection: Connection) -> None:
        self.events.append("drained")

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        self.events.append("lost")
        self.errors.append(error)


class ScriptedSocket(socket.socket):
    """A real socket whose next calls do as they are told: raise an exception, or move at most so many bytes."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self.setblocking(False)
        self.script: dict[str, deque[Exception | int]] = {"recv": deque(), "send": deque(), "shutdown": deque()}
        self.calls: list[str] = []

    def tell(self, call: str, *steps: Exception | int) -> None:
        self.script[call].extend(steps)

    def _next(self, call: str, most: int) -> int:
        self.calls.append(call)
        step = self.script[call].popleft() if self.script[call] else most
        if isinstance(step, Exception):
            raise step
        return step

    def recv(self, size: int, flags: int = 0) -> bytes:
        return super().recv(min(self._next("recv", size), size), flags)

    def send(self, data, flags: int = 0) -> int:
        return super().send(memoryview(data)[: self._next("send", len(data))], flags)

    def shutdown(self, how: int) -> None:
        self._next("shutdown", 0)
        super().shutdown(how)


def unix_pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair of non-blocking stream sockets, whose bytes move at once."""
    pair = socket.socketpair()
    for sock in pair:
        sock.setblocking(False)
    return pair


def small_pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair of non-blocking stream sockets with the smallest buffers that the kernel grants."""
    pair = unix_pair()
    for sock in pair:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    return pair


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """A pair of non-blocking sockets connected over TCP."""
    with socket.create_server((LOCALHOST, 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    one.setblocking(False)
    other.setblocking(False)
    return one, other


def unix_listener(name: bytes = b"") -> socket.socket:
    """Listen on a Unix socket; without a name on one that the kernel chooses (unix(7), autobind).

    What is sent there has come when `send` returns. Loopback TCP takes a moment, longer on some systems than on others,
    in which a clock that a test moves goes on.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.setblocking(False)
    listener.bind(name)
    listener.listen()
    return listener


def connected_to(address: Address) -> socket.socket:
    """Return a non-blocking socket that is connected to a listener."""
    sock = socket.socket(address[0])
    sock.connect(address[1])
    sock.setblocking(False)
    return sock


def reset(sock: socket.socket) -> None:
    """Close a TCP socket so that its peer sees a reset (SO_LINGER with 0 seconds, socket(7))."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def run_until(loop: EventLoop, condition: Callable[[], object]) -> None:
    """Turn the loop until the condition holds."""
    deadline = time.monotonic() + HUNG
    while not condition():
        assert time.monotonic() < deadline, "the loop never got there"
        loop.run_once(0.1)


def settle(loop: EventLoop) -> None:
    """Turn the loop as often as it takes for nothing to be ready; for sockets whose bytes move at once, not for TCP."""
    for _ in range(10):
        loop.run_once(0)


def read_all(sock: socket.socket, loop: EventLoop) -> bytes:
    """Read a non-blocking socket to its end while the loop turns."""
    data = bytearray()

    def ended() -> bool:
        try:
            chunk = sock.recv(1 << 20)
        except BlockingIOError:
            return False
        data.extend(chunk)
        return not chunk

    run_until(loop, ended)
    return bytes(data)


def read_exactly(sock: socket.socket, loop: EventLoop, length: int) -> bytes:
    """Read so many bytes from a non-blocking socket while the loop turns."""
    data = bytearray()

    def complete() -> bool:
        with suppress(BlockingIOError):
            data.extend(sock.recv(length - len(data)))
        return len(data) == length

    run_until(loop, complete)
    return bytes(data)


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


COMMANDS = Path(sys.executable).parent  # where pip puts console scripts


@contextmanager
def running(*command: str, **options) -> Iterator[subprocess.Popen[str]]:
    """Run one of our commands, installed, as a process that is gone at the end."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([COMMANDS / command[0], *command[1:]], **(pipes | options))
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def running_server(*options: str, **popen_options) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run `echo-server` on a free port, and yield it with that port once it listens."""
    with running("echo-server", "--host", LOCALHOST, "--port", "0", *options, **popen_options) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline().rpartition(":")[2])


def run_client(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """Run `echo-client`, installed, to its end."""
    options = {"capture_output": True, "text": True, "timeout": HUNG, **options}
    return subprocess.run([COMMANDS / "echo-client", *arguments], check=False, **options)
