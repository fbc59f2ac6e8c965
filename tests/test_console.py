"""The installed commands, as processes: what a user, a shell script or a supervisor sees."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from helpers import COMMANDS, HUNG, LOCALHOST, reset, run_client, running, running_server
from test_cli_streams import Stream
from test_cli_workers import until
from test_measure_schema import VALIDATOR

KIB, MIB = 1024, 1024 * 1024


def connect(port: int, receive_buffer: int = 0) -> socket.socket:
    """Connect; with a receive buffer of this size, for the kernel may let it grow to tens of MiB."""
    peer = socket.socket()
    peer.settimeout(HUNG)
    if receive_buffer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    peer.connect((LOCALHOST, port))
    return peer


def status_of(process: subprocess.Popen, field: str) -> int:
    """A figure from /proc/PID/status, in bytes."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)[1]) * KIB


def cpu_seconds(process: subprocess.Popen) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def shell(command: str, **options) -> subprocess.CompletedProcess[str]:
    """Run a line of bash to its end."""
    return subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True, timeout=HUNG, **options)


def read_to_end(sock: socket.socket) -> bytes:
    data = bytearray()
    while chunk := sock.recv(MIB):
        data += chunk
    return bytes(data)


def fill_the_path(sock: socket.socket, payload: bytes) -> int:
    """Send without reading until nothing has moved for a while; return how much was sent.

    Another process takes what is sent, and a machine may be busy with others for longer: then it is less.
    """
    sock.settimeout(0.2)
    sent = 0
    try:
        while sent < len(payload):
            sent += sock.send(memoryview(payload)[sent : sent + 65536])
    except TimeoutError:
        pass
    sock.settimeout(HUNG)
    return sent


# The main job


def test_the_pair_from_two_terminals():
    with running_server() as (server, port):
        client = run_client("--port", str(port), "--conns", "2")
        server.send_signal(signal.SIGINT)
        _, log = server.communicate(timeout=HUNG)
    assert client.returncode == 0
    assert client.stderr == ""
    assert "2 connections, 4 messages came back, all 102 bytes intact" in client.stdout
    assert "served 2 connections" in log
    assert server.returncode == 0


def test_the_first_line_says_where_and_then_stdout_is_silent():
    with running("echo-server", "--host", LOCALHOST, "--port", "0") as server:
        line = server.stdout.readline()
        assert re.fullmatch(r"Listening on 127\.0\.0\.1:\d+\n", line)
        connect(int(line.rpartition(":")[2])).close()
        server.send_signal(signal.SIGTERM)
        rest, _ = server.communicate(timeout=HUNG)
        assert rest == ""


def test_any_file_goes_through_the_pipe_and_back(tmp_path):
    (tmp_path / "file").write_bytes(os.urandom(20 * MIB))
    with running_server() as (_, port):
        command = f'cat file | "{COMMANDS}/echo-client" {LOCALHOST}:{port} - | cmp - file; echo "${{PIPESTATUS[*]}}"'
        result = shell(command, cwd=tmp_path)
    assert result.stdout == "0 0 0\n"
    assert result.stderr == ""


