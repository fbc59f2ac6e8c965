"""The load: both loops, their stages, what breaks and is replaced; real sockets, and a clock that the test moves."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from math import fsum

import pytest

from documents import PERCENTS
from echopair.address import format_address, listen
from echopair.client import load as module
from echopair.client.load import Load, Plan, Watcher
from echopair.client.measured import Schedule
from echopair.client.tcpinfo import kernel_figures, path_figures
from echopair.connection import Connection
from echopair.loop import EventLoop
from echopair.measure.document import MAX_INTERVALS, Document
from echopair.server import EchoServer
from helpers import HUNG, LOCALHOST, Clock, run_until, settle, small_pair, tcp_pair, unix_listener

MS = 0.001


class Server(EchoServer):
    """An echo server that can be made to hold what it gets, to change it, and to end connections."""

    held = False
    delay = 0.0
    change: Callable[[bytes], bytes] = staticmethod(lambda data: data)

    def data_received(self, connection: Connection, data: bytes) -> None:
        if self.held:
            connection.keep(data)
        elif self.delay:
            self.loop.call_later(self.delay, lambda: connection.send(self.change(data)))
        else:
            connection.send(self.change(data))

    def go_on(self) -> None:
        self.held = False
        for connection in self.connections:
            data = bytes(connection.inbound)
            connection.consume(len(data))
            connection.send(data)


class Run(Watcher):
    """A load and its server on one loop, and what the load has told."""

    def __init__(
        self, loop: EventLoop, clock: Clock, *, listening: bool = True, tcp: bool = False, also=(), **plan
    ) -> None:
        self.loop, self.clock = loop, clock
        self.events: list[str] = []
        self.intervals: list[Document] = []
        self.failures: list[str] = []
        (listener,) = listen([LOCALHOST], 0) if tcp else [unix_listener()]
        self.address = (listener.family, listener.getsockname())
        self.server: Server | None = None
        if listening:
            self.server = Server(loop, [listener])
        else:
            listener.close()
        self.load = Load(loop, [self.address, *also], Plan(**({"seed": 1, "size": 100} | plan)), self)

    def load_begun(self) -> None:
        self.events.append("begun")

    def interval_ended(self, interval) -> None:
        self.events.append("interval")
        self.intervals.append(interval)

    def load_failed(self, failure) -> None:
        self.failures.append(failure.error)

    def load_over(self) -> None:
        self.events.append("over")

    def load_done(self) -> None:
        self.events.append("done")

    @property
    def done(self) -> bool:
        return "done" in self.events

    @property
    def tally(self):
        return self.load.tally

    def serve_again(self) -> None:
        self.server = Server(self.loop, [unix_listener(self.address[1])])

    def until_begun(self) -> None:
        run_until(self.loop, lambda: "begun" in self.events)

    def pass_time(self, seconds: float, step: float = MS, each: Callable[[], object] = lambda: None) -> None:
        """Move the clock, a step at a time, and let everything happen that then does."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            each()
            for _ in range(4):
                self.loop.run_once(0)

    def figures(self):
        deadline = time.monotonic() + HUNG
        while not self.done:
            assert time.monotonic() < deadline, "the load never ended"
            self.pass_time(MS, MS / 10)
        figures = self.load.tally.figures(self.load.seconds, PERCENTS)
        if self.load.began_at is not None:
            self.assert_agreement(figures)
        return figures

    def assert_agreement(self, figures) -> None:
        """The intervals are those told, follow one another up to the end of the run, and add up to its figures."""
        intervals, seconds = figures["intervals"], self.load.seconds
        assert intervals == self.intervals or len(self.intervals) > MAX_INTERVALS
        for before, after in pairwise(intervals):
            assert after["at_s"] >= before["at_s"]
            assert after["at_s"] - after["duration_s"] == pytest.approx(before["at_s"], abs=1e-9)
        assert fsum(each["duration_s"] for each in intervals) == pytest.approx(seconds, abs=2e-6)
        assert sum(each["messages"] for each in intervals) == figures["messages"]["echoed"]
        assert sum(each["bytes"] for each in intervals) == figures["bytes"]["received"]
        assert sum(each["errors"] for each in intervals) == sum(each["count"] for each in figures["errors"])
        rate = figures["messages"]["echoed"] / seconds if seconds else 0
        assert figures["throughput"]["messages_per_s"] == pytest.approx(rate, abs=0.001)


@pytest.fixture
def run(loop, clock) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(**options) -> Run:
        runs.append(Run(loop, clock, **options))
        return runs[-1]

    yield start
    for each in runs:
        each.load.stop()
        settle(loop)
        if each.server:
            each.server.close()
    settle(loop)
    assert all(each.done for each in runs)


def balanced(figures) -> bool:
    """Whether every message that was sent is accounted for."""
    messages = figures["messages"]
    return messages["sent"] == messages["echoed"] + messages["mismatched"] + messages["unanswered"]


# Both loops


