"""The report of a run for a terminal: one result document as text, the verdict first.

Knows the document and how wide the terminal is; not where the text goes, nor whether it was a run or several merged.
Draws with block characters where the terminal's encoding has them, otherwise in ASCII; colour only repeats what the
words say.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from textwrap import wrap
from typing import Any

from echopair.measure.document import Document, drawable
from echopair.measure.hgrm import bucket_width
from echopair.measure.verdict import POOR, address_story, not_timed, verdict
from echopair.text import count, duration, figure, size, typed

BOLD, RED, DIM, PLAIN = "\x1b[1m", "\x1b[1;31m", "\x1b[2m", "\x1b[m"  # ECMA-48 8.3.117, SGR
EIGHTHS = "▏▎▍▌▋▊▉█"
LEVELS = "▁▂▃▄▅▆▇█"
DRAWN = EIGHTHS + LEVELS + "─"
ROWS = 13  # of the histogram, besides the one for what lies beyond
PER_DECADE = 100  # rows at most; buckets are 0.78 % wide, a row must not be narrower
BEYOND = 0.999  # the share of the values that the rows are cut for; a few outliers must not squeeze the rest
NAMES = {"response": "response", "service": "service", "connect": "connect", "schedule_lag": "schedule lag"}


def report(document: Document, *, width: int = 80, colour: bool = False, encoding: str | None = "utf-8") -> str:
    """Return the report, its lines at most `width` columns where words can be broken, with a newline at the end.

    `encoding` is that of the stream that it is for; what it does not have is drawn in ASCII or escaped.
    """
    page = _Page(max(width, 60), colour=colour, drawn=_has(encoding, DRAWN))
    page.verdict(document)
    page.facts(document)
    page.latencies(document)
    page.histogram(document["histograms"]["response"], document["latency_us"]["response"]["percentiles"])
    page.errors(document["errors"])
    page.thresholds(document["thresholds"])
    text = "\n".join(page.lines) + "\n"
    return text if _has(encoding, text) else text.encode("ascii", "backslashreplace").decode()


class _Page:
    """The lines of a report, as they are written."""

    def __init__(self, width: int, *, colour: bool, drawn: bool) -> None:
        self.lines: list[str] = []
        self._width = width
        self._colour = colour
        self._drawn = drawn

    def verdict(self, document: Document) -> None:
        """Say how it went, and before that whether the client was the bottleneck."""
        generator = document["generator"]
        if generator["limited"]:
            why = f": {generator['reason']}" if generator["reason"] else ""
            self._say(f"The client was the bottleneck{why}. The server may well be faster than this.", BOLD)
        found = verdict(document)
        self._say(str(found), RED if found.tone == POOR else BOLD)

    def facts(self, document: Document) -> None:
        """Say what was asked for and how much there was of it."""
        self.lines.append("")
        for name, text in _facts(document):
            first, *more = wrap(text, self._width - 16) or [""]
            self.lines += [f"  {name:12}  {first}", *(f"{'':16}{line}" for line in more)]
        intervals = [each for each in drawable(document["intervals"]) if each["duration_s"]]
        rates = [each["messages"] / each["duration_s"] for each in intervals]
        if len(rates) > 2:
            spark = f"{sparkline(intervals, self._width - 52)}  " if self._drawn else ""
            self.lines.append(f"  {'over time':12}  {spark}{figure(min(rates))} to {figure(max(rates))} messages/s")

    def latencies(self, document: Document) -> None:
        """Write a table of the latencies of which there are any, a column each."""
        latencies = document["latency_us"]
        columns = {name: latencies[name] for name in NAMES if latencies[name] and latencies[name]["count"]}
        closed = document["load"]["model"] == "closed"
        if closed:
            columns.pop("service", None)  # it is the response time
        self._rule("latency")
        if not columns:
            self._note("Nothing to time: no connection was made.")
            return
        self.lines.append(f"{'':9}" + "".join(f"{NAMES[name]:>16}" for name in columns))
        for label, keys in [
            ("min", ("min",)),
            ("mean", ("mean",)),
            *((f"p{percent}", ("percentiles", percent)) for percent in latencies["response"]["percentiles"]),
            ("max", ("max",)),
        ]:
            cells = (f"{_time(_at(column, keys)):>16}" for column in columns.values())
            self.lines.append(f"  {label:7}" + "".join(cells))
        self.lines.append(f"  {'count':7}" + "".join(f"{column['count']:>16,}" for column in columns.values()))
        self.lines.append("")
        if left_out := not_timed(document):
            self._note(left_out)
        self._note(
            "Response runs from the moment a message was due, service from its hand-over to the kernel; schedule lag "
            "is how late the client itself was, and the rest a message waited for room on its connection."
            if not closed
            else "A closed loop waits with the next message for the last one's echo, so these figures are subject to "
            "coordinated omission: they leave out the messages that a stall holds back. An open loop (--rate) does not."
        )

    def histogram(self, entry: Document, percentiles: Iterable[str]) -> None:
        """Draw the response times, with the percentiles beside the rows that they are in."""
        if not entry["buckets"]:
            return
        self._rule("response time")
        rows = [(f"{duration(low / 1e9):>7} {_end(high)}", number) for low, high, number in _rows(entry["buckets"])]
        margin = max(len(label) for label, _ in rows)
        total, most, seen = sum(number for _, number in rows), max(number for _, number in rows), 0
        for label, number in rows:
            ranks = {percent: max(round(total * float(percent) / 100, 6), 1) for percent in percentiles}
            here = [f"p{percent}" for percent, rank in ranks.items() if seen < rank <= seen + number]
            seen += number
            bar = self._bar(number / most, self._width - margin - 37)
            share = 100 * number / total
            percent = f"{share:5.1f}" if share >= 0.05 or not number else " <0.1"
            line = f"  {label:{margin}}  {number:>10,} {percent} %  {bar}"
            self.lines.append(f"{line}  {'..'.join(here[:1] + here[1:][-1:])}".rstrip())

    def errors(self, errors: Sequence[Document]) -> None:
        """List what failed, by phase and cause, most of it first."""
        if not errors:
            return
        self._rule("errors")
        for error in sorted(errors, key=lambda error: -error["count"]):
            self._add(f"  {error['count']:>7,}  {error['phase']}: {error['error']}", RED)
            self._note(error["example"], 11)

    def thresholds(self, thresholds: Sequence[Document]) -> None:
        """List what the run was to fail for, and whether it did."""
        if not thresholds:
            return
        self._rule("thresholds")
        for threshold in thresholds:
            mark = "failed" if threshold["failed"] else "ok"
            text = f"  {mark:8} {threshold['expression']:20}  {_measured(threshold)}"
            self._add(text, RED if threshold["failed"] else "")

    def _say(self, text: str, style: str) -> None:
        for line in wrap(text, self._width):
            self._add(line, style)

    def _note(self, text: str, indent: int = 2) -> None:
        self.lines += wrap(text, self._width, initial_indent=" " * indent, subsequent_indent=" " * indent)

    def _rule(self, title: str) -> None:
        line = "─" if self._drawn else "-"
        self.lines.append("")
        self._add(f"{line * 2} {title} ".ljust(self._width, line), DIM)

    def _add(self, text: str, style: str) -> None:
        self.lines.append(f"{style}{text}{PLAIN}" if self._colour and style else text)

    def _bar(self, share: float, width: int) -> str:
        """Return a bar of `share` of `width`; something, however small, always shows."""
        if not self._drawn:
            return ("#" * math.ceil(share * width)).ljust(width)
        full, part = divmod(math.ceil(share * width * 8), 8)
        return (EIGHTHS[-1] * full + (EIGHTHS[part - 1] if part else "")).ljust(width)


def sparkline(intervals: Sequence[Document], width: int) -> str:
    """Return the rate of `intervals` from 0 to the largest, in at most `width` characters of equal time."""
    width = min(width, len(intervals))
    times = list(accumulate((each["duration_s"] for each in intervals), initial=0.0))
    upto = list(accumulate((each["messages"] for each in intervals), initial=0))

    def messages_by(time: float) -> float:
        place = min(bisect_right(times, time), len(intervals)) - 1
        share = (time - times[place]) / intervals[place]["duration_s"]
        return float(upto[place] + share * intervals[place]["messages"])

    edges = [messages_by(times[-1] * place / width) for place in range(width + 1)]
    rates = [after - before for before, after in pairwise(edges)]
    most = max(rates) or 1
    return "".join(LEVELS[round(rate / most * (len(LEVELS) - 1))] for rate in rates)


def _facts(document: Document) -> Iterator[tuple[str, str]]:
    load, messages, connections = document["load"], document["messages"], document["connections"]
    rates, data, tcp, busy = (document[name] for name in ("throughput", "bytes", "tcp", "generator"))
    asked = f" of {typed(load['rate'])} asked for" if load["rate"] else ""
    yield "rate", f"{figure(rates['messages_per_s'])} messages/s{asked}, {size(rates['bytes_per_s'])}/s"
    yield "messages", f"{messages['sent']:,} sent, {messages['echoed']:,} came back"
    yield "bytes", f"{data['sent']:,} sent, {data['received']:,} received ({size(data['received'])})"
    lost = f", {connections['closed_early']:,} ended early" if connections["closed_early"] else ""
    yield "connections", f"{connections['established']:,} of {connections['attempted']:,} made{lost}"
    flight = f", {load['pipeline']} in flight on each" if load["pipeline"] is not None else ""
    several = load["workers"]
    shared = f", shared out over {several} processes" if several > 1 else ""
    yield "load", f"{load['model']} loop on {count(load['connections'], 'connection')}{flight}{shared}"
    payload = [
        f"{size(load['size'])} a message" if load["size"] is not None else "",
        f"seed {load['seed']}" if load["seed"] is not None else "",
        f"verify {load['verify']}" if load["verify"] is not None else "",
    ]
    if any(payload):
        yield "payload", ", ".join(filter(None, payload))
    yield "server", document["target"]
    entries = document.get("addresses", [])
    if [entry["address"] for entry in entries] != [document["target"]]:
        for entry in entries:
            yield "address", f"{entry['address']}: {address_story(entry)}"
    yield "run", f"{document['started_at'][:19].replace('T', ' ')} UTC, for {duration(document['duration_s'])}"
    if tcp:
        yield "tcp", f"least round trip {_time(tcp['rtt_us'])}, {count(tcp['retransmits'], 'retransmit')}"
    if busy["cpu_percent"] is not None:
        busiest = " (the busiest process)" if several > 1 else ""
        yield "client", f"CPU {figure(busy['cpu_percent'], 2)} % busy{busiest}"


def _rows(buckets: Sequence[Sequence[int]]) -> Iterator[tuple[float, float, int]]:
    """Yield from where to where each row goes, in nanoseconds, and how many values are in it.

    The rows are equally wide on a logarithmic scale, a whole number of them to a decade, as many as fit in ROWS. What
    lies beyond the last of them has a row to itself, without an end. Each value is taken for the middle of its bucket.
    """
    values = [(lowest + bucket_width(lowest) // 2, number) for lowest, number in buckets]
    upto = list(accumulate(number for _, number in values))
    first, last = values[0][0], values[bisect_left(upto, BEYOND * upto[-1])][0]
    for steps in range(PER_DECADE, 0, -1):
        begin, end = (math.floor(math.log10(max(value, 1)) * steps + 1e-9) for value in (first, last))
        if end - begin < ROWS:
            break
    edges = [10 ** (step / steps) for step in range(begin, end + 2)]
    counts = [0] * len(edges)
    for value, number in values:
        counts[max(bisect_right(edges, value * (1 + 1e-9)) - 1, 0)] += number
    for low, high, number in zip(edges, [*edges[1:], math.inf], counts, strict=True):
        if number or high < math.inf:
            yield low, high, number


def _end(ns: float) -> str:
    return "and more" if math.isinf(ns) else f"- {duration(ns / 1e9):>7}"


def _at(latency: Document, keys: tuple[str, ...]) -> float | None:
    value: Any = latency
    for key in keys:
        value = value.get(key)
    return value if value is None else float(value)


def _time(us: float | None) -> str:
    return "-" if us is None else duration(us / 1e6)


def _measured(threshold: Document) -> str:
    if "value_us" in threshold:
        value = threshold["value_us"]
        return "unknown, so it counts as failed" if value is None else f"it is {_time(value)}"
    value, expression = threshold["value"], threshold["expression"].lower()
    if value is None:
        return "nothing was attempted"
    if expression.startswith("bytes_rate"):
        return f"it is {size(value)}/s"
    return f"it is {figure(value, 6)}" + (
        " messages/s" if expression.startswith("rate") else " %" * ("%" in expression)
    )


def _has(encoding: str | None, text: str) -> bool:
    try:
        text.encode(encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
