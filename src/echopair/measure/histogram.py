"""A histogram of durations: constant time to record, constant memory, under 1 % error, and sums that are exact.

Buckets are log-linear, as in HdrHistogram (https://hdrhistogram.org): below 256 each value has its own; above, each
power of two is cut into 128 of equal width. A value's bucket keeps its 8 leading bits (one that is always set and 7
significant ones), so a bucket is at most 1/128 = 0.78 % as wide as the values in it:

    value              bits kept      bucket width     index
    0 .. 255           all            1                value
    256 .. 511         leading 8      2                128 + (value >> 1)
    512 .. 1023        leading 8      4                256 + (value >> 2)

Two histograms are merged by adding their counts, which is what recording both in one would have given. Percentiles
are never averaged.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate

SIGNIFICANT_BITS = 7
MAX_VALUE = 2**63 - 1  # 292 years in nanoseconds; what is above counts there
BUCKETS = (64 - SIGNIFICANT_BITS) << SIGNIFICANT_BITS


class Histogram:
    """Counts of values from 0 to MAX_VALUE; `count`, `total`, `min` and `max` are exact."""

    __slots__ = ("_counts", "max", "min", "total")

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self.total = 0
        self.min = MAX_VALUE
        self.max = 0

    def record(self, value: int) -> None:
        """Count one value."""
        if value > self.max:
            self.max = value = min(value, MAX_VALUE)
        if value < self.min:
            self.min = value = max(value, 0)
        self.total += value
        shift = value.bit_length() - 8  # _index(value), without a call
        self._counts[(shift << SIGNIFICANT_BITS) + (value >> shift) if shift > 0 else value] += 1

    def record_evenly(self, least: int, most: int, number: int) -> None:
        """Count `number` values that lie evenly between `least` and `most`, in the time of a merge."""
        if number <= BUCKETS:
            for place in range(number):
                self.record(least + (most - least) * place // max(number - 1, 1))
            return
        self.record(least)
        self.record(most)
        number -= 2
        counted = 0
        for index in range(_index(least), _index(most) + 1):
            upto = number * (min(highest(index), most) + 1 - least) // (most + 1 - least)
            self._counts[index] += upto - counted
            counted = upto
        self.total += number * (least + most) // 2

    def merge(self, other: Histogram) -> None:
        """Count all that `other` has counted."""
        self._counts = [ours + theirs for ours, theirs in zip(self._counts, other._counts, strict=True)]
        self.total += other.total
        self.min = min(self.min, other.min)
        self.max = max(self.max, other.max)

    @property
    def count(self) -> int:
        """How many values were recorded."""
        return sum(self._counts)

    @property
    def mean(self) -> float | None:
        """The exact mean; None of nothing."""
        count = self.count
        return self.total / count if count else None

    def percentile(self, percent: float) -> int | None:
        """Return the value that `percent` of the values do not exceed; None of nothing.

        It is the largest value of the bucket that holds the one of that rank (the nearest-rank method), and never
        more than `max`.
        """
        count = self.count
        if not count:
            return None
        rank = max(math.ceil(round(count * percent / 100, 6)), 1)  # 99.9 % of 1,000 is 999, also in floats
        return min(highest(bisect_left(list(accumulate(self._counts)), rank)), self.max)

    def buckets(self) -> Iterator[tuple[int, int]]:
        """Yield the lowest value and the count of every bucket that is not empty, in order."""
        return ((lowest(index), count) for index, count in enumerate(self._counts) if count)

    @classmethod
    def of_buckets(cls, buckets: Iterable[tuple[int, int]], *, total: int, least: int, most: int) -> Histogram:
        """Return the histogram that has these `buckets()`, sum, `min` and `max`."""
        histogram = cls()
        for value, count in buckets:
            histogram._counts[_index(value)] += count
        histogram.total, histogram.min, histogram.max = total, least, most
        return histogram


def _index(value: int) -> int:
    """Return the index of the bucket that counts `value`."""
    shift = max(value.bit_length() - 8, 0)
    return (shift << SIGNIFICANT_BITS) + (value >> shift)


def lowest(index: int) -> int:
    """Return the lowest value of bucket `index`."""
    if index < 2 << SIGNIFICANT_BITS:
        return index
    shift = (index >> SIGNIFICANT_BITS) - 1
    return (index - (shift << SIGNIFICANT_BITS)) << shift


def highest(index: int) -> int:
    """Return the highest value of bucket `index`."""
    return lowest(index + 1) - 1
