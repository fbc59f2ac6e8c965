"""The result of a run as one document of plain JSON values (schema.json), and the parts that it is made of. Pure.

A part is a histogram, its summary, or an interval. However long a run is, its document has at most MAX_INTERVALS
intervals: neighbours are joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from echopair.measure.histogram import MAX_VALUE, SIGNIFICANT_BITS, Histogram

Document = dict[str, Any]

NS_PER_US = 1000
MAX_INTERVALS = 600
DRAWN = 300  # steps of a chart; more are wider than the screen has pixels for
SLIVER = 0.25  # of the interval before; a shorter one has no rate worth drawing


def loaded(entry: Document | None) -> Histogram:
    """Return the histogram in `entry` of a document's `histograms`; an empty one for None."""
    if entry is None:
        return Histogram()
    least = MAX_VALUE if entry["min"] is None else entry["min"]
    buckets = ((lowest, number) for lowest, number in entry["buckets"])
    return Histogram.of_buckets(buckets, total=entry["total"], least=least, most=entry["max"] or 0)


def dumped(histogram: Histogram) -> Document:
    """Return `histogram`, of nanoseconds, as an entry of a document's `histograms`."""
    some = histogram.count > 0
    return {
        "unit": "ns",
        "significant_bits": SIGNIFICANT_BITS,
        "total": histogram.total,
        "min": histogram.min if some else None,
        "max": histogram.max if some else None,
        "buckets": [list(bucket) for bucket in histogram.buckets()],
    }


def summary(histogram: Histogram, percents: Iterable[str]) -> Document:
    """Return `histogram`, of nanoseconds, as an entry of a document's `latency_us`: microseconds, null of nothing."""
    some = histogram.count > 0
    return {
        "count": histogram.count,
        "min": histogram.min / NS_PER_US if some else None,
        "mean": round((histogram.mean or 0) / NS_PER_US, 3) if some else None,
        "max": histogram.max / NS_PER_US if some else None,
        "percentiles": {
            percent: (histogram.percentile(float(percent)) or 0) / NS_PER_US if some else None for percent in percents
        },
    }


def throughput(messages: int, data: int, seconds: float) -> Document:
    """Return a document's `throughput`: what came back, divided by the time of the whole run."""
    return {
        "messages_per_s": round(messages / seconds, 6) if seconds else 0.0,
        "bytes_per_s": round(data / seconds, 6) if seconds else 0.0,
    }


def joined(first: Document, last: Document) -> Document:
    """Return one interval for two neighbours: sums, and the larger of both latencies."""
    latencies = {}
    for key in first["response_us"]:
        both = (each["response_us"][key] for each in (first, last))
        latencies[key] = max((latency for latency in both if latency is not None), default=None)
    sums = {key: first[key] + last[key] for key in ("messages", "bytes", "errors")}
    length = round(first["duration_s"] + last["duration_s"], 6)
    return {**last, **sums, "duration_s": length, "response_us": latencies}


def bounded(intervals: Sequence[Document], most: int = MAX_INTERVALS) -> list[Document]:
    """Return `intervals`, neighbours of about the same length joined until there are at most `most`.

    The pairs that are shortest for their age come first, an eighth of all at a time. So the newest intervals stay as
    they are, and older ones, doubled again and again, are about equally long in proportion to their age.
    """
    intervals = list(intervals)
    even = 1.5  # how many times as long as the other a neighbour may be
    while len(intervals) > most:
        pairs, place, end = [], 0, intervals[-1]["at_s"]
        while place < len(intervals) - 1:
            first, second = (each["duration_s"] + 1e-6 for each in intervals[place : place + 2])
            if max(first, second) <= even * min(first, second):
                age = end - intervals[place]["at_s"] + first
                pairs.append(((first + second) / age, place))
                place += 1
            place += 1
        even *= 1 if pairs else 2
        for place in sorted((place for _, place in sorted(pairs)[: most // 8 + 1]), reverse=True):
            intervals[place : place + 2] = [joined(*intervals[place : place + 2])]
    return intervals


def drawable(intervals: Sequence[Document]) -> list[Document]:
    """Return `intervals` for a chart; those too short to be seen, or to have a rate of their own, are joined."""
    unseen = sum(each["duration_s"] for each in intervals) / DRAWN * 1.001
    drawn: list[Document] = []
    for each in intervals:
        if drawn and drawn[-1]["duration_s"] + each["duration_s"] <= unseen:
            drawn[-1] = joined(drawn[-1], each)
        else:
            drawn.append(each)
    if len(drawn) > 1 and drawn[-1]["duration_s"] < SLIVER * drawn[-2]["duration_s"]:
        drawn[-2:] = [joined(*drawn[-2:])]
    return drawn
