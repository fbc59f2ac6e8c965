"""Where an echo goes wrong, and what that looks like: bits flipped, bytes lost, inserted or repeated. Pure."""

from __future__ import annotations

from itertools import takewhile

from echopair.text import count

RECOGNISABLE = 8  # bytes; fewer in a row may agree by chance
SHOWN = 8  # bytes of each side in a report


def agreement(expected: bytes, got: bytes) -> int:
    """Return how many leading bytes the two have in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(expected, got, strict=False)))


def dump(data: bytes) -> str:
    """Return the first bytes of `data` in hexadecimal."""
    return data[:SHOWN].hex(" ") + (" .." if len(data) > SHOWN else "")


def diagnose(expected: bytes, got: bytes) -> str:
    """Say what happened to the echo; both sides begin at the first byte that differs. Empty where nothing fits."""
    following = slice(1, 1 + RECOGNISABLE)
    if got[following] == expected[following][: len(got) - 1]:
        return "one bit flipped" if (expected[0] ^ got[0]).bit_count() == 1 else "one byte changed"
    if len(got) >= RECOGNISABLE and (lost := expected.find(got[:RECOGNISABLE])) > 0:
        return f"{count(lost, 'byte')} lost"
    if len(expected) >= RECOGNISABLE and (added := got.find(expected[:RECOGNISABLE])) > 0:
        return f"{count(added, 'byte')} inserted or repeated"
    return ""
