"""Labelled grey images for classification, in splits with roles: digits and letters, views of them, subsets of classes.

A folder holds `data.npz` with `train_x`, `train_y`, `test_x`, `test_y` and `classes`; dev is drawn from train. Numbers
are floats from 0 (background) to 1.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from consilience.core.hashing import fingerprint, xxh3_hex
from consilience.core.randomness import stream_key, uniform_bits
from consilience.data.layout import SPLITS
from consilience.data.reserved import default_data_folder
from consilience.data.retrieval import ROLES
from consilience.errors import DataError, LeakageError, MissingExtraError, Problems, did_you_mean

__all__ = ["Image", "ImageData", "LabelledImages", "digits", "image_set", "resized"]

Image = NDArray[np.float32]
"""One image: (rows, columns), from 0 to 1."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images (n, rows, columns) float32 with the index of each one's class, (n,) int64.

    `labels` is None where a learner may not see them; `transductive` asks for a stamp in reports.
    """

    name: str
    split: str
    images: NDArray[np.float32] = field(repr=False)
    labels: NDArray[np.int64] | None = field(repr=False)
    transductive: bool = False

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def content_hash(self) -> str:
        """The identity of the images with their labels, for records."""
        labels = None if self.labels is None else self.labels.tolist()
        return fingerprint([xxh3_hex(np.ascontiguousarray(self.images)), list(self.images.shape), labels])

    @property
    def known_labels(self) -> NDArray[np.int64]:
        """The labels. Raises LeakageError where they are not given."""
        if self.labels is None:
            raise LeakageError(f"{self.name}: images of the role 'unlabelled' have no labels")
        return self.labels

    def pairs(self) -> list[tuple[Image, int]]:
        """Return (image, label) of each: the examples of an image classifier."""
        return list(zip(self.images, self.known_labels.tolist(), strict=True))

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> LabelledImages:
        """Return some of the images, in the order given."""
        return replace(self, images=self.images[rows], labels=None if self.labels is None else self.labels[rows])

    def sample(self, limit: int | None, *, seed: int = 0) -> LabelledImages:
        """Return at most `limit` of the images, drawn by (seed, name, split), in their order; None is all."""
        if limit is None or limit >= len(self):
            return self
        return self.take(np.sort(_drawn(len(self), str(seed), self.name, self.split)[:limit]))

    def shots(self, count: int, *, seed: int = 0) -> LabelledImages:
        """Return at most `count` images of each class, drawn by (seed, name, split)."""
        order = _drawn(len(self), str(seed), self.name, self.split)
        kept = [order[self.known_labels[order] == label][:count] for label in np.unique(self.known_labels)]
        return self.take(np.sort(np.concatenate(kept)))


@dataclass(frozen=True, eq=False)
class ImageData:
    """An image set: names of classes, and labelled images in the splits train, dev and test.

    >>> images = np.float32([[[0, 1]], [[1, 0]], [[1, 1]], [[1, 0]]])
    >>> data = ImageData.of("bars", ("left", "right"), train=(images[:3], [1, 0, 0]), test=(images[3:], [0]))
    >>> len(data.examples("train")), data.dropped  # one training image is in test too
    (2, {'train': 1, 'dev': 0})
    >>> data.mapped("inverted", lambda images: 1 - images).examples("test").images.tolist()
    [[[0.0, 1.0]]]
    >>> data.view("test")
    Traceback (most recent call last):
    ...
    consilience.errors.LeakageError: bars: a learner asked for the split 'test'; learn from 'train', select on 'dev'
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, LabelledImages] = field(repr=False)
    dropped: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def of(
        name: str,
        classes: Sequence[str],
        *,
        train: tuple[NDArray[np.float32], Sequence[int] | NDArray[np.integer]],
        test: tuple[NDArray[np.float32], Sequence[int] | NDArray[np.integer]],
        dev: tuple[NDArray[np.float32], Sequence[int] | NDArray[np.integer]] | None = None,
    ) -> ImageData:
        """Make a set of (images, labels) per split; images that are in a later split too are left out and counted.

        Raises DataError listing labels without a class, splits without images, and numbers outside 0 to 1.
        """
        problems = Problems()
        given = {"train": train, **({"dev": dev} if dev is not None else {}), "test": test}
        splits = {
            split: LabelledImages(name, split, np.asarray(images, np.float32), np.asarray(labels, np.int64))
            for split, (images, labels) in given.items()
        }
        for split, part in splits.items():
            images, labels = part.images, part.known_labels
            if images.ndim != 3 or not len(images) or len(images) != len(labels):
                problems.add(f"{split}: images {list(images.shape)} and {len(labels)} labels; (n, rows, columns) and n")
            elif not (float(images.min()) >= 0 and float(images.max()) <= 1):
                problems.add(f"{split}: numbers from {images.min():g} to {images.max():g}; images go from 0 to 1")
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
                problems.add(f"{split}: labels from {labels.min()} to {labels.max()}, but {len(classes)} classes")
        problems.raise_if_any(DataError, name)
        held_out: set[bytes] = set()
        dropped = {}
        for split in reversed(SPLITS):
            if split not in splits:
                dropped[split] = 0
                continue
            own = [image.tobytes() for image in splits[split].images]
            apart = np.flatnonzero([content not in held_out for content in own])
            dropped[split] = len(own) - len(apart)
            splits[split] = splits[split].take(apart)
            held_out.update(own)
        return ImageData(name, tuple(classes), splits, {split: dropped[split] for split in ("train", "dev")})

    @staticmethod
    def open(folder: str | Path, *, name: str | None = None, size: int | None = None, dev: float = 0.1) -> ImageData:
        """Read a folder with `data.npz`.

        size: rows and columns the images are resized to (None: as they are). dev: share of each class's training
        images that becomes dev. Colour images become grey. Raises DataError naming what is missing.
        """
        path = Path(folder) / "data.npz"
        name = name or Path(folder).name
        try:
            with np.load(path, allow_pickle=False) as stored:
                content = {key: stored[key] for key in stored.files}
        except FileNotFoundError:
            raise DataError(
                f"{path}: no such file; an image set is data.npz with train_x, train_y, test_x, test_y, classes "
                "(CONSILIENCE_DATA names the folder of public data)"
            ) from None
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: not a readable npz file ({error})") from error
        missing = [key for key in ("train_x", "train_y", "test_x", "test_y", "classes") if key not in content]
        if missing:
            raise DataError(f"{path}: no array {', '.join(missing)}; it has {', '.join(content)}")
        images = {split: _grey(content[f"{split}_x"], size) for split in ("train", "test")}
        labels = {split: content[f"{split}_y"].astype(np.int64) for split in ("train", "test")}
        chosen = _stratified(labels["train"], dev, name)
        parts = {"train": np.flatnonzero(~chosen), "dev": np.flatnonzero(chosen)}
        return ImageData.of(
            name,
            [str(entry) for entry in content["classes"]],
            train=(images["train"][parts["train"]], labels["train"][parts["train"]]),
            dev=(images["train"][parts["dev"]], labels["train"][parts["dev"]]) if len(parts["dev"]) else None,
            test=(images["test"], labels["test"]),
        )

    @cached_property
    def content_hash(self) -> str:
        """The identity of classes and splits, for records."""
        return fingerprint([list(self.classes), {split: part.content_hash for split, part in self.splits.items()}])

    def examples(self, split: str) -> LabelledImages:
        """Return a split with its labels, for measuring. Raises DataError when there is none of that name."""
        if split not in self.splits:
            raise DataError(f"{self.name}: no split {split!r}; it has {', '.join(self.splits)}")
        return self.splits[split]

    def view(self, role: str, *, of: str | None = None) -> LabelledImages:
        """Return what a learner may see in a role: train and dev with labels, unlabelled (of train) without."""
        if role not in ROLES:
            raise DataError(f"{self.name}: unknown role {role!r}{did_you_mean(role, ROLES)}")
        if role == "test":
            raise LeakageError(
                f"{self.name}: a learner asked for the split 'test'; learn from 'train', select on 'dev'"
            )
        if role != "unlabelled":
            return self.examples(role)
        split = of or "train"
        return replace(self.examples(split), labels=None, transductive=split != "train")

    def mapped(self, name: str, function: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> ImageData:
        """Return the set with each split's images (n, rows, columns) changed by a function: a view of it."""
        return self._with(name, {s: replace(p, images=function(p.images)) for s, p in self.splits.items()})

    def only(self, name: str, classes: Sequence[int]) -> ImageData:
        """Return the images of some classes, which are renumbered in the order given."""
        number = np.full(len(self.classes), -1, np.int64)
        number[list(classes)] = np.arange(len(classes))
        kept = {}
        for split, part in self.splits.items():
            chosen = part.take(np.flatnonzero(number[part.known_labels] >= 0))
            kept[split] = replace(chosen, labels=number[chosen.known_labels])
        return replace(self._with(name, kept), classes=tuple(self.classes[index] for index in classes))

    def capped(self, **limits: int | None) -> ImageData:
        """Return the set with at most so many images in the splits that are named (train=..., dev=..., test=...)."""
        return self._with(self.name, {s: part.sample(limits.get(s)) for s, part in self.splits.items()})

    def _with(self, name: str, splits: Mapping[str, LabelledImages]) -> ImageData:
        return replace(self, name=name, splits={s: replace(part, name=name) for s, part in splits.items()})


def image_set(name: str, *, size: int | None = None, dev: float = 0.1) -> ImageData:
    """Open a set of the public data folder by name: mnist, usps, kannada_mnist, notmnist, cifar10, omniglot_small1.

    Omniglot's alphabets are sets of their own: omniglot_small1/Greek (Balinese, Early_Aramaic, Korean, Latin).
    Other arguments: see `ImageData.open`.
    """
    folder, _, alphabet = name.partition("/")
    data = ImageData.open(default_data_folder() / "vision" / folder, name=folder, size=size, dev=dev)
    if not alphabet:
        return data
    chosen = [index for index, label in enumerate(data.classes) if label.partition("/")[0] == alphabet]
    if not chosen:
        known = sorted({label.partition("/")[0] for label in data.classes})
        raise DataError(f"{folder}: no alphabet {alphabet!r}{did_you_mean(alphabet, known)}; it has {', '.join(known)}")
    return data.only(name, chosen)


def digits(*, size: int | None = None, dev: int = 200) -> ImageData:
    """Return scikit-learn's 1,797 digits of 8 x 8: the last `dev` of 1,200 for training are dev, and 597 are test.

    >>> data = digits()
    >>> {split: len(part) for split, part in data.splits.items()}, data.examples("test").images.shape
    ({'train': 1000, 'dev': 200, 'test': 597}, (597, 8, 8))

    The order is NumPy's permutation of RandomState(0). Raises MissingExtraError where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "bench") from error
    stored = load_digits()
    order = np.random.RandomState(0).permutation(len(stored.target))
    images, labels = _resize((stored.images[order] / 16).astype(np.float32), size), stored.target[order]
    train, held, test = slice(1200 - dev), slice(1200 - dev, 1200), slice(1200, None)
    return ImageData.of(
        "digits",
        [str(label) for label in range(10)],
        train=(images[train], labels[train]),
        dev=(images[held], labels[held]) if dev else None,
        test=(images[test], labels[test]),
    )


def resized(images: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return images (n, rows, columns) at `size` x `size`, interpolated linearly (averaged where they shrink).

    >>> resized(np.float32([[[0, 0], [1, 1]]]), 4)[0, :, 0].tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    rows, columns = (_interpolation(length, size) for length in images.shape[1:])
    made: NDArray[np.float32] = np.clip(rows @ images @ columns.T, 0, 1)
    return made


def _interpolation(source: int, target: int) -> NDArray[np.float32]:
    """Return (target, source) weights of a triangle filter that is never narrower than a source pixel."""
    scale = source / target
    centres = (np.arange(target) + 0.5) * scale - 0.5
    distance = np.abs(centres[:, None] - np.arange(source))
    weights = np.clip(1 - distance / max(scale, 1.0), 0, None)
    made: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return made


def _resize(images: NDArray[np.float32], size: int | None) -> NDArray[np.float32]:
    return images if size is None or images.shape[1:] == (size, size) else resized(images, size)


def _grey(stored: NDArray[np.uint8], size: int | None) -> NDArray[np.float32]:
    grey = stored @ _LUMA if stored.ndim == 4 else stored
    return _resize((grey / 255).astype(np.float32), size)


def _drawn(count: int, *names: str) -> NDArray[np.int64]:
    """Return a permutation that depends on the names only."""
    order: NDArray[np.int64] = np.argsort(uniform_bits(stream_key(7, "images", *names), 0, count), kind="stable")
    return order


def _stratified(labels: NDArray[np.int64], share: float, name: str) -> NDArray[np.bool_]:
    """Return which images become dev: of each class the first ones in a drawn order, rounded up."""
    order = _drawn(len(labels), "dev", name)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        chosen[members[: int(np.ceil(share * len(members)))]] = True
    return chosen
