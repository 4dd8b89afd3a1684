"""Independent tasks on threads or processes; results come back in the order of the tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_EXCEPTION,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
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
        try:
            for index, future in enumerate(futures):
                if not future.done():
                    wait([*futures[: index + 1]], return_when=FIRST_EXCEPTION)
                    _raise_first(futures)
                yield index, future.result()
        finally:
            for future in futures:
                future.cancel()


def _raise_first(futures: Sequence[Future[Result]]) -> None:
    for future in futures:
        if future.done() and not future.cancelled() and (error := future.exception()) is not None:
            raise error