def test_a_count_is_shared_out_over_the_connections(run):
    figures = (run := run(conns=3, count=10)).figures()
    assert figures["messages"] == {"sent": 10, "echoed": 10, "mismatched": 0, "unanswered": 0, "not_sent": 0}
    assert [session.begun for session in run.load.sessions] == [4, 3, 3]
    assert figures["bytes"] == {"sent": 1000, "received": 1000}
    assert figures["connections"] == {"attempted": 3, "established": 3, "failed": 0, "closed_early": 0}
    assert run.events == ["begun", "over", "interval", "done"]


@pytest.mark.parametrize("rate", [None, 1000.0])
@pytest.mark.parametrize(
    "plan",
    [{}, {"pipeline": 3}, {"reconnect_every": 1}, {"reconnect_every": 2}, {"warmup": 0.01}, {"duration": 0.1}],
    ids=str,
)
def test_a_count_ends_with_any_number_of_connections(run, plan, rate):
    """Connections without a message, with one, and with fewer than others have."""
    for conns, count in product((1, 2, 5), (1, 2, 4, 5, 6)):
        figures = (each := run(conns=conns, count=count, rate=rate, **plan)).figures()
        assert figures["messages"] == {"sent": count, "echoed": count, "mismatched": 0, "unanswered": 0, "not_sent": 0}
        assert figures["connections"]["established"] >= conns
        assert figures["errors"] == []
        assert each.load.seconds < 1  # no timeout had to end it


@pytest.mark.parametrize("rate", [None, 1000.0])
def test_a_worker_without_a_message_ends(run, rate):
    figures = run(conns=4, count=1, rate=rate, worker=1, workers=2).figures()
    assert figures["messages"]["sent"] == figures["messages"]["not_sent"] == 0
    assert figures["connections"]["established"] == 2
    assert figures["errors"] == []


@pytest.mark.parametrize("size", [1, 65536, 65537, 300_000])
@pytest.mark.parametrize("pipeline", [1, 3])
@pytest.mark.parametrize("rate", [None, 1e6])
def test_messages_of_any_size_are_counted_whole(run, clock, size, pipeline, rate):
    run = run(conns=2, count=7, size=size, pipeline=pipeline, rate=rate)
    run.until_begun()
    clock.advance(1)
    figures = run.figures()
    assert figures["messages"]["echoed"] == 7
    assert figures["bytes"] == {"sent": 7 * size, "received": 7 * size}
    assert figures["latency_us"]["response"]["count"] == 7
    assert figures["errors"] == []


def test_a_duration_goes_on_until_it_is_over_and_what_is_under_way_comes_back(run):
    run = run(conns=2, duration=1.0)
    run.until_begun()
    run.pass_time(0.9, 0.1)
    assert not run.done
    run.pass_time(0.1)
    figures = run.figures()
    assert balanced(figures)
    assert figures["messages"]["unanswered"] == figures["messages"]["not_sent"] == 0
    assert run.load.seconds == pytest.approx(1.0, abs=0.01)


def test_a_plan_without_end_is_refused(loop):
    with pytest.raises(ValueError, match="count of messages or a duration"):
        Load(loop, [], Plan(), Watcher())


def test_a_closed_loop_times_from_the_hand_over_and_has_no_schedule(run):
    run = run(conns=1, count=20, pipeline=1)
    run.server.delay = 0.02
    run.until_begun()
    run.pass_time(0.5, MS / 10)
    figures = run.figures()
    assert figures["latency_us"]["response"]["percentiles"]["50"] == pytest.approx(20_000, rel=0.02)
    assert figures["latency_us"]["service"] == figures["latency_us"]["response"]
    assert figures["latency_us"]["schedule_lag"] is None


def test_an_open_loop_sends_what_is_due_when_it_is_due(run):
    run = run(conns=4, duration=1.0, rate=1000.0)
    run.until_begun()
    sent = []
    run.pass_time(1.0, each=lambda: sent.append(run.load.sent))
    figures = run.figures()
    assert sent[0] == 1  # the first is due at once
    assert all(now - before <= 2 for before, now in pairwise(sent))
    assert figures["messages"] == {"sent": 1000, "echoed": 1000, "mismatched": 0, "unanswered": 0, "not_sent": 0}
    assert [session.begun for session in run.load.sessions] == [250] * 4


def test_an_open_loop_with_a_count_ends_with_it(run):
    run = run(conns=3, count=100, rate=1000.0)
    run.until_begun()
    run.pass_time(0.2)
    figures = run.figures()
    assert figures["messages"]["echoed"] == 100
    assert run.load.seconds == pytest.approx(0.1, abs=2 * MS)


@pytest.mark.parametrize("rate", [0.1, 3.0, 7.0, 1000.0, 1 / 3, 12345.678])
def test_as_many_are_due_before_a_moment_as_have_their_time_before_it(rate):
    schedule = Schedule(begin=1000.1, rate=rate, conns=4)
    assert schedule.due_before(999.0) == schedule.due_before(1000.1) == 0
    for message in (*range(1, 300), 12_345):
        assert schedule.due_before(schedule.due(message)) == message
        assert schedule.due_before(schedule.due(message) + 0.01 / rate) == message + 1


