"""Addresses: what a user may type, listening on all of them on one port, and connecting to the first that answers."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from echopair import address
from echopair.address import (
    ATTEMPT_DELAY,
    PORT_ATTEMPTS,
    Address,
    AddressError,
    Dial,
    Listener,
    Route,
    explain,
    format_address,
    listen,
    local_address,
    parse_port,
    resolve,
    split_host_port,
    tell_unreachable,
)
from echopair.loop import EventLoop
from helpers import HUNG, LOCALHOST, Clock, descriptors, reset, run_until, settle, tcp_pair

ELSEWHERE = "127.0.0.2"  # another address of the loopback interface
NOT_OURS = (socket.AF_INET, ("192.0.2.1", 0))  # TEST-NET-1, RFC 5737: no interface has it
NO_FAMILY = (200, ("::", 0, 0, 0))  # beyond all families that there are
UNREACHABLE = (socket.AF_INET, ("255.255.255.255", 7))  # TCP cannot broadcast: connect(2) fails at once
TIMEOUT = 8.0
FOUR, FOUR_TOO = (socket.AF_INET, ("192.0.2.1", 7)), (socket.AF_INET, ("192.0.2.2", 7))
SIX, SIX_TOO = (socket.AF_INET6, ("2001:db8::1", 7, 0, 0)), (socket.AF_INET6, ("2001:db8::2", 7, 0, 0))
ERROR = OSError(errno.ECONNREFUSED, "Connection refused")


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")


# Text


@pytest.mark.parametrize(
    ("sockaddr", "text"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        (("", 0), ":0"),
        ("/a", "/a"),
        (("fe80::1", 80, 0, socket.if_nametoindex("lo")), "[fe80::1%lo]:80"),
        (("fe80::1", 80, 0, 2**31 - 1), "[fe80::1%2147483647]:80"),
        (("fe80::1%eth0", 80), "[fe80::1%eth0]:80"),
    ],
)
def test_address_is_shown_with_brackets_around_colons(sockaddr: tuple | str, text: str) -> None:
    assert format_address(sockaddr) == text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("", None)),
        ("host", ("host", None)),
        ("host:80", ("host", 80)),
        (":80", ("", 80)),
        ("[::1]", ("::1", None)),
        ("[::1]:0", ("::1", 0)),
        ("[fe80::1%eth0]:7", ("fe80::1%eth0", 7)),
        ("tcp:7", ("tcp", 7)),
        ("feb.example", ("feb.example", None)),
        ("a\0b", ("a\0b", None)),
        ("[host]:80", ("host", 80)),
    ],
)
def test_host_and_port_are_split(text: str, parts: tuple[str, int | None]) -> None:
    assert split_host_port(text) == parts


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("::1", r"'::1' is ambiguous: put an IPv6 address in brackets, like \[::1\]:12345"),
        ("a:b:80", "ambiguous"),
        ("[::1", r"'\[::1' is not an address: write \[IPV6\]:PORT"),
        ("[::1]80", "not an address"),
        ("host:", "there is no port after the colon"),
        ("[::1]:", "there is no port after the colon"),
        ("tcp://host:7", "'tcp://host:7' is not an address: write host:7, without tcp://"),
        ("http://me@host:80/x", "'http://me@host:80/x' is not an address: write host:80, without http://"),
        ("http://host/", "'http://host/' is not an address: write host:PORT, without http://"),
        ("TCP4:host:7", "'TCP4:host:7' is not an address: write host:7, without TCP4:"),
        ("unix:/tmp/x", "'unix:/tmp/x' asks for a Unix socket, but only plain TCP works so far: write HOST:PORT"),
        ("udp://[::1]:7", r"asks for UDP, but only plain TCP works so far: write \[::1\]:7"),
        ("https://host", "asks for TLS, but only plain TCP works so far: write host:PORT"),
        ("/tmp/x", "'/tmp/x' is a path, not a host: write HOST:PORT"),
        ("12345", "'12345' looks like a port: write :12345"),
        ("00007", "'00007' looks like a port: write :7"),
        ("65536", "'65536' is not a port: give a number from 0 to 65535"),
        ("2130706433", "'2130706433' would be read as the address 127.0.0.1: write that"),
        ("127.1:7", "'127.1' would be read as the address 127.0.0.1: write that"),
        ("0x7f.1", "'0x7f.1' would be read as the address 127.0.0.1"),
        ("010.0.0.1", "'010.0.0.1' would be read as the address 8.0.0.1"),
        ("[fe80::1]:7", "'fe80::1' is link-local: add the interface, like fe80::1%eth0"),
        ("host:http", "'http' is not a port: give a number from 0 to 65535"),
    ],
)
def test_what_cannot_be_split_says_how_to_write_it(text: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        split_host_port(text)


@pytest.mark.parametrize(("text", "port"), [("0", 0), ("80", 80), ("65535", 65535), ("00080", 80)])
def test_port_is_a_number(text: str, port: int) -> None:
    assert parse_port(text) == port


@pytest.mark.parametrize("text", ["-1", "+1", "65536", "999999", "1e3", "8_0", " 80", "\u0668\u0660", "0000099999"])
def test_anything_else_is_not_a_port(text: str) -> None:
    with pytest.raises(ValueError, match="is not a port: give a number from 0 to 65535"):
        parse_port(text)


# Resolving


@needs_ipv6
def test_a_zone_goes_in_and_comes_out() -> None:
    host, port = split_host_port("[fe80::1%lo]:7")
    assert port is not None
    ((_, sockaddr),) = resolve(host, port)
    assert sockaddr[3] == socket.if_nametoindex("lo")
    assert format_address(sockaddr) == "[fe80::1%lo]:7"


@needs_ipv6
def test_where_it_cannot_listen_is_told_with_the_zone() -> None:
    with pytest.raises(AddressError, match=r"cannot listen on \[fe80::1%lo\]:0: "):  # lo has no such address
        listen(["fe80::1%lo"], 0)


def test_loopback_is_what_an_empty_host_means_to_a_client_and_every_interface_to_a_server() -> None:
    assert resolve("", 80, socket.AF_INET) == [(socket.AF_INET, ("127.0.0.1", 80))]
    assert resolve("", 80, socket.AF_INET, passive=True) == [(socket.AF_INET, ("0.0.0.0", 80))]


def test_addresses_keep_the_resolvers_order_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    four, six = ("127.0.0.1", 80), ("::1", 80, 0, 0)
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", six),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", four),
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", six),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_arguments: found)
    assert resolve("host", 80) == [(socket.AF_INET6, six), (socket.AF_INET, four)]


def test_international_name_is_resolved_in_its_ascii_form(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_arguments: asked.append(host) or [])
    resolve("b\u00fccher.example", 80)
    assert asked == [b"xn--bcher-kva.example"]


def test_resolver_that_fails_itself_is_an_address_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments):
        raise OSError(errno.EMFILE, "Too many open files")  # EAI_SYSTEM

    monkeypatch.setattr(socket, "getaddrinfo", broken)
    with pytest.raises(AddressError, match="cannot resolve 'host': too many open files"):
        resolve("host", 80)


@pytest.mark.parametrize(
    ("host", "family", "remedy"),
    [
        ("127.0.0.1", socket.AF_INET6, "has it an IPv6 address?"),
        ("::1", socket.AF_INET, "has it an IPv4 address?"),
        ("nosuch.invalid", socket.AF_UNSPEC, "check the name"),
    ],
)
def test_name_without_an_address_says_what_to_check(host: str, family: int, remedy: str) -> None:
    with pytest.raises(AddressError) as caught:
        resolve(host, 80, family)
    assert str(caught.value).startswith(f"cannot resolve {host!r}: ")
    assert str(caught.value).endswith(f"; {remedy}")


@pytest.mark.parametrize(
    "host", ["\u00fc" * 64, "\u00fc..example", "\udcff", "127.0.0.1\0.example"], ids=["long", "empty", "byte", "NUL"]
)
def test_what_cannot_be_a_name_is_refused_as_such(host: str) -> None:
    with pytest.raises(AddressError, match=r"^cannot resolve '.+': not a host name \(.+\)$"):
        resolve(host, 80)


# Listening


@contextmanager
def listening(*hosts: str, **options: float | None) -> Iterator[list[socket.socket]]:
    """Listen on a free port, for a while."""
    listeners = listen(hosts, 0, **options)
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


def accept(listener: socket.socket) -> socket.socket:
    """Accept a connection that has begun."""
    select.select([listener], [], [], HUNG)
    return listener.accept()[0]


def hosts_are(monkeypatch: pytest.MonkeyPatch, **hosts: list[Address]) -> None:
    """Give names addresses of our choice."""
    monkeypatch.setattr(address, "resolve", lambda host, *_arguments, **_options: hosts[host])


@pytest.fixture
def taken() -> Iterator[tuple[str, int]]:
    """An address that somebody listens on."""
    with socket.create_server((LOCALHOST, 0)) as listener:
        yield listener.getsockname()


def accepting_queue(listener: socket.socket) -> int:
    """Return how many connections a listener's queue takes (tcp_info's tcpi_sacked, where it listens)."""
    return struct.unpack_from("I", listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32), 28)[0]


@pytest.mark.parametrize("second", [ELSEWHERE, pytest.param("::1", marks=needs_ipv6)])
def test_free_port_is_the_same_on_every_address(second: str) -> None:
    with listening(LOCALHOST, second) as listeners:
        assert [listener.getsockname()[0] for listener in listeners] == [LOCALHOST, second]
        assert len({listener.getsockname()[1] for listener in listeners}) == 1


@needs_ipv6
def test_every_interface_can_be_listened_on_in_both_families_at_once() -> None:
    with listening("0.0.0.0", "::") as listeners:
        assert len(listeners) == 2


def test_one_family_is_listened_on_where_one_is_asked_for() -> None:
    with listening("", family=socket.AF_INET) as listeners:
        assert [listener.family for listener in listeners] == [socket.AF_INET]


def test_address_named_twice_is_listened_on_once() -> None:
    with listening(LOCALHOST, ELSEWHERE, LOCALHOST) as listeners:
        assert len(listeners) == 2


def test_listener_and_what_it_accepts_are_set_up() -> None:
    with listening(LOCALHOST) as [listener], socket.create_connection(listener.getsockname()):
        assert not listener.getblocking()
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        with accept(listener) as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("seconds", "idle", "interval", "probes"),
    [
        (60, 60, 10, 6),
        (1, 1, 1, 1),
        (0.2, 1, 1, 1),
        (2.6, 3, 1, 3),
        (7, 7, 1, 6),
        (20, 20, 3, 6),
        (1e9, 32767, 5461, 6),
    ],
)
def test_peers_of_what_it_accepts_are_probed_until_twice_as_long(
    seconds: float, idle: int, interval: int, probes: int
) -> None:
    with (
        listening(LOCALHOST, keepalive=seconds) as [listener],
        socket.create_connection(listener.getsockname()),
        accept(listener) as accepted,
    ):
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        tcp = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
        assert [accepted.getsockopt(socket.IPPROTO_TCP, option) for option in tcp] == [idle, interval, probes]
        with suppress(OSError):  # an older kernel
            longest = accepted.getsockopt(socket.IPPROTO_TCP, address.UNNAMED["TCP_RTO_MAX_MS"])
            assert longest == min(interval, 120) * 1000


def test_peers_are_not_probed_where_that_is_not_wanted() -> None:
    with (
        listening(LOCALHOST, keepalive=float("inf")) as [listener],
        socket.create_connection(listener.getsockname()),
        accept(listener) as accepted,
    ):
        assert not accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_options_that_a_system_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "TCP_KEEPCNT")
    with listening(LOCALHOST) as [listener]:
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10


def test_peer_that_does_not_read_costs_the_kernel_little() -> None:
    with (
        listening(LOCALHOST) as [listener],
        socket.create_connection(listener.getsockname()) as peer,
        accept(listener) as accepted,
    ):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        accepted.setblocking(False)
        taken = 0
        while select.select([], [accepted], [], 0.1)[1]:
            with suppress(BlockingIOError):
                taken += accepted.send(bytes(1 << 20))
        assert taken < 1 << 20


def test_port_is_never_shared_where_reusing_an_address_would_do_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "os", SimpleNamespace(name="nt"))
    with listening(LOCALHOST) as [listener]:
        assert not listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)


def test_queue_is_as_long_as_asked() -> None:
    with listening(LOCALHOST, backlog=3) as [listener]:
        assert accepting_queue(listener) == 3


@pytest.mark.parametrize("backlog", [None, 2**32])
def test_queue_is_as_long_as_the_system_grants(backlog: int | None) -> None:
    with listening(LOCALHOST, backlog=backlog) as [listener]:
        assert accepting_queue(listener) == int(Path("/proc/sys/net/core/somaxconn").read_text())


def test_taken_port_says_so_and_what_to_do(taken: tuple[str, int]) -> None:
    with pytest.raises(AddressError) as caught:
        listen([LOCALHOST], taken[1])
    assert str(caught.value) == (
        f"cannot listen on {format_address(taken)}: address already in use "
        "(choose another port, or 0 for any that is free)"
    )


def test_taken_address_is_not_left_out(monkeypatch: pytest.MonkeyPatch, taken: tuple[str, int]) -> None:
    hosts_are(monkeypatch, both=[(socket.AF_INET, taken), (socket.AF_INET, (ELSEWHERE, taken[1]))])
    with pytest.raises(AddressError, match="address already in use"):
        listen(["both"], taken[1])


class Contested:
    """Binding as it is where others take the port that the kernel chose before every address has it, so many times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int, number: int = errno.EADDRINUSE) -> None:
        self.times = times
        self.number = number
        self.attempts = 0
        self._listen_on = address._listen_on
        monkeypatch.setattr(address, "_listen_on", self)

    def __call__(self, where: Address, port: int, backlog: int | None, keepalive: float) -> socket.socket:
        if port:
            self.attempts += 1
            if self.attempts <= self.times:
                raise OSError(self.number, os.strerror(self.number))
        return self._listen_on(where, port, backlog, keepalive)


