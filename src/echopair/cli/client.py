"""The `echo-client` command."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import socket
import stat
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from echopair.address import listen, parse_port, resolve, split_host_port
from echopair.cli import options
from echopair.cli.command import (
    FAILED,
    INTERRUPTED,
    OK,
    TERMINATED,
    Output,
    complain,
    configure_logging,
    open_anew,
    raise_descriptor_limit,
    run,
)
from echopair.client.echo import CONNECT_TIMEOUT, TIMEOUT, EchoClient
from echopair.client.pipe import PIPE_BUF, Pipe
from echopair.client.session import FULL, LENGTH, NONE, Session
from echopair.connection import READ_SIZE, Connection
from echopair.loop import SIGINT, SIGTERM, EventLoop
from echopair.server.drain import Drain
from echopair.server.echo import EchoServer
from echopair.text import count, duration, printable, size

EXAMPLES = """\
examples:
  echo-client                         two messages to localhost:12345 and back
  echo-client --conns 2 -m hello      say hello on two connections
  echo-client -c 50 -n 100k -s 4K     100,000 messages of 4 KiB, 50 connections
  echo-client [::1]:7 - <in >out      send a file, write what comes back
  echo-client --loopback --conns 2    serve myself: no server needed"""

MESSAGES = ["Message 1 from client.", "Message 2 from client."]
FAILURES_SHOWN = 10
DESCRIPTORS_APART = 16  # needed beside those of connections: standard streams, the selector, the loop's own


def main(argv: Sequence[str] | None = None) -> int:
    """Run `echo-client` with `argv`, by default the process's, and return its exit status."""
    return run("echo-client", _main, argv)


def _main(argv: Sequence[str] | None, output: Output) -> int:
    args = _parse(argv)
    configure_logging(logging.WARNING)
    with EventLoop() as loop, ExitStack() as stack:
        if args.loopback:
            server = EchoServer(loop, listen(["::1" if args.family == socket.AF_INET6 else "127.0.0.1"], 0))
            addresses = server.addresses
        else:
            addresses = resolve(args.host, args.port, args.family)
        if args.pipe:
            sessions: list[Session] = [_pipe(args, stack)]
        else:
            sessions = _sessions(args, output)
        client = EchoClient(
            loop,
            addresses,
            sessions,
            done=loop.stop,
            timeout=args.timeout,
            connect_timeout=args.connect_timeout,
        )
        stop = Stop(loop, client)
        output.failed = client.stop
        started = time.monotonic()
        loop.run()
        seconds = time.monotonic() - started
        if args.loopback:
            Drain(loop, server, 1, loop.stop)
            loop.run()
        return _report(args, output, client, seconds, stop.status)


class Stop:
    """What a signal to end does: the first ends the connections, the second does not wait for them."""

    def __init__(self, loop: EventLoop, client: EchoClient) -> None:
        self.status = OK
        self._loop = loop
        self._client = client
        loop.add_signal_handler(SIGINT, partial(self._stop, INTERRUPTED))
        loop.add_signal_handler(SIGTERM, partial(self._stop, TERMINATED))

    def _stop(self, status: int) -> None:
        if self.status:
            self._loop.stop()
        self.status = status
        self._client.stop()


