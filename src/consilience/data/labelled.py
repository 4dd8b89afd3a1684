"""Texts with labels for classification, in splits with roles: what a learner may see, and what only the ruler sees."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from consilience.core.hashing import fingerprint
from consilience.core.randomness import stream_key, uniform_bits
from consilience.data.layout import SPLITS
from consilience.data.reserved import ReservedQueries
from consilience.data.retrieval import ROLES
from consilience.data.text import query_key
from consilience.errors import DataError, LeakageError, MissingExtraError, Problems, did_you_mean

__all__ = ["LabelledData", "LabelledTexts"]

_COLUMNS = ("text", "label", "split")


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and the index of each one's label; `labels` is None where a learner may not see them.

    `dropped` counts texts that were left out, by reason; `transductive` asks for a stamp in reports.
    """

    name: str
    split: str
    texts: tuple[str, ...] = field(repr=False)
    labels: tuple[int, ...] | None = field(repr=False)
    dropped: Mapping[str, int] = field(default_factory=dict)
    transductive: bool = False

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def content_hash(self) -> str:
        """The identity of the texts with their labels, for records."""
        return fingerprint([list(self.texts), None if self.labels is None else list(self.labels)])

    def pairs(self) -> list[tuple[str, int]]:
        """Return (text, label) of every text. Raises LeakageError where labels are not given."""
        if self.labels is None:
            raise LeakageError(f"{self.name}: texts of the role 'unlabelled' have no labels")
        return list(zip(self.texts, self.labels, strict=True))

    def sample(self, limit: int | None, *, seed: int = 0) -> LabelledTexts:
        """Return at most `limit` of the texts, drawn by (seed, name, split), in their order; None is all."""
        if limit is not None and limit < 1:
            raise DataError(f"{self.name}: at most {limit} texts were asked for; use 1 or more, or None for all")
        return self if limit is None or limit >= len(self) else self._at(self._drawn(seed)[:limit])

    def balanced(self, limit: int, *, seed: int = 0) -> LabelledTexts:
        """Return at most `limit` texts of every label, drawn as in `sample`, in their order."""
        labels = np.array([label for _, label in self.pairs()])
        drawn = self._drawn(seed)
        kept = [drawn[labels[drawn] == label][:limit] for label in np.unique(labels)]
        return self._at(np.concatenate(kept))

    def _drawn(self, seed: int) -> NDArray[np.int64]:
        draws = uniform_bits(stream_key(seed, "labelled texts", self.name, self.split), 0, len(self))
        return np.argsort(draws, kind="stable")

    def _at(self, places: NDArray[np.int64]) -> LabelledTexts:
        kept = np.sort(places).tolist()
        labels = None if self.labels is None else tuple(self.labels[index] for index in kept)
        texts = tuple(self.texts[index] for index in kept)
        return LabelledTexts(self.name, self.split, texts, labels, self.dropped, self.transductive)


