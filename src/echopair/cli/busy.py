"""How busy this process is while it measures: a client without a processor to spare measures itself."""

from __future__ import annotations

import time
from collections.abc import Callable


class Busy:
    """Counts, from `begin()` to `end()`, the seconds with a processor, those waiting for one, and all by `clock`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun = (0.0, 0.0, 0.0)
        self.figures = (0.0, 0.0, 0.0)
        self._going = False

    def begin(self) -> None:
        """Count from now on."""
        self._begun = self._read()
        self._going = True

    def end(self) -> None:
        """Count no more; if it was not begun, nothing."""
        if self._going:
            self._going = False
            busy, waited, took = (now - then for now, then in zip(self._read(), self._begun, strict=True))
            self.figures = busy, waited, took

    def _read(self) -> tuple[float, float, float]:
        return time.process_time(), waited_for_cpu(), self._clock()


def waited_for_cpu() -> float:
    """Return how many seconds this thread was ready to run and others had the processor; 0 if that is not known."""
    try:
        with open("/proc/self/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0  # not Linux, or a kernel that does not count it
