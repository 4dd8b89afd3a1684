"""Spans of a run as JSON lines: what was called within what, with which request, reply and error."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from pathlib import Path
from typing import Any

from consilience.core.atomic import storage_error
from consilience.errors import ConsilienceError

__all__ = ["Trace"]

_PARENT: ContextVar[int | None] = ContextVar("consilience_llm_span", default=None)


class Trace:
    """A JSONL file that spans are appended to as they end.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "trace.jsonl"
    >>> trace = Trace(path)
    >>> with trace.span("question"), trace.span("call", model="m") as facts:
    ...     facts["tokens"] = 3
    >>> [(span["name"], span["parent"]) for span in trace.read()]
    [('call', 1), ('question', None)]

    A span has id, parent, name, started (seconds since 1970), seconds, facts, and error where one passed through.
    Threads have their own parents; a parent is kept across threads by contextvars.copy_context().
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_cut_line()
        self._lock = threading.Lock()
        self._ids = count(1 + max((span["id"] for span in self.read()), default=0))

    def _drop_cut_line(self) -> None:
        """Take away what a run that was killed left of its last line."""
        if self.path.is_file():
            data = self.path.read_bytes()
            if not data.endswith(b"\n"):
                os.truncate(self.path, data.rfind(b"\n") + 1)

    def read(self) -> list[dict[str, Any]]:
        """Return the spans written so far."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines if line]

    @contextmanager
    def span(self, name: str, **facts: Any) -> Iterator[dict[str, Any]]:
        """Open a span inside the present one; what is put into the yielded dict is written with it."""
        with self._lock:
            identity = next(self._ids)
        parent = _PARENT.get()
        token = _PARENT.set(identity)
        started, clock = time.time(), time.monotonic()
        error: str | None = None
        try:
            yield facts
        except ConsilienceError as problem:
            error = f"{type(problem).__name__}: {problem}"
            raise
        finally:
            _PARENT.reset(token)
            self._write(identity, parent, name, started, time.monotonic() - clock, facts, error)

    def add(self, name: str, seconds: float, facts: dict[str, Any], error: str | None = None) -> None:
        """Write a span that ended just now inside the present one, as streams need it."""
        with self._lock:
            identity = next(self._ids)
        self._write(identity, _PARENT.get(), name, time.time() - seconds, seconds, facts, error)

    def _write(
        self,
        identity: int,
        parent: int | None,
        name: str,
        started: float,
        seconds: float,
        facts: dict[str, Any],
        error: str | None,
    ) -> None:
        record: dict[str, Any] = {
            "id": identity,
            "parent": parent,
            "name": name,
            "started": started,
            "seconds": seconds,
        }
        record |= {"facts": facts} if error is None else {"facts": facts, "error": error}
        line = json.dumps(record, ensure_ascii=False, default=str) + "\n"
        with self._lock:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(line)
            except OSError as error:
                raise storage_error(self.path, error) from error
