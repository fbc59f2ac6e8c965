"""A server that misbehaves on request: each fault does what it says, alone and with others, and nothing else."""

from __future__ import annotations

import errno
import math
import socket
import sys
from contextlib import suppress
from random import Random

import pytest

from echopair.address import listen
from echopair.cli import options
from echopair.cli import server as command
from echopair.cli.command import USAGE
from echopair.server.echo import EchoServer
from echopair.server.faults import ABANDONED_AFTER, SENDS_PER_TURN, UNPAID, Faults, FaultyEchoServer, Strikes
from helpers import (
    HUNG,
    LOCALHOST,
    connected_to,
    read_all,
    read_exactly,
    reset,
    run_client,
    run_until,
    running,
    running_server,
    settle,
    unix_listener,
)

DATA = Random(3).randbytes(20_000)


@pytest.fixture
def serve(loop, clock):
    """Start a server with faults, and return a function that connects to it."""
    servers, peers = [], []

    def start(*, tcp=False, max_conns=None, max_buffer=256 * 1024, **faults):
        listeners = listen([LOCALHOST], 0) if tcp else [unix_listener()]
        server = FaultyEchoServer(loop, listeners, faults=Faults(**faults), max_conns=max_conns, max_buffer=max_buffer)
        servers.append(server)

        def connect():
            peer = connected_to(server.addresses[0])
            peers.append(peer)
            settle(loop)
            return peer

        return server, connect

    yield start
    for peer in peers:
        peer.close()
    for server in servers:
        server.close()
    settle(loop)


def got(loop, peer) -> bytes:
    """What a peer can read now."""
    data = b""
    for _ in range(20):
        settle(loop)
        with suppress(BlockingIOError):
            data += peer.recv(1 << 20)
    return data


def echoed(loop, connect, data=DATA) -> bytes:
    peer = connect()
    peer.sendall(data)
    return got(loop, peer)


def test_without_faults_it_is_an_echo(loop, serve):
    _, connect = serve()
    peer = connect()
    peer.sendall(DATA)
    peer.shutdown(socket.SHUT_WR)
    assert got(loop, peer) == DATA
    assert peer.recv(10) == b""


def test_a_delay_holds_bytes_back_and_eof_with_them(loop, clock, serve):
    _, connect = serve(delay=((0.5, 100),))
    peer = connect()
    peer.sendall(b"hello")
    assert got(loop, peer) == b""
    peer.shutdown(socket.SHUT_WR)
    clock.advance(0.4)
    assert got(loop, peer) == b""
    clock.advance(0.2)
    assert got(loop, peer) == b"hello"
    assert peer.recv(10) == b""


def test_delays_are_distributed_as_asked_and_keep_the_order(loop, clock, serve):
    _, connect = serve(delay=((0.1, 80), (0.3, 20)), seed=3)
    peer = connect()
    for number in range(20):
        peer.sendall(bytes([number]))
        settle(loop)
    clock.advance(0.15)
    early = got(loop, peer)
    assert 0 < len(early) < 20
    clock.advance(0.2)
    assert early + got(loop, peer) == bytes(range(20))


def test_what_is_due_at_one_time_is_kept_as_one(loop, serve):
    server, connect = serve(delay=((0.5, 100),))
    peer = connect()
    for _ in range(20):
        peer.send(b"x")
        settle(loop)
    (victim,) = server._victims.values()
    assert len(victim.due) == 1


def test_a_throttle_lets_so_many_bytes_through_a_second(loop, clock, serve):
    _, connect = serve(throttle=1000)
    peer = connect()
    peer.sendall(DATA)
    came = []
    for _ in range(100):
        clock.advance(0.02)
        came.append(len(got(loop, peer)))
    assert sum(came) == pytest.approx(2000, abs=40)
    assert max(came) <= 40


def test_chunks_are_no_larger_than_asked_and_share_the_loop(loop, serve, monkeypatch):
    sent = []
    server, connect = serve(chunk=7)
    peer = connect()
    (connection,) = server.connections
    original = type(connection).send
    monkeypatch.setattr(type(connection), "send", lambda self, data: (sent.append(len(data)), original(self, data)))
    peer.sendall(DATA)
    loop.run_once(0)
    assert len(sent) <= 2 * SENDS_PER_TURN  # when bytes come, and when a timer says so
    assert read_exactly(peer, loop, len(DATA)) == DATA
    assert max(sent) == 7


