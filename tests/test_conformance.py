"""The check against servers: ours passes in every shape, foreign ones in what they can, broken ones fail as promised.

All checks run first, a few at a time, for most of what they do is wait; then each test reads one outcome.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers import HUNG, LOCALHOST

pytestmark = pytest.mark.timeout(600)  # the first test waits for all checks

BROKEN = Path(__file__).parent.parent / "examples" / "broken"
GALLERY = {path.stem: path for path in sorted(BROKEN.glob("*.py"))}
AT_ONCE = 6  # what they mostly do is wait
CHECK = [sys.executable, "-m", "echopair", "client", "--json", "--timeout", "1s", "--check"]
SERVER = [sys.executable, "-m", "echopair", "server", "--ipv4", "--port", "0"]
WITH_SELECTOR = """
import selectors, sys
from echopair import loop
loop.default_selector = getattr(selectors, sys.argv[1])
from echopair.cli.server import main
sys.exit(main(sys.argv[2:]))
"""
OURS = {
    "as it is": [*SERVER, "--quiet"],
    "copying": [*SERVER, "--quiet", "--no-zero-copy"],
    "verbose": [*SERVER, "--verbose"],
    "two workers": [*SERVER, "--quiet", "--workers", "2"],
    "little buffer": [*SERVER, "--quiet", "--max-buffer", "4K"],
    "poll": [sys.executable, "-c", WITH_SELECTOR, "PollSelector", *SERVER[4:], "--quiet"],
    "select": [sys.executable, "-c", WITH_SELECTOR, "SelectSelector", *SERVER[4:], "--quiet"],
    "chunks": [*SERVER, "--quiet", "--chunk", "1400"],  # is a fault that no peer may mind
}
ASYNCIO = """
import asyncio
async def echo(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()
    except ConnectionError:
        pass
async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    print("Listening on {}:{}".format(*server.sockets[0].getsockname()), flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
HAPROXY = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
listen echo
    bind 127.0.0.1:{front}
    server echo 127.0.0.1:{back}
"""

FAULTS = {  # what is asked for; the case that names it; what it says
    "--delay=100ms": ("latency", r"a lone one took \S+ ms, and making a connection"),
    "--delay=5ms:80,200ms:20": ("latency", r"a lone one took \S+ ms mostly, but \d+ of 60 took \d+ ms"),
    "--throttle=100K": (
        "burst",
        r"not done within 10.0 s: .* of 4,\d+,\d+ bytes sent had come back \([\d.]+ KiB/s\)",
    ),
    "--corrupt-rate=0.001%": ("burst", r"byte [\d,]+ of the echo is wrong: .* \(one bit flipped\)"),
    "--drop-rate=0.001%": ("burst", r"byte [\d,]+ of the echo is wrong: .* \(1 byte lost\)"),
    "--duplicate-rate=0.001%": ("burst", r"byte [\d,]+ of the echo is wrong: .* \(1 byte inserted or repeated\)"),
    "--reset-after=1000": ("burst", r"connection reset by peer after "),
    "--close-after=1000": ("burst", r"EOF after 1,000 of [\d,]+ bytes sent had come back"),
    "--stall-after=1000": ("burst", r"nothing more came for 1.00 s after 1,000 of "),
    "--accept-delay=400ms": ("first-echo", r"the first echo took \d+ ms more than connecting"),
    "--no-half-close": ("half-close-slow", r"EOF after [\d,]+ of 6,291,456 bytes sent had come back"),
}


def start(command: list[str]) -> tuple[subprocess.Popen, str]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return process, process.stdout.readline().rpartition(":")[2].strip()


def end(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=HUNG)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def check(port: str | int, *options: str) -> dict:
    done = subprocess.run(
        [*CHECK, f"{LOCALHOST}:{port}", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    document = json.loads(done.stdout)
    assert done.returncode == document["exit_status"], done.stderr
    return document


def check_command(command: list[str], *options: str) -> dict:
    process, port = start(command)
    try:
        return check(port, *options)
    finally:
        end(process)


def free_port() -> int:
    with socket.create_server((LOCALHOST, 0)) as sock:
        return sock.getsockname()[1]


def wait_for(port: int) -> None:
    deadline = time.monotonic() + HUNG
    while True:
        try:
            socket.create_connection((LOCALHOST, port), timeout=HUNG).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "nobody ever listened"
            time.sleep(0.01)  # another process is to do something


def check_socat() -> dict:
    port = free_port()  # socat does not say which one it got
    process = subprocess.Popen(
        ["socat", f"TCP-LISTEN:{port},bind={LOCALHOST},fork,reuseaddr,backlog=128,nodelay", "EXEC:cat"],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(port)
        return check(port)
    finally:
        end(process)


def check_haproxy(directory: Path) -> dict:
    server, back = start(OURS["as it is"])
    front = free_port()
    configuration = directory / "haproxy.cfg"
    configuration.write_text(HAPROXY.format(front=front, back=back))
    proxy = subprocess.Popen(["haproxy", "-db", "-f", configuration], stderr=subprocess.DEVNULL)
    try:
        wait_for(front)
        return check(front)
    finally:
        end(proxy)
        end(server)


def promised(path: Path) -> set[str]:
    """The cases that a broken server says it fails."""
    text = path.read_text().partition("Fails:")[2].partition('"""')[0]
    return set(text.replace("\\", " ").split())


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future]:
    with ThreadPoolExecutor(AT_ONCE) as pool:  # at its end all are done
        runs = {f"ours, {name}": pool.submit(check_command, command) for name, command in OURS.items()}
        runs |= {name: pool.submit(check_command, [sys.executable, str(path)]) for name, path in GALLERY.items()}
        runs["asyncio"] = pool.submit(check_command, [sys.executable, "-c", ASYNCIO])
        if shutil.which("socat"):
            runs["socat"] = pool.submit(check_socat)
        if shutil.which("haproxy"):
            runs["haproxy"] = pool.submit(check_haproxy, tmp_path_factory.mktemp("haproxy"))
        for fault, (name, _) in FAULTS.items():
            runs[fault] = pool.submit(
                check_command, [*SERVER, "--quiet", "--fault-seed", "1", fault], "--check-only", name
            )
    return runs


def failed(document: dict) -> dict[str, str]:
    return {case["name"]: case["seen"] for case in document["checks"] if case["status"] == "failed"}


@pytest.mark.parametrize("name", OURS)
def test_our_server_passes_every_case_in_every_shape(outcomes, name):
    document = outcomes[f"ours, {name}"].result()
    assert failed(document) == {}
    assert [case["name"] for case in document["checks"] if case["status"] == "skipped"] == ["both-families"]
    assert document["exit_status"] == 0


@pytest.mark.parametrize("name", GALLERY)
def test_a_broken_server_fails_the_cases_that_it_promises_and_no_other(outcomes, name):
    document = outcomes[name].result()
    assert set(failed(document)) == promised(GALLERY[name]), failed(document)
    assert document["exit_status"] == 1
    assert all(case["usually"] for case in document["checks"] if case["status"] == "failed")


def test_the_story_tells_of_every_broken_server_and_every_case_catches_one(outcomes):
    story = (BROKEN / "README.md").read_text()
    assert set(re.findall(r"\]\((\w+)\.py\)", story)) == set(GALLERY)
    caught = {name for path in GALLERY.values() for name in promised(path)}
    known = {case["name"] for case in outcomes["asyncio"].result()["checks"]}
    assert known - caught == {"both-families"}  # which takes a name of two addresses


@pytest.mark.parametrize("name", ["asyncio", "socat", "haproxy"])
def test_a_foreign_server_or_proxy_passes_every_case(outcomes, name):
    if name not in outcomes:
        pytest.skip(f"{name} is not installed")
    assert failed(outcomes[name].result()) == {}


def test_what_comes_after_the_case_that_kills_a_server_is_skipped(outcomes):
    document = outcomes["dies_of_a_reset"].result()
    after = [case for case in document["checks"] if case["name"] == "churn"]
    assert [case["status"] for case in after] == ["skipped"]
    assert "connection refused" in after[0]["seen"]


def test_a_name_with_both_families_is_checked_on_both():
    process, port = start([*SERVER[:4], "--host", "127.0.0.1", "--host", "::1", "--port", "0", "--quiet"])
    try:
        for host in ("localhost", LOCALHOST):
            done = subprocess.run(
                [*CHECK, f"{host}:{port}", "--check-only", "both-families"],
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            (case,) = json.loads(done.stdout)["checks"]
            both = len({each[0] for each in socket.getaddrinfo(host, 0)}) == 2
            assert case["status"] == ("passed" if both else "skipped")
            assert done.returncode == 0
    finally:
        end(process)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named_by_a_case_within_ten_seconds(outcomes, fault):
    name, seen = FAULTS[fault]
    document = outcomes[fault].result()
    assert re.match(seen, failed(document)[name]), failed(document)
    assert document["duration_s"] < 15  # ten seconds for a case, and a hundred round trips
