"""The page: figures as in the document, nothing from elsewhere, nothing that a peer wrote taken for markup."""

from __future__ import annotations

import math
import random
import re
import shutil
import subprocess
from functools import cache
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from echopair.measure.document import bounded
from echopair.measure.histogram import Histogram
from echopair.measure.page import HARD, NONE, count_axis, latency_axis, page, path, round_step, time_axis
from echopair.measure.verdict import verdict
from helpers import HUNG

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "br", "hr", "img", "input", "link"}


def recorded(values: Any) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(int(value))
    return histogram


def latency(histogram: Histogram) -> dict[str, Any]:
    if not histogram.count:
        return {
            "count": 0,
            "min": None,
            "mean": None,
            "max": None,
            "percentiles": {"50": None, "99": None, "99.9": None},
        }
    percentiles = {percent: (histogram.percentile(float(percent)) or 0) / 1e3 for percent in ("50", "99", "99.9")}
    ends = {"min": histogram.min / 1e3, "mean": (histogram.mean or 0) / 1e3, "max": histogram.max / 1e3}
    return {"count": histogram.count, **ends, "percentiles": percentiles}


def buckets(histogram: Histogram) -> dict[str, Any]:
    some = histogram.count > 0
    return {
        "unit": "ns",
        "significant_bits": 7,
        "total": histogram.total,
        "min": histogram.min if some else None,
        "max": histogram.max if some else None,
        "buckets": [list(bucket) for bucket in histogram.buckets()],
    }


def interval(number: int, **figures: Any) -> dict[str, Any]:
    response = {"50": 900.0, "99": 1500.0 + number % 7, "max": 4000.0}
    usual = {"messages": 1000, "bytes": 1024000, "errors": 0, "connections": 50, "response_us": response}
    return {"at_s": float(number + 1), "duration_s": 1.0, **usual, **figures}


SILENT = {"50": None, "99": None, "max": None}
SOME = recorded(random.Random(1).lognormvariate(math.log(9e5), 0.4) for _ in range(5000))
SLOW = recorded(10 ** random.Random(2).uniform(3, math.log10(60e9)) for _ in range(5000))
SLOW.record(60 * 10**9)
SLOW.record(1000)


def document(response: Histogram = SOME, service: Histogram | None = None, **changes: Any) -> dict[str, Any]:
    """Return the document of a closed run that went well, with these changes."""
    service, connect, n = service or response, recorded([310_000, 290_000]), response.count
    result: dict[str, Any] = {
        "schema_version": 1,
        "program": "echo-client",
        "version": "0.1.0",
        "target": "127.0.0.1:12345",
        "started_at": "2026-01-31T12:00:00.000Z",
        "duration_s": 5.02,
        "exit_status": 0,
        "load": {
            "model": "closed",
            "connections": 50,
            "size": 1024,
            "workers": 1,
            "pipeline": 3,
            "rate": None,
            "seed": 1513640606,
            "verify": "full",
            "warmup_s": 0.0,
            "duration_s": None,
            "count": 5000,
            "connect_rate": None,
            "reconnect_every": None,
        },
        "generator": {"cpu_percent": 43.1, "limited": False, "reason": None},
        "connections": {"attempted": 50, "established": 50, "failed": 0, "closed_early": 0},
        "messages": {"sent": n, "echoed": n, "mismatched": 0, "unanswered": 0, "not_sent": 0},
        "bytes": {"sent": 1024 * n, "received": 1024 * n},
        "throughput": {"messages_per_s": 50822.4, "bytes_per_s": 52042137.6},
        "latency_us": {
            "response": latency(response),
            "service": latency(service),
            "connect": latency(connect),
            "schedule_lag": None,
        },
        "histograms": {
            "response": buckets(response),
            "service": buckets(service),
            "connect": buckets(connect),
            "schedule_lag": None,
        },
        "intervals": [interval(number) for number in range(5)],
        "tcp": {"rtt_us": 87, "retransmits": 12345},
        "errors": [],
        "thresholds": [],
    }
    for key, change in changes.items():
        result[key] = {**result[key], **change} if isinstance(change, dict) else change
    return result