def test_corruption_flips_one_bit_of_some_bytes(loop, serve):
    server, connect = serve(corrupt_rate=0.01, seed=5)
    echo = echoed(loop, connect)
    assert len(echo) == len(DATA)
    flipped = [(a ^ b).bit_count() for a, b in zip(DATA, echo, strict=True) if a != b]
    assert set(flipped) == {1}
    assert len(flipped) == server.corrupted == pytest.approx(200, abs=60)


def test_loss_and_duplication_change_the_length_by_what_is_reported(loop, serve, caplog):
    server, connect = serve(drop_rate=0.01, seed=5)
    assert len(echoed(loop, connect)) == len(DATA) - server.dropped
    assert server.dropped == pytest.approx(200, abs=60)
    other, connect = serve(duplicate_rate=0.01, seed=5)
    assert len(echoed(loop, connect)) == len(DATA) + other.duplicated
    server.close()
    assert f"0 bytes corrupted, {server.dropped} dropped, 0 duplicated on request" in caplog.text


def test_everything_may_be_lost(loop, serve):
    _, connect = serve(drop_rate=1.0)
    assert echoed(loop, connect) == b""


def test_the_same_seed_has_the_same_faults_and_connections_have_their_own(loop, serve):
    faults = {"corrupt_rate": 0.01, "drop_rate": 0.01, "duplicate_rate": 0.01}
    _, one = serve(**faults, seed=1)
    _, same = serve(**faults, seed=1)
    _, other = serve(**faults, seed=2)
    _, cut = serve(**faults, seed=1)
    first = echoed(loop, one)
    peer = connect_and_send_in_pieces(loop, cut)
    assert got(loop, peer) == first
    assert first == echoed(loop, same) != echoed(loop, other)
    assert first != echoed(loop, one)


def connect_and_send_in_pieces(loop, connect):
    peer = connect()
    for start in range(0, len(DATA), 999):
        peer.sendall(DATA[start : start + 999])
        settle(loop)
    return peer


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.9])
def test_strikes_do_not_depend_on_how_a_stream_is_cut(rate):
    whole, cut = Strikes(rate, Random(1)), Strikes(rate, Random(1))
    places = whole.within(5000)
    pieces, start = [], 0
    for length in (1, 7, 992, 4000):
        pieces += [start + place for place in cut.within(length)]
        start += length
    assert places == pieces == sorted(set(places))
    assert len(places) == pytest.approx(5000 * rate, rel=0.4, abs=5)


def test_a_connection_is_reset_after_so_many_bytes(loop, serve):
    _, connect = serve(reset_after=1000, tcp=True)
    peer = connect()
    peer.sendall(DATA[:999])
    assert read_exactly(peer, loop, 999) == DATA[:999]
    peer.sendall(DATA)
    with pytest.raises(ConnectionResetError):
        read_all(peer, loop)


def test_a_connection_is_closed_after_so_many_bytes(loop, serve):
    _, connect = serve(close_after=1000, chunk=64)
    peer = connect()
    peer.sendall(DATA)
    assert got(loop, peer) == DATA[:1000]
    assert peer.recv(10) == b""


def test_a_connection_falls_silent_after_so_many_bytes_and_holds_no_more_than_others(loop, clock, serve):
    server, connect = serve(stall_after=1000, reset_after=2000, max_buffer=4096)
    peer = connect()
    for _ in range(100):
        peer.send(DATA)
        settle(loop)
    assert got(loop, peer) == DATA[:1000]
    (connection,) = server.connections
    assert not connection.inbound
    peer.shutdown(socket.SHUT_WR)
    assert got(loop, peer) == b""
    assert not connection.closed
    clock.advance(ABANDONED_AFTER)
    settle(loop)
    assert connection.closed  # nothing else would give it back