def test_free_port_that_is_taken_on_the_next_address_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    contested = Contested(monkeypatch, 3)
    with listening(LOCALHOST, ELSEWHERE) as listeners:
        assert len({listener.getsockname()[1] for listener in listeners}) == 1
    assert contested.attempts > 3


def test_another_failure_is_no_reason_to_try_another_port(monkeypatch: pytest.MonkeyPatch) -> None:
    contested = Contested(monkeypatch, 1, errno.EACCES)
    with pytest.raises(AddressError, match="permission denied"):
        listen([LOCALHOST, ELSEWHERE], 0)
    assert contested.attempts == 1


def test_port_that_was_asked_for_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    contested = Contested(monkeypatch, 2)
    with pytest.raises(AddressError, match=f"^cannot listen on {LOCALHOST}:7: address already in use"):
        listen([LOCALHOST], 7)
    assert contested.attempts == 1


def test_search_for_a_free_port_ends_and_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    contested = Contested(monkeypatch, 2 * PORT_ATTEMPTS)
    before = descriptors()
    with pytest.raises(AddressError, match=f"^cannot listen on {ELSEWHERE}:[1-9][0-9]*: address already in use"):
        listen([LOCALHOST, ELSEWHERE], 0)
    assert contested.attempts == PORT_ATTEMPTS
    assert descriptors() == before


