"""Several result documents added up to one, as if a single client had made all the runs.

Counts and histograms are added, and percentiles are taken from the added histograms, never averaged. What cannot be
added honestly is null: the load's settings where the runs differ, and the percentiles of an interval. As with one run,
a rate is over the whole time: all that came back, divided by the seconds in which at least one run went on. A file that
is not a result document, by the schema beside this file, is refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any

from echopair.measure.document import Document, bounded, dumped, loaded, summary, throughput
from echopair.measure.histogram import SIGNIFICANT_BITS, Histogram
from echopair.text import count

Runs = Sequence[tuple[float, Document]]  # seconds after the first one's start

STATUSES = (0, 129, 143, 130, 99, 2, 1)  # from good to bad: a failed echo is worse than an interrupted run
HISTOGRAMS = ("response", "service", "connect", "schedule_lag")
LOOPS = {"closed": "a closed", "open": "an open"}
MOSTLY = 0.5  # of the shortest run's time
TYPES: dict[str, set[type]] = {
    "object": {dict},
    "array": {list},
    "string": {str},
    "boolean": {bool},
    "integer": {int},
    "number": {int, float},
    "null": {type(None)},
}


def merge(documents: Sequence[Any], names: Sequence[str] = ()) -> Document:
    """Return one result document for all of `documents`; `names` say in errors which is meant (else `input 1`..).

    `thresholds` are dropped, because they were of each run. Raises ValueError for no documents, for one that is not a
    result document, and for closed and open loops together, whose response times do not mean the same.
    """
    if not documents:
        raise ValueError("there is nothing to merge")
    names = names or [f"input {number}" for number in range(1, len(documents) + 1)]
    starts = [_started(document, name) for document, name in zip(documents, names, strict=True)]
    for document, name in zip(documents, names, strict=True):
        ours, theirs = (LOOPS[each["load"]["model"]] for each in (document, documents[0]))
        if ours != theirs:
            raise ValueError(
                f"{name} is of {ours} loop and {names[0]} of {theirs} one: their response times do not mean the same; "
                "merge them apart"
            )
    runs = [(start - min(starts), document) for start, document in zip(starts, documents, strict=True)]
    histograms = {name: _added(each[name] for each in _each(documents, "histograms")) for name in HISTOGRAMS}
    listed = {percent: None for each in _each(documents, "latency_us") for percent in each["response"]["percentiles"]}
    percents = sorted(listed, key=float)
    messages, data = (_summed(_each(documents, name)) for name in ("messages", "bytes"))
    return {
        "schema_version": 1,
        "program": _joined(_each(documents, "program")),
        "version": _joined(_each(documents, "version")),
        "target": _joined(_each(documents, "target")),
        "started_at": min(_each(documents, "started_at")),
        "duration_s": max(start + document["duration_s"] for start, document in runs),
        "exit_status": max(_each(documents, "exit_status"), key=STATUSES.index),
        "load": _load(_each(documents, "load"), together=_overlap(runs)),
        "generator": busiest(_each(documents, "generator")),
        "connections": _summed(_each(documents, "connections")),
        "addresses": _addresses(documents),
        "messages": messages,
        "bytes": data,
        "throughput": throughput(messages["echoed"], data["received"], _covered(runs)),
        "latency_us": {name: added and summary(added, percents) for name, added in histograms.items()},
        "histograms": {name: added and dumped(added) for name, added in histograms.items()},
        "intervals": bounded(documents[0]["intervals"] if len(documents) == 1 else _intervals(runs)),
        "tcp": _tcp(documents),
        "errors": _errors(documents),
        "thresholds": [],
    }


def caveats(documents: Sequence[Document]) -> list[str]:
    """Return what to bear in mind of the sum of these valid documents, a sentence each."""
    said = []
    if not _overlap([(datetime.fromisoformat(each["started_at"]).timestamp(), each) for each in documents]):
        said.append("these runs hardly overlapped: the rate is over the time in which any of them ran")
    if len(set(_each(documents, "target"))) > 1:
        said.append("these runs had different targets")
    return said


# Histograms in documents


def _added(entries: Iterable[Document | None]) -> Histogram | None:
    """Return the sum of the histograms there are; None if there are none."""
    there = [loaded(entry) for entry in entries if entry is not None]
    for other in there[1:]:
        there[0].merge(other)
    return there[0] if there else None


# Time and intervals


def _overlap(runs: Runs) -> bool:
    """Return whether all runs went on together for most of the time of the shortest."""
    ends = [start + float(document["duration_s"]) for start, document in runs]
    shared = min(ends) - max(start for start, _ in runs)
    return shared > 0 and shared >= MOSTLY * min(float(document["duration_s"]) for _, document in runs)


def _covered(runs: Runs) -> float:
    """Return for how many seconds at least one run went on."""
    covered = until = 0.0
    for start, document in sorted(runs, key=lambda run: run[0]):
        end = start + document["duration_s"]
        covered += max(end - max(start, until), 0.0)
        until = max(until, end)
    return covered


def _intervals(runs: Runs) -> list[Document]:
    """Return the sums of the runs' intervals in steps of a second since the first start, or of the longest interval.

    An interval counts in the step of its middle. `connections` adds up each run's last figure; percentiles are null.
    """
    lanes = [
        deque((start + each["at_s"] - each["duration_s"], start + each["at_s"], each) for each in document["intervals"])
        for start, document in runs
    ]
    merged, begin = [], 0
    while any(lanes):
        begin = max(begin, math.floor(min(lane[0][0] for lane in lanes if lane)))
        here = [lane[0][2]["duration_s"] for lane in lanes if lane and lane[0][0] <= begin + 0.5]
        end = begin + max([1, *map(round, here)])
        found, last, connections = [], 0.0, 0
        for lane in lanes:
            inside = 0
            while lane and (lane[0][0] + lane[0][1]) / 2 < end:
                _, ended, interval = lane.popleft()
                found.append(interval)
                last, inside = max(last, ended), interval["connections"]
            connections += inside
        if found:
            at = min(end, last) if any(lanes) else last
            largest = [top for top in _each(_each(found, "response_us"), "max") if top is not None]
            merged.append(
                {
                    "at_s": round(at, 6),
                    "duration_s": round(max(at - begin, 0.0), 6),
                    **{key: sum(_each(found, key)) for key in ("messages", "bytes", "errors")},
                    "connections": connections,
                    "response_us": {"50": None, "99": None, "max": max(largest, default=None)},
                }
            )
        begin = end
    return merged


# The rest


def _each(documents: Iterable[Document], key: str) -> list[Any]:
    return [document[key] for document in documents]


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def _summed(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    return {key: sum(_each(counts, key)) for key in counts[0]}


def _load(loads: Sequence[Document], *, together: bool) -> Document:
    """Return what the runs agree on; and of connections and messages the sum, of rates too if they ran together."""
    merged = {}
    for key in loads[0]:
        values = _each(loads, key)
        if key in ("connections", "workers", "rate", "count", "connect_rate"):
            apart = key.endswith("rate") and not together and len(loads) > 1
            merged[key] = None if None in values or apart else sum(values)
        else:
            merged[key] = values[0] if all(value == values[0] for value in values) else None
    return merged


def busiest(generators: Sequence[Document]) -> Document:
    """Return the busiest of the clients; if one was the bottleneck, the sum suffers from it."""
    shares = [share for share in _each(generators, "cpu_percent") if share is not None]
    reasons = [reason for reason in _each(generators, "reason") if reason is not None]
    return {
        "cpu_percent": max(shares, default=None),
        "limited": any(_each(generators, "limited")),
        "reason": _joined(reasons) or None,
    }


def _tcp(documents: Iterable[Document]) -> Document | None:
    """Return the sum of the retransmits, and the mean round trip over all connections; None if none was measured."""
    known = [document for document in documents if document["tcp"] is not None]
    if not known:
        return None
    weights = [max(document["connections"]["established"], 1) for document in known]
    trips = math.fsum(document["tcp"]["rtt_us"] * weight for document, weight in zip(known, weights, strict=True))
    retransmits = sum(_each(_each(known, "tcp"), "retransmits"))
    return {"rtt_us": round(trips / sum(weights), 3), "retransmits": retransmits}


def _addresses(documents: Iterable[Document]) -> list[Document]:
    merged: dict[str, Document] = {}
    for document in documents:
        for entry in document.get("addresses", ()):
            before = merged.get(entry["address"], {**entry, "connections": 0, "failed": 0})
            sums = {key: before[key] + entry[key] for key in ("connections", "failed")}
            merged[entry["address"]] = {**before, **sums, "example": before["example"] or entry["example"]}
    return list(merged.values())


def _errors(documents: Iterable[Document]) -> list[Document]:
    merged: dict[tuple[str, str], Document] = {}
    for document in documents:
        for error in document["errors"]:
            kind = error["phase"], error["error"]
            before = merged.get(kind, {**error, "count": 0})
            merged[kind] = {**before, "count": before["count"] + error["count"]}
    return list(merged.values())


# What a result document is


def _started(document: Any, name: str) -> float:
    """Return when the run started, in seconds since the epoch; raises ValueError for what is not a result document."""
    if isinstance(document, dict) and document.get("schema_version", 1) != 1:
        raise ValueError(f"{name} has schema_version {document['schema_version']!r}; this program reads 1")
    flaw = next(_flaws(document, _schema()), None)
    if flaw:
        raise ValueError(f"{name} is not a result of echo-client: {flaw}")
    for histogram, entry in document["histograms"].items():
        if entry is not None and entry["significant_bits"] != SIGNIFICANT_BITS:
            raise ValueError(
                f"{name} has a {histogram} histogram of {entry['significant_bits']} significant bits, "
                f"not {SIGNIFICANT_BITS}: their buckets differ, so they cannot be added"
            )
    try:
        return datetime.fromisoformat(document["started_at"]).timestamp()
    except ValueError as error:
        raise ValueError(f"{name} is not a result of echo-client: started_at: {error}") from None


@cache
def _schema() -> Document:
    schema: Document = json.loads(files(__package__).joinpath("schema.json").read_text("utf-8"))
    return schema


def _flaws(value: Any, schema: Document, where: str = "") -> Iterator[str]:
    """Yield in what `value` differs from `schema`, by as much of JSON Schema as ours uses."""
    if "$ref" in schema:
        schema = _schema()["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    if "anyOf" in schema:
        flaws = [list(_flaws(value, each, where)) for each in schema["anyOf"]]
        yield from flaws[0] if all(flaws) else ()
        return
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(type(value) in TYPES[kind] for kind in kinds):
        yield f"{where or 'it'} is not of type {' or '.join(kinds)}"
    elif isinstance(value, dict):
        yield from (f"{where}.{key} is missing".lstrip(".") for key in schema.get("required", ()) if key not in value)
        for key, inner in value.items():
            patterns = schema.get("patternProperties", {}).items()
            matching = [known for pattern, known in patterns if re.search(pattern, key)]
            known = schema.get("properties", {}).get(key) or next(iter(matching), None)
            path = f"{where}.{key}".lstrip(".")
            yield from _flaws(inner, known, path) if known else [f"{path} is unknown"]
    elif isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{where} has {count(len(value), 'item')}"
        for place, inner in enumerate(value):
            yield from _flaws(inner, schema["items"], f"{where}[{place}]")
    elif not _fits(value, schema):
        yield f"{where} cannot be {value!r}"


def _fits(value: Any, schema: Document) -> bool:
    """Return whether a string, a number, a boolean or null is one that `schema`, whose type it has, allows."""
    if "enum" in schema:
        return value in schema["enum"]
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    return "maximum" not in schema or value is None or schema["minimum"] <= value <= schema["maximum"]
