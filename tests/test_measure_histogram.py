from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echopair.measure.histogram import BUCKETS, MAX_VALUE, Histogram, _index, highest, lowest

values = st.integers(0, 2**40) | st.integers(0, 1000) | st.integers(0, MAX_VALUE)


def of(*recorded: int) -> Histogram:
    histogram = Histogram()
    for value in recorded:
        histogram.record(value)
    return histogram


def state(histogram: Histogram) -> tuple[object, ...]:
    return list(histogram.buckets()), histogram.total, histogram.min, histogram.max


def test_buckets_follow_one_another_without_a_gap():
    assert lowest(0) == 0
    assert all(highest(index) + 1 == lowest(index + 1) for index in range(BUCKETS))
    assert highest(BUCKETS - 1) >= MAX_VALUE


@given(values)
def test_a_value_is_in_its_bucket_and_the_bucket_is_narrow(value):
    index = _index(value)
    assert lowest(index) <= value <= highest(index)
    assert highest(index) - lowest(index) <= value / 128
    assert list(of(value).buckets()) == [(lowest(index), 1)]


def test_nothing_has_no_percentile_and_no_mean():
    assert Histogram().percentile(50) is None
    assert Histogram().mean is None
    assert Histogram().count == 0


def test_sums_are_exact():
    histogram = of(10**9 + 1, 3, 10**12 + 7)
    assert (histogram.count, histogram.total, histogram.min, histogram.max) == (3, 10**12 + 10**9 + 11, 3, 10**12 + 7)
    assert histogram.mean == (10**12 + 10**9 + 11) / 3


def test_values_out_of_range_count_at_its_ends():
    histogram = of(-5, 2**70)
    assert (histogram.min, histogram.max) == (0, MAX_VALUE)
    assert histogram.count == 2


@given(st.lists(values, min_size=1, max_size=200), st.floats(0, 100))
def test_percentiles_agree_with_the_sorted_list_within_one_bucket(recorded, percent):
    rank = max(math.ceil(round(len(recorded) * percent / 100, 6)), 1)
    exact = sorted(recorded)[rank - 1]
    assert exact <= of(*recorded).percentile(percent) <= highest(_index(exact))


def test_percentiles_of_many_random_samples_agree_with_the_sorted_list():
    source = random.Random(7)
    recorded = [int(source.lognormvariate(13, 1.5)) for _ in range(200_000)]
    histogram = of(*recorded)
    recorded.sort()
    for percent in (0, 1, 25, 50, 90, 99, 99.9, 99.99, 100):
        exact = recorded[max(math.ceil(round(len(recorded) * percent / 100, 6)), 1) - 1]
        assert exact <= histogram.percentile(percent) <= highest(_index(exact))


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (25, 1), (26, 2), (50, 2), (75, 3), (99, 4), (100, 4)])
def test_percentiles_are_of_the_nearest_rank(percent, value):
    assert of(4, 2, 1, 3).percentile(percent) == value


def test_a_rank_is_not_a_matter_of_rounding():
    assert of(*range(1, 1001)).percentile(99.9) <= highest(_index(999))
    assert of(*[1] * 999, 2).percentile(99.9) == 1
    assert of(*range(1, 20)).percentile(90 * 20 / 19) == 18  # as a threshold asks where one in twenty was lost


def test_no_percentile_is_above_the_greatest_value():
    assert of(1_000_001).percentile(50) == 1_000_001


@given(st.lists(values, max_size=50), st.lists(values, max_size=50))
def test_merging_is_recording_both(ours, theirs):
    merged = of(*ours)
    merged.merge(of(*theirs))
    assert state(merged) == state(of(*ours, *theirs))


@given(st.lists(values, max_size=50))
def test_a_histogram_of_its_buckets_is_the_same(recorded):
    histogram = of(*recorded)
    again = Histogram.of_buckets(histogram.buckets(), total=histogram.total, least=histogram.min, most=histogram.max)
    assert state(again) == state(histogram)


@given(st.integers(0, 10**10), st.integers(0, 10**10), st.integers(1, 3 * BUCKETS))
def test_values_that_lie_evenly_are_counted_as_if_one_by_one(least, span, number):
    at_once, one_by_one = Histogram(), Histogram()
    at_once.record_evenly(least, least + span, number)
    for place in range(number):
        one_by_one.record(least + span * place // max(number - 1, 1))
    assert at_once.count == number
    assert (at_once.min, at_once.max) == (one_by_one.min, one_by_one.max)
    assert at_once.total == pytest.approx(one_by_one.total, rel=0.01, abs=number)
    for percent in (1, 50, 99):
        assert at_once.percentile(percent) == pytest.approx(
            one_by_one.percentile(percent), rel=0.02, abs=span / 100 + 2
        )
