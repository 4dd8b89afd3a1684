"""The one place that may catch broadly: it records and counts, it never hides."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Failure", "per_item"]

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """One item that failed: its position, what it was, and the error in words."""

    index: int
    item: str
    error: str


def per_item(
    items: Iterable[Item], function: Callable[[Item], Result], *, name: Callable[[Item], str] = str
) -> tuple[list[Result], list[Failure]]:
    """Apply `function` to every item; return the results and, apart, the items that failed.

    >>> per_item(["1", "x"], int)
    ([1], [Failure(index=1, item='x', error="ValueError: invalid literal for int() with base 10: 'x'")])
    """
    results: list[Result] = []
    failures: list[Failure] = []
    for index, item in enumerate(items):
        try:
            results.append(function(item))
        except Exception as error:
            failures.append(Failure(index, name(item), f"{type(error).__name__}: {error}"))
    return results, failures
