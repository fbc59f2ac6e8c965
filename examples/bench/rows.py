"""What else we claim, beside peers: the client, connections that idle, that arrive, that crowd, and a ping in a flood.

Run it: python examples/bench/rows.py [RUNS]    (as bench.py, which explains how it measures; a hard limit of 20,000
descriptors, `ulimit -Hn`)

Each run measures every row once for every peer, side by side; the table shows the figure of each run.
"""

import json
import os
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from bench import COMMANDS, HERE, OURS, PEERS, Server, build, cpu_ns, machine, times_to_run

RESULTS = HERE / "rows.md"
C = "C, epoll"
RIVALS = ("uvloop Protocol", "uvloop BufferedProtocol")
SECONDS = 2  # of each load
IDLE = 5_000  # connections, to see what each costs
CROWD = 10_000
FLOODS = 8
FLOOD_SIZE = 1 << 20
ON_LOAD_CORE = ["taskset", "-c", "1"]
MODULES = "import argparse, selectors, socket, logging; print('Listening', flush=True)"

Figures = dict[str, float]


def client(*options: str) -> dict:
    """Return the result document of an echo-client on the load generator's core."""
    command = [*ON_LOAD_CORE, f"{COMMANDS}/echo-client", *options, "--json", "--no-progress"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)


def client_cpu(servers: dict[str, Server], directory: Path) -> Figures:
    """Return the CPU microseconds a message of 1 KiB of the C load generator and of echo-client, 50 connections."""
    port = servers[C].port
    load = [*ON_LOAD_CORE, directory / "load", port, "50", "1024", str(SECONDS)]
    done = subprocess.run(load, capture_output=True, text=True, check=True)
    messages, seconds = done.stdout.split()
    document = client(f":{port}", "-c", "50", "-s", "1024", "-d", str(SECONDS))
    ours = document["generator"]["cpu_percent"] / 100 * document["duration_s"] / document["messages"]["echoed"]
    return {C: float(seconds) / int(messages) * 1e6, OURS: ours * 1e6}


@contextmanager
def connections(port: str, number: int):
    """Connect so many sockets."""
    socks = [socket.create_connection(("127.0.0.1", int(port))) for _ in range(number)]
    try:
        yield socks
    finally:
        for sock in socks:
            sock.close()
        time.sleep(0.5)  # the server has its work with that, which is not to be measured


def echo_once(socks: list[socket.socket]) -> None:
    """Send 1 KiB on every socket and read it back; whoever was accepted has then been set up."""
    for sock in socks:
        sock.sendall(bytes(1024))
        left = 1024
        while left:
            left -= len(sock.recv(left))


def own_memory(pid: int) -> int:
    """Return how many bytes of memory a process has for itself (proc(5), RssAnon)."""
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1]) * 1024


def idle_memory(servers: dict[str, Server], _directory: Path) -> Figures:
    """Return the KiB of memory that an idle connection takes in each server, after it was used."""
    figures = {}
    for name, server in servers.items():
        with connections(server.port, 100) as socks:  # what the first ones cost is not theirs alone
            echo_once(socks)
            before = own_memory(server.process.pid)
            with connections(server.port, IDLE) as more:
                echo_once(more)
                figures[name] = (own_memory(server.process.pid) - before) / IDLE / 1024
    return figures


def accept_cpu(servers: dict[str, Server], _directory: Path) -> Figures:
    """Return the CPU microseconds that each server takes to accept a connection and set it up."""
    figures = {}
    for name, server in servers.items():
        before = cpu_ns(server.process.pid)
        with connections(server.port, IDLE):
            seen = -1
            while (used := cpu_ns(server.process.pid) - before) != seen:  # until it has nothing more to do
                seen = used
                time.sleep(0.1)
            figures[name] = used / IDLE / 1000
    return figures


def crowd(servers: dict[str, Server], directory: Path) -> Figures:
    """Return how much more CPU a message takes each server while 10,000 other connections idle."""
    figures = {}
    for name, server in servers.items():
        alone, crowded = [], []
        for _ in range(3):
            alone.append(server.measure(directory, 1024, 50))
            with connections(server.port, CROWD):
                server.measure(directory, 1024, 50)  # they have to be accepted first
                crowded.append(server.measure(directory, 1024, 50))
        figures[name] = statistics.median(crowded) / statistics.median(alone)
    return figures


