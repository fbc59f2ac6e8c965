"""The conformance check: which cases, against what, and what is told of them: as TAP, JSON or JUnit's XML."""

from __future__ import annotations

import argparse
import difflib
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from echopair import __version__
from echopair.address import Address, AddressError
from echopair.check.cases import CASES
from echopair.check.run import FAILED as NOT_OK
from echopair.check.run import PASSED, SKIPPED, Case, Check, Outcome
from echopair.cli.command import FAILED, OK, Output, columns, complain, wants_colour
from echopair.cli.reaching import Reach, target
from echopair.cli.results import as_json, destinations, timestamp
from echopair.loop import EventLoop
from echopair.text import count, duration

COLOURS = {PASSED: "\x1b[32m", NOT_OK: "\x1b[1;31m", SKIPPED: "\x1b[33m"}
DIM, PLAIN = "\x1b[2m", "\x1b[m"


def list_cases(output: Output) -> int:
    """Print the names of the cases, and what each proves."""
    width = max(len(case.name) for case in CASES)
    for case in CASES:
        output.line(f"{case.name:{width}}  {case.proves}")
    return OK


def check(args: argparse.Namespace, output: Output) -> int:
    """Run the cases that were asked for, tell what came of them, and return the exit status."""
    with EventLoop() as loop:  # a signal means what the loop makes of it until all is written
        return _check(Reach(loop, args), args, output)


