"""What all runs of the client share: reaching the server, or being it, and ending on a signal."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from echopair.address import Address, AddressError, format_address, listen, resolve
from echopair.cli.command import HUNG_UP, INTERRUPTED, OK, TERMINATED
from echopair.client.echo import RETRY_DELAY, EchoClient
from echopair.client.session import Session
from echopair.connection import Connection
from echopair.loop import SIGHUP, SIGINT, SIGTERM, EventLoop
from echopair.server.drain import Drain
from echopair.server.echo import EchoServer

RESOLVE_RETRY_DELAY = 0.2  # seconds
PROBE = b"\n"  # line-based services answer it, too
PATIENCE = 1.0  # seconds for the echo of a first probe; each further one that is lost gets twice as long


def target(args: argparse.Namespace) -> str:
    """Return the server as documents name it."""
    return "itself (--loopback)" if args.loopback else format_address((args.host, args.port))


@dataclass(slots=True, eq=False)
class Probe(Session):
    """Sends a byte and ends with the first that comes back, right or wrong: the run will judge it."""

    answered: bool = False

    def data_received(self, connection: Connection, data: bytes) -> None:  # noqa: ARG002 - of Handler
        """End well."""
        self.answered = True
        connection.abort()


class Reach:
    """Runs a client on `loop` once the server's addresses are known, and ends it on SIGINT, SIGTERM and SIGHUP.

    `begin(addresses)` starts the client, `stop()` ends it early, and whoever runs it calls `done()` at its end. Before
    that, for as long as `--wait` lasts, a name that does not resolve is tried again, and so is a probe: a connection
    that sends one byte and waits for it to come back. That a connection is made proves nothing, as proxies accept
    connections for services that are not up.
    """

    def __init__(self, loop: EventLoop, args: argparse.Namespace) -> None:
        self.status = OK  # that of the signal that ended it, if one did
        self._loop = loop
        self._args = args
        self._server: EchoServer | None = None
        self._begin: Callable[[list[Address]], object] = lambda _addresses: None
        self._stop: Callable[[], object] = loop.stop
        self._begun = False
        self._until = 0.0  # when the wait for the server ends
        self._patience = PATIENCE
        self._prober: EchoClient | None = None
        self._error: AddressError | None = None
        loop.add_signal_handler(SIGINT, partial(self._signalled, INTERRUPTED))
        loop.add_signal_handler(SIGTERM, partial(self._signalled, TERMINATED))
        if SIGHUP and not loop.ignores(SIGHUP):
            loop.add_signal_handler(SIGHUP, partial(self._signalled, HUNG_UP))

    def run(self, begin: Callable[[list[Address]], object], stop: Callable[[], object]) -> None:
        """Run a client to its end; raises AddressError where the server has no address."""
        self._begin, self._stop = begin, stop
        if self._args.loopback:
            host = "::1" if self._args.family == socket.AF_INET6 else "127.0.0.1"
            self._server = EchoServer(self._loop, listen([host], 0))
        self._until = self._loop.clock() + self._args.wait
        self._resolve()
        self._loop.run()
        if self._prober:
            self._prober.stop()
        if self._server:
            Drain(self._loop, self._server, 1, self._loop.stop)
            self._loop.run()
        if self._error:
            raise self._error

    def done(self) -> None:
        """Know that the client has ended."""
        self._loop.stop()

    def _resolve(self) -> None:
        try:
            addresses = self._server.addresses if self._server else self._look_up()
        except AddressError as error:
            if self._loop.clock() < self._until:
                self._loop.call_later(RESOLVE_RETRY_DELAY, self._resolve)
            else:
                self._error = error
                self._loop.call_soon(self._loop.stop)
            return
        self._await(addresses)

    def _await(self, addresses: list[Address]) -> None:
        """Begin once the server answers a probe, or the time to wait for that is over."""
        left = self._until - self._loop.clock()
        if left <= 0:
            self._begun = True
            self._begin(addresses)
            return
        probe = Probe(1, iter([PROBE]))
        self._prober = EchoClient(
            self._loop,
            addresses,
            [probe],
            done=partial(self._probed, addresses, probe),
            timeout=min(self._patience, left),
            connect_timeout=min(self._args.connect_timeout, left),
            source=self._args.source,
        )

    def _probed(self, addresses: list[Address], probe: Probe) -> None:
        if probe.answered:
            self._until = 0.0
        elif probe.failure and probe.failure.phase != "connect":
            self._patience *= 2
        self._loop.call_later(0 if probe.answered else RETRY_DELAY, partial(self._await, addresses))

    def _look_up(self) -> list[Address]:
        args = self._args
        try:
            return resolve(args.host, args.port, args.family)
        except AddressError as error:
            if not args.source:
                raise
            raise AddressError(f"{error} (--source {args.source[1][0]} can reach no other)") from None

    def _signalled(self, status: int) -> None:
        """Stop the client; the second signal does not wait for it."""
        if self.status or not self._begun:
            self._loop.stop()
        self.status = status
        if self._begun:
            self._stop()
