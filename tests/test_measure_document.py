"""The intervals of a document: bounded however long the run is, and what is joined adds up."""

from __future__ import annotations

import json
from itertools import groupby, pairwise
from math import fsum

from hypothesis import given, settings
from hypothesis import strategies as st

from documents import interval
from echopair.measure.document import MAX_INTERVALS, bounded, drawable, joined

SILENT = {"50": None, "99": None, "max": None}


def of_lengths(lengths):
    """Return intervals that follow one another, each with a message, a byte and an error of its own."""
    found, at = [], 0.0
    for number, length in enumerate(lengths):
        at = round(at + length, 6)
        found.append({**interval(at, number, length), "errors": 1})
    return found


def assert_same(few, many):
    """Check that `few` intervals say of the whole what `many` do."""
    for key in ("messages", "bytes", "errors"):
        assert sum(each[key] for each in few) == sum(each[key] for each in many)
    assert abs(fsum(each["duration_s"] for each in few) - fsum(each["duration_s"] for each in many)) < 1e-6
    assert few[-1]["at_s"] == many[-1]["at_s"]
    for before, after in pairwise(few):
        assert abs(before["at_s"] + after["duration_s"] - after["at_s"]) < 1e-5


def test_a_day_of_seconds_has_a_bounded_number_of_intervals_the_finest_last():
    many, few = of_lengths([1.0] * 86_400), []
    sizes = []
    for each in many:
        few = bounded([*few, each])
        if each["at_s"] % 3600 == 0:
            sizes.append(len(json.dumps(few)))
    assert len(few) <= MAX_INTERVALS
    assert max(sizes) < 120_000  # bytes
    assert_same(few, many)
    lengths = [each["duration_s"] for each in few]
    assert lengths == sorted(lengths, reverse=True)
    assert [length for length, _ in groupby(lengths)] == [2.0**power for power in range(10, -1, -1)]
    assert lengths[-100:] == [1.0] * 100
    for each, length in zip(few[:-1], lengths, strict=False):
        age = 86_400 - each["at_s"] + length
        assert length <= age / 40 or length == 1


@settings(deadline=None)  # how long it takes is not the question
@given(st.lists(st.sampled_from([0.0, 1e-6, 0.5, 1.0, 1.0003, 10.0, 5000.0]), max_size=60), st.integers(1, 20))
def test_intervals_of_any_length_can_be_bounded(lengths, most):
    many = of_lengths(lengths)
    few = bounded(many, most)
    assert few == many if len(many) <= most else 1 <= len(few) <= most
    if many:
        assert_same(few, many)


def test_joined_intervals_have_the_worse_latencies_and_the_last_connections():
    first, last = interval(1.0, 5), {**interval(3.0, 0, 2.0), "connections": 3}
    first["response_us"]["max"], last["response_us"] = 7e6, {"50": 500.0, "99": None, "max": 0.0}
    assert joined(first, last) == {
        "at_s": 3.0,
        "duration_s": 3.0,
        "messages": 5,
        "bytes": 5120,
        "errors": 0,
        "connections": 3,
        "response_us": {"50": 500.0, "99": 900.0, "max": 7e6},
    }
    silent = {**last, "response_us": SILENT}
    assert joined(silent, silent)["response_us"] == SILENT


def test_intervals_too_short_to_be_seen_are_joined():
    many = of_lengths([64.0] * 20 + [1.0] * 640)
    few = drawable(many)
    assert [each["duration_s"] for each in few] == [64.0] * 20 + [6.0] * 106 + [4.0]
    assert_same(few, many)
    assert len(drawable(of_lengths([0.1] * 600))) == 300


def test_a_last_interval_too_short_to_be_drawn_is_joined():
    intervals = of_lengths([1.0, 1.0, 0.2])
    assert drawable(intervals) == [intervals[0], joined(*intervals[1:])]
    for intact in ([], of_lengths([0.1]), of_lengths([1.0, 1.0, 0.25]), of_lengths([0.1] * 300)):
        assert drawable(intact) == intact
