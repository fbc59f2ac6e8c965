"""The measured runs of `echo-client` and what they leave: text, JSON, lines of JSON, files, thresholds, merges."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest

from echopair import address
from echopair.cli import busy, client, measuring
from echopair.cli import meter as meter_module
from echopair.cli.command import FAILED, INTERRUPTED, OK, TERMINATED, USAGE
from echopair.cli.results import THRESHOLD
from echopair.text import figure
from helpers import HUNG, LOCALHOST, run_client
from test_measure_schema import VALIDATOR


@pytest.fixture
def server(request) -> Callable[[Callable[[socket.socket], object]], str]:
    """Serve each connection in a thread, as the test says; return HOST:PORT."""

    def start(serve: Callable[[socket.socket], object]) -> str:
        listener = socket.create_server((LOCALHOST, 0))
        threads: list[threading.Thread] = []

        def one(sock: socket.socket) -> None:
            with sock, suppress(OSError):
                serve(sock)

        def run() -> None:
            with suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    threads.append(threading.Thread(target=one, args=(sock,)))
                    threads[-1].start()

        acceptor = threading.Thread(target=run)
        acceptor.start()

        def stop() -> None:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            for thread in (acceptor, *threads):
                thread.join(HUNG)
                assert not thread.is_alive()

        request.addfinalizer(stop)
        return "{}:{}".format(*listener.getsockname())

    return start


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


def flip(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(bytes([data[0] ^ 1]) + data[1:])


def keep(sock: socket.socket) -> None:
    while sock.recv(65536):
        pass
    sock.recv(1)


def close_early(sock: socket.socket) -> None:
    sock.sendall(sock.recv(65536))
    sock.shutdown(socket.SHUT_WR)
    keep(sock)


@pytest.fixture
def nobody() -> str:
    with socket.create_server((LOCALHOST, 0)) as gone:
        return "{}:{}".format(*gone.getsockname())


def run_json(capsys, *arguments: str) -> tuple[int, dict]:
    """Run the client with --json; return its status and its document, which is valid whatever the status."""
    status = client.main(["--json", *arguments])
    document = json.loads(capsys.readouterr().out)
    VALIDATOR.validate(document)
    assert document["exit_status"] == status
    messages = document["messages"]
    assert messages["sent"] == messages["echoed"] + messages["mismatched"] + messages["unanswered"]
    return status, document


# Text


@pytest.mark.parametrize(
    ("arguments", "verdict", "row"),
    [
        (["-s", "100"], "Every byte came back: 1 message, 100 B.", "bytes         100 sent, 100 received (100 B)"),
        (["-n", "7"], "Every byte came back: 7 messages, 7.00 KiB.", "messages      7 sent, 7 came back"),
        (["-c", "3", "-n", "10"], "Every byte came back: 10 messages, 10.0 KiB.", "connections   3 of 3 made"),
        (["-s", "1M", "-n", "3", "-w", "2"], "Every byte came back: 3 messages, 3.00 MiB.", "2 in flight on each"),
        (
            ["--verify", "length", "-n", "1"],
            "Every message came back at its length: 1 message, 1.00 KiB.",
            "verify length",
        ),
        (["--verify", "none", "-n", "1"], "Every message was answered, unchecked: 1 message", "verify none"),
        (["--seed", "5"], "Every byte came back", "1.00 KiB a message, seed 5, verify full"),
        (["-n", "50", "-r", "10k"], "Every byte came back", "messages/s of 10,000 asked for"),
        (["-n", "9", "--reconnect-every", "1"], "Every byte came back", "connections   9 of 9 made"),
    ],
)
def test_the_report_says_first_whether_every_byte_came_back(capsys, arguments, verdict, row):
    assert client.main(["--loopback", *arguments]) == OK
    captured = capsys.readouterr()
    assert verdict in captured.out
    assert captured.out.index(verdict) < captured.out.index(row)
    assert captured.err == ""


def test_a_closed_loop_owns_up_to_coordinated_omission(capsys):
    client.main(["--loopback", "-n", "1"])
    assert "subject to coordinated omission" in " ".join(capsys.readouterr().out.split())


def test_failures_are_in_the_report_and_not_on_standard_error(capsys, nobody):
    assert client.main([nobody, "-c", "15", "-n", "15"]) == FAILED
    captured = capsys.readouterr()
    assert captured.out.startswith(
        "Failed: nothing came back; 15 attempts to connect failed, 15 messages were never\nsent.\n"
    )
    assert "     15  connect: ECONNREFUSED" in captured.out
    assert captured.err == ""


def test_a_name_that_does_not_resolve_is_one_line(capsys):
    assert client.main(["nowhere.invalid", "-n", "1"]) == FAILED
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("echo-client: cannot resolve 'nowhere.invalid'")


# JSON


def test_a_good_run_as_json(capsys):
    status, document = run_json(capsys, "--loopback", "-c", "3", "-n", "30", "-s", "2K", "--seed", "9")
    assert status == OK
    assert document["program"] == "echo-client"
    assert document["load"] == {
        "model": "closed",
        "connections": 3,
        "size": 2048,
        "workers": 1,
        "pipeline": 1,
        "rate": None,
        "seed": 9,
        "verify": "full",
        "warmup_s": 0.0,
        "duration_s": None,
        "count": 30,
        "connect_rate": None,
        "reconnect_every": None,
    }
    assert document["messages"]["echoed"] == 30
    assert document["bytes"] == {"sent": 61440, "received": 61440}
    assert document["latency_us"]["response"]["count"] == 30
    assert document["latency_us"]["schedule_lag"] is None
    assert list(document["latency_us"]["response"]["percentiles"]) == ["50", "90", "99", "99.9"]


def test_an_open_loop_as_json(capsys):
    arguments = ["-c", "2", "-d", "200ms", "-r", "1k", "--percentiles", "99.99, 1", "--warmup", "50ms", "-i", "50ms"]
    status, document = run_json(capsys, "--loopback", *arguments)
    assert status == OK
    assert document["load"]["model"] == "open"
    assert document["messages"]["sent"] == 200
    assert document["latency_us"]["schedule_lag"]["count"] == 200
    assert list(document["latency_us"]["service"]["percentiles"]) == ["1", "99.99"]
    assert len(document["intervals"]) > 1
    assert sum(interval["messages"] for interval in document["intervals"]) == 200


def test_an_endless_duration_has_no_number_in_json(capsys, server):
    def serve(sock: socket.socket) -> None:
        sock.sendall(sock.recv(65536))
        os.kill(os.getpid(), signal.SIGTERM)
        keep(sock)

    status, document = run_json(capsys, server(serve), "-d", "never")
    assert status == TERMINATED
    assert document["load"]["duration_s"] is None


@pytest.mark.parametrize(
    ("serve", "errors", "timeout"),
    [
        (flip, {"mismatch"}, "1h"),
        (keep, {"timeout"}, "100ms"),
        (close_early, {"closed", "missing"}, "1h"),  # the next message may be sent
    ],
)
def test_failed_runs_are_valid_json(capsys, server, serve, errors, timeout):
    status, document = run_json(capsys, server(serve), "-n", "3", "--timeout", timeout)
    assert status == FAILED
    (error,) = document["errors"]
    assert error["phase"] == "echo"
    assert error["error"] in errors
    assert document["errors"][0]["example"].startswith("connection 1: ")


def test_messages_that_were_due_and_never_sent_fail_the_run_and_are_told_first(capsys, monkeypatch):
    monkeypatch.setattr("echopair.client.load.CATCH_UP", 0.01)
    status, document = run_json(capsys, "--loopback", "-d", "50ms", "-r", "10m")
    assert status == FAILED
    assert document["errors"] == []
    assert document["messages"]["not_sent"] > 0
    assert client.main(["--loopback", "-d", "50ms", "-r", "10m"]) == FAILED
    out = " ".join(capsys.readouterr().out.split())
    assert re.search(r"^(The client was .* than this\. )?[\d,]+ messages were never sent \(the last \d", out)
    assert run_json(capsys, "--loopback", "-d", "50ms", "-r", "10m", "--fail-if", "not_sent>0")[0] == THRESHOLD


def test_an_unchecked_run_that_got_nothing_back_has_failed(capsys, server):
    status, document = run_json(capsys, server(lambda sock: sock.recv(1)), "-n", "5", "--verify", "none")
    assert status == FAILED
    assert document["messages"]["unanswered"] == 1


def test_a_standard_output_that_fails_ends_the_run(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert client.main(["--loopback", "-d", "1h", "--json-lines"]) in (FAILED, INTERRUPTED)


def test_a_start_that_was_missed_is_told(capsys):
    moment = time.time() + 0.5
    options = ["-c", "5", "-n", "5", "--connect-rate", "5", "--start-at", f"@{moment}"]
    assert client.main(["--loopback", *options]) == OK
    assert "after --start-at: the connections were not made in time" in capsys.readouterr().err


def test_a_hang_up_ends_the_run_with_its_report(capsys, server):
    def serve(sock: socket.socket) -> None:
        sock.recv(65536)
        os.kill(os.getpid(), signal.SIGHUP)
        keep(sock)

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup(1)
    try:
        status, document = run_json(capsys, server(serve), "-n", "100")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert status == 129
    assert document["messages"]["unanswered"] == 1


def test_a_hang_up_that_is_to_be_ignored_is(capsys):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert client.main(["--loopback", "-n", "1"]) == OK
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_refused_run_is_valid_json(capsys, nobody):
    status, document = run_json(capsys, nobody, "-c", "2", "-d", "5s")
    assert status == FAILED
    assert document["connections"] == {"attempted": 2, "established": 0, "failed": 2, "closed_early": 0}
    assert document["target"] == nobody


def test_an_unresolved_run_is_valid_json(capsys):
    status, document = run_json(capsys, "nowhere.invalid")
    assert status == FAILED
    assert document["errors"][0]["phase"] == "resolve"


def test_a_failed_run_says_so_to_people_too(capsys, nobody):
    client.main([nobody, "--json"])
    assert (
        capsys.readouterr().err
        == "echo-client: Failed: nothing came back; 1 attempt to connect failed, 1 message was never sent.\n"
    )


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
@pytest.mark.parametrize("rate", [[], ["-r", "100"]])
def test_an_interrupted_run_is_valid_json(capsys, server, signum, status, rate):
    def serve(sock: socket.socket) -> None:
        sock.sendall(sock.recv(65536))
        sock.recv(65536)
        os.kill(os.getpid(), signum)
        keep(sock)

    ended, document = run_json(capsys, server(serve), "-n", "100k", "-s", "10", *rate)
    assert ended == status
    assert document["messages"]["echoed"] == 1
    assert document["messages"]["unanswered"] >= 1
    assert document["errors"] == []


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
def test_a_run_interrupted_while_it_waits_for_a_name_is_valid_json(capsys, monkeypatch, signum, status):
    def unresolved(*_arguments: object, **_options: object) -> None:
        os.kill(os.getpid(), signum)
        raise measuring.AddressError("cannot resolve it")

    monkeypatch.setattr("echopair.address.resolve", unresolved)
    ended, document = run_json(capsys, "later.invalid", "--wait", "1h")
    assert ended == status
    assert document["connections"]["attempted"] == 0


def test_a_run_whose_output_fails_before_it_began_ends(capsys, monkeypatch):
    def unresolved(*_arguments: object, **_options: object) -> None:
        raise measuring.AddressError("cannot resolve it")

    monkeypatch.setattr("echopair.address.resolve", unresolved)
    real = measuring.Run.__init__

    def start(self: measuring.Run, loop: object, *arguments: object) -> None:
        real(self, loop, *arguments)
        loop.call_soon(self.stop)

    monkeypatch.setattr(measuring.Run, "__init__", start)
    assert client.main(["--json", "later.invalid", "--wait", "1h"]) == OK
    VALIDATOR.validate(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
def test_a_signal_ends_the_wait_for_a_name_between_two_tries(capsys, monkeypatch, signum, status):
    class Failing(address.Lookup):
        def addresses(self) -> None:
            os.kill(os.getpid(), signum)
            raise measuring.AddressError("cannot resolve it")

    monkeypatch.setattr("echopair.cli.reaching.Lookup", Failing)
    monkeypatch.setattr("echopair.cli.reaching.RESOLVE_RETRY_DELAY", HUNG)
    ended, document = run_json(capsys, "later.invalid", "--wait", "1h")
    assert ended == status
    assert document["connections"]["attempted"] == 0


def test_a_signal_after_the_last_echo_changes_nothing(capsys, monkeypatch):
    real = measuring.Reach.done

    def done(self: measuring.Reach) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        real(self)

    monkeypatch.setattr(measuring.Reach, "done", done)
    status, document = run_json(capsys, "--loopback", "-n", "5")
    assert status == document["exit_status"] == OK


def test_lines_of_json_tell_events_as_they_happen(capsys, server):
    served = []

    def serve(sock: socket.socket) -> None:
        served.append(1)
        (flip if len(served) == 1 else echo)(sock)

    assert client.main(["--json-lines", server(serve), "-d", "300ms", "-i", "100ms", "-c", "2"]) == FAILED
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "start"
    assert events[0]["data"]["load"]["connections"] == 2
    assert kinds[-1] == "end"
    VALIDATOR.validate(events[-1]["data"])
    errors = [event["data"] for event in events if event["event"] == "error"]
    assert [error["error"] for error in errors] == ["mismatch"]
    intervals = [event["data"] for event in events if event["event"] == "interval"]
    assert events[-1]["data"]["intervals"] == intervals


@pytest.mark.parametrize("options", [["-n", "100k"], ["-d", "50ms"], ["-n", "100k", "-r", "10k"]])
def test_a_run_that_stalls_is_rated_over_all_its_time_by_everything_that_rates_it(capsys, server, tmp_path, options):
    def serve(sock: socket.socket) -> None:
        for _ in range(10):
            sock.sendall(sock.recv(1024, socket.MSG_WAITALL))
        keep(sock)

    document, page, merged = (tmp_path / name for name in ("run.json", "run.html", "merged.json"))
    options = [*options, "-i", "100ms", "--timeout", "400ms", "--fail-if", "rate<1000"]
    options += ["-o", str(document), "--report", str(page)]
    assert client.main([server(serve), *options, "--json-lines"]) == THRESHOLD
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    intervals = [event["data"] for event in events if event["event"] == "interval"]
    end, kept = events[-1]["data"], json.loads(document.read_text())
    assert end == kept
    rate = end["throughput"]["messages_per_s"]
    assert rate == end["thresholds"][0]["value"] == pytest.approx(10 / end["duration_s"], abs=0.001)
    assert 5 < rate < 25
    assert end["intervals"] == intervals
    assert sum(interval["messages"] for interval in intervals) == 10
    assert intervals[-1]["at_s"] == end["duration_s"]
    assert sum(interval["errors"] for interval in intervals) == sum(error["count"] for error in end["errors"])
    assert f"<dt>Messages</dt><dd>{figure(rate)}/s</dd>" in page.read_text()
    client.main(["--merge", str(document), "-o", str(merged)])
    assert f"  rate          {figure(rate)} messages/s" in capsys.readouterr().out
    assert json.loads(merged.read_text())["throughput"] == end["throughput"]


def test_only_the_first_failure_of_a_kind_in_an_interval_is_told(capsys, nobody):
    client.main(["--json-lines", nobody, "-c", "20"])
    assert capsys.readouterr().out.count('"event": "error"') == 1


# Files


def test_files_hold_the_same_figures_as_the_report(capsys, tmp_path):
    """Text, JSON, page and plot of one run agree."""
    names = {"-o": "run.json", "--report": "run.html", "--hdr": "run.hgrm"}
    options = [part for option, name in names.items() for part in (option, str(tmp_path / name))]
    assert client.main(["--loopback", "-c", "4", "-d", "300ms", "-r", "2k", *options]) == OK
    text = capsys.readouterr().out
    document = json.loads((tmp_path / "run.json").read_text())
    VALIDATOR.validate(document)
    page = (tmp_path / "run.html").read_text("utf-8").replace("\xa0", " ")
    plot = (tmp_path / "run.hgrm").read_text()
    echoed = document["messages"]["echoed"]
    assert echoed == 600
    assert "600 sent, 600 came back" in text
    assert "<div><dt>Echoed</dt><dd>600</dd></div>" in page
    assert f"Total count    = {600:12}]" in plot
    for name in ("response", "service", "connect", "schedule_lag"):
        for percent, us in document["latency_us"][name]["percentiles"].items():
            shown = meter_module.duration(us / 1e6)
            assert shown in re.search(rf"^  p{percent} .*$", text, re.MULTILINE)[0]
            assert f"<td>{shown.replace('us', 'µs')}</td>" in page
    assert f"{document['latency_us']['response']['max']:.3f}" in plot


def test_a_file_is_replaced_only_at_the_end(tmp_path, capsys, server):
    path = tmp_path / "run.json"
    path.write_text("what was there, longer than nothing" * 1000)
    seen = []

    def serve(sock: socket.socket) -> None:
        seen.append(path.read_text())
        echo(sock)

    assert client.main([server(serve), "-o", str(path)]) == OK
    assert seen[0].startswith("what was there")
    VALIDATOR.validate(json.loads(path.read_text()))


def test_a_file_may_be_a_pipe(capsys):
    reader, writer = os.pipe()
    assert client.main(["--loopback", "-n", "1", "-o", f"/dev/fd/{writer}"]) == OK
    VALIDATOR.validate(json.loads(os.read(reader, 1 << 16)))
    os.close(reader)
    os.close(writer)


def test_a_file_that_takes_no_more_fails_the_run(capsys):
    assert client.main(["--loopback", "-n", "1", "-o", "/dev/full"]) == FAILED
    captured = capsys.readouterr()
    assert captured.err == "echo-client: cannot write /dev/full: no space left on device\n"
    assert "Every byte came back" in captured.out


# Thresholds and merging


@pytest.mark.parametrize(
    ("expressions", "status"),
    [
        (["p99>1us"], THRESHOLD),
        (["p99>1h", "rate<1"], OK),
        (["p99>1h", "rate>1"], THRESHOLD),
        (["connect.p50>1us"], THRESHOLD),
        (["response.p99.9>10s", "errors>0.1%", "bytes_rate<1"], OK),
    ],
)
def test_thresholds_decide_the_status(capsys, expressions, status):
    options = [part for expression in expressions for part in ("--fail-if", expression)]
    ended, document = run_json(capsys, "--loopback", "-n", "10", *options)
    assert ended == status
    assert [threshold["expression"] for threshold in document["thresholds"]] == expressions


def test_a_threshold_of_a_failed_run_decides_too(capsys, nobody):
    assert run_json(capsys, nobody, "--fail-if", "errors>50%")[0] == THRESHOLD
    assert run_json(capsys, nobody, "--fail-if", "rate>1")[0] == FAILED


def test_merging_adds_runs_up(capsys, tmp_path):
    files = [str(tmp_path / f"{name}.json") for name in "ab"]
    for path, number in zip(files, ("10", "30"), strict=True):
        client.main(["--loopback", "-n", number, "-o", path])
    capsys.readouterr()
    status, document = run_json(capsys, "--merge", *files)
    assert status == OK
    assert document["messages"]["echoed"] == document["latency_us"]["response"]["count"] == 40
    assert client.main(["--merge", *files, "--fail-if", "p50>1us"]) == THRESHOLD
    captured = capsys.readouterr()
    assert "40 sent, 40 came back" in captured.out
    assert captured.err == (
        "echo-client: these runs hardly overlapped: the rate is over the time in which any of them ran\n"
    )
    assert client.main(["--merge", files[0], files[0]]) == USAGE
    assert capsys.readouterr().err == f"echo-client: {files[0]} holds a run that is listed twice: leave one out\n"
    assert client.main(["--merge", *files, "-o", files[0]]) == USAGE
    assert "would overwrite the file of --merge" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{", " is not a result of echo-client: "),
        (b"\xff", " is not a result of echo-client: "),
        (b"[1]", " is not a result of echo-client: "),
        (b'{"schema_version": 7}', " has schema_version 7; this program reads 1"),
        (b"[" * 100_000 + b"]" * 100_000, " is not a result of echo-client: maximum recursion depth exceeded"),
        (b'{"rate": NaN}', " is not a result of echo-client: 'NaN' is not a number, or too large"),
        (b"[1e999]", " is not a result of echo-client: '1e999' is not a number, or too large"),
        (b"9" * 5000, " is not a result of echo-client: '999999999999...9999999999999' is not a number, or too large"),
        (None, "cannot read "),
    ],
)
def test_what_is_no_result_is_not_merged(capsys, tmp_path, content, complaint):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    assert client.main(["--merge", str(path)]) == USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line
    assert str(path) in line


@pytest.mark.parametrize("depth", range(900, 1000, 20))
def test_nesting_that_can_just_be_read_is_no_result_either(capsys, tmp_path, depth):
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_bytes(b"[" * depth + b"]" * depth)
    assert client.main(["--merge", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"holds a run that is listed twice|is not a result of echo-client: maximum recursion depth", line)


# Files


@pytest.fixture
def link(tmp_path) -> str:
    """A file by three names: its own, a link to it, and one in a folder that is a link."""
    (tmp_path / "r.json").write_text("as it was")
    (tmp_path / "hard").hardlink_to(tmp_path / "r.json")
    (tmp_path / "soft").symlink_to("r.json")
    (tmp_path / "new").symlink_to("none")  # a link to what is not there yet
    (tmp_path / "folder").symlink_to(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-o", "{}/r.json", "--hdr", "{}/./r.json"], "--hdr {}/./r.json would overwrite the file of -o {}/r.json"),
        (["-o", "{}/r.json", "--report", "{}/soft"], "--report {}/soft would overwrite the file of -o {}/r.json"),
        (["-o", "{}/hard", "--report", "{}/soft"], "--report {}/soft would overwrite the file of -o {}/hard"),
        (["-o", "{}/folder/r.json", "--hdr", "{}/r.json"], "--hdr {}/r.json would overwrite the file of -o {}/folder/"),
        (["-o", "{}/none", "--hdr", "{}/new"], "--hdr {}/new would overwrite the file of -o {}/none"),
        (["--merge", "{}/r.json", "-o", "{}/hard"], "-o {}/hard would overwrite the file of --merge {}/r.json"),
        (["--check", "--merge", "{}/r.json", "--junit", "{}/soft"], "--junit {}/soft would overwrite the file of"),
    ],
)
def test_one_file_by_two_names_is_not_overwritten(capsys, link, arguments, complaint):
    assert client.main([argument.format(link) for argument in arguments]) == USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"echo-client: {complaint.format(link, link)}")
    assert Path(link, "r.json").read_text() == "as it was"
    assert not Path(link, "none").exists()


def test_a_file_that_standard_output_goes_to_is_not_overwritten(tmp_path):
    path = tmp_path / "r.json"
    with open(path, "w") as file:
        done = run_client("-n", "1", "--loopback", "-o", str(path), capture_output=False, stdout=file)
        assert done.returncode == USAGE
        done = run_client("-n", "1", "--loopback", "--hdr", str(path), capture_output=False, stdout=None, stderr=file)
        assert done.returncode == USAGE
    assert f"--hdr {path} would overwrite standard error: give each" in path.read_text()


def test_a_device_takes_as_much_as_it_is_given(capsys):
    files = [argument for option in ("-o", "--hdr", "--report") for argument in (option, os.devnull)]
    assert client.main(["--loopback", "-n", "1", *files]) == OK
    assert capsys.readouterr().out.startswith("Every byte came back")


@pytest.mark.parametrize(
    ("arguments", "begin"),
    [
        (["-n", "1", "-o", "-"], '{"schema_version": 1, '),
        (["-n", "1", "--output=-", "--json"], '{"schema_version": 1, '),
        (["-n", "1", "--hdr", "-"], "       Value     Percentile TotalCount"),
        (["--report", "-", "-n", "1"], "<!DOCTYPE html>"),
        (["--check-only", "basic", "--junit", "-"], "<?xml "),
    ],
)
def test_a_file_may_be_standard_output_which_then_has_nothing_else(capsys, arguments, begin):
    assert client.main(["--loopback", *arguments]) == OK
    captured = capsys.readouterr()
    assert captured.out.startswith(begin)
    assert "Every byte came back" not in captured.out.replace("<title>Every byte came back", "").splitlines()
    assert captured.err == ""


def test_what_went_wrong_is_said_beside_a_document_on_standard_output(capsys, nobody):
    assert client.main([nobody, "-n", "1", "--hdr", "-"]) == FAILED
    captured = capsys.readouterr()
    assert captured.out.startswith("       Value")
    assert captured.err.startswith("echo-client: Failed: nothing came back")


# While it goes on


def test_a_line_an_interval(capsys):
    assert client.main(["--loopback", "-d", "300ms", "-i", "100ms"]) == OK
    head, *lines = capsys.readouterr().err.splitlines()
    assert head.split() == ["time", "messages/s", "bytes/s", "p50", "p99", "max", "conns", "errors"]
    assert lines
    assert all(re.fullmatch(r" *\d\.\d+ s +[\d,]+ +[\d.]+ [KM]iB/s( +[\d.]+ [um]s){3} +1 +0", line) for line in lines)
    assert len({len(line) for line in [head, *lines]}) == 1


def test_a_slow_line_has_its_rate():
    figures = {"duration_s": 10.0, "messages": 4, "bytes": 1, "response_us": {"50": 0.06, "99": None, "max": None}}
    assert meter_module._figures(figures) == ("0.4", "0.1 B", "60.0 ns", "-", "-")


def be_a_terminal(monkeypatch) -> None:
    """Call standard error one; from within the test, for pytest changes it before."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(meter_module, "REDRAWN", 0.01)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["-d", "300ms"], r"━+ *━*  0\.\d s, 0 s left"),
        (["-n", "20k"], r"\d\.\d s, \d s left"),
        (["-n", "20", "--connect-rate", "100", "-c", "10"], r"connecting \d of 10 \.\. 0 s"),
        (["-n", "20", "--warmup", "100ms"], r"warming up \.\."),
    ],
)
def test_a_terminal_has_a_live_meter(monkeypatch, capsys, arguments, shown):
    be_a_terminal(monkeypatch)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert client.main(["--loopback", *arguments]) == OK
    err = capsys.readouterr().err
    plain = re.sub(r"\x1b\[\d*m", "", err)
    drawn = plain.split(meter_module.CLEAR)
    assert any(re.search(shown, each) for each in drawn), drawn[:5]
    assert drawn[-1] == ""  # wiped out at the end
    assert "\x1b[1m" in err or "\x1b[2m" in err or "connecting" in err or "warming" in err


