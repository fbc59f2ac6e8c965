"""The client's parts: payload, mismatch, session, pipe and the client that runs them; against a server that obeys."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echopair.address import listen
from echopair.cli.streams import Writer
from echopair.client import EchoClient, Session
from echopair.client.echo import AT_ONCE
from echopair.client.mismatch import agreement, diagnose, dump
from echopair.client.payload import PERIOD, PIECE_SIZE, STAMP_SIZE, Payload
from echopair.client.pipe import Pipe
from echopair.client.session import FULL, LENGTH, NONE
from echopair.connection import Connection
from echopair.loop import EventLoop
from helpers import (
    LOCALHOST,
    ScriptedSocket,
    read_all,
    read_exactly,
    reset,
    run_until,
    settle,
    small_pair,
    unix_listener,
    unix_pair,
)

# Payload


def test_the_same_seed_gives_the_same_messages_and_another_gives_others():
    one, same, other = (list(Payload(100, seed, 2).pieces(1, 3)) for seed in (7, 7, 8))
    assert one == same
    assert not set(one) & set(other)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1000, PIECE_SIZE, PIECE_SIZE + 1, 3 * PIECE_SIZE, 3 * PIECE_SIZE + 5])
def test_a_message_has_its_size_whatever_its_pieces(size):
    payload = Payload(size, 1, 3)
    pieces = list(payload.pieces(2, 4))
    assert len(pieces) == 4 * payload.pieces_per_message
    for message in range(4):
        own = pieces[message * payload.pieces_per_message : (message + 1) * payload.pieces_per_message]
        assert sum(map(len, own)) == size


@given(
    size=st.integers(16, 5000),
    conns=st.integers(1, 1000),
    data=st.data(),
)
def test_two_messages_differ_in_every_stretch_of_eight_bytes(size, conns, data):
    payload = Payload(size, 1, conns)
    numbers = st.integers(0, PERIOD - 1)
    one = data.draw(numbers)
    other = data.draw(numbers.filter(lambda number: number != one))
    first, second = (int.from_bytes(payload.piece(number, size)) for number in (one, other))
    assert bytes(8) not in (first ^ second).to_bytes(size)


@pytest.mark.parametrize("conns", [1, 2, 256, 65536])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_neighbours_shorter_than_a_stamp_differ_whatever_the_number_of_connections(size, conns):
    pieces = list(Payload(size, 1, conns).pieces(1, 300))
    assert len(set(pieces)) > 100
    assert all(one != other for one, other in pairwise(pieces))


def test_a_stamp_tells_whose_bytes_they_are():
    payload = Payload(1000, 1, 5)
    pieces = list(payload.pieces(4, 3))
    assert payload.locate(pieces[2] + b"what follows") == (4, 3)
    assert payload.locate(pieces[2][:500]) == (4, 3)


@pytest.mark.parametrize("data", [b"", b"short", bytes(8), bytes(2000)])
def test_bytes_of_nobody_are_nobodys(data):
    assert Payload(1000, 1, 5).locate(data) is None


def test_a_damaged_message_is_nobodys():
    payload = Payload(1000, 1, 5)
    piece = bytearray(next(payload.pieces(1, 1)))
    piece[STAMP_SIZE] ^= 1
    assert payload.locate(bytes(piece)) is None


# Mismatch


def test_agreement_counts_the_leading_bytes_that_are_equal():
    assert agreement(b"abcd", b"abxd") == 2
    assert agreement(b"abcd", b"ab") == 2


def test_a_dump_is_cut():
    assert dump(b"\x00\xff") == "00 ff"
    assert dump(bytes(9)) == "00 00 00 00 00 00 00 00 .."
    assert dump(b"<!DOCTYPE html>") == '3c 21 44 4f 43 54 59 50 .. "<!DOCTYP"'


RANDOM = Payload(1000, 1, 1).piece(0, 1000)


@pytest.mark.parametrize(
    ("got", "verdict"),
    [
        (bytes([RANDOM[0] ^ 0x10]) + RANDOM[1:], "one bit flipped"),
        (bytes([RANDOM[0] ^ 0x11]) + RANDOM[1:], "one byte changed"),
        (RANDOM[1:], "1 byte lost"),
        (RANDOM[300:], "300 bytes lost"),
        (RANDOM[1:2], ""),
        (bytes(1000), ""),
        (RANDOM[300:340] + b"noise", ""),
        (b"!" + RANDOM, "1 byte inserted or repeated"),
        (b"noise" * 20 + RANDOM, "100 bytes inserted or repeated"),
        (b"noise" * 200, ""),
        (b"noise", ""),
    ],
)
def test_damage_is_named(got, verdict):
    assert diagnose(RANDOM, got) == verdict


def test_monotonous_bytes_are_not_searched_for_ever():
    assert diagnose(b"a" + bytes(2_000_000), bytes(65_000) + b"x" * 536) == ""


def test_too_little_to_compare_is_not_named():
    assert diagnose(RANDOM[:3], b"noise") == ""


# Session


class Conversation:
    """A session on one end of a pair; the test is the server on the other."""

    def __init__(self, loop, *messages: bytes, pair=unix_pair, **options) -> None:
        near, self.server = pair()
        self.ended: list[Session] = []
        self.loop = loop
        self.session = Session(2, iter(messages), ended=self.ended.append, **options)
        self.connection = Connection(loop, near, self.session, "server")
        self.session.start(self.connection)

    def receive(self, size: int) -> bytes:
        data = bytearray()

        def enough() -> bool:
            try:
                data.extend(self.server.recv(size - len(data)))
            except BlockingIOError:
                pass
            return len(data) == size

        run_until(self.loop, enough)
        return bytes(data)

    def echo(self, size: int) -> None:
        self.server.send(self.receive(size))

    def close(self) -> None:
        self.connection.abort()
        self.server.close()
        settle(self.loop)

    def failure(self) -> str:
        run_until(self.loop, lambda: self.ended)
        assert self.session.failure
        return f"{self.session.failure.phase} {self.session.failure.error}: {self.session.failure.story}"


@pytest.fixture
def talk(loop, request) -> Callable[..., Conversation]:
    def start(*messages: bytes, **options) -> Conversation:
        conversation = Conversation(loop, *messages, **options)
        request.addfinalizer(conversation.close)
        return conversation

    return start


def test_messages_go_one_by_one_and_then_eof(talk, loop):
    conversation = talk(b"one", b"three")
    conversation.echo(3)
    conversation.echo(5)
    assert read_all(conversation.server, loop) == b""
    assert not conversation.ended
    conversation.server.close()
    run_until(loop, lambda: conversation.ended)
    assert conversation.session.failure is None
    assert conversation.session.messages_echoed == 2


def test_the_next_message_waits_for_the_echo(talk, loop):
    conversation = talk(b"one", b"two")
    settle(loop)
    assert conversation.receive(3) == b"one"
    with pytest.raises(BlockingIOError):
        conversation.server.recv(1)


def test_a_pipeline_sends_so_many_ahead(talk, loop):
    conversation = talk(b"one", b"two", b"six", b"ten", pipeline=3)
    assert conversation.receive(9) == b"onetwosix"
    with pytest.raises(BlockingIOError):
        conversation.server.recv(1)
    conversation.server.send(b"one")
    assert conversation.receive(3) == b"ten"


def test_eof_waits_for_the_echo_of_all(talk, loop):
    conversation = talk(b"one", pipeline=2)  # so that it knows at once that this was all
    assert conversation.receive(3) == b"one"
    settle(loop)
    assert not conversation.connection.eof_queued
    conversation.server.send(b"one")
    assert read_all(conversation.server, loop) == b""


def test_a_whole_message_after_a_part_of_it_is_too_much(talk, loop):
    conversation = talk(b"aa")
    conversation.server.send(b"a")
    settle(loop)
    conversation.server.send(b"aa")
    assert conversation.failure().startswith("echo extra: connection 2: 1 byte more came back than was sent")


def test_an_echo_in_any_pieces_is_right(talk, loop):
    conversation = talk(b"one", b"two", b"six", pipeline=3)
    conversation.receive(9)
    for part in (b"o", b"netw", b"o", b"six"):
        conversation.server.send(part)
        settle(loop)
    assert conversation.session.messages_echoed == 3
    assert conversation.session.failure is None


def test_the_pieces_of_a_message_count_as_one(talk, loop):
    conversation = talk(b"on", b"e", b"tw", b"o", pieces_per_message=2)
    assert conversation.receive(3) == b"one"
    with pytest.raises(BlockingIOError):
        conversation.server.recv(1)
    conversation.server.send(b"on")
    settle(loop)
    assert conversation.session.messages_echoed == 0
    conversation.server.send(b"e")
    settle(loop)
    assert conversation.session.messages_echoed == 1
    assert conversation.session.messages_sent == 2


def test_a_message_larger_than_every_buffer_is_sent_while_its_echo_is_read(talk, loop):
    pieces = [bytes([number]) * 50_000 for number in range(100)]
    conversation = talk(*pieces, pair=small_pair, pieces_per_message=100)
    owed = b""
    while not conversation.session.messages_echoed:
        loop.run_once(0)
        with suppress(BlockingIOError):  # a server that reads nothing while it owes something
            owed = owed or conversation.server.recv(65536)
            owed = owed[conversation.server.send(owed) :]
    assert conversation.session.failure is None
    assert conversation.connection.bytes_received == 5_000_000


@pytest.mark.parametrize(
    ("echo", "story"),
    [
        (
            b"Xne",
            "echo mismatch: connection 2: message 1, offset 0: expected 6f 6e 65, got 58 6e 65 (one byte changed)",
        ),
        (b"onE", "echo mismatch: connection 2: message 1, offset 2: expected 65, got 45 (one bit flipped)"),
        (b"one!", "echo extra: connection 2: 1 byte more came back than was sent: 21"),
    ],
)
def test_a_wrong_echo_is_reported_with_its_place(talk, echo, story):
    conversation = talk(b"one", b"two")
    conversation.receive(3)
    conversation.server.send(echo)
    assert conversation.failure() == story


def test_damage_in_a_later_piece_is_placed_in_its_message(talk, loop):
    conversation = talk(b"abc", b"def", b"ghi", b"jkl", pieces_per_message=2, pipeline=2)
    conversation.receive(12)
    conversation.server.send(b"abcdefgh")
    settle(loop)
    conversation.server.send(b"ijKl")
    assert "message 2, offset 4: expected 6b 6c, got 4b 6c" in conversation.failure()


def test_crossed_echoes_tell_whose_they_are(talk):
    payload = Payload(1000, 1, 2)
    ours, theirs = (next(payload.pieces(number, 1)) for number in (2, 1))
    conversation = talk(ours, locate=payload.locate)
    conversation.receive(1000)
    conversation.server.send(theirs)
    assert conversation.failure().endswith("(these are bytes of connection 1, message 1)")


def test_lost_bytes_are_counted(talk):
    (message,) = Payload(1000, 1, 1).pieces(1, 1)
    conversation = talk(message, locate=Payload(1000, 1, 1).locate)
    conversation.receive(1000)
    conversation.server.send(message[:100] + message[103:])
    story = conversation.failure()
    assert "message 1, offset 100: expected" in story
    assert story.endswith("(3 bytes lost)")


def test_a_byte_after_all_has_come_back_is_a_failure(talk, loop):
    conversation = talk(b"one")
    conversation.echo(3)
    assert read_all(conversation.server, loop) == b""
    conversation.server.send(b"?")
    assert conversation.failure() == "echo extra: connection 2: 1 byte more came back than was sent: 3f"


def test_a_missing_tail_is_a_failure(talk):
    conversation = talk(b"one", b"two")
    conversation.receive(3)
    conversation.server.send(b"on")
    conversation.server.shutdown(socket.SHUT_WR)
    assert conversation.failure() == (
        "echo missing: connection 2: the server closed at message 1, offset 2: 1 byte sent did not come back"
    )


def test_a_server_that_closes_between_messages_is_a_failure(talk):
    conversation = talk(b"one", b"two", pair=small_pair)
    conversation.connection.outbound = bytearray(b"stuck")  # the second message cannot go out before the EOF is seen
    conversation.receive(3)
    conversation.server.send(b"one")
    conversation.server.shutdown(socket.SHUT_WR)
    assert conversation.failure().endswith("the server closed at message 2, offset 0: more was to be sent")


def test_a_reset_is_a_failure_with_its_name(talk):
    conversation = talk(b"one")
    reset(conversation.server)
    assert conversation.failure() == ("echo ECONNRESET: connection 2: connection reset by peer at message 1, offset 0")


def test_silence_is_a_failure_that_tells_what_is_awaited(talk, loop):
    waiting = talk(b"one")
    waiting.session.silent(10)
    assert waiting.failure() == ("echo timeout: connection 2: nothing moved for 10 s, waiting for message 1, offset 0")
    closing = talk(b"one")
    closing.echo(3)
    read_all(closing.server, loop)
    closing.session.silent(10)
    assert "all came back, but our EOF was not answered for 10 s" in closing.failure()


def test_an_early_end_after_our_eof_hints_at_half_close(talk):
    conversation = talk(b"one")
    conversation.receive(3)
    conversation.connection.send_eof()
    conversation.server.shutdown(socket.SHUT_WR)
    assert conversation.failure().endswith("some servers and proxies do not know half-closed connections)")


def test_a_server_that_takes_nothing_is_told_from_one_that_returns_nothing(talk):
    conversation = talk(bytes(200_000), pair=small_pair)
    conversation.session.silent(10)
    assert "the server took nothing for 10 s, while waiting for message 1, offset 0" in conversation.failure()


def test_what_was_never_sent_is_not_called_missing(talk):
    conversation = talk(bytes(3_000_000), pair=small_pair)
    conversation.server.shutdown(socket.SHUT_WR)
    sent = conversation.connection.bytes_sent
    assert f"{sent:,} bytes sent did not come back" in conversation.failure()


def test_a_piece_larger_than_every_buffer_is_sent_bit_by_bit(talk, loop):
    conversation = talk(bytes(3_000_000), pair=small_pair)
    owed = b""
    while not conversation.session.messages_echoed:
        loop.run_once(0)
        assert len(conversation.connection.outbound) <= 65536
        with suppress(BlockingIOError):
            owed = owed or conversation.server.recv(65536)
            owed = owed[conversation.server.send(owed) :]
    assert conversation.session.failure is None


def test_a_reset_stops_the_making_of_messages_and_keeps_its_name(loop):
    made = []

    def pieces():
        for number in range(1000):
            made.append(number)
            yield bytes(60_000)

    near, far = small_pair()
    sock = ScriptedSocket(near)
    sock.tell("send", 10, ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
    session = Session(1, pieces(), pieces_per_message=1000)
    connection = Connection(loop, sock, session, "server")
    session.start(connection)
    assert far.recv(100)
    run_until(loop, lambda: connection.error)
    far.close()  # and what was in the kernel before the reset ends with an EOF
    settle(loop)
    assert len(made) == 1
    assert session.failure.error == "ECONNRESET"


def test_without_verifying_a_half_close_by_the_server_is_no_failure(talk, loop):
    conversation = talk(*[bytes(60_000)] * 4, pair=small_pair, verify=NONE, pipeline=4)
    conversation.server.shutdown(socket.SHUT_WR)
    while not conversation.ended:
        loop.run_once(0)
        with suppress(BlockingIOError):
            conversation.server.recv(65536)
    assert conversation.session.failure is None


def test_only_the_first_failure_counts(talk):
    conversation = talk(b"one")
    conversation.session.silent(10)
    conversation.session.fail("echo", "second", "another")
    assert "timeout" in conversation.failure()


@pytest.mark.parametrize(("verify", "error"), [(FULL, "mismatch"), (LENGTH, None), (NONE, None)])
def test_verify_says_whether_contents_matter(talk, loop, verify, error):
    conversation = talk(b"one", verify=verify)
    conversation.receive(3)
    conversation.server.send(b"ONE")
    if error:
        assert error in conversation.failure()
    else:
        assert read_all(conversation.server, loop) == b""
        assert conversation.session.failure is None


@pytest.mark.parametrize(("verify", "error"), [(FULL, "extra"), (LENGTH, "extra"), (NONE, None)])
def test_verify_says_whether_amounts_matter(talk, loop, verify, error):
    conversation = talk(b"one", verify=verify)
    conversation.receive(3)
    conversation.server.send(b"one and more")
    if error:
        assert error in conversation.failure()
    else:
        assert read_all(conversation.server, loop) == b""
        assert conversation.session.failure is None


def test_without_verifying_an_early_end_is_no_failure(talk, loop):
    conversation = talk(b"one", verify=NONE)
    conversation.receive(3)
    conversation.server.close()
    run_until(loop, lambda: conversation.ended)
    assert conversation.session.failure is None


# The client


class Run:
    """A client on the loop, with a server that the test plays."""

    def __init__(self, loop, *sessions: Session, addresses=None, **options) -> None:
        self.listener = unix_listener()
        self.loop = loop
        self.ended: list[Session] = []
        self.done = 0
        addresses = addresses or [(self.listener.family, self.listener.getsockname())]
        self.client = EchoClient(loop, addresses, sessions, done=self._done, ended=self.ended.append, **options)
        self.servers: list[socket.socket] = []

    def _done(self) -> None:
        self.done += 1

    def accept(self) -> socket.socket:
        def accepted() -> bool:
            with suppress(BlockingIOError):
                self.servers.append(self.listener.accept()[0])
                self.servers[-1].setblocking(False)
                return True
            return False

        run_until(self.loop, accepted)
        return self.servers[-1]

    def close(self) -> None:
        self.client.stop()
        for sock in [self.listener, *self.servers]:
            sock.close()
        settle(self.loop)


@pytest.fixture
def run(loop, request) -> Callable[..., Run]:
    def start(*sessions: Session, **options) -> Run:
        started = Run(loop, *sessions, **options)
        request.addfinalizer(started.close)
        return started

    return start


def test_every_session_gets_a_connection_and_the_last_to_end_is_the_end(run, loop):
    run = run(Session(1, iter([b"a"])), Session(2, iter([b"b"])))
    for _ in range(2):
        server = run.accept()
        run_until(loop, lambda server=server: echo_once(server))
        read_all(server, loop)
        assert not run.done
        server.close()
    run_until(loop, lambda: run.done)
    assert [session.failure for session in run.ended] == [None, None]
    assert run.client.bytes_moved() == (2, 2)
    assert run.client.failures == []
    assert run.done == 1


def echo_once(server: socket.socket) -> bool:
    with suppress(BlockingIOError):
        server.send(server.recv(100))
        return True
    return False


def test_messages_that_cannot_be_made_fail_their_connection_at_once(run, loop, caplog):
    def broken():
        raise OSError("disk gone")
        yield

    run = run(Session(1, broken()))
    run_until(loop, lambda: run.done)
    assert run.client.failures[0].story == "connection 1: disk gone at message 1, offset 0"
    assert "could not begin" in caplog.text


def test_an_owner_that_raises_at_a_sessions_end_keeps_no_other_from_theirs(run, loop, caplog):
    run = run(Session(1, iter([b"a"])), Session(2, iter([b"b"])))
    run.client._ended = lambda _session: 1 // 0
    for _ in range(2):
        server = run.accept()
        run_until(loop, lambda server=server: echo_once(server))
        server.close()
    run_until(loop, lambda: run.done)
    assert caplog.text.count("Traceback") == 2


def test_a_client_without_sessions_is_done_at_once(run, loop):
    run = run()
    loop.run_once(0)
    assert run.done == 1


def test_a_refused_connection_is_a_failure_that_names_the_address(run, loop):
    (gone,) = listen([LOCALHOST], 0)
    address = (gone.family, gone.getsockname())
    gone.close()
    run = run(Session(1, iter([b"a"])), addresses=[address])
    run_until(loop, lambda: run.done)
    (failure,) = run.client.failures
    assert (failure.phase, failure.error) == ("connect", "ECONNREFUSED")
    assert failure.story == (
        f"connection 1: cannot connect to {LOCALHOST}:{address[1][1]}: connection refused (nothing listens there)"
    )


def test_a_silent_server_is_given_the_timeout_and_no_more(run, loop, clock):
    run = run(Session(1, iter([b"abc"])), timeout=10)
    server = run.accept()
    assert read_exactly(server, loop, 3) == b"abc"
    clock.advance(9.5)
    server.send(b"a")
    settle(loop)
    clock.advance(9.5)
    settle(loop)
    assert not run.done
    clock.advance(1)
    settle(loop)
    assert run.client.failures[0].error == "timeout"
    assert "message 1, offset 1" in run.client.failures[0].story


def test_how_long_a_connection_took_is_noted():
    with EventLoop(clock=itertools.count().__next__) as loop:  # each look at the clock takes a second
        session = Session(1, iter([b"a"]))
        started = Run(loop, session)
        run_until(loop, lambda: started.client.open)
        started.close()
    assert session.connect_seconds > 0


def test_stopping_ends_what_is_connected_without_calling_it_a_failure(run, loop):
    run = run(Session(1, iter([b"a"])))
    run_until(loop, lambda: run.client.open)
    run.client.stop()
    settle(loop)
    assert run.done == 1
    assert run.client.failures == []


def test_stopping_before_a_connection_is_made_ends_the_session(run, loop):
    run = run(Session(1, iter([b"a"])))
    run.client.stop()
    assert run.done == 1
    settle(loop)
    assert not run.client.open


class Attempt:
    """An attempt to connect whose end the test decides."""

    def __init__(self, loop, route, _timeout, connected, failed) -> None:
        self.attempted_at = loop.clock()
        self._route = route
        self.failures = []
        self._connected, self._failed = connected, failed

    def succeed(self) -> None:
        """Connect to a peer that closes at once."""
        sock, peer = small_pair()
        peer.close()
        self._route.learn([], SOMEWHERE[0])
        self._connected(sock, SOMEWHERE[0])

    def fail(self) -> None:
        failures = [(each, OSError(errno.ECONNREFUSED, "Connection refused")) for each in SOMEWHERE]
        self._route.learn(failures)
        self._failed(failures)

    def cancel(self) -> None:
        pass


@pytest.fixture
def attempts(monkeypatch) -> list[Attempt]:
    """The attempts that a client begins, in order."""
    begun: list[Attempt] = []

    def begin(*arguments) -> Attempt:
        begun.append(Attempt(*arguments))
        return begun[-1]

    monkeypatch.setattr("echopair.client.echo.Dial", begin)
    return begun


def crowd(run, loop, *, addresses=None):
    """Start a client with more connections to make than it begins at once."""
    started = run(*(Session(number, iter([])) for number in range(200)), addresses=addresses)
    turn(loop)
    return started


def turn(loop) -> None:
    for _ in range(220):  # an attempt a turn
        loop.run_once(0)


SOMEWHERE = [(socket.AF_INET, (LOCALHOST, 7)), (socket.AF_INET, (LOCALHOST, 8))]


def test_an_attempt_to_connect_begins_a_turn(run, loop, attempts):
    run(*(Session(number, iter([])) for number in range(5)))
    for begun in range(1, 6):
        loop.run_once(0)
        assert len(attempts) == begun


def test_attempts_to_connect_are_few_at_once(run, loop, attempts):
    crowd(run, loop)
    assert len(attempts) == AT_ONCE


def test_attempts_at_once_grow_while_connections_are_made_in_time(run, loop, clock, attempts):
    crowd(run, loop)
    attempts[0].succeed()
    turn(loop)
    assert len(attempts) == 1 + AT_ONCE  # nothing was known yet
    for attempt in attempts[1:11]:
        attempt.succeed()
    turn(loop)
    assert len(attempts) == 11 + AT_ONCE + 10
    for attempt in attempts[11:43]:
        attempt.succeed()  # from the sixteenth on, less than half of the places are taken
    turn(loop)
    assert len(attempts) == 43 + AT_ONCE + 10 + 15
    clock.advance(1.0)
    attempts[43].succeed()  # its SYN was sent twice
    turn(loop)
    for attempt in attempts[44:75]:
        attempt.succeed()
    turn(loop)
    assert len(attempts) == 75 + AT_ONCE


def test_a_failure_ends_the_growth(run, loop, attempts):
    crowd(run, loop)
    for attempt in attempts[:3]:
        attempt.succeed()
        turn(loop)
    assert len(attempts) == 3 + AT_ONCE + 2
    attempts[3].fail()
    turn(loop)
    assert len(attempts) == 3 + AT_ONCE + 2
    attempts[4].fail()
    attempts[5].fail()
    turn(loop)
    assert len(attempts) == 6 + AT_ONCE


def test_where_nobody_answers_all_find_out_at_once(run, loop, attempts):
    crowd(run, loop)
    attempts[0].fail()
    turn(loop)
    assert len(attempts) == 200


@pytest.mark.parametrize("end", [Attempt.succeed, Attempt.fail])
def test_of_several_addresses_the_first_attempt_finds_out(run, loop, attempts, end):
    crowd(run, loop, addresses=SOMEWHERE)
    assert len(attempts) == 1
    end(attempts[0])
    turn(loop)
    assert len(attempts) == (200 if end is Attempt.fail else 1 + AT_ONCE)


def test_a_client_that_is_stopped_forgets_those_who_wait_for_a_place(run, loop, attempts):
    started = crowd(run, loop)
    started.client.stop()
    turn(loop)
    assert started.done == 1
    assert len(started.ended) == 200
    assert len(attempts) == AT_ONCE


def test_a_session_that_is_connected_is_not_stopped_as_if_it_were_not(run, loop):
    run = run(Session(1, iter([b"a"])))
    run_until(loop, lambda: run.client.open)
    assert not run.client.stop_dialling(*run.client.open.values())


# Pipe


class Plumbing:
    """A pipe session between two pipes of the system, with the test as the server."""

    def __init__(self, loop, source: int | None = None, sink: int | None = None, **options) -> None:
        self.loop = loop
        self.source, self.input = os.pipe()
        self.output, self.sink = os.pipe()
        near, self.server = unix_pair()
        self.ended: list[Session] = []
        self.writer = Writer(self.sink if sink is None else sink)
        self.session = Pipe(
            1,
            iter(()),
            ended=self.ended.append,
            source=self.source if source is None else source,
            sink=self.writer.descriptor,
            write=self.writer.write,
            **options,
        )
        self.connection = Connection(loop, near, self.session, "server", max_buffer=100_000)
        self.session.start(self.connection)
        self.open = [self.source, self.input, self.output, self.sink]
        self.owed = b""

    def feed(self, data: memoryview) -> memoryview:
        """Write what the input pipe takes of `data`, and return the rest."""
        with suppress(BlockingIOError):
            return data[os.write(self.input, data[:65536]) :]
        return data

    def echo(self) -> int:
        """Echo what moves without blocking, and return how much that was."""
        sent = 0
        with suppress(BlockingIOError):
            self.owed = self.owed or self.server.recv(65536)
            sent = self.server.send(self.owed)
            self.owed = self.owed[sent:]
        return sent

    def shut(self, descriptor: int) -> None:
        self.open.remove(descriptor)
        os.close(descriptor)

    def serve(self) -> bytes:
        """Echo until the client's EOF, close, and return what was echoed."""
        echoed = bytearray()

        def ended() -> bool:
            with suppress(BlockingIOError):
                data = self.server.recv(10_000)
                self.server.sendall(data)
                echoed.extend(data)
                return not data
            return False

        run_until(self.loop, ended)
        self.server.close()
        return bytes(echoed)

    def close(self) -> None:
        self.connection.abort()
        self.connection.inbound = b""
        self.server.close()
        settle(self.loop)
        self.writer.close()
        for descriptor in self.open:
            os.close(descriptor)


