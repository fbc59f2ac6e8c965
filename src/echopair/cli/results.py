"""Where a result document goes: text or JSON on standard output, and files of several kinds."""

from __future__ import annotations

import argparse
import io
import json
import os
import reprlib
import stat
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from echopair.cli.command import (
    FAILED,
    HUNG_UP,
    INTERRUPTED,
    OK,
    TERMINATED,
    USAGE,
    Output,
    columns,
    complain,
    wants_colour,
)
from echopair.cli.forking import heed
from echopair.cli.options import UsageError
from echopair.loop import EventLoop
from echopair.measure.document import Document, loaded
from echopair.measure.verdict import GOOD, verdict
from echopair.text import reason

LARGEST = 1e30  # in a document; the sum of a histogram, in nanoseconds, comes up to about 1e27
THRESHOLD = 99  # exit status: a --fail-if condition was met


class ResultFile:
    """A file that is written at the end of a run, but opened at its start, so that no long run is wasted."""

    def __init__(self, option: str, path: str) -> None:
        self._path = path
        try:
            self._file = io.FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666), "w")
        except OSError as error:
            raise UsageError(f"{option}: cannot write {path}: {reason(error)}") from None

    def write(self, text: str) -> int:
        """Replace the contents of the file, and return the exit status of that."""
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        try:
            with self._file as file:
                if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    file.truncate(0)
                while data:
                    data = data[file.write(data) :]
        except OSError as error:
            return complain("echo-client", f"cannot write {self._path}: {reason(error)}", FAILED)
        return OK


Format = Callable[[Document], str]


def destinations(
    formats: Iterable[tuple[str, str | None, Format]],
) -> tuple[list[tuple[ResultFile, Format]], Format | None]:
    """Open the files to write; return them with their formats, and the format for `-`, if an option has it.

    `formats` are options, each with its path (None if not given) and its format. Raises UsageError.
    """
    asked = [(option, path, text) for option, path, text in formats if path is not None]
    files = [(ResultFile(option, path), text) for option, path, text in asked if path != "-"]
    return files, next((text for _, path, text in asked if path == "-"), None)


class Results:
    """Where the result of a run goes, and in which formats. Raises UsageError for files that cannot be written."""

    def __init__(self, args: argparse.Namespace, output: Output) -> None:
        self._args = args
        self._output = output
        self._files, printed = destinations(
            (("--output", args.output, as_json), ("--hdr", args.hdr, _as_hgrm), ("--report", args.report, _as_page))
        )
        self._printed = as_json if args.json else printed

    @property
    def for_programs(self) -> bool:
        """Whether a document is wanted even of a run that never began."""
        return self._args.json or self._args.json_lines or self._args.output is not None

    def tell(self, document: Document) -> int:
        """Check the thresholds, write everything that was asked for, and return the exit status."""
        document["thresholds"] = [threshold.check(document) for threshold in self._args.fail_if or ()]
        interrupted = document["exit_status"] in (HUNG_UP, INTERRUPTED, TERMINATED)
        if any(threshold["failed"] for threshold in document["thresholds"]) and not interrupted:
            document["exit_status"] = THRESHOLD
        status: int = document["exit_status"]
        for file, text in self._files:
            status = max(status, file.write(text(document)))
        if self._args.json_lines:
            self._output.line(json.dumps({"event": "end", "data": document}, allow_nan=False), flush=True)
        else:
            self._output.text((self._printed or _as_text)(document))
        if self._printed or self._args.json_lines:
            found = verdict(document)
            if found.tone != GOOD:
                complain("echo-client", str(found), status)
        return status


def merge_files(args: argparse.Namespace, output: Output) -> int:
    """Report the sum of the results in the files that --merge names, and return the exit status."""
    from echopair.measure.merge import caveats, merge

    documents = []
    for path in args.merge:
        try:
            with open(path, encoding="utf-8") as file:
                whole, other = _bounded(int), _bounded(float)
                documents.append(json.load(file, parse_int=whole, parse_float=other, parse_constant=other))
        except OSError as error:
            return complain("echo-client", f"cannot read {path}: {reason(error)}", USAGE)
        except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, nested without end
            return complain("echo-client", f"{path} is not a result of echo-client: {error}", USAGE)
    for path, document in zip(args.merge, documents, strict=True):
        if documents.count(document) > 1:
            return complain("echo-client", f"{path} holds a run that is listed twice: leave one out", USAGE)
    try:
        document = merge(documents, args.merge)
    except ValueError as error:
        return complain("echo-client", str(error), USAGE)
    for caveat in caveats(documents):
        complain("echo-client", caveat, OK)
    results = Results(args, output)
    with EventLoop() as loop:
        # A report that is begun is written whole; a later second signal ends a write that hangs.
        heed(loop, loop.stop)
        return results.tell(document)


def _bounded(read: Callable[[str], float]) -> Callable[[str], float]:
    """Return `read`, limited to numbers that can be added and divided: not NaN, and far below a float's maximum."""

    def number(text: str) -> float:
        if not abs(float(text)) < LARGEST:
            raise ValueError(f"{reprlib.repr(text)} is not a number, or too large")
        return read(text)

    return number


def timestamp(seconds: float) -> str:
    """Return a moment, in seconds of the epoch, as documents have it: UTC, with milliseconds (RFC 3339)."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def as_json(document: Document) -> str:
    """Return the document as JSON, on one line (RFC 8259: neither NaN nor Infinity)."""
    return json.dumps(document, allow_nan=False) + "\n"


def _as_hgrm(document: Document) -> str:
    from echopair.measure.hgrm import hgrm

    return hgrm(loaded(document["histograms"]["response"]))


def _as_page(document: Document) -> str:
    from echopair.measure.page import page

    return page(document)


def _as_text(document: Document) -> str:
    from echopair.measure.report import report

    return report(
        document,
        width=min(columns(1), 100),
        colour=bool(sys.stdout) and wants_colour(sys.stdout),
        encoding=getattr(sys.stdout, "encoding", None),
    )
