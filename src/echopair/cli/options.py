"""Options: what a user writes on the command line or sets in the environment, turned into checked values.

`argparse` does the parsing; here are the quantities, the environment (`ECHO_SERVER_PORT` for `--port` and so on; the
command line wins) and errors that take one line.
"""

from __future__ import annotations

import argparse
import math
import re
import reprlib
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence

from echopair import __version__
from echopair.address import split_host_port

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would take a tenth of the start
    from typing import Any, NoReturn

SIZE_UNITS = {"": 1, "K": 1024, "KiB": 1024, "M": 1024**2, "MiB": 1024**2, "G": 1024**3, "GiB": 1024**3}
COUNT_UNITS = {"": 1, "k": 1000, "m": 1000**2}
DURATION_UNITS = {"": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

MOST = 10**18  # of what is counted; more is a typing error, and beyond what floats and the system take

TRUE = ("1", "yes", "true", "on")
FALSE = ("0", "no", "false", "off")

# What Kubernetes and Docker set for a service named like the command: ECHO_SERVER_PORT=tcp://10.0.0.1:7
SERVICE_LINK = r"(tcp|udp|sctp)://[0-9a-f.:\[\]]+:[0-9]+"

# Options of other programs, and what they ask for
NOT_YET = {"-u": "UDP", "--udp": "UDP", "-U": "Unix sockets", "--unix": "Unix sockets", "--tls": "TLS"}


class UsageError(Exception):
    """A mistake on the command line; says which part is wrong, and what to write instead."""


class Answer(Exception):  # noqa: N818 - it is no error
    """The help or the version, which the user asked for; the command does nothing else."""


def size(least: int = 0) -> Callable[[str], int]:
    """Return a reader of sizes: bytes, or with K, M or G (1024)."""
    return _quantity("a size", SIZE_UNITS, "a number of bytes, or with K, M, G (1024), like 64K", least, whole=True)


def count(least: int = 0) -> Callable[[str], int]:
    """Return a reader of counts: a number, or with k or m (1000)."""
    return _quantity("a number", COUNT_UNITS, "a whole number, or with k, m (1000), like 10k", least, whole=True)


def duration(least: float = 0) -> Callable[[str], float]:
    """Return a reader of durations: seconds, or with us, ms, s, m or h; the value is in seconds."""
    return _quantity(
        "a duration", DURATION_UNITS, "seconds, or with us, ms, s, m, h, like 500ms, or never", least, whole=False
    )


def rate() -> Callable[[str], float]:
    """Return a reader of rates: a number a second, or with k or m (1000)."""
    return _quantity("a rate", COUNT_UNITS, "a number a second, or with k, m (1000), like 20k", 0.001, whole=False)


def percentiles(text: str) -> tuple[str, ...]:
    """Read percentiles, like 50,99,99.9; they are returned as written, in order."""
    written = {percent.strip() for percent in text.split(",")}
    for percent in written:
        if not re.fullmatch(r"100|[0-9]{1,2}(\.[0-9]{1,9})?", percent, re.ASCII) or not float(percent):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a list of percentiles (above 0, up to 100): give it like 50,90,99.9"
            )
    return tuple(sorted(written, key=float))


def moment(text: str) -> float:
    """Read a moment, like 2026-01-31T12:00:00Z (ISO 8601; without a zone: local) or @1769860800; in epoch seconds."""
    try:
        if text.startswith("@"):
            seconds = float(text[1:])
        else:
            from datetime import datetime

            seconds = datetime.fromisoformat(text).timestamp()
        if not math.isfinite(seconds):
            raise ValueError
        return seconds
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a moment: give it like 2026-01-31T12:00:00Z, or in seconds like @1769860800"
        ) from None