@pytest.fixture
def plumb(loop, request) -> Callable[..., Plumbing]:
    def start(**options) -> Plumbing:
        plumbing = Plumbing(loop, **options)
        request.addfinalizer(plumbing.close)
        return plumbing

    return start


@pytest.mark.parametrize("verify", [FULL, LENGTH, NONE])
def test_input_comes_out_again_and_its_end_half_closes(plumb, loop, verify):
    plumbing = plumb(verify=verify)
    os.write(plumbing.input, b"\0binary\xff\n")
    plumbing.shut(plumbing.input)
    plumbing.serve()
    run_until(loop, lambda: plumbing.ended)
    assert os.read(plumbing.output, 100) == b"\0binary\xff\n"
    assert plumbing.session.failure is None


def test_output_that_nobody_reads_stops_the_reading_and_loses_nothing(plumb, loop):
    plumbing = plumb()
    payload = os.urandom(1_000_000)
    unsent, received = memoryview(payload), bytearray()
    os.set_blocking(plumbing.input, False)
    os.set_blocking(plumbing.output, False)
    idle = 0
    while idle < 50:  # nobody reads our output
        before = len(unsent)
        unsent = plumbing.feed(unsent)
        idle = 0 if plumbing.echo() or len(unsent) < before else idle + 1
        loop.run_once(0)
    assert 100_000 <= len(plumbing.connection.inbound) < 100_000 + 65536
    plumbing.session.silent(10)
    assert plumbing.session.failure is None, "it is we who keep the server waiting"
    while len(received) < len(payload):
        loop.run_once(0)
        with suppress(BlockingIOError):
            received += os.read(plumbing.output, 65536)
        unsent = plumbing.feed(unsent)
        plumbing.echo()
    assert received == payload