def test_due_times_are_fixed_in_advance_and_go_round_the_connections():
    schedule = Schedule(begin=5.0, rate=100.0, conns=4)
    assert [schedule.due(message) for message in (0, 1, 100)] == [5.0, 5.01, 6.0]


def test_a_known_delay_is_measured(run):
    run = run(conns=50, duration=0.5, rate=1000.0)
    run.server.delay = 0.02
    run.until_begun()
    run.pass_time(0.6, MS / 10)
    response = run.figures()["latency_us"]["response"]["percentiles"]
    assert response["50"] == pytest.approx(20_000, rel=0.02)
    assert response["99"] == pytest.approx(20_000, rel=0.02)


def test_a_stop_of_one_second_shows_in_the_response_and_in_the_service_of_few(run):
    """Coordinated omission, avoided: what was due during the stop is timed from when it was due."""
    run = run(conns=10, duration=5.0, rate=1000.0)
    run.until_begun()
    run.pass_time(2.0)
    run.server.held = True
    run.pass_time(1.0)
    run.server.go_on()
    run.pass_time(2.1)
    figures = run.figures()
    response, service, lag = (figures["latency_us"][name] for name in ("response", "service", "schedule_lag"))
    assert figures["messages"]["echoed"] == response["count"] == service["count"] == 5000
    assert 300_000 < response["percentiles"]["90"] < 700_000
    assert response["max"] == pytest.approx(1_000_000, rel=0.02)
    assert service["percentiles"]["99"] < 5_000
    assert service["max"] == pytest.approx(1_000_000, rel=0.02)
    slow = sum(number for lowest, number in figures["histograms"]["service"]["buckets"] if lowest > 500_000_000)
    assert slow == 10  # one in flight on each connection
    assert lag["max"] < 5_000  # the client itself was not late: the connections had no room


def test_a_late_client_is_told_from_a_slow_server(run, clock):
    run = run(conns=10, duration=1.0, rate=1000.0)
    run.until_begun()
    run.pass_time(0.5)
    clock.advance(0.2)  # as if another process had held the processor
    run.pass_time(0.5)
    lag = run.figures()["latency_us"]["schedule_lag"]
    assert lag["max"] == pytest.approx(200_000, rel=0.02)
    document = run.tally.generator(0.1, 0.0, 1.0, shared=False)
    assert document["limited"]
    assert "behind its own schedule" in document["reason"]


def test_a_pipeline_makes_room_for_what_is_due(run):
    run = run(conns=1, duration=1.0, rate=100.0, pipeline=50)
    run.server.delay = 0.1
    run.until_begun()
    run.pass_time(1.2)
    figures = run.figures()
    assert figures["latency_us"]["response"]["percentiles"]["99"] == pytest.approx(100_000, rel=0.02)


def test_what_was_due_and_could_not_be_sent_is_counted(run):
    run = run(conns=2, duration=1.0, rate=1000.0)
    run.server.held = True
    run.until_begun()
    run.pass_time(1.0)
    assert run.load.sent == 2
    run.pass_time(module.CATCH_UP + 0.1, 0.1)
    run.server.go_on()
    figures = run.figures()
    assert figures["messages"] == {"sent": 2, "echoed": 2, "mismatched": 0, "unanswered": 0, "not_sent": 998}
    assert figures["errors"] == []


def test_what_was_due_before_the_end_may_catch_up(run):
    run = run(conns=2, duration=1.0, rate=1000.0)
    run.until_begun()
    run.pass_time(0.5)
    run.server.held = True
    run.pass_time(0.6)
    run.server.go_on()
    run.pass_time(0.1)
    figures = run.figures()
    assert figures["messages"]["echoed"] == 1000
    assert figures["messages"]["not_sent"] == 0
    assert figures["latency_us"]["response"]["max"] > 500_000


# Stages


def test_nothing_is_sent_before_every_connection_was_tried(run):
    run = run(conns=10, count=10, connect_rate=10.0)
    run.pass_time(0.85)
    assert run.load.stage == "connecting"
    assert run.load.connected == 9
    assert run.load.sent == 0
    run.pass_time(0.1)
    assert run.figures()["messages"]["echoed"] == 10


def test_a_fleet_begins_together(run, clock):
    run = run(conns=2, count=2, start_at=clock.time + 5)
    run.pass_time(4.9, 0.1)
    assert run.load.connected == 2
    assert run.load.stage == "waiting to begin"
    assert run.load.sent == 0
    run.pass_time(0.2, 0.1)
    assert run.figures()["messages"]["echoed"] == 2
    assert run.load.began_at == pytest.approx(1005, abs=0.11)


def test_a_load_that_ends_before_it_is_told_to_begin_does_not_begin(run):
    run = run(conns=1, count=2)
    begins = []
    run.load_tried = begins.append
    run_until(run.loop, lambda: begins)
    run.load.stop()
    begins[0].begin(0.0)
    figures = run.figures()
    assert figures["messages"]["sent"] == 0
    assert "begun" not in run.events