def test_a_stall_after_eof_ends_as_well(loop, clock, serve):
    server, connect = serve(stall_after=2, delay=((1.0, 100),))
    peer = connect()
    peer.sendall(b"hello")
    peer.shutdown(socket.SHUT_WR)
    settle(loop)
    clock.advance(1.1)
    assert got(loop, peer) == b"he"
    (connection,) = server.connections
    clock.advance(ABANDONED_AFTER)
    settle(loop)
    assert connection.closed


def test_a_drain_waits_for_who_is_accepted_late_even_if_nobody_else_is_there(loop, clock, serve):
    server, connect = serve(accept_delay=1.0)
    peer = connect()
    peer.sendall(b"hello")
    done = []
    server.drain(5, lambda: done.append(1))
    clock.advance(1.0)
    assert got(loop, peer) == b"hello"
    for _ in range(5):
        clock.advance(0.1)
        settle(loop)
    assert done


def test_a_drain_that_takes_too_long_waits_for_nobody_to_be_accepted(loop, clock, serve):
    server, connect = serve(accept_delay=10.0)
    connect()
    done = []
    server.drain(1, lambda: done.append(1))
    for _ in range(20):
        clock.advance(0.1)
        settle(loop)
    assert done


def test_an_end_after_no_bytes_comes_with_the_first(loop, serve):
    _, connect = serve(close_after=0)
    peer = connect()
    peer.sendall(b"hello")
    assert got(loop, peer) == b""
    assert peer.recv(10) == b""


def test_accepting_is_delayed_and_counts_as_a_connection(loop, clock, serve):
    server, connect = serve(accept_delay=1.0, max_conns=1)
    peer = connect()
    peer.sendall(b"hello")
    assert got(loop, peer) == b""
    assert not server.connections
    other = connect()
    clock.advance(1.0)
    assert got(loop, peer) == b"hello"
    other.sendall(b"hello")
    clock.advance(1.0)
    assert got(loop, other) == b""  # it waits in the listen queue


def test_who_waits_to_be_accepted_at_the_end_is_let_go(loop, serve):
    server, connect = serve(accept_delay=1.0)
    peer = connect()
    server.close()
    settle(loop)
    assert peer.recv(10) == b""


def test_without_half_close_what_is_owed_at_eof_is_lost(loop, clock, serve):
    server, connect = serve(no_half_close=True, delay=((1.0, 100),))
    assert server._max_buffer == UNPAID
    peer = connect()
    peer.sendall(b"hello")
    peer.shutdown(socket.SHUT_WR)
    settle(loop)
    clock.advance(2)
    assert got(loop, peer) == b""
    assert peer.recv(10) == b""


def test_faults_compose(loop, clock, serve):
    _, connect = serve(delay=((0.1, 100),), chunk=10, throttle=100_000, close_after=5000)
    peer = connect()
    peer.sendall(DATA)
    clock.advance(0.1)
    data = b""
    for _ in range(200):
        clock.advance(0.02)
        data += got(loop, peer) if len(data) < 5000 else b""
    assert data == DATA[:5000]


def test_a_peer_that_does_not_read_is_waited_for(loop, serve):
    server, connect = serve(chunk=60_000)
    peer = connect()
    (connection,) = server.connections
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sent = 0
    with suppress(BlockingIOError):
        while True:
            sent += peer.send(DATA)
            settle(loop)
    assert connection.outbound
    data = b""
    while len(data) < sent:
        data += got(loop, peer)
    assert data == (DATA * (sent // len(DATA) + 1))[:sent]


def test_a_timer_of_a_fault_that_raises_ends_its_connection_alone(loop, clock, serve, monkeypatch, caplog):
    server, connect = serve(delay=((0.5, 100),))
    peer, neighbour = connect(), connect()
    peer.sendall(DATA)
    settle(loop)
    monkeypatch.setattr(server, "_send_some", lambda *_arguments: 1 // 0)
    clock.advance(1)
    assert got(loop, peer) == b""
    assert peer.recv(1) == b""
    assert len(server.connections) == 1
    assert caplog.text.count("Traceback") == 1
    monkeypatch.undo()
    neighbour.sendall(DATA)
    clock.advance(1)
    settle(loop)
    clock.advance(1)
    assert got(loop, neighbour) == DATA


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), OSError(errno.ENOSPC, "no space left on device")])
def test_who_cannot_be_served_when_accepted_late_is_closed_and_holds_no_drain(
    loop, clock, serve, monkeypatch, caplog, error
):
    def fail(*_arguments):
        raise error

    server, connect = serve(accept_delay=1.0, max_conns=1)
    peer, done = connect(), []
    monkeypatch.setattr(EchoServer, "_accepted", fail)
    server.drain(5, lambda: done.append(1))
    clock.advance(1)
    assert got(loop, peer) == b""
    assert peer.recv(1) == b""
    assert done
    assert caplog.text.count("Traceback") == 1


