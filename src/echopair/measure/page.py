"""A page for people: one run's result document as a single HTML file that needs nothing else.

Owns the words, the figures and the charts, and knows nothing of how a run is made: a document goes in, text comes out,
and whatever of it a peer may have chosen is escaped. No script; the charts are SVG in which only the lines stretch: an
`<svg>` without a viewBox is the plot, so that ticks stand at percentages of it and text keeps its size on any screen,
and a nested one of 1000 by 1000 units, stretched over it, holds the lines.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from operator import itemgetter
from typing import Any

from echopair.measure.document import drawable, loaded
from echopair.measure.verdict import address_story, not_timed, verdict
from echopair.text import duration, figure, size, typed

NONE = "\N{EN DASH}"  # a figure that does not apply
HARD = "\N{NO-BREAK SPACE}"  # between a figure and its unit
FEW = 4  # ticks, for which there is room on a phone
SAMPLES = 160  # of a distribution
LOG_FROM = 20  # times the least latency: from there on a linear axis would flatten most of the line
TIMES = ((3600.0, "h", 7200.0), (60.0, "min", 120.0), (1.0, "s", 1.0), (1e-3, "ms", 1e-3), (1e-6, "µs", 0.0))
MARKS = {"good": "\N{CHECK MARK}", "fair": "!", "poor": "\N{MULTIPLICATION SIGN}"}
MODELS = {
    "closed": "Closed loop: a connection sends on after an echo only, so latency is subject to coordinated omission.",
    "open": "Open loop: response time runs from the moment a message was due, service time from its hand-over to the "
    "kernel. Schedule lag is how late the client itself was; the rest a message waited for room on its connection.",
}
LATENCIES = (
    ("response", "Response"),
    ("service", "Service"),
    ("connect", "Connect"),
    ("schedule_lag", "Schedule lag"),
)

Points = Sequence[tuple[float, float | None]]
Line = tuple[str, str, Points]  # name, classes in the style sheet, where it runs
Figures = Iterable[tuple[str, str]]  # name, value

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b2430; --soft: #586474; --rule: #dde2e8; --tint: #f4f6f8;
  --one: #0b62a8; --two: #b85000; --three: #7b8794; --bad: #b3261e; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #12171d; --ink: #e6eaef; --soft: #a0acba;
  --rule: #2d3641; --tint: #1a2129; --one: #6db5f5; --two: #f0a050; --three: #8b98a7; --bad: #ff8a7d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif;
  font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%; }
main, footer { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 0; }
h1, p, dd, code { overflow-wrap: anywhere; }
footer { margin-top: 2.5rem; padding-bottom: 2rem; color: var(--soft); font-size: .875rem; }
p { margin: .5rem 0; }
h1 { display: flex; gap: .85rem; align-items: center; margin: .25rem 0 .75rem; font-size: 2rem; line-height: 1.2; }
h2 { margin: 2.75rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--rule); font-size: 1.25rem; }
.mark { flex: none; width: 2.75rem; height: 2.75rem; border-radius: 50%; background: var(--tone); color: var(--paper);
  font-size: 1.6rem; line-height: 2.75rem; text-align: center; }
.good { --tone: var(--one); } .fair { --tone: var(--two); } .poor { --tone: var(--bad); }
.soft, figcaption small { color: var(--soft); }
.note { margin: 1rem 0; padding: .6rem 1rem; border-left: 4px solid var(--two); background: var(--tint); }
.tiles { display: grid; grid-template-columns: repeat(6, 1fr); gap: 1px; margin: 1.5rem 0; padding: 1px;
  background: var(--rule); }
.tiles > div { padding: .8rem .9rem; background: var(--paper); }
dt { color: var(--soft); font-size: .875rem; } dd { margin: 0; }
.tiles dd { font-size: 1.4rem; font-weight: 600; white-space: nowrap; }
.alarm { color: var(--bad); }
.lists { columns: 16rem 3; column-gap: 2.5rem; } .lists section { break-inside: avoid; padding-bottom: 1.25rem; }
.lists dl { margin: 0; } .lists h3, figcaption { margin: 0 0 .25rem; font-size: 1rem; font-weight: 600; }
.lists dl > div { display: flex; justify-content: space-between; align-items: baseline; gap: 1rem; padding: .2rem 0;
  border-bottom: 1px solid var(--rule); }
.lists dd { text-align: right; } time { white-space: nowrap; }
.charts { display: grid; grid-template-columns: 1fr 1fr; gap: .75rem 2rem; }
.wide, figure:only-child, figure:last-child:nth-child(even) { grid-column: 1 / -1; }
figure { min-width: 0; margin: 0; break-inside: avoid; }
figcaption small { display: block; font-weight: 400; font-size: .875rem; }
.key { display: inline-block; margin-right: 1.25rem; }
.key svg { width: 1.75rem; height: .6rem; margin-right: .4rem; }
.plot { display: block; width: calc(100% - 5.75rem); height: 13rem; margin: .9rem 1.5rem 2.75rem 4.25rem;
  overflow: visible; }
.plot text { fill: var(--soft); font-size: .75rem; } .plot line { stroke: var(--rule); }
path { fill: none; stroke: var(--one); stroke-width: 2; stroke-linejoin: round; vector-effect: non-scaling-stroke; }
.two { stroke: var(--two); } .dashed { stroke-dasharray: 6 4; }
.three { stroke: var(--three); stroke-width: 1.25; } .broad { stroke-width: 4; stroke-opacity: .65; }
.scroll { overflow-x: auto; } table { width: 100%; border-collapse: collapse; }
th, td { padding: .35rem .5rem .35rem 0; border-bottom: 1px solid var(--rule); text-align: left;
  vertical-align: bottom; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--soft); font-size: .875rem; font-weight: 400; } tbody th { font-weight: 400; }
th:not(:first-child), td { text-align: right; } .words th, .words td { text-align: left; }
.words :last-child:not(:first-child) { text-align: right; }
.words .has-example > * { border: 0; padding-bottom: 0; }
code { font: .875rem/1.4 ui-monospace, monospace; }
@media (max-width: 46rem) { .tiles { grid-template-columns: 1fr 1fr; } .charts { grid-template-columns: 1fr; }
  h1 { font-size: 1.6rem; } .odd { display: none; } thead th, th, td { padding-right: .25rem; font-size: .8125rem; } }
@media print { @page { margin: 14mm; } html { font-size: 11px; } main, footer { padding: 0 1px; max-width: none; }
  body { print-color-adjust: exact; } .scroll { overflow: visible; }
  h2, thead { break-after: avoid; } tr, .lists dl, .tiles { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Axis:
    """Places values between `low` and `high`, on a linear or a logarithmic scale, and the ticks among them."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def place(self, value: float) -> float:
        """Return where `value` lies: 0 at `low`, 1 at `high`, never outside."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)


def round_step(span: float, most: int) -> float:
    """Return the least 1, 2 or 5 times a power of ten that divides `span` into at most `most`."""
    power: float = 10.0 ** math.floor(math.log10(span / most))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit * most >= span * (1 - 1e-9))


def count_axis(high: float, unit: str = "") -> Axis:
    """Return an axis of counts, or of rates if they have a unit, from 0 to the round number that reaches `high`."""
    step = round_step(high, 5) if unit else max(round_step(high, 5), 1.0)
    values = [i * step for i in range(math.ceil(high / step - 1e-9) + 1)]
    return Axis(0, values[-1], [(v, (typed(v) if v < 1e6 else f"{typed(v / 1e6)} M") + unit * (v > 0)) for v in values])


def time_axis(low: float, high: float, *, most: int = 8, reach: bool = False) -> Axis:
    """Return a linear axis of seconds; with `reach` it goes on to the next tick."""
    scale, unit = next((scale, unit) for scale, unit, least in TIMES if high >= least)
    step = round_step((high - low) / scale, most)
    first, last = math.ceil(low / scale / step - 1e-9), math.floor(high / scale / step + 1e-9)
    if reach:
        last = math.ceil(high / scale / step - 1e-9)
        high = last * step * scale
    return Axis(
        low, high, [(i * step * scale, f"{i * step:.10g} {unit}" if i else "0") for i in range(first, last + 1)]
    )


def latency_axis(latencies: Sequence[float]) -> Axis:
    """Return an axis of seconds that shows all `latencies`: linear from 0, or logarithmic where they differ much."""
    low, high = max(min(latencies), 1e-9), max(*latencies, 1e-9)
    if high < LOG_FROM * low:
        return time_axis(0, high, most=5, reach=True)
    marks = _log_marks(low, high, (1, 2, 5))
    if len(marks) > 8:
        marks = _log_marks(low, high, (1,))
    units = [next(time for time in TIMES[2:] if mark > time[2] * (1 - 1e-9)) for mark in marks]
    ticks = [(mark, f"{mark / scale:,.6g} {unit}") for mark, (scale, unit, _) in zip(marks, units, strict=True)]
    return Axis(marks[0], marks[-1], ticks, log=True)


def _log_marks(low: float, high: float, digits: Sequence[int]) -> list[float]:
    """Return the round numbers from the last one below `low` to the first one above `high`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [digit * 10.0**power for power in powers for digit in digits]
    return marks[bisect_right(marks, low * (1 + 1e-9)) - 1 : bisect_left(marks, high * (1 - 1e-9)) + 1]