@pytest.mark.parametrize("rate", [None, 1000.0])
@pytest.mark.parametrize(("end", "seconds"), [({"duration": 1.0}, 1.0), ({"count": 500}, 0.5)])
def test_a_warm_up_leaves_no_trace_in_the_figures(run, rate, end, seconds):
    run = run(conns=2, warmup=1.0, rate=rate, **end)
    run.server.delay = MS
    run.pass_time(0.9)
    assert run.load.stage == "warming up"
    assert run.load.sent == run.tally.echoed == 0
    run.pass_time(seconds + 0.3)
    figures = run.figures()
    messages = figures["messages"]
    assert balanced(figures)
    assert messages["not_sent"] == messages["unanswered"] == 0
    assert figures["latency_us"]["response"]["count"] == messages["echoed"]
    if "count" in end:
        assert messages["echoed"] == 500
    elif rate:
        assert messages["echoed"] == 1000
    assert figures["bytes"]["sent"] == figures["bytes"]["received"] == 100 * messages["echoed"]


def test_a_turn_that_comes_late_at_the_end_of_the_warm_up_changes_no_count(run, clock):
    for rate in (None, 1000.0):
        each = run(conns=2, warmup=1.0, count=100, rate=rate)
        each.server.delay = MS
        each.pass_time(0.98)
        clock.advance(0.06)
        each.pass_time(0.5)
        figures = each.figures()
        assert figures["messages"]["sent"] == figures["messages"]["echoed"] == 100
        assert figures["bytes"] == {"sent": 10_000, "received": 10_000}


def test_what_is_lost_of_the_warm_up_is_in_no_figure(run):
    run = run(conns=4, warmup=1.0, duration=1.0, rate=100.0, pipeline=10)
    run.pass_time(0.9)
    run.server.held = True
    run.pass_time(0.05)
    for connection in list(run.server.connections):
        connection.abort()
    run.server.held = False
    run.pass_time(1.3)
    figures = run.figures()
    assert balanced(figures)
    assert figures["messages"]["echoed"] == 100
    assert figures["bytes"] == {"sent": 10_000, "received": 10_000}


def test_a_backlog_of_the_warm_up_is_in_no_figure(run):
    run = run(conns=2, warmup=1.0, duration=1.0, rate=1000.0)
    run.server.held = True
    run.pass_time(1.0)
    run.server.go_on()
    run.pass_time(1.2)
    figures = run.figures()
    assert figures["messages"]["sent"] == figures["messages"]["echoed"] == 1000
    assert figures["bytes"] == {"sent": 100_000, "received": 100_000}


def test_a_large_message_lost_in_the_warm_up_is_in_no_figure(run):
    run = run(conns=1, warmup=1.0, duration=1.0, size=5_000_000)
    run.pass_time(0.5, 0.01)
    next(iter(run.server.connections)).abort()
    run.pass_time(2.0, 0.01)
    figures = run.figures()
    assert figures["bytes"]["received"] == 5_000_000 * figures["messages"]["echoed"]


def test_the_backlog_of_an_overloaded_warm_up_is_dropped(run):
    run = run(conns=2, warmup=1.0, duration=1.0, rate=1000.0)
    run.server.delay = 0.02
    run.pass_time(3.2)
    messages = run.figures()["messages"]
    assert messages["echoed"] > 90  # all that two connections can carry in a second, and the one to catch up
    assert messages["sent"] + messages["not_sent"] == 1000


def test_stopped_while_warming_up_nothing_is_counted(run):
    run = run(conns=2, warmup=2.0, duration=1.0, rate=1000.0)
    run.server.held = True
    run.pass_time(1.0)
    run.load.stop()
    figures = run.figures()
    assert figures["messages"]["sent"] == figures["messages"]["not_sent"] == 0
    assert figures["bytes"] == {"sent": 0, "received": 0}


def test_a_schedule_that_cannot_be_kept_does_not_hold_up_the_end(run):
    run = run(conns=1, duration=1.0, rate=1e9)
    run.until_begun()
    run.pass_time(1.0 + module.CATCH_UP, 0.1)
    figures = run.figures()
    assert figures["messages"]["sent"] + figures["messages"]["not_sent"] == 1e9
    assert figures["messages"]["echoed"] > 20
    assert run.load.seconds < 2.2


def test_what_was_due_when_it_was_stopped_is_counted_whole(run):
    run = run(conns=3, duration=10.0, rate=1e7)
    run.until_begun()
    run.clock.advance(1.0)
    run.load.stop()
    messages = run.figures()["messages"]
    assert messages["sent"] + messages["not_sent"] == pytest.approx(1e7, rel=0.01)


def test_a_counted_open_loop_lasts_as_long_as_its_schedule(run):
    run = run(conns=1, count=5, rate=10.0)
    run.until_begun()
    run.pass_time(0.6)
    assert run.figures()["throughput"]["messages_per_s"] == pytest.approx(10.0)


