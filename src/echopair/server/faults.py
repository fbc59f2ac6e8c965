"""A server that misbehaves on request, so that clients and checks can show that they notice.

It is an EchoServer that keeps what comes in where it came in, `inbound`, and lets go of it as its faults allow, so that
however late it is, no more is held for a peer than by any other server. Chance is seeded, by connection and by fault:
with the same seed and as many connections before, the same bytes of a stream are struck, however it is cut into reads.
"""

from __future__ import annotations

import logging
import math
import socket
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from random import Random

from echopair.address import format_address
from echopair.connection import NO_LINGER, Connection
from echopair.loop import EventLoop, Timer
from echopair.server.echo import EchoServer
from echopair.text import count, duration, printable, size, typed

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would take a tenth of the start
    from typing import Any

SENDS_PER_TURN = 64  # small chunks of one peer share the loop with other peers
SLICES_PER_SECOND = 50  # of a throttled peer's bytes
UNPAID = 8 * 1024 * 1024  # bytes; more than sockets buffer (tcp(7), tcp_wmem)
ABANDONED_AFTER = 30.0  # seconds that a connection stays silent after its peer's EOF; nothing else would end it
TICK = 0.001  # seconds; bytes due within the same tick are kept as one
MOST_TICKS = 1000  # per delay; a long delay has longer ticks, so that a peer cannot make the list grow

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What is to go wrong: seconds, bytes, bytes a second, and the chance of each byte, from 0 to 1."""

    delay: tuple[tuple[float, float], ...] = ()  # seconds, and how often
    throttle: int | None = None
    chunk: int | None = None
    corrupt_rate: float = 0.0
    drop_rate: float = 0.0
    duplicate_rate: float = 0.0
    reset_after: int | None = None
    close_after: int | None = None
    stall_after: int | None = None
    accept_delay: float = 0.0
    no_half_close: bool = False
    seed: int = 0

    def __str__(self) -> str:
        """Return what goes wrong, as a person would say it; nothing where nothing does."""
        shares = ", ".join(f"{duration(seconds)} for {typed(share)} %" for seconds, share in self.delay)
        told = [f"delay {shares}"] if self.delay else []
        told += [f"throttle {size(self.throttle)}/s"] if self.throttle is not None else []
        told += [f"chunks of {count(self.chunk, 'byte')}"] if self.chunk is not None else []
        for what in ("corrupt", "drop", "duplicate"):
            rate = getattr(self, f"{what}_rate")
            told += [f"{what} {typed(100 * rate)} % of the bytes"] if rate else []
        for what in ("reset", "close", "stall"):
            after = getattr(self, f"{what}_after")
            told += [f"{what} after {count(after, 'byte')}"] if after is not None else []
        told += [f"accept after {duration(self.accept_delay)}"] if 0 < self.accept_delay < math.inf else []
        told += ["accept no connection"] if self.accept_delay == math.inf else []
        told += ["no half-close"] if self.no_half_close else []
        return ", ".join(told)

    @property
    def left_to_chance(self) -> bool:
        """Whether a seed makes a difference."""
        return len(self.delay) > 1 or any((self.corrupt_rate, self.drop_rate, self.duplicate_rate))

    @property
    def ends_after(self) -> int | None:
        """After how many bytes a connection is reset, closed or stalled, whichever is first."""
        return min(
            (each for each in (self.reset_after, self.close_after, self.stall_after) if each is not None), default=None
        )


class Strikes:
    """Says which bytes of a stream a fault of this `rate` strikes, in constant time a strike."""

    def __init__(self, rate: float, source: Random) -> None:
        self._rate = rate
        self._source = source
        self._left = self._gap()  # bytes that are spared

    def within(self, length: int) -> list[int]:
        """Return the places among the next `length` bytes, in order."""
        places = []
        while self._left < length:
            places.append(int(self._left))
            self._left += 1 + self._gap()
        self._left -= length
        return places

    def _gap(self) -> float:
        """Return how many bytes are spared before the next strike (the geometric distribution)."""
        if self._rate <= 0:
            return math.inf
        if self._rate >= 1:
            return 0
        return math.floor(math.log(1 - self._source.random()) / math.log1p(-self._rate))


@dataclass(slots=True, eq=False)
class Victim:
    """Per-connection fault state."""

    delays: Random
    bits: Random
    corrupt: Strikes
    drop: Strikes
    duplicate: Strikes
    due: deque[tuple[float, int]] = field(default_factory=deque)  # when, and how many bytes of inbound may go then
    echoed: int = 0  # bytes, before anything was done to them
    next_send: float = 0.0  # of a throttled one
    eof: bool = False  # was received, and is answered when all is sent
    stalled: bool = False
    timer: Timer | None = None


class FaultyEchoServer(EchoServer):
    """An echo server with `faults`; the other arguments are those of EchoServer."""

    def __init__(self, loop: EventLoop, listeners: list[socket.socket], *, faults: Faults, **options: Any) -> None:
        self.corrupted = self.dropped = self.duplicated = 0  # bytes
        self._faults = faults
        if faults.no_half_close:  # who does not read must be owed something at EOF, or nothing would be lost
            options["max_buffer"] = max(options.get("max_buffer", 0), UNPAID)
        self._victims: dict[Connection, Victim] = {}
        self._number = 0  # of connections that have sent something
        self._unaccepted: dict[socket.socket, Timer] = {}
        super().__init__(loop, listeners, **options)

    def close(self) -> None:
        """End everything at once, and say what was done to the bytes."""
        for sock, timer in self._unaccepted.items():
            timer.cancel()
            sock.close()
        self._unaccepted.clear()
        super().close()
        if self.corrupted or self.dropped or self.duplicated:
            log.warning(
                "%s corrupted, %d dropped, %d duplicated on request",
                count(self.corrupted, "byte"),
                self.dropped,
                self.duplicated,
            )

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Keep the bytes until they are due."""
        log.debug("%s  holds %s  %s", connection.peer, count(len(data), "byte"), printable(data))
        victim = self._victim(connection)
        if victim.stalled:
            return  # read on, for else nobody would notice that the peer has gone
        due = 0.0
        if self._faults.delay:
            delay = self._delay(victim)
            tick = max(delay / MOST_TICKS, TICK)
            due = math.ceil((self.loop.clock() + delay) / tick) * tick
        length = len(data)
        if victim.due and due <= victim.due[-1][0]:  # for a stream keeps its order
            due, held = victim.due.pop()
            length += held
        victim.due.append((due, length))
        connection.keep(data)
        self._echo(connection, victim)

    def eof_received(self, connection: Connection) -> None:
        """End what we send, too, once it is all sent; without half-close, the connection."""
        victim = self._victim(connection)
        if self._faults.no_half_close:
            connection.abort()
        elif victim.stalled:
            self._abandon(connection, victim)
        elif victim.due:
            victim.eof = True
        else:
            connection.send_eof()

    def drained(self, connection: Connection) -> None:
        """Go on."""
        self._echo(connection, self._victim(connection))

    def forget(self, connection: Connection) -> None:
        """Drop the fault state, too."""
        victim = self._victims.pop(connection, None)
        if victim and victim.timer:
            victim.timer.cancel()
        super().forget(connection)

    def _accepted(self, sock: socket.socket, address: Any) -> None:
        if not self._faults.accept_delay:
            super()._accepted(sock, address)
            return

        def accept() -> None:
            del self._unaccepted[sock]
            try:
                super(FaultyEchoServer, self)._accepted(sock, address)
            except Exception:
                log.exception("%s: a new connection could not be served", format_address(address))
                sock.close()
                self.acceptor.resume()
                self._end_if_drained()

        log.debug("%s  waits to be accepted", format_address(address))
        self._unaccepted[sock] = self.loop.call_later(self._faults.accept_delay, accept)

    @property
    def waiting(self) -> int:
        """How many connections wait to be accepted."""
        return len(self._unaccepted)

    def _victim(self, connection: Connection) -> Victim:
        victim = self._victims.get(connection)
        if victim is None:
            self._number += 1
            faults = self._faults
            delays, bits, corrupt, drop, duplicate = (Random(f"{faults.seed} {self._number} {n}") for n in range(5))
            victim = Victim(
                delays,
                bits,
                Strikes(faults.corrupt_rate, corrupt),
                Strikes(faults.drop_rate, drop),
                Strikes(faults.duplicate_rate, duplicate),
            )
            self._victims[connection] = victim
        return victim

    def _delay(self, victim: Victim) -> float:
        delays, weights = zip(*self._faults.delay, strict=True)
        return float(victim.delays.choices(delays, weights)[0])

    def _echo(self, connection: Connection, victim: Victim) -> None:
        """Send of what is held as much as its faults allow now, and come back for the rest."""
        if victim.timer:
            victim.timer.cancel()
            victim.timer = None
        for _ in range(SENDS_PER_TURN):
            if connection.closed or connection.outbound or victim.stalled:
                return
            if connection.error:  # sending failed: read on at once, because only a read notices the end
                victim.due.clear()
                connection.consume(len(connection.inbound))
                return
            if not victim.due:
                if victim.eof:
                    connection.send_eof()
                return
            wait = max(victim.due[0][0], victim.next_send)
            if wait > self.loop.clock():
                break
            self._send_some(connection, victim)
            if self._at_its_end(connection, victim):
                return
        else:
            wait = self.loop.clock()
        victim.timer = self.loop.call_at(wait, partial(connection.call, self._echo, connection, victim))

    def _send_some(self, connection: Connection, victim: Victim) -> None:
        faults, (due, held) = self._faults, victim.due.popleft()
        length = min(held, faults.chunk or held)
        if faults.throttle:
            length = min(length, max(faults.throttle // SLICES_PER_SECOND, 1))
            since = self.loop.clock() - 1 / SLICES_PER_SECOND  # a timer that is late is no loss
            victim.next_send = max(victim.next_send, since) + length / faults.throttle
        if faults.ends_after is not None:
            length = min(length, faults.ends_after - victim.echoed)
        if length < held:
            victim.due.appendleft((due, held - length))
        data = bytes(connection.inbound[:length])
        connection.consume(length)
        victim.echoed += length
        data = self._spoil(victim, data)
        if data:
            connection.send(data)

    def _spoil(self, victim: Victim, data: bytes) -> bytes:
        spoilt = bytearray(data)
        for place in victim.corrupt.within(len(spoilt)):
            spoilt[place] ^= 1 << victim.bits.randrange(8)
            self.corrupted += 1
        for place in reversed(victim.drop.within(len(spoilt))):
            del spoilt[place]
            self.dropped += 1
        for place in reversed(victim.duplicate.within(len(spoilt))):
            spoilt.insert(place, spoilt[place])
            self.duplicated += 1
        return bytes(spoilt)

    def _at_its_end(self, connection: Connection, victim: Victim) -> bool:
        """Reset, close or stall a connection that has had its bytes, and return whether it has."""
        faults = self._faults
        if faults.ends_after is None or victim.echoed < faults.ends_after:
            return False
        victim.stalled = True
        if faults.ends_after == faults.reset_after:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            connection.abort(ConnectionResetError(f"reset on request after {count(victim.echoed, 'byte')}"))
        elif faults.ends_after == faults.close_after:
            connection.close()
        else:
            victim.due.clear()
            connection.consume(len(connection.inbound))
            if victim.eof:
                self._abandon(connection, victim)
        return True

    def _abandon(self, connection: Connection, victim: Victim) -> None:
        """End a stalled connection later, for its peer has said that it sends nothing more."""
        error = TimeoutError("stalled on request, and abandoned by its peer")
        victim.timer = self.loop.call_later(ABANDONED_AFTER, lambda: connection.abort(error))
