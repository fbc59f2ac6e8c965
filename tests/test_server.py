"""The server's parts: accepting, echoing, draining; each with real sockets in one loop."""

from __future__ import annotations

import ctypes
import errno
import logging
import socket
import struct
import sys
from contextlib import suppress

import pytest

from echopair.address import listen
from echopair.connection import READ_SIZE
from echopair.loop import READ, EventLoop
from echopair.server import EchoServer
from echopair.server.acceptor import ACCEPTS_PER_WAKEUP, PATIENCE, RECOVERED_AFTER, RETRY_DELAY, Acceptor
from echopair.server.echo import QUIET, VerboseEchoServer
from helpers import LOCALHOST, read_all, read_exactly, reset, run_until, settle, unix_listener


class FailingListener(socket.socket):
    """A listener whose next accepts fail as told, by an errno or an exception."""

    def __init__(self) -> None:
        (listener,) = listen([LOCALHOST], 0)
        super().__init__(listener.family, listener.type, listener.proto, fileno=listener.detach())
        self.errors: list[int | Exception] = []
        self.accepts = 0

    def accept(self):
        self.accepts += 1
        if self.errors:
            error = self.errors.pop(0)
            raise OSError(error, errno.errorcode[error]) if isinstance(error, int) else error
        return super().accept()


class World:
    """A server on the loop, and peers that connect to it."""

    def __init__(self, loop: EventLoop, server_type=EchoServer, listener=None, **options) -> None:
        self.loop = loop
        self.listener = listener or FailingListener()
        self.server = server_type(loop, [self.listener], **options)
        self.peers: list[socket.socket] = []

    def connect(self, *, served: bool = True, receive_buffer: int | None = None) -> socket.socket:
        peer = socket.socket(self.listener.family)
        self.peers.append(peer)
        if receive_buffer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        peer.connect(self.server.addresses[0][1])
        peer.setblocking(False)
        if served:
            before = self.server.connections_served
            run_until(self.loop, lambda: self.server.connections_served > before)
        return peer

    def connection(self):
        (connection,) = self.server.connections
        return connection

    def close(self) -> None:
        self.server.close()
        for peer in self.peers:
            peer.close()
        settle(self.loop)


@pytest.fixture(params=[True, False], ids=["zero-copy", "copying"])
def zero_copy(request) -> bool:
    return request.param


@pytest.fixture
def world(loop, zero_copy):
    world = World(loop, zero_copy=zero_copy)
    yield world
    world.close()


class Done:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def done() -> Done:
    return Done()


def make(loop, request, *args, **options) -> World:
    world = World(loop, *args, **options)
    request.addfinalizer(world.close)
    return world


def send_what_fits(world: World, peer: socket.socket, payload: bytes = b"x" * (32 << 20)) -> int:
    """Send without reading until the server, which is owed, reads no more; return how much was sent."""
    unsent = memoryview(payload)

    def full() -> bool:
        nonlocal unsent
        with suppress(BlockingIOError):
            while unsent:
                unsent = unsent[peer.send(unsent[:65536]) :]
        return not unsent or not world.connection().wanted & READ

    run_until(world.loop, full)
    return len(payload) - len(unsent)


# Accepting


def test_accepts_from_every_listener(loop, request):
    world = make(loop, request)
    other = FailingListener()
    acceptor = Acceptor(loop, [other], world.server._accepted)
    world.connect()
    world.peers.append(socket.create_connection(other.getsockname()))
    run_until(loop, lambda: world.server.connections_served == 2)
    acceptor.close()


def test_accepts_as_many_as_it_is_its_turn_to(loop, request):
    counted = []
    world = make(loop, request, listener=unix_listener(), turn=lambda connections: counted.append(connections) or 2)
    for _ in range(3):
        world.connect(served=False)
    loop.run_once(0)
    assert world.server.connections_served == 2
    loop.run_once(0)
    assert counted == [0, 2]
    world.peers.pop().close()
    run_until(loop, lambda: len(world.server.connections) == 2)
    assert counted == [0, 2, 2]


