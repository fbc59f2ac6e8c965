from __future__ import annotations

import re
from functools import cache
from itertools import product
from pathlib import Path

import pytest

import echopair
from documents import closed, empty, mismatch, opened, refused, timed
from echopair.measure.threshold import Threshold


def check(expression, document):
    return Threshold.parse(expression).check(document)


@cache
def milliseconds():
    """Return a document whose response times are 1, 2 .. 100 ms, service half, connect 7 ms, lag a tenth."""
    times = [number * 1_000_000 for number in range(1, 101)]
    halves, tenths = [time // 2 for time in times], [time // 10 for time in times]
    return timed(opened(), response=times, service=halves, connect=[7_000_000], schedule_lag=tenths)


@pytest.mark.parametrize(
    ("expression", "value_us"),
    [
        ("p50>1s", 50_000),
        ("p99>1s", 99_000),
        ("p99.9>1s", 100_000),
        ("p100>1s", 100_000),
        ("min>1s", 1_000),
        ("max>1s", 100_000),
        ("mean>1s", 50_500),
        ("response.mean>1s", 50_500),
        ("service.max>1s", 50_000),
        ("connect.p99>1s", 7_000),
        ("schedule_lag.max>1s", 10_000),
        ("lag.max>1s", 10_000),
    ],
)
def test_latency_is_taken_from_the_histogram_in_microseconds(expression, value_us):
    entry = check(expression, milliseconds())
    assert entry == {"expression": expression, "value_us": pytest.approx(value_us, rel=0.008), "failed": False}


@pytest.mark.parametrize(
    ("expression", "failed"),
    [
        ("max>99ms", True),
        ("max>100ms", False),
        ("max>=100ms", True),
        ("max>=101ms", False),
        ("max<101ms", True),
        ("max<100ms", False),
        ("max<=100ms", True),
        ("max<=99ms", False),
    ],
)
def test_threshold_fails_when_the_comparison_holds(expression, failed):
    assert check(expression, milliseconds())["failed"] is failed


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("p99>20us", 20),
        ("p99>1.5ms", 1500),
        ("p99>.5s", 500_000),
        ("p99>2m", 120e6),
        ("p99>1h", 3600e6),
        ("p99>5.s", 5e6),
    ],
)
def test_latency_is_compared_in_any_unit_of_time(text, microseconds):
    assert Threshold.parse(text).value == microseconds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("rate<500", 500),
        ("rate<10k", 10_000),
        ("rate<1.5m/s", 1_500_000),
        ("bytes_rate<100", 100),
        ("bytes_rate<1K", 1024),
        ("bytes_rate<5M/s", 5 * 1024**2),
        ("bytes_rate<2G/s", 2 * 1024**3),
        ("errors>3", 3),
        ("errors>0.1%", 0.1),
    ],
)
def test_counts_and_rates_have_units_of_their_own(text, value):
    assert Threshold.parse(text).value == value


def test_blanks_and_case_do_not_matter_and_the_expression_stays_as_it_was():
    assert Threshold.parse(" P99 >= 20 MS ") == Threshold("P99 >= 20 MS", "response", "99", ">=", 20_000)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "p99",
        "p99>",
        ">20ms",
        "p99=20ms",
        "p99>20",
        "p99>20%",
        "p99>20k",
        "p99>20ms/s",
        "p99>-1ms",
        "p99>.ms",
        "p99>nanms",
        "p101>1ms",
        "p99.>1ms",
        "p>1ms",
        "p99>20ms and more",
        "tail.p99>1ms",
        "response>1ms",
        "errors>1k",
        "errors>1ms",
        "errors>1/s",
        "service.errors>1",
        "rate<1g",
        "rate<1%",
        "bytes_rate<1%",
        "bytes_rate<1h",
        "p\u0663>1ms",
        "latency>20ms",
        "latency>20",
        "p99%>1ms",
        "errors%>1",
        "not_sent>1ms",
        "lag.rate>1",
        "throughput<1",
        "9" * 400 + ">p99",
    ],
)
def test_what_is_no_threshold_is_refused_with_the_grammar_in_one_line(text):
    with pytest.raises(ValueError, match="is not a threshold") as caught:
        Threshold.parse(text)
    message = str(caught.value)
    assert message.startswith(repr(text))
    assert "p99>20ms, errors>0.1%, rate<10k, bytes_rate<5M/s" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("p999>1ms", "a percentile is above 0 and at most 100"),
        ("p0>1ms", "a percentile is above 0 and at most 100"),
        (f"p99>{'9' * 400}ms", "the value is too large"),  # nothing would ever be above it
    ],
)
def test_what_could_never_fire_is_refused_for_what_it_is(text, why):
    with pytest.raises(ValueError, match=why):
        Threshold.parse(text)


MANUAL = (Path(echopair.__file__).parent / "manual/thresholds.md").read_text("utf-8")
ROWS = [line.strip("|").split("|") for line in MANUAL.splitlines() if line.startswith("| `")]
PREFIXES = ["", *(prefix for cells in ROWS for prefix in re.findall(r"`(\w+\.)`", cells[0]))]
DOCUMENTED = [  # every figure of the manual, with every unit
    (prefix + figure, unit)
    for first, _, *units in ROWS
    if units
    for figure in re.findall(r"`([\w.]+)`", first)
    for unit in ["" for _ in units if "none" in units[0]] + re.findall(r"`([\w%]+)`", units[0])
    for prefix in (PREFIXES if "ms" in units[0] else [""])
]
SCALES = {"us": 1, "ms": 1e3, "s": 1e6, "m": 60e6, "h": 3600e6}
RATE_SCALES = {"k": 1e3, "m": 1e6, "K": 1024, "M": 1024**2, "G": 1024**3}