def test_a_server_that_takes_nothing_stops_the_reading_of_input(plumb, loop):
    plumbing = plumb()
    os.set_blocking(plumbing.input, False)
    idle = 0
    while idle < 50:
        rest = plumbing.feed(memoryview(bytes(65536)))
        idle = 0 if len(rest) < 65536 else idle + 1
        loop.run_once(0)
    assert plumbing.connection.outbound
    assert len(plumbing.connection.outbound) <= 65536
    plumbing.session.silent(10)
    assert plumbing.session.failure.error == "timeout"


def test_more_than_can_be_compared_is_not_sent(plumb, loop, monkeypatch):
    monkeypatch.setattr("echopair.client.pipe.MAX_OUTSTANDING", 10)
    plumbing = plumb()
    os.write(plumbing.input, b"more than ten bytes")
    run_until(loop, lambda: plumbing.connection.bytes_sent)
    os.write(plumbing.input, b"waits")
    settle(loop)
    assert plumbing.server.recv(100) == b"more than ten bytes"
    assert plumbing.session.place() == "offset 0 with 10 B under way, all that can be compared (see --verify)"
    plumbing.server.send(b"more than ten bytes")
    run_until(loop, lambda: plumbing.connection.bytes_sent > 19)
    assert plumbing.server.recv(100) == b"waits"


