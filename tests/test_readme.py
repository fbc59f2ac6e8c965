"""The README says what is so: every option of both commands, and commands that can be run as written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from echopair.cli import client, client_options, server

README = Path(__file__).parent.parent / "README.md"


PARSERS = {"echo-server": server._parser, "echo-client": client_options.parser}


@pytest.mark.parametrize(("command", "parser"), PARSERS.items())
def test_every_option_is_in_the_table_with_its_default(command, parser):
    section = README.read_text().partition(f"### {command}\n")[2].partition("\n#")[0]
    for action in parser()._actions:
        for option in action.option_strings:
            assert f"`{option}" in section, option
        if isinstance(action.default, str | int) and action.option_strings and action.nargs != 0:
            (row,) = [line for line in section.splitlines() if f"`{action.option_strings[-1]}" in line]
            assert str(action.default) in row


def test_the_table_has_no_option_that_is_gone():
    known = {option for parser in PARSERS.values() for action in parser()._actions for option in action.option_strings}
    rows = [line.split("|")[1] for line in README.read_text().splitlines() if line.startswith("| `")]
    shown = {option for row in rows for option in re.findall(r"`(--?[\w-]*)", row)}
    assert shown <= known | {"-", "-h", "--help", "--version"}


def test_every_file_it_names_exists():
    for path in re.findall(r"\]\(([\w/.]+)\)", README.read_text()):
        assert (README.parent / path).exists(), path


@pytest.mark.parametrize("module", [server, client])
def test_help_fits_a_terminal_of_eighty_columns(module, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert module.main(["--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