def test_the_manual_names_what_there_is():
    assert {figure for figure, unit in DOCUMENTED if not unit} == {"errors", "not_sent", "rate", "bytes_rate"}
    assert len(PREFIXES) == 6
    assert len(DOCUMENTED) == 7 * 6 * 5 + 2 + 2 + 3 + 4


@pytest.mark.parametrize(("figure", "unit"), DOCUMENTED, ids="".join)
def test_every_documented_figure_can_fire_and_can_hold_in_every_unit(figure, unit):
    document = milliseconds()
    if figure in ("errors", "not_sent"):
        document = opened()
        document["errors"] = [{"phase": "echo", "error": "timeout", "count": 3, "example": ""}]
        document["messages"]["not_sent"] = 3
    entry = check(f"{figure}>0{unit}", document)
    scale = SCALES[unit] if "value_us" in entry else RATE_SCALES.get(unit, 1)
    measured = entry.get("value_us", entry.get("value"))
    assert measured > 0
    for compare, end, (factor, failed) in product(
        ("<", "<=", ">", ">="), ("", "/s") if "rate" in figure else ("",), ((0.5, False), (2, True))
    ):
        expression = f"{figure} {compare} {factor * measured / scale:.15f}{unit}{end}"
        assert check(expression, document)["failed"] is (failed if "<" in compare else not failed), expression


@pytest.mark.parametrize("expression", ["p99>20ms", "p99<20ms", "mean>1h", "connect.max>1ms", "lag.p50>1us"])
def test_latency_that_does_not_exist_has_failed(expression):
    assert check(expression, refused()) == {"expression": expression, "value_us": None, "failed": True}


def test_lag_of_a_closed_loop_does_not_exist():
    assert check("lag.p99>1h", closed()) == {"expression": "lag.p99>1h", "value_us": None, "failed": True}


def test_rates_are_those_of_the_document():
    assert check("rate<1001", closed()) == {"expression": "rate<1001", "value": 1000.0, "failed": True}
    assert check("rate<1k", closed())["failed"] is False
    assert check("bytes_rate<1M/s", closed()) == {"expression": "bytes_rate<1M/s", "value": 1_024_000.0, "failed": True}
    assert check("bytes_rate<1000K", closed())["failed"] is False


def test_errors_are_those_that_the_document_lists():
    assert check("errors>1", mismatch()) == {"expression": "errors>1", "value": 2, "failed": True}
    assert check("errors>2", mismatch())["failed"] is False
    share = {
        "expression": "errors>0.2%",
        "value": pytest.approx(100 * 2 / 856),
        "failed": True,
    }  # 806 messages, 50 conns
    assert check("errors>0.2%", mismatch()) == share
    assert check("errors>0.24%", mismatch())["failed"] is False


def test_a_name_that_does_not_resolve_is_100_per_cent():
    document = empty()
    document["errors"] = [{"phase": "resolve", "error": "unresolved", "count": 1, "example": ""}]
    assert check("errors>50%", document)["value"] == 100.0


def test_messages_that_were_due_and_not_sent_are_compared_by_number_or_share():
    document = opened()
    document["messages"]["not_sent"] = 1000
    assert check("not_sent>999", document) == {"expression": "not_sent>999", "value": 1000, "failed": True}
    assert check("not_sent>20%", document) == {"expression": "not_sent>20%", "value": 20.0, "failed": False}


@pytest.mark.parametrize(
    ("lost", "expression", "value", "failed"),
    [
        (0, "p99.9>1s", 900.0, False),
        (10, "p50>1s", 900.0, False),
        (10, "p90>1s", 900.0, False),  # 990 of 1,000 came back
        (10, "p99>1s", 900.0, False),
        (10, "p99.9>1s", None, True),
        (10, "max>1s", None, True),
        (10, "mean>1s", None, True),
        (10, "min>1s", 900.0, False),
        (10, "connect.max>1s", 900.0, False),
        (510, "p50>1s", None, True),
        (510, "service.p50<1s", None, True),
    ],
)
@pytest.mark.parametrize("kind", ["mismatched", "unanswered", "not_sent"])
def test_messages_that_did_not_come_back_count_as_slower_than_any_that_did(lost, expression, value, failed, kind):
    times = [900_000] * (1000 - lost)
    document = timed(empty(), response=times, service=times, connect=times)
    document["messages"][kind] = lost
    assert check(expression, document) == {"expression": expression, "value_us": value, "failed": failed}


def test_every_connection_refused_is_100_per_cent():
    assert check("errors>=100%", refused()) == {"expression": "errors>=100%", "value": 100.0, "failed": True}
    assert check("errors>100%", refused())["failed"] is False


def test_no_attempt_has_no_share_of_errors_and_has_not_failed():
    assert check("errors>=0%", empty()) == {"expression": "errors>=0%", "value": None, "failed": False}
    assert check("errors>0", empty()) == {"expression": "errors>0", "value": 0, "failed": False}