def test_waiting_for_the_output_after_the_end_is_not_silence(run, loop, clock):
    reader, writer = os.pipe()
    os.write(writer, bytes(65536))  # full
    source = os.open(os.devnull, os.O_RDONLY)
    run = run(Pipe(1, iter(()), source=source, sink=writer, write=partial(os.write, writer), verify=NONE), timeout=10)
    server = run.accept()
    server.send(b"late")
    server.close()
    run_until(loop, lambda: run.client.open and next(iter(run.client.open)).closed)
    clock.advance(30)
    settle(loop)
    assert not run.done
    assert len(os.read(reader, 65536)) == 65536
    run_until(loop, lambda: run.done)
    assert os.read(reader, 100) == b"late"
    assert run.client.failures == []
    for descriptor in (reader, writer, source):
        os.close(descriptor)


def test_waiting_for_input_is_not_silence(plumb, loop):
    plumbing = plumb()
    plumbing.session.silent(10)
    assert plumbing.session.failure is None
    plumbing.shut(plumbing.input)
    run_until(loop, lambda: plumbing.connection.eof_sent)
    plumbing.session.silent(10)
    assert plumbing.session.failure.phase == "close"


@pytest.mark.parametrize(
    ("reply", "end_of_input", "story"),
    [
        (b"hell", True, "4 of 5 bytes came back before the server closed"),
        (b"hello!", True, "1 byte more came back than was sent"),
        (b"hello", False, "5 of 5 bytes came back before the server closed"),
    ],
)
def test_lengths_are_compared_without_contents(plumb, loop, reply, end_of_input, story):
    plumbing = plumb(verify=LENGTH)
    os.write(plumbing.input, b"hello")
    run_until(loop, lambda: plumbing.connection.bytes_sent == 5)
    if end_of_input:
        plumbing.shut(plumbing.input)
        run_until(loop, lambda: plumbing.connection.eof_sent)
    plumbing.server.send(reply)
    plumbing.server.shutdown(socket.SHUT_WR)
    run_until(loop, lambda: plumbing.ended)
    assert plumbing.session.failure.story == f"connection 1: {story}"
    assert not plumbing.session.outstanding