@pytest.mark.parametrize("rate", [None, 100.0])
@pytest.mark.parametrize("churn", [{}, {"reconnect_every": 1}])
def test_silence_is_a_part_of_the_run_that_the_rate_is_over(run, rate, churn):
    run = run(conns=1, count=1000, rate=rate, timeout=3.0, **churn)
    run.until_begun()
    run_until(run.loop, lambda: run.pass_time(MS) or run.load.echoed >= 10)
    run.server.held = True
    run.pass_time(20, 0.05)
    figures = run.figures()
    assert figures["messages"]["echoed"] < 100
    assert 3.0 < run.load.seconds < 20
    assert figures["throughput"]["messages_per_s"] < 10


def test_a_server_that_has_gone_is_a_part_of_the_run_until_it_is_given_up(run):
    run = run(conns=1, count=1000, reconnect_every=1, timeout=5.0)
    run.until_begun()
    run.server.close()
    run.pass_time(7, 0.05)
    run.figures()
    assert run.load.seconds == pytest.approx(6, abs=1)


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("end", [{"count": 20}, {"duration": 1.0}, {"count": 20, "rate": 20.0}])
def test_the_closing_handshake_is_no_part_of_the_run(run, end, answered):
    run = run(conns=2, timeout=5.0, **end)
    run.server.eof_received = lambda connection: run.loop.call_later(3.0, connection.send_eof) if answered else None
    run.until_begun()
    run.pass_time(0.05)
    run.pass_time(9, 0.05)
    figures = run.figures()
    assert run.load.seconds == pytest.approx(1.0 if len(end) > 1 or "duration" in end else 0.05, abs=0.05)
    assert [(each["phase"], each["error"], each["count"]) for each in figures["errors"]] == (
        [] if answered else [("close", "timeout", 2)]
    )
    for connection in list(run.server.connections):
        connection.abort()


def test_failures_while_warming_up_are_failures(run):
    run = run(conns=1, count=10, warmup=1.0)
    run.server.change = lambda data: b"!" * len(data)
    figures = run.figures()
    assert figures["errors"][0]["error"] == "mismatch"


def test_intervals_have_their_own_figures(run):
    run = run(conns=2, duration=3.0, rate=100.0)
    run.until_begun()
    run.pass_time(3.1)
    intervals = run.figures()["intervals"]
    assert [interval["messages"] for interval in intervals] == [100, 100, 100]
    assert [round(interval["at_s"], 1) for interval in intervals] == [1, 2, 3]
    assert [interval["bytes"] for interval in intervals] == [10_000] * 3
    assert [interval["connections"] for interval in intervals] == [2] * 3


def test_what_comes_back_after_the_end_is_in_the_last_interval(run):
    run = run(conns=2, duration=2.0, rate=100.0, interval=0.5, pipeline=100)
    run.server.delay = 0.03
    run.until_begun()
    run.pass_time(2.4)
    intervals = run.figures()["intervals"]
    assert [round(interval["at_s"], 2) for interval in intervals] == [0.5, 1.0, 1.5, pytest.approx(2.02, abs=0.011)]
    assert sum(interval["messages"] for interval in intervals) == 200


def test_intervals_go_on_while_the_rest_is_awaited(run):
    run = run(conns=2, duration=2.0, rate=100.0, interval=0.5, pipeline=1000)
    run.server.delay = 1.2
    run.until_begun()
    run.pass_time(3.3)
    intervals = run.figures()["intervals"]
    assert [interval["at_s"] for interval in intervals] == pytest.approx([0.5, 1, 1.5, 2.5, 3, 3.19], abs=0.01)
    assert sum(interval["messages"] for interval in intervals) == 200


def test_intervals_go_forward_and_hold_every_error_when_it_was(run):
    run = run(conns=3, duration=2.0, rate=300.0, interval=0.5, timeout=2.0)
    run.until_begun()
    run.pass_time(1.0)
    run.server.held = True
    run.pass_time(6.0, 0.05)
    figures = run.figures()
    intervals = figures["intervals"]
    ends = [interval["at_s"] for interval in intervals]
    assert ends == sorted(ends)
    assert sum(interval["errors"] for interval in intervals) == sum(error["count"] for error in figures["errors"]) > 0
    assert next(interval["at_s"] for interval in intervals if interval["errors"]) > 2.9
    assert sum(interval["messages"] for interval in intervals) == figures["messages"]["echoed"]


def test_a_sliver_of_an_interval_is_part_of_the_one_before(run):
    run = run(conns=1, count=105, rate=100.0)
    run.until_begun()
    run.pass_time(1.2)
    assert [interval["messages"] for interval in run.figures()["intervals"]] == [105]


def test_the_lag_of_what_was_due_at_once_is_counted_too(run, clock):
    run = run(conns=2, duration=1.0, rate=20_000.0)
    run.until_begun()
    run.pass_time(0.4, 0.005)
    clock.advance(0.6)
    run.pass_time(0.1)
    lag = run.figures()["latency_us"]["schedule_lag"]
    assert lag["count"] == 20_000
    assert lag["max"] == pytest.approx(600_000, rel=0.02)
    assert lag["percentiles"]["90"] == pytest.approx(500_000, rel=0.05)


