from __future__ import annotations

import re
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from documents import EVERY, closed, empty, interrupted, interval, mismatch, opened, refused, timed
from echopair.measure.report import report, sparkline
from echopair.measure.threshold import Threshold
from echopair.measure.verdict import verdict

BAR = re.compile(r"[#▏▎▍▌▋▊▉█]+$")


def section(text, title):
    """Return the lines under a title, up to the next one."""
    _, _, rest = text.partition(f" {title} ")
    return re.split(r"\n\n[─-]{2} ", rest)[0].splitlines()[1:]


def rows(document, **options):
    """Return the drawn rows as (label, count, per cent, bar, percentiles)."""
    found = []
    for line in section(report(document, **options), "response time"):
        label, number, share, rest = re.fullmatch(r"  (.+?)  +([\d,]+) +(<?[\d.]+) % ?(.*)", line).groups()
        bar, _, marks = rest.strip().partition(" ")
        bar, marks = ("", bar) if bar.startswith("p") else (bar, marks)
        share = share if share[0] == "<" else float(share)
        found.append((label.strip(), int(number.replace(",", "")), share, bar, marks.strip()))
    return found


def facts(document, **options):
    """Return what stands beside a name in the block of facts."""
    lines = report(document, **options).splitlines()
    return {line[2:14].strip(): line[16:] for line in lines if re.match(r"  [a-z][a-z ]{11}  \S", line)}


# As a whole


def test_report_of_a_run_in_which_all_went_well():
    text = report(closed())
    assert text.startswith(
        "Every byte came back: 4,000 messages, 3.91 MiB.\n\n  rate          1,000 messages/s, 0.98 MiB/s\n"
    )
    assert "── errors" not in text
    assert "── thresholds" not in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("width", [80, 100, 132])
