"""The cases: what an echo service, and whatever stands in front of it, must do (RFC 862, RFC 9293, RFC 1122).

Each is a short conversation. They begin with the plain ones and end with those that a poor server does not survive, so
no case after those is run. All of them together use at most 48 MiB and 300 connections; with the `thorough` ones,
384 MiB and 1,400.
"""

from __future__ import annotations

import socket
import statistics
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

from echopair.address import format_address
from echopair.check.hint import Seen
from echopair.check.peer import Failed, Late, Peer
from echopair.check.run import Case, Check, Skipped
from echopair.text import count, duration, printable, size

KIB, MIB = 1024, 1024 * 1024
MUCH = 6 * MIB  # more than a socket buffers (tcp(7), tcp_wmem: 4 MiB unless somebody changed that)
ALIKE = 0.020  # seconds between delays of one kind
SEVERAL = 4  # messages; one or two may be late for any reason
HELD_UP = 1.0  # seconds above the round trip; by then it is not the path that is slow
LITTLE = 128 * KIB  # bytes; smaller than a segment, as loopback has them, it would cost a delayed ACK each time
PAUSE = 0.005  # seconds
MESSAGES = 1500  # in the life of a connection; some services allow 100, or 1,000
AT_ONCE = 10  # connections of a crowd

CASES: list[Case] = []
Body = Callable[[Check], Coroutine[Any, Any, None]]


CLIENT_HELLO = b"\x16\x03\x01\0\5\1\0\0\1\0"  # too short: TLS answers it with an alert (RFC 8446 6.2)
# A connection may begin with any of these, although they look like another protocol.
BEGINNINGS = (
    b"\xef\xbb\xbf",  # byte order marks: UTF-8, UTF-16, UTF-32
    b"\xff\xfe",
    b"\xfe\xff",
    b"\xff\xfe\0\0",
    b"\0",
    b"\xff\xfd\x01",  # Telnet, DO ECHO (RFC 857)
    b"\x16\x03\x01\x02\0\x01\0",  # TLS, a ClientHello (RFC 8446 5.1)
    b"GET / HTTP/1.1\r\n\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 7 7\r\n",
)


def case(usually: str, *, needs_echo: bool = True, thorough: bool = False) -> Callable[[Body], Body]:
    """Make a case of the decorated conversation, whose docstring says what it proves; `usually` why it fails."""

    def add(body: Body) -> Body:
        name, proves = body.__name__.replace("_", "-"), (body.__doc__ or "").rstrip(".")
        CASES.append(Case(name, proves, usually, body, needs_echo, thorough))
        return body

    return add


@case(usually="something else listens there, or it waits for the end of a line, or of the stream, before it answers")
async def basic(check: Check) -> None:
    """What is sent comes back."""
    peer = await check.connect()
    try:
        for _ in range(3):
            await peer.echo(check.text(100))
    except Failed as failure:
        failure.seen = await probe(check, peer, failure)
        raise


async def probe(check: Check, peer: Peer, failure: Failed) -> Seen:
    """Find out more about a service that does not echo: whether it speaks first, or what it answers to."""
    seen = failure.seen
    with suppress(Failed):
        if seen.got:
            late = isinstance(failure, Late)
            return seen if late else replace(seen, greeting=await (await check.connect()).overhear())
        if isinstance(failure, Late):
            peer.send_apart(b"\n")
            if await peer.overhear():
                return replace(peer.seen(), answers_to="newline")
            peer.send_eof()
            if await peer.overhear():
                return replace(peer.seen(), answers_to="EOF")
        peer.close()
        other = await check.connect()
        await other.send(CLIENT_HELLO)
        if (answer := await other.overhear()) != CLIENT_HELLO:
            return replace(seen, got=answer)
    return seen


@case(usually="a greeting, a PROXY protocol header, or an interpreter's prompt", needs_echo=False)
async def silent(check: Check) -> None:
    """Nothing comes back but what was sent, no banner."""
    peer = await check.connect()
    await peer.expect_silence()
    if not check.basic_failed:
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


@case(usually="a byte order mark is removed, or something on the way takes the bytes for a protocol that it knows")
async def first_bytes(check: Check) -> None:
    """A connection may begin with any bytes, even those of a byte order mark or a header."""
    for beginning in BEGINNINGS:
        peer = await check.connect()
        try:
            await peer.echo(beginning + check.text(10))
        except Failed as failure:
            told = f"on a connection that began with {printable(beginning)}: {failure}"
            raise type(failure)(told, failure.seen) from None
        peer.close()