def path(points: Points, x: Axis, y: Axis) -> str:
    """Return the path through `points` in a square of 1000 units; a None breaks it."""
    drawn, command = [], "M"
    for at, value in points:
        if value is None:
            command = "M"
        else:
            drawn.append(f"{command}{1000 * x.place(at):.1f} {1000 - 1000 * y.place(value):.1f}")
            command = "L"
    return "".join(drawn)


def chart(title: str, note: str, x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """Return a figure: a caption, a key if there are several lines, and the plot."""
    wide, keys = "", ""
    if len(lines) > 1:
        wide = ' class="wide"'
        swatch = '<svg viewBox="0 0 28 10" aria-hidden="true"><path class="{}" d="M0 5H28"/></svg>'
        keys = "".join(f'<span class="key">{swatch.format(look)}{name}</span>' for name, look, _ in lines)
    parts = [
        f"<figure{wide}><figcaption>{title}<small>{note}</small></figcaption>{keys}",
        f'<svg class="plot" role="img"><title>{title}</title><desc>{note}</desc>',
    ]
    for value, label in y.ticks:
        at = f"{100 - 100 * y.place(value):.2f}%"
        parts.append(f'<line x1="0" x2="100%" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="-10" y="{at}" dy="4" text-anchor="end">{label}</text>')
    for i, (value, label) in enumerate(x.ticks):
        at, odd = f"{100 * x.place(value):.2f}%", ' class="odd"' * (i % 2 and len(x.ticks) > FEW)
        parts.append(f'<line x1="{at}" x2="{at}" y1="0" y2="100%"/>')
        parts.append(f'<text{odd} x="{at}" y="100%" dy="22" text-anchor="middle">{label}</text>')
    parts.append(
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%" overflow="visible">'
    )
    parts += [f'<path class="{look}" d="{path(points, x, y)}"/>' for _, look, points in lines]
    return "\n".join([*parts, "</svg>", "</svg>", "</figure>"])


def distribution(document: dict[str, Any]) -> str:
    """Return the chart of latency by percentile; nothing if no message came back."""
    names = ("response",) if document["load"]["model"] == "closed" else ("response", "service")
    runs = {name: loaded(document["histograms"][name]) for name in names}
    if not all(run.count for run in runs.values()):
        return ""
    most = max(run.count for run in runs.values())
    # 1 / (1 - p), up to where only the slowest message is left; `Histogram.percentile` takes p in percent
    shares = [(2 * most) ** (i / SAMPLES) for i in range(SAMPLES + 1)]
    lines = [
        (name.capitalize(), look, [(share, (run.percentile(100 - 100 / share) or 0) / 1e9) for share in shares])
        for (name, run), look in zip(runs.items(), ("broad", "two dashed"), strict=False)
    ]
    ticks = [(2.0, "50 %")] + [(10.0**i, f"{100 - 100 / 10**i:.10g} %") for i in range(1, len(str(2 * most)))]
    x = Axis(1, 2 * most, ticks, log=True)
    y = latency_axis([value for _, _, points in lines for _, value in points])
    note = "The share of messages that took no longer; the line ends at the slowest one."
    return chart("Latency by percentile", note, x, y, lines)


def over_time(intervals: Sequence[dict[str, Any]]) -> str:
    """Return the charts over time that have something to show."""
    steps = drawable(intervals)
    if not steps or not math.fsum(step["duration_s"] for step in steps):
        return ""
    x = time_axis(max(steps[0]["at_s"] - steps[0]["duration_s"], 0.0), steps[-1]["at_s"])

    def line(value: Callable[[dict[str, Any]], float | None]) -> Points:
        return [(at, value(step)) for step in steps for at in (step["at_s"] - step["duration_s"], step["at_s"])]

    def latency(key: str) -> Points:
        return line(lambda step: None if step["response_us"][key] is None else step["response_us"][key] / 1e6)

    # The last one may be shorter than the others.
    lengths, recorded = ([each["duration_s"] for each in some[:-1] or some] for some in (steps, intervals))
    each = f"interval of {figure(lengths[0])}{HARD}s"
    if max(lengths) > 1.5 * min(lengths):
        each = f"interval of {figure(min(lengths))} to {figure(max(lengths))}{HARD}s"
    worst = "; long ones show the worst of the short ones joined into them"
    worst *= max(lengths) > 1.5 * min(recorded)
    figures = []
    named = (("Slowest", "three", "max"), ("p99", "two", "99"), ("Median", "one", "50"))
    lines = [(name, look, latency(key)) for name, look, key in named]
    lines = [(name, look, points) for name, look, points in lines if any(value is not None for _, value in points)]
    if latencies := [value for _, _, points in lines for _, value in points if value is not None]:
        note = f"Response time of each {each}{worst}; a gap is one in which nothing came back."
        figures.append(chart("Latency over time", note, x, latency_axis(latencies), lines))
    rate = line(lambda step: step["messages"] / step["duration_s"] if step["duration_s"] else 0.0)
    for title, points, look, note, unit in (
        ("Messages over time", rate, "one", "Echoed a second, the mean of each", "/s"),
        ("Connections over time", line(itemgetter("connections")), "one", "Open at the end of each", ""),
        ("Errors over time", line(itemgetter("errors")), "two", "Counted in each", ""),
    ):
        if highest := max(value or 0.0 for _, value in points):
            figures.append(chart(title, f"{note} {each}.", x, count_axis(highest, unit), [(title, look, points)]))
    return "\n".join(figures)


def page(document: dict[str, Any]) -> str:
    """Return the page of one run's result document, to be written as UTF-8."""
    tone, headline, story = verdict(document)
    target, model = escape(str(document["target"])), document["load"]["model"]
    generator = document["generator"]
    busy = escape(generator["reason"] or "it could do no more")
    note = (
        f"<strong>The load generator was the limit</strong>: {busy}. What was tested may be better than these figures."
    )
    latency = distribution(document) or "<p>No message came back, so there is nothing to draw.</p>"
    timeline = over_time(document["intervals"])
    left_out = not_timed(document)
    version = escape(f"{document['program']} {document['version']}")
    moment = escape(document["started_at"])
    started = escape(f"{document['started_at'][:19].replace('T', ' ')} UTC")
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(headline)}: {target}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>",
            f'<p class="soft">Echo test of <strong>{target}</strong>, <time datetime="{moment}">{started}</time></p>',
            f'<h1><span class="mark {tone}" aria-hidden="true">{MARKS[tone]}</span>{escape(headline)}</h1>',
            f"<p>{escape(story[:1].upper() + story[1:])}.</p>",
            f'<p class="note">{note}</p>' if generator["limited"] else "",
            key_figures(document),
            f'<p class="soft">{MODELS[model]}</p>',
            f'<p class="note">{left_out}</p>' if left_out else "",
            f"<h2>Latency</h2>\n{latency}\n{latency_table(document)}",
            f'<h2>Over time</h2>\n<div class="charts">\n{timeline}\n</div>' if timeline else "",
            errors_table(document["errors"]),
            thresholds_table(document["thresholds"]),
            f'<h2>Details</h2>\n<div class="lists">{details(document)}</div>',
            f"</main>\n<footer>{version}, started at {started}</footer>\n</body>\n</html>\n",
        ]
    )


