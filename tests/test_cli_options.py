"""Options: quantities, the environment, help, and errors of one line."""

from __future__ import annotations

import argparse
import math
import re
import socket

import pytest

from echopair import __version__
from echopair.cli import client_options, options, server
from echopair.cli.options import Answer, UsageError, checked, count, duration, size


def parser() -> options.Parser:
    parser = options.Parser("echo-test", "Tests.", "examples:\n  echo-test", {"-t": "a time goes into --delay"})
    add = parser.add_argument
    add("target", nargs="?", help="where to")
    add("-p", "--port", type=checked(int), default=12345, help="its port")
    add("--host", action=options.Collect, type=options.each(options.host), default=["localhost"], help="its name")
    add("-m", "--message", action=options.Collect, help="what to say")
    add("--say-it", choices=["loud", "low"], default="low", help="how")
    add("--max", type=size(1), default="256K", help="how much")
    add("--delay", type=duration(), default=0.0, help="how late")
    add("-q", "--quiet", action="store_true", help="say less")
    options.add_family(parser.add_argument_group("where"))
    return parser


def parse(*argv: str, **environ: str) -> argparse.Namespace:
    return parser().parse(argv, environ)


# Quantities


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("1024", 1024), ("64K", 65536), ("64k", 65536), (" 2 M ", 2097152), ("1G", 1073741824), ("1.5K", 1536)],
)
def test_size_is_bytes_or_binary_units(text: str, number: int) -> None:
    value = size()(text)
    assert value == number
    assert isinstance(value, int)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("10k", 10_000),
        ("10K", 10_000),
        ("2m", 2_000_000),
        (".5k", 500),
        ("1.001k", 1001),
        ("2.05m", 2_050_000),
    ],
)
def test_count_is_a_number_or_decimal_units(text: str, number: int) -> None:
    value = count()(text)
    assert value == number
    assert isinstance(value, int)


@pytest.mark.parametrize("digits", ["9007199254740993", f"{10**18}"], ids=["2**53 + 1", "the most"])
@pytest.mark.parametrize("read", [size(), count()], ids=["size", "count"])
def test_large_numbers_are_exact(read, digits: str) -> None:
    assert read(digits) == int(digits)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("5", 5), ("2s", 2), ("0.5", 0.5), ("250us", 0.00025), ("500ms", 0.5), ("2m", 120), ("1.5H", 5400)],
)
def test_duration_is_seconds_or_with_a_unit(text: str, seconds: float) -> None:
    assert duration()(text) == pytest.approx(seconds)


def test_duration_may_be_without_end() -> None:
    assert duration()("never") == math.inf


@pytest.mark.parametrize(
    ("text", "seconds"), [("9" * 400, math.inf), ("0." + "0" * 400 + "1", 0)], ids=["long", "short"]
)
def test_duration_may_be_beyond_what_floats_tell(text: str, seconds: float) -> None:
    assert duration()(text) == seconds


