"""A load shared by several processes: connections are dealt round-robin, and the parent adds up the counts.

The parent starts the processes, lets them begin at the same moment once all have their connections, and passes on
their reports. To its watcher a shared load looks like any other. It reports an interval when the last process has
reported it. Histograms are added, percentiles never averaged.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from echopair.address import Address
from echopair.cli.busy import Busy
from echopair.cli.command import OK
from echopair.cli.forking import ending, spawn
from echopair.client.load import CATCH_UP, Load, Plan, Watcher
from echopair.client.session import Failure
from echopair.connection import Connection, Handler
from echopair.loop import SIGKILL, EventLoop, Timer
from echopair.measure.document import Document
from echopair.measure.histogram import Histogram
from echopair.measure.tally import Tally

AHEAD = 0.02  # seconds from the message to begin to the beginning: it must reach every process
GRACE = 2.0  # seconds that a worker may be late
TOLD = 0.25  # seconds between two reports of progress
PATIENCE = 10  # intervals; the others do not wait for a process that is further behind
LENGTH = 8  # bytes before each message between processes: how long it is

Interval = tuple[float, Document, Histogram]  # when it ended, its figures, its response times


class Messages(Handler):
    """Reads messages, each a name and arguments, and calls the method `on_<name>`. Both ends are this program."""

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Act on the messages that are complete."""
        connection.keep(data)
        while len(connection.inbound) >= LENGTH:
            end = LENGTH + int.from_bytes(connection.inbound[:LENGTH], sys.byteorder)
            if len(connection.inbound) < end:
                break
            name, *arguments = pickle.loads(connection.inbound[LENGTH:end])  # noqa: S301 - from our own process
            connection.consume(end)
            getattr(self, f"on_{name}")(*arguments)


def tell(connection: Connection, name: str, *arguments: object) -> None:
    """Send a message to the process at the other end."""
    data = pickle.dumps((name, *arguments), pickle.HIGHEST_PROTOCOL)
    connection.send(len(data).to_bytes(LENGTH, sys.byteorder) + data)


class Reporter(Messages, Watcher):
    """A process's end: runs its share of the load, reports to the parent, begins and stops on its messages."""

    def __init__(self, loop: EventLoop, sock: socket.socket, addresses: Sequence[Address], plan: Plan) -> None:
        self._loop = loop
        self._busy = Busy(loop.clock)
        self._parent = Connection(loop, sock, self, "parent", max_buffer=sys.maxsize)
        self._load = Load(loop, addresses, plan, self)
        self._timer: Timer
        self._tick()

    def on_begin(self, when: float) -> None:
        """Begin, with all others."""
        self._load.begin(when)

    def on_give_up(self) -> None:
        """Give up: nobody has a connection."""
        self._load.give_up()

    def on_stop(self) -> None:
        """End now."""
        self._load.stop()

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:  # noqa: ARG002 - of Handler
        """End: everything is reported, or the parent is gone."""
        self._timer.cancel()
        self._loop.stop()

    def load_tried(self, load: Load) -> None:
        """Tell so, and whether any connection is made: those of others may be enough to begin."""
        tell(self._parent, "ready", load.tally.established > 0)

    def load_begun(self) -> None:
        """Tell so."""
        self._busy.begin()
        tell(self._parent, "begun", self._load.began_at)

    def interval_ended(self, interval: Document) -> None:
        """Tell the figures, and the histogram that some of them are from."""
        tell(self._parent, "interval", interval, self._load.tally.last)

    def load_failed(self, failure: Failure) -> None:
        """Tell of it."""
        tell(self._parent, "failed", failure)

    def load_over(self) -> None:
        """Tell so."""
        self._busy.end()
        tell(self._parent, "over")

    def load_done(self) -> None:
        """Tell everything, and end."""
        self._timer.cancel()
        self._tell_progress()
        tally = self._load.tally
        generator = tally.generator(*self._busy.figures, shared=False)
        tally.intervals = []
        ends_at = (self._load.began_at or 0.0) + self._load.seconds
        tell(self._parent, "done", tally, ends_at, generator)
        self._parent.send_eof()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TOLD, self._tick)  # set only here, so that no timer is left uncancelled
        self._tell_progress()

    def _tell_progress(self) -> None:
        tell(self._parent, "progress", self._load.connected, self._load.tally.echoed)