# What breaks


def test_a_server_that_is_not_there_ends_the_run(run):
    run = run(conns=3, duration=10.0, listening=False)
    figures = run.figures()
    assert figures["connections"] == {"attempted": 3, "established": 0, "failed": 3, "closed_early": 0}
    (error,) = figures["errors"]
    assert (error["phase"], error["error"], error["count"]) == ("connect", "ECONNREFUSED", 3)
    assert figures["messages"]["not_sent"] == 0  # of a duration; of a count, see below
    assert "begun" not in run.events
    assert run.load.seconds == 0


def test_a_count_that_could_not_begin_was_not_sent(run):
    assert run(conns=3, count=100, listening=False).figures()["messages"]["not_sent"] == 100


def test_a_broken_connection_is_replaced_while_there_is_time(run):
    run = run(conns=2, duration=2.0, rate=100.0)
    run.until_begun()
    run.pass_time(1.0)
    next(iter(run.server.connections)).abort()
    run.pass_time(1.1)
    figures = run.figures()
    assert figures["connections"] == {"attempted": 3, "established": 3, "failed": 0, "closed_early": 1}
    assert figures["messages"]["echoed"] >= 199
    assert balanced(figures)
    assert run.failures == [figures["errors"][0]["error"]]
    # The messages that were due meanwhile were sent late, and timed from when they were due.
    assert figures["latency_us"]["response"]["max"] > 50_000


def test_a_broken_connection_of_a_count_is_not_replaced_and_its_rest_is_not_sent(run):
    run = run(conns=2, count=200, rate=100.0)
    run.until_begun()
    run.pass_time(1.0)
    run.load.sessions[0].connection.sock.shutdown(socket.SHUT_RD)
    run.pass_time(1.1)
    figures = run.figures()
    assert figures["connections"]["attempted"] == 2
    assert figures["messages"]["not_sent"] == pytest.approx(50, abs=2)
    assert figures["messages"]["sent"] + figures["messages"]["not_sent"] == 200
    assert balanced(figures)


def test_a_server_that_goes_and_comes_is_found_again(run):
    run = run(conns=1, duration=3.0, rate=100.0)
    run.until_begun()
    run.pass_time(0.5)
    run.server.close()
    run.pass_time(1.0)
    assert run.tally.failed >= 2
    run.serve_again()
    run.pass_time(2.0)
    figures = run.figures()
    assert figures["messages"]["echoed"] >= 299
    assert {error["phase"] for error in figures["errors"]} == {"connect", "echo"}


def test_retries_grow_rare(run):
    run = run(conns=1, duration=20.0)
    run.until_begun()
    run.pass_time(0.1)
    assert run.tally.echoed
    run.server.close()
    run.pass_time(20.1, 0.01)
    figures = run.figures()
    assert 15 < figures["connections"]["failed"] < 30


def test_a_server_may_be_away_for_long(run):
    run = run(conns=1, duration=2000.0)
    run.until_begun()
    run.server.close()
    run.pass_time(2001, 1.0)
    assert run.figures()["connections"]["failed"] > 1100  # more often than a delay can be doubled


def test_a_server_that_closes_idle_connections_gets_new_ones(run):
    run = run(conns=1, count=20, rate=0.1, reconnect_every=100, timeout=10.0)
    run.until_begun()
    for _ in range(100):
        run.pass_time(2.0, 0.1)
        for connection in list(run.server.connections):
            connection.close()
    figures = run.figures()
    assert figures["messages"]["echoed"] == 20
    assert figures["messages"]["not_sent"] == 0


def test_a_server_that_closes_at_once_is_not_hammered(run):
    run = run(conns=1, duration=2.0, verify="none")
    run.server.change = lambda data: b""
    run.server.eof_received = lambda connection: None
    run.until_begun()
    run.server.data_received = lambda connection, data: connection.close()
    run.pass_time(2.1, 0.01)
    figures = run.figures()
    assert figures["connections"]["established"] < 25
    assert figures["messages"]["echoed"] == 0


@pytest.mark.parametrize("end", [{"count": 20}, {"duration": 0.05}])
def test_churn_connects_echoes_and_closes(run, end):
    run = run(conns=2, reconnect_every=1, **end)
    run.until_begun()
    run.pass_time(0.1)
    figures = run.figures()
    connections = figures["connections"]
    assert figures["errors"] == []
    assert connections["established"] == connections["attempted"] == figures["latency_us"]["connect"]["count"]
    assert connections["established"] >= figures["messages"]["echoed"] >= 20
    assert run.server.connections_served == connections["established"]