@dataclass(slots=True, eq=False)
class Talk(Session):
    """A session that shows the conversation, a line an event."""

    show: Callable[[str, str], object] = print

    def start(self, connection: Connection) -> None:
        """Begin, on a connection just made."""
        self.show("connected", f"to {connection.peer}")
        Session.start(self, connection)  # super() does not know a class that slots made anew

    def send_piece(self, connection: Connection, piece: bytes) -> None:
        """Send one message."""
        self.show("sent", f"{count(len(piece), 'byte')}  {printable(piece)}")
        Session.send_piece(self, connection, piece)

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Compare what came back, and go on."""
        self.show("received", f"{count(len(data), 'byte')}  {printable(data)}")
        Session.data_received(self, connection, data)

    def finish(self) -> None:
        """Tell the owner that this was all."""
        self.show(
            "failed" if self.failure else "closed",
            f"{count(self.connection.bytes_sent, 'byte')} sent, {self.connection.bytes_received:,} received",
        )
        Session.finish(self)


def _pipe(args: argparse.Namespace, stack: ExitStack) -> Pipe:
    """Return a session between standard input and standard output."""
    sink = open_anew(1)
    never_blocks = sink is not None or stat.S_ISREG(os.fstat(1).st_mode)
    sink = os.dup(1) if sink is None else sink
    stack.callback(os.close, sink)
    return Pipe(1, iter(()), verify=args.verify, sink=sink, sink_limit=READ_SIZE if never_blocks else PIPE_BUF)


def _sessions(args: argparse.Namespace, output: Output) -> list[Session]:
    """Return a session for every connection, with generated messages or a conversation."""
    numbers = range(1, args.conns + 1)
    if args.message is None:
        from echopair.client.payload import Payload

        payload = Payload(args.size, args.seed, args.conns)
        whole, rest = divmod(args.count, args.conns)
        return [
            Session(
                number,
                payload.pieces(number, whole + (number <= rest)),
                pieces_per_message=payload.pieces_per_message,
                pipeline=args.pipeline,
                verify=args.verify,
                locate=payload.locate,
            )
            for number in numbers
        ]
    messages = [os.fsencode(text) for text in args.message]
    width = len(str(args.conns))
    return [
        Talk(
            number,
            iter(messages),
            pipeline=args.pipeline,
            verify=args.verify,
            show=partial(_show, output, f"[{number:{width}}]"),
        )
        for number in numbers
    ]


def _show(output: Output, who: str, what: str, detail: str) -> None:
    output.line(f"{who} {what:9}  {detail}")


def _report(args: argparse.Namespace, output: Output, client: EchoClient, seconds: float, status: int) -> int:
    """Print what became of the run and return the exit status, which is `status` unless that is OK."""
    failures = client.failures
    for failure in failures[:FAILURES_SHOWN]:
        complain("echo-client", failure.story, FAILED)
    if len(failures) > FAILURES_SHOWN:
        complain("echo-client", f"{count(len(failures) - FAILURES_SHOWN, 'more connection')} failed", FAILED)
    line = _summary(args, client, seconds, interrupted=status != OK)
    if not args.pipe:
        output.line(line)
    elif status or (sys.stderr and sys.stderr.isatty()):
        complain("echo-client", line, OK)
    return status or (FAILED if failures else OK)


def _summary(args: argparse.Namespace, client: EchoClient, seconds: float, *, interrupted: bool) -> str:
    """Return the line that sums a run up: first whether every byte came back, then how fast."""
    sent = sum(connection.bytes_sent for connection in client.connections)
    received = sum(connection.bytes_received for connection in client.connections)
    messages = sum(session.messages_echoed for session in client.sessions)
    who = count(args.conns, "connection")
    if client.failures:
        line = f"{len(client.failures):,} of {who} failed, "
    else:
        line = "interrupted, " if interrupted else "" if args.pipe else f"{who}, "
    line += "" if args.pipe else f"{count(messages, 'message')} came back, "
    if client.failures or interrupted or args.verify != FULL:
        line += f"{count(sent, 'byte')} sent, {received:,} received"
        line += {FULL: "", LENGTH: ", contents unchecked", NONE: ", unchecked"}[args.verify]
    else:
        line += f"all {count(sent, 'byte')} intact"
    line += f", in {duration(seconds)}"
    if args.message is None and received:
        line += "" if args.pipe else f"\n{messages / seconds:,.0f} messages/s"
        line += f", {size(received / seconds)}/s"
    return line if args.message or args.pipe else f"{line} (seed {args.seed})"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, checked against one another and with what was left out filled in."""
    args = _parser().parse(argv, os.environ)
    if args.target and args.loopback:
        raise options.UsageError(f"--loopback serves itself: leave {args.target} out")
    try:
        host, port = split_host_port(args.target or "")
    except ValueError as error:
        raise options.UsageError(str(error)) from None
    args.host = host or args.host
    args.port = args.port if port is None else port
    if args.port == 0 and not args.loopback:
        raise options.UsageError("port 0 cannot be connected to: give the port that the server listens on")
    generated = (args.size, args.count, args.seed) != (None, None, None)
    if args.pipe and (generated or args.message or args.conns > 1):
        raise options.UsageError("- sends standard input on one connection: leave out -m, -s, -n, --seed, -c")
    if args.message and generated:
        raise options.UsageError("-m says what to send; -s, -n and --seed generate it: leave out one or the other")
    if args.message and not all(args.message):
        raise options.UsageError("-m: an empty message has no byte to come back")
    needed = args.conns * (1 + args.loopback) + DESCRIPTORS_APART
    limit = raise_descriptor_limit()
    if needed > limit:
        raise options.UsageError(
            f"--conns {args.conns:,} needs {needed:,} descriptors, and this process may have {limit:,}: "
            "raise that with ulimit -n, or ask for fewer"
        )
    if args.pipe and (sys.stdin is None or sys.stdout is None):
        raise options.UsageError("- needs standard input and standard output, and one is closed")
    if not args.pipe and not generated:
        args.message = args.message or MESSAGES
    args.size = args.size or 1024
    args.count = args.count or args.conns
    args.seed = secrets.randbits(32) if args.seed is None else args.seed
    return args


