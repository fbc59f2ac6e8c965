"""The short path of a byte, and zero copy: what a stream does by itself, where it falls back, what it gives back."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from echopair.connection import LARGE, Connection, Handler
from echopair.loop import EventLoop
from echopair.server import zerocopy
from echopair.server.zerocopy import MOST_PIPES, PIPE_SIZE, SPARE_PIPES, Pipe, Pipes, affordable
from helpers import (
    HUNG,
    Clock,
    Recorder,
    ScriptedSocket,
    read_all,
    read_exactly,
    run_until,
    settle,
    small_pair,
    tcp_pair,
    unix_pair,
)

pytestmark = pytest.mark.skipif(zerocopy.splice is None, reason="this system has no splice(2)")

BIG = os.urandom(4 << 20)
MOST = SPARE_PIPES + 4


class Echo(Recorder):
    """The handler of a server's streams: it echoes what comes while something is owed from memory."""

    def data_received(self, connection: Connection, data: bytes) -> None:
        connection.send(data)


class EchoToTheEnd(Echo):
    def eof_received(self, connection: Connection) -> None:
        connection.send_eof()


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    pipes = Pipes(MOST)
    yield pipes
    pipes.close()


@pytest.fixture
def stream(loop, pipes) -> Iterator[Callable[..., tuple[Connection, socket.socket, Recorder]]]:
    """Make a stream on one end of a connection, TCP unless asked otherwise, with the other end and its handler."""
    made: list[tuple[Connection, socket.socket]] = []

    def make(pair=tcp_pair, handler: Handler | None = None, **options):
        ours, theirs = pair()
        handler = handler or Echo()
        options = {"pipes": pipes, **options}
        connection = Connection(loop, ScriptedSocket(ours), handler, "peer", echoes=True, **options)
        made.append((connection, theirs))
        return connection, theirs, handler

    yield make
    for connection, theirs in made:
        connection.abort()
        theirs.close()
    settle(loop)


def push(loop, peer: socket.socket, payload: bytes) -> bytes:
    """Send all of `payload` and return what has come back by then, reading as it comes."""
    unsent, received = memoryview(payload), bytearray()

    def done() -> bool:
        nonlocal unsent
        try:
            unsent = unsent[peer.send(unsent) :] if unsent else unsent
        except BlockingIOError:
            pass
        try:
            received.extend(peer.recv(1 << 20))
        except BlockingIOError:
            pass
        return len(received) >= len(payload)

    deadline = time.monotonic() + HUNG
    while not done():
        assert time.monotonic() < deadline, "it never came back"
        loop.run_once(0)
    return bytes(received)


def fill(loop, peer: socket.socket, payload: bytes = BIG * 8) -> int:
    """Send without reading until nothing moves, on a pair whose bytes move at once; return how much was sent."""
    sent = idle = 0
    while idle < 20:
        try:
            sent += peer.send(memoryview(payload)[sent : sent + PIPE_SIZE])
            idle = 0
        except BlockingIOError:
            idle += 1
        loop.run_once(0)
    return sent


def test_small_messages_are_one_recv_and_one_send_and_nothing_else(stream, loop):
    connection, peer, handler = stream()
    for number in range(10):
        peer.send(b"%d" % number)
        run_until(loop, lambda number=number: connection.bytes_sent == number + 1)
    assert connection.sock.calls == ["recv", "send"] * 10
    assert handler.events == []
    assert not connection.large
    assert (connection.bytes_received, connection.bytes_sent) == (10, 10)


def test_large_ones_go_through_the_shared_pipe_and_leave_it_empty(stream, loop, pipes):
    connection, peer, _ = stream()
    assert push(loop, peer, BIG) == BIG
    assert connection.large
    assert connection.bytes_received == connection.bytes_sent == len(BIG)
    assert len(connection.sock.calls) < 2 * len(BIG) / LARGE  # the rest was spliced
    assert len(pipes.share()) == 0


def test_small_ones_after_large_ones_are_copied_again(stream, loop):
    connection, peer, _ = stream()
    push(loop, peer, BIG)
    settle(loop)
    for number in range(3):
        peer.send(b"x")
        run_until(loop, lambda number=number: connection.bytes_sent == len(BIG) + number + 1)
    assert not connection.large
    assert connection.sock.calls[-2:] == ["recv", "send"]