def test_lines_fit_the_terminal(make, width):
    lines = report(make(), width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(next(line for line in lines if line.startswith("── latency"))) == width


def test_a_terminal_too_narrow_gets_60_columns():
    assert report(mismatch(), width=20) == report(mismatch(), width=60)
    assert report(mismatch(), width=61) != report(mismatch(), width=60)


def test_a_line_ends_without_blanks():
    assert not [line for make in EVERY for line in report(make()).splitlines() if line != line.rstrip()]


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", None])
def test_report_is_drawn_in_ascii_where_the_encoding_has_no_blocks(make, encoding):
    text = report(make(), encoding=encoding)
    assert text.isascii()
    assert "-- latency ---" in text


def test_what_the_encoding_does_not_have_is_escaped():
    document = {**empty(), "target": "grüße.example:7"}
    assert facts(document)["server"] == "grüße.example:7"
    assert facts(document, encoding="latin-1")["server"] == "grüße.example:7"
    assert facts(document, encoding="ascii")["server"] == r"gr\xfc\xdfe.example:7"


def test_colour_only_adds_to_the_words():
    for make in EVERY:
        text = report(make(), colour=True)
        assert "\x1b" not in report(make())
        assert re.sub(r"\x1b\[[0-9;]*m", "", text) == report(make())
        assert all(line.endswith("\x1b[m") for line in text.splitlines() if "\x1b" in line)


def test_failures_are_red_and_the_verdict_is_bold_and_rules_are_dim():
    text = report(mismatch(), colour=True)
    assert text.startswith("\x1b[1;31mNot every byte came back intact: ")
    assert "\x1b[1;31m        1  echo: mismatch\x1b[m\n" in text
    assert "\x1b[1;31m  failed   p99>20ms " in text
    assert "\n  ok       errors>1% " in text
    assert "\x1b[2m── latency ──" in text
    assert report(closed(), colour=True).startswith("\x1b[1mEvery byte came back: ")


# The verdict


def test_client_that_was_the_bottleneck_is_told_before_all_else():
    first, second, third, *_ = report(opened()).splitlines()
    assert f"{first} {second}" == (
        "The client was the bottleneck: its CPU was 97 % busy. The server may well be faster than this."
    )
    assert third == "Every byte came back: 4,000 messages, 3.91 MiB."
    document = opened()
    document["generator"]["reason"] = None
    assert report(document).startswith("The client was the bottleneck. The server ")


def with_(document, **changes):
    for section, change in changes.items():
        if isinstance(change, dict):
            document[section].update(change)
        else:
            document[section] = change
    return document


HELD = [{"expression": "p99>1us", "value_us": 2.0, "failed": True}]


@pytest.mark.parametrize("document", [closed(), refused(), mismatch(), interrupted()])
def test_the_verdict_comes_first(document):
    assert " ".join(report(document).partition("\n\n")[0].split("\n")) == str(verdict(document))


# Facts


def test_facts_have_their_units():
    assert facts(closed()) == {
        "rate": "1,000 messages/s, 0.98 MiB/s",
        "messages": "4,000 sent, 4,000 came back",
        "bytes": "4,096,000 sent, 4,096,000 received (3.91 MiB)",
        "connections": "50 of 50 made",
        "load": "closed loop on 50 connections, 1 in flight on each",
        "payload": "1.00 KiB a message, seed 7, verify full",
        "server": "127.0.0.1:12345",
        "run": "2026-01-31 12:00:00 UTC, for 4.00 s",
        "tcp": "least round trip 42.0 us, 0 retransmits",
        "client": "CPU 41 % busy",
        "over time": "▇███  910 to 1,060 messages/s",
    }


def test_rate_of_an_open_loop_stands_beside_the_one_asked_for():
    assert facts(opened())["rate"] == "1,000 messages/s of 2,000 asked for, 0.98 MiB/s"


def test_small_figures_are_not_shown_as_0():
    document = with_(opened(), throughput={"messages_per_s": 0.397, "bytes_per_s": 0.01})
    document["load"]["rate"] = 0.4
    document["generator"]["cpu_percent"] = 0.3
    document["intervals"] = [interval(at, at, 100.0) for at in (1, 2, 3)]
    document["thresholds"] = [{"expression": "errors>0.001%", "value": 1e-05, "failed": False}]
    document["thresholds"].append({"expression": "errors>0", "value": 10_000_000.0, "failed": True})
    assert facts(document)["rate"] == "0.397 messages/s of 0.4 asked for, 0.01 B/s"
    assert facts(document)["client"] == "CPU 0.3 % busy"
    assert facts(document)["over time"].endswith("  0.01 to 0.03 messages/s")
    assert [line.split("it is ")[1] for line in section(report(document), "thresholds")] == ["0.00001 %", "10,000,000"]


def test_connections_that_ended_early_are_told():
    assert facts(mismatch())["connections"] == "50 of 50 made, 2 ended early"


SEVERAL = [
    {"address": "192.0.2.1:7", "connections": 0, "failed": 1, "example": "no answer within 250 ms"},
    {"address": "192.0.2.2:7", "connections": 1, "failed": 2, "example": "connection refused"},
]


def test_addresses_say_what_became_of_each_where_the_target_does_not():
    lines = report(with_(closed(), target="name:7", addresses=SEVERAL)).splitlines()
    assert [line[16:] for line in lines if line.startswith("  address ")] == [
        "192.0.2.1:7: 1 attempt failed: no answer within 250 ms",
        "192.0.2.2:7: 1 connection; 2 attempts failed: connection refused",
    ]
    older = closed()
    del older["addresses"]
    assert report(older) == report(closed())


def test_facts_that_do_not_apply_are_left_out():
    document = with_(empty(), load={"size": None, "pipeline": None, "seed": None, "verify": None}, tcp=None)
    document["generator"]["cpu_percent"] = None
    assert not {"payload", "tcp", "client", "over time"} & set(facts(document))
    assert facts(document)["load"] == "closed loop on 50 connections"


def test_course_over_time_needs_three_intervals_and_the_line_only_blocks():
    assert "over time" not in facts(with_(closed(), intervals=[interval(1.0, 1), interval(2.0, 1)]))
    assert "over time" not in facts(with_(closed(), intervals=[interval(at, 1, 0.0) for at in range(5)]))
    assert facts(closed(), encoding="ascii")["over time"] == "910 to 1,060 messages/s"


def test_a_fact_may_be_empty():
    assert "\n  server        \n" in report(with_(closed(), target=""))


def test_long_fact_goes_on_in_the_next_line():
    document = with_(empty(), target=", ".join(["127.0.0.1:12345"] * 5))
    assert f"  server        {', '.join(['127.0.0.1:12345'] * 3)},\n{' ' * 16}127.0.0.1:12345, " in report(document)


def seconds(*messages, lengths=()):
    """Return intervals of one second each, or of these lengths."""
    lengths = lengths or [1.0] * len(messages)
    ends = accumulate(lengths)
    return [interval(*each) for each in zip(ends, messages, lengths, strict=True)]


def test_a_sliver_at_the_end_is_not_taken_for_a_rate():
    intervals = [*seconds(10, 12, 11), interval(3.001, 5, 0.001)]
    assert facts(with_(closed(), intervals=intervals))["over time"].endswith("  10 to 16 messages/s")
    assert "over time" not in facts(with_(closed(), intervals=intervals[1:]))


def test_sparkline_goes_from_0_to_the_largest():
    assert sparkline(seconds(0, 1, 2, 3, 4, 5, 6, 7), 20) == "▁▂▃▄▅▆▇█"
    assert sparkline(seconds(0, 0, 0), 20) == "▁▁▁"


@given(st.lists(st.tuples(st.integers(0, 10**9), st.floats(1e-3, 1e4)), min_size=1, max_size=200), st.integers(1, 40))
def test_sparkline_fits_however_many_intervals_there_are(values, width):
    messages, lengths = zip(*values, strict=True)
    assert len(sparkline(seconds(*messages, lengths=lengths), width)) == min(width, len(values))


def test_sparkline_takes_means():
    assert sparkline(seconds(0, 0, 1, 1, 0, 2), 3) == "▁██"


def test_sparkline_shows_time_and_not_intervals():
    assert sparkline(seconds(100, 0, 0, 0, lengths=[5.0, 5 / 3, 5 / 3, 5 / 3]), 4) == "██▁▁"


# Latencies


def test_latencies_are_a_table_with_a_column_each():
    lines = section(report(opened()), "latency")
    assert lines[0].split() == ["response", "service", "connect", "schedule", "lag"]
    assert [line.split()[0] for line in lines[1:9]] == ["min", "mean", "p50", "p90", "p99", "p99.9", "max", "count"]
    assert lines[3] == "  p50              901 us          399 us         92.2 us          120 us"
    assert len({len(line) for line in lines[:9]}) == 1


def test_percentile_that_only_responses_have_is_blank_elsewhere():
    document = closed()
    document["latency_us"]["response"]["percentiles"]["99.99"] = 5000.0
    assert "  p99.99          5.00 ms               -\n" in report(document)


def test_closed_loop_is_said_to_omit_and_an_open_one_is_not():
    assert "coordinated omission" in " ".join(section(report(closed()), "latency"))
    assert "coordinated omission" not in " ".join(section(report(opened()), "latency"))
    assert "Response runs from the moment a message was due" in " ".join(section(report(opened()), "latency"))


@pytest.mark.parametrize("make", [empty, refused])
def test_run_without_data_has_nothing_to_time(make):
    assert section(report(make()), "latency")[0] == "  Nothing to time: no connection was made."
    assert "response time" not in report(make())


def test_connections_are_timed_even_if_no_message_came_back():
    text = report(timed(empty(), connect=[90_000]))
    assert section(text, "latency")[0].split() == ["connect"]
    assert "\n  p99             90.0 us\n" in text
    assert "response time" not in text


# The histogram


def test_response_times_are_drawn_on_a_logarithmic_scale():
    assert rows(closed())[:5] == [
        ("100 us -  178 us", 31, 0.8, "▍", ""),
        ("178 us -  316 us", 830, 20.8, "█████████▍", ""),
        ("316 us -  562 us", 2325, 58.1, "█" * 26, "p50"),
        ("562 us - 1.00 ms", 762, 19.1, "████████▋", "p90"),
        ("1.00 ms - 1.78 ms", 32, 0.8, "▍", "p99"),
    ]


def test_response_times_are_drawn_with_hashes_in_ascii():
    assert rows(closed(), encoding="ascii")[2:4] == [
        ("316 us -  562 us", 2325, 58.1, "#" * 26, "p50"),
        ("562 us - 1.00 ms", 762, 19.1, "#" * 9, "p90"),
    ]


def test_percentiles_in_one_row_are_told_from_the_first_to_the_last():
    assert [row[4] for row in rows(timed(empty(), response=[1_000_000] * 9))] == ["p50..p99.9"]


def test_one_value_has_one_row():
    assert [(number, bar) for _, number, _, bar, _ in rows(timed(empty(), response=[0]))] == [(1, "█" * 26)]


def test_outliers_have_a_row_of_their_own_that_does_not_squeeze_the_rest():
    *body, last = rows(timed(empty(), response=[*range(1_000_000, 2_000_000, 100), 10**10]))
    assert last == ("2.01 ms and more", 1, "<0.1", "▏", "")
    assert len(body) == 13


def test_durations_of_minutes_widen_the_labels():
    *_, last = rows(timed(empty(), response=[10**5, 10**12 - 10**10]))
    assert last == ("100 s - 16 min 40 s", 1, 50.0, "█" * 22, "p90..p99.9")


def test_a_time_at_the_edge_of_two_rows_is_in_the_upper_one():
    assert [row[0] for row in rows(timed(empty(), response=[1_000_000]))] == ["1.00 ms - 1.02 ms"]


def test_a_span_of_fourteen_decades_has_a_row_for_each():
    drawn = rows(timed(empty(), response=[1, 10**14]))
    assert sum(number for _, number, _, _, _ in drawn) == 2


@given(st.lists(st.integers(0, 2**45), min_size=1, max_size=200))
def test_every_response_is_in_one_row_and_rows_are_few(recorded):
    drawn = rows(timed(empty(), response=recorded))
    assert sum(number for _, number, _, _, _ in drawn) == len(recorded)
    assert 1 <= len(drawn) <= 14
    assert all(bool(bar) == bool(number) for _, number, _, bar, _ in drawn)
    assert [mark for *_, mark in drawn if mark][-1].endswith("p99.9")


@given(st.integers(1000, 10**9), st.floats(2, 1000))
def test_rows_are_many_where_there_is_something_to_tell_apart(least, factor):
    assert 7 <= len(rows(timed(empty(), response=[least, int(least * factor)]))) <= 14


# Errors and thresholds


def test_errors_are_listed_by_phase_and_cause_the_most_frequent_first():
    document = with_(refused(), errors=[*mismatch()["errors"][:1], *refused()["errors"]])
    assert section(report(document), "errors") == [
        "       50  connect: ECONNREFUSED",
        "           connection 1: cannot connect to 127.0.0.1:12345: connection refused",
        "        1  echo: mismatch",
        "           connection 3: message 41, offset 500: expected bd d9 75 c0 8c 6e 22",
        "           4d .., got b9 d9 75 c0 8c 6e 22 4d .. (one bit flipped)",
    ]


def test_thresholds_are_listed_with_what_was_measured():
    document = closed()
    expressions = ["p99>1h", "lag.p99>1ms", "errors>=0", "errors>0.1%", "rate<2k", "bytes_rate<1M"]
    document["thresholds"] = [Threshold.parse(expression).check(document) for expression in expressions]
    document["thresholds"].append(Threshold.parse("errors>1%").check(empty()))
    assert [line.split(maxsplit=2) for line in section(report(document), "thresholds")] == [
        ["ok", "p99>1h", "it is 1.10 ms"],
        ["failed", "lag.p99>1ms", "unknown, so it counts as failed"],
        ["failed", "errors>=0", "it is 0"],
        ["ok", "errors>0.1%", "it is 0 %"],
        ["failed", "rate<2k", "it is 1,000 messages/s"],
        ["failed", "bytes_rate<1M", "it is 0.98 MiB/s"],
        ["ok", "errors>1%", "nothing was attempted"],
    ]
