"""Reaching the server: its addresses, the local address, and the wait until it answers."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable

import pytest

from echopair.address import AddressError, Lookup, format_address, listen
from echopair.cli import client, reaching
from echopair.cli.command import FAILED, INTERRUPTED, OK
from echopair.connection import Connection
from echopair.loop import EventLoop
from echopair.server import EchoServer
from helpers import HUNG, LOCALHOST
from test_measure_schema import VALIDATOR

ELSEWHERE = "127.0.0.2"  # another address of the loopback interface


class Front(EchoServer):
    """A proxy that accepts at once: it closes its first connections, keeps quiet on the next ones, and then serves."""

    closed_first = silent_on = 0
    delay = 0.0

    def __init__(self, loop: EventLoop, listeners: list[socket.socket]) -> None:
        super().__init__(loop, listeners)
        self.received: list[tuple[str, bytes]] = []

    def data_received(self, connection: Connection, data: bytes) -> None:
        self.received.append((connection.peer.partition(":")[0], data))
        if len(self.received) <= self.closed_first:
            connection.abort()
        elif len(self.received) > self.closed_first + self.silent_on:
            self.loop.call_later(self.delay, lambda: connection.send(data))


def resolving(monkeypatch: pytest.MonkeyPatch, resolve: Callable[[], object]) -> None:
    """Let the client resolve every name so."""

    class Answering(Lookup):
        def run(self) -> None:
            self._resolve = resolve
            super().run()

    monkeypatch.setattr(reaching, "Lookup", Answering)


@pytest.fixture
def front(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Front]:
    """Serve in a thread, at what every name resolves to."""

    def start(*hosts: str, before: tuple = (), closed_first: int = 0, silent_on: int = 0, delay: float = 0.0) -> Front:
        loop = EventLoop()
        front = Front(loop, listen(hosts or [LOCALHOST], 0))
        front.closed_first, front.silent_on, front.delay = closed_first, silent_on, delay
        resolving(monkeypatch, lambda: [*before, *front.addresses])
        thread = threading.Thread(target=loop.run)
        thread.start()

        def end() -> None:
            front.close()
            loop.stop()

        def stop() -> None:
            loop.call_soon(end)
            loop.wakeup()
            thread.join(HUNG)
            assert not thread.is_alive()
            loop.close()

        request.addfinalizer(stop)
        return front

    monkeypatch.setattr(reaching, "RETRY_DELAY", 0.001)
    monkeypatch.setattr(reaching, "PATIENCE", 0.01)
    return start


def run_json(capsys, *arguments: str) -> tuple[int, dict]:
    status = client.main(["--json", "name:7", *arguments])
    document = json.loads(capsys.readouterr().out)
    VALIDATOR.validate(document)
    return status, document


# Addresses


def test_a_dead_first_address_costs_one_delay_and_is_reported(capsys, front, deaf):
    where = format_address(front(before=(deaf,)).addresses[0][1])
    status, document = run_json(capsys, "-c", "50", "-n", "50", "--fail-if", "connect.max<250ms")
    assert status == OK
    assert document["addresses"] == [
        {"address": format_address(deaf[1]), "connections": 0, "failed": 1, "example": "no answer within 250 ms"},
        {"address": where, "connections": 50, "failed": 0, "example": None},
    ]
    assert document["latency_us"]["connect"]["max"] >= 250_000
    assert document["latency_us"]["connect"]["percentiles"]["90"] < 250_000


def test_a_dead_first_address_is_shown_in_a_conversation(capsys, front, deaf):
    where = format_address(front(before=(deaf,)).addresses[0][1])
    assert client.main(["name:7"]) == OK
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"[1] connected  to {where} ({format_address(deaf[1])}: no answer within 250 ms)"


def test_a_check_blames_a_dead_first_address_on_nothing_else(capsys, front, deaf):
    front(before=(deaf,))
    only = "basic,edges,many,churn"
    assert client.main(["--check", "name:7", "--check-only", only]) == OK


def test_connections_are_shared_out_over_all_addresses(capsys, front):
    served = front(LOCALHOST, ELSEWHERE)
    status, document = run_json(capsys, "--all-addresses", "-c", "4", "-n", "4")
    assert status == OK
    used = {entry["address"]: entry["connections"] for entry in document["addresses"]}
    assert used == {format_address(sockaddr): 2 for _, sockaddr in served.addresses}


# The local address


@pytest.mark.parametrize("kind", [["-n", "1"], ["-m", "hello"], ["--check", "--check-only", "basic"]])
def test_connections_come_from_the_address_that_was_asked_for(front, kind):
    served = front()
    assert client.main(["--source", ELSEWHERE, "--wait", "9s", "name:7", *kind]) == OK
    assert {peer for peer, _ in served.received} == {ELSEWHERE}
    assert len(served.received) >= 2  # of the probe, too


def test_a_target_of_the_other_family_says_so(capsys):
    assert client.main(["--source", "::1", "127.0.0.1:7"]) == FAILED
    assert capsys.readouterr().err.endswith("(--source ::1 can reach no other)\n")


def test_a_name_without_an_address_is_not_blamed_on_the_local_one(capsys):
    assert client.main(["nosuch.invalid:7"]) == FAILED
    assert "--source" not in capsys.readouterr().err


# The wait


def test_a_connection_alone_ends_no_wait(capsys, front):
    served = front(closed_first=3)
    status, document = run_json(capsys, "--wait", "20s", "-n", "1", "-s", "10")
    assert (status, document["errors"]) == (OK, [])
    assert [len(data) for _, data in served.received] == [1, 1, 1, 1, 10]
    assert document["connections"]["attempted"] == 1


def test_a_probe_that_gets_no_answer_is_followed_by_another(capsys, front):
    served = front(silent_on=2)
    status, document = run_json(capsys, "--wait", "20s", "-n", "1", "-s", "10")
    assert (status, document["errors"]) == (OK, [])
    assert [len(data) for _, data in served.received] == [1, 1, 1, 10]


def test_a_slow_service_is_waited_for_with_more_patience_each_time(capsys, front):
    served = front(delay=0.04)
    assert run_json(capsys, "--wait", "20s", "-n", "1", "-s", "10")[0] == OK
    assert len(served.received) < 30  # with patience for 10 ms only it would be hundreds


def test_nothing_is_probed_where_nothing_is_awaited(capsys, front):
    served = front()
    assert run_json(capsys, "-n", "1", "-s", "10")[0] == OK
    assert len(served.received) == 1
    assert client.main(["--loopback", "--wait", "20s"]) == OK


def test_a_wait_in_vain_ends_and_the_run_tells_why(capsys, front):
    front(closed_first=1000)
    status, document = run_json(capsys, "--wait", "20ms", "-n", "1")
    assert status == FAILED
    assert [error["phase"] for error in document["errors"]] == ["echo"]


def test_a_wait_for_a_server_that_is_not_there_ends_and_the_run_tells_why(capsys, front, monkeypatch):
    (gone,) = listen([LOCALHOST], 0)
    address = (gone.family, gone.getsockname())
    gone.close()
    front()
    resolving(monkeypatch, lambda: [address])
    status, document = run_json(capsys, "--wait", "20ms", "-n", "1")
    assert (status, document["connections"]["failed"]) == (FAILED, 1)


def test_a_name_that_comes_later_is_waited_for(capsys, front, monkeypatch):
    addresses, tries = front().addresses, []

    def resolve() -> object:
        tries.append(1)
        if len(tries) < 3:
            raise AddressError("not yet")
        return addresses

    monkeypatch.setattr(reaching, "RESOLVE_RETRY_DELAY", 0.001)
    resolving(monkeypatch, resolve)
    status, document = run_json(capsys, "--wait", "20s")
    assert (status, document["errors"]) == (OK, [])


def test_a_signal_ends_the_wait(capsys, front, monkeypatch):
    probe = reaching.Probe

    class Interrupting(probe):
        def start(self, connection: Connection) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            probe.start(self, connection)

    monkeypatch.setattr(reaching, "Probe", Interrupting)
    front(silent_on=1000)
    status, document = run_json(capsys, "--wait", "20s")
    assert (status, document["connections"]["attempted"]) == (INTERRUPTED, 0)
