"""Words: how counts, sizes, times, errors and payloads read."""

from __future__ import annotations

import ast
import errno
import math

import pytest

from echopair.text import count, duration, figure, printable, reason, size, typed


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (1, "1 byte"), (2, "2 bytes"), (1000, "1,000 bytes"), (1234567, "1,234,567 bytes")],
)
def test_count_is_grouped_and_in_the_plural_but_for_one(number: int, text: str) -> None:
    assert count(number, "byte") == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (0.00001, "0.00001"),
        (1.23456e-7, "0.000000123"),
        (0.4, "0.4"),
        (0.3333, "0.333"),
        (9.996, "10"),
        (12.34, "12.3"),
        (99.96, "100"),
        (999.96, "1,000"),
        (1234.5, "1,234"),
        (12_345_678, "12,345,678"),
        (1e15, "1,000,000,000,000,000"),
    ],
)
def test_a_figure_has_three_digits_and_never_an_exponent(number: float, text: str) -> None:
    assert figure(number) == text
    assert figure(-number) == (f"-{text}" if number else "0")


@pytest.mark.parametrize("text", ["0", "0.001", "0.4", "99.5", "20,000", "1,234.5", "0.00001", "1,234,567.1", "0.3"])
def test_what_was_typed_is_shown_as_it_was(text: str) -> None:
    assert typed(float(text.replace(",", ""))) == text


def test_what_was_typed_is_whole_after_a_sum_too() -> None:
    assert typed(0.1 + 0.2) == "0.3"
    assert typed(100 * 0.00001) == "0.001"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (0.00001, "0.00001 B"),
        (0.123456, "0.123 B"),
        (1.5, "1.5 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1023, "1.00 KiB"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (9.994 * 1024, "9.99 KiB"),
        (9.996 * 1024, "10.0 KiB"),
        (99.94 * 1024, "99.9 KiB"),
        (99.96 * 1024, "100 KiB"),
        (999 * 1024, "999 KiB"),
        (1000 * 1024, "0.98 MiB"),
        (12.3 * 1024**2, "12.3 MiB"),
        (2 * 1024**3, "2.00 GiB"),
        (3 * 1024**4, "3.00 TiB"),
        (2000 * 1024**4, "2000 TiB"),
    ],
)
def test_size_has_three_digits_and_a_binary_unit(number: float, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (1e-13, "0.0001 ns"),
        (0.9994e-9, "0.999 ns"),
        (0.9996e-9, "1.00 ns"),
        (3e-9, "3.00 ns"),
        (60e-9, "60.0 ns"),
        (999.4e-9, "999 ns"),
        (999.6e-9, "1.00 us"),
        (1e-6, "1.00 us"),
        (812e-6, "812 us"),
        (999.4e-6, "999 us"),
        (999.6e-6, "1.00 ms"),
        (1.2e-3, "1.20 ms"),
        (34.5e-3, "34.5 ms"),
        (999.4e-3, "999 ms"),
        (999.6e-3, "1.00 s"),
        (3.4, "3.40 s"),
        (119.4, "119 s"),
        (120, "2 min 0 s"),
        (125.9, "2 min 5 s"),
        (7325, "122 min 5 s"),
        (math.inf, "forever"),
    ],
)
def test_duration_has_three_digits_and_a_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_printable_says_what_every_byte_was() -> None:
    data = bytes(range(256))
    shown = printable(data, width=1000)
    assert shown.isprintable()
    assert ast.literal_eval("b" + shown) == data


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", '""'),
        (b"four", '"four"'),
        (b"fiver", '"five" and 1 byte more'),
        (b"\n\n\n", r'"\n\n" and 1 byte more'),
        (bytes(2004), r'"\x00" and 2,003 bytes more'),
        ("gr\u00fcn".encode(), '"gr\u00fcn"'),
        ("gr\u00fcner".encode(), '"gr\u00fcn" and 2 bytes more'),
        (b"\xc3", r'"\xc3"'),
        (b'"\\', r'"\"\\"'),
        ("\u202e".encode(), '"" and 3 bytes more'),
    ],
)
def test_printable_is_cut_by_its_width_and_counts_the_rest(data: bytes, text: str) -> None:
    assert printable(data, width=4) == text


def test_printable_is_cut_to_half_a_line() -> None:
    assert printable(b"x" * 48) == '"' + "x" * 48 + '"'
    assert printable(b"x" * 49) == '"' + "x" * 48 + '" and 1 byte more'


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "connection reset by peer"),
        (TimeoutError("Idle for 5 s"), "idle for 5 s"),
        (OSError(), "oserror"),
        (RuntimeError(), "runtimeerror"),
    ],
)
def test_reason_is_what_the_error_says_or_else_its_type(error: Exception, text: str) -> None:
    assert reason(error) == text
