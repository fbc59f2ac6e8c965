"""The options of `echo-client`, read and checked against one another."""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import stat
import sys
import time
from collections.abc import Sequence

from echopair.address import format_address, local_address, parse_port, split_host_port
from echopair.cli import options
from echopair.cli.command import raise_descriptor_limit
from echopair.cli.forking import check_possible, workers
from echopair.client.echo import CONNECT_TIMEOUT, TIMEOUT
from echopair.client.session import FULL, LENGTH, NONE

EXAMPLES = """\
examples:
  echo-client                         two messages to localhost:12345 and back
  echo-client --conns 2 -m hello      say hello on two connections
  echo-client -c 50 -n 100k -s 4K     100,000 messages of 4 KiB, 50 connections
  echo-client -c 50 -d 10s -r 20k     20,000 messages/s for 10 s: honest latency
  echo-client -d 5s --fail-if 'p99>20ms' --report run.html
  echo-client --check '[::1]:7'       conformance: named cases, pass or fail
  echo-client '[::1]:7' - <in >out    send a file, write what comes back
  echo-client --loopback --conns 2    starts its own echo server"""

HABITS = {  # options that users of nc, ab, wrk and iperf try
    "-k": "connections stay open anyway; --reconnect-every 1 makes one for each message",
    "-l": "echo-client connects; echo-server listens",
    "-t": "use -d for a duration, --timeout for a time limit",
    "-z": "echo-client always sends something: leave out -z",
}
MESSAGES = ["This is the first message", "This is the second message"]
PERCENTILES = "50,90,99,99.9"
CHECK_TIMEOUT = 3.0  # seconds; a check is to be over soon
DESCRIPTORS_APART = 16  # needed beside those of connections: standard streams, the selector, the loop's own

