"""The tally: what it counts is what the document says, and intervals add up to the whole."""

from __future__ import annotations

from math import fsum

import pytest

from documents import PERCENTS
from echopair.measure.document import MAX_INTERVALS
from echopair.measure.tally import BUSY, LATE, TELLING, Tally


def test_intervals_add_up_to_the_run():
    tally = Tally()
    for at, times in ((1.0, [1000, 2000]), (2.0, []), (2.5, [3000] * 5)):
        for time in times:
            tally.recent.record(time)
        tally.end_interval(at, int(at * 100), 7)
    tally.recent.record(9000)
    assert tally.echoed == 8
    figures = tally.figures(4.0, PERCENTS)
    assert [interval["messages"] for interval in figures["intervals"]] == [2, 0, 5]
    assert [interval["duration_s"] for interval in figures["intervals"]] == [1.0, 1.0, 0.5]
    assert [interval["bytes"] for interval in figures["intervals"]] == [100, 100, 50]
    assert figures["intervals"][1]["response_us"] == {"50": None, "99": None, "max": None}
    assert figures["intervals"][2]["response_us"]["max"] == 3.0
    assert figures["messages"]["echoed"] == figures["latency_us"]["response"]["count"] == 8
    assert figures["latency_us"]["response"]["max"] == 9.0
    assert figures["throughput"]["messages_per_s"] == 2.0


def test_intervals_are_bounded_and_their_sums_stay():
    tally = Tally()
    for second in range(1, MAX_INTERVALS + 2):
        tally.recent.record(second * 1000)
        tally.end_interval(float(second), second * 10, 1)
    assert len(tally.intervals) < MAX_INTERVALS
    assert sum(interval["messages"] for interval in tally.intervals) == tally.echoed == MAX_INTERVALS + 1
    assert sum(interval["bytes"] for interval in tally.intervals) == (MAX_INTERVALS + 1) * 10


def test_durations_of_intervals_add_up_to_the_whole():
    tally = Tally()
    for third in range(1, 31):
        tally.end_interval(third / 3, 0, 0)
    assert fsum(interval["duration_s"] for interval in tally.intervals) == pytest.approx(10, abs=1e-9)


def test_errors_are_counted_by_phase_and_cause_with_the_first_story():
    tally = Tally()
    tally.fail("echo", "mismatch", "first")
    tally.fail("echo", "mismatch", "second")
    tally.fail("connect", "ECONNREFUSED", "third")
    assert tally.error_count == 3
    assert tally.end_interval(1.0, 0, 0)["errors"] == 3
    assert tally.end_interval(2.0, 0, 0)["errors"] == 0
    assert tally.figures(1.0, PERCENTS)["errors"] == [
        {"phase": "echo", "error": "mismatch", "count": 2, "example": "first"},
        {"phase": "connect", "error": "ECONNREFUSED", "count": 1, "example": "third"},
    ]


def test_addresses_are_counted_with_the_first_story_of_a_failure_and_added_up():
    tally, other = Tally(), Tally()
    tally.connected("a:7")
    other.not_connected("a:7", "first")
    other.not_connected("a:7", "second")
    other.connected("b:7")
    tally.add(other)
    tally.add(other)
    assert tally.figures(1.0, PERCENTS)["addresses"] == [
        {"address": "a:7", "connections": 1, "failed": 4, "example": "first"},
        {"address": "b:7", "connections": 2, "failed": 0, "example": None},
    ]


def test_a_closed_loop_has_no_schedule_and_serves_as_it_responds():
    closed, opened = Tally(), Tally(open_loop=True)
    for tally in (closed, opened):
        tally.recent.record(5000)
    opened.service.record(2000)
    figures = closed.figures(1.0, PERCENTS)
    assert figures["histograms"]["service"] == figures["histograms"]["response"]
    assert figures["histograms"]["schedule_lag"] is None
    figures = opened.figures(1.0, PERCENTS)
    assert figures["latency_us"]["service"]["max"] == 2.0
    assert figures["latency_us"]["schedule_lag"]["count"] == 0


def test_nothing_in_no_time_is_no_rate():
    figures = Tally().figures(0.0, PERCENTS)
    assert figures["throughput"] == {"messages_per_s": 0.0, "bytes_per_s": 0.0}
    assert figures["tcp"] is None


def test_round_trips_are_averaged_over_connections_and_retransmits_added():
    tally = Tally()
    tally.tcp(100, 1)
    tally.tcp(200, 2)
    assert tally.figures(1.0, PERCENTS)["tcp"] == {"rtt_us": 150.0, "retransmits": 3}


@pytest.mark.parametrize(
    ("busy", "waited", "late", "shared", "reason"),
    [
        (0.5, 0.4, 0, False, None),
        (BUSY / 100, 0, 0, False, "its CPU was 95 % busy"),
        (1.2, 0, 0, True, "its CPU was 100 % busy, with the server in it (--loopback)"),
        (0.5, 0.46, 0, False, "its CPU was 50 % busy, and others kept it waiting for more"),
        (0.5, 0, LATE, False, "it was 5.0 ms behind its own schedule (p99.9)"),
        (1.0, 0, 3 * LATE, False, "its CPU was 100 % busy and it was 15.0 ms behind its own schedule (p99.9)"),
    ],
)
def test_it_says_whether_the_client_was_the_bottleneck(busy, waited, late, shared, reason):
    tally = Tally(open_loop=True)
    tally.schedule_lag.record(late)
    document = tally.generator(busy, waited, 1.0, shared=shared)
    assert document["limited"] == (reason is not None)
    assert document["reason"] == reason


@pytest.mark.parametrize(("slow", "limited"), [(10 * LATE, True), (11 * LATE, False)])
def test_a_client_that_is_late_is_no_reason_where_responses_take_far_longer(slow, limited):
    tally = Tally(open_loop=True)
    tally.schedule_lag.record(LATE)
    tally.recent.record(slow)
    tally.end_interval(1.0, 0, 1)
    assert tally.generator(0.5, 0.0, 1.0, shared=False)["limited"] == limited


@pytest.mark.parametrize(("lost", "limited"), [(1, True), (2, False)])
@pytest.mark.parametrize("figure", ["mismatched", "unanswered", "not_sent"])
def test_a_client_that_is_late_is_no_reason_where_messages_are_lost(figure, lost, limited):
    tally = Tally(open_loop=True, **{figure: lost})
    tally.schedule_lag.record(LATE)
    for _ in range(999):
        tally.recent.record(LATE)
    tally.end_interval(1.0, 0, 1)
    assert tally.generator(0.5, 0.0, 1.0, shared=False)["limited"] == limited


def test_a_short_run_says_nothing_of_its_processor():
    assert Tally().generator(TELLING, 0, TELLING / 2, shared=False) == {
        "cpu_percent": None,
        "limited": False,
        "reason": None,
    }
