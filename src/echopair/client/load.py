"""A load: a number of connections, kept up, that send generated messages by a plan; a tally counts the results.

It goes through four stages. First every connection is made; then, if asked for, messages warm the path up; then they
are measured; at the end what is under way comes back, and the connections close. A connection that breaks is counted,
and replaced while there is a duration to fill or connections come and go anyway.

A closed loop sends a message when there is room for it in its connection's pipeline, so a slow server is asked less. An
open loop has a schedule: messages are due at times fixed in advance, and what a stall holds back is sent late and timed
from when it was due (Gil Tene, "How NOT to Measure Latency"; Schroeder et al., "Open Versus Closed", NSDI 2006).
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import cast

from echopair.address import Address, explain, format_address
from echopair.client.echo import CONNECT_TIMEOUT, TIMEOUT, EchoClient
from echopair.client.measured import ENDLESS, MeasuredSession, Schedule
from echopair.client.payload import Payload
from echopair.client.session import FULL, Failure, Session
from echopair.loop import EventLoop, Timer
from echopair.measure.document import Document
from echopair.measure.tally import NS, Tally

CATCH_UP = 1.0  # seconds after the end in which an open loop may still send what was due before it
RETRY_DELAYS = (0.1, 0.2, 0.4, 0.8, 1.0)  # seconds until a broken connection is replaced, and each time that fails
START_GROWTH = 64  # begun sessions for each further one that may begin in the same turn
RELEASED_PER_TURN = 1000  # messages; a schedule that cannot be kept must not keep the loop from its sockets
BROKEN = {"missing", "closed", *errno.errorcode.values()}  # what failures are called of connections that ended early


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to send: sizes in bytes, times in seconds, rates a second; None where there is no such limit."""

    conns: int = 1
    size: int = 1024
    seed: int = 0
    verify: str = FULL
    pipeline: int = 1
    count: int | None = None  # messages measured, in all
    duration: float | None = None  # measured
    rate: float | None = None  # messages due in all: an open loop; None is a closed one
    warmup: float = 0.0
    connect_rate: float | None = None  # connections begun
    reconnect_every: int | None = None  # messages on a connection
    source: Address | None = None  # the local address to connect from
    all_addresses: bool = False  # connections use the addresses that answer in turn
    start_at: float | None = None  # by the loop's clock, not before which messages are sent
    interval: float = 1.0
    timeout: float = TIMEOUT
    connect_timeout: float = CONNECT_TIMEOUT
    worker: int = 0  # which of the processes that share the load this is
    workers: int = 1  # connections are dealt round-robin, and counts are shared

    @property
    def numbers(self) -> range:
        """The connections of this process, from 1."""
        return range(self.worker + 1, self.conns + 1, self.workers)

    @property
    def share(self) -> int | None:
        """How many of the messages measured are for the connections of this process."""
        if self.count is None:
            return None
        whole, rest = divmod(self.count, self.conns)  # the first `rest` connections have one more
        return whole * len(self.numbers) + len(range(self.worker, rest, self.workers))


class Watcher:
    """What a load reports to its owner; each method is called from the loop."""

    def load_tried(self, load: Load) -> None:
        """Begin, or give up if no connection is made; called when each is made or has failed."""
        if load.tally.established:
            load.begin(0.0)
        else:
            load.give_up()

    def load_begun(self) -> None:
        """Note that measuring begins now."""

    def interval_ended(self, interval: Document) -> None:
        """Know the figures of an interval, an entry of a result document's `intervals`."""

    def load_failed(self, failure: Failure) -> None:
        """Know of one failure."""

    def load_over(self) -> None:
        """Note that no more messages will begin; those in flight may still come back."""

    def load_done(self) -> None:
        """Take the result: nothing is in flight any more and the tally is complete."""


