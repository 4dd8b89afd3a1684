"""Train image networks: steps on one or several sets at once, and heads for their vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from consilience.core.randomness import stream_key, uniform_bits
from consilience.data.images import LabelledImages
from consilience.errors import RequestError
from consilience.models.classifier import Head
from consilience.models.image import ImageEncoder
from consilience.training.fitting import fit

__all__ = ["ImageTraining", "centroid_head", "fit_image_head", "new_head", "train_images"]


@dataclass(frozen=True)
class ImageTraining:
    """Steps of Adam (AdamW with `weight_decay`), each on `batch` images of every set.

    schedule: "constant" or "linear" to zero, after `warmup` (share of the steps). clip: largest norm of the gradient.
    """

    steps: int
    learning_rate: float
    batch: int = 64
    schedule: str = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.0
    clip: float = math.inf


def train_images(
    encoder: ImageEncoder,
    sets: Mapping[str, LabelledImages],
    heads: Mapping[str, Head],
    settings: ImageTraining,
    *,
    seed: int = 0,
    train_heads: bool = False,
) -> dict[str, Head]:
    """Train an encoder in place on the mean of the losses of all sets, and return the heads.

    >>> from consilience.data.images import digits
    >>> from consilience.models.image_network import PerceptronConfig
    >>> encoder = ImageEncoder(PerceptronConfig(hidden_sizes=(32,)), seed=0)
    >>> train = digits().examples("train")
    >>> head = fit_image_head(encoder, train, [str(digit) for digit in range(10)])
    >>> heads = train_images(encoder, {"digits": train}, {"digits": head}, ImageTraining(steps=5, learning_rate=1e-3))
    >>> heads["digits"] is head  # heads stay as they are unless `train_heads`
    True

    sets, heads: by the same names. The images of a step are drawn by (seed, name of the set, step), so the same
    settings give the same weights. train_heads: heads are trained too, without their biases. Raises WorkError when a
    loss is not finite.
    """
    if set(sets) != set(heads) or not sets:
        raise RequestError(f"sets {sorted(sets)} and heads {sorted(heads)}: give every set its head")
    images = {name: torch.from_numpy(part.images).to(encoder.device) for name, part in sets.items()}
    labels = {name: torch.from_numpy(part.known_labels).to(encoder.device) for name, part in sets.items()}
    weights = {name: nn.Parameter(head.weight.clone(), requires_grad=train_heads) for name, head in heads.items()}
    trained = encoder.parameters() | ({f"head {name}": w for name, w in weights.items()} if train_heads else {})

    def loss_at(step: int) -> tuple[Tensor, int]:
        rows = {name: _rows(len(part), settings.batch, seed, name, step) for name, part in sets.items()}
        vectors = encoder.forward(torch.cat([images[name][rows[name]] for name in sets]))
        parts = vectors.split_with_sizes([len(chosen) for chosen in rows.values()])
        losses = [
            functional.cross_entropy(functional.linear(part, weights[name], heads[name].bias), labels[name][rows[name]])
            for name, part in zip(sets, parts, strict=True)
        ]
        return torch.stack(losses).mean(), len(vectors)

    encoder.module.train()
    fit(loss_at, trained, settings)
    encoder.module.eval()
    if not train_heads:
        return dict(heads)
    return {name: Head(weights[name].detach(), head.bias, head.labels) for name, head in heads.items()}


def _rows(size: int, batch: int, seed: int, name: str, step: int) -> Tensor:
    """Return the images of a step, each at most once; all of them where there are no more than `batch`."""
    if size <= batch:
        return torch.arange(size)
    bits = uniform_bits(stream_key(seed, "images of a step", name, str(step)), 0, size)
    return torch.from_numpy(np.argpartition(bits, batch)[:batch])


def new_head(dimension: int, labels: Sequence[str], *, seed: int = 0, name: str = "") -> Head:
    """Return a head whose weights are drawn from N(0, 1 / dimension), by (seed, name), and whose bias is 0.

    >>> round(float(new_head(64, ["a", "b"]).weight.std()), 1)
    0.1
    """
    random = np.random.Generator(np.random.Philox(stream_key(seed, "head", name)))
    values = random.standard_normal((len(labels), dimension), dtype=np.float32) / math.sqrt(dimension)
    return Head(torch.from_numpy(values.astype(np.float32)), torch.zeros(len(labels)), tuple(labels))


def fit_image_head(
    encoder: ImageEncoder, examples: LabelledImages, labels: Sequence[str], *, penalty: float = 1e-4, steps: int = 200
) -> Head:
    """Fit a linear head on the encoder's vectors as they are: multinomial logistic regression, solved to the end.

    penalty: half of it times the squared norm of the weights is added to the mean loss. steps: iterations of L-BFGS at
    most. Computed in float64 from zeros, so it depends on nothing but the vectors.
    """
    vectors = encoder.encode(examples.images).double()
    targets = torch.from_numpy(examples.known_labels).to(vectors.device)
    weight = torch.zeros(len(labels), vectors.shape[1], dtype=torch.float64, device=vectors.device, requires_grad=True)
    bias = torch.zeros(len(labels), dtype=torch.float64, device=vectors.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(functional.linear(vectors, weight, bias), targets)
        loss = loss + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return Head(weight.detach().float(), bias.detach().float(), tuple(labels))


def centroid_head(encoder: ImageEncoder, examples: LabelledImages, labels: Sequence[str]) -> Head:
    """Return the head that finds the class whose mean vector is nearest in angle: a reading of vectors from few images.

    >>> from consilience.data.images import digits
    >>> from consilience.models.image import ImageClassifier
    >>> from consilience.models.image_network import PerceptronConfig
    >>> data, encoder = digits(), ImageEncoder(PerceptronConfig(hidden_sizes=(32,)))
    >>> head = centroid_head(encoder, data.examples("train").shots(5), data.classes)
    >>> test = data.examples("test")
    >>> bool(ImageClassifier(encoder, head).correct(test.images, test.known_labels).mean() > 0.5)
    True

    Vectors are brought to length 1, averaged over each class's images, and brought to length 1 again. A class without
    an image is never found. Source: J. Snell, K. Swersky, R. Zemel, Prototypical Networks for Few-shot Learning (2017).
    """
    vectors = functional.normalize(encoder.encode(examples.images), dim=1)
    known: NDArray[np.int64] = examples.known_labels
    sums = torch.zeros(len(labels), vectors.shape[1], device=vectors.device)
    sums.index_add_(0, torch.from_numpy(known).to(vectors.device), vectors)
    absent = np.bincount(known, minlength=len(labels)) == 0
    bias = torch.from_numpy(np.where(absent, -np.inf, 0.0).astype(np.float32)).to(vectors.device)
    return Head(functional.normalize(sums, dim=1), bias, tuple(labels))
