"""Interoperability: our client against servers, and our server against clients, that nobody here wrote.

Of each is asked what it can do. ncat before 7.96 ends a connection at EOF with the echo still in the command that it
runs (nmap/nmap#962), and 7.93 hangs with some 256 KiB under way in cat, for it writes to cat without reading from it:
so no EOF behind a stream, and little under way. socat's PIPE hangs likewise, once its pipe is full, and is left out
for EXEC. bash cannot half-close.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from random import Random
from threading import Thread

import pytest

from helpers import COMMANDS, HUNG, LOCALHOST, run_client, running_server

STREAM = Random(7).randbytes(4 * 1024 * 1024)


def require(tool: str) -> None:
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")


async def stream_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


class ProtocolEcho(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


def socket_echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


def inetd_cat(sock: socket.socket) -> None:
    """Serve as inetd(8) does a "nowait" service: the connection is the program's standard input and output."""
    subprocess.run(["cat"], stdin=sock, stdout=sock, check=True)


@contextmanager
def asyncio_server(start: Callable) -> Iterator[int]:
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        server = runner.run(start(loop))
        thread = Thread(target=loop.run_forever)
        thread.start()
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            server.close()


@contextmanager
def socketserver_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            serve(self.request)

    with socketserver.ThreadingTCPServer((LOCALHOST, 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def tool_server(*command: str) -> Iterator[int]:
    """Run a tool that listens, `{}` being the port, and end it with all that it started.

    The port is certain to be free for it, and for nobody else: we have bound it. With SO_REUSEADDR on both sides Linux
    lets one of the two listen (socket(7)), and gives the port to no one who asks for any.
    """
    require(command[0])
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((LOCALHOST, 0))
        port = reserved.getsockname()[1]
        process = subprocess.Popen(
            [part.format(port) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        try:
            assert any("istening on" in line for line in process.stderr)  # said once it does
            yield port
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()  # until the last of the group has let go of the pipe


# -t20: at the default, socat ends when nothing moves for half a second after EOF; a busy machine may bring that about.
SOCAT = ("socat", "-dd", "-t20", f"TCP-LISTEN:{{}},bind={LOCALHOST},reuseaddr,fork", "EXEC:cat")
NCAT = ("ncat", "-v", "-l", "-k", LOCALHOST, "{}", "--exec", "/bin/cat")

WHOLE_SERVERS = {
    "asyncio-streams": partial(asyncio_server, lambda _loop: asyncio.start_server(stream_echo, LOCALHOST, 0)),
    "asyncio-protocol": partial(asyncio_server, lambda loop: loop.create_server(ProtocolEcho, LOCALHOST, 0)),
    "socketserver": partial(socketserver_server, socket_echo),
    "inetd-cat": partial(socketserver_server, inetd_cat),
    "socat-exec-cat": partial(tool_server, *SOCAT),
}
SERVERS = WHOLE_SERVERS | {"ncat-exec-cat": partial(tool_server, *NCAT)}


@pytest.mark.parametrize("server", SERVERS)
def test_messages_come_back_from(server):
    with SERVERS[server]() as port:
        address = f"{LOCALHOST}:{port}"
        talk = run_client(address, "--conns", "2", "-m", "one", "-m", "two")
        load = run_client(address, "--conns", "3", "--count", "9", "--size", "16K")
    assert (talk.returncode, talk.stderr) == (load.returncode, load.stderr) == (0, "")
    assert "2 connections, 4 messages came back, all 12 bytes intact" in talk.stdout
    assert "Every byte came back: 9 messages, 144 KiB." in load.stdout


@pytest.mark.parametrize("server", WHOLE_SERVERS)
def test_a_stream_half_closed_at_its_end_comes_back_from(server):
    with SERVERS[server]() as port:
        done = run_client(f"{LOCALHOST}:{port}", "-", input=STREAM, text=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == STREAM


@pytest.mark.parametrize("server", WHOLE_SERVERS)
def test_many_large_messages_under_way_come_back_from(server):
    with SERVERS[server]() as port:
        done = run_client(f"{LOCALHOST}:{port}", "--conns", "2", "--count", "8", "--size", "1M", "--pipeline", "4")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Every byte came back: 8 messages, 8.00 MiB." in done.stdout


def test_what_ncat_loses_at_eof_does_not_go_unnoticed():
    """Whether it does depends on its version and on who is faster; our exit status must not."""
    with SERVERS["ncat-exec-cat"]() as port:
        done = run_client(f"{LOCALHOST}:{port}", "-", input=STREAM[:1000], text=False)
    if done.stdout == STREAM[:1000]:
        assert (done.returncode, done.stderr) == (0, b"")
    else:
        assert done.returncode == 1
        assert b"the server closed at offset 0: 1,000 bytes sent did not come back" in done.stderr


def tool_client(*command: str) -> Callable[[int], bytes]:
    """Return what runs a tool with the stream as its standard input, and returns its standard output."""

    def run(port: int) -> bytes:
        require(command[0])
        arguments = [part.format(port) for part in command]
        return subprocess.run(arguments, input=STREAM, capture_output=True, check=True, timeout=HUNG).stdout

    return run


def asyncio_client(port: int) -> bytes:
    async def talk() -> bytes:
        reader, writer = await asyncio.open_connection(LOCALHOST, port)
        writer.write(STREAM)
        writer.write_eof()
        echo = await reader.read()
        writer.close()
        await writer.wait_closed()
        return echo

    return asyncio.run(asyncio.wait_for(talk(), HUNG))


BASH = f"exec 3<>/dev/tcp/{LOCALHOST}/{{}}; cat <&0 >&3 & head -c {len(STREAM)} <&3"
CLIENTS = {
    "asyncio-streams": asyncio_client,
    "socat": tool_client("socat", "-t20", "-", f"TCP:{LOCALHOST}:{{}}"),
    "ncat": tool_client("ncat", LOCALHOST, "{}"),
    "bash-without-half-close": tool_client("bash", "-c", BASH),
}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_stream_comes_back_to(client):
    with running_server() as (server, port):
        echo = CLIENTS[client](port)
        server.terminate()
        _, log = server.communicate(timeout=HUNG)
    assert echo == STREAM
    assert "closed: 4,194,304 bytes received, 4,194,304 bytes sent" in log
    assert server.returncode == 0


LINK_DOWN = """
import socket, subprocess, sys
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
with subprocess.Popen([sys.argv[1], "--host", "127.0.0.1", "--port", "0", "--keepalive", "1"],
                      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
    address = "127.0.0.1", int(server.stdout.readline().rpartition(":")[2])
    peers = [socket.create_connection(address) for _ in range(5)]
    assert all("connected" in server.stderr.readline() for _ in peers)
    subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
    for _ in peers:
        print(server.stderr.readline().split("  ", 2)[2], end="", flush=True)
    server.terminate()
"""


def test_peers_behind_a_link_that_went_down_are_noticed():
    """In a network namespace, whose loopback goes down."""
    for tool in ("ip", "unshare"):
        require(tool)
    if subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may not make network namespaces")
    command = ["unshare", "--net", sys.executable, "-c", LINK_DOWN, COMMANDS / "echo-server"]
    seen = subprocess.run(command, check=True, capture_output=True, text=True, timeout=HUNG).stdout
    assert seen == "lost (connection timed out): 0 bytes received, 0 bytes sent\n" * 5