def opened() -> dict[str, Any]:
    late = recorded([1000, 40_000_000])
    result = document(
        recorded([500_000] * 990 + [48_000_000] * 10),
        recorded([450_000] * 1000),
        exit_status=1,
        load={"model": "open", "rate": 2000},
        generator={"cpu_percent": 97.2, "limited": True, "reason": "its CPU was 97 % busy <&>"},
        messages={"mismatched": 1, "unanswered": 3, "not_sent": 12},
        connections={"closed_early": 3},
        errors=[
            {"phase": "echo", "error": "ECONNRESET", "count": 1234, "example": "connection 12: " + "x" * 400},
            {"phase": "echo", "error": "mismatch", "count": 1, "example": "got \"<script>alert(1)</script>\" & 'more'"},
            {"phase": "close", "error": "timeout", "count": 1, "example": None},
        ],
        thresholds=[
            {"expression": "p99>20ms", "value_us": 48000.0, "failed": True},
            {"expression": "errors>9k", "value": 1236, "failed": False},
            {"expression": "p99.9<1us", "value_us": None, "failed": False},
        ],
        intervals=[
            interval(0),
            interval(1, errors=3, connections=47),
            interval(2, messages=0, response_us=SILENT),
            interval(3, response_us={"50": 900.0, "99": 90000.0, "max": 2e6}),
        ],
    )
    result["latency_us"]["response"]["percentiles"] |= {"50": 512.0, "99": 38000.0}
    result["latency_us"]["schedule_lag"] = latency(late)
    result["histograms"]["schedule_lag"] = buckets(late)
    return result


def refused() -> dict[str, Any]:
    nothing = Histogram()
    result = document(
        nothing,
        exit_status=1,
        load={"size": None, "seed": None},
        connections={"established": 0, "failed": 50},
        messages={"not_sent": 50},
        throughput={"messages_per_s": 0.0, "bytes_per_s": 0.0},
        errors=[{"phase": "connect", "error": "ECONNREFUSED", "count": 50, "example": "connection 1: refused"}],
        intervals=[],
        tcp=None,
    )
    result["latency_us"]["connect"], result["histograms"]["connect"] = latency(nothing), buckets(nothing)
    return result


RUNS = {
    "closed": document,
    "open": opened,
    "refused": refused,
    "two hours": lambda: document(intervals=bounded([interval(number) for number in range(7200)])),
    "one message": lambda: document(recorded([1_000_000]), intervals=[interval(0, messages=1)]),
    "extreme": lambda: document(SLOW, exit_status=130, messages={"unanswered": 50}),
    "only errors over time": lambda: {
        **refused(),
        "intervals": [interval(0, messages=0, connections=0, errors=50, response_us=SILENT)],
    },
    "no time": lambda: document(intervals=[interval(0, at_s=0.0, duration_s=0.0)]),
}
every_run = pytest.mark.parametrize("run", RUNS)


@cache
def rendered(run: str) -> str:
    return page(RUNS[run]())


