"""A measured run of the client: the load, its progress, and its result."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from echopair import __version__
from echopair.address import Address, AddressError
from echopair.cli.busy import Busy
from echopair.cli.command import FAILED, OK, Output
from echopair.cli.meter import Lines, Meter, Progress
from echopair.cli.reaching import Reach, target
from echopair.cli.results import Results, timestamp
from echopair.client.load import Load, Plan, Watcher
from echopair.client.session import Failure
from echopair.loop import EventLoop
from echopair.measure.document import Document
from echopair.measure.tally import Tally
from echopair.text import duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from echopair.cli.client_workers import SharedLoad

PUNCTUAL = 0.1  # seconds

log = logging.getLogger(__name__)


def measure(args: argparse.Namespace, output: Output) -> int:
    """Run the load, report its result, and return the exit status."""
    results = Results(args, output)
    if args.rate is not None:
        sharpen_timers()
    with EventLoop() as loop:  # the loop handles signals until all is written
        run = Run(loop, args, output)
        output.failed = run.stop
        try:
            run.reach.run(run.begin, run.stop)
        except AddressError as error:
            if not results.for_programs:
                raise
            run.tally.fail("resolve", "unresolved", str(error))
        finally:
            run.close()
        return results.tell(run.document())


def sharpen_timers() -> None:
    """Ask the kernel to end this thread's sleeps when they are due, not up to 50 us later (proc(5), timerslack_ns)."""
    try:
        with open("/proc/self/timerslack_ns", "w") as file:
            file.write("1")
    except OSError:
        pass  # not Linux, or not allowed: the schedule lag will show it


class Run(Watcher):
    """Watches one load: passes on its reports, and makes the result document at the end."""

    def __init__(self, loop: EventLoop, args: argparse.Namespace, output: Output) -> None:
        self.reach = Reach(loop, args)
        self._loop = loop
        self._args = args
        self._output = output
        self._load: Load | SharedLoad | None = None
        self._no_load = Tally(open_loop=args.rate is not None)  # while there is none
        self._began = time.time()  # by the wall clock
        self._busy = Busy(loop.clock)
        self._generator: Callable[[], Document] = self._this_process
        self._close: Callable[[], object] = lambda: None  # gives back what the load still has
        self._told: set[tuple[str, str]] = set()  # kinds of failures, in this interval
        self._progress = self._choose_progress()

    @property
    def tally(self) -> Tally:
        """The counts of the run."""
        return self._load.tally if self._load else self._no_load

    def begin(self, addresses: list[Address]) -> None:
        """Start the load against these addresses."""
        start_at = self._args.start_at
        if start_at is not None:
            start_at += self._loop.clock() - time.time()
        plan = Plan(
            **{name: getattr(self._args, name) for name in LOAD_OPTIONS if getattr(self._args, name) is not None},
            start_at=start_at,
        )
        if plan.workers > 1:
            from echopair.cli.client_workers import SharedLoad

            self._load = shared = SharedLoad(self._loop, addresses, plan, self)
            self._generator, self._close = shared.generator, shared.close
        else:
            self._load = Load(self._loop, addresses, plan, self)
        self._progress.start(self._loop, self._load)
        self._event("start", {"target": target(self._args), "load": self._asked()})

    def stop(self) -> None:
        """End now."""
        if self._load:
            self._load.stop()
        else:
            self.reach.give_up()

    def close(self) -> None:
        """End what a second signal, or a failure, has left."""
        self._progress.end()
        self._close()

    def load_begun(self) -> None:
        """Note when, by the clocks that others go by; and whether that is later than was asked for."""
        self._began = time.time()
        self._busy.begin()
        late = self._began - (self._args.start_at or self._began) - (self._args.warmup or 0.0)
        if late > PUNCTUAL:
            log.warning("began %s after --start-at: the connections were not made in time", duration(late))

    def interval_ended(self, interval: Document) -> None:
        """Pass the interval on."""
        self._told.clear()
        self._event("interval", interval)
        self._progress.interval(interval)

    def load_failed(self, failure: Failure) -> None:
        """Pass the first failure of a kind in an interval on."""
        if (failure.phase, failure.error) not in self._told:
            self._told.add((failure.phase, failure.error))
            self._event("error", {"phase": failure.phase, "error": failure.error, "example": failure.story})

    def load_over(self) -> None:
        """Note how busy this process was; from here on it only waits."""
        self._busy.end()

    def load_done(self) -> None:
        """End the run."""
        self._progress.end()
        self.reach.done()

    def document(self) -> Document:
        """Return the result document, without the thresholds and their effect on the exit status."""
        seconds = round(self._load.seconds, 6) if self._load else 0.0
        return {
            "schema_version": 1,
            "program": "echo-client",
            "version": __version__,
            "target": target(self._args),
            "started_at": timestamp(self._began),
            "duration_s": seconds,
            "exit_status": self.reach.status or (FAILED if self.tally.went_wrong else OK),
            "load": self._asked(),
            "generator": self._generator(),
            **self.tally.figures(seconds, self._args.percentiles),
            "thresholds": [],
        }

    def _this_process(self) -> Document:
        return self.tally.generator(*self._busy.figures, shared=self._args.loopback)

    def _asked(self) -> Document:
        args = self._args
        return {
            "model": "closed" if args.rate is None else "open",
            "connections": args.conns,
            "workers": args.workers,
            **{name: getattr(args, name) for name in ("size", "pipeline", "rate", "seed", "verify", "count")},
            "warmup_s": args.warmup or 0.0,
            "duration_s": None if args.duration == float("inf") else args.duration,
            **{name: getattr(args, name) for name in ("connect_rate", "reconnect_every")},
        }

    def _event(self, event: str, data: Any) -> None:
        if self._args.json_lines:
            self._output.event(json.dumps({"event": event, "data": data}, allow_nan=False))

    def _choose_progress(self) -> Progress:
        if self._args.interval is not None:
            return Lines()
        if sys.stderr and sys.stderr.isatty() and not self._args.no_progress:
            return Meter()
        return Progress()


LOAD_OPTIONS = (
    "conns",
    "size",
    "seed",
    "verify",
    "pipeline",
    "count",
    "duration",
    "rate",
    "warmup",
    "connect_rate",
    "reconnect_every",
    "source",
    "all_addresses",
    "interval",
    "timeout",
    "connect_timeout",
    "workers",
)
