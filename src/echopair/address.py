"""Addresses: from what a user types to sockets that listen or connect, and back to text.

It is the one place that resolves names and binds. Names are resolved in a thread, because getaddrinfo(3) blocks;
connecting never does.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import zip_longest
from threading import Thread

from echopair.loop import WRITE, EventLoop, Timer

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would take a tenth of the start
    from typing import Any

MAX_BACKLOG = 2**31 - 1  # an int; the system cuts it to the most that it grants (listen(2))
KEEPALIVE = 60.0  # seconds
MOST_KEEPALIVE = 32767  # seconds; what TCP_KEEPIDLE takes
PROBES = 6  # unanswered probes, after which a peer counts as vanished
UNSENT = 256 * 1024  # bytes, at most, that the kernel holds unsent for one peer
UNNAMED = {"TCP_RTO_MAX_MS": 44} if sys.platform == "linux" else {}  # Linux 6.15; Python has no name for it
PORT_ATTEMPTS = 16  # free ports to try until one is free on every address
ATTEMPT_DELAY = 0.25  # seconds from one attempt to the next (RFC 8305 8, Connection Attempt Delay)
NO_PORT: int | None = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", None)  # Linux
IN_PROGRESS = (0, errno.EINPROGRESS, errno.EWOULDBLOCK)  # the last is what Windows says

FAMILY_MISSING = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)  # IPv6 compiled out, switched off

PRIVILEGED = "ports below 1024 need privileges"
REMEDIES = {
    errno.EADDRINUSE: "choose another port, or 0 for any that is free",
    errno.EADDRNOTAVAIL: "no interface here has this address",
    errno.ECONNREFUSED: "nothing listens there",
    errno.EMFILE: "too many open files for this process; see ulimit -n",
    errno.ENFILE: "too many open files on this machine",
}
# connect(2): no port of the ephemeral range is free towards that address; or IPv6 is switched off
NO_LOCAL_PORT = "no local port is left for it: use fewer connections, or widen net.ipv4.ip_local_port_range"

NOT_YET = {"unix": "a Unix socket", "udp": "UDP", "tls": "TLS", "ssl": "TLS", "https": "TLS"}  # by scheme

Address = tuple[int, "Any"]  # a family and a socket address: one of the ways to reach a host
Failure = tuple[Address, OSError]  # of an attempt to connect


class AddressError(Exception):
    """A name that does not resolve or an address that cannot be used; says which, why, and what to do."""


def format_address(sockaddr: Any) -> str:
    """Return `127.0.0.1:80`, `[::1]:80`, with its zone `[fe80::1%eth0]:80`; the path of a Unix socket, maybe empty."""
    if not isinstance(sockaddr, tuple):
        return str(sockaddr)
    host, port = sockaddr[:2]
    if len(sockaddr) > 3 and sockaddr[3]:
        host = f"{host}%{_zone(sockaddr[3])}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _zone(scope: int) -> str:
    """Return the name of an interface (RFC 4007 11.2), or its number if it is gone."""
    try:
        return socket.if_indextoname(scope)
    except OSError:
        return str(scope)


def split_host_port(text: str) -> tuple[str, int | None]:
    """Split `HOST`, `HOST:PORT`, `:PORT`, `[IPV6]` or `[IPV6]:PORT`; what is missing is "" or None.

    Raises ValueError, saying what is wrong (RFC 3986 3.2.2 for the brackets).
    """
    _check_scheme(text)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is not an address: write [IPV6]:PORT, like [::1]:12345")
        port = rest[1:] if rest else None
    elif text.count(":") > 1:
        raise ValueError(f"{text!r} is ambiguous: put an IPv6 address in brackets, like [::1]:12345")
    else:
        host, colon, rest = text.partition(":")
        port = rest if colon else None
        if re.fullmatch("[0-9]{1,5}", text):
            raise ValueError(f"{text!r} looks like a port: write :{parse_port(text)}")
    _check_host(host)
    return host, None if port is None else parse_port(port)


def _check_scheme(text: str) -> None:
    """Raise ValueError for a URL, and for a prefix of socat's, as in `tcp:host:7` and `unix:/tmp/x`."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, separator, rest = text.partition(":")
        if not re.fullmatch("(tcp|udp)[46]?|unix", scheme, re.IGNORECASE) or rest.isdecimal():  # a host's name
            return
    what = NOT_YET.get(scheme.lower().rstrip("46"))
    address = "" if scheme.lower() == "unix" else rest.partition("/")[0].rpartition("@")[2]
    if not re.search(r":\w+$", address):
        address = f"{address or 'HOST'}:PORT"
    if what:
        raise ValueError(f"{text!r} asks for {what}, but only plain TCP works so far: write {address}")
    raise ValueError(f"{text!r} is not an address: write {address}, without {scheme}{separator}")


