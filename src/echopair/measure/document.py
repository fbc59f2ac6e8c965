"""The result of a run as one document of plain JSON values (schema.json), and how a histogram stands in it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from echopair.measure.histogram import MAX_VALUE, SIGNIFICANT_BITS, Histogram

Document = dict[str, Any]

NS_PER_US = 1000


def loaded(entry: Document | None) -> Histogram:
    """Return the histogram that `entry` of a document's `histograms` tells of; an empty one of None."""
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
