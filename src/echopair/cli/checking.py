"""The conformance check on the command line: which cases, against what, and where the outcomes go."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from echopair import __version__
from echopair.address import Address, AddressError
from echopair.check.cases import CASES
from echopair.check.report import Lines, Tap, junit, page
from echopair.check.run import FAILED as NOT_OK
from echopair.check.run import STANDARD, THOROUGH, Case, Check, Outcome
from echopair.cli.command import FAILED, OK, Output, columns, complain, wants_colour
from echopair.cli.options import UsageError
from echopair.cli.reaching import Reach, target
from echopair.cli.results import as_json, destinations, timestamp
from echopair.loop import EventLoop


def list_cases(output: Output) -> int:
    """Print the names of the cases, and what each proves."""
    width = max(len(case.name) for case in CASES)
    for case in CASES:
        output.line(f"{case.name:{width}}  {case.proves}{' (--thorough)' if case.thorough else ''}")
    return OK


def check(args: argparse.Namespace, output: Output) -> int:
    """Run the selected cases, report their outcomes, and return the exit status."""
    with EventLoop() as loop:  # the loop handles signals until all is written
        return _check(Reach(loop, args), args, output)


def _check(reach: Reach, args: argparse.Namespace, output: Output) -> int:
    cases = chosen(args)
    files, printed = destinations(
        (("--output", args.output, as_json), ("--report", args.report, page), ("--junit", args.junit, junit))
    )
    view = None if args.json or printed else _view(args, cases)
    outcomes: list[Outcome] = []

    def show(text: str) -> None:
        if text:
            output.text(text)

    def begun(case: Case) -> None:
        if view:
            show(view.begun(case))

    def told(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if view:
            show(view.told(outcome))

    if view:
        show(view.head())
    started, began = time.time(), time.monotonic()
    interrupted, reason = _run(reach, args, output, cases, begun=begun, told=told)
    ran = {outcome.case.name for outcome in outcomes}
    well = len(ran) == len(cases) and not any(each.status == NOT_OK for each in outcomes)
    status = interrupted or (OK if well else FAILED)
    document = {
        "schema_version": 1,
        "program": "echo-client --check",
        "version": __version__,
        "target": target(args),
        "started_at": timestamp(started),
        "duration_s": round(time.monotonic() - began, 6),
        "exit_status": status,
        "thorough": args.thorough,
        "checks": [_entry(outcome) for outcome in outcomes],
        "not_run": [case.name for case in cases if case.name not in ran],
        "reason": reason or None,  # why they were not
    }
    if interrupted or (reason and not outcomes):
        complain("echo-client", reason, status)
    for file, text in files:
        document["exit_status"] = status = max(status, file.write(text(document)))
    output.text(view.end(document) if view else (printed or as_json)(document))
    return status


def chosen(args: argparse.Namespace) -> list[Case]:
    """Return the selected cases; raises UsageError if there is none."""
    only = _names("--check-only", args.check_only or ())
    skipped = _names("--check-skip", args.check_skip or ())
    cases = [case for case in CASES if (case.name in only if only else args.thorough or not case.thorough)]
    cases = [case for case in cases if case.name not in skipped]
    if not cases:
        raise UsageError("--check-skip leaves no case to try")
    return cases


def _names(option: str, given: Iterable[str]) -> list[str]:
    """Return the names in options, which may be lists with commas; raises UsageError for an unknown case."""
    known = [case.name for case in CASES]
    names = [name for each in given for name in each.split(",")]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else "--check-list lists them"
            raise UsageError(f"{option}: there is no case {name!r} ({hint})")
    return names


def _view(args: argparse.Namespace, cases: Sequence[Case]) -> Lines | Tap:
    """Return the format of the outcomes on standard output."""
    stream = sys.stdout
    if args.tap or stream is None or not stream.isatty():
        return Tap(cases, width=columns(1))
    live = os.environ.get("TERM") not in (None, "", "dumb")
    return Lines(cases, width=columns(1), colour=wants_colour(stream), encoding=stream.encoding, live=live)


def _run(
    reach: Reach,
    args: argparse.Namespace,
    output: Output,
    cases: Sequence[Case],
    *,
    begun: Callable[[Case], object],
    told: Callable[[Outcome], object],
) -> tuple[int, str]:
    """Run the cases until the end or a signal; return the signal's exit status, or 0, and why cases were not run."""
    checks: list[Check] = []

    def begin(addresses: list[Address]) -> None:
        checks.append(
            Check(
                reach.loop,
                addresses,
                cases,
                begun=begun,
                told=told,
                done=reach.done,
                patience=args.timeout,
                connect_timeout=args.connect_timeout,
                source=args.source,
                seed=args.seed or 0,
                plan=THOROUGH if args.thorough else STANDARD,
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
    return reach.status, "interrupted" if reach.status else "".join(each.reason for each in checks)


def _entry(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.case.name,
        "proves": outcome.case.proves,
        "status": outcome.status,
        "seen": outcome.seen or None,
        "usually": outcome.usually or None,
        "duration_s": round(outcome.seconds, 6),
    }
