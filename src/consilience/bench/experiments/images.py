"""Image classifiers as families: views of small digits on a perceptron, digits and letters on vision transformers.

Experts of a family share one network and have one head per task, which stays as it was before fine-tuning. Heads
travel in the states as the bits of their numbers in integer tensors (`heads.TASK.weight`): merging copies integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from consilience.data.images import ImageData, LabelledImages, digits, image_set
from consilience.data.reserved import default_data_folder
from consilience.errors import RequestError, did_you_mean
from consilience.models.classifier import Head
from consilience.models.image import ImageClassifier, ImageEncoder
from consilience.models.image_network import Config, PerceptronConfig, TransformerConfig, config_record
from consilience.training.images import ImageTraining, centroid_head, new_head, train_images

if TYPE_CHECKING:
    from consilience.bench.experiments.family import Split, State

__all__ = ["DigitViews", "ImageFamily", "Letters"]

_VERSION = 1

Images = NDArray[np.float32]
_VIEWS: Mapping[str, Callable[[Images], Images]] = {
    "upright": lambda images: images,
    "rotated": lambda images: np.rot90(images, axes=(1, 2)).copy(),
    "inverted": lambda images: 1 - images,
    "mirrored": lambda images: images[:, :, ::-1].copy(),
    "mirrored_rolled": lambda images: np.roll(images[:, :, ::-1], 2, axis=1),
}


class ImageFamily:
    """What families of image classifiers share. A family says which sets it has and how its base is made."""

    name: str
    tasks: tuple[str, ...]
    config: Config
    training: ImageTraining
    """Fine-tuning of an expert; several tasks together take as many steps, each on a batch of every task."""

    def __init__(self) -> None:
        self._bases: dict[int, State] = {}

    @cached_property
    def sets(self) -> Mapping[str, ImageData]:
        """All image sets by name: the tasks, those held out, and those that only the base is made of."""
        return self.open_sets()

    def open_sets(self) -> Mapping[str, ImageData]:
        """Read the image sets."""
        raise NotImplementedError

    def make_base(self, seed: int) -> tuple[ImageEncoder, Mapping[str, Head]]:
        """Train the network that experts start from, with the heads of the tasks."""
        raise NotImplementedError

    @property
    def recipe(self) -> Mapping[str, Any]:
        """What decides the base beside the data, the network and the version."""
        raise NotImplementedError

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the states."""
        data = {name: data.content_hash for name, data in self.sets.items()}
        training = {"base": self.recipe, "expert": asdict(self.training)}
        return {"version": _VERSION, "network": config_record(self.config), "data": data, **training}

    def base(self, seed: int) -> State:
        """Train the base of a seed, with its heads."""
        if seed not in self._bases:
            encoder, heads = self.make_base(seed)
            self._bases[seed] = encoder.state() | _packed(heads)
        return self._bases[seed]

    def expert(self, task: str, seed: int) -> State:
        """Fine-tune the base of a seed on one task."""
        return self.multitask((task,), seed)

    def multitask(self, tasks: Sequence[str], seed: int) -> State:
        """Fine-tune the base of a seed on several tasks together; the heads stay."""
        unknown = [f"{task!r}{did_you_mean(task, self.tasks)}" for task in tasks if task not in self.tasks]
        if unknown:
            raise RequestError(f"{self.name}: nothing is trained on {', '.join(unknown)}")
        start = self.base(seed)
        encoder = ImageEncoder(self.config, start)
        sets = {task: self.sets[task].view("train") for task in tasks}
        heads = {task: self.head(start, task) for task in tasks}
        train_images(encoder, sets, heads, self.training, seed=seed)
        return encoder.state() | {name: value for name, value in start.items() if name not in encoder.names}

    def head(self, state: Mapping[str, Any], task: str) -> Head:
        """Return the head of a task that a state carries."""
        weight, bias = (state[f"heads.{task}.{part}"].view(torch.float32) for part in ("weight", "bias"))
        return Head(weight, bias, self.sets[task].classes)

    def model(self, state: Mapping[str, Any], task: str) -> ImageClassifier:
        """Return a runnable classifier, for statistics."""
        return ImageClassifier(ImageEncoder(self.config, state, name=task), self.head(state, task))

    def examples(self, task: str, count: int) -> list[tuple[Images, int]]:
        """Return training examples of a task, for statistics."""
        return self.sets[task].view("train").sample(count).pairs()

    def scores(self, state: State, task: str, split: Split) -> NDArray[np.float64]:
        """Return 1 for every image of a split that is classified rightly, else 0."""
        part = self.sets[task].examples(split)
        return self.model(state, task).correct(part.images, part.known_labels)