@pytest.mark.parametrize("verify", [FULL, LENGTH, NONE])
def test_a_failure_names_the_offset_up_to_which_the_stream_came_back(plumb, loop, verify):
    plumbing = plumb(verify=verify)
    os.write(plumbing.input, bytes(3000))
    run_until(loop, lambda: plumbing.connection.bytes_sent == 3000)
    plumbing.server.send(bytes(2400))
    run_until(loop, lambda: plumbing.connection.bytes_received == 2400)
    assert plumbing.session.place() == "offset 2,400"
    reset(plumbing.server)
    run_until(loop, lambda: plumbing.connection.closed)
    run_until(loop, lambda: plumbing.ended)
    assert plumbing.session.failure.story == "connection 1: connection reset by peer at offset 2,400"


@pytest.mark.parametrize("verify", [LENGTH, NONE])
def test_silence_without_contents_tells_how_much_had_come_back(plumb, loop, verify):
    plumbing = plumb(verify=verify)
    os.write(plumbing.input, b"hello")
    plumbing.shut(plumbing.input)
    run_until(loop, lambda: plumbing.connection.eof_sent)
    plumbing.session.silent(10)
    assert plumbing.session.failure.story == "connection 1: nothing moved for 10 s, when 0 of 5 bytes had come back"


def test_a_wrong_echo_is_written_out_and_reported_with_its_offset(plumb, loop):
    plumbing = plumb()
    os.write(plumbing.input, b"hello")
    run_until(loop, lambda: plumbing.connection.bytes_sent == 5)
    plumbing.server.send(b"hellO")
    run_until(loop, lambda: plumbing.ended)
    assert os.read(plumbing.output, 100) == b"hellO"
    assert "connection 1: offset 4: expected 6f, got 4f" in plumbing.session.failure.story


