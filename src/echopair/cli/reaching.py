"""What all runs of the client share: reaching the server, or being it, and ending on a signal."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from echopair.address import Address, AddressError, Lookup, format_address, listen
from echopair.cli.command import HUNG_UP, INTERRUPTED, OK, TERMINATED
from echopair.client.echo import RETRY_DELAY, EchoClient
from echopair.client.session import Session
from echopair.connection import Connection
from echopair.loop import SIGHUP, SIGINT, SIGTERM, EventLoop
from echopair.server.echo import EchoServer

RESOLVE_RETRY_DELAY = 0.2  # seconds
PROBE = b"\n"  # line-based services answer it, too
PATIENCE = 1.0  # seconds to wait for the echo of the first probe; doubled after each lost one


def target(args: argparse.Namespace) -> str:
    """Return the server as documents name it."""
    return "itself (--loopback)" if args.loopback else format_address((args.host, args.port))


@dataclass(slots=True, eq=False)
class Probe(Session):
    """Sends a byte and ends when the first one comes back, right or wrong: the run will judge the service."""

    answered: bool = False

    def data_received(self, connection: Connection, data: bytes) -> None:  # noqa: ARG002 - of Handler
        """End well."""
        self.answered = True
        connection.abort()


class Reach:
    """Runs a client on `loop` once the server's addresses are known, and ends it on SIGINT, SIGTERM and SIGHUP.

    `begin(addresses)` starts the client, `stop()` ends it early, and the owner calls `done()` at its end. Before that,
    while `--wait` lasts, it retries to resolve the name, and then to get an answer to a probe: a connection that sends
    one byte and waits for it to come back. A connection alone proves nothing, because proxies accept connections for
    services that are not up.
    """

    def __init__(self, loop: EventLoop, args: argparse.Namespace) -> None:
        self.status = OK  # that of the signal that ended it, if one did
        self.loop = loop
        self._args = args
        self._server: EchoServer | None = None
        self._stop: Callable[[], object] = self.give_up
        self._given_up = self._over = False
        self._until = loop.clock() + args.wait
        loop.add_signal_handler(SIGINT, partial(self._signalled, INTERRUPTED))
        loop.add_signal_handler(SIGTERM, partial(self._signalled, TERMINATED))
        if SIGHUP and not loop.ignores(SIGHUP):
            loop.add_signal_handler(SIGHUP, partial(self._signalled, HUNG_UP))

    def run(self, begin: Callable[[list[Address]], object], stop: Callable[[], object]) -> None:
        """Run a client to its end; raises AddressError where the server has no address."""
        addresses = self._serve() if self._args.loopback else self._resolve()
        self._await(addresses)
        if not self._given_up:
            self._stop = stop
            begin(addresses)
            self.loop.run()
        if self._server:
            self._server.drain(1, self.loop.stop)
            self.loop.run()

    def give_up(self) -> None:
        """End the run before it has begun."""
        self._given_up = True
        self.loop.stop()

    def done(self) -> None:
        """End the run; a further signal only shortens the rest."""
        self._over = True
        self.loop.stop()

    def _serve(self) -> list[Address]:
        host = "::1" if self._args.family == socket.AF_INET6 else "127.0.0.1"
        self._server = EchoServer(self.loop, listen([host], 0))
        return self._server.addresses

    def _resolve(self) -> list[Address]:
        """Return the server's addresses; none if the run is given up first."""
        args = self._args
        while True:
            lookup = Lookup(args.host, args.port, args.family, done=self._answered)
            self.loop.run()
            if self._given_up:
                return []
            try:
                return lookup.addresses()
            except AddressError as error:
                if self.loop.clock() >= self._until:
                    other = f" (--source {args.source[1][0]} can reach no other)" if args.source else ""
                    raise AddressError(f"{error}{other}") from None
            if not self._sleep(RESOLVE_RETRY_DELAY):
                return []

    def _answered(self) -> None:
        self.loop.call_soon(self.loop.stop)  # in the loop's thread
        self.loop.wakeup()

    def _await(self, addresses: list[Address]) -> None:
        """Return when the server answers a probe, the time of --wait is over, or the run is given up."""
        patience = PATIENCE
        while not self._given_up and (left := self._until - self.loop.clock()) > 0:
            probe = Probe(1, iter([PROBE]))
            prober = EchoClient(
                self.loop,
                addresses,
                [probe],
                done=self.loop.stop,
                timeout=min(patience, left),
                connect_timeout=min(self._args.connect_timeout, left),
                source=self._args.source,
            )
            self.loop.run()
            prober.stop()
            if probe.answered or not self._sleep(RETRY_DELAY):
                return
            if probe.failure and probe.failure.phase != "connect":
                patience *= 2

    def _sleep(self, seconds: float) -> bool:
        """Wait; return False if the run is given up."""
        timer = self.loop.call_later(seconds, self.loop.stop)
        self.loop.run()
        timer.cancel()
        return not self._given_up

    def _signalled(self, status: int) -> None:
        """Stop the client; the second signal does not wait for it."""
        if self._over or self.status:
            self.loop.stop()
        if not self._over:
            self.status = status
            self._stop()