def test_the_meter_counts_errors_and_shows_the_last_interval(monkeypatch, capsys, server):
    be_a_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    assert client.main([server(close_early), "-d", "1.3s"]) == FAILED
    err = capsys.readouterr().err
    assert re.search(r" messages/s  [\d.]+ .?i?B/s  p50 .*  p99 .*  \d+ errors", err)
    assert "\x1b[1m" not in err


def test_the_meter_says_that_it_waits_for_the_last_messages(monkeypatch, capsys, server):
    be_a_terminal(monkeypatch)
    assert client.main([server(keep), "-d", "10ms", "--timeout", "1s"]) == FAILED
    assert ", waiting for the last to come back" in re.sub(r"\x1b\[\d*m", "", capsys.readouterr().err)


def test_a_narrow_terminal_gets_what_fits(monkeypatch, capsys):
    be_a_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("NO_COLOR", "1")
    client.main(["--loopback", "-d", "200ms"])
    assert max(map(len, capsys.readouterr().err.split(meter_module.CLEAR))) < 30


def test_progress_can_be_switched_off(monkeypatch, capsys):
    be_a_terminal(monkeypatch)
    client.main(["--loopback", "-d", "100ms", "--no-progress"])
    assert capsys.readouterr().err == ""


def test_an_endless_run_shows_only_how_long_it_has_lasted(monkeypatch, capsys, server):
    be_a_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")

    def serve(sock: socket.socket) -> None:
        began = time.monotonic()
        while time.monotonic() < began + 0.2:  # in which the meter is drawn many times
            sock.sendall(sock.recv(65536))
        os.kill(os.getpid(), signal.SIGINT)
        keep(sock)

    client.main([server(serve), "-d", "never"])
    assert re.search(r"\r\x1b\[K0\.\d s  0 errors", capsys.readouterr().err)


