"""Where an echo goes wrong, and what that looks like: bits flipped, bytes lost, inserted or repeated. Pure."""

from __future__ import annotations

from itertools import takewhile

from echopair.text import count, printable

RECOGNISABLE = 8  # bytes; fewer in a row may agree by chance
SEARCHED = 256 * 1024  # bytes of each side, for a diagnosis must not take long
CANDIDATES = 16  # places to compare; monotonous bytes have no end of them
SHOWN = 8  # bytes of each side in a report


def agreement(expected: bytes, got: bytes) -> int:
    """Return how many leading bytes the two have in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(expected, got, strict=False)))


def dump(data: bytes) -> str:
    """Return the first bytes of `data` in hexadecimal, and as text where they are that."""
    shown = data[:SHOWN]
    readable = (
        f" {printable(shown)}" if len(shown) == SHOWN and shown.isascii() and shown.decode().isprintable() else ""
    )
    return shown.hex(" ") + (" .." if len(data) > SHOWN else "") + readable


def diagnose(expected: bytes, got: bytes) -> str:
    """Say what happened to the echo; both sides begin at the first byte that differs. Empty where nothing fits."""
    expected, got = expected[:SEARCHED], got[:SEARCHED]
    rest = min(len(expected), len(got))
    if got[1:rest] == expected[1:rest] and (rest > RECOGNISABLE or len(expected) == rest):
        return "one bit flipped" if (expected[0] ^ got[0]).bit_count() == 1 else "one byte changed"
    if lost := _offset_of(got, expected):
        return f"{count(lost, 'byte')} lost"
    if added := _offset_of(expected, got):
        return f"{count(added, 'byte')} inserted or repeated"
    return ""


def _offset_of(part: bytes, whole: bytes) -> int:
    """Return where in `whole` the bytes of `part` begin, agreeing as far as both go; 0 where they do not."""
    start = 0
    for _ in range(CANDIDATES if len(part) >= RECOGNISABLE else 0):
        start = whole.find(part[:RECOGNISABLE], start + 1)
        if start < 0:
            break
        if whole[start : start + len(part)] == part[: len(whole) - start]:
            return start
    return 0
