"""What a run counts while it goes on: messages, connections, bytes, times, errors; and the intervals it falls into.

Pure: its owner says how long a thing took and when an interval ends. Nothing is kept for each message: a time goes into
a histogram at once, that of the current interval, which at the interval's end is added to that of the run. A few
figures are kept of each ended interval; in long runs neighbours are joined (`bounded`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields

from echopair.measure.document import NS_PER_US, Document, bounded, dumped, summary, throughput
from echopair.measure.histogram import Histogram

NS = 1_000_000_000  # nanoseconds a second
INTERVAL_PERCENTS = (50, 99)
BUSY = 95.0  # per cent of one processor; from there on a client is measured, not a server
TELLING = 0.1  # seconds; CPU time comes in ticks of up to 10 ms
LATE = 5_000_000  # nanoseconds; more is not the 1 ms of a coarse timer, but a client that cannot follow


@dataclass(slots=True)
class ErrorCount:
    """How often a phase failed for a cause, and the first example of that."""

    example: str
    count: int = 0


@dataclass(slots=True)
class AddressCount:
    """How many connections to an address were made, how many attempts failed, and the first example of that."""

    connections: int = 0
    failed: int = 0
    example: str | None = None


@dataclass(slots=True, eq=False)
class Tally:
    """The counts of one run. `open_loop` says whether messages are due by a schedule."""

    open_loop: bool = False
    sent: int = 0
    mismatched: int = 0
    unanswered: int = 0
    not_sent: int = 0
    warmup_sent: int = 0  # messages; these two are in no other figure
    warmup_echoed: int = 0
    warmup_partly: int = 0  # bytes that came back of messages that did not
    attempted: int = 0
    established: int = 0
    failed: int = 0
    closed_early: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    errors: dict[tuple[str, str], ErrorCount] = field(default_factory=dict)
    addresses: dict[str, AddressCount] = field(default_factory=dict)
    intervals: list[Document] = field(default_factory=list)
    recent: Histogram = field(default_factory=Histogram)  # response times of the current interval
    service: Histogram = field(default_factory=Histogram)  # empty in a closed loop, where it equals the response time
    schedule_lag: Histogram = field(default_factory=Histogram)
    connect: Histogram = field(default_factory=Histogram)
    _response: Histogram = field(default_factory=Histogram)  # of the intervals that have ended
    last: Histogram = field(default_factory=Histogram)  # response times of the interval that ended last
    interval_from: float = 0.0
    _seen: tuple[int, int] = (0, 0)  # bytes and errors up to there
    _round_trips: int = 0  # microseconds, the sum over `_measured` connections
    _measured: int = 0
    _retransmits: int = 0

    @property
    def echoed(self) -> int:
        """How many messages came back."""
        return self._response.count + self.recent.count

    @property
    def error_count(self) -> int:
        """How many things failed."""
        return sum(error.count for error in self.errors.values())

    @property
    def errors_in_interval(self) -> bool:
        """Whether something has failed since the last interval ended."""
        return self.error_count > self._seen[1]

    @property
    def went_wrong(self) -> bool:
        """Whether anything failed, was due and not sent, or came back different or not at all."""
        return bool(self.errors or self.mismatched or self.unanswered or self.not_sent)

    def fail(self, phase: str, error: str, story: str) -> None:
        """Count one failure."""
        self.errors.setdefault((phase, error), ErrorCount(story)).count += 1

    def connected(self, address: str) -> None:
        """Count one connection made to an address."""
        self.addresses.setdefault(address, AddressCount()).connections += 1

    def not_connected(self, address: str, story: str) -> None:
        """Count one failed attempt to connect to an address; the connection may still be made to another one."""
        count = self.addresses.setdefault(address, AddressCount())
        count.failed += 1
        count.example = count.example or story

    def tcp(self, round_trip_us: int, retransmits: int) -> None:
        """Add what the kernel says of a connection that ends (tcp(7), TCP_INFO)."""
        self._round_trips += round_trip_us
        self._measured += 1
        self._retransmits += retransmits

    def add(self, other: Tally) -> None:
        """Add what another process counted of the same run; its intervals are left to the caller."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in HISTOGRAMS:
            getattr(self, name).merge(getattr(other, name))
        for kind, error in other.errors.items():
            self.errors.setdefault(kind, ErrorCount(error.example)).count += error.count
        for address, theirs in other.addresses.items():
            ours = self.addresses.setdefault(address, AddressCount())
            ours.connections += theirs.connections
            ours.failed += theirs.failed
            ours.example = ours.example or theirs.example

    def end_interval(self, at: float, bytes_received: int, connections: int) -> Document:
        """End the interval, `at` seconds after the start, and return its entry for the document.

        Times are rounded before they are subtracted, so that durations add up to the whole.
        """
        at = round(at, 6)
        self.last = ended = self.recent
        self.recent = Histogram()
        self._response.merge(ended)
        data, errors = self._seen
        self._seen = bytes_received, self.error_count
        some = ended.count > 0
        percentiles = {str(p): (ended.percentile(p) or 0) / NS_PER_US if some else None for p in INTERVAL_PERCENTS}
        interval = {
            "at_s": at,
            "duration_s": round(max(at - self.interval_from, 0.0), 6),
            "messages": ended.count,
            "bytes": max(bytes_received - data, 0),
            "errors": self.error_count - errors,
            "connections": connections,
            "response_us": {**percentiles, "max": ended.max / NS_PER_US if some else None},
        }
        self.interval_from = at
        self.intervals = bounded([*self.intervals, interval])
        return interval

    def generator(self, busy: float, waited: float, seconds: float, *, shared: bool) -> Document:
        """Return whether the client was the bottleneck, and why; `shared` says that the server is in this process.

        It had a processor for `busy` seconds and waited for one for `waited` seconds, in `seconds` of the run; in too
        short a time that tells nothing.
        """
        telling = seconds >= TELLING
        cpu_percent = min(100 * busy / seconds, 100.0) if telling else None
        late = self.schedule_lag.percentile(99.9) or 0
        # Messages that were lost took longer than any other.
        lost = self.mismatched + self.unanswered + self.not_sent
        most_came_back = 1000 * lost <= self._response.count + lost
        slow = (self._response.percentile(99.9) or 0) if most_came_back else math.inf
        reasons = []
        if cpu_percent is not None and cpu_percent >= BUSY:
            reasons.append(f"its CPU was {cpu_percent:.0f} % busy" + (", with the server in it (--loopback)" * shared))
        elif telling and 100 * (busy + waited) / seconds >= BUSY:
            reasons.append(f"its CPU was {cpu_percent:.0f} % busy, and others kept it waiting for more")
        if late >= LATE and 10 * late >= slow:  # else that is not why it was slow
            reasons.append(f"it was {late / 1e6:.1f} ms behind its own schedule (p99.9)")
        return {
            "cpu_percent": None if cpu_percent is None else round(cpu_percent, 1),
            "limited": bool(reasons),
            "reason": " and ".join(reasons) or None,
        }

    def figures(self, seconds: float, percents: Iterable[str]) -> Document:
        """Return the part of a result document with these counts, for a run that took `seconds`."""
        percents = tuple(percents)
        self._response.merge(self.recent)
        self.recent = Histogram()
        histograms = {
            "response": self._response,
            "service": self.service if self.open_loop else self._response,
            "connect": self.connect,
            "schedule_lag": self.schedule_lag if self.open_loop else None,
        }
        counts = {
            "connections": ("attempted", "established", "failed", "closed_early"),
            "messages": ("sent", "echoed", "mismatched", "unanswered", "not_sent"),
        }
        return {
            **{what: {name: getattr(self, name) for name in names} for what, names in counts.items()},
            "addresses": [{"address": address, **asdict(each)} for address, each in self.addresses.items()],
            "bytes": {"sent": self.bytes_sent, "received": self.bytes_received},
            "throughput": throughput(self.echoed, self.bytes_received, seconds),
            "latency_us": {name: each and summary(each, percents) for name, each in histograms.items()},
            "histograms": {name: each and dumped(each) for name, each in histograms.items()},
            "intervals": self.intervals,
            "tcp": {"rtt_us": round(self._round_trips / self._measured, 3), "retransmits": self._retransmits}
            if self._measured
            else None,
            "errors": [
                {"phase": phase, "error": name, "count": error.count, "example": error.example}
                for (phase, name), error in self.errors.items()
            ],
        }


COUNTS = [each.name for each in fields(Tally) if each.type == "int"]
HISTOGRAMS = ["service", "schedule_lag", "connect", "_response"]
