"""The check itself: scripts on the loop, peers, the judging of cases, and what the command tells of them."""

from __future__ import annotations

import io
import itertools
import json
import re
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from xml.etree import ElementTree as Xml

import pytest

from echopair.address import listen
from echopair.check import cases
from echopair.check.cases import CASES
from echopair.check.hint import Path as Way
from echopair.check.hint import Seen, hint
from echopair.check.peer import Failed, Peer
from echopair.check.report import Lines, judged, page
from echopair.check.run import FAILED, PASSED, SKIPPED, STANDARD, Case, Check, Plan, Skipped, sum_of
from echopair.check.script import Script, ready, sleep, together
from echopair.cli import client as command
from echopair.cli.checking import chosen
from echopair.cli.client_options import parse
from echopair.cli.command import INTERRUPTED, OK, TERMINATED, USAGE
from echopair.loop import READ, WRITE, EventLoop
from echopair.server import EchoServer
from helpers import HUNG, LOCALHOST, run_until, settle, small_pair, unix_listener
from test_address import needs_ipv6


def run(loop: EventLoop, body):
    """Run a coroutine to its end, and return its result or raise its error."""
    ends = []
    Script(loop, body, lambda result, error: ends.append((result, error)))
    run_until(loop, lambda: ends)
    ((result, error),) = ends
    if error:
        raise error
    return result


# Scripts


def test_a_script_returns_what_its_coroutine_returns(loop):
    async def body():
        return 7

    assert run(loop, body()) == 7


def test_a_script_ends_with_the_error_of_its_coroutine(loop):
    async def body():
        raise Failed("so")

    with pytest.raises(Failed, match="so"):
        run(loop, body())


def test_sleeping_takes_as_long_as_it_says(loop, clock):
    ends = []
    Script(loop, sleep(loop, 5), lambda *_: ends.append(clock()))
    settle(loop)
    clock.advance(4.9)
    settle(loop)
    assert not ends
    clock.advance(0.2)
    settle(loop)
    assert ends == [1005.1]


def test_readiness_is_waited_for_no_longer_than_one_has_patience(loop, clock):
    near, far = socket.socketpair()
    with near, far:
        assert run(loop, ready(loop, near, WRITE, 1)) == WRITE
        ends = []
        Script(loop, ready(loop, near, READ, 1), lambda found, _: ends.append(found))
        settle(loop)
        clock.advance(1)
        settle(loop)
        assert ends == [0]


def test_those_that_run_together_return_in_their_order(loop):
    async def value(number):
        for _ in range(3 - number):
            await sleep(loop, 0)
        return number

    assert run(loop, together(loop, value(0), value(1), value(2))) == [0, 1, 2]


def test_the_first_that_fails_ends_those_that_run_with_it(loop):
    ended = []

    async def long():
        try:
            await sleep(loop, 1000)
        finally:
            ended.append(True)

    async def failing():
        await sleep(loop, 0)
        raise Failed("so")

    with pytest.raises(Failed, match="so"):
        run(loop, together(loop, long(), failing(), long()))
    assert ended == [True, True]


def test_a_cancelled_script_waits_no_more_and_tells_nobody(loop):
    near, far = socket.socketpair()
    with near, far:
        told = []
        script = Script(loop, together(loop, ready(loop, near, READ, 10), sleep(loop, 10)), lambda *_: told.append(1))
        settle(loop)
        script.cancel()
        settle(loop)
        assert not told  # and the fixture sees that nothing is watched or due


# Peers


@pytest.fixture
def pair(loop):
    near, far = small_pair()
    near.setblocking(False)
    far.settimeout(5)
    doing = []
    with near, far:
        yield Peer(loop, near, 1.0, doing.append), far


def fails(loop, clock, body) -> str:
    ends = []
    Script(loop, body, lambda result, error: ends.append(error))
    settle(loop)
    clock.advance(1.0)
    settle(loop)
    (error,) = ends
    assert isinstance(error, Failed), error
    return str(error)


def test_a_peer_sees_what_comes_back(loop, pair):
    peer, far = pair
    run(loop, peer.send(b"hello"))
    assert far.recv(100) == b"hello"
    far.sendall(b"hello")
    run(loop, peer.expect(b"hello"))
    assert (peer.sent, peer.received) == (5, 5)


@pytest.mark.parametrize(
    ("sent", "got", "seen"),
    [
        (b"0123456789", b"0123X56789", r"byte 5 of the echo is wrong: expected 34 .*, got 58 .*\(one byte changed\)"),
        (b"0123456789abcdef", b"012456789abcdef", r"byte 4 of the echo is wrong: .* \(1 byte lost\)"),
        (b"0123456789", b"01", r"nothing more came for 1.00 s after 2 of 10 bytes sent had come back"),
    ],
)
def test_a_peer_says_what_is_wrong_with_an_echo(loop, clock, pair, sent, got, seen):
    peer, far = pair
    run(loop, peer.send(sent))
    far.sendall(got)
    assert re.fullmatch(seen, fails(loop, clock, peer.expect(sent)))


def test_a_peer_says_where_eof_came(loop, clock, pair):
    peer, far = pair
    far.sendall(b"he")
    far.shutdown(socket.SHUT_WR)
    assert fails(loop, clock, peer.echo(b"hello")) == "EOF after 2 of 5 bytes sent had come back"