class Load:
    """Runs `plan` against the first of `addresses` that answers, or all, fills `tally` and reports to `watcher`.

    `began_at` is when measuring began, by the loop's clock; None before that. `stage` names the current stage in a word
    or two. Raises ValueError for a plan without end.
    """

    def __init__(self, loop: EventLoop, addresses: Sequence[Address], plan: Plan, watcher: Watcher) -> None:
        if plan.count is None and plan.duration is None:
            raise ValueError("a load needs a count of messages or a duration")
        self.plan = plan
        self.tally = Tally(open_loop=plan.rate is not None)
        self.began_at: float | None = None
        self.stage = "connecting"
        self.stopped = False
        self._loop = loop
        self._watcher = watcher
        # Processes that share a load each begin with another address.
        first = plan.worker % len(addresses) if plan.all_addresses else 0
        self._client = EchoClient(
            loop,
            [*addresses[first:], *addresses[:first]],
            ended=self._ended,
            timeout=plan.timeout,
            connect_timeout=plan.connect_timeout,
            source=plan.source,
            all_addresses=plan.all_addresses,
        )
        payload = Payload(plan.size, plan.seed, plan.conns)
        self.sessions = [
            MeasuredSession(
                number,
                iter(()),
                payload=payload,
                tally=self.tally,
                clock=loop.clock,
                established=self._established,
                per_connection=plan.reconnect_every or ENDLESS,
                pieces_per_message=payload.pieces_per_message,
                pipeline=plan.pipeline,
                verify=plan.verify,
                locate=payload.locate,
            )
            for number in plan.numbers
        ]
        self._schedule: Schedule | None = None
        self._next_due = 0  # message of the schedule
        self._last_due = ENDLESS
        self._due_until = inf  # by the loop's clock: messages due later do not count
        self._due_before: list[int] = []  # of each session, before measuring
        self._most_connected = 0  # in this interval
        self._ends_at = 0.0  # the planned end, or that by `stop()`, once it was reached
        self._ending = False  # no message becomes due any more
        self._finished = False
        self._timers: dict[str, Timer] = {}
        self._left = len(self.sessions)  # that are not over
        self._untried = set(self.sessions)  # their first connection is neither made nor failed
        self._retries: dict[MeasuredSession, Timer] = {}  # those to be connected, at once or later
        self._failing: dict[MeasuredSession, tuple[float, int]] = {}  # since when, and how often in a row
        self._next_connect = loop.clock() + (plan.worker / plan.connect_rate if plan.connect_rate else 0.0)
        for session in self.sessions:
            self._connect(session)

    @property
    def connected(self) -> int:
        """How many connections are open."""
        return len(self._client.open)

    @property
    def echoed(self) -> int:
        """How many messages came back."""
        return self.tally.echoed

    @property
    def sent(self) -> int:
        """How many messages were sent, at least in part, without those of the warm-up."""
        return sum(session.begun for session in self.sessions) - sum(self._due_before) if self._due_before else 0

    @property
    def seconds(self) -> float:
        """The length of the measurement: until every message has come back or is given up, and not less than planned.

        `stop()` gives up everything. Closing the connections does not count.
        """
        if self.began_at is None:
            return 0.0
        settled_at = max(session.settled_at for session in self.sessions)
        ends_at = self._ends_at
        if self.plan.rate and self.plan.count and self._next_due >= self._last_due:
            ends_at = max(ends_at, min(self.began_at + self.plan.count / self.plan.rate, self._due_until))
        return max(settled_at, ends_at, self.began_at) - self.began_at

    def stop(self) -> None:
        """End now; what is under way stays unanswered."""
        if not self.stopped:
            self.stopped = True
            now = self._loop.clock()
            if self._schedule and not self._ending:
                self._release_all(min(now, self._due_until))
            self._ends_at = self._ends_at or now
            self._end()
            self._client.stop()

    # Connections

    def _connect(self, session: MeasuredSession, delay: float = 0.0) -> None:
        """Connect a session in `delay` seconds, or later where connections may not be begun so fast."""
        when = self._loop.clock() + delay
        if self.plan.connect_rate:
            when = max(when, self._next_connect)
            self._next_connect = when + self.plan.conns / len(self.sessions) / self.plan.connect_rate
        self._retries[session] = self._loop.call_at(when, partial(self._dial, session))

    def _dial(self, session: MeasuredSession) -> None:
        del self._retries[session]
        self.tally.attempted += 1
        self._client.add(session)

    def _established(self, session: MeasuredSession) -> None:
        self.tally.established += 1
        self.tally.connect.record(int(session.connect_seconds * NS))
        self._count_attempts(session)
        self.tally.connected(session.connection.peer)
        self._most_connected = max(self._most_connected, self.connected)
        self._tried(session)

    def _ended(self, ended: Session) -> None:
        session = cast("MeasuredSession", ended)
        failure, session.failure = session.failure, None
        if failure:
            self._count(failure)
            if failure.phase == "connect":
                self._count_attempts(session)
        if session.in_flight or session.begun < session.limit:
            session.settled_at = self._loop.clock()
        delay = 0.0
        made = failure is None or failure.phase != "connect"
        if made and (session.messages_echoed or not session.in_flight):
            self._failing.pop(session, None)  # it was of use, or nothing was asked of it
        if failure or not session.exhausted:
            since, times = self._failing.get(session, (self._loop.now, 0))
            self._failing[session] = since, times + 1
            delay = RETRY_DELAYS[min(times, len(RETRY_DELAYS) - 1)]
        if self._is_to_be_replaced(session):
            self._connect(session, delay)
        else:
            self._left -= 1
        self._tried(session)
        self._loop.call_soon(self._finish_if_over)

    def _count_attempts(self, session: Session) -> None:
        """Count what failed on the way to a connection, whether or not it was made."""
        for (_, sockaddr), error in session.failed_attempts:
            self.tally.not_connected(format_address(sockaddr), explain(error, connecting=True))

    def _count(self, failure: Failure) -> None:
        self.tally.fail(failure.phase, failure.error, failure.story)
        if failure.phase == "connect":
            self.tally.failed += 1
        elif failure.error in BROKEN:
            self.tally.closed_early += 1
        self._watcher.load_failed(failure)

    def _is_to_be_replaced(self, session: MeasuredSession) -> bool:
        if self._ending or session.begun >= session.limit:
            return False
        if self.plan.duration is not None:
            return True
        if self.plan.reconnect_every is None:
            return False
        since, _ = self._failing.get(session, (self._loop.now, 0))
        return self._loop.now - since < self.plan.timeout  # for nothing else would end a run whose server has gone

    # Stages

    def _tried(self, session: MeasuredSession) -> None:
        """Begin once the first connection of every session has been made or has failed."""
        if self._ending or session not in self._untried:
            return
        self._untried.remove(session)
        if self._untried:
            return
        self.stage = "waiting to begin"
        self._watcher.load_tried(self)

    def give_up(self) -> None:
        """End what has not begun."""
        self._end()

    def begin(self, when: float) -> None:
        """Begin to send, when it is `when` by the loop's clock, or `start_at` if that is later."""
        if not self._ending:
            self._at("begin", max(when, self.plan.start_at or 0.0), self._warm_up)

    def _at(self, name: str, when: float, callback: Callable[[], object]) -> None:
        self._cancel(name)
        self._timers[name] = self._loop.call_at(when, callback)

    def _warm_up(self) -> None:
        now = self._loop.clock()
        if self.plan.rate:
            self._schedule = Schedule(now, self.plan.rate, self.plan.conns)
        for session in self.sessions:
            session.schedule = self._schedule
            session.due = 0 if self._schedule else ENDLESS
        if not self.plan.warmup:
            self._measure(now)
            return
        self.stage = "warming up"
        self._due_until = now + self.plan.warmup
        self._at("measure", self._due_until, lambda: self._measure(self._due_until))
        self._send_on()

    def _measure(self, since: float) -> None:
        """Begin to measure: in an open loop what is due from `since` on, in a closed one what is sent from now on."""
        skipped = 0
        if self._schedule:
            self._release_all(since)
            skipped = sum(session.skip() for session in self.sessions)
        else:
            since = self._loop.clock()
        self.began_at = since
        self.stage = "measuring"
        for session in self.sessions:
            session.since = since
            session.plain_until = 0  # an echo before the session's turn respects the new limit
            if not self._schedule:  # messages in flight belong to the warm-up, even if the clock has not moved since
                session.in_flight = deque((-inf, -inf) for _ in session.in_flight)
        self._due_until = inf if self.plan.duration is None else since + self.plan.duration
        self._due_before = [session.begun for session in self.sessions]
        self.tally.warmup_sent = sum(self._due_before) - skipped
        if self.plan.count is not None:
            conns, share = len(self.sessions), self.plan.share or 0
            whole, rest = divmod(share, conns)
            self._last_due = self._next_due + share
            for place, (session, before) in enumerate(zip(self.sessions, self._due_before, strict=True)):
                session.limit = before + whole + ((place - self._next_due) % conns < rest)
        if self.plan.duration is not None:
            self._at("deadline", self._due_until, self._deadline)
        self._set_interval(0.0)
        self._watcher.load_begun()
        self._send_on()
        for session in self.sessions:
            if session.begun >= session.limit:
                session.go_on()  # it has no message to send, so nothing else would end it

    def _deadline(self) -> None:
        """Begin no more messages, but those that an open loop owes: they have a moment to catch up."""
        self._ends_at = self._due_until
        if self._schedule:
            self._release_all(self._due_until)
        for session in self.sessions:
            session.limit = min(session.limit, session.due if self._schedule else session.begun)
        self._end()
        if self._schedule:
            self._at("catch up", self._ends_at + CATCH_UP, self._give_up)
        self._at("cut", self._ends_at + max(self.plan.timeout, CATCH_UP), self._cut)
        self._go_on()

    def _give_up(self) -> None:
        """Leave what was due and could not be sent."""
        for session in self.sessions:
            if session.begun < session.limit:
                self.tally.not_sent += session.limit - session.begun
                session.limit = session.begun
                session.settled_at = self._loop.clock()
        self._go_on()

    def _cut(self) -> None:
        """End what has not come back in the time that it was given; a trickle is no end."""
        for session in self.sessions:
            if session.live and not session.in_flight:
                session.not_closed(self.plan.timeout)
            elif session.live:
                session.fail("echo", "timeout", f"not all was back {self.plan.timeout:g} s after the end")

    def _end(self) -> None:
        """Connect no more; sessions that have a connection end by themselves."""
        if self._ending:
            return
        self._ending = True
        self.stage = "finishing"
        for name in ("begin", "measure", "pace", "deadline"):
            self._cancel(name)
        self._left -= len(self._retries)
        for timer in self._retries.values():
            timer.cancel()
        self._retries.clear()
        for session in self.sessions:
            if self._client.stop_dialling(session):
                self.tally.attempted -= 1  # neither made nor failed
        self._watcher.load_over()
        self._loop.call_soon(self._finish_if_over)

    def _cancel(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer:
            timer.cancel()

    def _finish_if_over(self) -> None:
        if self._left or self._finished:
            return
        self._finished = True
        self._end()
        for name in ("catch up", "cut", "interval"):
            self._cancel(name)
        if self.began_at is None:
            self.tally.not_sent = 0 if self.stopped else self.plan.share or 0
        else:
            for session, before in zip(self.sessions, self._due_before, strict=True):
                self.tally.not_sent += self._not_sent(session, before)
            self.tally.sent = self.sent
            self.tally.bytes_sent, self.tally.bytes_received = self._bytes()
            self._end_interval(self.seconds)
        self._watcher.load_done()

    def _not_sent(self, session: MeasuredSession, before: int) -> int:
        """Return how many messages a session should have sent and did not: those due or, of a count, those missing."""
        if self.stopped or session.limit == ENDLESS:
            owed = min(session.due, session.limit) if self._schedule else 0
        else:
            owed = session.limit
        return max(owed - max(session.begun, before), 0)

    # Messages and intervals

    def _go_on(self) -> None:
        for session in self.sessions:
            session.go_on()

    def _send_on(self) -> None:
        """Begin to send: in a closed loop all that there is room for, in an open one what is due."""
        if self._schedule:
            self._pace()
        else:
            self._go_on_from(0)

    def _go_on_from(self, place: int) -> None:
        """Let sessions begin, one per turn at first and then more, so that no time includes waiting for the others."""
        end = place + 1 + place // START_GROWTH
        for session in self.sessions[place:end]:
            session.go_on()
        if end < len(self.sessions):
            self._loop.call_soon(partial(self._go_on_from, end))

    def _pace(self) -> None:
        """Send what is due, as far as there is room for it, and come back when the next message is.

        How late we come to a message is our own share of its response time, the schedule lag.
        """
        assert self._schedule is not None  # noqa: S101 - only an open loop is paced
        now, most = self._loop.clock(), min(self._next_due + RELEASED_PER_TURN, self._last_due)
        while (due := self._due(self._next_due)) <= now and due < self._due_until and self._next_due < most:
            session = self.sessions[self._next_due % len(self.sessions)]
            if due >= session.since:
                self.tally.schedule_lag.record(int((self._loop.clock() - due) * NS))
            self._next_due += 1
            session.due += 1
            session.go_on()
        if due < self._due_until and self._next_due < self._last_due:
            self._at("pace", due, self._pace)

    def _release_all(self, end: float) -> None:
        """Declare due at once what is due before `end`, however much that is; it is sent as there is room."""
        assert self._schedule is not None  # noqa: S101 - only an open loop is paced
        self._cancel("pace")
        turns, rest = divmod(self._schedule.due_before(end), self.plan.conns)
        ours = turns * len(self.sessions) + len(range(self.plan.worker, rest, self.plan.workers))
        first, self._next_due = self._next_due, min(ours, self._last_due)
        skipped = self._next_due - first
        if skipped > 0 and self._due(first) >= self.sessions[0].since:
            now = self._loop.clock()
            least, most = (int((now - self._due(message)) * NS) for message in (self._next_due - 1, first))
            self.tally.schedule_lag.record_evenly(max(least, 0), max(most, 0), skipped)
        for place, session in enumerate(self.sessions):
            session.due = (self._next_due - place + len(self.sessions) - 1) // len(self.sessions)

    def _due(self, ours: int) -> float:
        """Return when message number `ours` of this process is due."""
        assert self._schedule is not None  # noqa: S101 - only an open loop is paced
        turns, place = divmod(ours, len(self.sessions))
        return self._schedule.due(turns * self.plan.conns + self.plan.worker + place * self.plan.workers)

    def _set_interval(self, at: float) -> None:
        """End the next interval at the next multiple of its length after `at` seconds."""
        assert self.began_at is not None  # noqa: S101 - intervals are of what is measured
        plan, width = self.plan, self.plan.interval
        at = (int(at / width + 0.01) + 1) * width  # a timer may be slightly early
        planned = min(plan.duration or inf, plan.count / plan.rate if plan.count and plan.rate else inf)
        if abs(at - planned) < width / 4:
            at += width  # what comes back soon after the planned end is in the same interval
        self._at("interval", self.began_at + at, self._interval)

    def _interval(self) -> None:
        """End an interval, unless the run is over and only connections are still closing."""
        assert self.began_at is not None  # noqa: S101 - its timer was set
        at = self._loop.clock() - self.began_at
        live = [session for session in self.sessions if session.live]
        if len(live) < self._left or any(each.in_flight or each.begun < each.limit for each in live):
            self._end_interval(at)
        self._set_interval(at)

    def _end_interval(self, at: float) -> None:
        connections = self._most_connected if self._finished else self.connected
        self._most_connected = self.connected
        self._watcher.interval_ended(self.tally.end_interval(at, self._bytes()[1], connections))

    def _bytes(self) -> tuple[int, int]:
        """Return how many bytes were sent and received, without those of the warm-up."""
        sent, received = self._client.bytes_moved()
        sent -= self.tally.warmup_sent * self.plan.size
        received -= self.tally.warmup_echoed * self.plan.size + self.tally.warmup_partly
        return max(sent, 0), max(received, 0)
