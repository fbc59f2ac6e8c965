"""Runs the cases of the check against one service, and judges each.

One after the other, so that the case which does the harm is the one that is blamed; and each in a bounded time. Where
nobody accepts connections any more, what is left is skipped: that is no verdict on it.
"""

from __future__ import annotations

import base64
import socket
import statistics
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from echopair.address import Address, Dial, explain, format_address
from echopair.check.peer import Failed, Peer
from echopair.check.script import Resume, Script, sleep, together, wait
from echopair.loop import EventLoop, Timer
from echopair.text import duration, size

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
LIMIT = 10.0  # seconds for a case, or three times the patience


class Skipped(Exception):  # noqa: N818 - a verdict
    """Why a case does not apply."""


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

    `patience` is how many seconds may pass without a byte. To the cases it is what they connect, send and wait with.
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
        seed: int = 0,
    ) -> None:
        self.loop = loop
        self.addresses = addresses
        self.round_trip = 0.0  # seconds; the median of what making a connection took
        self._patience = patience
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
        self._doing = "no connection was made"

        def start(resume: Resume) -> Callable[[], object]:
            def connected(sock: socket.socket, _address: Address) -> None:
                self._round_trips.append(self.loop.clock() - dial.attempted_at)
                resume(sock)

            def failed(failures: list[tuple[Address, OSError]]) -> None:
                told = (
                    f"{format_address(address[1])}: {explain(error, connecting=True)}" for address, error in failures
                )
                resume(error=Unreachable("cannot connect to " + "; ".join(told)))

            dial = Dial(self.loop, addresses or self.addresses, self._patience, connected, failed)
            return dial.cancel

        sock = await wait(start)
        self.round_trip = statistics.median(self._round_trips)
        peer = Peer(self.loop, sock, self._patience, self._note)
        self._peers.append(peer)
        return peer

    def text(self, length: int) -> bytes:
        """Return so many bytes of ASCII letters and digits, unlike all before."""
        self._texts += 1
        source = Random(f"{self._seed} {self._texts}")
        return base64.b64encode(source.randbytes(length * 3 // 4 + 3))[:length].replace(b"+", b"-").replace(b"/", b"_")

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

        def end(_result: None, error: Exception | None) -> None:
            timer.cancel()
            status, seen = self._judge(error)
            self._end()
            usually = case.usually if status == FAILED and not isinstance(error, Unreachable) else ""
            self._told(Outcome(case, status, seen, usually, self.loop.clock() - began))
            self.loop.call_soon(self._next)

        def give_up() -> None:
            script.cancel()
            rate = size(sum(peer.received for peer in self._peers) / limit)
            end(None, Failed(f"not done within {duration(limit)}: {self._doing} ({rate}/s)"))

        limit = max(LIMIT, 3 * self._patience)
        timer = self.loop.call_later(limit, give_up)
        script = Script(self.loop, case.body(self), end)
        self._running = script, timer

    def _judge(self, error: Exception | None) -> tuple[str, str]:
        """Return what became of a case that ended so, and why; whatever is no verdict is a bug, and raised."""
        if error is None:
            return PASSED, ""
        if isinstance(error, Skipped):
            return SKIPPED, str(error)
        if not isinstance(error, Failed):
            raise error
        if isinstance(error, Unreachable) and not self._peers:
            if self._round_trips:  # it could be reached before
                return SKIPPED, str(error)
            self._left.clear()
        return FAILED, str(error)

    def _end(self) -> None:
        for peer in self._peers:
            peer.close()
        self._peers.clear()
        self._running = None
