"""Independent tasks on threads or processes; results come back in the order of the tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from typing import Literal, TypeVar

__all__ = ["default_workers", "run_tasks"]

Task = TypeVar("Task")
Result = TypeVar("Result")


def default_workers() -> int:
    """Return the number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    workers: int | None = None,
    kind: Literal["threads", "processes"] = "threads",
) -> Iterator[tuple[int, Result]]:
    """Yield (index, result) for every task, in task order.

    >>> list(run_tasks(abs, [-2, 3], workers=2))
    [(0, 2), (1, 3)]

    With processes, `function` and `tasks` must be picklable. The first error stops the rest: tasks not yet started
    are dropped, running ones finish, then the error is raised.
    """
    count = min(workers or default_workers(), max(len(tasks), 1))
    if count <= 1 and kind == "threads":
        for index, task in enumerate(tasks):
            yield index, function(task)
        return
    pool: Executor = ThreadPoolExecutor(count) if kind == "threads" else ProcessPoolExecutor(count)
    with pool:
        futures: list[Future[Result]] = [pool.submit(function, task) for task in tasks]

        def stop_on_error(finished: Future[Result]) -> None:
            if not finished.cancelled() and finished.exception() is not None:
                for future in futures:
                    future.cancel()

        for future in futures:
            future.add_done_callback(stop_on_error)
        try:
            for index, future in enumerate(futures):
                try:
                    result = future.result()
                except CancelledError:
                    raise next(e for f in futures if not f.cancelled() and (e := f.exception())) from None
                yield index, result
        finally:
            for future in futures:
                future.cancel()