def test_the_last_connection_to_end_leaves_a_drain_waiting_for_who_is_accepted_late(loop, clock, serve):
    server, connect = serve(accept_delay=1.0)
    first, done = connect(), []
    clock.advance(1)
    settle(loop)
    late = connect()
    server.drain(5, lambda: done.append(1))
    first.close()
    settle(loop)
    assert (server.connections, server.waiting, done) == (set(), 1, [])
    clock.advance(1)
    late.close()
    settle(loop)
    assert done


def test_who_cannot_be_served_when_accepted_late_leaves_its_place(loop, clock, serve, monkeypatch):
    _, connect = serve(accept_delay=1.0, max_conns=2)
    echoing = connect()
    clock.advance(1)
    settle(loop)
    connect()
    with monkeypatch.context() as patch:
        patch.setattr(EchoServer, "_accepted", lambda *_arguments: 1 // 0)
        clock.advance(1)
        settle(loop)
    third = connect()
    clock.advance(1)
    third.sendall(DATA)
    echoing.sendall(DATA)
    assert got(loop, third) == got(loop, echoing) == DATA


def test_a_peer_that_is_gone_is_not_sent_to_for_days(loop, clock, serve):
    server, connect = serve(throttle=1, max_buffer=1000)
    peer = connect()
    peer.sendall(DATA)
    settle(loop)
    reset(peer)
    for _ in range(10):
        clock.advance(1)
        settle(loop)
    assert not server.connections


def test_what_a_long_delay_keeps_of_many_reads_is_bounded(loop, clock, serve):
    server, connect = serve(delay=((3600.0, 100),))
    peer = connect()
    for _ in range(100):
        peer.send(b"x")
        clock.advance(0.1)
        settle(loop)
    (victim,) = server._victims.values()
    assert len(victim.due) <= 4  # ticks of 3.6 s
    clock.advance(3600 + 3.6)
    assert got(loop, peer) == b"x" * 100


def test_a_peer_that_goes_while_it_is_owed_and_nothing_more_is_read_is_let_go(loop, serve):
    server, connect = serve(chunk=1000, max_buffer=4096)
    peer = connect()
    with suppress(BlockingIOError):
        while True:
            peer.send(DATA)
            settle(loop)
    (connection,) = server.connections
    assert connection.outbound
    assert len(connection.inbound) >= 4096
    peer.close()
    run_until(loop, lambda: not server.connections)


def test_a_drain_waits_for_what_is_held_back(loop, clock, serve):
    server, connect = serve(delay=((1.0, 100),))
    peer = connect()
    peer.sendall(b"hello")
    settle(loop)
    done = []
    server.drain(5, lambda: done.append(1))
    for _ in range(12):
        clock.advance(0.1)
        settle(loop)
    assert got(loop, peer) == b"hello"
    for _ in range(5):
        clock.advance(0.1)
        settle(loop)
    assert done


def test_who_is_accepted_late_is_drained_too(loop, clock, serve):
    server, connect = serve(accept_delay=1.0, delay=((2.0, 100),))
    peer = connect()
    peer.sendall(b"hello")
    clock.advance(1.0)
    settle(loop)
    late = connect()
    late.sendall(b"hello")
    done = []
    server.drain(5, lambda: done.append(1))
    clock.advance(2.0)
    assert got(loop, peer) == b"hello"
    clock.advance(2.0)
    assert got(loop, late) == b"hello"
    for _ in range(5):
        clock.advance(0.1)
        settle(loop)
    assert done


def test_faults_say_what_they_do():
    faults = Faults(
        delay=((0.005, 90), (0.2, 10)),
        throttle=2048,
        chunk=1,
        corrupt_rate=1e-6,
        reset_after=0,
        stall_after=1000,
        accept_delay=0.5,
        no_half_close=True,
    )
    assert str(faults) == (
        "delay 5.00 ms for 90 %, 200 ms for 10 %, throttle 2.00 KiB/s, chunks of 1 byte, "
        "corrupt 0.0001 % of the bytes, reset after 0 bytes, "
        "stall after 1,000 bytes, accept after 500 ms, no half-close"
    )
    assert str(Faults(accept_delay=math.inf, drop_rate=0.00001)) == "drop 0.001 % of the bytes, accept no connection"
    assert faults.ends_after == 0
    assert str(Faults()) == ""


# The command


def test_a_server_that_accepts_nobody_says_so_in_a_pipe_too():
    with running_server("--accept-delay", "never") as (server, _port):
        server.terminate()
        _, log = server.communicate(timeout=HUNG)
    assert server.returncode == 0
    assert "misbehaving on request: accept no connection\n" in log
    assert "Traceback" not in log


def test_faults_are_announced_with_their_seed_and_found_by_our_client():
    with running_server("--corrupt-rate", "0.01%", "--fault-seed", "7") as (server, port):
        done = run_client(f"{LOCALHOST}:{port}", "-n", "1000")
        server.terminate()
        _, log = server.communicate(timeout=HUNG)
    assert done.returncode == 1
    assert "one bit flipped" in done.stdout
    assert "misbehaving on request: corrupt 0.01 % of the bytes; --fault-seed 7 repeats it" in log
    assert " corrupted, 0 dropped, 0 duplicated on request" in log


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--delay", "fast"], "'fast' is not a duration"),
        (["--delay", "5ms:x"], "'5ms:x' is not a delay: give a duration and per cent, like 5ms:90"),
        (["--delay", "5ms:50,6ms:40"], "does not add up to 100 %"),
        (["--delay", "never"], "a delay that never ends is --stall-after 0"),
        (["--corrupt-rate", "2"], "'2' is not a probability: give a number from 0 to 1, or per cent, like 0.1%"),
        (["--drop-rate", "x%"], "'x%' is not a probability"),
        (["--chunk", "0"], "too small"),
        (["--throttle", "0"], "too small"),
    ],
)
def test_faults_that_make_no_sense_are_usage(capsys, argv, complaint):
    assert command.main(argv) == USAGE
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["--reset-after", "--close-after", "--stall-after"])
def test_an_end_after_no_bytes_is_asked_for_by_a_zero(fault):
    with running_server(fault, "0") as (server, port):
        done = run_client(f"{LOCALHOST}:{port}", "-n", "1", "--timeout", "0.2s")
        server.terminate()
        _, log = server.communicate(timeout=HUNG)
    assert done.returncode == 1
    assert "after 0 bytes" in log


def test_faults_that_never_strike_are_none():
    with running_server("--corrupt-rate", "0", "--accept-delay", "0s") as (server, port):
        assert run_client(f"{LOCALHOST}:{port}").returncode == 0
        server.terminate()
        _, log = server.communicate(timeout=HUNG)
    assert "misbehaving" not in log


def test_probabilities_are_numbers_or_per_cent():
    assert options.probability("0.5") == options.probability("50%") == 0.5
    assert options.delays("5ms") == ((0.005, 100.0),)


@pytest.mark.parametrize(("asked", "loaded"), [([], False), (["--chunk", "1"], True)])
def test_a_server_without_faults_loads_none_of_this(asked, loaded):
    program = "import sys\nfrom echopair.cli import server\nserver.main()\nprint(*sys.modules)"
    with running(sys.executable, "-c", program, "--host", LOCALHOST, "--port", "0", *asked) as server:
        server.stdout.readline()
        server.terminate()
        modules, _ = server.communicate(timeout=HUNG)
    assert "echopair.server.echo" in modules.split()
    assert ("echopair.server.faults" in modules.split()) == loaded