def test_a_client_out_of_local_ports_is_told_so():
    error = OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
    assert explain(error, connecting=True).endswith(
        "(no local port is left for it: use fewer connections, or widen net.ipv4.ip_local_port_range)"
    )
    assert "no interface here" in explain(error)


def test_privileged_port_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unprivileged(Listener):
        def bind(self, _address: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("echopair.address.Listener", Unprivileged)
    with pytest.raises(AddressError) as caught:
        listen([LOCALHOST], 7)
    assert str(caught.value) == "cannot listen on 127.0.0.1:7: permission denied (ports below 1024 need privileges)"


@pytest.mark.parametrize("missing", [NOT_OURS, NO_FAMILY], ids=["no address", "no family"])
def test_address_that_this_machine_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch, missing: Address) -> None:
    hosts_are(monkeypatch, both=[missing, (socket.AF_INET, (LOCALHOST, 0))])
    with listening("both") as [listener]:
        assert listener.getsockname()[0] == LOCALHOST


def test_host_whose_every_address_this_machine_lacks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts_are(monkeypatch, here=[(socket.AF_INET, (LOCALHOST, 0))], away=[NO_FAMILY, NOT_OURS])
    with pytest.raises(AddressError, match=r"on 192\.0\.2\.1:[1-9].*\(no interface here has this address\)$"):
        listen(["here", "away"], 0)