@case(usually="bytes are taken in pairs or in blocks, and an incomplete one waits for the rest")
async def lengths(check: Check) -> None:
    """Messages of any length come back whole, odd lengths too."""
    peer = await check.connect()
    for power in (8, 10, 12, 14, 16, 20):
        for length in (2**power - 1, 2**power, 2**power + 1):
            await peer.echo(check.text(length))


@case(usually="the server waits for a whole line, or for a buffer to fill")
async def byte_by_byte(check: Check) -> None:
    """Bytes that come one at a time come back as they come."""
    peer = await check.connect()
    for _ in check.rounds(64):
        await peer.echo(check.text(1))


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
    await peer.echo(check.text(4 * MIB + 1))


@case(usually="an offset or a counter runs over, or a buffer is used again too soon", thorough=True)
async def volume(check: Check) -> None:
    """A connection carries as many bytes as it is given."""
    peer, until = await check.connect(), check.loop.clock() + check.plan.enough
    while peer.received < check.plan.volume:
        await peer.echo(check.text(MIB))
        check.allow(until, f"only {size(peer.received)} of {size(check.plan.volume)} came back")


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
    late = statistics.median(took) - check.connecting - 2 * check.round_trip
    if late > HELD_UP / 4:
        raise Late(f"the first echo took {duration(late)} more than connecting and a round trip do")