class Reader(HTMLParser):
    """Notes the text of a page and that each tag is closed by its own."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data.strip())


def words(text: str) -> str:
    return " ".join(" ".join(Reader(text).words).replace("\xa0", " ").split())


def drawings(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r'<svg class="plot".*?</svg>\s*</svg>', text, re.DOTALL)]


def labels(ticks: Any) -> list[str]:
    return [label for _, label in ticks]


@every_run
def test_a_page_is_well_formed_and_needs_nothing_else(run: str) -> None:
    text = rendered(run)
    reader = Reader(text)
    assert not reader.open
    assert not {"script", "link", "img", "iframe", "object"} & set(reader.seen)
    assert reader.seen.count("h1") == 1
    assert not re.search(r"https?://|url\(|@import|\bsrc=|\bhref=", text)
    assert not re.search(r"\b(nan|inf|None)\b", text)


@every_run
def test_each_chart_says_what_it_shows_and_stays_within_its_bounds(run: str) -> None:
    for svg in drawings(rendered(run)):
        assert svg.get("role") == "img"
        assert svg.findtext("title")
        assert svg.findtext("desc")
        assert len(svg.findall("text")) >= 3
        for line in svg.iter("path"):
            numbers = [float(number) for number in re.findall(r"[\d.-]+", line.get("d", ""))]
            assert all(0 <= number <= 1000 for number in numbers)


def test_figures_are_those_of_the_document() -> None:
    said = words(rendered("open"))
    for figure in (
        "50,822/s",
        "49.6 MiB/s",
        "p50) 512 µs",
        "p99) 38.0 ms",
        "Slowest 48.0 ms",
        "Errors 1,236",
        "2,000/s",
    ):
        assert figure in said
    assert "Measured 1,000 1,000 2 2" in said
    assert "Least round trip 87.0 µs" in said
    assert "Retransmits 12,345" in said
    assert "CPU of the load generator 97.2 %" in said
    assert "echo-client 0.1.0, started at 2026-01-31 12:00:00 UTC" in said
    assert f"p99>20ms 48.0 ms crossed errors>9k 1,236 kept p99.9<1us {NONE} kept" in said


def test_addresses_say_what_became_of_each() -> None:
    entry = {"address": "<a>:7", "connections": 2, "failed": 1, "example": "<refused>"}
    said = words(page({**opened(), "addresses": [entry]}))
    assert "Addresses <a>:7 2 connections; 1 attempt failed: <refused>" in said
    assert "Addresses" not in words(page(opened()))  # as of an older version


def test_a_median_that_the_document_leaves_out_is_taken_from_the_histogram() -> None:
    result = opened()
    result["latency_us"]["response"]["percentiles"] = {"90": 501.0}
    said = words(page(result))
    assert re.search(r"p50\) 50[0-3] µs 99 % within \(p99\) 50[0-3] µs", said)


def test_what_limited_the_figures_stands_before_them() -> None:
    said = words(rendered("open"))
    assert said.index("its CPU was 97 % busy <&>") < said.index("50,822/s")
    assert "load generator was the limit" not in words(rendered("closed"))
    assert "it could do no more" in words(page(document(generator={"limited": True})))


def test_a_closed_loop_says_that_it_omits() -> None:
    assert "coordinated omission" in words(rendered("closed"))
    assert "coordinated omission" not in words(rendered("open"))


def test_what_peers_wrote_is_text() -> None:
    text = rendered("open")
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    evil = "\"><b>'&"
    result = document(target=evil, program=evil, version=evil, started_at=evil, load={"verify": evil})
    result["errors"] = [{"phase": evil, "error": evil, "count": 1, "example": evil}]
    result["thresholds"] = [{"expression": evil, "value": 1, "failed": False}]
    result["latency_us"]["response"]["percentiles"] = {"50": 1.0, "99": 1.0}
    assert "<b>" not in page(result)


def test_runs_that_were_verified_in_different_ways_have_a_page() -> None:
    assert f"<dt>Verified</dt><dd>{NONE}</dd>" in page(document(load={"verify": None}))


def test_small_figures_have_no_exponent_and_what_was_typed_is_shown_as_it_was() -> None:
    run = document(
        load={"rate": 1234.5, "connect_rate": 0.00001},
        throughput={"messages_per_s": 0.00001, "bytes_per_s": 0.00001},
        intervals=[interval(number, messages=1, duration_s=1200.0, at_s=1200.0 * (number + 1)) for number in range(3)],
        thresholds=[{"expression": "errors>0.001%", "value": 0.00001, "failed": False}],
    )
    written = page(run)
    for shown in (">1,234.5/s<", ">0.00001/s<", f">0.00001{HARD}B/s<", ">0.00001<", f"interval of 1,200{HARD}s"):
        assert shown in written
    assert not re.search(r"\de[+-]\d", written)


def test_what_does_not_apply_is_a_dash() -> None:
    said = words(rendered("refused"))
    assert f"50 % {NONE} {NONE}" in said
    assert "Measured 0 0" in said
    assert "Schedule lag" not in said  # a closed loop has none
    assert f"Slowest {NONE} Errors 50" in said
    assert f"Message size {NONE}" in said
    assert f"Seed {NONE}" in said
    assert f"Least round trip {NONE} Retransmits {NONE}" in said


def test_a_run_without_an_echo_has_no_charts() -> None:
    assert not drawings(rendered("refused"))
    assert words(rendered("refused")).startswith("Failed: ")  # the title
    assert words(rendered("refused")).count("No message came back") == 1  # in place of the chart
    assert [svg.findtext("title") for svg in drawings(rendered("only errors over time"))] == ["Errors over time"]


def test_charts_are_of_what_there_is() -> None:
    titles = ["Latency by percentile", "Latency over time", "Messages over time", "Connections over time"]
    assert [svg.findtext("title") for svg in drawings(rendered("closed"))] == titles
    assert [svg.findtext("title") for svg in drawings(rendered("open"))] == [*titles, "Errors over time"]
    assert [svg.findtext("title") for svg in drawings(rendered("no time"))] == titles[:1]


def test_the_distribution_has_a_tick_for_each_nine() -> None:
    texts = [text.text for text in drawings(rendered("closed"))[0].findall("text")]
    assert texts[-5:] == ["50 %", "90 %", "99 %", "99.9 %", "99.99 %"]


@pytest.mark.parametrize("result", [document(), opened(), refused()])
def test_the_verdict_comes_first(result: dict[str, Any]) -> None:
    tone, headline, story = verdict(result)
    text = page(result)
    assert f'<span class="mark {tone}"' in text
    assert f"{headline}</h1>" in text
    assert f"<p>{story[:1].upper()}{story[1:]}.</p>" in text.replace("&gt;", ">")


def test_a_chart_of_joined_intervals_says_so() -> None:
    assert "each interval of 16 to 64 s; long ones show the worst of" in words(rendered("two hours"))
    ten_minutes = words(page(document(intervals=[interval(number) for number in range(600)])))
    assert "each interval of 2 s; long ones show the worst of" in ten_minutes
    assert "each interval of 1 s; a gap" in words(rendered("closed"))


def test_a_sliver_at_the_end_does_not_set_the_scale() -> None:
    sliver = interval(4, at_s=4.001, duration_s=0.001, messages=1000)
    text = words(page(document(intervals=[*map(interval, range(4)), sliver])))
    assert "2,000/s" in text
    assert "1 M/s" not in text


def test_a_gap_breaks_the_line() -> None:
    x, y = time_axis(0, 4), count_axis(10)
    assert path([(0, 0), (1, 5), (2, None), (3, 10), (4, 10)], x, y) == "M0.0 1000.0L250.0 500.0M750.0 0.0L1000.0 0.0"


@pytest.mark.parametrize(
    ("span", "most", "step"), [(10, 5, 2), (1, 5, 0.2), (0.3, 3, 0.1), (50, 5, 10), (51, 5, 20), (7, 8, 1), (60, 8, 10)]
)
def test_steps_are_round(span: float, most: int, step: float) -> None:
    assert round_step(span, most) == pytest.approx(step)


def test_axes_of_counts_have_round_ticks() -> None:
    assert labels(count_axis(1).ticks) == ["0", "1"]
    assert labels(count_axis(48).ticks) == ["0", "10", "20", "30", "40", "50"]
    assert labels(count_axis(50822, "/s").ticks) == ["0", "20,000/s", "40,000/s", "60,000/s"]
    assert labels(count_axis(1.1e6, "/s").ticks) == ["0", "500,000/s", "1 M/s", "1.5 M/s"]
    assert labels(count_axis(0.3, "/s").ticks) == ["0", "0.1/s", "0.2/s", "0.3/s"]


def test_axes_of_time_have_round_ticks_in_one_unit() -> None:
    assert labels(time_axis(0, 10).ticks) == ["0", "2 s", "4 s", "6 s", "8 s", "10 s"]
    assert labels(time_axis(3, 7.5).ticks) == ["3 s", "4 s", "5 s", "6 s", "7 s"]
    assert labels(time_axis(0, 0.05).ticks) == ["0", "10 ms", "20 ms", "30 ms", "40 ms", "50 ms"]
    assert labels(time_axis(0, 0.0001).ticks) == ["0", "20 µs", "40 µs", "60 µs", "80 µs", "100 µs"]
    assert labels(time_axis(0, 1000).ticks) == ["0", "5 min", "10 min", "15 min"]
    assert labels(time_axis(0, 7300).ticks) == ["0", "0.5 h", "1 h", "1.5 h", "2 h"]


def test_an_axis_of_latencies_is_logarithmic_where_they_differ_much() -> None:
    near = latency_axis([0.0011, 0.0049])
    assert not near.log
    assert labels(near.ticks) == ["0", "1 ms", "2 ms", "3 ms", "4 ms", "5 ms"]
    far = latency_axis([0.0003, 0.03])
    assert far.log
    assert labels(far.ticks) == ["200 µs", "500 µs", "1 ms", "2 ms", "5 ms", "10 ms", "20 ms", "50 ms"]
    decades = ["1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s"]
    assert labels(latency_axis([1e-6, 60]).ticks) == decades
    assert labels(latency_axis([0.0]).ticks) == ["0", "0.0002 µs", "0.0004 µs", "0.0006 µs", "0.0008 µs", "0.001 µs"]


PROBE = """<script>
    const all = [document.documentElement, ...document.querySelectorAll(".scroll")];
    parent.document.title += all.every(each => each.scrollWidth <= each.clientWidth) ? "fits;" : "too wide;";
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_nothing_is_wider_than_the_screen_or_the_phone(tmp_path: Path) -> None:
    frames = [
        f'<iframe style="width: {width}px" srcdoc="{escape(rendered(run).replace("</body>", PROBE))}"></iframe>'
        for run in RUNS
        for width in (1280, 390)
    ]
    (tmp_path / "frames.html").write_text(f"<!DOCTYPE html><meta charset=utf-8>{''.join(frames)}", encoding="utf-8")
    quiet = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync --disable-component-update"
    )
    options = [
        *quiet.split(),
        "--disable-background-networking",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
    ]
    command = [str(CHROMIUM), *options, f"file://{tmp_path / 'frames.html'}"]
    shown = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=HUNG, check=True).stdout
    assert f"<title>{'fits;' * len(frames)}</title>" in shown
