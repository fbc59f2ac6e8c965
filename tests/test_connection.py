from __future__ import annotations

import errno
import selectors
import socket
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echopair.connection import READ_SIZE, Connection, Handler
from echopair.idle import IdleWatch
from echopair.loop import READ, WRITE, EventLoop
from helpers import Clock, Recorder, ScriptedSocket, read_all, reset, run_until, settle, small_pair, tcp_pair, unix_pair

pytestmark = pytest.mark.every_selector


class Echo(Recorder):
    def data_received(self, connection: Connection, data: bytes) -> None:
        connection.send(data)

    def eof_received(self, connection: Connection) -> None:
        super().eof_received(connection)
        connection.send_eof()


@pytest.fixture
def handler() -> Recorder:
    return Recorder()


@pytest.fixture
def connect(loop):
    """Make a connection over a pair of sockets, and return it with its peer."""
    made = []

    def connect(handler, sockets=small_pair, **options):
        near, far = sockets()
        made.append((Connection(loop, near, handler, "peer", **options), far))
        return made[-1]

    yield connect
    for connection, far in made:
        connection.abort()
        far.close()
    settle(loop)


@pytest.fixture
def pair(connect, handler):
    """A connection over small buffers, and its peer."""
    return connect(handler, max_buffer=4096)


def scripted_pair() -> tuple[ScriptedSocket, socket.socket]:
    near, far = small_pair()
    return ScriptedSocket(near), far


@pytest.fixture
def scripted(connect, handler):
    """A connection whose socket fails on demand, and its peer."""
    connection, far = connect(handler, scripted_pair)
    return connection, connection.sock, far


def fill(connection: Connection) -> int:
    """Send until the kernel refuses, and return how much that was."""
    total = 0
    while not connection.outbound:
        connection.send(b"x" * 1000)
        total += 1000
    return total


# What it wants


def test_an_idle_connection_wants_to_read_and_keeps_no_buffer(pair):
    connection, _ = pair
    assert connection.wanted == READ
    assert connection.inbound == connection.outbound == b""


def test_a_connection_that_owes_wants_to_write_too(pair):
    connection, _ = pair
    fill(connection)
    assert connection.wanted == READ | WRITE


def test_reading_pauses_while_outbound_is_at_its_mark_and_then_goes_on(pair, loop):
    connection, peer = pair
    fill(connection)
    connection.send(b"x" * 4096)
    assert connection.wanted == WRITE
    run_until(loop, lambda: peer.recv(1 << 20) and not connection.outbound)
    assert connection.wanted == READ


def test_reading_pauses_while_inbound_is_at_its_mark_and_then_goes_on(pair):
    connection, _ = pair
    connection.keep(b"x" * 4096)
    assert connection.wanted == 0
    connection.consume(1)
    assert connection.wanted == READ


@pytest.mark.parametrize(("owed", "wanted"), [(4095, READ | WRITE), (4096, WRITE)])
def test_a_mark_is_reached_by_the_byte_that_makes_it_full(connect, handler, owed, wanted):
    connection, _ = connect(handler, scripted_pair, max_buffer=4096)
    connection.sock.tell("send", BlockingIOError())
    connection.send(bytes(owed))
    assert connection.wanted == wanted


def test_after_eof_it_wants_only_what_is_owed(pair, loop, handler):
    connection, peer = pair
    fill(connection)
    peer.shutdown(socket.SHUT_WR)
    run_until(loop, lambda: connection.eof_received)
    assert connection.wanted == WRITE


def test_an_ended_connection_wants_nothing(pair):
    connection, _ = pair
    connection.abort()
    assert connection.wanted == 0


def test_a_connection_that_wants_nothing_is_not_registered(pair, selector):
    connection, _ = pair
    connection.keep(b"x" * 4096)
    assert connection.sock not in {key.fileobj for key in selector.get_map().values()}


# Receiving


def test_bytes_go_to_the_handler_and_are_counted(pair, loop, handler):
    connection, peer = pair
    peer.send(b"hello")
    settle(loop)
    assert handler.received == b"hello"
    assert connection.bytes_received == 5


def test_one_read_a_turn_lets_others_have_theirs(connect, loop, handler):
    connection, far = connect(handler, tcp_pair)
    far.setblocking(True)
    far.sendall(b"x" * (2 * READ_SIZE))
    run_until(loop, lambda: handler.events)
    assert handler.events == ["data"]
    assert connection.bytes_received <= READ_SIZE


def test_the_default_handler_keeps_bytes_for_consume_and_answers_eof(connect, loop):
    connection, far = connect(Handler())
    far.send(b"hello")
    settle(loop)
    far.send(b" there")
    settle(loop)
    assert connection.inbound == b"hello there"
    connection.consume(6)
    assert connection.inbound == b"there"
    connection.consume(5)
    assert connection.inbound == b""
    far.shutdown(socket.SHUT_WR)
    assert read_all(far, loop) == b""
    assert connection.closed