# What only a generated load has; to ask for one of these is to ask for such a load.
MEASURED = {
    "size": "-s",
    "count": "-n",
    "seed": "--seed",
    "workers": "--workers",
    "duration": "-d",
    "rate": "-r",
    "warmup": "--warmup",
    "connect_rate": "--connect-rate",
    "reconnect_every": "--reconnect-every",
    "start_at": "--start-at",
    "percentiles": "--percentiles",
    "interval": "-i",
    "json": "-J",
    "json_lines": "--json-lines",
    "output": "-o",
    "hdr": "--hdr",
    "report": "--report",
    "fail_if": "--fail-if",
}
LOAD = (
    "-s",
    "-n",
    "--seed",
    "--workers",
    "-d",
    "-r",
    "--warmup",
    "--connect-rate",
    "--reconnect-every",
    "--start-at",
    "-i",
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, with what was left out filled in; `measured` says whether they ask for a load.

    Raises UsageError.
    """
    options_parser = parser()
    args = options_parser.parse(argv, os.environ, _take_target)
    try:
        _check(args)
    except options.UsageError as error:
        variables = ", ".join(options_parser.variables(args))
        raise options.UsageError(f"{error} (the environment sets {variables})" if variables else str(error)) from None
    return args


def _take_target(args: argparse.Namespace) -> None:
    """Take the positional arguments: `-`, and HOST:PORT, which overrides --host and --port."""
    if "" in args.target:
        raise options.UsageError("HOST:PORT is empty: give a name or an address, or leave it out")
    args.pipe = "-" in args.target
    target, *others = [each for each in args.target if each != "-"] or [""]
    if others:
        hint = f": write {format_address((target, others[0]))}" if others[0].isdigit() else ""
        raise options.UsageError(f"unexpected argument {others[0]!r}{hint}")
    try:
        host, port = split_host_port(target)
    except ValueError as error:
        raise options.UsageError(str(error)) from None
    args.target = target
    args.host = host or args.host
    args.port = args.port if port is None else port
    if args.loopback or args.merge:  # HOST:PORT is not used
        args.host, args.port = "localhost", 0


def _check_outputs(args: argparse.Namespace) -> None:
    """Make sure that no output overwrites another: each file gets one of them, and so does standard output."""
    if args.output == "-":
        args.json, args.output = True, None
    if args.json and args.json_lines:
        raise options.UsageError("--json prints one document and --json-lines many: leave out one")
    files = {"-o": args.output, "--hdr": args.hdr, "--report": args.report, "--junit": args.junit}
    printed = ["--json"] * args.json + ["--json-lines"] * args.json_lines
    printed += [f"{option} -" for option, path in files.items() if path == "-"]
    if len(printed) > 1:
        raise options.UsageError(f"standard output takes one of {', '.join(printed)}: name a file for the others")
    taken = {_identity(path): f"the file of --merge {path}" for path in args.merge or ()}
    taken |= {_identity(descriptor): name for descriptor, name in ((1, "standard output"), (2, "standard error"))}
    for option, path in files.items():
        if path in (None, "-") or (identity := _identity(path)) is None:
            continue
        if identity in taken:
            raise options.UsageError(
                f"{option} {path} would overwrite {taken[identity]}: give each file a name of its own"
            )
        taken[identity] = f"the file of {option} {path}"


def _identity(path: str | int) -> object:
    """Return the same value for all names of a file; None if it is no regular file, like a terminal or a pipe."""
    try:
        found = os.stat(path)
    except OSError:  # does not exist yet
        return os.path.realpath(path) if isinstance(path, str) else None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def _check(args: argparse.Namespace) -> None:
    _check_outputs(args)
    asked = [option for name, option in MEASURED.items() if getattr(args, name) not in (None, False)]
    args.check = args.check or args.check_list or bool(args.check_only or args.check_skip)
    args.check = args.check or args.thorough or args.tap or args.junit is not None
    args.timeout = args.timeout or (CHECK_TIMEOUT if args.check else TIMEOUT)
    args.measured = bool(asked)
    if args.check:
        _check_check(args, asked)
    elif args.merge:
        _check_merge(args)
    else:
        _check_target(args)
        _check_contents(args, asked)
        _check_load(args)
    args.percentiles = args.percentiles or options.percentiles(PERCENTILES)


def _check_check(args: argparse.Namespace, asked: Sequence[str]) -> None:
    from echopair.cli.checking import chosen

    others = [option for option in asked if option not in ("--seed", "-J", "-o", "--report")]
    others += ["-m"] * bool(args.message) + ["-"] * args.pipe + ["-c"] * (args.conns > 1) + ["-w"] * (args.pipeline > 1)
    others += ["--verify"] * (args.verify != FULL) + ["--merge"] * bool(args.merge)
    others += ["--all-addresses"] * args.all_addresses
    if others:
        raise options.UsageError(f"--check says itself what is sent: leave out {', '.join(others)}")
    chosen(args)
    args.conns = 64  # more than are open at once
    _check_target(args)


def _check_merge(args: argparse.Namespace) -> None:
    load = [option for name, option in MEASURED.items() if option in LOAD and getattr(args, name) is not None]
    target = args.target or args.loopback or args.source or args.all_addresses
    if target or args.message or args.pipe or args.conns > 1 or load:
        raise options.UsageError("--merge reads results: leave out what to connect to and what to send")


def _check_target(args: argparse.Namespace) -> None:
    if args.target and args.loopback:
        raise options.UsageError(f"--loopback serves itself: leave {args.target} out")
    if args.source:
        if args.family not in (socket.AF_UNSPEC, args.source[0]):
            raise options.UsageError(f"--source {args.source[1][0]} is not of the family that -4 or -6 selects")
        args.family = args.source[0]
    if args.port == 0 and not args.loopback:
        raise options.UsageError("port 0 cannot be connected to: give the port that the server listens on")
    args.workers = min(args.workers or 1, args.conns)
    if args.workers > 1:
        check_possible()
    here = -(-args.conns // args.workers)  # a process has its share of them, and the first what it serves itself
    needed = here + args.conns * args.loopback + 2 * (args.workers - 1) + DESCRIPTORS_APART
    limit = raise_descriptor_limit()
    if needed > limit:
        raise options.UsageError(
            f"--conns {args.conns:,} needs {needed:,} descriptors, and this process may have {limit:,}: "
            "raise the limit with ulimit -n, or use fewer"
        )


def _check_contents(args: argparse.Namespace, asked: Sequence[str]) -> None:
    generating = ", ".join(asked)
    if args.pipe and (asked or args.message or args.conns > 1):
        others = [*asked, *["-m"] * bool(args.message), *["-c"] * (args.conns > 1)]
        raise options.UsageError(f"- sends standard input on one connection: leave out {', '.join(others)}")
    if args.message and asked:
        raise options.UsageError(f"-m says what to send, {generating} goes with generated messages: leave out one")
    if args.message and not all(args.message):
        raise options.UsageError("-m: an empty message cannot come back: give a text")
    if args.pipe and (sys.stdin is None or sys.stdout is None):
        raise options.UsageError("- needs standard input and standard output, and one is closed")
    args.message = args.message or MESSAGES


def _check_load(args: argparse.Namespace) -> None:
    if args.rate and args.duration is None and args.count is None:
        raise options.UsageError("-r needs an end: give -d (a duration) or -n (a number of messages)")
    lag = [each.expression for each in args.fail_if or () if each.figure == "schedule_lag"]
    if lag and not args.rate:
        raise options.UsageError(f"--fail-if {lag[0]!r}: only an open loop has a schedule lag: add --rate")
    if args.start_at is not None and args.start_at < time.time():
        raise options.UsageError("--start-at is in the past: give a time in the future")
    for name in ("warmup", "interval"):
        if getattr(args, name) == float("inf"):
            raise options.UsageError(f"--{name} must be finite: give a time")
    args.size = args.size or 1024
    if args.duration is None:
        args.count = args.count or args.conns
    args.seed = secrets.randbits(32) if args.seed is None else args.seed


def parser() -> options.Parser:
    """Return the parser of the command line."""
    # fmt: off
    parser = options.Parser(
        "echo-client",
        "Send bytes to an echo server and check that exactly those bytes come back.\n\n"
        "By default it shows a short conversation. If an option asks for a load\n"
        "(-s -n -d -r) or a report, it sends generated messages and times them.",
        EXAMPLES,
        HABITS,
    )
    group = parser.add_argument_group("where to connect")
    add = group.add_argument
    add("target", metavar="HOST:PORT", nargs="*",
        help="the server; [IPV6]:PORT for an IPv6 address. "
             "Add - to send standard input and write the echo to standard output")
    add("--host", type=options.host, default="localhost", help="the server's name or address")
    add("-p", "--port", type=options.checked(parse_port), default=12345, help="its port")
    options.add_family(group)
    add("--source", metavar="ADDRESS", type=options.checked(local_address),
        help="connect from this address of this machine (default: the system chooses)")
    add("--all-addresses", action="store_true",
        help="spread the connections over all addresses of the server that answer, not only the first")
    add("--loopback", action="store_true", help="start an echo server inside this process, on a free port")
    add("--wait", metavar="S", type=options.duration(), default="0s",
        help="wait up to S for the server: until its name resolves and it echoes a probe of one byte")

    add = parser.add_argument_group("what to send").add_argument
    add("-c", "--conns", metavar="N", type=options.count(1), default=1, help="connections at once")
    add("-m", "--message", metavar="TEXT", action=options.Collect,
        help="send TEXT on every connection; may be repeated (default: two short messages)")
    add("-s", "--size", metavar="BYTES", type=options.size(1), help="generate messages of this size (default: 1K)")
    add("-n", "--count", metavar="N", type=options.count(1),
        help="generate N messages in all, spread over the connections (default: one on each)")
    add("--seed", metavar="N", type=options.count(), help="seed of the generated data (default: random, printed)")
    add("--workers", metavar="N", type=options.checked(workers),
        help="spread the connections over N processes; auto: one per processor (default: 1)")
    add("-w", "--pipeline", metavar="N", type=options.count(1), default=1,
        help="keep N messages in flight on each connection")

    add = parser.add_argument_group("how long, how fast").add_argument
    add("-d", "--duration", metavar="S", type=options.duration(0.001),
        help="send for S, then wait up to --timeout for the last echoes; a broken connection is replaced")
    add("-r", "--rate", metavar="N", type=options.rate(),
        help="open loop: N messages a second in all, each due at a time fixed in advance "
             "(default: closed loop, the next message is sent when an echo is back)")
    add("--warmup", metavar="S", type=options.duration(), help="first send for S without measuring (default: 0s)")
    add("--start-at", metavar="TIME", type=options.moment,
        help="connect, then begin at TIME: 2026-01-31T12:00:00Z, or @SECONDS of the epoch (default: at once)")
    add("--connect-rate", metavar="N", type=options.rate(),
        help="begin N connections a second (default: as fast as they are made)")
    add("--reconnect-every", metavar="N", type=options.count(1),
        help="close and connect again after N messages; 1: connect, echo, close (default: never)")

    add = parser.add_argument_group("what to check").add_argument
    add("--verify", metavar="WHAT", choices=[FULL, LENGTH, NONE], default=FULL,
        help="full: compare every byte; length: only count them; none: check nothing")
    add("--timeout", metavar="S", type=options.duration(0.001),
        help="fail a connection after S without a byte "
             f"(default: {TIMEOUT:g}s; with --check {CHECK_TIMEOUT:g}s)")
    add("--connect-timeout", metavar="S", type=options.duration(0.001), default=f"{CONNECT_TIMEOUT:g}s",
        help="give up connecting to an address after S")
    add("--fail-if", metavar="EXPR", action=options.Collect, type=options.each(options.checked(_threshold)),
        help="exit with 99 if the condition is met, like 'p99>20ms', 'errors>0.1%%', 'not_sent>0', 'rate<1000'; "
             "may be repeated")

    add = parser.add_argument_group("conformance").add_argument
    add("--check", action="store_true",
        help="run named test cases and report which fail; they need less than 48 MiB and 300 connections, "
             "51 at once, and about 10s each at most")
    add("--thorough", action="store_true",
        help="check with the long cases too: up to two minutes, 384 MiB and 1,400 connections")
    add("--check-only", metavar="NAME", action=options.Collect, help="check only this case; may be repeated")
    add("--check-skip", metavar="NAME", action=options.Collect, help="leave out this case; may be repeated")
    add("--check-list", action="store_true", help="list the cases and exit")
    add("--tap", action="store_true", help="check, and print TAP on a terminal too, as to a pipe")
    add("--junit", metavar="FILE", help="check, and also write the outcome to FILE as JUnit XML")

    add = parser.add_argument_group("what to report").add_argument
    add("--percentiles", metavar="LIST", type=options.percentiles,
        help=f"report these percentiles of latencies (default: {PERCENTILES})")
    add("-i", "--interval", metavar="S", type=options.duration(0.01),
        help="print a line on standard error every S (default: no lines; JSON and page have intervals of 1s)")
    add("--no-progress", action="store_true", help="show no live meter on a terminal")
    add("-J", "--json", action="store_true", help="print the result as one JSON document instead of text")
    add("--json-lines", action="store_true", help="print events as they happen, one line of JSON each")
    add("-o", "--output", metavar="FILE",
        help="also write the JSON document to FILE; any output FILE may be -, which prints it instead of the report")
    add("--hdr", metavar="FILE", help="write the response times to FILE, for HdrHistogram's plotter (.hgrm)")
    add("--report", metavar="FILE", help="write the report as a page to FILE (.html)")
    add("--merge", metavar="FILE", nargs="+", help="add up the JSON documents of several runs and report the sum")
    # fmt: on
    return parser


def _threshold(text: str) -> object:
    from echopair.measure.threshold import Threshold

    return Threshold.parse(text)
