"""What both commands do around their work: standard streams, logging, and errors as one line and an exit status."""

from __future__ import annotations

import io
import logging
import os
import stat
import sys
import time
from collections.abc import Callable, Sequence

from echopair.address import AddressError, explain
from echopair.cli.options import UsageError
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

LINES_PER_SECOND = 200  # in the log, of what peers cause; warnings are few and always shown

log = logging.getLogger(__name__)


class Output:
    """Standard output, for lines of text; when it takes no more, `failed` is called, once, and the rest is dropped."""

    def __init__(self, stream: TextIO | None) -> None:  # None where the shell says >&-
        self._stream = stream
        self.failure: OSError | None = None
        self.failed: Callable[[], object] = lambda: None

    def line(self, text: str, *, flush: bool = False) -> None:
        """Print one line, at once where `flush` is true."""
        self._write(text + "\n")
        if flush:
            self.flush()

    def text(self, text: str) -> None:
        """Print several lines, the last of them ended, at once."""
        self._write(text, flush=True)

    def flush(self) -> None:
        """Bring out what is buffered."""
        self._write("", flush=True)

    def _write(self, text: str, *, flush: bool = False) -> None:
        if self._stream is None or self.failure:
            return
        try:
            self._stream.write(text)
            if flush:
                self._stream.flush()
        except OSError as error:
            self.failure = error
            _point_at_null(self._stream.fileno())  # lest the interpreter complain of what is buffered as it exits
            self.failed()


def run(name: str, body: Callable[[Sequence[str] | None, Output], int], argv: Sequence[str] | None) -> int:
    """Run a command's `body` and return its exit status; what a user or a network can cause takes one line."""
    _open_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever peers and users write can be shown
    output = Output(sys.stdout)
    try:
        status = body(argv, output)
    except UsageError as error:
        return complain(name, f"{error}; see {name} --help", USAGE)
    except AddressError as error:
        return complain(name, str(error), FAILED)
    except OSError as error:  # out of descriptors before there is a connection to blame it on
        return complain(name, explain(error), FAILED)
    except KeyboardInterrupt:
        return complain(name, "interrupted", INTERRUPTED)
    except AttributeError as error:  # argparse, interrupted halfway, fails to tidy up after itself
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        return complain(name, "interrupted", INTERRUPTED)
    except SystemExit as done:  # --help and --version
        status = int(done.code or OK)
    output.flush()
    if output.failure and status == OK:
        status = complain(name, f"cannot write to standard output: {reason(output.failure)}", FAILED)
    return status


def complain(name: str, message: str, status: int) -> int:
    """Say what is wrong, in one line on standard error, and return `status`."""
    if sys.stderr:  # None where the shell says 2>&-, and then print would go to standard output
        try:
            print(f"{name}: {message}", file=sys.stderr)
        except OSError:
            pass  # there is nowhere left to say it; the status still tells
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


def open_anew(descriptor: int) -> int | None:
    """Open the pipe or terminal that `descriptor` is a second time, to write without blocking; None where that fails.

    O_NONBLOCK belongs to the open file description, which others share (fcntl(2)); one of our own is nobody's business.
    """
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        return None
    try:
        return os.open(f"/dev/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # /dev/fd is missing, or the terminal somebody else's
        return None


class Aside:
    """Standard error, for what is shown while a command works: whoever does not read it misses it."""

    def __init__(self) -> None:
        self._anew = open_anew(2) if sys.stderr is sys.__stderr__ and sys.stderr else None

    def write(self, text: str) -> None:
        """Write `text`, or as much of it as is taken at once."""
        try:
            if self._anew is not None:
                os.write(self._anew, text.encode(sys.stderr.encoding, "replace"))
            elif sys.stderr:
                sys.stderr.write(text)
                sys.stderr.flush()
        except OSError:
            pass  # full, or gone

    def close(self) -> None:
        """Give back what was opened."""
        if self._anew is not None:
            os.close(self._anew)
            self._anew = None


def configure_logging(level: int) -> None:
    """Log to standard error, one line an event, from `level` on; whoever does not read it keeps nobody waiting."""
    handler: logging.Handler = logging.StreamHandler() if sys.stderr else logging.NullHandler()
    anew = open_anew(2) if sys.stderr is sys.__stderr__ and sys.stderr else None
    if anew is not None:
        handler = ImpatientHandler(anew)
    handler.setFormatter(LineFormatter(colour=bool(sys.stderr) and wants_colour(sys.stderr)))
    handler.addFilter(LineLimit(LINES_PER_SECOND, time.monotonic))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.raiseExceptions = False  # a log that nobody can read any more is no reason to stop serving


class ImpatientHandler(logging.Handler):
    """Writes lines to a non-blocking descriptor; what that does not take is left out, and counted in the next line."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, or none."""
        line = self.format(record) + "\n"
        if self._left_out:
            line = f"({count(self._left_out, 'line')} left out, for nobody read them)\n{line}"
        try:
            os.write(self._descriptor, line.encode(errors="backslashreplace"))
            self._left_out = 0
        except OSError:
            self._left_out += 1


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
    """Return how wide the terminal at `descriptor` is; 80 where there is none. COLUMNS says otherwise (environ(7))."""
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


def _point_at_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)


def _open_standard_streams() -> None:
    """Point closed standard streams at the null device, lest a socket take their descriptor and get our prints."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _point_at_null(descriptor)