def ping(servers: dict[str, Server], directory: Path) -> Figures:
    """Return the p99 in milliseconds of 200 pings of 64 bytes a second beside eight floods."""
    figures = {}
    for name, server in servers.items():
        flood = subprocess.Popen(
            [*ON_LOAD_CORE, directory / "load", server.port, str(FLOODS), str(FLOOD_SIZE), str(SECONDS + 1.5)],
            stdout=subprocess.DEVNULL,
        )
        time.sleep(0.3)
        document = client(f":{server.port}", "-s", "64", "-d", str(SECONDS), "-r", "200", "--percentiles", "99")
        figures[name] = document["latency_us"]["response"]["percentiles"]["99"] / 1000
        flood.wait()
    return figures


def start(_servers: dict[str, Server], _directory: Path) -> Figures:
    """Return the milliseconds until the server listens, and until an interpreter has imported four modules."""
    commands = {"imports": [sys.executable, "-c", MODULES], OURS: PEERS[OURS]}
    best = dict.fromkeys(commands, float("inf"))
    for _ in range(10):
        for name, command in commands.items():
            began = time.monotonic()
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            process.stdout.readline()
            best[name] = min(best[name], (time.monotonic() - began) * 1000)
            process.kill()
            process.communicate()
    return best


def many(_servers: dict[str, Server], directory: Path) -> Figures:
    """Return how many of 18,000 connections to a server with 20,000 descriptors got every message back."""
    limited = ["prlimit", "--nofile=20000:20000", *PEERS[OURS]]
    server = Server(limited, directory)
    document = client(f":{server.port}", "-c", "18000", "-n", "180k", "-s", "1024")
    server.close()
    whole = document["messages"]["echoed"] == 180_000 and not document["errors"]
    return {OURS: document["connections"]["established"] if whole else 0}


# What is measured; by which peers; the unit; what is claimed, in words and as a function of the figures of one run.
ROWS = [
    ("client, 1 KiB, 50 connections", client_cpu, (C, OURS), "us", "1.40 of C", lambda f: f[OURS] <= 1.40 * f[C]),
    ("memory, idle connection", idle_memory, (*RIVALS, OURS), "KiB", "0.6 KiB", lambda f: f[OURS] <= 0.6),
    ("CPU to accept one", accept_cpu, (C, *RIVALS, OURS), "us", "uvloop's", lambda f: f[OURS] <= f[RIVALS[0]]),
    ("CPU a message beside 10,000", crowd, (OURS,), "times", "1.05", lambda f: f[OURS] <= 1.05),
    ("p99 of a ping, 8 floods", ping, (RIVALS[0], "asyncio Protocol", OURS), "ms", "5 ms", lambda f: f[OURS] < 5),
    ("start", start, ("imports", OURS), "ms", "1.5 of imports", lambda f: f[OURS] <= 1.5 * f["imports"]),
    ("18,000 connections", many, (OURS,), "", "all", lambda f: f[OURS] == 18_000),
]


def main() -> None:
    """Measure every row and write the table."""
    runs = times_to_run(__doc__, "RUNS", 3)
    if (os.cpu_count() or 1) < 2 or not (shutil.which("taskset") and shutil.which("prlimit")):
        sys.exit("server and load generator need a processor each, and taskset and prlimit")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    seen: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        missing = build(directory)
        for number in range(runs):
            for what, measure, names, *_ in ROWS:
                servers = {peer: Server(PEERS[peer], directory) for peer in names if peer in PEERS.keys() - missing}
                figures = measure(servers, directory)
                seen.setdefault(what, []).append(figures)
                print(f"{number + 1}/{runs}  {what}: {figures}", file=sys.stderr)
                for server in servers.values():
                    server.close()
        where = machine(directory)
    lines = ["| what | peer | each run | median | target | met in |", "| --- | --- | ---: | ---: | --- | --- |"]
    for what, _, _, unit, claim, holds in ROWS:
        kept = sum(holds(figures) for figures in seen[what])
        label = what
        for peer in seen[what][0]:
            values = [figures[peer] for figures in seen[what]]
            each = ", ".join(f"{value:,.2f}".removesuffix(".00") for value in values)
            middle = f"{statistics.median(values):,.2f}".removesuffix(".00")
            ours = (claim, f"{kept} of {runs}") if peer == OURS else ("", "")
            lines.append(f"| {label} | {peer} | {each} | {middle} {unit} | {ours[0]} | {ours[1]} |")
            label = ""
    absent = [f"Missing: {name}, for {why}.\n" for name, why in missing.items()]
    text = "\n".join([*lines, "", *absent, f"{where}.", ""])
    RESULTS.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