@case(usually="Nagle's algorithm waits for a delayed ACK: set TCP_NODELAY")
async def latency(check: Check) -> None:
    """Small messages are answered at once, a lone one and several in a row."""
    peer, delayed = await check.connect(), check.plan.delayed
    alone = [await timed(check, peer, 1) for _ in check.rounds(60)]
    usual = statistics.median(alone)
    if usual - check.connecting > delayed:
        told = f"a single message took {duration(usual)}, but connecting took {duration(check.connecting)}"
        raise Late(told, Seen(far=True))
    late = [took for took in alone if took - usual > delayed]
    if len(late) >= SEVERAL:
        raise Late(
            f"a single message usually took {duration(usual)}, "
            f"but {len(late)} of {len(alone)} took {duration(max(late))}"
        )
    # Nagle's algorithm holds an answer back while an earlier one is not acknowledged. That depends on timing, so try
    # until it is certain. Its delays are all alike; those of a busy machine are not.
    enough, held_back = SEVERAL, []
    for _ in check.rounds(200):
        enough += SEVERAL * (await timed(check, peer, 1) - usual > delayed)
        took = await timed(check, peer, 32)
        if took - usual > delayed:
            held_back.append(took)
        if len(held_back) > 2 * enough:
            break
    if len(held_back) > enough:
        least, _, most = statistics.quantiles(held_back, n=4)
        if most - least < ALIKE:
            raise Late(
                f"a single message took {duration(usual)}, but the last of several in a row took {duration(most)}"
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
    """A connection that was idle for a while is still served."""
    peer = await check.connect()
    await peer.echo(check.text(100))
    await check.sleep(check.plan.idle)
    await peer.echo(check.text(100))


@case(usually="the server or a proxy limits the life of a connection, or the messages on it", thorough=True)
async def life(check: Check) -> None:
    """A connection lives for as long as it is used."""
    peer, began = await check.connect(), check.loop.clock()
    messages = 0
    while check.loop.clock() - began < check.plan.life:
        try:
            await peer.echo(check.text(10))
        except Failed as failure:
            told = f"{failure}, after {duration(check.loop.clock() - began)} and {count(messages, 'message')}"
            raise type(failure)(told, failure.seen) from None
        messages += 1
        await check.sleep(check.plan.life / MESSAGES)


@case(usually="the server serves one connection at a time, or connections share a buffer")
async def many(check: Check) -> None:
    """50 connections at once each get their own bytes back."""
    ways = await check.together(*(attempt(check.connect()) for _ in range(50)))
    peers = [peer for peer in ways if isinstance(peer, Peer)]
    for length in (10, 10_000):
        messages = [check.text(length) for _ in peers]
        for peer, message in zip(peers, messages, strict=True):
            with suppress(Failed):  # reading will show it, too
                await peer.send(message)
        expected = reversed(list(zip(peers, messages, strict=True)))
        ways += await check.together(*(attempt(peer.expect(message)) for peer, message in expected))
        if failures := [way for way in ways if isinstance(way, Failed)]:
            served = 50 - len(failures)
            wrong = [failure for failure in failures if not (isinstance(failure, Late) or failure.seen.ended)]
            failure = (wrong or failures)[0]
            if wrong or not served:
                raise failure
            told = f"{served} of 50 connections were served; on another one: {failure}"
            raise type(failure)(told, replace(failure.seen, served=served, tried=50))


async def attempt(body: Coroutine[Any, Any, Any]) -> Any:
    """Return what `body` returns, or how it failed."""
    try:
        return await body
    except Failed as failure:
        return failure


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


@case(usually="EOF is not noticed, or not passed on by a proxy", needs_echo=False)
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
    message = check.text(MUCH)  # which takes a while
    peer = await check.connect()
    peer.buffer(LITTLE)
    sent = await peer.send_until_full(message)
    peer.send_eof()
    await check.leave_unread(peer)
    await peer.expect_slowly(message[:sent], 64 * KIB, check.plan.pause)


@case(usually="bytes are dropped when the outbound buffer is full, or a send timeout ends the connection")
async def slow_reader(check: Check) -> None:
    """A peer that reads slowly loses nothing."""
    message = check.text(MUCH)  # which takes a while
    peer = await check.connect()
    peer.buffer(LITTLE)
    sent = await peer.send_until_full(message)
    await peer.expect_slowly(message[:sent], 64 * KIB, PAUSE)
    await peer.echo(check.text(1000))


@case(usually="a send timeout ends a connection whose peer does not read for a while, or what does not fit is dropped")
async def before_reading(check: Check) -> None:
    """More than the path holds, sent before anything is read, comes back."""
    message = check.text(16 * MIB)  # which takes a while
    peer = await check.connect()
    peer.buffer(LITTLE)
    sent = await peer.send_until_full(message)
    await check.leave_unread(peer)
    peer.buffer(MIB)
    await peer.exchange(message[sent:], message)


@case(usually="one thread serves all and blocks in a send, or memory runs full")
async def slow_neighbour(check: Check) -> None:
    """A peer that does not read slows nobody else."""
    deaf, owed = await check.connect(), check.text(MUCH)
    deaf.buffer(LITTLE)
    with suppress(Failed):  # other cases judge what becomes of such a peer
        owed = owed[: await deaf.send_until_full(owed)]
    peer = await check.connect()
    for _ in check.rounds(20):
        took = await timed(check, peer, 1)
        if took - check.round_trip > HELD_UP:
            raise Late(f"an echo to another peer took {duration(took)} meanwhile")
    with suppress(Failed):
        await deaf.expect(owed)


@case(usually="the mark where urgent data ends is taken for EOF, for an error, or for nothing to read")
async def urgent(check: Check) -> None:
    """Urgent data changes no other bytes, whatever happens to its own."""
    peer = await check.connect()
    peer.ignored = b"!"
    await peer.echo(check.text(8192))
    for length in (4, 100_000):  # the first one starts before the mark, and nothing follows it
        peer.send_urgent(b"!")
        await peer.echo(check.text(length))
    message = check.text(100_000)
    peer.send_urgent(b"!")
    await peer.send(message)
    peer.send_eof()
    await peer.expect(message)


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


@case(usually="one worker is broken, or a buffer is used again before it is empty", thorough=True)
async def crowd(check: Check) -> None:
    """Each of a thousand connections gets its own bytes back."""
    until, all_, number = check.loop.clock() + check.plan.enough, check.plan.crowd, 0
    while number < all_:
        number += AT_ONCE
        try:
            await check.together(*(come_and_close(check) for _ in range(AT_ONCE)))
        except Failed as failure:
            raise type(failure)(
                f"among the first {number:,} of {all_:,} connections, {failure}", failure.seen
            ) from None
        check.allow(until, f"only {number:,} of {count(all_, 'connection')} were made")


@case(usually="what a peer does not read is kept without a limit, until memory is full", thorough=True)
async def back_pressure(check: Check) -> None:
    """A peer that does not read is kept from sending without end."""
    peer, until = await check.connect(), check.loop.clock() + check.plan.enough
    peer.buffer(LITTLE)
    block = check.text(MIB)
    while peer.sent < check.plan.hoard:
        try:
            taken = await peer.send_until_full(block)
        except Failed:  # other cases judge what becomes of such a peer
            return
        if taken < len(block):
            return
        check.allow(
            until, f"{size(peer.sent)} of {size(check.plan.hoard)} were taken: the path is too slow for a verdict"
        )
    raise Failed(f"{size(peer.sent)} were taken, and nothing was read back")


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
