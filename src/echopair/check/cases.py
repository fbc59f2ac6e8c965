"""The cases: what an echo service, and whatever stands in front of it, must do (RFC 862, RFC 9293, RFC 1122).

Each is a short conversation. They begin with the plain ones and end with those that a poor server does not survive, for
what comes after those is not run. What they send together is bounded: under 48 MiB, on under 300 connections.
"""

from __future__ import annotations

import socket
import statistics
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from echopair.address import format_address
from echopair.check.peer import Failed, Peer
from echopair.check.run import Case, Check, Skipped
from echopair.text import duration

KIB, MIB = 1024, 1024 * 1024
MUCH = 6 * MIB  # more than a socket buffers (tcp(7), tcp_wmem: 4 MiB unless somebody changed that)
DELAYED = 0.030  # seconds above the round trip; a delayed ACK is 40 ms late (RFC 1122 4.2.3.2: at most 500)
HELD_UP = 1.0  # seconds above the round trip; by then it is not the path that is slow
LITTLE = 128 * KIB  # bytes; smaller than a segment, as loopback has them, it would cost a delayed ACK each time
IDLE = 2.0  # seconds
PAUSE = 0.005  # seconds

CASES: list[Case] = []
Body = Callable[[Check], Coroutine[Any, Any, None]]


def case(usually: str) -> Callable[[Body], Body]:
    """Make a case of the decorated conversation, whose docstring says what it proves; `usually` why it fails."""

    def add(body: Body) -> Body:
        CASES.append(Case(body.__name__.replace("_", "-"), (body.__doc__ or "").rstrip("."), usually, body))
        return body

    return add


@case(usually="something else listens there, or it waits for the end of a line, or of the stream, before it answers")
async def basic(check: Check) -> None:
    """What is sent comes back."""
    peer = await check.connect()
    await peer.echo(check.text(100))


@case(usually="a greeting, a PROXY protocol header, or an interpreter's prompt")
async def silent(check: Check) -> None:
    """Nothing comes back but what was sent, no banner."""
    peer = await check.connect()
    await peer.expect_silence()
    await peer.echo(check.text(100))
    await peer.expect_silence()


@case(usually="text is decoded and encoded again, ends of lines are converted, or a terminal interprets some")
async def every_byte(check: Check) -> None:
    """All 256 values of a byte come back as they are."""
    peer = await check.connect()
    values = bytes(range(256))
    await peer.echo(values + values[::-1])


@case(usually="messages are stripped, or taken for lines or for strings that end with a NUL")
async def edges(check: Check) -> None:
    """Blanks, ends of lines and NULs come back also where a message begins and ends."""
    peer = await check.connect()
    for edge in (b" ", b"\n", b"\r\n", b"\t", b"\0", b"\x1a"):
        for message in (edge, edge + check.text(10), check.text(10) + edge):
            await peer.echo(message)


@case(usually="the server waits for a whole line, or for a buffer to fill")
async def byte_by_byte(check: Check) -> None:
    """Bytes that come one at a time come back as they come."""
    peer = await check.connect()
    for byte in check.text(check.rounds(64)):
        await peer.echo(bytes([byte]))


@case(usually="one answer is sent a read or a line, or answers overtake each other")
async def pipelined(check: Check) -> None:
    """Messages sent without waiting come back in order."""
    peer = await check.connect()
    messages = [check.text(100) for _ in range(500)]
    for message in messages:
        await peer.send(message)
    await peer.expect(b"".join(messages))


@case(usually="a send() that took only a part is taken for whole, or a full socket for a broken one")
async def burst(check: Check) -> None:
    """A stream of 4 MiB comes back while it is sent."""
    peer = await check.connect()
    await peer.echo(check.text(4 * MIB))