@pytest.mark.parametrize(
    ("read", "text", "complaint"),
    [
        (size(), "", "'' is not a size: give a number of bytes, or with K, M, G (1024), like 64K"),
        (size(), "64KB", "'64KB' is not a size: give a number of bytes, or with K, M, G (1024), like 64K"),
        (size(), "1.0001K", "'1.0001K' is not a whole number"),
        (size(), "-1", "'-1' is not a size: give a number of bytes, or with K, M, G (1024), like 64K"),
        (size(1), "0", "'0' is too small: give at least 1"),
        (count(), "1.5", "'1.5' is not a whole number"),
        (count(), "1e3", "'1e3' is not a number: give a whole number, or with k, m (1000), like 10k"),
        (count(), "1.k", "'1.k' is not a number: give a whole number, or with k, m (1000), like 10k"),
        (count(), "\u0661", "'\u0661' is not a number: give a whole number, or with k, m (1000), like 10k"),
        (count(), "2" + "0" * 18, "'2000000000000000000' is too large: give at most 1,000,000,000,000,000,000"),
        (size(), "9" * 400, "'999999999999...9999999999999' is too large: give at most 1,000,000,000,000,000,000"),
        (size(), "9" * 5000, "'999999999999...9999999999999' is too large: give at most 1,000,000,000,000,000,000"),
        (options.rate(), "2000000000000m", "'2000000000000m' is too large: give at most 1,000,000,000,000,000,000"),
        (duration(), "soon", "'soon' is not a duration: give seconds, or with us, ms, s, m, h, like 500ms, or never"),
        (duration(), "1d", "'1d' is not a duration: give seconds, or with us, ms, s, m, h, like 500ms, or never"),
        (duration(0.001), "1us", "'1us' is too small: give at least 0.001"),
    ],
)
def test_what_is_no_quantity_says_what_would_be(read, text: str, complaint: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        read(text)
    assert str(caught.value) == complaint


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("[::1]", "::1"),
        ("::1", "::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("a.example", "a.example"),
        ("host]", "host]"),
    ],
)
def test_brackets_around_a_host_are_left_out(text: str, host: str) -> None:
    assert options.host(text) == host


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("12345", "'12345' looks like a port: write --port 12345"),
        ("127.1", "'127.1' would be read as the address 127.0.0.1: write that"),
        ("[::1", "'[::1' is not an address: write [IPV6]:PORT, like [::1]:12345"),
        ("tcp:host:7", "'tcp:host:7' is not an address: write host:7, without tcp:"),
        ("tcp://[::1]:7", "'tcp://[::1]:7' is not an address: write [::1]:7, without tcp://"),
        ("host:7", "'host:7' is a host and a port: give the port with --port"),
        ("", "the host is empty: give a name or an address"),
    ],
)
def test_what_is_no_host_says_what_would_be(text: str, complaint: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        options.host(text)
    assert str(caught.value) == complaint


# The command line


def test_defaults_are_read_as_if_they_were_given() -> None:
    args = parse()
    assert (args.port, args.host, args.message, args.max, args.quiet) == (12345, ["localhost"], None, 262144, False)


def test_argv_is_the_process_own_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["echo-test", "--port", "7"])
    assert parser().parse(None, {}).port == 7


def test_first_repeated_option_replaces_the_default_and_the_next_are_added() -> None:
    args = parse("--host", "a", "-m", "1", "--host", "b", "-m", "2")
    assert (args.host, args.message) == (["a", "b"], ["1", "2"])
    assert parse("--host", "0.0.0.0, ::", "--host", "b").host == ["0.0.0.0", "::", "b"]
    assert parse().host == ["localhost"]


def test_options_and_arguments_mix() -> None:
    args = parse("-q", "server:7", "--port", "9")
    assert (args.quiet, args.target, args.port) == (True, "server:7", 9)


@pytest.mark.parametrize(
    ("argv", "family"),
    [([], socket.AF_UNSPEC), (["-4"], socket.AF_INET), (["--ipv6"], socket.AF_INET6)],
)
def test_family_is_both_unless_one_is_asked_for(argv: list[str], family: int) -> None:
    assert parse(*argv).family == family


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["a", "b"], "unexpected argument 'b'"),
        (["--prot", "7"], "unknown option --prot (did you mean --port?)"),
        (["--prot=7"], "unknown option --prot=7 (did you mean --port?)"),
        (["--xyzzy"], "unknown option --xyzzy"),
        (["--m"], "unknown option --m (did you mean --message?)"),
        (["--po", "7"], "unknown option --po (did you mean --port?)"),
        (["--sort", "7"], "unknown option --sort (did you mean --port?)"),
        (["-x"], "unknown option -x"),
        (["-prot"], "-p/--port: invalid literal for int() with base 10: 'rot'"),
        (["-t", "5"], "-t: a time goes into --delay"),
        (["-t5"], "-t: a time goes into --delay"),
        (["-u"], "-u: echo-test supports only plain TCP so far, not UDP"),
        (["--udp"], "--udp: echo-test supports only plain TCP so far, not UDP"),
        (["-U", "/tmp/x"], "-U: echo-test supports only plain TCP so far, not Unix sockets"),
        (["--unix=/tmp/x"], "--unix: echo-test supports only plain TCP so far, not Unix sockets"),
        (["--tls"], "--tls: echo-test supports only plain TCP so far, not TLS"),
        (["a", "-"], "unexpected argument '-'"),
        (["--port"], "-p/--port: expected one argument (one that begins with - is written --option=-value)"),
        (["--port", "x"], "-p/--port: invalid literal for int() with base 10: 'x'"),
        (["--max", "0"], "--max: '0' is too small: give at least 1"),
        (["-4", "-6"], "-6/--ipv6: not allowed with argument -4/--ipv4"),
    ],
)
def test_wrong_usage_is_told_in_one_line(argv: list[str], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*argv)
    assert str(caught.value) == complaint


