"""What all runs of the client share: reaching the server, or being it, and ending on a signal."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable
from functools import partial

from echopair.address import Address, AddressError, format_address, listen, resolve
from echopair.cli.command import HUNG_UP, INTERRUPTED, OK, TERMINATED
from echopair.loop import SIGHUP, SIGINT, SIGTERM, EventLoop
from echopair.server.drain import Drain
from echopair.server.echo import EchoServer

RESOLVE_RETRY_DELAY = 0.2  # seconds


def target(args: argparse.Namespace) -> str:
    """Return the server as documents name it."""
    return "itself (--loopback)" if args.loopback else format_address((args.host, args.port))


class Reach:
    """Runs a client on `loop` once the server's addresses are known, and ends it on SIGINT, SIGTERM and SIGHUP.

    `begin(addresses)` starts the client, `stop()` ends it early, and whoever runs it calls `done()` at its end. A name
    that does not resolve is tried again while `--wait` lasts: a server that comes up may have to get its name first.
    """

    def __init__(self, loop: EventLoop, args: argparse.Namespace) -> None:
        self.status = OK  # that of the signal that ended it, if one did
        self._loop = loop
        self._args = args
        self._server: EchoServer | None = None
        self._begin: Callable[[list[Address]], object] = lambda _addresses: None
        self._stop: Callable[[], object] = loop.stop
        self._begun = False
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
        self._resolve(self._loop.clock() + self._args.wait)
        self._loop.run()
        if self._server:
            Drain(self._loop, self._server, 1, self._loop.stop)
            self._loop.run()
        if self._error:
            raise self._error

    def done(self) -> None:
        """Know that the client has ended."""
        self._loop.stop()

    def _resolve(self, until: float) -> None:
        try:
            addresses = self._server.addresses if self._server else self._look_up()
        except AddressError as error:
            if self._loop.clock() < until:
                self._loop.call_later(RESOLVE_RETRY_DELAY, partial(self._resolve, until))
            else:
                self._error = error
                self._loop.call_soon(self._loop.stop)
            return
        self._begun = True
        self._begin(addresses)

    def _look_up(self) -> list[Address]:
        return resolve(self._args.host, self._args.port, self._args.family)

    def _signalled(self, status: int) -> None:
        """Stop the client; the second signal does not wait for it."""
        if self.status or not self._begun:
            self._loop.stop()
        self.status = status
        if self._begun:
            self._stop()
