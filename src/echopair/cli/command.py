"""What both commands do around their work: standard streams, logging, and errors as one line and an exit status."""

from __future__ import annotations

import logging
import os
import select
import sys
import time
from collections.abc import Callable, Sequence

from echopair.address import AddressError, explain
from echopair.cli.options import Answer, UsageError
from echopair.cli.streams import Aside, Writer, descriptor_of
from echopair.text import count, reason

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would take a tenth of the start
    from typing import TextIO

OK = 0
FAILED = 1  # the network or the echo
USAGE = 2
HUNG_UP = 129  # 128 + SIGHUP, as shells have it
INTERRUPTED = 130  # 128 + SIGINT
TERMINATED = 143  # 128 + SIGTERM

BUFFERED = 8 * 1024  # bytes of output written together
MAX_WAITING = 1024 * 1024  # bytes of events that wait for a slow reader; then the command waits, too
PATIENCE = 0.25  # seconds
LINES_PER_SECOND = 200  # in the log, of what peers cause; warnings are few and always shown

log = logging.getLogger(__name__)


class Output:
    """Standard output, for lines of text. When writing fails, `failed` is called once, and the rest is dropped.

    It writes bytes to the descriptor and counts how many were taken. Python's own stream loses what a
    non-blocking descriptor has no room for, with PYTHONUNBUFFERED even without an error.
    """

    def __init__(self, stream: TextIO | None) -> None:  # None where the shell says >&-
        self._stream = stream
        self._descriptor = descriptor_of(stream) if stream else None
        self._writer: Writer | None = None
        self._waiting = bytearray()  # to be written
        self._most = 0 if stream and stream.isatty() else BUFFERED
        self.failure: OSError | None = None
        self.failed: Callable[[], object] = lambda: None

    def line(self, text: str, *, flush: bool = False) -> None:
        """Print one line, at once if `flush` is true or a terminal shows it."""
        self._add(text + "\n")
        if flush or len(self._waiting) > self._most:
            self.flush()

    def text(self, text: str) -> None:
        """Print several lines, the last of them ended, at once."""
        self._add(text)
        self.flush()

    def event(self, text: str) -> None:
        """Print one line. Without room the line waits for the next call; beyond MAX_WAITING bytes the caller waits."""
        self._add(text + "\n")
        if self._descriptor is not None and len(self._waiting) <= MAX_WAITING:
            self._writer = self._writer or Writer(self._descriptor)
            self._write(self._writer.write)
        else:
            self.flush()

    def flush(self) -> None:
        """Write all that waits, as long as the reader takes."""
        self._write(self._write_or_wait)

    def close(self) -> None:
        """Close what was opened."""
        if self._writer:
            self._writer.close()

    def _add(self, text: str) -> None:
        if self._stream and not self.failure:
            self._waiting += text.encode(self._stream.encoding or "utf-8", "backslashreplace")

    def _write(self, write: Callable[[bytearray], int]) -> None:
        try:
            while self._waiting and (written := write(self._waiting)):
                del self._waiting[:written]
        except OSError as error:
            self.failure = error
            self._waiting.clear()
            self.failed()

    def _write_or_wait(self, data: bytearray) -> int:
        if self._descriptor is None:
            assert self._stream is not None  # noqa: S101 - nothing waits for it
            self._stream.write(data.decode(self._stream.encoding or "utf-8"))
            self._stream.flush()
            return len(data)
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:
                select.select([], [self._descriptor], [])


def run(name: str, body: Callable[[Sequence[str] | None, Output], int], argv: Sequence[str] | None) -> int:
    """Run a command's `body` and return its exit status; what a user or a network can cause takes one line."""
    _open_standard_streams()
    output = Output(sys.stdout)
    try:
        status = body(argv, output)
    except Answer as answer:
        output.text(str(answer))
        status = OK
    except UsageError as error:
        status = complain(name, f"{error}; see {name} --help", USAGE)
    except AddressError as error:
        status = complain(name, str(error), FAILED)
    except OSError as error:  # out of descriptors before there is a connection to blame it on
        status = complain(name, explain(error), FAILED)
    except KeyboardInterrupt:
        status = complain(name, "interrupted", INTERRUPTED)
    output.flush()
    output.close()
    if output.failure:
        message = f"cannot write to standard output: {reason(output.failure)}"
        status = complain(name, message, status or FAILED)
    return status