@case(usually="accepting waits: for a busy worker, a name lookup, a proxy's own connection to a distant backend")
async def first_echo(check: Check) -> None:
    """A new connection is served at once."""
    took = []
    for _ in range(5):
        began = check.loop.clock()
        peer = await check.connect()
        await peer.echo(check.text(10))
        took.append(check.loop.clock() - began)
        peer.close()
    late = statistics.median(took) - 2 * check.round_trip
    if late > HELD_UP / 4:
        raise Failed(f"the first echo took {duration(late)} more than connecting and a round trip do")


@case(usually="Nagle's algorithm waits for a delayed ACK: set TCP_NODELAY. Or a proxy is near and its backend far")
async def latency(check: Check) -> None:
    """Small messages are answered at once, a lone one and several in a row."""
    peer = await check.connect()
    alone = [await timed(check, peer, 1) for _ in range(check.rounds(60))]
    usual = statistics.median(alone)
    if usual - check.round_trip > DELAYED:
        raise Failed(f"a lone one took {duration(usual)}, and making a connection {duration(check.round_trip)}")
    if late := [took for took in alone if took - usual > DELAYED][1:]:
        raise Failed(
            f"a lone one took {duration(usual)} mostly, but {len(late) + 1} of {len(alone)} took {duration(max(late))}"
        )
    held_back = []  # whether an answer meets an unacknowledged one is a matter of moments, so try until it is certain
    for _ in range(check.rounds(60)):
        took = await timed(check, peer, 32)
        if took - usual > DELAYED:
            held_back.append(took)
        if len(held_back) == 3:
            raise Failed(
                f"a lone one took {duration(usual)}, but the last in a row of small ones {duration(max(held_back))}"
            )


async def timed(check: Check, peer: Peer, number: int) -> float:
    """Return how many seconds the last of so many messages of one byte, sent in a row, took to come back."""
    message = check.text(number)
    peer.send_apart(message)
    began = check.loop.clock()
    await peer.expect(message)
    return check.loop.clock() - began


@case(usually="an idle timeout of the server, or of a proxy or NAT on the way, is too short")
async def idle(check: Check) -> None:
    """A connection that was idle for two seconds is still served."""
    peer = await check.connect()
    await peer.echo(check.text(100))
    await check.sleep(IDLE)
    await peer.echo(check.text(100))


@case(usually="the server serves one connection at a time, or connections share a buffer")
async def many(check: Check) -> None:
    """50 connections at once each get their own bytes back."""
    peers = await check.together(*(check.connect() for _ in range(50)))
    for length in (10, 10_000):
        messages = [check.text(length) for _ in peers]
        for peer, message in zip(peers, messages, strict=True):
            await peer.send(message)
        for peer, message in reversed(list(zip(peers, messages, strict=True))):
            await peer.expect(message)


@case(usually="the server listens on one of them only, a firewall drops the other, or the name lists an old address")
async def both_families(check: Check) -> None:
    """Every address of the name is served, IPv4 and IPv6."""
    families = {family for family, _ in check.addresses}
    if len(families) < 2:
        named = "IPv6" if socket.AF_INET6 in families else "IPv4"
        raise Skipped(f"there are addresses of {named} only")
    for address in check.addresses:
        peer = await check.connect(address)
        try:
            await peer.echo(check.text(100))
        except Failed as failure:
            raise Failed(f"{format_address(address[1])}: {failure}") from None


@case(usually="EOF is not noticed, or not passed on by a proxy")
async def fin_alone(check: Check) -> None:
    """EOF without a byte before it is answered by EOF."""
    peer = await check.connect()
    peer.send_eof()
    await peer.expect_eof()


@case(usually="EOF is not noticed, or not passed on by a proxy: its connections pile up in CLOSE-WAIT")
async def closes_after_eof(check: Check) -> None:
    """When all has come back and we have sent EOF, EOF comes back."""
    peer = await check.connect()
    await peer.echo(check.text(1000))
    peer.send_eof()
    await peer.expect_eof()


