"""Silence: who is told of it, when, and how often."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from echopair.idle import IdleWatch
from echopair.loop import EventLoop
from helpers import Clock

TIMEOUT = 20.0
STEP = TIMEOUT / 20  # how late it may be noticed


@dataclass(eq=False)
class Connection:
    """What a watch looks at."""

    name: str
    active_at: float
    kernel_holds: int = 0  # bytes

    @property
    def sock(self) -> Connection:
        return self

    def undelivered(self) -> int:
        return self.kernel_holds

    def call(self, callback: Callable[..., object], *arguments: object) -> None:
        callback(*arguments)


class Watched:
    """A watch over fake connections, each a name and a moment, and the names it has told."""

    def __init__(self, loop: EventLoop, clock: Clock) -> None:
        self.loop = loop
        self.clock = clock
        self.connections: list[Connection] = []
        self.told: list[str] = []
        self.react: Callable[[Connection], object] = lambda _connection: None
        self.watch = IdleWatch(loop, self.connections, TIMEOUT, self.silent)

    def connect(self, name: str) -> Connection:
        connection = Connection(name, self.clock())
        self.connections.append(connection)
        return connection

    def silent(self, connection: Connection) -> None:
        self.told.append(connection.name)
        self.react(connection)

    def after(self, seconds: float) -> list[str]:
        """Return who was told in a turn of the loop so much later."""
        self.told.clear()
        self.clock.advance(seconds)
        self.loop.run_once(0)
        return self.told.copy()


@pytest.fixture
def watched(loop: EventLoop, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr("echopair.idle.undelivered", lambda sock: sock.undelivered())
    watched = Watched(loop, clock)
    yield watched
    watched.watch.close()


def test_silence_is_told_after_the_timeout(watched: Watched) -> None:
    watched.connect("a")
    assert watched.after(TIMEOUT - STEP) == []
    assert watched.after(STEP) == ["a"]


def test_silence_is_told_again_after_each_further_timeout(watched: Watched) -> None:
    watched.connect("a")
    assert watched.after(TIMEOUT) == ["a"]
    assert watched.after(TIMEOUT - STEP) == []
    assert watched.after(STEP) == ["a"]


def test_nothing_is_looked_at_before_the_oldest_can_be_silent(watched: Watched) -> None:
    watched.connect("a")
    assert watched.after(TIMEOUT) == ["a"]
    assert [when for when, _, _ in watched.loop._timers] == [watched.clock() + TIMEOUT]


def test_bytes_put_it_off_by_a_whole_timeout(watched: Watched) -> None:
    connection = watched.connect("a")
    watched.clock.advance(TIMEOUT - STEP)
    connection.active_at = watched.clock()
    assert watched.after(STEP) == []
    assert watched.after(TIMEOUT - 2 * STEP) == []
    assert watched.after(STEP) == ["a"]


def test_bytes_after_a_silence_put_the_next_off_by_a_whole_timeout(watched: Watched) -> None:
    connection = watched.connect("a")
    assert watched.after(TIMEOUT) == ["a"]
    watched.clock.advance(TIMEOUT / 2)
    connection.active_at = watched.clock()
    assert watched.after(TIMEOUT / 2) == []
    assert watched.after(TIMEOUT / 2) == ["a"]


def test_only_the_silent_are_told(watched: Watched) -> None:
    watched.connect("a")
    busy = watched.connect("b")
    watched.connect("c")
    watched.clock.advance(STEP)
    busy.active_at = watched.clock()
    assert watched.after(TIMEOUT - STEP) == ["a", "c"]


def test_who_has_left_is_not_told(watched: Watched) -> None:
    watched.connections.remove(watched.connect("a"))
    assert watched.after(TIMEOUT) == []


def test_who_comes_later_has_a_whole_timeout(watched: Watched) -> None:
    watched.clock.advance(TIMEOUT - STEP)
    watched.connect("a")
    assert watched.after(STEP) == []
    assert watched.after(TIMEOUT - 2 * STEP) == []
    assert watched.after(STEP) == ["a"]


def test_callback_may_take_connections_out_of_the_collection(watched: Watched) -> None:
    watched.react = watched.connections.remove
    for name in "abc":
        watched.connect(name)
    assert watched.after(TIMEOUT) == ["a", "b", "c"]
    assert watched.connections == []


def test_many_moments_share_a_timer_that_is_at_most_a_twentieth_late(watched: Watched) -> None:
    for number in range(5):
        watched.connect(str(number))
        watched.clock.advance(STEP / 8)
    assert watched.after(TIMEOUT - 5 * STEP / 8) == ["0"]
    assert len(watched.loop._timers) == 1
    assert watched.after(7 * STEP / 8) == []
    assert watched.after(STEP / 8) == ["1", "2", "3", "4"]


def test_bytes_that_the_kernel_still_delivers_are_no_silence(watched: Watched) -> None:
    connection = watched.connect("a")
    for held in (300, 200, 100):
        connection.kernel_holds = held
        assert watched.after(TIMEOUT) == []
    assert watched.after(TIMEOUT) == ["a"], "nothing was acknowledged in all that time"
    connection.kernel_holds = 50
    assert watched.after(TIMEOUT) == []
    connection.kernel_holds = 0
    assert watched.after(TIMEOUT) == ["a"]


def test_nobody_is_told_once_the_watch_is_closed(watched: Watched) -> None:
    watched.connect("a")
    watched.watch.close()
    assert watched.after(TIMEOUT) == []


def test_watch_closed_by_its_own_callback_is_over(watched: Watched) -> None:
    watched.connect("a")
    watched.react = lambda _connection: watched.watch.close()
    watched.after(TIMEOUT)
    assert not [timer for _, _, timer in watched.loop._timers if timer.callback]


def test_a_look_that_fails_does_not_end_the_watch(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    connection = watched.connect("a")
    connection.undelivered = lambda: 1 // 0
    assert watched.after(TIMEOUT) == []
    assert "ZeroDivisionError" in caplog.text
    connection.undelivered = lambda: 0
    assert watched.after(STEP) == ["a"]


def test_callback_that_raises_does_not_end_the_watch(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    watched.connect("a")
    watched.react = lambda _connection: 1 // 0
    watched.after(TIMEOUT)
    assert "ZeroDivisionError" in caplog.text
    assert watched.after(TIMEOUT) == ["a"]