@pytest.mark.parametrize("verify", [FULL, NONE])
def test_a_reader_that_went_away_is_a_failure(plumb, loop, verify):
    plumbing = plumb(verify=verify)
    plumbing.shut(plumbing.output)
    os.write(plumbing.input, b"hello")
    run_until(loop, lambda: plumbing.connection.bytes_sent == 5)
    plumbing.server.send(b"hello")
    run_until(loop, lambda: plumbing.ended)
    assert plumbing.session.failure.story == "connection 1: cannot write standard output: broken pipe"


def test_what_came_before_a_reset_is_still_written(plumb, loop):
    plumbing = plumb()
    os.write(plumbing.input, b"hello")
    run_until(loop, lambda: plumbing.connection.bytes_sent == 5)
    plumbing.server.send(b"hel")
    run_until(loop, lambda: plumbing.connection.bytes_received == 3)
    reset(plumbing.server)
    run_until(loop, lambda: plumbing.ended)
    assert os.read(plumbing.output, 100) == b"hel"
    assert plumbing.session.failure.story.startswith("connection 1: connection reset by peer at offset 3")


def test_regular_files_on_both_sides(plumb, loop, tmp_path):
    payload = os.urandom(300_000)
    (tmp_path / "in").write_bytes(payload)
    source = os.open(tmp_path / "in", os.O_RDONLY)
    sink = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(sink, b"before:")
    plumbing = plumb(source=source, sink=sink)
    plumbing.open += [source, sink]
    assert plumbing.serve() == payload
    run_until(loop, lambda: plumbing.ended)
    assert (tmp_path / "out").read_bytes() == b"before:" + payload
    assert plumbing.session.failure is None


