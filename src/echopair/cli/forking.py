"""How many processes a command may be, and whether it may be more than one."""

from __future__ import annotations

import os
import socket

from echopair.cli.options import UsageError

MAX_WORKERS = 1024


def workers(text: str) -> int:
    """Read a number of workers."""
    if text == "auto":
        return processors()
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 0 < int(text) <= MAX_WORKERS):
        raise ValueError(f"{text!r} is not a number of workers: give one from 1 to {MAX_WORKERS}, or auto")
    return int(text)


def processors() -> int:
    """Return how many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ending(status: int) -> str:
    """Say how a process ended, by its exit code (os.waitstatus_to_exitcode)."""
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"


def check_possible() -> None:
    """Raise UsageError where this system cannot have workers."""
    if not (hasattr(os, "fork") and hasattr(socket, "SO_REUSEPORT")):
        raise UsageError("--workers needs fork() and SO_REUSEPORT, which this system lacks: leave it out")