# The environment


@pytest.mark.parametrize(
    ("environ", "name", "value"),
    [
        ({"ECHO_TEST_PORT": "7"}, "port", 7),
        ({"ECHO_TEST_HOST": "a"}, "host", ["a"]),
        ({"ECHO_TEST_HOST": "0.0.0.0,::"}, "host", ["0.0.0.0", "::"]),
        ({"ECHO_TEST_MESSAGE": "a, b"}, "message", ["a, b"]),
        ({"ECHO_TEST_SAY_IT": "loud"}, "say_it", "loud"),
        ({"ECHO_TEST_MAX": "1K"}, "max", 1024),
        ({"ECHO_TEST_QUIET": "yes"}, "quiet", True),
        ({"ECHO_TEST_QUIET": "TRUE"}, "quiet", True),
        ({"ECHO_TEST_QUIET": "0"}, "quiet", False),
        ({"ECHO_TEST_QUIET": ""}, "quiet", False),
        ({"ECHO_TEST_IPV6": "yes"}, "family", socket.AF_INET6),
        ({"ECHO_TEST_IPV4": "yes", "ECHO_TEST_IPV6": "no"}, "family", socket.AF_INET),
        ({"ECHO_TEST_TARGET": "no option"}, "target", None),
        ({"ECHO_TEST_HELP": "yes", "ECHO_TEST_VERSION": "yes"}, "quiet", False),
        ({"ECHO_SERVER_PORT": "7"}, "port", 12345),
    ],
)
def test_environment_sets_defaults(environ: dict[str, str], name: str, value: object) -> None:
    assert getattr(parse(**environ), name) == value


@pytest.mark.parametrize(
    ("argv", "environ", "name", "value"),
    [
        (["-p", "8"], {"ECHO_TEST_PORT": "7"}, "port", 8),
        (["--host", "b", "--host", "c"], {"ECHO_TEST_HOST": "a"}, "host", ["b", "c"]),
        (["-p", "8"], {"ECHO_TEST_PORT": "x"}, "port", 8),
    ],
)
def test_command_line_wins(argv: list[str], environ: dict[str, str], name: str, value: object) -> None:
    assert getattr(parse(*argv, **environ), name) == value


