"""Long work as a Job: a journal, resume after a kill, budget, cancel, and atomic publication.

All state of a job that makes OUT lives in `OUT.partial/`: `job.json` says what was asked, `journal.jsonl` has one
line per finished unit, `work/` becomes OUT by one rename when everything is done.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from consilience.core.atomic import storage_error, sync_folder
from consilience.core.hashing import fingerprint
from consilience.core.records import read_record, write_record
from consilience.errors import BudgetError, CancelledError, OutputError, RequestError

__all__ = ["MANIFEST", "Budget", "Job", "check_output", "clear_published", "partial_folder"]

MANIFEST = "consilience.json"
_VERSION = 1


@dataclass(frozen=True)
class Budget:
    """Limits of one run of a job; None means no limit. A job stopped by its budget can be resumed.

    >>> Budget(wall_seconds=60).wall_seconds
    60
    """

    wall_seconds: float | None = None
    cpu_seconds: float | None = None


def partial_folder(out: Path) -> Path:
    """Return the folder that holds the state of the job that makes `out`."""
    return out.parent / f"{out.name}.partial"


def check_output(out: Path) -> list[str]:
    """Return the problems of writing a result to `out`: a file there, a folder that is not ours, no permission."""
    try:
        return _output_problems(out)
    except OSError as error:
        return [f"output {out}: {error.filename} cannot be looked at ({error.strerror}); choose another place"]


def _output_problems(out: Path) -> list[str]:
    if out.name in ("", ".."):
        return [f"output {out}: cannot be replaced as a whole; name a folder in it, such as {out / 'merged'}"]
    problems = []
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        problems.append(f"output {out}: exists and is not a folder; choose another place")
    elif out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        problems.append(
            f"output {out}: the folder is not empty and was not made by consilience (no {MANIFEST}); "
            "choose another place or empty it"
        )
    parent = out.parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        problems.append(f"output {out}: {parent} is not a folder")
    elif not os.access(parent, os.W_OK | os.X_OK):
        problems.append(f"output {out}: no permission to write in {parent}")
    return problems


def clear_published(out: Path) -> None:
    """Delete what a job that was killed right after publishing `out` left beside it."""
    partial = partial_folder(out)
    if partial.is_dir() and not (partial / "work").is_dir():
        shutil.rmtree(partial, ignore_errors=True)


class Job:
    """One piece of long work that makes the folder `out`; entering it starts or resumes.

    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp()) / "result"
    >>> with Job(out, kind="demo", request={"n": 1}) as job:
    ...     _ = (job.work / "data.txt").write_text("x")
    ...     job.record("data.txt", bytes=1)
    ...     job.publish()
    >>> (out / "data.txt").read_text()
    'x'

    The same request resumes: `job.done` has what the journal holds. A request that differs from the one that left
    `OUT.partial/` behind is an OutputError, as is a second process on the same output.
    """

    def __init__(self, out: Path, *, kind: str, request: Mapping[str, Any], budget: Budget | None = None) -> None:
        self.out = Path(out)
        self.kind = kind
        self.partial = partial_folder(self.out)
        self.work = self.partial / "work"
        self.request = dict(request)
        self.identity = fingerprint(self.request)
        self.budget = budget or Budget()
        self.done: dict[str, dict[str, Any]] = {}
        self.resumed = False
        self._cancelled = threading.Event()
        self._journal_lock = threading.Lock()
        self._journal = -1
        self._lock = -1

    def __enter__(self) -> Job:
        if problems := check_output(self.out):
            raise OutputError("; ".join(problems))
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._start_or_resume()
        except OSError as error:
            self._release()
            raise storage_error(self.partial, error) from error
        except BaseException:
            self._release()
            raise
        self._started = time.monotonic()
        self._cpu_started = time.process_time()
        self._previous_handlers = self._catch_signals()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._release()

    def _take_lock(self) -> None:
        self._lock = os.open(self.partial / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"output {self.out}: another process is working on it (lock {self.partial / 'lock'}); "
                "wait for it or choose another place"
            ) from None

    def _start_or_resume(self) -> None:
        state = self.partial / "job.json"
        if state.is_file():
            left = read_record(state, "job", _VERSION)
            if left.get("identity") != self.identity and not self.work.is_dir():
                self._forget()  # it was published and killed before it could clean up
            elif left.get("identity") != self.identity:
                raise OutputError(
                    f"output {self.out}: {self.partial} was left by another request ({left.get('kind')}); "
                    "run that one again to finish it, delete the folder, or choose another place"
                )
            else:
                self.resumed = True
                self._read_journal()
        if not self.resumed:
            self._forget()
            write_record(
                state, "job", _VERSION, {"kind": self.kind, "identity": self.identity, "request": self.request}
            )
        self.work.mkdir(exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._journal = os.open(self.partial / "journal.jsonl", flags, 0o644)

    def _forget(self) -> None:
        for name in ("work", "replaced", "stages"):
            shutil.rmtree(self.partial / name, ignore_errors=True)
        for name in ("job.json", "journal.jsonl"):
            (self.partial / name).unlink(missing_ok=True)

    def _read_journal(self) -> None:
        path = self.partial / "journal.jsonl"
        if not path.is_file():
            return
        data = path.read_bytes()
        complete = data[: data.rfind(b"\n") + 1]
        for line in complete.splitlines():
            try:
                entry = json.loads(line)
                self.done[entry["key"]] = entry
            except (ValueError, KeyError, TypeError):
                raise RequestError(f"{path}: damaged line {line[:80]!r}; delete {self.partial} to start over") from None
        if len(complete) != len(data):  # a line cut by a kill: the unit is not done
            with path.open("r+b") as file:
                file.truncate(len(complete))

    def record(self, key: str, *, durable: bool = True, **facts: Any) -> None:
        """Write one journal line: the unit `key` is finished. Data it speaks of must be durable before."""
        entry = {"key": key, **facts}
        line = json.dumps(entry, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        with self._journal_lock:
            try:
                os.write(self._journal, line)
                if durable:
                    os.fsync(self._journal)
            except OSError as error:
                raise storage_error(self.partial / "journal.jsonl", error) from error
            self.done[key] = entry

    def cancel(self) -> None:
        """Ask the job to stop at its next check; the same request resumes it."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise CancelledError or BudgetError when the job has to stop now."""
        again = f"what is finished is kept in {self.partial}; run the same command again to resume"
        if self._cancelled.is_set():
            raise CancelledError(f"cancelled; {again}")
        wall, cpu = self.budget.wall_seconds, self.budget.cpu_seconds
        if wall is not None and time.monotonic() - self._started > wall:
            raise BudgetError(f"the budget of {wall:g} wall seconds is used up; {again}")
        if cpu is not None and time.process_time() - self._cpu_started > cpu:
            raise BudgetError(f"the budget of {cpu:g} CPU seconds is used up; {again}")

    def publish(self) -> None:
        """Rename `work/` to `out` in one step and delete the rest of the state."""
        try:
            if not (self.work / MANIFEST).exists():
                write_record(self.work / MANIFEST, "manifest", _VERSION, {"kind": self.kind, "request": self.request})
            sync_folder(self.work)
            retired = self.partial / "replaced"
            if self.out.exists():
                self.out.rename(retired)
            self.work.rename(self.out)
            sync_folder(self.out.parent)
            shutil.rmtree(self.partial)
        except OSError as error:
            raise storage_error(self.out, error) from error

    def _release(self) -> None:
        for name in ("_journal", "_lock"):
            descriptor = getattr(self, name)
            if descriptor >= 0:
                os.close(descriptor)
                setattr(self, name, -1)

    def _catch_signals(self) -> dict[int, Any]:
        if threading.current_thread() is not threading.main_thread():
            return {}

        def stop(number: int, frame: Any) -> None:
            if self._cancelled.is_set():
                raise KeyboardInterrupt
            self.cancel()

        return {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
