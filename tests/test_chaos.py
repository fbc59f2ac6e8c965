"""A soak: peers that do everything that peers do, all at once, by chance; and at the end the ledger has to balance.

Chance is seeded, and a failure says by what: `pytest tests/test_chaos.py --soak 600 --soak-seed 7` goes on for
longer, and again. What was sent and promised to be read has come back, in order, once; what was cut short came back
as far as it came; no descriptor, timer, process or memory is left.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from random import Random

import pytest

from echopair.address import listen
from echopair.check.peer import Failed, Peer
from echopair.check.script import Script, sleep
from echopair.connection import MAX_BUFFER
from echopair.loop import EventLoop
from echopair.server import EchoServer
from echopair.server.faults import Faults, FaultyEchoServer
from helpers import HUNG, LOCALHOST, descriptors, run_client, run_until, running_server
from test_cli_workers import children, gone, until

PEERS = 40  # at once
DEBTORS = 8  # peers that are owed bytes when the server is signalled
TCP_REPAIR = 19  # tcp(7) does not list it: a socket so marked is closed without FIN or reset
DATA = Random(11).randbytes(1 << 22)
SHORT = 12  # descriptors left to the server in a shortage

pytestmark = pytest.mark.soak


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    return request.config.getoption("--soak")


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> Random:
    seed = request.config.getoption("--soak-seed")
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    print(f"chance is that of --soak-seed {seed}")  # pytest shows it where a test fails
    return Random(seed)


def can_go_without_a_word() -> bool:
    """Whether this process may close a connection so that its peer is not notified (capabilities(7), CAP_NET_ADMIN)."""
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        except OSError:
            return False
        return True


def notice_soon(listener: socket.socket) -> None:
    """Have the kernel probe silent peers after a second (tcp(7), TCP_KEEPIDLE)."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)


class Ledger(EchoServer):
    """Our server, whose books are looked at whenever a connection ends."""

    def connection_lost(self, connection, error) -> None:
        assert connection.bytes_sent <= connection.bytes_received
        if error is None:
            assert connection.bytes_sent == connection.bytes_received
        super().connection_lost(connection, error)


class Chaos:
    """Peers on the server's own loop, `PEERS` at a time, each with a life of its own."""

    def __init__(self, loop: EventLoop, server: EchoServer, chance: Random, *, gentle: bool = False) -> None:
        self.loop, self.server, self.chance = loop, server, chance
        self.lives = [self.whole, self.slow]
        if not gentle:
            self.lives += [self.urgent, self.cut, self.vanish, self.deaf]
            self.lives += [self.go] * can_go_without_a_word()
        self.running: dict[Script, Peer] = {}
        self.ended = dict.fromkeys((*(life.__name__ for life in self.lives), "refused"), 0)
        self.failures: list[Exception] = []
        self.sent = self.received = 0

    def run(self, until: float, *kinds: str) -> None:
        """Go on until that moment, and until a life of each of these kinds has ended."""
        while (time.monotonic() < until or not all(self.ended[kind] for kind in kinds)) and not self.failures:
            while len(self.running) < PEERS:
                self._begin()
            self.loop.run_once(0.1)
        run_until(self.loop, lambda: not self.running or self.failures)
        assert not self.failures, self.failures[0]

    def _begin(self) -> None:
        def done(_result: None, error: Exception | None) -> None:
            del self.running[script]
            peer.close()
            if error:
                self.failures.append(error)

        try:
            sock = socket.create_connection(self.server.addresses[0][1])
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self.ended["refused"] += 1
            self.loop.run_once(0.001)
            return
        sock.setblocking(False)
        peer = Peer(self.loop, sock, HUNG, lambda _doing: None)
        script = Script(self.loop, self.chance.choice(self.lives)(peer), done)
        self.running[script] = peer

    def abandon(self) -> None:
        """Close all connections, whatever they are at."""
        for script, peer in self.running.items():
            script.cancel()
            peer.close()
        self.running.clear()

    def _some(self, most: int = 1 << 20) -> bytes:
        """A stretch of the data: mostly small, sometimes large."""
        length = int(most ** self.chance.random())
        start = self.chance.randrange(len(DATA) - length)
        return DATA[start : start + length]

    async def whole(self, peer: Peer) -> None:
        """Send and read as fast as it goes, then half-close, and read to the end."""
        for _ in range(self.chance.randrange(5)):
            data = self._some()
            await self.echo(peer, data)
        peer.send_eof()
        await self.eof(peer)
        self.ended["whole"] += 1

    async def slow(self, peer: Peer) -> None:
        """Send much, half-close, and read that slowly."""
        peer.buffer(128 * 1024)
        data = DATA[: self.chance.randrange(1 << 22)]
        sent = await peer.send_until_full(data)
        peer.send_eof()
        await sleep(self.loop, self.chance.random() / 10)
        await self.read(peer, data[:sent])
        await self.eof(peer)
        self.ended["slow"] += 1

    async def urgent(self, peer: Peer) -> None:
        """Send urgent bytes among the others; they come back in their place (tcp(7), SO_OOBINLINE)."""
        for _ in range(self.chance.randrange(1, 5)):
            await self.echo(peer, self._some(100_000))
            peer.sock.send(b"!", socket.MSG_OOB)
            peer.sent += 1
            if self.chance.random() < 0.5:
                await self.read(peer, b"!")
            else:
                data = self._some(100_000)
                await peer.exchange(data, b"!" + data)
        peer.send_eof()
        await self.eof(peer)
        self.ended["urgent"] += 1

    async def go(self, peer: Peer) -> None:
        """Go without a word, as a host does whose power fails: neither FIN nor reset."""
        if self.chance.random() < 0.5:
            await peer.send_until_full(self._some(100_000))
        peer.sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        peer.close()
        self.ended["go"] += 1

    async def cut(self, peer: Peer) -> None:
        """Send, read a part, which is the first one, and reset the connection."""
        data = self._some()
        await peer.send_until_full(data[: 1 << 18])
        part = data[: self.chance.randrange(len(data[: 1 << 18]) + 1)]
        await peer.expect(part)
        peer.reset()
        self.ended["cut"] += 1

    async def vanish(self, peer: Peer) -> None:
        """Close at once, with or without having sent something."""
        if self.chance.random() < 0.5:
            await peer.send_until_full(self._some(10_000))
        peer.close()
        self.ended["vanish"] += 1

    async def deaf(self, peer: Peer) -> None:
        """Send and never read."""
        peer.buffer(128 * 1024)
        await peer.send_until_full(DATA)
        await sleep(self.loop, self.chance.random() / 10)
        peer.close()
        self.ended["deaf"] += 1

    async def echo(self, peer: Peer, data: bytes) -> None:
        await peer.echo(data)
        self.sent += len(data)

    async def read(self, peer: Peer, data: bytes) -> None:
        await peer.expect_slowly(data, self.chance.randrange(1 << 14, 1 << 18), self.chance.random() / 1000)
        self.sent += len(data)

    async def eof(self, peer: Peer) -> None:
        await peer.expect_eof()


