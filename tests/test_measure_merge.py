from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from documents import closed, empty, histogram, interrupted, interval, mismatch, opened, refused, timed
from echopair.measure.document import MAX_INTERVALS, bounded, dumped, loaded, summary
from echopair.measure.histogram import Histogram
from echopair.measure.merge import caveats, merge

PAIRLESS = {**dumped(Histogram()), "buckets": [[1]]}

nanoseconds = st.lists(st.integers(0, 2**40), max_size=50)


def run(*, at: int = 0, duration_s: float = 4.0, rates: tuple[int, ...] = (), messages: int = 0):
    """Return the document of a run that began `at` seconds past noon, with so many messages in each second."""
    document = empty()
    document["started_at"] = f"2026-01-31T12:00:{at:02}.000Z"
    document["duration_s"] = duration_s
    document["intervals"] = [interval(second, rate) for second, rate in enumerate(rates, 1)]
    document["messages"]["echoed"] = messages or sum(rates)
    document["bytes"]["received"] = document["messages"]["echoed"] * 1024
    return document


def rate(*runs):
    throughput = merge(runs)["throughput"]
    assert throughput["bytes_per_s"] == pytest.approx(1024 * throughput["messages_per_s"], abs=1)
    return throughput["messages_per_s"]


# Histograms


@given(nanoseconds)
def test_a_histogram_dumped_and_loaded_is_the_same(recorded):
    counted = histogram(recorded)
    again = loaded(dumped(counted))
    assert dumped(again) == dumped(counted)
    assert (again.min, again.max, again.total, again.count) == (counted.min, counted.max, counted.total, counted.count)


def test_no_histogram_is_an_empty_one():
    assert dumped(loaded(None)) == dumped(Histogram())


def test_summary_is_in_microseconds():
    assert summary(histogram([1000, 2000, 4500]), ["50", "99.9"]) == {
        "count": 3,
        "min": 1.0,
        "mean": 2.5,
        "max": 4.5,
        "percentiles": {"50": pytest.approx(2.0, rel=0.008), "99.9": 4.5},
    }


def test_summary_of_nothing_is_null():
    figures = {"min": None, "mean": None, "max": None, "percentiles": {"50": None}}
    assert summary(Histogram(), ["50"]) == {"count": 0, **figures}


def test_summary_of_a_time_too_short_to_measure_is_0_and_not_null():
    figures = {"min": 0.0, "mean": 0.0, "max": 0.0, "percentiles": {"50": 0.0}}
    assert summary(histogram([0]), ["50"]) == {"count": 1, **figures}


@settings(max_examples=25)
@given(nanoseconds, nanoseconds)
def test_merging_is_recording_both(ours, theirs):
    merged = merge([timed(empty(), response=ours), timed(empty(), response=theirs)])
    both = timed(empty(), response=ours + theirs)
    assert merged["histograms"] == both["histograms"]
    assert merged["latency_us"] == both["latency_us"]


def test_schedule_lag_is_merged_too_and_none_of_none():
    merged = merge([opened(), opened()])
    assert merged["latency_us"]["schedule_lag"]["count"] == 8000
    assert merge([closed(), closed()])["histograms"]["schedule_lag"] is None
    assert merge([closed(), closed()])["latency_us"]["schedule_lag"] is None


def test_percentiles_are_all_those_that_an_input_lists_in_order():
    first, second = closed(), closed()
    first["latency_us"]["response"]["percentiles"] = {"99.99": 1.0, "50": 1.0}
    second["latency_us"]["response"]["percentiles"] = {"9": 1.0, "50": 1.0}
    assert list(merge([first, second])["latency_us"]["service"]["percentiles"]) == ["9", "50", "99.99"]


# Sums


def test_one_document_stays_as_it_is_but_for_thresholds_and_the_percentiles_of_its_intervals():
    document = mismatch()
    merged = merge([document])
    for each in document["intervals"]:
        each["response_us"].update({"50": None, "99": None})
    assert merged == {**document, "thresholds": []}


def test_merging_does_not_change_its_inputs():
    inputs = [closed(), mismatch()]
    merge(inputs)
    assert inputs == [closed(), mismatch()]


