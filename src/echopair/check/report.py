"""What is written about a check: lines for people, TAP for programs, JUnit XML, and a page. Pure.

The first two are written case by case; the others, and the summaries, are made from the result document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from textwrap import wrap
from typing import Any

from echopair.check.run import FAILED, PASSED, SKIPPED, Case, Outcome
from echopair.text import count, duration

MARKS = {PASSED: "✓", FAILED: "✗", SKIPPED: "\N{EN DASH}"}
PLAIN_MARKS = {PASSED: "ok", FAILED: "NO", SKIPPED: "--"}  # where the encoding lacks those
TONES = {PASSED: "good", FAILED: "poor", SKIPPED: "fair"}
COLOURS = {PASSED: "\x1b[32m", FAILED: "\x1b[1;31m", SKIPPED: "\x1b[33m"}
BOLD, DIM, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[m"
CLEAR = "\r\x1b[K"  # the line (ECMA-48 8.3.41, EL)
WIDEST = 100  # columns; longer lines are hard to read
NARROWEST = 40
CASES_STYLE = "th, td { vertical-align: top; } tbody th, td:last-child { white-space: nowrap; }\n"


class Tap:
    """Outcomes in the Test Anything Protocol (https://testanything.org), laid out for people."""

    def __init__(self, cases: Sequence[Case], *, width: int) -> None:
        self._number = 0
        self._width = min(max(width, NARROWEST), WIDEST)
        self._names = _widest(cases)
        self._planned = len(cases)

    def head(self) -> str:
        """Return the lines before the outcomes."""
        return f"TAP version 13\n1..{self._planned}\n"

    def begun(self, _case: Case) -> str:
        """Return nothing: a case without an outcome has no line."""
        return ""

    def told(self, outcome: Outcome) -> str:
        """Return the lines of one outcome; for a failed case, what was seen and what usually causes it too."""
        self._number += 1
        word = "not ok" if outcome.status == FAILED else "ok"
        case, took = outcome.case, f"{duration(outcome.seconds):>7}"
        why = f" # SKIP {outcome.seen}" if outcome.status == SKIPPED else ""
        lines = [f"{word:6} {self._number:>2} - {case.name:{self._names}}  {took}  {case.proves}{why}"]
        if outcome.status == FAILED:
            lines.append("  ---")
            for label, text in _reasons(outcome):
                lines += [f"  {label}: >", *wrap(text, self._width, **_indents("    ", "    "))]
            lines.append("  ...")
        return "\n".join(lines) + "\n"

    def end(self, document: dict[str, Any]) -> str:
        """Return the summary."""
        bail = f"Bail out! {document['reason']}\n" if document["reason"] else ""
        return f"{bail}# {_counts(document)}, in {duration(document['duration_s'])}: {document['target']}\n"


class Lines:
    """Outcomes for people at a terminal: a mark and a name each, and details of those that failed."""

    def __init__(
        self, cases: Sequence[Case], *, width: int, colour: bool, encoding: str | None, live: bool = True
    ) -> None:
        self._width = min(max(width, NARROWEST) - 1, WIDEST)
        self._colour = colour
        self._marks = MARKS if "utf" in (encoding or "").lower() else PLAIN_MARKS
        self._names = _widest(cases)
        self._live = live  # the terminal can clear a line

    def head(self) -> str:
        """Return nothing: marks explain themselves."""
        return ""

    def begun(self, case: Case) -> str:
        """Return the line of the case that runs now; the next one replaces it."""
        return self._paint(DIM, f"  {'':{self._mark_width}} {case.name} ...") if self._live else ""

    def told(self, outcome: Outcome) -> str:
        """Return the lines of one outcome."""
        case, mark = outcome.case, self._mark(outcome.status)
        took = self._paint(DIM, f"{duration(outcome.seconds):>8}")
        head = f"  {mark} {case.name:{self._names}}  {took}"
        if outcome.status == PASSED:
            return self._clear + head + "\n"
        gap = " " * (self._mark_width + 3)
        first = len(gap) + self._names + 12
        if outcome.status == SKIPPED:
            lines = wrap(outcome.seen, self._width, **_indents(" " * first, " " * first))
            return self._clear + "\n".join([head + "  " + lines[0].lstrip(), *lines[1:]]) + "\n"
        lines = wrap(f"{case.proves}.", self._width, **_indents(gap, gap))
        for label, text in _reasons(outcome):
            lines += wrap(f"{label:7}  {text}", self._width, **_indents(gap, gap + " " * 9))
        return self._clear + "\n".join([head, *lines]) + "\n"

    def end(self, document: dict[str, Any]) -> str:
        """Return the summary, the verdict first."""
        status, verdict = judged(document)
        story = f"{_counts(document)}, in {duration(document['duration_s'])}: {document['target']}"
        if document["reason"]:
            story += f" ({document['reason']})"
        gap = " " * (self._mark_width + 3)
        first = wrap(f"{self._marks[status]:{self._mark_width}} {verdict}", self._width - 2, **_indents("", gap[2:]))
        lines = [f"  {self._paint(COLOURS[status] + BOLD, line)}" for line in first]
        return self._clear + "\n".join(["", *lines, *wrap(story, self._width, **_indents(gap, gap))]) + "\n"

    @property
    def _mark_width(self) -> int:
        return len(self._marks[PASSED])

    @property
    def _clear(self) -> str:
        return CLEAR if self._live else ""

    def _mark(self, status: str) -> str:
        return self._paint(COLOURS[status], self._marks[status])

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{PLAIN}" if self._colour else text


def judged(document: dict[str, Any]) -> tuple[str, str]:
    """Return how the check went, as a status and as a sentence without a full stop."""
    failed = [entry["name"] for entry in document["checks"] if entry["status"] == FAILED]
    if failed:
        return FAILED, f"{len(failed)} of {count(_planned(document), 'case')} failed: {', '.join(failed)}"
    if document["not_run"]:
        return SKIPPED, f"Not all was checked: {document['reason'] or 'no service answered'}"
    return PASSED, "Every case passed" if PASSED in _statuses(document) else "Nothing applied"


def _statuses(document: dict[str, Any]) -> list[str]:
    return [entry["status"] for entry in document["checks"]]


def _planned(document: dict[str, Any]) -> int:
    return len(document["checks"]) + len(document["not_run"])


def _counts(document: dict[str, Any]) -> str:
    statuses = _statuses(document)
    told = [f"{statuses.count(PASSED)} of {count(_planned(document), 'case')} passed"]
    told += [f"{statuses.count(status)} {status}" for status in (FAILED, SKIPPED) if status in statuses]
    if document["not_run"]:
        told.append(f"{len(document['not_run'])} not run")
    return ", ".join(told)


def _widest(cases: Sequence[Case]) -> int:
    return max((len(case.name) for case in cases), default=0)


def _reasons(outcome: Outcome) -> Iterator[tuple[str, str]]:
    return ((label, text) for label, text in (("seen", outcome.seen), ("usually", outcome.usually)) if text)


def _indents(first: str, others: str) -> dict[str, Any]:
    return {"initial_indent": first, "subsequent_indent": others, "break_on_hyphens": False}


def page(document: dict[str, Any]) -> str:
    """Return a page about the check, to be written as UTF-8."""
    from echopair.measure.page import STYLE, table

    status, verdict = judged(document)
    target, version = escape(document["target"]), escape(f"{document['program']} {document['version']}")
    started = escape(f"{document['started_at'][:19].replace('T', ' ')} UTC")
    mark = f'<span class="mark {TONES[status]}" aria-hidden="true">{MARKS[status]}</span>'
    rows = "".join(_row(entry) for entry in document["checks"])
    rows += "".join(
        f'<tr><td>{MARKS[SKIPPED]}</td><th scope="row">{name}</th>' + "<td>not run</td><td></td></tr>\n"
        for name in document["not_run"]
    )
    note = f'<p class="note">{escape(document["reason"])}</p>' if document["reason"] else ""
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(verdict)}: {target}</title>\n<style>{STYLE}{CASES_STYLE}</style>\n</head>\n<body>\n<main>",
            f'<p class="soft">Check of <strong>{target}</strong>, {started}</p>',
            f"<h1>{mark}{escape(verdict)}</h1>",
            f"<p>{_counts(document)}, in {duration(document['duration_s'])}.</p>{note}",
            "<h2>Cases</h2>",
            table(["", "Case", "What it proves", "Took"], rows, "words"),
            f"</main>\n<footer>{version}, started at {started}</footer>\n</body>\n</html>\n",
        ]
    )