@dataclass(slots=True, eq=False)
class Worker(Messages):
    """The parent's end of a process, and what that process has reported so far."""

    number: int
    process: int
    owner: SharedLoad
    connection: Connection = field(init=False)
    settled: bool = False  # ready, or gone before it was
    established: bool = False  # it has a connection
    done: bool = False
    gone: bool = False
    connected: int = 0
    echoed: int = 0
    began_at: float = 0.0
    ends_at: float = 0.0
    tally: Tally | None = None
    generator: Document | None = None
    times: Histogram = field(default_factory=Histogram)  # of its intervals, as are the bytes; all we know if it dies
    bytes_received: int = 0
    failures: list[Failure] = field(default_factory=list)
    intervals: deque[Interval] = field(default_factory=deque)  # not yet reported by all others

    def on_ready(self, established: bool) -> None:
        """Wait for the others."""
        self.settled, self.established = True, established
        self.owner.settle()

    def on_begun(self, at: float) -> None:
        """Note when the process began to measure."""
        self.began_at = self.ends_at = at
        self.owner.begun(at)

    def on_progress(self, connected: int, echoed: int) -> None:
        """Note the progress of the process."""
        self.connected, self.echoed = connected, echoed

    def on_interval(self, interval: Document, times: Histogram) -> None:
        """Keep the figures until every process has reported."""
        self.ends_at = self.began_at + interval["at_s"]
        self.intervals.append((self.ends_at, interval, times))
        self.times.merge(times)
        self.bytes_received += interval["bytes"]
        self.owner.add_intervals()

    def on_failed(self, failure: Failure) -> None:
        """Pass it on, and keep it."""
        self.failures.append(failure)
        self.owner.failed(failure)

    def on_over(self) -> None:
        """Pass on that the process begins no more messages."""
        self.owner.over()

    def on_done(self, tally: Tally, ends_at: float, generator: Document) -> None:
        """Take over what it has counted."""
        self.settled = self.done = True
        self.tally, self.generator = tally, generator
        self.ends_at = ends_at
        self.owner.settle()

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:  # noqa: ARG002 - of Handler
        """Reap the process; without a result it has died."""
        if not self.gone:
            self.reap()
            self.owner.settle()

    def reap(self) -> None:
        """Find out how the process ended; without a result only its intervals are known."""
        self.settled = self.gone = True
        status = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        if self.tally:
            return
        self.ends_at = self.connection.loop.clock()
        story = f"worker {self.number} {ending(status)}: of what it did, only whole intervals are in this report"
        self.owner.failed(Failure("worker", "died", story))
        mismatched = sum(failure.error == "mismatch" for failure in self.failures)
        known = self.times.count + mismatched
        self.tally = Tally(sent=known, mismatched=mismatched, attempted=self.connected, established=self.connected)
        self.tally.bytes_sent = self.tally.bytes_received = self.bytes_received
        self.tally.recent.merge(self.times)
        self.tally.end_interval(0.0, 0, 0)
        for failure in self.failures:
            self.tally.fail(failure.phase, failure.error, failure.story)