def test_a_peer_says_where_a_reset_came(loop, clock, pair):
    peer, far = pair
    run(loop, peer.send(b"hello"))
    far.close()  # with that unread
    with pytest.raises(Failed, match="connection reset by peer after 0 of 5 bytes sent had come back"):
        run(loop, peer.expect(b"hello"))
    with pytest.raises(Failed, match="broken pipe"):
        run(loop, peer.send(b"hello"))
    with pytest.raises(Failed, match="broken pipe"):
        peer.send_urgent(b"!")


def test_a_peer_says_that_nothing_is_taken(loop, clock, pair):
    peer, _ = pair
    taken = run_with_time(loop, clock, peer.send_until_full(bytes(1 << 20)))
    assert 0 < taken < 1 << 20
    assert fails(loop, clock, peer.send(b"more")) == (
        f"nothing more was taken for 1.00 s after 0 of {taken:,} bytes sent had come back"
    )


def run_with_time(loop, clock, body):
    ends = []
    Script(loop, body, lambda result, error: ends.append(result))
    while not ends:
        settle(loop)
        clock.advance(0.1)
    return ends[0]


@pytest.mark.parametrize(("round_trip", "moment"), [(0.01, 0.2), (0.5, 1.5)])
def test_a_peer_waits_longer_for_what_may_not_come_on_a_long_path(loop, pair, round_trip, moment):
    peer, _ = pair
    assert Peer(loop, peer.sock, 1.0, print, deque([round_trip])).moment == moment


def test_a_peer_that_reads_slowly_pauses(loop, clock, pair):
    peer, far = pair
    far.sendall(b"hello!")
    began = clock()
    run_with_time(loop, clock, peer.expect_slowly(b"hello!", 2, 1.0))
    assert clock() - began >= 3.0


def test_a_peer_hears_noise(loop, clock, pair):
    peer, far = pair
    run_with_time(loop, clock, peer.expect_silence())
    far.sendall(b"hello")
    assert fails(loop, clock, peer.expect_silence()) == "5 bytes came that nobody had sent: 68 65 6c 6c 6f"


def test_a_peer_reads_eof_and_nothing_before_it(loop, clock, pair):
    peer, far = pair
    assert fails(loop, clock, peer.expect_eof()) == "no EOF came back within 1.00 s of ours"
    far.sendall(b"x")
    assert fails(loop, clock, peer.expect_eof()) == "1 byte more came back than was sent: 78"
    far.shutdown(socket.SHUT_WR)
    run(loop, peer.expect_eof())
    peer.send_eof()
    assert far.recv(10) == b""


def test_bytes_that_may_or_may_not_come_back_count_neither_way(loop, clock, pair):
    peer, far = pair
    peer.ignored = b"!"
    run(loop, peer.send(b"hello"))
    far.sendall(b"he!llo")
    run(loop, peer.expect(b"hello"))
    assert peer.received == 5
    far.sendall(b"!")
    assert fails(loop, clock, peer.expect_eof()) == "no EOF came back within 1.00 s of ours"


def test_a_peer_that_is_reset_before_its_eof_says_so(loop, clock, pair):
    peer, _ = pair
    peer.close()
    peer.close()
    with pytest.raises(Failed, match="before our EOF"):
        peer.send_eof()


def test_options_that_a_system_refuses_are_an_end(loop, pair, monkeypatch):
    peer, _ = pair
    peer.close()
    with pytest.raises(Failed, match="bad file descriptor after 0 of 0 bytes"):
        peer.buffer(1000)


def test_what_is_sent_apart_and_not_taken_is_an_end(loop, clock, pair):
    peer, _ = pair
    run_with_time(loop, clock, peer.send_until_full(bytes(1 << 20)))
    with pytest.raises(Failed, match="not even a byte was taken"):
        peer.send_apart(bytes(1 << 20))


def test_waking_up_for_nothing_is_no_end(loop, pair, monkeypatch):
    peer, far = pair

    class Busy:
        """A socket that first would block."""

        def __init__(self, sock):
            self.sock, self.calls = sock, 0

        def fileno(self):
            return self.sock.fileno()

        def __getattr__(self, name):
            self.calls += 1
            if self.calls <= 2:
                raise BlockingIOError
            return getattr(self.sock, name)

    peer.sock = Busy(peer.sock)
    far.sendall(b"hello")
    run(loop, peer.exchange(b"hello", b"hello"))


# Judging


@pytest.fixture
def server(loop):
    server = EchoServer(loop, [unix_listener()])
    yield server
    server.close()
    settle(loop)


def outcomes(loop, clock, addresses, *bodies, step=0.05, **options):
    """Return what became of cases, while the clock moves by `step` as often as it takes: 0 where they are quick."""
    told, done = [], []
    some = [Case(body.__name__, "it", "that", body) for body in bodies]
    options = {"patience": 1.0, **options}
    check = Check(loop, addresses, some, told=told.append, done=lambda: done.append(1), **options)
    while step and not done:
        settle(loop)
        clock.advance(step)
    run_until(loop, lambda: done)
    return check, {outcome.case.name: (outcome.status, outcome.seen) for outcome in told}


async def good(check):
    await (await check.connect()).echo(check.text(10))