def _parser() -> options.Parser:
    # fmt: off
    parser = options.Parser(
        "echo-client",
        "Send bytes to an echo server and check that exactly those bytes come back.\n\n"
        "Without -s, -n or --seed it shows the conversation; with one of them it sends\n"
        "generated messages and sums up.",
        EXAMPLES,
    )
    group = parser.add_argument_group("where to connect")
    add = group.add_argument
    add("target", metavar="HOST:PORT", nargs="?", help="the server; [IPV6]:PORT for an IPv6 address")
    add("--host", type=options.host, default="localhost", help="the server's name or address")
    add("-p", "--port", type=options.checked(parse_port), default=12345, help="its port")
    options.add_family(group)
    add("--loopback", action="store_true", help="serve myself: an echo server in this process, on a free port")

    add = parser.add_argument_group("what to send").add_argument
    add("-c", "--conns", metavar="N", type=options.count(1), default=1, help="connections at once")
    add("-m", "--message", metavar="TEXT", action=options.Collect,
        help="say this on every connection; may be repeated (default: two short ones)")
    add("-s", "--size", metavar="BYTES", type=options.size(1), help="generate messages of this size (default: 1K)")
    add("-n", "--count", metavar="N", type=options.count(1),
        help="generate N messages in all, shared out over the connections (default: one on each)")
    add("--seed", metavar="N", type=options.count(), help="generate these (default: at random, and printed)")
    add("-w", "--pipeline", metavar="N", type=options.count(1), default=1, help="messages in flight on a connection")
    add("-", dest="pipe", action="store_true", help="send standard input, write the echo to standard output")

    add = parser.add_argument_group("what to check").add_argument
    add("--verify", metavar="WHAT", choices=[FULL, LENGTH, NONE], default=FULL,
        help="full: every byte; length: how many come back; none: nothing")
    add("--timeout", metavar="S", type=options.duration(0.001), default=f"{TIMEOUT:g}s",
        help="fail a connection on which no byte moves for so long")
    add("--connect-timeout", metavar="S", type=options.duration(0.001), default=f"{CONNECT_TIMEOUT:g}s",
        help="give up connecting to an address after so long")
    # fmt: on
    return parser