def _row(entry: dict[str, Any]) -> str:
    """Return the row of a case; if it did not pass, what was seen too."""
    status = entry["status"]
    alarm = ' class="alarm"' if status == FAILED else ""
    told = "".join(
        f"<br>{label}: <em>{escape(entry[key])}</em>"
        for key, label in (("seen", "Seen"), ("usually", "Usually"))
        if entry[key]
    )
    return (
        f'<tr><td{alarm}>{MARKS[status]}</td><th scope="row"{alarm}>{entry["name"]}</th>'
        f"<td>{escape(entry['proves'])}{told}</td><td>{duration(entry['duration_s'])}</td></tr>\n"
    )


def junit(document: dict[str, Any]) -> str:
    """Return the document as JUnit XML, for continuous integration; a case that was not run is an error."""
    from xml.etree import ElementTree as Xml

    statuses, unrun = _statuses(document), document["not_run"]
    suite = Xml.Element(
        "testsuite",
        name=_xml(f"echo-client --check {document['target']}"),
        tests=str(_planned(document)),
        failures=str(statuses.count(FAILED)),
        skipped=str(statuses.count(SKIPPED)),
        errors=str(len(unrun)),
        time=str(document["duration_s"]),
        timestamp=document["started_at"].removesuffix("Z"),
    )
    for entry in document["checks"]:
        case = Xml.SubElement(suite, "testcase", classname="echo", name=entry["name"], time=str(entry["duration_s"]))
        if entry["status"] == FAILED:
            failure = Xml.SubElement(case, "failure", message=_xml(entry["seen"]))
            failure.text = _xml(
                "\n".join(f"{key}: {entry[key]}" for key in ("proves", "seen", "usually") if entry[key])
            )
        elif entry["status"] == SKIPPED:
            Xml.SubElement(case, "skipped", message=_xml(entry["seen"]))
    why = _xml(document["reason"] or "no service answered")
    for name in unrun:
        case = Xml.SubElement(suite, "testcase", classname="echo", name=name)
        Xml.SubElement(case, "error", message=f"not run: {why}")
    Xml.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(suite, "unicode") + "\n"


def _xml(text: str) -> str:
    """Return `text` without the characters that XML does not allow."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)
