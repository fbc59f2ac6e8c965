"""The examples: each runs, says what it should and is short; and the chapter quotes the source as it stands."""

from __future__ import annotations

import importlib
import inspect
import operator
import re
import shutil
import signal
import socket
import sys
import textwrap
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from subprocess import Popen

import pytest

from helpers import HUNG, LOCALHOST, running, running_server

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
CHAPTER = (EXAMPLES / "from_the_tutorial.md").read_text(encoding="utf-8")
LINK = r"\[`(?P<name>[\w.]+)(?:\(\))?`\]\(\.\./src/(?P<path>\S+)\.py\)"
QUOTE = r"^```python src/(?P<quoted>\S+)\.py\n(?P<block>.*?)^```$"
LINKS_AND_QUOTES = list(re.finditer(f"{LINK}|{QUOTE}", CHAPTER, re.MULTILINE | re.DOTALL))
NAMED = [(match["path"], match["name"]) for match in LINKS_AND_QUOTES if match["name"]]
QUOTED = [  # with the name that was linked last
    (before["path"], before["name"], match["quoted"], match["block"])
    for before, match in pairwise(LINKS_AND_QUOTES)
    if match["block"]
]


def find(path: str, name: str) -> object:
    return operator.attrgetter(name)(importlib.import_module(path.replace("/", ".")))


def example(name: str, *arguments: str) -> AbstractContextManager[Popen[str]]:
    """Run an example, with a warning (a socket that nobody closed) as an error on its standard error."""
    return running(sys.executable, "-W", "error", str(EXAMPLES / name), *arguments)


def result(process: Popen[str]) -> tuple[int, str, str]:
    """What became of a process: its exit status, what it printed, what it complained of."""
    output, complaints = process.communicate(timeout=HUNG)
    return process.returncode, output, complaints


def test_pair_in_one_loop_gets_every_byte_back():
    with example("pair_in_one_loop.py") as process:
        assert result(process) == (
            0,
            "client: 3 connections, 153 bytes sent, every one came back\n"
            "server: 3 connections, 153 bytes in, 153 out\n",
            "",
        )


def test_upper_server_answers_in_capitals_until_interrupted():
    with example("upper_server.py", "0") as process:
        host, _, port = process.stdout.readline().removeprefix("Listening on ").rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port)), HUNG) as client:
            client.sendall("Grüße, 123\n".encode())
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as answer:
                assert answer.read() == "GRüßE, 123\n".encode()  # bytes have only ASCII capitals
        process.send_signal(signal.SIGINT)
        status, output, complaints = result(process)
    assert (status, output.splitlines()[-1], complaints) == (0, "connections served: 1", "")


def test_client_from_python_says_that_all_came_back():
    with running_server() as (_, port), example("client_from_python.py", f"{LOCALHOST}:{port}") as process:
        assert result(process) == (
            0,
            "connection 1: 3 of 3 messages came back\nconnection 2: 3 of 3 messages came back\n",
            "",
        )


def test_client_from_python_sees_that_a_server_of_another_kind_does_not_echo():
    with example("upper_server.py", "0") as server:
        address = server.stdout.readline().removeprefix("Listening on ").strip()
        with example("client_from_python.py", address) as process:
            status, output, complaints = result(process)
    assert status == 1
    assert output.splitlines() == [f"connection {number}: 0 of 3 messages came back" for number in (1, 2)]
    assert "connection 1: message 1, offset 0: expected 68 65 6c 6c 6f, got 48 45 4c 4c 4f" in complaints


def test_client_from_python_says_that_nobody_listens():
    with socket.socket() as bound:  # and thus nobody else's, but not listening
        bound.bind((LOCALHOST, 0))
        address = "{}:{}".format(*bound.getsockname())
        with example("client_from_python.py", address) as process:
            status, _, complaints = result(process)
    assert status == 1
    assert f"connection 2: cannot connect to {address}: connection refused" in complaints


@pytest.mark.parametrize(
    ("target", "status", "complaint"),
    [("1:2:3", 2, "is ambiguous"), ("localhost:http", 2, "is not a port"), ("a..b:7", 1, "cannot resolve 'a..b'")],
)
def test_client_from_python_says_what_is_wrong_with_an_address(target, status, complaint):
    with example("client_from_python.py", target) as process:
        returned, output, complaints = result(process)
    assert (returned, output, complaints.count("\n")) == (status, "", 1)
    assert complaint in complaints


@pytest.mark.parametrize("arguments", [["--help"], ["-h", "1"], ["--hepl"], ["many"]])
@pytest.mark.parametrize("name", ["bench/bench.py", "bench/rows.py", "pictures/make.py"])
def test_what_is_no_order_to_measure_neither_runs_nor_writes_anything(tmp_path, name, arguments):
    folder = tmp_path / "copy"
    shutil.copytree((EXAMPLES / name).parent, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with running(sys.executable, "-B", str(folder / Path(name).name), *arguments, env={"PATH": ""}) as process:
        status, output, complaints = result(process)
    if arguments[0] in ("--help", "-h"):
        assert (status, complaints) == (0, "")
        assert f"Run it: python examples/{name}" in output
    else:
        assert (status, output) == (2, "")
        assert complaints.startswith("usage: ")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("number", ["0", "-1"])
def test_a_bench_runs_at_least_once(number):
    with running(sys.executable, str(EXAMPLES / "bench/bench.py"), "--", number, env={"PATH": ""}) as process:
        status, _, complaints = result(process)
    assert status == 2
    assert f"ROUNDS is {number}: give at least 1" in complaints


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_fits_on_a_slide_and_says_how_to_run_it(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") < 40
    assert f"Run it: python examples/{path.name}" in text


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED)), ids=lambda part: part)
def test_what_the_chapter_names_exists(path, name):
    assert find(path, name)


@pytest.mark.parametrize(("path", "name", "quoted", "block"), QUOTED, ids=[name for _, name, _, _ in QUOTED])
def test_what_the_chapter_quotes_stands_in_what_it_names(path, name, quoted, block):
    named = find(path, name)
    source = inspect.getsource(getattr(named, "fget", named))
    assert quoted == path
    assert any(f"\n{textwrap.indent(block, ' ' * width)}" in source for width in range(0, 20, 4))


def test_the_chapter_marks_what_it_quotes_and_links_what_it_names():
    assert len(QUOTED) == CHAPTER.count("```python src/") >= 12
    assert len(NAMED) == len(re.findall(r"`\]\(\.\./src/", CHAPTER)) >= 12
    for link in re.findall(r"\]\(([^)]+)\)", CHAPTER):
        assert (EXAMPLES / link).is_file(), link
