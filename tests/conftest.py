"""Fixtures: a loop with a clock that the test moves, on each kind of selector if asked for; and nothing left behind."""

from __future__ import annotations

import logging
import select
import selectors
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from echopair.address import Address
from echopair.loop import EventLoop
from echopair.selector import default_selector
from helpers import HUNG, LOCALHOST, Clock, descriptors

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # as a machine may be
settings.load_profile("busy")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that says so on every kind of selector."""
    if "selector" in metafunc.fixturenames and metafunc.definition.get_closest_marker("every_selector"):
        metafunc.parametrize("selector", ["default", "PollSelector", "SelectSelector"], indirect=True)


@pytest.fixture
def selector(request: pytest.FixtureRequest) -> selectors.BaseSelector:
    kind = getattr(request, "param", "default")
    if kind == "default":
        return default_selector()
    if not hasattr(selectors, kind):
        pytest.skip(f"this system has no {kind}")
    return getattr(selectors, kind)()


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
    parser.addoption("--soak", type=float, default=1.0, help="seconds of each soak (test_chaos.py)")
    parser.addoption("--soak-seed", type=int, help="of its chance")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Share the tests out one by one, but for a file whose tests share what takes a minute; that comes first."""

    class OneByOne(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file.endswith("test_conformance.py") else nodeid

    return OneByOne(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give a soak the time that it is to take, besides the limit of every test."""
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.timeout(float(config.getini("timeout")) + config.getoption("--soak")))


@pytest.fixture
def deaf() -> Iterator[Address]:
    """An address that does not answer: its listen queue of one is full (listen(2), tcp_abort_on_overflow)."""
    with (
        socket.create_server((LOCALHOST, 0), backlog=0) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        select.select([listener], [], [], HUNG)
        yield socket.AF_INET, listener.getsockname()