def test_the_default_handler_stops_reading_a_peer_that_nobody_listens_to(connect, loop):
    connection, far = connect(Handler(), unix_pair, max_buffer=10_000)
    idle = 0
    while idle < 20:
        loop.run_once(0)
        idle += 1
        with suppress(BlockingIOError):
            far.send(b"x" * 65536)
            idle = 0
    assert 10_000 <= len(connection.inbound) < 10_000 + READ_SIZE


def test_inbound_outlives_the_connection(pair, loop):
    connection, _ = pair
    connection.keep(b"left over")
    connection.abort()
    settle(loop)
    assert connection.inbound == b"left over"
    connection.consume(9)
    assert connection.inbound == b""


def test_a_spurious_wake_up_is_nothing(scripted, loop, handler):
    _connection, sock, peer = scripted
    sock.tell("recv", BlockingIOError())
    peer.send(b"hello")
    loop.run_once(0)
    assert handler.events == []
    loop.run_once(0)
    assert handler.received == b"hello"


def test_a_reset_ends_the_connection_with_its_error(connect, loop, handler):
    connection, far = connect(handler, tcp_pair)
    reset(far)
    run_until(loop, lambda: handler.errors)
    assert isinstance(handler.errors[0], ConnectionResetError)
    assert connection.closed


def test_a_reset_while_only_writing_is_noticed(connect, loop, handler):
    connection, far = connect(handler, tcp_pair, max_buffer=10)
    fill(connection)
    assert connection.wanted == WRITE
    reset(far)
    run_until(loop, lambda: handler.errors)
    assert isinstance(handler.errors[0], ConnectionError)


# Sending


def test_what_the_kernel_takes_at_once_is_never_queued(pair):
    connection, peer = pair
    connection.send(b"hello")
    assert connection.outbound == b""
    assert connection.bytes_sent == 5
    assert peer.recv(10) == b"hello"


def test_a_short_send_keeps_the_rest_in_order(scripted, loop):
    connection, sock, peer = scripted
    sock.tell("send", 2, BlockingIOError(), 1)
    connection.send(b"hello")
    connection.send(memoryview(b" there"))
    assert connection.outbound == b"llo there"
    assert peer.recv(100) == b"he"  # a unix socket is writable again once its peer has read
    connection.send_eof()
    assert read_all(peer, loop) == b"llo there"
    assert connection.bytes_sent == 11


def test_queued_bytes_cost_no_system_call_until_the_socket_is_ready(scripted):
    connection, sock, _ = scripted
    sock.tell("send", BlockingIOError())
    connection.send(b"a")
    connection.send(b"b")
    assert sock.calls == ["send"]


def test_drained_is_told_once_all_is_taken(pair, loop, handler):
    connection, peer = pair
    total = fill(connection)
    received = 0
    while "drained" not in handler.events:
        loop.run_once(0)
        received += len(peer.recv(1 << 20))
    assert connection.outbound == b""
    assert connection.bytes_sent == total
    assert handler.events == ["drained"]


def test_the_handler_may_send_more_from_drained(connect, loop):
    class Refill(Recorder):
        def drained(self, connection):
            connection.send(b"more")

    connection, far = connect(Refill())
    total = fill(connection)
    received = b""
    while len(received) < total + 4:
        loop.run_once(0)
        received += far.recv(1 << 20)
    assert received.endswith(b"xmore")


def test_closing_forgets_what_was_not_taken_and_reads_on(pair):
    connection, _ = pair
    connection.keep(bytes(4096))
    assert not connection.wanted & READ
    connection.close()
    assert connection.inbound == b""
    assert connection.wanted & READ


def test_the_first_failure_is_the_one_that_is_told(scripted, loop, handler):
    connection, sock, peer = scripted
    sock.tell("send", BrokenPipeError(errno.EPIPE, "broken pipe"))
    sock.tell("recv", ConnectionResetError(errno.ECONNRESET, "reset"))
    connection.send(b"hello")
    peer.send(b"x")
    run_until(loop, lambda: handler.errors)
    assert isinstance(handler.errors[0], BrokenPipeError)


def test_what_ended_while_it_was_read_is_not_written_to(scripted):
    connection, sock, peer = scripted

    class Ending(Handler):
        def data_received(self, connection, data):
            connection.abort()

    connection.handler = Ending()
    sock.tell("send", BlockingIOError())
    connection.send(b"owed")
    peer.send(b"x")
    connection._ready(READ | WRITE)
    assert sock.calls == ["send", "recv"]


def test_sending_after_send_eof_is_a_mistake(pair):
    connection, _ = pair
    connection.send_eof()
    with pytest.raises(RuntimeError, match="after send_eof"):
        connection.send(b"late")