def _check_host(host: str) -> None:
    """Raise ValueError for a host that must not reach a resolver.

    inet_aton(3), and so every resolver, takes `127.1`, `0x7f000001` and `010.0.0.1` for addresses, the last one for
    8.0.0.1. A typing error must not connect to a stranger.
    """
    if "/" in host:
        raise ValueError(f"{host!r} is a path, not a host: write HOST:PORT")
    try:
        meant = socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, ValueError):  # a name, an IPv6 address; a NUL
        meant = host
    if meant != host:
        raise ValueError(f"{host!r} would be read as the address {meant}: write that")
    if host.lower().startswith(("fe8", "fe9", "fea", "feb")) and ":" in host and "%" not in host:  # RFC 4291 2.5.6
        raise ValueError(f"{host!r} is link-local: add the interface, like {host}%eth0")


def parse_port(text: str) -> int:
    """Return the port number that `text` says; raises ValueError where it says none from 0 to 65535."""
    if not text:
        raise ValueError("there is no port after the colon")
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise ValueError(f"{text!r} is not a port: give a number from 0 to 65535")
    return int(text)


def resolve(host: str, port: int, family: int = socket.AF_UNSPEC, *, passive: bool = False) -> list[Address]:
    """Return every stream address that `host` has, in the resolver's order, each once (RFC 6724).

    With `passive` an empty host means every interface, without it the loopback (getaddrinfo(3), AI_PASSIVE).
    Raises AddressError.
    """
    flags = socket.AI_PASSIVE if passive else 0
    try:
        # Bytes, where they will do: a string is encoded by a codec that takes a millisecond to import.
        name = host.encode("ascii" if host.isascii() else "idna") or None
        if "\0" in host:
            raise ValueError("a NUL in it")  # the resolver would stop reading there
        found = socket.getaddrinfo(name, port, family, socket.SOCK_STREAM, 0, flags)
    except socket.gaierror as error:
        kind = "IPv4" if family == socket.AF_INET else "IPv6" if family == socket.AF_INET6 else ""
        remedy = f"has it an {kind} address?" if kind else "check the name"
        raise AddressError(f"cannot resolve {host!r}: {error.strerror}; {remedy}") from None
    except OSError as error:  # EAI_SYSTEM
        raise AddressError(f"cannot resolve {host!r}: {explain(error)}") from None
    except (UnicodeError, ValueError) as error:  # a label over 63 characters, a NUL
        raise AddressError(f"cannot resolve {host!r}: not a host name ({error})") from None
    return list(dict.fromkeys((entry[0], entry[4]) for entry in found))