@pytest.mark.parametrize("others", [True, False])
def test_where_it_is_the_turn_of_others_they_come_first_if_they_come_soon(loop, clock, request, others):
    world = make(loop, request, listener=unix_listener(), turn=lambda _connections: 0)
    world.connect(served=False)
    settle(loop)
    assert world.server.connections_served == 0
    if others:
        world.listener.accept()[0].close()
    clock.advance(PATIENCE)
    settle(loop)
    assert world.server.connections_served == (not others)
    world.connect(served=False)
    settle(loop)
    clock.advance(PATIENCE)
    settle(loop)
    assert world.server.connections_served == 1 + (not others)


def test_accepts_so_many_a_wake_up_and_no_more(loop, request):
    world = make(loop, request, listener=unix_listener(), max_conns=1000)
    for _ in range(ACCEPTS_PER_WAKEUP + 5):
        world.connect(served=False)
    loop.run_once(0)
    assert world.server.connections_served == ACCEPTS_PER_WAKEUP
    loop.run_once(0)
    assert world.server.connections_served == ACCEPTS_PER_WAKEUP + 5


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, MemoryError()])
def test_out_of_resources_waits_without_spinning_and_says_so_once(world, loop, clock, caplog, error):
    world.listener.errors = [error] * 3
    peer = world.connect(served=False)
    run_until(loop, lambda: world.listener.accepts == 1)
    for _ in range(50):
        loop.run_once(0)
    assert world.listener.accepts == 1
    for attempt in range(2, 5):
        clock.advance(RETRY_DELAY)
        run_until(loop, lambda attempt=attempt: world.listener.accepts >= attempt)
    assert world.server.connections_served == 1
    assert "accepting again" not in caplog.text
    clock.advance(RECOVERED_AFTER * 1.01)
    settle(loop)
    assert caplog.text.count("not accepting for now") == 1
    assert caplog.text.count("accepting again") == 1
    peer.send(b"hello")
    peer.shutdown(socket.SHUT_WR)
    assert read_all(peer, loop) == b"hello"


@pytest.mark.parametrize("name", ["ENOMEM", "ENOSPC"])
def test_a_listener_that_cannot_be_watched_again_is_tried_again(loop, clock, request, monkeypatch, caplog, name):
    world = make(loop, request, max_conns=1)
    first = world.connect()
    world.connect(served=False)
    settle(loop)

    def watch(fileobj, events, callback=None):
        if fileobj is world.listener and events:
            raise OSError(getattr(errno, name), "out of watches")
        EventLoop.watch(loop, fileobj, events, callback)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "watch", watch)
        first.close()
        run_until(loop, lambda: not world.server.connections)
        clock.advance(RETRY_DELAY)
        settle(loop)
        assert world.server.connections_served == 1
    clock.advance(RETRY_DELAY)
    settle(loop)
    assert world.server.connections_served == 2
    assert caplog.text.count("not accepting for now: out of watches") == 1


def test_a_full_server_lets_the_loop_sleep_while_others_wait(loop, request, selector):
    world = make(loop, request, max_conns=1)
    world.connect()
    world.connect(served=False)
    settle(loop)
    assert selector.select(0) == []


def test_an_urgent_byte_comes_back_in_its_place(world, loop):
    peer = world.connect()
    peer.setblocking(True)
    peer.send(b"abc")
    peer.send(b"X", socket.MSG_OOB)
    peer.send(b"def")
    peer.shutdown(socket.SHUT_WR)
    peer.setblocking(False)
    assert read_all(peer, loop) == b"abcXdef"


def test_a_descriptor_that_a_peer_frees_is_used_at_once(world, loop):
    first = world.connect()
    world.listener.errors = [errno.EMFILE]
    world.connect(served=False)
    run_until(loop, lambda: world.listener.accepts >= 2 and not world.listener.errors)
    first.close()
    run_until(loop, lambda: world.server.connections_served == 2)


def test_a_connection_that_failed_in_the_queue_costs_only_itself(world, loop):
    world.listener.errors = [errno.ECONNABORTED]
    world.connect()
    assert world.server.connections_served == 1


def test_the_excess_over_max_conns_waits_in_the_listen_queue(loop, request):
    world = make(loop, request, max_conns=2)
    first, _, third = world.connect(), world.connect(), world.connect(served=False)
    third.send(b"waiting")
    settle(loop)
    assert len(world.server.connections) == 2
    first.close()
    run_until(loop, lambda: world.server.connections_served == 3)
    third.shutdown(socket.SHUT_WR)
    assert read_all(third, loop) == b"waiting"