@pytest.mark.parametrize(
    ("one", "other"), [(closed(), mismatch()), (closed(400), interrupted()), (refused(), closed())]
)
def test_order_does_not_matter_but_to_lists(one, other):
    ours, theirs = merge([one, other]), merge([other, one])
    assert sorted(map(str, ours.pop("errors"))) == sorted(map(str, theirs.pop("errors")))
    assert ours == theirs


def test_counts_add_up():
    merged, parts = merge([mismatch(), refused(), interrupted()]), [mismatch(), refused(), interrupted()]
    for section in ("connections", "messages", "bytes"):
        total: Counter[str] = Counter()
        for part in parts:
            total.update(part[section])
        assert merged[section] == total


def test_errors_of_a_kind_add_up_and_keep_the_first_example():
    first, second, third = refused(), mismatch(), refused()
    third["errors"][0]["example"] = "another"
    errors = merge([first, second, third])["errors"]
    assert errors == [{**first["errors"][0], "count": 100}, *second["errors"]]


def test_addresses_add_up_and_keep_the_first_example():
    older = closed()
    del older["addresses"]
    (entry,) = merge([closed(), older, refused(), closed()])["addresses"]
    assert entry == {"address": "127.0.0.1:12345", "connections": 100, "failed": 50, "example": "connection refused"}


def test_thresholds_are_dropped():
    assert merge([mismatch(), mismatch()])["thresholds"] == []


@pytest.mark.parametrize(
    ("statuses", "worst"),
    [((0, 0), 0), ((0, 130), 130), ((143, 130), 130), ((130, 99), 99), ((99, 1), 1), ((143, 1), 1), ((2, 130), 2)],
)
def test_exit_status_is_the_worst(statuses, worst):
    assert merge([{**empty(), "exit_status": status} for status in statuses])["exit_status"] == worst
    assert merge([{**empty(), "exit_status": status} for status in reversed(statuses)])["exit_status"] == worst


def test_targets_and_versions_are_each_named_once():
    first, second, third = empty(), empty(), empty()
    second["target"], third["version"] = "127.0.0.1:7", "0.2.0"
    merged = merge([first, second, third])
    assert (merged["target"], merged["version"]) == ("127.0.0.1:12345, 127.0.0.1:7", "0.1.0, 0.2.0")


def test_load_adds_connections_and_rates_and_is_null_where_runs_differ():
    first, second = opened(), opened()
    second["load"].update(size=64, seed=8, connections=1, rate=500.0)
    load = merge([first, second])["load"]
    assert load == {**first["load"], "size": None, "seed": None, "connections": 51, "workers": 2, "rate": 2500.0}


def test_client_is_the_bottleneck_if_one_of_them_was():
    first, second, third = opened(), opened(), opened()
    first["generator"] = {"cpu_percent": 12.0, "limited": False, "reason": None}
    assert merge([first, second, third])["generator"] == second["generator"]
    first["generator"]["cpu_percent"] = None
    assert merge([first])["generator"] == first["generator"]


def test_round_trip_is_the_mean_over_connections():
    first, second = closed(), closed()
    second["tcp"] = {"rtt_us": 102.0, "retransmits": 3}
    second["connections"]["established"] = 25
    assert merge([first, refused(), second])["tcp"] == {"rtt_us": 62.0, "retransmits": 3}
    assert merge([refused(), refused()])["tcp"] is None


# Time


def test_run_goes_from_the_first_start_to_the_last_end():
    merged = merge([run(at=5, duration_s=4), run(at=3, duration_s=10.5), run(at=4, duration_s=1)])
    assert (merged["started_at"], merged["duration_s"]) == ("2026-01-31T12:00:03.000Z", 10.5)


def test_rate_is_over_the_whole_time_and_not_that_before_a_run_died():
    assert rate(run(rates=(10, 10, 10, 10)), run(rates=(10, 10, 10, 10))) == 20
    assert rate(run(rates=(10, 10, 10, 10)), run(duration_s=1, rates=(10,))) == 12.5
    assert rate(run(rates=(10, 10, 30, 30)), run(at=2, rates=(7, 7, 500, 500))) == pytest.approx(1094 / 6, abs=0.001)