def test_cases_are_judged_one_after_the_other(loop, clock, server):
    async def bad(check):
        raise Failed("so")

    async def elsewhere(check):
        raise Skipped("not here")

    async def late(check):
        peer = await check.connect()
        await peer.echo(b"hello")
        await check.together(sleep(loop, 1000), sleep(loop, 1000))

    _, told = outcomes(loop, clock, server.addresses, good, bad, elsewhere, late, good)
    assert told == {
        "good": (PASSED, ""),
        "bad": (FAILED, "so"),
        "elsewhere": (SKIPPED, "not here"),
        "late": (FAILED, f"not done within {STANDARD.limit:.1f} s: 0 of 5 bytes sent had come back (0.5 B/s)"),
    }


def test_what_cannot_be_reached_any_more_is_skipped(loop, clock, server):
    async def kills(check):
        await check.connect()
        server.close()
        raise Failed("it died")

    _, told = outcomes(loop, clock, server.addresses, good, kills, good.__class__(good.__code__, globals(), "after"))
    assert told["kills"] == (FAILED, "it died")
    assert told["after"][0] == SKIPPED
    assert "connection refused" in told["after"][1]


def test_what_never_could_be_reached_fails_once(loop, clock, server):
    server.close()
    _, told = outcomes(loop, clock, server.addresses, good, good.__class__(good.__code__, globals(), "after"))
    assert list(told) == ["good"]
    assert told["good"][0] == FAILED


@needs_ipv6
def test_each_family_of_a_name_has_to_be_served(loop, clock):
    both = EchoServer(loop, listen([LOCALHOST, "::1"], 0))
    addresses = both.addresses
    assert outcomes(loop, clock, addresses, cases.both_families, step=0)[1]["both_families"] == (PASSED, "")
    status, seen = outcomes(loop, clock, addresses[:1], cases.both_families, step=0)[1]["both_families"]
    assert (status, seen) == (SKIPPED, "there are addresses of IPv4 only")
    both.close()
    settle(loop)
    one = EchoServer(loop, listen([LOCALHOST], addresses[0][1][1]))
    status, seen = outcomes(loop, clock, addresses, good, cases.both_families, step=0)[1]["both_families"]
    assert status == FAILED
    assert re.fullmatch(r"cannot connect to \[::1\]:\d+: connection refused \(nothing listens there\)", seen)
    one.close()
    settle(loop)


def test_a_family_that_echoes_wrongly_is_named(loop, clock):
    class Wrong(EchoServer):
        def data_received(self, connection, data):
            connection.send(data.swapcase())

    server = Wrong(loop, [unix_listener()])
    (address,) = server.addresses
    addresses = [address, (socket.AF_INET6, address[1])]  # the second is never come to
    status, seen = outcomes(loop, clock, addresses, cases.both_families)[1]["both_families"]
    assert (status, seen.split(": ")[0]) == (FAILED, str(address[1]))
    server.close()
    settle(loop)


def test_a_neighbour_that_is_served_late_is_noticed(loop, clock):
    class Late(EchoServer):
        def data_received(self, connection, data):
            loop.call_later(1.5, lambda: connection.send(data))

    server = Late(loop, [unix_listener()])
    _, told = outcomes(loop, clock, server.addresses, cases.slow_neighbour, patience=5.0)
    status, seen = told["slow_neighbour"]
    assert status == FAILED
    assert re.fullmatch(r"an echo to another peer took 1\.\d+ s meanwhile", seen)
    server.close()
    settle(loop)


def test_a_bug_in_a_case_is_told_and_the_rest_is_run(loop, clock, server, caplog):
    async def buggy(check):
        raise ZeroDivisionError

    _, told = outcomes(loop, clock, server.addresses, buggy, good)
    assert told == {"buggy": (FAILED, "a bug in the check itself: ZeroDivisionError()"), "good": (PASSED, "")}
    assert "a case of the check has a bug" in caplog.text


def test_a_server_that_dies_between_two_cases_fails_the_one_that_finds_out(loop, clock, server):
    async def last(check):
        await good(check)
        server.close()

    async def after(check):
        await good(check)

    async def later(check):
        await good(check)

    async def elsewhere(check):
        raise Skipped("not here")

    _, told = outcomes(loop, clock, server.addresses, last, elsewhere, after, elsewhere, later)
    assert told["last"] == (PASSED, "")
    assert told["after"][0] == FAILED
    assert told["after"][1].endswith("the case before, last, was the last that was served")
    assert told["later"][0] == SKIPPED


def test_a_case_that_is_not_connected_yet_has_the_whole_time_for_that(loop, clock, deaf):
    told = []
    case = Case("good", "", "", good)
    Check(loop, [deaf], [case], told=told.append, done=lambda: None, patience=1.0, connect_timeout=15.0)
    for _ in range(16):  # longer than a case may take
        settle(loop)
        clock.advance(1.0)
    settle(loop)
    assert [outcome.seen.partition(": ")[2] for outcome in told] == ["no answer within 15 s"]


def test_on_a_long_path_fewer_rounds_are_made(loop, clock):
    check = Check(loop, [], [], told=print, done=lambda: None, patience=1.0)
    assert len(list(check.rounds(60))) == 60
    assert len([clock.advance(0.1) for _ in check.rounds(60)]) == 30
    assert len([clock.advance(10.0) for _ in check.rounds(60)]) == 5
    settle(loop)