def _packed(heads: Mapping[str, Head]) -> State:
    parts = {
        f"heads.{task}.{part}": getattr(head, part).contiguous() for task, head in heads.items() for part in _PARTS
    }
    return {name: value.view(torch.int32) for name, value in parts.items()}


_PARTS = ("weight", "bias")


class DigitViews(ImageFamily):
    """Four views of scikit-learn's digits on a perceptron of 19,968 weights: a toy that merges in milliseconds.

    >>> family = DigitViews("mild")
    >>> family.tasks
    ('upright', 'rotated', 'inverted', 'mirrored_rolled')
    >>> family.scores(family.base(seed=0), "upright", "test").shape
    (597,)

    setting: how far experts go from the base. Base and heads are trained together on the first 300 training images,
    with Adam at 2e-3, 64 images of each view per step: 120 steps ("mild") or 60 ("strong"). Experts: 150 steps at 3e-4
    ("mild") or 400 at 1e-3 ("strong"). base_steps, expert_steps: other numbers of steps. 1,000 images are for training,
    200 are dev, 597 are test.
    """

    tasks = ("upright", "rotated", "inverted", "mirrored_rolled")
    config = PerceptronConfig(image_size=8, hidden_sizes=(96, 96, 48))
    seen_by_base = 300

    def __init__(
        self,
        setting: Literal["mild", "strong"] = "mild",
        *,
        base_steps: int | None = None,
        expert_steps: int | None = None,
    ) -> None:
        super().__init__()
        if setting not in ("mild", "strong"):
            raise RequestError(f"setting {setting!r} is unknown; use mild or strong")
        self.name = f"digit-views-{setting}"
        mild = setting == "mild"
        self.base_training = ImageTraining(base_steps or (120 if mild else 60), 2e-3)
        self.training = ImageTraining(expert_steps or (150 if mild else 400), 3e-4 if mild else 1e-3)

    def open_sets(self) -> Mapping[str, ImageData]:
        """Make the views."""
        data = digits()
        return {view: data.mapped(view, _VIEWS[view]) for view in self.tasks}

    @property
    def recipe(self) -> Mapping[str, Any]:
        """How the base is trained."""
        return {**asdict(self.base_training), "images": self.seen_by_base}

    def make_base(self, seed: int) -> tuple[ImageEncoder, Mapping[str, Head]]:
        """Train network and heads together."""
        encoder = ImageEncoder(self.config, seed=seed)
        sets = {view: self.sets[view].view("train").take(range(self.seen_by_base)) for view in self.tasks}
        heads = {view: new_head(48, self.sets[view].classes, seed=seed, name=view) for view in self.tasks}
        return encoder, train_images(encoder, sets, heads, self.base_training, seed=seed, train_heads=True)