def complain(name: str, message: str, status: int) -> int:
    """Say what is wrong in one line on standard error, waiting up to PATIENCE for room, and return `status`."""
    aside = Aside()
    aside.write(f"{name}: {message}\n", PATIENCE)
    aside.close()
    return status


def raise_descriptor_limit() -> float:
    """Allow this process as many descriptors as the system lets it have, and return how many (getrlimit(2))."""
    try:
        import resource
    except ImportError:  # pragma: no cover - Windows has no such limit
        return float("inf")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # macOS calls it unlimited and does not mean it
            return soft
    return float("inf") if hard == resource.RLIM_INFINITY else hard


def configure_logging(level: int) -> None:
    """Log to standard error, one line per event, from `level` on."""
    handler = AsideHandler()
    handler.setFormatter(LineFormatter(colour=bool(sys.stderr) and wants_colour(sys.stderr)))
    handler.addFilter(LineLimit(LINES_PER_SECOND, time.monotonic))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.raiseExceptions = False  # a log that nobody can read any more is no reason to stop serving


class AsideHandler(logging.Handler):
    """Writes lines to standard error; a line that is not taken at once is left out, and counted in the next one."""

    def __init__(self) -> None:
        super().__init__()
        self._aside = Aside()
        self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, or none."""
        line = self.format(record) + "\n"
        if self._left_out:
            line = f"({count(self._left_out, 'line')} left out: nobody read them)\n{line}"
        self._left_out = 0 if self._aside.write(line) else self._left_out + 1

    def close(self) -> None:
        """Close what was opened."""
        self._aside.close()
        super().close()


class LineFormatter(logging.Formatter):
    """The time of day and the message; problems marked as such."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._time, self._problem = ("\x1b[2m{}\x1b[0m", "\x1b[33m{}\x1b[0m") if colour else ("{}", "{}")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time_of_day = self._time.format(f"{self.formatTime(record, '%H:%M:%S')}.{int(record.msecs):03d}")
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            message = self._problem.format(f"{record.levelname.lower()}: {message}")
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        return f"{time_of_day}  {message}"


class LineLimit(logging.Filter):
    """Lets at most `per_second` lines through in a second, and says how many it left out.

    Only what peers cause is counted: problems, and what the command itself has to say, always get through.
    """

    def __init__(self, per_second: int, clock: Callable[[], float]) -> None:
        super().__init__()
        self._per_second = per_second
        self._clock = clock
        self._since = clock()
        self._seen = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether `record` is to be logged."""
        if record.levelno >= logging.WARNING:
            return True
        ours = record.name.startswith(__package__)
        now = self._clock()
        if ours or now - self._since >= 1:
            left_out = self._seen - self._per_second
            self._since = now
            self._seen = 0
            if left_out > 0:
                log.warning("%s left out of this log", count(left_out, "line"))
        self._seen += not ours
        return self._seen <= self._per_second


def columns(descriptor: int) -> int:
    """Return how wide the terminal at `descriptor` is; 80 if there is none. COLUMNS overrides both (environ(7))."""
    try:
        return int(os.environ["COLUMNS"])
    except (KeyError, ValueError):
        pass
    try:
        return os.get_terminal_size(descriptor).columns or 80
    except OSError:
        return 80


def wants_colour(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal whose owner did not forbid colour (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def _open_standard_streams() -> None:
    """Point closed standard streams at the null device, so that no socket gets their descriptor and our output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest descriptor that is free, which is this one