def test_a_long_stream_needs_no_more_memory_than_a_short_one():
    figures = {}
    for size in (1 * MIB, 200 * MIB):
        with running(
            "echo-client", "--loopback", "-", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=False
        ) as client:
            block = bytes(MIB)
            for _ in range(size // MIB):
                client.stdin.write(block)
            client.stdin.flush()
            figures[size] = status_of(client, "VmHWM")
            client.stdin.close()
            client.wait(HUNG)
            client.stdin = None
            assert client.returncode == 0
    assert figures[200 * MIB] - figures[1 * MIB] < 16 * MIB


def test_a_message_of_64_mib_does_not_deadlock():
    with running_server() as (server, port):
        client = run_client(f"{LOCALHOST}:{port}", "-s", "64M")
        assert "Every byte came back: 1 message, 64.0 MiB." in client.stdout
        assert status_of(server, "VmHWM") < 64 * MIB


# What peers may do to the server


def test_a_half_closed_stream_comes_back_whole_to_a_late_reader():
    payload = os.urandom(16 * MIB)
    with running_server() as (_, port), connect(port, 65536) as peer:
        sent = fill_the_path(peer, payload)
        assert sent < len(payload)
        received = bytearray()
        peer.setblocking(False)
        while len(received) < len(payload):
            try:
                if sent < len(payload):
                    sent += peer.send(memoryview(payload)[sent:])
                    if sent == len(payload):
                        peer.shutdown(socket.SHUT_WR)
            except BlockingIOError:
                pass
            try:
                received += peer.recv(20_000)
            except BlockingIOError:
                pass
        assert received == payload


def test_peers_that_never_read_cost_little():
    with running_server("-q") as (server, port):
        before = status_of(server, "VmRSS")
        peers = [connect(port, 65536) for _ in range(20)]
        payload = bytes(32 * MIB)
        with ThreadPoolExecutor(len(peers)) as pool:
            assert all(pool.map(lambda peer: fill_the_path(peer, payload), peers))
        assert status_of(server, "VmRSS") - before < 20 * MIB
        with connect(port) as neighbour:
            neighbour.sendall(b"hello")
            assert neighbour.recv(100) == b"hello"
        for peer in peers:
            peer.close()


def test_resets_leave_a_neighbour_served():
    with running_server() as (_, port), connect(port) as neighbour:
        for _ in range(50):
            peer = connect(port)
            peer.sendall(bytes(1000))
            reset(peer)
        neighbour.sendall(b"hello")
        neighbour.shutdown(socket.SHUT_WR)
        assert read_to_end(neighbour) == b"hello"


def test_short_of_descriptors_it_neither_dies_nor_spins():
    with running_server("-q", preexec_fn=few_descriptors) as (server, port):
        peers = [connect(port) for _ in range(100)]
        for peer in peers:
            peer.sendall(b"hello")
            peer.shutdown(socket.SHUT_WR)
        assert [read_to_end(peer) for peer in peers] == [b"hello"] * 100
        for peer in peers:
            peer.close()
        server.terminate()
        _, log = server.communicate(timeout=HUNG)
    assert server.returncode == 0
    assert log.count("not accepting for now: too many open files") == 1


def test_out_of_descriptors_it_sleeps_and_can_still_be_stopped():
    with running_server("-q", "--drain-timeout", "0", preexec_fn=few_descriptors) as (server, port):
        peers = [connect(port) for _ in range(100)]
        peers[0].sendall(b"hello")
        assert peers[0].recv(100) == b"hello"
        before = cpu_seconds(server)
        select.select([], [], [], 0.5)  # the measure: a server that spins takes all of this time
        assert cpu_seconds(server) - before < 0.1
        server.terminate()
        assert server.wait(HUNG) == 0
        for peer in peers:
            peer.close()


def few_descriptors() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def test_sigterm_with_megabytes_owed_delivers_them():
    payload = os.urandom(32 * MIB)
    with running_server() as (server, port), connect(port) as peer:
        sent = 0
        while sent < 2 * MIB:
            sent += fill_the_path(peer, payload[sent:])
        server.terminate()
        assert read_to_end(peer) == payload[:sent]
        peer.close()
        assert server.wait(HUNG) == 0


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_a_log_that_nobody_reads_stops_neither_the_service_nor_its_end(kind):
    stream = Stream(kind)
    with running_server("-v", stderr=stream.descriptor) as (server, port):
        for _ in range(1200):  # of two lines each: more than a pipe holds, or a terminal
            connect(port).close()
        with connect(port) as peer:
            peer.sendall(b"hello")
            assert peer.recv(100) == b"hello"
        server.terminate()
        assert server.wait(HUNG) == 0
    stream.close()


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_lines_and_a_meter_that_nobody_reads_stop_no_measurement(kind):
    stream = Stream(kind)
    arguments = ["--loopback", "-d", "0.6", "-i", "10ms", "--json"]  # sixty lines are more than the stream holds
    with running("echo-client", *arguments, stderr=stream.descriptor) as client:
        out, _ = client.communicate(timeout=HUNG)
    assert client.returncode == 0
    assert json.loads(out)["duration_s"] < 5
    stream.close()


# What users may do


def test_ctrl_c_ends_a_long_run_with_its_report():
    with running("echo-client", "--loopback", "-c", "4", "-n", "100m") as client:
        until(lambda: status_of(client, "VmRSS") >= 14 * MIB and cpu_seconds(client) >= 0.3)  # it has come to work
        client.send_signal(signal.SIGINT)
        out, err = client.communicate(timeout=HUNG)
    assert client.returncode == 130
    assert "Interrupted by SIGINT after " in out
    assert err == ""


# Measured runs


def test_a_server_that_is_stopped_shows_in_the_response_of_many_and_in_the_service_of_few():
    arguments = ["-c", "10", "-d", "3", "-i", "0.5", "-r", "200", "--json-lines"]
    with running_server() as (server, port), running("echo-client", f"{LOCALHOST}:{port}", *arguments) as client:
        intervals = 0
        for line in client.stdout:
            event = json.loads(line)
            if event["event"] == "interval":
                intervals += 1
                if intervals == 1:
                    server.send_signal(signal.SIGSTOP)
                    stopped_at = time.monotonic()
                elif intervals == 3:
                    stopped = time.monotonic() - stopped_at
                    server.send_signal(signal.SIGCONT)
        client.wait(HUNG)
    document = event["data"]
    messages, half = document["messages"], stopped / 2 * 1e9

    def slow(name: str) -> int:
        """Of how many messages it took more than half as long as the server was stopped."""
        return sum(number for lowest, number in document["histograms"][name]["buckets"] if lowest > half)

    assert messages["sent"] == messages["echoed"] == 600 - messages["not_sent"]
    assert slow("service") == 10  # one on each connection
    assert slow("response") > 0.8 * 200 * stopped / 2  # all that were due while it had longer than that to stand still


def test_a_known_delay_is_measured():
    """A server that answers 20 ms after it got a message, by its own clock.

    No response takes less. How much more is the machine's affair, but in a closed loop each connection has one message
    in flight at any time, so that all responses together take as long as the run, times the connections.
    """

    class Delayed(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            asyncio.get_running_loop().call_later(0.02, self.transport.write, data)

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        server = runner.run(loop.create_server(Delayed, LOCALHOST, 0))
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        port = server.sockets[0].getsockname()[1]
        try:
            for rate in ([], ["-r", "500"]):
                done = run_client(f"{LOCALHOST}:{port}", "-c", "20", "-d", "0.6", "-J", *rate)
                document = json.loads(done.stdout)
                response = document["latency_us"]["response"]
                assert min(response["min"], document["latency_us"]["service"]["min"]) >= 20_000
                in_flight = response["count"] * response["mean"] / 1e6 / document["duration_s"]
                assert rate or 20 * 0.9 < in_flight < 20 * 1.001
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            server.close()


def test_an_open_loop_keeps_its_rate_or_says_that_it_could_not():
    with running_server("-q") as (_, port):
        done = run_client(f"{LOCALHOST}:{port}", "-c", "50", "-d", "1", "-r", "20k", "-J")
    document = json.loads(done.stdout)
    messages = document["messages"]
    assert messages["sent"] + messages["not_sent"] == 20_000
    assert messages["sent"] >= 19_800 or "were never sent (the last " in done.stderr
    assert done.returncode == (messages["sent"] != 20_000)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("option", ["--json", "-o"])
def test_an_interrupted_run_leaves_its_document(tmp_path, signum, option):
    path = tmp_path / "run.json"
    options = ["--json"] if option == "--json" else ["-o", str(path)]
    with running("echo-client", "--loopback", "-d", "1h", "-i", "50ms", *options) as client:
        client.stderr.readline()
        client.stderr.readline()  # an interval: it is under way
        client.send_signal(signum)
        out, _ = client.communicate(timeout=HUNG)
    assert client.returncode == 128 + signum
    document = json.loads(out if option == "--json" else path.read_text())
    VALIDATOR.validate(document)
    assert document["exit_status"] == 128 + signum
    assert document["messages"]["echoed"] > 0


def test_a_closed_standard_output_does_not_cost_the_document(tmp_path):
    path = tmp_path / "run.json"
    for closed, status in ((">&-", 0), ('| head -c 0; exit "${PIPESTATUS[0]}"', 1)):
        path.unlink(missing_ok=True)
        assert shell(f'"{COMMANDS}/echo-client" --loopback -n 10 --json -o "{path}" {closed}').returncode == status
        VALIDATOR.validate(json.loads(path.read_text()))


@pytest.mark.parametrize(
    ("columns", "shape"),
    [
        (120, r"━{12}  1\.\d s, 0 s left  [\d,]+ messages/s  [\d.]+ .iB/s  p50 .*  p99 .*  0 errors"),
        (80, r"1\.\d s, 0 s left  [\d,]+ messages/s  p50 .*  p99 .*  0 errors"),
    ],
)
def test_the_meter_is_drawn_on_a_real_terminal_and_wiped_out(columns, shape):
    terminal, ours = pty.openpty()
    size = struct.pack("HHHH", 24, columns, 0, 0)
    fcntl.ioctl(ours, termios.TIOCSWINSZ, size)
    environment = {**os.environ}  # not what readline, which pytest imports, has set behind its back: COLUMNS
    environment.pop("COLUMNS", None)
    with running("echo-client", "--loopback", "-d", "1.6", stderr=ours, env=environment) as client:
        os.close(ours)
        drawn = b""
        try:
            while chunk := os.read(terminal, 4096):
                drawn += chunk
        except OSError:  # EIO: nobody has it open any more
            pass
        assert client.wait(HUNG) == 0
    os.close(terminal)
    frames = re.sub(r"\x1b\[[0-9;]*m", "", drawn.decode()).split("\r\x1b[K")
    assert frames[-1] == ""
    assert any(re.fullmatch(shape, frame) for frame in frames), frames[-4:]
    assert max(map(len, frames)) < columns


@pytest.mark.parametrize("arguments", ["-c 50", "-n 10"])
def test_a_reader_that_leaves_costs_one_line(arguments):
    result = shell(f'"{COMMANDS}/echo-client" --loopback {arguments} | head -c 0; echo "${{PIPESTATUS[0]}}"')
    assert result.stdout == "1\n"
    assert result.stderr == "echo-client: cannot write to standard output: broken pipe\n"


def test_a_full_disk_is_reported():
    with open("/dev/full", "w") as full:
        result = run_client("--loopback", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 1
    assert result.stderr == "echo-client: cannot write to standard output: no space left on device\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_obstacle(closed):
    assert shell(f'"{COMMANDS}/echo-client" --loopback {closed}').returncode == 0


def test_a_server_whose_output_nobody_reads_serves_on():
    reader, writer = os.pipe()
    os.close(reader)
    with running("echo-server", "--host", LOCALHOST, "--port", "0", stdout=writer) as server:
        os.close(writer)
        until(lambda: listening_port(server))
        port = listening_port(server)
        assert run_client(f"{LOCALHOST}:{port}").returncode == 0
        server.terminate()
        _, log = server.communicate(timeout=HUNG)
    assert server.returncode == 1
    assert log.splitlines()[-1] == "echo-server: cannot write to standard output: broken pipe"


def listening_port(process: subprocess.Popen) -> int:
    """The port that a process listens on; 0 if it does not yet."""
    sockets = set()
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(descriptor))
        except OSError:
            pass
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
            return int(fields[1].rpartition(":")[2], 16)
    return 0


# The start


def test_listening_soon_after_the_imports_that_it_cannot_do_without(tmp_path):
    """Within 1.6 times the CPU time that the interpreter takes to import four of its modules, the best of each."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE", "PYTHON"))}
    clean["PYTHONPYCACHEPREFIX"] = str(tmp_path)  # compiled, as an installed package is
    imports = [sys.executable, "-c", "import argparse, selectors, socket, logging; print('imported', flush=True)"]
    server = [COMMANDS / "echo-server", "--port", "0"]
    took = {"imports": [], "server": []}
    for _ in range(6):
        for name, command in (("imports", imports), ("server", server)):
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=clean) as process:
                process.stdout.readline()
                os.kill(process.pid, signal.SIGKILL)  # kill() would reap one that has ended by itself
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                took[name].append(usage.ru_utime + usage.ru_stime)
    assert min(took["server"]) < 1.6 * min(took["imports"]), took


def test_a_reader_that_never_reads_cannot_keep_the_client_from_being_ended():
    reader, writer = os.pipe()
    with running("echo-client", "--loopback", "-c", "2000", stdout=writer) as client:
        os.close(writer)
        until(lambda: waits_to_write(client))
        while client.poll() is None:
            client.send_signal(signal.SIGINT)
            select.select([], [], [], 0.05)  # signals of one kind that come together are one
        assert client.returncode == -signal.SIGINT
    os.close(reader)


def waits_to_write(process: subprocess.Popen) -> bool:
    """Whether a process sleeps in a write to a pipe, or until one is ready."""
    return Path(f"/proc/{process.pid}/wchan").read_text() in (
        "pipe_write",
        "anon_pipe_write",
        "do_select",
        "poll_schedule_timeout.constprop.0",
    )


def is_document(out: str) -> bool:
    return json.loads(out)["exit_status"] == 0


def are_events(out: str) -> bool:
    return [json.loads(line)["event"] for line in out.splitlines()][-1] == "end"


MODES = [
    (["echo-client", "--loopback", "-c", "40"], r"(?s)\[ 1\] connected.*all [0-9,]+ bytes intact, in .*s\n"),
    (["echo-client", "--loopback", "-n", "10"], r"(?s).*Every byte came back.*\n"),
    (["echo-client", "--loopback", "-n", "10", "--json"], is_document),
    (["echo-client", "--loopback", "-d", "0.2", "-i", "10ms", "--json-lines"], are_events),
    (["echo-client", "--loopback", "--check-only", "basic,many"], r"(?s)TAP version 13\n1..2\n.*# 2 of 2 .*\n"),
    (["echo-client", "--loopback", "--check-only", "basic", "--json"], is_document),
    (["echo-client", "--check-list"], r"(?s)basic .*\n"),
    (["echo-client", "--merge", "one.json", "other.json"], r"(?s).*Every byte came back: 20 messages.*\n"),
    (["echo-client", "--loopback", "-"], "0123456789" * 5000),
    (["echo-client", "--help"], r"(?s)usage: echo-client .* never\.\n"),
    (["echo-server", "--version"], r"echo-server [0-9.]+\S*\n"),
    (["python", "-m", "echopair", "--help"], r"usage: python -m echopair .*\n"),
    (["echo-server", "--port", "0", "-4"], r"Listening on 127.0.0.1:\d+\n"),
]


@pytest.mark.parametrize(
    ("kind", "command", "expected"),
    [*(("pipe", *mode) for mode in MODES), *(("socket", *mode) for mode in MODES[:3])],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_all_output_gets_into_what_is_non_blocking_and_full(tmp_path, kind, command, expected):
    if "--merge" in command:
        for name in command[-2:]:
            assert run_client("--loopback", "-n", "10", "-o", str(tmp_path / name)).returncode == 0
    (tmp_path / "in").write_text("0123456789" * 5000)
    stream = Stream(kind)
    os.set_blocking(stream.descriptor, False)
    before = 0
    with suppress(BlockingIOError):
        while True:
            before += os.write(stream.descriptor, b"x" if kind == "pipe" else bytes(100))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (
        open(tmp_path / "in") as source,
        running(*command, stdin=source, stdout=stream.descriptor, env=environment, cwd=tmp_path) as process,
    ):
        os.close(stream.descriptor)
        until(lambda: waits_to_write(process) or process.poll() is not None or "-" in command)
        out = b""
        while chunk := os.read(stream.reader, 1000):
            out += chunk
            if "--port" in command and out.endswith(b"\n"):
                process.send_signal(signal.SIGTERM)
        assert process.wait(HUNG) == 0
    os.close(stream.reader)
    text = out[before:].decode()
    assert expected(text) if callable(expected) else text == expected or re.fullmatch(expected, text)


# Signals in every window between start and exit

SIGNALLED = """
import signal, sys
from echopair import __main__ as entry

def at_a_call(frame, event, _argument):
    global left
    if event == "call" and "echopair" in frame.f_code.co_filename:
        left -= 1
        if not left:
            signal.raise_signal(signum)

signum, left = int(sys.argv[1]), int(sys.argv[2])
sys.argv[:3] = ["echo-client"]
start = entry._client
entry._client = lambda: (sys.setprofile(at_a_call), start())[1]  # what was before is the interpreter's own start
status = entry.echo_client()
sys.setprofile(None)
print("left", left, file=sys.stderr)
sys.exit(status)
"""
RUNS = [
    ["--loopback", "-n", "20", "-c", "2", "--json"],
    ["--loopback", "-n", "20", "-c", "2", "-o", "run.json", "--report", "run.html", "--hdr", "run.hgrm"],
    ["--loopback", "--check-only", "basic,many", "--json"],
    ["--loopback", "-c", "3"],
    ["--merge", "one.json", "other.json", "-o", "run.json"],
]
POINTS = 6  # of a run; with more, the test takes longer and sees more


def outcome(arguments: list[str], done: subprocess.CompletedProcess[str], folder: Path) -> str:
    """Return what came of a run that got a signal: "refused", or else all that it prints or writes is whole."""
    *said, _ = done.stderr.splitlines() if "left " in done.stderr else (*done.stderr.splitlines(), "")
    if not done.stdout:
        assert said == ["echo-client: interrupted"]
        return "left"
    if "--json" in arguments:
        assert done.returncode in (0, json.loads(done.stdout)["exit_status"] or done.returncode)
    else:
        assert re.search(r"(, in .*s|\S)\n$", done.stdout)
    if "-o" in arguments:
        VALIDATOR.validate(json.loads((folder / "run.json").read_text()))
    if "--report" in arguments:
        assert (folder / "run.html").read_text().endswith("</html>\n")
        assert (folder / "run.hgrm").read_text().startswith("       Value")
    return "interrupted" if done.returncode else "whole"


@pytest.mark.parametrize("arguments", RUNS, ids=" ".join)
def test_a_signal_at_any_moment_ends_in_a_line_or_in_whole_results(tmp_path, arguments):
    for name in ("one.json", "other.json"):
        assert "--merge" not in arguments or not run_client("-n", "9", "--loopback", "-o", tmp_path / name).returncode

    def run(at: int, signum: int) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / str(at)
        folder.mkdir()
        for each in tmp_path.glob("*.json"):
            (folder / each.name).symlink_to(each)
        command = [sys.executable, "-c", SIGNALLED, str(int(signum)), str(at), *arguments]
        # Not traced: what it runs is covered elsewhere, and there is much of it.
        quick = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=HUNG, cwd=folder, env=quick)

    calls = 1_000_000 - int(run(1_000_000, signal.SIGINT).stderr.split()[-1])
    outcomes = set()
    for point in range(POINTS):
        at = 1 + point * (calls - 1) // (POINTS - 1)
        signum = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[point % 3]
        done = run(at, signum)
        assert done.returncode in (0, 128 + signum), done.stderr
        outcomes.add(outcome(arguments, done, tmp_path / str(at)))
    assert "left" in outcomes
    assert len(outcomes) > 1  # a busy machine takes more calls, so that even the last signal may interrupt


# A name that the resolver does not answer

HANGS = """
import ctypes, os, socket, sys
from echopair import __main__ as entry

def never_answers(*_arguments):
    os.write(2, b"asked\\n")
    ctypes.CDLL(None).pause()  # in C, where no handler of Python's runs
    raise socket.gaierror(socket.EAI_AGAIN, "temporary failure in name resolution")

socket.getaddrinfo = never_answers
start = {"echo-server": entry.echo_server, "echo-client": entry.echo_client}[sys.argv[1]]
del sys.argv[1]
sys.exit(start())
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("arguments", "out", "err"),
    [
        (["echo-server", "--host", "name"], "", "echo-server: interrupted\n"),
        (["echo-client", "name"], r"interrupted, 0 messages came back, 0 bytes sent, 0 received, in .*\n", ""),
        (["echo-client", "name", "-n", "5"], r"Interrupted by SIG[A-Z]+ before(?s:.*)", ""),
        (["echo-client", "name", "--check"], r"TAP version 13(?s:.*)\n# 0 of .*\n", "echo-client: interrupted\n"),
        (["echo-client", "name", "-"], "", r"echo-client: interrupted, 0 bytes sent, 0 received, in .*\n"),
    ],
)
def test_a_signal_ends_a_command_whose_resolver_hangs(signum, arguments, out, err):
    command = [sys.executable, "-c", HANGS, *arguments]
    with subprocess.Popen(command, stdin=-3, stdout=-1, stderr=-1, text=True) as process:
        assert process.stderr.readline() == "asked\n"
        process.send_signal(signum)
        said = process.communicate(timeout=HUNG)
    assert process.returncode == 128 + signum
    assert re.fullmatch(out, said[0])
    assert re.fullmatch(err, said[1])