def test_half_close_waits_for_what_is_owed_from_the_pipe(stream, loop):
    connection, peer, _ = stream(unix_pair, handler=Handler())
    sent = fill(loop, peer)
    assert isinstance(connection.outbound, Pipe)
    peer.shutdown(socket.SHUT_WR)
    settle(loop)
    assert not connection.closed
    received = read_all(peer, loop)
    assert received == (BIG * 8)[:sent]
    assert connection.bytes_sent == sent


def test_who_is_owed_keeps_its_pipe_and_others_share_another(stream, loop, pipes):
    slow, peer, _ = stream(unix_pair)
    fill(loop, peer)
    kept = slow.outbound
    assert isinstance(kept, Pipe)
    assert 0 < len(kept) <= PIPE_SIZE
    quick, other, _ = stream()
    assert push(loop, other, BIG) == BIG
    assert quick.large
    assert pipes.share() is not kept
    assert slow.outbound is kept


def test_no_more_is_read_while_a_pipe_is_owed_and_all_comes_in_the_end(stream, loop):
    connection, peer, handler = stream(unix_pair)
    sent = fill(loop, peer)
    received = connection.bytes_received
    settle(loop)
    assert connection.bytes_received == received
    data = bytearray()

    def drained() -> bool:
        try:
            data.extend(peer.recv(1 << 20))
        except BlockingIOError:
            pass
        return len(data) == sent

    run_until(loop, drained)
    assert data == (BIG * 8)[:sent]
    assert "drained" in handler.events
    assert not connection.outbound


def test_bytes_that_move_are_noticed_on_every_path(stream, loop, clock):
    connection, peer, _ = stream(unix_pair)
    for size, large in ((10, False), (LARGE, True), (LARGE, True)):  # the first large one is copied yet
        clock.advance(1)
        peer.send(bytes(size))
        assert len(read_exactly(peer, loop, size)) == size
        assert connection.large == large
        assert connection.active_at == clock()
    fill(loop, peer)
    owed = len(connection.outbound)
    clock.advance(1)
    run_until(loop, lambda: peer.recv(1 << 20) and len(connection.outbound) != owed)
    assert connection.active_at == clock()


def test_what_comes_after_the_close_is_not_echoed(stream, loop):
    connection, peer, handler = stream(unix_pair)
    connection.close()
    peer.send(b"late")
    peer.shutdown(socket.SHUT_WR)
    run_until(loop, lambda: handler.errors)
    assert handler.errors == [None]
    assert connection.bytes_sent == 0


def test_a_pipe_is_large_and_not_for_children():
    pipe = Pipe()
    assert fcntl.fcntl(pipe.writer, fcntl.F_GETPIPE_SZ) == PIPE_SIZE
    assert not os.get_inheritable(pipe.reader)
    assert not os.get_inheritable(pipe.writer)
    pipe.close()


def test_a_mark_below_the_pipe_bounds_what_is_owed(stream, loop):
    connection, peer, _ = stream(unix_pair, max_buffer=50_000)
    fill(loop, peer)
    assert 0 < len(connection.outbound) <= max(50_000, LARGE * 4)


def test_the_end_gives_the_pipe_back(stream, loop, pipes):
    connection, peer, _ = stream(unix_pair)
    fill(loop, peer)
    pipe = connection.outbound
    connection.abort()
    settle(loop)
    assert pipe not in pipes._spare  # there was something in it
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pipe.reader)


