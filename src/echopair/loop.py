"""The event loop: readiness, timers, signals and wake-ups, all waited for in one selector.

It knows file objects and callbacks, and nothing of connections. Its rule: nothing polls. It sleeps in
`select()` until something is ready, due or queued, and a callback that raises loses its own watch, never the loop.

One turn of the loop is: wait; call back what is ready; then the timers that are due; then what `call_soon` queued
before that point. Whatever those callbacks queue waits for the next turn, so no callback can starve the sockets.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable

from echopair.selector import default_selector

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would take a tenth of the start
    from typing import Any

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE
SIGINT = signal.SIGINT
SIGTERM = signal.SIGTERM
SIGCHLD: int = getattr(signal, "SIGCHLD", 0)  # Windows lacks these; 0: not available
SIGKILL: int = getattr(signal, "SIGKILL", 0)
SIGHUP: int = getattr(signal, "SIGHUP", 0)
ENDINGS = {signum for signum in (SIGINT, SIGTERM, SIGHUP) if signum}  # requests to end

AS_ONE = 0.5  # seconds; requests to end within this time count as one: a shell and a supervisor may both send one
MAX_WAIT = 24 * 3600.0  # seconds; poll(2) and epoll_wait(2) take milliseconds in an int
TIMERS = 1024

log = logging.getLogger(__name__)


class Timer:
    """A callback due at some moment; None once it has run or been cancelled."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """Make sure that the callback will not run (again)."""
        self.callback = None  # the heap entry stays until it is due; what the callback holds is freed now


class EventLoop:
    """Calls back when a file object is ready, a moment has come or a signal has arrived.

    `clock` reads the time in seconds; `now` is its reading when the current turn woke up: one reading serves every
    callback of the turn that has no need to be more precise. Use it as a context manager, or call `close()`.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._selector = default_selector() if selector is None else selector
        self.clock = clock
        self.now = clock()
        self._timers: list[tuple[float, int, Timer]] = []
        self._timers_at_most = TIMERS  # before the cancelled ones are looked for
        self._timer_count = itertools.count()  # breaks ties: equal times run in the order they were set
        self._soon: deque[Callable[[], object]] = deque()
        self._forgotten: set[Any] = set()  # unwatched in this turn: events already collected for them are ignored
        self._stopping = False
        self._signal_handlers: dict[int, tuple[Callable[[], object], Any]] = {}
        self._signals: deque[int] = deque()  # that arrived and were not yet handled
        self._asked_to_end_at = float("-inf")
        self._previous_wakeup_fd: int | None = None
        self._wakeup_receiver, self._wakeup_sender = socket.socketpair()
        self._wakeup_receiver.setblocking(False)
        self._wakeup_sender.setblocking(False)
        self.watch(self._wakeup_receiver, READ, self._on_wakeup)

    def __enter__(self) -> EventLoop:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def watch(self, fileobj: Any, events: int, callback: Callable[[int], object] | None = None) -> None:
        """Call `callback(ready_events)` whenever `fileobj` is ready for `events`; 0 forgets it.

        `events` is READ, WRITE or both. Forget a file object before closing it. With 0 it is unregistered, not
        registered with an empty mask: epoll(7) would go on reporting hang-ups, and `select()` never sleep again.
        From then on its callback is not called, even if this very turn found it ready.
        Raises PermissionError for what the selector cannot wait for (epoll_ctl(2): a regular file).
        """
        if not events:
            self._forgotten.add(fileobj)
            try:
                self._selector.unregister(fileobj)
            except (KeyError, ValueError):
                pass  # forgotten already, or closed since
            return
        try:
            self._selector.register(fileobj, events, callback)
        except KeyError:
            self._selector.modify(fileobj, events, callback)

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Run `callback()` in this turn of the loop, after what is ready; from a callback so queued, in the next."""
        self._soon.append(callback)

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """Run `callback()` once, `delay` seconds from now."""
        return self.call_at(self.clock() + delay, callback)

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Run `callback()` once the loop's clock reads `when`, in seconds."""
        timer = Timer(callback)
        if len(self._timers) >= self._timers_at_most:  # cancelled ones must not pile up until they are due
            self._timers = [entry for entry in self._timers if entry[2].callback]
            heapq.heapify(self._timers)
            self._timers_at_most = max(2 * len(self._timers), TIMERS)
        heapq.heappush(self._timers, (when, next(self._timer_count), timer))
        return timer

    def add_signal_handler(self, signum: int, callback: Callable[[], object]) -> None:
        """Run `callback()` in the loop whenever signal `signum` arrives.

        The interrupted frame only notes the number, and the interpreter wakes the loop (signal.set_wakeup_fd), so the
        callback may do anything. Signals of ENDINGS that arrive within AS_ONE seconds count as one, the first.
        `close()` restores the previous handler. Raises ValueError outside the main thread.
        """
        before = signal.set_wakeup_fd(self._wakeup_sender.fileno(), warn_on_full_buffer=False)  # first: none is missed
        if self._previous_wakeup_fd is None:
            self._previous_wakeup_fd = before
        previous = signal.signal(signum, self._on_signal)
        if signum in self._signal_handlers:
            previous = self._signal_handlers[signum][1]
        self._signal_handlers[signum] = (callback, previous)

    def ignores(self, signum: int) -> bool:
        """Return whether the parent process had this one ignore a signal, as nohup(1) does with SIGHUP."""
        return signal.getsignal(signum) == signal.SIG_IGN

    def run(self) -> None:
        """Turn until `stop()` is called."""
        self._stopping = False
        while not self._stopping:
            self.run_once()

    def run_once(self, timeout: float | None = None) -> None:
        """Turn once, waiting at most `timeout` seconds (None: as long as it takes) for something to do."""
        ready = self._selector.select(self._wait(timeout))
        self.now = self.clock()
        forgotten = self._forgotten
        forgotten.clear()
        for key, events in ready:
            if forgotten and key.fileobj in forgotten:
                continue
            try:
                key.data(events)
            except Exception:
                log.exception("a callback failed; %r is no longer watched", key.fileobj)
                self.watch(key.fileobj, 0)
        due = []
        while self._timers and self._timers[0][0] <= self.now:
            due.append(heapq.heappop(self._timers)[2])
        for timer in due:
            callback, timer.callback = timer.callback, None
            if callback is not None:
                self._call(callback)
        if self._soon:
            for _ in range(len(self._soon)):
                self._call(self._soon.popleft())

    def stop(self) -> None:
        """Make `run()` return at the end of this turn."""
        self._stopping = True

    def wakeup(self) -> None:
        """End the current wait; the one method, with `call_soon`, that another thread may call."""
        try:
            self._wakeup_sender.send(b"\0")
        except OSError:
            pass  # full of wake-ups that nobody has read yet, or closed

    def close(self) -> None:
        """Give back the selector, the wake-up sockets and the signals. What is watched stays open."""
        if self._previous_wakeup_fd is not None:
            signal.set_wakeup_fd(self._previous_wakeup_fd)
            self._previous_wakeup_fd = None
        for signum, (_, previous) in self._signal_handlers.items():
            signal.signal(signum, signal.SIG_DFL if previous is None else previous)
        self._signal_handlers.clear()
        self._timers.clear()
        self._soon.clear()
        self._selector.close()
        self._wakeup_receiver.close()
        self._wakeup_sender.close()

    def _wait(self, timeout: float | None) -> float | None:
        """How long `select()` may sleep: until `timeout`, the next timer or, with work queued, not at all."""
        if self._soon:
            return 0
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)  # cancelled
        if not self._timers:
            return timeout
        due = min(max(self._timers[0][0] - self.clock(), 0), MAX_WAIT)
        return due if timeout is None else min(due, timeout)

    def _call(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        except Exception:
            log.exception("a callback failed")

    def _on_signal(self, signum: int, _frame: object) -> None:
        """Note the signal. If the loop has not yet handled a request to end, a second one ends a stuck process."""
        if signum in ENDINGS:
            now = self.clock()
            if now - self._asked_to_end_at < AS_ONE:
                return
            self._asked_to_end_at = now
            if not ENDINGS.isdisjoint(self._signals):
                signal.signal(signum, signal.SIG_DFL)
                signal.raise_signal(signum)
        self._signals.append(signum)

    def _on_wakeup(self, _events: int) -> None:
        """Empty the wake-up socket and run the callbacks of the signals that have arrived."""
        self._wakeup_receiver.recv(4096)
        while self._signals:
            self._call(self._signal_handlers[self._signals.popleft()][0])
