"""Runs the cases of the check against one service, and judges each.

One after the other, so that the case which does the harm is the one that is blamed; and each in a bounded time, longer
on a long path. Where nobody accepts connections any more, the first case that finds this out fails, if the one
before it has not, and what is left is skipped: that is no verdict on it.
"""

from __future__ import annotations

import base64
import logging
import socket
import statistics
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from echopair.address import Address, Dial, Route, tell_unreachable
from echopair.check.peer import MOMENT, Failed, Peer
from echopair.check.script import Resume, Script, sleep, together, wait
from echopair.loop import EventLoop, Timer
from echopair.text import duration, size

BASIC = "basic"  # the case without which no other can be passed
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
LIMIT = 10.0  # seconds for a case, or three times the patience; and beside that
ROUND_TRIPS = 100  # which no case has more of in a row
AT_LENGTH = 3.0  # seconds that repetitions of a round trip may take

log = logging.getLogger(__name__)


class Skipped(Exception):  # noqa: N818 - a verdict
    """Why a case does not apply."""


class Late(Failed):
    """All was well so far, but it took too long."""


class Unreachable(Failed):
    """No connection could be made."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is tried, what it proves, and what usually is the cause if it fails."""

    name: str
    proves: str
    usually: str
    body: Callable[[Check], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case; `seen` says why it failed or was skipped, `usually` what causes that."""

    case: Case
    status: str
    seen: str
    usually: str
    seconds: float


class Check:
    """Runs `cases` against `addresses`, calls `told(outcome)` after each and `done()` after all.

    `patience` is how many seconds may pass without a byte, `connect_timeout` until a connection is made, if that is
    something else; `source` is the local address to connect from. To the cases it is what they connect, send and wait
    with.
    """

    def __init__(
        self,
        loop: EventLoop,
        addresses: Sequence[Address],
        cases: Sequence[Case],
        *,
        told: Callable[[Outcome], object],
        done: Callable[[], object],
        patience: float,
        connect_timeout: float | None = None,
        source: Address | None = None,
        seed: int = 0,
    ) -> None:
        self.loop = loop
        self.addresses = addresses
        self.round_trip = 0.0  # seconds; the median of what making a connection took
        self._patience = patience
        self._connect_timeout = connect_timeout or patience
        self._route = Route(addresses, source=source)
        self._before = ""  # the last case, unless it failed
        self._gone = False
        self._basic_failed = False
        self._seed = seed
        self._left = list(cases)
        self._told = told
        self._done = done
        self._peers: list[Peer] = []
        self._round_trips: list[float] = []
        self._texts = 0
        self._doing = ""
        self._running: tuple[Script, Timer] | None = None
        loop.call_soon(self._next)

    def stop(self) -> None:
        """End where it is."""
        if self._running:
            for each in self._running:
                each.cancel()
            self._end()
        self._left.clear()
        self._done()

    # For the cases

    async def connect(self, *addresses: Address) -> Peer:
        """Return a new connection to the first of `addresses` (by default, of all) that answers."""
        self._doing = f"connection {len(self._peers) + 1} was not made"
        try:
            return await self._connect(Route(addresses, source=self._route.source) if addresses else self._route)
        except Unreachable as error:
            if addresses:
                raise Failed(str(error)) from None  # no word on whether the service is there
            raise

    async def _connect(self, route: Route) -> Peer:
        def start(resume: Resume) -> Callable[[], object]:
            def connected(sock: socket.socket, _address: Address) -> None:
                self._round_trips.append(self.loop.clock() - dial.attempted_at)
                resume(sock)

            def failed(failures: list[tuple[Address, OSError]]) -> None:
                resume(error=Unreachable(tell_unreachable(failures)))

            dial = Dial(self.loop, route, self._connect_timeout, connected, failed)
            return dial.cancel

        sock = await wait(start)
        self.round_trip = statistics.median(self._round_trips)
        self._gone = False
        moment = max(MOMENT, 3 * self.round_trip)
        peer = Peer(self.loop, sock, self._patience, self._note, moment)
        self._peers.append(peer)
        return peer

    def text(self, length: int) -> bytes:
        """Return so many bytes of ASCII letters and digits, unlike all before."""
        self._texts += 1
        source = Random(f"{self._seed} {self._texts}")
        return base64.b64encode(source.randbytes(length * 3 // 4 + 3))[:length].replace(b"+", b"-").replace(b"/", b"_")

    def rounds(self, most: int) -> int:
        """Return how often to do what takes a round trip: so often, or less on a long path."""
        return max(min(most, int(AT_LENGTH / max(self.round_trip, 0.001))), 5)

    async def sleep(self, seconds: float) -> None:
        """Wait so many seconds."""
        await sleep(self.loop, seconds)

    async def together(self, *bodies: Coroutine[Any, Any, Any]) -> list[Any]:
        """Run these side by side."""
        return await together(self.loop, *bodies)

    # Running them

    def _note(self, doing: str) -> None:
        self._doing = doing

    def _next(self) -> None:
        if not self._left:
            self._done()
            return
        case, began = self._left.pop(0), self.loop.clock()
        timer: Timer

        def end(_result: None, error: Exception | None) -> None:
            timer.cancel()
            status, seen = self._judge(error)
            self._end()
            usually = self._usually(case, error) if status == FAILED else ""
            if status != SKIPPED:
                self._before = case.name if status == PASSED else ""
            self.loop.call_soon(self._next)
            self._told(Outcome(case, status, seen, usually, self.loop.clock() - began))

        def give_up(still: float) -> None:
            nonlocal timer
            if still and not self._round_trips:  # nobody was there yet, and there is time to wait for
                timer = self.loop.call_later(still, partial(give_up, 0.0))
                self._running = script, timer
                return
            script.cancel()
            rate = size(sum(peer.received for peer in self._peers) / limit)
            end(None, Late(f"not done within {duration(limit)}: {self._doing} ({rate}/s)"))

        limit = max(LIMIT, 3 * self._patience) + ROUND_TRIPS * self.round_trip
        more = self._connect_timeout * len(self.addresses)
        timer = self.loop.call_later(limit, partial(give_up, more))
        script = Script(self.loop, case.body(self), end)
        self._running = script, timer

    def _judge(self, error: Exception | None) -> tuple[str, str]:
        """Return what became of a case that ended so, and why; whatever is no verdict is a bug."""
        if error is None:
            return PASSED, ""
        if isinstance(error, Skipped):
            return SKIPPED, str(error)
        if not isinstance(error, Failed):
            log.error("a case of the check has a bug", exc_info=error)
            return FAILED, f"a bug in the check itself: {error!r}"
        if isinstance(error, Unreachable) and not self._peers:
            return self._judge_absence(str(error))
        return FAILED, str(error)

    def _usually(self, case: Case, error: Exception | None) -> str:
        """Return what usually is the cause of such a failure, as far as that is known."""
        if isinstance(error, Late):
            return "the service or the path to it is slow: a longer --timeout gives every case more time"
        if self._basic_failed and case.name != BASIC:
            return f"what made {BASIC} fail"
        self._basic_failed = case.name == BASIC
        return case.usually if type(error) is Failed else ""

    def _judge_absence(self, seen: str) -> tuple[str, str]:
        """Return what became of a case to which nobody was there."""
        if not self._round_trips:
            self._left.clear()
            return FAILED, seen
        found_out, self._gone = not self._gone, True
        if found_out and self._before:
            return FAILED, f"{seen}; the case before, {self._before}, was the last that was served"
        return SKIPPED, seen

    def _end(self) -> None:
        for peer in self._peers:
            peer.close()
        self._peers.clear()
        self._running = None