def test_a_pipe_that_is_empty_again_is_spare(pipes):
    several = []
    for _ in range(SPARE_PIPES + 2):
        several.append(pipes.share())
        pipes._shared = None
    for pipe in several:
        pipes.give_back(pipe)
    assert len(pipes._spare) == SPARE_PIPES
    assert pipes.share() in several


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("call", [1, 2])
def test_where_splice_fails_bytes_are_copied_and_none_is_lost(stream, loop, monkeypatch, number, call):
    real, calls = zerocopy.splice, []

    def splice(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            raise OSError(number, "refused")
        return real(*arguments, **options)

    monkeypatch.setattr(zerocopy, "splice", splice)
    connection, peer, _ = stream()
    assert push(loop, peer, BIG) == BIG
    assert connection.pipes.refused
    assert len(calls) == call


def test_without_descriptors_for_a_pipe_bytes_are_copied(stream, loop, monkeypatch):
    def none(_pipes: Pipes) -> Pipe:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(Pipes, "share", none)
    connection, peer, _ = stream()
    assert push(loop, peer, BIG) == BIG
    assert connection.bytes_sent == len(BIG)


def test_a_pipe_that_may_not_be_large_works(monkeypatch, stream, loop):
    monkeypatch.setattr(zerocopy, "F_SETPIPE_SZ", -1)
    _, peer, _ = stream()
    assert push(loop, peer, BIG) == BIG


@pytest.mark.parametrize("where", ["fill", "flush", "later"])
def test_an_error_in_a_pipe_ends_the_connection_and_harms_no_other(stream, loop, pipes, monkeypatch, where):
    real = zerocopy.splice

    def fail(source, *arguments, **options):
        if (source == connection.sock.fileno()) == (where == "fill"):
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        return real(source, *arguments, **options)

    connection, peer, _ = stream(unix_pair)
    if where == "later":
        fill(loop, peer)
        monkeypatch.setattr(zerocopy, "splice", fail)
        run_until(loop, lambda: connection.error or not peer.recv(1 << 20))
    else:
        push(loop, peer, BIG)
        monkeypatch.setattr(zerocopy, "splice", fail)
        peer.send(BIG[:100_000])
        run_until(loop, lambda: connection.error or connection.closed)
    monkeypatch.undo()
    assert not connection.outbound
    other, neighbour, _ = stream()
    assert push(loop, neighbour, BIG) == BIG
    assert other.large


def test_spurious_readiness_is_nothing(stream, loop):
    connection, peer, handler = stream()
    connection._ready(1)
    push(loop, peer, BIG)
    settle(loop)
    connection.large = True
    connection._ready(1)
    assert handler.events == []
    assert connection.sock.calls[0] == "recv"


def test_a_spurious_flush_of_a_pipe_is_nothing(stream, loop):
    connection, peer, _ = stream(unix_pair)
    fill(loop, peer)
    owed = len(connection.outbound)
    connection._flush()
    assert len(connection.outbound) == owed


@pytest.mark.parametrize("call", ["recv", "send"])
def test_an_error_of_a_copy_ends_the_connection(stream, loop, call):
    connection, peer, handler = stream()
    connection.sock.tell(call, ConnectionResetError(errno.ECONNRESET, "reset"))
    peer.send(b"x")
    run_until(loop, lambda: connection.error or connection.closed)
    peer.close()
    run_until(loop, lambda: "lost" in handler.events)
    assert isinstance(handler.errors[0], ConnectionResetError)


@pytest.mark.parametrize("taken", [0, 3])
def test_what_a_small_send_leaves_is_owed(stream, loop, taken):
    connection, peer, _ = stream()
    connection.sock.tell("send", taken or BlockingIOError())
    peer.send(b"abcdef")
    run_until(loop, lambda: connection.bytes_sent == 6)
    settle(loop)
    assert peer.recv(100) == b"abcdef"


def test_what_goes_out_bit_by_bit_is_all_of_it(stream, loop, monkeypatch, pipes):
    """A socket that takes nothing at first, then a thousand bytes at a time."""
    real, calls = zerocopy.splice, []

    def splice(source, target, most, **options):
        if source != pipes.share().reader and not (calls and source == calls[0]):
            return real(source, target, most, **options)
        calls.append(source)
        if len(calls) == 1:
            raise BlockingIOError
        return real(source, target, min(most, 1000), **options)

    connection, peer, _ = stream()
    push(loop, peer, BIG[:100_000])
    settle(loop)
    connection.large = True
    monkeypatch.setattr(zerocopy, "splice", splice)
    peer.send(BIG[:50_000])
    received = bytearray()

    def all_back() -> bool:
        try:
            received.extend(peer.recv(1 << 20))
        except BlockingIOError:
            pass
        return len(received) == 50_000

    run_until(loop, all_back)
    assert received == BIG[:50_000]
    assert len(calls) > 50


# Urgent bytes, at which splice(2) stops


def oob_pair() -> tuple[socket.socket, socket.socket]:
    """A TCP pair whose urgent bytes stay in their place, as those of our listeners do."""
    ours, theirs = tcp_pair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    return ours, theirs


def tight_pair() -> tuple[socket.socket, socket.socket]:
    """A TCP pair that is soon full."""
    ours, theirs = tcp_pair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 15)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
    return ours, theirs


