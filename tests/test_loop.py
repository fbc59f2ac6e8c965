"""The event loop on every selector: what it calls back, in which order, how long it sleeps, what it gives back."""

from __future__ import annotations

import heapq
import math
import os
import selectors
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from echopair.loop import AS_ONE, ENDINGS, MAX_WAIT, READ, TIMERS, WRITE, EventLoop
from echopair.selector import LeanEpollSelector
from helpers import HUNG, Clock, run_until

pytestmark = pytest.mark.every_selector

Pair = tuple[socket.socket, socket.socket]


class RecordingSelector(selectors.SelectSelector):
    """A selector that writes down how long it was asked to wait, lets something happen, and never waits."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.meanwhile = meanwhile
        self.timeouts: list[float | None] = []

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.timeouts.append(timeout)
        self.meanwhile()
        return super().select(0)


@pytest.fixture
def recording() -> RecordingSelector:
    return RecordingSelector()


@pytest.fixture
def sleeper(recording: RecordingSelector, clock: Clock) -> Iterator[EventLoop]:
    """A loop of which `recording` tells how long it would have slept."""
    with EventLoop(recording, clock) as loop:
        yield loop


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@pytest.fixture
def second_pair() -> Iterator[Pair]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def fill(sock: socket.socket) -> None:
    try:
        while True:
            sock.send(b"\0")
    except BlockingIOError:
        pass


# Readiness


@pytest.mark.parametrize("events", [READ, WRITE, READ | WRITE])
def test_callback_gets_the_events_that_are_ready(loop: EventLoop, pair: Pair, events: int) -> None:
    ready: list[int] = []
    pair[1].send(b"x")
    loop.watch(pair[0], events, ready.append)
    loop.run_once(0)
    loop.watch(pair[0], 0)
    assert ready == [events]


def test_what_is_not_ready_is_not_called_back(loop: EventLoop, pair: Pair) -> None:
    ready: list[int] = []
    loop.watch(pair[0], READ, ready.append)
    loop.run_once(0)
    loop.watch(pair[0], 0)
    assert ready == []


def test_hang_up_of_a_pipe_is_something_to_read(loop: EventLoop) -> None:
    """Though epoll and poll call it by a name of its own (poll(2), POLLHUP)."""
    ready: list[int] = []
    reader, writer = os.pipe()
    loop.watch(reader, READ, ready.append)
    os.close(writer)
    loop.run_once(0)
    loop.watch(reader, 0)
    os.close(reader)
    assert ready == [READ]


def test_watching_again_replaces_events_and_callback(loop: EventLoop, pair: Pair) -> None:
    before: list[int] = []
    after: list[int] = []
    pair[1].send(b"x")
    loop.watch(pair[0], READ, before.append)
    loop.watch(pair[0], WRITE, after.append)
    loop.run_once(0)
    loop.watch(pair[0], 0)
    assert (before, after) == ([], [WRITE])


def test_hang_up_of_what_is_forgotten_does_not_wake(
    loop: EventLoop, selector: selectors.BaseSelector, pair: Pair
) -> None:
    loop.watch(pair[0], READ, lambda _events: None)
    loop.watch(pair[0], 0)
    pair[1].close()
    assert selector.select(0) == []


def test_what_is_forgotten_in_a_turn_is_not_called_back_in_it(loop: EventLoop, pair: Pair, second_pair: Pair) -> None:
    """Not even if it was found ready: whichever of the two comes first forgets the other."""
    calls: list[str] = []

    def watch(name: str, sock: socket.socket, other: socket.socket) -> None:
        loop.watch(sock, WRITE, lambda _events: (calls.append(name), loop.watch(other, 0)))

    watch("one", pair[0], second_pair[0])
    watch("other", second_pair[0], pair[0])
    loop.run_once(0)
    assert calls in (["one"], ["other"])
    loop.run_once(0)
    assert len(calls) == 2
    loop.watch(pair[0], 0)
    loop.watch(second_pair[0], 0)


def test_what_was_forgotten_can_be_watched_again(loop: EventLoop, pair: Pair) -> None:
    ready: list[int] = []
    for _ in range(2):
        loop.watch(pair[0], WRITE, ready.append)
        loop.run_once(0)
        loop.watch(pair[0], 0)
    assert ready == [WRITE, WRITE]


def test_forgetting_twice_is_harmless(loop: EventLoop, pair: Pair) -> None:
    loop.watch(pair[0], READ, lambda _events: None)
    loop.watch(pair[0], 0)
    loop.watch(pair[0], 0)


def test_what_was_closed_can_still_be_forgotten(loop: EventLoop, selector: selectors.BaseSelector, pair: Pair) -> None:
    loop.watch(pair[0], READ, lambda _events: None)
    pair[0].close()
    loop.watch(pair[0], 0)
    assert pair[0] not in [key.fileobj for key in selector.get_map().values()]
    loop.watch(pair[0], 0)


@pytest.mark.skipif(not hasattr(selectors, "EpollSelector"), reason="this system has no epoll")
def test_regular_file_is_refused_by_epoll() -> None:
    with EventLoop(selectors.EpollSelector()) as loop, open(__file__) as file, pytest.raises(PermissionError):
        loop.watch(file, READ, lambda _events: None)


def test_callback_that_raises_loses_its_own_watch_only(
    loop: EventLoop, pair: Pair, second_pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def fail(_events: int) -> None:
        calls.append("bad")
        raise RuntimeError("broken")

    loop.watch(pair[0], WRITE, fail)
    loop.watch(second_pair[0], WRITE, lambda _events: calls.append("good"))
    loop.run_once(0)
    loop.run_once(0)
    loop.watch(second_pair[0], 0)
    assert sorted(calls) == ["bad", "good", "good"]
    assert "no longer watched" in caplog.text
    assert "RuntimeError: broken" in caplog.text


# Order


def test_a_turn_is_ready_then_due_then_queued(loop: EventLoop, pair: Pair) -> None:
    calls: list[str] = []

    def called(name: str) -> None:
        calls.append(name)
        loop.call_soon(lambda: calls.append(f"queued by {name}"))

    loop.call_soon(lambda: called("queued"))
    loop.call_later(0, lambda: called("due"))
    loop.watch(pair[0], WRITE, lambda _events: called("ready"))
    loop.run_once(0)
    loop.watch(pair[0], 0)
    assert calls == ["ready", "due", "queued", "queued by ready", "queued by due"]
    loop.run_once(0)
    assert calls[5:] == ["queued by queued"]


def test_queued_callbacks_run_in_order_and_once(loop: EventLoop) -> None:
    calls: list[int] = []
    for number in range(3):
        loop.call_soon(lambda number=number: calls.append(number))
    loop.run_once(0)
    loop.run_once(0)
    assert calls == [0, 1, 2]


@pytest.mark.parametrize("first", ["call_soon", "call_later"])
def test_failure_does_not_keep_the_next_callback_from_running(
    loop: EventLoop, caplog: pytest.LogCaptureFixture, first: str
) -> None:
    calls: list[str] = []
    set_up = {"call_soon": loop.call_soon, "call_later": lambda callback: loop.call_later(0, callback)}[first]
    set_up(lambda: 1 // 0)
    set_up(lambda: calls.append("next"))
    loop.run_once(0)
    assert calls == ["next"]
    assert "ZeroDivisionError" in caplog.text


def test_keyboard_interrupt_is_no_failure_of_a_callback(loop: EventLoop) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    loop.call_soon(interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop.run_once(0)


# Timers


def test_timers_run_in_order_of_time_and_ties_as_set(loop: EventLoop, clock: Clock) -> None:
    calls: list[str] = []
    for delay, name in [(2, "c"), (1, "a"), (2, "d"), (1, "b")]:
        loop.call_later(delay, lambda name=name: calls.append(name))
    clock.advance(2)
    loop.run_once(0)
    assert calls == ["a", "b", "c", "d"]


def test_timer_runs_once_and_not_before_its_time(loop: EventLoop, clock: Clock) -> None:
    calls: list[float] = []
    clock.advance(5)  # since the loop last looked: delays count from when they are set
    loop.call_later(1, lambda: calls.append(loop.now))
    clock.advance(0.5)
    loop.run_once(0)
    assert calls == []
    clock.advance(0.5)
    loop.run_once(0)
    loop.run_once(0)
    assert calls == [1006.0]


def test_timer_set_by_a_timer_waits_for_the_next_turn(loop: EventLoop) -> None:
    calls: list[str] = []
    loop.call_later(0, lambda: loop.call_later(0, lambda: calls.append("second")))
    loop.run_once(0)
    assert calls == []
    loop.run_once(0)
    assert calls == ["second"]


def test_cancelled_timer_never_runs(loop: EventLoop, clock: Clock) -> None:
    calls: list[str] = []
    timer = loop.call_later(1, lambda: calls.append("cancelled"))
    timer.cancel()
    timer.cancel()
    clock.advance(1)
    loop.run_once(0)
    assert calls == []


def test_timer_can_cancel_one_due_in_the_same_turn(loop: EventLoop, clock: Clock) -> None:
    calls: list[str] = []
    later = loop.call_later(1, lambda: calls.append("cancelled"))
    loop.call_later(0, later.cancel)
    clock.advance(1)
    loop.run_once(0)
    assert calls == []


def test_cancelled_timer_lets_go_of_its_callback(loop: EventLoop) -> None:
    held = Clock()
    timer = loop.call_later(1, held)
    gone = weakref.ref(held)
    del held
    assert gone()
    timer.cancel()
    assert not gone()


def test_time_is_known_before_the_first_turn(loop: EventLoop, clock: Clock) -> None:
    assert loop.now == clock()


def test_now_stands_still_for_a_turn(loop: EventLoop, clock: Clock) -> None:
    seen: list[float] = []
    for _ in range(2):
        loop.call_soon(lambda: (clock.advance(1), seen.append(loop.now)))
    loop.run_once(0)
    loop.run_once(0)
    assert seen == [1000.0, 1000.0]
    assert loop.now == 1002.0


# Waiting


@pytest.mark.parametrize(
    ("timers", "timeout", "waited"),
    [
        ([], None, None),
        ([], 3, 3),
        ([2], None, 2),
        ([7, 2], None, 2),
        ([2], 3, 2),
        ([2], 1, 1),
        ([-1], None, 0),
        ([MAX_WAIT + 1], None, MAX_WAIT),
        ([MAX_WAIT + 1], MAX_WAIT + 2, MAX_WAIT),
    ],
)
def test_wait_ends_with_the_first_timer_or_the_timeout(
    sleeper: EventLoop,
    recording: RecordingSelector,
    timers: list[float],
    timeout: float | None,
    waited: float | None,
) -> None:
    for delay in timers:
        sleeper.call_later(delay, lambda: None)
    sleeper.run_once(timeout)
    assert recording.timeouts == [waited]


def test_queued_work_does_not_wait(sleeper: EventLoop, recording: RecordingSelector) -> None:
    sleeper.call_later(5, lambda: None)
    sleeper.call_soon(lambda: None)
    sleeper.run_once()
    sleeper.run_once()
    assert recording.timeouts == [0, 5]


def test_cancelled_timers_do_not_wake(sleeper: EventLoop, recording: RecordingSelector) -> None:
    for delay in (1, 2):
        sleeper.call_later(delay, lambda: None).cancel()
    last = sleeper.call_later(3, lambda: None)
    sleeper.run_once()
    last.cancel()
    sleeper.run_once()
    assert recording.timeouts == [3, None]


def test_idle_loop_sleeps_until_woken_and_then_turns_once(
    sleeper: EventLoop, recording: RecordingSelector, pair: Pair
) -> None:
    def wake() -> None:
        sleeper.wakeup()
        if len(recording.timeouts) == 3:
            sleeper.stop()

    recording.meanwhile = wake
    sleeper.watch(pair[0], READ, lambda _events: pytest.fail("it has nothing to read"))
    sleeper.run()
    assert recording.timeouts == [None, None, None]


def test_idle_sockets_and_distant_timers_are_not_ready(
    loop: EventLoop, selector: selectors.BaseSelector, pair: Pair
) -> None:
    loop.watch(pair[0], READ, lambda _events: None)
    timer = loop.call_later(60, lambda: None)
    assert selector.select(0) == []
    timer.cancel()
    loop.watch(pair[0], 0)


def test_wakeup_from_another_thread_ends_a_wait(loop: EventLoop) -> None:
    started = time.monotonic()
    thread = threading.Thread(target=loop.wakeup)
    thread.start()
    loop.run_once(HUNG)
    thread.join()
    assert time.monotonic() - started < HUNG


def test_work_queued_by_another_thread_runs_in_this_one(loop: EventLoop) -> None:
    ran_in: list[threading.Thread] = []

    def work() -> None:
        loop.call_soon(lambda: ran_in.append(threading.current_thread()))
        loop.wakeup()

    thread = threading.Thread(target=work)
    thread.start()
    run_until(loop, lambda: ran_in)
    thread.join()
    assert ran_in == [threading.current_thread()]


def test_wakeups_beyond_what_the_socket_takes_still_wake(loop: EventLoop, selector: selectors.BaseSelector) -> None:
    fill(loop._wakeup_sender)
    loop.wakeup()
    assert selector.select(0)
    run_until(loop, lambda: not selector.select(0))


# Signals


@pytest.fixture
def _handled_elsewhere() -> Iterator[None]:
    """A handler for SIGUSR1 that stood before the loop's."""
    before = signal.signal(signal.SIGUSR1, elsewhere)
    yield
    signal.signal(signal.SIGUSR1, before)


