"""Both ends in one loop, on each selector: every byte comes back, whoever else is there."""

from __future__ import annotations

import os
import random
import resource

import pytest

from echopair.address import listen
from echopair.client import EchoClient, Session
from echopair.client.payload import Payload
from echopair.connection import Connection
from echopair.loop import EventLoop
from echopair.server import EchoServer
from helpers import LOCALHOST, Recorder, connected_to, run_until, settle, unix_listener

pytestmark = pytest.mark.every_selector


def run_pair(loop: EventLoop, sessions: list[Session], **server_options) -> tuple[EchoServer, EchoClient]:
    """Run the sessions against a server in the same loop until all have ended on both ends."""
    server = EchoServer(loop, listen([LOCALHOST], 0), **server_options)
    done: list[bool] = []
    client = EchoClient(loop, server.addresses, sessions, done=lambda: done.append(True))
    run_until(loop, lambda: done and not server.connections)
    server.close()
    return server, client


def test_a_conversation_on_two_connections(loop):
    server, client = run_pair(loop, [Session(number, iter([b"one", b"two"])) for number in (1, 2)])
    assert client.failures == []
    assert server.connections_served == 2
    assert server.bytes_received == server.bytes_sent == 12


@pytest.mark.parametrize("size", [1, 1024, 100_000, 5_000_000])
@pytest.mark.parametrize("pipeline", [1, 7])
def test_generated_messages_of_every_size(loop, size, pipeline):
    payload = Payload(size, seed=1, conns=3)
    sessions = [
        Session(
            number,
            payload.pieces(number, 5),
            pieces_per_message=payload.pieces_per_message,
            pipeline=pipeline,
        )
        for number in (1, 2, 3)
    ]
    server, client = run_pair(loop, sessions, max_buffer=10_000)
    assert client.failures == []
    assert [session.messages_echoed for session in sessions] == [5, 5, 5]
    assert server.bytes_sent == 15 * size


def test_more_clients_than_the_server_takes_at_once_wait_for_their_turn(loop):
    server, client = run_pair(loop, [Session(number, iter([b"hello"])) for number in range(1, 21)], max_conns=3)
    assert client.failures == []
    assert server.connections_served == 20


def test_two_thousand_connections_at_once_three_rounds_of_random_sizes(clock):
    """On the default selector, for select(2) ends at descriptor 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (-1, resource.RLIM_INFINITY) and hard < 4200:
        pytest.skip(f"needs 4,200 descriptors, this system allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4200), hard))
    source = random.Random(5)
    noise = os.urandom(200_000)
    sizes = [[source.choice([1, 100, 5000, 70_000]) + source.randrange(1000) for _ in range(3)] for _ in range(2000)]
    sessions = [
        Session(number, iter([noise[number : number + size] for size in three]))
        for number, three in enumerate(sizes, start=1)
    ]
    try:
        with EventLoop(clock=clock) as loop:
            server, client = run_pair(loop, sessions)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert client.failures == []
    assert server.connections_served == 2000
    assert server.bytes_sent == sum(map(sum, sizes))


def test_fifty_idle_connections_let_the_loop_sleep(loop, selector):
    server = EchoServer(loop, listen([LOCALHOST], 0))
    messages = [iter([b"hello"]) for _ in range(50)]
    sessions = [Session(number, pieces, pipeline=1) for number, pieces in enumerate(messages, start=1)]
    for session in sessions:
        session.send_more = lambda connection, session=session: None  # connect, and then say nothing
    client = EchoClient(loop, server.addresses, sessions, done=lambda: None)
    run_until(loop, lambda: len(server.connections) == len(client.open) == 50)
    settle(loop)
    assert selector.select(0) == []
    assert loop._wait(None) > 9, "only the client's timeout, 10 s away, would wake the loop"
    client.stop()
    server.close()
    settle(loop)


def test_a_flood_does_not_keep_a_ping_waiting(loop):
    """Each turn gives every connection at most one read, so a ping's echo is at most two turns away."""
    server = EchoServer(loop, [unix_listener()])
    flooders = [Session(number, (b"x" * 65536 for _ in range(10**9)), pipeline=10**9) for number in range(1, 9)]
    client = EchoClient(loop, server.addresses, flooders, done=lambda: None)
    run_until(loop, lambda: all(session.pieces_echoed > 5 for session in flooders))
    ping = Recorder()
    connection = Connection(loop, connected_to(server.addresses[0]), ping, "server")
    run_until(loop, lambda: server.connections_served == 9)
    connection.send(b"ping")
    turns = 0
    while not ping.received:
        loop.run_once(0.1)
        turns += 1
    assert turns <= 3
    connection.abort()
    client.stop()
    server.close()
    settle(loop)
