"""Every exception of Consilience, but those of calls to language models, which are in `consilience.llm.errors`.

ConsilienceError                 root: catch this one
├── RequestError                 the request was wrong: nothing was started, exit code 2
│   ├── RecipeError              a recipe, a parameter or a method name
│   ├── CheckpointError          weights on disk that cannot be used
│   ├── DataError                a dataset, a suite or a split
│   │   └── LeakageError         evaluation data would reach a learner
│   ├── OutputError              the output place is unusable or belongs to something else
│   └── MissingExtraError        an optional dependency is not installed
└── WorkError                    the work failed; what was finished is kept, exit code 1
    ├── NonFiniteError           NaN or infinity in merged weights
    ├── StorageError             disk full, file lost or unwritable while working
    ├── VerificationError        a written file does not read back as written
    ├── BudgetError              the budget of a job is used up; run again to resume
    └── CancelledError           the user stopped the job; run again to resume

>>> try:
...     raise RecipeError("method 'tiez' is unknown; did you mean 'ties'?")
... except ConsilienceError as error:
...     print(error)
method 'tiez' is unknown; did you mean 'ties'?
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BudgetError",
    "CancelledError",
    "CheckpointError",
    "ConsilienceError",
    "DataError",
    "LeakageError",
    "MissingExtraError",
    "NonFiniteError",
    "OutputError",
    "Problems",
    "RecipeError",
    "RequestError",
    "StorageError",
    "VerificationError",
    "WorkError",
    "did_you_mean",
]


class ConsilienceError(Exception):
    """Root of all errors that Consilience raises on purpose."""

    exit_code = 1


class RequestError(ConsilienceError):
    """What was asked cannot be done; nothing has been started."""

    exit_code = 2


class RecipeError(RequestError):
    """A recipe, a parameter or a method name is wrong."""


class CheckpointError(RequestError):
    """Weights on disk cannot be used as asked."""


class DataError(RequestError):
    """A dataset, a suite or a split cannot be used as asked."""


class LeakageError(DataError):
    """Evaluation data would reach a learner."""


class OutputError(RequestError):
    """The output place is unusable or belongs to something else."""


class MissingExtraError(RequestError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"this needs the module {module!r}: pip install 'consilience[{extra}]'")


class WorkError(ConsilienceError):
    """The work failed after it had started; finished parts are kept."""


class NonFiniteError(WorkError):
    """NaN or infinity appeared in merged weights."""


class StorageError(WorkError):
    """The disk is full, or a file was lost or became unwritable while working."""


class VerificationError(WorkError):
    """A written file does not read back as it was written."""


class BudgetError(WorkError):
    """The budget of a job is used up; the same request resumes it."""


class CancelledError(WorkError):
    """The user stopped the job; the same request resumes it."""


class Problems:
    """Collects every problem of a request, so that all of them are reported together.

    >>> problems = Problems()
    >>> problems.add("parameters.density: -0.5 is below 0; use a share between 0 and 1")
    >>> problems.add("experts.a: no such file or folder: nowhere")
    >>> problems.raise_if_any(RecipeError, "recipe.yml")
    Traceback (most recent call last):
    ...
    consilience.errors.RecipeError: recipe.yml: 2 problems
      - parameters.density: -0.5 is below 0; use a share between 0 and 1
      - experts.a: no such file or folder: nowhere
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    def __bool__(self) -> bool:
        return bool(self.found)

    def add(self, message: str) -> None:
        """Record one problem once: what was asked, what was found, what to do."""
        if message not in self.found:
            self.found.append(message)

    def extend(self, messages: Iterable[str]) -> None:
        """Record several problems."""
        for message in messages:
            self.add(message)

    def raise_if_any(self, error: type[ConsilienceError], subject: str) -> None:
        """Raise `error` naming `subject` and all problems; do nothing when there are none."""
        if not self.found:
            return
        if len(self.found) == 1:
            raise error(f"{subject}: {self.found[0]}")
        lines = "".join("\n  - " + message.replace("\n", "\n  ") for message in self.found)
        raise error(f"{subject}: {len(self.found)} problems{lines}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the closest known word, else the list of known words.

    >>> did_you_mean("tiez", ["ties", "linear"])
    "; did you mean 'ties'?"
    >>> did_you_mean("qqq", ["ties", "linear"])
    '; known: linear, ties'
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return "; known: " + ", ".join(names) if names else ""