class Lookup(Thread):
    """A `resolve()` in its own thread, which calls `done()` at the end.

    Python handles no signal while getaddrinfo(3) blocks the main thread. This thread may block: the
    main one handles signals, and the process can end without waiting for it.
    """

    def __init__(
        self,
        host: str,
        port: int,
        family: int = socket.AF_UNSPEC,
        *,
        passive: bool = False,
        done: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(daemon=True)
        self._resolve = partial(resolve, host, port, family, passive=passive)
        self._done = done
        self._found: list[Address] | AddressError
        self.start()

    def run(self) -> None:
        """Resolve the name."""
        try:
            self._found = self._resolve()
        except AddressError as error:
            self._found = error
        finally:
            self._done()

    def addresses(self) -> list[Address]:
        """Return what `resolve()` returned, once it has; raises AddressError."""
        self.join()
        if isinstance(self._found, AddressError):
            raise self._found
        return self._found


def listen(
    hosts: Iterable[str],
    port: int,
    family: int = socket.AF_UNSPEC,
    backlog: int | None = None,
    *,
    keepalive: float = KEEPALIVE,
) -> list[socket.socket]:
    """Return a listening, non-blocking socket for every address of `hosts`, all on the same port.

    Port 0 takes one that is free on all of them. An address of a family that this machine lacks is left out unless
    it is the only one. `backlog` None is the system's maximum (listen(2)). Peers of accepted sockets are
    probed after `keepalive` silent seconds (`keep_alive`; inf: never). Raises AddressError, with nothing left open.
    """
    groups = [Lookup(host, port, family, passive=True).addresses() for host in hosts]
    attempts = 1 if port else PORT_ATTEMPTS
    while True:
        attempts -= 1
        try:
            return _listen_all(groups, port, backlog, keepalive)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not attempts:
                raise AddressError(f"cannot listen on {error.filename}: {explain(error, port)}") from None


def _listen_all(groups: list[list[Address]], port: int, backlog: int | None, keepalive: float) -> list[socket.socket]:
    """Listen on all or raise OSError, its `filename` saying where; each host's addresses are one group."""
    listeners: dict[Address, socket.socket] = {}
    try:
        for addresses in groups:
            missing: OSError | None = None
            for address in addresses:
                if address in listeners:
                    continue
                try:
                    listeners[address] = _listen_on(address, port, backlog, keepalive)
                except OSError as error:
                    error.filename = format_address((address[1][0], port, *address[1][2:]))
                    if error.errno not in FAMILY_MISSING:
                        raise
                    missing = error
                else:
                    port = listeners[address].getsockname()[1]
            if missing and listeners.keys().isdisjoint(addresses):
                raise missing
    except OSError:
        for listener in listeners.values():
            listener.close()
        raise
    return list(listeners.values())


class Listener(socket.socket):
    """A listening socket whose family and type are plain ints.

    socket.socket makes an enum member of each for whoever asks, as its own `accept()` does: a microsecond a connection.
    """

    __slots__ = ("family", "type")

    def __init__(self, family: int, type: int) -> None:  # noqa: A002 - as socket.socket has it
        super().__init__(family, type)
        self.family = int(family)  # type: ignore[misc, assignment]
        self.type = int(type)  # type: ignore[misc, assignment]


def _listen_on(address: Address, port: int, backlog: int | None, keepalive: float) -> socket.socket:
    family, sockaddr = address
    listener = Listener(family, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        if os.name == "posix":  # elsewhere the option would let two programs share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # 0.0.0.0 and :: side by side
        # Accepted sockets inherit it: without it an echo may wait 40 ms for a delayed ACK (RFC 896, tcp(7)).
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # They inherit this too: an urgent byte stays in its place, because it must come back (tcp(7), SO_OOBINLINE).
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        keep_alive(listener, keepalive)
        # A peer that does not read costs 0.3 MiB of the kernel's memory for sending, not 4 (tcp(7), tcp_wmem).
        _set_if_there(listener, TCP_NOTSENT_LOWAT=UNSENT)
        listener.bind((sockaddr[0], port, *sockaddr[2:]))
        listener.listen(MAX_BACKLOG if backlog is None else min(backlog, MAX_BACKLOG))
    except BaseException:
        listener.close()
        raise
    return listener


def keep_alive(sock: socket.socket, seconds: float) -> None:
    """Make the kernel notice a vanished peer about twice `seconds` after its last byte; inf: do nothing.

    It probes a peer after `seconds` of silence, then up to `PROBES` times within the same time again. If no probe is
    answered, it fails the connection with ETIMEDOUT (tcp(7), SO_KEEPALIVE; whole seconds). While bytes are
    unacknowledged it retransmits instead, by default for 15 minutes (tcp_retries2). TCP_RTO_MAX_MS makes the pauses
    between retransmissions as short as those between probes, so that they give up about as soon, but not before 15
    seconds. TCP_USER_TIMEOUT would also end a peer that answers but does not read. Accepted sockets inherit all of it
    from their listener.
    """
    if seconds == float("inf"):
        return
    idle = max(round(min(seconds, MOST_KEEPALIVE)), 1)
    probes = min(PROBES, idle)
    interval = round(idle / probes)
    longest = min(interval, 120) * 1000  # between two retransmissions; the kernel takes 1,000 to 120,000 ms
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    _set_if_there(sock, TCP_KEEPIDLE=idle, TCP_KEEPINTVL=interval, TCP_KEEPCNT=probes, TCP_RTO_MAX_MS=longest)


def _set_if_there(sock: socket.socket, **options: int) -> None:
    """Set the TCP `options` that the system knows."""
    for name, value in options.items():
        try:
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name, UNNAMED.get(name, -1)), value)
        except OSError:
            pass


