"""How much work a message takes, counted: calls into C, of which some are system calls, calls in Python, memory kept.

Counts do not depend on how busy a machine is, so a step that slips into the path of a byte fails here, and at once.
"""

from __future__ import annotations

import gc
import selectors
import socket
import sys
import threading
from collections import Counter
from contextlib import AbstractContextManager, nullcontext

import pytest

from echopair.address import listen
from echopair.client.load import Load, Plan, Watcher
from echopair.loop import EventLoop
from echopair.server import zerocopy
from echopair.server.echo import EchoServer
from helpers import LOCALHOST, run_until

MESSAGES = 200
SYSTEM_CALLS = ("poll", "recv", "send", "splice", "ioctl", "register", "modify", "unregister", "setsockopt", "shutdown")

pytestmark = pytest.mark.skipif(not hasattr(selectors, "EpollSelector"), reason="the counts are those of epoll")


class Work:
    """Counts the calls made while it is entered (sys.setprofile), by name."""

    def __init__(self) -> None:
        self.system: Counter[str] = Counter()
        self.c: Counter[str] = Counter()
        self.python: Counter[str] = Counter()

    def __enter__(self) -> Work:
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_exc: object) -> None:
        sys.setprofile(None)

    def _count(self, frame, event: str, called) -> None:
        if event == "call":
            self.python[frame.f_code.co_qualname] += 1
        elif event == "c_call":
            self.c[called.__name__] += 1
            if called.__name__ in SYSTEM_CALLS:
                self.system[called.__name__] += 1


def total(counter: Counter[str]) -> float:
    return sum(a_message(counter).values())


@pytest.fixture
def loop():
    with EventLoop() as loop:
        yield loop


@pytest.fixture
def served(loop):
    """A server, and a connected peer that blocks."""
    server = EchoServer(loop, listen([LOCALHOST], 0))
    peer = socket.create_connection(server.addresses[0][1])
    run_until(loop, lambda: server.connections)
    yield server, peer
    peer.close()
    run_until(loop, lambda: not server.connections)
    server.close()


def exchange(loop, peer: socket.socket, message: bytes, times: int, work: AbstractContextManager | None = None) -> None:
    """Have `message` echoed so often, each time in one turn of the loop, whose `work` is counted."""
    for _ in range(times):
        peer.sendall(message)
        with work or nullcontext():
            loop.run_once()
        assert peer.recv(len(message), socket.MSG_WAITALL) == message


def a_message(counter: Counter[str]) -> dict[str, float]:
    """Return the calls a message, without those of the beginning and the end."""
    return {name: round(number / MESSAGES, 1) for name, number in counter.items() if number >= MESSAGES / 2}


def test_a_small_message_takes_the_server_three_system_calls(loop, served):
    _, peer = served
    exchange(loop, peer, bytes(1024), 10)
    work = Work()
    exchange(loop, peer, bytes(1024), MESSAGES, work)
    assert a_message(work.system) == {"poll": 1, "recv": 1, "send": 1}
    # Turn, wait, select (and its list), _ready, _receive; our own __exit__.
    assert total(work.python) <= 7, work.python
    assert total(work.c) <= 8, work.c


@pytest.mark.skipif(zerocopy.splice is None, reason="this system has no splice(2)")
def test_a_large_message_takes_the_server_three_system_calls_and_no_copy(loop, served):
    _, peer = served
    message = bytes(32 * 1024)
    exchange(loop, peer, message, 10)
    work = Work()
    exchange(loop, peer, message, MESSAGES, work)
    assert a_message(work.system) == {"poll": 1, "splice": 2}
    # As above, and _splice, Pipes.echo.
    assert total(work.python) <= 9, work.python


def test_the_server_keeps_no_memory_a_message(loop, served):
    _, peer = served
    exchange(loop, peer, bytes(1024), 100)
    gc.collect()
    before = sys.getallocatedblocks()
    exchange(loop, peer, bytes(1024), 1000)
    gc.collect()
    assert sys.getallocatedblocks() - before < 50


@pytest.fixture
def echo():
    """An echo in a thread of its own, whose calls are not counted."""
    listener = socket.create_server((LOCALHOST, 0))

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            while data := sock.recv(65536):
                sock.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()
    thread.join()
    listener.close()


class Counting(Watcher):
    """Counts what the load takes while it measures, and no longer."""

    def __init__(self) -> None:
        self.work = Work()
        self.done = False

    def load_begun(self) -> None:
        self.work.__enter__()

    def load_over(self) -> None:
        self.work.__exit__()

    def load_done(self) -> None:
        self.work.__exit__()
        self.done = True


def test_a_message_takes_the_client_three_system_calls(loop, echo):
    counting = Counting()
    load = Load(loop, [(socket.AF_INET, echo)], Plan(count=MESSAGES), counting)
    run_until(loop, lambda: counting.done)
    assert load.tally.figures(1.0, ())["messages"]["echoed"] == MESSAGES
    assert a_message(counting.work.system) == {"poll": 1, "recv": 1, "send": 1}
    loop_and_path = ("EventLoop", "LeanEpollSelector", "Connection", "Measured", "Histogram", "Payload")
    path = Counter({name: calls for name, calls in counting.work.python.items() if name.startswith(loop_and_path)})
    # Of the loop 4, of Connection 3, data_received, _time_echo, record, _whole.
    assert total(path) <= 11, path


def test_the_client_keeps_no_memory_a_message(loop, echo):
    load = Load(loop, [(socket.AF_INET, echo)], Plan(count=1200, interval=3600.0), counting := Counting())
    counting.work = nullcontext()
    blocks = []
    for messages in (100, 1100):
        run_until(loop, lambda messages=messages: load.sent >= messages)
        gc.collect()
        blocks.append(sys.getallocatedblocks())
    assert blocks[1] - blocks[0] < 50
    run_until(loop, lambda: counting.done)
