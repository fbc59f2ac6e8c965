"""Runs the cases of the check against one service, and judges each.

They run one after the other, so that a failure points at the case that caused it. Each has a time limit, longer on a
long path. If no connection is accepted any more, the first case that notices fails, unless the case before it has
failed, and the rest are skipped: that is no verdict on them. If not even a plain message comes back, only cases that
need no echo are still run.
"""

from __future__ import annotations

import base64
import logging
import socket
import statistics
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from random import Random
from typing import Any

from echopair.address import Address, Dial, Route, tell_unreachable
from echopair.check.hint import Path, Seen, hint
from echopair.check.peer import ROUND_TRIPS_KEPT, Failed, Late, Peer
from echopair.check.script import Resume, Script, sleep, together, wait
from echopair.loop import EventLoop, Timer
from echopair.text import duration, size

BASIC = "basic"  # the case without which no other can be passed
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
LITTLE_PATIENCE = 1.0  # seconds, once basic has failed
ROUND_TRIPS = 100  # which no case has more of in a row
TICK = 0.001  # seconds; shorter waits are none
AT_LENGTH = 3.0  # seconds that repetitions of a round trip may take

TOO_SLOW = "the service or the path to it is slow: a longer --timeout gives every case more time"

log = logging.getLogger(__name__)


class Skipped(Exception):  # noqa: N818 - a verdict
    """Why a case does not apply."""


class Unreachable(Failed):
    """No connection could be made."""


class Slow(Late):
    """Nothing was wrong, but the case was not done in time."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how much the cases try, in seconds and bytes, unless a case says otherwise."""

    delayed: float = 0.030  # above the round trip; a delayed ACK takes 40 ms (RFC 1122 4.2.3.2: at most 500)
    limit: float = 10.0  # of a case, or three times the patience; beside what it sleeps, and ROUND_TRIPS
    idle: float = 2.0  # without a byte
    unread: float = 1.3  # without the peer reading any
    pause: float = 0.015  # between reads of a peer that has sent EOF, for as long as `unread` in all
    life: float = 30.0  # of a connection in use
    volume: int = 64 * 1024 * 1024  # on a connection
    hoard: int = 256 * 1024 * 1024  # taken while nothing is read back
    crowd: int = 1000  # connections, one after the other
    enough: float = 20.0  # for the last three each; on a slow path they end without a verdict


STANDARD = Plan()
THOROUGH = replace(STANDARD, idle=20.0, unread=4.0, pause=0.08)


