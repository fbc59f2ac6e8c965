"""The `echo-server` command.

It listens first and loads the server then: the kernel queues who connects meanwhile, and scripts that wait for the
first line wait half as long.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial

from echopair.address import format_address, listen, parse_port
from echopair.cli import options
from echopair.cli.command import FAILED, OK, Output, configure_logging, raise_descriptor_limit, run
from echopair.cli.forking import check_possible, heed, share, workers
from echopair.loop import READ, EventLoop
from echopair.text import count, duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from echopair.server.echo import EchoServer

EXAMPLES = """\
examples:
  echo-server                              localhost, port 12345
  echo-server --port 0                     a free port, shown in the first line
  echo-server --host 0.0.0.0 --host :: -q  every interface; log problems only"""

HABITS = {  # options that users of nc and iperf try
    "-k": "echo-server serves until it is stopped: leave out -k",
    "-l": "echo-server always listens: leave out -l",
    "-t": "use --idle-timeout or --drain-timeout for a time limit",
    "-z": "echo-server only listens; echo-client connects",
}
GRACE = 5.0  # seconds beyond the drain timeout that a worker may take
FAULTS = (
    "delay",
    "throttle",
    "chunk",
    "corrupt_rate",
    "drop_rate",
    "duplicate_rate",
    "reset_after",
    "close_after",
    "stall_after",
    "accept_delay",
    "no_half_close",
)

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `echo-server` with `argv`, by default the process's, and return its exit status."""
    return run("echo-server", _main, argv)


def _main(argv: Sequence[str] | None, output: Output) -> int:
    args = _parser().parse(argv, os.environ)
    configure_logging(args.log_level)
    if args.workers > 1:
        return _supervise(args, output)
    with EventLoop() as loop:
        listeners = listen(args.host, args.port, args.family, args.backlog, keepalive=args.keepalive)
        heed(loop, lambda: stop())  # noqa: PLW0108 - it is made below
        _say(listeners, output)
        server = _server(loop, listeners, args)
        stop = Stop(loop, server, args.drain_timeout)
        return _run(loop, server, stop)


def _supervise(args: argparse.Namespace, output: Output) -> int:
    """Serve with several processes."""
    from echopair.cli.workers import Workers

    check_possible()
    args.workers = min(args.workers, args.max_conns or args.workers)  # so that each has room for a connection
    listeners = listen(args.host, args.port, args.family, args.backlog, keepalive=args.keepalive)
    with EventLoop() as loop:
        crew = Workers(loop, listeners, args.workers, partial(_work, args, listeners), args.drain_timeout + GRACE)
        try:
            crew.start()
            _say(listeners, output)
            loop.run()
        finally:
            crew.close()
        return crew.status


def _work(
    args: argparse.Namespace,
    listeners: list[socket.socket],
    number: int,
    lifeline: int,
    turn: Callable[[int], int],
) -> int:
    """Be worker `number`: serve a share of `--max-conns` until the parent orders an end, or is gone."""
    if args.max_conns is not None:
        args.max_conns = share(args.max_conns, number, args.workers)
    with EventLoop() as loop:
        server = _server(loop, listeners, args, turn=turn)
        stop = Stop(loop, server, args.drain_timeout)

        def obey(_events: int) -> None:
            told = os.read(lifeline, 2)
            for _ in told:
                stop()
            if not told:  # the parent is gone
                loop.watch(lifeline, 0)
                stop.drain()

        loop.watch(lifeline, READ, obey)
        return _run(loop, server, stop)


def _say(listeners: list[socket.socket], output: Output) -> None:
    for listener in listeners:
        output.line(f"Listening on {format_address(listener.getsockname())}", flush=True)


def _run(loop: EventLoop, server: EchoServer, stop: Stop) -> int:
    started = time.monotonic()
    loop.run()
    log.info(
        "served %s in %s: %s received, %s sent",
        count(server.connections_served, "connection"),
        duration(time.monotonic() - started),
        count(server.bytes_received, "byte"),
        count(server.bytes_sent, "byte"),
    )
    return stop.status


def _server(loop: EventLoop, listeners: list[socket.socket], args: argparse.Namespace, **options: Any) -> EchoServer:
    """Load and start the server; the first peers may wait in the listen queue already, and that is quick."""
    from echopair.server.echo import EchoServer, VerboseEchoServer
    from echopair.server.zerocopy import OTHER_DESCRIPTORS

    limit = raise_descriptor_limit()
    if args.max_conns is not None and args.max_conns > limit - OTHER_DESCRIPTORS:
        log.warning("--max-conns %d is more than %d descriptors allow: raise ulimit -n", args.max_conns, limit)
    kind: Callable[..., EchoServer] = VerboseEchoServer if args.log_level == logging.DEBUG else EchoServer
    given = {name: value for name in FAULTS if (value := getattr(args, name)) is not None}
    asked = {name: value for name, value in given.items() if value or name.endswith("_after")}  # after no byte at all
    if asked:
        kind = _faulty(asked, args.fault_seed)
    server = kind(
        loop,
        listeners,
        max_conns=args.max_conns,
        max_buffer=args.max_buffer,
        zero_copy=not args.no_zero_copy,
        processes=args.workers,
        **options,
    )
    if args.idle_timeout is not None:
        from echopair.idle import IdleWatch

        late = TimeoutError(f"idle for {args.idle_timeout:g} s")
        IdleWatch(loop, server.connections, args.idle_timeout, lambda connection: connection.abort(late))
    return server