def test_rate_of_runs_one_after_another_is_by_the_time_in_which_any_ran():
    assert rate(run(rates=(10, 10, 10, 10)), run(at=30, rates=(30, 30, 30, 30))) == 20
    assert rate(run(duration_s=10, messages=60), run(at=2, duration_s=1), run(at=30, duration_s=10, messages=60)) == 6


def test_runs_overlap_that_share_half_of_the_time_of_the_shortest():
    first = run(rates=(10, 10, 10, 10))
    assert caveats([first, run(at=2, rates=(30, 30, 30, 30))]) == []
    assert caveats([first, run(at=3, rates=(30, 30, 30, 30))])[0].startswith("these runs hardly overlapped")


def test_rate_of_runs_that_took_no_time_is_0():
    assert rate(run(duration_s=0), run(duration_s=0)) == 0


def test_what_to_bear_in_mind_of_a_sum_is_told():
    one, other = closed(), closed()
    assert caveats([one, other]) == []
    other["target"] = "elsewhere:7"
    other["started_at"] = "2026-01-31T12:00:04.000Z"
    assert caveats([one, other]) == [
        "these runs hardly overlapped: the rate is over the time in which any of them ran",
        "these runs had different targets",
    ]


def test_a_run_that_took_no_time_overlapped_with_none():
    assert caveats([closed(), empty()])[0].startswith("these runs hardly overlapped")


def test_intervals_are_added_second_by_second_of_the_wall_clock():
    intervals = merge([run(rates=(10, 20)), run(at=1, duration_s=2, rates=(5, 6)), run(at=9, rates=(1,))])["intervals"]
    assert [(each["at_s"], each["messages"], each["connections"]) for each in intervals] == [
        (1, 10, 50),
        (2, 25, 100),
        (3, 6, 50),
        (10, 1, 50),
    ]
    assert intervals[0]["response_us"] == {"50": None, "99": None, "max": 1200.0}
    assert all(each["bytes"] == 1024 * each["messages"] for each in intervals)


def test_interval_counts_where_its_middle_lies():
    shifted = run(rates=(5, 6))
    shifted["started_at"] = "2026-01-31T12:00:00.400Z"
    assert [each["messages"] for each in merge([run(rates=(10, 20)), shifted])["intervals"]] == [15, 26]
    shifted["started_at"] = "2026-01-31T12:00:00.600Z"
    assert [each["messages"] for each in merge([run(rates=(10, 20)), shifted])["intervals"]] == [10, 25, 6]


def test_long_intervals_set_the_pace_and_the_last_one_may_be_short():
    slow = run(duration_s=25)
    slow["intervals"] = [interval(10, 100, 10), interval(20, 100, 10), interval(25, 50, 5)]
    intervals = merge([slow, run(duration_s=2, rates=(1, 2))])["intervals"]
    assert [(each["at_s"], each["duration_s"], each["messages"]) for each in intervals] == [
        (10, 10, 103),
        (20, 10, 100),
        (25, 5, 50),
    ]


def test_long_intervals_set_the_pace_only_where_they_are():
    old, other = run(duration_s=12), run(duration_s=12, rates=(1,) * 12)
    old["intervals"] = [interval(8, 80, 8), interval(10, 20, 2), interval(11, 10), interval(12, 10)]
    other["started_at"] = "2026-01-31T12:00:00.300Z"
    intervals = merge([old, other])["intervals"]
    assert [(each["at_s"], each["duration_s"], each["messages"]) for each in intervals] == [
        (8, 8, 88),
        (10, 2, 22),
        (11, 1, 11),
        (12.3, 1.3, 11),
    ]


def test_a_second_in_which_no_interval_has_its_middle_has_none():
    late = run(duration_s=20)
    late["intervals"] = [interval(10, 100, 10), interval(20, 100, 10)]
    late["started_at"] = "2026-01-31T12:00:00.900Z"
    intervals = merge([run(), late])["intervals"]
    assert [(each["at_s"], each["duration_s"], each["messages"]) for each in intervals] == [
        (10.9, 9.9, 100),
        (20.9, 9.9, 100),
    ]