_SIZES: Mapping[str, TransformerConfig] = {
    "small": TransformerConfig(patch_size=14, hidden_size=32, num_hidden_layers=2),
    "medium": TransformerConfig(patch_size=14, hidden_size=64, num_hidden_layers=3),
    "large": TransformerConfig(patch_size=14, hidden_size=96, num_hidden_layers=4),
}
_SOURCES = {
    "pictures": "cifar10",
    "mnist": "mnist",
    "usps": "usps",
    "kannada": "kannada_mnist",
    "notmnist": "notmnist",
    "digits": "digits",
    **{name.lower(): f"omniglot_small1/{name}" for name in ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")},
}


class Letters(ImageFamily):
    """Digits and letters of many scripts on vision transformers; eight tasks with experts, three held out.

    tasks: MNIST, Kannada digits, notMNIST letters, Balinese, and a changed view of each (rotated, inverted, mirrored,
    rotated). held_out: scikit-learn's digits, Early Aramaic, Korean; no training of any model sees these sets.

    size: "small" (20,000 weights), "medium" (110,000), "large" (310,000). base: "weak" is trained to classify grey
    pictures (CIFAR-10); "strong" goes on from there on other scripts together: USPS, Greek, Latin, and views of them.
    A task's head are the centroids of ten training images per class in the base's vectors, few on purpose, as
    zero-shot heads are made without any, so that a better base is better on the tasks; it stays. A held-out set has no
    head: its classes are found by the nearest centroid of ten images each, in the vectors of the measured model.

    Data: the folder `vision` of the public data (`CONSILIENCE_DATA`). At most `test` images of a task are measured.
    """

    tasks = (
        *("mnist", "kannada", "notmnist", "balinese"),
        *("mnist_rotated", "kannada_inverted", "notmnist_mirrored", "balinese_rotated"),
    )
    held_out = ("digits", "early_aramaic", "korean")
    others = ("usps", "greek", "latin", "usps_inverted", "greek_rotated", "latin_mirrored")
    shots = 10

    def __init__(
        self,
        size: Literal["small", "medium", "large"] = "small",
        base: Literal["weak", "strong"] = "strong",
        *,
        base_steps: int = 400,
        base_rate: float = 3e-3,
        expert_steps: int = 200,
        expert_rate: float = 1e-3,
        dev: int = 250,
        test: int = 500,
    ) -> None:
        super().__init__()
        if size not in _SIZES or base not in ("weak", "strong"):
            raise RequestError(f"Letters({size!r}, {base!r}): sizes are {', '.join(_SIZES)}, bases weak and strong")
        self.name = f"letters-{size}-{base}"
        self.config = _SIZES[size]
        self.strong = base == "strong"
        self.limits = {"dev": dev, "test": test}
        self.base_training = _vit_training(base_steps, base_rate)
        self.training = _vit_training(expert_steps, expert_rate)

    def open_sets(self) -> Mapping[str, ImageData]:
        """Read the sets and make the views."""
        found = {}
        for name, source in self.sources.items():
            view = next((view for view in _VIEWS if name.endswith(f"_{view}")), "upright")
            found[name] = _opened(source, default_data_folder()).capped(**self.limits).mapped(name, _VIEWS[view])
        return found

    @property
    def sources(self) -> Mapping[str, str]:
        """The dataset of each set, held out or trained on."""
        trained = ("pictures", *(self.others if self.strong else ()), *self.tasks)
        return {name: next(_SOURCES[s] for s in _SOURCES if name.startswith(s)) for name in (*trained, *self.held_out)}

    def chance(self, task: str) -> float:
        """Return the score of guessing: one over the number of classes."""
        return 1 / len(self.sets[task].classes)

    @property
    def recipe(self) -> Mapping[str, Any]:
        """How the base is trained."""
        return {**asdict(self.base_training), "strong": self.strong, "shots": self.shots, "heads": "centroids"}

    def make_base(self, seed: int) -> tuple[ImageEncoder, Mapping[str, Head]]:
        """Train on pictures, then, for the strong base, on other scripts; fit the heads of the tasks."""
        encoder = ImageEncoder(self.config, seed=seed)
        for names in (("pictures",), self.others)[: 1 + self.strong]:
            sets = {name: self.sets[name].view("train") for name in names}
            heads = {name: new_head(encoder.dimension, self.sets[name].classes, seed=seed, name=name) for name in names}
            train_images(encoder, sets, heads, self.base_training, seed=seed, train_heads=True)
        return encoder, {task: self._centroids(encoder, task) for task in self.tasks}

    def _centroids(self, encoder: ImageEncoder, task: str) -> Head:
        return centroid_head(encoder, self.sets[task].view("train").shots(self.shots), self.sets[task].classes)

    def scores(self, state: State, task: str, split: Split) -> NDArray[np.float64]:
        """Return 1 for every image of a split that is classified rightly, else 0; held-out tasks by centroids."""
        if task not in self.held_out:
            return super().scores(state, task, split)
        encoder = ImageEncoder(self.config, {name: state[name] for name in state if not name.startswith("heads.")})
        part: LabelledImages = self.sets[task].examples(split)
        return ImageClassifier(encoder, self._centroids(encoder, task)).correct(part.images, part.known_labels)


@lru_cache(maxsize=16)
def _opened(source: str, folder: Path) -> ImageData:
    """Read a set once for all families of a process."""
    return digits(size=28) if source == "digits" else image_set(source, size=28)


def _vit_training(steps: int, learning_rate: float) -> ImageTraining:
    return ImageTraining(steps, learning_rate, schedule="linear", warmup=0.05, weight_decay=0.01, clip=1.0)