def key_figures(document: dict[str, Any]) -> str:
    """Return the six figures that are asked for first."""
    response, errors = document["latency_us"]["response"], sum(error["count"] for error in document["errors"])
    run = loaded(document["histograms"]["response"])
    half, most = ((run.percentile(percent) or 0) / 1e3 if run.count else None for percent in (50, 99))
    tiles = (
        ("Messages", _rate(document["throughput"]["messages_per_s"]), ""),
        ("Data", _size(document["throughput"]["bytes_per_s"], "/s"), ""),
        ("Median (p50)", _time(response["percentiles"].get("50", half)), ""),
        ("99 % within (p99)", _time(response["percentiles"].get("99", most)), ""),
        ("Slowest", _time(response["max"]), ""),
        ("Errors", _number(errors), "alarm" if errors else ""),
    )
    each = "".join(f'<div class="{look}"><dt>{name}</dt><dd>{value}</dd></div>' for name, value, look in tiles)
    return f'<dl class="tiles">{each}</dl>'


def latency_table(document: dict[str, Any]) -> str:
    """Return the table of what each kind of latency was; in a closed loop service is response, and there is no lag."""
    closed, latencies = document["load"]["model"] == "closed", document["latency_us"]
    shown = [(name, head) for name, head in LATENCIES if not (closed and name in ("service", "schedule_lag"))]
    kinds = [latencies[name] or {"percentiles": {}} for name, _ in shown]
    percents = sorted({percent for kind in kinds for percent in kind["percentiles"]}, key=float)
    rows = [("Fastest", [_time(kind.get("min")) for kind in kinds])]
    rows += [
        (f"{escape(percent)} %", [_time(kind["percentiles"].get(percent)) for kind in kinds]) for percent in percents
    ]
    rows += [
        ("Slowest", [_time(kind.get("max")) for kind in kinds]),
        ("Mean", [_time(kind.get("mean")) for kind in kinds]),
    ]
    rows += [("Measured", [_number(kind.get("count")) for kind in kinds])]
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{figure}</td>" for figure in figures)}</tr>\n'
        for name, figures in rows
    )
    return table(["Percentile", *(head for _, head in shown)], body)