def memory() -> int:
    """Bytes of this process's own memory (proc(5), statm), without what malloc keeps for later (malloc_trim(3))."""
    gc.collect()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def end(loop: EventLoop, server: EchoServer) -> None:
    """Drain the server, and see that it leaves nothing behind."""
    done = []
    server.drain(HUNG, lambda: done.append(1))
    run_until(loop, lambda: done)
    loop.run_once(0)
    assert not server.connections
    assert len(loop._selector.get_map()) == 1  # its own wake-up
    assert not [timer for _, _, timer in loop._timers if timer.callback]


@pytest.mark.parametrize("zero_copy", [True, False])
def test_peers_of_every_kind_leave_the_ledger_balanced_and_nothing_behind(seconds, chance, zero_copy):
    with EventLoop() as loop:
        listeners = listen([LOCALHOST], 0)
        notice_soon(listeners[0])
        server = Ledger(loop, listeners, zero_copy=zero_copy)
        chaos = Chaos(loop, server, chance)
        began = time.monotonic()
        chaos.run(began + seconds / 3)
        before, held = descriptors(), memory()
        chaos.run(began + seconds, "whole", "slow", "cut", "vanish", "deaf")
        run_until(loop, lambda: not server.connections)
        assert memory() < held + 32 * MAX_BUFFER
        assert descriptors() <= before + 3 * 16  # spare pipes
        end(loop, server)
        assert server.bytes_received >= server.bytes_sent >= chaos.sent


def test_a_shortage_of_descriptors_costs_nobody_a_byte(seconds, chance):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with EventLoop() as loop:
        listeners = listen([LOCALHOST], 0)
        notice_soon(listeners[0])
        server = Ledger(loop, listeners)
        chaos = Chaos(loop, server, chance)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + PEERS + SHORT, hard))
        try:
            chaos.run(time.monotonic() + seconds, "refused", "whole")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        end(loop, server)


class Spoilt(Chaos):
    """Peers that read all there is, whatever it is, and count."""

    async def echo(self, peer: Peer, data: bytes) -> None:
        await peer.send(data[:65536])
        self.sent += len(data[:65536])

    async def read(self, peer: Peer, data: bytes) -> None:
        self.sent += len(data)

    async def eof(self, peer: Peer) -> None:
        while True:
            with suppress(BlockingIOError):
                data = peer.sock.recv(1 << 20)
                self.received += len(data)
                if not data:
                    return
            await sleep(self.loop, 0.001)