def test_a_round_trip_is_that_of_an_echo_and_not_of_a_connection(loop, clock):
    """As behind a proxy that is near, whose backend is far; connecting takes no time here."""

    class Far(EchoServer):
        def data_received(self, connection, data):
            loop.call_later(0.2, lambda: connection.send(data))

    server = Far(loop, [unix_listener()])
    bodies = cases.basic, cases.byte_by_byte, cases.first_echo
    check, told = outcomes(loop, clock, server.addresses, *bodies)
    assert [status for status, _ in told.values()] == [PASSED] * 3
    assert check.connecting < 0.1
    assert 0.2 <= check.round_trip < 0.4
    server.close()
    settle(loop)


def test_a_case_on_a_long_path_is_given_the_time_of_its_round_trips(loop, clock):
    class Far(EchoServer):
        def data_received(self, connection, data):
            loop.call_later(0.2, lambda: connection.send(data))

    async def sixty_rounds(check):
        peer = await check.connect()
        for _ in range(60):
            await peer.echo(check.text(10))

    server = Far(loop, [unix_listener()])
    began = clock()
    _, told = outcomes(loop, clock, server.addresses, cases.basic, sixty_rounds)
    assert told["sixty_rounds"] == (PASSED, "")
    assert clock() - began > STANDARD.limit
    server.close()
    settle(loop)


def test_what_a_case_sleeps_does_not_count_as_late(loop, clock, server):
    async def sleepy(check):
        await check.sleep(3 * STANDARD.limit)
        await good(check)

    assert outcomes(loop, clock, server.addresses, sleepy)[1] == {"sleepy": (PASSED, "")}


def test_a_sender_that_backs_off_while_nothing_is_read_is_waited_for(loop, clock, server):
    async def patient(check):
        peer = await check.connect()
        await check.leave_unread(peer)
        assert peer.patience == 1.0 + STANDARD.unread

    assert outcomes(loop, clock, server.addresses, patient)[1] == {"patient": (PASSED, "")}


def test_what_takes_too_long_on_a_slow_path_ends_without_a_verdict(loop, clock, server):
    plan = Plan(enough=0.0)
    _, told = outcomes(loop, clock, server.addresses, cases.volume, cases.crowd, cases.back_pressure, plan=plan)
    assert [status for status, _ in told.values()] == [SKIPPED] * 2 + [PASSED]
    assert told["volume"][1] == "only 1.00 MiB of 64.0 MiB came back within 0 s"
    assert told["crowd"][1] == "only 10 of 1,000 connections were made within 0 s"


@pytest.mark.parametrize(("takes", "status"), [(True, FAILED), (False, PASSED)])
def test_no_back_pressure_is_that_all_is_taken(loop, clock, takes, status):
    """A service that ends a connection instead has a limit, too."""

    class Server(EchoServer):
        def data_received(self, connection, data):
            if not takes:
                connection.abort()

    server = Server(loop, [unix_listener()])
    plan = Plan(hoard=2**21)
    assert outcomes(loop, clock, server.addresses, cases.back_pressure, plan=plan)[1]["back_pressure"][0] == status
    plan = Plan(enough=0.0)
    assert outcomes(loop, clock, server.addresses, cases.back_pressure, plan=plan)[1]["back_pressure"][0] == (
        SKIPPED if takes else PASSED
    )
    server.close()
    settle(loop)


@pytest.mark.parametrize(("delays", "status"), [([0.1], FAILED), ([0.1, 0.4], PASSED)])
def test_answers_are_held_back_if_that_takes_as_long_each_time(loop, clock, delays, status):
    """What a busy machine does to them does not."""

    class Late(EchoServer):
        def data_received(self, connection, data):
            delay = next(each) if len(data) > 1 else 0
            loop.call_later(delay, lambda: connection.send(data))

    each = itertools.cycle(delays)
    server = Late(loop, [unix_listener()])
    assert outcomes(loop, clock, server.addresses, cases.latency, step=0.01)[1]["latency"][0] == status
    server.close()
    settle(loop)


class Odd(EchoServer):
    """Answers with what `answer` makes of what has come."""

    answer: Callable[[bytes], bytes]

    def data_received(self, connection, data):
        connection.send(self.answer(data))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda data: b"", "a service that answers nothing"),
        (lambda data: data[:50], ""),
        (lambda data: data if data == b"\n" else b"", "the service answers line by line"),
        (lambda data: b"HTTP/1.0 400 Bad Request\r\n", "an HTTP server listens there"),
        (lambda data: b"HTTP/1.0 400 Bad Request\r\n" if data == b"\n" else b"", "an HTTP server listens there"),
        (lambda data: b"\x15\x03\x03\0\2\2\x32" if data[:1] == b"\x16" else b"", "a TLS server listens there"),
        (lambda data: data if data[:1] == b"\x16" else b"", "a service that answers nothing"),
        (lambda data: b"You said: " + data, 'the service adds words of its own: "You said: "'),
    ],
)
def test_where_basic_fails_only_what_needs_no_echo_is_tried_and_what_was_seen_is_explained(loop, clock, answer, says):
    server = Odd(loop, [unix_listener()])
    server.answer = answer
    told, done, began = [], [], clock()
    check = Check(loop, server.addresses, CASES, told=told.append, done=lambda: done.append(1), patience=3.0)
    while not done:
        settle(loop)
        clock.advance(0.05)
    basic, *others = told
    assert basic.status == FAILED
    assert basic.usually.startswith(says or next(case.usually for case in CASES))
    assert [(each.case.name, each.status) for each in others] == [("silent", PASSED), ("fin-alone", PASSED)]
    assert check.reason == "basic failed, and the other cases need what it tests"
    assert clock() - began < 15
    server.close()
    settle(loop)


