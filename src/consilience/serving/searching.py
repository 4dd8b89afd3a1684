"""Searches of many clients on a few threads: bounded, and those that wait are encoded together."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from consilience.retrieval.answer import Answer
    from consilience.retrieval.index import Index
    from consilience.retrieval.relational import Rows
    from consilience.retrieval.searcher import Searcher
    from consilience.stores.where import Filter

__all__ = ["Busy", "Searches", "Wanted", "patient"]

Result = TypeVar("Result")
log = logging.getLogger("consilience.serving")

_KEPT = 32  # Searchers
_FRESH = 30.0  # seconds until a Searcher looks again which stores the index has
_TRIES = 3  # to count the files of an index while a writer deletes some


class Busy(Exception):
    """So many wait that another request would only wait too."""


@dataclass(frozen=True)
class Wanted:
    """How to search: what a request says beside its queries."""

    k: int = 10
    where: Filter | None = None
    stores: tuple[str, ...] | None = None
    fusion: str = "weighted"
    weights: tuple[tuple[str, float], ...] | None = None
    route: bool = False

    @property
    def searcher(self) -> str:
        """What decides the Searcher."""
        return repr((self.stores, self.fusion, self.weights, self.route))

    @property
    def key(self) -> str:
        """What requests have in common that can be searched in one call; 1, 1.0 and true are not the same."""
        return repr((self.k, self.where)) + self.searcher


@dataclass
class _Job:
    wanted: Wanted
    queries: Sequence[str]
    answer: Future[list[Answer]] = field(default_factory=Future)


class Searches:
    """Threads that search an index.

    >>> import tempfile
    >>> from consilience.data.documents import Document
    >>> from consilience.retrieval.index import Index
    >>> index = Index.create(tempfile.mkdtemp() + "/index")
    >>> _ = index.add([Document("a", "Sort a list."), Document("b", "A small dog.")])
    >>> searches = Searches(index)
    >>> [hit.id for hit in searches.submit(Wanted(k=1), ["dogs"]).result()[0].hits]
    ['b']
    >>> searches.close()

    A thread takes the request that has waited longest, and with it those that want the same but for their queries, up
    to `together` queries: the busier the server, the larger the batches; a request that is alone never waits for
    others. waiting: requests that may wait. searched: is told the number of queries of every call.
    """

    def __init__(
        self,
        index: Index,
        *,
        workers: int = 1,
        waiting: int = 256,
        together: int = 32,
        searched: Callable[[int], None] = lambda queries: None,
    ) -> None:
        self.index, self._most, self._together, self._searched = index, waiting, together, searched
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._searchers: dict[str, tuple[float, Searcher]] = {}
        self._making = threading.Lock()
        self._rows: Rows | None = None
        self._threads = [threading.Thread(target=self._work, name=f"search-{n}", daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""
        return len(self._jobs)

    def submit(self, wanted: Wanted, queries: Sequence[str]) -> Future[list[Answer]]:
        """Put a request into the queue; one that is cancelled while it waits is not searched. Raises Busy."""
        job = _Job(wanted, queries)
        with self._changed:
            if len(self._jobs) >= self._most:
                self._jobs = deque(one for one in self._jobs if not one.answer.cancelled())
            if self._closing or len(self._jobs) >= self._most:
                raise Busy
            self._jobs.append(job)
            self._changed.notify()
        return job.answer

    def close(self) -> None:
        """Answer what waits and end the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while jobs := self._next():
            if taken := [job for job in jobs if job.answer.set_running_or_notify_cancel()]:
                self._answer(taken)

    def _next(self) -> list[_Job]:
        """Wait for requests; none when the work has ended."""
        with self._changed:
            while not self._jobs and not self._closing:
                self._changed.wait()
            if not self._jobs:
                return []
            taken = [self._jobs.popleft()]
            room, key = self._together - len(taken[0].queries), taken[0].wanted.key
            left: deque[_Job] = deque()
            for job in self._jobs:
                if len(job.queries) <= room and job.wanted.key == key:
                    taken.append(job)
                    room -= len(job.queries)
                else:
                    left.append(job)
            self._jobs = left
            return taken

    def _answer(self, jobs: list[_Job]) -> None:
        """Search for several requests at once; where that fails, for each alone, so that none pays for another's."""
        queries = [query for job in jobs for query in job.queries]
        try:
            found = self._search(jobs[0].wanted, queries)
        except BaseException as error:  # of a thread without a caller: the request gets it, whatever it is
            if len(jobs) > 1:
                for job in jobs:
                    self._answer([job])
            else:
                jobs[0].answer.set_exception(error)
            return
        start = 0
        for job in jobs:
            job.answer.set_result(found[start : start + len(job.queries)])
            start += len(job.queries)

    def _search(self, wanted: Wanted, queries: list[str]) -> list[Answer]:
        self._searched(len(queries))
        found = self._searcher(wanted).answer(queries, wanted.k, where=wanted.where)
        for name, why in found[0].failed.items() if found else ():
            log.warning("store %s gave no answer: %s", name, why)
        return found

    def _made(self, wanted: Wanted) -> Searcher:
        from consilience.retrieval.relational import Rows
        from consilience.retrieval.routing import routed
        from consilience.retrieval.searcher import Searcher

        if wanted.route:
            self._rows = self._rows or Rows(self.index)
            return routed(self.index, rows=self._rows, stores=wanted.stores)
        weights = None if wanted.weights is None else dict(wanted.weights)
        return Searcher(self.index, stores=wanted.stores, fusion=wanted.fusion, weights=weights)

    def _searcher(self, wanted: Wanted) -> Searcher:
        key, now = wanted.searcher, time.monotonic()
        with self._making:
            made, found = self._searchers.get(key, (-_FRESH, None))
            if found is None or now - made > _FRESH:
                found = patient(lambda: self._made(wanted))
                self._searchers.pop(key, None)
                if len(self._searchers) >= _KEPT:
                    self._searchers.pop(next(iter(self._searchers)))
                self._searchers[key] = (now, found)
            return found


def patient(call: Callable[[], Result]) -> Result:
    """Call again where a writer has deleted a file that was just being counted."""
    for _ in range(_TRIES - 1):
        try:
            return call()
        except FileNotFoundError:
            time.sleep(0.01)
    return call()
