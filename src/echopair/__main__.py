"""Run `python -m echopair server ...` or `python -m echopair client ...`, with nothing installed.

The console scripts `echo-server` and `echo-client` start here too: only what is imported inside the `try` below can
be interrupted without a traceback.
"""

from __future__ import annotations

import sys

USAGE = "usage: python -m echopair {server,client} ...    (each has --help and --version)"
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def echo_server() -> int:
    """Run the `echo-server` command and return its exit status."""
    try:
        from echopair.cli import server

        return server.main()
    except KeyboardInterrupt:
        return INTERRUPTED


def echo_client() -> int:
    """Run the `echo-client` command and return its exit status."""
    try:
        from echopair.cli import client

        return client.main()
    except KeyboardInterrupt:
        return INTERRUPTED


def main() -> int:
    """Run the command that the first argument names and return its exit status."""
    commands = {"server": echo_server, "client": echo_client}
    if sys.argv[1:2] == ["--version"]:
        from echopair import __version__

        print(f"echopair {__version__}")
        return 0
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        asked_for_help = sys.argv[1:2] in (["-h"], ["--help"])
        print(USAGE, file=sys.stdout if asked_for_help else sys.stderr)
        return 0 if asked_for_help else 2
    return commands[sys.argv.pop(1)]()


if __name__ == "__main__":
    sys.exit(main())
