"""The selector of a loop: epoll with a shorter, more exact `select()`, or the system's best one.

The EpollSelector's own `select()` took a tenth of the time to echo a small message. The shorter one
relies on two private names, which `default_selector` checks.
"""

from __future__ import annotations

import select
import selectors
from selectors import EVENT_READ as READ
from selectors import EVENT_WRITE as WRITE

EVENTS_PER_TURN = 256
FD_SETSIZE = 1024  # select(2) reaches lower descriptors only
SHORT_WAIT = 0.01  # seconds; see `select()`
ALL = 31  # EPOLLIN, EPOLLPRI, EPOLLOUT, EPOLLERR, EPOLLHUP (epoll_ctl(2))
# What selectors makes of each combination of these.
MASKS = [(WRITE if event & ~1 else 0) | (READ if event & ~4 else 0) for event in range(ALL + 1)]
BASE = getattr(selectors, "EpollSelector", selectors.DefaultSelector)


class LeanEpollSelector(BASE):  # type: ignore[misc, valid-type]
    """The EpollSelector, shorter and more exact."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready within `timeout` seconds (None: no limit); maybe nothing, too early.

        At most EVENTS_PER_TURN events, so that a turn costs no more beside ten thousand idle
        connections; epoll returns the rest first next time (epoll_wait(2)).

        epoll_wait(2) takes whole milliseconds, rounded up: a timer due between two of them would be
        late. An epoll descriptor can itself be waited for (epoll(7)), and select(2) takes
        microseconds. So a long wait ends early, and the next one waits for the rest in this way.
        """
        wait = -1 if timeout is None else max(timeout, 0)
        if timeout:
            if wait >= SHORT_WAIT:
                wait -= SHORT_WAIT / 2
            elif (descriptor := self._selector.fileno()) < FD_SETSIZE:
                select.select([descriptor], [], [], wait)
                wait = 0
        keys = self._fd_to_key
        return [
            (key, MASKS[event & ALL] & key.events)
            for fd, event in self._selector.poll(wait, EVENTS_PER_TURN)
            if (key := keys.get(fd))
        ]


def default_selector() -> selectors.BaseSelector:
    """Return the best selector there is."""
    if hasattr(selectors, "EpollSelector"):
        selector = LeanEpollSelector()
        if {"_fd_to_key", "_selector"} <= vars(selector).keys():
            return selector
        selector.close()
    return selectors.DefaultSelector()