def test_an_urgent_byte_behind_a_large_read_comes_back_and_lets_the_loop_sleep(stream, loop, selector):
    connection, peer, _ = stream(oob_pair)
    assert push(loop, peer, BIG[:LARGE]) == BIG[:LARGE]
    assert connection.large
    peer.send(b"!", socket.MSG_OOB)
    peer.send(b"more")
    run_until(loop, lambda: connection.bytes_sent == LARGE + 5)
    assert peer.recv(100) == b"!more"
    settle(loop)
    assert selector.select(0) == []


def test_eof_behind_an_urgent_byte_is_not_taken_for_one_before_it(stream, loop):
    connection, peer, _ = stream(oob_pair, handler=EchoToTheEnd())
    push(loop, peer, BIG[:120_000])
    connection.large = True
    peer.setblocking(True)
    peer.send(b"!", socket.MSG_OOB)
    peer.sendall(BIG[:60_000])
    peer.shutdown(socket.SHUT_WR)
    peer.setblocking(False)
    assert read_all(peer, loop) == b"!" + BIG[:60_000]


a_send = st.tuples(st.sampled_from(["send", "urgent"]), st.sampled_from([1, LARGE - 1, LARGE, 70_000, 300_000]))
steps = st.lists(a_send | st.sampled_from([("pause", 0), ("read", 1000), ("read", 1 << 20)]), max_size=12)


@settings(max_examples=30, deadline=None)
@given(steps=steps, half_close=st.booleans(), room=st.sampled_from([1 << 15, 1 << 18]))
@example(steps=[("send", LARGE), ("read", 1 << 20), ("urgent", 1), ("send", 60_000)], half_close=True, room=1 << 18)
def test_spliced_and_copied_bytes_come_back_alike_urgent_ones_too(steps, half_close, room):
    """A peer that sends, reads and pauses by chance gets the same from a pipe of its own, a full one, and from none."""
    for most in (SPARE_PIPES, 1, 0):
        ours, peer = oob_pair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
        pipes = Pipes(most)
        with EventLoop(clock=Clock()) as loop, peer, closing(pipes):
            handler = EchoToTheEnd()
            connection = Connection(loop, ours, handler, "peer", echoes=True, pipes=pipes if most else None)
            expected, received = b"", bytearray()
            for step, size in steps:
                if step in ("send", "urgent"):
                    with suppress(BlockingIOError):
                        flags = socket.MSG_OOB if step == "urgent" else 0
                        expected += BIG[: peer.send(BIG[:size], flags)]
                elif step == "read":
                    with suppress(BlockingIOError):
                        received += peer.recv(size)
                loop.run_once(0)
            if half_close:
                peer.shutdown(socket.SHUT_WR)
                received += read_all(peer, loop)
                run_until(loop, lambda handler=handler: handler.errors)
                assert handler.errors == [None]
            else:
                received += read_exactly(peer, loop, len(expected) - len(received))
                settle(loop)
                assert loop._selector.select(0) == []
                connection.abort()
                settle(loop)
            assert received == expected
            assert connection.bytes_received == connection.bytes_sent == len(expected)


# Errors, and what a handler does


@pytest.mark.parametrize("large", [True, False])
def test_a_handler_that_raises_at_eof_costs_its_own_connection(stream, loop, caplog, large):
    class Broken(Recorder):
        def eof_received(self, connection):
            raise ZeroDivisionError("a bug")

    connection, peer, handler = stream(handler=Broken())
    connection.large = large
    peer.shutdown(socket.SHUT_WR)
    run_until(loop, lambda: handler.errors)
    assert isinstance(handler.errors[0], ZeroDivisionError)
    assert caplog.text.count("the handler failed") == 1


