"""Result documents for the tests of what reads them: one that went well, and what else a run can come to."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from echopair.measure.document import dumped, summary
from echopair.measure.histogram import Histogram

PERCENTS = ("50", "90", "99", "99.9")


def histogram(values: Iterable[int]) -> Histogram:
    """Return a histogram of `values`, in nanoseconds."""
    recorded = Histogram()
    for value in values:
        recorded.record(value)
    return recorded


def times(number: int, median_us: float, seed: int = 1) -> list[int]:
    """Return so many times as networks have them, in nanoseconds: around a median, with a long tail."""
    source = random.Random(seed)
    return [int(source.lognormvariate(0, 0.35) * median_us * 1000) for _ in range(number)]


def timed(document: dict[str, Any], **values: Iterable[int] | None) -> dict[str, Any]:
    """Give the document these times, in nanoseconds, as histograms and as figures; None for a histogram of none."""
    for name, recorded in values.items():
        counted = None if recorded is None else histogram(recorded)
        document["histograms"][name] = counted and dumped(counted)
        document["latency_us"][name] = counted and summary(counted, PERCENTS)
    return document


def interval(at_s: float, messages: int, duration_s: float = 1.0) -> dict[str, Any]:
    """Return the interval of one second, or of less, that ends at `at_s`."""
    return {
        "at_s": at_s,
        "duration_s": duration_s,
        "messages": messages,
        "bytes": messages * 1024,
        "errors": 0,
        "connections": 50,
        "response_us": {"50": 400.0, "99": 900.0, "max": 1200.0},
    }


def empty() -> dict[str, Any]:
    """Return the document of a run that ended before anything happened, with nothing wrong."""
    document = {
        "schema_version": 1,
        "program": "echo-client",
        "version": "0.1.0",
        "target": "127.0.0.1:12345",
        "started_at": "2026-01-31T12:00:00.000Z",
        "duration_s": 0.0,
        "exit_status": 0,
        "load": {
            "model": "closed",
            "connections": 50,
            "size": 1024,
            "workers": 1,
            "pipeline": 1,
            "rate": None,
            "seed": 7,
            "verify": "full",
            "warmup_s": 0.0,
            "duration_s": 4.0,
            "count": None,
            "connect_rate": None,
            "reconnect_every": None,
        },
        "generator": {"cpu_percent": 0.0, "limited": False, "reason": None},
        "connections": {"attempted": 0, "established": 0, "failed": 0, "closed_early": 0},
        "addresses": [],
        "messages": {"sent": 0, "echoed": 0, "mismatched": 0, "unanswered": 0, "not_sent": 0},
        "bytes": {"sent": 0, "received": 0},
        "throughput": {"messages_per_s": 0.0, "bytes_per_s": 0.0},
        "latency_us": {},
        "histograms": {},
        "intervals": [],
        "tcp": None,
        "errors": [],
        "thresholds": [],
    }
    return timed(document, response=[], service=[], connect=[], schedule_lag=None)


def closed(number: int = 4000, *, seed: int = 1) -> dict[str, Any]:
    """Return the document of a closed loop in which all went well: so many messages in four seconds."""
    document = empty()
    responses = times(number, 420, seed)
    responses[:: max(number // 20, 1)] = times(len(responses[:: max(number // 20, 1)]), 40_000, seed)
    document.update(
        duration_s=4.0,
        connections={"attempted": 50, "established": 50, "failed": 0, "closed_early": 0},
        addresses=[{"address": "127.0.0.1:12345", "connections": 50, "failed": 0, "example": None}],
        messages={"sent": number, "echoed": number, "mismatched": 0, "unanswered": 0, "not_sent": 0},
        bytes={"sent": number * 1024, "received": number * 1024},
        throughput={"messages_per_s": number / 4, "bytes_per_s": number * 256.0},
        generator={"cpu_percent": 41.2, "limited": False, "reason": None},
        intervals=[interval(at, number // 4 + change) for at, change in ((1.0, -90), (2.0, 60), (3.0, 20), (4.0, 10))],
        tcp={"rtt_us": 42.0, "retransmits": 0},
    )
    return timed(document, response=responses, service=responses, connect=times(50, 90, seed))


def opened() -> dict[str, Any]:
    """Return the document of an open loop that came short of its rate, as the client was the bottleneck."""
    document = closed()
    document["load"].update(model="open", rate=2000.0)
    document["generator"] = {"cpu_percent": 97.4, "limited": True, "reason": "its CPU was 97 % busy"}
    return timed(document, response=times(4000, 900), service=times(4000, 400), schedule_lag=times(4000, 120))


def refused() -> dict[str, Any]:
    """Return the document of a run that no server listened to."""
    document = empty()
    example = "connection 1: cannot connect to 127.0.0.1:12345: connection refused"
    document.update(
        duration_s=0.012,
        exit_status=1,
        connections={"attempted": 50, "established": 0, "failed": 50, "closed_early": 0},
        addresses=[{"address": "127.0.0.1:12345", "connections": 0, "failed": 50, "example": "connection refused"}],
        errors=[{"phase": "connect", "error": "ECONNREFUSED", "count": 50, "example": example}],
    )
    return document


def interrupted() -> dict[str, Any]:
    """Return the document of a run that SIGINT ended after 1.5 seconds."""
    document = closed(1500)
    document.update(duration_s=1.5, exit_status=130, intervals=[interval(1.0, 1000), interval(1.5, 500, 0.5)])
    document["messages"].update(sent=1550, unanswered=50)
    return document


def mismatch() -> dict[str, Any]:
    """Return the document of a run in which one message came back with a flipped bit, and a connection was reset."""
    document = closed(800)
    example = (
        "connection 3: message 41, offset 500: expected bd d9 75 c0 8c 6e 22 4d .., "
        "got b9 d9 75 c0 8c 6e 22 4d .. (one bit flipped)"
    )
    document.update(exit_status=1)
    document["messages"].update(sent=806, mismatched=1, unanswered=5)
    document["connections"].update(closed_early=2)
    document["errors"] = [
        {"phase": "echo", "error": "mismatch", "count": 1, "example": example},
        {"phase": "echo", "error": "ECONNRESET", "count": 1, "example": "connection 9: connection reset by peer"},
    ]
    document["thresholds"] = [
        {"expression": "p99>20ms", "value_us": 41_200.0, "failed": True},
        {"expression": "errors>1%", "value": 0.93, "failed": False},
        {"expression": "lag.p99>1ms", "value_us": None, "failed": True},
    ]
    return document


EVERY = (empty, closed, opened, refused, interrupted, mismatch)