@pytest.mark.parametrize("end", ["abort", "close"])
def test_sending_on_a_connection_that_is_over_is_silent(pair, end):
    connection, _ = pair
    getattr(connection, end)()
    connection.send(b"late")
    assert connection.bytes_sent == 0


def test_a_failing_send_is_reported_through_the_loop_and_only_once(scripted, loop, handler):
    connection, sock, peer = scripted
    sock.tell("send", BrokenPipeError(errno.EPIPE, "broken pipe"))
    connection.send(b"hello")
    connection.send(b"more")
    assert handler.events == []
    peer.close()
    run_until(loop, lambda: handler.errors)
    assert isinstance(handler.errors[0], BrokenPipeError)
    settle(loop)
    assert handler.events.count("lost") == 1


def test_what_the_peer_sent_before_sending_failed_is_still_read(scripted, loop, handler):
    connection, sock, peer = scripted
    peer.send(b"last words")
    sock.tell("send", BrokenPipeError(errno.EPIPE, "broken pipe"))
    connection.send(b"hello")
    peer.close()
    run_until(loop, lambda: handler.errors)
    assert handler.received == b"last words"


def test_queued_bytes_that_fail_end_the_connection(scripted, loop, handler):
    connection, sock, peer = scripted
    sock.tell("send", BlockingIOError(), BlockingIOError(), ConnectionResetError(errno.ECONNRESET, "reset"))
    connection.send(b"hello")
    peer.shutdown(socket.SHUT_WR)
    run_until(loop, lambda: handler.errors)
    assert isinstance(handler.errors[0], ConnectionResetError)


# Ending


def test_half_close_waits_for_queued_bytes(pair, loop):
    connection, peer = pair
    total = fill(connection)
    connection.send_eof()
    assert not connection.eof_sent
    assert len(read_all(peer, loop)) == total
    assert connection.eof_sent
    assert not connection.closed


def test_reading_goes_on_after_our_eof(pair, loop, handler):
    connection, peer = pair
    connection.send_eof()
    peer.send(b"still here")
    settle(loop)
    assert handler.received == b"still here"


def test_two_eofs_end_the_connection_without_error(pair, loop, handler):
    connection, peer = pair
    connection.send_eof()
    peer.shutdown(socket.SHUT_WR)
    settle(loop)
    assert handler.events == ["eof", "lost"]
    assert handler.errors == [None]


def test_eof_from_the_peer_alone_ends_nothing(pair, loop, handler):
    connection, peer = pair
    peer.shutdown(socket.SHUT_WR)
    settle(loop)
    assert handler.events == ["eof"]
    connection.send(b"an answer")
    assert peer.recv(100) == b"an answer"


def test_close_flushes_then_drops_what_still_comes(pair, loop, handler):
    connection, peer = pair
    connection.keep(b"not yet taken")
    total = fill(connection)
    connection.close()
    peer.send(b"too late")
    assert len(read_all(peer, loop)) == total
    peer.close()
    run_until(loop, lambda: handler.errors)
    assert "data" not in handler.events
    assert handler.errors == [None]
    assert connection.bytes_received == len(b"too late")


def test_abort_ends_at_once_and_is_told_from_the_loop(pair, loop, handler):
    connection, _peer = pair
    fill(connection)
    error = TimeoutError("idle")
    connection.abort(error)
    connection.abort(RuntimeError("again"))
    assert connection.closed
    assert handler.events == []
    settle(loop)
    assert handler.errors == [error]


def test_shutdown_refused_by_a_reset_is_remembered_for_the_end(scripted, loop, handler):
    connection, sock, peer = scripted
    sock.tell("shutdown", OSError(errno.ENOTCONN, "not connected"))
    connection.send_eof()
    peer.shutdown(socket.SHUT_WR)
    settle(loop)
    assert [error.errno for error in handler.errors] == [errno.ENOTCONN]


def test_a_reset_behind_the_peers_eof_is_no_error_of_ours(scripted, loop, handler):
    connection, sock, peer = scripted
    peer.shutdown(socket.SHUT_WR)
    settle(loop)
    sock.tell("shutdown", OSError(errno.ENOTCONN, "not connected"))
    connection.send_eof()
    settle(loop)
    assert handler.errors == [None]


def test_an_event_that_is_stale_does_no_harm(pair, loop, handler):
    connection, _ = pair
    fill(connection)
    connection.abort()
    connection._ready(READ | WRITE)
    settle(loop)
    assert handler.events == ["lost"]