def test_churn_gives_a_server_up_that_is_gone(run):
    run = run(conns=1, count=1000, reconnect_every=1, timeout=5.0)
    run.until_begun()
    run.server.close()
    run.pass_time(7, 0.05)
    figures = run.figures()
    assert 0 < figures["messages"]["not_sent"] < 1000
    assert figures["connections"]["failed"] >= 5


@pytest.mark.parametrize("hangs", [False, True])
def test_churn_gives_a_server_up_that_only_accepts(run, hangs):
    run = run(conns=1, count=1000, reconnect_every=10, timeout=2.0)
    run.server.data_received = lambda connection, data: None if hangs else connection.abort()
    run.server._echoes = False
    run.pass_time(12.0, 0.05)
    figures = run.figures()
    assert figures["messages"]["not_sent"] > 900
    assert balanced(figures)


def test_a_trickle_does_not_keep_the_run_from_its_end(run):
    run = run(conns=2, duration=1.0, timeout=2.0, size=100)
    trickled = []

    def trickle(connection, data):
        trickled.append(connection)
        if connection is not trickled[0]:
            connection.send(data)
            return
        for place in range(len(data)):
            run.loop.call_later(0.3 * (place + 1), lambda byte=data[place : place + 1]: connection.send(byte))

    run.server.data_received = trickle
    run.pass_time(3.5, 0.05)
    figures = run.figures()
    assert figures["messages"]["unanswered"] == 1
    assert "2 s after the end" in figures["errors"][0]["example"]
    run.pass_time(31, 0.5)  # what the server still had to send


def test_unchecked_surplus_does_not_keep_the_run_from_its_end(run):
    run = run(conns=1, count=1, verify="none")

    def chargen(connection, data):
        if connection.closed:
            return
        connection.send(b"x" * 1000)
        run.loop.call_later(0.01, lambda: chargen(connection, data))

    run.server.data_received = chargen
    run.server.eof_received = lambda connection: None
    run.pass_time(0.5, 0.005)
    assert run.done
    assert run.figures()["errors"] == []
    run.pass_time(0.1, 0.01)


def test_an_early_end_is_a_failure_of_a_load_that_checks_nothing_too(run):
    run = run(conns=1, count=1000, rate=100.0, verify="none")
    run.until_begun()
    run.pass_time(1.0)
    next(iter(run.server.connections)).close()
    run.pass_time(0.1)
    figures = run.figures()
    assert [error["error"] for error in figures["errors"]] == ["closed"]
    assert figures["connections"]["closed_early"] == 1
    assert run.load.seconds < 1.2  # and not the ten that were planned


def test_new_connections_keep_to_their_rate(run):
    run = run(conns=2, duration=2.0, reconnect_every=1, connect_rate=10.0)
    run.pass_time(2.4, 0.01)
    assert 18 <= run.figures()["connections"]["established"] <= 23


def test_a_wrong_echo_is_one_mismatch_and_the_rest_unanswered(run):
    run = run(conns=1, count=10, pipeline=4)
    run.server.change = lambda data: bytes([data[0] ^ 1]) + data[1:]
    figures = run.figures()
    assert figures["messages"] == {"sent": 4, "echoed": 0, "mismatched": 1, "unanswered": 3, "not_sent": 6}
    assert figures["connections"]["closed_early"] == 0


def test_a_failure_names_the_message_as_counted_over_all_connections_of_its_number(run):
    run = run(conns=1, count=10, reconnect_every=3)
    seen = []

    def change(data: bytes) -> bytes:
        seen.append(data)
        return seen[0] if len(seen) == 8 else data  # the eighth is answered with the first

    run.server.change = change
    (error,) = run.figures()["errors"]
    assert error["example"].startswith("connection 1: message 8, offset 0: ")
    assert error["example"].endswith("(these are bytes of connection 1, message 1)")


def test_silence_is_a_failure_only_where_an_echo_is_owed(run):
    run = run(conns=1, duration=70.0, rate=0.05, timeout=10.0)
    run.until_begun()
    run.pass_time(45, 0.1)
    assert run.failures == []
    run.server.held = True
    run.pass_time(26, 0.1)
    figures = run.figures()
    assert run.failures == ["timeout"]
    assert figures["messages"]["unanswered"] == 1


@pytest.mark.parametrize("rate", [None, 1000.0])
def test_stopping_ends_it_and_leaves_what_is_under_way_unanswered(run, rate):
    run = run(conns=5, duration=10.0, rate=rate)
    run.until_begun()
    run.pass_time(0.5, 0.01)
    run.server.held = True
    run.pass_time(0.5, 0.01)
    run.load.stop()
    run.load.stop()
    figures = run.figures()
    assert balanced(figures)
    assert figures["messages"]["unanswered"] == 5
    assert figures["errors"] == []
    assert run.load.seconds == pytest.approx(1.0, abs=0.02)
    assert figures["messages"]["not_sent"] == pytest.approx(500 if rate else 0, abs=15)
    assert run.events.count("over") == run.events.count("done") == 1


class Ticking(Clock):
    """A clock that moves on each time that it is read: whatever is done in between has taken some time."""

    def __call__(self) -> float:
        self.time += 1e-6
        return self.time


