"""The client's runs that are not measured: a conversation that is shown, and a pipe."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from echopair.address import Address, tell_attempts
from echopair.cli.command import FAILED, OK, Output, complain
from echopair.cli.reaching import Reach
from echopair.cli.streams import Writer
from echopair.client.echo import EchoClient
from echopair.client.pipe import Pipe
from echopair.client.session import FULL, LENGTH, NONE, Session
from echopair.connection import Connection
from echopair.loop import EventLoop
from echopair.text import count, duration, printable, size

FAILURES_SHOWN = 10


@dataclass(slots=True, eq=False)
class Talk(Session):
    """A session that shows the conversation, a line an event."""

    show: Callable[[str, str], object] = print

    def start(self, connection: Connection) -> None:
        """Begin, on a connection just made."""
        failed = f" ({tell_attempts(self.failed_attempts)})" if self.failed_attempts else ""
        self.show("connected", f"to {connection.peer}{failed}")
        super(Talk, self).start(connection)

    def send_piece(self, connection: Connection, piece: bytes) -> None:
        """Send one message."""
        self.show("sent", f"{count(len(piece), 'byte')}  {printable(piece)}")
        super(Talk, self).send_piece(connection, piece)

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Compare what came back, and go on."""
        self.show("received", f"{count(len(data), 'byte')}  {printable(data)}")
        super(Talk, self).data_received(connection, data)

    def finish(self) -> None:
        """Tell the owner that this was all."""
        self.show(
            "failed" if self.failure else "closed",
            f"{count(self.connection.bytes_sent, 'byte')} sent, {self.connection.bytes_received:,} received",
        )
        super(Talk, self).finish()


def converse(args: argparse.Namespace, output: Output) -> int:
    """Show a conversation and a line that sums it up; return the exit status."""
    messages = [os.fsencode(text) for text in args.message]
    width = len(str(args.conns))

    def show(who: str, what: str, detail: str) -> None:
        output.line(f"{who} {what:9}  {detail}")

    sessions = [
        Talk(
            number,
            iter(messages),
            pipeline=args.pipeline,
            verify=args.verify,
            show=partial(show, f"[{number:{width}}]"),
        )
        for number in range(1, args.conns + 1)
    ]
    with EventLoop() as loop:  # the loop handles signals until all is written
        status, line = _run(loop, args, output, sessions)
        output.line(line, flush=True)
    return status


def pipe(args: argparse.Namespace, output: Output) -> int:
    """Send standard input, write the echo to standard output, and return the exit status."""
    with EventLoop() as loop, closing(Writer(1)) as writer:
        session = Pipe(1, iter(()), verify=args.verify, sink=writer.descriptor, write=writer.write)
        status, line = _run(loop, args, output, [session])
        if status not in (OK, FAILED) or (sys.stderr and sys.stderr.isatty()):
            complain("echo-client", line, OK)
    return status


def _run(loop: EventLoop, args: argparse.Namespace, output: Output, sessions: Sequence[Session]) -> tuple[int, str]:
    """Run the sessions, complain of what failed, and return the exit status and the line that sums it up."""
    reach = Reach(loop, args)
    clients: list[EchoClient] = []
    started = loop.clock()

    def begin(addresses: list[Address]) -> None:
        nonlocal started
        started = loop.clock()
        client = EchoClient(
            loop,
            addresses,
            sessions,
            done=reach.done,
            timeout=args.timeout,
            connect_timeout=args.connect_timeout,
            source=args.source,
            all_addresses=args.all_addresses,
        )
        clients.append(client)
        output.failed = client.stop

    def stop() -> None:
        clients[0].stop()

    reach.run(begin, stop)
    seconds = loop.clock() - started
    sent, received = clients[0].bytes_moved() if clients else (0, 0)
    failures = [session.failure for session in sessions if session.failure]
    for failure in failures[:FAILURES_SHOWN]:
        complain("echo-client", failure.story, FAILED)
    if len(failures) > FAILURES_SHOWN:
        complain("echo-client", f"{count(len(failures) - FAILURES_SHOWN, 'more connection')} failed", FAILED)
    status = reach.status or (FAILED if failures else OK)
    return status, _summary(args, sessions, sent, received, seconds, interrupted=reach.status != OK)


def _summary(
    args: argparse.Namespace,
    sessions: Sequence[Session],
    sent: int,
    received: int,
    seconds: float,
    *,
    interrupted: bool,
) -> str:
    """Return the line that sums a run up: first whether every byte came back, then how fast."""
    failed = sum(session.failure is not None for session in sessions)
    who = count(len(sessions), "connection")
    if failed:
        line = f"{failed:,} of {who} failed, "
    else:
        line = "interrupted, " if interrupted else "" if args.pipe else f"{who}, "
    if not args.pipe:
        line += f"{count(sum(session.messages_echoed for session in sessions), 'message')} came back, "
    if failed or interrupted or args.verify != FULL:
        line += f"{count(sent, 'byte')} sent, {received:,} received"
        line += {FULL: "", LENGTH: ", contents unchecked", NONE: ", unchecked"}[args.verify]
    else:
        line += f"all {count(sent, 'byte')} intact"
    line += f", in {duration(seconds)}"
    return f"{line}, {size(received / seconds)}/s" if args.pipe and received else line