@dataclass(frozen=True, slots=True)
class Case:
    """One case: what it proves, and what usually is the cause if it fails.

    `needs_echo`: it is not run if basic fails. `thorough`: it is run only with --thorough, because it takes long.
    """

    name: str
    proves: str
    usually: str
    body: Callable[[Check], Coroutine[Any, Any, None]]
    needs_echo: bool = True
    thorough: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case; `seen` says why it failed or was skipped, `usually` what causes that."""

    case: Case
    status: str
    seen: str
    usually: str
    seconds: float


class Check:
    """Runs `cases` against `addresses`; calls `begun(case)` and `told(outcome)` for each, and `done()` after all.

    `patience` is how many seconds may pass without a byte; `connect_timeout` is the same for connecting, if it differs.
    `source` is the local address to connect from. The cases use a Check to connect, send and wait. `reason` says why
    cases were left out; "" if none was.
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
        plan: Plan = STANDARD,
        begun: Callable[[Case], object] = lambda _case: None,
    ) -> None:
        self.loop = loop
        self.addresses = addresses
        self.plan = plan
        self.reason = ""
        self._patience = patience
        self._connect_timeout = connect_timeout or patience
        self._route = Route(addresses, source=source)
        self._before = ""  # the last case, unless it failed
        self._gone = False
        self.basic_failed = False
        self._seed = seed
        self._left = list(cases)
        self._begun = begun
        self._told = told
        self._done = done
        self._peers: list[Peer] = []
        self._connects: deque[float] = deque(maxlen=ROUND_TRIPS_KEPT)  # seconds, each
        self._echoes: deque[float] = deque(maxlen=ROUND_TRIPS_KEPT)
        self._slept = 0.0  # seconds, by the case that runs, on purpose
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

    @property
    def connecting(self) -> float:
        """Return the median of the seconds in which connections were made."""
        return statistics.median(self._connects or (0.0,))

    @property
    def round_trip(self) -> float:
        """Return the seconds of a round trip: of small echoes, or of connecting until one has come back.

        Only an echo goes the whole way; a proxy that is near may accept the connection.
        """
        return statistics.median(self._echoes) if self._echoes else self.connecting

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
                self._connects.append(self.loop.clock() - dial.attempted_at)
                resume(sock)

            def failed(failures: list[tuple[Address, OSError]]) -> None:
                resume(error=Unreachable(tell_unreachable(failures), Seen(ended=True)))

            dial = Dial(self.loop, route, self._connect_timeout, connected, failed)
            return dial.cancel

        sock = await wait(start)
        self._gone = False
        peer = Peer(self.loop, sock, self._patience, self._note, self._echoes)
        self._peers.append(peer)
        return peer

    def text(self, length: int) -> bytes:
        """Return `length` bytes of ASCII letters and digits, different from all before."""
        self._texts += 1
        source = Random(f"{self._seed} {self._texts}")
        return base64.urlsafe_b64encode(source.randbytes(length * 3 // 4 + 3))[:length]

    def rounds(self, most: int) -> Iterator[int]:
        """Count to `most`, for rounds of one round trip each; stop after AT_LENGTH seconds, but not before 5 rounds."""
        until = self.loop.clock() + AT_LENGTH
        return takewhile(lambda number: number < 5 or self.loop.clock() < until, range(most))

    async def sleep(self, seconds: float) -> None:
        """Wait some seconds; the time limit of the case grows by them."""
        self._slept += seconds
        await sleep(self.loop, seconds)

    async def leave_unread(self, peer: Peer) -> None:
        """Read nothing for a while; then be patient for longer: the sender may have backed off (RFC 6298 5.5)."""
        await self.sleep(self.plan.unread)
        peer.patience += self.plan.unread

    def allow(self, until: float, so_far: str) -> None:
        """End the case without a verdict if it is later than `until`: the path is slow."""
        if self.loop.clock() > until:
            raise Skipped(f"{so_far} within {duration(self.plan.enough)}")

    async def together(self, *bodies: Coroutine[Any, Any, Any]) -> list[Any]:
        """Run these at the same time."""
        return await together(self.loop, *bodies)

    # Running them

    def _note(self, doing: str) -> None:
        self._doing = doing

    def _next(self) -> None:
        if not self._left:
            self._done()
            return
        case, began = self._left.pop(0), self.loop.clock()
        self._slept = 0.0
        timer: Timer

        def end(_result: None, error: Exception | None) -> None:
            timer.cancel()
            status, seen = self._judge(error)
            path = self._end()
            usually = self._usually(case, error, path) if status == FAILED else ""
            if status != SKIPPED:
                self._before = case.name if status == PASSED else ""
            self.loop.call_soon(self._next)
            self._told(Outcome(case, status, seen, usually, self.loop.clock() - began))

        def limit() -> float:
            return max(self.plan.limit, 3 * self._patience) + ROUND_TRIPS * self.round_trip + self._slept

        def give_up() -> None:
            nonlocal timer
            more = 0.0 if self._connects else self._connect_timeout * len(self.addresses)
            if (left := began + limit() + more - self.loop.clock()) > TICK:
                timer = self.loop.call_later(left, give_up)
                self._running = script, timer
                return
            script.cancel()
            rate = size(sum(peer.received for peer in self._peers) / limit())
            end(None, Slow(f"not done within {duration(limit())}: {self._doing} ({rate}/s)"))

        self._begun(case)
        timer = self.loop.call_later(limit(), give_up)
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

    def _usually(self, case: Case, error: Exception | None, path: Path | None) -> str:
        """Return what usually is the cause of such a failure, as far as that is known."""
        if case.name == BASIC and not isinstance(error, Unreachable):
            self._leave_out_echoes()
        if not isinstance(error, Failed) or (isinstance(error, Unreachable) and not error.seen.served):
            return ""
        late = isinstance(error, Late)
        seen = replace(error.seen, late=late, echoed=not self.basic_failed, path=path)
        return hint(seen) or (TOO_SLOW if isinstance(error, Slow) else case.usually)

    def _leave_out_echoes(self) -> None:
        self.basic_failed = True
        self._patience = min(self._patience, LITTLE_PATIENCE)
        left = [case for case in self._left if not case.needs_echo]
        if len(left) < len(self._left):
            self.reason = f"{BASIC} failed, and the other cases need what it tests"
        self._left = left

    def _judge_absence(self, seen: str) -> tuple[str, str]:
        """Return the outcome of a case that could not connect."""
        if not self._connects:
            self._left.clear()
            return FAILED, seen
        found_out, self._gone = not self._gone, True
        if found_out and self._before:
            return FAILED, f"{seen}; the case before, {self._before}, was the last that was served"
        return SKIPPED, seen

    def _end(self) -> Path | None:
        """Close the connections; return what the kernel knows about their path."""
        for peer in self._peers:
            peer.close()
        paths = [peer.path for peer in self._peers if peer.path]
        self._peers.clear()
        self._running = None
        return sum_of(paths) if paths else None


def sum_of(paths: Sequence[Path]) -> Path:
    """Return what several connections know about one path."""
    return Path(
        sum(path.lost for path in paths),
        sum(path.segments for path in paths),
        max(path.unanswered for path in paths),
        max(path.segment_bytes for path in paths),
        sum(path.out_of_order for path in paths),
        any(path.large and path.unanswered for path in paths),
    )
