"""Run `python -m echopair server ...` or `python -m echopair client ...`, with nothing installed.

The console scripts `echo-server` and `echo-client` start here too. Until a command handles signals itself, the first
signal ends it with one line. After the command has ended, signals are ignored.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from echopair.cli.command import Output

USAGE = "usage: python -m echopair {server,client} ...    (each has --help and --version)"
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def echo_server() -> int:
    """Run the `echo-server` command and return its exit status."""
    return _run("echo-server", _server)


def echo_client() -> int:
    """Run the `echo-client` command and return its exit status."""
    return _run("echo-client", _client)


def main() -> int:
    """Run the command that the first argument names and return its exit status."""
    commands = {"server": echo_server, "client": echo_client}
    if len(sys.argv) > 1 and sys.argv[1] in commands:
        return commands[sys.argv.pop(1)]()
    return _run("echopair", _about)


def _server() -> int:
    from echopair.cli import server

    return server.main()


def _client() -> int:
    from echopair.cli import client

    return client.main()


def _about() -> int:
    from echopair.cli.command import run

    return run("echopair", _answer, sys.argv[1:])


def _answer(argv: Sequence[str] | None, output: Output) -> int:
    from echopair import __version__
    from echopair.cli.streams import Aside

    answers = {"-h": USAGE, "--help": USAGE, "--version": f"echopair {__version__}"}
    if not (argv and argv[0] in answers):
        Aside().write(USAGE + "\n")
        return 2
    output.line(answers[argv[0]])
    return 0


def _run(name: str, start: Callable[[], int]) -> int:
    """Run a command. It imports its modules here: a signal before this point ends in a Python traceback."""
    try:
        import os
        import select
        import signal

        def leave(signum: int, _frame: object) -> None:
            try:
                if select.select([], [2], [], 0)[1]:
                    os.write(2, f"{name}: interrupted\n".encode())
            except OSError:
                pass  # nobody is there to read it
            os._exit(128 + signum)

        named = (getattr(signal, each, None) for each in ("SIGINT", "SIGTERM", "SIGHUP"))
        endings = [signum for signum in named if signum and signal.getsignal(signum) != signal.SIG_IGN]
        for signum in endings:
            signal.signal(signum, leave)
        status = start()
        for signum in endings:
            signal.signal(signum, signal.SIG_IGN)
        return status
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
