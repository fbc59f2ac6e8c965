"""The `echo-client` command: which of its ways of working is asked for."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from echopair.cli.client_options import parse
from echopair.cli.command import Output, configure_logging, run


def main(argv: Sequence[str] | None = None) -> int:
    """Run `echo-client` with `argv`, by default the process's, and return its exit status."""
    return run("echo-client", _main, argv)


def _main(argv: Sequence[str] | None, output: Output) -> int:
    args = parse(argv)
    configure_logging(logging.WARNING)
    if args.check_list:
        from echopair.cli.checking import list_cases

        return list_cases(output)
    if args.check:
        from echopair.cli.checking import check

        return check(args, output)
    if args.merge:
        from echopair.cli.results import merge_files

        return merge_files(args, output)
    if args.measured:
        from echopair.cli.measuring import measure

        return measure(args, output)
    from echopair.cli.conversation import converse, pipe

    return pipe(args, output) if args.pipe else converse(args, output)