def errors_table(errors: Sequence[dict[str, Any]]) -> str:
    """Return the table of errors, each with an example beneath; nothing if there is none."""
    rows = [
        f'<tr class="has-example"><th scope="row">{escape(error["phase"])}</th><td>{escape(error["error"])}</td>'
        f"<td>{_number(error['count'])}</td></tr>\n"
        f'<tr><td colspan="3"><code>{escape(error["example"] or NONE)}</code></td></tr>\n'
        for error in errors
    ]
    return (
        "<h2>Errors</h2>\n" + table(["Phase", "Cause, and an example", "Count"], "".join(rows), "words") if rows else ""
    )


def thresholds_table(thresholds: Sequence[dict[str, Any]]) -> str:
    """Return the table of what the run was to fail at; nothing if there is no such."""
    rows = [
        f'<tr><th scope="row"><code>{escape(limit["expression"])}</code></th>'
        f"<td>{_time(limit['value_us']) if 'value_us' in limit else _number(limit['value'])}</td>"
        + ('<td class="alarm">crossed</td></tr>\n' if limit["failed"] else "<td>kept</td></tr>\n")
        for limit in thresholds
    ]
    return "<h2>Thresholds</h2>\n" + table(["Fail if", "Measured", "Outcome"], "".join(rows)) if rows else ""


