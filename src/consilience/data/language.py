"""Texts for language models: passages, or prompts with completions, in splits that do not leak into each other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from consilience.core.hashing import fingerprint
from consilience.data.reserved import ReservedQueries
from consilience.data.text import query_key
from consilience.errors import DataError, LeakageError

if TYPE_CHECKING:
    from consilience.models.causal import TextExample

__all__ = ["LanguageData", "TrainingTexts"]

_SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class TrainingTexts:
    """The examples a language model may be fitted on; `dropped` counts those left out by reason."""

    name: str
    examples: tuple[TextExample, ...] = field(repr=False)
    dropped: Mapping[str, int]
    sources: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def content_hash(self) -> str:
        """The identity of the examples, for records."""
        return fingerprint([list(self.examples), self.sources])

    def describe(self) -> dict[str, object]:
        """Return the facts for a record: name, count, what was dropped and checked, the hash."""
        return {
            "name": self.name,
            "examples": len(self.examples),
            "dropped": dict(self.dropped),
            "checked_against": dict(self.sources),
            "content_hash": self.content_hash,
        }


@dataclass(frozen=True)
class LanguageData:
    """Examples in the splits train, dev and test: each a text, or a pair (prompt, completion).

    >>> data = LanguageData.of("sums", train=[("1+1=", "2"), ("1+2=", "3")], test=[("1+2=", "3")])
    >>> data.training().examples, data.training().dropped["same as a dev or test example"]
    ((('1+1=', '2'),), 1)

    Two examples are the same when their prompts (their texts, where there is no prompt) are, apart from case and white
    space.
    """

    name: str
    splits: Mapping[str, tuple[TextExample, ...]] = field(repr=False)
    folder: Path | None = None

    @staticmethod
    def of(
        name: str,
        *,
        train: Sequence[TextExample] = (),
        dev: Sequence[TextExample] = (),
        test: Sequence[TextExample] = (),
        folder: Path | None = None,
    ) -> LanguageData:
        """Make data of examples at hand."""
        splits = {split: tuple(given) for split, given in zip(_SPLITS, (train, dev, test), strict=True) if given}
        for split, examples in splits.items():
            for index, example in enumerate(examples):
                pair = isinstance(example, tuple) and len(example) == 2 and all(isinstance(one, str) for one in example)
                if not (isinstance(example, str) or pair):
                    raise DataError(f"{name}: {split} example {index} is neither a text nor (prompt, completion)")
                if not (example if isinstance(example, str) else example[1]):
                    raise DataError(f"{name}: {split} example {index} is empty")
        return LanguageData(name, splits, folder)

    @staticmethod
    def open(folder: str | Path) -> LanguageData:
        """Read a folder with train.jsonl, dev.jsonl, test.jsonl (any of them).

        A line is {"text": ...} or {"prompt": ..., "completion": ...}. Raises DataError naming the file and line.
        """
        folder = Path(folder)
        found = {split: folder / f"{split}.jsonl" for split in _SPLITS if (folder / f"{split}.jsonl").is_file()}
        if not found:
            raise DataError(f"{folder}: none of train.jsonl, dev.jsonl, test.jsonl is there")
        return LanguageData.of(folder.name, folder=folder, **{split: _read(path) for split, path in found.items()})

    def examples(self, split: str) -> tuple[TextExample, ...]:
        """Return the examples of a split. Raises DataError when there is none of that name."""
        if split not in self.splits:
            raise DataError(f"{self.name}: no split {split!r}; it has {', '.join(self.splits) or 'none'}")
        return self.splits[split]

    @cached_property
    def content_hash(self) -> str:
        """The identity of all splits, for records."""
        return fingerprint({split: list(examples) for split, examples in self.splits.items()})

    def training(
        self,
        *,
        against: Iterable[LanguageData] = (),
        reserved: ReservedQueries | None = None,
        on_leak: Literal["drop", "refuse"] = "drop",
    ) -> TrainingTexts:
        """Return the train split without examples that are held out here or in `against`, or reserved.

        Raises LeakageError for such examples with `on_leak="refuse"`, DataError when nothing is left.
        """
        reserved = ReservedQueries.find() if reserved is None else reserved
        others = {id(other): other for other in (self, *against)}.values()
        held_out = {
            query_key(_asked(example))
            for other in others
            for split in ("dev", "test")
            for example in other.splits.get(split, ())
        }
        dropped = {"same as a dev or test example": 0, "reserved": 0}
        kept: list[TextExample] = []
        leaked: list[str] = []
        for example in self.examples("train"):
            asked = _asked(example)
            reason = (
                "same as a dev or test example"
                if query_key(asked) in held_out
                else "reserved"
                if asked in reserved
                else None
            )
            if reason is None:
                kept.append(example)
                continue
            dropped[reason] += 1
            leaked.append(f"{asked[:80]!r} ({reason})")
        if leaked and on_leak == "refuse":
            shown = "".join(f"\n  - {entry}" for entry in leaked[:5])
            raise LeakageError(f"{self.name}: {len(leaked)} training examples are held out, for example{shown}")
        if not kept:
            raise DataError(f"{self.name}: none of its {len(leaked)} training examples is left ({dropped})")
        sources = {other.name: other.content_hash for other in others}
        if len(reserved):
            sources["reserved queries"] = reserved.content_hash
        return TrainingTexts(self.name, tuple(kept), dropped, sources)


def _asked(example: TextExample) -> str:
    return example if isinstance(example, str) else example[0]


def _read(path: Path) -> list[TextExample]:
    examples: list[TextExample] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            examples.append(entry["text"] if "text" in entry else (entry["prompt"], entry["completion"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{path}, line {number}: expected {{"text": ...}} or {{"prompt": ..., "completion": ...}} ({error})'
            ) from error
    return examples
