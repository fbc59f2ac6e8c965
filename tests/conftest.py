"""Fixtures: a loop on each kind of selector, with a clock that the test moves, and nothing left behind."""

from __future__ import annotations

import logging
import selectors
from collections.abc import Iterator

import pytest

from echopair.loop import EventLoop, LeanEpollSelector
from helpers import Clock, descriptors


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["LeanEpollSelector", "PollSelector", "SelectSelector"])
def selector(request: pytest.FixtureRequest) -> selectors.BaseSelector:
    if request.param == "LeanEpollSelector" and hasattr(selectors, "EpollSelector"):
        return LeanEpollSelector()
    if not hasattr(selectors, request.param):
        pytest.skip(f"this system has no {request.param}")
    return getattr(selectors, request.param)()


@pytest.fixture
def loop(selector: selectors.BaseSelector, clock: Clock) -> Iterator[EventLoop]:
    """A loop that must be left as it was found: nothing watched, no timer set, nothing queued."""
    with EventLoop(selector, clock) as loop:
        yield loop
        loop.run_once(0)
        watched = {key.fileobj for key in selector.get_map().values()} - {loop._wakeup_receiver}
        timers = [timer for _, _, timer in loop._timers if timer.callback]
        assert not watched, f"still watched: {watched}"
        assert not timers, f"still set: {timers}"
        assert not loop._soon


@pytest.fixture(autouse=True)
def _no_descriptor_left() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() <= before


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command configures logging for its process, which here is that of all tests."""
    root = logging.getLogger()
    handlers, level, complains = root.handlers[:], root.level, logging.raiseExceptions
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = complains


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", type=float, default=2.0, help="seconds of each soak (test_chaos.py)")
    parser.addoption("--soak-seed", type=int, help="of its chance")