def test_a_service_that_answers_at_eof_is_known_by_that(loop, clock):
    class Whole(EchoServer):
        def data_received(self, connection, data):
            pass

        def eof_received(self, connection):
            connection.send(b"hello")
            super().eof_received(connection)

    server = Whole(loop, [unix_listener()])
    told = []
    check = Check(loop, server.addresses, CASES[:1], told=told.append, done=list, patience=1.0)
    while not told:
        settle(loop)
        clock.advance(0.05)
    assert told[0].usually == "the service answers only at EOF, when it has everything"
    assert not check.reason  # nothing was left out
    settle(loop)
    server.close()
    settle(loop)


@pytest.mark.parametrize(("alert", "says"), [(b"\x15\x03\x03\0\2\2\x32", "a TLS server"), (b"", "an access list")])
def test_a_service_that_ends_a_connection_without_a_word_is_asked_for_tls(loop, clock, alert, says):
    class Terse(EchoServer):
        def data_received(self, connection, data):
            if data[:1] == b"\x16":
                connection.send(alert)
            connection.close()

    server = Terse(loop, [unix_listener()])
    told = []
    Check(loop, server.addresses, CASES[:1], told=told.append, done=list, patience=1.0)
    run_until(loop, lambda: told)
    assert told[0].usually.startswith(says)
    settle(loop)
    server.close()
    settle(loop)


@pytest.mark.parametrize(
    ("served", "silent", "told"),
    [
        (7, False, "7 of 50 connections were served; on another one: EOF after 0 of 10 bytes sent had come back"),
        (7, True, "7 of 50 connections were served; on another one: nothing more came for 1.00 s after 0 of 10 bytes"),
        (0, True, "nothing more came for 1.00 s after 0 of 10 bytes"),
    ],
)
def test_how_many_connections_are_served_is_counted(loop, clock, served, silent, told):
    class Limited(EchoServer):
        def data_received(self, connection, data):
            numbers.setdefault(connection, len(numbers))
            if numbers[connection] < served:
                connection.send(data)
            elif not silent:
                connection.close()

    numbers = {}
    server = Limited(loop, [unix_listener()])
    status, seen = outcomes(loop, clock, server.addresses, cases.many)[1]["many"]
    assert status == FAILED
    assert seen.startswith(told)
    server.close()
    settle(loop)


# Hints

MTU = Way(lost=3, segments=9, unanswered=3, segment_bytes=1448, out_of_order=0, large=True)
LOSS = Way(lost=2, segments=412, unanswered=0, segment_bytes=1448, out_of_order=0, large=False)
TEXT = b"0123456789abcdef"


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (Seen(), ""),
        (Seen(TEXT, TEXT, echoed=True), ""),
        (Seen(TEXT, b"HTTP/1.1 400 Bad Request\r\n"), "an HTTP server"),
        (Seen(TEXT, b"<html>"), "an HTTP server"),
        (Seen(b"HTTP/1.1", b"HTTP/1."), ""),  # is an echo
        (Seen(TEXT, b"\x15\x03\x03\0\2\2\x46", ended=True), "a TLS server listens there: it answered with an alert"),
        (Seen(TEXT, b"\x16\x03\x03\0"), "a TLS server listens there: it answered with a handshake"),
        (Seen(TEXT, b"PROXY TCP4 10.0.0.1 10.0.0.2 4000 7\r\n" + TEXT), "a proxy sends a PROXY protocol header"),
        (Seen(TEXT, b"\r\n\r\n\0\r\nQUIT\n\x21\x11"), "a proxy sends a PROXY protocol header"),
        (Seen(greeting=b"SSH-2.0-OpenSSH_9.6\r\n"), "an SSH server"),
        (Seen(greeting=b"220 mail.example ESMTP\r\n"), "a mail or FTP server"),
        (Seen(greeting=b"* OK IMAP4rev1 ready\r\n"), "a mail server"),
        (Seen(TEXT, b"-ERR unknown command\r\n"), "a server that reads commands"),
        (Seen(greeting=b"\xff\xfd\x18\xff\xfb\x01"), "a Telnet server"),
        (Seen(TEXT, b"Python 3.11\r\n>>> "), "an interpreter or a shell listens there, with a prompt"),
        (Seen(greeting=b"login: "), "an interpreter or a shell listens there, with a prompt"),
        (Seen(b"is it?", b"is it?"), ""),
        (Seen(greeting=b"Welcome\r\n"), 'the service, or a proxy, speaks first: "Welcome\\r\\n"'),
        (Seen(TEXT + TEXT[::-1], TEXT + b"\r\n" + TEXT[::-1]), "the service answers in lines"),
        (Seen(TEXT + TEXT[::-1], TEXT + TEXT), "bytes come back twice"),
        (Seen(TEXT, b"Echo: " + TEXT), 'the service adds words of its own: "Echo: "'),
        (Seen(TEXT, TEXT.upper()), "the service changes letters"),
        (Seen(TEXT, TEXT[::-1]), ""),
        (Seen(b"01", b"10"), ""),
        (Seen(TEXT, ended=True), "an access list, a proxy without a backend"),
        (Seen(TEXT, TEXT, ended=True), "the service ends a connection after one answer"),
        (Seen(TEXT, ended=True, echoed=True), ""),
        (Seen(ended=True, served=10, tried=50), "a limit on the connections of one client, or of all: 10 at once"),
        (Seen(late=True, served=1, tried=50), "the server serves one connection at a time"),
        (Seen(late=True, served=4, tried=50), "the server serves 4 connections at a time"),
        (Seen(late=True, served=49, tried=50, path=LOSS), "the path loses packets: 2 of 412 segments"),
        (
            Seen(TEXT, late=True, path=MTU, echoed=True),
            "small messages pass, segments of 1,448 bytes are retransmitted",
        ),
        (Seen(TEXT, late=True, path=MTU), "the path drops what we send"),
        (Seen(TEXT, b"x", path=MTU, echoed=True), ""),  # wrong bytes are nothing that a path causes
        (
            Seen(late=True, path=Way(0, 9, 0, 1448, 5, False)),
            "packets are lost or overtaken on the way back: 5 segments",
        ),
        (Seen(late=True, path=Way(0, 9, 0, 1448, 0, False), echoed=True), ""),
        (Seen(TEXT, late=True, answers_to="newline"), "the service answers line by line"),
        (Seen(TEXT, late=True, answers_to="EOF"), "the service answers only at EOF"),
        (Seen(far=True, late=True, echoed=True), "a proxy is near and its backend far"),
        (Seen(TEXT, late=True), "a service that answers nothing"),
        (Seen(late=True), ""),
    ],
)
def test_a_hint_fits_what_was_seen(seen, says):
    assert hint(seen).startswith(says)
    assert bool(hint(seen)) == bool(says)


