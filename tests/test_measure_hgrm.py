from __future__ import annotations

import math
import statistics

from hypothesis import given
from hypothesis import strategies as st

from documents import histogram
from echopair.measure.hgrm import hgrm


def rows(text: str) -> list[list[float]]:
    """Return the lines of four columns, as HdrHistogram's plotter does."""
    split = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return [[float(cell) for cell in cells] for cells in split if len(cells) == 4 and cells[0] != "Value"]


def test_format_is_that_of_hdrhistogram():
    # The example of https://github.com/HdrHistogram/HdrHistogramJS, which has these values, scaled by 1000.
    assert hgrm(histogram([25, 50, 75])) == (
        "       Value     Percentile TotalCount 1/(1-Percentile)\n"
        "\n"
        "       0.025 0.000000000000          1           1.00\n"
        "       0.025 0.100000000000          1           1.11\n"
        "       0.025 0.200000000000          1           1.25\n"
        "       0.025 0.300000000000          1           1.43\n"
        "       0.050 0.400000000000          2           1.67\n"
        "       0.050 0.500000000000          2           2.00\n"
        "       0.050 0.550000000000          2           2.22\n"
        "       0.050 0.600000000000          2           2.50\n"
        "       0.050 0.650000000000          2           2.86\n"
        "       0.075 0.700000000000          3           3.33\n"
        "       0.075 1.000000000000          3\n"
        "#[Mean    =        0.050, StdDeviation   =        0.020]\n"
        "#[Max     =        0.075, Total count    =            3]\n"
        "#[Buckets =           56, SubBuckets     =          256]\n"
    )


def test_nothing_has_a_header_and_a_trailer_of_zeros():
    assert hgrm(histogram([])) == (
        "       Value     Percentile TotalCount 1/(1-Percentile)\n"
        "\n"
        "#[Mean    =        0.000, StdDeviation   =        0.000]\n"
        "#[Max     =        0.000, Total count    =            0]\n"
        "#[Buckets =           56, SubBuckets     =          256]\n"
    )


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=300))
def test_every_line_is_a_percentile_of_the_histogram(recorded):
    counted = histogram(recorded)
    lines = rows(hgrm(counted))
    assert lines
    for value, share, total, inverse in lines:
        assert math.isclose(value, counted.percentile(share * 100) / 1000, abs_tol=0.0006)
        assert total >= share * len(recorded) - 1e-6
        assert math.isclose(inverse, 1 / (1 - share), rel_tol=0.001, abs_tol=0.006)
    assert [share for _, share, _, _ in lines] == sorted({share for _, share, _, _ in lines})


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=100))
def test_greatest_value_is_in_the_plot_and_in_the_last_line(recorded):
    text = hgrm(histogram(recorded))
    last = next(line for line in text.splitlines() if " 1.000000000000 " in line).split()
    assert last == [f"{max(recorded) / 1000:.3f}", "1.000000000000", str(len(recorded))]
    assert rows(text)[-1][0] == float(last[0])


def test_each_value_deviates_by_the_middle_of_its_bucket():
    assert "StdDeviation   =        0.002]" in hgrm(histogram([1000, 1000]))  # the bucket is 1,000 to 1,003 ns


@given(st.lists(st.integers(1, 2**40), min_size=2, max_size=100))
def test_mean_is_exact_and_the_deviation_off_by_less_than_the_width_of_a_bucket(recorded):
    trailer = hgrm(histogram(recorded)).splitlines()[-3]
    mean, deviation = (float(part.split("=")[1].strip(" ]")) for part in trailer.split(","))
    assert math.isclose(mean, statistics.fmean(recorded) / 1000, abs_tol=0.0006)
    assert abs(deviation - statistics.pstdev(recorded) / 1000) <= max(recorded) / 128_000 + 0.001