class SharedLoad:
    """Runs `plan` in `plan.workers` processes. Same interface as Load."""

    def __init__(self, loop: EventLoop, addresses: Sequence[Address], plan: Plan, watcher: Watcher) -> None:
        self.plan = plan
        self.tally = Tally(open_loop=plan.rate is not None)
        self.began_at: float | None = None
        self.stage = "connecting"
        self._loop = loop
        self._watcher = watcher
        self._bytes_received = 0
        self._going = False
        self._finished = False
        self._workers: list[Worker] = []
        self._deadlines: list[Timer] = []
        try:
            for place in range(plan.workers):
                self._start(addresses, replace(plan, worker=place))
        except BaseException:
            for worker in self._workers:
                worker.gone = True
                os.kill(worker.process, SIGKILL)
                os.waitpid(worker.process, 0)
                worker.connection.abort()
            raise

    def _start(self, addresses: Sequence[Address], plan: Plan) -> None:
        """Start a process with a share of the load. Raises OSError if the system refuses it."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                body = partial(self._be, ours, theirs, addresses, plan)
                process = spawn(self._loop, f"worker {plan.worker + 1}", body)
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        worker = Worker(plan.worker + 1, process, self)
        self._workers.append(worker)
        worker.connection = Connection(self._loop, ours, worker, f"worker {worker.number}", max_buffer=sys.maxsize)

    def _be(self, ours: socket.socket, theirs: socket.socket, addresses: Sequence[Address], plan: Plan) -> int:
        """Be a process with a share of the load; it ends with the parent only if no child holds the parent's ends."""
        for sock in (ours, *(worker.connection.sock for worker in self._workers)):
            sock.close()
        theirs.setblocking(False)
        with EventLoop() as loop:
            Reporter(loop, theirs, addresses, plan)
            loop.run()
        return OK

    @property
    def connected(self) -> int:
        """How many connections are open."""
        return sum(worker.connected for worker in self._workers)

    @property
    def echoed(self) -> int:
        """How many messages came back."""
        return sum(worker.echoed for worker in self._workers)

    @property
    def seconds(self) -> float:
        """How long was measured, until the last process had ended."""
        if self.began_at is None:
            return 0.0
        return max(0.0, *(worker.ends_at - self.began_at for worker in self._workers))

    def generator(self) -> Document:
        """Return whether the client was the bottleneck: the busiest process, and why any was."""
        from echopair.measure.merge import busiest

        return busiest([worker.generator for worker in self._workers if worker.generator])

    def stop(self) -> None:
        """End now; what is under way stays unanswered."""
        for worker in self._workers:
            tell(worker.connection, "stop")
        self._kill_after(GRACE)

    def close(self) -> None:
        """End what is left at once, and report what is known."""
        for timer in self._deadlines:
            timer.cancel()
        for worker in self._workers:
            if not worker.gone:
                os.kill(worker.process, SIGKILL)
                worker.reap()
                worker.connection.abort()
        self.settle()

    def settle(self) -> None:
        """Let all begin once all could; finish once all have gone."""
        if not self._going and all(worker.settled for worker in self._workers):
            self._going = True
            self.stage = "waiting to begin"
            when = max(self._loop.clock() + AHEAD, self.plan.start_at or 0.0)
            word = ("begin", when) if any(worker.established for worker in self._workers) else ("give_up",)
            for worker in self._workers:
                tell(worker.connection, *word)
        self.add_intervals()
        if all(worker.gone for worker in self._workers) and not self._finished:
            self._finished = True
            self._finish()

    def begun(self, at: float) -> None:
        """Note that a process measures from now on."""
        first = self.began_at is None
        self.began_at = min(at, self.began_at or at)
        if first:
            self.stage = "measuring"
            if self.plan.duration is not None:
                self._kill_after(self.plan.duration + max(self.plan.timeout, CATCH_UP) + GRACE)
            self._watcher.load_begun()

    def failed(self, failure: Failure) -> None:
        """Count and pass on one failure; at the end the processes' own counts replace these."""
        self.tally.fail(failure.phase, failure.error, failure.story)
        self._watcher.load_failed(failure)

    def over(self) -> None:
        """Note that a process begins no more messages."""
        self.stage = "finishing"

    def add_intervals(self) -> None:
        """End an interval that every live process has reported.

        It ends when the last of their intervals does, and includes all that ended by then.
        """
        while waiting := [worker.intervals for worker in self._workers if worker.intervals]:
            told = all(worker.intervals or worker.done or worker.gone for worker in self._workers)
            if not told and max(map(len, waiting)) <= PATIENCE:
                return
            at, connections = max(intervals[0][0] for intervals in waiting), 0
            for intervals in waiting:
                while intervals and intervals[0][0] <= at:
                    _, interval, times = intervals.popleft()
                    self.tally.recent.merge(times)
                    self._bytes_received += interval["bytes"]
                connections += interval["connections"]
            self._end_interval(at, connections)

    def _end_interval(self, at: float, connections: int) -> None:
        assert self.began_at is not None  # noqa: S101 - intervals are of what is measured
        at = max(at - self.began_at, self.tally.interval_from)  # a late one counts in the current interval
        ended = self.tally.end_interval(at, self._bytes_received, connections)
        self._watcher.interval_ended(ended)

    def _kill_after(self, seconds: float) -> None:
        """End workers that have not ended after `seconds`: they are stopped, or hang."""

        def kill() -> None:
            for worker in self._workers:
                if not worker.gone:
                    os.kill(worker.process, SIGKILL)

        self._deadlines.append(self._loop.call_later(seconds, kill))

    def _finish(self) -> None:
        for timer in self._deadlines:
            timer.cancel()
        if self.tally.errors_in_interval and self.began_at is not None:
            self._end_interval(self.began_at + self.seconds, 0)  # of a process that died last
        live, self.tally = self.tally, Tally(open_loop=self.plan.rate is not None)
        for worker in self._workers:
            assert worker.tally is not None  # noqa: S101 - it has reported one, or got one when it died
            self.tally.add(worker.tally)
        died = live.errors.get(("worker", "died"))
        if died:
            self.tally.errors["worker", "died"] = died
        self.tally.intervals = live.intervals
        self._watcher.load_over()
        self._watcher.load_done()
