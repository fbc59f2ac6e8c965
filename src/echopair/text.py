"""Words: counts, sizes, times, errors and other people's bytes as a person reads them. Pure."""

from __future__ import annotations

import math

PRINTED_WIDTH = 48  # columns of a payload; the rest is counted


def count(number: int, noun: str) -> str:
    """Return `1 byte`, `2,000 bytes`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def figure(number: float, digits: int = 3) -> str:
    """Return `20,000`, `12.3`, `0.00001`: the whole part and at least `digits` significant digits, no exponent."""
    if not number:
        return "0"
    places = max(digits - 1 - math.floor(math.log10(abs(number))), 0)
    shown = f"{number:,.{places}f}"
    return shown.rstrip("0").rstrip(".") if places else shown


def typed(number: float) -> str:
    """Return a number that a user has typed, with all its digits: `1,234.5`, `0.00001`."""
    return figure(number, 12)  # digits; a float has no more, so the last ones typed may be rounded


def size(number: float) -> str:
    """Return `999 B`, `1.50 KiB`, `12.3 MiB`: three digits and a binary unit (IEC 80000-13)."""
    if number < 999.5:
        return f"{figure(number)} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):  # noqa: B007 - used after the loop
        number /= 1024
        if number < 999.5:
            break
    return f"{_three_digits(number)} {unit}"


def duration(seconds: float) -> str:
    """Return `60.0 ns`, `812 us`, `1.20 ms`, `3.40 s`: three digits and a unit; from two minutes on `2 min 5 s`."""
    if not seconds:
        return "0 s"
    if math.isinf(seconds):
        return "forever"
    if seconds >= 120:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s"
    if seconds < 0.9995e-9:
        return f"{figure(seconds * 1e9)} ns"
    for unit, scale in (("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * scale:
            return f"{_three_digits(seconds / scale)} {unit}"
    return f"{_three_digits(seconds)} s"


def printable(data: bytes, width: int = PRINTED_WIDTH) -> str:
    r"""Return `data` in double quotes, cut to about `width` columns: text as it is, the rest escaped (`\n`, `\xff`)."""
    shown, used = "", 0
    for character in data[: 4 * width].decode("utf-8", "surrogateescape"):
        escaped = _escape(character)
        if len(shown) + len(escaped) > width:
            break
        shown += escaped
        used += len(character.encode("utf-8", "surrogateescape"))
    rest = len(data) - used
    return f'"{shown}" and {count(rest, "byte")} more' if rest else f'"{shown}"'


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return '\\"' if character == '"' else repr(character)[1:-1]


def reason(error: BaseException) -> str:
    """Return what an error says, in lower case and without its number: `connection reset by peer`."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


def _three_digits(number: float) -> str:
    return f"{number:.2f}" if number < 9.995 else f"{number:.1f}" if number < 99.95 else f"{number:.0f}"
