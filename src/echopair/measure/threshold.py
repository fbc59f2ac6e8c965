"""Thresholds: conditions on which a run fails, like `p99>20ms`, and whether a result document meets them.

manual/thresholds.md explains the grammar and each figure. Knows nothing of exit statuses.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from echopair.measure.document import NS_PER_US, loaded

GRAMMAR = (
    "give [response.|service.|connect.|lag.]p99|mean|min|max, errors, not_sent, rate or bytes_rate, "
    "then >, >=, < or <=, then a value with its unit, like p99>20ms, errors>0.1%, rate<10k, bytes_rate<5M/s"
)
SHAPE = re.compile(r"([a-z0-9_.]+?)\s*(>=|<=|>|<)\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*(us|ms|[smhkg%]?)(/s)?", re.ASCII)
LATENCY = re.compile(r"(?:(response|service|connect|schedule_lag|lag)\.)?(?:p([0-9]+(?:\.[0-9]+)?)|(mean|min|max))")
OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
# In microseconds, as latencies are compared; a unit is required, because p99>20 could mean any.
TIMES: Mapping[str, float] = {"us": 1, "ms": 1e3, "s": 1e6, "m": 60e6, "h": 3600e6}
UNITS: Mapping[str, Mapping[str, float]] = {
    "errors": {"": 1, "%": 1},
    "not_sent": {"": 1, "%": 1},
    "rate": {"": 1, "k": 1e3, "m": 1e6},
    "bytes_rate": {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3},
}


@dataclass(frozen=True, slots=True)
class Threshold:
    """A figure of a result document and what it must not be."""

    expression: str
    figure: str  # a histogram's name, or errors, errors%, not_sent, not_sent%, rate, bytes_rate
    statistic: str  # of a histogram: mean, min, max or a percentage; else empty
    operator: str
    value: float  # microseconds, a number, per cent, or messages or bytes a second

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Return the threshold in `text`; raises ValueError that shows the grammar, in one line."""
        complaint = f"{text!r} is not a threshold: {GRAMMAR}"
        shape = SHAPE.fullmatch(text.strip().lower())
        if not shape:
            raise ValueError(complaint)
        name, compare, number, unit, per_second = shape.groups()
        latency = LATENCY.fullmatch(name)
        scale = (TIMES if latency else UNITS.get(name, {})).get(unit)
        if scale is None or (per_second and name not in ("rate", "bytes_rate")):
            raise ValueError(complaint)
        value = float(number) * scale
        if math.isinf(value):
            raise ValueError(f"{text!r} is not a threshold: the value is too large")
        figure, statistic = name + unit if unit == "%" else name, ""
        if latency:
            figure = latency[1] or "response"
            figure = "schedule_lag" if figure == "lag" else figure
            statistic = latency[2] or latency[3]
            if latency[2] and not 0 < float(latency[2]) <= 100:
                raise ValueError(f"{text!r} is not a threshold: a percentile is above 0 and at most 100; {GRAMMAR}")
        return cls(text.strip(), figure, statistic, compare, value)

    def check(self, document: dict[str, Any]) -> dict[str, Any]:
        """Return the entry for a document's `thresholds`: the figure, and whether it is what it must not be.

        A latency that nobody can know is None and counts as failed: of messages that did not come back, or were due and
        not sent, it is known only that they took longer than any that did. `errors` in per cent are None of no attempt
        at all, which has not failed. A rate of nothing is 0.
        """
        if self.statistic:
            measured = _latency(document, self.figure, self.statistic)
            failed = measured is None or OPERATORS[self.operator](measured, self.value)
            return {"expression": self.expression, "value_us": measured, "failed": failed}
        measured = _count(document, self.figure)
        failed = measured is not None and OPERATORS[self.operator](measured, self.value)
        return {"expression": self.expression, "value": measured, "failed": failed}


def _latency(document: dict[str, Any], name: str, statistic: str) -> float | None:
    """Return a statistic in microseconds; None if it cannot be known. Any percentile will do, of the histogram."""
    histogram = loaded(document["histograms"][name])
    messages = document["messages"]
    lost = document["connections"]["failed"] if name == "connect" else 0
    if name in ("response", "service"):
        lost = messages["mismatched"] + messages["unanswered"] + messages["not_sent"]
    count = histogram.count
    if not count or (lost and statistic in ("mean", "max")):
        return None
    if statistic in ("mean", "min", "max"):
        return float(getattr(histogram, statistic)) / NS_PER_US
    percent = float(statistic) * (count + lost) / count
    return None if percent > 100 else (histogram.percentile(percent) or 0) / NS_PER_US


def _count(document: dict[str, Any], figure: str) -> float | None:
    messages = document["messages"]
    due = messages["sent"] + messages["not_sent"]
    if figure in ("rate", "bytes_rate"):
        return float(document["throughput"]["messages_per_s" if figure == "rate" else "bytes_per_s"])
    if figure.startswith("not_sent"):
        failed, attempted = messages["not_sent"], due
    else:
        failed = sum(error["count"] for error in document["errors"])
        attempted = max(messages["sent"] + document["connections"]["attempted"], failed)
    if figure.endswith("%"):
        return 100 * failed / attempted if attempted else None
    return float(failed)