@dataclass(frozen=True)
class LabelledData:
    """A classification set: label names, and labelled texts in the splits train, dev and test.

    >>> train = [("awful", 0), ("great", 1), ("fine", 1)]
    >>> data = LabelledData.of("tone", ("bad", "good"), train=train, dev=[("Fine.", 1)], test=[("ok", 1)])
    >>> data.training().pairs(), data.training().dropped["same as a dev or test text"]
    ([('awful', 0), ('great', 1)], 1)
    >>> data.view("test")
    Traceback (most recent call last):
    ...
    consilience.errors.LeakageError: tone: a learner asked for the split 'test'; learn from 'train', select on 'dev', \
or ask for the role 'unlabelled' (texts without labels)

    `examples(split)` is for measuring; learners use `view(role)` and `training()`. Two texts are the same when they
    are apart from case, white space and final punctuation; dev texts that are in test too are left out of dev when
    the set is opened, so validation and test never meet. `notes` says what was left out.
    """

    name: str
    labels: tuple[str, ...]
    splits: Mapping[str, LabelledTexts] = field(repr=False)
    folder: Path | None = None
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(
        name: str,
        labels: Sequence[str],
        *,
        train: Iterable[tuple[str, int]] = (),
        dev: Iterable[tuple[str, int]] = (),
        test: Iterable[tuple[str, int]] = (),
        folder: Path | None = None,
    ) -> LabelledData:
        """Make a set of (text, label index) pairs. Raises DataError listing every text without a label or text."""
        problems = Problems()
        given = {split: list(pairs) for split, pairs in zip(SPLITS, (train, dev, test), strict=True)}
        if len(set(labels)) < max(len(labels), 2):
            problems.add(f"{len(labels)} labels, {len(set(labels))} different; at least two are needed, all different")
        for split, pairs in given.items():
            wrong = [label for _, label in pairs if not 0 <= label < len(labels)]
            if wrong:
                problems.add(f"{split}: {len(wrong)} labels are outside 0 to {len(labels) - 1}, such as {wrong[0]}")
            empty = sum(not text.strip() for text, _ in pairs)
            if empty:
                problems.add(f"{split}: {empty} texts are empty")
        problems.raise_if_any(DataError, name)
        tested = {query_key(text) for text, _ in given["test"]}
        apart = [pair for pair in given["dev"] if query_key(pair[0]) not in tested]
        both, given["dev"] = len(given["dev"]) - len(apart), apart
        notes = (f"{both} dev texts are in test too and were left out of dev",) if both else ()
        splits = {
            split: LabelledTexts(name, split, tuple(text for text, _ in pairs), tuple(int(label) for _, label in pairs))
            for split, pairs in given.items()
            if pairs
        }
        return LabelledData(name, tuple(labels), splits, folder, notes)

    @staticmethod
    def open(folder: str | Path, *, name: str | None = None) -> LabelledData:
        """Open a folder with `data.parquet` (text, label, split) and `labels.json` (names in the order of the labels).

        Raises DataError listing what is missing or wrong.
        """
        folder = Path(folder)
        name = name or folder.resolve().name
        table = _read(folder)
        try:
            labels = json.loads((folder / "labels.json").read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}: labels.json cannot be read ({error}); expected a list of names") from error
        unknown = sorted(set(table["split"]) - set(SPLITS))
        if unknown or not isinstance(labels, list):
            raise DataError(f"{folder}: splits {unknown} are unknown, or labels.json is no list of names")
        parts: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
        for text, label, split in zip(table["text"], table["label"], table["split"], strict=True):
            parts[split].append((text, int(label)))
        return LabelledData.of(name, [str(label) for label in labels], folder=folder, **parts)

    @cached_property
    def content_hash(self) -> str:
        """The identity of labels and splits, for records."""
        return fingerprint([list(self.labels), {split: part.content_hash for split, part in self.splits.items()}])

    def examples(self, split: str) -> LabelledTexts:
        """Return a split with its labels, for measuring. Raises DataError when it has no texts."""
        if split not in self.splits:
            raise DataError(f"{self.name}: no split {split!r}; it has {', '.join(self.splits) or 'none'}")
        return self.splits[split]

    def view(self, role: str, *, of: str | None = None) -> LabelledTexts:
        """Return what a learner may see in a role: train and dev with labels, unlabelled without.

        `unlabelled` is the train split unless `of` names another one; texts of dev or test make the learner
        transductive. `test` raises LeakageError.
        """
        if role not in ROLES:
            raise DataError(f"{self.name}: unknown role {role!r}{did_you_mean(role, ROLES)}")
        if role == "test":
            raise LeakageError(
                f"{self.name}: a learner asked for the split 'test'; learn from 'train', select on 'dev', "
                "or ask for the role 'unlabelled' (texts without labels)"
            )
        if role != "unlabelled":
            return self.examples(role)
        split = of or "train"
        return LabelledTexts(self.name, split, self.examples(split).texts, None, transductive=split != "train")

    def training(
        self,
        *,
        against: Iterable[LabelledData] = (),
        reserved: ReservedQueries | None = None,
        on_leak: Literal["drop", "refuse"] = "drop",
    ) -> LabelledTexts:
        """Return the train split without texts that are held out here or in `against`, or reserved; see `dropped`.

        Raises LeakageError for such texts with `on_leak="refuse"`, DataError when nothing is left.
        """
        reserved = ReservedQueries.find() if reserved is None else reserved
        held_out = {
            query_key(text)
            for other in (self, *against)
            for split in ("dev", "test")
            if split in other.splits
            for text in other.splits[split].texts
        }
        dropped = {"same as a dev or test text": 0, "reserved": 0}
        kept: list[tuple[str, int]] = []
        for text, label in self.examples("train").pairs():
            reason = "same as a dev or test text" if query_key(text) in held_out else "reserved"
            if reason == "reserved" and text not in reserved:
                kept.append((text, label))
                continue
            dropped[reason] += 1
            if on_leak == "refuse":
                raise LeakageError(f"{self.name}: the training text {text[:80]!r} is held out ({reason})")
        if not kept:
            raise DataError(f"{self.name}: none of its training texts is left ({dropped})")
        texts, labels = (tuple(part) for part in zip(*kept, strict=True))
        return LabelledTexts(self.name, "train", texts, labels, dropped)


def _read(folder: Path) -> dict[str, list[str]]:
    path = folder / "data.parquet"
    if not path.is_file():
        raise DataError(f"{path}: no such file; a classification set is data.parquet (text, label, split), labels.json")
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "bench") from error
    try:
        table = parquet.read_table(path)
    except ArrowInvalid as error:
        raise DataError(f"{path}: not a parquet file ({error})") from error
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}; it has {', '.join(table.column_names)}")
    columns: dict[str, list[str]] = {name: table.column(name).to_pylist() for name in _COLUMNS}
    if any(value is None for column in columns.values() for value in column):
        raise DataError(f"{path}: values are missing in {', '.join(n for n, c in columns.items() if None in c)}")
    return columns
