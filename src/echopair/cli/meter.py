"""What a load shows on standard error while it goes on: a live meter on a terminal, or a line an interval."""

from __future__ import annotations

import sys
from typing import NamedTuple

from echopair.cli.command import columns, wants_colour
from echopair.cli.streams import Aside
from echopair.loop import EventLoop, Timer
from echopair.measure.document import Document
from echopair.text import count, duration, figure, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from echopair.cli.client_workers import SharedLoad
    from echopair.client.load import Load

REDRAWN = 0.25  # seconds from one drawing of the meter to the next
BAR = 12  # columns
HEAD = ("time", "messages/s", "bytes/s", "p50", "p99", "max", "conns", "errors")
WIDTHS = (9, 12, 13, 10, 10, 10, 8, 8)
BOLD, RED, DIM, PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[2m", "\x1b[m"
CLEAR = "\r\x1b[K"  # the line (ECMA-48 8.3.41, EL)


class Progress:
    """Shows nothing."""

    def start(self, loop: EventLoop, load: Load | SharedLoad) -> None:
        """Begin to show `load`."""

    def interval(self, interval: Document) -> None:
        """Show an interval that has ended."""

    def end(self) -> None:
        """Show no more; it may be called again."""


class Lines(Progress):
    """A table that grows by a line an interval."""

    def __init__(self) -> None:
        self._aside = Aside()

    def start(self, loop: EventLoop, load: Load | SharedLoad) -> None:  # noqa: ARG002 - the arguments are those of Progress
        """Write the head of the table."""
        self._line(HEAD)

    def interval(self, interval: Document) -> None:
        """Write one line."""
        messages, data, *latencies = _figures(interval)
        numbers = (f"{interval[key]:,}" for key in ("connections", "errors"))
        self._line((f"{interval['at_s']:.2f} s", messages, f"{data}/s", *latencies, *numbers))

    def end(self) -> None:
        """Write no more."""
        self._aside.close()

    def _line(self, cells: tuple[str, ...]) -> None:
        self._aside.write("".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)) + "\n")


class Part(NamedTuple):
    """A piece of the meter's line; where the terminal is narrow, those of the highest rank are left out first."""

    rank: int
    text: str
    style: str = ""


class Meter(Progress):
    """One line on a terminal, drawn over and over: how far the load is, and the figures of its last interval."""

    def __init__(self) -> None:
        self._aside = Aside()
        self._colour = wants_colour(sys.stderr)
        self._drawn = "utf" in (sys.stderr.encoding or "").lower()
        self._last: Document | None = None
        self._timer: Timer | None = None

    def start(self, loop: EventLoop, load: Load | SharedLoad) -> None:
        """Draw the meter from now on."""
        self._loop = loop
        self._since = loop.clock()
        self._load = load
        self._draw()

    def interval(self, interval: Document) -> None:
        """Show these figures from now on."""
        self._last = interval

    def end(self) -> None:
        """Wipe the meter out."""
        if self._timer:
            self._timer.cancel()
        self._aside.write(CLEAR)
        self._aside.close()

    def _draw(self) -> None:
        self._timer = self._loop.call_later(REDRAWN, self._draw)
        room = columns(2) - 1
        parts = self._parts()
        while sum(len(part.text) for part in parts) > room and len(parts) > 1:
            parts.remove(max(parts, key=lambda part: part.rank))
        line = "".join(f"{part.style}{part.text}{PLAIN}" if self._colour else part.text for part in parts)
        self._aside.write(CLEAR + line)

    def _parts(self) -> list[Part]:
        load = self._load
        if load.began_at is None:
            connected = f" {load.connected:,} of {load.plan.conns:,}" if load.stage == "connecting" else ""
            return [Part(0, f"{load.stage}{connected} .. {self._loop.clock() - self._since:.0f} s")]
        elapsed = self._loop.clock() - load.began_at
        done, left = self._done(elapsed)
        parts = self._bar(done) if done is not None else []
        parts.append(Part(0, f"{elapsed:.1f} s", BOLD))
        if left is not None:
            parts.append(Part(3, f", {left:.0f} s left"))
        if load.stage == "finishing":
            parts.append(Part(2, ", waiting for the last to come back"))
        if self._last:
            messages, data, p50, p99, _ = _figures(self._last)
            parts.append(Part(1, f"  {messages} messages/s", BOLD))
            parts.append(Part(4, f"  {data}/s"))
            parts.append(Part(2, f"  p50 {p50}  p99 {p99}"))
        errors = load.tally.error_count
        parts.append(Part(0, f"  {count(errors, 'error')}", RED if errors else DIM))
        return parts

    def _done(self, elapsed: float) -> tuple[float | None, float | None]:
        """Return which share of the load is done, and how many seconds the rest takes, as far as that is known."""
        plan = self._load.plan
        if plan.duration is not None and plan.duration < float("inf"):
            return min(elapsed / plan.duration, 1.0), max(plan.duration - elapsed, 0.0)
        if plan.count:
            done = min(self._load.echoed / plan.count, 1.0)
            return done, elapsed / done - elapsed if done else None
        return None, None

    def _bar(self, done: float) -> list[Part]:
        full = round(done * BAR)
        on, off = "━━" if self._drawn and self._colour else "#-"
        return [Part(5, on * full, BOLD), Part(5, off * (BAR - full) + "  ", DIM)]


def _figures(interval: Document) -> tuple[str, str, str, str, str]:
    """Return an interval's messages a second, bytes a second, and p50, p99 and max of response time."""
    seconds = interval["duration_s"] or 1.0
    times = (interval["response_us"][key] for key in ("50", "99", "max"))
    p50, p99, most = ("-" if us is None else duration(us / 1e6) for us in times)
    return figure(interval["messages"] / seconds), size(interval["bytes"] / seconds), p50, p99, most