def explain(error: OSError, port: int = 0, *, connecting: bool = False) -> str:
    """Return what went wrong, in words, with the remedy where one is known."""
    reason = (error.strerror or str(error)).lower()
    if error.errno == errno.EACCES and 0 < port < 1024:
        return f"{reason} ({PRIVILEGED})"
    remedy = REMEDIES.get(error.errno or 0)
    if connecting and error.filename is not None:
        reason = f"from {error.filename}: {reason}"
    elif connecting and error.errno == errno.EADDRNOTAVAIL:
        remedy = NO_LOCAL_PORT
    return f"{reason} ({remedy})" if remedy else reason


def tell_unreachable(failures: Iterable[Failure]) -> str:
    """Return the story of a `Dial` that has failed: what became of each address."""
    return f"cannot connect to {tell_attempts(failures)}"


def tell_attempts(failures: Iterable[Failure]) -> str:
    """Return why the attempts to connect failed, each with its address."""
    return "; ".join(f"{format_address(address[1])}: {explain(error, connecting=True)}" for address, error in failures)


def local_address(text: str) -> Address:
    """Return the local address in `text`, with port 0; raises ValueError.

    A name is refused: it may have several addresses, or those of another machine.
    """
    try:
        if ":" not in text:
            # getaddrinfo(3) would take "7" for 0.0.0.7.
            socket.inet_pton(socket.AF_INET, text)
        numeric = socket.AI_NUMERICHOST
        found = socket.getaddrinfo(text, 0, socket.AF_UNSPEC, socket.SOCK_STREAM, 0, numeric)
    except (OSError, UnicodeError, ValueError):
        raise ValueError(f"{text!r} is not an IP address: write one, like 192.0.2.1 or ::1") from None
    return found[0][0], found[0][4]


class Route:
    """The addresses of one service, the local address to connect from, and what a run has learned about them.

    Families alternate, and within a family the resolver's order stays (RFC 8305 4, RFC 6724).
    Addresses that failed come last. With `all_addresses`, each connection starts with the next address in turn.
    """

    def __init__(
        self, addresses: Iterable[Address], *, source: Address | None = None, all_addresses: bool = False
    ) -> None:
        addresses = list(addresses)
        first = [address for address in addresses if address[0] == addresses[0][0]]
        others = [address for address in addresses if address[0] != addresses[0][0]]
        self._addresses = [each for pair in zip_longest(first, others) for each in pair if each]
        self._all_addresses = all_addresses
        self._turn = 0
        self._failed: set[Address] = set()
        self.answered: set[Address] = set()
        self.source = source

    @property
    def explored(self) -> bool:
        """Whether enough is known about the addresses to begin several connections at once."""
        tried = len(self.answered | self._failed)
        return len(self._addresses) == 1 or tried >= (len(self._addresses) if self._all_addresses else 1)

    def order(self) -> list[Address]:
        """Return the addresses in the order in which the next connection must try them."""
        live = [address for address in self._addresses if address not in self._failed]
        if live and self._all_addresses:
            self._turn = (self._turn + 1) % len(live)
            live = live[self._turn - 1 :] + live[: self._turn - 1]
        return live + [address for address in self._addresses if address in self._failed]

    def learn(self, failures: Iterable[Failure], address: Address | None = None) -> None:
        """Note which addresses failed and which one answered."""
        failed = {each for each, _ in failures}
        self._failed |= failed
        self.answered -= failed
        if address:
            self._failed.discard(address)
            self.answered.add(address)