def test_what_faults_take_and_add_is_what_they_report(seconds, chance):
    faults = Faults(
        drop_rate=1e-4,
        duplicate_rate=1e-4,
        corrupt_rate=1e-4,
        delay=((0.001, 50), (0.01, 50)),
        seed=chance.randrange(1 << 32),
    )
    with EventLoop() as loop:
        server = FaultyEchoServer(loop, listen([LOCALHOST], 0), faults=faults)
        chaos = Spoilt(loop, server, chance, gentle=True)
        chaos.run(time.monotonic() + seconds, "whole", "slow")
        run_until(loop, lambda: not server.connections)
        end(loop, server)
        assert server.dropped > 0
        assert server.duplicated > 0
        assert server.bytes_received == chaos.sent
        assert server.bytes_sent == chaos.received == chaos.sent - server.dropped + server.duplicated


def test_workers_that_are_killed_lose_connections_and_never_a_byte_of_others(seconds, chance):
    with running_server("-q", "--workers", "2") as (server, port):
        command = [sys.executable, "-m", "echopair", "client", f"{LOCALHOST}:{port}", "-c", "20", "-d", f"{seconds}s"]
        client = subprocess.Popen([*command, "--reconnect-every", "50"], stdout=subprocess.PIPE, text=True)
        over, killed = time.monotonic() + seconds * 0.8, 0
        while time.monotonic() < over or not killed:
            time.sleep(chance.random() * seconds / 4)
            for process in children(server)[:1]:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                    killed += 1
        report, _ = client.communicate(timeout=HUNG + seconds)
        assert not {"mismatch", "extra"} & set(report.split()), report
        assert "messages/s" in report
        until(lambda: len(children(server)) == 2)
        assert run_client(f"{LOCALHOST}:{port}", "-c", "20", "-n", "2000").returncode == 0
        workers = children(server)
        server.terminate()
        assert server.wait(HUNG) == 0
        server.communicate()
        assert all(gone(process) for process in workers)


class Debtors:
    """Peers of a server in another process that have sent all they will, and read once `signalled` is set."""

    def __init__(self, loop: EventLoop, port: int, chance: Random) -> None:
        self.loop, self.chance = loop, chance
        self.signalled = False
        self.waiting = 0
        self.ends: list[Exception | None] = []
        self.peers = [Peer(loop, self._connect(port), HUNG, lambda _doing: None) for _ in range(DEBTORS)]
        self.scripts = [Script(loop, self.life(peer), self._ended) for peer in self.peers]

    def _connect(self, port: int) -> socket.socket:
        sock = socket.create_connection((LOCALHOST, port))
        sock.setblocking(False)
        return sock

    def _ended(self, _result: None, error: Exception | None) -> None:
        self.ends.append(error)

    async def life(self, peer: Peer) -> None:
        peer.buffer(64 * 1024)
        await peer.echo(DATA[:1000])
        sent = await peer.send_until_full(DATA[: self.chance.randrange(1 << 22)])
        peer.send_eof()
        self.waiting += 1
        while not self.signalled:
            await sleep(self.loop, 0.01)
        await sleep(self.loop, self.chance.random() / 2)
        await peer.expect(DATA[:sent])
        await peer.expect_eof()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_signals_and_an_unread_log_cost_nobody_a_byte(seconds, chance, workers):
    """The whole group gets both signals at once, as from a terminal and a supervisor, while bytes are owed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        unread, log = socket.socketpair() if chance.random() < 0.5 else map(os.fdopen, os.pipe(), "rw")
        options = ("-v", "--workers", workers, "--drain-timeout", f"{HUNG}s")
        with (
            unread,
            log,
            running_server(*options, stderr=log, start_new_session=True) as (server, port),
            EventLoop() as loop,
        ):
            debtors = Debtors(loop, port, chance)
            run_until(loop, lambda: debtors.waiting == DEBTORS or debtors.ends)  # noqa: B023 - called in this round
            signums = [signal.SIGINT, signal.SIGTERM]
            chance.shuffle(signums)
            for signum in signums:
                os.killpg(server.pid, signum)
            debtors.signalled = True
            run_until(loop, lambda: len(debtors.ends) == DEBTORS)  # noqa: B023
            for peer in debtors.peers:
                peer.close()
            assert debtors.ends == [None] * DEBTORS
            assert server.wait(HUNG) == 0


def test_a_wrong_byte_would_be_found(chance):
    """The peers of this soak do look: a server with a fault does not pass."""
    with EventLoop() as loop:
        server = FaultyEchoServer(loop, listen([LOCALHOST], 0), faults=Faults(corrupt_rate=1e-5))
        chaos = Chaos(loop, server, chance, gentle=True)
        with pytest.raises(AssertionError, match="of the echo is wrong"):
            chaos.run(time.monotonic() + HUNG)
        chaos.abandon()
        end(loop, server)
        assert isinstance(chaos.failures[0], Failed)