def test_what_a_handler_sends_comes_behind_what_is_owed_from_a_pipe(stream, loop):
    connection, peer, _ = stream(handler=EchoToTheEnd())
    sent = fill(loop, peer)
    assert isinstance(connection.outbound, Pipe)
    connection.send(b"the end")
    peer.shutdown(socket.SHUT_WR)
    received = read_all(peer, loop)
    assert received.count(b"the end") == 1
    assert received.replace(b"the end", b"") == (BIG * 8)[:sent]


def test_a_splice_that_is_refused_with_bytes_in_the_pipe_loses_none(stream, loop, monkeypatch):
    connection, peer, _ = stream(handler=EchoToTheEnd())
    sent = fill(loop, peer)

    def refuse(*_arguments, **_options):
        raise PermissionError(errno.EACCES, "refused")

    monkeypatch.setattr(zerocopy, "splice", refuse)
    peer.shutdown(socket.SHUT_WR)
    assert read_all(peer, loop) == (BIG * 8)[:sent]
    assert connection.pipes.refused


# How many pipes there may be


def test_who_is_owed_beyond_the_pipes_there_may_be_is_owed_from_memory(stream, loop):
    pipes = Pipes(2)
    streams = [stream(tight_pair, pipes=pipes, handler=EchoToTheEnd()) for _ in range(4)]
    sent = [fill(loop, peer) for _, peer, _ in streams]
    assert sum(isinstance(connection.outbound, Pipe) for connection, _, _ in streams) == 1
    assert pipes._open == 2
    for (_, peer, _), length in zip(streams, sent, strict=True):
        peer.shutdown(socket.SHUT_WR)
        assert read_all(peer, loop) == (BIG * 8)[:length]
    pipes.close()
    assert pipes._open == 0


@pytest.mark.parametrize(
    ("descriptors", "pages", "connections", "processes", "expected"),
    [
        (16_000, 16384, None, 1, 64),  # a quarter of 64 MiB
        (16_000, 16384, None, 4, 16),
        (1000, 16384, None, 1, 62),  # an eighth of the descriptors, two a pipe
        (1000, 16384, 900, 1, 34),  # what is left of them
        (1000, 16384, 5000, 1, 1),
        (16_000, 100, None, 1, 1),
        (16_000, 0, None, 1, 1000),
        (-1, 0, None, 1, MOST_PIPES),
    ],
)
def test_pipes_take_a_share_of_descriptors_and_pages(
    monkeypatch, tmp_path, descriptors, pages, connections, processes, expected
):
    monkeypatch.setattr("resource.getrlimit", lambda _which: (descriptors, descriptors))
    monkeypatch.setattr("os.sysconf", lambda _name: 4096)
    (tmp_path / "pages").write_text(f"{pages}\n")
    monkeypatch.setattr(zerocopy, "PAGES_FILE", tmp_path / "pages")
    assert affordable(connections, processes) == expected


def test_pages_are_taken_for_the_default_where_they_cannot_be_read(monkeypatch, tmp_path):
    monkeypatch.setattr("resource.getrlimit", lambda _which: (-1, -1))
    monkeypatch.setattr("os.sysconf", lambda _name: 4096)
    monkeypatch.setattr(zerocopy, "PAGES_FILE", tmp_path / "none")
    assert affordable(None) == 64


# The end


def test_eof_without_data_is_answered(stream, loop):
    _, peer, _ = stream(handler=Handler())
    peer.shutdown(socket.SHUT_WR)
    assert read_all(peer, loop) == b""


def test_eof_after_a_large_read_is_answered(stream, loop):
    connection, peer, _ = stream(handler=Handler())
    push(loop, peer, BIG)
    connection.large = True
    peer.shutdown(socket.SHUT_WR)
    assert read_all(peer, loop) == b""


def test_unix_sockets_can_be_spliced_too_or_fall_back(stream, loop):
    _, peer, _ = stream(pair=small_pair)
    payload = BIG[:300_000]
    assert push(loop, peer, payload) == payload