def test_the_meter_is_wiped_out_once_also_where_it_never_began(monkeypatch, capsys):
    be_a_terminal(monkeypatch)
    meter = meter_module.Meter()
    meter.end()
    meter.end()  # as after a second signal, which does not wait for the load
    assert capsys.readouterr().err == meter_module.CLEAR


def test_timers_that_stay_blunt_are_no_obstacle(capsys, monkeypatch):
    def refuse(*_arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr(measuring, "open", refuse, raising=False)
    assert client.main(["--loopback", "-n", "1", "-r", "10"]) == OK


def test_a_run_may_begin_at_a_moment(capsys):
    moment = time.time() + 0.5
    status, document = run_json(capsys, "--loopback", "-n", "1", "--start-at", f"@{moment}")
    assert status == OK
    started = datetime.fromisoformat(document["started_at"]).timestamp()
    assert moment - 0.001 <= started < time.time()  # it is given in milliseconds


def test_a_system_that_does_not_count_the_wait_for_a_processor_has_none(monkeypatch):
    monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(FileNotFoundError()))
    assert busy.waited_for_cpu() == 0.0


def test_how_busy_it_was_is_noted_once(clock):
    told = busy.Busy(clock)
    told.begin()
    clock.advance(1)
    told.end()
    figures = told.figures
    clock.advance(1)
    told.end()
    assert told.figures == figures
    assert figures[2] == 1.0