class Dial:
    """Attempts to connect to `addresses`, one after the other, until one answers; never blocks (RFC 8305).

    The next attempt begins when one fails, or after ATTEMPT_DELAY without an answer; earlier attempts
    continue meanwhile. For an address that has answered before in this run ATTEMPT_DELAY does not
    count: only its failure begins the next attempt, so that a slow server is measured and not
    avoided. Each attempt may take `timeout` seconds, so all together may take `timeout` plus
    ATTEMPT_DELAY for each address after the first.

    A Dial ends with one call from the loop, `connected(sock, address)` or `failed(failures)`; after
    `cancel()` with none. `failures` lists each address that failed or was too late, and why.
    A list of addresses is the same as a new Route.
    """

    def __init__(
        self,
        loop: EventLoop,
        addresses: Route | Iterable[Address],
        timeout: float,
        connected: Callable[[socket.socket, Address], object],
        failed: Callable[[list[Failure]], object],
    ) -> None:
        self._loop = loop
        self._route = addresses if isinstance(addresses, Route) else Route(addresses)
        self._addresses = deque(self._route.order())
        if not self._addresses:
            raise ValueError("no address to connect to")
        self._timeout = timeout
        self.attempted_at = 0.0  # when the first attempt began, by the loop's clock
        self.failures: list[Failure] = []
        self._connected = connected
        self._failed = failed
        # In flight, the oldest first: address, time of the beginning, and the timer that ends the attempt.
        self._attempts: dict[socket.socket, tuple[Address, float, Timer]] = {}
        self._timer = loop.call_later(0, self._attempt)

    def cancel(self) -> None:
        """Give up, without a call."""
        self._timer.cancel()
        for sock in list(self._attempts):
            self._withdraw(sock)
            sock.close()

    def _attempt(self) -> None:
        address = self._addresses.popleft()
        began = self._loop.clock()
        if not (self.failures or self._attempts):
            self.attempted_at = began
        try:
            sock = _start_connecting(address, self._route.source)
        except OSError as error:
            self._fail(address, error)
            return
        if _has_peer(sock):
            # Over loopback connect(2) does all of the work; if the loop had to notice this, the connect
            # time would include a turn of the loop.
            self._conclude(sock, address, began)
            return
        timer = self._loop.call_later(self._timeout, lambda: self._give_up(sock))
        self._attempts[sock] = address, began, timer
        self._loop.watch(sock, WRITE, lambda _events: self._decide(sock))
        if self._addresses and address not in self._route.answered:
            self._timer = self._loop.call_later(ATTEMPT_DELAY, self._attempt)

    def _decide(self, sock: socket.socket) -> None:
        self._conclude(sock, *self._withdraw(sock))

    def _conclude(self, sock: socket.socket, address: Address, began: float) -> None:
        """Take the connection if it is made; a writable socket may also have failed (connect(2))."""
        try:
            _check_connected(sock)
        except OSError as error:
            sock.close()
            self._fail(address, error)
            return
        late = OSError(errno.ETIMEDOUT, f"no answer within {ATTEMPT_DELAY * 1000:g} ms")
        now = self._loop.clock()
        for other, since, _ in self._attempts.values():
            if since < began and now - since >= ATTEMPT_DELAY:
                self.failures.append((other, late))
        self.cancel()
        self._route.learn(self.failures, address)
        self._connected(sock, address)

    def _give_up(self, sock: socket.socket) -> None:
        address, _ = self._withdraw(sock)
        sock.close()
        self._fail(address, OSError(errno.ETIMEDOUT, f"no answer within {self._timeout:g} s"))

    def _fail(self, address: Address, error: OSError) -> None:
        self.failures.append((address, error))
        self._timer.cancel()
        if self._addresses:
            self._timer = self._loop.call_later(0, self._attempt)
        elif not self._attempts:
            self._route.learn(self.failures)
            self._failed(self.failures)

    def _withdraw(self, sock: socket.socket) -> tuple[Address, float]:
        """Take an attempt out of those in flight; return its address and when it began."""
        address, began, timer = self._attempts.pop(sock)
        timer.cancel()
        self._loop.watch(sock, 0)
        return address, began


def _start_connecting(address: Address, source: Address | None = None) -> socket.socket:
    family, sockaddr = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if isinstance(sockaddr, tuple):  # not a Unix socket's path
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        if source:
            _bind(sock, source)
        status = sock.connect_ex(sockaddr)
        if status not in IN_PROGRESS:
            raise OSError(status, os.strerror(status))
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, source: Address) -> None:
    """Bind to an address; connect(2) chooses the port and can use it for several peers (ip(7)).

    Raises OSError with the address in `filename`.
    """
    if NO_PORT is not None:
        sock.setsockopt(socket.IPPROTO_IP, NO_PORT, 1)
    try:
        sock.bind(source[1])
    except OSError as error:
        error.filename = source[1][0]
        raise


def _has_peer(sock: socket.socket) -> bool:
    """Return whether a socket is connected already (getpeername(2), ENOTCONN)."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _check_connected(sock: socket.socket) -> None:
    status = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if status:
        raise OSError(status, os.strerror(status))
    if sock.getsockname() == sock.getpeername():
        # Nobody listens, but the kernel picked that very port for our end: TCP connected us to ourselves, and every
        # byte would come back (simultaneous open, RFC 9293 3.5).
        raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
