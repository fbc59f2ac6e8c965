"""Scripts: coroutines that wait for sockets and for time, on the one event loop (PEP 492).

A conversation is a sequence: send, wait, read, compare. As callbacks it falls to pieces, as a coroutine it reads from
top to bottom. What a coroutine awaits ends up here as a function that starts the waiting and returns how to stop it;
whatever it waited for resumes the coroutine, from the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from functools import partial
from types import coroutine
from typing import Any

from echopair.loop import EventLoop

Resume = Callable[..., object]  # resume(value), or resume(error=...)
Wait = Callable[[Resume], Callable[[], object]]


@coroutine
def wait(start: Wait) -> Generator[Wait, Any, Any]:
    """Wait for what `start(resume)` starts; return what it resumes with."""
    return (yield start)


async def sleep(loop: EventLoop, seconds: float) -> None:
    """Wait so many seconds."""
    await wait(lambda resume: loop.call_later(seconds, resume).cancel)


async def ready(loop: EventLoop, fileobj: Any, events: int, patience: float) -> int:
    """Wait for `fileobj` to be ready for `events`, at most `patience` seconds; return for which, or 0."""

    def start(resume: Resume) -> Callable[[], object]:
        def stop() -> None:
            timer.cancel()
            loop.watch(fileobj, 0)

        def end(found: int) -> None:
            stop()
            resume(found)

        timer = loop.call_later(patience, partial(end, 0))
        loop.watch(fileobj, events, end)
        return stop

    found: int = await wait(start)
    return found


class Script:
    """Runs a coroutine on `loop`, and calls `done(result, error)` at its end; not after `cancel()`."""

    def __init__(
        self,
        loop: EventLoop,
        body: Coroutine[Wait, Any, Any],
        done: Callable[[Any, Exception | None], object],
    ) -> None:
        self._body = body
        self._done = done
        self._stop_waiting: Callable[[], object] = loop.call_later(0, self._step).cancel

    def cancel(self) -> None:
        """End it where it waits."""
        self._stop_waiting()
        self._body.close()

    def _step(self, value: Any = None, error: Exception | None = None) -> None:
        try:
            start = self._body.throw(error) if error else self._body.send(value)
        except StopIteration as end:
            self._done(end.value, None)
        except Exception as failure:  # noqa: BLE001 - whoever runs it decides
            self._done(None, failure)
        else:
            self._stop_waiting = start(self._step)


async def together(loop: EventLoop, *bodies: Coroutine[Wait, Any, Any]) -> list[Any]:
    """Run these side by side and return their results; the first that raises ends the others, and raises here."""
    results: list[Any] = [None] * len(bodies)
    left = set(range(len(bodies)))

    def start(resume: Resume) -> Callable[[], object]:
        def stop() -> None:
            for place in left:
                scripts[place].cancel()

        def done(place: int, result: Any, error: Exception | None) -> None:
            left.discard(place)
            results[place] = result
            if error:
                stop()
                resume(error=error)
            elif not left:
                resume()

        scripts = [Script(loop, body, partial(done, place)) for place, body in enumerate(bodies)]
        return stop

    await wait(start)
    return results