def _faulty(asked: dict[str, Any], seed: int | None) -> Callable[..., EchoServer]:
    """Return a server with the faults that were asked for, and announce them."""
    import secrets

    from echopair.server.faults import Faults, FaultyEchoServer

    seed = secrets.randbits(32) if seed is None else seed
    faults = Faults(**asked, seed=seed)
    log.warning("misbehaving on request: %s%s", faults, f"; --fault-seed {seed} repeats it" * faults.left_to_chance)
    return partial(FaultyEchoServer, faults=faults)


class Stop:
    """What a signal to end does: the first drains the server and then stops the loop, the second does not wait."""

    def __init__(self, loop: EventLoop, server: EchoServer, drain_timeout: float) -> None:
        self._loop = loop
        self._server = server
        self._drain_timeout = drain_timeout

    @property
    def status(self) -> int:
        """The exit status: OK unless the drain dropped bytes."""
        return FAILED if self._server.bytes_lost else OK

    def __call__(self) -> None:
        """Go one step further towards the end."""
        if self._server.draining:
            self._server.give_up()
        else:
            self.drain()

    def drain(self) -> None:
        """Go the first step, if that was not done yet."""
        if self._server.draining:
            return
        if self._server.connections:
            log.info("draining %s, then stopping", count(len(self._server.connections), "connection"))
        self._server.drain(self._drain_timeout, self._loop.stop)


def _parser() -> options.Parser:
    # fmt: off
    parser = options.Parser(
        "echo-server", "Send every byte back to the peer that sent it (RFC 862).", EXAMPLES, HABITS
    )
    group = parser.add_argument_group("where to listen")
    add = group.add_argument
    add("--host", action=options.Collect, type=options.each(options.host), default=["localhost"],
        help="listen on every address of HOST; may be repeated")
    add("-p", "--port", type=options.checked(parse_port), default=12345,
        help="0: any free port, the same for all addresses")
    options.add_family(group)
    add("--backlog", metavar="N", type=options.count(1),
        help="length of the listen queue (default: the system's maximum)")

    add("--workers", metavar="N", type=options.checked(workers), default=1,
        help="run N processes, which share the port and --max-conns; auto: one per processor")

    add = parser.add_argument_group("limits").add_argument
    add("--max-conns", metavar="N", type=options.count(1),
        help="serve up to N connections at once; others wait in the listen queue "
             "(default: as many as descriptors allow)")
    add("--max-buffer", metavar="BYTES", type=options.size(1), default="256K",
        help="stop reading from a peer while BYTES wait to be echoed to it")
    add("--no-zero-copy", action="store_true", help="copy large messages through the process, like small ones")
    add("--idle-timeout", metavar="S", type=options.duration(0.001),
        help="end a connection after S without a byte (default: never)")
    add("--keepalive", metavar="S", type=options.duration(1), default="60s",
        help="probe a peer after S of silence; a vanished peer is noticed after about twice S")
    add("--drain-timeout", metavar="S", type=options.duration(), default="5s",
        help="after SIGTERM, SIGINT or SIGHUP, wait up to S until every received byte is echoed")

    add = parser.add_argument_group("misbehave on request, to test clients").add_argument
    add("--delay", metavar="LIST", type=options.delays,
        help="delay the echo: by 20ms, or 5ms:90,200ms:10 (90 %% by 5 ms, 10 %% by 200 ms)")
    add("--throttle", metavar="BYTES", type=options.size(1), help="limit each connection to BYTES per second")
    add("--chunk", metavar="N", type=options.size(1), help="send at most N bytes at a time")
    add("--corrupt-rate", metavar="P", type=options.probability,
        help="flip a bit in this share of the bytes: 0.001 or 0.1%%")
    add("--drop-rate", metavar="P", type=options.probability, help="lose this share of the bytes")
    add("--duplicate-rate", metavar="P", type=options.probability, help="send this share of the bytes twice")
    add("--reset-after", metavar="BYTES", type=options.size(0), help="reset a connection after echoing BYTES")
    add("--close-after", metavar="BYTES", type=options.size(0), help="close a connection after echoing BYTES")
    add("--stall-after", metavar="BYTES", type=options.size(0), help="stop answering after echoing BYTES")
    add("--accept-delay", metavar="S", type=options.duration(),
        help="accept each connection S late (never: accept none)")
    add("--no-half-close", action="store_true",
        help="close at EOF and lose up to 8 MiB not yet echoed, as the tutorials do")
    add("--fault-seed", metavar="N", type=options.count(), help="seed of the random faults (default: random, logged)")

    add = parser.add_argument_group("what to log, on standard error").add_mutually_exclusive_group().add_argument
    add("-v", "--verbose", dest="log_level", action="store_const", const=logging.DEBUG, default=logging.INFO,
        help="log payloads too, escaped and cut")
    add("-q", "--quiet", dest="log_level", action="store_const", const=logging.WARNING, help="log problems only")
    # fmt: on
    return parser