@pytest.mark.parametrize(
    ("argv", "family"), [([], socket.AF_INET), (["-4"], socket.AF_INET), (["-6"], socket.AF_INET6)]
)
def test_command_line_wins_where_one_option_excludes_the_other(argv: list[str], family: int) -> None:
    assert parse(*argv, ECHO_TEST_IPV4="yes").family == family


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        ({"ECHO_TEST_PORT": "x"}, "ECHO_TEST_PORT: invalid literal for int() with base 10: 'x'"),
        ({"ECHO_TEST_MAX": "0"}, "ECHO_TEST_MAX: '0' is too small: give at least 1"),
        ({"ECHO_TEST_SAY_IT": "so"}, "ECHO_TEST_SAY_IT: 'so' is not one of loud, low"),
        ({"ECHO_TEST_QUIET": "maybe"}, "ECHO_TEST_QUIET: 'maybe' is neither yes nor no"),
    ],
)
def test_wrong_environment_is_told_by_the_variables_name(environ: dict[str, str], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(**environ)
    assert str(caught.value) == complaint


def test_settled_option_needs_no_sound_variable_and_no_other_is_read_twice() -> None:
    args = parser().parse([], {"ECHO_TEST_PORT": "x"}, lambda namespace: setattr(namespace, "port", 9))
    assert args.port == 9


COMMANDS = {"ECHO_SERVER": server._parser, "ECHO_CLIENT": client_options.parser}
OPTIONS = [  # of both commands: what reads them, the variable, the option
    pytest.param(command, f"{variable}_{option[2:].replace('-', '_').upper()}", option, id=f"{variable} {option}")
    for variable, command in COMMANDS.items()
    for action in command()._actions
    for option in action.option_strings
    if option.startswith("--")
]


@pytest.mark.parametrize(("command", "variable", "_option"), OPTIONS)
@pytest.mark.parametrize("value", ["", "tcp://10.96.12.3:7", "udp://[fd00::a]:7", "TCP://10.0.0.1:12345"])
def test_an_empty_variable_and_a_service_link_count_as_unset(command, variable: str, _option: str, value: str) -> None:
    assert command().parse([], {variable: value}) == command().parse([], {})


@pytest.mark.parametrize(("command", "variable", "option"), OPTIONS)
def test_an_unsound_variable_does_not_matter_where_the_command_line_says_it(command, variable, option) -> None:
    (action,) = [action for action in command()._actions if option in action.option_strings]
    samples = {"EXPR": "errors>0", "TIME": "@9e9", "P": "0.1", "ADDRESS": "::1"}
    samples["LIST"] = "99" if option == "--percentiles" else "5ms"
    sample = action.choices[0] if action.choices else samples.get(action.metavar, "1")
    given = [option] if action.nargs == 0 else [f"{option}=localhost" if option == "--host" else f"{option}={sample}"]
    assert command().parse(given, {variable: "12:34:56"}) == command().parse(given, {})


@pytest.mark.parametrize(("variable", "command"), COMMANDS.items())
def test_what_kubernetes_sets_for_a_service_named_like_a_command_is_no_option(variable: str, command) -> None:
    """https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables."""
    links = {
        "SERVICE_HOST": "10.96.12.3",
        "SERVICE_PORT": "7",
        "SERVICE_PORT_ECHO": "7",
        "PORT": "tcp://10.96.12.3:7",
        "PORT_7_TCP": "tcp://10.96.12.3:7",
        "PORT_7_TCP_PROTO": "tcp",
        "PORT_7_TCP_PORT": "7",
        "PORT_7_TCP_ADDR": "10.96.12.3",
    }
    environ = {f"{variable}_{name}": value for name, value in links.items()}
    assert command().parse([], environ) == command().parse([], {})


@pytest.mark.parametrize("value", ["tcp://host:7", "tcp://10.0.0.1", "x tcp://10.0.0.1:7"])
def test_what_only_resembles_a_service_link_is_told(value: str) -> None:
    with pytest.raises(UsageError, match="ECHO_TEST_PORT: invalid literal"):
        parse(ECHO_TEST_PORT=value)


# Help


def help_text(**environ: str) -> str:
    with pytest.raises(Answer) as caught:
        parse("--help", **environ)
    return str(caught.value)


def test_help_has_every_default_the_examples_and_the_conventions() -> None:
    shown = help_text()
    for line in (
        "its port (default: 12345)\n",
        "its name (default: localhost)\n",
        "what to say\n",
        "how (default: low)\n",
        "how much (default: 256K)\n",
        "say less\n",
        "where to\n",
        "show this help and exit\n",
        "examples:\n  echo-test\n",
        "such as ECHO_TEST_PORT for --port;\nthe command line wins.",
    ):
        assert line in shown


def test_help_shows_a_default_of_nothing_too() -> None:
    assert "how late (default: 0.0)\n" in help_text()


def test_help_takes_a_percent_sign_for_what_it_is() -> None:
    assert "its name (default: fe80::1%eth0)\n" in help_text(ECHO_TEST_HOST="fe80::1%eth0")


def test_help_needs_no_sound_environment() -> None:
    assert "its port" in help_text(ECHO_TEST_PORT="x")


def test_version_names_the_command() -> None:
    with pytest.raises(Answer, match=f"^echo-test {re.escape(__version__)}\n$"):
        parse("--version")