def each(read: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Return a reader of a list: its parts, separated by commas, are read by `read`."""
    return lambda text: [read(part.strip()) for part in text.split(",")]


def checked(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return `read` so that argparse shows what its ValueError says, not only that there was one."""

    def reader(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return reader


@checked
def host(text: str) -> str:
    """Read a host: a name or an address, an IPv6 address also in brackets."""
    if re.fullmatch("[0-9]{1,5}", text):
        raise ValueError(f"{text!r} looks like a port: write --port {text}")
    bare = text.count(":") > 1 and re.fullmatch(r"[0-9a-f:.]+(%.+)?", text, re.IGNORECASE)
    name, port = split_host_port(f"[{text}]" if bare else text)
    if port is not None:
        raise ValueError(f"{text!r} is a host and a port: give the port with --port")
    if not name:
        raise ValueError("the host is empty: give a name or an address")
    return name


def add_family(group: argparse._ArgumentGroup) -> None:
    """Add `-4` and `-6`."""
    either = group.add_mutually_exclusive_group()
    both, four, six = socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6
    either.add_argument("-4", "--ipv4", dest="family", action="store_const", const=four, default=both, help="IPv4 only")
    either.add_argument("-6", "--ipv6", dest="family", action="store_const", const=six, default=both, help="IPv6 only")


def _quantity(what: str, units: Mapping[str, float], advice: str, least: float, *, whole: bool) -> Callable[[str], Any]:
    spelled = {unit.lower(): scale for unit, scale in units.items()}

    def read(text: str) -> Any:
        written = text.strip().lower()
        if written == "never" and units is DURATION_UNITS:
            return float("inf")
        number = written.rstrip("abcdefghijklmnopqrstuvwxyz ")
        unit = written[len(number) :].strip()
        integer, _, fraction = number.partition(".")
        if not ((integer + fraction).isdigit() and number.isascii() and number[-1] != "." and unit in spelled):
            raise ValueError(f"{text!r} is not {what}: give {advice}")
        value = float(number) * spelled[unit]
        if value > MOST and units is not DURATION_UNITS:
            raise ValueError(f"{reprlib.repr(text)} is too large: give at most {MOST:,}")
        if whole:  # in integers, for a float has but 53 bits
            value, rest = divmod(int(integer + fraction) * spelled[unit], 10 ** len(fraction))
            if rest:
                raise ValueError(f"{text!r} is not a whole number")
        if value < least:
            raise ValueError(f"{text!r} is too small: give at least {least:g}")
        return value

    return checked(read)


@checked
def probability(text: str) -> float:
    """Read a probability: from 0 to 1, or in per cent."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r} is not a probability: give a number from 0 to 1, or per cent, like 0.1%")
    return value


@checked
def delays(text: str) -> tuple[tuple[float, float], ...]:
    """Read a distribution of delays: `5ms`, or `5ms:90,200ms:10`, where the second figures are per cent."""
    read, found = duration(), []
    for part in text.split(","):
        spelled, colon, share = part.partition(":")
        try:
            found.append((read(spelled), float(share) if colon else 100.0))
        except argparse.ArgumentTypeError as error:
            raise ValueError(str(error)) from None
        except ValueError:
            raise ValueError(f"{part!r} is not a delay: give a duration and per cent, like 5ms:90") from None
    if not (sum(share for _, share in found) == 100 and all(share >= 0 for _, share in found)):
        raise ValueError(f"{text!r} does not add up to 100 %: say how often each delay is, like 5ms:90,200ms:10")
    if any(seconds == float("inf") for seconds, _ in found):
        raise ValueError("a delay that never ends is --stall-after 0")
    return tuple(found)


class Collect(argparse.Action):
    """Collect a repeatable option's values; the first one given replaces the default, as "append" would not."""

    def __call__(
        self, _parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _option: str | None = None
    ) -> None:
        """Add one value, or each value of a list."""
        before = getattr(namespace, self.dest)
        added = values if isinstance(values, list) else [values]
        setattr(namespace, self.dest, added if before is self.default else [*before, *added])


class Help(argparse.RawDescriptionHelpFormatter):
    """Help with every option's default behind it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(shutil.get_terminal_size().columns, 100) - 2)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.nargs == 0 or not action.option_strings:
            return action.help
        shown = " ".join(action.default) if isinstance(action.default, list) else str(action.default)
        return f"{action.help} (default: {shown.replace('%', '%%')})"


class _Unusable:
    """The default of an option whose environment variable makes no sense: an error only if it is needed."""

    def __init__(self, complaint: str) -> None:
        self.complaint = complaint

    def __str__(self) -> str:
        return self.complaint


class Parser(argparse.ArgumentParser):
    """A parser for one command that raises UsageError instead of exiting, and reads the environment too."""

    def __init__(self, prog: str, description: str, examples: str, habits: Mapping[str, str]) -> None:
        """Make a parser; `habits` has an answer for each option of other programs that people try."""
        variable = prog.upper().replace("-", "_")
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"{examples}\n\nEvery option has an environment variable, such as {variable}_PORT for --port;\n"
            "the command line wins. Sizes take K M G (1024), counts k m (1000), durations\n"
            "us ms s m h or never.",
            formatter_class=Help,
            allow_abbrev=False,
            add_help=False,
        )
        self._variable = variable
        self._habits = {
            option: f"{prog} supports only plain TCP so far, not {what}" for option, what in NOT_YET.items()
        }
        self._habits |= habits
        self._set: dict[str, tuple[str, Any]] = {}  # by destination: the variable and its value

    def parse(
        self,
        argv: Sequence[str] | None,
        environ: Mapping[str, str],
        settle: Callable[[argparse.Namespace], object] = lambda _namespace: None,
    ) -> argparse.Namespace:
        """Return the options' values; raises UsageError.

        `settle` may set options from other arguments; for these options the environment does not matter.
        """
        about = self.add_argument_group("about")
        about.add_argument("-h", "--help", action="help", help="show this help and exit")
        about.add_argument(
            "--version", action="version", version=f"{self.prog} {__version__}", help="show the version and exit"
        )
        self._take_defaults_from(environ)
        mixed = self._get_positional_actions()  # without any there is nothing to mix, and half the work
        namespace, unknown = self.parse_known_intermixed_args(argv) if mixed else self.parse_known_args(argv)
        if unknown:
            raise UsageError(self._unknown(unknown[0]))
        settle(namespace)
        for value in vars(namespace).values():
            if isinstance(value, _Unusable):
                raise UsageError(value.complaint)
        return namespace

    def variables(self, namespace: argparse.Namespace) -> list[str]:
        """Return the environment's variables that have set an option in `namespace`."""
        return [variable for dest, (variable, value) in self._set.items() if getattr(namespace, dest) is value]

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, in place of argparse's exit."""
        if message.endswith("expected one argument"):
            message += " (one that begins with - is written --option=-value)"
        raise UsageError(message.removeprefix("argument "))

    def _print_message(self, message: str, file: object = None) -> NoReturn:  # noqa: ARG002 - argparse has it
        """Raise Answer: argparse would print to a stream that may lose a part of the text."""
        raise Answer(message)

    def _take_defaults_from(self, environ: Mapping[str, str]) -> None:
        for action in self._actions:
            name = next((option for option in action.option_strings if option.startswith("--")), "")
            variable = f"{self._variable}_{name[2:].replace('-', '_').upper()}"
            text = environ.get(variable, "")
            if name in ("", "--help", "--version") or not text or re.fullmatch(SERVICE_LINK, text, re.IGNORECASE):
                continue
            try:
                value = self._from_text(action, text)
            except (ValueError, argparse.ArgumentTypeError) as error:
                value = _Unusable(f"{variable}: {error}")
            self.set_defaults(**{action.dest: value})
            self._set[action.dest] = variable, value

    def _from_text(self, action: argparse.Action, text: str) -> Any:
        if action.nargs == 0:
            if text.lower() not in TRUE + FALSE:
                raise ValueError(f"{text!r} is neither yes nor no")
            return action.const if text.lower() in TRUE else self.get_default(action.dest)
        value = action.type(text) if callable(action.type) else text
        if action.choices is not None and value not in action.choices:
            raise ValueError(f"{text!r} is not one of {', '.join(map(str, action.choices))}")
        several = isinstance(action, Collect) or action.nargs == "+"
        return [value] if several and not isinstance(value, list) else value

    def _unknown(self, argument: str) -> str:
        if not argument.startswith("-") or argument == "-":
            hint = ": give a port with --port" if argument.isdigit() else ""
            return f"unexpected argument {argument!r}{hint}"
        written = argument.partition("=")[0]
        if not written.startswith("--"):  # too short to guess what is meant
            written = written.rstrip("0123456789")
        if written in self._habits:
            return f"{written}: {self._habits[written]}"
        hint = ""
        if written.startswith("--"):
            import difflib

            options = [option for action in self._actions for option in action.option_strings]
            names = [option[2:] for option in options if option.startswith("--")]
            close = [name for name in names if name.startswith(written[2:])]
            close += difflib.get_close_matches(written[2:], names, 1)
            hint = f" (did you mean --{close[0]}?)" if close else ""
        return f"unknown option {argument}{hint}"