@case(usually="EOF is taken for the end of the whole connection: the server or a proxy knows no half-closed ones")
async def half_close(check: Check) -> None:
    """What was sent right before EOF comes back."""
    for length in (1, 1000, 100_000):
        peer = await check.connect()
        message = check.text(length)
        await peer.send(message)
        peer.send_eof()
        await peer.expect(message)
        await peer.expect_silence()


@case(usually="the connection is closed at EOF with bytes still owed, or a proxy's half-close timeout cuts it")
async def half_close_slow(check: Check) -> None:
    """What is owed at EOF reaches a peer that reads slowly."""
    peer = await check.connect()
    peer.buffer(LITTLE)
    message = check.text(MUCH)
    sent = await peer.send_until_full(message)
    peer.send_eof()
    await peer.expect_slowly(message[:sent], 64 * KIB, PAUSE)


@case(usually="bytes are dropped when the outbound buffer is full, or a send timeout ends the connection")
async def slow_reader(check: Check) -> None:
    """A peer that reads slowly loses nothing."""
    peer = await check.connect()
    peer.buffer(LITTLE)
    message = check.text(MUCH)
    sent = await peer.send_until_full(message)
    await peer.expect_slowly(message[:sent], 64 * KIB, PAUSE)
    await peer.echo(check.text(1000))


@case(usually="the server ends a connection whose peer does not read, or drops what does not fit")
async def before_reading(check: Check) -> None:
    """More than the path holds, sent before anything is read, comes back."""
    peer = await check.connect()
    peer.buffer(LITTLE)
    message = check.text(16 * MIB)
    sent = await peer.send_until_full(message)
    peer.buffer(MIB)
    await peer.exchange(message[sent:], message)


@case(usually="one thread serves all and blocks in a send, or memory runs full")
async def slow_neighbour(check: Check) -> None:
    """A peer that does not read slows nobody else."""
    deaf, owed = await check.connect(), check.text(MUCH)
    deaf.buffer(LITTLE)
    with suppress(Failed):  # what becomes of such a peer is for other cases to say
        owed = owed[: await deaf.send_until_full(owed)]
    peer = await check.connect()
    for _ in range(check.rounds(20)):
        took = await timed(check, peer, 1)
        if took - check.round_trip > HELD_UP:
            raise Failed(f"an echo to another peer took {duration(took)} meanwhile")
    with suppress(Failed):
        await deaf.expect(owed)


@case(usually="an error that accept() or the first read reports is not caught")
async def dropped(check: Check) -> None:
    """Connections opened and closed without a byte cost nothing."""
    for peer in await check.together(*(check.connect() for _ in range(50))):
        peer.close()
    peer = await check.connect()
    await peer.echo(check.text(100))


@case(usually="ConnectionResetError or BrokenPipeError of one peer ends the server for all")
async def reset(check: Check) -> None:
    """The reset of one connection leaves the others served."""
    neighbours = [await check.connect() for _ in range(5)]
    await talk(check, neighbours)
    for sent in (0, 100, MIB):
        peer = await check.connect()
        peer.buffer(LITTLE)
        await peer.send_until_full(check.text(sent))
        peer.reset()
        await talk(check, neighbours)
    await talk(check, [await check.connect()])


@case(usually="connections are not given back: descriptors or workers run out")
async def churn(check: Check) -> None:
    """A hundred connections that come and go, by FIN and by reset, leave the service as it was."""
    for _ in range(10):
        await check.together(*(way(check) for way in (come_and_close, come_and_reset) for _ in range(5)))
    await talk(check, [await check.connect()])


async def come_and_close(check: Check) -> None:
    """Connect, see an echo, and close."""
    peer = await check.connect()
    await peer.echo(check.text(100))
    peer.close()


async def come_and_reset(check: Check) -> None:
    """Connect, and reset the connection."""
    (await check.connect()).reset()


async def talk(check: Check, peers: list[Peer]) -> None:
    """See that all of these are served."""
    for peer in peers:
        await peer.echo(check.text(100))