def elsewhere(_signum: int, _frame: object) -> None:
    pass


def test_signal_runs_its_own_callback_and_only_in_the_loop(loop: EventLoop) -> None:
    calls: list[str] = []
    loop.add_signal_handler(signal.SIGUSR1, lambda: calls.append("USR1"))
    loop.add_signal_handler(signal.SIGUSR2, lambda: calls.append("USR2"))
    os.kill(os.getpid(), signal.SIGUSR2)
    assert calls == []
    run_until(loop, lambda: calls)
    assert calls == ["USR2"]


def test_signal_ends_a_wait(loop: EventLoop) -> None:
    calls: list[str] = []
    loop.add_signal_handler(signal.SIGUSR1, lambda: calls.append("USR1"))
    thread = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1))
    started = time.monotonic()
    thread.start()
    loop.run_once(HUNG)
    thread.join()
    assert time.monotonic() - started < HUNG
    assert calls == ["USR1"]


def test_signal_callback_that_raises_is_called_the_next_time(loop: EventLoop, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    def fail() -> None:
        calls.append("USR1")
        raise RuntimeError("broken")

    loop.add_signal_handler(signal.SIGUSR1, fail)
    for times in (1, 2):
        os.kill(os.getpid(), signal.SIGUSR1)
        run_until(loop, lambda times=times: len(calls) == times)
    assert caplog.text.count("RuntimeError: broken") == 2


def test_signal_that_finds_the_socket_full_is_not_complained_of(
    loop: EventLoop, selector: selectors.BaseSelector, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    loop.add_signal_handler(signal.SIGUSR1, lambda: None)
    fill(loop._wakeup_sender)
    os.kill(os.getpid(), signal.SIGUSR1)
    run_until(loop, lambda: not selector.select(0))
    assert complaints == []


@pytest.fixture
def calls(loop: EventLoop) -> list[int]:
    """The signals that ask to end, as the loop calls back on them."""
    calls: list[int] = []
    for signum in ENDINGS:
        loop.add_signal_handler(signum, partial(calls.append, signum))
    return calls


def send(*signums: int) -> None:
    for signum in signums:
        os.kill(os.getpid(), signum)


@pytest.mark.parametrize("handled_between", [True, False])
@pytest.mark.parametrize("second", sorted(ENDINGS))
def test_requests_to_end_within_half_a_second_are_one_the_first(
    loop: EventLoop, clock: Clock, calls: list[int], second: int, *, handled_between: bool
) -> None:
    send(signal.SIGTERM)
    if handled_between:
        run_until(loop, lambda: calls)
    clock.advance(AS_ONE - 0.001)
    send(second)
    run_until(loop, lambda: calls)
    loop.run_once(0)
    assert calls == [signal.SIGTERM]
    clock.advance(0.001)
    send(second)
    run_until(loop, lambda: len(calls) == 2)
    assert calls == [signal.SIGTERM, second]


def test_a_second_request_to_end_ends_a_stuck_loop(
    loop: EventLoop, clock: Clock, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", lambda signum: ended.append((signum, signal.getsignal(signum))))
    loop.add_signal_handler(signal.SIGUSR1, lambda: None)
    send(signal.SIGUSR1, signal.SIGTERM)
    clock.advance(AS_ONE)
    send(signal.SIGUSR1)
    assert ended == []
    send(signal.SIGINT)
    assert ended == [(signal.SIGINT, signal.SIG_DFL)]


def test_a_signal_is_not_missed_that_arrives_while_its_handler_is_set(
    loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    set_handler = signal.signal

    def set_and_arrive(signum: int, handler: object) -> object:
        previous = set_handler(signum, handler)
        send(signum)
        return previous

    with monkeypatch.context() as patched:
        patched.setattr(signal, "signal", set_and_arrive)
        loop.add_signal_handler(signal.SIGUSR1, lambda: calls.append("USR1"))
    loop.run_once(HUNG)
    assert calls == ["USR1"]


@pytest.mark.usefixtures("_handled_elsewhere")
def test_signal_of_somebody_else_passes_by(loop: EventLoop, selector: selectors.BaseSelector) -> None:
    loop.add_signal_handler(signal.SIGUSR2, lambda: pytest.fail("not this one"))
    os.kill(os.getpid(), signal.SIGUSR1)
    run_until(loop, lambda: not selector.select(0))


@pytest.mark.usefixtures("_handled_elsewhere")
def test_close_restores_what_handled_signals_before() -> None:
    with EventLoop() as loop:
        loop.add_signal_handler(signal.SIGUSR1, lambda: None)
        assert signal.getsignal(signal.SIGUSR1) is not elsewhere
    assert signal.getsignal(signal.SIGUSR1) is elsewhere
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.usefixtures("_handled_elsewhere")
def test_closing_again_restores_nothing_again() -> None:
    with EventLoop() as loop:
        loop.add_signal_handler(signal.SIGUSR1, lambda: None)
        loop.close()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


@pytest.mark.usefixtures("_handled_elsewhere")
def test_replaced_signal_handler_keeps_what_to_restore() -> None:
    calls: list[str] = []
    with EventLoop() as loop:
        loop.add_signal_handler(signal.SIGUSR1, lambda: calls.append("first"))
        loop.add_signal_handler(signal.SIGUSR1, lambda: calls.append("second"))
        os.kill(os.getpid(), signal.SIGUSR1)
        run_until(loop, lambda: calls)
    assert calls == ["second"]
    assert signal.getsignal(signal.SIGUSR1) is elsewhere


def test_signal_handlers_are_for_the_main_thread(loop: EventLoop) -> None:
    errors: list[Exception] = []

    def add() -> None:
        try:
            loop.add_signal_handler(signal.SIGUSR1, lambda: None)
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=add)
    thread.start()
    thread.join()
    assert len(errors) == 1


# Running and closing


def test_run_turns_until_stopped_and_ends_that_turn(loop: EventLoop) -> None:
    calls: list[str] = []
    for end in ("first", "second"):
        loop.call_soon(lambda: loop.call_soon(loop.stop))
        loop.run()
        loop.call_soon(loop.stop)
        loop.call_soon(lambda end=end: calls.append(end))
        loop.run()
    assert calls == ["first", "second"]


def test_close_lets_go_of_timers_and_queued_work_but_not_of_sockets(pair: Pair) -> None:
    timed, queued = Clock(), Clock()
    gone = [weakref.ref(timed), weakref.ref(queued)]
    with EventLoop() as loop:
        loop.watch(pair[0], READ, lambda _events: None)
        loop.call_later(1, timed)
        loop.call_soon(queued)
        del timed, queued
        assert all(reference() for reference in gone)
    assert not any(reference() for reference in gone)
    assert pair[0].send(b"still open") == 10


def test_a_selector_without_the_names_that_the_lean_one_relies_on_is_not_used(monkeypatch):
    monkeypatch.setattr("echopair.selector.LeanEpollSelector", selectors.SelectSelector)
    with EventLoop() as loop:
        assert type(loop._selector) is selectors.DefaultSelector


def test_a_system_without_epoll_gets_what_there_is(monkeypatch):
    monkeypatch.delattr(selectors, "EpollSelector")
    with EventLoop() as loop:
        assert not isinstance(loop._selector, LeanEpollSelector)


def test_cancelled_timers_do_not_pile_up(loop):
    kept = [loop.call_later(3600, lambda: None) for _ in range(10)]
    for _ in range(50_000):
        loop.call_later(3600, lambda: None).cancel()
    assert len(loop._timers) <= TIMERS + 10
    assert {timer for _, _, timer in loop._timers} >= set(kept)
    for timer in kept:
        timer.cancel()


def test_timers_that_are_set_are_not_gone_through_each_time(loop, monkeypatch):
    looked, heapify = [], heapq.heapify
    monkeypatch.setattr(heapq, "heapify", lambda timers: (looked.append(len(timers)), heapify(timers)))
    timers = [loop.call_later(3600, lambda: None) for _ in range(4 * TIMERS)]
    assert looked == [TIMERS, 2 * TIMERS]
    for timer in timers:
        timer.cancel()


@pytest.mark.skipif(not hasattr(selectors, "EpollSelector"), reason="this system has no epoll")
@pytest.mark.parametrize("wait", [0.0003, 0.0013, 0.0123, 1.0007])
def test_sleeps_end_when_they_are_due_and_not_a_millisecond_later(monkeypatch, clock, wait):
    """Where select(2) waits as long as it is asked to, and epoll_wait(2) whole milliseconds, rounded up."""

    class Epoll:
        def fileno(self):
            return 3

        def poll(self, timeout, _most):
            clock.advance(math.ceil(timeout * 1000) / 1000)
            return []

    monkeypatch.setattr("echopair.selector.select.select", lambda _read, _write, _except, wait: clock.advance(wait))
    with EventLoop(clock=clock) as loop, monkeypatch.context() as patch:
        patch.setattr(loop._selector, "_selector", Epoll())
        fired = []
        loop.call_later(wait, lambda: fired.append(clock()))
        while not fired:
            loop.run_once()
    assert fired == [pytest.approx(1000 + wait, abs=1e-9)]


def test_no_sleep_ends_early():
    """By the real clock, which a test of how late it ends would have to share with others."""
    with EventLoop() as loop:
        for wait in (0.0003, 0.0013, 0.0123):
            due, fired = loop.clock() + wait, []
            loop.call_at(due, lambda fired=fired: fired.append(loop.clock()))
            while not fired:
                loop.run_once()
            assert fired[0] >= due


def test_a_descriptor_out_of_the_reach_of_select_is_waited_for_by_epoll(monkeypatch):
    monkeypatch.setattr("echopair.selector.FD_SETSIZE", 0)
    with EventLoop() as loop:
        fired = []
        loop.call_later(0.001, lambda: fired.append(True))
        loop.run_once()
        assert fired