def test_input_that_cannot_be_read_is_a_failure(plumb, loop, tmp_path):
    source = os.open(tmp_path, os.O_RDONLY)
    plumbing = plumb(source=source)
    plumbing.open.append(source)
    run_until(loop, lambda: plumbing.ended)
    assert plumbing.session.failure.story == "connection 1: cannot read standard input: is a directory"


def test_a_sink_that_is_full_most_of_the_time_gets_every_byte(plumb, loop):
    plumbing = plumb()
    payload = os.urandom(200_000)
    feeder = threading.Thread(target=os.write, args=(plumbing.input, payload))
    feeder.start()
    os.set_blocking(plumbing.output, False)
    received = b""
    while len(received) < len(payload):
        plumbing.echo()
        loop.run_once(0)
        with suppress(BlockingIOError):
            received += os.read(plumbing.output, 1000)  # slowly, so that the pipe is full most of the time
    feeder.join()
    assert received == payload


def test_spurious_readiness_of_input_and_output_is_nothing(plumb, loop, monkeypatch):
    plumbing = plumb()
    os.set_blocking(plumbing.source, False)
    plumbing.session._read()
    assert plumbing.session.failure is None
    plumbing.connection.keep(b"x" * 90_000)
    while plumbing.connection.inbound:
        before = len(plumbing.connection.inbound)
        plumbing.session._write()
        if len(plumbing.connection.inbound) == before:
            break
    assert plumbing.connection.inbound, "the pipe holds 64 KiB and then refuses"
    assert plumbing.session.failure is None


def test_input_that_turns_ready_after_the_end_is_left_alone(plumb, loop):
    plumbing = plumb()
    os.write(plumbing.input, b"too late")
    plumbing.connection.abort()
    plumbing.session._read()
    assert plumbing.connection.bytes_sent == 0