def vanish(peer: socket.socket) -> None:
    """Have a peer's kernel drop all that comes for it, by a filter that lets nothing pass (socket(7))."""
    drop = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # BPF_RET, 0 bytes
    peer.setsockopt(
        socket.SOL_SOCKET, getattr(socket, "SO_ATTACH_FILTER", 26), struct.pack("HP", 1, ctypes.addressof(drop))
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can filter what comes for one socket")
def test_peers_that_vanish_give_their_places_to_who_waits(loop, request, caplog):
    caplog.set_level(logging.INFO)
    (listener,) = listen([LOCALHOST], 0, keepalive=1)
    world = make(loop, request, listener=listener, max_conns=5)
    for _ in range(5):
        vanish(world.connect())
    waiting = world.connect(served=False)
    waiting.send(b"hello")
    assert read_exactly(waiting, loop, 5) == b"hello"
    run_until(loop, lambda: len(world.server.connections) == 1)
    assert caplog.text.count("lost (connection timed out)") == 5


def test_a_connection_that_cannot_be_served_is_closed_and_the_next_one_served(world, loop, monkeypatch, caplog):
    def broken(*_args, **_options):
        monkeypatch.undo()
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("echopair.server.echo.Connection", broken)
    assert read_all(world.connect(served=False), loop) == b""
    world.connect()
    assert "could not be served" in caplog.text


def test_a_selector_that_takes_no_more_is_a_shortage(world, loop, clock, monkeypatch, caplog):
    def full(*_args, **_options):
        monkeypatch.undo()
        raise OSError(errno.ENOSPC, "no space left on device")  # epoll(7), max_user_watches

    monkeypatch.setattr("echopair.server.echo.Connection", full)
    assert read_all(world.connect(served=False), loop) == b""
    assert "not accepting for now" in caplog.text
    assert "Traceback" not in caplog.text
    clock.advance(RETRY_DELAY)
    world.connect()
    clock.advance(RECOVERED_AFTER * 1.01)
    settle(loop)


CALLBACKS = ["data_received", "eof_received", "drained", "closing", "connection_lost"]


@pytest.mark.parametrize("draining", [False, True])
@pytest.mark.parametrize("callback", CALLBACKS)
def test_an_exception_in_any_callback_ends_its_connection_alone_and_frees_its_place(
    loop, request, zero_copy, done, caplog, callback, draining
):
    def fail(server, connection, *arguments):
        if connection is server.victim:
            raise ZeroDivisionError("a bug")
        return getattr(EchoServer, callback)(server, connection, *arguments)

    world = make(loop, request, type("Broken", (EchoServer,), {callback: fail}), max_conns=2, zero_copy=zero_copy)
    peer = world.connect()
    world.server.victim = world.connection()
    neighbour = world.connect()
    if draining:
        world.server.drain(5, done)
    else:
        world.connect(served=False)
    with suppress(OSError):  # reset, for the connection ended with bytes unread
        sent = received = 0
        while world.server.victim.wanted & READ:
            with suppress(BlockingIOError):
                sent += peer.send(bytes(65536))
            loop.run_once(0)
        while received < sent and not world.server.victim.closed:
            loop.run_once(0)
            with suppress(BlockingIOError):
                received += len(peer.recv(1 << 20))
        peer.shutdown(socket.SHUT_WR)
        read_all(peer, loop)
    run_until(loop, lambda: world.server.victim not in world.server.connections)
    assert world.server.victim.closed
    assert caplog.text.count("Traceback") == 1
    assert caplog.text.count("the handler failed") == 1
    neighbour.send(b"hello")
    neighbour.shutdown(socket.SHUT_WR)
    assert read_all(neighbour, loop) == b"hello"
    if draining:
        run_until(loop, lambda: done.count)
    else:
        run_until(loop, lambda: world.server.connections_served == 3)


def test_accepted_sockets_send_small_echoes_at_once(world):
    world.connect()
    assert world.connection().sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_who_waits_in_the_queue_at_the_end_is_served(world, loop):
    peers = [world.connect(served=False) for _ in range(ACCEPTS_PER_WAKEUP + 3)]
    for peer in peers:
        peer.send(b"hello")
    done = []
    world.server.drain(5, lambda: done.append(True))
    for peer in peers:
        assert read_exactly(peer, loop, 5) == b"hello"
        peer.close()
    run_until(loop, lambda: done)
    assert world.server.connections_served == len(peers)


# Echoing


def test_every_byte_comes_back_and_then_eof(world, loop):
    peer = world.connect()
    peer.send(bytes(range(256)))
    peer.shutdown(socket.SHUT_WR)
    assert read_all(peer, loop) == bytes(range(256))
    run_until(loop, lambda: not world.server.connections)
    assert world.server.bytes_received == world.server.bytes_sent == 256


def test_a_late_slow_reader_gets_all_of_a_half_closed_stream(world, loop):
    peer = world.connect(receive_buffer=65536)
    payload = bytes(range(256)) * 65536  # 16 MiB
    unsent, received = memoryview(payload)[send_what_fits(world, peer, payload) :], bytearray()
    assert unsent, "the reader is late only if the path fills up first"
    while len(received) < len(payload):
        loop.run_once(0)
        with suppress(BlockingIOError):
            received += peer.recv(50_000)
        with suppress(BlockingIOError):
            if unsent:
                unsent = unsent[peer.send(unsent) :]
                if not unsent:
                    peer.shutdown(socket.SHUT_WR)
    assert received == payload
    assert read_all(peer, loop) == b""


def test_a_peer_that_never_reads_is_owed_no_more_than_its_mark(loop, request, zero_copy):
    world = make(loop, request, max_buffer=100_000, zero_copy=zero_copy)
    send_what_fits(world, world.connect())
    assert (0 if zero_copy else 100_000) < len(world.connection().outbound) + 1 <= 100_000 + READ_SIZE


def test_a_neighbour_of_a_peer_that_never_reads_is_served(world, loop):
    send_what_fits(world, world.connect())
    neighbour = world.connect()
    neighbour.send(b"hello")
    neighbour.shutdown(socket.SHUT_WR)
    assert read_all(neighbour, loop) == b"hello"


def test_resets_leave_a_neighbour_served(world, loop):
    neighbour = world.connect()
    for _ in range(50):
        peer = world.connect()
        peer.send(b"x" * 1000)
        reset(peer)
    neighbour.send(b"hello")
    neighbour.shutdown(socket.SHUT_WR)
    assert read_all(neighbour, loop) == b"hello"
    run_until(loop, lambda: not world.server.connections)


def test_life_and_death_are_logged_with_byte_counts(world, loop, caplog):
    caplog.set_level(logging.DEBUG)
    peer = world.connect()
    peer.send(b"hello")
    assert read_exactly(peer, loop, 5) == b"hello"
    peer.close()
    run_until(loop, lambda: not world.server.connections)
    reset(world.connect())
    run_until(loop, lambda: not world.server.connections)
    lines = [line.partition("  ")[2] for line in caplog.messages]
    assert lines == [
        "connected (1 open)",
        "closed: 5 bytes received, 5 bytes sent",
        "connected (1 open)",
        "lost (connection reset by peer): 0 bytes received, 0 bytes sent",
    ]
    assert "hello" not in caplog.text


def test_the_verbose_server_logs_payloads_escaped(loop, request, caplog):
    caplog.set_level(logging.DEBUG)
    world = make(loop, request, VerboseEchoServer)
    peer = world.connect()
    peer.send(b"\x1b[2Jhello\n")
    assert read_exactly(peer, loop, 10) == b"\x1b[2Jhello\n"
    assert r'echoes 10 bytes  "\x1b[2Jhello\n"' in caplog.text


# Draining


def let_quiet_pass(loop, clock) -> None:
    """Twice, for a peer whose kernel has not yet acknowledged everything is given a second time."""
    for _ in range(2):
        clock.advance(QUIET * 1.1)
        settle(loop)


def test_a_server_without_connections_is_done_at_once(world, loop, done):
    world.server.drain(5, done)
    assert not done.count
    loop.run_once(0)
    assert done.count == 1


def test_draining_stops_accepting(world, loop, done):
    world.server.drain(5, done)
    with pytest.raises(ConnectionRefusedError):
        world.connect(served=False)
    settle(loop)


def test_quiet_peers_are_closed_and_that_ends_it(world, loop, clock, done):
    peers = [world.connect(), world.connect()]
    world.server.drain(5, done)
    settle(loop)
    assert not done.count
    let_quiet_pass(loop, clock)
    assert [read_all(peer, loop) for peer in peers] == [b"", b""]
    settle(loop)
    assert done.count == 1


def test_a_peer_that_goes_on_is_served_on(world, loop, clock, done):
    peer = world.connect()
    world.server.drain(5, done)
    for _ in range(10):
        clock.advance(QUIET * 0.9)
        peer.send(b"more")
        assert read_exactly(peer, loop, 4) == b"more"
    let_quiet_pass(loop, clock)
    assert read_all(peer, loop) == b""


def test_what_is_owed_and_what_is_on_its_way_is_delivered(world, loop, clock, done):
    peer = world.connect()
    sent = send_what_fits(world, peer)
    assert world.connection().outbound
    world.server.drain(5, done)
    let_quiet_pass(loop, clock)
    settle(loop)
    received = 0
    while received < sent:
        loop.run_once(0)
        with suppress(BlockingIOError):
            received += len(peer.recv(65536))
    let_quiet_pass(loop, clock)
    assert read_all(peer, loop) == b""
    peer.close()
    run_until(loop, lambda: done.count)
    assert done.count == 1
    assert world.server.bytes_sent == sent


def test_a_peer_that_has_not_read_all_is_half_closed_and_waited_for(world, loop, clock, done):
    peer = world.connect(receive_buffer=10_000)
    payload = bytes(100_000)
    send_what_fits(world, peer, payload)
    run_until(loop, lambda: world.connection().bytes_sent == len(payload))
    world.server.drain(5, done)
    let_quiet_pass(loop, clock)
    settle(loop)
    assert world.connection().eof_sent
    assert not done.count
    assert read_all(peer, loop) == payload
    peer.close()
    run_until(loop, lambda: done.count)


def test_a_peer_that_half_closed_before_gets_its_rest(world, loop, done):
    peer = world.connect()
    sent = send_what_fits(world, peer)
    peer.shutdown(socket.SHUT_WR)
    world.server.drain(5, done)
    assert len(read_all(peer, loop)) == sent
    run_until(loop, lambda: done.count)


def test_a_peer_that_half_closes_while_draining_gets_its_rest(world, loop, done):
    peer = world.connect()
    sent = send_what_fits(world, peer)
    world.server.drain(5, done)
    peer.shutdown(socket.SHUT_WR)
    assert len(read_all(peer, loop)) == sent
    run_until(loop, lambda: done.count)


def test_a_peer_that_resets_while_draining_does_not_hold_the_end(world, loop, done):
    peer = world.connect()
    send_what_fits(world, peer)
    world.server.drain(5, done)
    reset(peer)
    run_until(loop, lambda: done.count)


def test_an_error_that_waits_to_be_read_is_left_to_the_connection(world, loop, done):
    reset(world.connect())
    world.server.drain(5, done)
    run_until(loop, lambda: done.count)


def test_the_drain_timeout_cuts_peers_that_take_nothing(loop, request, zero_copy, clock, done, caplog):
    world = make(loop, request, listener=unix_listener(), zero_copy=zero_copy)
    send_what_fits(world, world.connect())
    owed = len(world.connection().outbound)
    world.server.drain(5, done)
    clock.advance(4)
    settle(loop)
    assert not done.count
    clock.advance(1)
    settle(loop)
    assert done.count == 1
    assert f"closing 1 connection still active, {owed:,} bytes unsent" in caplog.text


def test_giving_up_with_nothing_left_says_nothing(world, loop, done, caplog):
    world.server.drain(5, done)
    world.server.give_up()
    settle(loop)
    assert not caplog.text


def test_a_server_that_cannot_be_closed_does_not_hold_the_end(world, loop, done, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(world.server, "close", lambda: 1 // 0)
        world.server.drain(5, done)
        settle(loop)
    assert done.count == 1
    assert "ZeroDivisionError" in caplog.text


def test_a_connection_lost_as_the_drain_begins_is_not_waited_for(world, loop, done):
    world.connect()
    world.connection().abort()
    world.server.drain(5, done)
    settle(loop)
    assert done.count == 1