def test_intervals_of_long_runs_are_bounded_and_add_up():
    """A fleet's intervals are joined already, each at its own time, and their sum is."""
    fleet = [run(duration_s=seconds, rates=(number,) * seconds) for number, seconds in enumerate((5000, 4500, 700), 1)]
    for each in fleet:
        each["intervals"] = bounded(each["intervals"])
    fleet[1]["started_at"] = "2026-01-31T12:00:00.400Z"
    fleet[2]["started_at"] = "2026-01-31T13:59:59.000Z"
    merged = merge(fleet)
    intervals = merged["intervals"]
    assert len(intervals) <= MAX_INTERVALS
    assert sum(each["messages"] for each in intervals) == merged["messages"]["echoed"] == 5000 + 9000 + 2100
    assert intervals[-1]["at_s"] == merged["duration_s"] == 7199 + 700
    ends = [(each["at_s"] - each["duration_s"], each["at_s"]) for each in intervals]
    assert all(before[1] <= after[0] + 1e-6 for before, after in pairwise(ends))
    assert all(each["messages"] / each["duration_s"] == pytest.approx(3, rel=0.05) for each in intervals[20:100])


def test_interval_without_a_response_has_no_largest():
    document = run(rates=(0,))
    document["intervals"][0]["response_us"]["max"] = None
    assert merge([document])["intervals"][0]["response_us"]["max"] is None


# What is refused


def test_nothing_cannot_be_merged():
    with pytest.raises(ValueError, match=r"^there is nothing to merge$"):
        merge([])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema_version": 2}, "b.json has schema_version 2; this program reads 1"),
        ({"schema_version": True}, "b.json is not a result of echo-client: schema_version is not of type integer"),
        ({"tcp": 3}, "b.json is not a result of echo-client: tcp is not of type object"),
        ({"duration_s": math.nan}, "b.json is not a result of echo-client: duration_s cannot be nan"),
        ({"duration_s": math.inf}, "b.json is not a result of echo-client: duration_s cannot be inf"),
        ({"tcp": {}}, "b.json is not a result of echo-client: tcp.rtt_us is missing"),
        (
            {"histograms": {**empty()["histograms"], "response": PAIRLESS}},
            "b.json is not a result of echo-client: histograms.response.buckets[0] has 1 item",
        ),
        ({"more": 1}, "b.json is not a result of echo-client: more is unknown"),
        ({"errors": [3]}, "b.json is not a result of echo-client: errors[0] is not of type object"),
        (
            {"started_at": "2026-13-31T12:00:00.000Z"},
            "b.json is not a result of echo-client: started_at: month must be in 1..12",
        ),
    ],
)
def test_what_is_no_result_is_refused_by_name_and_reason(change, reason):
    with pytest.raises(ValueError, match=r"^b\.json ") as caught:
        merge([empty(), {**empty(), **change}], ["a.json", "b.json"])
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize("document", [None, [], "text", 3])
def test_what_is_no_object_is_refused(document):
    with pytest.raises(ValueError, match=r"^input 2 is not a result of echo-client: it is not of type object$"):
        merge([empty(), document])


def test_other_json_is_refused_for_the_first_thing_missing():
    with pytest.raises(ValueError, match=r"^input 1 is not a result of echo-client: schema_version is missing$"):
        merge([{}])


def test_histograms_with_other_buckets_are_refused():
    document = closed()
    document["histograms"]["connect"]["significant_bits"] = 10
    with pytest.raises(ValueError, match=r"^input 2 has a connect histogram of 10 significant bits, not 7: "):
        merge([closed(), document])


def test_closed_and_open_loops_are_not_merged():
    with pytest.raises(ValueError, match=r"^b is of an open loop and a of a closed one: "):
        merge([closed(), opened()], ["a", "b"])
    with pytest.raises(ValueError, match=r"^b is of a closed loop and a of an open one: "):
        merge([opened(), closed()], ["a", "b"])
