"""The check against servers: ours passes in every shape, foreign ones in what they can, broken ones fail as promised.

All checks run first, a few at a time, for most of what they do is wait; then each test reads one outcome.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from echopair.check.cases import CASES
from echopair.check.run import FAILED, PASSED, SKIPPED, Check, Outcome, Plan
from echopair.loop import EventLoop
from helpers import HUNG, LOCALHOST

pytestmark = pytest.mark.timeout(600)  # all checks run for the first test

MIB = 1024 * 1024
BROKEN = Path(__file__).parent.parent / "examples" / "broken"
GALLERY = {path.stem: path for path in sorted(BROKEN.glob("*.py"))}
PATIENCE = 2.0  # seconds
AT_ONCE = 10  # what they mostly do is wait
SENSITIVE = Plan(limit=6.0, idle=0.1, unread=0.6, pause=0.005, life=0.3, volume=2 * MIB, crowd=60)
# On a busy machine every server is late now and then.
QUICK = replace(SENSITIVE, delayed=1.0, limit=60.0)
# Where the mistake takes more than that to show, or can show sooner.
PLANS = {
    "waits_for_an_ack": SENSITIVE,
    "never_pushes_back": replace(QUICK, hoard=48 * MIB),
    "ignores_short_sends": replace(QUICK, hoard=48 * MIB),
    "cuts_half_closed": replace(QUICK, unread=2.5),
    "times_out_sends": replace(QUICK, unread=2.5),
    "is_impatient": replace(QUICK, idle=2.5),
    "ends_after_a_while": replace(QUICK, life=3.5),
    "wrong_now_and_then": replace(QUICK, crowd=400),
    "corrupts_far_in": replace(QUICK, volume=24 * MIB),
}
ARGUMENTS = {"is_impatient": "2", "cuts_half_closed": "1", "ends_after_a_while": "2.5"}
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

SKIPPING = ", with --check-skip basic"
IN_A_NAMESPACE = """
set -e
ip link set lo up mtu 1500
nft 'add table inet t; add chain inet t c {{ type filter hook input priority 0; }}; add rule inet t c {rule} drop'
coproc {server}
read -r line <&"${{COPROC[0]}}"
{client} "${{line##*on }}" || true
kill "$COPROC_PID"
"""
PATHS = {  # what it drops; a case that fails for it, and what is said to be the cause
    "meta length > 1300": (
        "lengths",
        r"small messages pass, segments of 1,448 bytes are retransmitted: look at .* MTU",
    ),
    "numgen inc mod 7 == 0": ("latency", r"the path loses packets: [\d,]+ of [\d,]+ segments had to be sent again"),
}
FAULTS = {  # what is asked for; the case that names it; what it says
    "--delay=100ms": ("latency", r"a single message took \S+ ms, but connecting took"),
    "--delay=5ms:80,200ms:20": ("latency", r"a single message usually took \S+ ms, but \d+ of \d+ took \d+ ms"),
    "--throttle=100K": (
        "burst",
        r"not done within \S+ s: .* of [\d,]+ bytes sent had come back \([\d.]+ KiB/s\)",
    ),
    "--corrupt-rate=0.001%": ("burst", r"byte [\d,]+ of the echo is wrong: .* \(one bit flipped\)"),
    "--drop-rate=0.001%": ("burst", r"byte [\d,]+ of the echo is wrong: .* \(1 byte lost\)"),
    "--duplicate-rate=0.001%": ("burst", r"byte [\d,]+ of the echo is wrong: .* \(1 byte inserted or repeated\)"),
    "--reset-after=1000": ("burst", r"connection reset by peer after "),
    "--close-after=1000": ("burst", r"EOF after 1,000 of [\d,]+ bytes sent had come back"),
    "--stall-after=1000": ("burst", r"nothing more came for 2.00 s after 1,000 of "),
    "--accept-delay=400ms": ("first-echo", r"the first echo took \d+ ms more than connecting"),
    "--no-half-close": ("half-close-slow", r"EOF after [\d,]+ of 6,291,456 bytes sent had come back"),
}


@dataclass
class Result:
    """What became of a check."""

    outcomes: list[Outcome]
    seconds: float

    def names(self, status: str) -> list[str]:
        return [outcome.case for outcome in self.outcomes if outcome.status == status]

    @property
    def failed(self) -> dict[str, str]:
        return {outcome.case: outcome.seen for outcome in self.outcomes if outcome.status == FAILED}

    @property
    def usually(self) -> dict[str, str]:
        return {outcome.case: outcome.usually for outcome in self.outcomes if outcome.status == FAILED}


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


def check(port: str | int, plan: Plan = QUICK, *names: str, patience: float = PATIENCE) -> Result:
    outcomes: list[Outcome] = []
    began = time.monotonic()
    with EventLoop() as loop:
        cases = [case for case in CASES if case.name in names or not names]
        address = (socket.AF_INET, (LOCALHOST, int(port)))
        Check(loop, [address], cases, told=outcomes.append, done=loop.stop, patience=patience, plan=plan)
        loop.run()
    # A case itself cannot be sent to another process.
    outcomes = [replace(outcome, case=outcome.case.name) for outcome in outcomes]
    return Result(outcomes, time.monotonic() - began)


def check_command(command: list[str], *arguments, **options) -> Result:
    process, port = start(command)
    try:
        return check(port, *arguments, **options)
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


def check_socat() -> Result:
    port = free_port()  # socat does not say which one it got
    process = subprocess.Popen(
        ["socat", f"TCP-LISTEN:{port},bind={LOCALHOST},fork,reuseaddr,backlog=128,nodelay", "EXEC:cat"],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(port)
        return check(port, patience=10.0)
    finally:
        end(process)


def check_haproxy(directory: Path, plan: Plan, options: list[str], *names: str) -> Result:
    server, back = start([*OURS["as it is"], *options])
    front = free_port()
    configuration = directory / f"haproxy{front}.cfg"
    configuration.write_text(HAPROXY.format(front=front, back=back))
    proxy = subprocess.Popen(["haproxy", "-db", "-f", configuration], stderr=subprocess.DEVNULL)
    try:
        wait_for(front)
        return check(front, plan, *names, patience=10.0)
    finally:
        end(proxy)
        end(server)


def check_path(rule: str, *names: str) -> dict[str, dict]:
    """Check our server in a network of its own, whose path drops what the rule says."""
    client = [sys.executable, "-m", "echopair", "client", "--json", "--timeout", "1s"]
    client += [argument for name in names for argument in ("--check-only", name)]
    script = IN_A_NAMESPACE.format(rule=rule, server=" ".join([*SERVER, "--quiet"]), client=" ".join(client))
    command = ["unshare", "--map-root-user", "--net", "bash", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=HUNG * 2)
    return {entry["name"]: entry for entry in json.loads(done.stdout)["checks"]}


def can_make_networks() -> bool:
    """Whether a network namespace of our own can be had, and nft in it."""
    if not (shutil.which("unshare") and shutil.which("nft") and shutil.which("ip")):
        return False
    return not subprocess.run(
        ["unshare", "--map-root-user", "--net", "nft", "add table inet t"], capture_output=True, check=False
    ).returncode


def promised(path: Path, condition: str = "(?:, with --thorough)?") -> set[str]:
    """The cases that a broken server says it fails; under another condition, only those."""
    text = path.read_text().replace("\\\n", "")
    return {name for names in re.findall(rf"^Fails{condition}: (.*)$", text, re.MULTILINE) for name in names.split()}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future]:
    directory = tmp_path_factory.mktemp("haproxy")
    with ProcessPoolExecutor(AT_ONCE, multiprocessing.get_context("spawn")) as pool:  # at its end all are done
        runs = {f"ours, {name}": pool.submit(check_command, command, patience=10.0) for name, command in OURS.items()}
        for name, path in GALLERY.items():
            command = [sys.executable, str(path), "0", *([ARGUMENTS[name]] if name in ARGUMENTS else [])]
            runs[name] = pool.submit(check_command, command, PLANS.get(name, QUICK), patience=1.0)
        without = [case.name for case in CASES if case.name != "basic"]
        command = [sys.executable, str(GALLERY["greets"])]
        runs["without basic"] = pool.submit(check_command, command, QUICK, *without, patience=1.0)
        runs["asyncio"] = pool.submit(check_command, [sys.executable, "-c", ASYNCIO], patience=10.0)
        if shutil.which("socat"):
            runs["socat"] = pool.submit(check_socat)
        if shutil.which("haproxy"):
            runs["haproxy"] = pool.submit(check_haproxy, directory, QUICK, [])
            far = ("basic", "silent", "byte-by-byte", "first-echo", "latency", "many")
            runs["far"] = pool.submit(check_haproxy, directory, SENSITIVE, ["--delay", "200ms"], *far)
        for fault, (name, _) in FAULTS.items():
            command = [*SERVER, "--quiet", "--fault-seed", "1", fault]
            runs[fault] = pool.submit(check_command, command, SENSITIVE, name)
        for rule, (name, _) in PATHS.items() if can_make_networks() else ():
            runs[rule] = pool.submit(check_path, rule, "basic", name)
    return runs


def result(results: dict[str, Future], name: str) -> Result:
    if name not in results:
        pytest.skip(f"what {name} takes is not installed")
    return results[name].result()


@pytest.mark.parametrize("name", OURS)
def test_our_server_passes_every_case_in_every_shape(results, name):
    found = result(results, f"ours, {name}")
    assert found.failed == {}
    assert found.names(SKIPPED) == ["both-families"]
    assert len(found.names(PASSED)) == len(CASES) - 1


@pytest.mark.parametrize("name", GALLERY)
def test_a_broken_server_fails_the_cases_that_it_promises_and_no_other(results, name):
    found = result(results, name)
    # What fails only after a while may fail because the machine is busy, and the server late.
    soon = {outcome.case for outcome in found.outcomes if outcome.status == FAILED and outcome.seconds < 1.0}
    assert soon <= promised(GALLERY[name]) <= set(found.failed), found.failed
    assert all(found.usually.values())


def test_all_is_tried_of_a_service_that_fails_basic_if_that_is_left_out(results):
    found = result(results, "without basic")
    assert set(found.failed) == promised(GALLERY["greets"], SKIPPING), found.failed


def test_the_story_tells_of_every_broken_server_and_every_case_catches_one():
    story = (BROKEN / "README.md").read_text()
    assert set(re.findall(r"\]\((\w+)\.py\)", story)) == set(GALLERY)
    caught = {name for path in GALLERY.values() for name in promised(path)} | promised(GALLERY["greets"], SKIPPING)
    assert {case.name for case in CASES} - caught == {"both-families"}  # which takes a name of two addresses


def test_only_what_needs_patience_has_to_be_asked_for_thoroughly():
    thorough = {case.name for case in CASES if case.thorough} | {"half-close-slow"}
    for path in GALLERY.values():
        asked = re.findall(r"^Fails, with --thorough: (.*)$", path.read_text(), re.MULTILINE)
        assert {name for names in asked for name in names.split()} <= thorough


@pytest.mark.parametrize("name", ["asyncio", "socat", "haproxy"])
def test_a_foreign_server_or_proxy_passes_every_case(results, name):
    assert result(results, name).failed == {}


def test_round_trips_are_those_of_the_backend_and_not_of_a_proxy_before_it(results):
    found = result(results, "far")
    assert list(found.failed) == ["latency"]
    assert found.usually["latency"].startswith("a proxy is near and its backend far")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("greets", 'the service, or a proxy, speaks first: "Welcome to the echo service\\r\\n"'),
        ("waits_for_a_line", "the service answers line by line: it answered only after a newline"),
        ("swallows", "a service that answers nothing"),
        ("limits_each_client", "a limit on the connections of one client, or of all: 20 at once were served"),
        ("one_at_a_time", "the server serves one connection at a time"),
    ],
)
def test_the_cause_fits_what_was_seen(results, name, says):
    usually = result(results, name).usually
    assert says in usually.get("basic", usually.get("many"))


@pytest.mark.parametrize("name", ["greets", "waits_for_a_line", "swallows"])
def test_little_more_is_tried_where_not_even_basic_passes(results, name):
    found = result(results, name)
    assert [outcome.case for outcome in found.outcomes] == ["basic", "silent", "fin-alone"]
    assert found.seconds < 15


@pytest.mark.parametrize("rule", PATHS)
def test_a_path_that_drops_packets_is_blamed_and_not_the_server(results, rule):
    name, usually = PATHS[rule]
    found = result(results, rule)
    assert found["basic"]["status"] == PASSED
    assert re.match(usually, found[name]["usually"]), found


def test_what_comes_after_the_case_that_kills_a_server_is_skipped(results):
    found = result(results, "dies_of_a_reset")
    assert found.names(SKIPPED)[-3:] == ["churn", "crowd", "back-pressure"]
    assert "connection refused" in found.outcomes[-1].seen


def test_a_name_with_both_families_is_checked_on_both():
    process, port = start([*SERVER[:4], "--host", "127.0.0.1", "--host", "::1", "--port", "0", "--quiet"])
    try:
        for host in ("localhost", LOCALHOST):
            client = [sys.executable, "-m", "echopair", "client", "--json", f"{host}:{port}"]
            done = subprocess.run(
                [*client, "--check-only", "both-families"], stdout=subprocess.PIPE, text=True, check=False
            )
            (case,) = json.loads(done.stdout)["checks"]
            both = len({each[0] for each in socket.getaddrinfo(host, 0)}) == 2
            assert case["status"] == ("passed" if both else "skipped")
            assert done.returncode == 0
    finally:
        end(process)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named_by_a_case(results, fault):
    name, seen = FAULTS[fault]
    failed = result(results, fault).failed
    assert re.match(seen, failed[name]), failed