def test_what_several_connections_know_of_their_way_is_added_up():
    assert sum_of([MTU, LOSS]) == Way(5, 421, 3, 1448, 0, True)
    assert not sum_of([LOSS, LOSS]).large


def test_stopping_leaves_nothing_behind(loop, clock, server):
    async def long(check):
        await check.connect()
        await check.sleep(1000)

    done = []
    check = Check(
        loop,
        server.addresses,
        [Case("long", "", "", long)],
        told=done.append,
        done=lambda: done.append(1),
        patience=1.0,
    )
    run_until(loop, lambda: server.connections)
    check.stop()
    settle(loop)
    assert done == [1]
    check.stop()


def test_texts_are_all_different_and_survive_terminals():
    with EventLoop() as loop:
        check = Check(loop, [], [], told=print, done=lambda: None, patience=1.0)
        texts = [check.text(50) for _ in range(100)]
        assert len(set(texts)) == 100
        assert all(re.fullmatch(rb"[A-Za-z0-9_-]{50}", text) for text in texts)


def test_names_of_cases_are_unlike_and_each_says_what_it_proves():
    assert len({case.name for case in CASES}) == len(CASES) > 15
    assert all(case.proves and case.usually and re.fullmatch(r"[a-z-]+", case.name) for case in CASES)


# The command

QUICK = ("--check-only", "basic", "--check-only", "every-byte")


def test_the_command_tells_tap(capsys):
    assert command.main(["--loopback", *QUICK]) == OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["TAP version 13", "1..2"]
    assert re.fullmatch(r"ok      1 - basic +\S+ \wm?s  What is sent comes back", lines[2])
    assert re.fullmatch(r"# 2 of 2 cases passed, in \S+ \wm?s: itself \(--loopback\)", lines[4])


def test_the_list_of_cases(capsys):
    assert command.main(["--check-list"]) == OK
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == [case.name for case in CASES]
    assert [case.name for case in CASES if case.thorough] == [
        line.split()[0] for line in out.splitlines() if line.endswith(" (--thorough)")
    ]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], [case.name for case in CASES if not case.thorough]),
        (["--thorough"], [case.name for case in CASES]),
        (["--check-only", "life,basic"], ["basic", "life"]),
        (["--check-only", "life,basic", "--check-skip", "life"], ["basic"]),
        (["--thorough", "--check-skip", "life", "--check-skip", "idle,crowd"], None),
    ],
)
def test_which_cases_are_tried(options, names):
    expected = names or [case.name for case in CASES if case.name not in ("life", "idle", "crowd")]
    assert [case.name for case in chosen(parse(["--check", *options]))] == expected


def test_a_thorough_check_takes_longer(monkeypatch, capsys):
    plans = []

    def check(loop, *_, plan, done, **__):
        plans.append(plan)
        loop.call_soon(done)
        return SimpleNamespace(reason="")

    monkeypatch.setattr("echopair.cli.checking.Check", check)
    command.main(["--loopback", "--check", "--json"])
    command.main(["--loopback", "--thorough", "--json"])
    usual, thorough = plans
    assert thorough.idle > usual.idle
    assert thorough.unread > 3 > usual.unread > 1  # timeouts that services have
    assert [json.loads(line)["thorough"] for line in capsys.readouterr().out.splitlines()] == [False, True]


@pytest.fixture
def wrong():
    """A server that is right for `basic`, wrong for `every-byte`, and gone after that."""
    listener = socket.create_server((LOCALHOST, 0))

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            while data := sock.recv(65536):
                sock.sendall(data)
        sock, _ = listener.accept()
        listener.close()
        with sock:
            sock.sendall(sock.recv(65536).swapcase())

    thread = threading.Thread(target=serve)
    thread.start()
    yield "{}:{}".format(*listener.getsockname())
    thread.join()


WRONG = (*QUICK, "--check-only", "burst")