@pytest.mark.parametrize(
    ("error", "port", "text"),
    [
        (OSError(errno.EACCES, "Permission denied"), 1023, "permission denied (ports below 1024 need privileges)"),
        (OSError(errno.EACCES, "Permission denied"), 1, "permission denied (ports below 1024 need privileges)"),
        (OSError(errno.EACCES, "Permission denied"), 1024, "permission denied"),
        (OSError(errno.EACCES, "Permission denied"), 0, "permission denied"),
        (OSError(errno.ECONNREFUSED, "Connection refused"), 7, "connection refused (nothing listens there)"),
        (
            OSError(errno.EMFILE, "Too many open files"),
            0,
            "too many open files (too many open files for this process; see ulimit -n)",
        ),
        (OSError(errno.ECONNRESET, "Connection reset by peer"), 7, "connection reset by peer"),
        (OSError("Odd"), 7, "odd"),
    ],
)
def test_error_is_explained_with_its_remedy(error: OSError, port: int, text: str) -> None:
    assert explain(error, port) == text


# Dialling


class Call:
    """A dial and what came of it."""

    def __init__(self, loop: EventLoop, *addresses: Address | Route) -> None:
        self.sock: socket.socket | None = None
        self.address: Address | None = None
        self.error: OSError | None = None
        self.calls = 0
        self.then: Callable[[], object] = lambda: None
        route = addresses[0] if isinstance(addresses[0], Route) else addresses
        self.dial = Dial(loop, route, TIMEOUT, self.connected, self.failed)

    def connected(self, sock: socket.socket, where: Address) -> None:
        self.calls += 1
        self.sock, self.address = sock, where
        self.then()

    def failed(self, failures: list[tuple[Address, OSError]]) -> None:
        self.calls += 1
        self.failures = failures
        self.address, self.error = failures[-1]