def _check(reach: Reach, args: argparse.Namespace, output: Output) -> int:
    wanted = _names(args.check_only or ())
    cases = [case for case in CASES if not wanted or case.name in wanted]
    files, printed = destinations([("--junit", args.junit, _junit)])
    tap = None if args.json or printed else _Tap(output, len(cases))
    outcomes: list[Outcome] = []

    def told(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if tap:
            tap.tell(outcome)

    started, began = time.time(), time.monotonic()
    interrupted, reason = _run(reach, args, output, cases, told)
    well = len(outcomes) == len(cases) and not any(each.status == NOT_OK for each in outcomes)
    status = interrupted or (OK if well else FAILED)
    document = {
        "schema_version": 1,
        "program": "echo-client --check",
        "version": __version__,
        "target": target(args),
        "started_at": timestamp(started),
        "duration_s": round(time.monotonic() - began, 6),
        "exit_status": status,
        "checks": [_entry(outcome) for outcome in outcomes],
        "not_run": [case.name for case in cases[len(outcomes) :]],
        "reason": reason or None,  # why they were not
    }
    if reason:
        if tap:
            output.line(f"Bail out! {reason}")
        complain("echo-client", reason, status)
    for file, text in files:
        document["exit_status"] = status = max(status, file.write(text(document)))
    output.text(_summary(document, len(cases)) if tap else (printed or as_json)(document))
    return status


def _run(
    reach: Reach,
    args: argparse.Namespace,
    output: Output,
    cases: Sequence[Case],
    told: Callable[[Outcome], object],
) -> tuple[int, str]:
    """Run the cases to the end, or to a signal; return the exit status of that, or 0, and why none could be run."""
    checks: list[Check] = []

    def begin(addresses: list[Address]) -> None:
        checks.append(
            Check(
                reach.loop,
                addresses,
                cases,
                told=told,
                done=reach.done,
                patience=args.timeout,
                connect_timeout=args.connect_timeout,
                source=args.source,
                seed=args.seed or 0,
            )
        )
        if output.failure:
            stop()

    def stop() -> None:
        for running in checks:
            running.stop()

    output.failed = stop
    try:
        reach.run(begin, stop)
    except AddressError as error:
        return reach.status, str(error)
    return reach.status, "interrupted" if reach.status else ""


def unknown_case(names: Iterable[str]) -> str:
    """Return a complaint if there is no case of one of these names."""
    known = [case.name for case in CASES]
    for name in _names(names):
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else "--check-list says which there are"
            return f"--check-only: there is no case {name!r} ({hint})"
    return ""


def _names(given: Iterable[str]) -> list[str]:
    """Return the names in options of one or, with commas, several."""
    return [name for each in given for name in each.split(",")]


class _Tap:
    """Prints outcomes in the Test Anything Protocol (https://testanything.org), laid out for people."""

    def __init__(self, output: Output, planned: int) -> None:
        self._output = output
        self._number = 0
        self._colour = bool(sys.stdout) and wants_colour(sys.stdout)
        self._names = max(len(case.name) for case in CASES)
        output.line("TAP version 13")
        output.line(f"1..{planned}", flush=True)

    def tell(self, outcome: Outcome) -> None:
        """Print one outcome, with what was seen and what usually causes it where it failed."""
        self._number += 1
        word = "not ok" if outcome.status == NOT_OK else "ok"
        head = self._paint(COLOURS[outcome.status], f"{word:6} {self._number:>2}")
        took = self._paint(DIM, f"{duration(outcome.seconds):>7}")
        case = outcome.case
        why = f" # SKIP {outcome.seen}" if outcome.status == SKIPPED else ""
        self._output.line(f"{head} - {case.name:{self._names}}  {took}  {case.proves}{why}")
        if outcome.status == NOT_OK:
            self._output.line("  ---")
            for label, text in (("seen", outcome.seen), ("usually", outcome.usually)):
                if not text:
                    continue
                self._output.line(f"  {label}: >")
                for line in textwrap.wrap(text, max(min(columns(1), 100) - 5, 20), break_on_hyphens=False):
                    self._output.line(f"    {line}")
            self._output.line("  ...")
        self._output.flush()

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{PLAIN}" if self._colour else text


def _entry(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.case.name,
        "proves": outcome.case.proves,
        "status": outcome.status,
        "seen": outcome.seen or None,
        "usually": outcome.usually or None,
        "duration_s": round(outcome.seconds, 6),
    }


def _summary(document: dict[str, Any], planned: int) -> str:
    statuses = [entry["status"] for entry in document["checks"]]
    told = [f"{statuses.count(PASSED)} of {count(planned, 'case')} passed"]
    told += [f"{statuses.count(status)} {status}" for status in (NOT_OK, SKIPPED) if status in statuses]
    if len(statuses) < planned:
        told.append(f"{planned - len(statuses)} not run")
    return f"# {', '.join(told)}, in {duration(document['duration_s'])}: {document['target']}\n"


def _xml(text: str) -> str:
    """Return `text` without what XML does not allow."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _junit(document: dict[str, Any]) -> str:
    """Return the document as JUnit's XML, for services of continuous integration; what was not run is an error."""
    from xml.etree import ElementTree as Xml

    statuses, unrun = [entry["status"] for entry in document["checks"]], document["not_run"]
    suite = Xml.Element(
        "testsuite",
        name=_xml(f"echo-client --check {document['target']}"),
        tests=str(len(statuses) + len(unrun)),
        failures=str(statuses.count(NOT_OK)),
        skipped=str(statuses.count(SKIPPED)),
        errors=str(len(unrun)),
        time=str(document["duration_s"]),
        timestamp=document["started_at"].removesuffix("Z"),
    )
    for entry in document["checks"]:
        case = Xml.SubElement(suite, "testcase", classname="echo", name=entry["name"], time=str(entry["duration_s"]))
        if entry["status"] == NOT_OK:
            failure = Xml.SubElement(case, "failure", message=entry["seen"])
            failure.text = "\n".join(f"{key}: {entry[key]}" for key in ("proves", "seen", "usually") if entry[key])
        elif entry["status"] == SKIPPED:
            Xml.SubElement(case, "skipped", message=entry["seen"])
    why = _xml(document["reason"] or "nobody was there")
    for name in unrun:
        Xml.SubElement(
            Xml.SubElement(suite, "testcase", classname="echo", name=name), "error", message=f"not run: {why}"
        )
    Xml.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(suite, "unicode") + "\n"