class Terminal(io.StringIO):
    """Standard output for people."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch, *arguments: str, encoding: str = "utf-8", **environment: str) -> str:
    screen = Terminal()
    screen.encoding = encoding
    for name, value in {"TERM": "xterm", "COLUMNS": "60", "NO_COLOR": "1", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", screen)
    command.main(arguments)
    return screen.getvalue()


def test_failures_are_told_with_what_was_seen_and_why(wrong, capsys):
    assert command.main([wrong, *WRONG]) == 1
    out = capsys.readouterr().out
    assert re.search(r"not ok  2 - every-byte .*\n  ---\n  seen: >\n    byte 66 of the echo is wrong:.*", out)
    assert "  usually: >\n    the service changes letters to upper or lower case" in out
    assert re.search(r"ok      3 - burst .* # SKIP cannot connect to .*connection refused", out)
    assert "# 1 of 3 cases passed, 1 failed, 1 skipped, in" in out


def test_people_get_a_mark_a_case_and_the_story_of_what_failed(wrong, monkeypatch):
    lines = on_a_terminal(monkeypatch, wrong, *WRONG).split("\n")
    assert lines[0].startswith("    basic ...\r\x1b[K  ✓ basic")  # drawn while it ran, then over
    shown = [line.rpartition("\x1b[K")[2] for line in lines]
    assert [line[2:3] for line in shown if line[2:3].strip()] == ["✓", "✗", "\N{EN DASH}", "✗"]
    story = " ".join(line.strip() for line in shown[2:])
    assert story.startswith("All 256 values of a byte come back as they are. seen     byte 66 of the echo is wrong")
    assert "usually  the service changes letters to upper or lower case" in story
    assert "What is sent comes back" not in story  # which passed
    assert "✗ 1 of 3 cases failed: every-byte 1 of 3 cases passed, 1 failed, 1 skipped, in" in story
    assert all(len(line) < 60 for line in shown)


def test_colour_repeats_what_the_marks_say(wrong, monkeypatch):
    shown = on_a_terminal(monkeypatch, wrong, *QUICK, NO_COLOR="")
    assert "\x1b[32m✓\x1b[m basic" in shown
    assert "\x1b[1;31m✗\x1b[m every-byte" in shown


def test_a_poor_terminal_gets_what_it_can_show(monkeypatch):
    shown = on_a_terminal(monkeypatch, "--loopback", *QUICK, encoding="ascii", TERM="dumb")
    assert shown.isascii()
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert re.match(r"  ok basic  ", shown)
    assert "\n  ok Every case passed\n" in shown


def test_a_terminal_gets_tap_if_it_wants_that(monkeypatch):
    assert on_a_terminal(monkeypatch, "--loopback", "--tap", *QUICK).startswith("TAP version 13\n1..2\n")


def entry(name: str, status: str, seen: str | None = None) -> dict:
    return {"name": name, "proves": "It <works>", "status": status, "seen": seen, "usually": seen, "duration_s": 0.1}


DOCUMENT = {
    "program": "echo-client --check",
    "version": "1.0",
    "target": "<host>:7",
    "started_at": "2026-01-31T12:00:00.000Z",
    "duration_s": 1.5,
    "checks": [entry("basic", FAILED, "<nothing>"), entry("silent", PASSED), entry("idle", SKIPPED, "not here")],
    "not_run": ["burst"],
    "reason": "basic failed",
}


@pytest.mark.parametrize(
    ("changes", "status", "sentence"),
    [
        ({}, FAILED, "1 of 4 cases failed: basic"),
        ({"checks": [entry("basic", PASSED)]}, SKIPPED, "Not all was checked: basic failed"),
        ({"checks": [], "reason": None}, SKIPPED, "Not all was checked: no service answered"),
        ({"checks": [entry("basic", PASSED)], "not_run": []}, PASSED, "Every case passed"),
        ({"checks": [entry("idle", SKIPPED)], "not_run": []}, PASSED, "Nothing applied"),
    ],
)
def test_the_verdict_on_a_check(changes, status, sentence):
    assert judged(DOCUMENT | changes) == (status, sentence)


def test_the_page_of_a_check_is_whole_and_escapes_what_is_not_ours():
    html = page(DOCUMENT)
    Xml.fromstring(re.sub(r"<meta[^>]*>|<!DOCTYPE html>|<br>", "", html))
    assert "<host>" not in html
    assert "<nothing>" not in html
    for text in ("1 of 4 cases failed: basic", "&lt;nothing&gt;", "burst", "basic failed", "not here"):
        assert text in html


def test_why_cases_were_left_out_is_told_to_people_too():
    lines = Lines(CASES, width=80, colour=False, encoding="utf-8")
    assert "(basic failed)" in lines.end(DOCUMENT)


def test_the_outcome_as_json_for_junit_and_in_files(wrong, capsys, tmp_path):
    xml, output, report = (tmp_path / name for name in ("outcome.xml", "outcome.json", "outcome.html"))
    files = ["--junit", str(xml), "-o", str(output), "--report", str(report)]
    assert command.main([wrong, *WRONG, "--json", *files]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["program"], document["target"], document["exit_status"]) == ("echo-client --check", wrong, 1)
    assert [(each["name"], each["status"]) for each in document["checks"]] == [
        ("basic", "passed"),
        ("every-byte", "failed"),
        ("burst", "skipped"),
    ]
    assert json.loads(output.read_text()) == document
    assert report.read_text() == page(document)
    suite = Xml.parse(xml).getroot()
    assert suite.attrib["failures"] == "1"
    assert suite.attrib["skipped"] == "1"
    assert [case.attrib["name"] for case in suite] == ["basic", "every-byte", "burst"]
    assert suite[1][0].attrib["message"] == document["checks"][1]["seen"]
    assert suite[2][0].tag == "skipped"


def test_a_pass_for_junit(capsys, tmp_path):
    path = tmp_path / "outcome.xml"
    assert command.main(["--loopback", *QUICK, "--junit", str(path)]) == OK
    suite = Xml.parse(path).getroot()
    assert [len(case) for case in suite] == [0, 0]
    assert (suite.attrib["tests"], suite.attrib["failures"]) == ("2", "0")


def test_a_check_that_nobody_reads_ends_at_once():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "echopair", "client", "--loopback", "--check"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=HUNG,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "echo-client: cannot write to standard output: no space left on device\n"


def test_what_was_not_run_is_an_error_for_junit_even_if_nothing_could_be(capsys, tmp_path):
    path = tmp_path / "outcome.xml"
    assert command.main(["--host", "no.such.name.invalid\x01", *QUICK, "--junit", str(path)]) == 1
    out, err = capsys.readouterr()
    reason = err.removeprefix("echo-client: ").rstrip()
    assert "cannot resolve" in reason
    assert f"Bail out! {reason}" in out
    suite = Xml.parse(path).getroot()
    assert (suite.attrib["tests"], suite.attrib["errors"]) == ("2", "2")
    assert [case[0].attrib["message"] for case in suite] == ["not run: " + reason] * 2


def test_the_status_in_the_document_is_that_of_the_process(capsys):
    assert command.main(["--loopback", *QUICK, "--json", "--junit", "/dev/full"]) == 1
    assert json.loads(capsys.readouterr().out)["exit_status"] == 1


@pytest.mark.parametrize(("options", "patience"), [([], "3.00 s"), (["--timeout", "10s"], "10.0 s")])
def test_a_check_is_patient_for_as_long_as_it_says(monkeypatch, options, patience):
    patiences = []

    def check(loop, *_, patience, done, **__):
        patiences.append(patience)
        loop.call_soon(done)
        return SimpleNamespace(reason="")

    monkeypatch.setattr("echopair.cli.checking.Check", check)
    command.main(["--loopback", "--check", "--json", *options])
    assert [f"{each:.2f}"[:4] + " s" for each in patiences] == [patience]


def test_a_terminal_that_says_that_it_has_no_columns_is_no_reason_to_fail(wrong, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    assert command.main([wrong, *QUICK]) == 1
    assert "not ok" in capsys.readouterr().out


def test_nobody_there_is_one_failure_and_the_rest_is_not_run(capsys):
    with socket.socket() as nobody:
        nobody.bind((LOCALHOST, 0))
        assert command.main([f"{LOCALHOST}:{nobody.getsockname()[1]}", *QUICK]) == 1
    out = capsys.readouterr().out
    assert "cannot connect to" in out
    assert "usually" not in out
    assert "# 0 of 2 cases passed, 1 failed, 1 not run, in" in out


@pytest.mark.parametrize("json_", [True, False])
def test_a_name_without_an_address_is_one_line(capsys, json_):
    assert command.main(["no.such.name.invalid:7", *QUICK, *["--json"] * json_]) == 1
    out, err = capsys.readouterr()
    assert "cannot resolve 'no.such.name.invalid'" in err
    assert err.count("\n") == 1
    if json_:
        assert json.loads(out)["checks"] == []


@pytest.mark.parametrize(("signum", "status"), [(2, INTERRUPTED), (15, TERMINATED)])
def test_a_signal_ends_the_check_and_what_is_known_is_told(capsys, monkeypatch, signum, status):
    import signal

    async def interrupt(check):
        signal.raise_signal(signum)
        await check.sleep(1000)

    some = [Case("good", "", "", good), Case("interrupt", "", "", interrupt), Case("after", "", "", good)]
    monkeypatch.setattr("echopair.cli.checking.CASES", some)
    assert command.main(["--loopback", "--check", "--json"]) == status
    document = json.loads(capsys.readouterr().out)
    assert document["exit_status"] == status
    assert [each["name"] for each in document["checks"]] == ["good"]
    assert (document["not_run"], document["reason"]) == (["interrupt", "after"], "interrupted")


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--check-only", "half-closed"], "there is no case 'half-closed' (did you mean half-close?)"),
        (["--check-skip", "bulk"], "--check-skip: there is no case 'bulk' (--check-list lists them)"),
        (["--check-skip", "fin-alon"], "--check-skip: there is no case 'fin-alon' (did you mean fin-alone?)"),
        (["--check-only", "basic", "--check-skip", "basic"], "--check-skip leaves no case to try"),
        (["--check-only", "basic,zzz"], "there is no case 'zzz' (--check-list lists them)"),
        (["--check", "-n", "5"], "--check says itself what is sent: leave out -n"),
        (["--check", "-m", "hi", "-c", "2", "-"], "leave out -m, -, -c"),
        (["--check", "-w", "2", "--verify", "none"], "leave out -w, --verify"),
        (["--check", "--all-addresses"], "leave out --all-addresses"),
        (["--check", "--junit", "/nowhere/file"], "--junit: cannot write /nowhere/file"),
    ],
)
def test_what_makes_no_sense_with_a_check_is_usage(capsys, argv, complaint):
    assert command.main(argv) == USAGE
    assert complaint in capsys.readouterr().err
