"""Threads for one kind of work each, with a bound on what may wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from consilience.serving.searching import Busy, Result

__all__ = ["Lane", "Late", "within"]


class Late(Exception):
    """What was asked for took longer than it may."""


async def within(running: Future[Result], seconds: float, what: str) -> Result:
    """Wait for the result of a thread; what has not been begun when its time is over never is. Raises Late."""
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.wrap_future(running)
    except TimeoutError:
        raise Late(f"the {what} took longer than {seconds:g} s") from None


class Lane:
    """A few threads, and at most `waiting` calls that they have not finished.

    >>> lane = Lane("adding", threads=1, waiting=2)
    >>> asyncio.run(lane.run(lambda: 1 + 1, seconds=5))
    2
    >>> lane.close()
    """

    def __init__(self, what: str, *, threads: int, waiting: int) -> None:
        self._what, self._most, self._open = what, waiting, 0
        self._threads = ThreadPoolExecutor(threads, what)

    async def run(self, call: Callable[[], Result], *, seconds: float) -> Result:
        """Return the result of a call. Raises Busy, Late, and what the call raises."""
        if self._open >= self._most:
            raise Busy
        self._open += 1
        running = self._threads.submit(call)
        loop = asyncio.get_running_loop()
        running.add_done_callback(lambda _: loop.call_soon_threadsafe(self._finished))  # a late one still takes room
        return await within(running, seconds, self._what)

    def _finished(self) -> None:
        self._open -= 1

    def close(self) -> None:
        """Finish what was begun."""
        self._threads.shutdown()