@pytest.fixture
def answering() -> Iterator[Address]:
    with socket.create_server((LOCALHOST, 0)) as listener:
        yield socket.AF_INET, listener.getsockname()


@pytest.fixture
def refusing() -> Iterator[Address]:
    """An address that is taken, so that nobody else listens there, and not listened on."""
    with socket.socket() as sock:
        sock.bind((LOCALHOST, 0))
        yield socket.AF_INET, sock.getsockname()


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Let this process open nothing more (getrlimit(2), RLIMIT_NOFILE)."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def already_connected(monkeypatch: pytest.MonkeyPatch, *sockets: socket.socket) -> None:
    """Let attempts begin with these sockets; whether they are connected is seen in the turn after."""
    waiting = iter(sockets)
    monkeypatch.setattr(address, "_start_connecting", lambda _address, _source: next(waiting))
    monkeypatch.setattr(address, "_has_peer", lambda _sock: False)


def full_pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair of which the first one is not writable, as if it were still connecting."""
    pair = tcp_pair()
    with suppress(BlockingIOError):
        while True:
            pair[0].send(bytes(1 << 20))
    return pair


def test_dial_needs_an_address(loop: EventLoop) -> None:
    with pytest.raises(ValueError, match="no address to connect to"):
        Dial(loop, [], TIMEOUT, pytest.fail, pytest.fail)


def test_dial_connects_without_delay_or_blocking(loop: EventLoop, answering: Address) -> None:
    call = Call(loop, answering)
    run_until(loop, lambda: call.calls)
    with call.sock as sock:
        assert sock.getpeername() == answering[1]
        assert not sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert call.address == answering


def test_connection_made_at_once_is_one(loop: EventLoop, monkeypatch: pytest.MonkeyPatch, answering: Address) -> None:
    class Fast(socket.socket):
        def connect_ex(self, where: object) -> int:
            self.setblocking(True)
            status = super().connect_ex(where)
            self.setblocking(False)
            return status

    monkeypatch.setattr(socket, "socket", Fast)
    call = Call(loop, answering)
    run_until(loop, lambda: call.calls)
    with call.sock as sock:
        assert sock.getpeername() == answering[1]


def test_dial_calls_from_the_loop_and_once(loop: EventLoop, clock: Clock, refusing: Address) -> None:
    call = Call(loop, refusing)
    assert call.calls == 0
    run_until(loop, lambda: call.calls)
    clock.advance(TIMEOUT)
    settle(loop)
    assert call.calls == 1


def test_refusal_is_told(loop: EventLoop, refusing: Address) -> None:
    call = Call(loop, refusing)
    run_until(loop, lambda: call.calls)
    assert isinstance(call.error, ConnectionRefusedError)
    assert call.address == refusing


def test_the_next_address_is_tried(loop: EventLoop, refusing: Address, answering: Address) -> None:
    call = Call(loop, UNREACHABLE, refusing, answering, UNREACHABLE)
    run_until(loop, lambda: call.calls)
    call.sock.close()
    assert call.address == answering


@pytest.mark.parametrize("last", [errno.ECONNREFUSED, errno.ENETUNREACH])
def test_the_last_address_says_why_none_answered(loop: EventLoop, refusing: Address, last: int) -> None:
    addresses = [refusing, UNREACHABLE] if last == errno.ENETUNREACH else [UNREACHABLE, refusing]
    call = Call(loop, *addresses)
    run_until(loop, lambda: call.calls)
    assert call.error.errno == last
    assert call.error.strerror == os.strerror(last)
    assert [address for address, _ in call.failures] == addresses


def test_silence_fails_after_the_timeout(loop: EventLoop, clock: Clock, deaf: Address) -> None:
    call = Call(loop, deaf)
    settle(loop)
    clock.advance(TIMEOUT - 0.5)
    settle(loop)
    assert call.calls == 0
    clock.advance(0.5)
    settle(loop)
    assert (call.error.errno, str(call.error.strerror)) == (errno.ETIMEDOUT, "no answer within 8 s")


def test_a_silent_address_gets_company_after_the_delay(
    loop: EventLoop, clock: Clock, deaf: Address, answering: Address
) -> None:
    call = Call(loop, deaf, answering)
    settle(loop)
    began = clock()
    clock.advance(ATTEMPT_DELAY - 0.01)
    settle(loop)
    assert call.calls == 0
    clock.advance(0.01)
    run_until(loop, lambda: call.calls)
    call.sock.close()
    assert call.address == answering
    assert call.dial.attempted_at == began
    assert [(where, str(error.strerror)) for where, error in call.dial.failures] == [(deaf, "no answer within 250 ms")]


def test_the_first_that_answers_is_taken_and_the_others_are_closed(
    loop: EventLoop, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (slow, peer), (other, other_peer) = full_pair(), full_pair()
    already_connected(monkeypatch, slow, other)
    call = Call(loop, UNREACHABLE, UNREACHABLE)
    settle(loop)
    clock.advance(ATTEMPT_DELAY)
    settle(loop)
    clock.advance(ATTEMPT_DELAY)
    settle(loop)
    assert call.calls == 0

    def drained() -> bool:
        with suppress(BlockingIOError):
            peer.recv(1 << 20)
        return call.calls > 0

    run_until(loop, drained)
    assert call.sock is slow
    assert other.fileno() == -1
    assert call.dial.failures == []  # the other one had less time
    for sock in (slow, peer, other_peer):
        sock.close()


def test_an_attempt_that_had_less_than_the_delay_has_not_failed(
    loop: EventLoop, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (failing, resetting), (pending, silent), (good, peer) = full_pair(), full_pair(), tcp_pair()
    already_connected(monkeypatch, failing, pending, good)
    call = Call(loop, FOUR, SIX, FOUR_TOO)
    settle(loop)
    clock.advance(ATTEMPT_DELAY)
    settle(loop)
    clock.advance(0.01)
    reset(resetting)
    run_until(loop, lambda: call.calls)
    assert call.address == FOUR_TOO
    assert [where for where, _ in call.dial.failures] == [FOUR]
    for sock in (good, peer, silent):
        sock.close()


def test_a_failure_begins_the_next_attempt_while_older_ones_go_on(
    loop: EventLoop, clock: Clock, deaf: Address, refusing: Address
) -> None:
    call = Call(loop, deaf, refusing, refusing)
    settle(loop)
    clock.advance(ATTEMPT_DELAY)
    run_until(loop, lambda: len(call.dial.failures) == 2)
    assert call.calls == 0
    clock.advance(TIMEOUT - ATTEMPT_DELAY)
    settle(loop)
    assert [where for where, _ in call.failures] == [refusing, refusing, deaf]


def test_every_address_has_the_whole_timeout(loop: EventLoop, clock: Clock, deaf: Address) -> None:
    call = Call(loop, deaf, deaf)
    settle(loop)
    clock.advance(ATTEMPT_DELAY)
    settle(loop)
    clock.advance(TIMEOUT - 0.01)
    settle(loop)
    assert call.calls == 0
    clock.advance(0.01)
    settle(loop)
    assert [error.errno for _, error in call.failures] == [errno.ETIMEDOUT] * 2


def test_an_address_that_has_answered_is_not_hurried(
    loop: EventLoop, clock: Clock, deaf: Address, answering: Address
) -> None:
    route = Route([deaf, answering])
    route.learn([], deaf)
    call = Call(loop, route)
    settle(loop)
    clock.advance(TIMEOUT - 0.01)
    settle(loop)
    assert call.calls == 0
    clock.advance(0.01)
    run_until(loop, lambda: call.calls)
    call.sock.close()
    assert call.address == answering
    assert route.order() == [answering, deaf]


@pytest.mark.parametrize(
    ("given", "order"),
    [
        ([SIX, SIX_TOO, FOUR, FOUR_TOO], [SIX, FOUR, SIX_TOO, FOUR_TOO]),
        ([FOUR, FOUR_TOO, SIX], [FOUR, SIX, FOUR_TOO]),
        ([FOUR, SIX, SIX_TOO], [FOUR, SIX, SIX_TOO]),
        ([FOUR_TOO, FOUR], [FOUR_TOO, FOUR]),
        ([], []),
    ],
)
def test_families_alternate_and_the_resolvers_order_stays(given: list[Address], order: list[Address]) -> None:
    assert Route(given).order() == order


def test_addresses_that_failed_come_last_until_they_answer() -> None:
    route = Route([FOUR, SIX, FOUR_TOO])
    route.learn([(FOUR, ERROR)], SIX)
    assert route.order() == [SIX, FOUR_TOO, FOUR]
    route.learn([(SIX, ERROR)], FOUR)
    assert route.order() == [FOUR, FOUR_TOO, SIX]
    route.learn([(FOUR_TOO, ERROR)], FOUR)
    assert route.order() == [FOUR, SIX, FOUR_TOO]
    assert route.answered == {FOUR}
    route.learn([(each, ERROR) for each in (FOUR, SIX, FOUR_TOO)])
    assert route.order() == [FOUR, SIX, FOUR_TOO]
    assert not route.answered


@pytest.mark.parametrize(("all_addresses", "explored"), [(False, [False, True, True]), (True, [False, False, True])])
def test_several_addresses_are_explored_before_the_crowd_comes(all_addresses: bool, explored: list[bool]) -> None:
    assert Route([FOUR], all_addresses=all_addresses).explored
    route = Route([FOUR, SIX], all_addresses=all_addresses)
    seen = [route.explored]
    route.learn([], FOUR)
    seen.append(route.explored)
    route.learn([(SIX, ERROR)])
    assert [*seen, route.explored] == explored


def test_connections_go_round_the_addresses_that_do_not_fail() -> None:
    route = Route([FOUR, SIX, FOUR_TOO], all_addresses=True)
    assert [route.order()[0] for _ in range(4)] == [FOUR, SIX, FOUR_TOO, FOUR]
    route.learn([(SIX, ERROR)], FOUR)
    assert {tuple(route.order()) for _ in range(4)} == {(FOUR, FOUR_TOO, SIX), (FOUR_TOO, FOUR, SIX)}
    route.learn([(each, ERROR) for each in (FOUR, SIX, FOUR_TOO)])
    assert route.order() == [FOUR, SIX, FOUR_TOO]


def test_dial_cancelled_before_it_began_never_calls(loop: EventLoop, answering: Address) -> None:
    call = Call(loop, answering)
    call.dial.cancel()
    settle(loop)
    assert call.calls == 0


def test_dial_cancelled_while_it_waits_never_calls(loop: EventLoop, clock: Clock, deaf: Address) -> None:
    call = Call(loop, deaf, deaf)
    settle(loop)
    call.dial.cancel()
    clock.advance(TIMEOUT)
    settle(loop)
    assert call.calls == 0


def test_dial_cancelled_after_it_failed_stays_as_it_is(loop: EventLoop, refusing: Address) -> None:
    call = Call(loop, refusing)
    run_until(loop, lambda: call.calls)
    call.dial.cancel()
    call.dial.cancel()
    settle(loop)
    assert call.calls == 1


def test_dial_cancelled_after_it_connected_leaves_the_socket_to_its_owner(loop: EventLoop, answering: Address) -> None:
    call = Call(loop, answering)
    run_until(loop, lambda: call.calls)
    with call.sock as sock:
        call.dial.cancel()
        assert sock.getpeername() == answering[1]


def test_dial_cancelled_by_another_that_is_ready_in_the_same_turn_never_calls(
    loop: EventLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [tcp_pair(), tcp_pair()]
    already_connected(monkeypatch, *(ours for ours, _ in pairs))
    one, other = Call(loop, UNREACHABLE), Call(loop, UNREACHABLE)
    one.then, other.then = other.dial.cancel, one.dial.cancel
    settle(loop)
    assert one.calls + other.calls == 1
    assert caplog.messages == []
    assert [ours.fileno() for ours, _ in pairs].count(-1) == 1
    for ours, peer in pairs:
        ours.close()
        peer.close()


def test_connection_to_oneself_is_a_refusal(loop: EventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as sock:
        sock.bind((LOCALHOST, 0))
        sock.connect(sock.getsockname())
        already_connected(monkeypatch, sock)
        call = Call(loop, (socket.AF_INET, sock.getsockname()))
        run_until(loop, lambda: call.calls)
    assert call.error.errno == errno.ECONNREFUSED


def test_a_connection_over_loopback_is_made_before_the_loop_waits(loop: EventLoop, answering: Address) -> None:
    """Otherwise its time would be that of a turn of the loop."""
    call = Call(loop, answering)
    loop.run_once(0)
    call.sock.close()


@pytest.mark.parametrize("no_port", [address.NO_PORT, None])
def test_the_local_address_can_be_chosen(
    loop: EventLoop, answering: Address, monkeypatch: pytest.MonkeyPatch, no_port: int | None
) -> None:
    monkeypatch.setattr(address, "NO_PORT", no_port)
    call = Call(loop, Route([answering], source=local_address(ELSEWHERE)))
    run_until(loop, lambda: call.calls)
    with call.sock as sock:
        assert sock.getsockname()[0] == ELSEWHERE


def test_the_port_of_a_chosen_address_is_left_to_connect() -> None:
    """bind(2) alone would take a port of its own for each connection, to whatever peer."""
    with socket.socket() as sock:
        address._bind(sock, local_address(ELSEWHERE))
        assert sock.getsockname() == (ELSEWHERE, 0)


def test_a_local_address_that_is_not_ours_is_named(loop: EventLoop, answering: Address) -> None:
    call = Call(loop, Route([answering], source=NOT_OURS))
    run_until(loop, lambda: call.calls)
    assert tell_unreachable(call.failures) == (
        f"cannot connect to {format_address(answering[1])}: from 192.0.2.1: cannot assign requested address "
        "(no interface here has this address)"
    )


@pytest.mark.parametrize(
    ("text", "sockaddr"), [("127.0.0.1", ("127.0.0.1", 0)), ("::1", ("::1", 0, 0, 0)), ("fe80::1%lo", None)]
)
def test_a_local_address_is_read(text: str, sockaddr: tuple | None) -> None:
    assert local_address(text)[1] == (sockaddr or ("fe80::1", 0, 0, socket.if_nametoindex("lo")))


@pytest.mark.parametrize("text", ["", "7", "localhost", "127.0.0.1:7", "[::1]", "::1%nosuch", "127.1", "\udcff", "\0"])
def test_what_is_no_address_is_not_connected_from(text: str) -> None:
    with pytest.raises(ValueError, match="is not an IP address: write one, like 192"):
        local_address(text)


def test_want_of_descriptors_is_told(loop: EventLoop, answering: Address) -> None:
    call = Call(loop, answering)
    with no_descriptor_left():
        settle(loop)
    assert call.error.errno == errno.EMFILE