@pytest.mark.parametrize("clock", [Ticking()])
def test_neither_connections_nor_first_messages_wait_for_their_neighbours(run, loop):
    def longest(conns: int) -> list[float]:
        timed = run(conns=conns, count=conns)
        run_until(loop, lambda: timed.done)
        latencies = timed.tally.figures(1.0, PERCENTS)["latency_us"]
        return [latencies[name]["max"] for name in ("connect", "response")]

    assert longest(60) == pytest.approx(longest(1), abs=1.1)  # readings of the clock


def test_the_document_says_what_became_of_each_address(run):
    refused = "connection refused (nothing listens there)"
    elsewhere = run(conns=1, count=1)
    figures = (both := run(conns=3, count=3, listening=False, also=[elsewhere.address])).figures()
    assert figures["addresses"] == [  # the first attempt found out for all
        {"address": format_address(both.address[1]), "connections": 0, "failed": 1, "example": refused},
        {"address": format_address(elsewhere.address[1]), "connections": 3, "failed": 0, "example": None},
    ]
    assert figures["errors"] == []
    figures = (gone := run(conns=3, count=3, listening=False)).figures()
    assert figures["addresses"] == [
        {"address": format_address(gone.address[1]), "connections": 0, "failed": 3, "example": refused}
    ]


@pytest.mark.parametrize(
    ("plan", "used"),
    [({"worker": 0}, [2, 1]), ({"worker": 1}, [1, 2]), ({"worker": 1, "all_addresses": False}, [3, 0])],
)
def test_connections_go_round_all_addresses_where_that_is_asked_for(run, plan, used):
    elsewhere = run(conns=1, count=1)
    run = run(conns=6, workers=2, count=6, also=[elsewhere.address], **{"all_addresses": True, **plan})
    made = {entry["address"]: entry["connections"] for entry in run.figures()["addresses"]}
    assert [made.get(format_address(each.address[1]), 0) for each in (run, elsewhere)] == used


def test_stopping_while_connecting_leaves_no_trace(run):
    run = run(conns=5, count=5, connect_rate=1.0)
    run.pass_time(1.5, 0.1)
    run.load.stop()
    figures = run.figures()
    assert figures["connections"]["attempted"] == figures["connections"]["established"] == 2
    assert figures["messages"]["sent"] == 0


def test_memory_does_not_grow_with_the_messages(run):
    run = run(conns=2, duration=1000.0, interval=1000.0)
    run.until_begun()
    session = run.load.sessions[0]
    run_until(run.loop, lambda: session.begun > 1000)
    assert len(session.in_flight) == 1
    assert len(session.outstanding) == 1
    run.load.stop()


# What the kernel says


def test_round_trip_and_retransmits_come_from_the_kernel(run):
    figures = run(conns=2, count=10, tcp=True).figures()
    assert figures["tcp"]["rtt_us"] > 0
    assert figures["tcp"]["retransmits"] == 0


def test_where_the_kernel_does_not_say_there_are_none(run, monkeypatch):
    monkeypatch.setattr("echopair.client.tcpinfo.TCP_INFO", 1 << 20)
    assert run(conns=2, count=10, tcp=True).figures()["tcp"] is None


def test_a_short_rest_is_part_of_the_last_interval(run):
    run = run(conns=1, duration=2.2, rate=100.0)
    run.until_begun()
    run.pass_time(2.3)
    assert [interval["messages"] for interval in run.figures()["intervals"]] == [100, 120]


def test_the_last_interval_of_a_count_has_the_connections_that_sent(run):
    assert [interval["connections"] for interval in run(conns=3, count=9).figures()["intervals"]] == [3]


def test_intervals_of_a_count_go_on_until_it_is_done(run):
    run = run(conns=1, count=250, rate=100.0)
    run.until_begun()
    run.pass_time(2.6)
    assert [interval["messages"] for interval in run.figures()["intervals"]] == [100, 100, 50]


def test_only_tcp_has_them():
    for make, tells in ((tcp_pair, True), (small_pair, False)):
        one, other = make()
        assert (kernel_figures(one) is not None) == tells
        assert (path_figures(one) is not None) == tells
        one.close()
        other.close()


def test_a_kernel_that_says_less_is_not_believed():
    class Old:
        def getsockopt(self, *_arguments) -> bytes:
            return bytes(88)

    assert kernel_figures(Old()) is None
    assert path_figures(Old()) is None


def test_what_was_sent_again_for_nothing_was_not_lost():
    class Kernel:
        """With 5 segments sent again, of 40; the last one twice so far, and 3 of them for nothing."""

        def getsockopt(self, *_arguments) -> bytes:
            info = bytearray(240)
            info[2] = 2
            for place, figure in ((16, 1448), (100, 5), (156, 40), (216, 3), (224, 7)):
                info[place : place + 4] = figure.to_bytes(4, sys.byteorder)
            return bytes(info)

    assert path_figures(Kernel()) == (2, 40, 2, 1448, 7)
