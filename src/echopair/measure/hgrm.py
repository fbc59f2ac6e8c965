"""The percentiles of a histogram as HdrHistogram prints them (`.hgrm`), for the plotters that read that.

The format is that of `outputPercentileDistribution` in HdrHistogram's Java with 5 ticks a half distance: the distance
to 100 % is halved again and again, each half cut into 5 steps, until the greatest value is reached. Its plotter at
https://hdrhistogram.github.io/HdrHistogram/plotFiles.html takes the lines of four columns, and of those the first and
the last; so the line of 100 %, where 1/(1-Percentile) has no value, has three.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from echopair.measure.document import NS_PER_US
from echopair.measure.histogram import BUCKETS, SIGNIFICANT_BITS, Histogram

TICKS = 5  # per half distance
HALF = 1 << SIGNIFICANT_BITS  # sub-buckets of a power of two; HdrHistogram counts two such halves to a bucket


def hgrm(histogram: Histogram) -> str:
    """Return `histogram`, of nanoseconds, as percentile lines in microseconds with three decimals, and a newline.

    A value is the largest of its bucket but never above the maximum, as in `Histogram.percentile`. As in
    HdrHistogram, the standard deviation takes each value for the middle of its bucket; of nothing, all figures are 0.
    """
    count, largest = histogram.count, histogram.max / NS_PER_US
    lines = [f"{'Value':>12} {'Percentile':>14} {'TotalCount':>10} {'1/(1-Percentile)':>14}", ""]
    levels = _levels()
    above, below = next(levels)
    left = count
    for lowest, inside in histogram.buckets():
        left -= inside
        value = min(lowest + bucket_width(lowest) - 1, histogram.max) / NS_PER_US
        while left * below <= count * above:  # at most above/below of all are greater
            lines.append(f"{value:12.3f} {1 - above / below:14.12f} {count - left:10} {below / above:14.2f}")
            if not left:
                break
            above, below = next(levels)
    if count:
        lines.append(f"{largest:12.3f} {1:14.12f} {count:10}")
    mean, deviation = (histogram.mean or 0) / NS_PER_US, _deviation(histogram) / NS_PER_US
    return "\n".join(
        [
            *lines,
            f"#[Mean    = {mean:12.3f}, StdDeviation   = {deviation:12.3f}]",
            f"#[Max     = {largest:12.3f}, Total count    = {count:12}]",
            f"#[Buckets = {BUCKETS // HALF - 1:12}, SubBuckets     = {2 * HALF:12}]",
            "",
        ]
    )


def _levels() -> Iterator[tuple[int, int]]:
    """Yield for each percentile the share that lies above it, in integers: 10/10, 9/10 .. 6/10, 10/20 .."""
    below = 2 * TICKS
    while True:
        yield from ((above, below) for above in range(2 * TICKS, TICKS, -1))
        below *= 2


def _deviation(histogram: Histogram) -> float:
    mean = histogram.mean
    if mean is None:
        return 0.0
    squares = (inside * (low + bucket_width(low) // 2 - mean) ** 2 for low, inside in histogram.buckets())
    return math.sqrt(math.fsum(squares) / histogram.count)


def bucket_width(lowest: int) -> int:
    """Return how many values the bucket that begins with `lowest` holds."""
    return 1 << max(lowest.bit_length() - SIGNIFICANT_BITS - 1, 0)