def test_a_handler_that_raises_costs_its_own_connection(connect, loop, caplog):
    class Broken(Recorder):
        def data_received(self, connection, data):
            raise ZeroDivisionError("a bug")

    broken, sound = Broken(), Recorder()
    (_, far), (_, other_far) = connect(broken), connect(sound)
    far.send(b"x")
    other_far.send(b"y")
    settle(loop)
    assert isinstance(broken.errors[0], ZeroDivisionError)
    assert sound.received == b"y"
    assert "the handler failed" in caplog.text


def test_silence_whose_handling_raises_ends_its_connection_alone(pair, loop, clock, handler, caplog):
    connection, _ = pair
    watch = IdleWatch(loop, [connection], 5, lambda _connection: 1 // 0)
    clock.advance(5)
    settle(loop)
    assert isinstance(handler.errors[0], ZeroDivisionError)
    assert caplog.text.count("Traceback") == 1
    watch.close()


def test_activity_is_stamped_with_the_turn_it_happened_in(pair, loop, clock):
    connection, peer = pair
    made = connection.active_at
    clock.advance(5)
    peer.send(b"x")
    loop.run_once(0)
    assert connection.active_at == made + 5
    clock.advance(5)
    loop.run_once(0)
    assert connection.active_at == made + 5
    connection.send(b"y")
    assert connection.active_at == made + 10


def test_flushing_counts_as_activity(pair, loop, clock):
    connection, peer = pair
    fill(connection)
    clock.advance(5)
    peer.recv(1 << 20)
    run_until(loop, lambda: not connection.outbound)
    assert connection.active_at == clock()


# Properties

few_at_a_time = st.lists(st.integers(1, 5) | st.just(BlockingIOError()), max_size=20)


@settings(max_examples=60)
@given(
    payload=st.binary(max_size=30_000),
    chunk_sizes=st.lists(st.integers(1, 10_000), max_size=8),
    sends=few_at_a_time,
    receives=few_at_a_time,
    mark=st.integers(1, 5000),
    read_size=st.sampled_from([1000, 1 << 16]),
    reads_late=st.booleans(),
)
def test_any_payload_in_any_chunking_comes_back_whole(
    payload, chunk_sizes, sends, receives, mark, read_size, reads_late
):
    """Whenever the half-close comes, through the smallest buffers there are, some calls moving a few bytes only."""
    near, far = small_pair()
    with EventLoop(selectors.SelectSelector(), Clock()) as loop, far, ScriptedSocket(near) as sock:
        sock.tell("send", *sends)
        sock.tell("recv", *receives)
        handler = Echo()
        connection = Connection(loop, sock, handler, "peer", max_buffer=mark)
        unsent = memoryview(payload)
        received = bytearray()
        while not handler.errors or not received.endswith(b"EOF"):
            progress = False
            try:
                if unsent:
                    unsent = unsent[far.send(unsent[: chunk_sizes.pop() if chunk_sizes else None]) :]
                    progress = True
                    if not unsent:
                        far.shutdown(socket.SHUT_WR)
            except BlockingIOError:
                pass
            loop.run_once(0)
            assert len(connection.outbound) < mark + READ_SIZE
            if progress and reads_late:
                continue  # a reader that starts only when nothing more goes out
            try:
                received += far.recv(read_size) or b"EOF"
            except BlockingIOError:
                pass
            if not payload:
                far.shutdown(socket.SHUT_WR)
        assert received == payload + b"EOF"
        assert handler.errors == [None]
        assert connection.bytes_received == connection.bytes_sent == len(payload)


STEPS = st.sampled_from(
    [
        "peer sends",
        "peer floods",
        "peer reads",
        "peer half-closes",
        "peer vanishes",
        "send eof",
        "close",
        "abort",
        "turn",
    ]
)


@settings(max_examples=100)
@given(steps=st.lists(STEPS, max_size=40))
def test_any_life_ends_in_exactly_one_connection_lost(steps):
    near, far = small_pair()
    with EventLoop(selectors.SelectSelector(), Clock()) as loop, near, far:
        handler = Echo()
        connection = Connection(loop, near, handler, "peer", max_buffer=3000)
        do = {
            "peer sends": lambda: far.send(b"x" * 100),
            "peer floods": lambda: far.send(b"x" * 100_000),
            "peer reads": lambda: far.recv(1000),
            "peer half-closes": lambda: far.shutdown(socket.SHUT_WR),
            "peer vanishes": far.close,
            "send eof": connection.send_eof,
            "close": connection.close,
            "abort": lambda: connection.abort(TimeoutError()),
            "turn": lambda: loop.run_once(0),
        }
        for step in steps:
            try:
                do[step]()
            except OSError:
                pass  # the peer's own mistakes: sending after its half-close, reading what is not there
            assert len(connection.outbound) < 3000 + READ_SIZE
        connection.abort()
        settle(loop)
        assert handler.events.count("lost") == 1
        assert handler.events[-1] == "lost"
        assert not [key for key in loop._selector.get_map().values() if key.fileobj is connection.sock]