def table(heads: Sequence[str], body: str, css: str = "") -> str:
    """Return a table; the last column of a `words` one is a figure, elsewhere all but the first are."""
    cells = "".join(f'<th scope="col">{head}</th>' for head in heads)
    head = f'<div class="scroll"><table class="{css}"><thead><tr>{cells}</tr></thead>\n'
    return f"{head}<tbody>\n{body}</tbody></table></div>"


def details(document: dict[str, Any]) -> str:
    """Return the load's settings, what was counted, and what the two ends' systems say."""
    load, tcp, generator = document["load"], document["tcp"] or {}, document["generator"]
    connections, messages, volume = document["connections"], document["messages"], document["bytes"]
    lists: dict[str, Figures] = {
        "Load": [
            ("Model", escape(f"{load['model']} loop")),
            ("Connections", _number(load["connections"])),
            ("Message size", _size(load["size"])),
            ("In flight on each", _number(load["pipeline"])),
            ("Processes", _number(load["workers"])),
            ("Rate", NONE if load["rate"] is None else f"{typed(load['rate'])}/s"),
            ("Messages to send", _number(load["count"])),
            ("Planned duration", _seconds(load["duration_s"])),
            ("Warm-up, left out", _seconds(load["warmup_s"])),
            ("New connections", NONE if load["connect_rate"] is None else f"{typed(load['connect_rate'])}/s"),
            ("Messages until reconnecting", _number(load["reconnect_every"])),
            ("Verified", escape(load["verify"] or NONE)),
            ("Seed", NONE if load["seed"] is None else str(load["seed"])),
        ],
        "Messages": [(name.capitalize().replace("_", " "), _number(number)) for name, number in messages.items()],
        "Connections": [(name.capitalize().replace("_", " "), _number(number)) for name, number in connections.items()],
        "Addresses": [
            (escape(entry["address"]), escape(address_story(entry))) for entry in document.get("addresses", ())
        ],
        "Volume": [("Bytes sent", _number(volume["sent"])), ("Bytes received", _number(volume["received"]))],
        "TCP": [("Least round trip", _time(tcp.get("rtt_us"))), ("Retransmits", _number(tcp.get("retransmits")))],
        "Run": [
            ("Duration", _seconds(document["duration_s"])),
            ("Exit status", str(document["exit_status"])),
            ("CPU of the load generator", _number(generator["cpu_percent"], " %")),
        ],
    }
    return "".join(
        f"<section><h3>{title}</h3><dl>"
        + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures)
        + "</dl></section>\n"
        for title, figures in lists.items()
        if figures
    )


def _number(number: float | None, unit: str = "") -> str:
    if number is None:
        return NONE
    return figure(number) + unit.replace(" ", HARD)


def _rate(per_second: float | None) -> str:
    return _number(per_second, "/s")


def _size(number: float | None, unit: str = "") -> str:
    return NONE if number is None else size(number).replace(" ", HARD) + unit


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    return duration(seconds).replace("us", "µs").replace(" ", HARD) if seconds else f"0{HARD}s"


def _time(microseconds: float | None) -> str:
    return NONE if microseconds is None else _seconds(microseconds / 1e6)
